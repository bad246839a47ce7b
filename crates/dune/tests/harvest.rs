//! The harvest of D bits against a naive model, and against threads that set bits meanwhile.
//!
//! Also run under Miri: `cargo +nightly miri test -p dune --test harvest`.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use dune::harvest::{DIRTY, Harvest, PRESENT, count, harvest, harvest_among, peek};
use proptest::prelude::*;

/// Entries that look like entries: any software and address bits, P and D often set, sometimes in runs
/// of clean ones long enough that whole chunks are skipped.
fn entries() -> impl Strategy<Value = Vec<u64>> {
    let entry = prop_oneof![
        any::<u64>(),
        any::<u64>().prop_map(|v| v | PRESENT | DIRTY),
        any::<u64>().prop_map(|v| (v | PRESENT) & !DIRTY),
        any::<u64>().prop_map(|v| (v | DIRTY) & !PRESENT),
        Just(0),
    ];
    let clean = any::<u64>().prop_map(|v| v & !DIRTY);
    let run = prop_oneof![
        prop::collection::vec(entry, 0..150),
        prop::collection::vec(clean, 0..200),
        (0usize..130).prop_map(|n| vec![0; n]),
    ];
    prop::collection::vec(run, 0..4).prop_map(|runs| runs.concat())
}

fn table(values: &[u64]) -> Vec<AtomicU64> {
    values.iter().map(|v| AtomicU64::new(*v)).collect()
}

fn values(table: &[AtomicU64]) -> Vec<u64> {
    table.iter().map(|e| e.load(Relaxed)).collect()
}

fn bit(bits: &[u64], i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 == 1
}

fn written(value: u64) -> bool {
    value & PRESENT != 0 && value & DIRTY != 0
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 2000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What a harvest must have done to `before`, of which it was to look at `among`.
fn check(
    before: &[u64],
    among: impl Fn(usize) -> bool,
    bits_before: &[u64],
    after: &[u64],
    bits: &[u64],
    result: &Harvest,
) {
    let dirty: Vec<usize> = (0..before.len()).filter(|&i| written(before[i]) && among(i)).collect();
    for i in 0..bits.len() * 64 {
        let expected = bit(bits_before, i) || dirty.binary_search(&i).is_ok();
        assert_eq!(bit(bits, i), expected, "bit {i}");
    }
    for i in 0..before.len() {
        let cleared = dirty.binary_search(&i).is_ok();
        let expected = if cleared { before[i] & !DIRTY } else { before[i] };
        assert_eq!(after[i], expected, "entry {i}");
    }
    assert_eq!(result.cleared, dirty.len());
    let span = dirty.first().zip(dirty.last()).map(|(a, b)| (*a, *b));
    assert_eq!(result.span(), span);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_harvest_takes_what_is_present_and_dirty_and_nothing_else(
        before in entries(), seed in any::<u64>(), more in 0usize..3,
    ) {
        let entries = table(&before);
        let mut bits = vec![seed & 0x8000_0000_0100_0001; before.len().div_ceil(64) + more];
        let bits_before = bits.clone();
        let dirty = count(&entries);
        let mut peeked = bits.clone();
        prop_assert_eq!(peek(&entries, &mut peeked), dirty);
        prop_assert_eq!(values(&entries), before.clone(), "peek and count change nothing");
        let result = harvest(&entries, &mut bits);
        check(&before, |_| true, &bits_before, &values(&entries), &bits, &result);
        prop_assert_eq!(&bits, &peeked);
        prop_assert_eq!(result.cleared, dirty);
        prop_assert_eq!(count(&entries), 0);
        let again = harvest(&entries, &mut bits);
        prop_assert_eq!(again.span(), None);
    }

    #[test]
    fn what_is_not_asked_for_keeps_its_bit(before in entries(), seed in any::<u64>()) {
        let entries = table(&before);
        let words = before.len().div_ceil(64);
        let mut mix = seed;
        let among: Vec<u64> = (0..words).map(|_| {
            mix = mix.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            mix ^ mix >> 29
        }).collect();
        let mut bits = vec![0; words];
        let result = harvest_among(&entries, &among, &mut bits);
        check(&before, |i| bit(&among, i), &vec![0; words], &values(&entries), &bits, &result);
    }
}

/// Threads set D bits, as processors do, while two others harvest. Every bit that went from 0 to 1 is
/// taken exactly once, or is still there at the end.
#[test]
fn bits_set_meanwhile_are_taken_once_or_stay() {
    const ENTRIES: usize = 64 * 5 + 7;
    let rounds: usize = if cfg!(miri) { 60 } else { 400_000 };
    // Every seventh is not present; D bits there are nobody's business.
    let start: Vec<u64> = (0..ENTRIES).map(|i| if i % 7 == 3 { DIRTY } else { PRESENT }).collect();
    let entries = table(&start);
    let (set, taken, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|s| {
        let (entries, set, taken, done) = (&entries[..], &set, &taken, &done);
        let writers: Vec<_> = (1..=2u64)
            .map(|id| {
                s.spawn(move || {
                    let mut mix = id;
                    for _ in 0..rounds {
                        mix = mix.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(id);
                        let entry = &entries[(mix >> 33) as usize % ENTRIES];
                        if entry.load(Relaxed) & PRESENT == 0 {
                            continue;
                        }
                        // The processor sets A along with it (bit 5).
                        if entry.fetch_or(DIRTY | 1 << 5, Relaxed) & DIRTY == 0 {
                            set.fetch_add(1, Relaxed);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            s.spawn(move || {
                let mut bits = [0; ENTRIES.div_ceil(64)];
                while !done.load(Relaxed) {
                    bits.fill(0);
                    let cleared = harvest(entries, &mut bits).cleared;
                    let reported: u32 = bits.iter().map(|w| w.count_ones()).sum();
                    assert_eq!(reported as usize, cleared);
                    taken.fetch_add(cleared, Relaxed);
                    std::hint::spin_loop();
                }
            });
        }
        for writer in writers {
            writer.join().expect("a writer does not panic");
        }
        done.store(true, Relaxed);
    });
    assert_eq!(taken.into_inner() + count(&entries), set.into_inner());
    for (i, entry) in values(&entries).into_iter().enumerate() {
        if i % 7 == 3 {
            assert_eq!(entry, DIRTY, "entry {i} is not present, and was changed");
        } else {
            assert_eq!(entry & !(DIRTY | 1 << 5), PRESENT, "entry {i} lost a bit");
        }
    }
}

#[test]
#[should_panic(expected = "the bitmap is too short")]
fn a_bitmap_that_is_too_short_is_refused() {
    let _ = harvest(&table(&[0; 65]), &mut [0]);
}
