//! What the program does on each signal, and what the kernel is told instead.

use super::capture;
use crate::process::{PROCESS, Process};
use crate::sys::{self, Errno};

/// `struct sigaction` as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

const SIG_IGN: u64 = libc::SIG_IGN as u64;
pub(crate) const SA_NOCLDSTOP: u64 = libc::SA_NOCLDSTOP as u64;
pub(crate) const SA_NOCLDWAIT: u64 = libc::SA_NOCLDWAIT as u64;
pub(crate) const SA_SIGINFO: u64 = libc::SA_SIGINFO as u64;
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;
pub(crate) const SA_ONSTACK: u64 = libc::SA_ONSTACK as u64;
pub(crate) const SA_RESTART: u64 = libc::SA_RESTART as u64;
pub(crate) const SA_NODEFER: u64 = libc::SA_NODEFER as u64;
pub(crate) const SA_RESETHAND: u64 = 0x8000_0000;

impl Action {
    pub(crate) const DEFAULT: Self = Self { handler: 0, flags: 0, restorer: 0, mask: 0 };

    /// Whether the program has a handler.
    pub(crate) fn is_handler(&self) -> bool {
        self.handler > SIG_IGN
    }

    /// What the kernel is told: the monitor's handler in place of the program's.
    ///
    /// Always with `SA_RESTART`: then the kernel tells by where the thread is interrupted whether it
    /// would restart the call, and the monitor decides by the program's flag. Never on an alternate
    /// stack: the monitor's own is always good.
    fn for_kernel(&self) -> Self {
        if !self.is_handler() {
            return *self;
        }
        let kept = self.flags & (SA_NOCLDSTOP | SA_NOCLDWAIT);
        Self {
            handler: capture::entry(),
            flags: kept | SA_SIGINFO | SA_RESTART | SA_RESTORER,
            restorer: capture::restorer(),
            mask: !0,
        }
    }
}

/// Reads or sets what the kernel does on a signal.
pub(crate) fn kernel(
    signal: u32,
    new: Option<&Action>,
    old: Option<&mut Action>,
) -> Result<(), Errno> {
    let new = new.map_or(0, |action| &raw const *action as u64);
    let old = old.map_or(0, |action| &raw mut *action as u64);
    // SAFETY: both are null or a `struct sigaction`; handlers are the monitor's, or numbers.
    unsafe { sys::call(libc::SYS_rt_sigaction, [u64::from(signal), new, old, 8, 0, 0]) }.map(drop)
}

/// At entering: handlers that the program has already become the monitor's to call.
pub(crate) fn adopt() {
    let mut actions = PROCESS.actions.lock();
    for signal in 1..=64 {
        let mut action = Action::DEFAULT;
        if kernel(signal, None, Some(&mut action)).is_err() {
            continue;
        }
        actions[signal as usize] = action;
        if action.is_handler() {
            let _ = kernel(signal, Some(&action.for_kernel()), None);
        }
    }
}

/// `rt_sigaction(2)` of the program: addresses of actions, either may be 0. The kernel's result.
pub(crate) fn sigaction(process: &Process, signal: u64, new: u64, old: u64, size: u64) -> i64 {
    match change(process, signal, new, old, size) {
        Ok(()) => 0,
        Err(errno) => -i64::from(errno.0),
    }
}

fn change(process: &Process, signal: u64, new: u64, old: u64, size: u64) -> Result<(), Errno> {
    if size != 8 || !(1..=64).contains(&signal) {
        return Err(Errno(libc::EINVAL));
    }
    let mut wanted = Action::DEFAULT;
    if new != 0 {
        sys::copy_in(new as usize, bytes_mut(&mut wanted))?;
    }
    let mut actions = process.actions.lock();
    let slot = &mut actions[signal as usize];
    let before = *slot;
    if new != 0 {
        // The kernel refuses what must not be handled.
        kernel(signal as u32, Some(&wanted.for_kernel()), None)?;
        wanted.mask &= !(super::bit(libc::SIGKILL as u32) | super::bit(libc::SIGSTOP as u32));
        *slot = wanted;
    }
    drop(actions);
    if old != 0 {
        sys::copy_out(bytes(&before), old as usize)?;
    }
    Ok(())
}

fn bytes(action: &Action) -> &[u8] {
    // SAFETY: four words without padding.
    unsafe { core::slice::from_raw_parts((&raw const *action).cast(), size_of::<Action>()) }
}

fn bytes_mut(action: &mut Action) -> &mut [u8] {
    // SAFETY: four words without padding, of which every bit pattern is one.
    unsafe { core::slice::from_raw_parts_mut((&raw mut *action).cast(), size_of::<Action>()) }
}
