//! userfaultfd, as much of it as write-protection needs (`linux/userfaultfd.h`, Linux 6.7).

use super::syscall;
use crate::{Errno, PAGE_SIZE, PageRange};

/// A userfaultfd feature bit.
pub(crate) mod feature {
    /// Write-protect faults are told apart (Linux 5.7).
    pub(crate) const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    /// Protecting a page that was never touched works (Linux 6.4).
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    /// The kernel resolves write-protect faults itself (Linux 6.7).
    pub(crate) const WP_ASYNC: u64 = 1 << 15;
}

/// Only faults from user mode: what an unprivileged process may have.
const USER_MODE_ONLY: i32 = 1;

mod ioctl {
    //! The structures and request numbers, private to this file.

    use core::mem::size_of;

    /// `struct uffdio_range`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Range {
        pub(super) start: u64,
        pub(super) len: u64,
    }

    /// `struct uffdio_api`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }

    /// `struct uffdio_register`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Register {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }

    /// `struct uffdio_writeprotect`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct WriteProtect {
        pub(super) range: Range,
        pub(super) mode: u64,
    }

    pub(super) const API: u64 = 0xAA;
    pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
    pub(super) const WRITEPROTECT_WP: u64 = 1 << 0;
    pub(super) const WRITEPROTECT_DONTWAKE: u64 = 1 << 1;

    /// `_IOC(dir, 0xAA, nr, size)`; dir 3 is read and write, 2 read, 0 none.
    const fn request(dir: u32, nr: u32, size: usize) -> u32 {
        dir << 30 | (size as u32) << 16 | 0xAA << 8 | nr
    }
    pub(super) const UFFDIO_REGISTER: u32 = request(3, 0x00, size_of::<Register>());
    pub(super) const UFFDIO_UNREGISTER: u32 = request(2, 0x01, size_of::<Range>());
    pub(super) const UFFDIO_WAKE: u32 = request(2, 0x02, size_of::<Range>());
    pub(super) const UFFDIO_WRITEPROTECT: u32 = request(3, 0x06, size_of::<WriteProtect>());
    pub(super) const UFFDIO_API: u32 = request(3, 0x3F, size_of::<Api>());
    /// `_IO(0xAA, 0)` of `/dev/userfaultfd`; the argument is the open flags.
    pub(super) const USERFAULTFD_IOC_NEW: u32 = request(0, 0x00, 0);

    // The numbers as strace prints them on x86-64 and AArch64.
    const _: () = assert!(UFFDIO_API == 0xc018_aa3f && UFFDIO_REGISTER == 0xc020_aa00);
    const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01 && UFFDIO_WRITEPROTECT == 0xc018_aa06);
}

fn range_arg(range: PageRange) -> ioctl::Range {
    ioctl::Range { start: range.start() as u64, len: range.len_bytes() as u64 }
}

/// How a userfaultfd came to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// The kernel's own accesses fault too.
    Full,
    /// Only accesses from user mode are delivered; a kernel access that would need the monitor
    /// fails with EFAULT.
    UserOnly,
}

/// Opens a userfaultfd (close-on-exec, non-blocking) the first way that works.
///
/// With `prefer_full`, the ways that deliver kernel faults come first: the privileged system call
/// and `/dev/userfaultfd`. `WP_ASYNC` has no use for them, since nothing is ever delivered.
pub(crate) fn open(prefer_full: bool) -> Result<(i32, Mode), Errno> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let user_only = || syscall::userfaultfd(flags | USER_MODE_ONLY).map(|fd| (fd, Mode::UserOnly));
    let full =
        || syscall::userfaultfd(flags).or_else(|_| open_device(flags)).map(|fd| (fd, Mode::Full));
    if prefer_full {
        full().or_else(|_| user_only())
    } else {
        user_only().or_else(|errno| full().map_err(|_| errno))
    }
}

/// What would make [`open`] work after `errno`.
pub(crate) fn open_remedy(errno: Errno) -> &'static str {
    match errno.0 {
        libc::ENOSYS => "use a kernel with CONFIG_USERFAULTFD, and a seccomp policy that allows it",
        libc::EPERM | libc::EACCES => {
            "a seccomp or security policy refuses the call even for user-mode faults: allow \
             userfaultfd(UFFD_USER_MODE_ONLY), or give access to /dev/userfaultfd, or (before \
             Linux 5.11) set the sysctl vm.unprivileged_userfaultfd=1"
        }
        libc::EMFILE | libc::ENFILE => "raise the limit of open files (ulimit -n)",
        _ => "allow the call",
    }
}

fn open_device(flags: i32) -> Result<i32, Errno> {
    let device = syscall::open(c"/dev/userfaultfd", libc::O_RDWR)?;
    // SAFETY: this request takes its flags by value and touches no memory.
    let fd = unsafe {
        syscall::syscall(
            libc::SYS_ioctl,
            [device as usize, ioctl::USERFAULTFD_IOC_NEW as usize, flags as usize, 0, 0, 0],
        )
    };
    // SAFETY: opened above, and owned by nobody else.
    unsafe { syscall::close(device) };
    fd.map(|fd| fd as i32)
}

/// Negotiates the API, asking for `features`; the kernel refuses with EINVAL what it lacks.
pub(crate) fn negotiate(fd: i32, features: u64) -> Result<u64, Errno> {
    let mut api = ioctl::Api { api: ioctl::API, features, ioctls: 0 };
    // SAFETY: the type belongs to the request; it holds no address.
    unsafe { syscall::ioctl(fd, ioctl::UFFDIO_API, &mut api) }?;
    Ok(api.features)
}

/// Registers `range` for write-protection.
///
/// # Safety
/// The pages belong to the caller; with a synchronous `fd`, somebody answers its faults.
pub(crate) unsafe fn register(fd: i32, range: PageRange) -> Result<(), Errno> {
    let mut arg =
        ioctl::Register { range: range_arg(range), mode: ioctl::REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: 1. the type belongs to the request. 2. Registration alone changes no page.
    unsafe { syscall::ioctl(fd, ioctl::UFFDIO_REGISTER, &mut arg) }.map(drop)
}

/// Ends the registration of `range`, lifting every protection in it and waking whoever waits.
pub(crate) fn unregister(fd: i32, range: PageRange) -> Result<(), Errno> {
    let mut arg = range_arg(range);
    // SAFETY: 1. the type belongs to the request. 2. It only ever gives access back.
    unsafe { syscall::ioctl(fd, ioctl::UFFDIO_UNREGISTER, &mut arg) }.map(drop)
}

/// What [`write_protect`] does with the protection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protect {
    /// Set it.
    On,
    /// Lift it, and wake the threads that wait for that.
    OffAndWake,
    /// Lift it; nobody waits.
    Off,
}

/// The next faults, at most `out.len()`, as the addresses of the pages that wait.
///
/// # Errors
/// EAGAIN if nobody waits.
pub(crate) fn next_faults(fd: i32, out: &mut [Message]) -> Result<usize, Errno> {
    // SAFETY: 1. a live exclusive buffer. 2. Any bytes are a valid Message.
    let bytes = unsafe { syscall::read_to(fd, out.as_mut_ptr() as usize, size_of_val(out)) }?;
    Ok(bytes / size_of::<Message>())
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

impl Message {
    const PAGEFAULT: u8 = 0x12;

    /// The page that is waited for; `None` for an event that was not asked for.
    pub(crate) fn page(&self) -> Option<PageRange> {
        let start = self.address as usize & !(PAGE_SIZE - 1);
        (self.event == Self::PAGEFAULT).then(|| PageRange::between(start, start + PAGE_SIZE))
    }
}

const _: () = assert!(size_of::<Message>() == 32);

/// Lets whoever waits for `range` try again. The kernel has nothing to refuse about a page, mapped
/// or not: an error is a policy's, and nobody was woken.
pub(crate) fn wake(fd: i32, range: PageRange) -> Result<(), Errno> {
    let mut arg = range_arg(range);
    // SAFETY: 1. the type belongs to the request. 2. It changes no page.
    unsafe { syscall::ioctl(fd, ioctl::UFFDIO_WAKE, &mut arg) }.map(drop)
}

/// Sets or lifts the write protection of `range`, all of which must be registered with `fd`.
pub(crate) fn write_protect(fd: i32, range: PageRange, what: Protect) -> Result<(), Errno> {
    let mode = match what {
        Protect::On => ioctl::WRITEPROTECT_WP,
        Protect::OffAndWake => 0,
        Protect::Off => ioctl::WRITEPROTECT_DONTWAKE,
    };
    let mut tries = 0;
    loop {
        let mut arg = ioctl::WriteProtect { range: range_arg(range), mode };
        // SAFETY: 1. the type belongs to the request. 2. The pages are registered with `fd`, so
        // their owner agreed to faults. EAGAIN: the mappings are changing (a concurrent fork or
        // munmap, which ends); the operation is idempotent. A policy's EAGAIN does not end.
        match unsafe { syscall::ioctl(fd, ioctl::UFFDIO_WRITEPROTECT, &mut arg) } {
            Err(Errno(libc::EAGAIN)) if tries < 10_000 => {
                tries += 1;
                syscall::sched_yield();
            }
            other => return other.map(drop),
        }
    }
}
