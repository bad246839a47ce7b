//! New memory that is written to from its beginning on: how many pages to make ahead of the program.
//!
//! Where page tables are shadowed, the first touch of a page is an event of the host's, and a cheap one only if the
//! page exists already (`Space::make_pages`). Making all pages of a big mapping at once would make those that the
//! program never wants. So it gets entries for a few pages at first, and none made. Where the next one faults, what was
//! written before tells whether the program goes on page by page; then as many pages again are made, up to those of one
//! table.
//!
//! What has gone on for the pages of one table gets the next tables as large pages: one event of the host's for 512.
//!
//! Each chunk leaves its last pages to the program: that they are there when the page behind them faults is what
//! shows that the program wrote to them. Of a large page nothing can be left: there it is what its last page holds, new
//! pages being zero; who writes zeros begins again. So a program that touches a page here and there, or every second one, gets
//! none made; and what one that stops in the middle has too much is not more than it has written, and not more
//! than [`MOST`] pages a stream. Nothing is remembered but where each of a few streams goes on; pure, and without a lock.

use core::ops::Range;

use crate::paging::{PAGE, TABLE_SPAN};

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
    /// Whether the last chunk was a large page.
    large: bool,
}

const NO_STREAM: Stream = Stream { next: 0, pages: 0, large: false };

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
    /// Whether it is a large page, all of which is made.
    pub(super) large: bool,
}

/// What shows that the program wrote to the pages before one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// All of these pages are there.
    There(Range<u64>),
    /// This page is not zero.
    NotZero(u64),
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
        self.streams[self.turn] = Stream { next, pages: FIRST, large: false };
        Some(page..next)
    }

    /// `page`, of a mapping that ends at `end`, is written to and has no entry: the next chunk, if a stream goes on
    /// there. `holds` tells whether there is such a sign; `may_be_large`, whether the page and those that it would be one
    /// large page with may be one.
    pub(super) fn advance(
        &mut self,
        page: u64,
        end: u64,
        holds: impl FnOnce(Sign) -> bool,
        may_be_large: impl FnOnce(u64) -> bool,
    ) -> Option<Chunk> {
        let stream = self.streams.iter_mut().find(|stream| stream.next == page)?;
        let sign = if stream.large {
            Sign::NotZero(page - PAGE)
        } else {
            let seen = if stream.pages == FIRST { FIRST } else { LEFT };
            Sign::There(page - seen * PAGE..page)
        };
        if !holds(sign) {
            *stream = NO_STREAM;
            return None;
        }
        let mut next = end.min(page + stream.pages * PAGE);
        let mut large = false;
        if stream.pages == MOST {
            // To where a large page may begin.
            next = next.min((page & !(TABLE_SPAN - 1)) + TABLE_SPAN);
            large = next - page == TABLE_SPAN && may_be_large(page);
        }
        *stream = Stream { next, pages: (2 * stream.pages).min(MOST), large };
        // At least the page that is being written to.
        let left = if large { 0 } else { LEFT };
        let made = next.saturating_sub(left * PAGE).max(page + PAGE);
        Some(Chunk { entries: page..next, made: page..made, large })
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
        /// Pages that something else than zeros was written to.
        not_zero: BTreeSet<u64>,
        large: u64,
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
                not_zero: BTreeSet::new(),
                large: 0,
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

        fn write(&mut self, page: u64) {
            self.write_zeros(page);
            self.not_zero.insert(START + page * PAGE);
        }

        /// As `Space::fault` does.
        fn write_zeros(&mut self, page: u64) {
            let (address, end) = (START + page * PAGE, START + self.pages * PAGE);
            if !self.entries.contains(&address) {
                self.faults += 1;
                let holds = |sign| match sign {
                    Sign::There(range) => {
                        range.step_by(PAGE as usize).all(|p| self.resident.contains(&p))
                    }
                    Sign::NotZero(page) => self.not_zero.contains(&page),
                };
                let block = |page: u64| page..page + TABLE_SPAN;
                let may_be_large = |page| self.entries.range(block(page)).next().is_none();
                let table = address & !(MOST * PAGE - 1);
                let table = table.max(START)..end.min(table + MOST * PAGE);
                if let Some(chunk) = self.streams.advance(address, end, holds, may_be_large) {
                    assert!(chunk.made.contains(&address), "the page itself is made");
                    if chunk.large {
                        assert_eq!(chunk.entries, block(address), "whole, and where it may be");
                        assert!(address % TABLE_SPAN == 0);
                        assert_eq!(chunk.made, chunk.entries);
                        self.large += 1;
                    }
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
            assert_eq!(mapping.large, (pages / MOST).saturating_sub(1));
        }
    }

    #[test]
    fn large_pages_begin_where_they_may_and_end_where_nothing_was_written() {
        // Not from the beginning of a table on.
        let mut mapping = Mapping::new(10_000);
        (300..6000).for_each(|page| mapping.write(page));
        assert_eq!(mapping.large, (6000 - 1024) / MOST + 1);
        // A page in each large page, from the one on that the sequence ends at.
        let (large, made) = (mapping.large, mapping.resident.len());
        (6144..10_000).step_by(MOST as usize).for_each(|page| mapping.write(page));
        assert!(mapping.large == large, "{} more", mapping.large - large);
        assert!(mapping.resident.len() <= made + 10, "{} pages", mapping.resident.len() - made);
    }

    #[test]
    fn zeros_are_no_sign_that_a_large_page_was_written() {
        let mut mapping = Mapping::new(20_000);
        (0..20_000).for_each(|page| mapping.write_zeros(page));
        assert!((10..25).contains(&mapping.large), "{} large pages", mapping.large);
        assert!(mapping.faults < 150, "{} faults", mapping.faults);
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
            assert_eq!(streams.advance(next, end, |_| true, |_| true), None, "{range:x?}");
        }
        let mut streams = Streams::NONE;
        assert_eq!(streams.begin(next, next + (FIRST - 1) * PAGE), None);
        assert!(streams.begin(START, next).is_some());
        streams.forget(&(end..end + PAGE));
        assert!(streams.advance(next, end, |_| true, |_| true).is_some());
    }
}
