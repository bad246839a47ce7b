//! The two descriptors of the source: how they are opened, and what is asked of the kernel through
//! them. All of this runs on the `monitor` thread, in whose table they lie: it touches no
//! thread-local storage.

use crate::error::kind_of;
use crate::os::pagemap::{self, entry};
use crate::os::syscall;
use crate::os::uffd::{self, Mode, Protect, feature};
use crate::stats::Counters;
use crate::{Errno, ErrorKind, PageRange, Source, Unavailable, bitmap};

/// Pages that are scanned at one request: 16 MiB, whose bits fit on the stack.
pub(super) const CHUNK: usize = 4096;
/// The dirty bits of one chunk.
pub(super) type ChunkBits = [u64; CHUNK / 64];

/// Pagemap entries read at a time (4 KiB of stack).
const ENTRIES: usize = 512;

/// What was being done when the kernel refused, and its answer.
pub(super) type Refused = (&'static str, Errno);

/// A pair of descriptors that refer to this process.
#[derive(Clone, Copy)]
pub(super) struct Descriptors {
    pub(super) pagemap: i32,
    pub(super) uffd: i32,
}

/// The step of making the thread.
pub(super) const START: &str = "starting the monitor thread";

/// What came of the start if the thread ended without a word.
pub(super) const KILLED: Unavailable = Unavailable {
    source: Source::Userfaultfd,
    kind: ErrorKind::Denied,
    step: START,
    errno: None,
    remedy: "it was killed at once: a seccomp policy must allow close_range, openat, userfaultfd, \
             ioctl and capset",
};

pub(super) fn unavailable(
    kind: ErrorKind,
    step: &'static str,
    errno: Errno,
    remedy: &'static str,
) -> Unavailable {
    Unavailable { source: Source::Userfaultfd, kind, step, errno: Some(errno), remedy }
}

fn close(fd: i32) {
    // SAFETY: called once for each descriptor opened here, when it is given up.
    unsafe { syscall::close(fd) };
}

impl Descriptors {
    /// Gives the calling thread, which is to share its table until then, one of its own with
    /// nothing in it but these.
    pub(super) fn open() -> Result<(Self, Mode), Unavailable> {
        syscall::own_empty_table().map_err(|errno| {
            unavailable(
                kind_of(errno),
                "giving the monitor thread descriptors of its own",
                errno,
                "needs close_range of Linux 5.9, and a seccomp policy that allows it",
            )
        })?;
        let pagemap = pagemap::open().map_err(|errno| {
            let remedy = pagemap::open_remedy(errno);
            unavailable(kind_of(errno), "opening /proc/thread-self/pagemap", errno, remedy)
        })?;
        Self::open_uffd()
            .map(|(uffd, mode)| (Self { pagemap, uffd }, mode))
            .inspect_err(|_| close(pagemap))
    }

    fn open_uffd() -> Result<(i32, Mode), Unavailable> {
        let (uffd, mode) = uffd::open(true).map_err(|errno| {
            unavailable(kind_of(errno), "userfaultfd", errno, uffd::open_remedy(errno))
        })?;
        let wanted = feature::PAGEFAULT_FLAG_WP;
        // A failed negotiation cannot be repeated on the same descriptor before 5.x, so the
        // optional feature is tried on one that may be thrown away.
        if uffd::negotiate(uffd, wanted | feature::WP_UNPOPULATED).is_ok() {
            return Ok((uffd, mode));
        }
        close(uffd);
        uffd::open(true)
            .and_then(|(fd, mode)| {
                uffd::negotiate(fd, wanted).map(|_| (fd, mode)).inspect_err(|_| close(fd))
            })
            .map_err(|errno| {
                unavailable(
                    ErrorKind::Unsupported,
                    "asking userfaultfd for write-protection",
                    errno,
                    "needs Linux 5.7 with CONFIG_HAVE_ARCH_USERFAULTFD_WP",
                )
            })
    }

    pub(super) fn register(&self, range: PageRange) -> Result<(), Refused> {
        // SAFETY: 1. the pages belong to the region, by the promise of whoever tracks it. 2. The
        // monitor of this descriptor answers faults.
        unsafe { uffd::register(self.uffd, range) }.map_err(|errno| ("UFFDIO_REGISTER", errno))?;
        // Kernels leave the protection of an earlier registration in the entries (all of closed userfaultfds up to
        // 6.8.9, of unregistered pages before 6.0, of moved ones up to 6.12.10); stores that came since went through it.
        self.protect_piecewise(range, Protect::Off)
            .map_err(|errno| ("UFFDIO_WRITEPROTECT", errno))
            .inspect_err(|_| self.release(range))
    }

    pub(super) fn release(&self, range: PageRange) {
        // An error: no mapping there, so nothing is registered either.
        let _ = uffd::unregister(self.uffd, range);
    }

    /// Sets or lifts protection, registering mappings anew that were replaced.
    pub(super) fn protect(&self, range: PageRange, what: Protect) -> Result<(), Refused> {
        match uffd::write_protect(self.uffd, range, what) {
            Err(Errno(libc::ENOENT)) => {
                self.register(range)?;
                self.protect_piecewise(range, what)
            }
            other => other,
        }
        .map_err(|errno| ("UFFDIO_WRITEPROTECT", errno))
    }

    /// As `write_protect`, for a range that may span several mappings, which kernels before 6.4
    /// refuse with ENOENT: halves it until each piece lies in one.
    fn protect_piecewise(&self, range: PageRange, what: Protect) -> Result<(), Errno> {
        match uffd::write_protect(self.uffd, range, what) {
            Err(Errno(libc::ENOENT)) if range.pages() > 1 => {
                let half = range.pages() / 2;
                self.protect_piecewise(range.slice(0, half), what)?;
                self.protect_piecewise(range.slice(half, range.pages() - half), what)
            }
            other => other,
        }
    }

    /// Sets the bits of the pages of `range` (at most [`CHUNK`]) that are not protected, and
    /// protects them if `reset`.
    pub(super) fn scan(
        &self,
        range: PageRange,
        reset: bool,
        bits: &mut ChunkBits,
        counters: &Counters,
    ) {
        let mut entries = [0u64; ENTRIES];
        let mut dirty = [0u64; ENTRIES / 64];
        let mut at = 0;
        while at < range.pages() {
            let rest = range.slice(at, range.pages() - at);
            let Ok(pages) = pagemap::read(self.pagemap, rest, &mut entries) else {
                Counters::add(&counters.degraded, 1);
                bitmap::set_run(bits, at, rest.pages());
                return;
            };
            dirty.fill(0);
            for (page, entry) in entries[..pages].iter().enumerate() {
                dirty[page / 64] |= u64::from(entry & entry::UFFD_WP == 0) << (page % 64);
            }
            bitmap::or_into(bits, at, &dirty, pages);
            if reset {
                for (first, count) in bitmap::runs(&dirty, pages) {
                    if self.protect(rest.slice(first, count), Protect::On).is_err() {
                        // They stay unprotected, hence dirty, which they are reported to be.
                        Counters::add(&counters.degraded, 1);
                    }
                }
            }
            at += pages;
        }
    }
}
