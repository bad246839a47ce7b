//! `/dev/kvm`, through kvm-ioctls; running a CPU and reading its registers is done by hand.
//!
//! Why by hand: `KVM_RUN` through the crate leaves its error in `errno`, which is the program's,
//! and reports `EFAULT` without the exit that Linux 6.8 fills beside it. Everything else
//! is rare, and leaves `errno` alone when it succeeds.
//!
//! Descriptors live above those that programs use, and are closed by `execve`. Nothing here
//! allocates once [`open`] has returned: the CPUID table and the list of MSRs are made there, once
//! for the process and its forked children.

use core::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;

use kvm_bindings as kvm;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_run};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};

use super::{Exit, HostError, Registers, Segments, Start, Step as _, Vcpu, Vm, Xsave, kind};
use crate::sys::{self, Errno};

const KVM_RUN: u64 = 0xae80;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// What SYSCALL clears, as Linux has it: TF, IF, DF, IOPL, NT, AC.
pub(crate) const SYSCALL_MASK: u64 = 0x4_7700;
/// SYSCALL goes to selectors 0x10/0x18, SYSRET to 0x33/0x2b, as on Linux.
pub(crate) const STAR: u64 = 0x23 << 48 | 0x10 << 32;
/// The user's selectors on x86-64 Linux.
pub(crate) const USER_CS: u16 = 0x33;
pub(crate) const USER_SS: u16 = 0x2b;
/// Where SYSCALL goes, and the program at ring 0 is.
pub(crate) const KERNEL_CS: u16 = 0x10;
pub(crate) const KERNEL_SS: u16 = 0x18;
pub(crate) const TSS_SELECTOR: u16 = 0x40;
/// XCR0 bits that a guest may have: x87, SSE, AVX, AVX-512, PKRU; not AMX, whose state is too big
/// for `KVM_GET_XSAVE`.
pub(crate) const XCR0_WANTED: u64 = 0x2e7;

/// What all machines of this process share.
struct Shared {
    cpuid: CpuId,
    msrs: Msrs,
    /// What XCR0 holds; `None`: the host's processor or kernel has no XSAVE, nor has the guest.
    xcr0: Option<u64>,
    fsgsbase: bool,
    /// VT-x wants a task state segment that is busy (SDM 3C §26.3.1.2). SVM does not mind, and QEMU's
    /// emulation of it looks at the I/O bitmap only of one that is not.
    tss_type: u8,
    sync_regs: bool,
}

/// Descriptors of the monitor start here: high enough to be out of the program's way.
static DESCRIPTOR_BASE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
/// The lowest and the highest that the monitor has had.
static LOWEST: core::sync::atomic::AtomicI32 = core::sync::atomic::AtomicI32::new(i32::MAX);
static HIGHEST: core::sync::atomic::AtomicI32 = core::sync::atomic::AtomicI32::new(-1);
/// Made by the first machine of the process, and inherited by forked children.
static SHARED: std::sync::OnceLock<Shared> = std::sync::OnceLock::new();

/// A virtual machine of KVM.
pub struct KvmVm {
    vm: ManuallyDrop<VmFd>,
    slots: u32,
    max_slots: u32,
    /// The number of the next CPU, or a lower one: that of a CPU which KVM has made is taken for ever, also if it could
    /// not be mapped then for lack of memory.
    next_cpu: u32,
}

/// A virtual CPU of KVM.
pub struct KvmVcpu {
    cpu: ManuallyDrop<VcpuFd>,
    run: *mut kvm_run,
}

/// Makes a machine without memory or CPUs.
///
/// # Errors
/// `/dev/kvm` is missing, may not be opened, or lacks something.
pub fn open() -> Result<KvmVm, HostError> {
    let kvm = Kvm::new().step("opening /dev/kvm")?;
    if SHARED.get().is_none() {
        let shared = shared(&kvm)?;
        let _ = SHARED.set(shared);
    }
    let low = kvm.create_vm().step("KVM_CREATE_VM")?;
    let fd = raise(low.as_raw_fd())?;
    // SAFETY: a duplicate of a descriptor that KVM_CREATE_VM gave, owned by nobody else.
    let vm = unsafe { kvm.create_vmfd_from_rawfd(fd) }.step("taking over the machine")?;
    let max_slots = vm.check_extension_int(Cap::NrMemslots).max(0) as u32;
    Ok(KvmVm { vm: ManuallyDrop::new(vm), slots: 0, max_slots, next_cpu: 0 })
}

fn shared(kvm: &Kvm) -> Result<Shared, HostError> {
    let lacks = |step| Err(HostError { step, errno: Errno(libc::ENOSYS) });
    if kvm.get_api_version() != 12 {
        return lacks("asking /dev/kvm for API version 12");
    }
    if !kvm.check_extension(Cap::ImmediateExit) {
        return lacks("asking /dev/kvm for KVM_CAP_IMMEDIATE_EXIT");
    }
    let sync_regs = kvm.check_extension_int(Cap::SyncRegs) as u32 & kvm::KVM_SYNC_X86_REGS != 0;
    if !sync_regs {
        return lacks("asking /dev/kvm for KVM_CAP_SYNC_REGS");
    }
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).step("KVM_GET_SUPPORTED_CPUID")?;
    let mut xcr0 = None;
    let mut fsgsbase = false;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (7, 0) => {
                fsgsbase = entry.ebx & 1 != 0;
                // AMX: its state does not fit.
                entry.edx &= !(1 << 22 | 1 << 24 | 1 << 25);
            }
            (0xd, 0) => {
                entry.eax &= XCR0_WANTED as u32;
                entry.edx = 0;
                xcr0 = Some(u64::from(entry.eax)).filter(|xcr0| xcr0 & 3 == 3);
            }
            _ => {}
        }
    }
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [msr(MSR_STAR, STAR), msr(MSR_SFMASK, SYSCALL_MASK), msr(MSR_LSTAR, 0)];
    let msrs = Msrs::from_entries(&entries).expect("three entries are fewer than the maximum");
    let tss_type = if kind::hardware() == Some(kind::HostKind::Svm) { 0x9 } else { 0xb };
    Ok(Shared { cpuid, msrs, xcr0, fsgsbase, tss_type, sync_regs })
}

/// A duplicate of a descriptor above those of the program. The limit on descriptors is lifted for a
/// moment if need be: a descriptor that exists may be above it.
pub(crate) fn raise(fd: i32) -> Result<i32, HostError> {
    use core::sync::atomic::Ordering::Relaxed;
    let duplicate = |base: u64| {
        let request = [fd as u64, libc::F_DUPFD_CLOEXEC as u64, base, 0, 0, 0];
        // SAFETY: no pointer.
        unsafe { sys::call(libc::SYS_fcntl, request) }.map(|fd| fd as i32)
    };
    let mut limit = [0u64; 2];
    let exchange = |new: u64, old: u64| {
        let request = [0, libc::RLIMIT_NOFILE as u64, new, old, 0, 0];
        // SAFETY: `struct rlimit64` is two words; either pointer may be null.
        unsafe { sys::call(libc::SYS_prlimit64, request) }
    };
    exchange(0, &raw mut limit as u64).step("reading the limit on descriptors")?;
    let [soft, hard] = limit;
    let mut base = DESCRIPTOR_BASE.load(Relaxed);
    if base == 0 {
        base = soft.min(16_384);
        DESCRIPTOR_BASE.store(base, Relaxed);
    }
    let raised = [hard, hard];
    let lifted = soft < hard && exchange(&raw const raised as u64, 0).is_ok();
    let mut result = duplicate(base);
    for base in [soft.saturating_sub(soft / 4), soft / 2, 3] {
        if result.is_err() {
            result = duplicate(base);
        }
    }
    if lifted {
        let _ = exchange(&raw const limit as u64, 0);
    }
    if let Ok(fd) = result {
        LOWEST.fetch_min(fd, Relaxed);
        HIGHEST.fetch_max(fd, Relaxed);
    }
    result.step("moving a descriptor out of the program's way")
}

/// Whether `fd` is in the range of the monitor's descriptors: a quick no for nearly all.
pub(crate) fn may_own(fd: i32) -> bool {
    use core::sync::atomic::Ordering::Relaxed;
    (LOWEST.load(Relaxed)..=HIGHEST.load(Relaxed)).contains(&fd)
}

/// The highest descriptor that the monitor has had; -1: none.
pub(crate) fn highest_descriptor() -> i64 {
    i64::from(HIGHEST.load(core::sync::atomic::Ordering::Relaxed))
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn map_window(&mut self, gpa: u64, hva: usize, len: usize) -> Result<(), HostError> {
        if self.slots >= self.max_slots {
            let errno = Errno(libc::ENOSPC);
            return Err(HostError { step: "KVM_SET_USER_MEMORY_REGION: out of slots", errno });
        }
        let region = kvm::kvm_userspace_memory_region {
            slot: self.slots,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: len as u64,
            userspace_addr: hva as u64,
        };
        // SAFETY: the guest is this process: it may reach whatever the process may.
        unsafe { self.vm.set_user_memory_region(region) }.step("KVM_SET_USER_MEMORY_REGION")?;
        self.slots += 1;
        Ok(())
    }

    fn create_vcpu(&mut self, _index: u32) -> Result<KvmVcpu, HostError> {
        // Whether there is a place for its descriptor is tried first: KVM destroys no CPU for which there is none.
        let place = raise(self.vm.as_raw_fd())?;
        let low = loop {
            let low = self.vm.create_vcpu(u64::from(self.next_cpu));
            if !low.as_ref().is_err_and(|error| error.errno() == libc::EEXIST) {
                break low;
            }
            self.next_cpu += 1;
        };
        sys::close(place);
        let low = low.step("KVM_CREATE_VCPU")?;
        self.next_cpu += 1;
        let fd = raise(low.as_raw_fd())?;
        // SAFETY: a duplicate of a descriptor that KVM_CREATE_VCPU gave, owned by nobody else.
        let cpu = unsafe { self.vm.create_vcpu_from_rawfd(fd) }.step("taking over a CPU")?;
        let mut cpu = ManuallyDrop::new(cpu);
        let run: *mut kvm_run = cpu.get_kvm_run();
        // A forked child must not share the registers of its parent's CPU.
        // SAFETY: the mapping is that of this CPU; nothing in it changes.
        unsafe { sys::advise(run as usize, sys::PAGE_SIZE, libc::MADV_DONTFORK) }
            .step("keeping a CPU out of forked children")?;
        let shared = SHARED.get().expect("open made it");
        cpu.set_cpuid2(&shared.cpuid).step("KVM_SET_CPUID2")?;
        if let Some(xcr0) = shared.xcr0 {
            let mut xcrs = kvm::kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = xcr0;
            cpu.set_xcrs(&xcrs).step("KVM_SET_XCRS")?;
        }
        Ok(KvmVcpu { cpu, run })
    }

    // KVM uses the log for its own dirty log, whose granule is a slot.
    fn keeps_log(&self) -> bool {
        false
    }

    fn forget_log(&mut self, _: u64, _: u64) -> Result<(), HostError> {
        Err(HostError { step: "reading a log of written pages", errno: Errno(libc::EOPNOTSUPP) })
    }

    fn owns(&self, fd: i32) -> bool {
        self.vm.as_raw_fd() == fd
    }

    fn abandon(&mut self) {
        sys::close(self.vm.as_raw_fd());
    }
}

impl KvmVcpu {
    fn run_area(&mut self) -> &mut kvm_run {
        // SAFETY: mapped as long as the CPU lives, and only the thread that runs it looks.
        unsafe { &mut *self.run }
    }

    /// Clocks of the vDSO read the time-stamp counter: the guest's must be the host's.
    fn zero_tsc_offset(&self) {
        let offset = 0i64;
        let attribute = kvm::kvm_device_attr {
            flags: 0,
            group: kvm::KVM_VCPU_TSC_CTRL,
            attr: u64::from(kvm::KVM_VCPU_TSC_OFFSET),
            addr: &raw const offset as u64,
        };
        const KVM_SET_DEVICE_ATTR: u64 = 0x4018_aee1;
        let argument = &raw const attribute as u64;
        // SAFETY: an attribute whose value is eight bytes. Linux before 5.16 has none, and there
        // the counter of a new CPU starts as KVM likes: then vDSO clocks are off, and the only
        // remedy is a newer kernel.
        let _ = unsafe { sys::ioctl(self.cpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, argument) };
    }
}

fn segment(selector: u16, type_: u8, dpl: u8, long: bool) -> kvm::kvm_segment {
    kvm::kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

impl KvmVcpu {
    fn change_sregs(&mut self, change: impl FnOnce(&mut kvm::kvm_sregs)) -> Result<(), HostError> {
        let mut sregs = self.cpu.get_sregs().step("KVM_GET_SREGS")?;
        change(&mut sregs);
        // KVM on SVM calls every task state segment busy (Linux: `svm_get_segment`), whatever it was set to.
        sregs.tr.type_ = SHARED.get().expect("open made it").tss_type;
        self.cpu.set_sregs(&sregs).step("KVM_SET_SREGS")
    }
}

impl Vcpu for KvmVcpu {
    fn start(&mut self, start: &Start) -> Result<(), HostError> {
        let shared = SHARED.get().expect("open made it");
        let mut sregs = self.cpu.get_sregs().step("KVM_GET_SREGS")?;
        let level = start.ring.level();
        sregs.cs = segment(start.ring.code(), 0xb, level, true);
        sregs.ss = segment(start.ring.stack(), 0x3, level, false);
        let unusable = kvm::kvm_segment { unusable: 1, ..Default::default() };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (unusable, unusable, unusable, unusable);
        // A null selector with a usable segment keeps its base on every kind of processor.
        (sregs.fs, sregs.gs) = (segment(0, 0x3, 3, false), segment(0, 0x3, 3, false));
        sregs.fs.base = start.fs_base;
        sregs.gs.base = start.gs_base;
        sregs.ldt = unusable;
        sregs.tr = kvm::kvm_segment {
            base: start.tss,
            limit: start.tss_limit,
            selector: TSS_SELECTOR,
            type_: shared.tss_type,
            present: 1,
            ..Default::default()
        };
        sregs.gdt.base = start.gdt;
        sregs.gdt.limit = crate::space::cpu_tables::GDT_LIMIT;
        sregs.idt.base = start.idt;
        sregs.idt.limit = crate::space::cpu_tables::IDT_LIMIT;
        sregs.cr0 = (Cr0Flags::PROTECTED_MODE_ENABLE
            | Cr0Flags::MONITOR_COPROCESSOR
            | Cr0Flags::EXTENSION_TYPE
            | Cr0Flags::NUMERIC_ERROR
            | Cr0Flags::WRITE_PROTECT
            | Cr0Flags::ALIGNMENT_MASK
            | Cr0Flags::PAGING)
            .bits();
        sregs.cr3 = start.cr3;
        let mut cr4 =
            Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE;
        cr4.set(Cr4Flags::OSXSAVE, shared.xcr0.is_some());
        cr4.set(Cr4Flags::FSGSBASE, shared.fsgsbase);
        sregs.cr4 = cr4.bits();
        sregs.efer = (EferFlags::SYSTEM_CALL_EXTENSIONS
            | EferFlags::LONG_MODE_ENABLE
            | EferFlags::LONG_MODE_ACTIVE
            | EferFlags::NO_EXECUTE_ENABLE)
            .bits();
        self.cpu.set_sregs(&sregs).step("KVM_SET_SREGS")?;
        let mut entries = [kvm_msr_entry::default(); 3];
        entries.copy_from_slice(shared.msrs.as_slice());
        entries[2].data = start.lstar;
        set_msrs(self.cpu.as_raw_fd(), entries).step("KVM_SET_MSRS")?;
        self.zero_tsc_offset();
        let run = self.run_area();
        run.immediate_exit = 0;
        run.kvm_valid_regs = u64::from(kvm::KVM_SYNC_X86_REGS);
        debug_assert!(shared.sync_regs);
        Ok(())
    }

    fn registers(&mut self) -> &mut Registers {
        // SAFETY: KVM_CAP_SYNC_REGS is there, so the union holds the registers.
        unsafe { &mut self.run_area().s.regs.regs }
    }

    fn run(&mut self) -> Exit {
        self.run_area().kvm_dirty_regs = u64::from(kvm::KVM_SYNC_X86_REGS);
        // SAFETY: the guest's memory is the program's, and guest code is the program.
        let result = unsafe { sys::ioctl(self.cpu.as_raw_fd(), KVM_RUN, 0) };
        let run = self.run_area();
        match result {
            Ok(_) => {}
            Err(Errno(libc::EINTR | libc::EAGAIN)) => return Exit::Interrupted,
            Err(Errno(libc::EFAULT | libc::EHWPOISON)) => {
                let told = run.exit_reason == kvm::KVM_EXIT_MEMORY_FAULT;
                // SAFETY: the reason says which part of the union is filled; on kernels without
                // that exit a stale reason can never have this value.
                let gpa = unsafe { run.__bindgen_anon_1.memory_fault.gpa };
                return Exit::NoMemory(told.then_some(gpa));
            }
            Err(errno) => return Exit::Failed(errno),
        }
        match run.exit_reason {
            kvm::KVM_EXIT_IO => {
                // SAFETY: the reason says which part of the union is filled.
                let io = unsafe { run.__bindgen_anon_1.io };
                if u32::from(io.direction) == kvm::KVM_EXIT_IO_OUT && io.port < 256 {
                    Exit::Port(io.port as u8)
                } else {
                    Exit::Unexpected(kvm::KVM_EXIT_IO, u64::from(io.port))
                }
            }
            kvm::KVM_EXIT_INTR => Exit::Interrupted,
            kvm::KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            kvm::KVM_EXIT_HLT => Exit::Halted,
            kvm::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let reason =
                    unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Exit::Unexpected(kvm::KVM_EXIT_FAIL_ENTRY, reason)
            }
            kvm::KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
                Exit::Unexpected(kvm::KVM_EXIT_INTERNAL_ERROR, u64::from(suberror))
            }
            kvm::KVM_EXIT_MMIO => {
                // SAFETY: as above.
                let address = unsafe { run.__bindgen_anon_1.mmio.phys_addr };
                Exit::Unexpected(kvm::KVM_EXIT_MMIO, address)
            }
            other => Exit::Unexpected(other, 0),
        }
    }

    fn settle(&mut self) {
        // SAFETY: the flag is a byte of the area; a signal handler may set it at any time.
        let flag = unsafe { core::sync::atomic::AtomicU8::from_ptr(self.kick_flag()) };
        let before = flag.swap(1, core::sync::atomic::Ordering::Relaxed);
        let _ = self.run();
        flag.store(before, core::sync::atomic::Ordering::Relaxed);
    }

    fn kick_flag(&self) -> *mut u8 {
        // SAFETY: a field of the mapped area; no reference is made.
        unsafe { &raw mut (*self.run).immediate_exit }
    }

    fn fault_address(&mut self) -> Result<u64, HostError> {
        self.cpu.get_sregs().map(|sregs| sregs.cr2).step("KVM_GET_SREGS")
    }

    fn segments(&mut self) -> Result<Segments, HostError> {
        let sregs = self.cpu.get_sregs().step("KVM_GET_SREGS")?;
        Ok(Segments {
            cs: sregs.cs.selector,
            ss: sregs.ss.selector,
            tss_type: sregs.tr.type_,
            cr3: sregs.cr3,
        })
    }

    fn bases(&mut self) -> Result<(u64, u64), HostError> {
        self.cpu.get_sregs().map(|s| (s.fs.base, s.gs.base)).step("KVM_GET_SREGS")
    }

    fn set_bases(&mut self, fs: u64, gs: u64) -> Result<(), HostError> {
        self.change_sregs(|sregs| (sregs.fs.base, sregs.gs.base) = (fs, gs))
    }

    // A new CR3 makes KVM load the tables anew, which flushes what the processor has of the earlier ones and, where it
    // shadows them, reads all again that the guest has changed (Linux: `kvm_mmu_reset_context`, `kvm_mmu_load`).
    fn set_root(&mut self, cr3: u64) -> Result<(), HostError> {
        self.change_sregs(|sregs| sregs.cr3 = cr3)
    }

    fn forget_exception(&mut self) -> Result<(), HostError> {
        let mut events = self.cpu.get_vcpu_events().step("KVM_GET_VCPU_EVENTS")?;
        // Whatever it says: it does not tell of INT3's.
        events.exception = Default::default();
        events.interrupt.injected = 0;
        self.cpu.set_vcpu_events(&events).step("KVM_SET_VCPU_EVENTS")
    }

    // KVM_GET_VCPU_EVENTS hides exceptions of this kind (arch/x86/kvm/x86.c, `kvm_vcpu_ioctl_x86_get_vcpu_events`). But a
    // debugger cannot inject one while any is waiting (`kvm_arch_vcpu_ioctl_set_guest_debug`).
    fn take_breakpoint(&mut self) -> Result<bool, HostError> {
        const KVM_SET_GUEST_DEBUG: u64 = 0x4048_ae9b;
        let told = self.cpu.get_vcpu_events().step("KVM_GET_VCPU_EVENTS")?.exception;
        if told.pending | told.injected != 0 {
            return Ok(false);
        }
        let fd = self.cpu.as_raw_fd();
        // By hand, since it fails as a rule.
        let set = |control| {
            let debug = kvm::kvm_guest_debug { control, ..Default::default() };
            // SAFETY: what KVM_SET_GUEST_DEBUG reads.
            unsafe { sys::ioctl(fd, KVM_SET_GUEST_DEBUG, &raw const debug as u64) }
        };
        let inject = kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_INJECT_BP;
        // A host that cannot be asked so tells of none.
        let waiting = set(inject) == Err(Errno(libc::EBUSY));
        let _ = set(0);
        self.forget_exception()?;
        Ok(waiting)
    }

    fn xsave(&mut self, to: &mut Xsave) -> Result<(), HostError> {
        const KVM_GET_XSAVE: u64 = 0x9000_aea4;
        let argument = &raw mut *to as u64;
        // SAFETY: 4096 bytes, as KVM_GET_XSAVE writes; larger states are kept out of XCR0.
        unsafe { sys::ioctl(self.cpu.as_raw_fd(), KVM_GET_XSAVE, argument) }
            .map(drop)
            .step("KVM_GET_XSAVE")
    }

    fn xrstor(&mut self, from: &Xsave) -> Result<(), HostError> {
        const KVM_SET_XSAVE: u64 = 0x5000_aea5;
        let argument = &raw const *from as u64;
        // SAFETY: 4096 bytes, as KVM_SET_XSAVE reads.
        unsafe { sys::ioctl(self.cpu.as_raw_fd(), KVM_SET_XSAVE, argument) }
            .map(drop)
            .step("KVM_SET_XSAVE")
    }

    fn owns(&self, fd: i32) -> bool {
        self.cpu.as_raw_fd() == fd
    }

    fn abandon(&mut self) {
        sys::close(self.cpu.as_raw_fd());
    }
}

/// `KVM_SET_MSRS` without a heap.
fn set_msrs(fd: i32, entries: [kvm_msr_entry; 3]) -> Result<(), Errno> {
    #[repr(C)]
    struct List {
        count: u32,
        pad: u32,
        entries: [kvm_msr_entry; 3],
    }
    const KVM_SET_MSRS: u64 = 0x4008_ae89;
    let list = List { count: 3, pad: 0, entries };
    // SAFETY: `struct kvm_msrs` with three entries.
    let done = unsafe { sys::ioctl(fd, KVM_SET_MSRS, &raw const list as u64) }?;
    if done == 3 { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

/// The size of the state that XSAVE keeps in a guest, in bytes, and its features.
pub(crate) fn xsave_layout() -> (u32, u64) {
    let shared = SHARED.get().expect("open made it");
    let xcr0 = shared.xcr0.unwrap_or(3);
    let size = shared
        .cpuid
        .as_slice()
        .iter()
        .filter(|e| e.function == 0xd && e.index >= 2)
        .filter(|e| e.index < 64 && xcr0 >> e.index & 1 != 0)
        .map(|e| e.ebx + e.eax)
        .max()
        .unwrap_or(0);
    (size.max(512 + 64), xcr0)
}

/// Whether the guest has XSAVE.
pub(crate) fn has_xsave() -> bool {
    SHARED.get().expect("open made it").xcr0.is_some()
}
