//! Guests of a few instructions.
//!
//! One VM, one vCPU and 2 MiB of memory at guest-physical 0. Code says by port I/O what it
//! found and ends with HLT; every other exit is an error. Long mode is entered by setting the
//! registers, not by code: page tables of four levels map the 2 MiB to themselves.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::memory::Memory;

const MEMORY_BYTES: usize = 2 << 20;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PD: usize = 0x3000;
const PT: usize = 0x4000;
const CODE: usize = 0x8000;
/// Where the long-mode guest writes.
const DATA: usize = 0x9000;
/// The port on which guests speak.
const PORT: u16 = 0x10;

/// Bits of a page-table entry (SDM vol. 3A, paging).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const DIRTY: u64 = 1 << 6;

/// A guest that can run; fields are dropped in this order.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Memory,
}

impl Guest {
    /// A guest in real mode, about to run `code`.
    fn new(code: &[u8]) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let vm = kvm.create_vm().context("cannot create a VM")?;
        // Wanted by VMX without unrestricted guests; any three pages that memory does not use.
        vm.set_tss_address(0xfffb_d000).context("KVM_SET_TSS_ADDR failed")?;
        let memory = Memory::new(MEMORY_BYTES).context("cannot map memory for a guest")?;
        memory.write(CODE, code);
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.size_bytes(),
            userspace_addr: memory.address(),
        };
        // SAFETY: the range is mapped as long as `memory` lives, which is longer than the VM; it
        // is accessed only through `Memory`.
        unsafe { vm.set_user_memory_region(region) }.context("cannot give the VM its memory")?;
        let vcpu = vm.create_vcpu(0).context("cannot create a vCPU")?;
        // Without this the guest's CPU has no long mode, which Linux 6.12 insists on.
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.context("KVM_GET_SUPPORTED_CPUID failed")?;
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2 failed")?;
        let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS failed")?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
        let mut regs = vcpu.get_regs().context("KVM_GET_REGS failed")?;
        (regs.rip, regs.rflags, regs.rsp) = (CODE as u64, 2, CODE as u64);
        vcpu.set_regs(&regs).context("KVM_SET_REGS failed")?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    /// Goes on to long mode at ring 0.
    fn into_long_mode(self) -> anyhow::Result<Self> {
        let entry = |address: usize| (address as u64 | PRESENT | WRITABLE).to_le_bytes();
        self.memory.write(PML4, &entry(PDPT));
        self.memory.write(PDPT, &entry(PD));
        self.memory.write(PD, &entry(PT));
        for page in 0..512 {
            self.memory.write(PT + 8 * page, &entry(page << 12));
        }
        let mut sregs = self.vcpu.get_sregs().context("KVM_GET_SREGS failed")?;
        let flat = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 0x10,
            type_: 3, // data, read and write, accessed
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        let code = kvm_segment { selector: 0x8, type_: 0xb, db: 0, l: 1, ..flat };
        (sregs.cs, sregs.ds, sregs.es, sregs.ss) = (code, flat, flat, flat);
        sregs.cr3 = PML4 as u64;
        sregs.cr4 |= 1 << 5; // PAE
        sregs.cr0 |= 1 << 31 | 1 << 5 | 1; // PG, NE, PE
        sregs.efer |= 1 << 10 | 1 << 8; // LMA, LME
        self.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS failed for long mode")?;
        Ok(self)
    }

    /// Runs until HLT; returns the bytes that were said.
    fn run(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut said = Vec::new();
        loop {
            match self.vcpu.run().context("KVM_RUN failed")? {
                VcpuExit::IoOut(PORT, bytes) if said.len() < 100 => said.extend_from_slice(bytes),
                VcpuExit::Hlt => return Ok(said),
                VcpuExit::Intr => {}
                other => bail!("unexpected exit: {other:?}"),
            }
        }
    }
}

/// Adds two numbers in real mode and says the sum.
pub(crate) fn real_mode() -> anyhow::Result<String> {
    #[rustfmt::skip]
    let code = [
        0xb0, 0x02, // mov al, 2
        0x04, 0x03, // add al, 3
        0xe6, PORT as u8, // out PORT, al
        0xf4, // hlt
    ];
    let said = Guest::new(&code)?.run()?;
    ensure!(said == [5], "2 + 3 was {said:?}");
    Ok("2 + 3 = 5".to_owned())
}

/// Code for long mode: writes 0x1234 to [`DATA`], counts down from `count`, says 0x42.
fn long_mode_code(count: u32) -> Vec<u8> {
    let data = u32::try_from(DATA).expect("an address below 2 MiB").to_le_bytes();
    let mut code = vec![0xc7, 0x04, 0x25]; // mov dword [DATA], 0x1234
    code.extend(data);
    code.extend(0x1234_u32.to_le_bytes());
    code.push(0xb9); // mov ecx, count
    code.extend(count.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // 1: dec ecx; jnz 1b
    code.extend([0xb0, 0x42, 0xe6, PORT as u8, 0xf4]); // mov al, 0x42; out PORT, al; hlt
    code
}

/// Writes memory and loops in long mode at ring 0.
pub(crate) fn long_mode() -> anyhow::Result<String> {
    let mut guest = Guest::new(&long_mode_code(1000))?.into_long_mode()?;
    let said = guest.run()?;
    ensure!(said == [0x42], "it said {said:x?}");
    let written = guest.memory.read(DATA);
    ensure!(written == 0x1234, "it wrote {written:#x}");
    let rcx = guest.vcpu.get_regs().context("KVM_GET_REGS failed")?.rcx;
    ensure!(rcx == 0, "rcx is {rcx} after the loop");
    Ok("a loop, a write, an exit".to_owned())
}

/// A guest's write sets the dirty bit of its own page table, and of no other page.
pub(crate) fn dirty_bit() -> anyhow::Result<String> {
    let mut guest = Guest::new(&long_mode_code(1))?.into_long_mode()?;
    let dirty = |guest: &Guest| -> Vec<usize> {
        (0..512).filter(|page| guest.memory.read(PT + 8 * page) & DIRTY != 0).collect()
    };
    let before = dirty(&guest);
    ensure!(before.is_empty(), "pages {before:?} were dirty before anything ran");
    guest.run()?;
    let after = dirty(&guest);
    ensure!(after == [DATA >> 12], "pages {after:?} are dirty, not just {}", DATA >> 12);
    Ok("set by the write, for its page alone".to_owned())
}

/// What one instruction costs at ring 0, best of three runs.
pub(crate) fn ring_0_nanoseconds() -> anyhow::Result<f64> {
    const COUNT: u32 = 20_000;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let mut guest = Guest::new(&long_mode_code(COUNT))?.into_long_mode()?;
        let start = Instant::now();
        guest.run()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(2 * COUNT));
    }
    Ok(best)
}
