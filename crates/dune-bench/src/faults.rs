//! Page faults that the program handles itself: the time to the handler, and Appel and Li's two programs
//! (Virtual memory primitives for user programs, ASPLOS 1991), for three ways to protect pages.
//!
//! The handler's part is the same on all sides: note the time, unprotect the page that was written to, and
//! in appel1 protect another. In appel1 there are two sets of 100 pages, one protected; writing to each page of
//! it, in a random order, unprotects it and protects one of the other set; then the sets change
//! places.

use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use dune::PAGE_SIZE;
use dune::faults::FaultFrame;
use dune::inside::Inside;

use crate::clock::{samples, ticks};
use crate::memory::{Memory, shuffled};
use crate::uffd::Userfaultfd;
use crate::{Error, Means, Timed};

/// Pages of one run, as in the paper.
pub const PAGES: usize = 100;
/// Runs that are timed.
const RUNS: usize = 51;

/// When the last handler began.
static ENTERED: AtomicU64 = AtomicU64::new(0);
/// Faults handled.
static HANDLED: AtomicUsize = AtomicUsize::new(0);
/// What the handler protects next: an array of addresses, and how far it has come. Null: nothing.
static OTHERS: AtomicPtr<usize> = AtomicPtr::new(null_mut());
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A way to protect pages. Its functions are called in handlers, too: no heap, no lock.
trait Protection {
    /// Takes the right to write from `pages` pages; no CPU uses it any longer.
    fn protect(address: usize, pages: usize) -> bool;
    /// Gives it back to one page.
    fn unprotect(address: usize) -> bool;
}

/// mprotect and SIGSEGV.
struct Mprotect;

impl Protection for Mprotect {
    fn protect(address: usize, pages: usize) -> bool {
        // SAFETY: pages of a mapping of the benchmark's.
        unsafe { libc::mprotect(address as *mut _, pages * PAGE_SIZE, libc::PROT_READ) == 0 }
    }

    fn unprotect(address: usize) -> bool {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: as above.
        unsafe { libc::mprotect(address as *mut _, PAGE_SIZE, rights) == 0 }
    }
}

/// userfaultfd and SIGBUS.
struct Registered;

static USERFAULTFD: OnceLock<Userfaultfd> = OnceLock::new();

impl Protection for Registered {
    fn protect(address: usize, pages: usize) -> bool {
        let fd = USERFAULTFD.get();
        fd.is_some_and(|fd| fd.set(address..address + pages * PAGE_SIZE, true))
    }

    fn unprotect(address: usize) -> bool {
        USERFAULTFD.get().is_some_and(|fd| fd.set(address..address + PAGE_SIZE, false))
    }
}

/// Entries of the guest's page tables.
struct Entries;

std::thread_local!(static INSIDE: Option<Inside> = Inside::current());

impl Protection for Entries {
    fn protect(address: usize, pages: usize) -> bool {
        let Some(inside) = INSIDE.with(|inside| *inside) else { return false };
        let Ok(owed) = inside.protect(address..address + pages * PAGE_SIZE) else { return false };
        if owed.cleared() != pages {
            return false; // a page without an entry would be no fault
        }
        // This thread is the only one, as it is for the native sides.
        if pages == 1 {
            owed.defer();
            inside.flush_page(address);
        } else {
            owed.flush_here();
        }
        true
    }

    fn unprotect(address: usize) -> bool {
        INSIDE.with(|inside| {
            inside.is_some_and(|inside| inside.unprotect(address..address + PAGE_SIZE).is_ok())
        })
    }
}

/// What each handler does; whether it could.
fn handle<P: Protection>(address: usize) -> bool {
    ENTERED.store(ticks(), Ordering::Relaxed);
    let mut done = P::unprotect(address & !(PAGE_SIZE - 1));
    let others = OTHERS.load(Ordering::Relaxed);
    if !others.is_null() {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `run` has set it to an array of `PAGES` addresses that outlives the run.
        done &= next < PAGES && P::protect(unsafe { *others.add(next) }, 1);
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
    done
}

extern "C" fn on_signal<P: Protection>(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's record of the signal, for SIGSEGV and SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    if !handle::<P>(address) {
        // A fault that is no part of the benchmark, or would come again for ever.
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
}

fn on_fault(address: usize, _: &mut FaultFrame) -> bool {
    handle::<Entries>(address)
}

fn set_handler<P: Protection>(signal: i32) {
    // SAFETY: the handler touches atomics, and makes system calls on memory of the benchmark's.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_signal::<P>;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(signal, &raw const action, null_mut());
    }
}

/// A way to protect, ready for use.
struct Arena {
    memory: Memory,
    protect: fn(usize, usize) -> bool,
}

fn arena(means: Means, pages: usize) -> Result<Arena, String> {
    let memory = Memory::touched(pages)?;
    match means {
        Means::Guest => {
            let inside = INSIDE.with(|inside| *inside).ok_or("this thread is not in guest mode")?;
            inside.populate(memory.range()).map_err(|error| error.to_string())?;
            // SAFETY: the handler touches atomics and entries, and flushes.
            unsafe { inside.handle_faults(on_fault) };
            Ok(Arena { memory, protect: Entries::protect })
        }
        Means::Userfaultfd => {
            let fd = Userfaultfd::new(&memory.range())?;
            USERFAULTFD.set(fd).map_err(|_| "one measurement a process")?;
            set_handler::<Registered>(libc::SIGBUS);
            Ok(Arena { memory, protect: Registered::protect })
        }
        _ => {
            set_handler::<Mprotect>(libc::SIGSEGV);
            Ok(Arena { memory, protect: Mprotect::protect })
        }
    }
}

impl Arena {
    fn protect(&self, page: usize, pages: usize) -> Result<(), String> {
        let done = (self.protect)(self.memory.page(page), pages);
        done.then_some(()).ok_or_else(|| "pages could not be protected".to_owned())
    }
}

/// Checks that each page was a fault, and turns what was measured into a result.
fn finish(ticks: Option<f64>, failed: Option<String>, pages: usize) -> Result<Timed, Error> {
    let handled = HANDLED.load(Ordering::Relaxed);
    let why = match (ticks, failed) {
        (_, Some(why)) => why,
        (Some(_), None) if handled != pages => {
            format!("{handled} faults were handled where {pages} pages were written to")
        }
        (Some(ticks), None) => return Ok(Timed { ticks, operations: (pages / PAGES) as u64 }),
        (None, None) => "nothing was measured".to_owned(),
    };
    Err(Error::Failed(why))
}

/// From the write to the handler's first instruction.
pub(crate) fn trap(means: Means) -> Result<Timed, Error> {
    let arena = arena(means, PAGES)?;
    let order = shuffled(PAGES);
    let mut failed = None;
    let mut written = 0;
    let ticks = samples(RUNS, || {
        if let Err(why) = arena.protect(0, PAGES) {
            failed = Some(why);
            return None;
        }
        let mut each: Vec<_> = order
            .iter()
            .map(|page| {
                let start = ticks();
                arena.memory.write(*page);
                ENTERED.load(Ordering::Relaxed).saturating_sub(start) as f64
            })
            .collect();
        written += PAGES;
        crate::clock::median(&mut each)
    });
    let timed = finish(ticks, failed, written)?;
    Ok(Timed { operations: written as u64, ..timed })
}

/// Appel and Li's TRAP, PROT1, UNPROT: ticks for all pages of a run.
pub(crate) fn appel1(means: Means) -> Result<Timed, Error> {
    let arena = arena(means, 2 * PAGES)?;
    let order = shuffled(PAGES);
    let set = |first: usize| -> Vec<_> { order.iter().map(|page| first + page).collect() };
    let (mut protected, mut others) = (set(0), set(PAGES));
    arena.protect(0, PAGES)?;
    let mut written = 0;
    let ticks = samples(RUNS, || {
        let mut addresses: Vec<_> = others.iter().map(|page| arena.memory.page(*page)).collect();
        NEXT.store(0, Ordering::Relaxed);
        OTHERS.store(addresses.as_mut_ptr(), Ordering::Relaxed);
        let start = ticks();
        protected.iter().for_each(|page| arena.memory.write(*page));
        let took = ticks() - start;
        OTHERS.store(null_mut(), Ordering::Relaxed);
        std::mem::swap(&mut protected, &mut others);
        written += PAGES;
        Some(took as f64)
    });
    finish(ticks, None, written)
}

/// Writing to a protected page, its handler included, which unprotects it: the mean over the pages of a run.
/// Protecting them is not timed.
///
/// # Errors
/// Those of [`measure`](crate::measure).
pub fn handled_write(means: Means) -> Result<Timed, Error> {
    protected_run(means, false).map(|timed| Timed { ticks: timed.ticks / PAGES as f64, ..timed })
}

/// Appel and Li's PROTN, TRAP, UNPROT: ticks for all pages of a run.
pub(crate) fn appel2(means: Means) -> Result<Timed, Error> {
    protected_run(means, true)
}

/// Protects all pages, timed or not, and then writes to each.
fn protected_run(means: Means, protecting_counts: bool) -> Result<Timed, Error> {
    let arena = arena(means, PAGES)?;
    let order = shuffled(PAGES);
    let mut failed = None;
    let mut written = 0;
    let ticks = samples(RUNS, || {
        let mut start = ticks();
        if let Err(why) = arena.protect(0, PAGES) {
            failed = Some(why);
            return None;
        }
        if !protecting_counts {
            start = ticks();
        }
        order.iter().for_each(|page| arena.memory.write(*page));
        written += PAGES;
        Some((ticks() - start) as f64)
    });
    finish(ticks, failed, written)
}
