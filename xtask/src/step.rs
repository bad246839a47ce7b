//! Running one program of a longer job: with a time limit, its lines seen as they come.
//!
//! The program gets a process group of its own, and the whole group goes when the time is up
//! or the user interrupts: a test that hangs leaves nothing behind.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a program has between the polite signal and the other one.
const GRACE: Duration = Duration::from_secs(5);
/// How often the clock and the interrupt flag are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How a program ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Exit code 0.
    Success,
    /// Anything else, in words.
    Failure(String),
    /// The user interrupted; there should be no next step.
    Interrupted,
}

/// A flag that an interrupt (SIGINT, SIGTERM, SIGHUP) raises, instead of ending us.
pub(crate) fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [1, 2, 15] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .context("cannot install a signal handler")?;
    }
    Ok(flag)
}

/// Runs `command` for at most `limit`; each line of its standard output is printed and handed
/// to `line`.
pub(crate) fn run(
    command: Command,
    limit: Duration,
    interrupted: &AtomicBool,
    mut line: impl FnMut(&str),
) -> anyhow::Result<End> {
    run_quietly(command, limit, interrupted, |text| {
        println!("{text}");
        line(text);
    })
}

/// As [`run`], but nothing is printed.
pub(crate) fn run_quietly(
    mut command: Command,
    limit: Duration,
    interrupted: &AtomicBool,
    mut line: impl FnMut(&str),
) -> anyhow::Result<End> {
    let program = command.get_program().to_string_lossy().into_owned();
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let lines = reader(&mut child);
    let mut open = true;
    let end = loop {
        if open {
            match lines.recv_timeout(TICK) {
                Ok(text) => line(&text),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        } else {
            std::thread::sleep(TICK);
        }
        if interrupted.load(Relaxed) {
            end_group(&mut child)?;
            break End::Interrupted;
        }
        if Instant::now() >= deadline {
            end_group(&mut child)?;
            break End::Failure(format!("not done after {} s, ended", limit.as_secs()));
        }
        // While lines are left, the program counts as running.
        let ended = if open { None } else { child.try_wait().context("cannot wait")? };
        if let Some(status) = ended {
            break if status.success() { End::Success } else { End::Failure(status.to_string()) };
        }
    };
    while let Ok(text) = lines.recv_timeout(TICK) {
        line(&text);
    }
    Ok(end)
}

fn reader(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            // Tests may print what is not UTF-8.
            while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
    }
    receiver
}

/// Ends the program and all that it started and that stayed in its group.
fn end_group(child: &mut Child) -> anyhow::Result<()> {
    let group = Pid::from_child(child);
    // The errors mean that nobody is left.
    kill_process_group(group, Signal::TERM).ok();
    let deadline = Instant::now() + GRACE;
    while child.try_wait().context("cannot wait")?.is_none() && Instant::now() < deadline {
        std::thread::sleep(TICK);
    }
    kill_process_group(group, Signal::KILL).ok();
    child.wait().context("cannot wait")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (End, Vec<String>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut lines = Vec::new();
        let end = run(command, limit, &AtomicBool::new(false), |l| lines.push(l.to_owned()));
        (end.expect("sh starts"), lines)
    }

    #[test]
    fn lines_and_the_exit_code_come_through() {
        let long = Duration::from_secs(60);
        assert_eq!(
            shell("echo a; printf b", long),
            (End::Success, vec!["a".to_owned(), "b".to_owned()])
        );
        let (end, _) = shell("exit 3", long);
        assert_eq!(end, End::Failure("exit status: 3".to_owned()));
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let start = Instant::now();
        let (end, lines) = shell("sleep 600 & echo $!; sleep 600", Duration::from_millis(500));
        assert!(matches!(end, End::Failure(why) if why.contains("not done after")));
        assert!(start.elapsed() < Duration::from_secs(60));
        // A child that nobody has waited for yet is a zombie: its command line is empty.
        let deadline = Instant::now() + Duration::from_secs(10);
        let command_line = format!("/proc/{}/cmdline", lines[0]);
        while std::fs::read(&command_line).is_ok_and(|text| !text.is_empty()) {
            assert!(Instant::now() < deadline, "the child of the program is still there");
            std::thread::sleep(TICK);
        }
    }

    #[test]
    fn an_interrupt_ends_it() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let end = run(command, Duration::from_secs(60), &AtomicBool::new(true), |_| {});
        assert_eq!(end.expect("sleep starts"), End::Interrupted);
    }
}
