//! The private address spaces of this process: which there are, what each hides, who is in them.
//!
//! A space is a cache as the main tables are ([`crate::paging::private`]): emptied with them ([`zap`]), filled by
//! faults ([`Space::fault_in`]). A forked child keeps the spaces and their limits, and none of their tables.
//!
//! # No write is missed
//!
//! Leaf entries of a space's own have dirty bits of their own. Whoever collects those of the main space collects these
//! **before** ([`for_each_own_leaf`]), and whatever removes them does so **after** the main ones, or after it has made
//! the main ones dirty ([`Space::drain`]). So a page whose own entry is gone by the time it is looked at is
//! dirty, or has no entry, in the main tables, which are looked at later.
//!
//! # Tables are used again
//!
//! The main tables never are. Those of a space are, once nobody is in it:
//!
//! 1. what is dirty in them is made so in the main tables;
//! 2. the space's top table is forgotten: no walk begins there any more;
//! 3. the *guest* makes them zero, table by table: a host that shadows tables notices nothing else, and would
//!    use its shadow of a table's earlier life;
//! 4. whoever looks at own leaves without the lock counts in [`LOOKING`]; while it is not zero, tables that were given
//!    back wait.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::{Fault, SEGV_ACCERR, SEGV_MAPERR, Space, arena};
use crate::host::HostError;
use crate::paging::limits::{Limit, Limits};
use crate::paging::private::{self as own, Reach, is_unclean, permits, remove};
use crate::paging::{
    FillError, Flags, PAGE, Rights, TABLE_SPAN, TableMemory as _, Tables, USER_END,
};

/// Private spaces that a process can have at a time.
pub(crate) const MAX_SPACES: usize = 256;
/// The id of the main space.
pub(crate) const MAIN: u32 = 0;

const FREE: u32 = 0;
const LIVE: u32 = 1;
/// Nobody can enter it any more; it goes when the last has left.
const GIVEN_UP: u32 = 2;

/// A space; guarded by the lock of [`super::SPACE`], but for what is atomic.
struct Record {
    state: AtomicU32,
    /// Counts the spaces that the record has been, for [`id`].
    generation: AtomicU32,
    /// Threads that are in it, or in a signal handler that was called in it.
    users: AtomicU32,
    /// The top table; 0: there are no tables.
    root: AtomicU64,
    limits: UnsafeCell<Limits>,
}

// SAFETY: the cell is reached only with the lock held.
unsafe impl Sync for Record {}

/// All; a record is used again.
static RECORDS: [Record; MAX_SPACES] = [const {
    Record {
        state: AtomicU32::new(FREE),
        generation: AtomicU32::new(0),
        users: AtomicU32::new(0),
        root: AtomicU64::new(0),
        limits: UnsafeCell::new(Limits::NONE),
    }
}; MAX_SPACES];

/// Records that were ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Tables that private spaces have.
static TABLES: AtomicUsize = AtomicUsize::new(0);
/// Those who look at tables of private spaces without the lock.
static LOOKING: AtomicUsize = AtomicUsize::new(0);
/// Users of all spaces.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// Why something cannot be done with a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such space.
    Unknown,
    /// Somebody is in it.
    Occupied,
    /// There are as many as there can be: of spaces, or of limits in one.
    Full,
    /// There is no memory for tables.
    Memory,
    /// The range is not all of the program's.
    Reserved,
}

impl Refusal {
    /// What a system call returns.
    pub(crate) fn code(self) -> i64 {
        -i64::from(match self {
            Self::Unknown => libc::ESRCH,
            Self::Occupied => libc::EBUSY,
            Self::Full => libc::ENOSPC,
            Self::Memory => libc::ENOMEM,
            Self::Reserved => libc::EPERM,
        })
    }
}

/// How many tables private spaces have; those that wait to be used again are not counted.
pub(crate) fn tables_in_use() -> usize {
    TABLES.load(Ordering::Relaxed)
}

/// Whether any thread of the process is in a private space.
pub(crate) fn occupied() -> bool {
    fence(Ordering::SeqCst);
    USERS.load(Ordering::SeqCst) > 0
}

fn id(index: usize) -> u32 {
    let generation = RECORDS[index].generation.load(Ordering::Relaxed);
    (generation << 16) | (index as u32 + 1)
}

/// The record of a space that was not freed.
fn record(id: u32) -> Option<&'static Record> {
    let index = (id as u16 as usize).checked_sub(1)?;
    let record = RECORDS.get(index)?;
    let same = self::id(index) == id && record.state.load(Ordering::Relaxed) != FREE;
    same.then_some(record)
}

/// The records that were ever used.
fn used() -> &'static [Record] {
    &RECORDS[..USED.load(Ordering::Acquire)]
}

/// Those that have tables.
fn roots() -> impl Iterator<Item = u64> {
    used().iter().map(|r| r.root.load(Ordering::SeqCst)).filter(|root| *root != 0)
}

/// Somebody looks at tables of private spaces without the lock.
pub(crate) struct Looking(());

impl Looking {
    fn begin() -> Self {
        LOOKING.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        // In a child that was forked meanwhile by a signal handler the count began anew.
        let less = |count: usize| count.checked_sub(1);
        let _ = LOOKING.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
    }
}

/// Calls `f` with all leaf entries for `range` that are some private space's own, and the number of the first page of
/// each part in `range`. For code in guest mode too: it takes no lock.
pub(crate) fn for_each_own_leaf(range: &Range<usize>, mut f: impl FnMut(usize, &[AtomicU64])) {
    fence(Ordering::SeqCst);
    if TABLES.load(Ordering::SeqCst) == 0 {
        return;
    }
    let Some(tables) = super::view() else { return };
    let _looking = Looking::begin();
    for root in roots() {
        tables.for_each_own_leaf(root, range.start as u64..range.end as u64, |gva, entries| {
            let first = (gva as usize).saturating_sub(range.start) / PAGE as usize;
            f(first, entries);
        });
    }
}

/// Makes the own entries for `range` clean, for code in guest mode: calls `f` with the number in `range` of each page that
/// was dirty and that `among` wants. How many entries there were; their flush is owed.
pub(crate) fn collect(
    range: &Range<usize>,
    among: impl Fn(usize) -> bool,
    mut f: impl FnMut(usize),
) -> usize {
    let mut count = 0;
    for_each_own_leaf(range, |first, entries| {
        for (index, entry) in entries.iter().enumerate() {
            if is_unclean(entry.load(Ordering::Relaxed)) && among(first + index) {
                // Whatever becomes of it meanwhile, it was dirty.
                f(first + index);
                count += usize::from(own::collect(entry));
            }
        }
    });
    count
}

/// Calls `f` with the number in `range` of each page of which some space's own entry is dirty.
pub(crate) fn peek(range: &Range<usize>, mut f: impl FnMut(usize)) {
    for_each_own_leaf(range, |first, entries| {
        for (index, entry) in entries.iter().enumerate() {
            if is_unclean(entry.load(Ordering::Relaxed)) {
                f(first + index);
            }
        }
    });
}

/// Takes the own entries for `range` that can be written to from all private spaces, for code in guest mode: the next use
/// faults. Their pages are made dirty in the main tables first. How many there were; their flush is owed.
pub(crate) fn withdraw(range: &Range<usize>) -> usize {
    let mut taken = 0;
    let tables = super::view();
    for_each_own_leaf(range, |first, entries| {
        for (index, entry) in entries.iter().enumerate() {
            let page = range.start as u64 + (first + index) as u64 * PAGE;
            let value = entry.load(Ordering::Relaxed);
            if value & Flags::WRITABLE.bits() != 0 || is_unclean(value) {
                if let Some(tables) = &tables {
                    tables.mark_dirty(page..page + PAGE);
                }
                entry.store(0, Ordering::SeqCst);
                taken += 1;
            }
        }
    });
    taken
}

/// The main space has lost the entries for `range`: so do the private ones.
pub(super) fn zap(tables: &Tables<super::ArenaTables>, range: Range<u64>) {
    for root in roots() {
        tables.for_each_own_leaf(root, range.clone(), |_, entries| {
            entries.iter().for_each(remove);
        });
    }
}

/// In a forked child: no space has tables, and who is in one is the only thread, which is in `current` and will return
/// to `held` from a signal handler.
pub(crate) fn renew(current: u32, held: u32) {
    for count in [&TABLES, &LOOKING, &USERS] {
        count.store(0, Ordering::Relaxed);
    }
    for record in used() {
        record.root.store(0, Ordering::Relaxed);
        record.users.store(0, Ordering::Relaxed);
    }
    [current, held].into_iter().for_each(join);
    for record in used() {
        let gone = record.state.load(Ordering::Relaxed) == GIVEN_UP
            && record.users.load(Ordering::Relaxed) == 0;
        if gone {
            record.state.store(FREE, Ordering::Relaxed);
        }
    }
}

/// One more is in a space, which it knows to be there: a new thread in that of its creator.
pub(crate) fn join(id: u32) {
    if let Some(record) = record(id) {
        record.users.fetch_add(1, Ordering::SeqCst);
        USERS.fetch_add(1, Ordering::SeqCst);
    }
}

/// One has left; whether the space is to be freed now.
pub(crate) fn leave(id: u32) -> bool {
    let Some(record) = record(id) else { return false };
    USERS.fetch_sub(1, Ordering::SeqCst);
    let last = record.users.fetch_sub(1, Ordering::SeqCst) == 1;
    last && record.state.load(Ordering::Relaxed) == GIVEN_UP
}

impl Space {
    /// A space that is as the main one is: its id.
    pub(crate) fn new_private(&mut self) -> Result<u32, Refusal> {
        let free = |record: &Record| record.state.load(Ordering::Relaxed) == FREE;
        let index = RECORDS.iter().position(free).ok_or(Refusal::Full)?;
        let record = &RECORDS[index];
        // SAFETY: the lock is held, of which `self` is the proof.
        unsafe { *record.limits.get() = Limits::NONE };
        record.generation.fetch_add(1, Ordering::Relaxed);
        record.state.store(LIVE, Ordering::Relaxed);
        USED.fetch_max(index + 1, Ordering::Release);
        Ok(id(index))
    }

    /// Gives `range` of space `id` a limit. It has no tables and no user ([`Self::idle_root`]).
    pub(crate) fn limit(
        &mut self,
        id: u32,
        range: Range<u64>,
        limit: Limit,
    ) -> Result<(), Refusal> {
        let record = record(id).ok_or(Refusal::Unknown)?;
        // SAFETY: the lock is held, of which `self` is the proof.
        let limits = unsafe { &mut *record.limits.get() };
        limits.set(range, limit).map_err(|_| Refusal::Full)
    }

    /// The top table of space `id`, or 0; nobody is in the space.
    pub(crate) fn idle_root(&self, id: u32) -> Result<u64, Refusal> {
        let record = record(id).ok_or(Refusal::Unknown)?;
        if record.users.load(Ordering::SeqCst) > 0 {
            return Err(Refusal::Occupied);
        }
        Ok(record.root.load(Ordering::Relaxed))
    }

    /// Space `id` is wanted no more; whether it is to be freed now.
    pub(crate) fn give_up(&mut self, id: u32) -> Result<bool, Refusal> {
        let record = record(id).ok_or(Refusal::Unknown)?;
        record.state.store(GIVEN_UP, Ordering::Relaxed);
        Ok(record.users.load(Ordering::SeqCst) == 0)
    }

    /// The space has no tables any more, and its record may be another's.
    pub(crate) fn forget_private(&mut self, id: u32) {
        if let Some(record) = record(id) {
            record.state.store(FREE, Ordering::Relaxed);
        }
    }

    /// What CR3 holds in space `id`, whose tables are made if there are none.
    pub(crate) fn root_of(&mut self, id: u32) -> Result<u64, Refusal> {
        if id == MAIN {
            return Ok(self.root());
        }
        let record = record(id).ok_or(Refusal::Unknown)?;
        let root = record.root.load(Ordering::Relaxed);
        if root != 0 {
            return Ok(root);
        }
        let tables = self.tables.as_mut().ok_or(Refusal::Memory)?;
        let root = tables.new_root().map_err(|_| Refusal::Memory)?;
        TABLES.fetch_add(1, Ordering::SeqCst);
        record.root.store(root, Ordering::SeqCst);
        // What the CPU itself needs, and what its stubs store to, is there from the start.
        let linked = self.link_arena(id, root);
        linked.and_then(|()| self.fill_private(id, root)).map_err(|_| Refusal::Memory)?;
        Ok(root)
    }

    /// Where CR3 leads for whoever is in some space, but for `except`.
    pub(crate) fn roots_in_use(&self, except: u64) -> impl Iterator<Item = u64> + use<> {
        let main = self.root();
        let private = used()
            .iter()
            .filter(|record| record.users.load(Ordering::SeqCst) > 0)
            .map(|record| record.root.load(Ordering::SeqCst));
        core::iter::once(main).chain(private).filter(move |root| *root != 0 && *root != except)
    }

    /// Makes the path to all that the CPU and its stubs use.
    fn link_arena(&mut self, id: u32, root: u64) -> Result<(), FillError> {
        let start = arena::SHARED.start() as u64;
        let end = (arena::TABLES.start() + arena::TABLES.len) as u64;
        let record = record(id).ok_or(FillError::Memory)?;
        // SAFETY: the lock is held, of which `self` is the proof.
        let limits = unsafe { &*record.limits.get() };
        if limits.over(start..start + (1 << 30)).is_some() {
            return self.reach(id, root, start).map(drop);
        }
        // Something else in the same GiB is limited: table by table, and all of them are the main space's.
        for gva in (start..end).step_by(TABLE_SPAN as usize) {
            self.tables.as_mut().ok_or(FillError::Memory)?.ensure_table(gva)?;
            self.reach(id, root, gva)?;
        }
        Ok(())
    }

    /// As [`Space::fill_eagerly`], with what the main space has already. Not only to save faults: a handler of protected
    /// pages is called at ring 3, and must not fault before it has kept the state of the fault that it is called for.
    fn fill_private(&mut self, id: u32, root: u64) -> Result<(), FillError> {
        let record = record(id).ok_or(FillError::Memory)?;
        let mut address = 0;
        while let Some(vma) = self.vmas.from(address) {
            address = vma.end;
            if vma.end > USER_END || arena::contains(vma.start as usize) {
                continue;
            }
            let end = vma.end.min(vma.start + super::EAGER_BYTES);
            let mut start = vma.start;
            while start < end {
                let stop = ((start & !(TABLE_SPAN - 1)) + TABLE_SPAN).min(end);
                let present = |tables: &Tables<_>| tables.leaf(start) & Flags::PRESENT.bits() != 0;
                if self.tables.as_ref().is_some_and(present) {
                    if let Reach::Own(table) = self.reach(id, root, start)? {
                        // SAFETY: the lock is held, of which `self` is the proof.
                        let limits = unsafe { &*record.limits.get() };
                        if let Some(tables) = &self.tables {
                            tables.copy_leaves(table, start..stop, limits);
                        }
                    }
                }
                start = stop;
            }
        }
        Ok(())
    }

    /// As [`Tables::reach`], for space `id`; counts the tables that it makes.
    fn reach(&mut self, id: u32, root: u64, gva: u64) -> Result<Reach, FillError> {
        let record = record(id).ok_or(FillError::Memory)?;
        let tables = self.tables.as_mut().ok_or(FillError::Memory)?;
        // SAFETY: the lock is held, of which `self` is the proof.
        let limits = unsafe { &*record.limits.get() };
        let before = tables.memory().given;
        // Before one is linked: whoever sees what was written through it sees that there are some.
        TABLES.fetch_add(3, Ordering::SeqCst);
        let reach = tables.reach(root, gva, limits);
        let made = tables.memory().given - before;
        TABLES.fetch_sub(3 - made, Ordering::SeqCst);
        reach
    }

    /// As [`Self::fault`], for a thread that is in space `id`.
    pub(crate) fn fault_in(
        &mut self,
        id: u32,
        address: u64,
        write: bool,
        execute: bool,
    ) -> Result<Fault, HostError> {
        let Some(record) = record(id).filter(|_| address < USER_END) else {
            return self.fault(address, write, execute);
        };
        let page = address & !(PAGE - 1);
        // SAFETY: the lock is held, of which `self` is the proof.
        let limits = unsafe { &*record.limits.get() };
        if !permits(limits.at(page), write, execute) {
            // Where there is nothing, nothing is hidden.
            let mapped = self.vmas.at(page).is_some();
            return Ok(Fault::Segv(if mapped { SEGV_ACCERR } else { SEGV_MAPERR }));
        }
        let there = self.careful == 0
            && self.tables.as_ref().is_some_and(|tables| tables.allows(page, write, execute));
        if !there {
            let fault = self.fault(address, write, execute)?;
            if fault != Fault::Mapped {
                return Ok(fault);
            }
        }
        let root = record.root.load(Ordering::Relaxed);
        match self.reach(id, root, page) {
            Ok(Reach::Own(table)) => {
                let start = page & !(TABLE_SPAN - 1);
                let range =
                    if self.careful > 0 { page..page + PAGE } else { start..start + TABLE_SPAN };
                self.tables()?.copy_leaves(table, range, limits);
                Ok(Fault::Mapped)
            }
            Ok(Reach::Large) => match self.link(&mut (page..page + PAGE))? {
                Some(link) => Ok(Fault::Link(link)),
                None => Ok(Fault::Mapped),
            },
            Ok(Reach::Main | Reach::Hidden) => Ok(Fault::Mapped),
            Err(_) => Err(super::NO_TABLE),
        }
    }

    /// The tables of space `id`, in which nobody is, belong to no space from now on, and what is dirty in them is so in
    /// the main tables. The top one; the guest makes them zero ([`Self::own_table`]), and they are given back.
    pub(crate) fn drain(&mut self, id: u32) -> Option<u64> {
        let record = record(id)?;
        let root = record.root.load(Ordering::Relaxed);
        let tables = self.tables.as_ref().filter(|_| root != 0)?;
        tables.for_each_own_leaf(root, 0..USER_END, |gva, entries| {
            for (index, entry) in entries.iter().enumerate() {
                if is_unclean(entry.load(Ordering::Relaxed)) {
                    let page = gva + index as u64 * PAGE;
                    tables.mark_dirty(page..page + PAGE);
                }
            }
        });
        // Last: whoever no longer finds the table finds the main entries dirty.
        record.root.store(0, Ordering::SeqCst);
        Some(root)
    }

    /// The next own table that `table`, of level `level`, links from slot `slot` on, and the slot behind it.
    pub(crate) fn own_table(&self, table: u64, level: u32, slot: usize) -> Option<(u64, usize)> {
        let tables = self.tables.as_ref()?;
        tables.own_link(table, level, slot)
    }

    /// Where the guest finds a table, which it may write to without a fault.
    pub(crate) fn address_of(&mut self, table: u64) -> Result<u64, HostError> {
        let address = self.tables()?.memory().at(table) as u64;
        self.fill(address..address + PAGE, Rights { write: true, execute: false }.flags())?;
        Ok(address)
    }

    /// Takes back a table that [`Self::drain`] took from its space and that the guest has made zero.
    pub(crate) fn give_back(&mut self, table: u64) {
        if let Some(tables) = &mut self.tables {
            tables.memory().free(table);
            TABLES.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether nobody looks at tables without the lock.
pub(super) fn nobody_looks() -> bool {
    fence(Ordering::SeqCst);
    LOOKING.load(Ordering::SeqCst) == 0
}
