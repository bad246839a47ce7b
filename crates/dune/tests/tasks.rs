//! Threads, children, programs that are executed.

mod support;

use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};

use support::{End, end, ended_well, passes, run};

#[test]
fn threads_share_memory_and_have_their_own_thread_storage() {
    std::thread_local!(static OWN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    passes(|| {
        let sum = Arc::new(Mutex::new(0));
        let barrier = Arc::new(Barrier::new(8));
        let threads: Vec<_> = (1..=8u64)
            .map(|n| {
                let (sum, barrier) = (Arc::clone(&sum), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    OWN.set(n);
                    barrier.wait();
                    for _ in 0..100 {
                        *sum.lock().expect("no panic") += OWN.get();
                    }
                    OWN.get()
                })
            })
            .collect();
        for (n, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().expect("it ends"), n as u64 + 1);
        }
        assert_eq!((*sum.lock().expect("no panic"), OWN.get()), (3600, 0));
    });
}

#[test]
fn a_thousand_threads_one_after_the_other_and_many_at_once() {
    passes(|| {
        let count = Arc::new(AtomicU64::new(0));
        for _ in 0..50 {
            let threads: Vec<_> = (0..20)
                .map(|_| {
                    let count = Arc::clone(&count);
                    std::thread::spawn(move || count.fetch_add(1, Ordering::Relaxed))
                })
                .collect();
            threads.into_iter().for_each(|thread| drop(thread.join()));
        }
        assert_eq!(count.load(Ordering::Relaxed), 1000);
    });
}

/// That there was no descriptor left for a CPU is over once there is one.
#[test]
fn a_thread_starts_after_one_for_which_there_was_no_descriptor() {
    passes(|| {
        // SAFETY: a descriptor that is open; the first that are free are taken, but for the last one.
        let mut taken: Vec<_> = (0..100).map(|_| unsafe { libc::dup(0) }).collect();
        let free = taken.pop().expect("some");
        assert!((0..1000).contains(&free), "{taken:?}");
        // SAFETY: ours.
        unsafe { libc::close(free) };
        // Room for what KVM_CREATE_VCPU gives, and no other.
        let end = free as u64 + 1;
        let low = libc::rlimit { rlim_cur: end, rlim_max: end };
        // SAFETY: a structure of ours. It could not be raised again without privileges.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low) }, 0);
        for attempt in 0..3 {
            let started = std::thread::Builder::new().spawn(|| ());
            assert!(started.is_err(), "attempt {attempt}");
        }
        for descriptor in taken {
            // SAFETY: ours.
            unsafe { libc::close(descriptor) };
        }
        // Two at once: each has a CPU of its own.
        let both = Arc::new(Barrier::new(2));
        let threads = [(); 2].map(|()| {
            let both = Arc::clone(&both);
            std::thread::spawn(move || {
                both.wait();
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
    });
}

#[test]
fn floating_point_is_each_threads_own() {
    passes(|| {
        let (ask, asked) = mpsc::channel::<f64>();
        let worker = std::thread::spawn(move || asked.iter().map(f64::sqrt).sum::<f64>());
        let mut expected = 0.0;
        for n in 0..500 {
            expected += std::hint::black_box(f64::from(n)).sqrt();
            ask.send(f64::from(n)).expect("it listens");
        }
        drop(ask);
        assert_eq!(worker.join().expect("it ends"), expected);
    });
}

#[test]
fn a_forked_child_has_its_own_memory_and_goes_on_in_guest_mode() {
    passes(|| {
        let mut value = vec![1u64; 100_000];
        for round in 0..10 {
            // SAFETY: the child works on its copy and leaves.
            unsafe {
                let pid = libc::fork();
                assert!(pid >= 0);
                if pid == 0 {
                    value.iter_mut().for_each(|v| *v += 1);
                    let right = value.iter().all(|v| *v == round + 2) && dune::entered();
                    libc::_exit(if right { 33 } else { 1 });
                }
                value.iter_mut().for_each(|v| *v += 1);
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
                assert_eq!(end(status), End::Exit(33), "round {round}");
            }
        }
        assert!(value.iter().all(|v| *v == 11));
    });
}

#[test]
fn a_child_of_a_child_of_a_thread() {
    passes(|| {
        let thread = std::thread::spawn(|| {
            // SAFETY: the children only fork, wait and leave.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    let inner = libc::fork();
                    if inner == 0 {
                        libc::_exit(5);
                    }
                    let mut status = 0;
                    libc::waitpid(inner, &raw mut status, 0);
                    libc::_exit(if end(status) == End::Exit(5) { 6 } else { 1 });
                }
                let mut status = 0;
                libc::waitpid(pid, &raw mut status, 0);
                end(status)
            }
        });
        assert_eq!(thread.join().expect("it ends"), End::Exit(6));
    });
}

#[test]
fn forking_while_other_threads_work() {
    passes(|| {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        drop(std::hint::black_box(vec![1u8; 300_000]));
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            // SAFETY: the child leaves at once.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    libc::_exit(9);
                }
                let mut status = 0;
                libc::waitpid(pid, &raw mut status, 0);
                assert_eq!(end(status), End::Exit(9));
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().for_each(|worker| worker.join().expect("it ends"));
    });
}

#[test]
fn executed_programs_and_their_output() {
    passes(|| {
        // By posix_spawn, which shares memory until the child has executed.
        for _ in 0..10 {
            let output =
                std::process::Command::new("/bin/echo").arg("hello").output().expect("it starts");
            assert_eq!(output.stdout, b"hello\n");
            assert!(output.status.success());
        }
        let missing = std::process::Command::new("/no/such/program").output();
        assert_eq!(missing.expect_err("not there").kind(), std::io::ErrorKind::NotFound);
    });
}

#[test]
fn a_child_that_shares_memory_leaves_its_parents_handlers_alone() {
    extern "C" fn handler(_: i32) {}
    passes(|| {
        // SAFETY: the child only changes its own disposition, and leaves.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as extern "C" fn(i32) as usize;
            libc::sigaction(libc::SIGUSR1, &raw const action, null_mut());
            let flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as i64;
            let mut stack = vec![0u8; 64 * 1024];
            let top = stack.as_mut_ptr().add(60 * 1024) as usize & !15;
            let pid: i64;
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 22f",
                // The child: rt_sigaction(SIGUSR1, zeroes, 0, 8), exit_group(4).
                "mov eax, 13", "mov edi, 10", "mov rsi, r12", "xor edx, edx", "mov r10d, 8",
                "syscall",
                "mov eax, 231", "mov edi, 4", "syscall",
                "22:",
                inlateout("rax") libc::SYS_clone => pid,
                in("rdi") flags, in("rsi") top, in("rdx") 0, in("r10") 0, in("r8") 0,
                in("r12") stack.as_ptr(), out("rcx") _, out("r11") _,
            );
            assert!(pid > 0, "{pid}");
            let mut status = 0;
            assert_eq!(libc::waitpid(pid as i32, &raw mut status, 0), pid as i32);
            assert_eq!(end(status), End::Exit(4));
            libc::sigaction(libc::SIGUSR1, null_mut(), &raw mut action);
            assert_eq!(action.sa_sigaction, handler as extern "C" fn(i32) as usize);
            assert_eq!(libc::raise(libc::SIGUSR1), 0);
        }
    });
}

#[test]
fn one_thread_ends_all() {
    let ended = run(|| {
        for _ in 0..5 {
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
        // SAFETY: ends the child.
        unsafe { libc::_exit(3) };
    });
    if let Some((end, text)) = ended {
        assert_eq!(end, End::Exit(3), "{text}");
    }
}

#[test]
fn closing_everything_leaves_the_guest_running() {
    passes(|| {
        // SAFETY: the child of the test closes what it has.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32), 0);
            for fd in 3..20_000 {
                assert_eq!(libc::fcntl(fd, libc::F_GETFD), -1, "{fd} is open");
                libc::close(fd);
            }
            for fd in 16_300..16_500 {
                libc::dup2(0, fd);
            }
        }
        let sum: u64 = std::thread::spawn(|| (0..1000).sum()).join().expect("it ends");
        assert_eq!(sum, 499_500);
        // SAFETY: the child leaves at once.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(8);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            assert_eq!(end(status), End::Exit(8));
        }
    });
}

#[test]
fn the_list_of_descriptors_is_the_programs_own() {
    fn list(path: &str) -> Vec<i32> {
        let names = std::fs::read_dir(path).expect("a directory").map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_str().expect("UTF-8").parse().expect("a number")
        });
        let mut descriptors: Vec<i32> = names.collect();
        descriptors.sort_unstable();
        descriptors
    }
    const LISTS: [&str; 4] =
        ["/proc/self/fd", "/proc/self/fdinfo", "/proc/thread-self/fd", "/proc/thread-self/fdinfo"];
    fn all() -> (Vec<Vec<i32>>, i32) {
        let lists = LISTS.iter().map(|path| list(path)).collect();
        // One entry at a time: what is left out is no end of the list.
        let mut count = 0;
        // SAFETY: a directory of ours, and a buffer of the length that is said.
        unsafe {
            let directory = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY);
            let mut buffer = [0u64; 3];
            let at = buffer.as_mut_ptr();
            while libc::syscall(libc::SYS_getdents64, directory, at, size_of_val(&buffer)) > 0 {
                count += 1;
            }
            libc::close(directory);
        }
        (lists, count)
    }
    // Natively and then in guest mode, in one child: other tests' descriptors come and go.
    let ended = support::run_to_enter(|| {
        let native = all();
        assert!(native.0[0].len() > 3 && native.1 > 3, "{native:?}");
        // SAFETY: the child has one thread.
        unsafe { dune::enter_at(support::ring()) }.expect("guest mode");
        assert_eq!(all(), native);
        let in_a_thread = std::thread::spawn(all).join().expect("it ends");
        assert_eq!(in_a_thread, native);
        // Other directories have numbers too.
        assert!(std::fs::read_dir("/proc/self/task").expect("a directory").count() > 0);
    });
    ended_well(ended);
}

/// The kernel keeps what is left of a process' first thread until the others have ended, without its memory.
#[test]
fn a_process_goes_on_without_its_first_thread() {
    static HANDLED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    fn rest() {
        // SAFETY: no arguments.
        let first = unsafe { libc::getpid() };
        let stat = || std::fs::read_to_string(format!("/proc/self/task/{first}/stat"));
        while !stat().is_ok_and(|text| text.contains(") Z ")) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        support::install(libc::SIGUSR1, handler);
        for n in 1..=3 {
            // SAFETY: there is a handler.
            assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
            assert_eq!(HANDLED.load(Ordering::Relaxed), n);
            let sum: u64 = std::thread::spawn(|| (0..1000).sum()).join().expect("it ends");
            assert_eq!(sum, 499_500);
        }
        let output = std::process::Command::new("/bin/echo").arg("hello").output();
        assert_eq!(output.expect("it starts").stdout, b"hello\n");
    }
    passes(|| {
        std::mem::forget(std::thread::spawn(|| {
            let ended = std::panic::catch_unwind(rest);
            // SAFETY: ends the child.
            unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) };
        }));
        // SAFETY: ends the first thread only.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
}
