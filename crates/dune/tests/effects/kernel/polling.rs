//! Waiting for descriptors, and asynchronous I/O.

use dune::effects::Why;

use super::Case;
use super::arena::Run;
use super::files::file;

pub const CASES: &[Case] = &[
    ("poll", poll),
    ("select", select),
    ("epoll", epoll),
    ("asynchronous reads", asynchronous),
    ("io_uring", io_uring),
];

fn pipe(r: &mut Run) -> (u64, u64) {
    let ends = r.out(8);
    r.wrote(libc::SYS_pipe, &[ends]);
    let (read, write) = (r.get_i32(ends) as u64, r.get_i32(ends + 4) as u64);
    let byte = r.out(1);
    r.ok(libc::SYS_write, &[write, byte, 1]);
    (read, write)
}

fn poll(r: &mut Run) {
    let (read, write) = pipe(r);
    // Garbage in revents; more entries than fit on the kernel's stack.
    let entries: Vec<u64> = (0..200).map(|i| [read, write][i % 2] | 0x5aa5_0005 << 32).collect();
    let fds = r.words(&entries);
    assert_eq!(r.wrote(libc::SYS_poll, &[fds, 200, 0]), 200);
    let fds = r.words(&entries[..3]);
    let timeout = r.words(&[5, 0]);
    r.wrote(libc::SYS_ppoll, &[fds, 3, timeout, 0, 8]);
}

fn select(r: &mut Run) {
    let (read, write) = pipe(r);
    let n = read.max(write) + 1;
    let set = 1u64 << read | 1 << write;
    let sets = [(); 3].map(|()| r.words(&[set, 0, 0]));
    let timeout = r.words(&[5, 0]);
    r.wrote(libc::SYS_select, &[n, sets[0], sets[1], sets[2], timeout]);
    // More than the descriptor table has: the kernel lowers it.
    let sets = [(); 3].map(|()| {
        let mut words = vec![0; 128];
        words[0] = set;
        r.words(&words)
    });
    let timeout = r.words(&[5, 0]);
    let mask = r.words(&[0, 8]);
    r.wrote(libc::SYS_pselect6, &[8192, sets[0], sets[1], sets[2], timeout, mask]);
}

fn epoll(r: &mut Run) {
    let (read, write) = pipe(r);
    let epoll = r.ok(libc::SYS_epoll_create1, &[0]) as u64;
    let old = r.ok(libc::SYS_epoll_create, &[1]) as u64;
    r.ok(libc::SYS_close, &[old]);
    for (fd, events) in [(read, 1u32), (write, 4)] {
        let event = r.bytes(&[events.to_le_bytes(), [7; 4], [8; 4]].concat());
        r.ok(libc::SYS_epoll_ctl, &[epoll, 1, fd, event]);
    }
    let to = r.out(256);
    assert_eq!(r.wrote(libc::SYS_epoll_wait, &[epoll, to, 10, 0]), 2);
    for room in [1, 2] {
        let to = r.out(256);
        assert_eq!(r.wrote(libc::SYS_epoll_wait, &[epoll, to, room, 0]), room as i64);
    }
    let to = r.out(256);
    assert_eq!(r.wrote(libc::SYS_epoll_pwait, &[epoll, to, 10, 0, 0, 8]), 2);
    let to = r.out(256);
    let timeout = r.words(&[1, 0]);
    assert_eq!(r.wrote(libc::SYS_epoll_pwait2, &[epoll, to, 10, timeout, 0, 8]), 2);
}

fn asynchronous(r: &mut Run) {
    let context = r.words(&[0]);
    if r.call(libc::SYS_io_setup, &[8, context]) < 0 {
        return r.skip("asynchronous I/O: io_setup fails");
    }
    let context = r.get_u64(context);
    let fd = file(r, "f", 3000);
    let (a, b, c) = (r.out(2000), r.out(100), r.out(100));
    let vector = r.words(&[b, 100, c, 100]);
    let block = |r: &mut Run, opcode: u64, buffer: u64, bytes: u64| {
        r.words(&[1, 0, opcode | fd << 32, buffer, bytes, 0, 0, 0])
    };
    // PREAD, PREADV, PWRITE, FSYNC.
    let blocks = [block(r, 0, a, 2000), block(r, 7, vector, 2), block(r, 1, a, 10)];
    let list = r.words(&blocks);
    assert_eq!(r.wrote(libc::SYS_io_submit, &[context, 3, list]), 3);
    let events = r.out(1024);
    assert_eq!(r.wrote(libc::SYS_io_getevents, &[context, 3, 3, events, 0]), 3);
    r.meanwhile("an asynchronous read", |r| r.get(a, 1) == [0x5a]);
    assert_eq!(r.get(c + 99, 1), [0x5a]);
    // One that waits for a pipe.
    let ends = r.out(8);
    r.wrote(libc::SYS_pipe, &[ends]);
    let pipe = r.get_i32(ends) as u64;
    let poll = r.words(&[1, 0, 5 | pipe << 32, 1, 0, 0, 0, 0]);
    let list = r.words(&[poll]);
    r.ok(libc::SYS_io_submit, &[context, 1, list]);
    let (result, timeout) = (r.out(64), r.words(&[0, 0]));
    r.call(libc::SYS_io_cancel, &[context, poll, result]);
    r.call(333, &[context, 0, 10, events, timeout, 0]);
    r.ok(libc::SYS_io_destroy, &[context]);
}

fn io_uring(r: &mut Run) {
    let parameters = r.words(&[0; 15]);
    let ring = r.unbounded(libc::SYS_io_uring_setup, &[4, parameters], Why::IoUringSetup);
    if ring < 0 {
        r.skip("io_uring: refused");
    }
    r.unbounded(libc::SYS_io_uring_enter, &[ring as u64, 0, 0, 0, 0, 0], Why::IoUring);
    let probe = r.words(&[0; 40]);
    r.unbounded(libc::SYS_io_uring_register, &[ring as u64, 8, probe, 0], Why::IoUring);
}
