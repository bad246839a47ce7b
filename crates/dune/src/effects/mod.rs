//! Effects: which user memory a system call writes.
//!
//! A guest's system call is executed by the host's kernel, which writes through the host's page table:
//! the D bits of the guest's tables do not show it. So whoever forwards a call must mark what it wrote, or
//! a collector frees what is alive. This module says what that is, for every system call of
//! Linux 6.12 on x86-64; anything else is [`Coverage::Everything`]. It neither makes calls nor marks
//! pages, allocates nothing, takes no lock and does not panic: it is made for trap code.
//!
//! ```
//! use dune::effects::{self, Coverage, Process, Unreadable};
//!
//! struct NoPointers;
//! impl Process for NoPointers {
//!     fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Unreadable> {
//!         Err(Unreadable) // fstat has no argument blocks that would have to be read
//!     }
//! }
//! let mut marked = Vec::new();
//! let fstat = effects::of(5, &[1, 0x7000, 0, 0, 0, 0]);
//! let coverage = fstat.for_each_written(&NoPointers, |written| marked.push(written.range()));
//! assert_eq!(coverage, Coverage::Ranges);
//! assert_eq!(marked, [0x7000..0x7000 + 144]);
//! ```
//!
//! # How a forwarder uses it
//!
//! 1. **Before** the call it takes a [`Capture`]: all ranges that the call may write, while the
//!    argument blocks in memory are still as the kernel will find them. (Later they may not be: `recvmsg`
//!    overwrites lengths in its header, and a `readv` may fill its own `iovec` array.)
//! 2. **While** the call is under way, other threads may harvest. The kernel writes at any moment of
//!    it, so a range of a call that is under way counts as dirty at *every* harvest. Marking it once, before
//!    the call, is not enough: the first harvest takes the mark away, and a write after it is lost.
//!    So the capture lies where harvesters look, from before the call until after step 3.
//! 3. **After** the call it marks the ranges, cut by the result where that is sound
//!    ([`Capture::for_each_after`]). A harvest that happened before the mark counted them as dirty by 2,
//!    one that happens after it sees the mark.
//!
//! An error is no promise that nothing was written; only what [`Written::after`] cuts is cut.
//!
//! # Races
//!
//! The ranges are those of the argument blocks as they were read. The kernel reads a block once more,
//! a moment later. If another thread changes it in between, the kernel may write elsewhere than was said.
//! Where the kernel reads a length twice this module relies on a bound that does not depend on it; where it
//! must rely on what it read ([`Effects::reads_memory`]), a forwarder that wants to be right even
//! for programs that race with their own calls copies the block to memory of its own and gives the
//! kernel the copy. Programs that change the `iovec` of a call that is under way can observe nothing
//! defined, so not doing so loses pages for none that works.
//!
//! # What no call's arguments show
//!
//! - **Signal frames** are written to the stack of the thread when a signal is delivered, at the return
//!   from any call. Who delivers the signals of a guest writes the frames himself, and marks them.
//! - **Exit of a thread**: the words of its robust list and `clear_child_tid` ([`ExitWords`]).
//! - **rseq**: the area is written at every preemption, from `rseq` until it is unregistered.
//! - **Asynchronous requests**: `io_submit` names its buffers, with [`Until::Completion`];
//!   `io_uring` cannot be told, and [`lasts`](Why::lasts), unless a ring is refused ([`Capture::lasts_after`]).
//! - **Shared memory** written by other processes, `/proc/PID/mem` and `process_vm_writev` used from
//!   outside, debuggers, uprobes, a `userfaultfd` that another process serves: no call of this process.
//! - **Mappings**: pages that are dropped or moved are [`How::Replaced`]. What becomes of the page tables
//!   is the mirror's business.

mod capture;
mod control;
mod evaluate;
mod files;
mod mappings;
mod process;
mod sockets;
mod table;
mod threads;
mod written;

pub use capture::Capture;
pub use process::{ExitWords, File, Process, Unreadable};
pub use written::{Coverage, How, Until, Why, Written};

/// The last system call number that the table knows: `mseal`, of Linux 6.10 (and 6.12 added none).
pub const LAST_KNOWN: u64 = table::LAST as u64;

/// The effects of one system call with its arguments.
#[derive(Clone, Copy)]
pub struct Effects {
    row: Option<&'static table::Row>,
    args: [u64; 6],
}

/// The effects of system call `number` with `args`, the argument registers in order (rdi, rsi, rdx, r10,
/// r8, r9). `number` is the whole of rax: the kernel takes the lower half, so do that first if rax may hold
/// more; a number of the x32 interface (bit 30) is unknown.
#[must_use]
pub fn of(number: u64, args: &[u64; 6]) -> Effects {
    Effects { row: table::find(number), args: *args }
}

/// The name of a system call in the kernel's table.
#[must_use]
pub fn name(number: u64) -> Option<&'static str> {
    table::find(number).map(|row| row.name)
}

impl Effects {
    /// Calls `f` with every range that the call may write, from its start on, and returns whether that
    /// is all. To be called before the call is made. Ranges may overlap, may be empty, and may reach
    /// beyond what is mapped: `f` takes what it tracks.
    pub fn for_each_written<P: Process + ?Sized>(
        &self,
        process: &P,
        f: impl FnMut(Written),
    ) -> Coverage {
        let Some(row) = self.row else { return Coverage::Everything(Why::UnknownCall) };
        evaluate::run(row.writes, &self.args, process, f)
    }

    /// Whether the ranges depend on user memory (see the module's section on races).
    #[must_use]
    pub fn reads_memory(&self) -> bool {
        self.row.is_some_and(|row| row.writes.iter().any(evaluate::reads_memory))
    }

    /// Whether the call writes nothing, whatever its arguments and whatever the process.
    #[must_use]
    pub fn writes_nothing(&self) -> bool {
        self.row.is_some_and(|row| row.writes.is_empty())
    }
}

impl core::fmt::Debug for Effects {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = self.row.map_or("unknown", |row| row.name);
        f.debug_struct("Effects").field("call", &name).field("args", &self.args).finish()
    }
}
