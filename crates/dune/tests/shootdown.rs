//! The shootdown protocol with real threads as virtual processors, each with a TLB of the test's own making,
//! and real harvests. The model checker's test (`shootdown_loom.rs`) is exhaustive and small; this is
//! large and by chance.
#![cfg(not(loom))]
#![allow(missing_docs)]

use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use dune::harvest::{DIRTY, PRESENT, harvest};
use dune::shootdown::{FlushLocal, Kick, Scope, Shootdown, Stale, VcpuId};

const PAGES: usize = 300;
/// The number of the first page.
const FIRST: u64 = 0x7f00_0000;
const VCPUS: usize = 3;

struct World {
    shootdown: Shootdown,
    entries: Vec<AtomicU64>,
    /// A word in each page for each vCPU.
    words: Vec<[AtomicU64; VCPUS]>,
    kicked: [AtomicBool; VCPUS],
    kicks: AtomicUsize,
}

impl Kick for World {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks.fetch_add(1, Relaxed);
        self.kicked[vcpu.0].store(true, Release);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}

/// The pages whose entries it remembers as dirty.
struct Tlb {
    dirty: [bool; PAGES],
    single: usize,
    full: usize,
}

impl FlushLocal for Tlb {
    fn flush(&mut self, scope: Scope) {
        match scope {
            Scope::All => {
                self.full += 1;
                self.dirty = [false; PAGES];
            }
            Scope::Pages { first, count } => {
                self.single += 1;
                for page in first..first + count {
                    if let Some(dirty) = self.dirty.get_mut((page - FIRST) as usize) {
                        *dirty = false;
                    }
                }
            }
        }
    }
}

fn guest(world: &World, word: usize, stop: &AtomicBool) -> (usize, usize) {
    let mut tlb = Tlb { dirty: [true; PAGES], single: 0, full: 0 };
    let mut mix = word as u64;
    let mut value = 0;
    while !stop.load(Relaxed) {
        let mut vcpu = world.shootdown.register().expect("a slot for each");
        for _ in 0..50 {
            vcpu.enter(&mut tlb);
            for _ in 0..2000 {
                mix = mix.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Mostly few pages, so that harvests are of few.
                let page = (mix >> 33) as usize % if mix >> 52 == 0 { PAGES } else { 4 };
                if !tlb.dirty[page] {
                    world.entries[page].fetch_or(DIRTY, Relaxed);
                    tlb.dirty[page] = true;
                }
                value += 1;
                world.words[page][word].store(value, Relaxed);
                if world.kicked[vcpu.id().0].swap(false, Acquire) {
                    vcpu.checkpoint(&mut tlb);
                }
            }
            vcpu.leave();
            // As in a system call that waits.
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }
    (tlb.single, tlb.full)
}

#[test]
fn no_write_is_lost_among_threads_that_come_and_go() {
    let mut harvests = 0;
    let time = std::time::Duration::from_secs(3);
    let world = World {
        shootdown: Shootdown::new(VCPUS),
        entries: (0..PAGES).map(|_| AtomicU64::new(PRESENT)).collect(),
        words: (0..PAGES).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        kicked: std::array::from_fn(|_| AtomicBool::new(false)),
        kicks: AtomicUsize::new(0),
    };
    let stop = AtomicBool::new(false);
    let mut seen = vec![[0; VCPUS]; PAGES];
    let mut bits = [0; PAGES.div_ceil(64)];
    let mut take = |world: &World, settled: bool| {
        let mut publisher = world.shootdown.publisher().expect("the only one");
        assert!(world.shootdown.publisher().is_none(), "there is one at a time");
        bits.fill(0);
        let harvest = harvest(&world.entries, &mut bits);
        let published = publisher.publish(Stale::harvested(&harvest, FIRST));
        let flushed = if settled {
            published.settled().expect("nobody runs")
        } else {
            published.complete(world)
        };
        assert!(flushed.generation() >= 1);
        for page in (0..PAGES).filter(|page| bits[page / 64] >> (page % 64) & 1 == 1) {
            seen[page] = std::array::from_fn(|i| world.words[page][i].load(Relaxed));
        }
        harvest.cleared
    };
    let mut reported = 0;
    let flushes: Vec<(usize, usize)> = std::thread::scope(|s| {
        let guests: Vec<_> = (0..VCPUS)
            .map(|word| {
                let (world, stop) = (&world, &stop);
                s.spawn(move || guest(world, word, stop))
            })
            .collect();
        let start = std::time::Instant::now();
        // On few processors each waits for vCPUs that wait for their turn.
        while harvests < 50 || harvests < 20_000 && start.elapsed() < time {
            reported += take(&world, false);
            harvests += 1;
        }
        stop.store(true, Relaxed);
        guests.into_iter().map(|g| g.join().expect("a guest does not panic")).collect()
    });
    // All have left: nothing to wait for, and after this harvest everything was seen.
    reported += take(&world, true);
    for (page, seen) in seen.iter().enumerate() {
        let now = std::array::from_fn(|i| world.words[page][i].load(Relaxed));
        assert_eq!(*seen, now, "page {page}: a write was lost");
    }
    println!(
        "{harvests} harvests of {reported} pages, {} kicks, flushes (some pages, all) {flushes:?}",
        world.kicks.load(Relaxed)
    );
    assert!(reported > 0);
    assert!(flushes.iter().map(|(single, _)| single).sum::<usize>() > 0);
}

#[test]
fn slots_are_used_again_and_run_out() {
    let shootdown = Shootdown::new(2);
    let first = shootdown.register().expect("free");
    let second = shootdown.register().expect("free");
    assert_eq!((first.id(), second.id()), (VcpuId(0), VcpuId(1)));
    assert!(shootdown.register().is_none());
    drop(first);
    assert_eq!(shootdown.register().expect("free again").id(), VcpuId(0));
}

#[test]
fn what_is_flushed_is_what_was_published_since() {
    #[derive(Default)]
    struct Record(Vec<Scope>);
    impl FlushLocal for Record {
        fn flush(&mut self, scope: Scope) {
            self.0.push(scope);
        }
    }
    let shootdown = Shootdown::new(1);
    let mut vcpu = shootdown.register().expect("free");
    let mut record = Record::default();
    let publish = |stale| {
        let published = shootdown.publisher().expect("free").publish(stale);
        published.settled().is_ok()
    };
    vcpu.enter(&mut record);
    assert_eq!(record.0, [Scope::All], "a new one flushes everything");
    vcpu.checkpoint(&mut record);
    assert_eq!(record.0.len(), 1, "nothing has happened");
    assert!(publish(Stale::nothing()), "nothing to flush");
    assert!(!publish(Stale::page(7)), "it runs");
    vcpu.leave();
    assert!(publish(Stale::page(9)), "it is quiescent");
    vcpu.enter(&mut record);
    assert_eq!(record.0[1..], [Scope::Pages { first: 7, count: 3 }], "both at once");
    vcpu.leave();
    for page in 0..40 {
        assert!(publish(Stale::page(page)));
    }
    vcpu.enter(&mut record);
    assert_eq!(record.0[2..], [Scope::All], "more than is kept");
    vcpu.leave();
    assert!(publish(Stale::scope(Scope::Pages { first: 0, count: 1000 })));
    vcpu.enter(&mut record);
    assert_eq!(record.0[3..], [Scope::All], "many pages cost more than all");
}
