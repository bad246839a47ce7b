//! TLB shootdown: after an entry of a guest page table was changed, no virtual processor goes on by
//! the old one.
//!
//! A processor keeps translations, D flag included: the architecture lets it write to a page without a
//! look at the entry as long as it keeps one that says dirty (Intel SDM Vol. 3A, §4.10.2.3
//! "Details of TLB Use"; AMD APM Vol. 2, §5.5 "Translation-Lookaside Buffer"). So a D bit that was cleared is
//! not set again by such a write, and the write is lost to whoever collects dirty pages, unless the
//! kept translations are dropped first (SDM §4.10.4.2 "Recommended Invalidation" asks for it after
//! every change of an entry from which rights or flags are taken; §4.10.5 for doing it on all processors).
//! This module is that protocol, over atomics and two traits. It neither knows how a flush is done
//! ([`FlushLocal`]) nor how a virtual processor is disturbed ([`Kick`]).
//!
//! # The protocol
//!
//! There is a *generation*, a number that only grows, and for each virtual processor (vCPU) a word with the
//! generation up to which it has flushed and whether it *runs* (may write to tracked memory by way of
//! its TLB) or is *quiescent* (outside guest mode, or at a safepoint).
//!
//! | Editor | vCPU that begins to run, [`Vcpu::enter`] |
//! |---|---|
//! | 1. change the entries, atomically | a. say that it runs |
//! | 2. note what changed; raise the generation | b. full fence |
//! | 3. full fence | c. read the generation; if it is not the one it has, flush what was noted since |
//! | 4. wait until every vCPU is quiescent or has that generation, kicking those that run | d. say that it has it |
//! | 5. only now look at the pages, or use the frames otherwise | e. run |
//!
//! A running vCPU does c and d again at every [`Vcpu::checkpoint`]; a kick makes it reach one. At last it
//! says that it is quiescent ([`Vcpu::leave`]).
//!
//! # Why it is right
//!
//! 1. *A flush that follows step 2 leaves nothing stale.* Whoever reads the new generation (c) sees
//!    the changed entries too: they were changed before it was stored with release, and read after it
//!    was loaded with acquire. What the vCPU loads into its TLB after its flush is thus made of the new
//!    entries.
//! 2. *No vCPU runs with a stale TLB once step 4 is done.* Of the fences 3 and b one comes first. If 3
//!    does, c reads the new generation, and the vCPU flushes before it runs. If b does, step 4 reads "runs"
//!    or something later, and waits for d or for the vCPU to be quiescent; from there it must pass b again.
//! 3. *No write is lost.* Let a vCPU write to a page whose D bit step 1 cleared. If it writes by a stale
//!    translation, it does so before its flush, and before d or before it is quiescent, which step 4
//!    waits for (release and acquire): the page is in this harvest's report and step 5 sees the write.
//!    If it writes by a new translation, the processor sets the D bit again, and the next harvest finds it.
//! 4. *A D bit that is set between the read and the clearing is not lost*, since both are one atomic
//!    operation (the processor's own update is locked too: SDM §4.8).
//! 5. *New vCPUs*, also those from a pool, start with no generation and so flush everything when they
//!    first enter. One that registers while step 4 is looking either is seen or passes b after 3.
//! 6. *What was noted* lies in a ring of [`LOG`] places. A vCPU that has read it reads the generation
//!    once more; if the places could have been written over meanwhile, it flushes everything.
//!
//! A stopped world is the same with everybody quiescent: mutators [`leave`](Vcpu::leave) at the safepoint,
//! step 4 finds nothing to wait for ([`Published::settled`]), and each flushes as it
//! [`enter`](Vcpu::enter)s again. It is cheap since nobody is interrupted.
//!
//! All this is checked by exhaustive interleaving (`tests/shootdown_loom.rs`), which also finds the lost
//! write if any one of these steps is left out.

mod domain;
mod scope;
mod sync;
mod token;

#[cfg(loom)]
pub use domain::Broken;
pub use domain::{FlushLocal, Kick, LOG, Publisher, Shootdown, Vcpu, VcpuId};
pub use scope::Scope;
pub use token::{Flushed, Published, RANGES, Stale};
