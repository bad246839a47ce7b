//! Guest mode for a Linux process.
//!
//! The parts that need no virtual machine to be right are modules of their own, tested without one.

pub mod effects;
pub mod harvest;
