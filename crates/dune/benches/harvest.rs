//! What a harvest of 1 GiB costs: 262,144 leaf entries (2 MiB of tables), clean, with 1 % dirty
//! scattered, and half dirty; and the scan alone.
//!
//! `cargo bench -p dune --bench harvest`. The D bits that a harvest clears are set again outside the
//! measured time. It is one thread's time with warm tables: what the flush costs afterwards is not in it.
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use dune::harvest::{DIRTY, count, harvest, harvest_unclean, peek, peek_unclean};

const PAGES: usize = (1 << 30) >> 12;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    // Present, writable, user, accessed; an address.
    let entries: Vec<AtomicU64> =
        (0..PAGES as u64).map(|page| AtomicU64::new(page << 12 | 0x27)).collect();
    let mut bits = vec![0u64; PAGES / 64];
    let mut group = criterion.benchmark_group("harvest");
    group.bench_function(BenchmarkId::new("count", "clean"), |b| {
        b.iter(|| black_box(count(black_box(&entries))));
    });
    group.bench_function(BenchmarkId::new("peek", "clean"), |b| {
        b.iter(|| black_box(peek(black_box(&entries), &mut bits)));
    });
    // What `guest-pte` calls: absent entries count as dirty, so two bits of each are looked at.
    group.bench_function(BenchmarkId::new("harvest_unclean", "clean"), |b| {
        b.iter(|| black_box(harvest_unclean(black_box(&entries), &mut bits).cleared));
    });
    group.bench_function(BenchmarkId::new("peek_unclean", "clean"), |b| {
        b.iter(|| peek_unclean(black_box(&entries), &mut bits));
    });
    for (name, every) in [("clean", None), ("1%", Some(100)), ("50%", Some(2))] {
        let dirty = || every.into_iter().flat_map(|n| (0..PAGES).step_by(n));
        group.bench_function(BenchmarkId::new("harvest", name), |b| {
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    dirty().for_each(|page| {
                        entries[page].fetch_or(DIRTY, Relaxed);
                    });
                    bits.fill(0);
                    let start = Instant::now();
                    let result = harvest(black_box(&entries), &mut bits);
                    time += start.elapsed();
                    assert_eq!(result.cleared, dirty().count());
                }
                time
            });
        });
    }
    group.finish();
}
