//! `userfaultfd`, for faults of user mode only (`UFFD_USER_MODE_ONLY`, what an unprivileged program gets).
//!
//! A guest's pages are made present by the kernel, which asks nobody on such a descriptor: the thread
//! could not go on. With `UFFD_FEATURE_WP_ASYNC` nobody is asked anyway. So it is the features that are
//! refused, as by a kernel that has not got them, and programs do without, as they have to elsewhere.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::forward;
use crate::process::run::Guest;
use crate::space::SPACE;
use crate::sys;

/// `USERFAULTFD_IOC_NEW`: how `/dev/userfaultfd` gives a descriptor; the argument is its flags.
pub(super) const NEW: u32 = 0xaa00;
/// `UFFDIO_API`: says which features are wanted, before all else.
pub(super) const API: u32 = 0xc018_aa3f;
const USER_MODE_ONLY: u64 = 1;
const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// The descriptors opened with the flag. One that was closed counts until its number is that of another
/// userfaultfd; one that was duplicated counts by its first number.
static USER_ONLY: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Opens one. Large pages end here: who answers faults wants to know of each.
pub(super) fn open(guest: &Guest<'_>, nr: u64, a: [u64; 6], flags: u64) -> i64 {
    SPACE.lock().leave_pages();
    let fd = forward(guest, nr, a);
    if fd < 0 {
        return fd;
    }
    let bit = 1 << (fd % 64);
    match USER_ONLY.get(fd as usize / 64) {
        Some(word) if flags & USER_MODE_ONLY != 0 => _ = word.fetch_or(bit, Relaxed),
        Some(word) => _ = word.fetch_and(!bit, Relaxed),
        None => {
            forward(guest, libc::SYS_close as u64, [fd as u64, 0, 0, 0, 0, 0]);
            return -i64::from(libc::EMFILE);
        }
    }
    fd
}

/// `UFFDIO_API` on `fd`, with the features at `argument`.
pub(super) fn is_refused(fd: u64, argument: u64) -> bool {
    let fd = fd as u32;
    let is_user_only = USER_ONLY
        .get(fd as usize / 64)
        .is_some_and(|word| word.load(Relaxed) & 1 << (fd % 64) != 0);
    // struct uffdio_api: the version, the features, and what the kernel answers.
    let mut features = [0; 8];
    is_user_only
        && sys::copy_in(argument as usize + 8, &mut features).is_ok()
        && u64::from_ne_bytes(features) & FEATURE_WP_ASYNC == 0
}
