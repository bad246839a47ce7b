//! The table of system call effects: its rules, its completeness, and the running kernel's opinion.
#![allow(missing_docs, unreachable_pub, clippy::single_range_in_vec_init)]

mod complete;
mod kernel;
mod rules;
