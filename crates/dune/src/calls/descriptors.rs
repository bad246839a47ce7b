//! Descriptors of the monitor's: programs that close everything must not close them, and programs that
//! look which are open shall not find them, by descriptor or in the list `/proc/self/fd`. Who opens
//! `/proc/self/fd/N` by its name, reads that list by the old `getdents(2)`, or through another process's
//! eyes, finds them still.

use core::fmt::Write as _;

use super::written;
use crate::process::run::Guest;
use crate::process::thread::Thread;
use crate::space::SPACE;
use crate::sys::text::Text;
use crate::sys::{self, Errno};

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

/// `getdents64(2)`: a list of this process's descriptors is without those of the monitor.
pub(super) fn getdents64(guest: &Guest<'_>, a: [u64; 6]) -> i64 {
    let [fd, buffer, ..] = a;
    loop {
        let result = super::forward(guest, libc::SYS_getdents64 as u64, a);
        if result <= 0 || !lists_descriptors(fd) {
            return result;
        }
        // What the program is told is shorter than what was written.
        let end = buffer.saturating_add(result as u64);
        written::wrote(buffer..end);
        match hide(buffer, end) {
            // Nothing but the monitor's: no bytes would mean the end of the list.
            Ok(0) => {}
            Ok(len) => return len as i64,
            Err(errno) => return -i64::from(errno.0),
        }
    }
}

/// Whether descriptor `fd` is `/proc/self/fd`, `/proc/self/fdinfo`, or a thread's.
fn lists_descriptors(fd: u64) -> bool {
    let mut path = Text::<40>::new();
    let mut target = [0; 64];
    let mut own = [0; 16];
    if write!(path, "/proc/self/fd/{}\0", fd as u32).is_err() {
        return false;
    }
    let target = read_link(path.bytes(), &mut target);
    let own = read_link(b"/proc/self\0", &mut own);
    let list = target.strip_prefix(b"/proc/").and_then(|rest| rest.strip_prefix(own));
    let Some(list) = list else { return false };
    let list = list.strip_suffix(b"info").unwrap_or(list);
    let thread = |task: &[u8]| !task.is_empty() && task.iter().all(u8::is_ascii_digit);
    match list.strip_suffix(b"/fd") {
        Some(b"") => !own.is_empty(),
        Some(middle) => middle.strip_prefix(b"/task/").is_some_and(thread),
        None => false,
    }
}

/// Where a link leads, its path ending in a zero byte; nothing if it is none, or longer than `target`.
fn read_link<'a>(path: &[u8], target: &'a mut [u8]) -> &'a [u8] {
    debug_assert_eq!(path.last(), Some(&0));
    let (from, to) = (path.as_ptr() as u64, target.as_mut_ptr() as u64);
    // SAFETY: a string that ends, and a buffer of the length that is said.
    let done = unsafe { sys::call(libc::SYS_readlink, [from, to, target.len() as u64, 0, 0, 0]) };
    match done {
        Ok(len) if (len as usize) < target.len() => &target[..len as usize],
        _ => &[],
    }
}

/// Takes the monitor's descriptors out of the directory entries at `start..end`, which are the
/// program's memory; how many bytes are left.
fn hide(start: u64, end: u64) -> Result<u64, Errno> {
    /// Bytes of `struct linux_dirent64` before its name, and where the entry's length is.
    const NAME: usize = 19;
    const LEN: usize = 16;
    let (mut from, mut to) = (start, start);
    while from < end {
        // Names are numbers of ten digits at most, or dots: entries have 24 or 32 bytes.
        let mut entry = [0; 32];
        let there = entry.len().min((end - from) as usize);
        sys::copy_in(from as usize, &mut entry[..there])?;
        let len = usize::from(u16::from_ne_bytes([entry[LEN], entry[LEN + 1]]));
        if len <= NAME || len > there {
            // Not what the kernel writes: another thread of the program writes here too.
            return Err(Errno(libc::EFAULT));
        }
        let name = entry[NAME..len].split(|byte| *byte == 0).next().unwrap_or_default();
        if !number(name).is_some_and(ours) {
            if from != to {
                sys::copy_out(&entry[..len], to as usize)?;
            }
            to += len as u64;
        }
        from += len as u64;
    }
    Ok(to - start)
}

/// The number that `name` is, if it is one.
fn number(name: &[u8]) -> Option<u64> {
    core::str::from_utf8(name).ok()?.parse::<u32>().ok().map(u64::from)
}
