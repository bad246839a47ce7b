//! A thread in guest mode: its record, its monitor stack, its CPU; and the pool of them.
//!
//! Each slot of the arena holds a record at its start and, above a guard page, the stack on which
//! the monitor runs for the thread. A signal handler finds the record from the stack it
//! runs on, so nothing needs thread-local storage, which is the program's. CPUs cannot be destroyed:
//! a slot keeps its CPU, and the lowest free slot is taken first.

use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::Process;
use crate::calls::written::{self, UnderWay};
use crate::host::{AnyVcpu, HostError, Registers, Step as _, Vcpu as _, Vm as _, Xsave};
use crate::ring::Ring;
use crate::space::{SPACE, arena};
use crate::sys::{self, Errno, PAGE_SIZE};

/// Bytes of a record, and of the guard page above it.
const RECORD: usize = 4 * PAGE_SIZE;
const FREE: u32 = 0;
const TAKEN: u32 = 1;

/// A signal that the monitor's handler has taken from the kernel, and the program has not got yet.
#[repr(C, align(16))]
pub(crate) struct Captured {
    pub(crate) info: [u64; 16],
    /// The thread's mask when it came.
    pub(crate) mask: u64,
    pub(crate) signal: u32,
}

/// `stack_t`: the program's alternate signal stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AltStack {
    pub(crate) start: u64,
    pub(crate) flags: u32,
    pub(crate) len: u64,
}

/// `SS_DISABLE`.
pub(crate) const SS_DISABLE: u32 = 2;

/// How a thread starts or goes on in a new CPU.
#[derive(Clone, Copy, Default)]
pub(crate) struct Start {
    pub(crate) registers: Registers,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    /// The signal mask.
    pub(crate) mask: u64,
    /// Where the kernel has written the new thread's id; 0: nowhere.
    pub(crate) child_tid: u64,
}

/// The record.
#[repr(C)]
pub(crate) struct Thread {
    /// Not zero while `captured` holds a signal: the flag of [`sys::forward`].
    pub(crate) pending: AtomicU32,
    state: AtomicU32,
    /// The byte that ends the run of this thread's CPU.
    kick: AtomicPtr<u8>,
    pub(crate) index: usize,
    /// The kernel's id of the thread that has, or last had, the slot; 0: none has started in it.
    pub(crate) id: AtomicI32,
    /// The process that the kernel counts it to: not ours for a child that only shares memory.
    pub(crate) group: AtomicI32,
    /// Whether the parent, who waits until it is gone, gives the slot back.
    pub(crate) lent: Cell<bool>,
    pub(crate) captured: UnsafeCell<Captured>,
    pub(crate) under_way: UnderWay,
    pub(crate) altstack: Cell<AltStack>,
    pub(crate) process: Cell<*const Process>,
    pub(crate) start: Cell<Start>,
    /// The private space that the thread is in, and one that it will return to from a signal handler; 0: none.
    pub(crate) space: Cell<u32>,
    pub(crate) held: Cell<u32>,
    /// The signal state of a child made by vfork, which shares memory with its parent.
    pub(crate) own_process: UnsafeCell<Process>,
    pub(crate) xsave: UnsafeCell<Xsave>,
    cpu: UnsafeCell<Option<AnyVcpu>>,
}

const _: () = assert!(size_of::<Thread>() <= RECORD);

// SAFETY: what is not atomic is used by the thread itself, by its creator before it starts, or by
// its signal handler while it is stopped.
unsafe impl Sync for Thread {}

/// One more than the highest slot that was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);

fn slot(index: usize) -> usize {
    arena::STACKS.start() + index * arena::STACK_LEN
}

/// The record at slot `index`, which is committed.
fn record(index: usize) -> &'static Thread {
    // SAFETY: the slot is mapped and zero or a record; zero bytes are a valid free record.
    unsafe { &*(slot(index) as *const Thread) }
}

/// The record of the thread on whose monitor stack `address` lies.
pub(crate) fn on_stack(address: usize) -> Option<&'static Thread> {
    if !arena::STACKS.contains(address) {
        return None;
    }
    Some(record((address - arena::STACKS.start()) / arena::STACK_LEN))
}

/// All records that were ever used.
pub(crate) fn all() -> impl Iterator<Item = &'static Thread> {
    (0..USED.load(Ordering::Acquire)).map(record)
}

/// Whether this process has, and has ever had, one CPU only. While the only thread asks, nobody makes another.
pub(crate) fn alone() -> bool {
    USED.load(Ordering::Acquire) <= 1
}

impl Thread {
    /// Takes a slot, with a CPU.
    ///
    /// # Errors
    /// All are taken; the kernel gives no memory or no CPU.
    pub(crate) fn take() -> Result<&'static Thread, HostError> {
        let mut space = SPACE.lock();
        let used = USED.load(Ordering::Acquire);
        let free = (0..used).find(|index| record(*index).is_over());
        let index = free.unwrap_or(used);
        if index >= arena::MAX_THREADS {
            return Err(HostError { step: "taking a thread's slot", errno: Errno(libc::EAGAIN) });
        }
        if index == used {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let stack = slot(index) + RECORD + PAGE_SIZE;
            sys::protect(slot(index), RECORD, rights).step("making a thread's record")?;
            sys::protect(stack, slot(index) + arena::STACK_LEN - stack, rights)
                .step("making a monitor stack")?;
            // SAFETY: new memory, zero, which is a valid record but for its index.
            unsafe { (*(slot(index) as *mut Thread)).index = index };
            USED.store(index + 1, Ordering::Release);
        }
        let thread = record(index);
        // SAFETY: the slot is free, and the lock is held: nobody else uses its CPU.
        let cpu = unsafe { &mut *thread.cpu.get() };
        if cpu.is_none() {
            // First what it finds in memory: a CPU that exists can be used.
            space.prepare_cpu(index)?;
            let errno = Errno(libc::ENODEV);
            let vm = space.vm.as_mut().ok_or(HostError { step: "making a CPU", errno })?;
            let made = vm.create_vcpu(index as u32)?;
            thread.kick.store(made.kick_flag(), Ordering::Release);
            *cpu = Some(made);
        }
        written::settle(&thread.under_way);
        thread.id.store(0, Ordering::Relaxed);
        thread.lent.set(false);
        thread.pending.store(0, Ordering::Relaxed);
        thread.space.set(0);
        thread.held.set(0);
        thread.altstack.set(AltStack { flags: SS_DISABLE, ..AltStack::default() });
        thread.state.store(TAKEN, Ordering::Release);
        Ok(thread)
    }

    /// Whether nobody has the slot, and the thread that had it is gone: while it exits the kernel may
    /// still write to its memory. Without the lock it may be taken as the answer is given; so asking changes nothing.
    pub(crate) fn is_over(&self) -> bool {
        if self.state.load(Ordering::Acquire) != FREE {
            return false;
        }
        let id = self.id.load(Ordering::Relaxed);
        if id == 0 {
            return true;
        }
        let (group, esrch) = (self.group.load(Ordering::Relaxed), -i64::from(libc::ESRCH));
        // SAFETY: signal 0 only asks.
        unsafe { sys::raw(libc::SYS_tgkill, [group as u64, id as u64, 0, 0, 0, 0]) == esrch }
    }

    /// Notes that the calling thread has it.
    pub(crate) fn claim(&self) {
        self.group.store(sys::process_id(), Ordering::Relaxed);
        self.id.store(sys::thread_id(), Ordering::Relaxed);
    }

    /// Gives the slot back: for a thread that was never started, or has ended and writes nothing any more.
    pub(crate) fn give_back(&self) {
        self.id.store(0, Ordering::Relaxed);
        self.state.store(FREE, Ordering::Release);
    }

    /// The word that [`super::spawn::exit`] sets to 0 last.
    pub(crate) fn state_word(&self) -> *mut u32 {
        /// For slots that are given back by another.
        static NO_STATE: AtomicU32 = AtomicU32::new(FREE);
        if self.lent.get() { NO_STATE.as_ptr() } else { self.state.as_ptr() }
    }

    /// The end of the monitor stack, aligned, with room for a word above.
    pub(crate) fn stack_top(&self) -> usize {
        slot(self.index) + arena::STACK_LEN - 64
    }

    /// The CPU.
    ///
    /// # Safety
    /// Called by the thread itself, once: there is no other reference.
    #[allow(clippy::mut_from_ref, reason = "the cell's rule is in the safety section")]
    pub(crate) unsafe fn cpu(&self) -> &mut AnyVcpu {
        // SAFETY: the caller's; and `take` made it.
        unsafe { (*self.cpu.get()).as_mut() }.expect("a taken slot has a CPU")
    }

    /// Ends the run of the CPU, now or as soon as it begins.
    pub(crate) fn kick(&self) {
        self.set_kick(1);
    }

    /// Lets the CPU run again.
    pub(crate) fn unkick(&self) {
        self.set_kick(0);
    }

    fn set_kick(&self, value: u8) {
        let flag = self.kick.load(Ordering::Acquire);
        if !flag.is_null() {
            // SAFETY: the flag lives as long as the CPU, which is never destroyed.
            unsafe { core::sync::atomic::AtomicU8::from_ptr(flag) }.store(value, Ordering::Release);
        }
    }

    /// Puts the CPU into the state that [`Self::start`] and [`Self::xsave`] say.
    pub(crate) fn load(&self, cpu: &mut AnyVcpu) -> Result<(), HostError> {
        self.load_at(cpu, Ring::current())
    }

    /// As [`Self::load`], at another ring than the program's.
    pub(crate) fn load_at(&self, cpu: &mut AnyVcpu, ring: Ring) -> Result<(), HostError> {
        use crate::space::cpu_tables as tables;
        let start = self.start.get();
        let no_tables = HostError { step: "making page tables", errno: Errno(libc::ENOMEM) };
        let cr3 = SPACE.lock().root_of(self.space.get()).map_err(|_| no_tables)?;
        cpu.start(&crate::host::Start {
            ring,
            cr3,
            gdt: tables::gdt(self.index) as u64,
            idt: tables::idt() as u64,
            tss: tables::tss(self.index) as u64,
            tss_limit: tables::TSS_LIMIT,
            lstar: tables::syscall_entry() as u64,
            fs_base: start.fs_base,
            gs_base: start.gs_base,
        })?;
        *cpu.registers() = start.registers;
        // SAFETY: the thread's own, and no other reference exists.
        cpu.xrstor(unsafe { &*self.xsave.get() })
    }

    /// In a forked child: all CPUs are the parent's, and all other threads are gone.
    pub(crate) fn abandon_all(&self) {
        for thread in all() {
            // SAFETY: this is the only thread.
            let cpu = unsafe { &mut *thread.cpu.get() };
            if let Some(cpu) = cpu {
                cpu.abandon();
            }
            *cpu = None;
            thread.kick.store(core::ptr::null_mut(), Ordering::Release);
            if thread.index != self.index {
                written::settle(&thread.under_way);
                thread.give_back();
            }
        }
    }

    /// In a forked child: a CPU of the new machine for this thread.
    pub(crate) fn renew(&self) -> Result<(), HostError> {
        let mut space = SPACE.lock();
        let errno = Errno(libc::ENODEV);
        let vm = space.vm.as_mut().ok_or(HostError { step: "making a CPU", errno })?;
        let made = vm.create_vcpu(self.index as u32)?;
        self.kick.store(made.kick_flag(), Ordering::Release);
        // SAFETY: this is the only thread, and its old CPU was abandoned.
        unsafe { *self.cpu.get() = Some(made) };
        space.prepare_cpu(self.index)
    }

    /// Whether `fd` is a CPU's.
    pub(crate) fn any_owns(fd: i32) -> bool {
        // SAFETY: the option is written once, under the lock that the caller holds.
        all().any(|thread| unsafe { &*thread.cpu.get() }.as_ref().is_some_and(|cpu| cpu.owns(fd)))
    }
}
