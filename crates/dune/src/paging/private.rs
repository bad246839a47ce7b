//! Private address spaces: a top table of their own over the tables of the main space.
//!
//! An entry of an upper level of a private space does one of three things:
//!
//! - if all that it covers has one and the same limit, it links the *main* table of the next level, without the right
//!   to write or to execute if the limit says so (the processor takes what all levels allow: SDM 3A §4.6.1). What
//!   appears below later, or changes, changes for both spaces, dirty bits included;
//! - if all that it covers is hidden, it is absent, for ever;
//! - else it links a table of the space's own, marked [`OWN`], down to a table of leaf entries of its own.
//!
//! It is made when it is wanted ([`Tables::reach`]), never replaced, and right as long as the limits are: the main space
//! never unlinks a table. The one exception in the main space is a table whose place a large page takes. That table is
//! empty, and comes back; until then a private space that has linked it has nothing there ([`Reach::Large`]).
//!
//! Leaf entries of a space's own are copies: they must go when the main ones go, or lose a right ([`remove`]), and **have
//! dirty bits of their own**, that whoever collects those of the main space has to collect too ([`collect`]). An absent
//! main entry counts as dirty, whatever a TLB still has. An absent copy cannot: most are, and for good. So one that
//! could be written to leaves a mark ([`GONE`]), and its page is dirty until that has been collected, and flushed.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::limits::{Limit, Limits};
use super::tables::{LINK, index, is_large};
use super::{
    ADDRESS_MASK, CLEAN, ENTRIES, FLUSHED, FillError, Flags, GONE, HELD, OWN, PAGE, Rights,
    TableMemory, Tables, USER_END, WAS_LARGE,
};

const PRESENT: u64 = Flags::PRESENT.bits();
const WRITABLE: u64 = Flags::WRITABLE.bits();
const NO_EXECUTE: u64 = Flags::NO_EXECUTE.bits();
const USED: u64 = Flags::ACCESSED.bits() | Flags::DIRTY.bits();

/// Where the walk for an address ends in a private space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// In tables of the main space.
    Main,
    /// In a table of leaf entries of its own, which may have none yet for the page.
    Own(u64),
    /// In a main table in whose place the main space has a large page at the moment: it must come back first.
    Large,
    /// Nowhere: it is hidden.
    Hidden,
}

/// What an entry keeps of `value` within `rights`.
fn limited(value: u64, rights: Rights) -> u64 {
    let mut value = value;
    if !rights.write {
        value &= !WRITABLE;
    }
    if !rights.execute {
        value |= NO_EXECUTE;
    }
    value
}

impl<M: TableMemory> Tables<M> {
    /// A top table without entries, and where it is.
    ///
    /// # Errors
    /// [`FillError::Memory`]
    pub fn new_root(&mut self) -> Result<u64, FillError> {
        self.memory.alloc(1).ok_or(FillError::Memory)
    }

    /// The leaf entry of the main space for `gva`, or what it would be if it were not in a large page; 0: none.
    #[must_use]
    pub fn leaf(&self, gva: u64) -> u64 {
        match self.find(gva, 0) {
            Ok(table) => self.table(table).0[index(gva, 0)].load(Ordering::Acquire),
            Err(1) => {
                let Ok(links) = self.find(gva, 1) else { return 0 };
                let entry = self.table(links).0[index(gva, 1)].load(Ordering::Acquire);
                let page = index(gva, 0) as u64 * PAGE;
                let flags = !(Flags::HUGE_PAGE.bits() | WAS_LARGE);
                if is_large(entry) { (entry & flags) + page } else { 0 }
            }
            Err(_) => 0,
        }
    }

    /// Makes the path to `gva` in the private space under `root`, as far as it is the space's own.
    ///
    /// # Errors
    /// [`FillError::Memory`]
    pub fn reach(&mut self, root: u64, gva: u64, limits: &Limits) -> Result<Reach, FillError> {
        let mut gpa = root;
        for level in (1..4).rev() {
            let slot = index(gva, level);
            let entry = self.table(gpa).0[slot].load(Ordering::Acquire);
            if entry & (PRESENT | OWN) == PRESENT | OWN {
                gpa = entry & ADDRESS_MASK;
                continue;
            }
            if entry & PRESENT != 0 {
                let large = level == 1 && self.is_large(gva);
                return Ok(if large { Reach::Large } else { Reach::Main });
            }
            let span = PAGE << (9 * level);
            let start = gva & !(span - 1);
            let main = match limits.over(start..start + span) {
                Some(None) => return Ok(Reach::Hidden),
                Some(Some(rights)) => {
                    let table = self.find(gva, level - 1).ok();
                    table.map(|table| limited(table | LINK.bits(), rights))
                }
                None => None,
            };
            if let Some(link) = main {
                self.table(gpa).0[slot].store(link, Ordering::Release);
                return Ok(Reach::Main);
            }
            let new = self.memory.alloc(1).ok_or(FillError::Memory)?;
            self.table(gpa).0[slot].store(new | LINK.bits() | OWN, Ordering::Release);
            gpa = new;
        }
        Ok(Reach::Own(gpa))
    }

    /// Copies the main space's entries for `range`, which one table has, to the space's own `table`, within the
    /// limits. A copy that was there with the same rights keeps its bits; a new one that can be written to is dirty.
    /// What the main space has not is left alone.
    pub fn copy_leaves(&self, table: u64, range: Range<u64>, limits: &Limits) {
        let wanted = |gva: u64| {
            let main = self.leaf(gva);
            match limits.at(gva) {
                Some(rights) if main & PRESENT != 0 => {
                    let held = main & HELD != 0;
                    let rights = Rights { write: rights.write && !held, ..rights };
                    let new = limited(main & !(HELD | FLUSHED | CLEAN | USED), rights);
                    Some(new | if new & WRITABLE != 0 { USED } else { Flags::ACCESSED.bits() })
                }
                _ => None,
            }
        };
        for gva in (range.start..range.end).step_by(PAGE as usize) {
            let Some(new) = wanted(gva) else { continue };
            let entry = &self.table(table).0[index(gva, 0)];
            let old = entry.load(Ordering::Relaxed);
            if (old ^ new) & !USED == 0 {
                continue;
            }
            // What may still be written through the earlier one is not known.
            let kept = if is_unclean(old) { USED } else { 0 };
            entry.store(new | kept, Ordering::Release);
            // Whoever takes rights from main entries without a lock looks for copies afterwards.
            fence(Ordering::SeqCst);
            if wanted(gva).is_none_or(|now| (now ^ new) & !USED != 0) {
                remove(entry);
            }
        }
    }

    /// Calls `f` with the leaf entries for `range` that are the own ones of the space under `root`, and the address of
    /// the first page of each part.
    pub fn for_each_own_leaf(
        &self,
        root: u64,
        range: Range<u64>,
        mut f: impl FnMut(u64, &[AtomicU64]),
    ) {
        let (mut gva, end) = (range.start & !(PAGE - 1), range.end.min(USER_END));
        while gva < end {
            let (mut gpa, mut level) = (root, 3);
            let leaf = loop {
                let entry = self.table(gpa).0[index(gva, level)].load(Ordering::Acquire);
                if entry & (PRESENT | OWN) != PRESENT | OWN {
                    break None;
                }
                gpa = entry & ADDRESS_MASK;
                if level == 1 {
                    break Some(gpa);
                }
                level -= 1;
            };
            if let Some(table) = leaf {
                let first = index(gva, 0);
                let slots = (ENTRIES - first).min((end - gva).div_ceil(PAGE) as usize);
                f(gva, &self.table(table).0[first..first + slots]);
            }
            let span = PAGE << (9 * level);
            gva = (gva & !(span - 1)) + span;
        }
    }

    /// The first of the space's own tables that `table`, one of level `level`, links from slot `slot` on; and the slot
    /// behind it.
    #[must_use]
    pub fn own_link(&self, table: u64, level: u32, slot: usize) -> Option<(u64, usize)> {
        let entries = if level == 0 { &[] } else { &self.table(table).0[slot..] };
        entries.iter().enumerate().find_map(|(index, entry)| {
            let entry = entry.load(Ordering::Relaxed);
            let own = entry & (PRESENT | OWN) == PRESENT | OWN;
            own.then_some((entry & ADDRESS_MASK, slot + index + 1))
        })
    }

    /// Makes the main table of the lowest level for `gva`, if there is none.
    ///
    /// # Errors
    /// [`FillError`]
    pub fn ensure_table(&mut self, gva: u64) -> Result<(), FillError> {
        self.make_table(gva, 0).map(drop)
    }

    /// Whether the main space lets `gva` be used so, without a fault.
    #[must_use]
    pub fn allows(&self, gva: u64, write: bool, execute: bool) -> bool {
        let entry = self.leaf(gva);
        entry & PRESENT != 0
            && (!write || entry & WRITABLE != 0)
            && (!execute || entry & NO_EXECUTE == 0)
    }
}

/// Whether what was written through a leaf entry of a space's own, or may still be, has not been collected.
#[must_use]
pub fn is_unclean(entry: u64) -> bool {
    let written = PRESENT | Flags::DIRTY.bits();
    entry & written == written || entry & (PRESENT | GONE) == GONE
}

/// Removes a leaf entry of a space's own. The caller sees to the TLBs.
pub fn remove(entry: &AtomicU64) {
    let value = entry.load(Ordering::Relaxed);
    if value & PRESENT != 0 {
        entry.store(if value & WRITABLE != 0 { GONE } else { 0 }, Ordering::Release);
    }
}

/// Makes a leaf entry of a space's own clean, if it is not; whether it was not. The flush is owed. Only by the guest: a
/// host that shadows tables notices nothing else.
pub fn collect(entry: &AtomicU64) -> bool {
    let clean = |value| {
        is_unclean(value).then_some(if value & PRESENT != 0 {
            value & !Flags::DIRTY.bits()
        } else {
            0
        })
    };
    is_unclean(entry.load(Ordering::Relaxed))
        && entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, clean).is_ok()
}

/// Whether a limit lets a page be used so.
#[must_use]
pub fn permits(limit: Limit, write: bool, execute: bool) -> bool {
    limit.is_some_and(|rights| (!write || rights.write) && (!execute || rights.execute))
}

#[cfg(test)]
mod tests {
    use super::super::limits::UNLIMITED;
    use super::super::tables::tests::Heap;
    use super::*;
    use crate::paging::TABLE_SPAN;

    const READ: Limit = Some(Rights { write: false, execute: true });
    const ALL: Rights = Rights { write: true, execute: true };
    const BASE: u64 = 0x7f00_0000_0000;
    const DIRTY: u64 = Flags::DIRTY.bits();

    fn main_space(pages: u64) -> Tables<Heap> {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        for start in (BASE..BASE + pages * PAGE).step_by(TABLE_SPAN as usize) {
            let end = (start + TABLE_SPAN).min(BASE + pages * PAGE);
            tables.fill(start..end, start - BASE + 0x1_0000_0000, ALL.flags()).expect("memory");
        }
        tables
    }

    /// What the processor finds for `gva` under `root`: the leaf entry, with what all levels allow.
    fn walk(tables: &Tables<Heap>, root: u64, gva: u64) -> u64 {
        let (mut table, mut allowed) = (root, WRITABLE);
        for level in (0..4).rev() {
            let entry = tables.table(table).0[index(gva, level)].load(Ordering::Relaxed);
            if entry & PRESENT == 0 {
                return 0;
            }
            allowed &= entry;
            if level == 0 || is_large(entry) {
                return entry & !WRITABLE | allowed;
            }
            table = entry & ADDRESS_MASK;
        }
        0
    }

    fn limits(parts: &[(Range<u64>, Limit)]) -> Limits {
        let mut limits = Limits::NONE;
        for (range, limit) in parts {
            limits.set(BASE + range.start * PAGE..BASE + range.end * PAGE, *limit).expect("room");
        }
        limits
    }

    fn show(tables: &mut Tables<Heap>, root: u64, gva: u64, limits: &Limits) -> Reach {
        let reach = tables.reach(root, gva, limits).expect("memory");
        if let Reach::Own(table) = reach {
            let start = gva & !(TABLE_SPAN - 1);
            tables.copy_leaves(table, start..start + TABLE_SPAN, limits);
        }
        reach
    }

    #[test]
    fn only_what_differs_is_the_spaces_own() {
        let mut tables = main_space(4 * 512);
        let limits = limits(&[(5..6, None), (512..1024, READ), (1024..1536, None)]);
        let root = tables.new_root().expect("memory");
        let page = |n: u64| BASE + n * PAGE;
        assert!(matches!(show(&mut tables, root, page(0), &limits), Reach::Own(_)));
        assert_eq!(show(&mut tables, root, page(600), &limits), Reach::Main);
        assert_eq!(show(&mut tables, root, page(1100), &limits), Reach::Hidden);
        assert_eq!(show(&mut tables, root, page(1600), &limits), Reach::Main);
        for n in 0..4 * 512 {
            let (main, found) = (tables.leaf(page(n)), walk(&tables, root, page(n)));
            match limits.at(page(n)) {
                None => assert_eq!(found, 0, "page {n}"),
                READ => assert_eq!(found, main & !WRITABLE, "page {n}"),
                _ => assert_eq!(found, main, "page {n}"),
            }
        }
        // Whatever becomes of a table that is shared is so for both.
        tables.zap(page(600)..page(601));
        assert_eq!(walk(&tables, root, page(600)), 0);
        let mut own = 0;
        tables.for_each_own_leaf(root, 0..USER_END, |_, entries| own += entries.len());
        assert_eq!(own, 512);
    }

    #[test]
    fn a_limit_that_covers_an_upper_entry_makes_no_table() {
        let mut tables = main_space(512);
        let root = tables.new_root().expect("memory");
        let mut limits = Limits::NONE;
        limits.set(0..USER_END, READ).expect("room");
        assert_eq!(tables.reach(root, BASE, &limits), Ok(Reach::Main));
        assert_eq!(walk(&tables, root, BASE), tables.leaf(BASE) & !WRITABLE);
        assert_eq!(tables.own_link(root, 3, 0), None);
        limits.set(0..USER_END, UNLIMITED).expect("room");
        assert!(limits.is_empty());
    }

    #[test]
    fn copies_keep_to_what_the_main_space_allows_and_new_ones_are_dirty() {
        let mut tables = main_space(64);
        let limits = limits(&[(5..6, None), (7..8, READ)]);
        let root = tables.new_root().expect("memory");
        let page = |n: u64| BASE + n * PAGE;
        let dirty_bit = |tables: &Tables<Heap>, n: u64| {
            tables.entry(page(n)).expect("a table").fetch_and(!DIRTY, Ordering::Relaxed)
        };
        for n in 0..64 {
            dirty_bit(&tables, n);
        }
        tables.entry(page(9)).expect("a table").fetch_and(!WRITABLE, Ordering::Relaxed);
        tables.entry(page(9)).expect("a table").fetch_or(HELD, Ordering::Relaxed);
        let Reach::Own(table) = show(&mut tables, root, page(0), &limits) else { panic!("shared") };
        let found = |tables: &Tables<Heap>, n: u64| walk(tables, root, page(n));
        assert_eq!(found(&tables, 1) & (WRITABLE | DIRTY), WRITABLE | DIRTY);
        assert_eq!(found(&tables, 7) & (WRITABLE | DIRTY), 0, "nobody can write to it");
        assert_eq!(found(&tables, 9) & (WRITABLE | DIRTY | HELD), 0);
        assert_eq!(found(&tables, 5), 0);
        // Made clean, it stays clean as long as nothing changes.
        let entry =
            |tables: &Tables<Heap>, n: usize, f: &dyn Fn(&AtomicU64)| f(&tables.table(table).0[n]);
        entry(&tables, 1, &|entry| assert!(collect(entry)));
        entry(&tables, 1, &|entry| assert!(!collect(entry)));
        show(&mut tables, root, page(0), &limits);
        assert_eq!(found(&tables, 1) & DIRTY, 0);
        // The right comes back.
        tables.entry(page(9)).expect("a table").store(tables.leaf(page(1)), Ordering::Relaxed);
        show(&mut tables, root, page(0), &limits);
        assert_eq!(found(&tables, 9) & (WRITABLE | DIRTY), WRITABLE | DIRTY);
    }

    #[test]
    fn what_was_removed_is_dirty_until_it_was_collected() {
        let mut tables = main_space(16);
        let limits = limits(&[(5..6, None), (7..8, READ)]);
        let root = tables.new_root().expect("memory");
        show(&mut tables, root, BASE, &limits);
        let states = |tables: &Tables<Heap>| {
            let mut states = Vec::new();
            tables.for_each_own_leaf(root, BASE + PAGE..BASE + 9 * PAGE, |_, entries| {
                states
                    .extend(entries.iter().map(|entry| is_unclean(entry.load(Ordering::Relaxed))));
            });
            states
        };
        let (no, yes) = (false, true);
        tables.for_each_own_leaf(root, 0..USER_END, |_, entries| {
            entries.iter().for_each(|entry| {
                collect(entry);
            });
        });
        assert_eq!(states(&tables), [no; 8]);
        tables.for_each_own_leaf(root, 0..USER_END, |_, entries| entries.iter().for_each(remove));
        // Not what could not be written to: pages 5 and 7.
        assert_eq!(states(&tables), [yes, yes, yes, yes, no, yes, no, yes]);
        assert_eq!(walk(&tables, root, BASE + PAGE), 0);
        // A copy that comes again carries it on, without the right to write too.
        tables.entry(BASE + 2 * PAGE).expect("a table").fetch_and(!WRITABLE, Ordering::Relaxed);
        tables.for_each_own_leaf(root, BASE + 3 * PAGE..USER_END, |_, entries| {
            entries.iter().for_each(|entry| {
                collect(entry);
            });
        });
        show(&mut tables, root, BASE, &limits);
        assert_eq!(states(&tables)[..2], [yes, yes]);
        tables.for_each_own_leaf(root, 0..USER_END, |_, entries| {
            entries.iter().for_each(|entry| {
                collect(entry);
            });
        });
        assert_eq!(states(&tables), [no; 8]);
    }

    #[test]
    fn a_large_page_is_shared_whole_or_copied_in_small_ones() {
        let mut tables = Tables::new(Heap::default()).expect("memory");
        let gpa = 0x1_4000_0000;
        let data = Rights { write: true, execute: false }.flags();
        for block in 0..3 {
            let at = block * TABLE_SPAN;
            tables.fill_large(BASE + at, gpa + at, data).expect("memory");
        }
        let root = tables.new_root().expect("memory");
        let limits = limits(&[(5..6, None)]);
        for block in 0..3 {
            let gva = BASE + block * TABLE_SPAN + 3 * PAGE;
            // The GiB has a table of the space's own, which never has a large page.
            assert!(matches!(show(&mut tables, root, gva, &limits), Reach::Own(_)));
            let found = walk(&tables, root, gva);
            assert_eq!(found & ADDRESS_MASK, gpa + block * TABLE_SPAN + 3 * PAGE);
            assert_eq!(found & (HELD | Flags::HUGE_PAGE.bits()), 0);
            assert!(tables.is_large(gva), "as before");
        }
        // A table that is shared, and in whose place a large page comes.
        let gva = BASE + 4 * TABLE_SPAN;
        tables.fill(gva..gva + PAGE, gpa, data).expect("memory");
        assert_eq!(show(&mut tables, root, gva, &limits), Reach::Main);
        tables.zap(gva..gva + PAGE);
        let link = tables.prepare_large(gva, gpa, data).expect("it is empty");
        // SAFETY: the guest would; the tables are this test's.
        unsafe { &*link.entry }.store(link.value, Ordering::Release);
        assert_eq!(walk(&tables, root, gva), 0);
        assert_eq!(show(&mut tables, root, gva, &limits), Reach::Large);
        let link = tables.prepare_link(gva).expect("memory").expect("a large page");
        // SAFETY: as above.
        unsafe { &*link.entry }.store(link.value, Ordering::Release);
        assert_eq!(show(&mut tables, root, gva, &limits), Reach::Main);
        assert_eq!(walk(&tables, root, gva + PAGE) & ADDRESS_MASK, gpa + PAGE, "it came back");
    }
}
