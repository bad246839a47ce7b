//! The monitor's loop for one thread: run the guest, handle why it stopped, go on.
//!
//! Between two runs the CPU's registers hold the *program's* state: what a stub moved is put back
//! when the run ends, and moved again before the next. Only after a run that a signal ended, with
//! nothing to deliver, they are left as they are. Nothing here allocates, and it takes only the
//! monitor's own locks.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};

use super::Process;
use super::thread::Thread;
use crate::calls;
use crate::faults::{self, Part};
use crate::host::{AnyVcpu, Exit, HostError, Vcpu as _};
use crate::page_log;
use crate::paging::{ADDRESS_MASK, Link, USER_END};
use crate::ring;
use crate::signals::{deliver, frame};
use crate::space::cpu_tables::{
    self as tables, PORT_EXCEPTION, PORT_RETURNING, PORT_STORED, PORT_SYSCALL, Stub,
};
use crate::space::{Fault, SPACE};
use crate::stats;
use crate::sys;
use crate::sys::text;

/// Runs in a row that may end for want of a page at the same instruction.
const MAX_STUCK: u32 = 1000;
const PORT_DOUBLE_FAULT: u8 = PORT_EXCEPTION + tables::DOUBLE_FAULT;
/// `SI_KERNEL`
const SI_KERNEL: i32 = 0x80;

/// What an interrupted system call does once the handler has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// It is done, and its result is in place.
    Done,
    /// It had not begun: it begins again.
    Always,
    /// It begins again if the handler was installed so, and else fails with `EINTR`.
    IfWanted,
}

/// What a system call of the program's came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This result, or what `sys::forward` says of a call that was not made.
    Result(i64),
    /// All registers are as they shall be.
    Registers,
}

/// Where the CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The registers are the program's, and the CPU is at its ring.
    Program,
    /// So they are, but an exception may have loaded SS with null on its way to its stub.
    Faulted,
    /// The registers are the program's, and the CPU is at ring 0 still, in a stub of SYSCALL's or INT3's.
    Ring0,
    /// The registers are the CPU's own, wherever it is: nothing may be moved.
    Untouched,
}

/// A thread while its monitor runs.
pub(crate) struct Guest<'a> {
    pub(crate) thread: &'static Thread,
    pub(crate) cpu: &'a mut AnyVcpu,
    place: Place,
    /// Whether RCX and R11 matter, which SYSRET overwrites.
    all: bool,
    /// The number of the system call that is being made.
    call: u64,
    /// Whether the last exit was a page fault after which the program goes on: its page has an entry now, or its
    /// handler is called.
    goes_on: bool,
    stuck: u32,
    stuck_at: u64,
}

/// The privilege level at which SYSCALL arrives: 0, or 3 on a paravirtual host; 255: not known yet.
static SYSCALL_RING: AtomicU8 = AtomicU8::new(255);

/// Whether the host is known to be one that interprets ring 0 and shadows the guest's page tables.
pub(crate) fn is_paravirtual() -> bool {
    SYSCALL_RING.load(Ordering::Relaxed) == 3
}

/// A thread's life in guest mode, from the state that its record says.
pub(crate) fn begin(thread: &'static Thread) -> ! {
    // SAFETY: once for each life of the thread; the reference goes with it.
    let cpu = unsafe { thread.cpu() };
    if let Err(error) = thread.load(cpu) {
        text::fatal(format_args!("barchan: a thread cannot enter guest mode: {error}\n"));
    }
    let place = Place::Program;
    let mut guest =
        Guest { thread, cpu, place, all: true, call: 0, goes_on: false, stuck: 0, stuck_at: 0 };
    thread.claim();
    calls::written::child_runs(&thread.under_way, thread.start.get().child_tid);
    sys::set_mask(thread.start.get().mask);
    loop {
        guest.step();
    }
}

impl Guest<'_> {
    /// One run, and what it came to.
    fn step(&mut self) {
        if self.pending() {
            self.interrupted();
        }
        self.prepare_return();
        self.goes_on = false;
        let exit = self.cpu.run();
        stats::exit(exit);
        match exit {
            Exit::Port(PORT_SYSCALL) => self.system_call(),
            Exit::Port(PORT_RETURNING) => self.handler_returns(),
            Exit::Port(PORT_DOUBLE_FAULT) => self.double_fault(),
            Exit::Port(port) if (PORT_EXCEPTION..PORT_EXCEPTION + 32).contains(&port) => {
                self.exception(port - PORT_EXCEPTION);
            }
            Exit::Interrupted => {
                self.place = Place::Untouched;
                self.take_back_breakpoint();
            }
            Exit::NoMemory(_) => self.no_memory(),
            Exit::Shutdown => self.shut_down(),
            Exit::LogFull => {
                self.place = Place::Untouched;
                page_log::take_down();
            }
            Exit::Halted => {
                self.broken("the program has halted its processor (HLT at ring 0)", 0, 0)
            }
            Exit::Unexpected(reason, detail) => {
                self.broken("an exit that nobody asked for", u64::from(reason), detail)
            }
            Exit::Failed(errno) => self.broken("the run was refused", errno.0 as u64, 0),
            Exit::Port(port) => self.broken("a port that nobody uses", u64::from(port), 0),
        }
    }

    /// Whether a signal waits to be delivered.
    fn pending(&self) -> bool {
        self.thread.pending.load(Ordering::Acquire) != 0
    }

    /// A signal came in the middle of a run, or between two: finds the program's state, and delivers.
    fn interrupted(&mut self) {
        let mut goes_on = self.goes_on;
        if self.place == Place::Untouched {
            goes_on = true;
            self.check_root();
            let registers = self.cpu.registers();
            match tables::stub_at(registers.rip) {
                // These were about to call the monitor: it is as if they had. What is pending is
                // delivered when the call is done.
                Some(Stub::Syscall) => return self.system_call(),
                Some(Stub::Exception(tables::DOUBLE_FAULT)) => self.double_fault(),
                Some(Stub::Exception(vector)) => return self.exception(vector),
                Some(Stub::Breakpoint) => {
                    let frame = tables::read_frame(self.thread.index, tables::BREAKPOINT);
                    registers.rip = frame.rip - 1;
                    registers.rflags = frame.rflags;
                    registers.rsp = frame.rsp;
                    self.place = Place::Ring0;
                }
                Some(Stub::Sysret) => {
                    registers.rip = registers.rcx;
                    registers.rflags = registers.r11;
                    self.place = Place::Ring0;
                }
                Some(Stub::Iret) => {
                    let frame = tables::read_iret_frame(registers.rsp);
                    registers.rip = frame.rip;
                    registers.rflags = frame.rflags;
                    registers.rsp = frame.rsp;
                    self.place = Place::Ring0;
                }
                Some(Stub::Fault(Some(Part::Exit))) => return self.exception(14),
                Some(Stub::Fault(Some(Part::Beginning))) => {
                    self.place = Place::Faulted;
                    // The instruction will fault again.
                    let frame = tables::read_frame(self.thread.index, 14);
                    registers.rip = frame.rip;
                    registers.rflags = frame.rflags;
                    registers.rsp = frame.rsp;
                    tables::release_handler(self.thread.index, frame.rsp);
                }
                Some(Stub::Fault(Some(Part::Return))) => self.handler_returns(),
                Some(Stub::Fault(None)) | None => self.place = Place::Program,
            }
            self.all = true;
        }
        // Later, if the program is in the middle of a handler of page faults: it will return, if it goes on.
        if goes_on && tables::await_handler(self.thread.index, self.cpu.registers().rsp) {
            return self.thread.unkick();
        }
        while self.pending() {
            deliver::captured(self, Restart::Done);
        }
    }

    /// Returns from a handler of page faults, in place of its IRETQ.
    fn handler_returns(&mut self) {
        let registers = self.cpu.registers();
        let frame = tables::read_iret_frame(registers.rsp);
        registers.rip = frame.rip;
        registers.rflags = frame.rflags;
        registers.rsp = frame.rsp;
        self.place = Place::Faulted;
        self.all = true;
        tables::handler_ended(self.thread.index);
    }

    /// If INT3 has been executed and its exception is on its way still, has it be executed again.
    ///
    /// Where the processor raises the exception, RIP is at the instruction until it has been delivered. A paravirtual host
    /// moves RIP on when it queues it: so it would be lost at the next run, which sets the registers, or come in a signal's
    /// handler. A flush may be done twice, so whether it was done need not be known (nor whether the byte before RIP was
    /// an INT3, or the end of something else). A breakpoint of the program's own may not: if the host does not tell that it
    /// waits, it counts as delivered. (One whose delivery was broken off is then lost.)
    fn take_back_breakpoint(&mut self) {
        const INT3: u8 = 0xcc;
        let (rip, rax) = (self.cpu.registers().rip, self.cpu.registers().rax);
        let mut behind = [0];
        if !is_paravirtual()
            || tables::stub_at(rip).is_some()
            || sys::copy_in(rip.wrapping_sub(1) as usize, &mut behind).is_err()
            || behind != [INT3]
        {
            return;
        }
        let mut again = [tables::FLUSH, tables::FLUSH_PAGE].iter().any(|call| *call as u64 == rax);
        if !again {
            self.must(|cpu| cpu.take_breakpoint().map(|waits| again = waits));
        }
        if again {
            self.cpu.registers().rip = rip - 1;
        }
    }

    /// A program at ring 0 may load CR3 with anything. Where its walks then find no memory at all, KVM can be at it for
    /// ever, and comes back for a signal only.
    fn check_root(&mut self) {
        if !ring::is_zero() {
            return;
        }
        let mut found = 0;
        self.must(|cpu| cpu.segments().map(|segments| found = segments.cr3));
        let own = SPACE.lock().root_of(self.thread.space.get());
        if own.is_ok_and(|own| own != found & ADDRESS_MASK) {
            self.broken("CR3 has been loaded with another address than the one it held", 0, found);
        }
    }

    /// Moves the program's state to where the CPU goes on from.
    fn prepare_return(&mut self) {
        if self.place == Place::Untouched {
            return;
        }
        let registers = self.cpu.registers();
        registers.rflags = registers.rflags & frame::USER_FLAGS | 0x202;
        if registers.rip >= USER_END {
            // No processor goes there; and from ring 0 it would not come back.
            return self.segv_at_return();
        }
        if self.place == Place::Faulted && !is_paravirtual() {
            // The processor loads SS with null where it takes a stack of the IST (SDM 3A §6.14.5), and only a return
            // from an interrupt loads it again. It gives back no IF that it does not find set.
            let (rip, rflags, rsp) = (registers.rip, registers.rflags, registers.rsp);
            registers.rsp = tables::write_iret_frame(self.thread.index, rip, rflags, rsp);
            registers.rip = tables::iret() as u64;
            registers.rflags = 0x202;
        } else if self.place == Place::Ring0 {
            if self.all {
                let (rip, rflags, rsp) = (registers.rip, registers.rflags, registers.rsp);
                registers.rsp = tables::write_iret_frame(self.thread.index, rip, rflags, rsp);
                registers.rip = tables::iret() as u64;
            } else {
                registers.rcx = registers.rip;
                registers.r11 = registers.rflags;
                registers.rip = tables::sysret() as u64;
            }
            registers.rflags = 2;
        }
        self.place = Place::Program;
        self.all = false;
    }

    fn segv_at_return(&mut self) {
        deliver::fault(self, libc::SIGSEGV, SI_KERNEL, 0, [13, 0, 0]);
        self.prepare_return();
    }

    /// The program executed SYSCALL.
    fn system_call(&mut self) {
        let ring = self.syscall_ring();
        // A program at ring 0 has come from no other: its RIP and RFLAGS are all that SYSCALL changed.
        self.place = if ring == 0 && !ring::is_zero() { Place::Ring0 } else { Place::Program };
        let registers = self.cpu.registers();
        registers.rip = registers.rcx;
        registers.rflags = registers.r11;
        let nr = registers.rax;
        stats::call(nr, ring);
        let r = &*registers;
        let arguments = [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
        self.call = nr;
        let mut restart = Restart::Done;
        match calls::dispatch(self, nr, arguments) {
            Outcome::Registers => {}
            Outcome::Result(sys::forward::NOT_BEGUN) => restart = Restart::Always,
            Outcome::Result(sys::forward::RESTART) => restart = Restart::IfWanted,
            Outcome::Result(result) => self.cpu.registers().rax = result as u64,
        }
        if self.pending() {
            deliver::captured(self, restart);
        } else {
            // Moved out of the window, and then the signal was somebody else's: again.
            self.restart(restart, true);
        }
    }

    /// Sets the program back to before its system call, or fails the call, as `restart` says.
    pub(crate) fn restart(&mut self, restart: Restart, wanted: bool) {
        let call = self.call;
        let registers = self.cpu.registers();
        match restart {
            Restart::Done => {}
            Restart::IfWanted if !wanted => registers.rax = -i64::from(libc::EINTR) as u64,
            Restart::Always | Restart::IfWanted => {
                // SYSCALL is two bytes long.
                registers.rip -= 2;
                registers.rax = call;
            }
        }
    }

    fn syscall_ring(&mut self) -> u8 {
        let known = SYSCALL_RING.load(Ordering::Relaxed);
        if known != 255 {
            return known;
        }
        let mut ring = 0;
        self.must(|cpu| cpu.segments().map(|found| ring = found.privilege()));
        SYSCALL_RING.store(ring, Ordering::Relaxed);
        ring
    }

    /// An exception of the program's.
    fn exception(&mut self, vector: u8) {
        let pushed = tables::read_frame(self.thread.index, vector);
        let registers = self.cpu.registers();
        registers.rip = pushed.rip;
        registers.rsp = pushed.rsp;
        registers.rflags = pushed.rflags;
        self.place = if vector == tables::BREAKPOINT { Place::Ring0 } else { Place::Faulted };
        self.all = true;
        let (error, rip) = (pushed.error, pushed.rip);
        if vector == 14 {
            return self.page_fault(&pushed);
        }
        let trap = [u64::from(vector), error, 0];
        let (signal, code, address) = match vector {
            0 => (libc::SIGFPE, 1, rip),
            1 => (libc::SIGTRAP, if pushed.rflags & 0x100 != 0 { 2 } else { 1 }, rip),
            3 => (libc::SIGTRAP, SI_KERNEL, 0),
            6 => (libc::SIGILL, 2, rip),
            11 | 12 => (libc::SIGBUS, SI_KERNEL, 0),
            16 | 19 => (libc::SIGFPE, self.float_code(vector), rip),
            17 => (libc::SIGBUS, 1, 0),
            _ => (libc::SIGSEGV, SI_KERNEL, 0),
        };
        deliver::fault(self, signal, code, address, trap);
    }

    /// The `si_code` of a floating-point exception (Linux: arch/x86/kernel/fpu/core.c
    /// `fpu__exception_code`).
    fn float_code(&mut self, vector: u8) -> i32 {
        // SAFETY: the record is this thread's, and no other reference exists.
        let fpu = unsafe { &mut *self.thread.xsave.get() };
        self.must(|cpu| cpu.xsave(fpu));
        let raised = if vector == 16 {
            // Control word and status word.
            !fpu.region[0] & (fpu.region[0] >> 16)
        } else {
            let mxcsr = fpu.region[6];
            mxcsr & !(mxcsr >> 7)
        };
        match raised & 0x3f {
            r if r & 1 != 0 => 7,
            r if r & 4 != 0 => 3,
            r if r & 0x12 != 0 => 5,
            r if r & 8 != 0 => 4,
            r if r & 0x20 != 0 => 6,
            _ => 0,
        }
    }

    fn page_fault(&mut self, pushed: &tables::Frame) {
        let error = pushed.error;
        tables::release_handler(self.thread.index, pushed.rsp);
        let mut address = 0;
        self.must(|cpu| cpu.fault_address().map(|found| address = found));
        stats::page_fault();
        let (write, execute) = (error & 2 != 0, error & 16 != 0);
        let fault = self.fault(address, write, execute);
        // The kernel's own error codes say that it was user code, whatever the host does.
        let trap = [14, error & 0x17 | 4, address];
        match fault {
            Ok(Fault::Mapped | Fault::Link(_)) => self.goes_on = true,
            // The signal first, on the program's stack; then the instruction will fault again.
            Ok(Fault::Held) if self.pending() => {}
            Ok(Fault::Held) => {
                let handled = faults::handled()
                    && !tables::refused(self.thread.index, address)
                    && self.hand_over(pushed, address);
                if handled {
                    self.goes_on = true;
                } else {
                    deliver::fault(self, libc::SIGSEGV, 2, address, trap);
                }
            }
            Ok(Fault::Segv(code)) => deliver::fault(self, libc::SIGSEGV, code, address, trap),
            Ok(Fault::Bus) => deliver::fault(self, libc::SIGBUS, 2, address, trap),
            Err(error) => self.broken_by(&error),
        }
    }

    /// What a page fault comes to. Where a large page was, or shall be, the entry may need a store of the guest's, and
    /// then it is as if the page had faulted again.
    fn fault(&mut self, address: u64, write: bool, execute: bool) -> Result<Fault, HostError> {
        let mut space = SPACE.lock();
        let id = self.thread.space.get();
        for _ in 0..2 {
            let fault = space.fault_in(id, address, write, execute)?;
            let Fault::Link(link) = fault else { return Ok(fault) };
            self.store(link);
        }
        space.fault_in(id, address, write, execute)
    }

    /// Gives everything in `range` that is mapped entries: `large` ones where they can be, or each page one of its own.
    /// What a system call returns: how many are large.
    pub(crate) fn populate(&mut self, range: Range<u64>, large: bool) -> i64 {
        let mut space = SPACE.lock();
        let (mut count, mut rest) = (0, range.clone());
        let done = loop {
            let next = if large {
                space.populate_large(range.clone(), &mut count)
            } else {
                space.link(&mut rest)
            };
            match next {
                Ok(Some(link)) => self.store(link),
                Ok(None) if large => break Ok(()),
                Ok(None) => break space.populate(range),
                Err(error) => break Err(error),
            }
        };
        done.map_or_else(|error| -i64::from(error.errno.0), |()| count as i64)
    }

    /// Has the CPU make a store to a page table, in between: so a host that shadows the tables sees it. The program's
    /// registers must be in place, and are afterwards.
    pub(crate) fn store(&mut self, link: Link) {
        self.in_between(tables::store(), link.entry as u64, link.value, 0);
    }

    /// As [`Self::store`]: makes the table at `address` zero.
    pub(crate) fn wipe(&mut self, address: u64) {
        self.in_between(tables::wipe(), address, 0, crate::paging::ENTRIES as u64);
    }

    /// As [`Self::store`]: nothing, but that the CPU runs.
    pub(crate) fn pass(&mut self) {
        self.in_between(tables::pass(), 0, 0, 0);
    }

    /// Has the CPU run a stub that ends with [`PORT_STORED`].
    fn in_between(&mut self, stub: usize, rdi: u64, rax: u64, rcx: u64) {
        let before = *self.cpu.registers();
        let registers = self.cpu.registers();
        (registers.rdi, registers.rax, registers.rcx) = (rdi, rax, rcx);
        registers.rip = stub as u64;
        registers.rflags = 0x202;
        // A signal may have come already; it waits until this is done.
        self.thread.unkick();
        let mut interrupted = 0;
        loop {
            let exit = self.cpu.run();
            stats::exit(exit);
            match exit {
                Exit::Port(PORT_STORED) => break,
                Exit::LogFull => page_log::take_down(),
                Exit::Interrupted if interrupted < MAX_STUCK => {
                    interrupted += 1;
                    self.thread.unkick();
                }
                _ => self.broken("a page table cannot be changed", 0, rdi),
            }
        }
        if self.pending() {
            self.thread.kick();
        }
        *self.cpu.registers() = before;
    }

    /// Calls the program's page-fault handler; `false` if it is the handler that has faulted.
    fn hand_over(&mut self, pushed: &tables::Frame, address: u64) -> bool {
        let Some(rsp) = tables::hand_over(self.thread.index, pushed, address) else {
            return false;
        };
        let registers = self.cpu.registers();
        registers.rip = faults::moved();
        registers.rsp = rsp;
        true
    }

    /// The tables have a page that the host has not.
    fn no_memory(&mut self) {
        self.place = Place::Untouched;
        let rip = self.cpu.registers().rip;
        if rip == self.stuck_at {
            self.stuck += 1;
        } else {
            (self.stuck, self.stuck_at) = (0, rip);
        }
        if self.stuck > MAX_STUCK {
            self.broken("no memory where the tables have a page", 0, 0);
        }
        SPACE.lock().recover();
    }

    /// The signal state of this thread's process.
    pub(crate) fn process(&self) -> &'static Process {
        // SAFETY: set when the thread's slot was taken, to what outlives the thread.
        unsafe { &*self.thread.process.get() }
    }

    /// Every register counts from here on, RCX and R11 included.
    pub(crate) fn changed_all(&mut self) {
        self.all = true;
    }

    /// The CPU is another, at the program's ring, in the state that was asked for.
    pub(crate) fn reloaded(&mut self) {
        self.place = Place::Program;
        self.all = true;
    }

    /// An exception that is on its way will be raised again when the program comes back.
    pub(crate) fn forget_exception(&mut self) {
        self.must(AnyVcpu::forget_exception);
    }

    /// Does what cannot fail while the CPU lives.
    pub(crate) fn must(&mut self, f: impl FnOnce(&mut AnyVcpu) -> Result<(), HostError>) {
        if let Err(error) = f(self.cpu) {
            self.broken_by(&error);
        }
    }

    fn broken_by(&mut self, error: &HostError) -> ! {
        text::report(format_args!("barchan: {error}\n"));
        self.broken("the virtual CPU cannot go on", error.errno.0 as u64, 0)
    }

    /// An exception could not be delivered: the fault stack or the descriptors could not be used, or it was one
    /// of ring 0, whose stubs raise none.
    fn double_fault(&mut self) -> ! {
        self.report_frame("the exception that could not be delivered", tables::DOUBLE_FAULT);
        self.broken("double fault", 0, 0)
    }

    /// Not even a double fault could be delivered. KVM on SVM has reset the registers.
    fn shut_down(&mut self) -> ! {
        self.report_frame("the last double fault, if there was one,", tables::DOUBLE_FAULT);
        self.broken("triple fault", 0, 0)
    }

    /// Says what the CPU last pushed for exception `vector`, and for any other but #DF.
    fn report_frame(&self, what: &str, vector: u8) {
        // A page fault's frame is that of an exception with an error code; others have a word less.
        for (what, vector) in [(what, vector), ("the last exception before", 14)] {
            let pushed = tables::read_frame(self.thread.index, vector);
            text::report(format_args!(
                "barchan: {what} was at rip {:#018x} cs {:#x} rflags {:#x} rsp {:#018x} ss {:#x}, error code \
                 {:#x}\n",
                pushed.rip, pushed.cs, pushed.rflags, pushed.rsp, pushed.ss, pushed.error
            ));
        }
    }

    /// The end: says what the CPU's state is, and aborts.
    fn broken(&mut self, what: &str, code: u64, detail: u64) -> ! {
        let cr2 = self.cpu.fault_address().unwrap_or(0);
        let segments = self.cpu.segments().unwrap_or_default();
        let tid = sys::thread_id();
        let r = *self.cpu.registers();
        text::fatal(format_args!(
            "barchan: thread {tid} cannot go on in guest mode: {what} ({code}, {detail:#x})\n  \
             rip {:#018x} rsp {:#018x} rflags {:#x} cr2 {cr2:#x}\n  \
             cs {:#x} ss {:#x} type of the tss {:#x} cr3 {:#x}\n  \
             rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}\n  \
             rsi {:#018x} rdi {:#018x} rbp {:#018x} r8  {:#018x}\n  \
             r9  {:#018x} r10 {:#018x} r11 {:#018x} r12 {:#018x}\n  \
             r13 {:#018x} r14 {:#018x} r15 {:#018x}\n",
            r.rip,
            r.rsp,
            r.rflags,
            segments.cs,
            segments.ss,
            segments.tss_type,
            segments.cr3,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
        ))
    }
}
