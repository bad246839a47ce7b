//! Opening a tracker: which source, chosen how, and the handle that regions are made from.

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
    /// The bounds of all regions, to refuse overlaps. Not taken by arm, disarm, collect or peek.
    bounds: ForkMutex<Vec<PageRange>>,
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
            None => choice::open_best().ok_or(OpenError::UnknownName)?,
        };
        Ok(Tracker { shared: Arc::new(Shared { opened, bounds: ForkMutex::new() }) })
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
    match std::env::var_os(ENV) {
        None => Ok(None),
        Some(name) => match name.to_str() {
            Some("" | "auto") => Ok(None),
            Some(name) => name.parse().map(Some).map_err(|_| OpenError::UnknownName),
            None => Err(OpenError::UnknownName),
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
        self.shared.bounds.with(|bounds| bounds.len())
    }

    /// Begins to track `range`; nothing in it is armed yet, so every page is dirty.
    ///
    /// # Safety
    /// 1. Until the region is dropped or resized to leave them out, the pages stay mapped, private,
    ///    anonymous, readable and writable, and the caller is entitled to protect them. (Replacing
    ///    the mapping is allowed if [`Region::remapped`] follows before its contents matter.)
    /// 2. No stack of a thread that may write with signals blocked or without a valid alternate
    ///    stack lies within (a fault there could not be handled).
    ///
    /// # Errors
    /// If the range is empty or overlaps another region, or the kernel refuses.
    pub unsafe fn track(&self, range: PageRange) -> Result<Region, RegionError> {
        self.shared.claim(None, range)?;
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
    /// Enters `range` (in place of `old`), unless it is empty or taken.
    pub(crate) fn claim(
        &self,
        old: Option<PageRange>,
        range: PageRange,
    ) -> Result<(), RegionError> {
        if range.is_empty() {
            return Err(RegionError::Empty);
        }
        self.bounds.with(|bounds| {
            let other = bounds.iter().find(|b| Some(**b) != old && b.overlaps(&range));
            if let Some(&other) = other {
                return Err(RegionError::Overlap { asked: range, other });
            }
            match old.and_then(|old| bounds.iter_mut().find(|b| **b == old)) {
                Some(entry) => *entry = range,
                None => bounds.push(range),
            }
            Ok(())
        })
    }

    /// Forgets `range`.
    pub(crate) fn release(&self, range: PageRange) {
        self.bounds.with(|bounds| bounds.retain(|b| *b != range));
    }
}
