//! The oracle: every source against what was truly written.
//!
//! Threads and system calls write stamps that never repeat into random pages while the collector
//! collects. Before each collection the collector reads every stamp. One that differs from what it
//! read after the page's last report is a write that happened before this collection and is in no
//! earlier report: the page *must* be in this one. Discards, resizes and forked children that
//! track on their own are in the mix.
//!
//! `BARCHAN_ORACLE_WRITES=100000000 BARCHAN_ORACLE_THREADS=4 cargo test --release -p barchan
//! --test oracle -- --nocapture` for the long run; by default it runs for some seconds a source
//! (`BARCHAN_ORACLE_SECONDS`), or for so many rounds however long they take (`BARCHAN_ORACLE_ROUNDS`, for an
//! emulator that waits for a processor itself). That the oracle can fail is a test too: trackers broken on purpose
//! have to be caught.
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod ground;
mod writers;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use barchan::{Region, Source, Tracker, bitmap};
use common::{alone, tracker};
use ground::{Ground, Miss, PAGES};
use writers::Random;

/// What a run has to do to prove anything, and how much longer than asked for it may take.
const ROUNDS_AT_LEAST: u64 = 30;
const WRITES_AT_LEAST: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(240);

/// How a run goes.
#[derive(Clone, Copy)]
struct Plan {
    threads: usize,
    end: End,
    /// The writers stand still while the collector collects.
    stopped: bool,
    sabotage: Sabotage,
}

#[derive(Clone, Copy)]
enum End {
    After(Duration),
    Writes(u64),
    Rounds(u64),
}

impl End {
    /// Rounds and writes below which a run that ends so proves nothing.
    fn at_least(self) -> (u64, u64) {
        match self {
            Self::Rounds(count) => (count, 100 * count),
            _ => (ROUNDS_AT_LEAST, WRITES_AT_LEAST),
        }
    }
}

/// What is wrong with the tracker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    Nothing,
    /// One page in one report in a hundred is left out.
    DropsOne,
    /// It reads, and then resets all pages, in two steps. (To reset only those that were read as
    /// dirty would be sound: what is written in between can be read after the report.)
    TwoSteps,
}

/// What a run did.
#[derive(Default, Debug)]
struct Tally {
    writes: u64,
    kernel_writes: u64,
    refused: u64,
    rounds: u64,
    reported: u64,
    clean: u64,
    discards: u64,
    resizes: u64,
    children: u64,
}

/// What the collector and the writers share.
struct Shared {
    ground: Ground,
    stop: AtomicBool,
    pause: AtomicBool,
    parked: AtomicUsize,
    writes: AtomicU64,
    kernel_writes: AtomicU64,
    refused: AtomicU64,
    discards: AtomicU64,
}

fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn default_plan() -> Plan {
    let seconds = env_number("BARCHAN_ORACLE_SECONDS").unwrap_or(6);
    Plan {
        threads: env_number("BARCHAN_ORACLE_THREADS").unwrap_or(4) as usize,
        end: (env_number("BARCHAN_ORACLE_WRITES").map(End::Writes))
            .or_else(|| env_number("BARCHAN_ORACLE_ROUNDS").map(End::Rounds))
            .unwrap_or(End::After(Duration::from_secs(seconds))),
        stopped: false,
        sabotage: Sabotage::Nothing,
    }
}

/// Runs `plan`; the first write that was not reported, if there is one.
fn run(tracker: &Tracker, plan: Plan) -> Result<Tally, Miss> {
    let shared = Shared {
        ground: Ground::new(plan.threads),
        stop: AtomicBool::new(false),
        pause: AtomicBool::new(false),
        parked: AtomicUsize::new(0),
        writes: AtomicU64::new(0),
        kernel_writes: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        discards: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            let shared = &shared;
            scope.spawn(move || writers::write(shared, tracker.source(), thread));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            collect_until_end(tracker, plan, &shared)
        }));
        shared.stop.store(true, Relaxed);
        shared.pause.store(false, Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn collect_until_end(tracker: &Tracker, plan: Plan, shared: &Shared) -> Result<Tally, Miss> {
    let ground = &shared.ground;
    let mut region = ground.memory.track(tracker);
    let mut seen = ground.unseen();
    let mut tally = Tally::default();
    let mut random = Random::new(99);
    let began = Instant::now();
    let (rounds_at_least, writes_at_least) = plan.end.at_least();
    let done = |rounds| {
        let writes = shared.writes.load(Relaxed);
        let enough = rounds >= rounds_at_least && writes >= writes_at_least;
        match plan.end {
            // At least enough to prove something, on a slow machine too.
            End::After(time) => {
                began.elapsed() >= time && (enough || began.elapsed() >= time + PATIENCE)
            }
            End::Writes(count) => writes >= count,
            End::Rounds(_) => enough,
        }
    };
    while !done(tally.rounds) {
        tally.rounds += 1;
        let writes = shared.writes.load(Relaxed);
        pause(shared, plan);
        let first = ground.first_page(&region);
        let before = ground.read_stamps();
        let mut bits = vec![0; bitmap::words_for(PAGES)];
        collect(&region, plan, &mut bits);
        sabotage(plan, tally.rounds, &mut bits, region.range().pages());
        for page in 0..region.range().pages() {
            if bitmap::get(&bits, page) {
                tally.reported += 1;
                ground.see(&mut seen, first + page);
            } else {
                tally.clean += 1;
                ground.check(&before, &seen, first + page, tally.rounds, tracker.source())?;
            }
        }
        shared.pause.store(false, Relaxed);
        while plan.stopped && shared.writes.load(Relaxed) == writes {
            std::thread::yield_now();
        }
        if random.one_in(40) {
            tally.resizes += 1;
            pause(shared, plan);
            resize(&mut region, ground, &mut random);
            shared.pause.store(false, Relaxed);
        }
        if random.one_in(50) {
            shared.discards.fetch_add(1, Relaxed);
            pause(shared, plan);
            discard(&region, ground, &mut random);
            shared.pause.store(false, Relaxed);
        }
        if random.one_in(60) {
            tally.children += 1;
            let raw = random.one_in(2);
            let status = common::child_status(raw, || child(&region, ground));
            assert_eq!(status, 0, "{}: a child of the oracle (raw: {raw})", tracker.source());
        }
    }
    tally.writes = shared.writes.load(Relaxed);
    tally.kernel_writes = shared.kernel_writes.load(Relaxed);
    tally.refused = shared.refused.load(Relaxed);
    tally.discards = shared.discards.load(Relaxed);
    Ok(tally)
}

/// Has every writer stand still, if the plan says so.
fn pause(shared: &Shared, plan: Plan) {
    if plan.stopped {
        shared.pause.store(true, Relaxed);
        while shared.parked.load(std::sync::atomic::Ordering::Acquire) < plan.threads {
            std::thread::yield_now();
        }
    }
}

fn collect(region: &Region, plan: Plan, bits: &mut [u64]) {
    let range = region.range();
    match plan {
        Plan { sabotage: Sabotage::TwoSteps, .. } => {
            region.peek(range, bits).expect("peeking");
            region.arm(range).expect("arming");
        }
        Plan { stopped: true, .. } => {
            // SAFETY: the writers stand still, and the bits are on the heap.
            unsafe { region.collect_and_reset_stopped(range, bits) }.expect("collecting");
        }
        // Out of mappings (mprotect) is an answer: everything is dirty, and in the bits.
        _ => match region.collect_and_reset(range, bits) {
            Ok(_) => {}
            Err(why) => assert_eq!(why.kind(), barchan::ErrorKind::Exhausted, "{why}"),
        },
    }
}

fn sabotage(plan: Plan, round: u64, bits: &mut [u64], pages: usize) {
    if plan.sabotage == Sabotage::DropsOne && round % 100 == 0 {
        if let Some((first, _)) = bitmap::runs(bits, pages).last() {
            bitmap::clear_run(bits, first, 1);
        }
    }
}

fn resize(region: &mut Region, ground: &Ground, random: &mut Random) {
    let first = random.below(PAGES / 4);
    let count = PAGES / 2 + random.below(PAGES / 4);
    // SAFETY: the pages are the ground's.
    unsafe { region.resize(ground.memory.range().slice(first, count)) }.expect("resizing");
}

/// Drops some contents, and says so.
fn discard(region: &Region, ground: &Ground, random: &mut Random) {
    let first = random.below(PAGES - 64);
    ground.memory.advise(first, 1 + random.below(63), libc::MADV_DONTNEED).expect("MADV_DONTNEED");
    let told = ground.memory.range().slice(first, 64).intersection(&region.range());
    if !told.is_empty() {
        region.remapped(told).expect("remapped");
    }
}

/// A child that tracks on its own, alone and without the heap.
fn child(region: &Region, ground: &Ground) -> bool {
    let range = region.range();
    let first = ground.first_page(region);
    let mut random = Random::new(7);
    let mut bits = [0u64; bitmap::words_for(PAGES)];
    if region.peek(range, &mut bits).is_err()
        || bitmap::count(&bits, range.pages()) != range.pages()
    {
        return complain("a page is called clean in a new child\n");
    }
    for round in 0..20 {
        // SAFETY: the child has one thread.
        if unsafe { region.collect_and_reset_stopped(range, &mut bits) }.is_err() {
            return complain("collecting in a child fails\n");
        }
        let mut written = [0usize; 30];
        for page in &mut written {
            *page = random.below(range.pages());
            ground.stamp(first + *page, 0, u64::MAX - round);
        }
        bits.fill(0);
        // SAFETY: as above.
        if unsafe { region.collect_and_reset_stopped(range, &mut bits) }.is_err() {
            return complain("collecting again in a child fails\n");
        }
        if !written.iter().all(|&page| bitmap::get(&bits, page)) {
            return complain("MISSED A WRITE in a child\n");
        }
    }
    true
}

/// Says what is wrong, without the heap and without the locks of `stderr`.
fn complain(what: &str) -> bool {
    // SAFETY: a live buffer.
    unsafe { libc::write(2, what.as_ptr().cast(), what.len()) };
    false
}

/// A full run of one source.
fn passes(source: Source) {
    let _alone = alone();
    let Some(tracker) = tracker(source) else { return };
    let stopped = source == Source::SoftDirty;
    for stopped in if stopped { vec![true] } else { vec![false, true] } {
        let mut plan = Plan { stopped, ..default_plan() };
        if stopped && source != Source::SoftDirty {
            plan.end = match plan.end {
                End::Rounds(count) => End::Rounds(count / 2),
                _ => End::After(Duration::from_secs(1)),
            };
        }
        match run(&tracker, plan) {
            Ok(tally) => {
                println!("oracle: {source}, stopped: {stopped}, 0 missed, {tally:?}");
                let (rounds, writes) = plan.end.at_least();
                let enough = tally.rounds >= rounds && tally.writes >= writes;
                assert!(enough, "{source} proves nothing: {tally:?}");
                if source != Source::AllDirty {
                    assert!(tally.clean > 1000, "{source} proves nothing: {tally:?}");
                }
            }
            Err(miss) => panic!("{miss}"),
        }
    }
}

#[test]
fn guest_pte() {
    passes(Source::GuestPte);
}

#[test]
fn guest_pml() {
    passes(Source::GuestPml);
}

#[test]
fn guest_tlb() {
    passes(Source::GuestTlb);
}

#[test]
fn guest_direct() {
    passes(Source::GuestDirect);
}

#[test]
fn pagemap_scan() {
    passes(Source::PagemapScan);
}

#[test]
fn userfaultfd() {
    passes(Source::Userfaultfd);
}

#[test]
fn soft_dirty() {
    passes(Source::SoftDirty);
}

#[test]
fn mprotect() {
    passes(Source::Mprotect);
}

#[test]
fn all_dirty() {
    passes(Source::AllDirty);
}

#[test]
fn a_tracker_that_drops_one_page_is_caught() {
    let _alone = alone();
    for source in Source::ALL.into_iter().filter(|source| *source != Source::AllDirty) {
        if common::is_in_guest_mode() && source != Source::GuestPte {
            continue; // Its rounds are many system calls, and too few in the time there is.
        }
        let Some(tracker) = tracker(source) else { continue };
        let plan = Plan {
            sabotage: Sabotage::DropsOne,
            stopped: source == Source::SoftDirty,
            end: End::After(Duration::from_secs(60)),
            ..default_plan()
        };
        let miss = run(&tracker, plan).expect_err("a dropped report must be caught");
        println!("caught: {miss}");
        // A write that raced with the round is due in the next one.
        assert!(miss.round >= 100 && miss.round % 100 <= 1, "in the very round: {miss}");
    }
}

#[test]
fn a_tracker_that_reads_and_resets_in_two_steps_is_caught() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::PagemapScan) else { return };
    let plan = Plan {
        sabotage: Sabotage::TwoSteps,
        end: End::After(Duration::from_secs(60)),
        ..default_plan()
    };
    let miss = run(&tracker, plan).expect_err("a lost write must be caught");
    println!("caught: {miss}");
}

#[test]
fn all_of_this_in_guest_mode() {
    common::again_in_guest_mode();
}
