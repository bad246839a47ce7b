//! `/dev/dune` as Rust sees it: the structures mean what the module means.
//!
//! Skipped where there is no `/dev/dune`. On an emulated host:
//! `cargo xtask guest-test --host bochs --no-kvm --module 'kmod/dune.ko allow_l1tf=1' -p dune-sys
//! --test device`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

use dune_sys::{
    DUNE_ABI_VERSION, DUNE_ACCESS_WRITE, DUNE_CREATE_VM, DUNE_EXIT_MEMORY, DUNE_EXIT_VMCALL,
    DUNE_GET_INFO, DUNE_VCPU_GET_STATE, DUNE_VCPU_RUN, DUNE_VCPU_SET_STATE, DUNE_VM_CREATE_VCPU,
    DUNE_VM_MAP_WINDOW, dune_info, dune_run, dune_segment, dune_state, dune_vcpu_config,
    dune_vm_config, dune_window,
};

const PAGE: usize = 4096;
/// Where the guest's memory lies: 16 pages at the same address on all three levels.
const BASE: usize = 0x1000_0000;

/// A call with a structure, which the kernel reads or writes.
fn call<T>(fd: &impl std::os::fd::AsRawFd, number: u32, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the number tells the kernel the size of T, which `argument` points to.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), u64::from(number) as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/dune") {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped: /dev/dune: {error} (insmod kmod/dune.ko, on a machine with VT-x)");
            None
        }
    }
}

fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: a call has just made this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn call_numbers_tell_direction_and_size() {
    let ioc = |direction: u32, size: usize, number: u32| {
        direction << 30 | (size as u32) << 16 | 0xde << 8 | number
    };
    assert_eq!(DUNE_GET_INFO, ioc(2, size_of::<dune_info>(), 0));
    assert_eq!(DUNE_CREATE_VM, ioc(1, size_of::<dune_vm_config>(), 1));
    assert_eq!(DUNE_VCPU_GET_STATE, ioc(2, size_of::<dune_state>(), 0x21));
    assert_eq!(DUNE_VCPU_SET_STATE, ioc(1, size_of::<dune_state>(), 0x22));
    assert_eq!(DUNE_VCPU_RUN, ioc(0, 0, 0x20));
}

#[test]
fn the_module_speaks_this_version() {
    let Some(device) = open() else { return };
    let mut info = dune_info::default();
    call(&device, DUNE_GET_INFO, &mut info).expect("DUNE_GET_INFO");
    assert_eq!(info.abi_version, DUNE_ABI_VERSION);
    assert!((32..=48).contains(&info.gpa_bits));
    assert!(info.xsave_bytes >= 576);
    assert_eq!(info.reserved, [0; 8]);
}

/// 16 pages at BASE: page tables with one entry each in the first four, code in the fifth.
fn guest_memory() -> *mut u64 {
    // SAFETY: a new mapping; it replaces nothing, or fails.
    let memory = unsafe {
        libc::mmap(
            BASE as *mut _,
            16 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(memory, BASE as *mut _, "the test needs its pages at {BASE:#x}");
    let words = memory.cast::<u64>();
    let per_page = PAGE / 8;
    let next = |level: usize| (BASE + (level + 1) * PAGE) as u64 | 7;
    // SAFETY: all of this is within the 16 pages.
    unsafe {
        words.write(next(0)); // PML4 entry 0
        words.add(per_page).write(next(1)); // PDPT entry 0: BASE is in the first GiB
        words.add(2 * per_page + (BASE >> 21)).write(next(2));
        for page in 0..512 {
            words.add(3 * per_page + page).write((BASE + page * PAGE) as u64 | 7);
        }
        // mov byte [rdi], 0x5a; vmcall; ud2
        let code = words.add(4 * per_page).cast::<u8>();
        ptr::copy_nonoverlapping(
            [0xc6, 0x07, 0x5a, 0x0f, 0x01, 0xc1, 0x0f, 0x0b].as_ptr(),
            code,
            8,
        );
    }
    words
}

fn long_mode_at_ring_3(info: &dune_info) -> dune_state {
    let segment = |selector, access_rights| dune_segment {
        limit: u32::MAX,
        access_rights,
        selector,
        ..Default::default()
    };
    let data = segment(0x1b, 0xc0f3);
    dune_state {
        cs: segment(0x23, 0xa0fb),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: dune_segment { limit: 0x67, access_rights: 0x8b, selector: 0x28, ..Default::default() },
        ldtr: dune_segment { access_rights: 0x1_0000, ..Default::default() },
        cr0: 0x8001_0033,
        cr3: BASE as u64,
        cr4: 0x620 & info.cr4,
        efer: 0xd01,
        ..Default::default()
    }
}

#[test]
fn a_guest_writes_into_the_process() {
    let Some(device) = open() else { return };
    let mut info = dune_info::default();
    call(&device, DUNE_GET_INFO, &mut info).expect("DUNE_GET_INFO");
    let memory = guest_memory();
    let mut config = dune_vm_config::default();
    let vm = adopt(call(&device, DUNE_CREATE_VM, &mut config).expect("DUNE_CREATE_VM"));
    let mut window = dune_window {
        gpa: BASE as u64,
        hva: BASE as u64,
        size: 32 * PAGE as u64,
        ..Default::default()
    };
    call(&vm, DUNE_VM_MAP_WINDOW, &mut window).expect("DUNE_VM_MAP_WINDOW");
    let mut config = dune_vcpu_config::default();
    let vcpu = adopt(call(&vm, DUNE_VM_CREATE_VCPU, &mut config).expect("DUNE_VM_CREATE_VCPU"));
    // SAFETY: a new mapping of the run page, at an address of the kernel's choice.
    let run = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
    };
    assert_ne!(run, libc::MAP_FAILED, "mmap of the run page: {}", io::Error::last_os_error());
    let run = run.cast::<dune_run>();
    let mut state = long_mode_at_ring_3(&info);
    call(&vcpu, DUNE_VCPU_SET_STATE, &mut state).expect("DUNE_VCPU_SET_STATE");

    // A page that is mapped, and one in the window that is not.
    for (target, exit) in
        [(BASE + 8 * PAGE + 5, DUNE_EXIT_VMCALL), (BASE + 20 * PAGE, DUNE_EXIT_MEMORY)]
    {
        // SAFETY: the run page is mapped, and no run is under way.
        unsafe {
            (*run).regs.rip = (BASE + 4 * PAGE) as u64;
            (*run).regs.rdi = target as u64;
            (*run).regs.rflags = 0x202;
        }
        let reason = loop {
            match call(&vcpu, DUNE_VCPU_RUN, ptr::null_mut::<u8>()) {
                // SAFETY: as above.
                Ok(_) => break unsafe { (*run).exit_reason },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("DUNE_VCPU_RUN: {error}"),
            }
        };
        assert_eq!(reason, exit);
        // SAFETY: as above.
        let after = unsafe { *run };
        if exit == DUNE_EXIT_VMCALL {
            assert_eq!(after.regs.rip, (BASE + 4 * PAGE + 6) as u64);
        } else {
            assert_eq!((after.gpa, after.gva), (target as u64, target as u64));
            assert_eq!(after.access & 7, DUNE_ACCESS_WRITE);
            assert_eq!(after.error, libc::EFAULT);
        }
    }
    // SAFETY: within the 16 pages.
    assert_eq!(unsafe { memory.cast::<u8>().add(8 * PAGE + 5).read_volatile() }, 0x5a);
    call(&vcpu, DUNE_VCPU_GET_STATE, &mut state).expect("DUNE_VCPU_GET_STATE");
    assert_eq!(state.cs.selector, 0x23);
}
