//! The thread that answers the faults of a synchronous userfaultfd (lift the protection of the
//! page, wake whoever waits), and that does for the regions whatever takes a descriptor.
//!
//! The descriptors lie in a table of the thread's own, and in no other: no number of theirs is
//! known to the program, which may close all its descriptors (as daemons do) and open others, and
//! cannot reach ours; nor does a forked child inherit them. For that the thread opens them itself,
//! once it has a table of its own. So a registration lasts as long as its monitor, and no fault is
//! left without somebody to answer it: a monitor that is refused what it needs (by a seccomp policy
//! that comes later) ends, and closes them.
//!
//! A request is therefore passed through memory, and the bell that wakes the thread is a fault too:
//! two pages of its own are registered with the same userfaultfd, one of them protected. To ask is
//! to leave the request, give it the next number and store to the protected page; the thread finds
//! the fault among the others, does what is asked, protects the other page for the next request,
//! and lifts the protection. So the caller goes on when it has its answer. If the store ever went
//! through unanswered, the number of the last answer would tell, and that is an error.
//!
//! It is a bare `clone`, not a pthread: it is also made in a forked child, inside a stopped world,
//! where `pthread_create` might wait for the heap's lock forever; and no collector should find it
//! among the threads to stop. It shares its maker's thread-local storage, so its code touches none:
//! no `errno`, no allocation, no panic, only system calls. It never touches tracked memory (nobody
//! would answer). All signals are blocked in it.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::descriptors::{CHUNK, ChunkBits, Descriptors, KILLED, Refused, START, unavailable};
use crate::error::kind_of;
use crate::os::syscall::SignalMask;
use crate::os::uffd::{self, Message, Mode, Protect};
use crate::os::{epoch, syscall};
use crate::stats::Counters;
use crate::{Errno, PAGE_SIZE, PageRange, Unavailable};

/// From the lowest address on: a guard, the stack, the bells, a page for [`Shared`].
const STACK_PAGES: usize = 16;
const ALL_PAGES: usize = 1 + STACK_PAGES + 2 + 1;

/// What a region wants of the kernel.
#[derive(Clone, Copy)]
pub(super) enum Request {
    Register(PageRange),
    Release(PageRange),
    Protect(PageRange, Protect),
    /// Of at most a chunk: which pages are dirty; they are protected if `reset`.
    Scan {
        range: PageRange,
        reset: bool,
    },
    /// Ends the thread.
    Stop,
}

/// What came of it; the bits are those of a scan.
struct Answer {
    done: Result<(), Refused>,
    bits: ChunkBits,
}

const STARTING: u32 = 1;
const RUNNING: u32 = 2;

/// What the thread works with; it lives as long as the thread.
struct Shared {
    bells: PageRange,
    counters: &'static Counters,
    /// [`STARTING`], then [`RUNNING`]; the kernel sets it to 0 and wakes waiters when the thread has
    /// ended, whatever ended it.
    thread: AtomicU32,
    /// What came of the start; the thread writes it while `thread` is [`STARTING`].
    started: UnsafeCell<Result<Mode, Unavailable>>,
    /// The number of the last request, written after `request`.
    asked: AtomicU64,
    request: UnsafeCell<Request>,
    /// The number of the last answer, written after `answer`.
    answered: AtomicU64,
    answer: UnsafeCell<Answer>,
}

impl Shared {
    /// The page that request `number` rings.
    fn bell(&self, number: u64) -> PageRange {
        self.bells.slice((number % 2) as usize, 1)
    }
}

const _: () = assert!(size_of::<Shared>() <= PAGE_SIZE);

/// A running monitor; ends when dropped.
pub(super) struct Monitor {
    shared: *mut Shared,
    memory: PageRange,
    /// The process that the thread runs in.
    epoch: u64,
}

// SAFETY: 1. the pointer is to a structure freed only by drop after the thread has ended. 2.
// Nothing in it is bound to the thread that made it.
unsafe impl Send for Monitor {}

impl Monitor {
    /// Starts the thread, which opens the descriptors. Maps memory, and allocates nothing on the
    /// heap.
    pub(super) fn start(counters: &'static Counters) -> Result<(Self, Mode), Unavailable> {
        let limits = |errno| {
            let remedy = "raise the limits of threads and memory";
            unavailable(kind_of(errno), START, errno, remedy)
        };
        let bytes = ALL_PAGES * PAGE_SIZE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let start = syscall::mmap_anonymous(bytes, prot, 0).map_err(limits)?;
        let memory = PageRange::between(start, start + bytes);
        let bells = memory.slice(1 + STACK_PAGES, 2);
        let shared = memory.slice(ALL_PAGES - 1, 1).start() as *mut Shared;
        // SAFETY: 1. the page is ours and writable. 2. It is aligned and large enough.
        unsafe {
            shared.write(Shared {
                bells,
                counters,
                thread: AtomicU32::new(STARTING),
                started: UnsafeCell::new(Err(KILLED)),
                asked: AtomicU64::new(0),
                request: UnsafeCell::new(Request::Stop),
                answered: AtomicU64::new(0),
                answer: UnsafeCell::new(Answer { done: Ok(()), bits: [0; CHUNK / 64] }),
            });
        }
        let monitor = Self { shared, memory, epoch: epoch::current() };
        // SAFETY: the page is ours and new.
        let _ = unsafe { syscall::mprotect(memory.slice(0, 1), libc::PROT_NONE) };
        for bell in [0, 1] {
            // Kernels before 6.4 protect only pages that are there.
            // SAFETY: ours and writable.
            unsafe { (bells.slice(bell, 1).start() as *mut u64).write_volatile(0) };
        }
        // With CLONE_FILES: the call that makes the table its own copies 64 descriptors at most.
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_CHILD_CLEARTID;
        let blocked = SignalMask::all_blocked();
        // SAFETY: 1. the stack is ours, aligned, and lives until the thread has ended. 2. `run`
        // touches no thread-local storage. 3. The word to clear lives as long.
        let id = unsafe {
            libc::clone(
                run,
                bells.start() as *mut c_void,
                flags,
                shared.cast::<c_void>(),
                core::ptr::null_mut::<libc::pid_t>(),
                core::ptr::null_mut::<c_void>(),
                (&raw mut (*shared).thread).cast::<libc::pid_t>(),
            )
        };
        let failed = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        drop(blocked);
        if id < 0 {
            monitor.shared().thread.store(0, Ordering::Relaxed);
            monitor.free();
            return Err(limits(Errno(failed)));
        }
        let thread = &monitor.shared().thread;
        while thread.load(Ordering::Acquire) == STARTING {
            syscall::futex_wait(thread, STARTING);
        }
        // SAFETY: the thread does not write it any more.
        match unsafe { *monitor.shared().started.get() } {
            Ok(mode) => Ok((monitor, mode)),
            Err(why) => {
                monitor.free();
                Err(why)
            }
        }
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the structure lives until `free`, which takes the monitor.
        unsafe { &*self.shared }
    }

    /// Has the thread do `request` and returns when it is done, with the bits of a scan in `bits`.
    ///
    /// Only for the process that started the thread, one caller at a time, with signals blocked.
    pub(super) fn ask(&mut self, request: Request, bits: &mut ChunkBits) -> Result<(), Refused> {
        let shared = self.shared();
        let number = shared.asked.load(Ordering::Relaxed) + 1;
        // SAFETY: the thread reads it once it sees the next number, and has done so for the last.
        unsafe { *shared.request.get() = request };
        shared.asked.store(number, Ordering::SeqCst);
        // SAFETY: 1. the page is ours, mapped and aligned. 2. Nobody reads it.
        let bell = unsafe { &*(shared.bell(number).start() as *const AtomicU64) };
        bell.store(number, Ordering::SeqCst);
        if shared.answered.load(Ordering::SeqCst) != number {
            return Err(("asking the monitor thread", Errno(libc::EIO)));
        }
        // SAFETY: the thread writes it only between a request and its answer.
        let answer = unsafe { &*shared.answer.get() };
        *bits = answer.bits;
        answer.done
    }

    /// Waits until the thread has ended, and unmaps its memory.
    fn free(self) {
        let thread = &self.shared().thread;
        loop {
            match thread.load(Ordering::Acquire) {
                0 => break,
                id => syscall::futex_wait(thread, id),
            }
        }
        // SAFETY: 1. ours. 2. The thread has ended, and with it every use of the memory.
        unsafe { syscall::munmap(self.memory.start(), self.memory.len_bytes()) };
    }

    /// Ends the thread, and with it its descriptors. In a forked child there is no thread, and the
    /// memory stays; so it does if the thread lives and does not answer.
    pub(super) fn stop(mut self) {
        if self.epoch == epoch::current()
            && (self.ask(Request::Stop, &mut [0; CHUNK / 64]).is_ok()
                || self.shared().thread.load(Ordering::Acquire) == 0)
        {
            self.free();
        }
    }
}

/// Opens the descriptors, has the first bell ring, and gives up what is no longer needed.
fn prepare(shared: &Shared) -> Result<(Descriptors, Mode), Unavailable> {
    let (fds, mode) = Descriptors::open()?;
    let first = shared.bell(shared.asked.load(Ordering::Relaxed) + 1);
    fds.register(shared.bells).and_then(|()| fds.protect(first, Protect::On)).map_err(
        |(step, errno)| {
            unavailable(kind_of(errno), step, errno, "allow the requests of userfaultfd")
        },
    )?;
    // The program may drop its own later, and libc does not know this thread. If it is refused,
    // they stay as they are.
    let _ = syscall::drop_capabilities();
    Ok((fds, mode))
}

/// The thread. It returns, and so ends, when told to or when the kernel refuses what it needs; with
/// the userfaultfd closed the kernel wakes all who wait.
extern "C" fn run(shared: *mut c_void) -> libc::c_int {
    // SAFETY: `start` passes a Shared that outlives the thread.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let prepared = prepare(shared);
    // SAFETY: `start` reads it once `thread` has changed.
    unsafe { *shared.started.get() = prepared.map(|(_, mode)| mode) };
    let Ok((fds, _)) = prepared else { return 1 };
    shared.thread.store(RUNNING, Ordering::Release);
    syscall::futex_wake(&shared.thread);
    let mut messages = [Message::default(); 16];
    loop {
        let mut watched = [libc::pollfd { fd: fds.uffd, events: libc::POLLIN, revents: 0 }];
        match syscall::poll(&mut watched) {
            Ok(_) | Err(Errno(libc::EINTR)) => {}
            Err(_) => return 1,
        }
        let faults = match uffd::next_faults(fds.uffd, &mut messages) {
            Ok(faults) => faults,
            Err(Errno(libc::EAGAIN | libc::EINTR)) => continue,
            Err(_) => return 1,
        };
        for page in messages.iter().take(faults).filter_map(Message::page) {
            if shared.bells.contains(&page) {
                if !serve(shared, &fds, page) {
                    return 0;
                }
                continue;
            }
            // Before the writer goes on, who may look at the counter.
            Counters::add(&shared.counters.faults, 1);
            let answered = match uffd::write_protect(fds.uffd, page, Protect::OffAndWake) {
                // The page went away meanwhile; whoever waits finds out for themselves.
                Err(Errno(libc::ENOENT)) => uffd::wake(fds.uffd, page),
                other => other,
            };
            if answered.is_err() {
                return 1;
            }
        }
    }
}

/// The bell rang: does what is asked, and lets the caller go on. Whether the thread does.
///
/// A fault may be told twice; then there is no new request, and nothing to do but to wake.
fn serve(shared: &Shared, fds: &Descriptors, rung: PageRange) -> bool {
    let number = shared.asked.load(Ordering::SeqCst);
    if shared.answered.load(Ordering::Relaxed) == number {
        return uffd::wake(fds.uffd, rung).is_ok();
    }
    // SAFETY: the caller has left it before it gave the number, and waits.
    let request = unsafe { *shared.request.get() };
    // SAFETY: whoever asked reads it after the number below.
    let answer = unsafe { &mut *shared.answer.get() };
    answer.bits.fill(0);
    answer.done = match request {
        Request::Register(range) => fds.register(range),
        Request::Release(range) => {
            fds.release(range);
            Ok(())
        }
        Request::Protect(range, what) => fds.protect(range, what),
        Request::Scan { range, reset } => {
            fds.scan(range, reset, &mut answer.bits, shared.counters);
            Ok(())
        }
        Request::Stop => Ok(()),
    };
    // Without it the next request could not be heard. With the thread gone it finds itself
    // unanswered, and everything is dirty.
    let hears = uffd::write_protect(fds.uffd, shared.bell(number + 1), Protect::On).is_ok();
    shared.answered.store(number, Ordering::SeqCst);
    let lifted = uffd::write_protect(fds.uffd, shared.bell(number), Protect::OffAndWake).is_ok();
    hears && lifted && !matches!(request, Request::Stop)
}
