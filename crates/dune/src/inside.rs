//! What only a kernel can do otherwise, for code in guest mode: page-table entries, dirty bits, the TLB.
//!
//! Everything here runs at the program's ring, by loads and stores to the tables and an INT3 that a stub answers (at
//! ring 0 the privileged instruction itself);
//! nothing ends the run, but for [`Inside::populate`] and [`Inside::flush_everywhere`]. D bits are cleared
//! by the program itself, never by the monitor: a host that shadows the tables notices only that.
//!
//! What is seen is what this process' CPUs and its system calls write. Threads that were there before the
//! process entered run natively, and other processes that share memory do too: their writes set no
//! D bit of these tables.
//!
//! A page without an entry counts as dirty, and so does one whose entry was just made: what is not
//! known to be clean is dirty.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crate::calls::{CALL_HANDLE_FAULTS, CALL_INSIDE, CALL_POPULATE, CALL_SPACE, written};
use crate::faults::{self, FaultHandler};
use crate::harvest;
use crate::paging::{ADDRESS_MASK, ENTRIES, FLUSHED, Flags, HELD, PAGE, TABLE_SPAN, USER_END};
use crate::process::switch::request;
use crate::process::{run, thread};
use crate::ring;
use crate::shootdown::{FlushLocal, Scope};
use crate::space::cpu_tables::{FLUSH, FLUSH_PAGE};
use crate::space::{self, private};
use crate::sys::{self, PAGE_SIZE};

/// Proof that the calling thread is in guest mode.
#[derive(Clone, Copy, Debug)]
pub struct Inside {
    /// It says nothing about other threads.
    not_send: PhantomData<*const ()>,
}

/// D bits were cleared, and a TLB may still hold their entries as dirty: what is written through such an
/// entry is lost until it is flushed.
#[must_use = "writes through entries that a TLB still holds are lost: flush"]
#[derive(Debug)]
pub struct FlushOwed {
    pub(crate) inside: Inside,
    /// How many entries changed.
    pub(crate) cleared: usize,
    /// It is counted among those under way until it is paid.
    #[allow(dead_code, reason = "counts down when it is dropped")]
    pub(crate) clearing: Clearing,
}

/// Clearings whose flush is not done yet: who finds an entry clean may owe the flush to somebody else, who
/// is not there yet.
static CLEARINGS: AtomicUsize = AtomicUsize::new(0);

/// How often the process and those that it was forked from were forked: nobody goes on with what was under way before.
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// One of [`CLEARINGS`], of this generation.
#[derive(Debug)]
pub(crate) struct Clearing(usize);

/// In a forked child, whose tables and TLBs are new: no flush is owed.
pub(crate) fn renew() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    CLEARINGS.store(0, Ordering::Relaxed);
}

impl Clearing {
    /// Before an entry is changed.
    pub(crate) fn begin() -> Self {
        CLEARINGS.fetch_add(1, Ordering::SeqCst);
        // Who sees an entry that is changed after this sees the count too.
        fence(Ordering::SeqCst);
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether somebody else is at it.
    pub(crate) fn others() -> bool {
        Self::count() > 1
    }

    /// Whether anybody is, asked by one who is not, after looking at entries.
    pub(crate) fn any() -> bool {
        Self::count() > 0
    }

    fn count() -> usize {
        fence(Ordering::SeqCst);
        CLEARINGS.load(Ordering::SeqCst)
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        if self.0 == GENERATION.load(Ordering::Relaxed) {
            CLEARINGS.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Why a range cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// It does not start and end at pages below 2⁴⁷.
    Range,
    /// The bitmap has fewer bits than the range has pages.
    Bitmap,
    /// Entries could not be made: no memory for tables.
    Memory,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Range => "a range of whole pages below 2^47 is needed",
            Self::Bitmap => "the bitmap needs a bit for each page of the range",
            Self::Memory => "there is no memory left for the guest's page tables",
        })
    }
}

impl std::error::Error for RangeError {}

/// A page-table entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    entry: &'static AtomicU64,
    /// The page, in private spaces of which there may be copies.
    page: usize,
    inside: Inside,
}

// For mutators that reach safepoints, `shootdown` does with fewer flushes what `flush_everywhere` does with
// one of each CPU: `Inside` is its way to flush.

/// A page that [`Inside::flush_everywhere`] gives back, so that the host flushes.
static DUMMY: AtomicUsize = AtomicUsize::new(0);

impl Inside {
    /// The proof, if the calling thread is in guest mode. Costs a system call.
    #[must_use]
    pub fn current() -> Option<Self> {
        // SAFETY: a number that Linux does not have; the monitor answers 1.
        let answer = unsafe { sys::raw(CALL_INSIDE, [0; 6]) };
        (answer == 1).then_some(Self { not_send: PhantomData })
    }

    /// The proof without asking.
    ///
    /// # Safety
    /// The calling thread is in guest mode.
    #[must_use]
    pub(crate) unsafe fn assume() -> Self {
        Self { not_send: PhantomData }
    }

    /// Makes the entries of all that is mapped in `range`, so that the first access to a page ends no
    /// run. New entries are dirty.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Memory`].
    pub fn populate(self, range: Range<usize>) -> Result<(), RangeError> {
        check(&range)?;
        // SAFETY: a number that Linux does not have; entries are made, and no memory is touched.
        let result =
            unsafe { sys::raw(CALL_POPULATE, [range.start as u64, range.end as u64, 0, 0, 0, 0]) };
        if result == 0 { Ok(()) } else { Err(RangeError::Memory) }
    }

    /// As [`populate`](Self::populate), with one entry for each 2 MiB of private memory to write to in which no page
    /// has an entry yet, backed by a huge page of the host's if it has one. Returns how many such there are now more.
    ///
    /// A large page has no dirty bits of its own and counts as dirty. Whatever makes pages of it clean, or protects them,
    /// gives each page an entry first; and so does what unmaps a part of it, or changes its rights.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Memory`].
    pub fn populate_large(self, range: Range<usize>) -> Result<usize, RangeError> {
        check(&range)?;
        let request = [range.start as u64, range.end as u64, 1, 0, 0, 0];
        // SAFETY: a number that Linux does not have; new pages are zero whether they are made now or later.
        let result = unsafe { sys::raw(CALL_POPULATE, request) };
        usize::try_from(result).map_err(|_| RangeError::Memory)
    }

    /// The entry of the page at `address`, if its table exists; it may be absent.
    #[must_use]
    pub fn entry(self, address: usize) -> Option<Entry> {
        let tables = space::view()?;
        let entry = tables.entry(address as u64)?;
        // SAFETY: tables are never freed while the process lives, and a forked child has its own.
        let entry = unsafe { &*core::ptr::from_ref(entry) };
        Some(Entry { entry, page: address & !(PAGE_SIZE - 1), inside: self })
    }

    /// Sets a bit of `bits` for each page of `range` that is dirty, and makes those pages clean. Bits that
    /// are set already stay. Nothing that was written before the call, by the program or for it by
    /// the kernel, is missed; what is written meanwhile is reported now or the next time, provided
    /// the flush is done before it is relied on.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Bitmap`].
    pub fn collect(self, range: Range<usize>, bits: &mut [u64]) -> Result<FlushOwed, RangeError> {
        let pages = check(&range)?;
        if bits.len() * 64 < pages {
            return Err(RangeError::Bitmap);
        }
        written::start();
        Ok(self.collect_noted(&range, bits))
    }

    /// [`collect`](Self::collect), where the arguments are right and the kernel's writes are being noted.
    pub(crate) fn collect_noted(self, range: &Range<usize>, bits: &mut [u64]) -> FlushOwed {
        split(range);
        let clearing = Clearing::begin();
        self.add_under_way(range, bits);
        // Copies first: what goes meanwhile is dirty in the main tables by then.
        let mut cleared =
            private::collect(range, |_| true, |page| bits[page / 64] |= 1 << (page % 64));
        for_each_table(range, |first, entries, count| {
            let mut found = [0; ENTRIES / 64];
            match entries {
                Some(entries) => cleared += harvest::harvest_unclean(entries, &mut found).cleared,
                None => found = [!0; ENTRIES / 64],
            }
            or_into(bits, first, &found, count);
        });
        self.add_under_way(range, bits);
        FlushOwed { inside: self, cleared, clearing }
    }

    /// Makes pages clean: those of `range`, or those of them whose bit in `among` is set. Pages without an
    /// entry stay dirty. What was written before the flush may be missed.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Bitmap`].
    pub fn clear(
        self,
        range: Range<usize>,
        among: Option<&[u64]>,
    ) -> Result<FlushOwed, RangeError> {
        let pages = check(&range)?;
        if among.is_some_and(|bits| bits.len() * 64 < pages) {
            return Err(RangeError::Bitmap);
        }
        written::start();
        Ok(self.clear_noted(&range, among))
    }

    /// [`clear`](Self::clear), where the arguments are right and the kernel's writes are being noted.
    pub(crate) fn clear_noted(self, range: &Range<usize>, among: Option<&[u64]>) -> FlushOwed {
        split(range);
        let clearing = Clearing::begin();
        let is_wanted =
            |page: usize| among.is_none_or(|bits| bits[page / 64] >> (page % 64) & 1 != 0);
        let mut cleared = private::collect(range, is_wanted, |_| ());
        for_each_table(range, |first, entries, count| {
            let Some(entries) = entries else { return };
            let wanted = wanted(among, first, count);
            let mut found = [0; ENTRIES / 64];
            cleared += harvest::harvest_among(entries, &wanted, &mut found).cleared;
        });
        FlushOwed { inside: self, cleared, clearing }
    }

    /// Makes the pages of `range` dirty.
    ///
    /// # Errors
    /// [`RangeError::Range`].
    pub fn mark(self, range: Range<usize>) -> Result<(), RangeError> {
        check(&range)?;
        if let Some(tables) = space::view() {
            tables.mark_dirty(range.start as u64..range.end as u64);
        }
        Ok(())
    }

    /// As [`collect`](Self::collect), but changes nothing. What another thread is making clean meanwhile is clean when
    /// it returns: a write from then on is seen.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Bitmap`].
    pub fn peek(self, range: Range<usize>, bits: &mut [u64]) -> Result<(), RangeError> {
        let pages = check(&range)?;
        if bits.len() * 64 < pages {
            return Err(RangeError::Bitmap);
        }
        self.peek_noted(&range, bits);
        Ok(())
    }

    /// [`peek`](Self::peek), where the arguments are right.
    pub(crate) fn peek_noted(self, range: &Range<usize>, bits: &mut [u64]) {
        // First: a call that ends meanwhile has marked its pages by then.
        self.add_under_way(range, bits);
        private::peek(range, |page| bits[page / 64] |= 1 << (page % 64));
        for_each_table(range, |first, entries, count| {
            let mut found = [0; ENTRIES / 64];
            match entries {
                Some(entries) => harvest::peek_unclean(entries, &mut found),
                None => found = [!0; ENTRIES / 64],
            }
            or_into(bits, first, &found, count);
        });
        self.pay_for_others();
    }

    /// After a look at entries, which changed none: what was found clean may owe its flush to a thread that has not come to
    /// it. Until then a write to such a page could go through a TLB that knows it as dirty, and the next look would not see it.
    pub(crate) fn pay_for_others(self) {
        if Clearing::any() {
            self.flush_everywhere();
        }
    }

    /// Pages that system calls which are under way may be writing.
    pub(crate) fn add_under_way(self, range: &Range<usize>, bits: &mut [u64]) {
        let mut add = |written: Range<u64>| {
            let start = (written.start as usize).max(range.start);
            let end = (written.end.min(USER_END) as usize).min(range.end);
            let mut address = start & !(PAGE_SIZE - 1);
            while address < end {
                let page = (address - range.start) / PAGE_SIZE;
                bits[page / 64] |= 1 << (page % 64);
                address += PAGE_SIZE;
            }
        };
        if !written::under_way(&mut add) {
            add(range.start as u64..range.end as u64);
        }
    }

    /// Takes the right to write from the pages of `range`, in this process' tables only: the kernel may
    /// still write to them for a system call. A write calls the handler of
    /// [`handle_faults`](Self::handle_faults), or is SIGSEGV. Pages without an entry are left as they
    /// are: [`populate`](Self::populate) first.
    ///
    /// # Errors
    /// [`RangeError::Range`].
    pub fn protect(self, range: Range<usize>) -> Result<FlushOwed, RangeError> {
        check(&range)?;
        split(&range);
        let writable = Flags::PRESENT | Flags::WRITABLE;
        let clearing = Clearing::begin();
        let changed = self.update(range.clone(), |entry| {
            Flags::from_bits_truncate(entry)
                .contains(writable)
                .then_some(entry & !Flags::WRITABLE.bits() | HELD)
        });
        // Copies afterwards: whoever makes one looks at the main entry again when it has.
        fence(Ordering::SeqCst);
        let changed = changed + private::withdraw(&range);
        Ok(FlushOwed { inside: self, cleared: changed, clearing })
    }

    /// Gives protected pages of `range` the right to write back. No flush is owed: an entry that a TLB
    /// holds without the right only faults once more.
    ///
    /// # Errors
    /// [`RangeError::Range`].
    pub fn unprotect(self, range: Range<usize>) -> Result<(), RangeError> {
        check(&range)?;
        self.update(range, |entry| {
            (entry & HELD != 0 && entry & Flags::PRESENT.bits() != 0)
                .then_some(entry & !(HELD | FLUSHED) | Flags::WRITABLE.bits())
        });
        Ok(())
    }

    /// Calls `handler` for each write to a protected page, from now on, in all threads.
    ///
    /// # Safety
    /// The handler keeps to what [`FaultHandler`] says.
    pub unsafe fn handle_faults(self, handler: FaultHandler) {
        faults::set_handler(handler);
        // SAFETY: a number that Linux does not have; the gate's stub is pointed to the code of `faults`.
        unsafe { sys::raw(CALL_HANDLE_FAULTS, [0; 6]) };
    }

    /// Changes entries of `range` as `f` says; how many were.
    fn update(self, range: Range<usize>, f: impl Fn(u64) -> Option<u64>) -> usize {
        let mut changed = 0;
        if let Some(tables) = space::view() {
            tables.for_each_table(range.start as u64..range.end as u64, |table, slots| {
                for entry in table.entries(slots) {
                    let done = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, &f);
                    changed += usize::from(done.is_ok());
                }
            });
        }
        changed
    }

    /// Flushes this CPU's TLB, entries of the paging structures included.
    pub fn flush(self) {
        FLUSHES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: in guest mode, as the proof says: at ring 0 CR3 is loaded with what it holds, or the stub
        // behind INT3 does so and returns.
        unsafe {
            if ring::is_zero() {
                core::arch::asm!("mov {cr3}, cr3", "mov cr3, {cr3}", cr3 = out(reg) _, options(nostack));
                return;
            }
            core::arch::asm!("int3", in("rax") u64::from(FLUSH as u32), out("rdx") _);
        }
    }

    /// Flushes the page at `address` from this CPU's TLB.
    pub fn flush_page(self, address: usize) {
        FLUSHES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: in guest mode, as the proof says: INVLPG may be executed, or the stub behind INT3 does so and
        // returns.
        unsafe {
            if ring::is_zero() {
                core::arch::asm!("invlpg [{}]", in(reg) address, options(nostack));
                return;
            }
            core::arch::asm!("int3", in("rax") u64::from(FLUSH_PAGE as u32), in("rdi") address);
        }
    }

    /// Flushes the TLBs of all CPUs of this process: when it returns, none of them uses an entry as it was
    /// before.
    ///
    /// The others are reached by the host: a page is touched and given back, and the host, which has to
    /// forget it, makes every CPU of the machine flush before it runs on (KVM: the MMU notifier's
    /// `kvm_flush_remote_tlbs`).
    ///
    /// That is left out where this CPU's own flush does it: in a process that has never had another CPU; and on
    /// a host that shadows the tables. Such a host reads them again at the flush, for all CPUs, which share the
    /// shadows; and wherever it takes a right from a shadow entry, as clearing D or W does, it makes all CPUs
    /// flush and waits for them, for the sake of its own bookkeeping (KVM 6.12, arch/x86/kvm/mmu/mmu.c:
    /// `mmu_spte_update` says so, `mmu_sync_children` and `kvm_mmu_track_write` do it).
    /// Where tables are shadowed, a reload of CR3 does it for the tables under that root: while some thread is in a private
    /// space ([`crate::address_space`]), the monitor goes to each root that is in use.
    pub fn flush_everywhere(self) {
        if thread::alone() {
            return self.flush();
        }
        if run::is_paravirtual() {
            self.flush();
            if private::occupied() {
                // SAFETY: a number that Linux does not have; TLBs are flushed, and nothing else.
                unsafe { sys::raw(CALL_SPACE, [request::FLUSH, 0, 0, 0, 0, 0]) };
            }
            return;
        }
        give_back_dummy_page();
        self.flush();
    }
}

impl FlushLocal for Inside {
    fn flush(&mut self, scope: Scope) {
        match scope {
            Scope::Pages { first, count } => {
                (first..first + count).for_each(|page| self.flush_page((page << 12) as usize));
            }
            Scope::All => Self::flush(*self),
        }
    }
}

/// Flushes that were asked for.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// How many flushes were asked for, of pages or of all, in this process and those that it is forked of.
pub(crate) fn flushes() -> u64 {
    FLUSHES.load(Ordering::Relaxed)
}

/// A page of the process' own, made at the first use.
fn dummy_page() -> usize {
    let page = DUMMY.load(Ordering::Acquire);
    if page != 0 {
        return page;
    }
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let Ok(new) = sys::map_anonymous(PAGE_SIZE, rights, 0) else {
        // Then there is no flushing the others, and no going on without.
        sys::text::fatal(format_args!("barchan: no memory for a page to flush TLBs with\n"));
    };
    match DUMMY.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => new,
        Err(first) => {
            // SAFETY: made above, and unknown to anybody.
            unsafe { sys::unmap(new, PAGE_SIZE) };
            first
        }
    }
}

/// Gives the page back to the kernel, whereupon the host flushes all TLBs of the machine.
fn give_back_dummy_page() {
    let page = dummy_page();
    // Another thread may lock the program's memory in between, again and again.
    for _ in 0..8 {
        // SAFETY: a page of ours that nobody reads.
        let given = unsafe {
            (page as *mut u8).write_volatile(1);
            sys::discard(page, PAGE_SIZE)
        };
        if given.is_ok() {
            return;
        }
    }
    // Without a flush of the others their writes would be missed.
    sys::text::fatal(format_args!(
        "barchan: the kernel does not take back a page to flush TLBs with (madvise MADV_DONTNEED)\n"
    ));
}

pub(crate) fn check(range: &Range<usize>) -> Result<usize, RangeError> {
    let whole = range.start % PAGE_SIZE == 0 && range.end % PAGE_SIZE == 0;
    if !whole || range.start > range.end || range.end as u64 > USER_END {
        return Err(RangeError::Range);
    }
    Ok((range.end - range.start) / PAGE_SIZE)
}

/// Gives each page of `range` that is in a large page an entry of its own, before anybody relies on its bits. If there is
/// no memory for that, the page stays without, and counts as dirty.
pub(crate) fn split(range: &Range<usize>) {
    let (start, end) = (range.start as u64, range.end as u64);
    if space::view().is_some_and(|tables| tables.first_large(start..end).is_some()) {
        // SAFETY: a number that Linux does not have; entries are made, and no memory is touched.
        unsafe { sys::raw(CALL_POPULATE, [start, end, 0, 0, 0, 0]) };
    }
}

/// Calls `f` for each part of `range` that one table maps: the number of its first page in the range, the
/// entries, or `None` if there is no table, and how many pages it is.
fn for_each_table(range: &Range<usize>, mut f: impl FnMut(usize, Option<&[AtomicU64]>, usize)) {
    let tables = space::view();
    let (mut address, end) = (range.start as u64, range.end as u64);
    while address < end {
        let stop = ((address & !(TABLE_SPAN - 1)) + TABLE_SPAN).min(end);
        let first = (address as usize - range.start) / PAGE_SIZE;
        let count = ((stop - address) / PAGE) as usize;
        f(first, tables.as_ref().and_then(|tables| tables.entries(address, count)), count);
        address = stop;
    }
}

/// What an entry has if its page is clean: of the bits in `of`, just `set`.
#[derive(Clone, Copy)]
pub(crate) struct Clean {
    pub(crate) of: u64,
    pub(crate) set: u64,
}

impl Clean {
    /// Not 0 if the page of this entry is dirty.
    fn differs(self, entry: &AtomicU64) -> u64 {
        (entry.load(Ordering::Relaxed) ^ self.set) & self.of
    }

    /// Calls `f` with each entry whose page is dirty, and its index.
    pub(crate) fn for_others(self, entries: &[AtomicU64], mut f: impl FnMut(usize, &AtomicU64)) {
        for (chunk, some) in entries.chunks(64).enumerate() {
            if some.iter().fold(0, |all, entry| all | self.differs(entry)) == 0 {
                continue;
            }
            for (index, entry) in some.iter().enumerate().filter(|(_, e)| self.differs(e) != 0) {
                f(chunk * 64 + index, entry);
            }
        }
    }

    /// Sets a bit of `bits` for each page of `range` that is dirty, of which those without a table are, and calls `f` with
    /// the entries of the others: the number of the page in the range, and the entry.
    pub(crate) fn report_others(
        self,
        range: &Range<usize>,
        bits: &mut [u64],
        mut f: impl FnMut(usize, &AtomicU64),
    ) {
        for_each_table(range, |first, entries, count| {
            let mut found = [0; ENTRIES / 64];
            match entries {
                Some(entries) => self.for_others(entries, |index, entry| {
                    found[index / 64] |= 1 << (index % 64);
                    f(first + index, entry);
                }),
                None => found = [!0; ENTRIES / 64],
            }
            or_into(bits, first, &found, count);
        });
    }

    /// Calls `f` with the entry of each dirty page of `range` that has a table, and whose bit in `among` is set if that is
    /// given: the number of the page in the range, and the entry.
    pub(crate) fn for_others_among(
        self,
        range: &Range<usize>,
        among: Option<&[u64]>,
        mut f: impl FnMut(usize, &AtomicU64),
    ) {
        for_each_table(range, |first, entries, count| {
            let Some(entries) = entries else { return };
            let wanted = wanted(among, first, count);
            self.for_others(entries, |index, entry| {
                if wanted[index / 64] >> (index % 64) & 1 != 0 {
                    f(first + index, entry);
                }
            });
        });
    }
}

/// The bits of `among` for the `count` pages of a table from page `first` on; all if it is not given.
fn wanted(among: Option<&[u64]>, first: usize, count: usize) -> [u64; ENTRIES / 64] {
    let Some(among) = among else { return [!0; ENTRIES / 64] };
    let mut wanted = [0; ENTRIES / 64];
    copy_bits(&mut wanted, among, first, count);
    wanted
}

/// Sets those of `bits` from bit `first` on that are set among the `count` first of `found`.
fn or_into(bits: &mut [u64], first: usize, found: &[u64], count: usize) {
    let shift = first % 64;
    for (index, word) in found.iter().enumerate().take(count.div_ceil(64)) {
        let word = word & low_bits(count - index * 64);
        if word == 0 {
            continue;
        }
        let at = first / 64 + index;
        bits[at] |= word << shift;
        if shift > 0 && word >> (64 - shift) != 0 {
            bits[at + 1] |= word >> (64 - shift);
        }
    }
}

/// Copies `count` bits of `from`, from bit `first` on, to the beginning of `to`.
fn copy_bits(to: &mut [u64], from: &[u64], first: usize, count: usize) {
    let shift = first % 64;
    for (index, word) in to.iter_mut().enumerate().take(count.div_ceil(64)) {
        let at = first / 64 + index;
        *word = from[at] >> shift;
        if shift > 0 {
            *word |= from.get(at + 1).map_or(0, |next| next << (64 - shift));
        }
        *word &= low_bits(count - index * 64);
    }
}

/// A word with its `count` lowest bits set; all, if they are 64 or more.
fn low_bits(count: usize) -> u64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

impl Entry {
    /// The entry's bits as they are in the main space.
    #[must_use]
    pub fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.entry.load(Ordering::Relaxed))
    }

    /// The guest-physical address in the entry: the page's, if it is present.
    #[must_use]
    pub fn frame(self) -> u64 {
        self.entry.load(Ordering::Relaxed) & ADDRESS_MASK
    }

    /// Whether it is absent, or it or its copy in a private space is dirty.
    #[must_use]
    pub fn is_dirty(self) -> bool {
        let mut dirty =
            !self.flags().contains(Flags::PRESENT) || self.flags().contains(Flags::DIRTY);
        private::peek(&self.range(), |_| dirty = true);
        dirty
    }

    /// The page, of which private spaces may have entries of their own.
    fn range(self) -> Range<usize> {
        self.page..self.page + PAGE_SIZE
    }

    /// Clears the D bit.
    pub fn clear_dirty(self) -> FlushOwed {
        written::start();
        self.clear(Flags::DIRTY)
    }

    /// Clears the A bit.
    pub fn clear_accessed(self) -> FlushOwed {
        self.clear(Flags::ACCESSED)
    }

    fn clear(self, flag: Flags) -> FlushOwed {
        let clearing = Clearing::begin();
        let clear = |entry: &AtomicU64| {
            usize::from(entry.fetch_and(!flag.bits(), Ordering::AcqRel) & flag.bits() != 0)
        };
        let mut cleared = 0;
        if flag == Flags::DIRTY {
            cleared += private::collect(&self.range(), |_| true, |_| ());
        } else {
            private::for_each_own_leaf(&self.range(), |_, entries| {
                cleared += entries.iter().map(clear).sum::<usize>();
            });
        }
        cleared += clear(self.entry);
        FlushOwed { inside: self.inside, cleared, clearing }
    }
}

impl FlushOwed {
    /// How many entries changed.
    #[must_use]
    pub fn cleared(&self) -> usize {
        self.cleared
    }

    /// Flushes the TLBs of all CPUs, if an entry has changed, or another thread has changed some and not
    /// flushed yet.
    pub fn flush_everywhere(self) {
        if self.cleared > 0 || Clearing::others() {
            self.inside.flush_everywhere();
        }
    }

    /// Flushes this CPU's TLB only, if an entry has changed.
    ///
    /// Right if no other thread of the process has written to the pages since it last flushed, nor will
    /// before it flushes: threads that are stopped, and flush as they go on.
    pub fn flush_here(self) {
        if self.cleared > 0 || Clearing::others() {
            self.inside.flush();
        }
    }

    /// The caller flushes in its own way, later: several collections may be paid by one flush.
    ///
    /// Until it has, writes to the pages may be missed.
    pub fn defer(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is memory at the page.
    fn is_resident(page: usize) -> bool {
        let mut vector = 0u8;
        let arguments = [page as u64, PAGE_SIZE as u64, &raw mut vector as u64, 0, 0, 0];
        // SAFETY: one byte for one page.
        unsafe { sys::call(libc::SYS_mincore, arguments) }.expect("a mapped page");
        vector & 1 != 0
    }

    #[test]
    fn the_page_to_flush_with_is_given_back_even_if_it_is_locked() {
        let page = dummy_page();
        for _ in 0..3 {
            // SAFETY: a page of ours.
            unsafe {
                (page as *mut u8).write_volatile(1);
                if libc::mlock(page as *const _, PAGE_SIZE) != 0 {
                    println!("skipped: mlock: {}", std::io::Error::last_os_error());
                    return;
                }
            }
            assert!(is_resident(page));
            give_back_dummy_page();
            assert!(!is_resident(page), "nothing was flushed");
        }
    }

    #[test]
    fn bits_are_moved_by_any_distance() {
        let found = [0x8000_0000_0000_0001, !0, 0, 0, 0, 0, 0, 0b1011];
        for first in [0, 1, 63, 64, 100, 511] {
            for count in [1, 2, 64, 65, 128, 449, 512] {
                let mut bits = [0u64; 17];
                or_into(&mut bits, first, &found, count);
                let bit = |words: &[u64], n: usize| words[n / 64] >> (n % 64) & 1;
                for n in 0..17 * 64 {
                    let inside = (first..first + count).contains(&n);
                    let expected = if inside { bit(&found, n - first) } else { 0 };
                    assert_eq!(bit(&bits, n), expected, "{first} {count} {n}");
                }
                let mut back = [0u64; 8];
                copy_bits(&mut back, &bits, first, count);
                for n in 0..512 {
                    let expected = if n < count { bit(&found, n) } else { 0 };
                    assert_eq!(bit(&back, n), expected, "{first} {count} {n}");
                }
            }
        }
    }
}
