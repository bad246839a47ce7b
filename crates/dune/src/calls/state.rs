//! Calls about a thread's registers, and calls whose effect would hit the monitor.

use crate::host::Vcpu as _;
use crate::process::run::Guest;
use crate::sys;

const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// The first and the last of the shadow stack's.
const ARCH_SHSTK: core::ops::RangeInclusive<u64> = 0x5001..=0x5005;

pub(super) fn arch_prctl(guest: &mut Guest<'_>, a: [u64; 6]) -> i64 {
    let [code, address, ..] = a;
    let Ok((fs, gs)) = guest.cpu.bases() else { return -i64::from(libc::EIO) };
    let set = |guest: &mut Guest<'_>, fs, gs| {
        if address >= crate::paging::USER_END {
            return -i64::from(libc::EPERM);
        }
        guest.must(|cpu| cpu.set_bases(fs, gs));
        0
    };
    match code {
        ARCH_SET_FS => set(guest, address, gs),
        ARCH_SET_GS => set(guest, fs, address),
        ARCH_GET_FS | ARCH_GET_GS => {
            let base = if code == ARCH_GET_FS { fs } else { gs };
            match sys::copy_out(&base.to_ne_bytes(), address as usize) {
                Ok(()) => 0,
                Err(errno) => -i64::from(errno.0),
            }
        }
        // The guest has no AMX, and no shadow stack.
        ARCH_REQ_XCOMP_PERM => -i64::from(libc::EOPNOTSUPP),
        code if ARCH_SHSTK.contains(&code) => -i64::from(libc::EOPNOTSUPP),
        _ => super::forward(guest, libc::SYS_arch_prctl as u64, a),
    }
}

pub(super) fn prctl(guest: &Guest<'_>, a: [u64; 6]) -> i64 {
    const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
    match a[0] as i32 {
        // They would apply to the calls by which the monitor runs the guest.
        libc::PR_SET_SECCOMP | PR_SET_SYSCALL_USER_DISPATCH => -i64::from(libc::EINVAL),
        _ => super::forward(guest, libc::SYS_prctl as u64, a),
    }
}
