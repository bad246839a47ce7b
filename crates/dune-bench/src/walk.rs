//! What a walk of the page tables costs: reads that miss the TLB less reads that hit it.
//!
//! A chain of pointers is followed twice in the same random order: once with a link on each of 8,192
//! pages, more than any second-level TLB holds (1,536 to 4,096 entries), and once with the links packed into
//! 256 pages. Both chains have as many cache lines, so what differs is the translation: the walk, with the
//! cache misses of the page tables themselves.

use dune::PAGE_SIZE;
use dune::inside::Inside;

use crate::Timed;
use crate::clock::{samples, ticks};
use crate::memory::{Memory, shuffled};

/// Links in a chain.
const LINKS: usize = 8192;
/// Bytes between packed links: two cache lines, which some prefetchers fetch together.
const STRIDE: usize = 128;
/// Laps that are timed.
const LAPS: usize = 21;

/// A chain of pointers.
struct Chain {
    /// Keeps the memory.
    _memory: Memory,
    first: usize,
}

impl Chain {
    /// A chain in the order of `order` with link `n` at `place(n)` bytes from the start.
    fn new(order: &[usize], pages: usize, place: impl Fn(usize) -> usize) -> Result<Self, String> {
        let memory = Memory::touched(pages)?;
        if let Some(inside) = Inside::current() {
            inside.populate(memory.range()).map_err(|error| error.to_string())?;
        }
        let range = memory.range();
        let at = |n: usize| {
            let address = range.start + place(order[n % order.len()]);
            assert!(address + size_of::<usize>() <= range.end, "a link in the mapping");
            address
        };
        for n in 0..order.len() {
            // SAFETY: in the mapping, as asserted, and aligned, as places are multiples of 128.
            unsafe { (at(n) as *mut usize).write(at(n + 1)) };
        }
        Ok(Self { first: at(0), _memory: memory })
    }

    /// Follows all links once; ticks for each.
    fn lap(&self) -> f64 {
        let start = ticks();
        let mut at = self.first;
        for _ in 0..LINKS {
            // SAFETY: each link holds the address of the next.
            at = unsafe { (at as *const usize).read_volatile() };
        }
        let took = ticks() - start;
        assert_eq!(at, self.first, "a chain is a ring");
        took as f64 / LINKS as f64
    }
}

/// The cost of a walk.
pub(crate) fn cost() -> Result<Timed, String> {
    let order = shuffled(LINKS);
    let lines = PAGE_SIZE / STRIDE;
    let sparse = Chain::new(&order, LINKS, |n| n * PAGE_SIZE + n % lines * STRIDE)?;
    let packed = Chain::new(&order, LINKS * STRIDE / PAGE_SIZE, |n| n * STRIDE)?;
    let mut laps = 0;
    // Alternating, so that a slow moment of the machine hits both.
    let difference = samples(LAPS, || {
        laps += 1;
        packed.lap(); // its lines and translations are as recent as the other's
        let hits = packed.lap();
        sparse.lap();
        Some(sparse.lap() - hits)
    });
    Ok(Timed { ticks: difference.unwrap_or(0.0), operations: laps * LINKS as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_costs_more_than_a_hit() {
        let timed = cost().expect("memory");
        assert!(timed.ticks > 0.0 && timed.ticks < 1e5, "{timed:?}");
    }
}
