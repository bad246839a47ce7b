//! The time stamp counter: what the paper counts cycles by, and its rate.
//!
//! It ticks at a rate of its own, whatever the core's clock does at the moment, so its ticks are
//! cycles of the core only where both are the same.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use std::time::{Duration, Instant};

use crate::Timed;

/// How long a rate is measured at least: the error of its ends is then far below 1 %.
const RATE_TIME: Duration = Duration::from_millis(50);

/// How many ticks one sample should last at least, so that reading the counter is no part of it.
const SAMPLE_TICKS: u64 = 100_000;
/// Operations in one sample, at most.
const SAMPLE_OPERATIONS: u64 = 1000;
/// Samples of one measurement, if they do not take too long ...
pub(crate) const SAMPLES: usize = 101;
/// ... and at least.
const SAMPLES_MIN: usize = 5;
/// After so long a measurement ends with the samples that it has.
const LIMIT: Duration = Duration::from_millis(400);

/// The counter, read neither before what comes earlier is done nor after what comes later begins (SDM 2B, RDTSC).
#[must_use]
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has both instructions, and neither touches memory.
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}

/// A measurement of the counter's rate.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    ticks: u64,
    time: Instant,
}

impl Rate {
    /// Starts one.
    #[must_use]
    pub fn start() -> Self {
        Self { ticks: ticks(), time: Instant::now() }
    }

    /// Ticks in a second, since the start; waits if that has only just been.
    #[must_use]
    pub fn end(self) -> f64 {
        while self.time.elapsed() < RATE_TIME {
            std::hint::spin_loop();
        }
        let ticks = ticks() - self.ticks;
        ticks as f64 / self.time.elapsed().as_secs_f64()
    }
}

/// The middle one; the mean of the two middle ones for an even number; `None` for none.
#[must_use]
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// Times `operation` in samples of many, and takes the median of the samples.
pub fn repeat(mut operation: impl FnMut()) -> Timed {
    let start = ticks();
    operation();
    let once = (ticks() - start).max(1);
    let count = (SAMPLE_TICKS / once).clamp(1, SAMPLE_OPERATIONS);
    let mut done = 1;
    let timed = samples(SAMPLES, || {
        let start = ticks();
        for _ in 0..count {
            operation();
        }
        done += count;
        Some((ticks() - start) as f64 / count as f64)
    });
    Timed { ticks: timed.unwrap_or(0.0), operations: done }
}

/// The median of up to `most` samples, fewer if they take long; the first only warms up. `None` if a sample
/// is none.
pub fn samples(most: usize, mut sample: impl FnMut() -> Option<f64>) -> Option<f64> {
    sample()?;
    let start = Instant::now();
    let mut values = Vec::with_capacity(most);
    while values.len() < most && (values.len() < SAMPLES_MIN || start.elapsed() < LIMIT) {
        values.push(sample()?);
    }
    median(&mut values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn the_first_sample_only_warms_up_and_all_are_counted() {
        let mut values = [1e9, 2.0, 1.0, 3.0].into_iter();
        assert_eq!(samples(3, || values.next()), Some(2.0));
        assert_eq!(samples(3, || None), None);
        let mut calls = 0;
        let timed = repeat(|| calls += 1);
        assert_eq!(timed.operations, calls);
        assert!(timed.ticks > 0.0);
    }

    #[test]
    fn the_rate_is_that_of_a_processor() {
        let rate = Rate::start().end();
        assert!((1e8..1e11).contains(&rate), "{rate}");
    }
}
