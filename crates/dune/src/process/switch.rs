//! Threads in private address spaces: entering, leaving, and what becomes of tables that nobody uses any more.
//!
//! A switch is a system call of the monitor's own ([`crate::calls::CALL_SPACE`]): it sets CR3 between two runs. Signal
//! handlers run in the main space, as they may need what the space hides; the frame on their stack says where
//! `rt_sigreturn` goes back to.

use core::ops::Range;

use super::run::Guest;
use super::thread::Thread;
use crate::host::Vcpu as _;
use crate::paging::limits::Limit;
use crate::paging::{Rights, USER_END};
use crate::space::private::{self, MAIN, Refusal};
use crate::space::{SPACE, Space, arena};

/// What [`crate::calls::CALL_SPACE`] is asked for, and its further arguments.
pub(crate) mod request {
    /// A new space; its id.
    pub(crate) const NEW: u64 = 0;
    /// A limit for a range of a space: id, start, end, [`READ`] and the like.
    pub(crate) const LIMIT: u64 = 1;
    /// To another space: its id; 0: the main one. The id of the earlier one.
    pub(crate) const SWITCH: u64 = 2;
    /// A space is wanted no more: its id.
    pub(crate) const GIVE_UP: u64 = 3;
    /// Spaces that somebody else is in flush too.
    pub(crate) const FLUSH: u64 = 4;
    /// Which space the thread is in.
    pub(crate) const CURRENT: u64 = 5;

    /// Pages can be used at all,
    pub(crate) const READ: u64 = 1;
    /// written to,
    pub(crate) const WRITE: u64 = 2;
    /// executed.
    pub(crate) const EXECUTE: u64 = 4;
}

fn limit(bits: u64) -> Limit {
    let has = |bit| bits & bit != 0;
    let rights = Rights { write: has(request::WRITE), execute: has(request::EXECUTE) };
    has(request::READ).then_some(rights)
}

impl Guest<'_> {
    /// A request of the program's about private spaces.
    pub(crate) fn space_request(&mut self, a: [u64; 6]) -> i64 {
        let id = a[1] as u32;
        let done = match a[0] {
            request::NEW => SPACE.lock().new_private().map(i64::from),
            request::LIMIT => self.limit(id, a[2]..a[3], limit(a[4])).map(|()| 0),
            request::SWITCH => self.switch(id).map(i64::from),
            request::GIVE_UP => self.give_up(id).map(|()| 0),
            request::FLUSH => {
                self.flush_others();
                Ok(0)
            }
            request::CURRENT => Ok(i64::from(self.thread.space.get())),
            _ => return -i64::from(libc::ENOSYS),
        };
        done.unwrap_or_else(Refusal::code)
    }

    fn limit(&mut self, id: u32, range: Range<u64>, limit: Limit) -> Result<(), Refusal> {
        let arena = arena::range();
        if range.end > USER_END || range.start < arena.end as u64 && range.end > arena.start as u64
        {
            return Err(Refusal::Reserved);
        }
        let mut space = SPACE.lock();
        space.idle_root(id)?;
        // Tables are right for the limits that they were made for.
        self.free_tables(&mut space, id);
        space.limit(id, range, limit)
    }

    /// Goes to space `id`. Returns the earlier one.
    fn switch(&mut self, id: u32) -> Result<u32, Refusal> {
        let before = self.thread.space.get();
        self.enter(id)?;
        let held = self.thread.held.replace(MAIN);
        self.leave(held);
        self.leave(before);
        Ok(before)
    }

    /// Goes to space `id`, and stays counted in the one before.
    fn enter(&mut self, id: u32) -> Result<(), Refusal> {
        let root = {
            let mut space = SPACE.lock();
            let root = space.root_of(id)?;
            private::join(id);
            root
        };
        self.must(|cpu| cpu.set_root(root));
        self.thread.space.set(id);
        Ok(())
    }

    /// This thread, or one that is gone, is in space `id` no more.
    fn leave(&mut self, id: u32) {
        if id == MAIN {
            return;
        }
        let mut space = SPACE.lock();
        if private::leave(id) {
            self.end(&mut space, id);
        }
    }

    /// Goes to the main tables.
    fn load_main(&mut self) {
        let main = SPACE.lock().root();
        self.must(|cpu| cpu.set_root(main));
    }

    /// `thread`, this one or one that is gone, uses no space any more.
    pub(crate) fn leave_all(&mut self, thread: &Thread) {
        let (current, held) = (thread.space.replace(MAIN), thread.held.replace(MAIN));
        if thread.index == self.thread.index && current != MAIN {
            self.load_main();
        }
        self.leave(current);
        self.leave(held);
    }

    /// A signal handler is called: in the main space. The one that the thread is in stays counted, until it comes back,
    /// or goes somewhere else.
    pub(crate) fn leave_for_handler(&mut self) {
        let current = self.thread.space.replace(MAIN);
        if current == MAIN {
            return;
        }
        self.load_main();
        let before = self.thread.held.replace(current);
        self.leave(before);
    }

    /// The handler returns to space `id`. `false`: there is no such space.
    pub(crate) fn return_from_handler(&mut self, id: u32) -> bool {
        let before = self.thread.space.get();
        if id == before {
            return true;
        }
        if self.enter(id).is_err() {
            return false;
        }
        if self.thread.held.get() == id {
            self.thread.held.set(MAIN);
            self.leave(id);
        }
        self.leave(before);
        true
    }

    fn give_up(&mut self, id: u32) -> Result<(), Refusal> {
        let mut space = SPACE.lock();
        if space.give_up(id)? {
            self.end(&mut space, id);
        }
        Ok(())
    }

    /// Ends a space that nobody is in, nor will be.
    fn end(&mut self, space: &mut Space, id: u32) {
        self.free_tables(space, id);
        space.forget_private(id);
    }

    /// Frees the tables of a space in which nobody is.
    fn free_tables(&mut self, space: &mut Space, id: u32) {
        if let Some(root) = space.drain(id) {
            self.free_table(space, root, 3);
        }
    }

    fn free_table(&mut self, space: &mut Space, table: u64, level: u32) {
        let mut slot = 0;
        while let Some((below, next)) = space.own_table(table, level, slot) {
            self.free_table(space, below, level - 1);
            slot = next;
        }
        // Without it, the table is used for nothing any more, and stays counted.
        if let Ok(address) = space.address_of(table) {
            self.wipe(address);
            space.give_back(table);
        }
    }

    /// On a host that shadows the tables: makes it read again what was changed in those of other spaces that somebody
    /// is in. A CPU that loads such a root does it for all (`Inside::flush_everywhere`), so this one goes to each of
    /// them and back.
    fn flush_others(&mut self) {
        let mut space = SPACE.lock();
        let Ok(own) = space.root_of(self.thread.space.get()) else { return };
        let mut went = false;
        for root in space.roots_in_use(own) {
            self.must(|cpu| cpu.set_root(root));
            self.pass();
            went = true;
        }
        if went {
            self.must(|cpu| cpu.set_root(own));
        }
    }
}
