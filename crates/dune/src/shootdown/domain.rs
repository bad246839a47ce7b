//! The shared state: the generation, what was noted, the vCPUs; and the steps of both sides.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use super::scope::Scope;
use super::sync::{AtomicBool, AtomicU64, AtomicUsize, fence};
use super::token::{Published, RANGES, Stale};

/// Places of the ring in which it is noted what each generation flushes.
pub const LOG: usize = if cfg!(loom) { 4 } else { 32 };

/// A slot's word: two bits of state, above them the generation.
const FREE: u64 = 0;
const QUIESCENT: u64 = 1;
const RUNS: u64 = 2;
const STATE: u64 = 3;

/// Dropping translations, done by the vCPU itself.
pub trait FlushLocal {
    /// Drops the translations in `scope` that this vCPU holds, paging-structure caches included, before it
    /// returns. What the vCPU loads afterwards must not be loaded earlier. `mov cr3` and `INVLPG` do
    /// both (SDM §4.10.4.1; they are serializing, §9.3).
    fn flush(&mut self, scope: Scope);
}

/// Disturbing a vCPU that runs, from another thread.
pub trait Kick {
    /// Makes the vCPU reach a [`Vcpu::checkpoint`] or [`Vcpu::leave`] soon, if it runs. It must not be lost
    /// if the vCPU is just about to enter guest mode: for KVM a signal whose handler sets
    /// `immediate_exit`.
    fn kick(&self, vcpu: VcpuId);

    /// Makes every vCPU flush everything before its next guest instruction, and returns `true` when that
    /// is certain; `false` if the host has no such means. (KVM does it where it invalidates guest-physical
    /// memory under second-level paging; not with shadow page tables of the guest's.)
    fn flush_everywhere(&self) -> bool {
        false
    }

    /// Called again and again while waiting.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// A vCPU's place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuId(pub usize);

/// The vCPUs of one address space, and the generation of its page tables.
#[derive(Debug)]
pub struct Shootdown {
    generation: AtomicU64,
    log: [AtomicU64; LOG],
    publishing: AtomicBool,
    /// Slots that were ever used; they come first.
    used: AtomicUsize,
    slots: Box<[AtomicU64]>,
    #[cfg(loom)]
    broken: Broken,
}

/// A step to leave out, to see whether the model checker notices.
#[cfg(loom)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Broken {
    Nothing,
    NoFenceOnEntry,
    NoFenceAfterPublishing,
    RelaxedAcknowledgement,
    NewVcpuDoesNotFlush,
    LogIsNotCheckedAgain,
}

impl Shootdown {
    /// For at most `vcpus` at a time. Allocates; nothing else here does.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            generation: AtomicU64::new(1),
            log: core::array::from_fn(|_| AtomicU64::new(0)),
            publishing: AtomicBool::new(false),
            used: AtomicUsize::new(0),
            slots: (0..vcpus).map(|_| AtomicU64::new(FREE)).collect(),
            #[cfg(loom)]
            broken: Broken::Nothing,
        }
    }

    /// One that leaves out a step.
    #[cfg(loom)]
    #[must_use]
    pub fn broken(vcpus: usize, broken: Broken) -> Self {
        Self { broken, ..Self::new(vcpus) }
    }

    #[cfg(loom)]
    fn lacks(&self, step: Broken) -> bool {
        self.broken == step
    }

    /// A slot for a vCPU, quiescent, or `None` if all are taken. Its first [`Vcpu::enter`] flushes
    /// everything, whatever the vCPU was used for before.
    pub fn register(&self) -> Option<Vcpu<'_>> {
        for (id, slot) in self.slots.iter().enumerate() {
            if slot.compare_exchange(FREE, QUIESCENT, AcqRel, Relaxed).is_ok() {
                self.used.fetch_max(id + 1, AcqRel);
                return Some(Vcpu { shootdown: self, id: VcpuId(id), slot, flushed: 0 });
            }
        }
        None
    }

    /// The right to publish, which one thread has at a time; `None` if another has it.
    pub fn publisher(&self) -> Option<Publisher<'_>> {
        let free = self.publishing.compare_exchange(false, true, Acquire, Relaxed).is_ok();
        free.then_some(Publisher { shootdown: self })
    }

    /// Somebody who runs and has not flushed up to `generation`.
    pub(super) fn behind(&self, generation: u64) -> Option<VcpuId> {
        let used = self.used.load(Acquire).min(self.slots.len());
        (0..used).map(VcpuId).find(|id| self.is_behind(*id, generation))
    }

    fn is_behind(&self, id: VcpuId, generation: u64) -> bool {
        // Acquire: what the vCPU wrote before it flushed or stopped is seen after this.
        let word = self.slots[id.0].load(Acquire);
        word & STATE == RUNS && word >> 2 < generation
    }

    /// Step 4 of the protocol.
    pub(super) fn wait(&self, generation: u64, kick: &impl Kick) {
        if self.behind(generation).is_none() || kick.flush_everywhere() {
            return;
        }
        let used = self.used.load(Acquire).min(self.slots.len());
        // All are kicked before any is waited for.
        for id in (0..used).map(VcpuId).filter(|id| self.is_behind(*id, generation)) {
            kick.kick(id);
        }
        // Who has come since has either been seen to run, or has read the generation. One that was
        // kicked, has left and runs again has flushed.
        for id in (0..used).map(VcpuId) {
            while self.is_behind(id, generation) {
                kick.relax();
            }
        }
    }

    /// What was noted for the generations after `from` up to `to`.
    fn noted(&self, from: u64, to: u64) -> Scope {
        if from == 0 || to - from > (LOG - RANGES) as u64 {
            return Scope::All;
        }
        let scope = (from + 1..=to)
            .map(|generation| self.place(generation).load(Acquire))
            .map(Scope::unpack)
            .reduce(Scope::merged)
            .unwrap_or(Scope::Pages { first: 0, count: 0 });
        #[cfg(loom)]
        if self.lacks(Broken::LogIsNotCheckedAgain) {
            return scope;
        }
        // A publisher writes at most RANGES places ahead of the generation. If it has written over one
        // that was read here, then by the acquire above this reads a generation that shows it.
        let now = self.generation.load(Acquire);
        if now + RANGES as u64 - from > LOG as u64 { Scope::All } else { scope }
    }

    fn place(&self, generation: u64) -> &AtomicU64 {
        &self.log[(generation % LOG as u64) as usize]
    }
}

/// The right to raise the generation.
#[derive(Debug)]
pub struct Publisher<'a> {
    shootdown: &'a Shootdown,
}

impl<'a> Publisher<'a> {
    /// Steps 2 and 3: from here on whoever begins to run flushes what is `stale`. The entries must have
    /// been changed before.
    pub fn publish(&mut self, stale: Stale) -> Published<'a> {
        let shootdown = self.shootdown;
        // Only the publisher writes it.
        let mut generation = shootdown.generation.load(Relaxed);
        for scope in stale.scopes() {
            generation += 1;
            // Release: who reads this place knows the generation before it.
            shootdown.place(generation).store(scope.pack(), Release);
        }
        // Release: who reads this generation sees the changed entries and what was noted.
        shootdown.generation.store(generation, Release);
        #[cfg(loom)]
        if shootdown.lacks(Broken::NoFenceAfterPublishing) {
            return Published { shootdown, generation };
        }
        fence(SeqCst);
        Published { shootdown, generation }
    }
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        self.shootdown.publishing.store(false, Release);
    }
}

/// One vCPU's side. Only the thread that runs the vCPU has it.
#[derive(Debug)]
pub struct Vcpu<'a> {
    shootdown: &'a Shootdown,
    id: VcpuId,
    slot: &'a AtomicU64,
    /// The generation up to which it has flushed; 0: none.
    flushed: u64,
}

impl Vcpu<'_> {
    /// Its place.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Steps a to d, to be done before the vCPU may write to tracked memory: on the way into guest mode, and
    /// on the way out of a safepoint.
    pub fn enter(&mut self, tlb: &mut impl FlushLocal) {
        // Release: who reads this instead of the "quiescent" before it sees as much.
        self.slot.store(self.flushed << 2 | RUNS, Release);
        #[cfg(loom)]
        if self.shootdown.lacks(Broken::NoFenceOnEntry) {
            return self.checkpoint(tlb);
        }
        fence(SeqCst);
        self.checkpoint(tlb);
    }

    /// Steps c and d, by a vCPU that runs: at a safepoint poll, and when it was kicked. Cheap if there is
    /// nothing to do: one load.
    pub fn checkpoint(&mut self, tlb: &mut impl FlushLocal) {
        let shootdown = self.shootdown;
        let generation = shootdown.generation.load(Acquire);
        if generation == self.flushed {
            return;
        }
        #[cfg(loom)]
        if shootdown.lacks(Broken::NewVcpuDoesNotFlush) && self.flushed == 0 {
            self.flushed = generation;
            return self.slot.store(self.flushed << 2 | RUNS, Release);
        }
        tlb.flush(shootdown.noted(self.flushed, generation));
        self.flushed = generation;
        #[cfg(loom)]
        if shootdown.lacks(Broken::RelaxedAcknowledgement) {
            return self.slot.store(self.flushed << 2 | RUNS, Relaxed);
        }
        // Release: all that was written by the old translations is seen by whoever reads this.
        self.slot.store(self.flushed << 2 | RUNS, Release);
    }

    /// Says that it is quiescent: it writes to no tracked memory, by way of its TLB, until it has
    /// entered again. On the way out of guest mode, and at a safepoint.
    pub fn leave(&mut self) {
        // Release: as above.
        self.slot.store(self.flushed << 2 | QUIESCENT, Release);
    }
}

impl Drop for Vcpu<'_> {
    /// The slot is free. The vCPU must have left guest mode.
    fn drop(&mut self) {
        self.slot.store(FREE, Release);
    }
}
