//! `ptrace`.

use dune::effects::Why;

use super::Case;
use super::arena::Run;

pub const CASES: &[Case] = &[("ptrace", ptrace)];

fn ptrace(r: &mut Run) {
    // SAFETY: the child makes system calls only.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0);
            libc::kill(libc::getpid(), libc::SIGSTOP);
            loop {
                libc::getppid();
            }
        }
        child
    };
    assert!(child > 0);
    let pid = child as u64;
    let status = r.out(4);
    r.wrote(libc::SYS_wait4, &[pid, status, 0, 0]);
    assert_eq!(r.get_i32(status) & 0xff, 0x7f, "it is stopped");
    let call = libc::SYS_ptrace;
    // PEEKTEXT, PEEKDATA of our own code, which the child has too; PEEKUSR.
    for (request, address) in [(1, ptrace as *const () as u64), (2, r.base), (3, 0)] {
        let to = r.out(64);
        r.wrote(call, &[request, pid, address, to]);
    }
    // GETREGS, GETFPREGS, GETSIGINFO, GETSIGMASK.
    for (request, address) in [(12, 0), (14, 0), (0x4202, 0), (0x420a, 8)] {
        let to = r.out(1024);
        r.wrote(call, &[request, pid, address, to]);
    }
    let to = r.out(64);
    r.call(call, &[0x4201, pid, 0, to]);
    // GETREGSET: general registers, floating point, the extended state; also with less room.
    for (set, room) in [(1, 512u64), (1, 40), (2, 1024), (0x202, 16384)] {
        let to = r.out(room as usize);
        let vector = r.words(&[to, room]);
        r.wrote(call, &[0x4204, pid, set, vector]);
    }
    // A queued signal, and a look at the queue.
    r.ok(libc::SYS_kill, &[pid, libc::SIGUSR1 as u64]);
    for flags in [0u64, 1] {
        let arguments = r.words(&[0, flags | 4 << 32]);
        let to = r.out(1024);
        r.call(call, &[0x4209, pid, arguments, to]);
    }
    // GET_SYSCALL_INFO, GET_RSEQ_CONFIGURATION, GET_SYSCALL_USER_DISPATCH_CONFIG, with their sizes.
    for (request, size) in [(0x420e, 88), (0x420e, 20), (0x420f, 24), (0x4211, 32)] {
        let to = r.out(256);
        r.call(call, &[request, pid, size, to]);
    }
    // SECCOMP_GET_FILTER, SECCOMP_GET_METADATA, GET_THREAD_AREA, ARCH_PRCTL (GET_FS).
    let to = r.out(40_000);
    r.call(call, &[0x420c, pid, 0, to]);
    let to = r.words(&[0, 0]);
    r.call(call, &[0x420d, pid, 16, to]);
    let to = r.out(64);
    r.call(call, &[25, pid, 12, to]);
    let to = r.out(64);
    r.wrote(call, &[30, pid, to, 0x1003]);
    // POKEDATA writes to the child, whose memory is not ours.
    r.ok(call, &[5, pid, r.base, 0x1234]);
    r.unbounded(call, &[0x9999, pid, 0, to], Why::UnknownOperation);
    // KILL.
    r.ok(call, &[8, pid, 0, 0]);
    r.ok(libc::SYS_kill, &[pid, 9]);
    r.wrote(libc::SYS_wait4, &[pid, status, 0, 0]);
}
