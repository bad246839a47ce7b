//! The atomics: the language's, or under `--cfg loom` those of the model checker.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
