//! Forks: a child with a copy of the memory gets a machine of its own.
//!
//! KVM binds a machine to its address space, and a CPU's register area is shared with the parent's.
//! So everything is copied to private memory before the fork, and made again from there in the child;
//! page tables, a cache, start empty (`MADV_WIPEONFORK`).

use super::run::Guest;
use super::thread::Thread;
use crate::host::{HostError, Vcpu as _};
use crate::page_log;
use crate::space::SPACE;
use crate::sys;
use crate::sys::text;

/// Makes a child with the call that the program asked for, which does not share memory. `stack` is the
/// child's stack pointer, 0: the parent's; `tls` its thread pointer, if that is another.
///
/// Returns what the call does: in the child, 0.
pub(crate) fn fork(
    guest: &mut Guest<'_>,
    nr: u64,
    arguments: [u64; 6],
    stack: u64,
    tls: Option<u64>,
) -> i64 {
    let thread = guest.thread;
    // SAFETY: the record is this thread's, and no other reference exists.
    let saved = guest.cpu.xsave(unsafe { &mut *thread.xsave.get() });
    let (Ok(()), Ok((fs_base, gs_base))) = (saved, guest.cpu.bases()) else {
        return -i64::from(libc::EAGAIN);
    };
    let mut start = super::thread::Start { fs_base, gs_base, ..Default::default() };
    start.registers = *guest.cpu.registers();
    let mask = sys::set_mask(!0);
    start.mask = mask;
    thread.start.set(start);

    // Nobody changes the space, or the actions, while it is copied, or reads the log.
    let space = SPACE.lock();
    let log = page_log::hold();
    // SAFETY: the process outlives its threads.
    let actions = unsafe { &*thread.process.get() }.actions.lock();
    // SAFETY: no memory is shared with the child, which goes on here, on its copy of this stack.
    let result = unsafe { sys::raw(nr as i64, arguments) };
    drop(actions);
    drop(log);
    if result != 0 {
        drop(space);
        sys::set_mask(mask);
        return result;
    }
    drop(space);
    if stack != 0 {
        start.registers.rsp = stack;
    }
    if let Some(tls) = tls {
        start.fs_base = tls;
    }
    thread.start.set(start);
    if let Err(error) = renew(guest, thread) {
        text::fatal(format_args!("barchan: a forked child cannot enter guest mode: {error}\n"));
    }
    sys::set_mask(mask);
    0
}

/// In the child: a machine, tables and a CPU of its own.
fn renew(guest: &mut Guest<'_>, thread: &'static Thread) -> Result<(), HostError> {
    crate::stats::renew();
    thread.abandon_all();
    thread.claim();
    crate::inside::renew();
    {
        let mut space = SPACE.lock();
        space.abandon();
        space.build()?;
        crate::space::private::renew(thread.space.get(), thread.held.get());
    }
    thread.renew()?;
    SPACE.lock().fill_eagerly()?;
    // SAFETY: the earlier reference is replaced by this one.
    guest.cpu = unsafe { thread.cpu() };
    thread.load(guest.cpu)?;
    guest.reloaded();
    Ok(())
}
