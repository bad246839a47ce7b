//! System calls of the monitor itself, without libc: no `errno`, no thread-local storage, no lock.
//!
//! The monitor runs between two instructions of a program that may hold any lock of its C library
//! and may look at `errno` next. So nothing here touches either. It is not a general binding: only
//! what the monitor asks of the kernel for its own sake. What the *program* asks for goes through
//! [`forward`](self::forward), which knows about signals.

pub(crate) mod forward;
pub(crate) mod lock;
pub(crate) mod text;

use core::fmt;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// An error number of Linux.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::EPERM => "EPERM",
            libc::ENOENT => "ENOENT",
            libc::EINTR => "EINTR",
            libc::EIO => "EIO",
            libc::EBADF => "EBADF",
            libc::EAGAIN => "EAGAIN",
            libc::ENOMEM => "ENOMEM",
            libc::EACCES => "EACCES",
            libc::EFAULT => "EFAULT",
            libc::EBUSY => "EBUSY",
            libc::EEXIST => "EEXIST",
            libc::ENODEV => "ENODEV",
            libc::EINVAL => "EINVAL",
            libc::EMFILE => "EMFILE",
            libc::ENOSPC => "ENOSPC",
            libc::ENOSYS => "ENOSYS",
            libc::ENOTTY => "ENOTTY",
            other => return write!(f, "errno {other}"),
        };
        f.write_str(name)
    }
}

/// One system call with six arguments; the kernel's result as it is.
///
/// # Safety
/// 1. The arguments fit call `nr`, pointers included.
/// 2. What the call does to this process' memory breaks no Rust object.
#[inline]
pub(crate) unsafe fn raw(nr: i64, a: [u64; 6]) -> i64 {
    let ret: i64;
    // SAFETY: 1. the x86-64 system call convention: rcx and r11 are overwritten, nothing else.
    // 2. The caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") a[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// The kernel's result as a `Result`.
pub(crate) fn check(ret: i64) -> Result<u64, Errno> {
    if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as u64) }
}

/// A system call whose result is told apart.
///
/// # Safety
/// As for [`raw`].
pub(crate) unsafe fn call(nr: i64, a: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: the caller's.
    check(unsafe { raw(nr, a) })
}

/// `ioctl(2)`.
///
/// # Safety
/// `argument` fits `request`.
pub(crate) unsafe fn ioctl(fd: i32, request: u64, argument: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's.
    unsafe { call(libc::SYS_ioctl, [fd as u64, request, argument, 0, 0, 0]) }
}

/// New private anonymous memory, zero, at an address of the kernel's choice.
pub(crate) fn map_anonymous(len: usize, prot: i32, flags: i32) -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let start =
        unsafe { call(libc::SYS_mmap, [0, len as u64, prot as u64, flags as u64, u64::MAX, 0]) }?;
    Ok(start as usize)
}

/// New private anonymous memory whose start is a multiple of `align` (a power of two).
pub(crate) fn map_aligned(len: usize, align: usize, prot: i32, flags: i32) -> Result<usize, Errno> {
    let start = map_anonymous(len + align, prot, flags)?;
    let aligned = start.next_multiple_of(align);
    // SAFETY: both ends belong to the mapping made above, and nobody knows of them yet.
    unsafe {
        unmap(start, aligned - start);
        unmap(aligned + len, start + align - aligned);
    }
    Ok(aligned)
}

/// `munmap(2)`; an empty range is nothing to do.
///
/// # Safety
/// Nobody uses the memory any more.
pub(crate) unsafe fn unmap(start: usize, len: usize) {
    if len > 0 {
        // SAFETY: the caller's.
        let _ = unsafe { raw(libc::SYS_munmap, [start as u64, len as u64, 0, 0, 0, 0]) };
    }
}

/// `mprotect(2)` of memory of the monitor's own.
pub(crate) fn protect(start: usize, len: usize, prot: i32) -> Result<(), Errno> {
    // SAFETY: the monitor's own reserved memory, whose rights only grow.
    unsafe { call(libc::SYS_mprotect, [start as u64, len as u64, prot as u64, 0, 0, 0]) }.map(drop)
}

/// `madvise(2)`.
///
/// # Safety
/// The advice discards nothing that is needed.
pub(crate) unsafe fn advise(start: usize, len: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe { call(libc::SYS_madvise, [start as u64, len as u64, advice as u64, 0, 0, 0]) }.map(drop)
}

/// Gives pages back to the kernel, also those that are locked: the program may lock all its memory at any time
/// (`mlockall`), and `MADV_DONTNEED` refuses locked pages.
///
/// # Safety
/// What is there is needed by nobody.
pub(crate) unsafe fn discard(start: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller's.
    let advise = || unsafe { advise(start, len, libc::MADV_DONTNEED) };
    match advise() {
        Err(Errno(libc::EINVAL)) => {
            // SAFETY: no content changes.
            unsafe { call(libc::SYS_munlock, [start as u64, len as u64, 0, 0, 0, 0]) }?;
            advise()
        }
        done => done,
    }
}

/// Opens `path`, which ends in a zero byte.
pub(crate) fn open(path: &core::ffi::CStr, flags: i32) -> Result<i32, Errno> {
    let path = path.as_ptr() as u64;
    let (dir, flags) = (libc::AT_FDCWD as i64 as u64, (flags | libc::O_CLOEXEC) as u64);
    // SAFETY: a C string, and flags that create nothing.
    unsafe { call(libc::SYS_openat, [dir, path, flags, 0o600, 0, 0]) }.map(|fd| fd as i32)
}

/// Closes a descriptor of the monitor's own.
pub(crate) fn close(fd: i32) {
    // SAFETY: no pointer.
    let _ = unsafe { raw(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]) };
}

/// Sets the calling thread's signal mask, and returns the earlier one.
pub(crate) fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    let new = &raw const mask as u64;
    // SAFETY: two sets of eight bytes, as the last argument says.
    let _ = unsafe {
        raw(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, new, &raw mut old as u64, 8, 0, 0])
    };
    old
}

/// The calling thread's id.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: no arguments.
    unsafe { raw(libc::SYS_gettid, [0; 6]) as i32 }
}

/// How many threads the process has; `None` if `/proc` does not say.
pub(crate) fn threads() -> Option<u64> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: a path, and a structure of the kernel's size and layout for which zero bytes are valid.
    unsafe {
        let path = c"/proc/self/task".as_ptr() as u64;
        call(libc::SYS_stat, [path, stat.as_mut_ptr() as u64, 0, 0, 0, 0]).ok()?;
        // A directory has two links of its own, and one for each directory in it.
        stat.assume_init().st_nlink.checked_sub(2)
    }
}

/// The process' id.
pub(crate) fn process_id() -> i32 {
    // SAFETY: no arguments.
    unsafe { raw(libc::SYS_getpid, [0; 6]) as i32 }
}

/// Whether a byte at `address` can be read, as the kernel sees it: this grows stacks, finds pages
/// behind the end of a file, guard pages and pages that another thread handles by userfaultfd.
///
/// It asks for a signal mask to be set from there in a way that does not exist; the kernel reads
/// the mask first (`SYSCALL_DEFINE4(rt_sigprocmask)`, Linux 6.12).
pub(crate) fn readable(address: usize) -> bool {
    let word = (address & !7) as u64;
    // SAFETY: nothing is written, and no mask is changed.
    let ret = unsafe { raw(libc::SYS_rt_sigprocmask, [u32::MAX as u64, word, 0, 8, 0, 0]) };
    ret != -i64::from(libc::EFAULT)
}

/// Copies `to.len()` bytes from `from`, an address of the program's that may be bad.
pub(crate) fn copy_in(from: usize, to: &mut [u8]) -> Result<(), Errno> {
    copy(libc::SYS_process_vm_readv, to.as_mut_ptr() as usize, from, to.len())
}

/// Copies `from` to `to`, an address of the program's that may be bad, and marks it as written.
pub(crate) fn copy_out(from: &[u8], to: usize) -> Result<(), Errno> {
    let result = copy(libc::SYS_process_vm_writev, from.as_ptr() as usize, to, from.len());
    crate::calls::written::wrote(to as u64..to.saturating_add(from.len()) as u64);
    result
}

fn copy(nr: i64, local: usize, remote: usize, len: usize) -> Result<(), Errno> {
    // Grows a stack if need be: the calls below do not.
    if len == 0 || readable(remote) && readable(remote + len - 1) {
        let (local, remote) = ([local, len], [remote, len]);
        // Not the process's: once its first thread has exited that has no memory.
        let tid = thread_id() as u64;
        // SAFETY: one range each; `local` is a slice of ours, `remote` is checked by the kernel.
        let done =
            unsafe { call(nr, [tid, local.as_ptr() as u64, 1, remote.as_ptr() as u64, 1, 0]) }?;
        if done as usize == len {
            return Ok(());
        }
    }
    Err(Errno(libc::EFAULT))
}
