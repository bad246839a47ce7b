//! Whether a source works here: not by asking for versions, but by using it.
//!
//! The kernel may have the calls and refuse them (seccomp, sysctl, a process that is not
//! dumpable), or offer bits that do nothing. So a few pages are mapped, armed, written by the
//! program and by the kernel, and the reports are compared with what was done.

use std::sync::Arc;

use crate::os::syscall::{self, SignalMask};
use crate::sources::{self, Opened};
use crate::tracker::prepare;
use crate::{
    Errno, ErrorKind, KernelWrites, OpenError, PAGE_SIZE, PageRange, Source, Unavailable,
    WriteTracker,
};

/// Tries `source` in this process, on pages of its own; so does [`Tracker::open`](crate::Tracker::open) with each that it
/// considers.
///
/// What the program may notice of it:
/// - [`Source::SoftDirty`]: the soft-dirty bits of the *whole process* are cleared, unless regions are tracked by it
///   already. Whoever else uses them (CRIU, another collector) loses what was written until then.
/// - [`Source::Mprotect`]: the handler of SIGSEGV is installed, and stays. A SIGSEGV that was sent and is pending, as the
///   calling thread blocks it, may be delivered: the probe's own faults need it unblocked.
/// - [`Source::Userfaultfd`]: while it is open the process has one more thread; see there.
/// - A seccomp policy that *kills* on a call that is tried (`userfaultfd`, for one) kills the process. One that refuses
///   the call does no harm.
///
/// # Errors
/// Why it cannot be used, and what would give it.
pub fn probe(source: Source) -> Result<KernelWrites, OpenError> {
    prepare()?;
    let opened = sources::open(source)?;
    check(&opened)?;
    Ok(opened.kernel_writes())
}

const PAGES: usize = 8;

/// Memory of our own, to try things with.
pub(crate) struct Scratch(PageRange);

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and its region is gone.
        unsafe { syscall::munmap(self.0.start(), self.0.len_bytes()) };
    }
}

impl Scratch {
    /// Maps `pages` pages.
    pub(crate) fn new(pages: usize) -> Result<Self, Errno> {
        let bytes = pages * PAGE_SIZE;
        let start = syscall::mmap_anonymous(bytes, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        Ok(Self(PageRange::between(start, start + bytes)))
    }

    pub(crate) fn range(&self) -> PageRange {
        self.0
    }

    /// Writes to page `page`.
    pub(crate) fn store(&self, page: usize) {
        // SAFETY: the page is ours, mapped and writable (if armed, the fault is resolved).
        unsafe { (self.0.slice(page, 1).start() as *mut u8).write_volatile(1) };
    }
}

/// Runs `opened` over a few pages.
pub(crate) fn check(opened: &Arc<dyn Opened>) -> Result<(), Unavailable> {
    let source = opened.source();
    if source == Source::AllDirty {
        return Ok(());
    }
    let scratch = Scratch::new(PAGES)
        .map_err(|errno| failed(source, "mapping pages to probe with", errno))?;
    // SAFETY: 1. the pages are ours, private, anonymous and writable, and outlive the region,
    // which is dropped first (declared later). 2. No stack lies within.
    let region = unsafe { Arc::clone(opened).track(scratch.0) }
        .map_err(|why| failed(source, "tracking a few pages", errno_of(&why)))?;
    // Where the stores of the probe raise signals, the caller may have blocked them, and would be killed.
    let _mask = (source == Source::Mprotect).then(|| SignalMask::unblocking(libc::SIGSEGV));
    let check = || check_region(opened, &*region, &scratch);
    if source == Source::SoftDirty {
        // Where other regions are, it has passed; and their pages may be written to now.
        sources::soft_dirty::if_alone(check).unwrap_or(Ok(()))
    } else {
        check()
    }
}

fn failed(source: Source, step: &'static str, errno: Errno) -> Unavailable {
    Unavailable {
        source,
        kind: crate::error::kind_of(errno),
        step,
        errno: Some(errno),
        remedy: "a security policy may refuse the call; allow it, or use another tracker",
    }
}

/// Runs `opened` over `scratch`, which is `region`, and for soft-dirty the only one there is.
fn check_region(
    opened: &Arc<dyn Opened>,
    region: &dyn WriteTracker,
    scratch: &Scratch,
) -> Result<(), Unavailable> {
    let source = opened.source();
    let failed = |step, errno| failed(source, step, errno);
    let wrong =
        |step, remedy| Unavailable { source, kind: ErrorKind::Internal, step, errno: None, remedy };
    let collect = |region: &dyn WriteTracker| {
        let mut bits = [0u64];
        // SAFETY: only this thread knows the pages, and it is not writing.
        unsafe { region.collect_and_reset_stopped(scratch.0, &mut bits) }
            .map_err(|why| failed("collecting", errno_of(&why)))?;
        Ok(bits[0])
    };
    let useless = "the kernel takes the calls and does not do what they are for; use another \
                   tracker";

    let every = (1 << PAGES) - 1;
    (0..PAGES).for_each(|page| scratch.store(page));
    if collect(region)? != every {
        return Err(wrong("checking that new pages are dirty", useless));
    }
    if collect(region)? == every {
        return Err(wrong("checking that collected pages are clean", useless));
    }
    region.disarm(scratch.0).map_err(|why| failed("disarming", errno_of(&why)))?;
    region.arm(scratch.0).map_err(|why| failed("arming", errno_of(&why)))?;
    if collect(region)? == every {
        return Err(wrong("checking that armed pages are clean", useless));
    }
    scratch.store(3);
    if collect(region)? & 1 << 3 == 0 {
        return Err(wrong("checking that a written page is dirty", useless));
    }
    match (opened.kernel_writes(), kernel_write(scratch.0.slice(5, 1))) {
        (KernelWrites::Tracked, Ok(())) if collect(region)? & 1 << 5 == 0 => {
            Err(wrong("checking that a page written by read(2) is dirty", useless))
        }
        (KernelWrites::Tracked, Err(Errno(libc::EFAULT))) => {
            Err(wrong("checking that read(2) into an armed page works", useless))
        }
        // Whatever else read(2) of /dev/zero says, it says nothing about the source.
        _ => Ok(()),
    }
}

/// Has the kernel write to `page`.
fn kernel_write(page: PageRange) -> Result<(), Errno> {
    let fd = syscall::open(c"/dev/zero", libc::O_RDONLY)?;
    // SAFETY: the page is the probe's own.
    let read = unsafe { syscall::read_to(fd, page.start(), page.len_bytes()) };
    // SAFETY: opened above.
    unsafe { syscall::close(fd) };
    match read {
        Ok(n) if n == page.len_bytes() => Ok(()),
        Ok(_) => Err(Errno(libc::EINTR)),
        Err(errno) => Err(errno),
    }
}

fn errno_of(why: &crate::RegionError) -> Errno {
    match why {
        crate::RegionError::System { errno, .. } => *errno,
        // The probe's own arguments are right, so nothing else comes here.
        _ => Errno(libc::EINVAL),
    }
}
