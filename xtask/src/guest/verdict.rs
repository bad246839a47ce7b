//! What came of a run, from the two logs that it left: never success unless everything that a
//! success consists of was said, with the nonce of this run.
//!
//! Needed are: every test began and ended with status 0; every module was loaded and unloaded; the
//! kernel's console shows the begin and end marks (so the log in between was being shown);
//! between them no line that tells of a bug in the kernel, and none lost; no new taint of
//! a kind that only bugs set.

/// The bits of `/proc/sys/kernel/tainted` that tell of a bug: machine check (4), bad page (5),
/// died (7), warned (9), soft lockup (14).
const TAINT_OF_BUGS: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;

/// What in a kernel line means that something went wrong in the kernel, whatever the test says.
const BAD: &[&str] = &[
    "BUG:",
    "WARNING:",
    "------------[ cut here ]------------",
    "Kernel panic",
    "Call Trace:",
    "unable to handle",
    "[#1]",
    "[#2]",
    "Oops:",
    "double fault",
    "scheduling while atomic",
    "sleeping function called",
    "detected stall",
    "self-detected stall",
    "rcu_sched kthread",
    "rcu_preempt kthread",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "bad unlock balance",
    "held lock freed",
    "suspicious RCU usage",
    "INFO: trying to register non-static key",
    "lockdep",
    "unchecked MSR access",
    "Bad page",
    "bad page",
    "list_add corruption",
    "list_del corruption",
    "refcount_t:",
    "KASAN",
    "KCSAN",
    "UBSAN",
    "kmemleak: ",
    "nobody cared",
    "Out of memory:",
];

/// The kernel's own words when messages are lost.
const LOST: &str = "printk messages dropped";

/// How the emulator's part of the run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest said that it is done.
    Done,
    /// The emulator exited by itself.
    Exited(String),
    /// The kernel panicked.
    Panicked,
    /// The time limit, in seconds.
    TimedOut(u64),
    /// The user interrupted.
    Interrupted,
}

/// The lines that `init` prints for the host, taken apart from the test's output.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) release: Option<String>,
    /// How many tests began.
    pub(crate) begun: usize,
    pub(crate) ended: bool,
    /// The exit statuses of the tests that ended, in their order.
    statuses: Vec<String>,
    taint_before: Option<u64>,
    taint_after: Option<u64>,
    failures: Vec<String>,
    /// How often the machine has yet to start again.
    restarts: usize,
}

impl Report {
    /// Of a machine that a test restarts so often.
    pub(crate) fn with_restarts(restarts: usize) -> Self {
        Self { restarts, ..Self::default() }
    }

    /// Takes a line of ttyS1; what of it is the test's output is returned.
    pub(crate) fn line<'a>(&mut self, line: &'a str, nonce: &str) -> Option<&'a str> {
        let mark = format!("@{nonce} ");
        let Some((output, said)) = line.split_once(&mark) else {
            return Some(line);
        };
        let said = said.trim_end();
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            // All that was said before is void, but for what went wrong.
            "kernel" if self.begun > 0 && self.restarts > 0 => {
                *self = Self {
                    release: Some(rest.to_owned()),
                    failures: std::mem::take(&mut self.failures),
                    restarts: self.restarts - 1,
                    ..Self::default()
                };
            }
            "kernel" if self.release.is_some() => {
                self.failures.push("the machine started again".to_owned());
            }
            "kernel" => self.release = Some(rest.to_owned()),
            "taint-before" => self.taint_before = rest.parse().ok(),
            "taint-after" => self.taint_after = rest.parse().ok(),
            "begin" if rest == self.begun.to_string() => self.begun += 1,
            "status" => match rest.split_once(' ') {
                Some((n, status)) if n == self.statuses.len().to_string() => {
                    self.statuses.push(status.to_owned());
                }
                _ => self.failures.push(format!("the guest said a status out of order: {said}")),
            },
            "end" => self.ended = true,
            "insmod-failed" => {
                self.failures.push(format!("the module {rest} could not be loaded"));
            }
            "rmmod-failed" => {
                self.failures.push(format!("the module {rest} could not be unloaded"));
            }
            "hold-failed" => {
                self.failures.push("the guest could not hold a virtual machine".to_owned());
            }
            "swap-failed" => self.failures.push("the guest could not make swap space".to_owned()),
            _ => self.failures.push(format!("the guest said what is not understood: {said}")),
        }
        (!output.is_empty()).then_some(output)
    }
}

/// What is needed to judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) nonce: &'a str,
    /// The names of the tests, all of which must succeed.
    pub(crate) tests: &'a [String],
    /// Texts that excuse a bad line of the kernel: a test may provoke them.
    pub(crate) allowed: &'a [String],
}

/// All that is wrong; a success has nothing.
pub(crate) fn problems(
    end: &End,
    report: &Report,
    kernel_log: &str,
    case: Case<'_>,
) -> Vec<String> {
    let Case { nonce, tests, allowed } = case;
    let mut problems = Vec::new();
    match end {
        End::Done => {}
        End::Exited(how) => problems.push(format!("the emulator ended early ({how})")),
        End::Panicked => problems.push("the kernel panicked".to_owned()),
        End::TimedOut(limit) => problems.push(format!("not done after {limit} s")),
        End::Interrupted => problems.push("interrupted".to_owned()),
    }
    problems.extend(report.failures.iter().cloned());
    if report.restarts > 0 {
        problems.push(format!("the machine did not restart ({} times less)", report.restarts));
    }
    if report.release.is_none() {
        problems.push("the guest did not get as far as its init".to_owned());
    }
    for (n, test) in tests.iter().enumerate() {
        match report.statuses.get(n).map(String::as_str) {
            Some("0") if report.begun > n => {}
            Some("0") => problems.push(format!("{test} ended and did not begin")),
            Some(status) => problems.push(match status.parse::<i32>() {
                Ok(n) if n > 128 => format!("{test} was ended by signal {}", n - 128),
                _ => format!("{test} failed with exit status {status}"),
            }),
            None if report.begun > n => problems.push(format!("{test} began and did not end")),
            None => problems.push(format!("{test} did not begin")),
        }
    }
    if report.statuses.len() > tests.len() {
        problems.push("the guest ran more tests than there are".to_owned());
    }
    if end == &End::Done && !report.ended {
        problems.push("the guest's last line is missing".to_owned());
    }
    match (report.taint_before, report.taint_after) {
        (Some(before), Some(after)) => {
            let new = after & !before & TAINT_OF_BUGS;
            if new != 0 && allowed.is_empty() {
                problems.push(format!("the kernel is tainted by a bug (bits {new:#x})"));
            }
        }
        _ if report.ended => problems.push("the guest did not tell its taint".to_owned()),
        _ => {}
    }
    problems.extend(kernel_problems(kernel_log, nonce, allowed, end));
    problems
}

fn kernel_problems(log: &str, nonce: &str, allowed: &[String], end: &End) -> Vec<String> {
    let mut problems = Vec::new();
    let begin = format!("barchan-guest {nonce} begin");
    let finish = format!("barchan-guest {nonce} end");
    let (mut begun, mut finished, mut bad) = (false, false, 0);
    for line in log.lines() {
        let line = line.trim_end();
        if line.contains(&begin) {
            begun = true;
        } else if line.contains(&finish) {
            finished = true;
        } else if begun || line.contains("Kernel panic") {
            let excused = allowed.iter().any(|text| line.contains(text.as_str()));
            if !excused && BAD.iter().any(|text| line.contains(text)) {
                bad += 1;
                if bad <= 5 {
                    problems.push(format!("the kernel says: {line}"));
                }
            } else if line.contains(LOST) {
                problems.push(format!("messages of the kernel were lost: {line}"));
            }
        }
    }
    if bad > 5 {
        problems.push(format!("... and {} more such lines of the kernel", bad - 5));
    }
    if end == &End::Done && !(begun && finished) {
        problems.push("the kernel's console does not show the marks of this run".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "5eed";
    const SAID: &str = "@5eed kernel 6.1\n@5eed taint-before 512\n\
        @5eed begin 0\nhello\n@5eed status 0 0\n@5eed begin 1\n@5eed status 1 0\n\
        @5eed taint-after 4608\n@5eed end";
    const KERNEL: &str = "[0.1] WARNING: of the emulator, before\n\
        [1.0] barchan-guest 5eed begin\n[1.1] kvm: all is well\n[1.2] barchan-guest 5eed end\n";

    fn judged(said: &str, kernel: &str, end: &End) -> Vec<String> {
        let mut report = Report::default();
        for line in said.lines() {
            report.line(line, NONCE);
        }
        problems(end, &report, kernel, case(&[]))
    }

    fn case(allowed: &[String]) -> Case<'_> {
        static TESTS: std::sync::LazyLock<[String; 2]> =
            std::sync::LazyLock::new(|| ["one".to_owned(), "two".to_owned()]);
        Case { nonce: NONCE, tests: TESTS.as_slice(), allowed }
    }

    fn one(said: &str, kernel: &str, end: &End, what: &str) {
        let problems = judged(said, kernel, end);
        assert!(problems.iter().any(|p| p.contains(what)), "{problems:?} lacks {what}");
    }

    #[test]
    fn a_complete_run_is_a_success() {
        assert_eq!(judged(SAID, KERNEL, &End::Done), [""; 0]);
    }

    #[test]
    fn each_missing_line_is_a_failure() {
        for (n, line) in SAID.lines().enumerate() {
            let without: Vec<_> =
                SAID.lines().enumerate().filter(|(m, _)| *m != n).map(|(_, l)| l).collect();
            let problems = judged(&without.join("\n"), KERNEL, &End::Done);
            assert_eq!(problems.is_empty(), line == "hello", "without {line}: {problems:?}");
        }
        for mark in ["begin", "end"] {
            let kernel = KERNEL.replace(&format!("5eed {mark}"), "");
            one(SAID, &kernel, &End::Done, "marks of this run");
        }
    }

    #[test]
    fn lines_of_another_run_do_not_count() {
        one(&SAID.replace("5eed", "0000"), KERNEL, &End::Done, "did not get as far");
        one(SAID, &KERNEL.replace("5eed", "0000"), &End::Done, "marks of this run");
    }

    #[test]
    fn a_restart_that_was_meant_begins_anew() {
        let twice = SAID.split_once("hello").expect("in it").0.to_owned() + "\n" + SAID;
        for restarts in 0..3 {
            let mut report = Report::with_restarts(restarts);
            for line in twice.lines() {
                report.line(line, NONCE);
            }
            let problems = problems(&End::Done, &report, KERNEL, case(&[]));
            assert_eq!(problems.is_empty(), restarts == 1, "{restarts}: {problems:?}");
        }
    }

    #[test]
    fn every_other_end_is_a_failure() {
        let ends = [
            End::Exited("exit status: 1".into()),
            End::Panicked,
            End::TimedOut(5),
            End::Interrupted,
        ];
        for end in ends {
            assert!(!judged(SAID, KERNEL, &end).is_empty(), "{end:?}");
        }
    }

    #[test]
    fn exit_statuses_and_signals_are_told() {
        one(
            &SAID.replace("status 1 0", "status 1 3"),
            KERNEL,
            &End::Done,
            "two failed with exit status 3",
        );
        one(
            &SAID.replace("status 0 0", "status 0 139"),
            KERNEL,
            &End::Done,
            "one was ended by signal 11",
        );
        one(&SAID.replace("status 0 0", "status 0 "), KERNEL, &End::Done, "out of order");
        one(
            &SAID.replace("@5eed taint-after", "@5eed rmmod-failed x\n@5eed taint-after"),
            KERNEL,
            &End::Done,
            "x could not be unloaded",
        );
    }

    #[test]
    fn what_the_kernel_complains_about_is_a_failure() {
        for bad in [
            "WARNING: CPU: 0 PID: 1 at x.c:1",
            "BUG: kernel NULL pointer dereference, address: 0",
            "Oops: 0002 [#1] PREEMPT SMP",
            "general protection fault: 0000 [#1] PREEMPT",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "INFO: task x:1 blocked for more than 120 seconds.",
            "WARNING: possible circular locking dependency detected",
            "BUG: KASAN: slab-out-of-bounds in f",
            "refcount_t: underflow; use-after-free.",
            "** 12 printk messages dropped **",
        ] {
            let kernel = KERNEL.replace("kvm: all is well", bad);
            assert!(!judged(SAID, &kernel, &End::Done).is_empty(), "{bad}");
        }
        one(&SAID.replace("4608", "4736"), KERNEL, &End::Done, "tainted by a bug (bits 0x80)");
    }

    #[test]
    fn what_a_test_provokes_can_be_excused() {
        let kernel = KERNEL.replace("kvm: all is well", "WARNING: asked for");
        let mut report = Report::default();
        for line in SAID.lines() {
            report.line(line, NONCE);
        }
        assert!(!problems(&End::Done, &report, &kernel, case(&[])).is_empty());
        let allowed = ["asked for".to_owned()];
        assert!(problems(&End::Done, &report, &kernel, case(&allowed)).is_empty());
    }

    #[test]
    fn output_before_a_mark_is_the_tests() {
        let mut report = Report::default();
        assert_eq!(
            report.line("no newline at the end@5eed status 0 1", NONCE),
            Some("no newline at the end")
        );
        assert_eq!(report.statuses, ["1"]);
        assert_eq!(report.line("@0000 status 0", NONCE), Some("@0000 status 0"));
    }
}
