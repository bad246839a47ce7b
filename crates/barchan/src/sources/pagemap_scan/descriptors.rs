//! The two descriptors of the source: how they are opened, what is asked of the kernel through
//! them besides scanning, and what an error of theirs means.

use crate::error::kind_of;
use crate::os::own::Own;
use crate::os::pagemap::{self, Found, Query, Scanned, entry};
use crate::os::syscall;
use crate::os::uffd::{self, Protect, feature};
use crate::{Errno, ErrorKind, PageRange, RegionError, Source, Unavailable};

/// A pair of descriptors that refer to this process.
#[derive(Clone, Copy)]
pub(super) struct Descriptors {
    pub(super) pagemap: Own,
    pub(super) uffd: Own,
}

fn unavailable(
    kind: ErrorKind,
    step: &'static str,
    errno: Errno,
    remedy: &'static str,
) -> Unavailable {
    Unavailable { source: Source::PagemapScan, kind, step, errno: Some(errno), remedy }
}

impl Descriptors {
    pub(super) fn open() -> Result<Self, Unavailable> {
        let pagemap = Self::open_pagemap().map_err(|errno| {
            let remedy = pagemap::open_remedy(errno);
            unavailable(kind_of(errno), "opening /proc/thread-self/pagemap", errno, remedy)
        })?;
        Self::open_uffd().map(|uffd| Self { pagemap, uffd }).inspect_err(|_| pagemap.close())
    }

    pub(super) fn open_pagemap() -> Result<Own, Errno> {
        pagemap::open().and_then(Own::new)
    }

    pub(super) fn open_uffd() -> Result<Own, Unavailable> {
        let own = uffd::open(false).and_then(|(fd, _)| Own::new(fd)).map_err(|errno| {
            unavailable(
                kind_of(errno),
                "userfaultfd(UFFD_USER_MODE_ONLY)",
                errno,
                uffd::open_remedy(errno),
            )
        })?;
        let wanted = feature::PAGEFAULT_FLAG_WP | feature::WP_UNPOPULATED | feature::WP_ASYNC;
        let refused = match own.number().and_then(|fd| uffd::negotiate(fd, wanted)) {
            Ok(given) if given & wanted == wanted => return Ok(own),
            Ok(_) => Errno(libc::EINVAL),
            Err(errno) => errno,
        };
        own.close();
        Err(unavailable(
            ErrorKind::Unsupported,
            "asking userfaultfd for WP_ASYNC",
            refused,
            "needs Linux 6.7 with CONFIG_PTE_MARKER_UFFD_WP, and an ioctl that no policy refuses",
        ))
    }

    pub(super) fn close(self) {
        self.pagemap.close();
        self.uffd.close();
    }

    /// See [`pagemap::scan`].
    pub(super) fn scan(
        self,
        query: Query,
        range: PageRange,
        out: &mut [Found],
    ) -> Result<Scanned, Errno> {
        pagemap::scan(self.pagemap.number()?, query, range, out)
    }

    /// Registers `range`, whose pages belong to the caller, and lifts its protection: kernels leave it in the entries
    /// of pages that were registered before, by a userfaultfd that was closed (Linux 6.7 to 6.8.9, CVE-2024-36881) or
    /// elsewhere, from where they were moved (to 6.12.10, CVE-2025-21696). Stores that came between went through it.
    fn register(self, range: PageRange) -> Result<(), Errno> {
        let fd = self.uffd.number()?;
        // SAFETY: 1. the pages are the caller's. 2. The registration is asynchronous: no fault
        // waits for an answer.
        unsafe { uffd::register(fd, range) }?;
        self.unprotect(range).inspect_err(|_| release(self, range))
    }

    /// Lifts the protection of `range`; nobody waits for that.
    pub(super) fn unprotect(self, range: PageRange) -> Result<(), Errno> {
        uffd::write_protect(self.uffd.number()?, range, Protect::Off)
    }
}

/// Finds out whether this kernel fails to call a hole in the page tables written.
///
/// A range whose page tables are gone (never touched, or dropped by MADV_DONTNEED and freed) has
/// no entry to look at. Some kernels report it as written (6.18); for those that do not (6.12),
/// absent pages are asked for by name. So they are where it cannot be found out, as everything that is mapped is
/// populated at once (`mlockall(MCL_FUTURE)`).
pub(super) fn are_holes_apart(fds: Descriptors, written: Query) -> Result<bool, Unavailable> {
    const BYTES: usize = 4 << 20;
    let failed = |step, errno| {
        let remedy = "needs Linux 6.7 with PAGEMAP_SCAN, and an ioctl that no policy refuses";
        let kind = match errno {
            Errno(libc::ENOTTY | libc::EINVAL) => ErrorKind::Unsupported,
            other => kind_of(other),
        };
        unavailable(kind, step, errno, remedy)
    };
    let start = syscall::mmap_anonymous(BYTES, libc::PROT_READ | libc::PROT_WRITE, 0)
        .map_err(|errno| failed("mapping 4 MiB to probe PAGEMAP_SCAN with", errno))?;
    let range = PageRange::between(start, start + BYTES);
    let mut found = [Found::default(); 4];
    let is_populated = || {
        let mut first = [0];
        fds.pagemap
            .number()
            .and_then(|fd| pagemap::read(fd, range, &mut first))
            .map_or(true, |_| first[0] & entry::PRESENT != 0)
    };
    let apart = fds
        .register(range)
        .map_err(|errno| failed("UFFDIO_REGISTER", errno))
        .and_then(|()| {
            fds.scan(written.checking(), range, &mut found)
                .map_err(|errno| failed("the PAGEMAP_SCAN ioctl", errno))
        })
        .map(|scanned| {
            let pages: usize = found[..scanned.filled].iter().map(|f| f.range().pages()).sum();
            pages != range.pages() || is_populated()
        });
    // SAFETY: mapped above, seen by nobody else; unmapping ends the registration.
    unsafe { syscall::munmap(start, BYTES) };
    apart
}

/// The error of a request by a descriptor that is no longer ours.
pub(super) fn is_lost(errno: Errno) -> bool {
    errno.0 == libc::EBADF
}

/// Registers `range`, whose pages are dirty then.
pub(super) fn register(fds: Descriptors, range: PageRange) -> Result<(), RegionError> {
    // The pages belong to the region, by the promise of whoever tracks it.
    fds.register(range).map_err(|errno| RegionError::System {
        step: "UFFDIO_REGISTER for write-protection",
        range,
        errno,
        remedy: match errno.0 {
            libc::EBUSY => {
                "another userfaultfd has registered the pages: end that first (if the program has closed all its \
                 descriptors, it may be this library's former one, which a forked child still holds: it ends with \
                 that child)"
            }
            libc::ENOMEM => "the kernel is out of memory or mappings (vm.max_map_count)",
            _ => "the range must be mapped, private, anonymous and writable",
        },
    })
}

/// Ends the registration of pages that the region gives up; they may be unmapped already.
pub(super) fn release(fds: Descriptors, range: PageRange) {
    if !range.is_empty() {
        // ENOENT or EINVAL: no mapping there, so nothing is registered either.
        // EBADF: with the userfaultfd gone, the kernel has done it.
        let _ = fds.uffd.number().and_then(|fd| uffd::unregister(fd, range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::epoch;

    #[test]
    fn holes_are_asked_for_where_there_are_none_to_be_found_out_by() {
        epoch::init().expect("MADV_WIPEONFORK");
        let fds = match Descriptors::open() {
            Ok(fds) => fds,
            Err(why) => return println!("skipped: {why}"),
        };
        fds.close();
        let status = syscall::in_child(|| {
            // SAFETY: it makes pages resident, and changes none.
            if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
                println!("skipped: mlockall(MCL_FUTURE) is refused");
                return true;
            }
            let fds = Descriptors::open().expect("as in the parent");
            let written = Query::written(syscall::kernel_release());
            match are_holes_apart(fds, written) {
                Ok(apart) => apart,
                Err(why) => {
                    // More than may be locked, for want of privileges.
                    println!("skipped: {why}");
                    true
                }
            }
        });
        assert_eq!(status, 0);
    }
}
