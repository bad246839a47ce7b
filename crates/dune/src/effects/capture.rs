//! The ranges of a call, taken before it and kept while it is under way.

use super::written::is_error;
use super::{Coverage, Effects, How, Process, Until, Why, Written};
use crate::effects::written::Cut;

/// The ranges that a call may write, in a place of fixed size.
///
/// If there are more than `N`, the last place holds one range that covers the rest: right, but less
/// exact. `N` of 16 holds every call but those with long `iovec` arrays.
#[derive(Clone, Copy, Debug)]
pub struct Capture<const N: usize> {
    spans: [Written; N],
    len: usize,
    coverage: Coverage,
}

const NOTHING: Written =
    Written { start: 0, bytes: 0, cut: Cut::Whole, how: How::Stored, until: Until::Return };

impl<const N: usize> Capture<N> {
    /// Evaluates `effects`. To be called before the call is made.
    #[must_use]
    pub fn before<P: Process + ?Sized>(effects: &Effects, process: &P) -> Self {
        let mut capture = Self { spans: [NOTHING; N], len: 0, coverage: Coverage::Ranges };
        let mut lost = false;
        let coverage = effects.for_each_written(process, |written| lost |= !capture.push(written));
        capture.coverage = match coverage {
            Coverage::Everything(why) if why.lasts() => coverage,
            _ if lost => Coverage::Everything(Why::TooMany),
            _ => coverage,
        };
        capture
    }

    /// Whether the ranges are all while the call is under way.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Calls `f` with what may be written while the call is under way.
    pub fn for_each(&self, f: impl FnMut(Written)) -> Coverage {
        self.spans.iter().take(self.len).copied().for_each(f);
        self.coverage
    }

    /// Calls `f` with what the call has written, or may still write, now that it has returned
    /// `result` (the raw value, errors negative).
    pub fn for_each_after(&self, result: i64, mut f: impl FnMut(Written)) -> Coverage {
        for written in self.spans.iter().take(self.len) {
            f(written.after(result));
        }
        match self.coverage {
            // An `execve` that fails does so before it lets go of the old memory.
            Coverage::Everything(Why::Exits) if is_error(result) => Coverage::Ranges,
            coverage => coverage,
        }
    }

    /// Whether the kernel may write later than the call that has returned `result`, and no call tells until when. Of the
    /// exit of a thread, and of the start of one, something else tells.
    #[must_use]
    pub fn lasts_after(&self, result: i64) -> bool {
        let everything = match self.coverage {
            Coverage::Everything(why) => why.lasts_after(result),
            Coverage::Ranges => false,
        };
        let mut spans = self.spans.iter().take(self.len);
        everything || spans.any(|written| written.until.lasts_after(result))
    }

    /// Whether there was room: always, unless `N` is 0.
    fn push(&mut self, written: Written) -> bool {
        if written.bytes == 0 {
            return true;
        }
        if let Some(place) = self.spans.get_mut(self.len) {
            *place = written;
            self.len += 1;
            return true;
        }
        let Some(last) = self.spans.last_mut() else { return false };
        // A place that is not known yet cannot be covered by a range.
        if last.cut == Cut::Result || written.cut == Cut::Result {
            return false;
        }
        let start = last.start.min(written.start);
        let end = last.range().end.max(written.range().end);
        let until = if last.until == written.until { last.until } else { Until::Completion };
        let how = if last.how == written.how { last.how } else { How::Replaced };
        *last = Written { start, bytes: end - start, cut: Cut::Whole, how, until };
        true
    }
}
