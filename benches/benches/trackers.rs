//! What each source of dirty bits costs: arming, the first write to a clean page, a collection
//! of 1 GiB that is clean, 1 % and 50 % dirty, and what sparing hot pages saves.
//!
//! `cargo bench -p barchan-benches`; a part of it by a regular expression, as in
//! `cargo bench -p barchan-benches -- pagemap-scan`. `BARCHAN_BENCH_BYTES` overrides the 1 GiB.
//! Only the operation is timed: what has to be rebuilt before it can be repeated is not.
//! The dirty pages lie alone (1 %) or alternate with clean ones (50 %): the worst order for every
//! source, and for mprotect more than the kernel allows mappings for.
#![allow(missing_docs)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use barchan::{HotPagePolicy, HotPages, PAGE_SIZE, PageRange, RegionError, Tracker};
use barchan_benches::{
    BYTES_ENV, DEFAULT_BYTES, Memory, TRIAL_BYTES, Tracked, bytes_to_track, scattered, trackers,
};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Pages written between two armings when faults are timed: few enough that mprotect keeps within
/// its mappings, many enough that reading the clock does not count.
const FAULTS_PER_BATCH: u32 = 4096;

/// A small heap, 64 MiB.
const SMALL_PAGES: usize = (64 << 20) / PAGE_SIZE;

fn main() {
    if let Err(why) = run() {
        eprintln!("error: {why}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // As criterion decides it: whoever is not started by `cargo bench` runs everything once.
    let args: Vec<String> = std::env::args().collect();
    let trial = !args.iter().any(|arg| arg == "--bench") || args.iter().any(|arg| arg == "--test");
    let default = if trial { TRIAL_BYTES } else { DEFAULT_BYTES };
    let bytes = bytes_to_track(std::env::var(BYTES_ENV).ok().as_deref(), default)?;

    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let memory = Memory::resident(bytes)?;
    let size = mebibytes(memory.range());
    for tracker in trackers() {
        let mut group = criterion.benchmark_group(tracker.source().name());
        group.sampling_mode(SamplingMode::Flat);
        arming(&mut group, &size, &memory, &tracker)?;
        write_faults(&mut group, &memory, &tracker)?;
        collections(&mut group, &size, &memory, &tracker)?;
        hot_pages(&mut group, &memory, &tracker)?;
        group.finish();
        let stats = tracker.stats();
        if stats.degraded > 0 {
            println!(
                "{}: {} times it called pages dirty for want of knowledge (out of mappings: see \
                 vm.max_map_count), so its figures for many dirty runs are of less work",
                tracker.source(),
                stats.degraded
            );
        }
    }
    criterion.final_summary();
    Ok(())
}

/// A benchmark that cannot go on has nothing to report.
#[track_caller]
fn done<T>(result: Result<T, RegionError>) -> T {
    result.unwrap_or_else(|why| panic!("the tracker failed during a benchmark: {why}"))
}

/// Arming everything at once, from unarmed.
fn arming(
    group: &mut Group<'_>,
    size: &str,
    memory: &Memory,
    tracker: &Tracker,
) -> Result<(), RegionError> {
    let tracked = memory.track(tracker)?;
    let range = memory.range();
    group.bench_function(BenchmarkId::new("arm", size), |b| {
        b.iter_custom(|iters| {
            timed(iters, || done(tracked.region.disarm(range)), || done(tracked.region.arm(range)))
        });
    });
    Ok(())
}

/// The first write to a clean page, when the writes are scattered over all the memory and when
/// they are over 64 MiB of it, where page tables are in the cache; all-dirty shows what the write
/// costs alone.
fn write_faults(
    group: &mut Group<'_>,
    memory: &Memory,
    tracker: &Tracker,
) -> Result<(), RegionError> {
    let tracked = memory.track(tracker)?;
    group.throughput(Throughput::Elements(1));
    for pages in sizes(memory.range().pages()) {
        let part = memory.range().slice(0, pages);
        let order = scattered(pages, FAULTS_PER_BATCH as usize);
        group.bench_function(BenchmarkId::new("write-fault", mebibytes(part)), |b| {
            // Always the whole batch, or the preparation, which is long, would let criterion choose
            // to measure one fault of a program that has just slept.
            b.iter_custom(|iters| {
                let batches = timed(
                    iters,
                    || {
                        // Disarmed first: one mapping again, whatever the last batch made of it.
                        done(tracked.region.disarm(part));
                        done(tracked.region.arm(part));
                    },
                    || memory.write(order.iter().copied()),
                );
                batches / FAULTS_PER_BATCH
            });
        });
    }
    Ok(())
}

/// All the memory, and the small part of it if that is less.
fn sizes(pages: usize) -> impl Iterator<Item = usize> {
    [SMALL_PAGES].into_iter().filter(move |&small| small < pages).chain([pages])
}

fn mebibytes(range: PageRange) -> String {
    format!("{} MiB", range.len_bytes() >> 20)
}

/// Collecting all the memory when some of it is dirty.
fn collections(
    group: &mut Group<'_>,
    size: &str,
    memory: &Memory,
    tracker: &Tracker,
) -> Result<(), RegionError> {
    let pages = memory.range().pages();
    group.throughput(Throughput::Elements(pages as u64));
    for (name, dirty) in [("clean", 0), ("1%-dirty", pages / 100), ("50%-dirty", pages / 2)] {
        let mut tracked = memory.track(tracker)?;
        tracked.collect()?;
        let written = if dirty == 0 { Vec::new() } else { scattered(pages, dirty) };
        group.bench_function(BenchmarkId::new(format!("collect-{name}"), size), |b| {
            b.iter_custom(|iters| {
                let mut total = Duration::ZERO;
                for _ in 0..iters {
                    memory.write(written.iter().copied());
                    let began = Instant::now();
                    black_box(done(tracked.collect()));
                    total += began.elapsed();
                }
                total
            });
        });
    }
    Ok(())
}

/// What sparing hot pages saves when they lie together, and when they lie scattered, which cuts
/// what remains to be asked about into many pieces.
fn hot_pages(group: &mut Group<'_>, memory: &Memory, tracker: &Tracker) -> Result<(), RegionError> {
    // The policy's effect is a ratio, which a small heap shows as well.
    let pages = memory.range().pages().min(SMALL_PAGES);
    let mixed = scattered(pages, pages);
    let (hot, cold) = mixed.split_at(pages / 20);
    skewed(group, memory, tracker, "scattered", hot, cold)?;
    let cold: Vec<usize> = mixed.iter().copied().filter(|&page| page >= pages / 20).collect();
    let hot: Vec<usize> = (0..pages / 20).collect();
    skewed(group, memory, tracker, "together", &hot, &cold)
}

/// A skewed program: each cycle writes all pages of `hot` and some of `cold`, not the same as
/// lately, then collects. Timed are the writes, which fault, and the collection; printed is how
/// many pages a collection reported.
fn skewed(
    group: &mut Group<'_>,
    memory: &Memory,
    tracker: &Tracker,
    layout: &str,
    hot: &[usize],
    cold: &[usize],
) -> Result<(), RegionError> {
    let pages = hot.len() + cold.len();
    let part = memory.range().slice(0, pages);
    let cold_a_cycle = pages / 100;
    group.throughput(Throughput::Elements((hot.len() + cold_a_cycle) as u64));
    for (name, policy) in [("off", HotPagePolicy::OFF), ("on", HotPagePolicy::default())] {
        let mut tracked = memory.track(tracker)?;
        let mut memory_of_hot = HotPages::new(policy, part);
        let mut cold = cold.chunks_exact(cold_a_cycle).cycle();
        let mut cycle = |tracked: &mut Tracked<'_>| {
            let began = Instant::now();
            memory.write(hot.iter().copied());
            memory.write(cold.next().into_iter().flatten().copied());
            let reported = collect_sparing(tracked, &mut memory_of_hot);
            (began.elapsed(), reported)
        };
        // The policy has to have seen what is hot before its effect can be measured.
        for _ in 0..2 * usize::from(HotPagePolicy::default().max_spared) {
            cycle(&mut tracked);
        }
        let (mut reported, mut cycles) = (0, 0);
        let what = format!("hot-pages-{layout}/policy-{name}");
        group.bench_function(&what, |b| {
            b.iter_custom(|iters| {
                let mut total = Duration::ZERO;
                for _ in 0..iters {
                    let (took, dirty) = cycle(&mut tracked);
                    total += took;
                    reported += dirty;
                    cycles += 1;
                }
                total
            });
        });
        // None if the command line's filter left it out.
        if let Some(mean) = reported.checked_div(cycles) {
            println!(
                "{}/{what}: {mean} of {pages} pages reported a collection, {} written",
                tracker.source(),
                hot.len() + cold_a_cycle
            );
        }
    }
    Ok(())
}

fn collect_sparing(tracked: &mut Tracked<'_>, hot: &mut HotPages) -> usize {
    let (region, bits) = tracked.region_and_bits();
    done(region.collect_and_reset_with(hot, bits))
}

/// The time of `operation`, repeated, each time after `prepare`, which is not timed.
fn timed(iters: u64, prepare: impl Fn(), operation: impl Fn()) -> Duration {
    (0..iters)
        .map(|_| {
            prepare();
            let began = Instant::now();
            operation();
            began.elapsed()
        })
        .sum()
}
