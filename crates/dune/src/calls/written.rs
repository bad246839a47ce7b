//! What the kernel writes for the program while it makes a call: the D bits of the guest's tables do not
//! show it, so it is marked here (`effects` says what it is).
//!
//! Nothing is marked before somebody asks for dirty pages ([`start`], [`retain`]): until then everything
//! counts as dirty. A call's ranges lie in its thread's record, where [`under_way`] finds them, from before
//! the call until they are marked after it; also those of a call that began before anybody asked, which
//! may last (a thread that waits in `read`).
//!
//! Two approximations err on the safe side only: a call that lasts (io_uring, asynchronous I/O; not if it is refused) makes
//! everything dirty for ever, and a record that changes under the reader counts as everything.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use crate::effects::{self, Capture, Coverage, Effects, ExitWords, File, Process, Unreadable};
use crate::paging::USER_END;
use crate::process::thread;
use crate::space;
use crate::sys;

/// Ranges that a record holds.
const RANGES: usize = 16;

/// How many want to know, and [`FROM_NOW_ON`].
static WANTED: AtomicU32 = AtomicU32::new(0);
/// Somebody wants to know, and will not say when no longer.
const FROM_NOW_ON: u32 = 1 << 31;
/// Whether the kernel may write anywhere at any time, from some call on.
static FOR_EVER: AtomicBool = AtomicBool::new(false);

const NONE: u64 = 0;
const EVERYTHING: u64 = STATE;
/// The part of a record's word that says what is under way.
const STATE: u64 = 0xff;
/// The version's lowest bit.
const BEING_WRITTEN: u64 = STATE + 1;

/// The ranges of a call that is under way, in a thread's record: zero bytes are none.
///
/// Written by the thread's monitor, or its creator's before it starts; read by any thread, which may also
/// [`forget`](Self::forget) what a thread left behind that is gone.
pub(crate) struct UnderWay {
    /// [`NONE`], [`EVERYTHING`] or the number of ranges in the lowest byte; above it the version, which is odd while
    /// the ranges are being written.
    word: AtomicU64,
    ranges: [[AtomicU64; 2]; RANGES],
}

/// What a record said at one moment.
struct Said {
    word: u64,
    ranges: [[u64; 2]; RANGES],
}

impl UnderWay {
    fn publish(&self, state: u64, ranges: impl Iterator<Item = Range<u64>>) {
        // In one step: from here on nobody forgets what was there before. It is odd already in a forked child whose
        // parent's other thread was writing here, and must not stay odd: every later reading would come to "everything".
        let odd = self.word.fetch_or(BEING_WRITTEN, Ordering::Relaxed) | BEING_WRITTEN;
        fence(Ordering::Release);
        for (slot, range) in self.ranges.iter().zip(ranges) {
            slot[0].store(range.start, Ordering::Relaxed);
            slot[1].store(range.end, Ordering::Relaxed);
        }
        self.word.store((odd & !STATE).wrapping_add(BEING_WRITTEN) | state, Ordering::Release);
        // The kernel's stores of the call come after; a reader that has cleared a D bit before one of
        // them sees this record, or its own clearing comes after the mark.
        fence(Ordering::SeqCst);
    }

    /// What is under way; `None` if the record does not stop changing.
    fn said(&self) -> Option<Said> {
        for _ in 0..8 {
            let word = self.word.load(Ordering::Acquire);
            let mut ranges = [[0; 2]; RANGES];
            for (to, from) in ranges.iter_mut().zip(&self.ranges) {
                *to = [from[0].load(Ordering::Relaxed), from[1].load(Ordering::Relaxed)];
            }
            fence(Ordering::Acquire);
            if word & BEING_WRITTEN == 0 && word == self.word.load(Ordering::Relaxed) {
                return Some(Said { word, ranges });
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Nothing is under way any more, if the record still says what `said` is. The version stays even, and a word
    /// with ranges never comes back: it takes another version to write them.
    fn forget(&self, said: &Said) {
        let none = (said.word & !STATE).wrapping_add(2 * BEING_WRITTEN) | NONE;
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = self.word.compare_exchange(said.word, none, success, failure);
    }
}

impl Said {
    fn state(&self) -> u64 {
        self.word & STATE
    }

    /// Calls `f` with the ranges; `false`: everything.
    fn for_each(&self, f: impl FnMut(Range<u64>)) -> bool {
        let known = self.state() != EVERYTHING;
        let count = if known { self.state() as usize } else { 0 };
        self.ranges.iter().take(count).map(|range| range[0]..range[1]).for_each(f);
        known
    }

    /// Marks all of it.
    fn mark(&self) {
        if !self.for_each(wrote) {
            wrote(0..USER_END);
        }
    }
}

/// From now on dirty pages are wanted.
pub(crate) fn start() {
    if WANTED.load(Ordering::SeqCst) & FROM_NOW_ON == 0 {
        WANTED.fetch_or(FROM_NOW_ON, Ordering::SeqCst);
    }
}

/// Dirty pages are wanted until [`release`].
pub(crate) fn retain() {
    WANTED.fetch_add(1, Ordering::SeqCst);
}

/// One who wanted them does so no more.
pub(crate) fn release() {
    WANTED.fetch_sub(1, Ordering::SeqCst);
}

fn wanted() -> bool {
    WANTED.load(Ordering::SeqCst) != 0
}

/// Calls `f` with what calls that are under way may write; `false`: anything.
///
/// What the kernel wrote as a thread exited stays in the thread's record, of which it is taken here, or when the
/// slot is taken again ([`settle`]). It is marked first: `f` may be looking at other memory, and may be asking only.
///
/// No lock is held, so the slot may be taken at any time, and a new thread may publish here. What it publishes is not
/// forgotten: the record is told empty in one step, and only if it says still what was marked, with the version
/// that was read *before* the thread was found gone. A thread is found gone while its slot is free; whoever takes the
/// slot publishes first (`settle`), so a version of the new thread's is another one.
pub(crate) fn under_way(mut f: impl FnMut(Range<u64>)) -> bool {
    fence(Ordering::SeqCst);
    if FOR_EVER.load(Ordering::Relaxed) {
        return false;
    }
    let mut told = true;
    for thread in thread::all() {
        let Some(said) = thread.under_way.said() else {
            told = false;
            continue;
        };
        told &= said.for_each(&mut f);
        if said.state() != NONE && thread.is_over() {
            said.mark();
            thread.under_way.forget(&said);
        }
    }
    told
}

/// The kernel, or the monitor, has written there for the program.
pub(crate) fn wrote(range: Range<u64>) {
    if wanted() {
        mark(range);
    }
}

fn mark(range: Range<u64>) {
    // The kernel's stores are visible before it is decided that a D bit is set already: whoever clears
    // that bit afterwards, and reports the page, then reads what was stored.
    fence(Ordering::SeqCst);
    if let Some(tables) = space::view() {
        tables.mark_dirty(range);
    }
}

/// A call about to be made.
#[allow(clippy::large_enum_variant, reason = "on the stack, and there is no heap")]
pub(crate) enum Pending {
    /// It writes nothing.
    Nothing,
    /// These.
    Ranges(Capture<RANGES>),
}

/// Before call `nr`: takes down what it may write.
pub(crate) fn before(record: &UnderWay, nr: u64, arguments: &[u64; 6]) -> Pending {
    let call: Effects = effects::of(nr, arguments);
    if call.writes_nothing() {
        return Pending::Nothing;
    }
    let capture = Capture::before(&call, &Caller);
    let mut ranges = [const { 0..0 }; RANGES];
    let mut count = 0;
    let coverage = capture.for_each(|written| {
        if let Some(slot) = ranges.get_mut(count) {
            *slot = written.range();
            count += 1;
        }
    });
    let state = if coverage == Coverage::Ranges { count as u64 } else { EVERYTHING };
    record.publish(state, ranges.into_iter().take(count));
    Pending::Ranges(capture)
}

/// After the call: marks what it has written.
pub(crate) fn after(record: &UnderWay, pending: &Pending, result: i64) {
    match pending {
        Pending::Nothing => return,
        Pending::Ranges(capture) => {
            let coverage = capture.for_each_after(result, |written| wrote(written.range()));
            if coverage != Coverage::Ranges {
                wrote(0..USER_END);
            }
            if capture.lasts_after(result) {
                FOR_EVER.store(true, Ordering::SeqCst);
            }
        }
    }
    record.publish(NONE, core::iter::empty());
}

/// A slot whose thread is gone is taken again: what the kernel wrote as it exited is marked.
pub(crate) fn settle(record: &UnderWay) {
    match record.said() {
        Some(said) => said.mark(),
        None => wrote(0..USER_END),
    }
    record.publish(NONE, core::iter::empty());
}

/// A new thread's record, before it starts: the kernel may write its id to `child_tid` in the child.
pub(crate) fn child_starts(record: &UnderWay) {
    // Whatever clone writes, it writes soon: everything, until the child says that it runs.
    record.publish(EVERYTHING, core::iter::empty());
}

/// The new thread runs: what the kernel wrote for it is marked.
pub(crate) fn child_runs(record: &UnderWay, child_tid: u64) {
    if child_tid != 0 {
        wrote(child_tid..child_tid + 4);
    }
    record.publish(NONE, core::iter::empty());
}

/// This process, as `effects` asks about it.
///
/// A descriptor is looked at once: a program that closes and opens it again from another thread while a
/// call is under way cannot know which file the call is for either.
struct Caller;

impl Process for Caller {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        sys::copy_in(address as usize, into).map_err(|_| Unreadable)
    }

    fn file(&self, fd: i32) -> File {
        let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
        let mut statfs = core::mem::MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: both structures have the kernel's size and layout on x86-64; zero bytes are valid.
        unsafe {
            let (fd, stat_at) = (fd as u64, stat.as_mut_ptr() as u64);
            let statfs_at = statfs.as_mut_ptr() as u64;
            let done = sys::call(libc::SYS_fstat, [fd, stat_at, 0, 0, 0, 0])
                .and_then(|_| sys::call(libc::SYS_fstatfs, [fd, statfs_at, 0, 0, 0, 0]));
            if done.is_err() {
                return File::Unknown;
            }
            let (stat, statfs) = (stat.assume_init(), statfs.assume_init());
            File::classify(stat.st_mode, stat.st_rdev, statfs.f_type as u64)
        }
    }

    fn program_break(&self) -> Option<u64> {
        // SAFETY: an impossible break changes nothing.
        Some(unsafe { sys::raw(libc::SYS_brk, [0; 6]) } as u64)
    }

    fn exit_words(&self) -> Option<ExitWords> {
        const PR_GET_TID_ADDRESS: u64 = 40;
        let mut words = ExitWords::default();
        let (mut head, mut len) = (0u64, 0u64);
        let tid_at = &raw mut words.clear_child_tid as u64;
        // SAFETY: words of ours. The first needs CONFIG_CHECKPOINT_RESTORE.
        unsafe {
            sys::call(libc::SYS_prctl, [PR_GET_TID_ADDRESS, tid_at, 0, 0, 0, 0]).ok()?;
            let (head_at, len_at) = (&raw mut head as u64, &raw mut len as u64);
            sys::call(libc::SYS_get_robust_list, [0, head_at, len_at, 0, 0, 0]).ok()?;
        }
        words.robust_list = head;
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record without ranges.
    fn empty() -> UnderWay {
        // SAFETY: zero bytes are one.
        unsafe { core::mem::zeroed() }
    }

    fn ranges(record: &UnderWay) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let said = record.said().expect("nobody writes");
        assert!(said.for_each(|range| found.push(range)), "not everything");
        found
    }

    #[test]
    fn a_record_that_a_fork_caught_half_written_is_right_again() {
        let record = empty();
        record.publish(1, core::iter::once(0x1000..0x2000));
        // What a forked child finds if its parent's other thread was in the middle of `publish`.
        record.word.fetch_add(BEING_WRITTEN, Ordering::Relaxed);
        assert!(record.said().is_none(), "half written is everything");
        for round in 0..3 {
            record.publish(1, core::iter::once(0x5000..0x6000 + round));
            let expected = 0x5000..0x6000 + round;
            assert_eq!(ranges(&record), std::slice::from_ref(&expected), "round {round}");
        }
        record.publish(EVERYTHING, core::iter::empty());
        assert!(!record.said().expect("nobody writes").for_each(|_| panic!("no ranges")));
        record.publish(NONE, core::iter::empty());
        assert_eq!(ranges(&record), []);
    }

    #[test]
    fn only_what_was_read_is_forgotten() {
        let record = empty();
        record.publish(1, core::iter::once(0x1000..0x1004));
        let exited = record.said().expect("nobody writes");
        // Another collector forgets it, too; the slot is taken; the new thread starts, and makes a call.
        let publish = |range| record.publish(1, core::iter::once(range));
        let steps: [&dyn Fn(); 6] = [
            &|| record.forget(&exited),
            &|| settle(&record),
            &|| child_starts(&record),
            &|| child_runs(&record, 0),
            &|| publish(0x1000..0x1004),
            &|| publish(0x7000..0x8000),
        ];
        for step in steps {
            step();
            let before = record.said().expect("nobody writes").word;
            record.forget(&exited);
            assert_eq!(record.said().expect("nobody writes").word, before);
        }
        assert_eq!(ranges(&record), std::slice::from_ref(&(0x7000..0x8000)));
        record.forget(&record.said().expect("nobody writes"));
        assert_eq!(ranges(&record), []);
        // In the middle of `publish`.
        let idle = record.said().expect("nobody writes");
        record.word.fetch_or(BEING_WRITTEN, Ordering::Relaxed);
        record.forget(&idle);
        assert!(record.said().is_none(), "the writer's word is its own");
    }
}
