//! Opening a tracker: which source, chosen how, and the handle that regions are made from.

use std::ffi::OsString;
use std::sync::Arc;

use crate::os::epoch;
use crate::os::lock::ForkMutex;
use crate::sources::{self, Opened};
use crate::{
    KernelWrites, OpenError, PAGE_SIZE, PageRange, Region, RegionError, Source, Stats, choice,
    probe,
};

/// The variable that forces a source: a name of [`Source`], or `auto`.
pub const ENV: &str = "BARCHAN_TRACKER";

/// Tracks writes to this process' memory. One for a process is the intention; several work.
///
/// Cheap to clone; the source stays open while a clone or a [`Region`] is left.
#[derive(Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) opened: Arc<dyn Opened>,
}

/// The bounds of a region, which are in nobody else's meanwhile.
#[derive(Clone, Copy)]
struct Claim {
    /// Whose region it is: the address of a [`Shared`], which each region keeps.
    tracker: usize,
    source: Source,
    range: PageRange,
    /// What it is being resized to.
    next: Option<PageRange>,
}

/// Those of all regions of the process, to refuse overlaps. Not taken by arm, disarm, collect or peek.
static CLAIMS: ForkMutex<Vec<Claim>> = ForkMutex::new();

/// Whether a page has one state in the process under both sources, so that two trackers would take each
/// other's reports away. (pagemap-scan and userfaultfd are refused by the kernel then; soft-dirty harvests
/// for all.)
fn share_a_state(one: Source, other: Source) -> bool {
    (one == Source::Mprotect && other == Source::Mprotect)
        || (one.needs_guest_mode() && other.needs_guest_mode())
}

/// How to choose the source of a [`Tracker`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Builder {
    source: Option<Source>,
    ignore_env: bool,
}

impl Builder {
    /// Forces `source`; the environment then has no say.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// Leaves `BARCHAN_TRACKER` unread.
    #[must_use]
    pub fn ignore_env(mut self) -> Self {
        self.ignore_env = true;
        self
    }

    /// Opens the forced source, or else the one named by `BARCHAN_TRACKER`, or else the best that
    /// passes its probe. The last resort, all-dirty, always does. In guest mode, where the guest's page
    /// tables and PAGEMAP_SCAN both work, the better is what costs less here, which is measured
    /// ([`Measured`](crate::Measured)) by the first such call of the process, in some milliseconds.
    ///
    /// Trying a source uses it: see [`probe`](fn@crate::probe) for what that does to the process.
    ///
    /// # Errors
    /// If a source was forced that is not there (with the reason and the remedy), or the
    /// environment names none, or the process cannot be told from a forked child.
    pub fn open(self) -> Result<Tracker, OpenError> {
        prepare()?;
        let forced = match self.source {
            Some(source) => Some(source),
            None if self.ignore_env => None,
            None => from_env()?,
        };
        let opened = match forced {
            Some(source) => open_probed(source)?,
            None => choice::open_best()?,
        };
        Ok(Tracker { shared: Arc::new(Shared { opened }) })
    }
}

/// What every tracker needs, whatever its source.
pub(crate) fn prepare() -> Result<(), OpenError> {
    // SAFETY: sysconf with a valid name only answers.
    let kernel = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if usize::try_from(kernel) != Ok(PAGE_SIZE) {
        return Err(OpenError::PageSize { kernel: kernel.max(0) as usize });
    }
    epoch::init().map_err(OpenError::ForkDetection)
}

fn from_env() -> Result<Option<Source>, OpenError> {
    let unknown = |name: &OsString| OpenError::UnknownName(name.to_string_lossy().into_owned());
    match std::env::var_os(ENV) {
        None => Ok(None),
        Some(name) => match name.to_str() {
            Some("" | "auto") => Ok(None),
            Some(known) => known.parse().map(Some).map_err(|_| unknown(&name)),
            None => Err(unknown(&name)),
        },
    }
}

pub(crate) fn open_probed(source: Source) -> Result<Arc<dyn Opened>, OpenError> {
    let opened = sources::open(source)?;
    probe::check(&opened)?;
    Ok(opened)
}

impl Tracker {
    /// A builder that chooses automatically.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Opens the source that `BARCHAN_TRACKER` names, or the best that works here.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open() -> Result<Self, OpenError> {
        Self::builder().open()
    }

    /// The source in use.
    #[must_use]
    pub fn source(&self) -> Source {
        self.shared.opened.source()
    }

    /// What becomes of system calls that write to armed pages.
    #[must_use]
    pub fn kernel_writes(&self) -> KernelWrites {
        self.shared.opened.kernel_writes()
    }

    /// The counters of all regions since the tracker was opened, and what was measured to choose.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { measured: choice::measured(), ..self.shared.opened.stats() }
    }

    /// How many regions are tracked.
    #[must_use]
    pub fn regions(&self) -> usize {
        let tracker = self.shared.id();
        CLAIMS.with(|claims| claims.iter().filter(|claim| claim.tracker == tracker).count())
    }

    /// Begins to track `range`; nothing in it is armed yet, so every page is dirty.
    ///
    /// # Safety
    /// 1. Until the region is dropped or resized to leave them out, the pages stay mapped, private,
    ///    anonymous, readable and writable, and the caller is entitled to protect them. (Replacing
    ///    the mapping is allowed if [`Region::remapped`] follows before its contents matter.)
    /// 2. No stack of a thread that may write with signals blocked or without a valid alternate
    ///    stack lies within (a fault there could not be handled); nor of a thread that calls the methods of a
    ///    [`Region`], which block signals.
    /// 3. Nothing that this library allocates lies within: the memory of its Rust allocator (`malloc`, unless the program
    ///    says otherwise) is not tracked. A fault is handled with data that lie there, and would fault itself: under
    ///    mprotect the process dies, under userfaultfd it hangs. A `malloc` that is redirected to the very collector
    ///    that tracks its heap is such a case.
    /// 4. Under mprotect, no thread stores to armed pages while it blocks SIGSEGV, nor does a handler of signals that
    ///    does (one with a full mask): the kernel kills the process. Nor does the program replace the handler.
    /// 5. No other copy of this library in the process tracks the pages under mprotect or in guest mode. (Of other
    ///    trackers of this copy it is found out.)
    ///
    /// # Errors
    /// If the range is empty or overlaps another region of this tracker; or, under mprotect, of any tracker of the process
    /// with that source, in guest mode of any with a guest source, as the one would miss what the other
    /// reports; or the kernel refuses (EBUSY under pagemap-scan and userfaultfd: another userfaultfd, maybe another
    /// tracker's, has the pages; see [`WriteTracker::remapped`](crate::WriteTracker::remapped)).
    ///
    /// Under soft-dirty the pages are also advised not to be merged (`MADV_UNMERGEABLE`) and, from Linux 6.12 on, not to
    /// become huge ones (`MADV_NOHUGEPAGE`): the kernel loses the bits of such pages. That stays when the region is gone.
    pub unsafe fn track(&self, range: PageRange) -> Result<Region, RegionError> {
        self.shared.claim(range)?;
        // SAFETY: the caller's promises are the same.
        match unsafe { Arc::clone(&self.shared.opened).track(range) } {
            Ok(inner) => Ok(Region::new(inner, Arc::clone(&self.shared))),
            Err(why) => {
                self.shared.release(range);
                Err(why)
            }
        }
    }
}

impl Shared {
    fn id(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Refuses `range` if it is empty, or taken by another than the region of this tracker at `old`.
    fn check(
        &self,
        claims: &[Claim],
        old: Option<PageRange>,
        range: PageRange,
    ) -> Result<(), RegionError> {
        if range.is_empty() {
            return Err(RegionError::Empty);
        }
        let source = self.opened.source();
        let taken = claims
            .iter()
            .filter(|claim| claim.tracker == self.id() || share_a_state(claim.source, source))
            .filter(|claim| claim.tracker != self.id() || Some(claim.range) != old)
            .flat_map(|claim| [Some(claim.range), claim.next])
            .flatten()
            .find(|other| other.overlaps(&range));
        taken.map_or(Ok(()), |other| Err(RegionError::Overlap { asked: range, other }))
    }

    /// Enters `range`, unless it is empty or taken.
    fn claim(&self, range: PageRange) -> Result<(), RegionError> {
        let (tracker, source) = (self.id(), self.opened.source());
        CLAIMS.with(|claims| {
            self.check(claims, None, range)?;
            claims.push(Claim { tracker, source, range, next: None });
            Ok(())
        })
    }

    /// Enters `next` beside `old`, unless it is empty or taken: while a region changes, the pages of both
    /// are its own. Until [`Self::settle`].
    pub(crate) fn widen(&self, old: PageRange, next: PageRange) -> Result<(), RegionError> {
        CLAIMS.with(|claims| {
            self.check(claims, Some(old), next)?;
            self.change(claims, old, |claim| claim.next = Some(next));
            Ok(())
        })
    }

    /// Leaves `now` of what [`Self::widen`] entered for the region at `old`.
    pub(crate) fn settle(&self, old: PageRange, now: PageRange) {
        CLAIMS.with(|claims| {
            self.change(claims, old, |claim| (claim.range, claim.next) = (now, None));
        });
    }

    fn change(&self, claims: &mut [Claim], range: PageRange, f: impl FnOnce(&mut Claim)) {
        let mine = |claim: &&mut Claim| claim.tracker == self.id() && claim.range == range;
        if let Some(claim) = claims.iter_mut().find(mine) {
            f(claim);
        }
    }

    /// Forgets `range`.
    pub(crate) fn release(&self, range: PageRange) {
        let tracker = self.id();
        CLAIMS.with(|claims| claims.retain(|c| c.tracker != tracker || c.range != range));
    }
}
