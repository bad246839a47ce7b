//! New memory that is written to from its beginning on: how many pages to make ahead of the program.
//!
//! Where page tables are shadowed, the first touch of a page is an event of the host's, and a cheap one only if the
//! page exists already (`Space::make_pages`). Making all pages of a big mapping at once would make those that the
//! program never wants. So it gets entries for a few pages at first, and none made. Where the next one faults, what was
//! written before tells whether the program goes on page by page; then as many pages again are made, up to those of one
//! table.
//!
//! Each chunk leaves its last pages to the program: that they are there when the page behind them faults is what
//! shows that the program wrote to them. So a program that touches a page here and there, or every second one, gets
//! none made; and what one that stops in the middle has too much is not more than it has written, and not more
//! than [`MOST`] pages a stream. Nothing is remembered but where each of a few streams goes on; pure, and without a lock.

use core::ops::Range;

use crate::paging::PAGE;

/// Pages that get entries first. All of them must have been written to before any is made.
pub(super) const FIRST: u64 = 16;
/// Pages of the longest chunk.
pub(super) const MOST: u64 = 512;
/// Pages at the end of a chunk that are left to the program.
const LEFT: u64 = 2;
/// Streams that are known at a time.
const STREAMS: usize = 8;

#[derive(Clone, Copy)]
struct Stream {
    /// The first page without an entry; 0: no stream.
    next: u64,
    /// Pages of it so far; [`MOST`] for more.
    pages: u64,
}

const NO_STREAM: Stream = Stream { next: 0, pages: 0 };

/// The streams of a process.
pub(super) struct Streams {
    streams: [Stream; STREAMS],
    turn: usize,
}

/// A chunk of memory that the program is about to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// What gets entries.
    pub(super) entries: Range<u64>,
    /// What is made: the chunk but for its last pages.
    pub(super) made: Range<u64>,
}

impl Streams {
    pub(super) const NONE: Self = Self { streams: [NO_STREAM; STREAMS], turn: 0 };

    /// New memory from `page` to `end` may be the beginning of a stream: what gets entries. The oldest stream is
    /// forgotten for it. `None` if it is too little: the top of a stack, say, which goes the other way.
    pub(super) fn begin(&mut self, page: u64, end: u64) -> Option<Range<u64>> {
        let next = page + FIRST * PAGE;
        if next > end {
            return None;
        }
        self.turn = (self.turn + 1) % STREAMS;
        self.streams[self.turn] = Stream { next, pages: FIRST };
        Some(page..next)
    }

    /// `page`, of a mapping that ends at `end`, is written to and has no entry: the next chunk, if a stream goes on
    /// there. `resident` tells whether all pages of a range are there.
    pub(super) fn advance(
        &mut self,
        page: u64,
        end: u64,
        resident: impl FnOnce(Range<u64>) -> bool,
    ) -> Option<Chunk> {
        let stream = self.streams.iter_mut().find(|stream| stream.next == page)?;
        let seen = if stream.pages == FIRST { FIRST } else { LEFT };
        if !resident(page - seen * PAGE..page) {
            *stream = NO_STREAM;
            return None;
        }
        let next = end.min(page + stream.pages * PAGE);
        *stream = Stream { next, pages: (2 * stream.pages).min(MOST) };
        // At least the page that is being written to.
        let made = next.saturating_sub(LEFT * PAGE).max(page + PAGE);
        Some(Chunk { entries: page..next, made: page..made })
    }

    /// The program loses the memory of `range`, or rights to it: what goes on there is another stream.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        for stream in &mut self.streams {
            // What ends where the range begins goes on in it.
            if range.contains(&stream.next) || range.end == stream.next {
                *stream = NO_STREAM;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const START: u64 = 0x7000_0000_0000;

    /// A mapping of `pages` pages, and what the host and the tables have of it.
    struct Mapping {
        streams: Streams,
        pages: u64,
        entries: BTreeSet<u64>,
        resident: BTreeSet<u64>,
        touched: BTreeSet<u64>,
        faults: u64,
    }

    impl Mapping {
        fn new(pages: u64) -> Self {
            let mut new = Self {
                streams: Streams::NONE,
                pages,
                entries: BTreeSet::new(),
                resident: BTreeSet::new(),
                touched: BTreeSet::new(),
                faults: 0,
            };
            let all = START..START + pages * PAGE;
            let first = new.streams.begin(all.start, all.end).unwrap_or(all);
            new.fill(first);
            new
        }

        fn fill(&mut self, range: Range<u64>) {
            self.entries.extend((range.start..range.end).step_by(PAGE as usize));
        }

        /// As `Space::fault` does.
        fn write(&mut self, page: u64) {
            let (address, end) = (START + page * PAGE, START + self.pages * PAGE);
            if !self.entries.contains(&address) {
                self.faults += 1;
                let there = |range: Range<u64>| {
                    range.clone().step_by(PAGE as usize).all(|p| self.resident.contains(&p))
                };
                let table = address & !(MOST * PAGE - 1);
                let table = table.max(START)..end.min(table + MOST * PAGE);
                if let Some(chunk) = self.streams.advance(address, end, there) {
                    assert!(chunk.made.contains(&address), "the page itself is made");
                    self.resident.extend(chunk.made.step_by(PAGE as usize));
                    self.fill(chunk.entries);
                } else if self.resident.range(table.clone()).next().is_some() {
                    self.fill(table);
                } else {
                    let first = self.streams.begin(address, end).unwrap_or(table);
                    self.fill(first);
                }
            }
            assert!(self.entries.contains(&address), "it faults no more");
            self.resident.insert(address);
            self.touched.insert(address);
            let (resident, touched) = (self.resident.len() as u64, self.touched.len() as u64);
            assert!(resident <= 2 * touched, "{resident} pages for {touched}");
            let most = touched + MOST * STREAMS as u64;
            assert!(resident <= most, "{resident} pages for {touched}");
        }
    }

    #[test]
    fn a_sequence_faults_once_a_chunk_and_has_its_pages_made() {
        for pages in [1, 15, 16, 17, 18, 31, 32, 33, 34, 511, 512, 10_000] {
            let mut mapping = Mapping::new(pages);
            (0..pages).for_each(|page| mapping.write(page));
            // 16 pages without a fault, and chunks of 16, 32, 64, 128, 256 come to 512.
            let chunks = 5 + pages.saturating_sub(MOST).div_ceil(MOST);
            assert!(mapping.faults <= chunks, "{} faults for {pages} pages", mapping.faults);
            assert_eq!(mapping.resident.len() as u64, pages);
        }
    }

    #[test]
    fn what_is_no_sequence_gets_no_page_made() {
        let mut mapping = Mapping::new(100_000);
        for stride in [2, 3, 7, 16, 17, 512, 513] {
            (0..1000).for_each(|i| mapping.write(i * stride % 100_000));
        }
        (0..5000).for_each(|i| mapping.write(i * 48_271 % 99_991));
        assert_eq!(mapping.resident, mapping.touched);
        let mut mapping = Mapping::new(10_000);
        (0..10_000).rev().for_each(|page| mapping.write(page));
        assert!(mapping.faults <= 2 * 10_000 / MOST + 2, "{} faults", mapping.faults);
        assert_eq!(mapping.resident.len(), 10_000);
    }

    #[test]
    fn a_sequence_with_gaps_ends() {
        let mut mapping = Mapping::new(10_000);
        // The first pages but one that is left to the program.
        (0..31).chain(32..60).for_each(|page| mapping.write(page));
        let made = mapping.resident.len();
        (60..400).step_by(2).for_each(|page| mapping.write(page));
        assert_eq!(mapping.resident.len(), made + 170);
    }

    #[test]
    fn several_sequences_side_by_side_are_all_seen() {
        let mut mapping = Mapping::new(40_000);
        for page in 0..4000 {
            (0..STREAMS as u64).for_each(|stream| mapping.write(stream * 5000 + page));
        }
        assert!(mapping.faults < STREAMS as u64 * 15, "{} faults", mapping.faults);
    }

    #[test]
    fn a_stream_does_not_outlive_its_memory() {
        let end = START + 1000 * PAGE;
        let next = START + FIRST * PAGE;
        for range in [START..end, START..next, next..end, 0..u64::MAX] {
            let mut streams = Streams::NONE;
            assert_eq!(streams.begin(START, end), Some(START..next));
            streams.forget(&range);
            assert_eq!(streams.advance(next, end, |_| true), None, "{range:x?}");
        }
        let mut streams = Streams::NONE;
        assert_eq!(streams.begin(next, next + (FIRST - 1) * PAGE), None);
        assert!(streams.begin(START, next).is_some());
        streams.forget(&(end..end + PAGE));
        assert!(streams.advance(next, end, |_| true).is_some());
    }
}
