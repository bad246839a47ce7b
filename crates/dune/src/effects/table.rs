//! One row a system call of Linux 6.12 for x86-64: its number, its name, and what it writes.
//!
//! The numbers are those of `arch/x86/entry/syscalls/syscall_64.tbl`, the signatures those of the
//! `SYSCALL_DEFINE`s; what is written was read from the code behind them, for every call, and is tried
//! against a running kernel call by call (`tests/effects`). An empty list says that the call was looked at
//! and writes nothing. A file of its own length because a table is best read in one piece.
//!
//! Why the ranges bound the writes: a structure is written whole by one `copy_to_user` of its size
//! (or in part, on a fault); a buffer's length is the one that the kernel checks each copy against. A length
//! in memory that the kernel reads a second time, after others may have changed it, is not relied on if
//! what is copied has a bound of its own: socket addresses are at most 128 bytes (`sockaddr_storage`),
//! file handles 128 (`MAX_HANDLE_SZ`).
//!
//! Why a result rarely cuts a range: direct I/O may have filled what follows the part that it
//! reports, a copy that faults counts what it knows of, and an error after a part is an error only. It
//! cuts where the kernel makes its answer in memory of its own and copies that, and no more, in one
//! piece (`result`, `cut`).

use super::Until;
use super::Why::{self, Bpf, IoUring, IoUringSetup, Restarts, SizeUnknown, Stack};

/// One system call.
pub(super) struct Row {
    /// Its number.
    pub(super) number: u16,
    /// Its name in the kernel's table.
    pub(super) name: &'static str,
    /// What it writes.
    pub(super) writes: &'static [Item],
}

/// The type of a length argument: how much of the register counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    /// `unsigned int`.
    U32,
    /// `int`; a negative one is refused.
    I32,
    /// `size_t`, `unsigned long`.
    U64,
    /// `long`; a negative one is refused.
    I64,
}

/// One thing that a call writes. Arguments are counted from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// `bytes` at argument `at`.
    Fixed {
        at: u8,
        bytes: u32,
    },
    /// As many items of `unit` bytes as argument `len` says. `cut`: a result that is no error is the
    /// number of items written.
    Sized {
        at: u8,
        len: u8,
        width: Width,
        unit: u32,
        cut: bool,
    },
    /// As many bytes as the `unsigned int` at argument `length` says, which is itself `bytes` long and
    /// written.
    SizedBy {
        at: u8,
        length: u8,
        bytes: u32,
    },
    /// A structure that is written for longer than the call.
    Lasting {
        at: u8,
        bytes: u32,
        until: Until,
    },
    /// Pages, from argument `at` on, as many bytes as argument `len` says.
    Replaced {
        at: u8,
        len: u8,
    },
    /// The buffers of an `iovec` array.
    Iov {
        at: u8,
        count: u8,
    },
    /// It cannot be told.
    Unknown(Why),
    /// Nothing of its own, but the descriptor may be a device whose `read` writes elsewhere.
    Read(u8),
    /// As with `Read`, for `write` at the file's own offset.
    Write(u8),
    /// `pwrite64`: the file may be memory.
    WriteAt {
        fd: u8,
        buffer: u8,
    },
    /// `pwritev`, `pwritev2`.
    WriteVectorAt,
    // The rest are calls with rules of their own (`files`, `mappings`, `sockets`, `control`, `threads`).
    Brk,
    Mmap,
    Mremap,
    Madvise,
    ProcessMadvise,
    MapShadowStack,
    Mincore,
    Shmat,
    Shmctl,
    Semctl,
    Msgctl,
    Msgrcv,
    Ioctl,
    Fcntl,
    Sysfs,
    FdSets,
    NodeMask,
    IoSubmit,
    Recvmsg,
    Recvmmsg,
    Setsockopt,
    Getsockopt,
    Prctl,
    ArchPrctl,
    Ptrace,
    Keyctl,
    Seccomp,
    Futex,
    Clone,
    Clone3,
    Rseq,
    Exits,
}

use Item::*;
use Width::{I32, I64, U32, U64};

// Sizes in bytes of the kernel's structures on x86-64.
const CACHESTAT: u32 = 40;
const CAP_DATA: u32 = 24; // two of `__user_cap_data_struct`
const EPOLL_EVENT: u32 = 12; // packed on x86-64
const FILE_HANDLE: u32 = 8 + 128;
const IOCB: u32 = 64;
const IO_EVENT: u32 = 32;
const IO_URING_PARAMS: u32 = 120;
const ITIMERSPEC: u32 = 32;
const ITIMERVAL: u32 = 32;
pub(super) const MMSGHDR: u32 = 64;
const MQ_ATTR: u32 = 64;
const OFFSET: u32 = 8;
const POLLFD: u32 = 8;
const QUOTA: u32 = 256; // the largest answer is `fs_quota_statv`, 176
const RLIMIT: u32 = 16;
const RUSAGE: u32 = 144;
const SIGACTION: u32 = 32;
pub(super) const SIGINFO: u32 = 128;
const SIGSET: u32 = 8;
pub(super) const SOCKADDR: u32 = 128;
const SOCKLEN: u32 = 4;
const STACK: u32 = 24;
const STAT: u32 = 144;
const STATFS: u32 = 120;
const STATX: u32 = 256;
const SYSINFO: u32 = 112;
const TIMESPEC: u32 = 16;
const TIMEVAL: u32 = 16;
const TIMEX: u32 = 208;
const TIMEZONE: u32 = 8;
const TMS: u32 = 32;
const USTAT: u32 = 32;
const UTSNAME: u32 = 390;

/// `epoll_wait` and its kin.
const EPOLL: Item = Sized { at: 1, len: 2, width: I32, unit: EPOLL_EVENT, cut: false };

const fn row(number: u16, name: &'static str, writes: &'static [Item]) -> Row {
    Row { number, name, writes }
}

/// A number that is reserved and answered with `ENOSYS`, for good.
const fn retired(number: u16, name: &'static str) -> Row {
    Row { number, name, writes: &[] }
}

const fn fix(at: u8, bytes: u32) -> Item {
    Fixed { at, bytes }
}

/// A buffer with a `size_t`.
const fn buf(at: u8, len: u8) -> Item {
    Sized { at, len, width: U64, unit: 1, cut: false }
}

/// A buffer with an `unsigned int`.
const fn buf32(at: u8, len: u8) -> Item {
    Sized { at, len, width: U32, unit: 1, cut: false }
}

/// A buffer with a `size_t`, of which as many items are written as the call returns.
const fn result(at: u8, len: u8, unit: u32) -> Item {
    Sized { at, len, width: U64, unit, cut: true }
}

/// The row of a number, if there is one.
pub(super) fn find(number: u64) -> Option<&'static Row> {
    const HIGH: u64 = FIRST_HIGH as u64;
    let (part, index): (&[Row], u64) =
        if number < HIGH { (&LOW_ROWS, number) } else { (&HIGH_ROWS, number - HIGH) };
    part.get(usize::try_from(index).ok()?).filter(|row| u64::from(row.number) == number)
}

/// Where the numbers go on after the gap that other architectures fill.
pub(super) const FIRST_HIGH: u16 = 424;
/// The last number of Linux 6.12, `mseal`.
pub(super) const LAST: u16 = 462;

#[rustfmt::skip]
static LOW_ROWS: [Row; 336] = [
    row(0, "read", &[Read(0), buf(1, 2)]),
    row(1, "write", &[Write(0)]),
    row(2, "open", &[]),
    row(3, "close", &[]),
    row(4, "stat", &[fix(1, STAT)]),
    row(5, "fstat", &[fix(1, STAT)]),
    row(6, "lstat", &[fix(1, STAT)]),
    row(7, "poll", &[Sized { at: 0, len: 1, width: U32, unit: POLLFD, cut: false }]),
    row(8, "lseek", &[]),
    row(9, "mmap", &[Mmap]),
    row(10, "mprotect", &[]),
    row(11, "munmap", &[Replaced { at: 0, len: 1 }]),
    row(12, "brk", &[Brk]),
    row(13, "rt_sigaction", &[fix(2, SIGACTION)]),
    row(14, "rt_sigprocmask", &[fix(2, SIGSET)]),
    row(15, "rt_sigreturn", &[]),
    row(16, "ioctl", &[Ioctl]),
    row(17, "pread64", &[Read(0), buf(1, 2)]),
    row(18, "pwrite64", &[WriteAt { fd: 0, buffer: 1 }]),
    row(19, "readv", &[Read(0), Iov { at: 1, count: 2 }]),
    row(20, "writev", &[Write(0)]),
    row(21, "access", &[]),
    row(22, "pipe", &[fix(0, 8)]),
    row(23, "select", &[FdSets, fix(4, TIMEVAL)]),
    row(24, "sched_yield", &[]),
    row(25, "mremap", &[Mremap]),
    row(26, "msync", &[]),
    row(27, "mincore", &[Mincore]),
    row(28, "madvise", &[Madvise]),
    row(29, "shmget", &[]),
    row(30, "shmat", &[Shmat]),
    row(31, "shmctl", &[Shmctl]),
    row(32, "dup", &[]),
    row(33, "dup2", &[]),
    row(34, "pause", &[]),
    row(35, "nanosleep", &[fix(1, TIMESPEC)]),
    row(36, "getitimer", &[fix(1, ITIMERVAL)]),
    row(37, "alarm", &[]),
    row(38, "setitimer", &[fix(2, ITIMERVAL)]),
    row(39, "getpid", &[]),
    row(40, "sendfile", &[fix(2, OFFSET)]),
    row(41, "socket", &[]),
    row(42, "connect", &[]),
    row(43, "accept", &[fix(1, SOCKADDR), fix(2, SOCKLEN)]),
    row(44, "sendto", &[]),
    row(45, "recvfrom", &[buf(1, 2), fix(4, SOCKADDR), fix(5, SOCKLEN)]),
    row(46, "sendmsg", &[]),
    row(47, "recvmsg", &[Recvmsg]),
    row(48, "shutdown", &[]),
    row(49, "bind", &[]),
    row(50, "listen", &[]),
    row(51, "getsockname", &[fix(1, SOCKADDR), fix(2, SOCKLEN)]),
    row(52, "getpeername", &[fix(1, SOCKADDR), fix(2, SOCKLEN)]),
    row(53, "socketpair", &[fix(3, 8)]),
    row(54, "setsockopt", &[Setsockopt]),
    row(55, "getsockopt", &[Getsockopt]),
    row(56, "clone", &[Clone]),
    row(57, "fork", &[]),
    row(58, "vfork", &[]),
    row(59, "execve", &[Exits]),
    row(60, "exit", &[Exits]),
    row(61, "wait4", &[fix(1, 4), fix(3, RUSAGE)]),
    row(62, "kill", &[]),
    row(63, "uname", &[fix(0, UTSNAME)]),
    row(64, "semget", &[]),
    row(65, "semop", &[]),
    row(66, "semctl", &[Semctl]),
    row(67, "shmdt", &[Unknown(SizeUnknown)]),
    row(68, "msgget", &[]),
    row(69, "msgsnd", &[]),
    row(70, "msgrcv", &[fix(1, 8), Msgrcv]),
    row(71, "msgctl", &[Msgctl]),
    row(72, "fcntl", &[Fcntl]),
    row(73, "flock", &[]),
    row(74, "fsync", &[]),
    row(75, "fdatasync", &[]),
    row(76, "truncate", &[]),
    row(77, "ftruncate", &[]),
    row(78, "getdents", &[buf32(1, 2)]),
    row(79, "getcwd", &[result(0, 1, 1)]),
    row(80, "chdir", &[]),
    row(81, "fchdir", &[]),
    row(82, "rename", &[]),
    row(83, "mkdir", &[]),
    row(84, "rmdir", &[]),
    row(85, "creat", &[]),
    row(86, "link", &[]),
    row(87, "unlink", &[]),
    row(88, "symlink", &[]),
    row(89, "readlink", &[Sized { at: 1, len: 2, width: I32, unit: 1, cut: true }]),
    row(90, "chmod", &[]),
    row(91, "fchmod", &[]),
    row(92, "chown", &[]),
    row(93, "fchown", &[]),
    row(94, "lchown", &[]),
    row(95, "umask", &[]),
    row(96, "gettimeofday", &[fix(0, TIMEVAL), fix(1, TIMEZONE)]),
    row(97, "getrlimit", &[fix(1, RLIMIT)]),
    row(98, "getrusage", &[fix(1, RUSAGE)]),
    row(99, "sysinfo", &[fix(0, SYSINFO)]),
    row(100, "times", &[fix(0, TMS)]),
    row(101, "ptrace", &[Ptrace]),
    row(102, "getuid", &[]),
    row(103, "syslog", &[Sized { at: 1, len: 2, width: I32, unit: 1, cut: false }]),
    row(104, "getgid", &[]),
    row(105, "setuid", &[]),
    row(106, "setgid", &[]),
    row(107, "geteuid", &[]),
    row(108, "getegid", &[]),
    row(109, "setpgid", &[]),
    row(110, "getppid", &[]),
    row(111, "getpgrp", &[]),
    row(112, "setsid", &[]),
    row(113, "setreuid", &[]),
    row(114, "setregid", &[]),
    row(115, "getgroups", &[Sized { at: 1, len: 0, width: I32, unit: 4, cut: true }]),
    row(116, "setgroups", &[]),
    row(117, "setresuid", &[]),
    row(118, "getresuid", &[fix(0, 4), fix(1, 4), fix(2, 4)]),
    row(119, "setresgid", &[]),
    row(120, "getresgid", &[fix(0, 4), fix(1, 4), fix(2, 4)]),
    row(121, "getpgid", &[]),
    row(122, "setfsuid", &[]),
    row(123, "setfsgid", &[]),
    row(124, "getsid", &[]),
    row(125, "capget", &[fix(0, 4), fix(1, CAP_DATA)]),
    row(126, "capset", &[fix(0, 4)]),
    row(127, "rt_sigpending", &[fix(0, SIGSET)]),
    row(128, "rt_sigtimedwait", &[fix(1, SIGINFO)]),
    row(129, "rt_sigqueueinfo", &[]),
    row(130, "rt_sigsuspend", &[]),
    row(131, "sigaltstack", &[fix(1, STACK)]),
    row(132, "utime", &[]),
    row(133, "mknod", &[]),
    retired(134, "uselib"),
    row(135, "personality", &[]),
    row(136, "ustat", &[fix(1, USTAT)]),
    row(137, "statfs", &[fix(1, STATFS)]),
    row(138, "fstatfs", &[fix(1, STATFS)]),
    row(139, "sysfs", &[Sysfs]),
    row(140, "getpriority", &[]),
    row(141, "setpriority", &[]),
    row(142, "sched_setparam", &[]),
    row(143, "sched_getparam", &[fix(1, 4)]),
    row(144, "sched_setscheduler", &[]),
    row(145, "sched_getscheduler", &[]),
    row(146, "sched_get_priority_max", &[]),
    row(147, "sched_get_priority_min", &[]),
    row(148, "sched_rr_get_interval", &[fix(1, TIMESPEC)]),
    row(149, "mlock", &[]),
    row(150, "munlock", &[]),
    row(151, "mlockall", &[]),
    row(152, "munlockall", &[]),
    row(153, "vhangup", &[]),
    row(154, "modify_ldt", &[buf(1, 2)]),
    row(155, "pivot_root", &[]),
    retired(156, "_sysctl"),
    row(157, "prctl", &[Prctl]),
    row(158, "arch_prctl", &[ArchPrctl]),
    row(159, "adjtimex", &[fix(0, TIMEX)]),
    row(160, "setrlimit", &[]),
    row(161, "chroot", &[]),
    row(162, "sync", &[]),
    row(163, "acct", &[]),
    row(164, "settimeofday", &[]),
    row(165, "mount", &[]),
    row(166, "umount2", &[]),
    row(167, "swapon", &[]),
    row(168, "swapoff", &[]),
    row(169, "reboot", &[]),
    row(170, "sethostname", &[]),
    row(171, "setdomainname", &[]),
    row(172, "iopl", &[]),
    row(173, "ioperm", &[]),
    retired(174, "create_module"),
    row(175, "init_module", &[]),
    row(176, "delete_module", &[]),
    retired(177, "get_kernel_syms"),
    retired(178, "query_module"),
    row(179, "quotactl", &[fix(3, QUOTA)]),
    retired(180, "nfsservctl"),
    retired(181, "getpmsg"),
    retired(182, "putpmsg"),
    retired(183, "afs_syscall"),
    retired(184, "tuxcall"),
    retired(185, "security"),
    row(186, "gettid", &[]),
    row(187, "readahead", &[]),
    row(188, "setxattr", &[]),
    row(189, "lsetxattr", &[]),
    row(190, "fsetxattr", &[]),
    row(191, "getxattr", &[result(2, 3, 1)]),
    row(192, "lgetxattr", &[result(2, 3, 1)]),
    row(193, "fgetxattr", &[result(2, 3, 1)]),
    row(194, "listxattr", &[result(1, 2, 1)]),
    row(195, "llistxattr", &[result(1, 2, 1)]),
    row(196, "flistxattr", &[result(1, 2, 1)]),
    row(197, "removexattr", &[]),
    row(198, "lremovexattr", &[]),
    row(199, "fremovexattr", &[]),
    row(200, "tkill", &[]),
    row(201, "time", &[fix(0, 8)]),
    row(202, "futex", &[Futex]),
    row(203, "sched_setaffinity", &[]),
    row(204, "sched_getaffinity", &[Sized { at: 2, len: 1, width: U32, unit: 1, cut: true }]),
    retired(205, "set_thread_area"),
    row(206, "io_setup", &[fix(1, 8)]),
    row(207, "io_destroy", &[]),
    row(208, "io_getevents", &[Sized { at: 3, len: 2, width: I64, unit: IO_EVENT, cut: false }]),
    row(209, "io_submit", &[IoSubmit]),
    row(210, "io_cancel", &[fix(1, IOCB), fix(2, IO_EVENT)]),
    retired(211, "get_thread_area"),
    row(212, "lookup_dcookie", &[buf(1, 2)]),
    row(213, "epoll_create", &[]),
    retired(214, "epoll_ctl_old"),
    retired(215, "epoll_wait_old"),
    row(216, "remap_file_pages", &[Replaced { at: 0, len: 1 }]),
    row(217, "getdents64", &[buf32(1, 2)]),
    row(218, "set_tid_address", &[Lasting { at: 0, bytes: 4, until: Until::ThreadExits }]),
    row(219, "restart_syscall", &[Unknown(Restarts)]),
    row(220, "semtimedop", &[]),
    row(221, "fadvise64", &[]),
    row(222, "timer_create", &[fix(2, 4)]),
    row(223, "timer_settime", &[fix(3, ITIMERSPEC)]),
    row(224, "timer_gettime", &[fix(1, ITIMERSPEC)]),
    row(225, "timer_getoverrun", &[]),
    row(226, "timer_delete", &[]),
    row(227, "clock_settime", &[]),
    row(228, "clock_gettime", &[fix(1, TIMESPEC)]),
    row(229, "clock_getres", &[fix(1, TIMESPEC)]),
    row(230, "clock_nanosleep", &[fix(3, TIMESPEC)]),
    row(231, "exit_group", &[Exits]),
    row(232, "epoll_wait", &[EPOLL]),
    row(233, "epoll_ctl", &[]),
    row(234, "tgkill", &[]),
    row(235, "utimes", &[]),
    retired(236, "vserver"),
    row(237, "mbind", &[]),
    row(238, "set_mempolicy", &[]),
    row(239, "get_mempolicy", &[fix(0, 4), NodeMask]),
    row(240, "mq_open", &[]),
    row(241, "mq_unlink", &[]),
    row(242, "mq_timedsend", &[]),
    row(243, "mq_timedreceive", &[buf(1, 2), fix(3, 4)]),
    row(244, "mq_notify", &[]),
    row(245, "mq_getsetattr", &[fix(2, MQ_ATTR)]),
    row(246, "kexec_load", &[]),
    row(247, "waitid", &[fix(2, SIGINFO), fix(4, RUSAGE)]),
    row(248, "add_key", &[]),
    row(249, "request_key", &[]),
    row(250, "keyctl", &[Keyctl]),
    row(251, "ioprio_set", &[]),
    row(252, "ioprio_get", &[]),
    row(253, "inotify_init", &[]),
    row(254, "inotify_add_watch", &[]),
    row(255, "inotify_rm_watch", &[]),
    row(256, "migrate_pages", &[]),
    row(257, "openat", &[]),
    row(258, "mkdirat", &[]),
    row(259, "mknodat", &[]),
    row(260, "fchownat", &[]),
    row(261, "futimesat", &[]),
    row(262, "newfstatat", &[fix(2, STAT)]),
    row(263, "unlinkat", &[]),
    row(264, "renameat", &[]),
    row(265, "linkat", &[]),
    row(266, "symlinkat", &[]),
    row(267, "readlinkat", &[Sized { at: 2, len: 3, width: I32, unit: 1, cut: true }]),
    row(268, "fchmodat", &[]),
    row(269, "faccessat", &[]),
    row(270, "pselect6", &[FdSets, fix(4, TIMESPEC)]),
    row(271, "ppoll", &[Sized { at: 0, len: 1, width: U32, unit: POLLFD, cut: false }, fix(2, TIMESPEC)]),
    row(272, "unshare", &[]),
    row(273, "set_robust_list", &[]),
    row(274, "get_robust_list", &[fix(1, 8), fix(2, 8)]),
    row(275, "splice", &[fix(1, OFFSET), fix(3, OFFSET)]),
    row(276, "tee", &[]),
    row(277, "sync_file_range", &[]),
    row(278, "vmsplice", &[Iov { at: 1, count: 2 }]),
    row(279, "move_pages", &[Sized { at: 4, len: 1, width: U64, unit: 4, cut: false }]),
    row(280, "utimensat", &[]),
    row(281, "epoll_pwait", &[EPOLL]),
    row(282, "signalfd", &[]),
    row(283, "timerfd_create", &[]),
    row(284, "eventfd", &[]),
    row(285, "fallocate", &[]),
    row(286, "timerfd_settime", &[fix(3, ITIMERSPEC)]),
    row(287, "timerfd_gettime", &[fix(1, ITIMERSPEC)]),
    row(288, "accept4", &[fix(1, SOCKADDR), fix(2, SOCKLEN)]),
    row(289, "signalfd4", &[]),
    row(290, "eventfd2", &[]),
    row(291, "epoll_create1", &[]),
    row(292, "dup3", &[]),
    row(293, "pipe2", &[fix(0, 8)]),
    row(294, "inotify_init1", &[]),
    row(295, "preadv", &[Read(0), Iov { at: 1, count: 2 }]),
    row(296, "pwritev", &[WriteVectorAt]),
    row(297, "rt_tgsigqueueinfo", &[]),
    row(298, "perf_event_open", &[fix(0, 8)]),
    row(299, "recvmmsg", &[Recvmmsg, fix(4, TIMESPEC)]),
    row(300, "fanotify_init", &[]),
    row(301, "fanotify_mark", &[]),
    row(302, "prlimit64", &[fix(3, RLIMIT)]),
    row(303, "name_to_handle_at", &[fix(2, FILE_HANDLE), fix(3, 8)]),
    row(304, "open_by_handle_at", &[]),
    row(305, "clock_adjtime", &[fix(1, TIMEX)]),
    row(306, "syncfs", &[]),
    row(307, "sendmmsg", &[Sized { at: 1, len: 2, width: U32, unit: MMSGHDR, cut: false }]),
    row(308, "setns", &[]),
    row(309, "getcpu", &[fix(0, 4), fix(1, 4)]),
    row(310, "process_vm_readv", &[Iov { at: 1, count: 2 }]),
    row(311, "process_vm_writev", &[Iov { at: 3, count: 4 }]),
    row(312, "kcmp", &[]),
    row(313, "finit_module", &[]),
    row(314, "sched_setattr", &[fix(1, 4)]),
    row(315, "sched_getattr", &[buf32(1, 2)]),
    row(316, "renameat2", &[]),
    row(317, "seccomp", &[Seccomp]),
    row(318, "getrandom", &[buf(0, 1)]),
    row(319, "memfd_create", &[]),
    row(320, "kexec_file_load", &[]),
    row(321, "bpf", &[Unknown(Bpf)]),
    row(322, "execveat", &[Exits]),
    row(323, "userfaultfd", &[]),
    row(324, "membarrier", &[]),
    row(325, "mlock2", &[]),
    row(326, "copy_file_range", &[fix(1, OFFSET), fix(3, OFFSET)]),
    row(327, "preadv2", &[Read(0), Iov { at: 1, count: 2 }]),
    row(328, "pwritev2", &[WriteVectorAt]),
    row(329, "pkey_mprotect", &[]),
    row(330, "pkey_alloc", &[]),
    row(331, "pkey_free", &[]),
    row(332, "statx", &[fix(4, STATX)]),
    row(333, "io_pgetevents", &[Sized { at: 3, len: 2, width: I64, unit: IO_EVENT, cut: false }]),
    row(334, "rseq", &[Rseq]),
    row(335, "uretprobe", &[Unknown(Stack)]),
];

#[rustfmt::skip]
static HIGH_ROWS: [Row; 39] = [
    row(424, "pidfd_send_signal", &[]),
    row(425, "io_uring_setup", &[fix(1, IO_URING_PARAMS), Unknown(IoUringSetup)]),
    row(426, "io_uring_enter", &[Unknown(IoUring)]),
    row(427, "io_uring_register", &[Unknown(IoUring)]),
    row(428, "open_tree", &[]),
    row(429, "move_mount", &[]),
    row(430, "fsopen", &[]),
    row(431, "fsconfig", &[]),
    row(432, "fsmount", &[]),
    row(433, "fspick", &[]),
    row(434, "pidfd_open", &[]),
    row(435, "clone3", &[Clone3]),
    row(436, "close_range", &[]),
    row(437, "openat2", &[]),
    row(438, "pidfd_getfd", &[]),
    row(439, "faccessat2", &[]),
    row(440, "process_madvise", &[ProcessMadvise]),
    row(441, "epoll_pwait2", &[EPOLL]),
    row(442, "mount_setattr", &[]),
    row(443, "quotactl_fd", &[fix(3, QUOTA)]),
    row(444, "landlock_create_ruleset", &[]),
    row(445, "landlock_add_rule", &[]),
    row(446, "landlock_restrict_self", &[]),
    row(447, "memfd_secret", &[]),
    row(448, "process_mrelease", &[]),
    row(449, "futex_waitv", &[]),
    row(450, "set_mempolicy_home_node", &[]),
    row(451, "cachestat", &[fix(2, CACHESTAT)]),
    row(452, "fchmodat2", &[]),
    row(453, "map_shadow_stack", &[MapShadowStack]),
    row(454, "futex_wake", &[]),
    row(455, "futex_wait", &[]),
    row(456, "futex_requeue", &[]),
    row(457, "statmount", &[buf(1, 2)]),
    row(458, "listmount", &[Sized { at: 1, len: 2, width: U64, unit: 8, cut: false }]),
    row(459, "lsm_get_self_attr", &[SizedBy { at: 1, length: 2, bytes: 4 }]),
    row(460, "lsm_set_self_attr", &[]),
    row(461, "lsm_list_modules", &[SizedBy { at: 0, length: 1, bytes: 4 }]),
    row(462, "mseal", &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_at_their_numbers() {
        for (first, rows) in [(0, &LOW_ROWS[..]), (FIRST_HIGH, &HIGH_ROWS[..])] {
            for (number, row) in (first..).zip(rows) {
                assert_eq!(row.number, number, "{}", row.name);
                assert_eq!(find(number.into()).map(|found| found.name), Some(row.name));
            }
        }
        assert_eq!(HIGH_ROWS.last().map(|row| row.number), Some(LAST));
        for number in [336, 423, 463, 512, 0x4000_0000, u64::MAX] {
            assert!(find(number).is_none(), "{number}");
        }
    }

    #[test]
    fn arguments_are_those_of_six() {
        for row in LOW_ROWS.iter().chain(&HIGH_ROWS) {
            for item in row.writes {
                let highest = match *item {
                    Fixed { at, .. } | Lasting { at, .. } | Read(at) | Write(at) => at,
                    Sized { at, len, .. } | Replaced { at, len } => at.max(len),
                    SizedBy { at, length, .. } => at.max(length),
                    Iov { at, count } => at.max(count),
                    WriteAt { fd, buffer } => fd.max(buffer),
                    _ => 0,
                };
                assert!(highest < 6, "{}", row.name);
            }
        }
    }
}
