//! Memory, mostly of 4 KiB pages, and what the first touch of one costs.

use std::ops::Range;
use std::ptr::null_mut;

use dune::PAGE_SIZE;

use crate::Timed;
use crate::clock::{samples, ticks};

/// Pages that one sample touches.
const TOUCHED: usize = 512;
/// Samples of the first touch.
const TOUCH_SAMPLES: usize = 15;

/// Private anonymous memory; given back when it is dropped.
#[derive(Debug)]
pub struct Memory {
    start: usize,
    pages: usize,
}

impl Memory {
    /// Maps `pages` pages, without huge pages.
    ///
    /// # Errors
    /// One sentence, if the kernel has no memory.
    pub fn map(pages: usize) -> Result<Self, String> {
        let memory = Self::map_plain(pages)?;
        // A kernel without huge pages refuses: then there are none.
        // SAFETY: advice on the mapping just made.
        unsafe {
            libc::madvise(memory.start as *mut _, pages * PAGE_SIZE, libc::MADV_NOHUGEPAGE);
        }
        Ok(memory)
    }

    /// As [`map`](Self::map); huge pages are as the system gives them.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_plain(pages: usize) -> Result<Self, String> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let len = pages * PAGE_SIZE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), len, rights, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("mapping {len} bytes: {}", std::io::Error::last_os_error()));
        }
        Ok(Self { start: start as usize, pages })
    }

    /// Maps `pages` pages, without huge pages, and writes to each.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn touched(pages: usize) -> Result<Self, String> {
        let memory = Self::map(pages)?;
        (0..pages).for_each(|page| memory.write(page));
        Ok(memory)
    }

    /// Address of a page.
    #[must_use]
    pub fn page(&self, page: usize) -> usize {
        assert!(page < self.pages, "a page of the mapping");
        self.start + page * PAGE_SIZE
    }

    /// All of it.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.pages * PAGE_SIZE
    }

    /// Writes to a page.
    #[inline]
    pub fn write(&self, page: usize) {
        let address = self.page(page);
        // SAFETY: a byte of the mapping, which nobody has a reference to.
        unsafe { (address as *mut u8).write_volatile(1) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `map`, and borrowed from by nobody.
        unsafe { libc::munmap(self.start as *mut _, self.pages * PAGE_SIZE) };
    }
}

/// Numbers below `count` in an order that is always the same and that no prefetcher foresees.
#[must_use]
pub fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    let mut random = 88_172_645_463_325_252_u64;
    for index in (1..count).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(index, (random % (index as u64 + 1)) as usize);
    }
    order
}

/// The first touch of a page: the mean over the pages of a fresh mapping, and the median of some mappings.
pub(crate) fn first_touch() -> Result<Timed, String> {
    let mut operations = 0;
    let mut failed = None;
    let ticks = samples(TOUCH_SAMPLES, || {
        let memory = match Memory::map(TOUCHED) {
            Ok(memory) => memory,
            Err(why) => {
                failed = Some(why);
                return None;
            }
        };
        let start = ticks();
        (0..TOUCHED).for_each(|page| memory.write(page));
        let took = ticks() - start;
        operations += TOUCHED as u64;
        Some(took as f64 / TOUCHED as f64)
    });
    match (ticks, failed) {
        (Some(ticks), None) => Ok(Timed { ticks, operations }),
        (_, why) => Err(why.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_each_number_once_and_is_no_sequence() {
        let order = shuffled(100);
        assert_eq!(order, shuffled(100));
        let neighbours = order.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        assert!(neighbours < 10, "{order:?}");
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }

    #[test]
    fn the_first_touch_costs_a_fault() {
        let timed = first_touch().expect("memory");
        assert!(timed.ticks > 100.0, "{timed:?}");
    }
}
