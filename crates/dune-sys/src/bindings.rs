// Generated from kmod/include/uapi/linux/dune.h by tests/abi; changes here are lost.
#![allow(missing_docs, non_camel_case_types)]

pub const DUNE_ABI_VERSION: u32 = 0x1;
pub const DUNE_WINDOWS_MAX: u32 = 0x200;
pub const DUNE_VCPUS_MAX: u32 = 0x1000;
pub const DUNE_PAGE_SIZE: u32 = 0x1000;
pub const DUNE_FEATURE_LARGE_2M: u64 = 0x1;
pub const DUNE_FEATURE_LARGE_1G: u64 = 0x2;
pub const DUNE_FEATURE_PML: u64 = 0x4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_info {
    pub abi_version: u32,
    pub gpa_bits: u32,
    pub features: u64,
    pub xcr0: u64,
    pub cr0: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xsave_bytes: u32,
    pub vpid: u32,
    pub reserved: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_vm_config {
    pub features: u64,
    pub xcr0: u64,
    pub reserved: [u64; 6],
}
pub const DUNE_WINDOW_READONLY: u32 = 0x1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_window {
    pub gpa: u64,
    pub hva: u64,
    pub size: u64,
    pub flags: u32,
    pub reserved0: u32,
    pub reserved: [u64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_range {
    pub gpa: u64,
    pub size: u64,
    pub reserved: [u64; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_vcpu_config {
    pub flags: u32,
    pub ring_entries: u32,
    pub reserved: [u64; 7],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_segment {
    pub base: u64,
    pub limit: u32,
    pub access_rights: u32,
    pub selector: u16,
    pub reserved0: u16,
    pub reserved1: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_table {
    pub base: u64,
    pub limit: u32,
    pub reserved0: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_state {
    pub cs: dune_segment,
    pub ss: dune_segment,
    pub ds: dune_segment,
    pub es: dune_segment,
    pub fs: dune_segment,
    pub gs: dune_segment,
    pub tr: dune_segment,
    pub ldtr: dune_segment,
    pub gdt: dune_table,
    pub idt: dune_table,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub reserved: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_buffer {
    pub addr: u64,
    pub size: u32,
    pub reserved0: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}
pub const DUNE_EXIT_NONE: u32 = 0x0;
pub const DUNE_EXIT_INTERRUPTED: u32 = 0x1;
pub const DUNE_EXIT_VMCALL: u32 = 0x2;
pub const DUNE_EXIT_MEMORY: u32 = 0x3;
pub const DUNE_EXIT_EXCEPTION: u32 = 0x4;
pub const DUNE_EXIT_SHUTDOWN: u32 = 0x5;
pub const DUNE_EXIT_FAIL_ENTRY: u32 = 0x6;
pub const DUNE_EXIT_RING_FULL: u32 = 0x7;
pub const DUNE_EXIT_CPUID: u32 = 0x8;
pub const DUNE_EXIT_HLT: u32 = 0x9;
pub const DUNE_EXIT_IO: u32 = 0xa;
pub const DUNE_EXIT_RDMSR: u32 = 0xb;
pub const DUNE_EXIT_WRMSR: u32 = 0xc;
pub const DUNE_EXIT_CR: u32 = 0xd;
pub const DUNE_EXIT_XSETBV: u32 = 0xe;
pub const DUNE_EXIT_OTHER: u32 = 0xf;
pub const DUNE_ACCESS_READ: u32 = 0x1;
pub const DUNE_ACCESS_WRITE: u32 = 0x2;
pub const DUNE_ACCESS_EXECUTE: u32 = 0x4;
pub const DUNE_ACCESS_GVA_VALID: u32 = 0x8;
pub const DUNE_ACCESS_PAGE_WALK: u32 = 0x10;
pub const DUNE_EVENT_VALID: u32 = 0x80000000;
pub const DUNE_EVENT_HAS_ERROR: u32 = 0x800;
pub const DUNE_EVENT_EXCEPTION: u32 = 0x300;
pub const DUNE_RUN_FORGET_EVENT: u32 = 0x1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_run {
    pub immediate_exit: u32,
    pub exceptions: u32,
    pub inject: u32,
    pub inject_error: u32,
    pub flags: u32,
    pub reserved0: u32,
    pub reserved1: [u64; 4],
    pub exit_reason: u32,
    pub vmx_reason: u32,
    pub qualification: u64,
    pub gpa: u64,
    pub gva: u64,
    pub access: u32,
    pub error: i32,
    pub event_info: u32,
    pub event_error: u32,
    pub instruction_bytes: u32,
    pub reserved2: u32,
    pub reserved3: [u64; 8],
    pub fs_base: u64,
    pub gs_base: u64,
    pub cr2: u64,
    pub reserved4: u64,
    pub regs: dune_regs,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct dune_ring {
    pub head: u32,
    pub entries: u32,
    pub reserved0: [u32; 14],
    pub tail: u32,
    pub reserved1: [u32; 15],
}
pub const DUNE_RING_OFFSET: u32 = 0x1000;
pub const DUNE_RING_ENTRIES: u32 = 0x2000;
pub const DUNE_IOC: u32 = 0xde;
pub const DUNE_GET_INFO: u32 = 0x8078de00;
pub const DUNE_CREATE_VM: u32 = 0x4040de01;
pub const DUNE_VM_MAP_WINDOW: u32 = 0x4040de10;
pub const DUNE_VM_UNMAP_WINDOW: u32 = 0x4040de11;
pub const DUNE_VM_CREATE_VCPU: u32 = 0x4040de12;
pub const DUNE_VM_CLEAR_DIRTY: u32 = 0x4020de13;
pub const DUNE_VCPU_RUN: u32 = 0xde20;
pub const DUNE_VCPU_GET_STATE: u32 = 0x8160de21;
pub const DUNE_VCPU_SET_STATE: u32 = 0x4160de22;
pub const DUNE_VCPU_GET_XSAVE: u32 = 0x4010de23;
pub const DUNE_VCPU_SET_XSAVE: u32 = 0x4010de24;

const _: () = {
    assert!(size_of::<dune_info>() == 120);
    assert!(align_of::<dune_info>() == 8);
    assert!(core::mem::offset_of!(dune_info, abi_version) == 0);
    assert!(core::mem::offset_of!(dune_info, gpa_bits) == 4);
    assert!(core::mem::offset_of!(dune_info, features) == 8);
    assert!(core::mem::offset_of!(dune_info, xcr0) == 16);
    assert!(core::mem::offset_of!(dune_info, cr0) == 24);
    assert!(core::mem::offset_of!(dune_info, cr4) == 32);
    assert!(core::mem::offset_of!(dune_info, efer) == 40);
    assert!(core::mem::offset_of!(dune_info, xsave_bytes) == 48);
    assert!(core::mem::offset_of!(dune_info, vpid) == 52);
    assert!(core::mem::offset_of!(dune_info, reserved) == 56);
    assert!(size_of::<dune_vm_config>() == 64);
    assert!(align_of::<dune_vm_config>() == 8);
    assert!(core::mem::offset_of!(dune_vm_config, features) == 0);
    assert!(core::mem::offset_of!(dune_vm_config, xcr0) == 8);
    assert!(core::mem::offset_of!(dune_vm_config, reserved) == 16);
    assert!(size_of::<dune_window>() == 64);
    assert!(align_of::<dune_window>() == 8);
    assert!(core::mem::offset_of!(dune_window, gpa) == 0);
    assert!(core::mem::offset_of!(dune_window, hva) == 8);
    assert!(core::mem::offset_of!(dune_window, size) == 16);
    assert!(core::mem::offset_of!(dune_window, flags) == 24);
    assert!(core::mem::offset_of!(dune_window, reserved0) == 28);
    assert!(core::mem::offset_of!(dune_window, reserved) == 32);
    assert!(size_of::<dune_range>() == 32);
    assert!(align_of::<dune_range>() == 8);
    assert!(core::mem::offset_of!(dune_range, gpa) == 0);
    assert!(core::mem::offset_of!(dune_range, size) == 8);
    assert!(core::mem::offset_of!(dune_range, reserved) == 16);
    assert!(size_of::<dune_vcpu_config>() == 64);
    assert!(align_of::<dune_vcpu_config>() == 8);
    assert!(core::mem::offset_of!(dune_vcpu_config, flags) == 0);
    assert!(core::mem::offset_of!(dune_vcpu_config, ring_entries) == 4);
    assert!(core::mem::offset_of!(dune_vcpu_config, reserved) == 8);
    assert!(size_of::<dune_segment>() == 24);
    assert!(align_of::<dune_segment>() == 8);
    assert!(core::mem::offset_of!(dune_segment, base) == 0);
    assert!(core::mem::offset_of!(dune_segment, limit) == 8);
    assert!(core::mem::offset_of!(dune_segment, access_rights) == 12);
    assert!(core::mem::offset_of!(dune_segment, selector) == 16);
    assert!(core::mem::offset_of!(dune_segment, reserved0) == 18);
    assert!(core::mem::offset_of!(dune_segment, reserved1) == 20);
    assert!(size_of::<dune_table>() == 16);
    assert!(align_of::<dune_table>() == 8);
    assert!(core::mem::offset_of!(dune_table, base) == 0);
    assert!(core::mem::offset_of!(dune_table, limit) == 8);
    assert!(core::mem::offset_of!(dune_table, reserved0) == 12);
    assert!(size_of::<dune_state>() == 352);
    assert!(align_of::<dune_state>() == 8);
    assert!(core::mem::offset_of!(dune_state, cs) == 0);
    assert!(core::mem::offset_of!(dune_state, ss) == 24);
    assert!(core::mem::offset_of!(dune_state, ds) == 48);
    assert!(core::mem::offset_of!(dune_state, es) == 72);
    assert!(core::mem::offset_of!(dune_state, fs) == 96);
    assert!(core::mem::offset_of!(dune_state, gs) == 120);
    assert!(core::mem::offset_of!(dune_state, tr) == 144);
    assert!(core::mem::offset_of!(dune_state, ldtr) == 168);
    assert!(core::mem::offset_of!(dune_state, gdt) == 192);
    assert!(core::mem::offset_of!(dune_state, idt) == 208);
    assert!(core::mem::offset_of!(dune_state, cr0) == 224);
    assert!(core::mem::offset_of!(dune_state, cr3) == 232);
    assert!(core::mem::offset_of!(dune_state, cr4) == 240);
    assert!(core::mem::offset_of!(dune_state, efer) == 248);
    assert!(core::mem::offset_of!(dune_state, star) == 256);
    assert!(core::mem::offset_of!(dune_state, lstar) == 264);
    assert!(core::mem::offset_of!(dune_state, fmask) == 272);
    assert!(core::mem::offset_of!(dune_state, kernel_gs_base) == 280);
    assert!(core::mem::offset_of!(dune_state, reserved) == 288);
    assert!(size_of::<dune_buffer>() == 16);
    assert!(align_of::<dune_buffer>() == 8);
    assert!(core::mem::offset_of!(dune_buffer, addr) == 0);
    assert!(core::mem::offset_of!(dune_buffer, size) == 8);
    assert!(core::mem::offset_of!(dune_buffer, reserved0) == 12);
    assert!(size_of::<dune_regs>() == 144);
    assert!(align_of::<dune_regs>() == 8);
    assert!(core::mem::offset_of!(dune_regs, rax) == 0);
    assert!(core::mem::offset_of!(dune_regs, rbx) == 8);
    assert!(core::mem::offset_of!(dune_regs, rcx) == 16);
    assert!(core::mem::offset_of!(dune_regs, rdx) == 24);
    assert!(core::mem::offset_of!(dune_regs, rsi) == 32);
    assert!(core::mem::offset_of!(dune_regs, rdi) == 40);
    assert!(core::mem::offset_of!(dune_regs, rsp) == 48);
    assert!(core::mem::offset_of!(dune_regs, rbp) == 56);
    assert!(core::mem::offset_of!(dune_regs, r8) == 64);
    assert!(core::mem::offset_of!(dune_regs, r9) == 72);
    assert!(core::mem::offset_of!(dune_regs, r10) == 80);
    assert!(core::mem::offset_of!(dune_regs, r11) == 88);
    assert!(core::mem::offset_of!(dune_regs, r12) == 96);
    assert!(core::mem::offset_of!(dune_regs, r13) == 104);
    assert!(core::mem::offset_of!(dune_regs, r14) == 112);
    assert!(core::mem::offset_of!(dune_regs, r15) == 120);
    assert!(core::mem::offset_of!(dune_regs, rip) == 128);
    assert!(core::mem::offset_of!(dune_regs, rflags) == 136);
    assert!(size_of::<dune_run>() == 352);
    assert!(align_of::<dune_run>() == 8);
    assert!(core::mem::offset_of!(dune_run, immediate_exit) == 0);
    assert!(core::mem::offset_of!(dune_run, exceptions) == 4);
    assert!(core::mem::offset_of!(dune_run, inject) == 8);
    assert!(core::mem::offset_of!(dune_run, inject_error) == 12);
    assert!(core::mem::offset_of!(dune_run, flags) == 16);
    assert!(core::mem::offset_of!(dune_run, reserved0) == 20);
    assert!(core::mem::offset_of!(dune_run, reserved1) == 24);
    assert!(core::mem::offset_of!(dune_run, exit_reason) == 56);
    assert!(core::mem::offset_of!(dune_run, vmx_reason) == 60);
    assert!(core::mem::offset_of!(dune_run, qualification) == 64);
    assert!(core::mem::offset_of!(dune_run, gpa) == 72);
    assert!(core::mem::offset_of!(dune_run, gva) == 80);
    assert!(core::mem::offset_of!(dune_run, access) == 88);
    assert!(core::mem::offset_of!(dune_run, error) == 92);
    assert!(core::mem::offset_of!(dune_run, event_info) == 96);
    assert!(core::mem::offset_of!(dune_run, event_error) == 100);
    assert!(core::mem::offset_of!(dune_run, instruction_bytes) == 104);
    assert!(core::mem::offset_of!(dune_run, reserved2) == 108);
    assert!(core::mem::offset_of!(dune_run, reserved3) == 112);
    assert!(core::mem::offset_of!(dune_run, fs_base) == 176);
    assert!(core::mem::offset_of!(dune_run, gs_base) == 184);
    assert!(core::mem::offset_of!(dune_run, cr2) == 192);
    assert!(core::mem::offset_of!(dune_run, reserved4) == 200);
    assert!(core::mem::offset_of!(dune_run, regs) == 208);
    assert!(size_of::<dune_ring>() == 128);
    assert!(align_of::<dune_ring>() == 4);
    assert!(core::mem::offset_of!(dune_ring, head) == 0);
    assert!(core::mem::offset_of!(dune_ring, entries) == 4);
    assert!(core::mem::offset_of!(dune_ring, reserved0) == 8);
    assert!(core::mem::offset_of!(dune_ring, tail) == 64);
    assert!(core::mem::offset_of!(dune_ring, reserved1) == 68);
};
