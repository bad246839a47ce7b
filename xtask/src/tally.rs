//! Counting tests in what they print: libtest's `test result:` lines, the line with which
//! `workloads/test.sh` ends, the reasons of skipped tests, and what failures said.

/// How many lines are kept of what one failed test printed.
const LINES_OF_A_FAILURE: usize = 40;

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// The reasons that skipped tests printed.
    pub(crate) skipped: Vec<String>,
    /// What failed tests printed, each line.
    pub(crate) failures: Vec<String>,
    /// Where the next line is, in libtest's output.
    section: Section,
}

/// Where in libtest's output the next line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    /// Results, or what successful tests printed.
    #[default]
    Other,
    /// What failed tests printed, of one of which so many lines are kept yet.
    Failures(usize),
}

impl Tally {
    /// Takes one line into account.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        self.failure_line(line);
        if let Some(result) = line.strip_prefix("test result: ") {
            let (_, counts) = result.split_once(". ").unwrap_or(("", result));
            self.counts(counts.split(';'));
        } else if is_summary(line) {
            self.counts(line.split(','));
        } else if line.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("skipped")) {
            self.skipped.push(line.to_owned());
        }
    }

    /// Adds another tally to this one, but for what failures said, which is told of each.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend_from_slice(&other.skipped);
    }

    /// Keeps the line if it tells of a failure: libtest's section of what failed tests printed (under a heading for each
    /// test), `FAILED: ` of `workloads/test.sh`, and the verdict on a guest.
    fn failure_line(&mut self, line: &str) {
        let is_heading = line.starts_with("---- ") && line.ends_with(" stdout ----");
        self.section = match self.section {
            _ if line == "failures:" => Section::Failures(0),
            _ if line == "successes:" || line.starts_with("test result: ") => Section::Other,
            Section::Failures(_) if is_heading => Section::Failures(LINES_OF_A_FAILURE),
            Section::Failures(left) if left > 0 && !line.is_empty() => {
                self.failures.push(line.to_owned());
                Section::Failures(left - 1)
            }
            section => section,
        };
        let is_verdict = line.starts_with("guest: ") && line.contains(": FAILED after ");
        if is_heading && self.section != Section::Other
            || is_verdict
            || line.starts_with("FAILED: ")
        {
            self.failures.push(line.to_owned());
        }
    }

    fn counts<'a>(&mut self, parts: impl Iterator<Item = &'a str>) {
        for part in parts {
            match number_and_word(part) {
                Some((n, "passed")) => self.passed += n,
                Some((n, "failed")) => self.failed += n,
                Some((n, "ignored")) => self.ignored += n,
                _ => {}
            }
        }
    }
}

/// Whether the line is exactly `N passed, N failed`.
fn is_summary(line: &str) -> bool {
    let words: Vec<_> = line.split(',').map(number_and_word).collect();
    matches!(words[..], [Some((_, "passed")), Some((_, "failed"))])
}

fn number_and_word(part: &str) -> Option<(u64, &str)> {
    let (number, word) = part.trim().split_once(' ')?;
    Some((number.parse().ok()?, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_results_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 21 passed; 0 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.9s",
            "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
            "283 passed, 4 failed",
            "x 7 passed, 1 failed",
            "7 passed, 1 failed, and more",
            "SKIPPED: no soft-dirty bits",
        ] {
            tally.line(line);
        }
        let skipped = vec!["SKIPPED: no soft-dirty bits".to_owned()];
        assert_eq!(
            tally,
            Tally { passed: 305, failed: 7, ignored: 2, skipped, ..Tally::default() }
        );
    }

    #[test]
    fn failures_are_kept_with_what_they_said_and_no_successes() {
        let mut tally = Tally::default();
        let long = "line\n".repeat(2 * LINES_OF_A_FAILURE);
        let text = format!(
            "test a ... ok\ntest b ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nnot this\n\n\
             failures:\n\n---- b stdout ----\nthread 'b' panicked at c.rs:1:2:\n  lost: 7\n\n\
             ---- d stdout ----\n{long}\nfailures:\n    b\n    d\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\nnor this\n\
             FAILED: full w3m\nguest: dirty in tcg, Linux 6.1: FAILED after 3.0 s; the test began\nguest: fine\n"
        );
        text.lines().for_each(|line| tally.line(line));
        let mut expected = vec![
            "---- b stdout ----",
            "thread 'b' panicked at c.rs:1:2:",
            "lost: 7",
            "---- d stdout ----",
        ];
        expected.extend(["line"; LINES_OF_A_FAILURE]);
        expected.extend([
            "FAILED: full w3m",
            "guest: dirty in tcg, Linux 6.1: FAILED after 3.0 s; the test began",
        ]);
        assert_eq!(tally.failures, expected);
    }
}
