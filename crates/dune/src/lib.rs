//! Guest mode for a Linux process: the same program in the same address space, on a virtual CPU with
//! page tables of its own.
//!
//! [`enter`] moves the calling thread into guest mode; threads and processes that it creates from
//! then on follow. Addresses mean what they meant; system calls, signals, forks work as before.
//! What is won is what only a kernel has otherwise: page tables to read and edit, dirty bits, faults
//! without signals. What that costs on a given host: `benches/guest-mode.md`.
//!
//! | Module | Holds |
//! |---|---|
//! | [`host`] | the virtual machine: a trait, `/dev/kvm` and `/dev/dune` behind it |
//! | [`paging`] | page tables, pure |
//! | `space` | the address space: tables as a cache of the kernel's mappings |
//! | `process` | entering, the loop of a thread, threads, forks |
//! | `calls` | system calls of the program that are not simply made |
//! | `signals` | from the kernel to the program's handlers |
//! | `ring` | at which privilege level the program runs |
//! | `sys` | what the monitor itself asks of the kernel |
//! | [`effects`] | which memory a system call writes |
//! | [`harvest`] | reading and clearing D bits |
//! | [`inside`] | entries, dirty bits and the TLB, for code in guest mode |
//! | [`faults`] | page faults that the program handles itself |
//! | [`address_space`] | private address spaces, and switching between them |
//! | `protection` | tracking writes by protection and such faults |
//! | `page_log` | tracking writes by the processor's log of written pages |
//! | [`shootdown`] | flushing translations on all vCPUs |
//! | [`dirty_bits`] | the same dirty bits, for other libraries of the process |
//! | [`stats`] | counts |
//!
//! What it is not: a sandbox, at ring 3 as at ring 0. The program can reach everything that it could without, the monitor's
//! memory included. A private address space hides memory from loads and stores that go astray, not from an attacker who
//! makes system calls ([`address_space`]).

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("guest mode is for x86-64 Linux");

pub mod address_space;
pub mod dirty_bits;
pub mod effects;
pub mod faults;
pub mod harvest;
pub mod host;
pub mod inside;
mod page_log;
pub mod paging;
mod protection;
mod ring;
pub mod shootdown;
pub mod stats;

mod calls;
mod process;
mod signals;
mod space;
mod stores;
mod sys;

pub use process::enter::{EnterError, enter, enter_at, entered};
pub use ring::Ring;
pub use sys::{Errno, PAGE_SIZE};
