//! The rows of Dune's Tables 2 and 3, and by which means each can be had here.

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The cheapest system call.
    Getpid,
    /// The first touch of a page of anonymous memory.
    PageFault,
    /// A translation that is not in the TLB.
    PageWalk,
    /// getpid, intercepted and then made.
    Ptrace,
    /// getpid, intercepted and answered without the kernel.
    Sysemu,
    /// From a write to a protected page to the first instruction of the handler.
    Trap,
    /// Appel and Li's TRAP, PROT1, UNPROT, for 100 pages.
    Appel1,
    /// Appel and Li's PROTN, TRAP, UNPROT, for 100 pages.
    Appel2,
}

/// How an operation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Natively, as the paper did it: ptrace; SIGSEGV and mprotect.
    Linux,
    /// Natively, by syscall user dispatch and SIGSYS (Linux 5.11).
    UserDispatch,
    /// Natively, by userfaultfd's write protection and SIGBUS (Linux 5.7).
    Userfaultfd,
    /// In guest mode.
    Guest,
}

impl Row {
    /// All, in the order of the paper.
    pub const ALL: [Self; 8] = [
        Self::Getpid,
        Self::PageFault,
        Self::PageWalk,
        Self::Ptrace,
        Self::Sysemu,
        Self::Trap,
        Self::Appel1,
        Self::Appel2,
    ];

    /// The name in tables and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Getpid => "getpid",
            Self::PageFault => "page-fault",
            Self::PageWalk => "page-walk",
            Self::Ptrace => "ptrace",
            Self::Sysemu => "ptrace-sysemu",
            Self::Trap => "trap",
            Self::Appel1 => "appel1",
            Self::Appel2 => "appel2",
        }
    }

    /// The row with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.name() == name)
    }

    /// What is measured, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Getpid => "the system call getpid",
            Self::PageFault => "first touch of a page of anonymous memory (4 KiB pages)",
            Self::PageWalk => "TLB miss: a read that misses the TLB less one that does not",
            Self::Ptrace => "getpid, intercepted and then made",
            Self::Sysemu => "getpid, intercepted and answered without the kernel",
            Self::Trap => "from a write to a protected page to its handler",
            Self::Appel1 => "100 pages: trap, unprotect it, protect another",
            Self::Appel2 => "100 pages: protect all at once, then for each: trap, unprotect it",
        }
    }

    /// By which means it is measured, in the order of tables.
    #[must_use]
    pub fn means(self) -> &'static [Means] {
        match self {
            Self::Getpid | Self::PageFault | Self::PageWalk => &[Means::Linux, Means::Guest],
            Self::Ptrace | Self::Sysemu => &[Means::Linux, Means::UserDispatch, Means::Guest],
            Self::Trap | Self::Appel1 | Self::Appel2 => {
                &[Means::Linux, Means::Userfaultfd, Means::Guest]
            }
        }
    }
}

impl Means {
    /// All.
    pub const ALL: [Self; 4] = [Self::Linux, Self::UserDispatch, Self::Userfaultfd, Self::Guest];

    /// The name in tables and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::UserDispatch => "user-dispatch",
            Self::Userfaultfd => "userfaultfd",
            Self::Guest => "guest",
        }
    }

    /// The means with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|means| means.name() == name)
    }

    /// Whether it is native.
    #[must_use]
    pub fn is_native(self) -> bool {
        self != Self::Guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        assert!(Row::ALL.into_iter().all(|row| Row::named(row.name()) == Some(row)));
        assert!(Means::ALL.into_iter().all(|means| Means::named(means.name()) == Some(means)));
        assert_eq!((Row::named("x"), Means::named("x")), (None, None));
    }

    #[test]
    fn each_row_has_both_sides() {
        for row in Row::ALL {
            assert_eq!(row.means().first(), Some(&Means::Linux), "{row:?}");
            assert_eq!(row.means().last(), Some(&Means::Guest), "{row:?}");
        }
    }
}
