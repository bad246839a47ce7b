//! Calls that make, end and synchronise threads.

use super::evaluate::Evaluation;
use super::table::Item;
use super::{Process, Until, Why, Written};

const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;

/// Entries of a robust list that the kernel follows (`ROBUST_LIST_LIMIT`).
const ROBUST_LIST_LIMIT: usize = 2048;

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    pub(super) fn thread(&mut self, item: Item) {
        match item {
            Item::Futex => self.futex(),
            // `clone(flags, stack, parent_tid, child_tid, tls)`; the descriptor goes where parent_tid
            // points.
            Item::Clone => self.new_thread(self.arg(0), self.arg(2), self.arg(2), self.arg(3)),
            Item::Clone3 => {
                let block = self.arg(0);
                let mut field = |at: u64| self.u64_at(block.saturating_add(at));
                let Some(flags) = field(0) else { return };
                let Some(pidfd) = field(8) else { return };
                let Some(child_tid) = field(16) else { return };
                let Some(parent_tid) = field(24) else { return };
                self.new_thread(flags, pidfd, parent_tid, child_tid);
            }
            // `rseq(area, bytes, flags, signature)`: it is at least 32 bytes; unregistering resets it.
            Item::Rseq => {
                let bytes = u64::from(self.arg(1) as u32).max(32);
                self.lasting(self.arg(0), bytes, Until::Unregistered);
            }
            Item::Exits => self.exits(),
            _ => {}
        }
    }

    /// The kernel changes a futex word itself where it hands over ownership, and for WAKE_OP. Nothing is
    /// written to a word after its call: what an owner's death leaves to do, its waiters do, in theirs.
    fn futex(&mut self) {
        /// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
        const FLAGS: u32 = 128 | 256;
        match self.arg(1) as u32 & !FLAGS {
            // WAIT, WAKE, REQUEUE, CMP_REQUEUE, WAIT_BITSET, WAKE_BITSET; FD is gone.
            0..=4 | 9 | 10 => {}
            // WAKE_OP changes the second word.
            5 => self.stored(self.arg(4), 4),
            // LOCK_PI, UNLOCK_PI, TRYLOCK_PI, LOCK_PI2.
            6..=8 | 13 => self.stored(self.arg(0), 4),
            // WAIT_REQUEUE_PI, CMP_REQUEUE_PI: the lock is the second word.
            11 | 12 => self.stored(self.arg(4), 4),
            _ => self.unknown(Why::UnknownOperation),
        }
    }

    fn new_thread(&mut self, flags: u64, pidfd: u64, parent_tid: u64, child_tid: u64) {
        if flags & CLONE_PIDFD != 0 {
            self.stored(pidfd, 4);
        }
        if flags & CLONE_PARENT_SETTID != 0 {
            self.stored(parent_tid, 4);
        }
        // Without CLONE_VM the child stores to its own copy.
        if flags & CLONE_VM != 0 {
            if flags & CLONE_CHILD_SETTID != 0 {
                self.lasting(child_tid, 4, Until::ChildStarts);
            }
            if flags & CLONE_CHILD_CLEARTID != 0 {
                self.lasting(child_tid, 4, Until::ThreadExits);
            }
        }
    }

    /// `exit`, `exit_group` and `execve`: what is left for those who share the memory. With
    /// `exit_group` and `execve` other threads end too, whose words are theirs to know; so this is complete
    /// only if no memory is left behind, or the caller was its only thread.
    fn exits(&mut self) {
        let Some(words) = self.process.exit_words() else { return self.unknown(Why::Exits) };
        if words.clear_child_tid != 0 {
            self.stored(words.clear_child_tid, 4);
        }
        if words.robust_list != 0 {
            self.robust_list(words.robust_list);
        }
    }

    /// A head is a pointer to the first entry, the distance from an entry to its word, and an entry that
    /// is being added or removed. Bit 0 of a pointer marks a priority-inheritance lock.
    fn robust_list(&mut self, head: u64) {
        let Some(mut entry) = self.u64_at(head) else { return };
        let Some(offset) = self.u64_at(head.saturating_add(8)) else { return };
        let Some(pending) = self.u64_at(head.saturating_add(16)) else { return };
        if pending & !1 != 0 {
            self.stored((pending & !1).wrapping_add(offset), 4);
        }
        for _ in 0..ROBUST_LIST_LIMIT {
            if entry & !1 == head {
                return;
            }
            self.stored((entry & !1).wrapping_add(offset), 4);
            let Some(next) = self.u64_at(entry & !1) else { return };
            entry = next;
        }
    }
}
