//! Without privileges, in containers, under seccomp: what works, and what the error says if not.
//!
//! Each test changes a child process for good, and so runs in one.

mod common;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use barchan::{ErrorKind, KernelWrites, OpenError, Source, Tracker, probe};
use common::{Memory, alone, collect, errno, in_child, tracker};

/// Becomes nobody, with no group and no capability.
fn become_nobody(dumpable: bool) -> bool {
    // SAFETY: numbers only.
    unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(65534, 65534, 65534) == 0
            && libc::setresuid(65534, 65534, 65534) == 0
            && libc::prctl(libc::PR_SET_DUMPABLE, i32::from(dumpable), 0, 0, 0) == 0
    }
}

fn is_root() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: becoming another user takes root");
    }
    root
}

fn unavailable(source: Source) -> Option<barchan::Unavailable> {
    match probe(source) {
        Err(OpenError::Unavailable(why)) => Some(why),
        _ => None,
    }
}

#[test]
fn an_unprivileged_user_has_pagemap_scan() {
    let _alone = alone();
    if !is_root() || tracker(Source::PagemapScan).is_none() {
        return;
    }
    in_child("nobody", || {
        let privileged =
            std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
        assert!(become_nobody(true));
        let tracker = Tracker::builder().ignore_env().open().expect("a tracker");
        assert_eq!(tracker.source(), Source::PagemapScan, "sysctl: {privileged}");
        assert_eq!(tracker.kernel_writes(), KernelWrites::Tracked);
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(3);
        // SAFETY: the page is the test's.
        assert_eq!(unsafe { libc::getrandom(memory.page(5).cast(), 4, 0) }, 4);
        collect(&region) == [3, 5]
    });
}

#[test]
fn an_unprivileged_monitor_refuses_kernel_writes_and_says_so() {
    let _alone = alone();
    if !is_root() || tracker(Source::Userfaultfd).is_none() {
        return;
    }
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if sysctl.is_ok_and(|value| value.trim() != "0") {
        println!("skipped: vm.unprivileged_userfaultfd is on, so users may handle kernel faults");
        return;
    }
    in_child("nobody", || {
        assert!(become_nobody(true));
        let tracker = tracker(Source::Userfaultfd).expect("user-mode faults are for everyone");
        assert_eq!(tracker.kernel_writes(), KernelWrites::Efault);
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(3);
        // SAFETY: the page is the test's.
        let n = unsafe { libc::getrandom(memory.page(5).cast(), 4, 0) };
        n == -1 && errno() == libc::EFAULT && collect(&region) == [3]
    });
}

#[test]
fn a_process_that_is_not_dumpable_is_told_so_and_falls_back() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    in_child("not dumpable", || {
        assert!(become_nobody(false));
        let why = unavailable(Source::PagemapScan).expect("no pagemap");
        assert_eq!(why.kind, ErrorKind::Denied, "{why}");
        assert!(why.to_string().contains("dumpable"), "{why}");
        let auto = Tracker::builder().ignore_env().open().expect("a tracker");
        auto.source() == Source::Mprotect
    });
}

/// Makes `call` fail with `errno`, for `ioctl` only with this request.
fn refuse(call: libc::c_long, request: Option<u32>, errno: i32) -> bool {
    filter(call, request, libc::SECCOMP_RET_ERRNO | errno as u32, 0)
}

/// As [`refuse`], in all threads.
fn refuse_in_all(call: libc::c_long, request: Option<u32>, errno: i32) -> bool {
    let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
    filter(call, request, libc::SECCOMP_RET_ERRNO | errno as u32, all)
}

/// A seccomp policy for `call`, for `ioctl` only with this request.
fn filter(call: libc::c_long, request: Option<u32>, action: u32, flags: libc::c_ulong) -> bool {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump_if_not = |k: u32, skip: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let refused = statement(libc::BPF_RET, action);
    let allowed = statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW);
    // Offsets in struct seccomp_data: the call's number at 0, the second argument at 24.
    let mut filter = vec![statement(load, 0)];
    match request {
        None => filter.extend([jump_if_not(call as u32, 1), refused, allowed]),
        Some(request) => filter.extend([
            jump_if_not(call as u32, 3),
            statement(load, 24),
            jump_if_not(request, 1),
            refused,
            allowed,
        ]),
    }
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program is live and of the length given.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            ) == 0
    }
}

#[test]
fn a_seccomp_policy_against_userfaultfd_is_named_and_got_around() {
    let _alone = alone();
    if tracker(Source::PagemapScan).is_none() {
        return;
    }
    in_child("no userfaultfd", || {
        // So that /dev/userfaultfd is closed too; others than root do not have it anyway.
        assert!(!is_root() || become_nobody(true));
        assert!(refuse(libc::SYS_userfaultfd, None, libc::EPERM));
        for source in [Source::PagemapScan, Source::Userfaultfd] {
            let why = unavailable(source).expect("refused");
            assert_eq!(why.kind, ErrorKind::Denied, "{why}");
            assert!(why.to_string().contains("seccomp"), "{why}");
        }
        let auto = Tracker::builder().ignore_env().open().expect("a tracker");
        matches!(auto.source(), Source::SoftDirty | Source::Mprotect)
    });
}

#[test]
fn a_seccomp_policy_against_the_scan_is_named_and_got_around() {
    let _alone = alone();
    if tracker(Source::PagemapScan).is_none() {
        return;
    }
    for errno in [libc::ENOTTY, libc::EPERM] {
        in_child("no PAGEMAP_SCAN", || {
            assert!(refuse(libc::SYS_ioctl, Some(0xc060_6610), errno));
            let why = unavailable(Source::PagemapScan).expect("refused");
            let kind =
                if errno == libc::EPERM { ErrorKind::Denied } else { ErrorKind::Unsupported };
            assert_eq!(why.kind, kind, "{why}");
            assert!(why.to_string().contains("PAGEMAP_SCAN"), "{why}");
            let auto = Tracker::builder().ignore_env().open().expect("a tracker");
            auto.source() != Source::PagemapScan
        });
    }
}

#[test]
fn a_scan_refused_later_reports_everything() {
    let _alone = alone();
    let Some(tracker) = tracker(Source::PagemapScan) else { return };
    in_child("a policy that comes later", || {
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        assert!(refuse(libc::SYS_ioctl, Some(0xc060_6610), libc::EPERM));
        collect(&region).len() == 20 && tracker.stats().degraded > 0
    });
}

/// Who comes second finds the page writable, and cannot ask the kernel.
#[test]
fn faults_of_several_threads_on_a_page_are_resolved_without_madvise() {
    const ROUNDS: usize = 3_000;
    let _alone = alone();
    let Some(tracker) = tracker(Source::Mprotect) else { return };
    in_child("no madvise", || {
        let memory = Memory::touched(ROUNDS);
        let region = memory.track(&tracker);
        region.arm(memory.range()).expect("arming");
        assert!(refuse_in_all(libc::SYS_madvise, None, libc::EPERM));
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for page in 0..ROUNDS {
                        barrier.wait();
                        memory.write(page);
                    }
                });
            }
        });
        collect(&region).len() == ROUNDS
    });
}

/// It can let no store go on then, so it ends, which does.
#[test]
fn a_monitor_that_is_refused_its_requests_later_keeps_no_store() {
    let _alone = alone();
    if tracker(Source::Userfaultfd).is_none() {
        return;
    }
    let (any, write_protect) = (None, Some(0xc018_aa06));
    let policies = [
        (any, libc::EPERM),
        (any, libc::ENOSYS),
        (any, libc::EINVAL),
        (any, libc::ENOENT),
        (any, libc::EAGAIN),
        (write_protect, libc::EPERM),
    ];
    for (request, errno) in policies {
        for store_first in [true, false] {
            in_child(&format!("{request:?}, {errno}, {store_first}"), || {
                let tracker = tracker(Source::Userfaultfd).expect("as in the parent");
                let memory = Memory::touched(20);
                let region = memory.track(&tracker);
                collect(&region);
                assert!(refuse_in_all(libc::SYS_ioctl, request, errno));
                if store_first {
                    memory.write(3);
                }
                assert!(collect(&region).contains(&3) || !store_first);
                memory.write(5);
                assert_eq!(memory.read(5), 5);
                assert!(collect(&region).contains(&5));
                // So it stays.
                collect(&region).len() == 20 && tracker.stats().degraded > 0
            });
        }
    }
}

#[test]
fn a_monitor_that_is_killed_is_an_error() {
    let _alone = alone();
    let Some(parents) = tracker(Source::Userfaultfd) else { return };
    let memory = Memory::touched(20);
    let inherited = memory.track(&parents);
    for call in [libc::SYS_close_range, libc::SYS_userfaultfd, libc::SYS_openat, libc::SYS_ioctl] {
        in_child(&format!("call {call} kills"), || {
            assert!(filter(call, None, libc::SECCOMP_RET_KILL_THREAD, 0));
            let why = unavailable(Source::Userfaultfd).expect("killed");
            assert_eq!(why.kind, ErrorKind::Denied, "{why}");
            assert!(why.to_string().contains("seccomp"), "{why}");
            // A child begins a monitor of its own.
            inherited.arm(inherited.range()).is_err()
        });
    }
    in_child("killed later", || {
        let tracker = tracker(Source::Userfaultfd).expect("as in the parent");
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
        assert!(filter(libc::SYS_ppoll, None, libc::SECCOMP_RET_KILL_THREAD, all));
        memory.write(3);
        memory.write(4);
        collect(&region).len() == 20
    });
}

/// The threads of this process.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    tasks.map(|task| task.expect("/proc").path().display().to_string()).collect()
}

#[test]
fn the_monitor_has_no_capabilities() {
    let _alone = alone();
    if !is_root() || tracker(Source::Userfaultfd).is_none() {
        return;
    }
    in_child("capabilities", || {
        let before = threads();
        let tracker = tracker(Source::Userfaultfd).expect("as in the parent");
        let monitors: Vec<_> = threads().into_iter().filter(|t| !before.contains(t)).collect();
        assert_eq!(monitors.len(), 1);
        let status = std::fs::read_to_string(format!("{}/status", monitors[0])).expect("/proc");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        // It works without, and when the program has none either.
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        memory.write(3);
        assert_eq!(collect(&region), [3]);
        assert!(become_nobody(true));
        memory.write(5);
        // SAFETY: the page is the test's.
        assert_eq!(unsafe { libc::getrandom(memory.page(7).cast(), 4, 0) }, 4);
        assert_eq!(collect(&region), [5, 7]);
        drop((region, tracker));
        // /proc lists a thread a little longer than it runs.
        while threads() != before {
            std::thread::yield_now();
        }
        true
    });
}

const MESSAGE: &[u8] = b"a message of the program's own, of 64 bytes: two of a userfaultfd";

/// Files of the program's own, which get the numbers of those that it closed.
#[derive(Clone, Copy, Debug)]
enum Files {
    None,
    Path(&'static std::ffi::CStr),
    /// The parent's entries, which could be taken for this process's.
    OtherPagemap,
    /// With something to be read in each.
    Pipes,
}

impl Files {
    fn open(self) -> Vec<i32> {
        let opened = |fd: i32| {
            assert!(fd >= 0, "errno {}", errno());
            fd
        };
        // SAFETY: a path that ends in NUL, a live pair, and a message of the length given.
        let one = || unsafe {
            match self {
                Self::None => vec![],
                Self::Path(path) => vec![opened(libc::open(path.as_ptr(), libc::O_RDONLY))],
                Self::OtherPagemap => {
                    let path = format!("/proc/{}/pagemap\0", libc::getppid());
                    vec![opened(libc::open(path.as_ptr().cast(), libc::O_RDONLY))]
                }
                Self::Pipes => {
                    let mut pair = [0; 2];
                    assert_eq!(libc::pipe2(pair.as_mut_ptr(), libc::O_NONBLOCK), 0);
                    let sent = libc::write(pair[1], MESSAGE.as_ptr().cast(), MESSAGE.len());
                    assert_eq!(sent, MESSAGE.len() as isize);
                    pair.to_vec()
                }
            }
        };
        (0..40).flat_map(|_| one()).collect()
    }

    /// They are open, nothing was read from them, and nothing written.
    fn assert_untouched(self, fds: &[i32]) {
        for &fd in fds {
            // SAFETY: the descriptor is the test's own.
            assert!(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0, "{fd} of {self:?} is closed");
        }
        if let Self::Pipes = self {
            for pair in fds.chunks(2) {
                let mut got = [0u8; 2 * MESSAGE.len()];
                // SAFETY: a live buffer of that length.
                let n = unsafe { libc::read(pair[0], got.as_mut_ptr().cast(), got.len()) };
                assert_eq!(n, MESSAGE.len() as isize, "pipe {pair:?}");
                assert!(got.starts_with(MESSAGE), "pipe {pair:?}");
            }
        }
    }
}

#[test]
fn a_program_that_closes_all_descriptors_costs_one_collection() {
    let _alone = alone();
    let close_all = || {
        // SAFETY: the child uses none of them but the tracker's, which is what is tested.
        (3..200).for_each(|fd| assert!(unsafe { libc::close(fd) } <= 0));
    };
    let kinds = [
        Files::None,
        Files::Path(c"/dev/null"),
        Files::Path(c"/dev/urandom"),
        Files::Path(c"/proc/self/pagemap"),
        Files::Path(c"/proc/thread-self/pagemap"),
        Files::OtherPagemap,
        Files::Pipes,
    ];
    for source in [Source::PagemapScan, Source::Userfaultfd] {
        if tracker(source).is_none() {
            continue;
        }
        for files in kinds {
            in_child(&format!("closefrom, {source}, then {files:?}"), || {
                // In the child: a monitor stays with the process that began it.
                let tracker = tracker(source).expect("as in the parent");
                let (memory, other) = (Memory::touched(20), Memory::touched(20));
                let (region, second) = (memory.track(&tracker), other.track(&tracker));
                collect(&region);
                collect(&second);
                memory.write(3);
                close_all();
                let fds = files.open();
                other.write(5);
                assert!(collect(&region).contains(&3));
                assert!(collect(&second).contains(&5));
                // The first finds out about one descriptor, the second about the other.
                (0..2).for_each(|_| drop((collect(&region), collect(&second))));
                memory.write(7);
                other.write(8);
                assert_eq!((collect(&region), collect(&second)), (vec![7], vec![8]));
                // Once more, with nothing but drop to find it out.
                close_all();
                let again = files.open();
                assert_eq!(fds, again);
                other.write(9);
                drop((region, second, tracker));
                (0..20).for_each(|page| memory.write(page));
                (0..20).for_each(|page| other.write(page));
                files.assert_untouched(&again);
                true
            });
        }
    }
}

/// As the first test above, with the regions inherited: the child begins a monitor of its own.
#[test]
fn a_child_that_closes_all_descriptors_first_is_tracked() {
    let _alone = alone();
    for source in [Source::PagemapScan, Source::Userfaultfd] {
        let Some(tracker) = tracker(source) else { continue };
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        in_child("closefrom in a child", || {
            // SAFETY: as above.
            (3..200).for_each(|fd| assert!(unsafe { libc::close(fd) } <= 0));
            let fds = Files::Pipes.open();
            assert_eq!(collect(&region).len(), 20);
            memory.write(7);
            assert_eq!(collect(&region), [7]);
            drop((region, tracker));
            (0..20).for_each(|page| memory.write(page));
            Files::Pipes.assert_untouched(&fds);
            true
        });
    }
}

/// No descriptor of the monitor's is in the program's table, and none of the program's in its own:
/// a pipe ends when the program closes it.
#[test]
fn the_monitor_holds_no_file_of_the_program() {
    let _alone = alone();
    if tracker(Source::Userfaultfd).is_none() {
        return;
    }
    in_child("a pipe that ends", || {
        let mut pair = [0; 2];
        // SAFETY: a live pair.
        assert_eq!(unsafe { libc::pipe2(pair.as_mut_ptr(), libc::O_NONBLOCK) }, 0);
        let before = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        let tracker = tracker(Source::Userfaultfd).expect("as in the parent");
        assert_eq!(std::fs::read_dir("/proc/self/fd").expect("/proc").count(), before);
        let memory = Memory::touched(20);
        let region = memory.track(&tracker);
        collect(&region);
        // SAFETY: the test's own descriptors and buffer.
        let end = unsafe {
            libc::close(pair[1]);
            libc::read(pair[0], [0u8; 1].as_mut_ptr().cast(), 1)
        };
        end == 0
    });
}

/// Not for a moment either: another thread could close it, or be given its number, or a child be
/// forked with it.
#[test]
fn no_descriptor_of_the_monitor_is_ever_in_the_programs_table() {
    let _alone = alone();
    if tracker(Source::Userfaultfd).is_none() {
        return;
    }
    in_child("a thread that watches the table", || {
        // SAFETY: the descriptor is closed again, and nobody else's.
        let free = unsafe {
            let fd = libc::dup(2);
            libc::close(fd);
            fd
        };
        let numbers = [free, free + 1].map(|fd| format!("/proc/self/fd/{fd}"));
        // The probing of each source reads /dev/zero.
        let seen = || {
            let files = numbers.iter().filter_map(|number| std::fs::read_link(number).ok());
            files.filter(|file| file.as_os_str() != "/dev/zero").collect::<Vec<_>>()
        };
        let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut others = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    others.extend(seen());
                    others.dedup();
                    ready.store(true, Ordering::Relaxed);
                }
                others
            });
            while !ready.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            for _ in 0..500 {
                drop(Tracker::builder().source(Source::Userfaultfd).open().expect("as before"));
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(watch.join().expect("it does not panic"), Vec::<PathBuf>::new());
            true
        })
    });
}

#[test]
fn descriptors_that_run_out_are_named() {
    let _alone = alone();
    in_child("no descriptors", || {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &none) }, 0);
        for source in [Source::PagemapScan, Source::Userfaultfd] {
            let why = unavailable(source).expect("no descriptor");
            assert_eq!(why.kind, ErrorKind::Exhausted, "{why}");
            assert!(why.to_string().contains("ulimit -n"), "{why}");
        }
        Tracker::builder().ignore_env().open().is_ok_and(|t| t.source() == Source::Mprotect)
    });
}
