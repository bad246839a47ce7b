//! `/proc/<pid>/pagemap`: its 64-bit entry for each page, and the `PAGEMAP_SCAN` ioctl (Linux 6.7,
//! `pagemap_scan_ioctl` in `fs/proc/task_mmu.c`), which finds pages by state and write-protects
//! those found in the same step.

use super::syscall;
use crate::{Errno, PAGE_SIZE, PageRange};

/// Page states, as the kernel reports them.
pub(crate) mod category {
    /// Not write-protected by a userfaultfd.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// In memory.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// Not in memory, but with an entry of its own: swapped out, or the marker of an armed page
    /// that was never touched.
    pub(crate) const SWAPPED: u64 = 1 << 4;
}

/// Bits of a pagemap entry (`Documentation/admin-guide/mm/pagemap.rst`).
pub(crate) mod entry {
    /// Written since the last write of 4 to `clear_refs` (`CONFIG_MEM_SOFT_DIRTY`).
    pub(crate) const SOFT_DIRTY: u64 = 1 << 55;
    /// Write-protected by a userfaultfd (Linux 5.14).
    pub(crate) const UFFD_WP: u64 = 1 << 57;
    /// Swapped out.
    pub(crate) const SWAPPED: u64 = 1 << 62;
    /// In memory.
    pub(crate) const PRESENT: u64 = 1 << 63;
}

/// Opens the file of this process: by the calling thread's name, since the first thread, whose name
/// `/proc/self` is, has no memory once it has exited.
pub(crate) fn open() -> Result<i32, Errno> {
    syscall::open(c"/proc/thread-self/pagemap", libc::O_RDONLY)
}

/// What would make [`open`] work after `errno`.
pub(crate) fn open_remedy(errno: Errno) -> &'static str {
    match errno.0 {
        libc::EACCES | libc::EPERM => {
            "the process must be dumpable (it is not after a change of user id or without read \
             permission on its file; see prctl PR_SET_DUMPABLE), and a security policy must allow \
             the file"
        }
        libc::ENOENT => "mount /proc, on a kernel with CONFIG_PROC_PAGE_MONITOR",
        libc::EMFILE | libc::ENFILE => "raise the limit of open files (ulimit -n)",
        _ => "allow opening the file",
    }
}

/// Reads the entries of the first pages of `range`, as many as `out` holds; the kernel's answer may
/// be shorter, but never empty without an error.
pub(crate) fn read(fd: i32, range: PageRange, out: &mut [u64]) -> Result<usize, Errno> {
    let pages = range.pages().min(out.len());
    let offset = (range.start() / PAGE_SIZE * size_of::<u64>()) as u64;
    match syscall::pread_words(fd, &mut out[..pages], offset) {
        Ok(0) if pages > 0 => Err(Errno(libc::EIO)),
        other => other,
    }
}

/// Write-protect what matches, atomically with reporting it.
pub(crate) const WP_MATCHING: u64 = 1 << 0;
/// Fail with EPERM on a mapping that is not registered with a `WP_ASYNC` userfaultfd.
pub(crate) const CHECK_WPASYNC: u64 = 1 << 1;

/// `struct page_region`: pages in the same state.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Found {
    start: u64,
    end: u64,
    /// The [`category`] bits that were asked for and hold; the queries above need none.
    _categories: u64,
}

impl Found {
    /// The pages.
    pub(crate) fn range(&self) -> PageRange {
        PageRange::between(self.start as usize, self.end as usize)
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Arg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<Arg>() as u32) << 16 | (b'f' as u32) << 8 | 16;
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

/// Which pages match, and what is said of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    flags: u64,
    inverted: u64,
    mask: u64,
    anyof: u64,
    returned: u64,
}

impl Query {
    /// All pages; nothing is reported (for arming, with no output).
    pub(crate) const EVERY: Self = Self { flags: 0, inverted: 0, mask: 0, anyof: 0, returned: 0 };

    /// Pages that are written. The kernel has a fast path for exactly these masks, which also calls
    /// an empty entry written; a hole in the page tables only on some kernels.
    const WRITTEN: Self = Self {
        flags: 0,
        inverted: 0,
        mask: category::WRITTEN,
        anyof: 0,
        returned: category::WRITTEN,
    };

    /// Pages that are written, on a kernel of this release (major, minor, patch).
    ///
    /// From 6.7 to 6.8.9 the fast path takes the entries of swapped pages for those of present ones, and misses half of
    /// those that are written (mended by 2c7ad9a590d1). There another mask, which makes no other difference, avoids it.
    pub(crate) fn written(release: (u32, u32, u32)) -> Self {
        let is_misled = ((6, 7, 0)..(6, 8, 10)).contains(&release);
        let returned = category::WRITTEN | if is_misled { category::SWAPPED } else { 0 };
        Self { returned, ..Self::WRITTEN }
    }

    /// Pages that have no entry at all: in a hole of the page tables, mostly.
    pub(crate) const ABSENT: Self = Self {
        flags: 0,
        inverted: category::PRESENT | category::SWAPPED,
        mask: category::PRESENT | category::SWAPPED,
        anyof: 0,
        returned: category::PRESENT,
    };

    /// The same pages, write-protected as they are found.
    pub(crate) const fn protecting(self) -> Self {
        Self { flags: self.flags | WP_MATCHING | CHECK_WPASYNC, ..self }
    }

    /// The same pages, refusing mappings that are not registered.
    pub(crate) const fn checking(self) -> Self {
        Self { flags: self.flags | CHECK_WPASYNC, ..self }
    }
}

/// One call: what it found, and where the next has to go on.
pub(crate) struct Scanned {
    /// How many entries of the output were filled.
    pub(crate) filled: usize,
    /// Everything before this address was looked at.
    pub(crate) walked_to: usize,
}

/// Scans `range` once, filling `out` from its beginning; stops early when `out` is full.
///
/// An error says nothing about how far the scan came: with [`Query::protecting`], pages before the
/// obstacle have been protected again and their report is gone (seen on 6.18). The caller must
/// take all of `range` as written.
pub(crate) fn scan(
    fd: i32,
    query: Query,
    range: PageRange,
    out: &mut [Found],
) -> Result<Scanned, Errno> {
    let mut arg = Arg {
        size: size_of::<Arg>() as u64,
        flags: query.flags,
        start: range.start() as u64,
        end: range.end() as u64,
        vec: if out.is_empty() { 0 } else { syscall::address_of(out) },
        vec_len: out.len() as u64,
        category_inverted: query.inverted,
        category_mask: query.mask,
        category_anyof_mask: query.anyof,
        return_mask: query.returned,
        ..Arg::default()
    };
    // SAFETY: 1. the type belongs to the request. 2. `vec` and `vec_len` are a live exclusive
    // slice of `struct page_region`, or nothing. 3. Protecting pages lets the next write to each
    // fault in the kernel, which resolves it itself; no one notices.
    let filled = unsafe { syscall::ioctl(fd, PAGEMAP_SCAN, &mut arg) }?;
    Ok(Scanned {
        filled: filled.min(out.len()),
        walked_to: arg.walk_end as usize & !(PAGE_SIZE - 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_is_avoided_where_it_misses_swapped_pages() {
        let is_fast = |release| Query::written(release).returned == category::WRITTEN;
        assert!([(6, 8, 10), (6, 9, 0), (6, 12, 3), (7, 0, 0)].into_iter().all(is_fast));
        assert!(![(6, 7, 0), (6, 7, 12), (6, 8, 0), (6, 8, 9)].into_iter().any(is_fast));
    }
}
