//! Which kind of host it is: found by what it can do and by measuring, never by a name.
//!
//! Processor flags say what virtualization the hardware offers to this kernel; that `/dev/kvm` works
//! without any says that the host is paravirtual. Then a short run in guest mode tells at which
//! privilege level SYSCALL arrives: 0 on real virtualization, 3 where ring 0 is interpreted. The
//! two must agree.

use core::arch::x86_64::{__cpuid, __cpuid_count};
use std::time::Instant;

use super::HostError;
use crate::stats::Snapshot;
use crate::sys;

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Intel VT-x.
    Vmx,
    /// AMD SVM.
    Svm,
    /// No hardware virtualization: guest ring 3 runs natively, ring 0 is interpreted, and page tables are
    /// shadowed (PVM).
    Paravirtual,
}

impl HostKind {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmx => "VT-x",
            Self::Svm => "SVM",
            Self::Paravirtual => "PVM (paravirtual)",
        }
    }
}

/// What the processor says that it has. Where virtualization is real, in guest mode the guest's processor is asked, which
/// has none of its own as a rule.
#[must_use]
pub fn hardware() -> Option<HostKind> {
    // CPUID is there on every x86-64 processor.
    let basic = __cpuid(1).ecx;
    if basic >> 5 & 1 != 0 {
        return Some(HostKind::Vmx);
    }
    let highest = __cpuid(0x8000_0000).eax;
    if highest >= 0x8000_0001 && __cpuid_count(0x8000_0001, 0).ecx >> 2 & 1 != 0 {
        return Some(HostKind::Svm);
    }
    None
}

/// What [`measure`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// The kind, by where SYSCALL arrives and what the processor says. `None`: it is real
    /// virtualization, and the processor's flags hide which.
    pub kind: Option<HostKind>,
    /// What [`hardware`] said before guest mode was entered.
    pub hardware: Option<HostKind>,
    /// The privilege level at which SYSCALL arrives.
    pub syscall_ring: u8,
    /// Entering, in nanoseconds.
    pub enter_ns: u64,
    /// A system call and back, the median of many, in nanoseconds.
    pub call_ns: u64,
}

/// Enters guest mode and measures. The process stays there: call it in one that is there for
/// nothing else, with one thread.
///
/// # Errors
/// Guest mode is not to be had.
pub fn measure() -> Result<Measured, crate::EnterError> {
    let errno = sys::Errno(libc::EBUSY);
    let threads = std::fs::read_dir("/proc/self/task").map_or(2, Iterator::count);
    if threads != 1 {
        return Err(HostError { step: "measuring in a process with threads", errno }.into());
    }
    let hardware = hardware();
    let start = Instant::now();
    // SAFETY: 1. there is one thread. 2. What runs from here on is this function and its caller, who
    // was told.
    unsafe { crate::enter() }?;
    let enter_ns = start.elapsed().as_nanos() as u64;
    let mut times = [0u64; 101];
    for time in &mut times {
        let start = Instant::now();
        sys::thread_id();
        *time = start.elapsed().as_nanos() as u64;
    }
    times.sort_unstable();
    let ring = Snapshot::current().syscall_ring.unwrap_or(3);
    let kind = if ring == 0 { hardware } else { Some(HostKind::Paravirtual) };
    Ok(Measured { kind, hardware, syscall_ring: ring, enter_ns, call_ns: times[50] })
}
