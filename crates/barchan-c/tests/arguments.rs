//! Whatever the arguments, a call answers: `BARCHAN_ERR_INVALID` and a text for what breaks the
//! rules, `BARCHAN_OK` for the rest, and never a crash.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use barchan_c::barchan_status::{BARCHAN_ERR_INVALID, BARCHAN_OK};
use barchan_c::{
    barchan_last_error, barchan_region, barchan_region_arm, barchan_region_collect_and_reset,
    barchan_region_disarm, barchan_region_peek, barchan_region_remapped, barchan_region_resize,
    barchan_region_track, barchan_region_untrack, barchan_source, barchan_source_name,
    barchan_stats, barchan_status, barchan_tracker, barchan_tracker_close, barchan_tracker_open,
    barchan_tracker_source, barchan_tracker_stats,
};
use proptest::prelude::*;

const PAGE: usize = 4096;
/// Mapped pages; the region under test begins as the middle third of them.
const PAGES: usize = 96;

fn last_error() -> String {
    // SAFETY: NUL-terminated, by the contract, and copied before the next call.
    unsafe { CStr::from_ptr(barchan_last_error()) }.to_string_lossy().into_owned()
}

/// An open tracker on some pages.
struct Fixture {
    tracker: *mut barchan_tracker,
    base: usize,
}

impl Fixture {
    fn new(source: barchan_source) -> Self {
        let mut tracker = null_mut();
        // SAFETY: room for a pointer; a new mapping.
        let base = unsafe {
            assert_eq!(barchan_tracker_open(MaybeUninit::new(source), &mut tracker), BARCHAN_OK);
            libc::mmap(
                null_mut(),
                PAGES * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { tracker, base: base as usize }
    }

    fn track(&self, first: usize, count: usize) -> *mut barchan_region {
        let mut region = null_mut();
        let start = (self.base + first * PAGE) as *mut c_void;
        // SAFETY: an open tracker, mapped memory, room for a pointer.
        let status =
            unsafe { barchan_region_track(self.tracker, start, count * PAGE, &mut region) };
        assert_eq!(status, BARCHAN_OK, "{}", last_error());
        region
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: opened and mapped by `new`, and no region is left.
        unsafe {
            barchan_tracker_close(self.tracker);
            libc::munmap(self.base as *mut c_void, PAGES * PAGE);
        }
    }
}

/// A number that is likely to be at some edge, `base` included.
fn edgy(base: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => (0..PAGES * 4 / 3).prop_map(move |page| base.wrapping_add(page * PAGE)),
        2 => any::<usize>(),
        1 => Just(0),
        1 => (0..10usize).prop_map(move |n| base.wrapping_add(n)),
        1 => (0..3usize).prop_map(|n| usize::MAX - n * PAGE),
        1 => (0..3usize).prop_map(|n| (usize::MAX & !(PAGE - 1)) - n * PAGE),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Arm,
    Disarm,
    Remapped,
    Peek,
    Collect,
}

/// What the bitmap argument is.
#[derive(Clone, Copy, Debug)]
enum Bits {
    Null,
    Unaligned,
    Words(usize),
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Call::Arm),
        Just(Call::Disarm),
        Just(Call::Remapped),
        Just(Call::Peek),
        Just(Call::Collect)
    ]
}

fn bits() -> impl Strategy<Value = Bits> {
    prop_oneof![
        1 => Just(Bits::Null),
        1 => Just(Bits::Unaligned),
        8 => (0..4usize).prop_map(Bits::Words),
    ]
}

/// Whether `start` and `len` are pages within `[low, high)`.
fn inside(start: usize, len: usize, low: usize, high: usize) -> bool {
    start % PAGE == 0
        && len % PAGE == 0
        && start >= low
        && start.checked_add(len).is_some_and(|end| end <= high)
}

fn check(status: barchan_status, valid: bool, what: &str) -> Result<(), TestCaseError> {
    prop_assert_eq!(status, if valid { BARCHAN_OK } else { BARCHAN_ERR_INVALID }, "{}", what);
    if !valid {
        prop_assert!(last_error().len() > 10, "{}: {:?}", what, last_error());
    }
    Ok(())
}

fn sources() -> Vec<barchan_source> {
    use barchan_source::{BARCHAN_SOURCE_ALL_DIRTY, BARCHAN_SOURCE_AUTO, BARCHAN_SOURCE_MPROTECT};
    vec![BARCHAN_SOURCE_AUTO, BARCHAN_SOURCE_MPROTECT, BARCHAN_SOURCE_ALL_DIRTY]
}

#[test]
fn ranges_and_bitmaps() {
    for source in sources() {
        let fixture = Fixture::new(source);
        let (low, high) = (fixture.base + 32 * PAGE, fixture.base + 64 * PAGE);
        let region = fixture.track(32, 32);
        let mut memory = [0u64; 5];
        let words = memory.as_mut_ptr();
        proptest!(|(call in calls(), bits in bits(), start in edgy(fixture.base), len in edgy(0))| {
            let at = start as *mut c_void;
            let fits = inside(start, len, low, high);
            let (bitmap, given) = match bits {
                Bits::Null => (null_mut(), 5),
                Bits::Unaligned => (words.wrapping_byte_add(1), 4),
                Bits::Words(given) => (words, given),
            };
            let fits_bitmap = fits
                && matches!(bits, Bits::Words(given) if given >= (len / PAGE).div_ceil(64));
            // SAFETY: a live region, and a bitmap that is what it claims to be or refused.
            let (status, valid) = unsafe {
                match call {
                    Call::Arm => (barchan_region_arm(region, at, len), fits),
                    Call::Disarm => (barchan_region_disarm(region, at, len), fits),
                    Call::Remapped => (barchan_region_remapped(region, at, len), fits),
                    Call::Peek => {
                        (barchan_region_peek(region, at, len, bitmap, given), fits_bitmap)
                    }
                    Call::Collect => (
                        barchan_region_collect_and_reset(region, at, len, bitmap, given),
                        fits_bitmap,
                    ),
                }
            };
            check(status, valid, &format!("{source:?} {call:?} {bits:?} {start:#x} {len:#x}"))?;
        });
        // SAFETY: a live region.
        unsafe { barchan_region_untrack(region) };
    }
}

#[test]
fn tracking_and_resizing() {
    for source in sources() {
        let fixture = Fixture::new(source);
        // A region in the way: pages 0 to 8.
        let other = fixture.track(0, 8);
        let (base, free, end) =
            (fixture.base, fixture.base + 8 * PAGE, fixture.base + PAGES * PAGE);
        // Outside of the mapping a range may be well-formed and still not be trackable; what that
        // gives differs by source, so such ranges are left out.
        let mapped_or_malformed = move |start: usize, len: usize| {
            inside(start, len, base, end)
                || start % PAGE != 0
                || len % PAGE != 0
                || len == 0
                || start.checked_add(len).is_none()
        };
        proptest!(|(start in edgy(base), len in edgy(0), again in edgy(base), more in edgy(0))| {
            prop_assume!(mapped_or_malformed(start, len) && mapped_or_malformed(again, more));
            let mut region = std::ptr::dangling_mut::<barchan_region>();
            // SAFETY: mapped memory, or refused.
            let status = unsafe {
                barchan_region_track(fixture.tracker, start as *mut c_void, len, &mut region)
            };
            let valid = inside(start, len, free, end) && len > 0;
            prop_assert_eq!(region.is_null(), !valid);
            check(status, valid, &format!("{source:?} track {start:#x} {len:#x}"))?;
            if valid {
                // SAFETY: a live region; mapped memory, or refused.
                let status = unsafe { barchan_region_resize(region, again as *mut c_void, more) };
                let valid = inside(again, more, free, end) && more > 0;
                let checked = check(status, valid, &format!("{source:?} resize {again:#x} {more:#x}"));
                // SAFETY: a live region.
                unsafe { barchan_region_untrack(region) };
                checked?;
            }
        });
        // SAFETY: a live region.
        unsafe { barchan_region_untrack(other) };
    }
}

proptest! {
    #[test]
    fn any_number_for_a_source(number in any::<i32>()) {
        let source = MaybeUninit::<barchan_source>::new(barchan_source::BARCHAN_SOURCE_AUTO);
        let mut source = source;
        // SAFETY: the type holds an int, and as MaybeUninit any int.
        unsafe { source.as_mut_ptr().cast::<i32>().write(number) };
        // SAFETY: the name is a static string.
        let name = unsafe { CStr::from_ptr(barchan_source_name(source)) };
        prop_assert_eq!(name == c"unknown", !(0..10).contains(&number));
        if !(0..10).contains(&number) {
            let mut tracker = std::ptr::dangling_mut::<barchan_tracker>();
            // SAFETY: room for a pointer.
            let status = unsafe { barchan_tracker_open(source, &mut tracker) };
            check(status, false, "open")?;
            prop_assert!(tracker.is_null() && last_error().contains(&number.to_string()));
        }
    }

    #[test]
    fn any_size_of_the_statistics(size in prop_oneof![0..200u64, any::<u64>()]) {
        let fixture = Fixture::new(barchan_source::BARCHAN_SOURCE_ALL_DIRTY);
        let mut room = [u64::MAX - 1; 16];
        room[0] = size;
        // SAFETY: an open tracker; the room is as large as any statistics of this version.
        let status = unsafe { barchan_tracker_stats(fixture.tracker, room.as_mut_ptr().cast()) };
        let filled = size.min(size_of::<barchan_stats>() as u64);
        let valid = filled >= 16 && filled % 8 == 0;
        check(status, valid, "stats")?;
        let touched = if valid { filled as usize / 8 } else { 1 };
        prop_assert!(room[touched..].iter().all(|&word| word == u64::MAX - 1), "no more than asked");
        if valid {
            prop_assert_eq!(room[0], filled);
        }
    }
}

#[test]
fn null_everywhere() {
    let mut bits = [0u64; 1];
    let nothing = null_mut::<c_void>();
    // SAFETY: NULL is what is tested.
    unsafe {
        let auto = MaybeUninit::new(barchan_source::BARCHAN_SOURCE_AUTO);
        let refused = [
            barchan_tracker_open(auto, null_mut()),
            barchan_region_track(null_mut(), nothing, PAGE, null_mut()),
            barchan_region_resize(null_mut(), nothing, PAGE),
            barchan_region_remapped(null_mut(), nothing, PAGE),
            barchan_region_arm(null_mut(), nothing, PAGE),
            barchan_region_disarm(null_mut(), nothing, PAGE),
            barchan_region_peek(null_mut(), nothing, PAGE, bits.as_mut_ptr(), 1),
            barchan_region_collect_and_reset(null_mut(), nothing, PAGE, bits.as_mut_ptr(), 1),
            barchan_tracker_stats(null(), null_mut()),
        ];
        assert_eq!(refused, [BARCHAN_ERR_INVALID; 9]);
        assert!(last_error().contains("NULL"));
        barchan_region_untrack(null_mut());
        barchan_tracker_close(null_mut());
        assert_eq!(barchan_tracker_source(null()), barchan_source::BARCHAN_SOURCE_AUTO);
    }
}

#[test]
fn a_tracker_with_regions_stays_open() {
    let fixture = Fixture::new(barchan_source::BARCHAN_SOURCE_ALL_DIRTY);
    let region = fixture.track(0, 1);
    // SAFETY: an open tracker, which stays open since it has a region; then a live region.
    unsafe {
        barchan_tracker_close(fixture.tracker);
        assert!(last_error().contains("1 region"), "{}", last_error());
        barchan_region_untrack(region);
    }
}
