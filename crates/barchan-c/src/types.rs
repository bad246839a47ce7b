//! The plain types of the interface.

use core::ffi::{CStr, c_int};
use core::mem::MaybeUninit;

use barchan::{ErrorKind, Source, Stats};

/// What came of a call.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum barchan_status {
    /// It worked.
    BARCHAN_OK = 0,
    /// An argument breaks the rules.
    BARCHAN_ERR_INVALID = -1,
    /// This kernel does not have it.
    BARCHAN_ERR_UNSUPPORTED = -2,
    /// The kernel refuses it: permission, seccomp, sysctl.
    BARCHAN_ERR_DENIED = -3,
    /// Out of file descriptors, memory or mappings.
    BARCHAN_ERR_EXHAUSTED = -4,
    /// The kernel broke its word, or a bug.
    BARCHAN_ERR_INTERNAL = -5,
}

impl From<ErrorKind> for barchan_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => Self::BARCHAN_ERR_INVALID,
            ErrorKind::Unsupported => Self::BARCHAN_ERR_UNSUPPORTED,
            ErrorKind::Denied => Self::BARCHAN_ERR_DENIED,
            ErrorKind::Exhausted => Self::BARCHAN_ERR_EXHAUSTED,
            ErrorKind::Internal => Self::BARCHAN_ERR_INTERNAL,
        }
    }
}

/// Where the knowledge of what was written comes from.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum barchan_source {
    /// What BARCHAN_TRACKER names, or the best that works.
    BARCHAN_SOURCE_AUTO = 0,
    /// userfaultfd WP_ASYNC and PAGEMAP_SCAN (Linux 6.7).
    BARCHAN_SOURCE_PAGEMAP_SCAN = 1,
    /// userfaultfd with a monitor thread (Linux 5.14).
    BARCHAN_SOURCE_USERFAULTFD = 2,
    /// Soft-dirty bits (CONFIG_MEM_SOFT_DIRTY).
    BARCHAN_SOURCE_SOFT_DIRTY = 3,
    /// mprotect and a SIGSEGV handler.
    BARCHAN_SOURCE_MPROTECT = 4,
    /// Every page is always dirty.
    BARCHAN_SOURCE_ALL_DIRTY = 5,
    /// The guest's page tables, in a process in guest mode (barchan run --dune).
    BARCHAN_SOURCE_GUEST_PTE = 6,
    /// Protection in the guest's page tables, single pages flushed (for comparison; never chosen).
    BARCHAN_SOURCE_GUEST_TLB = 7,
    /// The same, with whole TLBs flushed.
    BARCHAN_SOURCE_GUEST_DIRECT = 8,
    /// The processor's page-modification log, in guest mode over /dev/dune (BARCHAN_DUNE_PML=1; by name only).
    BARCHAN_SOURCE_GUEST_PML = 9,
}

/// What happens when the kernel itself writes to an armed page for a system call (read, recv, getrandom).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum barchan_kernel_writes {
    /// The call works and the page is reported.
    BARCHAN_KERNEL_WRITES_TRACKED = 0,
    /// The call fails with EFAULT: nothing is lost, but programs notice. (mprotect; userfaultfd without
    /// privileges.)
    BARCHAN_KERNEL_WRITES_EFAULT = 1,
}

/// A `barchan_source` from C, where an enum may hold any int; the header shows the plain enum.
pub(crate) type AnySource = MaybeUninit<barchan_source>;

/// The number that C passed.
pub(crate) fn number(source: AnySource) -> c_int {
    const { assert!(size_of::<AnySource>() == size_of::<c_int>()) };
    // SAFETY: 1. C always passes a whole int, so every byte is initialised. 2. The sizes agree.
    unsafe { source.as_ptr().cast::<c_int>().read() }
}

impl barchan_source {
    const ALL: [Self; 10] = [
        Self::BARCHAN_SOURCE_AUTO,
        Self::BARCHAN_SOURCE_PAGEMAP_SCAN,
        Self::BARCHAN_SOURCE_USERFAULTFD,
        Self::BARCHAN_SOURCE_SOFT_DIRTY,
        Self::BARCHAN_SOURCE_MPROTECT,
        Self::BARCHAN_SOURCE_ALL_DIRTY,
        Self::BARCHAN_SOURCE_GUEST_PTE,
        Self::BARCHAN_SOURCE_GUEST_TLB,
        Self::BARCHAN_SOURCE_GUEST_DIRECT,
        Self::BARCHAN_SOURCE_GUEST_PML,
    ];

    /// The source of that number, if it is one.
    pub(crate) fn from_number(number: c_int) -> Option<Self> {
        Self::ALL.into_iter().find(|source| *source as c_int == number)
    }

    /// The source to force; `None` to choose.
    pub(crate) fn forced(self) -> Option<Source> {
        Source::ALL.into_iter().find(|source| Self::from(*source) == self)
    }

    /// The name for people.
    pub(crate) fn c_name(self) -> &'static CStr {
        match self {
            Self::BARCHAN_SOURCE_AUTO => c"auto",
            Self::BARCHAN_SOURCE_PAGEMAP_SCAN => c"pagemap-scan",
            Self::BARCHAN_SOURCE_USERFAULTFD => c"userfaultfd",
            Self::BARCHAN_SOURCE_SOFT_DIRTY => c"soft-dirty",
            Self::BARCHAN_SOURCE_MPROTECT => c"mprotect",
            Self::BARCHAN_SOURCE_ALL_DIRTY => c"all-dirty",
            Self::BARCHAN_SOURCE_GUEST_PTE => c"guest-pte",
            Self::BARCHAN_SOURCE_GUEST_TLB => c"guest-tlb",
            Self::BARCHAN_SOURCE_GUEST_DIRECT => c"guest-direct",
            Self::BARCHAN_SOURCE_GUEST_PML => c"guest-pml",
        }
    }
}

impl From<Source> for barchan_source {
    fn from(source: Source) -> Self {
        match source {
            Source::GuestPte => Self::BARCHAN_SOURCE_GUEST_PTE,
            Source::GuestPml => Self::BARCHAN_SOURCE_GUEST_PML,
            Source::GuestTlb => Self::BARCHAN_SOURCE_GUEST_TLB,
            Source::GuestDirect => Self::BARCHAN_SOURCE_GUEST_DIRECT,
            Source::PagemapScan => Self::BARCHAN_SOURCE_PAGEMAP_SCAN,
            Source::Userfaultfd => Self::BARCHAN_SOURCE_USERFAULTFD,
            Source::SoftDirty => Self::BARCHAN_SOURCE_SOFT_DIRTY,
            Source::Mprotect => Self::BARCHAN_SOURCE_MPROTECT,
            // A source of a newer library; the one whose promises every other one keeps.
            _ => Self::BARCHAN_SOURCE_ALL_DIRTY,
        }
    }
}

/// Counters of a tracker since it was opened, over all its regions.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct barchan_stats {
    /// Set by the caller to sizeof(barchan_stats); set by the call to the bytes it filled.
    pub size_bytes: u64,
    /// Write faults resolved; UINT64_MAX where the kernel resolves them unseen.
    pub faults: u64,
    /// Pages armed, by arm and by collect_and_reset.
    pub pages_armed: u64,
    /// Pages disarmed.
    pub pages_disarmed: u64,
    /// Dirty pages reported by collect_and_reset.
    pub pages_reported: u64,
    /// Calls of collect_and_reset and peek.
    pub scans: u64,
    /// Time spent in those, in nanoseconds.
    pub scan_ns: u64,
    /// Times that pages were called dirty for want of knowledge.
    pub degraded: u64,
    /// What the automatic choice measured in this process, where it had to choose: nanoseconds that a page
    /// costs which is written once between two collections, with guest-pte; 0 if nothing was measured.
    pub guest_pte_ns: u64,
    /// The same with pagemap-scan.
    pub pagemap_scan_ns: u64,
}

impl barchan_stats {
    /// Fills as much of `*out` as its caller knows of.
    ///
    /// # Errors
    /// The size given, if it does not even hold the size.
    ///
    /// # Safety
    /// `out` is aligned, and `out.size_bytes` is initialised and no more than there is.
    pub(crate) unsafe fn fill(out: *mut Self, stats: Stats) -> Result<(), u64> {
        let word = size_of::<u64>();
        // SAFETY: initialised by the caller's promise.
        let given = unsafe { (&raw const (*out).size_bytes).read() };
        let bytes = usize::try_from(given).unwrap_or(usize::MAX).min(size_of::<Self>());
        if bytes < 2 * word || bytes % word != 0 {
            return Err(given);
        }
        let filled = Self {
            size_bytes: bytes as u64,
            faults: stats.faults.unwrap_or(u64::MAX),
            pages_armed: stats.pages_armed,
            pages_disarmed: stats.pages_disarmed,
            pages_reported: stats.pages_reported,
            scans: stats.scans,
            scan_ns: stats.scan_ns,
            degraded: stats.degraded,
            guest_pte_ns: stats.measured.map_or(0, |measured| measured.guest_pte_ns.max(1)),
            pagemap_scan_ns: stats.measured.map_or(0, |measured| measured.pagemap_scan_ns.max(1)),
        };
        // SAFETY: 1. `bytes` bytes are there by the caller's promise. 2. `filled` is as long.
        unsafe {
            core::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), out.cast(), bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_library() {
        for source in Source::ALL {
            let here = barchan_source::from(source);
            assert_eq!(here.c_name().to_str(), Ok(source.name()));
            assert_eq!(here.forced(), Some(source));
            assert_eq!(barchan_source::from_number(here as c_int), Some(here));
        }
        assert_eq!(barchan_source::from_number(barchan_source::ALL.len() as c_int), None);
        assert_eq!(barchan_source::BARCHAN_SOURCE_AUTO.forced(), None);
    }
}
