//! Errors: one enum an operation, each telling apart "not on this kernel", "refused", "out of
//! something" and "bug", with what was tried and what to do about it.
//!
//! Raw error numbers stop here: they appear as [`Errno`] inside a variant that names the call.

use alloc::string::String;
use core::fmt;

use crate::{PageRange, RangeError, Source};

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "EPERM",
            2 => "ENOENT",
            4 => "EINTR",
            9 => "EBADF",
            11 => "EAGAIN",
            12 => "ENOMEM",
            13 => "EACCES",
            14 => "EFAULT",
            16 => "EBUSY",
            17 => "EEXIST",
            22 => "EINVAL",
            23 => "ENFILE",
            24 => "EMFILE",
            25 => "ENOTTY",
            28 => "ENOSPC",
            38 => "ENOSYS",
            95 => "EOPNOTSUPP",
            other => return write!(f, "errno {other}"),
        };
        f.write_str(name)
    }
}

/// The class of an error: what kind of thing would have to change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// An argument breaks the rules of the interface.
    Invalid,
    /// This kernel does not have it.
    Unsupported,
    /// The kernel has it and refuses it to this process.
    Denied,
    /// Out of file descriptors, memory or mappings.
    Exhausted,
    /// The kernel did something that it does not document, or this library has a bug.
    Internal,
}

/// Why a source cannot be used here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unavailable {
    /// The source that was tried.
    pub source: Source,
    /// The class of the obstacle.
    pub kind: ErrorKind,
    /// What was being done when it failed.
    pub step: &'static str,
    /// What the kernel answered; `None` if the call worked and its effect was wrong.
    pub errno: Option<Errno>,
    /// What would give it.
    pub remedy: &'static str,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tracker {} is not available: {}", self.source, self.step)?;
        if let Some(errno) = self.errno {
            write!(f, " failed with {errno}")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

impl core::error::Error for Unavailable {}

/// Why no tracker was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The source that was asked for (by the builder or `BARCHAN_TRACKER`) is not there.
    Unavailable(Unavailable),
    /// `BARCHAN_TRACKER` holds this, which is no tracker's name.
    UnknownName(String),
    /// The kernel's pages are not [`crate::PAGE_SIZE`] bytes.
    PageSize {
        /// The kernel's page size, in bytes.
        kernel: usize,
    },
    /// The page that detects forks could not be set up.
    ForkDetection(Errno),
}

impl OpenError {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(why) => why.kind,
            Self::UnknownName(_) => ErrorKind::Invalid,
            Self::PageSize { .. } => ErrorKind::Unsupported,
            Self::ForkDetection(errno) => kind_of(*errno),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => why.fmt(f),
            Self::UnknownName(name) => {
                write!(f, "BARCHAN_TRACKER={name}: {}, or auto", crate::source::UnknownSource)
            }
            Self::PageSize { kernel } => write!(
                f,
                "the kernel's page size is {kernel} bytes; this library works with {} only",
                crate::PAGE_SIZE
            ),
            Self::ForkDetection(errno) => write!(
                f,
                "mapping a page with MADV_WIPEONFORK (Linux 4.14) failed with {errno}; without it \
                 a forked child could not be told from its parent"
            ),
        }
    }
}

impl core::error::Error for OpenError {}

impl From<Unavailable> for OpenError {
    fn from(why: Unavailable) -> Self {
        Self::Unavailable(why)
    }
}

/// Why an operation on a region failed.
///
/// After an error of `arm`, `disarm`, `collect_and_reset` or `peek` nothing is lost: pages whose
/// state is unknown are dirty at the next collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RegionError {
    /// The numbers are no page range.
    Range(RangeError),
    /// A region needs at least one page.
    Empty,
    /// The range is not within the region.
    Outside {
        /// What was asked for.
        asked: PageRange,
        /// The bounds of the region.
        region: PageRange,
    },
    /// The range shares pages with another region of the tracker; or, under mprotect and in guest mode, of
    /// another tracker of the process, as a page has one state there for all.
    Overlap {
        /// What was asked for.
        asked: PageRange,
        /// The region that is in the way.
        other: PageRange,
    },
    /// The bitmap is shorter than the range.
    BitmapTooSmall {
        /// Words needed.
        needed: usize,
        /// Words given.
        given: usize,
    },
    /// The kernel refused a call.
    System {
        /// The call, and what it was for.
        step: &'static str,
        /// Where.
        range: PageRange,
        /// What it answered.
        errno: Errno,
        /// What to do about it.
        remedy: &'static str,
    },
}

impl RegionError {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::System { errno, .. } => kind_of(*errno),
            _ => ErrorKind::Invalid,
        }
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(why) => why.fmt(f),
            Self::Empty => f.write_str("a region needs at least one page"),
            Self::Outside { asked, region } => {
                write!(f, "the range {asked} is not within the region {region}")
            }
            Self::Overlap { asked, other } => {
                write!(f, "the range {asked} overlaps the tracked region {other}")
            }
            Self::BitmapTooSmall { needed, given } => {
                write!(f, "the bitmap has {given} words of 64 bits; the range needs {needed}")
            }
            Self::System { step, range, errno, remedy } => {
                write!(f, "{step} failed with {errno} for {range}; {remedy}")
            }
        }
    }
}

impl core::error::Error for RegionError {}

impl From<RangeError> for RegionError {
    fn from(why: RangeError) -> Self {
        Self::Range(why)
    }
}

/// The class of a bare error number.
pub(crate) fn kind_of(errno: Errno) -> ErrorKind {
    match errno.0 {
        1 | 13 => ErrorKind::Denied,
        11 | 12 | 23 | 24 | 28 => ErrorKind::Exhausted,
        // Not EINVAL alone: an unknown call, file, request or flag of the kernel's.
        2 | 22 | 25 | 38 | 95 => ErrorKind::Unsupported,
        _ => ErrorKind::Internal,
    }
}
