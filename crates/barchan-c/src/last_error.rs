//! The text of the calling thread's last error, in a buffer that is never allocated.

use core::cell::UnsafeCell;
use core::ffi::c_char;
use core::fmt::{self, Display, Write};

use crate::barchan_status;

/// Long enough for every message; longer ones are cut.
const BYTES: usize = 512;

thread_local! {
    static LAST: UnsafeCell<[u8; BYTES]> = const { UnsafeCell::new([0; BYTES]) };
}

/// Writes into a buffer, keeping its last byte zero.
struct Cut<'a> {
    buffer: &'a mut [u8; BYTES],
    at: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let n = text.len().min(BYTES - 1 - self.at);
        self.buffer[self.at..self.at + n].copy_from_slice(&text.as_bytes()[..n]);
        self.at += n;
        Ok(())
    }
}

/// Stores `message` for the thread and returns `status`.
pub(crate) fn fail(status: barchan_status, message: impl Display) -> barchan_status {
    // While the thread is being torn down there is nobody to ask for the text.
    let _ = LAST.try_with(|cell| {
        // SAFETY: 1. the cell is this thread's. 2. No reference into it is kept: C has a pointer,
        // which by contract is read before the thread's next failing call.
        let buffer = unsafe { &mut *cell.get() };
        let mut cut = Cut { buffer, at: 0 };
        // `Cut` never fails, and a Display that does leaves a shorter text.
        let _ = write!(cut, "{message}");
        let end = cut.at;
        cut.buffer[end] = 0;
    });
    status
}

/// What went wrong in the calling thread's last failing call: NUL-terminated, "" if nothing did,
/// valid until the thread's next failing call.
#[unsafe(no_mangle)]
pub extern "C" fn barchan_last_error() -> *const c_char {
    LAST.try_with(|cell| cell.get().cast_const().cast()).unwrap_or(c"".as_ptr())
}
