//! What an evaluation says: written ranges, and what cannot be told as ranges.

use core::ops::Range;

/// Bytes of user memory that a call writes, or may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) cut: Cut,
    /// What happens to them.
    pub how: How,
    /// How long it may go on.
    pub until: Until,
}

/// What happens to the bytes of a [`Written`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The kernel stores to them.
    Stored,
    /// The pages are dropped, moved or mapped anew, so their contents change with no store. The
    /// range is not rounded: every page that it touches is meant.
    Replaced,
}

/// How long the kernel may write to the bytes of a [`Written`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// From the start of the call to its return, at any moment.
    Return,
    /// Until the thread that a `clone` made has run for the first time (it stores its own
    /// identifier), which may be after `clone` has returned.
    ChildStarts,
    /// At the exit of the thread that called (`set_tid_address`) or was made (`CLONE_CHILD_CLEARTID`).
    ThreadExits,
    /// As long as the area is registered: at every preemption, migration and signal.
    Unregistered,
    /// Until the asynchronous operation has completed, whoever waits for it; after `MADV_FREE`, until
    /// the pages are gone or written to.
    Completion,
}

/// By what the result of a call bounds a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// By nothing.
    Whole,
    /// A result that is no error is the number of items, of so many bytes each, that were written.
    Items(u32),
    /// The range starts at the result, and is not known before.
    Result,
}

/// Whether a result is an error: the kernel's `MAX_ERRNO` is 4,095.
pub(super) fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

impl Written {
    /// The range that may be written while the call runs: `start..end`, in bytes. Empty for a mapping
    /// whose place the kernel has yet to choose.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self.cut {
            Cut::Result => 0..0,
            Cut::Whole | Cut::Items(_) => self.start..self.start.saturating_add(self.bytes),
        }
    }

    /// As it is known once the call has returned `result`, the raw value with errors negative:
    /// shorter where the kernel writes no more than it says, never longer, and for a new mapping the
    /// place it got.
    #[must_use]
    pub fn after(self, result: i64) -> Self {
        let error = is_error(result);
        match self.cut {
            // Part of it may have been written before the error was met.
            Cut::Items(_) if error => self,
            Cut::Items(unit) => Self {
                bytes: self.bytes.min(result.unsigned_abs().saturating_mul(u64::from(unit))),
                ..self
            },
            Cut::Result if error => Self { bytes: 0, cut: Cut::Whole, ..self },
            Cut::Result => Self { start: result as u64, cut: Cut::Whole, ..self },
            Cut::Whole => self,
        }
    }
}

/// Whether the ranges that were given are all.
#[must_use = "if it is Everything, the ranges are not all"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// The call writes nothing beyond the ranges that were given.
    Ranges,
    /// Call everything dirty that is tracked: what the call writes cannot be bounded.
    Everything(Why),
}

/// Why [`Coverage::Everything`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No system call of Linux 6.12 has this number.
    UnknownCall,
    /// A multiplexed call with an operation that this table does not know.
    UnknownOperation,
    /// `ioctl`: what a command writes is its driver's affair.
    Ioctl,
    /// The descriptor may be a file whose operations write elsewhere than to the buffers: a device that
    /// takes pointers, or the memory of a process.
    File,
    /// An argument block cannot be read. If the kernel cannot either, it writes nothing; but another
    /// thread may be mapping it.
    Unreadable,
    /// More elements than one evaluation looks at.
    TooMany,
    /// The size is in the kernel only.
    SizeUnknown,
    /// `bpf`: pointers in a union that grows with every release.
    Bpf,
    /// `io_uring`: requests lie in shared memory, and complete at any time. It lasts: as long as a
    /// ring exists everything is dirty at every harvest.
    IoUring,
    /// `io_uring_setup`: as `IoUring`, once there is a ring.
    IoUringSetup,
    /// `io_submit` of requests that this table cannot bound, or cannot read: they complete at any time. It lasts.
    Submitted,
    /// `setsockopt` that hands memory to a device or a ring for good (`AF_XDP`, RDS). It lasts.
    Registered,
    /// `restart_syscall`: what the interrupted call wrote. Whoever knows that call keeps its ranges.
    Restarts,
    /// A thread or the process ends or becomes another program: words of robust lists and the
    /// `clear_child_tid` word, which the arguments do not show.
    Exits,
    /// The kernel writes to the caller's stack.
    Stack,
}

impl Why {
    /// Whether it goes on after the call has returned, until the process knows better.
    #[must_use]
    pub fn lasts(self) -> bool {
        matches!(self, Self::IoUring | Self::IoUringSetup | Self::Submitted | Self::Registered)
    }

    /// As [`Self::lasts`], now that the call has returned `result`.
    pub(super) fn lasts_after(self, result: i64) -> bool {
        let refused = [-i64::from(libc::EPERM), -i64::from(libc::ENOSYS)];
        // Said before the kernel makes a thread that looks after the ring. What is said later comes while such a thread
        // may be writing to a ring in user memory.
        self.lasts() && !(self == Self::IoUringSetup && refused.contains(&result))
    }
}

impl Until {
    /// Whether the kernel may write later than the call that has returned `result`, and nothing tells when.
    pub(super) fn lasts_after(self, result: i64) -> bool {
        match self {
            Self::Return | Self::ChildStarts | Self::ThreadExits => false,
            // A registration that fails is none.
            Self::Unregistered => !is_error(result),
            // An error is that of a later request, or of a later mapping of those that `MADV_FREE` is for.
            Self::Completion => true,
        }
    }
}
