//! The privilege level at which the program runs: ring 3, or by option ring 0.
//!
//! At ring 0 the program may use privileged instructions itself. Nothing else is different to it: signal frames
//! show the selectors of Linux' user programs, whatever the CPU's are. What is different for the runtime
//! ([ADR 16](../../../docs/adr/0016-ring-0-by-option.md)):
//!
//! - a gate cannot go to an outer ring, so all gates name ring 0's code segment, and frames for IRETQ its selectors;
//! - SYSCALL changes no ring, and neither does the way back: RIP and RFLAGS are set, and that is all;
//! - every exception takes a stack of its own (IST) at either ring: below the stack pointer is the program's red zone.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::host::kind;
use crate::host::kvm::{KERNEL_CS, KERNEL_SS, USER_CS, USER_SS};

/// A privilege level of the virtual CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ring {
    /// Privileged instructions work. Only where virtualization is real (VT-x, SVM).
    Zero,
    /// As any program runs. Works on all hosts.
    #[default]
    Three,
}

/// Set before the first machine is made, and kept by forked children.
static ZERO: AtomicBool = AtomicBool::new(false);

impl Ring {
    /// That of this process' guest mode.
    #[must_use]
    pub fn current() -> Self {
        if ZERO.load(Ordering::Relaxed) { Self::Zero } else { Self::Three }
    }

    /// What the environment variable `BARCHAN_DUNE_RING` says, "0" or "3"; `None`: it is neither.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"0" => Some(Self::Zero),
            b"3" => Some(Self::Three),
            _ => None,
        }
    }

    pub(crate) fn set(self) {
        ZERO.store(self == Self::Zero, Ordering::Relaxed);
    }

    /// Why the processor says that there can be no program at this ring.
    pub(crate) fn lacking(self) -> Option<&'static str> {
        (self == Self::Zero && kind::hardware().is_none())
            .then_some("this processor has neither VT-x nor SVM")
    }

    /// The selector in CS.
    pub(crate) fn code(self) -> u16 {
        if self == Self::Zero { KERNEL_CS } else { USER_CS }
    }

    /// The selector in SS.
    pub(crate) fn stack(self) -> u16 {
        if self == Self::Zero { KERNEL_SS } else { USER_SS }
    }

    /// Its number.
    pub(crate) fn level(self) -> u8 {
        if self == Self::Zero { 0 } else { 3 }
    }
}

/// Whether the program runs at ring 0.
pub(crate) fn is_zero() -> bool {
    Ring::current() == Ring::Zero
}
