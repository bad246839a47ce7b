//! Any call with arguments by chance: addresses in the arena, descriptors, sizes, small numbers; and
//! argument blocks of the same. It runs without privileges, and is interrupted again and again.
//!
//! `DUNE_EFFECTS_CALLS=20000 DUNE_EFFECTS_SEED=7 cargo test -p dune --test effects chance` is a longer run with
//! other numbers.
//!
//! Left out is what would end, stop or unmap the test itself, or write later than the call.

use dune::effects;

use super::Case;
use super::arena::{Run, raw_call};
use super::time::pestered;

pub const CASES: &[Case] = &[
    ("chance 1", |r| chance(r, 1)),
    ("chance 2", |r| chance(r, 2)),
    ("chance 3", |r| chance(r, 3)),
    ("chance 4", |r| chance(r, 4)),
];

/// Calls for each pattern of a case, if `DUNE_EFFECTS_CALLS` does not say.
const CALLS: usize = 1500;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

const LEFT_OUT: &[&str] = &[
    // They end or stop the test, or make another of it.
    "exit",
    "exit_group",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "execve",
    "execveat",
    "kill",
    "tkill",
    "tgkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_send_signal",
    "reboot",
    "kexec_load",
    "kexec_file_load",
    "rt_sigreturn",
    "uretprobe",
    "vhangup",
    "ptrace",
    "seccomp",
    "prctl",
    "arch_prctl",
    "setrlimit",
    "prlimit64",
    "unshare",
    "setns",
    "personality",
    "modify_ldt",
    // They change which signals interrupt it, or when.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigsuspend",
    "ppoll",
    "pselect6",
    "epoll_pwait",
    "epoll_pwait2",
    "io_pgetevents",
    "sigaltstack",
    "alarm",
    "setitimer",
    "timer_settime",
    "fcntl",
    "ioctl",
    "rt_sigtimedwait",
    "restart_syscall",
    "pause",
    // They unmap the arena, or the test.
    "mmap",
    "munmap",
    "mremap",
    "brk",
    "mprotect",
    "pkey_mprotect",
    "madvise",
    "process_madvise",
    "mseal",
    "shmat",
    "shmdt",
    "remap_file_pages",
    // They write later than the call.
    "set_robust_list",
    "set_tid_address",
    "rseq",
    "io_submit",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "bpf",
    // They take away the descriptors, the user, or the processor.
    "close",
    "close_range",
    "dup2",
    "dup3",
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setfsuid",
    "setfsgid",
    "setgroups",
    "capset",
    "sched_setscheduler",
    "sched_setparam",
    "sched_setattr",
    "sched_setaffinity",
    "setpriority",
    "ioprio_set",
    "mlockall",
    "sync",
    "chroot",
];

struct Chance {
    state: u64,
    base: u64,
    fds: Vec<u64>,
    pid: u64,
}

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(97);
        (self.state >> 33) % n
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[self.below(from.len() as u64) as usize]
    }

    /// An address in the arena, at times at its end, unaligned or elsewhere.
    fn address(&mut self) -> u64 {
        let bytes = super::arena::BYTES as u64;
        match self.below(20) {
            0 => 0,
            1 => self.base + bytes - self.below(64),
            2 => self.base + self.below(bytes - 8192),
            3 => self.base + self.below(8) * 4096,
            _ => self.base + 4096 + self.below(60) * 1024,
        }
    }

    fn number(&mut self) -> u64 {
        let sizes =
            [4, 8, 12, 16, 24, 32, 48, 56, 64, 88, 100, 128, 144, 256, 512, 1000, 4096, 8000];
        match self.below(12) {
            0..=4 => self.below(8),
            5 | 6 => self.pick(&sizes),
            7 => self.below(64),
            8 => 1 << self.below(32),
            9 => self.pid,
            10 => self.pick(&[u64::MAX, 0xffff_ffff, 0x8000_0000, 1 << 40]),
            _ => self.pick(&sizes) + self.below(3),
        }
    }

    fn word(&mut self) -> u64 {
        match self.below(4) {
            0 | 1 => self.address(),
            2 => self.number(),
            _ => self.number() << 32 | self.below(16),
        }
    }

    fn argument(&mut self) -> u64 {
        match self.below(10) {
            0..=4 => self.address(),
            5 | 6 => {
                let fds = std::mem::take(&mut self.fds);
                let fd = self.pick(&fds);
                self.fds = fds;
                fd
            }
            _ => self.number(),
        }
    }
}

fn descriptors(r: &mut Run) -> Vec<u64> {
    let mut fds = Vec::new();
    for path in ["/proc/self/status", "/dev/zero", "/proc/self/fd", "/dev/null", "/proc/self/mem"] {
        let path = r.str(path);
        fds.push(r.ok(libc::SYS_open, &[path, libc::O_RDONLY as u64]) as u64);
    }
    fds.push(super::files::file(r, "f", 5000));
    for domain in [libc::AF_UNIX, libc::AF_INET, libc::AF_NETLINK] {
        let fd = r.call(libc::SYS_socket, &[domain as u64, libc::SOCK_DGRAM as u64, 0]);
        fds.extend(u64::try_from(fd));
    }
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
        let pair = r.out(8);
        r.ok(libc::SYS_socketpair, &[libc::AF_UNIX as u64, kind as u64, 0, pair]);
        fds.extend([r.get_i32(pair) as u64, r.get_i32(pair + 4) as u64]);
    }
    let pair = r.out(8);
    r.ok(libc::SYS_pipe, &[pair]);
    fds.extend([r.get_i32(pair) as u64, r.get_i32(pair + 4) as u64]);
    fds.push(r.ok(libc::SYS_epoll_create1, &[0]) as u64);
    fds.push(r.ok(libc::SYS_eventfd2, &[1, 0]) as u64);
    fds.push(r.ok(libc::SYS_timerfd_create, &[1, 0]) as u64);
    fds.push(r.ok(libc::SYS_inotify_init1, &[0]) as u64);
    fds.extend([u64::MAX, libc::AT_FDCWD as i64 as u64]);
    fds
}

fn chance(r: &mut Run, seed: u64) {
    let fds = descriptors(r);
    let numbers: Vec<i64> = (0..=effects::LAST_KNOWN)
        .filter(|n| effects::name(*n).is_some_and(|name| !LEFT_OUT.contains(&name)))
        .map(|n| n as i64)
        .collect();
    // SAFETY: only numbers; the saved identity stays, to come back.
    unsafe {
        libc::setresgid(u32::MAX, 65534, u32::MAX);
        libc::setresuid(u32::MAX, 65534, u32::MAX);
    }
    let pid = u64::from(std::process::id());
    let seed = seed + 1000 * from_environment("DUNE_EFFECTS_SEED").unwrap_or(0);
    let mut chance = Chance { state: seed, base: r.base, fds, pid };
    pestered(|| {
        for _ in 0..from_environment("DUNE_EFFECTS_CALLS").unwrap_or(CALLS as u64) {
            let number = numbers[chance.below(numbers.len() as u64) as usize];
            let args = [(); 6].map(|()| chance.argument());
            // What an address leads to is as likely to make sense.
            for arg in args {
                let words = 2 + chance.below(16);
                let end = r.base + super::arena::BYTES as u64;
                if (r.base..end - 8 * words).contains(&arg) {
                    for i in 0..words {
                        let word = chance.word();
                        r.set(arg + 8 * i, &word.to_le_bytes());
                    }
                }
            }
            r.checked(number, &args, |six| raw_call(number, six));
        }
    });
    // SAFETY: as above.
    unsafe {
        libc::setresuid(u32::MAX, 0, u32::MAX);
        libc::setresgid(u32::MAX, 0, u32::MAX);
    }
}
