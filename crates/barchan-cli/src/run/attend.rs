//! Signals that come while the program runs: this process stays to sum up, whatever ends the program.

use std::process::{Child, ExitStatus};
use std::{io, thread};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Origin;

/// What is handed on to the program.
const HANDED_ON: [i32; 6] = [SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGINT, SIGQUIT];

/// From here on these signals do not end this process. Handlers, unlike ignored signals, are not inherited by the
/// program; so what is ignored already (`nohup`) stays as it is.
pub(crate) struct Attendant(SignalsInfo<WithOrigin>);

impl Attendant {
    pub(crate) fn new() -> io::Result<Self> {
        SignalsInfo::new(not_ignored(HANDED_ON)).map(Self)
    }

    /// Waits for the program, and hands signals on to it.
    pub(crate) fn wait(self, child: &mut Child) -> io::Result<ExitStatus> {
        let Self(mut signals) = self;
        let handle = signals.handle();
        let pid = Pid::from_child(child);
        let forwarder = thread::spawn(move || {
            for origin in signals.forever() {
                if let Some(signal) = handed_on(&origin) {
                    // It may have ended just now.
                    let _ = kill_process(pid, signal);
                }
            }
        });
        // Its number is its own until nobody is left who would send signals to it.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let ended = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options));
        handle.close();
        let _ = forwarder.join();
        ended?;
        child.wait()
    }
}

/// What the program gets of a signal to this process: nothing of ^C and its like, which the terminal sends to both.
fn handed_on(origin: &Origin) -> Option<Signal> {
    let is_of_the_terminal = origin.process.is_none();
    match origin.signal {
        SIGINT | SIGQUIT if is_of_the_terminal => None,
        number => Signal::from_named_raw(number),
    }
}

/// Those that this process does not ignore.
pub(crate) fn not_ignored(signals: impl IntoIterator<Item = i32>) -> impl Iterator<Item = i32> {
    let ignored = ignored();
    signals.into_iter().filter(move |signal| ignored >> (signal - 1) & 1 == 0)
}

/// The signals that this process ignores, signal 1 in the lowest bit.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}
