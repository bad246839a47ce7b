//! An emulator as a process: started in a group of its own, ended with all that is in it,
//! whatever becomes of us.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// A running emulator; dropping it ends it.
pub(crate) struct Emulator {
    child: Child,
}

impl Emulator {
    /// Starts `command` without a terminal; what it prints goes to `log`.
    pub(crate) fn start(command: &Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = log.try_clone().context("cannot duplicate a descriptor")?;
        let mut command = bound_to_us(command, "KILL");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        Self::spawn(command)
    }

    /// Starts `command` on a terminal that nobody sees, for programs that insist on one.
    pub(crate) fn start_on_terminal(command: &Command, log: &Path) -> anyhow::Result<Self> {
        use rustix::pty;
        let mut log =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY)
            .context("cannot open a pseudo-terminal (is /dev/pts mounted?)")?;
        pty::grantpt(&master).context("cannot grant a pseudo-terminal")?;
        pty::unlockpt(&master).context("cannot unlock a pseudo-terminal")?;
        let name = pty::ptsname(&master, Vec::new()).context("cannot name a pseudo-terminal")?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let terminal: OwnedFd = rustix::fs::open(name, flags, rustix::fs::Mode::empty())
            .context("cannot open the other end of a pseudo-terminal")?;
        let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size).context("cannot size a pseudo-terminal")?;
        let mut command = bound_to_us(command, "KILL");
        let copy = || terminal.try_clone().context("cannot duplicate a descriptor");
        command.env("TERM", "xterm").stdin(copy()?).stdout(copy()?).stderr(copy()?);
        let emulator = Self::spawn(command)?;
        // Unread output would stop the emulator.
        std::thread::spawn(move || {
            let mut master = File::from(master);
            let mut bytes = [0; 4096];
            let mut said = Some(Vec::new());
            while let Ok(n) = master.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                std::io::Write::write_all(&mut log, &bytes[..n]).ok();
                if let Some(all) = &mut said {
                    all.extend_from_slice(&bytes[..n]);
                    if let Some(screen) = screen(&String::from_utf8_lossy(all)) {
                        drain(screen);
                        said = None;
                    }
                }
            }
        });
        Ok(emulator)
    }

    fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let child =
            command.process_group(0).spawn().context("cannot start setpriv (util-linux)")?;
        Ok(Self { child })
    }

    /// The processor time that it has used, in seconds: unlike the clock it does not count what
    /// other processes took.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // Behind the name, which ends with the last `)`: utime and stime are fields 14 and 15 of
        // proc(5), in ticks.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks =
            fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().ok());
        let ticks = ticks.sum::<Option<u64>>()?;
        Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot wait for the emulator")
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It holds nothing that wants saving. An error means that nobody is left.
        kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
        self.child.wait().ok();
    }
}

/// The terminal on which Bochs shows the guest's screen: one that it makes itself, and tells the name of.
fn screen(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("Bochs connected to screen \"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// Reads a terminal to its end, in a thread: the emulator stops, for good, when nobody has read some thousand
/// bytes, and a blinking cursor alone makes that many in time.
fn drain(terminal: String) {
    std::thread::spawn(move || {
        use rustix::fs::{Mode, OFlags};
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let Ok(end) = rustix::fs::open(terminal, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
        else {
            return;
        };
        // Nothing is echoed, which nobody would read either.
        if let Ok(mut settings) = tcgetattr(&end) {
            settings.make_raw();
            tcsetattr(&end, OptionalActions::Now, &settings).ok();
        }
        let mut end = File::from(end);
        let mut bytes = [0; 4096];
        while end.read(&mut bytes).is_ok_and(|n| n > 0) {}
    });
}

/// The same command, but the kernel sends it `signal` if we die without a chance to end it.
fn bound_to_us(command: &Command, signal: &str) -> Command {
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", signal, "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        bound.current_dir(dir);
    }
    bound
}

/// `cargo xtask guest-test`, for its arguments: this program, even if its file has been replaced since it started (a build
/// while the tests run does that). It is interrupted when this process ends, so it takes its emulator along.
pub(crate) fn guest_test() -> Command {
    let program = format!("/proc/{}/exe", std::process::id());
    let mut command = bound_to_us(&Command::new(program), "TERM");
    command.arg("guest-test");
    command
}

/// An error if `program` is not to be found.
pub(crate) fn require(program: &str) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        bail!("{program} is missing: cargo xtask setup --guest installs what the guests need");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screens_terminal_is_found_once_it_is_told_whole() {
        let said = "ALSA lib: x\r\nBochs connected to screen \"/dev/pts/11\"\r\nNext at t=0\r\n";
        assert_eq!(screen(said).as_deref(), Some("/dev/pts/11"));
        assert_eq!(screen(said.split_at(45).0), None);
    }

    /// What stops Bochs: a terminal that somebody writes to, and nobody reads.
    #[test]
    fn a_drained_terminal_takes_any_amount() {
        use rustix::pty;
        let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
        let master = pty::openpt(flags).expect("a pseudo-terminal");
        pty::grantpt(&master).expect("granted");
        pty::unlockpt(&master).expect("unlocked");
        let name = pty::ptsname(&master, Vec::new()).expect("a name");
        drain(name.into_string().expect("ASCII"));
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let all = std::io::Write::write_all(&mut File::from(master), &vec![b'x'; 1 << 20]);
            sender.send(all.is_ok()).ok();
        });
        assert_eq!(done.recv_timeout(std::time::Duration::from_secs(60)), Ok(true));
    }
}
