//! The shootdown protocol under the model checker: every interleaving of two or three virtual processors, a
//! harvester and a newcomer (with up to three preemptions), and every order that the memory model
//! allows. And with any one step left out, the lost write is found.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p dune --test shootdown_loom --release --target-dir target/loom`
#![cfg(loom)]
#![allow(missing_docs)]

use std::sync::Arc;

use dune::shootdown::{Broken, FlushLocal, Kick, Scope, Shootdown, Stale, VcpuId};
use loom::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use loom::thread;

const PRESENT: u64 = 1;
const DIRTY: u64 = 64;

/// One page of guest memory, with a word for each vCPU, and the entry that maps it.
struct World {
    shootdown: Shootdown,
    entry: AtomicU64,
    words: [AtomicU64; 2],
    kicked: [AtomicBool; 3],
}

impl World {
    fn new(vcpus: usize, broken: Broken) -> Arc<Self> {
        Arc::new(Self {
            shootdown: Shootdown::broken(vcpus, broken),
            entry: AtomicU64::new(PRESENT),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            kicked: std::array::from_fn(|_| AtomicBool::new(false)),
        })
    }

    /// What must hold once all is quiet: every write was seen in a harvest that reported the page, or the next
    /// harvest will report it.
    fn check(&self, seen: [u64; 2]) {
        let dirty = self.entry.load(Acquire) & DIRTY != 0;
        for (word, seen) in self.words.iter().zip(seen) {
            assert!(dirty || word.load(Acquire) == seen, "LOST WRITE");
        }
    }
}

impl Kick for World {
    fn kick(&self, vcpu: VcpuId) {
        self.kicked[vcpu.0].store(true, Release);
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

/// What a processor remembers of the one page: that its entry says dirty.
#[derive(Default)]
struct Tlb {
    dirty: bool,
}

impl FlushLocal for Tlb {
    fn flush(&mut self, scope: Scope) {
        if scope == Scope::All || matches!(scope, Scope::Pages { first: 7, .. }) {
            self.dirty = false;
        }
    }
}

/// A guest's store: the processor sets D unless it remembers that it is set.
fn store(world: &World, tlb: &mut Tlb, word: usize, value: u64) {
    if !tlb.dirty {
        world.entry.fetch_or(DIRTY, Relaxed);
        tlb.dirty = true;
    }
    world.words[word].store(value, Relaxed);
}

/// A vCPU that is new to the world, though its processor may remember something, and that enters, writes,
/// polls, and so on.
fn guest(world: &World, word: usize, remembers: bool, entries: u64, writes: u64) {
    let mut tlb = Tlb { dirty: remembers };
    let mut vcpu = world.shootdown.register().expect("a slot for each");
    let id = vcpu.id().0;
    for entry in 0..entries {
        vcpu.enter(&mut tlb);
        for write in 0..writes {
            store(world, &mut tlb, word, 1 + entry * writes + write);
            if world.kicked[id].load(Acquire) {
                vcpu.checkpoint(&mut tlb);
            }
        }
        vcpu.leave();
    }
}

/// How a harvester goes about it.
#[derive(Clone, Copy, PartialEq)]
enum Harvester {
    Right,
    /// Reads the D bit, then clears it.
    TwoSteps,
    /// Raises the generation, then clears.
    PublishesFirst,
    /// Looks at the page before the flush is complete.
    LooksEarly,
    /// Does not wait at all.
    DoesNotWait,
}

/// One harvest; returns what is in the page now if it was reported, else `seen`.
fn harvest(world: &World, how: Harvester, seen: [u64; 2]) -> [u64; 2] {
    let mut publisher = world.shootdown.publisher().expect("the only one");
    let look = || std::array::from_fn(|i| world.words[i].load(Relaxed));
    if how == Harvester::PublishesFirst {
        let published = publisher.publish(Stale::page(7));
        let before = world.entry.fetch_and(!DIRTY, Relaxed);
        published.complete(world);
        return if before & DIRTY != 0 { look() } else { seen };
    }
    let before = if how == Harvester::TwoSteps {
        let before = world.entry.load(Relaxed);
        world.entry.fetch_and(!DIRTY, Relaxed);
        before
    } else {
        world.entry.fetch_and(!DIRTY, Relaxed)
    };
    if before & DIRTY == 0 {
        return seen;
    }
    let published = publisher.publish(Stale::page(7));
    match how {
        Harvester::LooksEarly => {
            let now = look();
            published.complete(world);
            return now;
        }
        Harvester::DoesNotWait => drop(published),
        _ => {
            published.complete(world);
        }
    }
    look()
}

fn explore(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(body);
}

/// Whether the model checker finds a lost write.
fn finds(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        explore(preemptions, body);
    }));
    let why = result.expect_err("the step was left out, and nobody noticed");
    let text = why.downcast_ref::<String>().cloned();
    let text = text.or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let text = text.unwrap_or_default();
    assert!(text.contains("LOST WRITE"), "it failed otherwise: {text}");
}

/// `vcpus` vCPUs that come, write and go while there are `rounds` harvests.
fn concurrent(
    vcpus: usize,
    entries: u64,
    writes: u64,
    rounds: usize,
    how: Harvester,
    broken: Broken,
) {
    let world = World::new(vcpus, broken);
    let guests: Vec<_> = (0..vcpus)
        .map(|word| {
            let world = Arc::clone(&world);
            thread::spawn(move || guest(&world, word % 2, word % 2 == 1, entries, writes))
        })
        .collect();
    let mut seen = [0; 2];
    for _ in 0..rounds {
        seen = harvest(&world, how, seen);
    }
    for guest in guests {
        guest.join().expect("a guest does not panic");
    }
    world.check(seen);
}

#[test]
fn one_vcpu_and_two_harvests_lose_nothing() {
    explore(3, || concurrent(1, 2, 2, 2, Harvester::Right, Broken::Nothing));
}

#[test]
fn a_vcpu_that_is_kicked_between_writes_loses_nothing() {
    explore(3, || concurrent(1, 1, 3, 2, Harvester::Right, Broken::Nothing));
}

#[test]
fn three_vcpus_and_a_harvest_lose_nothing() {
    explore(2, || concurrent(3, 1, 1, 1, Harvester::Right, Broken::Nothing));
}

#[test]
fn two_vcpus_and_a_harvest_lose_nothing() {
    explore(3, || concurrent(2, 1, 2, 1, Harvester::Right, Broken::Nothing));
}

#[test]
fn two_vcpus_that_come_and_go_and_two_harvests_lose_nothing() {
    explore(2, || concurrent(2, 2, 1, 2, Harvester::Right, Broken::Nothing));
}

/// A processor of the pool: it served a vCPU before, remembers a dirty entry, and serves a new one.
fn newcomer(broken: Broken) {
    let world = World::new(2, broken);
    let guest = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let mut tlb = Tlb::default();
            for value in 1..=2 {
                let mut vcpu = world.shootdown.register().expect("a slot");
                vcpu.enter(&mut tlb);
                store(&world, &mut tlb, 0, value);
                vcpu.leave();
            }
        })
    };
    let seen = harvest(&world, Harvester::Right, [0; 2]);
    guest.join().expect("a guest does not panic");
    world.check(seen);
}

#[test]
fn a_vcpu_of_the_pool_loses_nothing() {
    explore(3, || newcomer(Broken::Nothing));
}

/// A stopped world: the mutator writes, stops at a safepoint, goes on when told. `early` lets it go on before the
/// generation is raised.
fn stopped(early: bool) {
    let world = World::new(1, Broken::Nothing);
    let phase = Arc::new(AtomicUsize::new(0));
    let guest = {
        let (world, phase) = (Arc::clone(&world), Arc::clone(&phase));
        thread::spawn(move || {
            let mut tlb = Tlb::default();
            let mut vcpu = world.shootdown.register().expect("a slot");
            vcpu.enter(&mut tlb);
            store(&world, &mut tlb, 0, 1);
            vcpu.leave();
            phase.store(1, Release);
            while phase.load(Acquire) != 2 {
                thread::yield_now();
            }
            vcpu.enter(&mut tlb);
            store(&world, &mut tlb, 0, 2);
            vcpu.leave();
        })
    };
    while phase.load(Acquire) != 1 {
        thread::yield_now();
    }
    assert_eq!(world.entry.fetch_and(!DIRTY, Relaxed) & DIRTY, DIRTY, "it has written");
    let seen = [world.words[0].load(Relaxed), 0];
    if early {
        phase.store(2, Release);
    }
    let mut publisher = world.shootdown.publisher().expect("the only one");
    let published = publisher.publish(Stale::page(7));
    if early {
        drop(published);
    } else {
        published.settled().expect("nobody runs in a stopped world");
        phase.store(2, Release);
    }
    guest.join().expect("a guest does not panic");
    world.check(seen);
}

#[test]
fn a_stopped_world_loses_nothing() {
    explore(3, || stopped(false));
}

/// A vCPU that was outside while its page was harvested, and enters while the ring of what was noted
/// goes round with other pages.
fn lazy(broken: Broken) {
    let world = World::new(1, broken);
    let mut tlb = Tlb::default();
    let mut vcpu = world.shootdown.register().expect("a slot");
    vcpu.enter(&mut tlb);
    store(&world, &mut tlb, 0, 1);
    vcpu.leave();
    let seen = harvest(&world, Harvester::Right, [0; 2]);
    let other = {
        let world = Arc::clone(&world);
        thread::spawn(move || {
            let mut publisher = world.shootdown.publisher().expect("the only one");
            for other in [100, 200] {
                let stale = Stale::page(other).and(Stale::page(other + 50));
                drop(publisher.publish(stale));
            }
        })
    };
    vcpu.enter(&mut tlb);
    store(&world, &mut tlb, 0, 2);
    vcpu.leave();
    other.join().expect("it does not panic");
    world.check(seen);
}

#[test]
fn a_vcpu_that_was_away_for_long_loses_nothing() {
    explore(3, || lazy(Broken::Nothing));
}

#[test]
fn reading_and_clearing_in_two_steps_is_found() {
    finds(3, || concurrent(2, 1, 1, 1, Harvester::TwoSteps, Broken::Nothing));
}

#[test]
fn a_generation_raised_before_the_clearing_is_found() {
    finds(3, || concurrent(1, 1, 2, 1, Harvester::PublishesFirst, Broken::Nothing));
}

#[test]
fn a_look_before_the_flush_is_complete_is_found() {
    finds(3, || concurrent(1, 1, 2, 1, Harvester::LooksEarly, Broken::Nothing));
}

#[test]
fn a_harvester_that_does_not_wait_is_found() {
    finds(3, || concurrent(1, 1, 2, 1, Harvester::DoesNotWait, Broken::Nothing));
}

#[test]
fn a_generation_raised_after_the_world_goes_on_is_found() {
    finds(3, || stopped(true));
}

#[test]
fn an_entry_without_its_fence_is_found() {
    finds(3, || concurrent(1, 2, 1, 1, Harvester::Right, Broken::NoFenceOnEntry));
}

#[test]
fn a_publication_without_its_fence_is_found() {
    finds(3, || concurrent(1, 2, 1, 1, Harvester::Right, Broken::NoFenceAfterPublishing));
}

#[test]
fn an_acknowledgement_that_releases_nothing_is_found() {
    finds(3, || concurrent(1, 1, 2, 1, Harvester::Right, Broken::RelaxedAcknowledgement));
}

#[test]
fn a_new_vcpu_that_does_not_flush_is_found() {
    finds(3, || newcomer(Broken::NewVcpuDoesNotFlush));
}

#[test]
fn a_ring_that_is_not_checked_again_is_found() {
    finds(3, || lazy(Broken::LogIsNotCheckedAgain));
}
