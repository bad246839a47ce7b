//! The names of the dirty-bit sources, and what a caller has to know about each.

use core::fmt;
use core::str::FromStr;

/// Where the knowledge of what was written comes from, best first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Source {
    /// The dirty bits of the guest's page tables, for a process in guest mode (`barchan run --dune`): the
    /// processor sets them itself.
    GuestPte,
    /// userfaultfd `WP_ASYNC` + the `PAGEMAP_SCAN` ioctl (Linux 6.7): the kernel resolves the
    /// write fault itself; one call reads and re-arms.
    PagemapScan,
    /// userfaultfd write-protect with a monitor thread (Linux 5.14): two thread switches a fault.
    ///
    /// That thread makes the process one of several threads, for as long as the tracker is open: what the kernel
    /// allows to others only, as `unshare(CLONE_NEWUSER)`, fails with EINVAL. Do that before, or use another source.
    Userfaultfd,
    /// Soft-dirty bits (`CONFIG_MEM_SOFT_DIRTY`): free of system calls on a fault, but the reset
    /// is process-wide and only safe while no thread writes.
    ///
    /// Tracked pages are kept from being merged (KSM) and, from Linux 6.12 on, from becoming huge pages, for good:
    /// the kernel loses the bits of such pages. **Writes may be missed** if the program asks for that again later
    /// (`prctl(PR_SET_MEMORY_MERGE)`; `MADV_MERGEABLE` or `MADV_HUGEPAGE` on tracked pages).
    SoftDirty,
    /// In guest mode: the processor's page-modification log (PML), over `/dev/dune` on a machine made with
    /// `BARCHAN_DUNE_PML=1`. Chosen by name only: that machine has no large pages of the second level.
    GuestPml,
    /// In guest mode: write protection in the guest's page tables, faults handled by the guest-mode runtime
    /// without the kernel, pages flushed one by one where that will do. To be compared with; never chosen.
    GuestTlb,
    /// As [`Self::GuestTlb`], with a flush of whole TLBs for each change, those by faults included.
    GuestDirect,
    /// `mprotect` and a SIGSEGV handler: everywhere, slow, and bounded by `vm.max_map_count`.
    ///
    /// A thread that blocks SIGSEGV, or a signal handler that runs with it blocked, must not store to armed pages: the
    /// kernel kills the process. A handler of SIGSEGV that the program installs later takes the faults upon itself; to
    /// open a tracker then is an error. One that was there before gets the faults that are not ours. Pages that
    /// were armed once are readable and writable at most: `PROT_EXEC` is lost.
    Mprotect,
    /// Every page is always dirty: right by definition, and no help.
    AllDirty,
}

/// What happens when the kernel itself writes to an armed page on behalf of a system call
/// (`read`, `recv`, `getrandom`, ...).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KernelWrites {
    /// The call works and the page is reported.
    Tracked,
    /// The call fails with `EFAULT` (nothing is lost, but programs notice).
    Efault,
}

impl Source {
    /// All sources, best first: the order in which they are probed. (Which of the first two is better
    /// depends on the host, and is measured: `Builder::open`. Guest-pml, guest-tlb and guest-direct must be named.)
    pub const ALL: [Self; 9] = [
        Self::GuestPte,
        Self::PagemapScan,
        Self::Userfaultfd,
        Self::SoftDirty,
        Self::GuestPml,
        Self::GuestTlb,
        Self::GuestDirect,
        Self::Mprotect,
        Self::AllDirty,
    ];

    /// Whether it may be used without having been named.
    #[must_use]
    pub const fn is_automatic(self) -> bool {
        !matches!(self, Self::GuestPml | Self::GuestTlb | Self::GuestDirect)
    }

    /// Whether it is a means of the guest's page tables, which a process has in guest mode only.
    #[must_use]
    pub const fn needs_guest_mode(self) -> bool {
        matches!(self, Self::GuestPte | Self::GuestPml | Self::GuestTlb | Self::GuestDirect)
    }

    /// Whether the source notices by itself that the kernel dropped the contents of pages
    /// (`MADV_DONTNEED`, `mmap` or `mremap` over them). If not, call `Region::remapped` for the
    /// pages *before* anything is written to them again.
    ///
    /// Without that call soft-dirty may miss that pages were dropped (one that is read again, as
    /// zeros, looks as clean as before), and mprotect also misses the writes to a new mapping. The call is
    /// needed in one more case: armed pages that were *moved* to where they are by `mremap` look armed to userfaultfd
    /// up to Linux 6.12.10, and the writes to them are missed (CVE-2025-21696).
    #[must_use]
    pub const fn sees_discards(self) -> bool {
        !matches!(self, Self::Mprotect | Self::SoftDirty)
    }

    /// The name used on command lines and in `BARCHAN_TRACKER`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GuestPte => "guest-pte",
            Self::PagemapScan => "pagemap-scan",
            Self::Userfaultfd => "userfaultfd",
            Self::SoftDirty => "soft-dirty",
            Self::GuestPml => "guest-pml",
            Self::GuestTlb => "guest-tlb",
            Self::GuestDirect => "guest-direct",
            Self::Mprotect => "mprotect",
            Self::AllDirty => "all-dirty",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Source`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownSource;

impl fmt::Display for UnknownSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown tracker; known are")?;
        for source in Source::ALL {
            write!(f, " {source}")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownSource {}

impl FromStr for Source {
    type Err = UnknownSource;

    fn from_str(name: &str) -> Result<Self, UnknownSource> {
        Self::ALL.into_iter().find(|source| source.name() == name).ok_or(UnknownSource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for source in Source::ALL {
            assert_eq!(source.to_string().parse(), Ok(source));
        }
        assert_eq!("Mprotect".parse::<Source>(), Err(UnknownSource));
        assert!(
            UnknownSource
                .to_string()
                .ends_with("soft-dirty guest-pml guest-tlb guest-direct mprotect all-dirty")
        );
    }
}
