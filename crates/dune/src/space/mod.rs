//! The guest's address space: this process' own, through page tables of the monitor's.
//!
//! The tables are a **cache of the kernel's mappings**: empty at first, filled by faults (a table of
//! the lowest level at a time), and emptied where a system call takes rights away. The kernel checks
//! every access again when it finds the page for the virtual machine, so an entry that outlived its
//! mapping gives nobody a right: it costs an exit ([`Space::recover`]).
//!
//! Guest-virtual addresses are the process' addresses; guest-physical ones are given in windows of
//! 1 GiB as they are needed, because 47 bits do not fit every processor's physical width.

pub(crate) mod arena;
pub(crate) mod cpu_tables;
pub(crate) mod private;
mod streams;
pub(crate) mod vmas;

use core::ops::Range;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::calls::program_break::Break;
use crate::host::{self, AnyVm, HostError, Vm as _};
use crate::paging::{
    FillError, Flags, Link, PAGE, Rights, TABLE_SPAN, TableMemory, Tables, USER_END,
};
use crate::ring;
use crate::sys::lock::Lock;
use crate::sys::{self, Errno, PAGE_SIZE};
use streams::{Sign, Streams};
use vmas::{Vma, Vmas};

/// Bytes of a window.
const WINDOW: u64 = 1 << 30;
/// The first window's guest-physical address: above what old devices have.
const FIRST_WINDOW: u64 = 4;
/// At entering and for new mappings so much of each mapping gets entries at once.
const EAGER_BYTES: u64 = 16 << 20;
/// New private memory of at most so many bytes gets its pages at once, where [`Space::make_pages`] does it; of more, as
/// the program comes to them ([`streams`]).
const SMALL_BYTES: u64 = 256 << 10;
/// After a page was missing where the tables had one, so many faults are looked at closely.
const CAREFUL_FAULTS: u32 = 4096;

/// What a page fault comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is an entry now: run on.
    Mapped,
    /// The program has protected the page itself.
    Held,
    /// There was a large page, or shall be one: once the guest has made this store, the page can get an entry, if it has
    /// none.
    Link(Link),
    /// The program has no such right: SIGSEGV, with this `si_code`.
    Segv(i32),
    /// There is a mapping and no page: SIGBUS.
    Bus,
}

/// What a write to new memory comes to.
enum Ahead {
    /// These pages get entries.
    Entries(Range<u64>),
    /// They have one large entry.
    Large,
    /// They have once the guest has made this store.
    Link(Link),
}

const NO_TABLE: HostError = HostError { step: "making a page table", errno: Errno(libc::ENOMEM) };
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;

/// The machine of this process, and its tables. Guarded by [`SPACE`].
pub(crate) struct Space {
    pub(crate) vm: Option<AnyVm>,
    tables: Option<Tables<ArenaTables>>,
    vmas: Vmas,
    windows: u64,
    careful: u32,
    /// Whether somebody else may want to make the program's pages.
    leave_pages: bool,
    streams: Streams,
    pub(crate) program_break: Break,
}

/// The one of this process.
pub(crate) static SPACE: Lock<Space> = Lock::new(Space {
    vm: None,
    tables: None,
    vmas: Vmas::NONE,
    windows: 0,
    careful: 0,
    leave_pages: false,
    streams: Streams::NONE,
    program_break: Break::UNKNOWN,
});

/// The top table and the offset of table addresses, for who looks without the lock: tables are never
/// unlinked.
static ROOT: AtomicU64 = AtomicU64::new(0);
static GPA_OFFSET: AtomicU64 = AtomicU64::new(0);

/// The tables of this process to look at, and to change bits of entries in; `None` before there are any.
pub(crate) fn view() -> Option<Tables<ArenaTables>> {
    let root = ROOT.load(Ordering::Acquire);
    let gpa_offset = GPA_OFFSET.load(Ordering::Relaxed);
    // As many as there can be: this one makes none.
    let all = arena::TABLES.len;
    let memory = ArenaTables { used: all, committed: all, gpa_offset, ..ArenaTables::NONE };
    (root != 0).then(|| Tables::view(memory, root))
}

/// Windows that 47 bits have.
const WINDOWS: u64 = USER_END / WINDOW;

// Both tables of windows: two bytes for each one of the address space, four for each that is in use.
const _: () = assert!(WINDOWS * 2 + (u16::MAX as u64 + 1) * 4 <= arena::WINDOWS.len as u64);

/// The number of the window that `hva`, below 2^47, is in; 0: it has none yet.
fn window_number(hva: u64) -> &'static AtomicU16 {
    // SAFETY: the part is mapped, and has one for each window of 47 bits.
    unsafe { &*(arena::WINDOWS.start() as *const AtomicU16).add((hva / WINDOW) as usize) }
}

/// Which window of the address space has this number.
fn window_starts(number: u64) -> &'static AtomicU32 {
    let all = arena::WINDOWS.start() + WINDOWS as usize * 2;
    // SAFETY: the part is mapped, and has one for each number of 16 bits.
    unsafe { &*(all as *const AtomicU32).add(usize::from(number as u16)) }
}

/// The guest-physical address of `hva`, if it is in a window.
fn gpa_of(hva: u64) -> Option<u64> {
    let number = u64::from(window_number(hva).load(Ordering::Acquire));
    (number != 0).then(|| (FIRST_WINDOW + number - 1) * WINDOW + hva % WINDOW)
}

/// The address that has guest-physical address `gpa`, if that is in a window.
pub(crate) fn address_of(gpa: u64) -> Option<u64> {
    let number = (gpa / WINDOW).checked_sub(FIRST_WINDOW)? + 1;
    let start = u64::from(window_starts(number).load(Ordering::Acquire)) * WINDOW;
    (number <= u64::from(u16::MAX) && gpa_of(start) == Some(gpa & !(WINDOW - 1)))
        .then(|| start + gpa % WINDOW)
}

/// Tables from [`arena::TABLES`].
#[derive(Debug)]
pub(crate) struct ArenaTables {
    used: usize,
    committed: usize,
    /// What to add to an address of the arena for its guest-physical one.
    gpa_offset: u64,
    /// How many tables were given out.
    given: usize,
    /// The first of the tables that can be given out again: its first word has the next one. 0: none.
    free: u64,
    /// So for those that somebody who takes no lock may still be looking at.
    waiting: u64,
}

impl ArenaTables {
    const NONE: Self = Self { used: 0, committed: 0, gpa_offset: 0, given: 0, free: 0, waiting: 0 };

    /// The first word of a table that is free: no entry, as its lowest bit is not set.
    fn next(&self, gpa: u64) -> &AtomicU64 {
        // SAFETY: an aligned word of a table that was given out once.
        unsafe { &*self.at(gpa).cast() }
    }

    /// A table that was free.
    fn again(&mut self) -> Option<u64> {
        if self.free == 0 && self.waiting != 0 && private::nobody_looks() {
            (self.free, self.waiting) = (self.waiting, 0);
        }
        let table = (self.free != 0).then_some(self.free)?;
        self.free = self.next(table).swap(0, Ordering::Relaxed);
        Some(table)
    }
}

// SAFETY: the part is used only for tables, which are zero at first, never unmapped, and given out once each, or again
// when nobody uses them or looks at them.
unsafe impl TableMemory for ArenaTables {
    fn alloc(&mut self, count: usize) -> Option<u64> {
        const STEP: usize = 256 * 1024;
        self.given += count;
        if let Some(table) = (count == 1).then(|| self.again()).flatten() {
            return Some(table);
        }
        if self.used + count * PAGE_SIZE > self.committed {
            if self.committed >= arena::TABLES.len {
                return None;
            }
            let start = arena::TABLES.start() + self.committed;
            sys::protect(start, STEP, libc::PROT_READ | libc::PROT_WRITE).ok()?;
            self.committed += STEP;
        }
        let table = arena::TABLES.start() + self.used;
        self.used += count * PAGE_SIZE;
        Some((table as u64).wrapping_add(self.gpa_offset))
    }

    fn free(&mut self, gpa: u64) {
        self.next(gpa).store(self.waiting, Ordering::Relaxed);
        self.waiting = gpa;
    }

    fn at(&self, gpa: u64) -> *const crate::paging::Table {
        gpa.wrapping_sub(self.gpa_offset) as *const _
    }
}

impl Space {
    /// Makes a machine for this process: at entering, and again in each forked child.
    pub(crate) fn build(&mut self) -> Result<(), HostError> {
        self.vm = Some(host::open()?);
        self.vmas = Vmas::open()?;
        self.windows = 0;
        self.careful = 0;
        self.streams = Streams::NONE;
        let base = arena::base() as u64;
        let gpa_offset = self.window(base)?.wrapping_sub(base);
        let committed = self.tables.as_mut().map_or(0, |tables| tables.memory().committed);
        self.tables = Tables::new(ArenaTables { committed, gpa_offset, ..ArenaTables::NONE });
        let root = self.tables()?.root();
        GPA_OFFSET.store(gpa_offset, Ordering::Relaxed);
        ROOT.store(root, Ordering::Release);
        cpu_tables::write_shared();
        let supervisor = Flags::PRESENT | Flags::ACCESSED | Flags::DIRTY | Flags::WRITABLE;
        let stubs = Rights { write: false, execute: true }.flags();
        let shared = arena::SHARED.start() as u64;
        // The CPU only reads it. At ring 0 a store that goes astray faults there so, as at ring 3.
        let descriptors = if ring::is_zero() { supervisor - Flags::WRITABLE } else { supervisor };
        self.fill(shared..shared + PAGE, descriptors)?;
        self.fill(shared + PAGE..shared + 2 * PAGE, stubs)?;
        Ok(())
    }

    /// In a forked child: lets go of the parent's machine.
    pub(crate) fn abandon(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.abandon();
        }
        self.vmas.abandon();
    }

    /// Whether the monitor needs this descriptor.
    pub(crate) fn owns(&self, fd: i32) -> bool {
        self.vmas.owns(fd) || self.vm.as_ref().is_some_and(|vm| vm.owns(fd))
    }

    /// What CR3 holds.
    pub(crate) fn root(&self) -> u64 {
        self.tables.as_ref().map_or(0, Tables::root)
    }

    /// Writes and maps the descriptors of CPU `cpu`.
    pub(crate) fn prepare_cpu(&mut self, cpu: usize) -> Result<(), HostError> {
        cpu_tables::write_cpu(cpu);
        let supervisor = Flags::PRESENT | Flags::ACCESSED | Flags::DIRTY | Flags::WRITABLE;
        let user = Rights { write: true, execute: false }.flags();
        let area = cpu_tables::gdt(cpu) as u64;
        self.fill(area..area + PAGE, supervisor)?;
        self.fill(area + PAGE..area + arena::CPU_LEN as u64, user)
    }

    /// The guest-physical address of `hva`, whose window is made if it is the first use.
    fn window(&mut self, hva: u64) -> Result<u64, HostError> {
        let slot = window_number(hva);
        let mut number = u64::from(slot.load(Ordering::Acquire));
        if number == 0 {
            number = self.windows + 1;
            let gpa = (FIRST_WINDOW + self.windows) * WINDOW;
            let no_vm = HostError { step: "mapping a window", errno: Errno(libc::ENODEV) };
            let vm = self.vm.as_mut().ok_or(no_vm)?;
            let start = hva & !(WINDOW - 1);
            // The last page of user space cannot be mapped (TASK_SIZE_MAX), nor be in a window.
            let len = WINDOW.min(USER_END - PAGE - start);
            vm.map_window(gpa, start as usize, len as usize)?;
            self.windows += 1;
            window_starts(number).store((start / WINDOW) as u32, Ordering::Relaxed);
            slot.store(number as u16, Ordering::Release);
        }
        Ok((FIRST_WINDOW + number - 1) * WINDOW + hva % WINDOW)
    }

    /// Has the pages of `range` logged again as they are written to; when it returns, whatever was written before, anywhere,
    /// is in the log.
    pub(crate) fn forget_log(&mut self, range: Range<u64>) -> Result<(), HostError> {
        let no_vm = HostError { step: "forgetting written pages", errno: Errno(libc::ENODEV) };
        let vm = self.vm.as_mut().ok_or(no_vm)?;
        if range.is_empty() {
            return vm.forget_log(0, 0);
        }
        let mut start = range.start;
        while start < range.end {
            let end = ((start & !(WINDOW - 1)) + WINDOW).min(range.end);
            // Without a window nobody has written there, by the tables at least.
            if let Some(gpa) = gpa_of(start) {
                vm.forget_log(gpa, end - start)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Gives the pages of `range` entries with `flags`; not where a large page was, whose faults will tell.
    fn fill(&mut self, range: Range<u64>, flags: Flags) -> Result<(), HostError> {
        let mut start = range.start & !(PAGE - 1);
        while start < range.end {
            let end = ((start & !(TABLE_SPAN - 1)) + TABLE_SPAN).min(range.end);
            let gpa = self.window(start)?;
            match self.tables()?.fill(start..end, gpa, flags) {
                Ok(()) | Err(FillError::WasLarge) => {}
                Err(FillError::Memory) => return Err(NO_TABLE),
            }
            start = end;
        }
        Ok(())
    }

    fn tables(&mut self) -> Result<&mut Tables<ArenaTables>, HostError> {
        self.tables.as_mut().ok_or(NO_TABLE)
    }

    /// What the guest must store before pages of `range` that are, or were, in a large page can have entries of their
    /// own, one after the other until there is none; the range then begins with the one that it is about.
    pub(crate) fn link(&mut self, range: &mut Range<u64>) -> Result<Option<Link>, HostError> {
        let tables = self.tables()?;
        let Some(gva) = tables.first_large(range.clone()) else { return Ok(None) };
        range.start = gva;
        match tables.prepare_link(gva).map_err(|_| NO_TABLE)? {
            Some(link) => self.ready(link).map(Some),
            None => Ok(None),
        }
    }

    /// The store, which will not fault.
    fn ready(&mut self, link: Link) -> Result<Link, HostError> {
        let entry = link.entry as u64;
        self.fill(entry..entry + 8, Rights { write: true, execute: false }.flags())?;
        Ok(link)
    }

    /// As [`Self::link`], if `page` has no entry for want of it.
    fn link_of(&mut self, page: u64) -> Result<Option<Link>, HostError> {
        if self.tables()?.may_be_large(page) {
            self.link(&mut (page..page + PAGE))
        } else {
            Ok(None)
        }
    }

    /// Gives the pages of the table at `start`, private memory, one large entry; or tells by which store the guest does.
    fn fill_large(&mut self, start: u64, flags: Flags) -> Result<Option<Link>, HostError> {
        let gpa = self.window(start)?;
        let tables = self.tables()?;
        if let Some(link) = tables.prepare_large(start, gpa, flags) {
            return self.ready(link).map(Some);
        }
        tables.fill_large(start, gpa, flags).map_err(|_| NO_TABLE)?;
        Ok(None)
    }

    /// Gives the pages of the table at `block` one large entry, if they may have one and the host has a huge page; or
    /// tells by which store the guest does.
    pub(crate) fn make_large(&mut self, block: u64) -> Result<Option<Link>, HostError> {
        let vma = self.vmas.at(block).filter(|vma| vma.end >= block + TABLE_SPAN);
        let plain = |vma: &Vma| vma.writable() && !vma.executable() && !vma.may_end();
        let Some(vma) = vma.filter(plain) else { return Ok(None) };
        if !self.may_be_large(block) || collapse(block).is_err() {
            return Ok(None);
        }
        self.fill_large(block, rights(vma).flags())
    }

    /// Whether all of `range` is in large pages.
    pub(crate) fn is_large(&self, range: Range<u64>) -> bool {
        let is_large = |page| self.tables.as_ref().is_some_and(|tables| tables.is_large(page));
        let first = range.start & !(TABLE_SPAN - 1);
        (first..range.end).step_by(TABLE_SPAN as usize).all(is_large)
    }

    /// Makes the pages of `range` zero, if they are private memory that the program may write to.
    pub(crate) fn wipe(&mut self, range: Range<u64>) -> bool {
        let vma = self.vmas.at(range.start).filter(|vma| vma.end >= range.end);
        if range.is_empty() || vma.is_some_and(|vma| vma.writable() && !vma.may_end()) {
            let len = range.end.saturating_sub(range.start) as usize;
            // SAFETY: the program has given the pages up; they are mapped to write, under the lock that whoever
            // changes that takes.
            unsafe { core::ptr::write_bytes(range.start as *mut u8, 0, len) };
            if let Some(tables) = &self.tables {
                tables.mark_dirty(range);
            }
            return true;
        }
        false
    }

    /// Mappings have changed.
    pub(crate) fn forget(&mut self) {
        self.vmas.forget();
    }

    /// Whether the pages of the table at `start` may get one large entry.
    fn may_be_large(&self, start: u64) -> bool {
        self.tables.as_ref().is_some_and(|tables| {
            tables.may_be_large(start) || tables.prepare_large(start, 0, Flags::empty()).is_some()
        })
    }

    /// As [`Self::populate`], with one entry for each 2 MiB of private memory to write to whose pages have none of
    /// their own yet; `count` counts them. If the guest has to make a store for one, it is that, and then it goes on.
    pub(crate) fn populate_large(
        &mut self,
        range: Range<u64>,
        count: &mut u64,
    ) -> Result<Option<Link>, HostError> {
        let mut address = range.start;
        while let Some(vma) = self.vmas.from(address) {
            if vma.start >= range.end.min(USER_END) {
                break;
            }
            address = vma.end;
            let plain = vma.readable() && vma.writable() && !vma.executable() && !vma.may_end();
            if !plain || arena::contains(vma.start as usize) {
                continue;
            }
            let end = vma.end.min(range.end);
            let mut start = vma.start.max(range.start).next_multiple_of(TABLE_SPAN);
            while start + TABLE_SPAN <= end {
                if self.may_be_large(start) {
                    if !self.leave_pages {
                        let _ = collapse(start);
                    }
                    *count += 1;
                    if let Some(link) = self.fill_large(start, rights(vma).flags())? {
                        return Ok(Some(link));
                    }
                }
                start += TABLE_SPAN;
            }
        }
        self.populate(range)?;
        Ok(None)
    }

    /// Gives everything that is mapped entries, big mappings in part: so that a program starts
    /// without a fault for each library.
    pub(crate) fn fill_eagerly(&mut self) -> Result<(), HostError> {
        let mut address = 0;
        while let Some(vma) = self.vmas.from(address) {
            address = vma.end;
            if vma.end > USER_END || arena::contains(vma.start as usize) || !vma.readable() {
                continue;
            }
            self.fill(vma.start..vma.end.min(vma.start + EAGER_BYTES), rights(vma).flags())?;
        }
        Ok(())
    }

    /// A new mapping of the program's, with these rights: entries for its beginning.
    pub(crate) fn mapped(&mut self, start: u64, len: u64, prot: i32) -> Result<(), HostError> {
        self.vmas.forget();
        if prot & libc::PROT_READ == 0 || self.careful > 0 {
            return Ok(());
        }
        let rights =
            Rights { write: prot & libc::PROT_WRITE != 0, execute: prot & libc::PROT_EXEC != 0 };
        self.fill(start..start + len.min(EAGER_BYTES / 8), rights.flags())
    }

    /// As [`Self::mapped`], for new private memory to write to, that nobody else knows yet: if it is small, its pages
    /// are made at once; if not, as the program comes to them.
    pub(crate) fn mapped_to_write(
        &mut self,
        start: u64,
        len: u64,
        prot: i32,
    ) -> Result<(), HostError> {
        if len <= SMALL_BYTES {
            self.mapped(start, len, prot)?;
            self.make_pages(start..start + len);
            return Ok(());
        }
        let end = start + len;
        let stream = if self.makes_pages() { self.streams.begin(start, end) } else { None };
        let first = stream.unwrap_or(start..end);
        self.mapped(first.start, first.end - first.start, prot)
    }

    /// Whether pages are made for the program.
    ///
    /// Only where page tables are shadowed. There the first touch of a page is an event of the host's, and
    /// where the page exists already the host takes its neighbours along (KVM: `pte_prefetch`, eight at once): a
    /// page then costs a quarter or less of what it costs otherwise.
    pub(crate) fn makes_pages(&self) -> bool {
        !self.leave_pages && crate::process::run::is_paravirtual()
    }

    /// Makes the pages of `range`, private memory that the program may write to.
    fn make_pages(&self, range: Range<u64>) {
        const MADV_POPULATE_WRITE: i32 = 23;
        if self.makes_pages() {
            let (start, len) = (range.start as usize, (range.end - range.start) as usize);
            // SAFETY: new pages are zero, whether they are made now or at the first touch. If there is no memory, or
            // Linux is older than 5.14, the touch will do.
            let _ = unsafe { sys::advise(start, len, MADV_POPULATE_WRITE) };
        }
    }

    /// `page` of `vma`, private memory, is written to: what gets entries. `table`: the part of the mapping that one table
    /// has.
    fn ahead(&mut self, page: u64, vma: Vma, table: Range<u64>) -> Result<Ahead, HostError> {
        let holds = |sign: Sign| match sign {
            Sign::There(range) => resident(range).is_some_and(|(some, all)| some && all),
            Sign::NotZero(page) => is_not_zero(page),
        };
        let large = page % TABLE_SPAN == 0 && !vma.executable() && self.may_be_large(page);
        if let Some(chunk) = self.streams.advance(page, vma.end, holds, |_| large) {
            if chunk.large && collapse(page).is_ok() {
                let link = self.fill_large(page, rights(vma).flags())?;
                return Ok(link.map_or(Ahead::Large, Ahead::Link));
            }
            self.make_pages(chunk.made);
            return Ok(Ahead::Entries(chunk.entries));
        }
        Ok(Ahead::Entries(match resident(table.clone()) {
            // New memory.
            Some((false, _)) => self.streams.begin(page, vma.end).unwrap_or(table),
            _ => table,
        }))
    }

    /// The program has a descriptor by which it makes pages itself: nobody else shall, from now on. Asking for one
    /// here would wait for a thread that may wait for this one.
    pub(crate) fn leave_pages(&mut self) {
        self.leave_pages = true;
    }

    /// Gives everything in `range` that is mapped entries, whole mappings whatever their size.
    pub(crate) fn populate(&mut self, range: Range<u64>) -> Result<(), HostError> {
        let mut address = range.start;
        while let Some(vma) = self.vmas.from(address) {
            if vma.start >= range.end.min(USER_END) {
                break;
            }
            address = vma.end;
            if vma.readable() && !arena::contains(vma.start as usize) {
                let part = vma.start.max(range.start)..vma.end.min(range.end);
                self.fill(part, rights(vma).flags())?;
            }
        }
        Ok(())
    }

    /// The program is about to lose rights to `range`, or its pages: their entries go.
    pub(crate) fn zap(&mut self, range: Range<u64>) {
        self.vmas.forget();
        self.streams.forget(&range);
        let (arena, end) = (arena::range(), range.end.min(USER_END));
        if let Some(tables) = &self.tables {
            // Never the monitor's own.
            let (low, high) = (arena.start as u64, arena.end as u64);
            for part in [range.start..end.min(low), range.start.max(high)..end] {
                if part.start < part.end {
                    tables.zap(part.clone());
                    // After the main ones: `private` says why.
                    private::zap(tables, part);
                }
            }
        }
    }

    /// A page fault at `address`.
    pub(crate) fn fault(
        &mut self,
        address: u64,
        write: bool,
        execute: bool,
    ) -> Result<Fault, HostError> {
        if address >= USER_END {
            return Ok(Fault::Segv(SEGV_MAPERR));
        }
        // What the CPU itself uses keeps the entries that it has. Tables and records of threads are read
        // by code in guest mode (`inside`), as any memory.
        let fixed = [arena::SHARED, arena::CPUS];
        if fixed.iter().any(|part| part.contains(address as usize)) {
            return Ok(Fault::Segv(SEGV_ACCERR));
        }
        if self.program_break.between().contains(&address) {
            return Ok(Fault::Segv(SEGV_MAPERR));
        }
        let used_later = [arena::TABLES, arena::STACKS];
        if used_later.iter().any(|part| part.contains(address as usize)) {
            // These get their rights as they are used (`ArenaTables`, `Thread`), which no list that was read before tells.
            self.vmas.forget();
        }
        let mut found = self.vmas.at(address);
        if found.is_none() && sys::readable(address as usize) {
            // A stack has grown.
            found = self.vmas.at(address);
        }
        let Some(vma) = found else { return Ok(Fault::Segv(SEGV_MAPERR)) };
        let allowed = if execute {
            vma.executable()
        } else if write {
            vma.writable()
        } else {
            vma.readable()
        };
        if !allowed {
            return Ok(Fault::Segv(SEGV_ACCERR));
        }
        if write && crate::faults::is_held(address) {
            return Ok(Fault::Held);
        }
        let page = address & !(PAGE - 1);
        let mut range = page..page + PAGE;
        if self.careful > 0 {
            self.careful -= 1;
            if !there(page as usize, write && vma.may_end()) {
                return Ok(if vma.may_end() { Fault::Bus } else { Fault::Segv(SEGV_MAPERR) });
            }
        } else {
            let table = address & !(TABLE_SPAN - 1);
            range = vma.start.max(table)..vma.end.min(table + TABLE_SPAN);
            if write && !vma.may_end() && self.makes_pages() {
                match self.ahead(page, vma, range)? {
                    Ahead::Entries(entries) => range = entries,
                    Ahead::Large => return Ok(Fault::Mapped),
                    Ahead::Link(link) => return Ok(Fault::Link(link)),
                }
            }
        }
        if let Some(link) = self.link_of(page)? {
            return Ok(Fault::Link(link));
        }
        self.fill(range, rights(vma).flags())?;
        Ok(Fault::Mapped)
    }

    /// The host has no page where the tables say there is one, and has not said where: all entries
    /// go, so that the instruction faults in the guest, which tells the address.
    pub(crate) fn recover(&mut self) {
        self.careful = CAREFUL_FAULTS;
        self.zap(0..USER_END);
    }
}

fn rights(vma: Vma) -> Rights {
    Rights { write: vma.writable(), execute: vma.executable() }
}

/// Whether some pages of `range`, which is not more than one table's, are there, and whether all are; `None` if not all
/// of it is mapped.
fn resident(range: Range<u64>) -> Option<(bool, bool)> {
    let mut pages = [0u8; (TABLE_SPAN / PAGE) as usize];
    let (start, len) = (range.start, range.end - range.start);
    let pages = &mut pages[..(len / PAGE) as usize];
    let vector = pages.as_mut_ptr() as u64;
    // SAFETY: a byte for each page of the range.
    unsafe { sys::call(libc::SYS_mincore, [start, len, vector, 0, 0, 0]) }.ok()?;
    let there = pages.iter().filter(|page| **page & 1 != 0).count();
    Some((there > 0, there == pages.len()))
}

/// Makes the pages of the table at `start`, private memory, as one huge page of the host's if it has one.
fn collapse(start: u64) -> Result<(), Errno> {
    const MADV_COLLAPSE: i32 = 25;
    // It takes nothing where nothing is.
    there(start as usize, true);
    // SAFETY: the content stays what it is.
    unsafe { sys::advise(start as usize, TABLE_SPAN as usize, MADV_COLLAPSE) }
}

/// Whether some byte of `page`, private memory of the program that is mapped to read, is not zero.
fn is_not_zero(page: u64) -> bool {
    let words = (page..page + PAGE).step_by(8);
    // SAFETY: it is mapped, under the lock that whoever unmaps takes; another thread may write to it meanwhile.
    words
        .into_iter()
        .any(|word| unsafe { &*(word as *const AtomicU64) }.load(Ordering::Relaxed) != 0)
}

/// Whether there is a page, as the kernel sees it.
fn there(page: usize, write: bool) -> bool {
    if write {
        const MADV_POPULATE_WRITE: i32 = 23;
        // SAFETY: as the program is about to do: the page is made, and its content left alone.
        match unsafe { sys::advise(page, PAGE_SIZE, MADV_POPULATE_WRITE) } {
            // Linux before 5.14 does not know it.
            Err(Errno(libc::EINVAL)) => {}
            result => return result.is_ok(),
        }
    }
    sys::readable(page)
}

/// Makes the arena and the machine.
pub(crate) fn build() -> Result<(), HostError> {
    arena::reserve()?;
    SPACE.lock().build()
}
