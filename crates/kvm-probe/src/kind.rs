//! The kind of virtualization, by what the processor says and which module serves `/dev/kvm`.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

/// What stands behind `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Intel VT-x.
    Vmx,
    /// AMD SVM.
    Svm,
    /// No hardware: ring 3 runs as it is, ring 0 is interpreted, page tables are shadowed.
    Pvm,
}

impl Kind {
    /// The kind called `name` on the command line.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "vmx" => Some(Self::Vmx),
            "svm" => Some(Self::Svm),
            "pvm" => Some(Self::Pvm),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "VMX",
            Self::Svm => "SVM",
            Self::Pvm => "PVM",
        })
    }
}

/// Finds the kind, and what it was found by.
pub(crate) fn find() -> anyhow::Result<(Kind, String)> {
    // CPUID: leaf 1 ECX bit 5 is VMX (SDM vol. 2A); leaf 8000_0001h ECX bit 2 is SVM (APM vol. 3).
    let vmx = __cpuid(1).ecx & 1 << 5 != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    let (kind, paging) = match (module("kvm_intel"), module("kvm_amd"), module("kvm_pvm")) {
        (true, false, false) => (Kind::Vmx, Some(("kvm_intel", "ept"))),
        (false, true, false) => (Kind::Svm, Some(("kvm_amd", "npt"))),
        (false, false, true) => (Kind::Pvm, None),
        (intel, amd, pvm) => bail!(
            "cannot tell: kvm_intel {intel}, kvm_amd {amd}, kvm_pvm {pvm} in /sys/module; \
             the CPU has VMX {vmx}, SVM {svm}"
        ),
    };
    let has = match kind {
        Kind::Vmx => vmx,
        Kind::Svm => svm,
        Kind::Pvm => !vmx && !svm,
    };
    if !has {
        bail!("the module of {kind} is loaded, yet the CPU has VMX {vmx}, SVM {svm}");
    }
    let Some((module, parameter)) = paging else {
        return Ok((kind, "kvm_pvm is loaded, the CPU has neither VMX nor SVM".to_owned()));
    };
    let file = format!("/sys/module/{module}/parameters/{parameter}");
    let value = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    Ok((kind, format!("{module} with {parameter}={}", value.trim())))
}
