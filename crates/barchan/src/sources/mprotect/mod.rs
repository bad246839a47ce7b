//! `mprotect` and SIGSEGV: works on every kernel, and costs a signal for every first write.
//!
//! Limits, all the kernel's: every boundary between a clean and a dirty page is a mapping of its
//! own, bounded by `vm.max_map_count` (at the bound the region becomes dirty as a whole, with its
//! neighbours if need be, and a call says so); and a system call that writes to a clean page fails
//! with EFAULT, as no signal is sent for it.
//!
//! `state` holds the dirty bits, `registry` finds them from a fault address, `handler` is the
//! signal's side, `reserve` is for the moment when there are no more mappings.

mod handler;
mod registry;
mod reserve;
mod state;

use std::sync::Arc;

use self::registry::Writer;
use self::state::{CHUNK, ChunkBits, State};
use super::Opened;
use crate::bitmap;
use crate::error::kind_of;
use crate::stats::{Counters, ScanTimer};
use crate::write_tracker::{check_bitmap, check_inside};
use crate::{
    Errno, ErrorKind, KernelWrites, PageRange, RegionError, Source, Stats, Unavailable,
    WriteTracker,
};

/// The opened source. Its counters live as long as the process, for a handler may still be
/// counting when the tracker goes.
pub(crate) struct Mprotect {
    counters: &'static Counters,
}

impl Mprotect {
    pub(crate) fn open() -> Result<Self, Unavailable> {
        handler::install().map_err(|why| match why {
            handler::Refused::System(errno) => Unavailable {
                source: Source::Mprotect,
                kind: kind_of(errno),
                step: "installing a SIGSEGV handler",
                errno: Some(errno),
                remedy: "allow the call rt_sigaction",
            },
            handler::Refused::Replaced => Unavailable {
                source: Source::Mprotect,
                kind: ErrorKind::Denied,
                step: "the program has replaced this library's SIGSEGV handler",
                errno: None,
                remedy: "install the program's own before the first tracker is opened, or put ours back, or use \
                         another tracker",
            },
        })?;
        reserve::fill();
        Ok(Self { counters: Box::leak(Box::new(Counters::new())) })
    }
}

impl Opened for Mprotect {
    fn source(&self) -> Source {
        Source::Mprotect
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Efault
    }

    fn stats(&self) -> Stats {
        self.counters.snapshot(true)
    }

    unsafe fn track(
        self: Arc<Self>,
        range: PageRange,
    ) -> Result<Box<dyn WriteTracker>, RegionError> {
        let state = Arc::new(new_state(range, self.counters)?);
        registry::write(|writer| {
            retire_abandoned(writer, range)?;
            let prepared = writer.prepare(None, Some(&state));
            writer.publish(prepared);
            Ok(())
        })
        .map_err(|errno| refused(range, errno))?;
        Ok(Box::new(MprotectRegion { state, counters: self.counters }))
    }
}

/// Ends the regions that could not be unprotected when they were dropped, while their memory is still what it was. Fails
/// if that cannot be done of one with pages in `range`.
fn retire_abandoned(writer: &mut Writer<'_>, range: PageRange) -> Result<(), Errno> {
    writer.abandoned().into_iter().try_for_each(|state| {
        let prepared = writer.prepare(Some(&state), None);
        let retired = state.retire(None, || writer.publish(prepared));
        if state.range().overlaps(&range) { retired } else { Ok(()) }
    })
}

fn new_state(range: PageRange, counters: &'static Counters) -> Result<State, RegionError> {
    State::new(range, counters).map_err(|errno| RegionError::System {
        step: "mapping memory for the dirty bits",
        range,
        errno,
        remedy: "one bit a page is needed",
    })
}

fn refused(range: PageRange, errno: Errno) -> RegionError {
    RegionError::System {
        step: "mprotect",
        range,
        errno,
        remedy: "the process is out of mappings (raise vm.max_map_count, or use pagemap-scan), or \
                 the range is not mapped; the whole region was made writable and counts as dirty",
    }
}

struct MprotectRegion {
    state: Arc<State>,
    counters: &'static Counters,
}

impl WriteTracker for MprotectRegion {
    fn source(&self) -> Source {
        Source::Mprotect
    }

    fn range(&self) -> PageRange {
        self.state.range()
    }

    fn arm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range(), range)?;
        if range.is_empty() {
            return Ok(());
        }
        self.state.arm(range).map_err(|errno| refused(range, errno))?;
        Counters::add(&self.counters.pages_armed, range.pages());
        Ok(())
    }

    fn disarm(&self, range: PageRange) -> Result<(), RegionError> {
        check_inside(self.range(), range)?;
        if range.is_empty() {
            return Ok(());
        }
        self.state.disarm(range).map_err(|errno| refused(range, errno))?;
        Counters::add(&self.counters.pages_disarmed, range.pages());
        Ok(())
    }

    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let _timer = ScanTimer::start(self.counters);
        if !self.state.is_current() {
            bitmap::set_run(bits, 0, range.pages());
            return Ok(());
        }
        let mut chunk: ChunkBits = [0; CHUNK / 64];
        for (first, part) in range.chunks(CHUNK) {
            self.state.copy_bits(self.range().index_of(part.start()), part.pages(), &mut chunk);
            bitmap::or_into(bits, first, &chunk, part.pages());
        }
        Ok(())
    }

    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError> {
        check_bitmap(self.range(), range, bits)?;
        let _timer = ScanTimer::start(self.counters);
        let mut dirty = 0;
        let mut chunk: ChunkBits = [0; CHUNK / 64];
        for (first, part) in range.chunks(CHUNK) {
            let collected = self.state.collect_chunk(part, &mut chunk);
            // The caller's bitmap may itself be tracked memory: it is written with the lock free.
            dirty += bitmap::or_into(bits, first, &chunk, part.pages());
            if let Err(errno) = collected {
                bitmap::set_run(bits, 0, range.pages());
                Counters::add(&self.counters.pages_reported, range.pages());
                return Err(refused(range, errno));
            }
        }
        self.counters.collected(dirty);
        Ok(dirty)
    }

    fn remapped(&self, range: PageRange) -> Result<(), RegionError> {
        self.disarm(range)
    }

    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError> {
        let next = Arc::new(new_state(bounds, self.counters)?);
        registry::write(|writer| {
            retire_abandoned(writer, bounds)?;
            let prepared = writer.prepare(Some(&self.state), Some(&next));
            self.state.retire(Some(&next), || writer.publish(prepared))
        })
        .map_err(|errno| refused(bounds, errno))?;
        self.state = next;
        Ok(())
    }
}

impl Drop for MprotectRegion {
    fn drop(&mut self) {
        registry::write(|writer| {
            let prepared = writer.prepare(Some(&self.state), None);
            if self.state.retire(None, || writer.publish(prepared)).is_err() {
                // Its pages are still protected, and the registry keeps it for their faults.
                self.state.abandon();
            } else {
                // None of them has pages in this range, which was a region's.
                let _ = retire_abandoned(writer, self.range());
            }
        });
    }
}
