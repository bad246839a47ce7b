//! Calls that replace pages, and those that answer questions about memory.

use super::evaluate::Evaluation;
use super::table::Item;
use super::written::Cut;
use super::{How, Process, Until, Why, Written};

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    pub(super) fn mapping(&mut self, item: Item) {
        match item {
            Item::Brk => self.brk(),
            Item::Mmap => {
                const MAP_FIXED: u64 = 0x10;
                // A failed MAP_FIXED may have unmapped what was there. Without it the kernel takes free
                // addresses.
                if self.arg(3) & MAP_FIXED != 0 {
                    self.replaced(self.arg(0), self.arg(1));
                }
                self.mapped(self.arg(1));
            }
            Item::Mremap => self.mremap(),
            Item::Madvise if replaces(self.int(2)) => {
                self.advised(self.arg(0), self.arg(1), self.int(2));
            }
            Item::ProcessMadvise if replaces(self.int(3)) => {
                let advice = self.int(3);
                self.iovec(self.arg(1), self.arg(2), |this, base, len| {
                    this.advised(base, len, advice);
                });
            }
            Item::MapShadowStack => {
                self.replaced(self.arg(0), self.arg(1));
                self.mapped(self.arg(1));
            }
            // `mincore(start, bytes, vector)`: a byte a page.
            Item::Mincore => self.stored(self.arg(2), self.arg(1).div_ceil(4096)),
            // `get_mempolicy(mode, mask, bits, ...)`: whole words, of which the kernel refuses more
            // than a page; one bit less than said is copied.
            Item::NodeMask => self.stored(self.arg(1), (self.arg(2).div_ceil(64)).min(512) * 8),
            Item::Shmat => {
                const SHM_REMAP: i32 = 0o40_000;
                // The segment's size is in the kernel. Without SHM_REMAP it goes to free addresses.
                if self.int(2) & SHM_REMAP != 0 {
                    self.unknown(Why::SizeUnknown);
                }
            }
            _ => {}
        }
    }

    /// Pages whose contents go by an advice.
    fn advised(&mut self, start: u64, bytes: u64, advice: i32) {
        self.replaced(start, bytes);
        // Pages that are free to take are taken when memory is short.
        if advice == MADV_FREE {
            let (cut, how, until) = (Cut::Whole, How::Replaced, Until::Completion);
            self.emit(Written { start, bytes, cut, how, until });
        }
    }

    /// A new mapping of `bytes`, at the address that the call returns.
    fn mapped(&mut self, bytes: u64) {
        let (cut, how, until) = (Cut::Result, How::Replaced, Until::Return);
        self.emit(Written { start: 0, bytes, cut, how, until });
    }

    /// `brk(end)`: the pages between the ends before and after come or go.
    fn brk(&mut self) {
        let wanted = self.arg(0);
        match self.process.program_break() {
            // 0 and other ends below the heap are questions.
            Some(now) if wanted != 0 => {
                self.replaced(now.min(wanted), now.abs_diff(wanted));
            }
            Some(_) => {}
            None if wanted == 0 => {}
            None => self.unknown(Why::SizeUnknown),
        }
    }

    /// `mremap(address, old bytes, new bytes, flags, new address)`.
    fn mremap(&mut self) {
        const MREMAP_FIXED: u64 = 2;
        let (old, new) = (self.arg(1), self.arg(2));
        self.replaced(self.arg(0), old.max(new));
        if self.arg(3) & MREMAP_FIXED != 0 {
            self.replaced(self.arg(4), new);
        }
        self.mapped(new);
    }
}

const MADV_FREE: i32 = 8;

/// Whether advice of `madvise` may change what the pages hold: all but those known not to.
fn replaces(advice: i32) -> bool {
    // NORMAL to WILLNEED; DONTFORK and DOFORK, MERGEABLE to KEEPONFORK, COLD, PAGEOUT,
    // POPULATE_READ and _WRITE (which fault pages in and change no byte of them), COLLAPSE.
    !matches!(advice, 0..=3 | 10..=23 | 25)
}
