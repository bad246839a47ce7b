//! What the benches of the write trackers share: the memory that they write to, and its size.
//!
//! The figures are of 4 KiB pages that are resident: huge pages are off for this memory, and every
//! page is touched before anything is measured, so that no first-touch fault is counted as the
//! tracker's. It is no test: what is reported is not compared with what was written here.

use std::error::Error;
use std::fmt;

use barchan::{PAGE_SIZE, PageRange, Region, RegionError, Source, Tracker, bitmap};

/// The variable that overrides how much memory is tracked, in bytes.
pub const BYTES_ENV: &str = "BARCHAN_BENCH_BYTES";

/// How much memory is tracked if nothing else is said, in bytes.
pub const DEFAULT_BYTES: usize = 1 << 30;

/// How much memory is tracked when the benches are only tried (`--test`), in bytes.
pub const TRIAL_BYTES: usize = 16 << 20;

/// The least that makes sense: as many pages as are written in one go when faults are timed.
const MIN_BYTES: usize = 16 << 20;

/// [`BYTES_ENV`] is set to something that is no size.
#[derive(Debug)]
pub struct BadSize {
    given: String,
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{BYTES_ENV}={} is no number of bytes; give a plain number of at least {MIN_BYTES}, \
             such as {TRIAL_BYTES}",
            self.given
        )
    }
}

impl Error for BadSize {}

/// How much memory to track, in bytes, a multiple of the page size: what `given` (the value of
/// [`BYTES_ENV`]) says, or `default`.
///
/// # Errors
/// If `given` is not a number, or too small to measure anything on.
pub fn bytes_to_track(given: Option<&str>, default: usize) -> Result<usize, BadSize> {
    let Some(given) = given else { return Ok(default) };
    given
        .trim()
        .parse::<usize>()
        .ok()
        .filter(|bytes| *bytes >= MIN_BYTES)
        .map(|bytes| bytes / PAGE_SIZE * PAGE_SIZE)
        .ok_or_else(|| BadSize { given: given.to_owned() })
}

/// The trackers that this machine has; says why each of the others is left out.
#[must_use]
pub fn trackers() -> Vec<Tracker> {
    Source::ALL
        .into_iter()
        .filter_map(|source| match Tracker::builder().source(source).open() {
            Ok(tracker) => Some(tracker),
            Err(why) => {
                eprintln!("skipped: {why}");
                None
            }
        })
        .collect()
}

/// Resident private anonymous memory in pages of 4 KiB.
#[derive(Debug)]
pub struct Memory {
    range: PageRange,
}

impl Memory {
    /// Maps `bytes` (a multiple of the page size) and touches every page.
    ///
    /// # Errors
    /// If the kernel has not that much.
    pub fn resident(bytes: usize) -> Result<Self, Box<dyn Error>> {
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let why = std::io::Error::last_os_error();
            return Err(format!("cannot map {bytes} bytes: {why}; set {BYTES_ENV} to less").into());
        }
        let memory = Self { range: PageRange::new(start as usize, bytes)? };
        // SAFETY: 1. The range is ours. 2. The advice changes the size of its pages only.
        let advised = unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        // EINVAL: a kernel without huge pages, which is as well.
        let why = std::io::Error::last_os_error();
        if advised != 0 && why.raw_os_error() != Some(libc::EINVAL) {
            return Err(format!("cannot keep huge pages away: {why}").into());
        }
        memory.write(0..memory.range.pages());
        Ok(memory)
    }

    /// The pages.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Stores to each of `pages`.
    ///
    /// # Panics
    /// If one lies outside.
    pub fn write(&self, pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            let at = self.range.slice(page, 1).start() as *mut u8;
            // SAFETY: 1. `slice` checked that the page is one of ours, which are mapped and
            // writable until `self` goes. 2. If it is armed, the tracker resolves the fault.
            // 3. Nobody holds a reference to the memory.
            unsafe { at.write_volatile(1) };
        }
    }

    /// Tracks all of it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn track(&self, tracker: &Tracker) -> Result<Tracked<'_>, RegionError> {
        // SAFETY: 1. Private anonymous memory that stays mapped as long as the borrow in the
        // result. 2. No stack lies within.
        let region = unsafe { tracker.track(self.range)? };
        let bits = vec![0; bitmap::words_for(self.range.pages())];
        Ok(Tracked { memory: self, region, bits })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: 1. Mapped by `resident`. 2. No region is left: it would borrow `self`.
        unsafe { libc::munmap(self.range.start() as *mut _, self.range.len_bytes()) };
    }
}

/// Tracked memory, with room for the report.
#[derive(Debug)]
pub struct Tracked<'a> {
    /// The memory.
    pub memory: &'a Memory,
    /// Its region.
    pub region: Region,
    bits: Vec<u64>,
}

impl Tracked<'_> {
    /// Reports and re-arms the dirty pages of all the memory; returns how many there were.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn collect(&mut self) -> Result<usize, RegionError> {
        self.bits.fill(0);
        let range = self.memory.range();
        // SAFETY: the benches write from the thread that is here, and to no other region.
        unsafe { self.region.collect_and_reset_stopped(range, &mut self.bits) }
    }

    /// The region, and a cleared bitmap for what it reports.
    pub fn region_and_bits(&mut self) -> (&Region, &mut [u64]) {
        self.bits.fill(0);
        (&self.region, &mut self.bits)
    }
}

/// `count` of `pages` page numbers, each once, spread evenly and in an order that no prefetcher
/// and no merging of neighbours profits from.
#[must_use]
pub fn scattered(pages: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, pages);
    let mut chosen: Vec<usize> = (0..count).map(|i| i * pages / count).collect();
    // A fixed shuffle (Fisher and Yates, numbers by a linear congruence): the same in every run.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..chosen.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        chosen.swap(i, (seed >> 33) as usize % (i + 1));
    }
    chosen
}
