//! Counting tests in what they print: libtest's `test result:` lines, the line with which
//! `workloads/test.sh` ends, and the reasons of skipped tests.

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// The reasons that skipped tests printed.
    pub(crate) skipped: Vec<String>,
}

impl Tally {
    /// Takes one line into account.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(result) = line.strip_prefix("test result: ") {
            let (_, counts) = result.split_once(". ").unwrap_or(("", result));
            self.counts(counts.split(';'));
        } else if is_summary(line) {
            self.counts(line.split(','));
        } else if line.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("skipped")) {
            self.skipped.push(line.to_owned());
        }
    }

    /// Adds another tally to this one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend_from_slice(&other.skipped);
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
        assert_eq!(tally, Tally { passed: 305, failed: 7, ignored: 2, skipped });
    }
}
