//! The process in guest mode: entering, threads, and what a fork does.
//!
//! One host thread stands behind each thread of the program. It runs the guest; whatever ends the run
//! it handles on a stack of its own ([`run`]), and goes on. To the kernel the process is an ordinary
//! one: its descriptors, credentials, threads and timers are the kernel's.

pub(crate) mod enter;
pub(crate) mod fork;
pub(crate) mod run;
pub(crate) mod spawn;
pub(crate) mod switch;
pub(crate) mod thread;

use crate::signals::actions::Action;
use crate::sys::lock::Lock;

/// What the threads of a process share beyond memory.
pub(crate) struct Process {
    /// What the program does on each signal; index 0 is unused.
    pub(crate) actions: Lock<[Action; 65]>,
}

/// The process that entered, and in its memory each forked child.
pub(crate) static PROCESS: Process = Process { actions: Lock::new([Action::DEFAULT; 65]) };
