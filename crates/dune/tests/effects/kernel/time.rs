//! Clocks, timers, sleeping, and the signals that end it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::Case;
use super::arena::Run;

pub const CASES: &[Case] = &[
    ("clocks", clocks),
    ("interval timers", interval_timers),
    ("timers", timers),
    ("interrupted sleeps", interrupted_sleeps),
    ("signals", signals),
];

fn clocks(r: &mut Run) {
    for clock in [0, 1, 4, 7] {
        let to = r.out(64);
        r.wrote(libc::SYS_clock_gettime, &[clock, to]);
        let to = r.out(64);
        r.wrote(libc::SYS_clock_getres, &[clock, to]);
    }
    let (time, zone) = (r.out(64), r.out(64));
    r.wrote(libc::SYS_gettimeofday, &[time, zone]);
    let to = r.out(64);
    r.wrote(libc::SYS_time, &[to]);
    let to = r.out(64);
    r.wrote(libc::SYS_times, &[to]);
    for (call, args) in [(libc::SYS_adjtimex, vec![]), (libc::SYS_clock_adjtime, vec![0])] {
        let timex = r.words(&[0; 40]);
        r.wrote(call, &[args, vec![timex]].concat());
    }
    r.ok(libc::SYS_settimeofday, &[0, 0]);
    r.call(libc::SYS_clock_settime, &[1, time]);
}

fn interval_timers(r: &mut Run) {
    let new = r.words(&[0, 0, 1000, 0]);
    let old = r.out(64);
    r.wrote(libc::SYS_setitimer, &[libc::ITIMER_VIRTUAL as u64, new, old]);
    let now = r.out(64);
    r.wrote(libc::SYS_getitimer, &[libc::ITIMER_VIRTUAL as u64, now]);
    r.ok(libc::SYS_alarm, &[1000]);
    r.ok(libc::SYS_alarm, &[0]);
}

fn timers(r: &mut Run) {
    // SIGEV_NONE.
    let event = r.words(&[0, 1 << 32, 0, 0, 0, 0, 0, 0]);
    let id = r.out(64);
    r.wrote(libc::SYS_timer_create, &[1, event, id]);
    let id = r.get_i32(id) as u64;
    let (new, old) = (r.words(&[0, 0, 1000, 0]), r.out(64));
    r.wrote(libc::SYS_timer_settime, &[id, 0, new, old]);
    let now = r.out(64);
    r.wrote(libc::SYS_timer_gettime, &[id, now]);
    r.ok(libc::SYS_timer_getoverrun, &[id]);
    r.ok(libc::SYS_timer_delete, &[id]);
    let fd = r.ok(libc::SYS_timerfd_create, &[1, 0]) as u64;
    let (new, old) = (r.words(&[0, 1, 0, 1]), r.out(64));
    r.wrote(libc::SYS_timerfd_settime, &[fd, 0, new, old]);
    let now = r.out(64);
    r.wrote(libc::SYS_timerfd_gettime, &[fd, now]);
    let to = r.out(64);
    assert_eq!(r.wrote(libc::SYS_read, &[fd, to, 64]), 8);
}

extern "C" fn nothing(_: i32) {}

/// Sends SIGUSR1 to this thread again and again while `body` runs.
pub fn pestered(body: impl FnOnce()) {
    static STOP: AtomicBool = AtomicBool::new(false);
    // SAFETY: the handler does nothing; no SA_RESTART, so that calls are interrupted.
    let (pid, tid) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        (libc::getpid(), libc::gettid())
    };
    STOP.store(false, Relaxed);
    let other = std::thread::spawn(move || {
        while !STOP.load(Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(10));
            // SAFETY: a signal that has a handler.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
        }
    });
    body();
    STOP.store(true, Relaxed);
    other.join().expect("it does not panic");
}

fn interrupted_sleeps(r: &mut Run) {
    pestered(|| {
        let (long, left) = (r.words(&[100, 0]), r.out(64));
        r.fails(libc::SYS_nanosleep, &[long, left], libc::EINTR);
        assert!(r.get_u64(left) <= 100, "what was left is stored");
        let left = r.out(64);
        r.fails(libc::SYS_clock_nanosleep, &[1, 0, long, left], libc::EINTR);
        assert!(r.get_u64(left) <= 100);
        r.fails(libc::SYS_pause, &[], libc::EINTR);
        let mask = r.words(&[0]);
        r.fails(libc::SYS_rt_sigsuspend, &[mask, 8], libc::EINTR);
        // A poll that is interrupted has stored nothing that was not named.
        let fds = r.words(&[0x0001_ffff_ffff]);
        let timeout = r.words(&[100, 0]);
        r.fails(libc::SYS_ppoll, &[fds, 1, timeout, 0, 8], libc::EINTR);
        r.fails(libc::SYS_select, &[0, 0, 0, 0, timeout], libc::EINTR);
    });
}

fn signals(r: &mut Run) {
    let old = r.out(64);
    r.wrote(libc::SYS_rt_sigaction, &[libc::SIGUSR2 as u64, 0, old, 8]);
    let (set, old) = (r.words(&[1 << (libc::SIGUSR2 - 1)]), r.out(64));
    r.wrote(libc::SYS_rt_sigprocmask, &[0, set, old, 8]);
    // SAFETY: of this thread, which blocks the signal.
    let (pid, tid) = unsafe { (libc::getpid() as u64, libc::gettid() as u64) };
    r.ok(libc::SYS_tkill, &[tid, libc::SIGUSR2 as u64]);
    r.ok(libc::SYS_tgkill, &[pid, tid, 0]);
    r.ok(libc::SYS_kill, &[pid, 0]);
    let pending = r.out(64);
    r.wrote(libc::SYS_rt_sigpending, &[pending, 8]);
    let info = r.out(256);
    let timeout = r.words(&[10, 0]);
    r.wrote(libc::SYS_rt_sigtimedwait, &[set, info, timeout, 8]);
    // SI_QUEUE, with a value.
    let queued = r.bytes(&[[0; 8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]].concat().repeat(8));
    r.ok(libc::SYS_rt_tgsigqueueinfo, &[pid, tid, libc::SIGUSR2 as u64, queued]);
    let fd = r.ok(libc::SYS_signalfd4, &[u64::MAX, set, 8, 0]) as u64;
    let to = r.out(512);
    assert_eq!(r.wrote(libc::SYS_read, &[fd, to, 512]), 128);
    r.ok(libc::SYS_signalfd, &[u64::MAX, set, 8]);
    r.ok(libc::SYS_rt_sigqueueinfo, &[pid, 0, queued]);
    let old = r.out(64);
    r.wrote(libc::SYS_sigaltstack, &[0, old]);
    let stack = r.words(&[0, 0, 0]);
    r.call(libc::SYS_sigaltstack, &[stack, old]);
}
