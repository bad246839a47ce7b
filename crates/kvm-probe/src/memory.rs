//! The memory of a small guest.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Zeroed memory, page-aligned, unmapped when dropped.
pub(crate) struct Memory {
    start: NonNull<u8>,
    size_bytes: usize,
}

impl Memory {
    pub(crate) fn new(size_bytes: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size_bytes, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never returns 0");
        Ok(Self { start, size_bytes })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes as u64
    }

    /// Copies `bytes` to the guest-physical address `at`.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.size_bytes && bytes.len() <= self.size_bytes - at);
        // SAFETY: both ranges are valid for the length, which was checked, and cannot overlap: no
        // reference into the mapping is ever given out. No vCPU runs while the guest is prepared.
        unsafe { self.start.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// The eight bytes at `at`, which must be aligned; the guest may be writing them.
    pub(crate) fn read(&self, at: usize) -> u64 {
        assert!(at % 8 == 0 && at < self.size_bytes);
        // SAFETY: aligned and inside the mapping; all accesses while a vCPU may run are atomic.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }.load(SeqCst)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whose last user this is (a VM is dropped before its memory).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size_bytes) };
    }
}
