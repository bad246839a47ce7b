//! The tables themselves: walking, filling, removing.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{ADDRESS_MASK, CLEAN, ENTRIES, Flags, HELD, PAGE, TABLE_SPAN, USER_END, WAS_LARGE};

/// One table: a page of entries.
#[repr(C, align(4096))]
pub struct Table(pub(super) [AtomicU64; ENTRIES]);

/// Where tables come from.
///
/// # Safety
/// [`alloc`](Self::alloc) gives zeroed tables that stay valid, and are used by nobody else, as long as
/// the memory itself; [`at`](Self::at) is the inverse of the addresses that it gave.
pub unsafe trait TableMemory {
    /// So many zeroed tables, one behind the other, and the guest-physical address of the first; `None` if there is no
    /// memory left.
    fn alloc(&mut self, count: usize) -> Option<u64>;

    /// Takes a single table back that nobody uses any more, nor will look at: the next [`alloc`](Self::alloc) may give it
    /// out again, to another place.
    fn free(&mut self, gpa: u64);

    /// The table at a guest-physical address that [`alloc`](Self::alloc) gave.
    fn at(&self, gpa: u64) -> *const Table;
}

/// Page tables of an address space.
#[derive(Debug)]
pub struct Tables<M> {
    pub(super) memory: M,
    root: u64,
}

/// Links of upper levels allow everything; the leaf decides.
pub(super) const LINK: Flags =
    Flags::PRESENT.union(Flags::WRITABLE).union(Flags::USER_ACCESSIBLE).union(Flags::ACCESSED);

/// Why entries cannot be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// There is no memory left for a table.
    Memory,
    /// A large page was there: the guest itself must link a table first ([`Tables::prepare_link`]).
    WasLarge,
}

/// A store of the guest's that links a table where a large page is, or was; or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The entry to write to: where [`TableMemory::at`] has it.
    pub entry: *const AtomicU64,
    /// What to write.
    pub value: u64,
}

/// Whether an entry that could link a table maps a large page.
pub(super) fn is_large(entry: u64) -> bool {
    let large = Flags::PRESENT.bits() | Flags::HUGE_PAGE.bits();
    entry & large == large
}

/// The entry of a large page.
fn large(gpa: u64, flags: Flags) -> u64 {
    gpa | (flags | Flags::HUGE_PAGE | Flags::DIRTY).bits() | WAS_LARGE
}

pub(super) fn index(gva: u64, level: u32) -> usize {
    (gva >> (12 + 9 * level)) as usize % ENTRIES
}

impl<M: TableMemory> Tables<M> {
    /// Empty tables; `None` if there is no memory for the first.
    #[must_use]
    pub fn new(mut memory: M) -> Option<Self> {
        let root = memory.alloc(1)?;
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

    pub(super) fn table(&self, gpa: u64) -> &Table {
        // SAFETY: `gpa` came from `alloc`, directly or out of a link.
        unsafe { &*self.memory.at(gpa) }
    }

    /// The address of the table of level `lowest` for `gva` (0 has the pages, 3 is the top), and, if there is none, the
    /// level at which the walk ended: at a large page, or at nothing.
    pub(super) fn find(&self, gva: u64, lowest: u32) -> Result<u64, u32> {
        let mut gpa = self.root;
        for level in (lowest + 1..4).rev() {
            let entry = self.table(gpa).0[index(gva, level)].load(Ordering::Acquire);
            if entry & Flags::PRESENT.bits() == 0 || is_large(entry) {
                return Err(level);
            }
            gpa = entry & ADDRESS_MASK;
        }
        Ok(gpa)
    }

    /// As [`Self::find`]: the table itself.
    fn find_table(&self, gva: u64, lowest: u32) -> Result<&Table, u32> {
        self.find(gva, lowest).map(|gpa| self.table(gpa))
    }

    /// The entry that links the table of the lowest level for `gva`, or maps a large page; `None` if not even the
    /// table that it would be in exists.
    fn link(&self, gva: u64) -> Option<&AtomicU64> {
        self.find_table(gva, 1).ok().map(|table| &table.0[index(gva, 1)])
    }

    /// Where the address of the table of the lowest level for `gva` is kept, also while a large page is in its place; 0:
    /// there has been none. Whoever has found a table may look at it at any time later, so no other use is made of it.
    /// It is in a page of its own behind the table of links (`make_table`). `None` as [`Self::link`].
    fn kept(&self, gva: u64) -> Option<&AtomicU64> {
        self.find(gva, 1).ok().map(|gpa| &self.table(gpa + PAGE).0[index(gva, 1)])
    }

    /// The table of level `lowest` for `gva`, made with those above it if there is none.
    pub(super) fn make_table(&mut self, gva: u64, lowest: u32) -> Result<&Table, FillError> {
        let mut gpa = self.root;
        for level in (lowest + 1..4).rev() {
            let slot = index(gva, level);
            let entry = self.table(gpa).0[slot].load(Ordering::Acquire);
            gpa = if is_large(entry) || entry & WAS_LARGE != 0 {
                return Err(FillError::WasLarge);
            } else if entry & Flags::PRESENT.bits() != 0 {
                entry & ADDRESS_MASK
            } else {
                // A table of links has another behind it.
                let new = self.memory.alloc(if level == 2 { 2 } else { 1 });
                let new = new.ok_or(FillError::Memory)?;
                if let Some(kept) = self.kept(gva).filter(|_| level == 1) {
                    kept.store(new, Ordering::Relaxed);
                }
                self.table(gpa).0[slot].store(new | LINK.bits(), Ordering::Release);
                new
            };
        }
        Ok(self.table(gpa))
    }

    /// Whether there is a large page for `gva`.
    #[must_use]
    pub fn is_large(&self, gva: u64) -> bool {
        self.link(gva).is_some_and(|entry| is_large(entry.load(Ordering::Acquire)))
    }

    /// Whether there is no table of the lowest level for `gva`, nor a large page: one may be put there.
    #[must_use]
    pub fn may_be_large(&self, gva: u64) -> bool {
        self.link(gva)
            .is_none_or(|entry| entry.load(Ordering::Acquire) & Flags::PRESENT.bits() == 0)
    }

    /// Maps the large page at `gva` to the frames from `gpa` on. Only where [`may_be_large`](Self::may_be_large).
    ///
    /// # Errors
    /// [`FillError::Memory`]
    pub fn fill_large(&mut self, gva: u64, gpa: u64, flags: Flags) -> Result<(), FillError> {
        debug_assert!(gva % TABLE_SPAN == 0 && gpa % TABLE_SPAN == 0 && self.may_be_large(gva));
        let table = self.make_table(gva, 1)?;
        table.0[index(gva, 1)].store(large(gpa, flags), Ordering::Release);
        Ok(())
    }

    /// The first address in `range` whose page is, or was, in a large page and has no table.
    #[must_use]
    pub fn first_large(&self, range: Range<u64>) -> Option<u64> {
        let is_left = |entry: &AtomicU64| entry.load(Ordering::Acquire) & WAS_LARGE != 0;
        self.links(range).find(|(_, entry)| is_left(entry)).map(|(gva, _)| gva)
    }

    /// Makes a table for where a large page is or was, with the same pages, all dirty, or none; and returns the store
    /// that links it. The guest must make it: a shadow MMU, which may have the large page still, notices nothing else.
    /// Until it has, nothing is different, and nobody else may prepare it. `None` if there is no large page.
    ///
    /// # Errors
    /// [`FillError::Memory`]
    pub fn prepare_link(&mut self, gva: u64) -> Result<Option<Link>, FillError> {
        let Some(old) = self.link(gva).map(|entry| entry.load(Ordering::Acquire)) else {
            return Ok(None);
        };
        if old & WAS_LARGE == 0 {
            return Ok(None);
        }
        let kept = self.kept(gva).map_or(0, |kept| kept.load(Ordering::Relaxed));
        let table = match kept {
            0 => self.memory.alloc(1).ok_or(FillError::Memory)?,
            kept => kept,
        };
        if let Some(kept) = self.kept(gva) {
            kept.store(table, Ordering::Relaxed);
        }
        if is_large(old) {
            let flags = old & !(ADDRESS_MASK | Flags::HUGE_PAGE.bits() | WAS_LARGE);
            for (page, entry) in self.table(table).0.iter().enumerate() {
                let gpa = (old & ADDRESS_MASK) + page as u64 * PAGE;
                entry.store(gpa | flags | Flags::DIRTY.bits(), Ordering::Relaxed);
            }
        }
        let entry = self.link(gva).map_or(core::ptr::null(), core::ptr::from_ref);
        Ok(Some(Link { entry, value: table | LINK.bits() }))
    }

    /// As [`fill_large`](Self::fill_large), where there is a table without a single entry: the store that puts the large
    /// page in its place, which the guest must make. `None` if there is no such table.
    #[must_use]
    pub fn prepare_large(&self, gva: u64, gpa: u64, flags: Flags) -> Option<Link> {
        debug_assert!(gva % TABLE_SPAN == 0 && gpa % TABLE_SPAN == 0);
        let table = self.find_table(gva, 0).ok()?;
        if table.0.iter().any(|entry| entry.load(Ordering::Relaxed) != 0) {
            return None;
        }
        let entry = core::ptr::from_ref(self.link(gva)?);
        Some(Link { entry, value: large(gpa, flags) })
    }

    /// The entry for the page at `gva`, if its table exists. It may be absent (zero).
    #[must_use]
    pub fn entry(&self, gva: u64) -> Option<&AtomicU64> {
        self.find_table(gva, 0).ok().map(|table| &table.0[index(gva, 0)])
    }

    /// The `count` entries from the one for the page at `gva` on, all of one table, if it exists.
    #[must_use]
    pub fn entries(&self, gva: u64, count: usize) -> Option<&[AtomicU64]> {
        let first = index(gva, 0);
        self.find_table(gva, 0).ok().and_then(|table| table.0.get(first..first + count))
    }

    /// Maps the pages of `range`, which lies within one table of the lowest level, to the frames
    /// from `gpa` on. Entries that already are present with these rights keep their bits, and protected
    /// ones ([`HELD`]) stay so; and so does a large page.
    ///
    /// # Errors
    /// [`FillError`]
    pub fn fill(&mut self, range: Range<u64>, gpa: u64, flags: Flags) -> Result<(), FillError> {
        debug_assert!(range.start / TABLE_SPAN == (range.end - 1) / TABLE_SPAN);
        let start = range.start & !(PAGE - 1);
        if self.is_large(start) {
            return Ok(());
        }
        let table = self.make_table(start, 0)?;
        let kept = (Flags::ACCESSED | Flags::DIRTY).bits() | CLEAN;
        let pages = (range.end - start).div_ceil(PAGE);
        for page in 0..pages {
            let new = (gpa + page * PAGE) | flags.bits();
            let entry = &table.0[index(start + page * PAGE, 0)];
            let old = entry.load(Ordering::Relaxed);
            let held = old & HELD != 0 && old & Flags::PRESENT.bits() != 0;
            if !held && (old ^ new) & !kept != 0 {
                entry.store(new, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Removes the leaf entries of `range`, and all of a large page that has a part in it. The caller sees to the
    /// TLBs.
    pub fn zap(&self, range: Range<u64>) {
        for (_, entry) in self.links(range.clone()) {
            if is_large(entry.load(Ordering::Relaxed)) {
                entry.store(WAS_LARGE, Ordering::Release);
            }
        }
        self.for_each_table(range, |table, slots| {
            for entry in &table.0[slots] {
                if entry.load(Ordering::Relaxed) != 0 {
                    entry.store(0, Ordering::Release);
                }
            }
        });
    }

    /// Sets the dirty bits of what is present in `range`, and takes the mark of clean pages away: the kernel wrote there, or it counts as written. Also
    /// of what the program may not write at the moment: the kernel may where the program has protected a page
    /// itself ([`HELD`]), and a debugger may anywhere.
    pub fn mark_dirty(&self, range: Range<u64>) {
        let (present, dirty) = (Flags::PRESENT.bits(), Flags::DIRTY.bits());
        self.for_each_table(range, |table, slots| {
            for entry in &table.0[slots] {
                let now = entry.load(Ordering::Relaxed);
                if now & present != 0 && now & (dirty | CLEAN) != dirty {
                    // Fails only if the processor or another thread changed it meanwhile.
                    let _ = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |now| {
                        (now & present != 0).then_some((now | dirty) & !CLEAN)
                    });
                }
            }
        });
    }

    /// Each entry that may link a table of the lowest level, or map a large page, for a part of `range`, and the first
    /// address of that part.
    fn links(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &AtomicU64)> {
        let (mut gva, end) = (range.start, range.end.min(USER_END));
        core::iter::from_fn(move || {
            while gva < end {
                let at = gva;
                let (level, entry) = match self.find_table(at, 1) {
                    Ok(table) => (1, Some((at, &table.0[index(at, 1)]))),
                    Err(level) => (level, None),
                };
                let span = PAGE << (9 * level);
                gva = (at & !(span - 1)) + span;
                if entry.is_some() {
                    return entry;
                }
            }
            None
        })
    }

    /// Calls `f` with each table of the lowest level that exists, and the slots of it in `range`.
    pub fn for_each_table(&self, range: Range<u64>, mut f: impl FnMut(&Table, Range<usize>)) {
        let (mut gva, end) = (range.start & !(PAGE - 1), range.end.min(USER_END));
        while gva < end {
            match self.find_table(gva, 0) {
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
pub(super) mod tests {
    use super::super::Rights;
    use super::*;

    /// Tables on the heap, with how many were made together; an address is an index.
    #[derive(Default)]
    pub(in super::super) struct Heap(Vec<(*mut Table, usize)>);

    // SAFETY: boxes live until the end; addresses are indices.
    unsafe impl TableMemory for Heap {
        fn alloc(&mut self, count: usize) -> Option<u64> {
            let new = || Table([const { AtomicU64::new(0) }; ENTRIES]);
            let tables: Box<[Table]> = (0..count).map(|_| new()).collect();
            let first = self.0.len() as u64 + 1;
            let start = Box::into_raw(tables).cast::<Table>();
            self.0.extend(
                (0..count).map(|n| (start.wrapping_add(n), if n == 0 { count } else { 0 })),
            );
            Some(first << 12)
        }

        fn free(&mut self, _: u64) {}

        fn at(&self, gpa: u64) -> *const Table {
            self.0[(gpa >> 12) as usize - 1].0
        }
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            for (table, count) in self.0.iter().filter(|(_, count)| *count > 0) {
                // SAFETY: made by `alloc`, and dropped once.
                drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(*table, *count)) });
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

    fn linked(tables: &mut Tables<Heap>, gva: u64) {
        let link = tables.prepare_link(gva).expect("memory").expect("a large page");
        assert_eq!(tables.entry(gva).map(|_| ()), None, "nothing is different yet");
        // SAFETY: the guest would; the tables are this test's.
        unsafe { &*link.entry }.store(link.value, Ordering::Release);
    }

    #[test]
    fn a_large_page_becomes_small_ones_that_are_all_dirty() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let (gva, gpa) = (0x7f00_0020_0000, 0x1_4020_0000);
        assert!(tables.may_be_large(gva));
        tables.fill_large(gva, gpa, READ_WRITE.flags()).expect("memory");
        assert!(!tables.may_be_large(gva));
        assert_eq!(value(&tables, gva), 0, "no page has an entry of its own");
        tables.fill(gva + PAGE..gva + 9 * PAGE, gpa + PAGE, READ_WRITE.flags()).expect("as it is");
        let range = gva - 5 * PAGE..gva + 2 * TABLE_SPAN;
        assert_eq!(tables.first_large(range.clone()), Some(gva));
        assert_eq!(tables.first_large(gva + 7 * PAGE..range.end), Some(gva + 7 * PAGE));
        assert_eq!(tables.first_large(gva + TABLE_SPAN..range.end), None);
        linked(&mut tables, gva + 3 * PAGE);
        assert_eq!(tables.first_large(range), None);
        assert_eq!(tables.prepare_link(gva), Ok(None));
        assert!(!tables.may_be_large(gva));
        for page in 0..512 {
            let entry = value(&tables, gva + page * PAGE);
            assert_eq!(entry & ADDRESS_MASK, gpa + page * PAGE);
            assert_eq!(entry & !(ADDRESS_MASK | HELD), READ_WRITE.flags().bits());
            assert_eq!(entry & HELD, 0, "the mark of large pages is another entry's");
        }
        assert_eq!(value(&tables, gva + TABLE_SPAN), 0);
    }

    #[test]
    fn what_is_left_of_a_large_page_gets_no_entry_but_by_the_guest() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let (gva, gpa) = (0x4000_0000, 0x1_4000_0000);
        for part in [gva..gva + PAGE, gva + TABLE_SPAN - 1..gva + TABLE_SPAN, 0..USER_END] {
            tables.fill_large(gva, gpa, READ_WRITE.flags()).expect("memory");
            tables.zap(gva - TABLE_SPAN..gva);
            tables.zap(gva + TABLE_SPAN..gva + 2 * TABLE_SPAN);
            assert!(!tables.may_be_large(gva), "it is none of theirs");
            tables.zap(part);
            let left = tables.fill(gva + PAGE..gva + 2 * PAGE, gpa + PAGE, READ.flags());
            assert_eq!(left, Err(FillError::WasLarge));
            assert_eq!(value(&tables, gva + PAGE), 0);
            assert!(tables.may_be_large(gva));
        }
        linked(&mut tables, gva);
        assert_eq!(value(&tables, gva), 0);
        tables.fill(gva + PAGE..gva + 2 * PAGE, gpa + PAGE, READ.flags()).expect("a table");
        assert_eq!(value(&tables, gva + PAGE) & ADDRESS_MASK, gpa + PAGE);
        assert_eq!(value(&tables, gva), 0);
        assert!(!tables.may_be_large(gva));
    }

    #[test]
    fn a_large_page_takes_the_place_of_an_empty_table_which_comes_back() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let (gva, gpa) = (0x4000_0000, 0x1_4000_0000);
        let flags = READ_WRITE.flags();
        assert_eq!(tables.prepare_large(gva, gpa, flags), None, "there is no table");
        tables.fill(gva + PAGE..gva + 2 * PAGE, gpa + PAGE, flags).expect("memory");
        assert_eq!(tables.prepare_large(gva, gpa, flags), None, "it is not empty");
        let first = tables.entry(gva + PAGE).map(core::ptr::from_ref);
        for _ in 0..3 {
            tables.zap(gva..gva + TABLE_SPAN);
            assert!(!tables.may_be_large(gva), "not without the guest");
            let link = tables.prepare_large(gva, gpa, flags).expect("it is empty");
            // SAFETY: the guest would; the tables are this test's.
            unsafe { &*link.entry }.store(link.value, Ordering::Release);
            assert_eq!(tables.first_large(gva..gva + PAGE), Some(gva));
            linked(&mut tables, gva);
            assert_eq!(tables.entry(gva + PAGE).map(core::ptr::from_ref), first, "the same table");
            assert_eq!(value(&tables, gva + PAGE) & ADDRESS_MASK, gpa + PAGE);
        }
        // A table that was not there before the large page is kept likewise.
        let gva = gva + TABLE_SPAN;
        tables.fill_large(gva, gpa, flags).expect("memory");
        linked(&mut tables, gva);
        let first = tables.entry(gva).map(core::ptr::from_ref);
        tables.zap(gva..gva + TABLE_SPAN);
        let link = tables.prepare_large(gva, gpa, flags).expect("it is empty");
        // SAFETY: as above.
        unsafe { &*link.entry }.store(link.value, Ordering::Release);
        tables.zap(gva..gva + PAGE);
        linked(&mut tables, gva);
        assert_eq!(tables.entry(gva).map(core::ptr::from_ref), first);
        assert_eq!(value(&tables, gva + PAGE), 0, "only the mark was left");
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
