//! The thread that answers the faults of a synchronous userfaultfd: lift the protection of the
//! page, wake whoever waits.
//!
//! It is a bare `clone`, not a pthread: it is also made in a forked child, inside a stopped world,
//! where `pthread_create` might wait for the heap's lock forever; and no collector should find it
//! among the threads to stop. It shares its maker's thread-local storage, so its code touches none:
//! no `errno`, no allocation, no panic, only system calls. It never touches tracked memory (nobody
//! would answer). All signals are blocked in it.

use core::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::os::uffd::{self, Message, Protect};
use crate::os::{epoch, syscall};
use crate::stats::Counters;
use crate::{Errno, PAGE_SIZE, PageRange};

const STACK_BYTES: usize = 16 * PAGE_SIZE;

/// What the thread works with; it lives as long as the thread.
struct Shared {
    uffd: i32,
    /// Readable once the thread is to end.
    stop: i32,
    /// The thread's id; the kernel sets it to 0 and wakes waiters when the thread has ended.
    thread: AtomicU32,
    counters: &'static Counters,
}

/// A running monitor; ends when dropped.
pub(super) struct Monitor {
    shared: *mut Shared,
    stack: usize,
    /// The process that the thread runs in.
    epoch: u64,
}

// SAFETY: 1. the pointer is to a structure of atomics and constants, freed only by drop after the
// thread has ended. 2. Nothing in it is bound to the thread that made it.
unsafe impl Send for Monitor {}
// SAFETY: as for Send; no method takes `&self`.
unsafe impl Sync for Monitor {}

impl Monitor {
    /// Starts the thread for `uffd`. Maps memory, and allocates nothing on the heap.
    pub(super) fn start(uffd: i32, counters: &'static Counters) -> Result<Self, Errno> {
        let stop = syscall::eventfd()?;
        let abandon = |errno| {
            // SAFETY: opened above.
            unsafe { syscall::close(stop) };
            errno
        };
        // The lowest page is the guard, and the structure lies at the top, above the stack.
        let bytes = STACK_BYTES + 2 * PAGE_SIZE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let stack = syscall::mmap_anonymous(bytes, prot, libc::MAP_NORESERVE).map_err(abandon)?;
        // SAFETY: the page is ours and new.
        let _ = unsafe {
            syscall::mprotect(PageRange::between(stack, stack + PAGE_SIZE), libc::PROT_NONE)
        };
        let top = stack + bytes - PAGE_SIZE;
        let shared = top as *mut Shared;
        // SAFETY: 1. the top page is ours and writable. 2. It is aligned and large enough.
        unsafe { shared.write(Shared { uffd, stop, thread: AtomicU32::new(1), counters }) };
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_CHILD_CLEARTID;
        let old = syscall::set_signal_mask(syscall::ALL_SIGNALS);
        // SAFETY: 1. the stack is ours, aligned, and lives until the thread has ended. 2. `run`
        // touches no thread-local storage. 3. The word to clear lives as long.
        let id = unsafe {
            libc::clone(
                run,
                top as *mut c_void,
                flags,
                shared.cast::<c_void>(),
                core::ptr::null_mut::<libc::pid_t>(),
                core::ptr::null_mut::<c_void>(),
                (&raw mut (*shared).thread).cast::<libc::pid_t>(),
            )
        };
        let failed = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        syscall::set_signal_mask(old);
        if id < 0 {
            // SAFETY: mapped above; there is no thread.
            unsafe { syscall::munmap(stack, bytes) };
            return Err(abandon(Errno(failed)));
        }
        Ok(Self { shared, stack, epoch: epoch::current() })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if self.epoch != epoch::current() {
            // A forked child has the memory and no thread; its stop descriptor may have become
            // some other file by now, so it is left alone.
            return;
        }
        // SAFETY: the structure lives until the end of this function.
        let shared = unsafe { &*self.shared };
        if syscall::write(shared.stop, &1u64.to_ne_bytes()).is_err() {
            // Somebody closed the descriptor behind our back: the thread and its stack stay.
            return;
        }
        loop {
            match shared.thread.load(Ordering::Acquire) {
                0 => break,
                id => syscall::futex_wait(&shared.thread, id),
            }
        }
        // SAFETY: 1. ours. 2. The thread has ended, and with it every use of the stack.
        unsafe {
            syscall::close(shared.stop);
            syscall::munmap(self.stack, STACK_BYTES + 2 * PAGE_SIZE);
        }
    }
}

/// The thread. It returns, and so ends, when told to or when a descriptor is gone; with the
/// userfaultfd closed the kernel wakes all who wait.
extern "C" fn run(shared: *mut c_void) -> libc::c_int {
    // SAFETY: `start` passes a Shared that outlives the thread.
    let shared = unsafe { &*shared.cast::<Shared>() };
    let mut messages = [Message::default(); 16];
    let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let mut fds = [watch(shared.uffd), watch(shared.stop)];
        match syscall::poll(&mut fds) {
            Ok(_) => {}
            Err(Errno(libc::EINTR)) => continue,
            Err(_) => return 1,
        }
        let [faults, stop] = fds;
        if stop.revents != 0 || faults.revents & (libc::POLLNVAL | libc::POLLHUP) != 0 {
            return 0;
        }
        match uffd::next_faults(shared.uffd, &mut messages) {
            Ok(n) => {
                for page in messages.iter().take(n).filter_map(Message::page) {
                    // Before the writer goes on, who may look at the counter.
                    Counters::add(&shared.counters.faults, 1);
                    if uffd::write_protect(shared.uffd, page, Protect::OffAndWake).is_err() {
                        // The page went away meanwhile; whoever waits finds out for themselves.
                        uffd::wake(shared.uffd, page);
                    }
                }
            }
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            Err(_) => return 1,
        }
    }
}
