//! The raw ABI of `/dev/dune`, the kernel module in `kmod/`.
//!
//! Everything here is generated from `kmod/include/uapi/linux/dune.h`, which says what each
//! structure, field and constant means and is the only definition. The layout is what a C
//! compiler made of that header: sizes and offsets are asserted when this crate is compiled, and
//! `tests/abi` fails if the header has changed since. To generate again:
//!
//! ```sh
//! DUNE_SYS_GENERATE=1 cargo test -p dune-sys --test abi
//! ```
//!
//! It is deliberately no more than that: no descriptor, no system call, no error type, and no
//! `std`, so that it can be used by code that has no C library under it.

#![no_std]
#![forbid(unsafe_code)]

#[rustfmt::skip]
mod bindings;

pub use bindings::*;
