//! A descriptor that knows whether it is still ours.
//!
//! A program may close all descriptors that it does not know (`close_range`, as daemons do), and
//! the numbers are then given to files of its own. So before a number is used, and above all before
//! it is closed, the inode behind it is compared with the one that was opened. A userfaultfd has an
//! inode of its own (Linux 5.12); `/proc/thread-self/pagemap` has one for the thread, so a descriptor of
//! it that the same thread opened is taken for ours, and serves as well. To be closed a descriptor
//! must also stand at the position where it was put, and nobody else puts one, if its file has positions.
//!
//! What this does not exclude is a program that does so in one thread while another is between the
//! comparison and the use.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use super::syscall;
use crate::Errno;

/// A descriptor's number, and which file it was opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Own {
    fd: i32,
    file: u64,
    /// Whether it could be put to [`mark`].
    is_marked: bool,
}

/// The position of descriptors of ours: another one in another copy of this library.
fn mark() -> u64 {
    static MARK: u8 = 0;
    &raw const MARK as u64
}

/// Device and inode in one word: numbers of the kernel's own file systems, both small.
fn file_of(fd: i32) -> Result<u64, Errno> {
    let stat = syscall::fstat(fd)?;
    Ok(stat.st_dev.rotate_left(40) ^ stat.st_ino)
}

impl Own {
    /// Takes over `fd`, which the caller has just opened; closes it on an error.
    pub(crate) fn new(fd: i32) -> Result<Self, Errno> {
        // What is read, is read by `pread`. A userfaultfd has no position, but takes the call.
        let is_marked = syscall::seek(fd, Some(mark())) == Ok(mark());
        let close = |_: &Errno| {
            // SAFETY: the caller gave it up.
            unsafe { syscall::close(fd) };
        };
        file_of(fd).map(|file| Self { fd, file, is_marked }).inspect_err(close)
    }

    /// The number, for use at once.
    ///
    /// # Errors
    /// EBADF if it is nobody's by now, or somebody else's.
    pub(crate) fn number(self) -> Result<i32, Errno> {
        match file_of(self.fd) {
            Ok(file) if file == self.file => Ok(self.fd),
            _ => Err(Errno(libc::EBADF)),
        }
    }

    /// Closes it, unless it is somebody else's.
    pub(crate) fn close(self) {
        let is_there = |fd: &i32| !self.is_marked || syscall::seek(*fd, None) == Ok(mark());
        if let Some(fd) = self.number().ok().filter(is_there) {
            // SAFETY: ours, and given up by whoever calls this.
            unsafe { syscall::close(fd) };
        }
    }
}

/// An [`Own`] that may be exchanged while others read it. Who reads one half of the old and one of
/// the new has a descriptor that is not ours, and is told so.
pub(crate) struct OwnCell {
    fd: AtomicI32,
    file: AtomicU64,
    is_marked: AtomicBool,
}

impl OwnCell {
    pub(crate) fn new(own: Own) -> Self {
        Self {
            fd: AtomicI32::new(own.fd),
            file: AtomicU64::new(own.file),
            is_marked: AtomicBool::new(own.is_marked),
        }
    }

    pub(crate) fn get(&self) -> Own {
        Own {
            fd: self.fd.load(Ordering::Relaxed),
            file: self.file.load(Ordering::Relaxed),
            is_marked: self.is_marked.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set(&self, own: Own) {
        self.fd.store(own.fd, Ordering::Relaxed);
        self.file.store(own.file, Ordering::Relaxed);
        self.is_marked.store(own.is_marked, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_went_to_another_file_is_not_ours() {
        let open = |path| syscall::open(path, libc::O_RDONLY).expect("/proc");
        let own = Own::new(open(c"/proc/thread-self/pagemap")).expect("fstat");
        assert_eq!(own.number(), Ok(own.fd));
        let other = Own::new(open(c"/proc/self/mem")).expect("fstat");
        // SAFETY: both are the test's.
        assert_eq!(unsafe { libc::dup2(other.fd, own.fd) }, own.fd);
        assert_eq!(own.number(), Err(Errno(libc::EBADF)));
        own.close();
        let still = Own { fd: own.fd, ..other };
        assert_eq!(still.number(), Ok(own.fd), "it is somebody else's and stays open");
        still.close();
        assert_eq!(still.number(), Err(Errno(libc::EBADF)));
        other.close();

        // The same file, opened by somebody else.
        let own = Own::new(open(c"/proc/thread-self/pagemap")).expect("fstat");
        let theirs = open(c"/proc/thread-self/pagemap");
        // SAFETY: both are the test's.
        assert_eq!(unsafe { libc::dup2(theirs, own.fd) }, own.fd);
        assert_eq!(own.number(), Ok(own.fd), "it serves as well");
        own.close();
        assert_eq!(own.number(), Ok(own.fd), "it stays open");
        // SAFETY: both are the test's.
        unsafe {
            syscall::close(own.fd);
            syscall::close(theirs);
        }
    }
}
