//! Calls that make and end threads and processes.

use crate::process::run::Guest;
use crate::process::spawn::{self, Request};
use crate::process::{fork as forking, spawn::spawn as make};
use crate::sys;

const CLONE_VM: u64 = libc::CLONE_VM as u64;
const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_SETTLS: u64 = libc::CLONE_SETTLS as u64;

/// Where the kernel writes in the child, if the flags ask for it.
fn child_tid(flags: u64, address: u64) -> u64 {
    if flags & libc::CLONE_CHILD_SETTID as u64 != 0 { address } else { 0 }
}

pub(super) fn clone(guest: &mut Guest<'_>, a: [u64; 6]) -> i64 {
    let [flags, stack, _, _, tls, _] = a;
    if flags & CLONE_VM != 0 {
        let nr = libc::SYS_clone as u64;
        let child_tid = child_tid(flags, a[3]);
        return make(
            guest,
            Request { nr, arguments: a, flags, stack, child_tid, tls, clone3: None },
        );
    }
    let mut arguments = a;
    arguments[1] = 0;
    let tls = (flags & CLONE_SETTLS != 0).then_some(tls);
    forking::fork(guest, libc::SYS_clone as u64, arguments, stack, tls)
}

pub(super) fn clone3(guest: &mut Guest<'_>, a: [u64; 6]) -> i64 {
    /// Bytes of the first `struct clone_args`.
    const FIRST: u64 = 64;
    let mut words = [0u64; 16];
    let size = a[1];
    if size < FIRST {
        return -i64::from(libc::EINVAL);
    }
    if size > size_of_val(&words) as u64 {
        return -i64::from(libc::E2BIG);
    }
    // SAFETY: an array of words, for which every pattern of bytes is valid.
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size as usize) };
    if let Err(errno) = sys::copy_in(a[0] as usize, bytes) {
        return -i64::from(errno.0);
    }
    let (flags, stack, stack_size, tls) = (words[0], words[5], words[6], words[7]);
    if (stack == 0) != (stack_size == 0) {
        return -i64::from(libc::EINVAL);
    }
    let stack = stack.wrapping_add(stack_size);
    let nr = libc::SYS_clone3 as u64;
    if flags & CLONE_VM != 0 {
        let (child_tid, clone3) = (child_tid(flags, words[2]), Some(words));
        return make(guest, Request { nr, arguments: a, flags, stack, child_tid, tls, clone3 });
    }
    (words[5], words[6]) = (0, 0);
    let tls = (flags & CLONE_SETTLS != 0).then_some(tls);
    let arguments = [words.as_ptr() as u64, size, 0, 0, 0, 0];
    forking::fork(guest, nr, arguments, stack, tls)
}

pub(super) fn fork(guest: &mut Guest<'_>) -> i64 {
    forking::fork(guest, libc::SYS_fork as u64, [0; 6], 0, None)
}

/// The child gets a stack of the monitor's, so the call becomes the clone that it stands for.
pub(super) fn vfork(guest: &mut Guest<'_>) -> i64 {
    let flags = CLONE_VM | CLONE_VFORK;
    let arguments = [flags | libc::SIGCHLD as u64, 0, 0, 0, 0, 0];
    let nr = libc::SYS_clone as u64;
    let request = Request { nr, arguments, flags, stack: 0, child_tid: 0, tls: 0, clone3: None };
    make(guest, request)
}

pub(super) fn exit(guest: &mut Guest<'_>, status: u64) -> i64 {
    spawn::exit(guest, status)
}
