//! Descriptors of the monitor's: programs that close everything must not close them, and programs that
//! look which are open shall not find them. Where they do not look by descriptor (`/proc/self/fd`)
//! they see them.

use crate::process::run::Guest;
use crate::process::thread::Thread;
use crate::space::SPACE;

/// Whether call `nr` is about one of them: to the program it is not open.
pub(super) fn on_ours(nr: i64, a: [u64; 6]) -> bool {
    match nr {
        libc::SYS_dup2 | libc::SYS_dup3 => ours(a[0]) || ours(a[1]),
        libc::SYS_read
        | libc::SYS_write
        | libc::SYS_close
        | libc::SYS_fstat
        | libc::SYS_newfstatat
        | libc::SYS_lseek
        | libc::SYS_ioctl
        | libc::SYS_pread64
        | libc::SYS_pwrite64
        | libc::SYS_readv
        | libc::SYS_writev
        | libc::SYS_dup
        | libc::SYS_fcntl
        | libc::SYS_flock
        | libc::SYS_fsync
        | libc::SYS_fchdir
        | libc::SYS_fstatfs
        | libc::SYS_getdents64 => ours(a[0]),
        _ => false,
    }
}

/// Whether `fd` is the monitor's.
fn ours(fd: u64) -> bool {
    let fd = fd as u32 as i32;
    if fd < 0 || !crate::host::kvm::may_own(fd) {
        return false;
    }
    let space = SPACE.lock();
    space.owns(fd) || Thread::any_owns(fd)
}

/// `close_range(2)`, around those of the monitor.
pub(super) fn close_range(guest: &Guest<'_>, a: [u64; 6]) -> i64 {
    const CLOSE_RANGE_CLOEXEC: u64 = 4;
    let (first, last, flags) = (a[0] as u32, a[1] as u32, a[2]);
    let nr = libc::SYS_close_range as u64;
    let make = |first: u32, last: u32| {
        super::forward(guest, nr, [u64::from(first), u64::from(last), flags, 0, 0, 0])
    };
    let end = crate::host::kvm::highest_descriptor().min(i64::from(last));
    if first > last || flags & CLOSE_RANGE_CLOEXEC != 0 || i64::from(first) > end {
        // Theirs are closed by execve already.
        return make(first, last);
    }
    let mut start = i64::from(first);
    for fd in i64::from(first)..=end {
        if crate::host::kvm::may_own(fd as i32) && ours(fd as u64) {
            if fd > start {
                let result = make(start as u32, (fd - 1) as u32);
                if result < 0 {
                    return result;
                }
            }
            start = fd + 1;
        }
    }
    if start <= i64::from(last) { make(start as u32, last) } else { 0 }
}
