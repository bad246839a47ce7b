//! The program's system calls. Nearly all are made for it just as they are ([`forward`]); here is which
//! are not, and why.
//!
//! | Module | Calls | Because |
//! |---|---|---|
//! | [`memory`] | munmap, mprotect, mremap, … | the guest's tables must not keep what goes |
//! | [`program_break`] | brk | it moves in small steps |
//! | [`tasks`] | clone, fork, exit, … | a thread needs a CPU, a child a machine |
//! | [`descriptors`] | close, close_range, dup2, … | the monitor's descriptors must stay |
//! | [`user_faults`] | userfaultfd | a guest's faults are the kernel's |
//! | [`state`] | arch_prctl, rseq, seccomp, … | they are about registers, or about the wrong thread |
//! | [`written`] | all | what the kernel writes is dirty |
//! | `signals` | rt_sigaction, rt_sigreturn, sigaltstack | handlers are called by the monitor |

mod descriptors;
mod memory;
pub(crate) mod program_break;
mod state;
mod tasks;
mod user_faults;
pub(crate) mod written;

use crate::page_log;
use crate::process::run::{Guest, Outcome};
use crate::signals::{actions, deliver};
use crate::sys;

/// Calls of the monitor's own, with numbers that Linux does not have: whether the thread is in guest mode,
pub(crate) const CALL_INSIDE: i64 = 0x4455_0001;
/// and entries for a range: start, end, and whether they are large ones.
pub(crate) const CALL_POPULATE: i64 = 0x4455_0002;
/// Page faults go to ring 3 from now on.
pub(crate) const CALL_HANDLE_FAULTS: i64 = 0x4455_0003;
/// Private address spaces (`process::switch` says what).
pub(crate) const CALL_SPACE: i64 = 0x4455_0004;

/// The processor's log of written pages (`page_log` says what).
pub(crate) const CALL_LOG: i64 = 0x4455_0005;

/// Makes system call `nr` for the program.
pub(crate) fn dispatch(guest: &mut Guest<'_>, nr: u64, a: [u64; 6]) -> Outcome {
    match nr as i64 {
        CALL_INSIDE => return Outcome::Result(1),
        CALL_POPULATE => {
            return Outcome::Result(guest.populate(a[0]..a[1], a[2] != 0));
        }
        CALL_LOG => return Outcome::Result(page_log::answer(a[0], a[1]..a[2])),
        CALL_SPACE => return Outcome::Result(guest.space_request(a)),
        CALL_HANDLE_FAULTS => {
            crate::space::cpu_tables::deliver_page_faults(true);
            return Outcome::Result(0);
        }
        _ => {}
    }
    let a = if nr as i64 == libc::SYS_madvise { memory::advice(a) } else { a };
    let record = &guest.thread.under_way;
    let pending = written::before(record, nr, &a);
    let outcome = make(guest, nr, a);
    let result = match outcome {
        Outcome::Result(result) => result,
        Outcome::Registers => 0,
    };
    written::after(record, &pending, result);
    outcome
}

fn make(guest: &mut Guest<'_>, nr: u64, a: [u64; 6]) -> Outcome {
    let result = match nr as i64 {
        libc::SYS_mmap => memory::mmap(a),
        libc::SYS_munmap => memory::munmap(a),
        libc::SYS_mprotect | libc::SYS_pkey_mprotect => memory::mprotect(nr, a),
        libc::SYS_mremap => memory::mremap(a),
        libc::SYS_brk => program_break::brk(guest, a[0]),
        libc::SYS_shmat | libc::SYS_shmdt | libc::SYS_remap_file_pages => memory::other(nr, a),

        libc::SYS_clone => tasks::clone(guest, a),
        libc::SYS_clone3 => tasks::clone3(guest, a),
        libc::SYS_fork => tasks::fork(guest),
        libc::SYS_vfork => tasks::vfork(guest),
        libc::SYS_exit => tasks::exit(guest, a[0]),

        nr if descriptors::on_ours(nr, a) => -i64::from(libc::EBADF),
        libc::SYS_close_range => descriptors::close_range(guest, a),
        libc::SYS_getdents64 => descriptors::getdents64(guest, a),

        libc::SYS_userfaultfd => user_faults::open(guest, nr, a, a[0]),
        libc::SYS_ioctl if a[1] as u32 == user_faults::NEW => user_faults::open(guest, nr, a, a[2]),
        libc::SYS_ioctl
            if a[1] as u32 == user_faults::API && user_faults::is_refused(a[0], a[2]) =>
        {
            -i64::from(libc::EINVAL)
        }

        libc::SYS_rt_sigaction => actions::sigaction(guest.process(), a[0], a[1], a[2], a[3]),
        libc::SYS_rt_sigreturn => {
            deliver::sigreturn(guest);
            return Outcome::Registers;
        }
        libc::SYS_sigaltstack => deliver::sigaltstack(guest, a[0], a[1]),

        libc::SYS_arch_prctl => state::arch_prctl(guest, a),
        libc::SYS_prctl => state::prctl(guest, a),
        libc::SYS_rseq | libc::SYS_seccomp => -i64::from(libc::ENOSYS),
        libc::SYS_modify_ldt | libc::SYS_iopl | libc::SYS_ioperm => -i64::from(libc::ENOSYS),
        _ => forward(guest, nr, a),
    };
    Outcome::Result(result)
}

/// Makes the call as it is.
pub(crate) fn forward(guest: &Guest<'_>, nr: u64, a: [u64; 6]) -> i64 {
    // SAFETY: the program asked for it, with addresses of this very address space; what it may not
    // do to the monitor the match above keeps from it. The flag is that of the thread's handler.
    unsafe { sys::forward::forward(nr, a, &guest.thread.pending) }
}
