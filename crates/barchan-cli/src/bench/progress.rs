//! What a person sees while the benchmark runs: a bar with the time left, or plain lines.
//!
//! The time left is the sum of the best guesses for the runs that are left: a run's own
//! earlier time, else the mean of its workload's, else the mean of all.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A run that is still to be made: workload and configuration.
pub(crate) type Key = (usize, usize);

/// Progress over a fixed list of runs.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    total: usize,
    done: usize,
    times: HashMap<Key, Duration>,
}

impl Progress {
    /// Progress over `total` runs; a bar if standard error is a terminal.
    pub(crate) fn new(total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            // The template is a constant; were it broken, the default style would do.
            if let Ok(style) = ProgressStyle::with_template(
                "{bar:28.cyan/dim} {pos}/{len}  {elapsed_precise}  {prefix}  {msg}",
            ) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        Self { bar, started: Instant::now(), total, done: 0, times: HashMap::new() }
    }

    /// A run begins; `left` are the runs to be made, this one first.
    pub(crate) fn begin(&mut self, what: &str, left: &[Key]) {
        let eta = self.remaining(left).map_or("time left: ?".to_owned(), |time| {
            format!(
                "time left: {}",
                humantime::format_duration(Duration::from_secs(time.as_secs()))
            )
        });
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(eta);
                bar.set_message(what.to_owned());
            }
            None => crate::note(format_args!("[{}/{}] {what}  ({eta})", self.done + 1, self.total)),
        }
    }

    /// So many of the runs will not be made.
    pub(crate) fn skip(&mut self, count: usize) {
        self.total -= count;
        if let Some(bar) = &self.bar {
            bar.set_length(self.total as u64);
        }
    }

    /// The run has ended.
    pub(crate) fn end(&mut self, key: Key, took: Duration) {
        self.done += 1;
        self.times.insert(key, took);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Says something that has to stay on the screen.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| crate::note(format_args!("{line}"))),
            None => crate::note(format_args!("{line}")),
        }
    }

    /// All runs have been made: takes the bar away and hands back the time it took.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }

    fn remaining(&self, left: &[Key]) -> Option<Duration> {
        let mean = |times: &mut dyn Iterator<Item = Duration>| {
            let (count, sum) = times.fold((0_u32, Duration::ZERO), |(n, sum), t| (n + 1, sum + t));
            (count > 0).then(|| sum / count)
        };
        let overall = mean(&mut self.times.values().copied())?;
        let guess = |key: &Key| {
            let alike = self.times.iter().filter(|((workload, _), _)| *workload == key.0);
            self.times
                .get(key)
                .copied()
                .or_else(|| mean(&mut alike.map(|(_, time)| *time)))
                .unwrap_or(overall)
        };
        Some(left.iter().map(guess).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_prefers_what_is_known_best() {
        let mut progress = Progress::new(6);
        assert_eq!(progress.remaining(&[(0, 0)]), None);
        progress.end((0, 0), Duration::from_secs(10));
        progress.end((0, 1), Duration::from_secs(20));
        progress.end((1, 0), Duration::from_secs(3));
        let left = |keys: &[Key]| progress.remaining(keys).map(|time| time.as_secs());
        assert_eq!(left(&[(0, 0), (1, 0)]), Some(13), "their own times");
        assert_eq!(left(&[(0, 2)]), Some(15), "mean of the workload");
        assert_eq!(left(&[(2, 0)]), Some(11), "mean of all");
        assert_eq!(left(&[]), Some(0));
    }
}
