//! Signals: the kernel gives them to the monitor, and the monitor to the program.
//!
//! Masks, ignored signals and default actions stay the kernel's, so stopping, killing, `sigwait`,
//! `signalfd` and choosing a thread are as ever. Only where the program has a handler the kernel calls
//! [`capture`] instead, which takes down the signal, blocks all others and stops the guest; then
//! [`deliver`] writes the frame that the kernel would have written, on the program's stack. At most one
//! signal of a thread is between the two at any time.

pub(crate) mod actions;
pub(crate) mod capture;
pub(crate) mod deliver;
pub(crate) mod frame;

/// Bit of `signal` in a mask.
pub(crate) fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// `struct siginfo`, 128 bytes, as words.
pub(crate) type Info = [u64; 16];

/// A `siginfo` of a fault.
pub(crate) fn fault_info(signal: i32, code: i32, address: u64) -> Info {
    let mut info = [0; 16];
    info[0] = signal as u64;
    info[1] = u64::from(code as u32);
    info[2] = address;
    info
}

/// The signal of an info.
pub(crate) fn signal_of(info: &Info) -> u32 {
    info[0] as u32
}
