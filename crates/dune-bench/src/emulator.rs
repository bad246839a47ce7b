//! Whether an emulator executes this program's instructions: then times are the emulator's.

use core::arch::x86_64::{__cpuid, CpuidResult};

/// An emulator of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU without KVM.
    Tcg,
    /// Bochs, whose time stamp counter counts instructions.
    Bochs,
}

impl Emulator {
    /// The one that this program runs in, if there is one and it can be told.
    #[must_use]
    pub fn find() -> Option<Self> {
        let hypervisor = __cpuid(1).ecx >> 31 & 1 != 0;
        if hypervisor && is_tcg(__cpuid(0x4000_0000)) {
            return Some(Self::Tcg);
        }
        let bios = std::fs::read_to_string("/sys/class/dmi/id/bios_vendor").unwrap_or_default();
        // QEMU's firmware has taken these over from Bochs, but is told by the hypervisor's leaf.
        let acpi = std::fs::read("/sys/firmware/acpi/tables/FACP").unwrap_or_default();
        let is_bochs = bios.trim().eq_ignore_ascii_case("bochs") || is_bochs_table(&acpi);
        (is_bochs && !hypervisor).then_some(Self::Bochs)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "QEMU TCG",
            Self::Bochs => "Bochs",
        }
    }

    /// What the figures of a program that runs in it are.
    #[must_use]
    pub fn figures(self) -> &'static str {
        match self {
            Self::Tcg => {
                "cycles and times are the emulator's, and only exits are facts of the host"
            }
            Self::Bochs => "cycles are instructions executed, and times say nothing",
        }
    }
}

/// Whether the maker of an ACPI table is Bochs (ACPI 6.4, §5.2.6: six bytes at offset 10).
fn is_bochs_table(table: &[u8]) -> bool {
    table.get(10..16) == Some(b"BOCHS ")
}

/// Whether the hypervisor's leaf is QEMU's own.
fn is_tcg(leaf: CpuidResult) -> bool {
    let text: Vec<u8> =
        [leaf.ebx, leaf.ecx, leaf.edx].into_iter().flat_map(u32::to_le_bytes).collect();
    text == b"TCGTCGTCGTCG"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulators_own_name_is_its() {
        let leaf = |text: &[u8; 12]| {
            let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| text[4 * n + byte]));
            CpuidResult { eax: 0, ebx: word(0), ecx: word(1), edx: word(2) }
        };
        assert!(is_tcg(leaf(b"TCGTCGTCGTCG")));
        assert!(!is_tcg(leaf(b"KVMKVMKVM\0\0\0")));
        assert!(is_bochs_table(b"FACP\0\0\0\0\0\0BOCHS BXPC"));
        assert!(!is_bochs_table(b"FACP\0\0\0\0\0\0ALASKA"));
        assert!(!is_bochs_table(b""));
    }
}
