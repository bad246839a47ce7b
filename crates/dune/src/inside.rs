//! What only a kernel can do otherwise, for code in guest mode: page-table entries, dirty bits, the TLB.
//!
//! Everything here runs at ring 3, by loads and stores to the tables and an INT3 that a stub answers;
//! nothing ends the run, but for [`Inside::populate`] and [`Inside::flush_everywhere`]. D bits are cleared
//! by the program itself, never by the monitor: a host that shadows the tables notices only that.
//!
//! A page without an entry counts as dirty, and so does one whose entry was just made: what is not
//! known to be clean is dirty.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::calls::{CALL_HANDLE_FAULTS, CALL_INSIDE, CALL_POPULATE, written};
use crate::faults::{self, FaultHandler};
use crate::harvest;
use crate::paging::{ENTRIES, Flags, HELD, PAGE, TABLE_SPAN, USER_END};
use crate::shootdown::{FlushLocal, Scope};
use crate::space::cpu_tables::{FLUSH, FLUSH_PAGE};
use crate::space::{self};
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
    inside: Inside,
    /// How many entries changed.
    cleared: usize,
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

    /// The entry of the page at `address`, if its table exists; it may be absent.
    #[must_use]
    pub fn entry(self, address: usize) -> Option<Entry> {
        let tables = space::view()?;
        let entry = tables.entry(address as u64)?;
        // SAFETY: tables are never freed while the process lives, and a forked child has its own.
        let entry = unsafe { &*core::ptr::from_ref(entry) };
        Some(Entry { entry, inside: self })
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
        self.add_under_way(&range, bits);
        let mut cleared = 0;
        let (mut address, end) = (range.start as u64, range.end as u64);
        while address < end {
            let stop = ((address & !(TABLE_SPAN - 1)) + TABLE_SPAN).min(end);
            let first = (address as usize - range.start) / PAGE_SIZE;
            cleared += collect_table(address..stop, first, bits);
            address = stop;
        }
        self.add_under_way(&range, bits);
        Ok(FlushOwed { inside: self, cleared })
    }

    /// As [`collect`](Self::collect), but changes nothing.
    ///
    /// # Errors
    /// [`RangeError::Range`], [`RangeError::Bitmap`].
    pub fn peek(self, range: Range<usize>, bits: &mut [u64]) -> Result<(), RangeError> {
        let pages = check(&range)?;
        if bits.len() * 64 < pages {
            return Err(RangeError::Bitmap);
        }
        for page in 0..pages {
            let address = range.start + page * PAGE_SIZE;
            if self.entry(address).is_none_or(|entry| entry.is_dirty()) {
                bits[page / 64] |= 1 << (page % 64);
            }
        }
        self.add_under_way(&range, bits);
        Ok(())
    }

    /// Pages that system calls which are under way may be writing.
    fn add_under_way(self, range: &Range<usize>, bits: &mut [u64]) {
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
        let writable = Flags::PRESENT | Flags::WRITABLE;
        let changed = self.update(range, |entry| {
            Flags::from_bits_truncate(entry)
                .contains(writable)
                .then_some(entry & !Flags::WRITABLE.bits() | HELD)
        });
        Ok(FlushOwed { inside: self, cleared: changed })
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
                .then_some(entry & !HELD | Flags::WRITABLE.bits())
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
        // SAFETY: in guest mode, as the proof says, the stub behind INT3 reloads CR3 and returns.
        unsafe {
            core::arch::asm!("int3", in("rax") u64::from(FLUSH as u32), out("rdx") _);
        }
    }

    /// Flushes the page at `address` from this CPU's TLB.
    pub fn flush_page(self, address: usize) {
        // SAFETY: in guest mode, as the proof says, the stub behind INT3 executes INVLPG and returns.
        unsafe {
            core::arch::asm!("int3", in("rax") u64::from(FLUSH_PAGE as u32), in("rdi") address);
        }
    }

    /// Flushes the TLBs of all CPUs of this process: when it returns, none of them uses an entry as it was
    /// before.
    ///
    /// The others are reached by the host: a page is touched and given back, and the host, which has to
    /// forget it, makes every CPU of the machine flush before it runs on (KVM: the MMU notifier's
    /// `kvm_flush_remote_tlbs`). A host that shadows the tables reads them again at this CPU's own flush,
    /// for all CPUs that share them.
    pub fn flush_everywhere(self) {
        let page = dummy_page();
        // SAFETY: a page of ours that nobody reads.
        unsafe {
            (page as *mut u8).write_volatile(1);
            let _ = sys::advise(page, PAGE_SIZE, libc::MADV_DONTNEED);
        }
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

fn check(range: &Range<usize>) -> Result<usize, RangeError> {
    let whole = range.start % PAGE_SIZE == 0 && range.end % PAGE_SIZE == 0;
    if !whole || range.start > range.end || range.end as u64 > USER_END {
        return Err(RangeError::Range);
    }
    Ok((range.end - range.start) / PAGE_SIZE)
}

/// Collects pages that one table maps; `first` is the bit of the first of them.
fn collect_table(pages: Range<u64>, first: usize, bits: &mut [u64]) -> usize {
    let count = ((pages.end - pages.start) / PAGE) as usize;
    let mut found = [0u64; ENTRIES / 64];
    let mut cleared = 0;
    let mut there = false;
    if let Some(tables) = space::view() {
        tables.for_each_table(pages.start..pages.end, |table, slots| {
            there = true;
            let entries = table.entries(slots);
            // First those without an entry: one that appears after is dirty, and stays so.
            for (index, entry) in entries.iter().enumerate() {
                if entry.load(Ordering::Relaxed) & Flags::PRESENT.bits() == 0 {
                    found[index / 64] |= 1 << (index % 64);
                }
            }
            cleared = harvest::harvest(entries, &mut found).cleared;
        });
    }
    if !there {
        found = [!0; ENTRIES / 64];
    }
    for index in 0..count {
        if found[index / 64] >> (index % 64) & 1 != 0 {
            bits[(first + index) / 64] |= 1 << ((first + index) % 64);
        }
    }
    cleared
}

impl Entry {
    /// The entry's bits as they are.
    #[must_use]
    pub fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.entry.load(Ordering::Relaxed))
    }

    /// Whether it is absent or dirty.
    #[must_use]
    pub fn is_dirty(self) -> bool {
        !self.flags().contains(Flags::PRESENT) || self.flags().contains(Flags::DIRTY)
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
        let before = self.entry.fetch_and(!flag.bits(), Ordering::AcqRel);
        FlushOwed { inside: self.inside, cleared: usize::from(before & flag.bits() != 0) }
    }
}

impl FlushOwed {
    /// How many entries changed.
    #[must_use]
    pub fn cleared(&self) -> usize {
        self.cleared
    }

    /// Flushes the TLBs of all CPUs, if an entry has changed.
    pub fn flush_everywhere(self) {
        if self.cleared > 0 {
            self.inside.flush_everywhere();
        }
    }

    /// Flushes this CPU's TLB only, if an entry has changed.
    ///
    /// Right if no other thread of the process has written to the pages since it last flushed, nor will
    /// before it flushes: threads that are stopped, and flush as they go on.
    pub fn flush_here(self) {
        if self.cleared > 0 {
            self.inside.flush();
        }
    }

    /// The caller flushes in its own way, later: several collections may be paid by one flush.
    ///
    /// Until it has, writes to the pages may be missed.
    pub fn defer(self) {}
}
