//! The tables themselves: walking, filling, removing.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{ADDRESS_MASK, ENTRIES, Flags, HELD, PAGE, TABLE_SPAN, USER_END};

/// One table: a page of entries.
#[repr(C, align(4096))]
pub struct Table(pub(super) [AtomicU64; ENTRIES]);

/// Where tables come from.
///
/// # Safety
/// [`alloc`](Self::alloc) gives zeroed tables that stay valid, and are used by nobody else, as long as
/// the memory itself; [`at`](Self::at) is the inverse of the address that it gave.
pub unsafe trait TableMemory {
    /// A zeroed table and its guest-physical address; `None` if there is no memory left.
    fn alloc(&mut self) -> Option<u64>;

    /// The table at a guest-physical address that [`alloc`](Self::alloc) gave.
    fn at(&self, gpa: u64) -> *const Table;
}

/// Page tables of an address space.
#[derive(Debug)]
pub struct Tables<M> {
    memory: M,
    root: u64,
}

/// Links of upper levels allow everything; the leaf decides.
const LINK: Flags =
    Flags::PRESENT.union(Flags::WRITABLE).union(Flags::USER_ACCESSIBLE).union(Flags::ACCESSED);

fn index(gva: u64, level: u32) -> usize {
    (gva >> (12 + 9 * level)) as usize % ENTRIES
}

impl<M: TableMemory> Tables<M> {
    /// Empty tables; `None` if there is no memory for the first.
    #[must_use]
    pub fn new(mut memory: M) -> Option<Self> {
        let root = memory.alloc()?;
        Some(Self { memory, root })
    }

    /// Tables that exist already, to look at: `root` is the address of the top one.
    #[must_use]
    pub fn view(memory: M, root: u64) -> Self {
        Self { memory, root }
    }

    /// The guest-physical address of the top table: what CR3 holds.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Where the tables come from.
    pub fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    fn table(&self, gpa: u64) -> &Table {
        // SAFETY: `gpa` came from `alloc`, directly or out of a link.
        unsafe { &*self.memory.at(gpa) }
    }

    /// The table of the lowest level for `gva`, and, if there is none, the level at which the walk
    /// ended (3 is the top).
    fn leaf_table(&self, gva: u64) -> Result<&Table, u32> {
        let mut table = self.table(self.root);
        for level in (1..4).rev() {
            let entry = table.0[index(gva, level)].load(Ordering::Acquire);
            if entry & Flags::PRESENT.bits() == 0 {
                return Err(level);
            }
            table = self.table(entry & ADDRESS_MASK);
        }
        Ok(table)
    }

    /// The table of the lowest level for `gva`, made if there is none.
    fn make_leaf_table(&mut self, gva: u64) -> Option<&Table> {
        let mut gpa = self.root;
        for level in (1..4).rev() {
            let slot = index(gva, level);
            let entry = self.table(gpa).0[slot].load(Ordering::Acquire);
            gpa = if entry & Flags::PRESENT.bits() != 0 {
                entry & ADDRESS_MASK
            } else {
                let new = self.memory.alloc()?;
                self.table(gpa).0[slot].store(new | LINK.bits(), Ordering::Release);
                new
            };
        }
        Some(self.table(gpa))
    }

    /// The entry for the page at `gva`, if its table exists. It may be absent (zero).
    #[must_use]
    pub fn entry(&self, gva: u64) -> Option<&AtomicU64> {
        self.leaf_table(gva).ok().map(|table| &table.0[index(gva, 0)])
    }

    /// The `count` entries from the one for the page at `gva` on, all of one table, if it exists.
    #[must_use]
    pub fn entries(&self, gva: u64, count: usize) -> Option<&[AtomicU64]> {
        let first = index(gva, 0);
        self.leaf_table(gva).ok().and_then(|table| table.0.get(first..first + count))
    }

    /// Maps the pages of `range`, which lies within one table of the lowest level, to the frames
    /// from `gpa` on. Entries that already are present with these rights keep their bits, and protected
    /// ones ([`HELD`]) stay so.
    ///
    /// `None`: out of memory for tables.
    pub fn fill(&mut self, range: Range<u64>, gpa: u64, flags: Flags) -> Option<()> {
        debug_assert!(range.start / TABLE_SPAN == (range.end - 1) / TABLE_SPAN);
        let start = range.start & !(PAGE - 1);
        let table = self.make_leaf_table(start)?;
        let kept = Flags::ACCESSED | Flags::DIRTY;
        let pages = (range.end - start).div_ceil(PAGE);
        for page in 0..pages {
            let new = (gpa + page * PAGE) | flags.bits();
            let entry = &table.0[index(start + page * PAGE, 0)];
            let old = entry.load(Ordering::Relaxed);
            let held = old & HELD != 0 && old & Flags::PRESENT.bits() != 0;
            if !held && (old ^ new) & !kept.bits() != 0 {
                entry.store(new, Ordering::Release);
            }
        }
        Some(())
    }

    /// Removes the leaf entries of `range`. The caller sees to the TLBs.
    pub fn zap(&self, range: Range<u64>) {
        self.for_each_table(range, |table, slots| {
            for entry in &table.0[slots] {
                if entry.load(Ordering::Relaxed) != 0 {
                    entry.store(0, Ordering::Release);
                }
            }
        });
    }

    /// Sets the dirty bits of what is present in `range`: the kernel wrote there, or it counts as written. Also
    /// of what the program may not write at the moment: the kernel may where the program has protected a page
    /// itself ([`HELD`]), and a debugger may anywhere.
    pub fn mark_dirty(&self, range: Range<u64>) {
        let (present, dirty) = (Flags::PRESENT.bits(), Flags::DIRTY.bits());
        self.for_each_table(range, |table, slots| {
            for entry in &table.0[slots] {
                if entry.load(Ordering::Relaxed) & (present | dirty) == present {
                    // Fails only if the processor or another thread changed it meanwhile.
                    let _ = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
                        (now & present != 0).then_some(now | dirty)
                    });
                }
            }
        });
    }

    /// Calls `f` with each table of the lowest level that exists, and the slots of it in `range`.
    pub fn for_each_table(&self, range: Range<u64>, mut f: impl FnMut(&Table, Range<usize>)) {
        let (mut gva, end) = (range.start & !(PAGE - 1), range.end.min(USER_END));
        while gva < end {
            match self.leaf_table(gva) {
                Ok(table) => {
                    let first = index(gva, 0);
                    let slots = (ENTRIES - first).min((end - gva).div_ceil(PAGE) as usize);
                    f(table, first..first + slots);
                    gva += slots as u64 * PAGE;
                }
                Err(level) => {
                    // Nothing below this entry: on to the next of its level.
                    let span = PAGE << (9 * level);
                    gva = (gva & !(span - 1)) + span;
                }
            }
        }
    }
}

impl Table {
    /// The entries of some slots.
    #[must_use]
    pub fn entries(&self, slots: Range<usize>) -> &[AtomicU64] {
        &self.0[slots]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rights;
    use super::*;

    /// Tables on the heap; an address is an index.
    #[derive(Default)]
    struct Heap(Vec<*mut Table>);

    // SAFETY: boxes live until the end; addresses are indices.
    unsafe impl TableMemory for Heap {
        fn alloc(&mut self) -> Option<u64> {
            let table = Box::new(Table([const { AtomicU64::new(0) }; ENTRIES]));
            self.0.push(Box::into_raw(table));
            Some((self.0.len() as u64) << 12)
        }

        fn at(&self, gpa: u64) -> *const Table {
            self.0[(gpa >> 12) as usize - 1]
        }
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            for table in &self.0 {
                // SAFETY: made by `alloc`, and dropped once.
                drop(unsafe { Box::from_raw(*table) });
            }
        }
    }

    const READ_WRITE: Rights = Rights { write: true, execute: false };
    const READ: Rights = Rights { write: false, execute: false };

    fn value(tables: &Tables<Heap>, gva: u64) -> u64 {
        tables.entry(gva).map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    #[test]
    fn what_is_filled_is_found_and_nothing_else() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let gva = 0x7fff_1234_5000;
        tables.fill(gva..gva + 3 * PAGE, 0x1_0000_5000, READ_WRITE.flags()).expect("memory");
        for page in 0..3 {
            let entry = value(&tables, gva + page * PAGE);
            assert_eq!(entry & ADDRESS_MASK, 0x1_0000_5000 + page * PAGE);
            assert_eq!(entry & 7, 7);
        }
        assert_eq!(value(&tables, gva + 3 * PAGE), 0);
        assert_eq!(value(&tables, gva - PAGE), 0);
        assert_eq!(value(&tables, 0x1000), 0);
    }

    #[test]
    fn a_second_fill_keeps_a_cleared_dirty_bit_unless_rights_change() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let gva = 0x40_0000;
        tables.fill(gva..gva + PAGE, 0x5000, READ_WRITE.flags()).expect("memory");
        let dirty = Flags::DIRTY.bits();
        tables.entry(gva).expect("a table").fetch_and(!dirty, Ordering::Relaxed);
        tables.fill(gva..gva + PAGE, 0x5000, READ_WRITE.flags()).expect("memory");
        assert_eq!(value(&tables, gva) & dirty, 0);
        tables.fill(gva..gva + PAGE, 0x5000, READ.flags()).expect("memory");
        assert_eq!(value(&tables, gva) & 2, 0);
        tables.fill(gva..gva + PAGE, 0x5000, READ_WRITE.flags()).expect("memory");
        assert_ne!(value(&tables, gva) & dirty, 0, "dirty again: nobody knows");
    }

    #[test]
    fn the_kernels_writes_dirty_what_is_there() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let gva = TABLE_SPAN - PAGE;
        let dirty = Flags::DIRTY.bits();
        tables.fill(gva..gva + PAGE, 0x5000, READ_WRITE.flags()).expect("memory");
        let next = TABLE_SPAN;
        tables.fill(next..next + PAGE, 0x6000, READ.flags()).expect("memory");
        for page in [gva, next] {
            tables.entry(page).expect("a table").fetch_and(!dirty, Ordering::Relaxed);
        }
        tables.mark_dirty(gva + 5..next + 5);
        assert_ne!(value(&tables, gva) & dirty, 0);
        assert_ne!(value(&tables, next) & dirty, 0);
        assert_eq!(value(&tables, next + PAGE), 0, "what is absent stays absent");
    }

    #[test]
    fn zapping_leaves_the_neighbours_and_skips_what_is_absent() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        for gva in [0x1000, 0x2000, 0x3000, 0x6000_0000_0000] {
            tables.fill(gva..gva + PAGE, gva, READ.flags()).expect("memory");
        }
        tables.zap(0x2000..0x3000);
        assert_ne!(value(&tables, 0x1000), 0);
        assert_eq!(value(&tables, 0x2000), 0);
        assert_ne!(value(&tables, 0x3000), 0);
        tables.zap(0..USER_END);
        assert_eq!(value(&tables, 0x6000_0000_0000), 0);
    }
}
