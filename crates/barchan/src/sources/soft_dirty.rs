//! Soft-dirty bits (`CONFIG_MEM_SOFT_DIRTY`): bit 55 of a pagemap entry, set by the kernel at the
//! first write after somebody wrote 4 to `/proc/<pid>/clear_refs`.
//!
//! Two things make it the odd one out. The reset clears the bits of the *whole process*, so before
//! each reset the bits of all tracked regions (of every tracker: the table below is one for the
//! process) are harvested into words of our own. And reading and clearing are two steps, so a write
//! between them would be lost: only a caller who vouches that nobody writes may reset
//! (`collect_and_reset_stopped`), to any region of any soft-dirty tracker of the process; for others
//! a collection reports and resets nothing, and arming makes only those pages clean whose kernel bit
//! is clear already.
//!
//! A page is dirty if its harvested bit is set, or its kernel bit is set (for a new mapping the
//! kernel sets it for every page), or it is not in memory: the kernel has lost the bits of merged
//! mappings, of dropped and of swapped pages before, so absent pages are never taken as clean.
//! A dropped page that is read again is present, as zeros, and its bit is clear: that it was
//! dropped has to be told (`remapped`); writes to it are seen all the same.
//!
//! Two more ways for the kernel to lose a bit are shut off where memory is tracked (`keep_unmerged`), and are not
//! opened again when it no longer is: that a written page is replaced by a merged one (KSM), and, from Linux 6.12 to
//! about 6.17, by the page of zeros, when a huge page of mostly zeros is split for want of memory. The second remains for
//! huge pages that were there before they were tracked.
//!
//! Files are opened for each operation, so a fork, or a program that closes all descriptors, cannot
//! make us read another process. Whoever else clears soft-dirty bits in this process (CRIU, another
//! collector) makes this source unsound; the kernel offers no way to notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::Opened;
use crate::bitmap;
use crate::error::kind_of;
use crate::os::lock::{self, EpochLock, ForkMutex};
use crate::os::mapping::Words;
use crate::os::pagemap::{self, entry};
use crate::os::{epoch, syscall};
use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{
    Errno, ErrorKind, KernelWrites, PageRange, RegionError, Source, Stats, Unavailable,
    WriteTracker,
};

/// Pages handled at a time (4 KiB of stack).
const CHUNK: usize = 512;
type Chunk = [u64; CHUNK / 64];

/// All regions of the process. Changing it takes both locks, the outer one first; reading takes
/// the inner one, which blocks signals and is held over each operation.
///
/// The table is an array that does not change. Another takes its place by one store, so a child
/// forked at any instant has a whole table: that of before the change, or that of after it. A region
/// that was missing would not be harvested when the kernel's bits of all are cleared. What the
/// regions hold may be half done in the child, and does not matter: their epoch is the parent's, so
/// they are all dirty.
static CHANGING: ForkMutex<()> = ForkMutex::new();
static TABLE: Table = Table::new();

struct Table {
    lock: EpochLock,
    /// A box, or null for no regions. Replaced by `replace` only, under both locks.
    regions: AtomicPtr<Vec<Arc<State>>>,
}

impl Table {
    const fn new() -> Self {
        Self { lock: EpochLock::new(), regions: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Runs `f` on the regions; with all signals blocked, so it must not allocate or free.
    fn with<R>(&self, f: impl FnOnce(&[Arc<State>]) -> R) -> R {
        let _held = self.lock.lock();
        // SAFETY: null, or a box that is not replaced while the lock is held.
        f(unsafe { self.regions.load(Ordering::Acquire).as_ref() }.map_or(&[], Vec::as_slice))
    }

    /// Exchanges `old` for `new`; `exchange` runs in the same step.
    fn replace(
        &self,
        changing: &ForkMutex<()>,
        old: Option<&Arc<State>>,
        new: Option<&Arc<State>>,
        exchange: impl FnOnce(),
    ) {
        changing.with(|()| {
            let now = self.regions.load(Ordering::Acquire);
            // SAFETY: null, or a box that only the holder of `changing` replaces.
            let regions = unsafe { now.as_ref() }.map_or(&[][..], Vec::as_slice);
            let kept = regions.iter().filter(|r| !old.is_some_and(|old| Arc::ptr_eq(r, old)));
            let next = Box::into_raw(Box::new(kept.chain(new).cloned().collect()));
            {
                let _held = self.lock.lock();
                exchange();
                self.regions.store(next, Ordering::Release);
            }
            // SAFETY: null, or a box that was replaced above; who looked at it held the lock.
            unsafe { lock::free(now) };
        });
    }
}

/// One region: what was harvested of it.
struct State {
    range: PageRange,
    /// Bit i: page i is dirty whatever the kernel says. Touched under the table's lock.
    bits: Words,
    /// The epoch in which `bits` hold; in any other, all is dirty.
    epoch: AtomicU64,
}

impl State {
    fn new(range: PageRange) -> Result<Self, RegionError> {
        let bits =
            Words::new(bitmap::words_for(range.pages())).map_err(|errno| RegionError::System {
                step: "mapping memory for the dirty bits",
                range,
                errno,
                remedy: "one bit a page is needed",
            })?;
        let state = Self { range, bits, epoch: AtomicU64::new(epoch::current()) };
        state.put(0, range.pages(), true);
        Ok(state)
    }

    /// In a forked child, starts over with all dirty.
    fn adopt(&self) {
        let now = epoch::current();
        if self.epoch.load(Ordering::Relaxed) != now {
            self.put(0, self.range.pages(), true);
            self.epoch.store(now, Ordering::Relaxed);
        }
    }

    /// Sets or clears the harvested bits of a run.
    fn put(&self, first: usize, count: usize, set: bool) {
        let mut page = first;
        while page < first + count {
            let n = (64 - page % 64).min(first + count - page);
            let mask = (u64::MAX >> (64 - n)) << (page % 64);
            let word = &self.bits.as_slice()[page / 64];
            let old = word.load(Ordering::Relaxed);
            word.store(if set { old | mask } else { old & !mask }, Ordering::Relaxed);
            page += n;
        }
    }

    fn is_set(&self, page: usize) -> bool {
        self.bits.as_slice()[page / 64].load(Ordering::Relaxed) >> (page % 64) & 1 == 1
    }
}

/// What the kernel says of the first pages of a range.
struct Seen {
    pages: usize,
    /// Pages that are not known to be clean.
    dirty: Chunk,
    /// Some page has its soft-dirty bit set and is in memory, so that clearing would change it.
    clearable: bool,
}

/// Reads the state of at most [`CHUNK`] pages of `range`.
fn look(pagemap: i32, range: PageRange) -> Result<Seen, Errno> {
    let mut entries = [0u64; CHUNK];
    let pages = pagemap::read(pagemap, range, &mut entries)?;
    let mut seen = Seen { pages, dirty: [0; CHUNK / 64], clearable: false };
    for (page, &entry) in entries[..pages].iter().enumerate() {
        let present = entry & entry::PRESENT != 0 && entry & entry::SWAPPED == 0;
        let soft = entry & entry::SOFT_DIRTY != 0;
        seen.clearable |= present && soft;
        seen.dirty[page / 64] |= u64::from(soft || !present) << (page % 64);
    }
    Ok(seen)
}

/// A descriptor that is closed when dropped.
struct File(i32);

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: opened by whoever made this, and owned by nobody else.
        unsafe { syscall::close(self.0) };
    }
}

/// Advises the kernel neither to merge the pages of `range` with others nor, where splitting those loses
/// bits, to make huge ones of them.
///
/// The first also parts what is merged already, and is without effect on memory that nobody has asked to be merged.
fn keep_unmerged(range: PageRange) -> Result<(), RegionError> {
    let no_huge = syscall::kernel_release() >= (6, 12, 0);
    let advise = |advice, step| {
        // SAFETY: the pages belong to the region, and no byte of them changes.
        match unsafe { syscall::madvise(range, advice) } {
            // A kernel that does not do what it is asked not to do.
            Ok(()) | Err(Errno(libc::EINVAL)) => Ok(()),
            Err(errno) => Err(RegionError::System {
                step,
                range,
                errno,
                remedy: "the range must be mapped, with mappings to spare (vm.max_map_count), and a security policy \
                         must allow the call; without it written pages could look clean",
            }),
        }
    };
    advise(libc::MADV_UNMERGEABLE, "madvise(MADV_UNMERGEABLE)")?;
    if no_huge { advise(libc::MADV_NOHUGEPAGE, "madvise(MADV_NOHUGEPAGE)") } else { Ok(()) }
}

fn clear_refs() -> Result<(), Errno> {
    let file = File(syscall::open(c"/proc/thread-self/clear_refs", libc::O_WRONLY)?);
    syscall::write(file.0, b"4").map(drop)
}

/// Calls `f` with what is seen of each chunk of `range` and the index of its first page.
fn look_over(pagemap: i32, range: PageRange, mut f: impl FnMut(usize, &Seen)) -> Result<(), Errno> {
    let mut at = 0;
    while at < range.pages() {
        let seen = look(pagemap, range.slice(at, range.pages() - at))?;
        f(at, &seen);
        at += seen.pages;
    }
    Ok(())
}

/// The opened source: only counters, for the state is the process'.
pub(crate) struct SoftDirty {
    counters: Counters,
}

impl SoftDirty {
    /// Checks the files; that the bits also work is for the probe to see (without
    /// `CONFIG_MEM_SOFT_DIRTY` the files are there all the same).
    pub(crate) fn open() -> Result<Self, Unavailable> {
        let refused = |step, errno, remedy| Unavailable {
            source: Source::SoftDirty,
            kind: kind_of(errno),
            step,
            errno: Some(errno),
            remedy,
        };
        let _pagemap = pagemap::open().map(File).map_err(|e| {
            refused("opening /proc/thread-self/pagemap", e, pagemap::open_remedy(e))
        })?;
        let _clear =
            syscall::open(c"/proc/thread-self/clear_refs", libc::O_WRONLY).map(File).map_err(
                |e| refused("opening /proc/thread-self/clear_refs", e, pagemap::open_remedy(e)),
            )?;
        check_bits()?;
        Ok(Self { counters: Counters::new() })
    }
}

/// Runs `f`, unless there is more than one region; nobody can track another meanwhile. For the probe, which
/// clears the kernel's bits while the writers of other regions go on.
pub(crate) fn if_alone<R>(f: impl FnOnce() -> R) -> Option<R> {
    CHANGING.with(|()| TABLE.with(|regions| regions.len() <= 1).then(f))
}

/// Sees whether a fresh page has the bit. What else it does is for the probe to see, through a region.
fn check_bits() -> Result<(), Unavailable> {
    let unavailable = |kind, step, errno| Unavailable {
        source: Source::SoftDirty,
        kind,
        step,
        errno,
        remedy: "use a kernel built with CONFIG_MEM_SOFT_DIRTY (Debian's generic flavour is)",
    };
    let failed = |step, errno| unavailable(kind_of(errno), step, Some(errno));
    let bytes = crate::PAGE_SIZE;
    let start = syscall::mmap_anonymous(bytes, libc::PROT_READ | libc::PROT_WRITE, 0)
        .map_err(|errno| failed("mapping a page to probe with", errno))?;
    let range = PageRange::between(start, start + bytes);
    let store = || {
        // SAFETY: the page is ours, mapped and writable.
        unsafe { (start as *mut u8).write_volatile(1) };
    };
    let is_soft = || -> Result<bool, Errno> {
        let pagemap = File(pagemap::open()?);
        let mut entries = [0];
        pagemap::read(pagemap.0, range, &mut entries)?;
        Ok(entries[0] & entry::SOFT_DIRTY != 0)
    };
    store();
    let step = "checking that the bit of a written page is set";
    let verdict = match is_soft() {
        Err(errno) => Err(failed("reading /proc/thread-self/pagemap", errno)),
        // Not even a fresh page has it: the kernel does not know the bit.
        Ok(false) => Err(unavailable(ErrorKind::Unsupported, step, None)),
        Ok(true) => Ok(()),
    };
    // SAFETY: mapped above, seen by nobody else.
    unsafe { syscall::munmap(start, bytes) };
    verdict
}

impl Opened for SoftDirty {
    fn source(&self) -> Source {
        Source::SoftDirty
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Tracked
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(false)
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        keep_unmerged(range)?;
        let state = Arc::new(State::new(range)?);
        TABLE.replace(&CHANGING, None, Some(&state), || {});
        Ok(Box::new(SoftDirtyRegion { shared: self, state }))
    }
}

struct SoftDirtyRegion {
    shared: Arc<SoftDirty>,
    state: Arc<State>,
}

impl SoftDirtyRegion {
    fn index(&self, range: PageRange) -> usize {
        self.state.range.index_of(range.start())
    }

    fn refused(&self, step: &'static str, range: PageRange, errno: Errno) -> RegionError {
        Counters::add(&self.shared.counters.degraded, 1);
        RegionError::System {
            step,
            range,
            errno,
            remedy: "the process must be dumpable and have a descriptor to spare; until then all \
                     pages are dirty",
        }
    }

    /// ORs the dirty pages of `range` into `bits`, which is not written with the lock held (it may
    /// be tracked memory, whose faults are the kernel's to resolve, but may block). Returns their
    /// number and whether clearing would change the kernel's bits.
    fn report(&self, range: PageRange, bits: &mut [u64]) -> Result<(usize, bool), Errno> {
        let pagemap = File(pagemap::open()?);
        let (mut at, mut dirty, mut clearable) = (0, 0, false);
        while at < range.pages() {
            let mut seen = look(pagemap.0, range.slice(at, range.pages() - at))?;
            let first = self.index(range) + at;
            TABLE.with(|_| {
                self.state.adopt();
                for page in 0..seen.pages {
                    seen.dirty[page / 64] |=
                        u64::from(self.state.is_set(first + page)) << (page % 64);
                }
            });
            dirty += bitmap::or_into(bits, at, &seen.dirty, seen.pages);
            clearable |= seen.clearable;
            at += seen.pages;
        }
        Ok((dirty, clearable))
    }

    /// As [`Self::report`], with everything dirty if the kernel does not answer.
    fn report_or_all(&self, range: PageRange, bits: &mut [u64]) -> usize {
        let _timer = ScanTimer::start(&self.shared.counters);
        self.report(range, bits).map_or_else(
            |_| {
                Counters::add(&self.shared.counters.degraded, 1);
                bitmap::set_run(bits, 0, range.pages());
                range.pages()
            },
            |(dirty, _)| dirty,
        )
    }

    /// Harvests all regions of the process and clears the kernel's bits. Nobody writes meanwhile.
    fn harvest_and_clear(&self) -> Result<(), Errno> {
        let pagemap = File(pagemap::open()?);
        TABLE.with(|regions| {
            for region in regions.iter() {
                region.adopt();
                let looked = look_over(pagemap.0, region.range, |at, seen| {
                    for (first, count) in bitmap::runs(&seen.dirty, seen.pages) {
                        region.put(at + first, count, true);
                    }
                });
                if looked.is_err() {
                    region.put(0, region.range.pages(), true);
                }
            }
            clear_refs()
        })
    }
}

impl WriteTracker for SoftDirtyRegion {
    fn source(&self) -> Source {
        Source::SoftDirty
    }

    fn range(&self) -> PageRange {
        self.state.range
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range(), range)?;
        // The kernel's bits stay: clearing them would lose the writes to other pages. A page whose
        // bit is set is still dirty, until a stopped collection clears it.
        TABLE.with(|_| {
            self.state.adopt();
            self.state.put(self.index(range), range.pages(), false);
        });
        Counters::add(&self.shared.counters.pages_armed, range.pages());
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range(), range)?;
        TABLE.with(|_| {
            self.state.adopt();
            self.state.put(self.index(range), range.pages(), true);
        });
        Counters::add(&self.shared.counters.pages_disarmed, range.pages());
        Ok(())
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range(), range, bits)?;
        self.report_or_all(range, bits);
        Ok(())
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let dirty = self.report_or_all(range, bits);
        Counters::add(&self.shared.counters.pages_reported, dirty);
        Ok(dirty)
    }

    unsafe fn collect_and_reset_stopped(
        &self,
        range: PageRange,
        bits: &mut [u64],
    ) -> Result<usize, RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let _timer = ScanTimer::start(&self.shared.counters);
        let all = |bits: &mut [u64]| bitmap::set_run(bits, 0, range.pages());
        let (dirty, clearable) = self.report(range, bits).map_err(|errno| {
            all(bits);
            self.refused("reading /proc/thread-self/pagemap", range, errno)
        })?;
        // Regions collected one after the other in one stop clear only once: the first clearing
        // harvests the others, whose kernel bits are clear from then on.
        if clearable {
            self.harvest_and_clear().map_err(|errno| {
                all(bits);
                self.refused("writing 4 to /proc/thread-self/clear_refs", range, errno)
            })?;
        }
        TABLE.with(|_| self.state.put(self.index(range), range.pages(), false));
        self.shared.counters.collected(dirty);
        Ok(dirty)
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        self.disarm(range)?;
        keep_unmerged(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        keep_unmerged(bounds)?;
        let next = Arc::new(State::new(bounds)?);
        TABLE.replace(&CHANGING, Some(&self.state), Some(&next), || {
            self.state.adopt();
            let kept = self.state.range.intersection(&bounds);
            for page in 0..kept.pages() {
                let at = kept.slice(page, 1).start();
                if !self.state.is_set(self.state.range.index_of(at)) {
                    next.put(bounds.index_of(at), 1, false);
                }
            }
        });
        self.state = next;
        Ok(())
    }
}

impl Drop for SoftDirtyRegion {
    fn drop(&mut self) {
        TABLE.replace(&CHANGING, Some(&self.state), None, || {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    /// What the kernel may do with the page at `address`: `mg` merge it, `nh` not make it a part of a huge one.
    fn flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc");
        let begins = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(start)?..number(end)?).contains(&address))
        };
        let mut lines = smaps.lines().skip_while(|line| begins(line) != Some(true));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags: ")).expect("VmFlags");
        flags.split_whitespace().map(str::to_owned).collect()
    }

    /// Whether or not the kernel has soft-dirty bits.
    #[test]
    fn tracked_pages_are_not_merged_nor_huge_where_that_loses_bits() {
        epoch::init().expect("MADV_WIPEONFORK");
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let start = syscall::mmap_anonymous(12 * PAGE_SIZE, rights, 0).expect("12 pages");
        let memory = PageRange::between(start, start + 12 * PAGE_SIZE);
        let has = |page: usize, flag: &str| {
            flags(memory.slice(page, 1).start()).iter().any(|known| known == flag)
        };
        // SAFETY: the pages are the test's.
        if let Err(errno) = unsafe { syscall::madvise(memory, libc::MADV_MERGEABLE) } {
            println!("skipped in part: MADV_MERGEABLE is refused: {errno}");
        } else {
            assert!(has(5, "mg"));
        }
        let no_huge = syscall::kernel_release() >= (6, 12, 0)
            && std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        let shared = Arc::new(SoftDirty { counters: Counters::new() });
        // SAFETY: as above.
        let mut region = unsafe { Arc::clone(&shared).track(memory.slice(4, 4)) }.expect("track");
        assert!(!has(5, "mg") && has(5, "nh") == no_huge, "{:?}", flags(start + 5 * PAGE_SIZE));
        assert!(!has(2, "nh"));
        // SAFETY: as above.
        unsafe { region.resize(memory.slice(2, 4)) }.expect("resize");
        assert!(!has(2, "mg") && has(2, "nh") == no_huge, "{:?}", flags(start + 2 * PAGE_SIZE));
        let bytes = 4 * PAGE_SIZE;
        // SAFETY: as above; a new mapping in the place of the old.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let at = memory.slice(2, 4).start() as *mut libc::c_void;
            assert_ne!(libc::mmap(at, bytes, rights, flags, -1, 0), libc::MAP_FAILED);
            let _ = syscall::madvise(memory.slice(2, 4), libc::MADV_MERGEABLE);
        }
        region.remapped(memory.slice(2, 4)).expect("remapped");
        assert!(!has(2, "mg") && has(2, "nh") == no_huge, "{:?}", flags(start + 2 * PAGE_SIZE));
        drop(region);
        // SAFETY: as above.
        unsafe { syscall::munmap(start, 12 * PAGE_SIZE) };
    }

    /// A table of its own, as no memory is tracked here.
    #[test]
    fn a_child_forked_in_the_middle_of_a_change_has_every_region() {
        epoch::init().expect("MADV_WIPEONFORK");
        static CHANGING: ForkMutex<()> = ForkMutex::new();
        static TABLE: Table = Table::new();
        let state = |i: usize| {
            let range = PageRange::between(i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
            Arc::new(State::new(range).expect("a page for the bits"))
        };
        let has = |wanted: &[&Arc<State>]| {
            TABLE.with(|regions| {
                regions.len() == wanted.len()
                    && wanted.iter().all(|w| regions.iter().any(|r| Arc::ptr_eq(r, w)))
            })
        };
        let (a, b, c) = (state(1), state(2), state(3));
        let change = |old, new, before: &[&Arc<State>], after: &[&Arc<State>]| {
            let mut status = -1;
            TABLE.replace(&CHANGING, old, new, || {
                status = syscall::in_child(|| {
                    // The locks are held by nobody here, and the table can be changed.
                    let whole = has(before);
                    TABLE.replace(&CHANGING, old, new, || {});
                    whole && has(after)
                });
            });
            assert_eq!(status, 0);
            assert!(has(after));
        };
        change(None, Some(&a), &[], &[&a]);
        change(None, Some(&b), &[&a], &[&a, &b]);
        change(Some(&a), Some(&c), &[&a, &b], &[&b, &c]);
        change(Some(&b), None, &[&b, &c], &[&c]);
        TABLE.with(|regions| {
            regions[0].put(0, 1, false);
            let status = syscall::in_child(|| {
                TABLE.with(|regions| {
                    regions[0].adopt();
                    regions[0].is_set(0)
                })
            });
            assert_eq!(status, 0, "what it held is all dirty in a child");
        });
    }
}
