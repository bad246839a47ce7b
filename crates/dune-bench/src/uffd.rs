//! userfaultfd's write protection with SIGBUS instead of messages: a write fault ends in a handler of the
//! thread itself, and protections split no mapping.
//!
//! Layouts and numbers: `linux/userfaultfd.h` of Linux 5.7 and later.

use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const FEATURE_WRITE_PROTECT: u64 = 1 << 0;
const FEATURE_SIGBUS: u64 = 1 << 7;
const REGISTER_WRITE_PROTECT: u64 = 1 << 1;
const WRITE_PROTECT: u64 = 1 << 0;
const DONT_WAKE: u64 = 1 << 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;

/// A range whose pages can be protected.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// For `range`, whose pages are writable until they are protected.
    ///
    /// # Errors
    /// One sentence that says what the kernel lacks.
    pub fn new(range: &Range<usize>) -> Result<Self, String> {
        let flags = libc::O_CLOEXEC | UFFD_USER_MODE_ONLY;
        // SAFETY: a new descriptor, owned from here on.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, flags);
            let Ok(fd @ 0..) = i32::try_from(fd) else {
                return Err(error("userfaultfd is not to be had here"));
            };
            OwnedFd::from_raw_fd(fd)
        };
        let this = Self { fd };
        let features = FEATURE_WRITE_PROTECT | FEATURE_SIGBUS;
        this.ioctl(UFFDIO_API, &mut [UFFD_API, features, 0])
            .map_err(|()| error("userfaultfd with write protection and SIGBUS (Linux 5.7)"))?;
        let len = (range.end - range.start) as u64;
        this.ioctl(UFFDIO_REGISTER, &mut [range.start as u64, len, REGISTER_WRITE_PROTECT, 0])
            .map_err(|()| error("registering memory with userfaultfd"))?;
        Ok(this)
    }

    /// Takes the right to write, or gives it back; whether the kernel did. Makes one system call, and is fit
    /// for a signal handler.
    #[must_use]
    pub fn set(&self, range: Range<usize>, protected: bool) -> bool {
        let mode = if protected { WRITE_PROTECT } else { DONT_WAKE };
        let len = (range.end - range.start) as u64;
        self.ioctl(UFFDIO_WRITEPROTECT, &mut [range.start as u64, len, mode]).is_ok()
    }

    fn ioctl(&self, number: u64, argument: &mut [u64]) -> Result<(), ()> {
        // SAFETY: the argument is as long as the number says (its bits 16 to 29), which all callers keep to.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), number, argument.as_mut_ptr()) };
        if result == 0 { Ok(()) } else { Err(()) }
    }
}

fn error(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}
