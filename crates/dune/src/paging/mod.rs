//! Page tables of four levels, as the processor reads them.
//!
//! Pure: it turns addresses into entries in memory that [`TableMemory`] gives. Which rights a page
//! gets, and when an entry must go, is `space`'s decision; who flushes which TLB, `shootdown`'s.
//!
//! Entries are read and written as atomics, because the processor (or a shadow MMU) sets their
//! accessed and dirty bits meanwhile. Two rules keep a shadow MMU right, which notices only what the
//! guest itself writes: a table, once linked, is neither unlinked nor replaced but by the guest, and a
//! leaf entry for an address always leads to the same frame; only its presence and rights change.
//! (SDM 3A, chapter 5, "Paging".)
//!
//! A large page (2 MiB, one entry of the second level) is put only where there is no table, or, by the guest, an empty
//! one. It is dirty from the beginning to its end. Where dirty bits are wanted, or only a part of it stays, a table
//! takes its place, by a store that the guest makes ([`Tables::prepare_link`]): always the same one, for whoever has
//! found it may still look at it.

pub mod limits;
pub mod private;
mod tables;

pub use tables::{FillError, Link, Table, TableMemory, Tables};
pub use x86_64::structures::paging::PageTableFlags as Flags;

/// Bits of an entry that hold the frame's address.
pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Software bit 9 of a leaf entry: the program has protected the page (`faults`), and nobody else gives
/// the right to write back.
pub const HELD: u64 = 1 << 9;
/// Software bit 10 of a leaf entry that is [`HELD`]: whoever gives the right to write back flushes the TLB.
pub const FLUSHED: u64 = 1 << 10;
/// Software bit 9 of an entry of the second level: a large page is there, or was, and no table has taken its place.
pub const WAS_LARGE: u64 = 1 << 9;
/// Software bit 10 of an entry of an upper level: the table that it links is a private space's own ([`private`]).
pub const OWN: u64 = 1 << 10;
/// Software bit 11 of a leaf entry of a private space's own that is absent: one was there that could be written to, and a
/// TLB, or a host that shadows tables, may have it still ([`private::collect`]).
pub const GONE: u64 = 1 << 11;
/// Software bit 52 of a leaf entry of the main space: the page was not written to since it was marked so, as far as the
/// processor's log has been read (`page_log`).
pub const CLEAN: u64 = 1 << 52;
/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Bytes that one entry of the lowest level maps.
pub const PAGE: u64 = 1 << 12;
/// Bytes that a table of the lowest level maps.
pub const TABLE_SPAN: u64 = 1 << 21;
/// First address that user space does not have (47 bits: four levels).
pub const USER_END: u64 = 1 << 47;

/// What a program may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Write it.
    pub write: bool,
    /// Execute it.
    pub execute: bool,
}

impl Rights {
    /// The leaf entry of a page of the user's with these rights.
    ///
    /// Accessed and dirty are set from the start: what is not known to be clean is dirty (also where it
    /// may not be written any more), and a shadow MMU need not set them.
    #[must_use]
    pub fn flags(self) -> Flags {
        let mut flags = Flags::PRESENT | Flags::USER_ACCESSIBLE | Flags::ACCESSED | Flags::DIRTY;
        flags.set(Flags::WRITABLE, self.write);
        flags.set(Flags::NO_EXECUTE, !self.execute);
        flags
    }
}
