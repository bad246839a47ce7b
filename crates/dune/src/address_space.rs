//! Private address spaces: the same memory at the same addresses, of which some is hidden, or may only be read.
//!
//! Each has a CR3 of its own. A thread [enters](AddressSpace::enter) one and comes back; others go on where they are.
//! What is not limited is shared to the last bit: mappings, first touches, contents, dirty bits. What for:
//!
//! - code that is not trusted with some data (a parser, a plug-in) runs where they are hidden, and a stray load or
//!   store there is SIGSEGV;
//! - a part of a program sees what others build, and cannot change it;
//! - a collector, or a debugger of one, has a view of the heap of its own.
//!
//! # What is done in a private space
//!
//! | | |
//! |---|---|
//! | a load, store or fetch that the space does not allow | SIGSEGV, `SEGV_ACCERR`, with the address; where nothing is mapped, `SEGV_MAPERR` |
//! | system calls | go by the main space's rights: see below |
//! | signal handlers | run in the main space; `rt_sigreturn` goes back. One that leaves by `longjmp` stays in the main space |
//! | new threads | begin in the space of who makes them |
//! | fork | the child is in the same space, of its own process; it has all spaces that the parent had |
//! | exec | there are no spaces |
//! | a handler of protected pages ([`Inside::handle_faults`]) | runs where the fault was |
//!
//! # What it is not: a sandbox for hostile code
//!
//! The limits bind **instructions**. Code that can make system calls of its choice can do what the process can:
//! `write(2)` from a hidden buffer, `read(2)` into one that may only be read, `mprotect`, `/proc/self/mem`, or the request
//! by which [`Entered`] leaves. The kernel, and the monitor where it copies for the program, go by the process' own
//! mappings. And the runtime's page tables are memory of the process ([`crate::inside`]), which a space cannot hide.
//! So it holds against loads and stores that go astray, also where an attacker chooses their addresses but for the
//! runtime's own 512 MiB; it does not hold against an attacker who runs code.
//!
//! # Cost
//!
//! A switch is one exit of the guest and two calls of the host's; `benches/guest-mode.md` has figures. What is limited in
//! whole blocks of 2 MiB costs nothing more. Where a limit covers a part of one, the space has entries of its own
//! for that block, filled by one fault, and large pages there are small ones in the space.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use crate::calls::CALL_SPACE;
use crate::inside::{self, Inside};
use crate::paging::Rights;
use crate::process::switch::request;
use crate::space::private;
use crate::sys;

/// Why something cannot be done with a private space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// The range does not start and end at pages below 2⁴⁷.
    Range,
    /// A part of the range is the runtime's own memory, which every space needs.
    Reserved,
    /// A thread is in the space: limits change only while none is.
    Occupied,
    /// There are as many spaces as there can be (256), or as many ranges with limits in this one (64).
    Full,
    /// There is no memory left for page tables.
    Memory,
    /// The space is gone: it belongs to a process that this one is not, or never was.
    Unknown,
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Range => "a range of whole pages below 2^47 is needed",
            Self::Reserved => "the range has a part of the guest-mode runtime's own memory, which no space can do without",
            Self::Occupied => "a thread is in the private space: its limits change only while none is",
            Self::Full => "there are 256 private spaces at most, and 64 ranges with limits in each",
            Self::Memory => "there is no memory left for the guest's page tables",
            Self::Unknown => "there is no such private space in this process",
        })
    }
}

impl std::error::Error for SpaceError {}

/// Makes a request of the monitor.
fn ask(what: u64, arguments: [u64; 4]) -> Result<u64, SpaceError> {
    let [a, b, c, d] = arguments;
    // SAFETY: a number that Linux does not have. Which pages the calling thread can use is all that changes.
    let result = unsafe { sys::raw(CALL_SPACE, [what, a, b, c, d, 0]) };
    u64::try_from(result).map_err(|_| match -result as i32 {
        libc::EBUSY => SpaceError::Occupied,
        libc::ENOSPC => SpaceError::Full,
        libc::ENOMEM => SpaceError::Memory,
        libc::EPERM => SpaceError::Reserved,
        _ => SpaceError::Unknown,
    })
}

/// A private address space of this process. Dropped, it frees its tables, at once or when the last thread has left it.
#[derive(Debug)]
pub struct AddressSpace {
    id: u64,
}

/// The calling thread is in a private space until this is dropped; then it is where it was before.
#[must_use = "the thread leaves the space when this is dropped"]
#[derive(Debug)]
pub struct Entered<'a> {
    before: u64,
    space: PhantomData<&'a AddressSpace>,
    /// It is about the calling thread.
    inside: PhantomData<Inside>,
}

impl AddressSpace {
    /// A space that hides nothing yet. The proof says that there is a monitor to ask.
    ///
    /// # Errors
    /// [`SpaceError::Full`].
    pub fn new(_: Inside) -> Result<Self, SpaceError> {
        ask(request::NEW, [0; 4]).map(|id| Self { id })
    }

    /// Hides the pages of `range`, mapped or not, now and when something is mapped there later.
    ///
    /// # Errors
    /// [`SpaceError::Range`], [`SpaceError::Reserved`], [`SpaceError::Occupied`], [`SpaceError::Full`]; then nothing has
    /// changed.
    pub fn hide(&mut self, range: Range<usize>) -> Result<(), SpaceError> {
        self.limit(range, 0)
    }

    /// Gives the pages of `range` no more than these rights in the space, and never more than the main space has;
    /// with both, it takes limits away.
    ///
    /// # Errors
    /// As [`hide`](Self::hide).
    pub fn limit_to(&mut self, range: Range<usize>, rights: Rights) -> Result<(), SpaceError> {
        let write = if rights.write { request::WRITE } else { 0 };
        let execute = if rights.execute { request::EXECUTE } else { 0 };
        self.limit(range, request::READ | write | execute)
    }

    /// Lets the pages of `range` be read and executed, but not written to.
    ///
    /// # Errors
    /// As [`hide`](Self::hide).
    pub fn read_only(&mut self, range: Range<usize>) -> Result<(), SpaceError> {
        self.limit_to(range, Rights { write: false, execute: true })
    }

    /// Takes the limits of the pages of `range` away.
    ///
    /// # Errors
    /// As [`hide`](Self::hide).
    pub fn show(&mut self, range: Range<usize>) -> Result<(), SpaceError> {
        self.limit_to(range, Rights { write: true, execute: true })
    }

    fn limit(&mut self, range: Range<usize>, bits: u64) -> Result<(), SpaceError> {
        inside::check(&range).map_err(|_| SpaceError::Range)?;
        ask(request::LIMIT, [self.id, range.start as u64, range.end as u64, bits]).map(drop)
    }

    /// Moves the calling thread into the space, until the returned value is dropped. Spaces can be entered one within
    /// another: the innermost counts, alone.
    ///
    /// It is safe: what the space does not allow ends in SIGSEGV, and nothing has another value than elsewhere. That
    /// goes for the thread's stack and code too, if they are hidden.
    ///
    /// # Errors
    /// [`SpaceError::Memory`]. [`SpaceError::Unknown`]: this is another process than the one that made the space, and
    /// not forked of it since.
    pub fn enter(&self, _: Inside) -> Result<Entered<'_>, SpaceError> {
        let before = ask(request::SWITCH, [self.id, 0, 0, 0])?;
        Ok(Entered { before, space: PhantomData, inside: PhantomData })
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // Outside of guest mode the kernel refuses the number, and the space stays.
        let _ = ask(request::GIVE_UP, [self.id, 0, 0, 0]);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // The space before is gone if its handle was dropped in between: then it is the main one.
        if ask(request::SWITCH, [self.before, 0, 0, 0]).is_err() {
            let _ = ask(request::SWITCH, [u64::from(private::MAIN), 0, 0, 0]);
        }
    }
}

/// Whether the calling thread is in a private space. Costs a system call.
#[must_use]
pub fn is_private(_: Inside) -> bool {
    ask(request::CURRENT, [0; 4]).is_ok_and(|id| id != 0)
}

/// Page tables that private spaces of this process have at the moment.
#[must_use]
pub fn tables_in_use() -> usize {
    private::tables_in_use()
}
