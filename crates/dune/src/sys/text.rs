//! Text without a heap: messages of a monitor that may not allocate.

use core::fmt::{self, Write};

/// A line of at most `N` bytes; what does not fit is cut off.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// An empty text.
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Appends bytes that need not be UTF-8.
    pub(crate) fn push(&mut self, bytes: impl Iterator<Item = u8>) {
        for (to, from) in self.bytes[self.len..].iter_mut().zip(bytes) {
            *to = from;
            self.len += 1;
        }
    }

    /// What was written.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(N - self.len);
        self.bytes[self.len..][..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// Writes a message to standard error, in one call.
pub(crate) fn report(message: fmt::Arguments<'_>) {
    let mut text = Text::<2048>::new();
    let _ = text.write_fmt(message);
    let bytes = text.bytes();
    // SAFETY: bytes of ours.
    let _ = unsafe {
        super::raw(libc::SYS_write, [2, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0])
    };
}

/// Reports a message and ends the process by SIGABRT: for what must not go on.
pub(crate) fn fatal(message: fmt::Arguments<'_>) -> ! {
    report(message);
    loop {
        // SAFETY: no handler of the program's runs: it is taken away first. The process ends.
        unsafe {
            let default = [0u64; 4];
            super::raw(
                libc::SYS_rt_sigaction,
                [libc::SIGABRT as u64, default.as_ptr() as u64, 0, 8, 0, 0],
            );
            // Only this one: another that comes now would be taken down, and block all.
            super::set_mask(!(1 << (libc::SIGABRT - 1)));
            let pid = super::process_id() as u64;
            super::raw(
                libc::SYS_tgkill,
                [pid, super::thread_id() as u64, libc::SIGABRT as u64, 0, 0, 0],
            );
            super::raw(libc::SYS_exit_group, [134, 0, 0, 0, 0, 0]);
        }
    }
}
