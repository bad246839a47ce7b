//! A spin lock that no suspended thread can hold and that survives a fork.
//!
//! Collectors stop threads with a signal. A thread that takes this lock blocks all signals first,
//! so it is never stopped while holding it, and whoever waits for it waits for a few system calls
//! at most. A child forked (by another thread) while the lock was held inherits it held by nobody:
//! the word names the holder's epoch, and a holder of another epoch is dispossessed.
//!
//! While the lock is held the thread must not touch tracked memory: SIGSEGV is blocked too, and
//! the kernel kills a thread that faults so.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::syscall::SignalMask;
use super::{epoch, syscall};

/// 0 when free, else the epoch of the holder.
#[derive(Default)]
pub(crate) struct EpochLock {
    holder: AtomicU64,
}

/// Holds the lock; gives it back, and the signal mask, when dropped.
pub(crate) struct Held<'a> {
    lock: &'a EpochLock,
    /// Restored after the lock is given back, as fields are dropped last.
    _mask: Option<SignalMask>,
    /// The lock was taken from a process that is not this one: what it guards may be half done.
    pub(crate) inherited: bool,
}

impl EpochLock {
    pub(crate) const fn new() -> Self {
        Self { holder: AtomicU64::new(0) }
    }

    /// Blocks all signals and takes the lock.
    pub(crate) fn lock(&self) -> Held<'_> {
        let mask = SignalMask::all_blocked();
        Held { lock: self, _mask: Some(mask), inherited: self.acquire() }
    }

    /// Takes the lock in a context where all signals are blocked already (a handler with a full
    /// mask, or a thread that never unblocks them).
    pub(crate) fn lock_with_signals_blocked(&self) -> Held<'_> {
        Held { lock: self, _mask: None, inherited: self.acquire() }
    }

    /// Takes the lock as [`Self::lock_with_signals_blocked`] does, for whoever takes many and has
    /// no place to keep what holds them; [`Self::unlock`] gives it back.
    pub(crate) fn lock_without_guard(&self) {
        self.acquire();
    }

    /// Gives back what [`Self::lock_without_guard`] took.
    pub(crate) fn unlock(&self) {
        self.holder.store(0, Ordering::Release);
    }

    fn acquire(&self) -> bool {
        let me = epoch::current();
        let mut spins = 0u32;
        loop {
            let seen = self.holder.load(Ordering::Relaxed);
            if seen != me
                && self
                    .holder
                    .compare_exchange_weak(seen, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return seen != 0;
            }
            spins += 1;
            if spins % 64 == 0 {
                syscall::sched_yield();
            } else {
                core::hint::spin_loop();
            }
        }
    }
}

/// Data behind an [`EpochLock`] for the paths that may allocate: signals are *not* blocked, so the
/// holder can be stopped. Never taken by arm, disarm, peek or collect.
///
/// Why not a std mutex: a child forked while it was held could never take it. Such a child must not
/// find the data half changed either. So a change is made to a copy, which one store puts in the
/// place of the old: at each instant there is a whole one, and the child has that.
pub(crate) struct ForkMutex<T> {
    lock: EpochLock,
    /// A box, or null for the default. Replaced under the lock only.
    data: AtomicPtr<T>,
    owns: PhantomData<T>,
}

// SAFETY: the data is reached only by `with`, one thread at a time.
unsafe impl<T: Send> Sync for ForkMutex<T> {}

impl<T> ForkMutex<T> {
    pub(crate) const fn new() -> Self {
        Self {
            lock: EpochLock::new(),
            data: AtomicPtr::new(core::ptr::null_mut()),
            owns: PhantomData,
        }
    }

    /// Runs `f` on a copy of the data, and puts it in their place. `f` must not call `with` on the
    /// same mutex.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R
    where
        T: Clone + Default,
    {
        let held = Held { lock: &self.lock, _mask: None, inherited: self.lock.acquire() };
        let old = self.data.load(Ordering::Acquire);
        // SAFETY: null, or a box that only the holder of the lock replaces.
        let mut new = Box::new(unsafe { old.as_ref() }.cloned().unwrap_or_default());
        let result = f(&mut new);
        self.data.store(Box::into_raw(new), Ordering::Release);
        drop(held);
        // SAFETY: null, or a box that was replaced above, and that nobody looks at without the lock.
        unsafe { free(old) };
        result
    }
}

impl<T> Drop for ForkMutex<T> {
    fn drop(&mut self) {
        let data = *self.data.get_mut();
        // SAFETY: null, or a box that nobody else can reach any more.
        unsafe { free(data) };
    }
}

/// Frees what a pointer held that is null or a box's.
///
/// # Safety
/// Nobody uses it any more, and it is freed once.
pub(crate) unsafe fn free<T>(held: *mut T) {
    if !held.is_null() {
        // SAFETY: the caller's.
        drop(unsafe { Box::from_raw(held) });
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.holder.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn excludes_and_restores_the_mask() {
        epoch::init().expect("MADV_WIPEONFORK");
        let lock = Arc::new((EpochLock::new(), AtomicU64::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    for _ in 0..2000 {
                        let held = lock.0.lock();
                        assert!(!held.inherited);
                        // A plain read-modify-write, torn if the lock did not exclude.
                        let n = lock.1.load(Ordering::Relaxed);
                        lock.1.store(n + 1, Ordering::Relaxed);
                    }
                    let mask = syscall::set_signal_mask(0);
                    syscall::set_signal_mask(mask);
                    mask
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().ok(), Some(0), "the mask must be as before");
        }
        assert_eq!(lock.1.load(Ordering::Relaxed), 8000);
    }

    #[test]
    fn a_holder_of_another_process_is_dispossessed() {
        epoch::init().expect("MADV_WIPEONFORK");
        let lock = EpochLock::new();
        lock.holder.store(epoch::current() + 1000, Ordering::Relaxed);
        assert!(lock.lock().inherited);
        assert!(!lock.lock().inherited);
    }

    #[test]
    fn a_child_forked_in_the_middle_of_a_change_has_the_data_as_before() {
        epoch::init().expect("MADV_WIPEONFORK");
        let mutex = ForkMutex::<Vec<u32>>::new();
        mutex.with(|data| data.extend([1, 2, 3]));
        let status = mutex.with(|data| {
            data.clear();
            syscall::in_child(|| {
                let seen = mutex.with(|data| core::mem::replace(data, vec![4]));
                seen == [1, 2, 3] && mutex.with(|data| *data == [4])
            })
        });
        assert_eq!(status, 0);
        assert_eq!(mutex.with(|data| data.clone()), []);
    }
}
