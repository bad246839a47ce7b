//! Threads, processes, and what they may ask about themselves.

use dune::effects::{ExitWords, Why};

use super::Case;
use super::arena::{Run, raw_call};

pub const CASES: &[Case] = &[
    ("identities", identities),
    ("limits", limits),
    ("scheduling", scheduling),
    ("prctl", prctl),
    ("children", children),
    ("threads", threads),
    ("exit", exit),
    ("futexes", futexes),
    ("registrations", registrations),
    ("security", security),
    ("administration", administration),
    ("retired", retired),
];

fn identities(r: &mut Run) {
    for call in [libc::SYS_getresuid, libc::SYS_getresgid] {
        let [a, b, c] = [(); 3].map(|()| r.out(4));
        r.wrote(call, &[a, b, c]);
    }
    let groups = r.out(4096);
    let count = r.ok(libc::SYS_getgroups, &[1000, groups]);
    r.ok(libc::SYS_getgroups, &[0, groups]);
    r.call(libc::SYS_setgroups, &[count as u64, groups]);
    let same = u64::from(u32::MAX);
    for (call, args) in [
        (libc::SYS_getpid, vec![]),
        (libc::SYS_gettid, vec![]),
        (libc::SYS_getppid, vec![]),
        (libc::SYS_getuid, vec![]),
        (libc::SYS_geteuid, vec![]),
        (libc::SYS_getgid, vec![]),
        (libc::SYS_getegid, vec![]),
        (libc::SYS_getpgrp, vec![]),
        (libc::SYS_getpgid, vec![0]),
        (libc::SYS_getsid, vec![0]),
        (libc::SYS_setresuid, vec![same; 3]),
        (libc::SYS_setresgid, vec![same; 3]),
        (libc::SYS_setreuid, vec![same; 2]),
        (libc::SYS_setregid, vec![same; 2]),
        (libc::SYS_setfsuid, vec![same]),
        (libc::SYS_setfsgid, vec![same]),
        (libc::SYS_personality, vec![same]),
        (libc::SYS_setpgid, vec![0, 0]),
    ] {
        r.call(call, &args);
    }
    // SAFETY: they only answer.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    r.ok(libc::SYS_setuid, &[uid.into()]);
    r.ok(libc::SYS_setgid, &[gid.into()]);
    r.call(libc::SYS_setsid, &[]);
    let name = r.out(512);
    r.wrote(libc::SYS_uname, &[name]);
    // Capabilities, of each version; one that does not exist is answered with the one that does.
    for version in [0x1998_0330u32, 0x2007_1026, 0x2008_0522, 1] {
        let (header, data) = (r.out(64), r.out(64));
        r.set(header, &[version.to_le_bytes(), [0; 4]].concat());
        r.call(libc::SYS_capget, &[header, data]);
        r.call(libc::SYS_capset, &[header, data]);
    }
}

fn limits(r: &mut Run) {
    for (call, args) in [(libc::SYS_getrlimit, vec![7]), (libc::SYS_getrusage, vec![0])] {
        let to = r.out(256);
        r.wrote(call, &[args, vec![to]].concat());
    }
    let (new, old) = (r.out(64), r.out(64));
    r.wrote(libc::SYS_prlimit64, &[0, 7, 0, old]);
    r.wrote(libc::SYS_getrlimit, &[7, new]);
    r.ok(libc::SYS_setrlimit, &[7, new]);
    let to = r.out(256);
    r.wrote(libc::SYS_sysinfo, &[to]);
    let (cpu, node) = (r.out(4), r.out(4));
    r.wrote(libc::SYS_getcpu, &[cpu, node, 0]);
}

fn scheduling(r: &mut Run) {
    let mask = r.out(4096);
    let bytes = r.wrote(libc::SYS_sched_getaffinity, &[0, 4096, mask]) as u64;
    r.ok(libc::SYS_sched_setaffinity, &[0, bytes, mask]);
    let to = r.out(64);
    r.wrote(libc::SYS_sched_getparam, &[0, to]);
    r.ok(libc::SYS_sched_setparam, &[0, to]);
    let policy = r.ok(libc::SYS_sched_getscheduler, &[0]) as u64;
    r.ok(libc::SYS_sched_setscheduler, &[0, policy, to]);
    let to = r.out(64);
    r.wrote(libc::SYS_sched_rr_get_interval, &[0, to]);
    let attributes = r.out(256);
    r.wrote(libc::SYS_sched_getattr, &[0, attributes, 48, 0]);
    r.ok(libc::SYS_sched_setattr, &[0, attributes, 0]);
    let attributes = r.out(256);
    r.wrote(libc::SYS_sched_getattr, &[0, attributes, 256, 0]);
    // Larger than the kernel knows and not zero: it stores the size that it does.
    let attributes = r.bytes(&[7; 512]);
    r.set(attributes, &512u32.to_le_bytes());
    r.fails(libc::SYS_sched_setattr, &[0, attributes, 0], libc::E2BIG);
    for (call, args) in [
        (libc::SYS_sched_yield, vec![]),
        (libc::SYS_sched_get_priority_max, vec![1]),
        (libc::SYS_sched_get_priority_min, vec![1]),
        (libc::SYS_getpriority, vec![0, 0]),
        (libc::SYS_setpriority, vec![0, 0, 19]),
        (libc::SYS_ioprio_get, vec![1, 0]),
        (libc::SYS_ioprio_set, vec![1, 0, 0]),
        (libc::SYS_membarrier, vec![0, 0, 0]),
    ] {
        r.call(call, &args);
    }
}

fn prctl(r: &mut Run) {
    for option in [2, 5, 9, 11, 16, 19, 25, 37, 40] {
        let to = r.out(64);
        r.call(libc::SYS_prctl, &[option, to, 0, 0, 0]);
    }
    let name = r.str("a thread's name");
    r.ok(libc::SYS_prctl, &[15, name]);
    let to = r.out(64);
    r.wrote(libc::SYS_prctl, &[16, to]);
    let to = r.out(64);
    r.call(libc::SYS_prctl, &[35, 15, to, 0, 0]);
    let to = r.out(64);
    r.call(libc::SYS_prctl, &[62, 0, 0, 0, to]);
    let to = r.out(1024);
    r.call(libc::SYS_prctl, &[0x4155_5856, to, 1024, 0, 0]);
    for option in [3, 7, 13, 21, 23, 27, 30, 34, 39, 42, 46, 52, 66] {
        let to = r.out(64);
        r.call(libc::SYS_prctl, &[option, to, 0, 0, 0]);
    }
    let to = r.out(64);
    r.unbounded(libc::SYS_prctl, &[5000, to], Why::UnknownOperation);
    for option in [0x1003, 0x1004, 0x1021, 0x1022, 0x1024, 0x4001, 0x4003, 0x5005, 0x1011] {
        let to = r.out(64);
        r.call(libc::SYS_arch_prctl, &[option, to]);
    }
    let to = r.out(64);
    r.wrote(libc::SYS_arch_prctl, &[0x1003, to]);
    for function in [0, 2] {
        let to = r.out(256);
        r.call(libc::SYS_modify_ldt, &[function, to, 200]);
    }
}

fn children(r: &mut Run) {
    let exits = |a: &[u64; 6], number| {
        let result = raw_call(number, a);
        if result == 0 {
            // SAFETY: a child that has only this thread.
            unsafe { libc::_exit(3) };
        }
        result
    };
    let (parent, child) = (r.out(4), r.out(4));
    // Each stores to its own copy; the parent's tid, and a descriptor, to ours.
    let flags = 0x10_0000 | 0x20_0000 | 0x100_0000 | libc::SIGCHLD as u64;
    let args = [flags, 0, parent, child, 0];
    let pid = r.checked(libc::SYS_clone, &args, |a| exits(a, libc::SYS_clone)).result;
    assert!(pid > 0);
    assert_eq!(i64::from(r.get_i32(parent)), pid);
    let (status, usage) = (r.out(4), r.out(256));
    assert_eq!(r.wrote(libc::SYS_wait4, &[pid as u64, status, 0, usage]), pid);
    assert_eq!(r.get_i32(status), 3 << 8);
    let (descriptor, tid) = (r.out(4), r.out(4));
    let block = [0x1000 | 0x10_0000, descriptor, 0, tid, libc::SIGCHLD as u64, 0, 0, 0, 0, 0, 0];
    let block = r.words(&block);
    let done = r.checked(libc::SYS_clone3, &[block, 88], |a| exits(a, libc::SYS_clone3));
    assert!(done.result > 0 && done.changed > 0);
    let (info, usage) = (r.out(256), r.out(256));
    let wait = [1, done.result as u64, info, libc::WEXITED as u64, usage];
    r.wrote(libc::SYS_waitid, &wait);
    let pid = r.checked(libc::SYS_fork, &[], |a| exits(a, libc::SYS_fork)).result;
    r.wrote(libc::SYS_wait4, &[pid as u64, status, 0, 0]);
    let pid = r.checked(libc::SYS_vfork, &[], |_| {
        let pid: i64;
        // SAFETY: the child ends within the instructions below and touches no memory.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor edi, edi",
                "mov eax, 60",
                "syscall",
                "2:",
                inlateout("rax") libc::SYS_vfork => pid,
                out("rdi") _, lateout("rcx") _, lateout("r11") _,
            );
        }
        pid
    });
    r.wrote(libc::SYS_wait4, &[pid.result as u64, status, 0, 0]);
    r.fails(libc::SYS_wait4, &[u64::MAX, status, 0, usage], libc::ECHILD);
    let absent = r.str("/no/such/program");
    let list = r.words(&[0]);
    r.unbounded(libc::SYS_execve, &[absent, list, list], Why::Exits);
    r.unbounded(libc::SYS_execveat, &[0, absent, list, list, 0], Why::Exits);
    r.unbounded(libc::SYS_restart_syscall, &[], Why::Restarts);
}

/// `CLONE_VM`, `_FS`, `_FILES`, `_SIGHAND`, `_THREAD`, `_SYSVSEM`.
const THREAD: u64 = 0x5_0f00;

/// Makes a thread that registers `robust_list` and `clear_child_tid` and ends.
fn thread(args: &[u64; 6], number: i64, robust_list: u64, clear_child_tid: u64) -> i64 {
    let tid: i64;
    // SAFETY: the thread ends within the instructions below, without touching its stack or any memory
    // but what the registered addresses make the kernel write, which lies in the arena.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "test r12, r12",
            "jz 3f",
            "mov rdi, r12",
            "mov esi, 24",
            "mov eax, 273",
            "syscall",
            "mov rdi, r13",
            "mov eax, 218",
            "syscall",
            "3:",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "2:",
            inlateout("rax") number => tid,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r12") robust_list,
            in("r13") clear_child_tid,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    tid
}

fn threads(r: &mut Run) {
    let stack = (r.out(4096) + 4096) & !15;
    let (parent, child) = (r.out(4), r.out(4));
    let flags = THREAD | 0x10_0000 | 0x20_0000 | 0x100_0000;
    let args = [flags, stack, parent, child, 0];
    let tid = r.checked(libc::SYS_clone, &args, |a| thread(a, libc::SYS_clone, 0, 0)).result;
    assert!(tid > 0, "{tid}");
    assert_eq!(i64::from(r.get_i32(parent)), tid);
    r.meanwhile("the end of a thread", |r| r.get_i32(child) == 0);
    let block = [flags, 0, child, parent, 0, stack - 4096, 4096, 0, 0, 0, 0];
    let block = r.words(&block);
    r.set(child, &[1; 4]);
    let done = r.checked(libc::SYS_clone3, &[block, 88], |a| thread(a, libc::SYS_clone3, 0, 0));
    assert!(done.result > 0);
    r.meanwhile("the end of a thread", |r| r.get_i32(child) == 0);
}

fn exit(r: &mut Run) {
    let stack = (r.out(4096) + 4096) & !15;
    // A list of two locks; the word of each is 8 bytes after its entry. The kernel stores the thread's
    // number to the first as it starts (CLONE_CHILD_SETTID), so at the end the thread owns it.
    let (head, first, second) = (r.out(24), r.out(16), r.out(16));
    let clear = r.int(1);
    let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    r.set(head, &words(&[first, 8, 0]));
    r.set(first, &words(&[second, 0]));
    r.set(second, &words(&[head, 0]));
    r.process.exit_words = Some(ExitWords { clear_child_tid: clear, robust_list: head });
    let word = first + 8;
    let args = [THREAD | 0x100_0000, stack, 0, word, 0, 0];
    let done = r.checked(libc::SYS_exit, &[0], |_| {
        let tid = thread(&args, libc::SYS_clone, head, clear);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        // SAFETY: an aligned word of the arena.
        while unsafe { (clear as *const u32).read_volatile() } != 0 {
            assert!(std::time::Instant::now() < deadline, "the thread does not end");
            std::thread::yield_now();
        }
        tid
    });
    assert!(done.result > 0);
    // FUTEX_OWNER_DIED.
    assert_ne!(r.get_i32(word) as u32 & 0x4000_0000, 0, "the owner's death is stored");
}

fn futexes(r: &mut Run) {
    // WAKE_OP: add 5 to the second word.
    let (first, second) = (r.int(0), r.int(3));
    r.wrote(libc::SYS_futex, &[first, 5, 1, 1, second, 1 << 28 | 5 << 12]);
    assert_eq!(r.get_i32(second), 8);
    for command in [6, 13] {
        let lock = r.int(0);
        r.wrote(libc::SYS_futex, &[lock, command, 0, 0]);
        r.wrote(libc::SYS_futex, &[lock, 7, 0, 0]);
    }
    let lock = r.int(0);
    r.wrote(libc::SYS_futex, &[lock, 8, 0, 0]);
    r.ok(libc::SYS_futex, &[first, 1, 1]);
    r.ok(libc::SYS_futex, &[first, 3, 1, 1, second, 0]);
    r.ok(libc::SYS_futex, &[first, 4, 1, 1, second, 0]);
    r.fails(libc::SYS_futex, &[first, 0, 99, 0], libc::EAGAIN);
    r.ok(libc::SYS_futex, &[first, 12, 1, 0, second, 0]);
    r.unbounded(libc::SYS_futex, &[first, 77], Why::UnknownOperation);
    let wait = r.words(&[99, first, 2]);
    r.fails(libc::SYS_futex_waitv, &[wait, 1, 0, 0, 0], libc::EAGAIN);
    // futex_wake, futex_wait, futex_requeue.
    r.call(454, &[first, 1, 1, 2]);
    r.call(455, &[first, 99, u64::from(u32::MAX), 2, 0, 0]);
    let two = r.words(&[0, first, 2, 0, second, 2]);
    r.call(456, &[two, 0, 1, 1]);
}

fn registrations(r: &mut Run) {
    let (head, length) = (r.out(8), r.out(8));
    r.wrote(libc::SYS_get_robust_list, &[0, head, length]);
    let old = r.get_u64(head);
    r.ok(libc::SYS_set_robust_list, &[old, 24]);
    let to = r.out(64);
    r.wrote(libc::SYS_prctl, &[40, to]);
    let address = r.get_u64(to);
    let word = r.out(64);
    r.ok(libc::SYS_set_tid_address, &[word]);
    r.ok(libc::SYS_set_tid_address, &[address]);
    // In a thread of its own, which the C library has not registered: glibc's cannot be undone here.
    let area = r.pages(1);
    let zero = [0; 64];
    r.set(area, &zero);
    let done =
        r.checked(libc::SYS_rseq, &[area, 32, 0, 0x5305_3053], |a| raw_call(libc::SYS_rseq, a));
    if done.result == 0 {
        let changed = |r: &Run| r.get_i32(area + 4) >= 0;
        r.meanwhile("the kernel's store to the rseq area", changed);
        r.ok(libc::SYS_rseq, &[area, 32, 1, 0x5305_3053]);
    } else {
        r.skip("rseq: the C library has registered this thread");
    }
}

fn security(r: &mut Run) {
    let sizes = r.out(64);
    r.wrote(libc::SYS_seccomp, &[3, 0, sizes]);
    let action = r.int(0x7fff_0000);
    r.ok(libc::SYS_seccomp, &[2, 0, action]);
    const GET_SELF: i64 = 459;
    const SET_SELF: i64 = 460;
    const LIST: i64 = 461;
    for room in [4096, 4, 0] {
        let (to, size) = (r.out(4096), r.int(room));
        r.call(LIST, &[to, size, 0]);
        let (to, size) = (r.out(4096), r.int(room));
        r.call(GET_SELF, &[100, to, size, 0]);
    }
    let context = r.words(&[0; 8]);
    r.call(SET_SELF, &[100, context, 64, 0]);
    r.call(libc::SYS_landlock_create_ruleset, &[0, 0, 1]);
    r.fails(libc::SYS_landlock_add_rule, &[9999, 1, context, 0], libc::EBADF);
    r.call(libc::SYS_landlock_restrict_self, &[9999, 0]);
    let attributes = r.words(&[0; 32]);
    r.unbounded(libc::SYS_bpf, &[999, attributes, 128], Why::Bpf);
    // An attribute block that is larger than the kernel knows and not zero.
    let attributes = r.bytes(&[0xff; 512]);
    r.set(attributes, &[0, 0, 0, 0, 0, 2, 0, 0]);
    let result = r.call(libc::SYS_perf_event_open, &[attributes, 0, u64::MAX, u64::MAX, 0]);
    assert!(result < 0);
    let fd = r.call(libc::SYS_userfaultfd, &[1]);
    if fd >= 0 {
        r.ok(libc::SYS_close, &[fd as u64]);
    }
}

fn administration(r: &mut Run) {
    let to = r.out(4096);
    // READ_ALL, SIZE_BUFFER.
    r.call(libc::SYS_syslog, &[3, to, 4096]);
    r.call(libc::SYS_syslog, &[10, 0, 0]);
    let nothing = r.str("no such thing");
    let negative = u64::from(u32::MAX);
    r.call(libc::SYS_sethostname, &[nothing, negative]);
    r.call(libc::SYS_setdomainname, &[nothing, negative]);
    r.call(libc::SYS_iopl, &[0]);
    r.call(libc::SYS_ioperm, &[0, 0, 0]);
    r.ok(libc::SYS_unshare, &[0]);
    r.fails(libc::SYS_setns, &[9999, 0], libc::EBADF);
    r.call(libc::SYS_init_module, &[to, 0, nothing]);
    r.call(libc::SYS_finit_module, &[9999, nothing, 0]);
    r.call(libc::SYS_delete_module, &[nothing, 0]);
}

fn retired(r: &mut Run) {
    let args = [(); 6].map(|()| r.out(128));
    for number in
        [134, 156, 174, 177, 178, 180, 181, 182, 183, 184, 185, 205, 211, 214, 215, 236, 212]
    {
        r.call(number, &args);
    }
}
