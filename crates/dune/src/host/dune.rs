//! `/dev/dune`, the module in `kmod/`, through the raw ABI of `dune-sys`.
//!
//! The run page holds everything that changes from run to run: registers, the bases of FS and GS,
//! CR2. So nearly all that the runtime asks is a load, not a call. CPUID exits: what the
//! processor says, less what the guest does not have, is answered here.
//!
//! Nothing here allocates, or uses `errno`.

use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use dune_sys as abi;
use dune_sys::{dune_buffer, dune_info, dune_ring, dune_run, dune_segment, dune_state, dune_table};

use super::kvm::{STAR, SYSCALL_MASK, TSS_SELECTOR, raise};
use super::{Exit, HostError, Registers, Segments, Start, Step as _, Vcpu, Vm, Xsave};
use crate::space::arena::MAX_THREADS;
use crate::space::cpu_tables::{GDT_LIMIT, IDT_LIMIT};
use crate::sys::{self, Errno, PAGE_SIZE};

/// What the module offers; asked once for the process and its forked children.
static INFO: OnceLock<dune_info> = OnceLock::new();

// The registers of the run page are used as KVM's are.
const _: () = {
    assert!(size_of::<abi::dune_regs>() == size_of::<Registers>());
    assert!(core::mem::offset_of!(abi::dune_regs, rsi) == core::mem::offset_of!(Registers, rsi));
    assert!(core::mem::offset_of!(abi::dune_regs, rip) == core::mem::offset_of!(Registers, rip));
    assert!(
        core::mem::offset_of!(abi::dune_regs, rflags) == core::mem::offset_of!(Registers, rflags)
    );
};

/// A virtual machine of the module.
pub struct DuneVm {
    fd: i32,
    /// Whether its CPUs log the pages that they write to.
    with_log: bool,
}

/// Entries of a CPU's ring of written pages: 32 KiB, of which 512 must be free for it to run.
const RING_ENTRIES: u32 = 4096;
/// Bytes of a CPU's mapping with a ring behind its run page.
const WITH_RING: usize = abi::DUNE_RING_ENTRIES as usize + RING_ENTRIES as usize * 8;

/// The mappings of CPUs that have a ring, by the CPU's number, and one more than the highest number.
static RINGS: [AtomicPtr<u8>; MAX_THREADS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_THREADS];
static RINGS_END: AtomicUsize = AtomicUsize::new(0);

/// A virtual CPU of the module.
pub struct DuneVcpu {
    fd: i32,
    run: *mut dune_run,
    /// Its number.
    index: u32,
    /// The last exit was for an instruction at this address, of this length: the next run begins
    /// behind it, unless it begins elsewhere.
    skip: (u64, u32),
}

/// A call with a structure, which lives as long as the call.
fn call<T>(fd: i32, number: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the number tells the kernel the size, which is that of T; `argument` may be written.
    unsafe { sys::ioctl(fd, u64::from(number), &raw mut *argument as u64) }
}

/// Makes a machine without memory or CPUs; `with_log`: its CPUs log the pages that they write to.
///
/// # Errors
/// `/dev/dune` is missing or may not be opened; another version of it; a hypervisor uses VT-x; there is no such log.
pub fn open(with_log: bool) -> Result<DuneVm, HostError> {
    let device = sys::open(c"/dev/dune", libc::O_RDWR).step("opening /dev/dune")?;
    let made = make(device, with_log);
    sys::close(device);
    made
}

fn make(device: i32, with_log: bool) -> Result<DuneVm, HostError> {
    let mut info = dune_info::default();
    call(device, abi::DUNE_GET_INFO, &mut info).step("DUNE_GET_INFO")?;
    if info.abi_version != abi::DUNE_ABI_VERSION {
        let errno = Errno(libc::EPROTO);
        return Err(HostError { step: "asking /dev/dune for version 1 of its ABI", errno });
    }
    let info = INFO.get_or_init(|| info);
    let wanted = if with_log {
        abi::DUNE_FEATURE_PML
    } else {
        abi::DUNE_FEATURE_LARGE_2M | abi::DUNE_FEATURE_LARGE_1G
    };
    let features = info.features & wanted;
    if with_log && features == 0 {
        let step = "asking /dev/dune for a log of written pages";
        return Err(HostError { step, errno: Errno(libc::EOPNOTSUPP) });
    }
    let mut config = abi::dune_vm_config { features, ..Default::default() };
    let low = call(device, abi::DUNE_CREATE_VM, &mut config).step("DUNE_CREATE_VM")? as i32;
    let fd = raise(low);
    sys::close(low);
    Ok(DuneVm { fd: fd?, with_log })
}

/// Bytes of a guest's XSAVE image and its components, if this backend is in use.
pub(crate) fn xsave_layout() -> Option<(u32, u64)> {
    // Without XSAVE the image is that of FXSAVE, with a header that says x87 and SSE.
    INFO.get().map(|info| (info.xsave_bytes, info.xcr0.max(3)))
}

/// Whether the guest has XSAVE.
pub(crate) fn has_xsave() -> bool {
    INFO.get().is_some_and(|info| info.xcr0 != 0)
}

impl Vm for DuneVm {
    type Vcpu = DuneVcpu;

    fn map_window(&mut self, gpa: u64, hva: usize, len: usize) -> Result<(), HostError> {
        let (hva, size) = (hva as u64, len as u64);
        let mut window = abi::dune_window { gpa, hva, size, ..Default::default() };
        call(self.fd, abi::DUNE_VM_MAP_WINDOW, &mut window).map(drop).step("DUNE_VM_MAP_WINDOW")
    }

    fn create_vcpu(&mut self, index: u32) -> Result<DuneVcpu, HostError> {
        let ring_entries = if self.with_log { RING_ENTRIES } else { 0 };
        let mut config = abi::dune_vcpu_config { ring_entries, ..Default::default() };
        let low = call(self.fd, abi::DUNE_VM_CREATE_VCPU, &mut config)
            .step("DUNE_VM_CREATE_VCPU")? as i32;
        let fd = raise(low);
        sys::close(low);
        let fd = fd?;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let bytes = if self.with_log { WITH_RING } else { PAGE_SIZE };
        let request = [0, bytes as u64, protection, libc::MAP_SHARED as u64, fd as u64, 0];
        // SAFETY: a new mapping at an address of the kernel's choice. It is not inherited by a
        // forked child: the module sees to that.
        let run = unsafe { sys::call(libc::SYS_mmap, request) };
        if run.is_err() {
            sys::close(fd);
        }
        let run = run.step("mapping the run page")? as *mut dune_run;
        if self.with_log {
            RINGS[index as usize].store(run.cast(), Ordering::Release);
            RINGS_END.fetch_max(index as usize + 1, Ordering::Release);
        }
        Ok(DuneVcpu { fd, run, index, skip: (0, 0) })
    }

    fn keeps_log(&self) -> bool {
        self.with_log
    }

    fn forget_log(&mut self, gpa: u64, len: u64) -> Result<(), HostError> {
        let mut range = abi::dune_range { gpa, size: len, ..Default::default() };
        call(self.fd, abi::DUNE_VM_CLEAR_DIRTY, &mut range).map(drop).step("DUNE_VM_CLEAR_DIRTY")
    }

    fn owns(&self, fd: i32) -> bool {
        self.fd == fd
    }

    fn abandon(&mut self) {
        sys::close(self.fd);
    }
}

/// Calls `f` with each guest-physical page address in the rings of all CPUs, and takes it out. One thread at a time.
pub(crate) fn for_each_logged(mut f: impl FnMut(u64)) {
    for slot in &RINGS[..RINGS_END.load(Ordering::Acquire)] {
        let mapping = slot.load(Ordering::Acquire);
        if mapping.is_null() {
            continue;
        }
        // SAFETY: 1. the mapping is as long as that, and lives as long as the CPU, which is never destroyed (in a forked
        // child, which has no such mapping, the slot is empty). 2. Both counters, and entries that the kernel is at,
        // are accessed as atomics only; the tail is ours.
        unsafe {
            let ring = mapping.add(abi::DUNE_RING_OFFSET as usize).cast::<dune_ring>();
            let entries = mapping.add(abi::DUNE_RING_ENTRIES as usize).cast::<AtomicU64>();
            let head = AtomicU32::from_ptr(&raw mut (*ring).head).load(Ordering::Acquire);
            let ours = AtomicU32::from_ptr(&raw mut (*ring).tail);
            let mut tail = ours.load(Ordering::Relaxed);
            while tail != head {
                f((*entries.add((tail % RING_ENTRIES) as usize)).load(Ordering::Relaxed));
                tail = tail.wrapping_add(1);
            }
            ours.store(tail, Ordering::Release);
        }
    }
}

impl DuneVcpu {
    fn area(&mut self) -> &mut dune_run {
        // SAFETY: mapped as long as the CPU lives, and only the thread that runs it looks, but for
        // the kick flag, which is never used through this reference.
        unsafe { &mut *self.run }
    }

    /// What CPUID says to the guest.
    fn cpuid(&mut self) {
        let info = INFO.get().expect("open asked");
        let registers = self.registers();
        let (leaf, index) = (registers.rax as u32, registers.rcx as u32);
        let mut answer = __cpuid_count(leaf, index);
        match (leaf, index) {
            (1, _) => {
                answer.ecx &= !(1 << 3 | 1 << 5); // MONITOR, VMX
                if info.xcr0 == 0 {
                    answer.ecx &= !(1 << 26 | 1 << 27); // XSAVE
                }
            }
            (7, 0) => {
                // PKU, WAITPKG, shadow stacks; AMX, user interrupts, branch tracking.
                answer.ecx &= !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 7);
                answer.edx &= !(1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25);
            }
            (0xd, 0) => {
                (answer.eax, answer.edx) = (info.xcr0 as u32, 0);
                (answer.ebx, answer.ecx) = (info.xsave_bytes, info.xsave_bytes);
            }
            (0xd, 1) => {
                answer.eax &= 0x7; // no XSAVES, no XFD
                (answer.ebx, answer.ecx, answer.edx) = (0, 0, 0);
            }
            (0xd, 2..) if info.xcr0.checked_shr(index).unwrap_or(0) & 1 == 0 => {
                (answer.eax, answer.ebx, answer.ecx, answer.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
        (registers.rax, registers.rbx) = (answer.eax.into(), answer.ebx.into());
        (registers.rcx, registers.rdx) = (answer.ecx.into(), answer.edx.into());
        let bytes = self.area().instruction_bytes;
        self.registers().rip += u64::from(bytes);
    }

    /// Completes the instruction that the last exit was for.
    fn complete(&mut self) {
        let (rip, bytes) = self.skip;
        if bytes != 0 && self.registers().rip == rip {
            self.registers().rip = rip + u64::from(bytes);
        }
        self.skip = (0, 0);
    }
}

fn segment(selector: u16, access_rights: u32) -> dune_segment {
    dune_segment { limit: u32::MAX, access_rights, selector, ..Default::default() }
}

impl Vcpu for DuneVcpu {
    fn start(&mut self, start: &Start) -> Result<(), HostError> {
        let info = INFO.get().expect("open asked");
        // Access rights as the VMCS has them: SDM 3C, "Format of Access Rights".
        let data = segment(0, 0xc0f3);
        let unusable = dune_segment { access_rights: 1 << 16, ..Default::default() };
        let table = |base, limit: u16| dune_table { base, limit: limit.into(), reserved0: 0 };
        let level = u32::from(start.ring.level());
        let mut state = dune_state {
            // Bits 5 and 6 are the privilege level.
            cs: segment(start.ring.code(), 0xa09b | level << 5),
            ss: segment(start.ring.stack(), 0xc093 | level << 5),
            ds: unusable,
            es: unusable,
            fs: data,
            gs: data,
            tr: dune_segment {
                base: start.tss,
                limit: start.tss_limit,
                access_rights: 0x8b,
                selector: TSS_SELECTOR,
                ..Default::default()
            },
            ldtr: unusable,
            gdt: table(start.gdt, GDT_LIMIT),
            idt: table(start.idt, IDT_LIMIT),
            cr0: 0x8005_0033, // PG, AM, WP, NE, ET, MP, PE
            cr3: start.cr3,
            cr4: 0x5_0620 & info.cr4, // OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PAE
            efer: 0xd01,              // NX, LMA, LME, SCE
            star: STAR,
            lstar: start.lstar,
            fmask: SYSCALL_MASK,
            ..Default::default()
        };
        call(self.fd, abi::DUNE_VCPU_SET_STATE, &mut state).step("DUNE_VCPU_SET_STATE")?;
        self.skip = (0, 0);
        let run = self.area();
        (run.fs_base, run.gs_base) = (start.fs_base, start.gs_base);
        run.immediate_exit = 0;
        Ok(())
    }

    fn registers(&mut self) -> &mut Registers {
        // SAFETY: 1. the registers are within the mapping, which `self` borrows. 2. Both
        // structures are the same eighteen words, as asserted above.
        unsafe { &mut *(&raw mut (*self.run).regs).cast::<Registers>() }
    }

    fn run(&mut self) -> Exit {
        self.complete();
        loop {
            // SAFETY: the guest's memory is the program's, and guest code is the program.
            let result = unsafe { sys::ioctl(self.fd, u64::from(abi::DUNE_VCPU_RUN), 0) };
            let run = self.area();
            match result {
                Ok(_) => {}
                Err(Errno(libc::EINTR)) => return Exit::Interrupted,
                Err(errno) => return Exit::Failed(errno),
            }
            match run.exit_reason {
                abi::DUNE_EXIT_CPUID => self.cpuid(),
                abi::DUNE_EXIT_IO => {
                    // SDM 3C, "Exit Qualification for I/O Instructions": bit 3 is the direction.
                    let (what, port) = (run.qualification as u16, run.qualification >> 16);
                    self.skip = (run.regs.rip, run.instruction_bytes);
                    return if what & 8 == 0 && port < 256 {
                        Exit::Port(port as u8)
                    } else {
                        Exit::Unexpected(abi::DUNE_EXIT_IO, port)
                    };
                }
                abi::DUNE_EXIT_MEMORY => return Exit::NoMemory(Some(run.gpa)),
                // #DB and #AC come here first (the module says why): deliver them.
                abi::DUNE_EXIT_EXCEPTION => {
                    let info = run.event_info;
                    run.inject = info & (abi::DUNE_EVENT_VALID | abi::DUNE_EVENT_HAS_ERROR | 0x7ff);
                    run.inject_error = run.event_error;
                    if info & 0x700 != abi::DUNE_EVENT_EXCEPTION {
                        run.inject = 0;
                        return Exit::Unexpected(abi::DUNE_EXIT_EXCEPTION, info.into());
                    }
                }
                abi::DUNE_EXIT_RING_FULL => return Exit::LogFull,
                abi::DUNE_EXIT_SHUTDOWN => return Exit::Shutdown,
                abi::DUNE_EXIT_HLT => return Exit::Halted,
                other => return Exit::Unexpected(other, u64::from(run.vmx_reason)),
            }
        }
    }

    fn settle(&mut self) {
        self.complete();
    }

    fn kick_flag(&self) -> *mut u8 {
        // SAFETY: a field of the mapped page; its lowest byte comes first. No reference is made.
        unsafe { (&raw mut (*self.run).immediate_exit).cast() }
    }

    fn fault_address(&mut self) -> Result<u64, HostError> {
        Ok(self.area().cr2)
    }

    fn segments(&mut self) -> Result<Segments, HostError> {
        let mut state = dune_state::default();
        call(self.fd, abi::DUNE_VCPU_GET_STATE, &mut state).step("DUNE_VCPU_GET_STATE")?;
        let tss_type = state.tr.access_rights as u8 & 0xf;
        Ok(Segments { cs: state.cs.selector, ss: state.ss.selector, tss_type, cr3: state.cr3 })
    }

    fn bases(&mut self) -> Result<(u64, u64), HostError> {
        let run = self.area();
        Ok((run.fs_base, run.gs_base))
    }

    fn set_bases(&mut self, fs: u64, gs: u64) -> Result<(), HostError> {
        let run = self.area();
        (run.fs_base, run.gs_base) = (fs, gs);
        Ok(())
    }

    // DUNE_VCPU_SET_STATE makes the next entry flush everything that has this CPU's tag.
    fn set_root(&mut self, cr3: u64) -> Result<(), HostError> {
        let mut state = dune_state::default();
        call(self.fd, abi::DUNE_VCPU_GET_STATE, &mut state).step("DUNE_VCPU_GET_STATE")?;
        state.cr3 = cr3;
        call(self.fd, abi::DUNE_VCPU_SET_STATE, &mut state).map(drop).step("DUNE_VCPU_SET_STATE")
    }

    fn forget_exception(&mut self) -> Result<(), HostError> {
        let run = self.area();
        run.inject = 0;
        run.flags = abi::DUNE_RUN_FORGET_EVENT;
        Ok(())
    }

    // RIP stays at the instruction until the exception has been delivered.
    fn take_breakpoint(&mut self) -> Result<bool, HostError> {
        Ok(false)
    }

    fn xsave(&mut self, to: &mut Xsave) -> Result<(), HostError> {
        let mut buffer = image(&raw const *to as u64);
        call(self.fd, abi::DUNE_VCPU_GET_XSAVE, &mut buffer).map(drop).step("DUNE_VCPU_GET_XSAVE")
    }

    fn xrstor(&mut self, from: &Xsave) -> Result<(), HostError> {
        let mut buffer = image(&raw const *from as u64);
        call(self.fd, abi::DUNE_VCPU_SET_XSAVE, &mut buffer).map(drop).step("DUNE_VCPU_SET_XSAVE")
    }

    fn owns(&self, fd: i32) -> bool {
        self.fd == fd
    }

    fn abandon(&mut self) {
        RINGS[self.index as usize].store(core::ptr::null_mut(), Ordering::Release);
        sys::close(self.fd);
    }
}

/// An image of 4096 bytes: larger components than AVX-512's are no guest's.
fn image(addr: u64) -> dune_buffer {
    dune_buffer { addr, size: size_of::<Xsave>() as u32, reserved0: 0 }
}
