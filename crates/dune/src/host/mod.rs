//! What runs guest code: a virtual machine, its memory windows and its CPUs, behind a small trait.
//!
//! The runtime is written once over [`Host`], [`Vm`] and [`Vcpu`]. [`kvm`] is `/dev/kvm`; a second
//! backend implements the same traits and gets a variant in [`AnyVm`] and [`AnyVcpu`]. Those are
//! enums, not trait objects, because the monitor has no heap to put an object on.
//!
//! What is deliberately not here: page tables, system calls, signals. A backend moves registers
//! and memory; what they mean is the runtime's.

pub mod dune;
pub mod kind;
pub mod kvm;

use core::fmt;

pub use kvm_bindings::{kvm_regs as Registers, kvm_xsave as Xsave};

use crate::sys::Errno;

/// What a step of making a guest failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was tried.
    pub step: &'static str,
    /// What the kernel answered.
    pub errno: Errno,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed with {}", self.step, self.errno)
    }
}

impl std::error::Error for HostError {}

/// Adds the step to an error number.
pub(crate) trait Step<T> {
    /// `step` is what was tried.
    fn step(self, step: &'static str) -> Result<T, HostError>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, HostError> {
        self.map_err(|errno| HostError { step, errno })
    }
}

impl<T> Step<T> for Result<T, kvm_ioctls::Error> {
    fn step(self, step: &'static str) -> Result<T, HostError> {
        self.map_err(|error| HostError { step, errno: Errno(error.errno()) })
    }
}

/// Why a virtual CPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It wrote to an I/O port: the guest's stubs call the monitor so.
    Port(u8),
    /// A signal, or `immediate_exit`: nothing about the guest has changed.
    Interrupted,
    /// The host has no page, or not the right to it, where the guest's tables say there is one.
    /// The instruction has not been executed. The guest-physical address is known on Linux 6.8 and
    /// later at best.
    NoMemory(Option<u64>),
    /// Triple fault.
    Shutdown,
    /// HLT, which only ring 0 may execute.
    Halted,
    /// An exit that this runtime never asks for: its number, and a detail of the backend's.
    Unexpected(u32, u64),
    /// The CPU has no room left for the pages that it has written: somebody must read the log.
    LogFull,
    /// The run itself was refused.
    Failed(Errno),
}

/// The state in which a virtual CPU starts: long mode, paging on.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The privilege level.
    pub ring: crate::Ring,
    /// Guest-physical address of the top page table.
    pub cr3: u64,
    /// Linear address of the descriptor table.
    pub gdt: u64,
    /// Linear address of the interrupt descriptor table.
    pub idt: u64,
    /// Linear address of the task state segment.
    pub tss: u64,
    /// Its limit.
    pub tss_limit: u32,
    /// Where SYSCALL goes.
    pub lstar: u64,
    /// Base of FS: the thread pointer.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
}

/// The segment registers of a virtual CPU and CR3, as far as anybody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// The selector in CS; its two lowest bits are the privilege level.
    pub cs: u16,
    /// The selector in SS.
    pub ss: u16,
    /// The type of the task state segment that TR holds: 9 is an available one of 64 bits, 11 a busy one.
    pub tss_type: u8,
    /// What is in CR3.
    pub cr3: u64,
}

impl Segments {
    /// The privilege level that the CPU runs at.
    #[must_use]
    pub fn privilege(self) -> u8 {
        self.cs as u8 & 3
    }
}

/// A virtual machine whose memory is this process' memory.
pub trait Vm: Sized {
    /// Its CPUs.
    type Vcpu: Vcpu;

    /// Maps `len` bytes of this process at `hva` to the guest-physical address `gpa`. The pages are
    /// found when they are touched.
    ///
    /// # Errors
    /// The kernel refuses; out of slots.
    fn map_window(&mut self, gpa: u64, hva: usize, len: usize) -> Result<(), HostError>;

    /// A new CPU; `index` is unique in the machine.
    ///
    /// # Errors
    /// The kernel refuses; out of descriptors or of CPUs.
    fn create_vcpu(&mut self, index: u32) -> Result<Self::Vcpu, HostError>;

    /// Whether the CPUs keep a log of the pages that they write to.
    fn keeps_log(&self) -> bool;

    /// Has the CPUs log the pages of guest-physical `[gpa, gpa + len)` again. When it returns, whatever they have
    /// written before, anywhere, is in the log to be read. `len` may be 0.
    ///
    /// # Errors
    /// There is no log; the kernel refuses.
    fn forget_log(&mut self, gpa: u64, len: u64) -> Result<(), HostError>;

    /// Whether `fd` is a descriptor that the machine needs.
    fn owns(&self, fd: i32) -> bool;

    /// In a forked child: closes what belongs to the parent's machine.
    fn abandon(&mut self);
}

/// A virtual CPU, run by one thread at a time.
pub trait Vcpu {
    /// Puts the CPU into its first state, general registers excepted.
    ///
    /// # Errors
    /// The kernel refuses.
    fn start(&mut self, start: &Start) -> Result<(), HostError>;

    /// The general registers: valid after a run, and taken over by the next.
    fn registers(&mut self) -> &mut Registers;

    /// Runs until something stops it.
    fn run(&mut self) -> Exit;

    /// Runs as far as finishing what the last exit began, and no guest code.
    fn settle(&mut self);

    /// The byte that, when it is 1, ends a run at once: another thread, or a signal handler of
    /// this one, kicks the CPU so.
    fn kick_flag(&self) -> *mut u8;

    /// CR2, the address of the last page fault.
    ///
    /// # Errors
    /// The kernel refuses.
    fn fault_address(&mut self) -> Result<u64, HostError>;

    /// What its segment registers and CR3 hold.
    ///
    /// # Errors
    /// The kernel refuses.
    fn segments(&mut self) -> Result<Segments, HostError>;

    /// The bases of FS and GS.
    ///
    /// # Errors
    /// The kernel refuses.
    fn bases(&mut self) -> Result<(u64, u64), HostError>;

    /// Sets the bases of FS and GS.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_bases(&mut self, fs: u64, gs: u64) -> Result<(), HostError>;

    /// Sets CR3: the CPU uses other page tables, and no translation of the earlier ones.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_root(&mut self, cr3: u64) -> Result<(), HostError>;

    /// Forgets an exception that is about to be delivered: its instruction will be executed again.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget_exception(&mut self) -> Result<(), HostError>;

    /// Whether an exception of INT3's is waiting to be delivered. Whichever it is, there is none at the next run.
    ///
    /// # Errors
    /// The kernel refuses.
    fn take_breakpoint(&mut self) -> Result<bool, HostError>;

    /// Reads the floating-point and vector state.
    ///
    /// # Errors
    /// The kernel refuses.
    fn xsave(&mut self, to: &mut Xsave) -> Result<(), HostError>;

    /// Sets the floating-point and vector state.
    ///
    /// # Errors
    /// The kernel refuses: no valid state.
    fn xrstor(&mut self, from: &Xsave) -> Result<(), HostError>;

    /// Whether `fd` is the CPU's.
    fn owns(&self, fd: i32) -> bool;

    /// In a forked child: closes what belongs to the parent's.
    fn abandon(&mut self);
}

/// Which backend this process uses: chosen at the first machine, and kept by forked children.
static BACKEND: std::sync::OnceLock<Backend> = std::sync::OnceLock::new();

/// A device that runs guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Kvm,
    Dune,
}

/// What is tried where `BARCHAN_DUNE_PML` asks for it.
pub(crate) const WITHOUT_LOG: &str =
    "making a machine whose processors log the pages that they write to (BARCHAN_DUNE_PML=1)";

/// Whether `BARCHAN_DUNE_PML` asked for a log of written pages as the first machine was made.
static WITH_LOG: std::sync::OnceLock<bool> = std::sync::OnceLock::new();

/// Makes a machine without memory or CPUs, of the backend that `BARCHAN_DUNE_HOST` names (`kvm`, `dune`),
/// or else of `/dev/dune` where it works, or else of `/dev/kvm`. With `BARCHAN_DUNE_PML=1` its CPUs keep a log of
/// written pages, for which there is `/dev/dune` only, and have no large pages.
///
/// # Errors
/// No device, or not this one; one without that log.
pub fn open() -> Result<AnyVm, HostError> {
    let with_log = *WITH_LOG
        .get_or_init(|| std::env::var_os("BARCHAN_DUNE_PML").is_some_and(|value| value == "1"));
    let on_kvm = || {
        if with_log {
            return Err(HostError { step: WITHOUT_LOG, errno: Errno(libc::EOPNOTSUPP) });
        }
        kvm::open().map(AnyVm::Kvm)
    };
    let on_dune = || match dune::open(with_log) {
        Err(error) if with_log => Err(HostError { step: WITHOUT_LOG, ..error }),
        opened => opened.map(AnyVm::Dune),
    };
    match BACKEND.get() {
        Some(Backend::Kvm) => return on_kvm(),
        Some(Backend::Dune) => return on_dune(),
        None => {}
    }
    let wanted = std::env::var_os("BARCHAN_DUNE_HOST");
    let vm = match wanted.as_deref().and_then(|name| name.to_str()) {
        Some("kvm") => on_kvm()?,
        Some("dune") => on_dune()?,
        Some(_) => {
            let step = "choosing the host that BARCHAN_DUNE_HOST names (kvm or dune)";
            return Err(HostError { step, errno: Errno(libc::EINVAL) });
        }
        // What /dev/kvm says is of more use to whoever has neither.
        None => on_dune().or_else(|error| if with_log { Err(error) } else { on_kvm() })?,
    };
    let _ = BACKEND.set(match vm {
        AnyVm::Kvm(_) => Backend::Kvm,
        AnyVm::Dune(_) => Backend::Dune,
    });
    Ok(vm)
}

/// The size of the state that XSAVE keeps in a guest, in bytes, and its features.
pub(crate) fn xsave_layout() -> (u32, u64) {
    match BACKEND.get() {
        Some(Backend::Dune) => dune::xsave_layout().expect("open asked"),
        _ => kvm::xsave_layout(),
    }
}

/// Whether the guest has XSAVE.
pub(crate) fn has_xsave() -> bool {
    match BACKEND.get() {
        Some(Backend::Dune) => dune::has_xsave(),
        _ => kvm::has_xsave(),
    }
}

/// The machine of whatever backend was found.
pub enum AnyVm {
    /// `/dev/kvm`
    Kvm(kvm::KvmVm),
    /// `/dev/dune`
    Dune(dune::DuneVm),
}

/// A CPU of whatever backend was found.
pub enum AnyVcpu {
    /// `/dev/kvm`
    Kvm(kvm::KvmVcpu),
    /// `/dev/dune`
    Dune(dune::DuneVcpu),
}

macro_rules! either {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self {
            Self::Kvm($inner) => $call,
            Self::Dune($inner) => $call,
        }
    };
}

impl Vm for AnyVm {
    type Vcpu = AnyVcpu;

    fn map_window(&mut self, gpa: u64, hva: usize, len: usize) -> Result<(), HostError> {
        either!(self, vm => vm.map_window(gpa, hva, len))
    }

    fn create_vcpu(&mut self, index: u32) -> Result<AnyVcpu, HostError> {
        match self {
            Self::Kvm(vm) => vm.create_vcpu(index).map(AnyVcpu::Kvm),
            Self::Dune(vm) => vm.create_vcpu(index).map(AnyVcpu::Dune),
        }
    }

    fn keeps_log(&self) -> bool {
        either!(self, vm => vm.keeps_log())
    }

    fn forget_log(&mut self, gpa: u64, len: u64) -> Result<(), HostError> {
        either!(self, vm => vm.forget_log(gpa, len))
    }

    fn owns(&self, fd: i32) -> bool {
        either!(self, vm => vm.owns(fd))
    }

    fn abandon(&mut self) {
        either!(self, vm => vm.abandon())
    }
}

impl Vcpu for AnyVcpu {
    fn start(&mut self, start: &Start) -> Result<(), HostError> {
        either!(self, cpu => cpu.start(start))
    }

    fn registers(&mut self) -> &mut Registers {
        either!(self, cpu => cpu.registers())
    }

    fn run(&mut self) -> Exit {
        either!(self, cpu => cpu.run())
    }

    fn settle(&mut self) {
        either!(self, cpu => cpu.settle())
    }

    fn kick_flag(&self) -> *mut u8 {
        either!(self, cpu => cpu.kick_flag())
    }

    fn fault_address(&mut self) -> Result<u64, HostError> {
        either!(self, cpu => cpu.fault_address())
    }

    fn segments(&mut self) -> Result<Segments, HostError> {
        either!(self, cpu => cpu.segments())
    }

    fn bases(&mut self) -> Result<(u64, u64), HostError> {
        either!(self, cpu => cpu.bases())
    }

    fn set_bases(&mut self, fs: u64, gs: u64) -> Result<(), HostError> {
        either!(self, cpu => cpu.set_bases(fs, gs))
    }

    fn set_root(&mut self, cr3: u64) -> Result<(), HostError> {
        either!(self, cpu => cpu.set_root(cr3))
    }

    fn forget_exception(&mut self) -> Result<(), HostError> {
        either!(self, cpu => cpu.forget_exception())
    }

    fn take_breakpoint(&mut self) -> Result<bool, HostError> {
        either!(self, cpu => cpu.take_breakpoint())
    }

    fn xsave(&mut self, to: &mut Xsave) -> Result<(), HostError> {
        either!(self, cpu => cpu.xsave(to))
    }

    fn xrstor(&mut self, from: &Xsave) -> Result<(), HostError> {
        either!(self, cpu => cpu.xrstor(from))
    }

    fn owns(&self, fd: i32) -> bool {
        either!(self, cpu => cpu.owns(fd))
    }

    fn abandon(&mut self) {
        either!(self, cpu => cpu.abandon())
    }
}
