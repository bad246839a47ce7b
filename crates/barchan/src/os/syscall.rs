//! System calls as functions that return their error instead of storing it in `errno`.
//!
//! Why not libc's wrappers: some callers run in a signal handler (which must leave `errno` alone)
//! or on a thread without thread-local storage of its own. It is not a general binding: only the
//! calls that the trackers make are here.

use core::ffi::{CStr, c_void};

use crate::Errno;
use crate::PageRange;

/// One system call with six arguments.
///
/// # Safety
/// 1. The arguments fit call `nr`, pointers included.
/// 2. What the call does to this process' memory breaks no Rust object.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn raw(nr: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: 1. the x86-64 system call convention: number in rax, arguments in rdi, rsi, rdx,
    // r10, r8, r9; rcx and r11 are overwritten. 2. The caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => ret,
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

/// One system call with six arguments.
///
/// # Safety
/// As for x86-64.
#[cfg(target_arch = "aarch64")]
#[inline]
unsafe fn raw(nr: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: 1. the AArch64 system call convention: number in x8, arguments in x0 to x5, result
    // in x0, nothing else overwritten. 2. The caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") nr,
            inlateout("x0") a[0] as isize => ret,
            in("x1") a[1],
            in("x2") a[2],
            in("x3") a[3],
            in("x4") a[4],
            in("x5") a[5],
            options(nostack),
        );
    }
    ret
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("barchan's kernel side is written for x86-64 and AArch64 Linux");

/// As [`raw`], with the kernel's error convention decoded.
///
/// # Safety
/// As [`raw`].
#[inline]
pub(crate) unsafe fn syscall(nr: libc::c_long, a: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the caller's promise is the same.
    let ret = unsafe { raw(nr, a) };
    if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as usize) }
}

/// A file descriptor as a system call argument.
const fn fd_arg(fd: i32) -> usize {
    fd as isize as usize
}

/// `ioctl` with a structure argument.
///
/// # Safety
/// `T` is the argument type of `request`, and every address in `*arg` is good for what the
/// request does with it.
pub(crate) unsafe fn ioctl<T>(fd: i32, request: u32, arg: &mut T) -> Result<usize, Errno> {
    // SAFETY: 1. `arg` is a live, exclusive reference of the type that the request expects
    // (caller). 2. The addresses within are the caller's promise.
    unsafe {
        syscall(
            libc::SYS_ioctl,
            [fd_arg(fd), request as usize, core::ptr::from_mut(arg) as usize, 0, 0, 0],
        )
    }
}

/// Sets the protection of `range`.
///
/// # Safety
/// The pages belong to the caller, and losing the access that `prot` leaves out is expected by
/// everyone who touches them.
pub(crate) unsafe fn mprotect(range: PageRange, prot: i32) -> Result<(), Errno> {
    // SAFETY: numbers only; the effect on the pages is the caller's promise.
    unsafe {
        syscall(libc::SYS_mprotect, [range.start(), range.len_bytes(), prot as usize, 0, 0, 0])
    }
    .map(drop)
}

/// Gives the kernel advice about `range`.
///
/// # Safety
/// The pages belong to the caller, and `advice` may do to them what it does.
pub(crate) unsafe fn madvise(range: PageRange, advice: i32) -> Result<(), Errno> {
    // SAFETY: numbers only; the effect on the pages is the caller's promise.
    unsafe {
        syscall(libc::SYS_madvise, [range.start(), range.len_bytes(), advice as usize, 0, 0, 0])
    }
    .map(drop)
}

/// Writes `range` back to its files; of anonymous memory it says only whether it is mapped.
pub(crate) fn msync(range: PageRange, flags: i32) -> Result<(), Errno> {
    // SAFETY: numbers only; no byte of memory is changed.
    unsafe { syscall(libc::SYS_msync, [range.start(), range.len_bytes(), flags as usize, 0, 0, 0]) }
        .map(drop)
}

/// New private anonymous zeroed memory, somewhere.
pub(crate) fn mmap_anonymous(bytes: usize, prot: i32, flags: i32) -> Result<usize, Errno> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags) as usize;
    debug_assert!(flags & libc::MAP_FIXED as usize == 0);
    // SAFETY: without MAP_FIXED a new mapping replaces nothing.
    unsafe { syscall(libc::SYS_mmap, [0, bytes, prot as usize, flags, usize::MAX, 0]) }
}

/// Unmaps `bytes` at `start`.
///
/// # Safety
/// The mapping belongs to the caller and nobody uses it any more.
pub(crate) unsafe fn munmap(start: usize, bytes: usize) {
    // SAFETY: the caller's promise. The result is not needed: failure would mean that the
    // numbers are no mapping, which the promise excludes.
    let _ = unsafe { syscall(libc::SYS_munmap, [start, bytes, 0, 0, 0, 0]) };
}

/// Opens `path` with `flags` and O_CLOEXEC.
pub(crate) fn open(path: &CStr, flags: i32) -> Result<i32, Errno> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    unsafe {
        syscall(
            libc::SYS_openat,
            [fd_arg(libc::AT_FDCWD), path.as_ptr() as usize, flags as usize, 0, 0, 0],
        )
    }
    .map(|fd| fd as i32)
}

/// Closes `fd`.
///
/// # Safety
/// The caller owns `fd`.
pub(crate) unsafe fn close(fd: i32) {
    // SAFETY: the caller owns it; an error of close leaves nothing to do.
    let _ = unsafe { syscall(libc::SYS_close, [fd_arg(fd), 0, 0, 0, 0, 0]) };
}

/// What file `fd` is.
pub(crate) fn fstat(fd: i32) -> Result<libc::stat, Errno> {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: room for the kernel's answer, whose structure libc's is on 64-bit machines.
    unsafe { syscall(libc::SYS_fstat, [fd_arg(fd), stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    // SAFETY: all zeroes are valid, and so is the kernel's answer.
    Ok(unsafe { stat.assume_init() })
}

/// Puts the position of `fd` to `to`, or leaves it for `None`; where it is then.
pub(crate) fn seek(fd: i32, to: Option<u64>) -> Result<u64, Errno> {
    let whence = if to.is_some() { libc::SEEK_SET } else { libc::SEEK_CUR };
    // SAFETY: numbers only.
    let at = unsafe {
        syscall(libc::SYS_lseek, [fd_arg(fd), to.unwrap_or(0) as usize, whence as usize, 0, 0, 0])
    };
    at.map(|at| at as u64)
}

/// The release of the running kernel: major, minor and patch; 0 for what it does not say.
pub(crate) fn kernel_release() -> (u32, u32, u32) {
    // SAFETY: all bytes zero is a valid utsname, and the kernel fills one.
    let name = unsafe {
        let mut name: libc::utsname = core::mem::zeroed();
        let _ = syscall(libc::SYS_uname, [core::ptr::from_mut(&mut name) as usize, 0, 0, 0, 0, 0]);
        name
    };
    let mut numbers = [0; 3];
    let mut field = 0;
    for byte in name.release.map(|byte| byte as u8) {
        match byte {
            b'0'..=b'9' => numbers[field] = numbers[field] * 10 + u32::from(byte - b'0'),
            b'.' if field < 2 => field += 1,
            _ => break,
        }
    }
    numbers.into()
}

/// `userfaultfd(2)`.
pub(crate) fn userfaultfd(flags: i32) -> Result<i32, Errno> {
    // SAFETY: no pointer involved; it makes a descriptor.
    unsafe { syscall(libc::SYS_userfaultfd, [flags as usize, 0, 0, 0, 0, 0]) }.map(|fd| fd as i32)
}

/// Reads as many whole words as there are at `offset`.
pub(crate) fn pread_words(fd: i32, words: &mut [u64], offset: u64) -> Result<usize, Errno> {
    let bytes = size_of_val(words);
    // SAFETY: the buffer is live, exclusive, and any bytes are valid in it. The offset is one
    // register on the 64-bit machines that this file is for.
    unsafe {
        syscall(
            libc::SYS_pread64,
            [fd_arg(fd), words.as_mut_ptr() as usize, bytes, offset as usize, 0, 0],
        )
    }
    .map(|n| n / size_of::<u64>())
}

/// Writes `bytes`.
pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is live.
    unsafe { syscall(libc::SYS_write, [fd_arg(fd), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

/// Gives the calling thread a descriptor table of its own, with nothing in it (Linux 5.9).
pub(crate) fn own_empty_table() -> Result<(), Errno> {
    let unshare = libc::CLOSE_RANGE_UNSHARE as usize;
    // SAFETY: numbers only; what is closed are copies.
    unsafe { syscall(libc::SYS_close_range, [0, u32::MAX as usize, unshare, 0, 0, 0]) }.map(drop)
}

/// Gives up all capabilities of the calling thread, for good.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    // `_LINUX_CAPABILITY_VERSION_3`, and the calling thread.
    let header = [0x2008_0522_u32, 0];
    // Twice: effective, permitted, inheritable.
    let none = [0u32; 6];
    // SAFETY: both are live, of the sizes of that version, and only read.
    unsafe {
        syscall(libc::SYS_capset, [header.as_ptr() as usize, none.as_ptr() as usize, 0, 0, 0, 0])
    }
    .map(drop)
}

/// Waits until one of `fds` has something to say.
pub(crate) fn poll(fds: &mut [libc::pollfd]) -> Result<usize, Errno> {
    // SAFETY: a live exclusive array of pollfd; no timeout, no mask.
    unsafe { syscall(libc::SYS_ppoll, [fds.as_mut_ptr() as usize, fds.len(), 0, 0, 0, 0]) }
}

/// Waits while `word` holds `value` (spurious returns are possible).
pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32) {
    let address = core::ptr::from_ref(word) as usize;
    // Not FUTEX_PRIVATE_FLAG: the kernel's wake at a thread's exit is a shared one.
    // SAFETY: the word is live; no timeout.
    let _ = unsafe {
        syscall(libc::SYS_futex, [address, libc::FUTEX_WAIT as usize, value as usize, 0, 0, 0])
    };
}

/// Wakes whoever waits for `word`.
pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    let address = core::ptr::from_ref(word) as usize;
    // SAFETY: the word is live; it is not changed.
    let _ = unsafe {
        syscall(libc::SYS_futex, [address, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0])
    };
}

/// Reads `len` bytes to a bare address, for memory that may refuse the write.
///
/// # Safety
/// The bytes at `address` belong to the caller and may take any value.
pub(crate) unsafe fn read_to(fd: i32, address: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: the caller's promise; a bad address is answered with EFAULT.
    unsafe { syscall(libc::SYS_read, [fd_arg(fd), address, len, 0, 0, 0]) }
}

/// Gives up the processor.
pub(crate) fn sched_yield() {
    // SAFETY: no arguments, no effect on memory.
    let _ = unsafe { syscall(libc::SYS_sched_yield, [0; 6]) };
}

/// The set of all signals, as the kernel counts them.
pub(crate) const ALL_SIGNALS: u64 = u64::MAX;

/// Replaces the calling thread's signal mask, returning the old one.
pub(crate) fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both pointers are to live 8-byte kernel sigsets. It cannot fail with these
    // arguments; if it did, `old` would be the empty mask.
    let _ = unsafe {
        syscall(
            libc::SYS_rt_sigprocmask,
            [
                libc::SIG_SETMASK as usize,
                core::ptr::from_ref(&mask) as usize,
                core::ptr::from_mut(&mut old) as usize,
                size_of::<u64>(),
                0,
                0,
            ],
        )
    };
    old
}

/// Keeps the calling thread's signal mask changed; restores it when dropped.
pub(crate) struct SignalMask {
    old: u64,
}

impl SignalMask {
    /// Blocks all signals: the thread is not stopped meanwhile, and no handler of the program's runs,
    /// which might fork and leave the child in the middle of what its parent was doing.
    pub(crate) fn all_blocked() -> Self {
        Self { old: set_signal_mask(ALL_SIGNALS) }
    }

    /// Lets `signal` come, whether it was blocked or not.
    pub(crate) fn unblocking(signal: i32) -> Self {
        let mask = Self::all_blocked();
        set_signal_mask(mask.old & !(1 << (signal - 1)));
        mask
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        set_signal_mask(self.old);
    }
}

/// An address as the kernel's ioctl structures carry it.
pub(crate) fn address_of<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr().cast::<c_void>() as u64
}

/// Runs `body` in a forked child; its wait status, 0 if it returned true.
#[cfg(test)]
pub(crate) fn in_child(body: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs `body` on a copy of this thread, and exits without unwinding.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::alarm(60);
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            libc::_exit(i32::from(!matches!(ok, Ok(true))));
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}
