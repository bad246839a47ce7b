//! Queues, semaphores, shared memory, keys.

use dune::effects::Why;

use super::Case;
use super::arena::Run;

pub const CASES: &[Case] = &[
    ("message queues", queues),
    ("semaphores", semaphores),
    ("shared memory", shared_memory),
    ("POSIX queues", posix_queues),
    ("keys", keys),
];

fn queues(r: &mut Run) {
    let id = r.ok(libc::SYS_msgget, &[0, 0o1600]) as u64;
    let message = r.words(&[7, 1, 2, 3]);
    for room in [24u64, 200, 8] {
        r.ok(libc::SYS_msgsnd, &[id, message, 24, 0]);
        let to = r.out(256);
        // MSG_NOERROR cuts what is too long.
        r.wrote(libc::SYS_msgrcv, &[id, to, room, 0, 0o10_000]);
    }
    r.fails(libc::SYS_msgrcv, &[id, message, 8, 0, 0o4000], libc::ENOMSG);
    for command in [2, 3, 11, 12, 13] {
        let to = r.out(256);
        r.call(libc::SYS_msgctl, &[id, command, to]);
    }
    r.ok(libc::SYS_msgctl, &[id, 0, 0]);
}

fn semaphores(r: &mut Run) {
    let id = r.ok(libc::SYS_semget, &[0, 10, 0o1600]) as u64;
    for command in [2, 3, 18, 19, 20, 11, 12, 14, 15] {
        let to = r.out(256);
        r.call(libc::SYS_semctl, &[id, 0, command, to]);
    }
    let to = r.out(256);
    r.unbounded(libc::SYS_semctl, &[id, 0, 13, to], Why::SizeUnknown);
    let up = r.bytes(&[0, 0, 1, 0, 0, 0]);
    r.ok(libc::SYS_semop, &[id, up, 1]);
    let timeout = r.words(&[1, 0]);
    r.ok(libc::SYS_semtimedop, &[id, up, 1, timeout]);
    r.ok(libc::SYS_semctl, &[id, 0, 0, 0]);
}

fn shared_memory(r: &mut Run) {
    let id = r.ok(libc::SYS_shmget, &[0, 8192, 0o1600]) as u64;
    for command in [2, 3, 13, 14, 15] {
        let to = r.out(256);
        r.call(libc::SYS_shmctl, &[id, command, to]);
    }
    r.ok(libc::SYS_shmctl, &[id, 0, 0]);
}

fn posix_queues(r: &mut Run) {
    let name = r.str(&format!("barchan-effects-{}", std::process::id()));
    let attributes = r.words(&[0, 10, 200, 0, 0, 0, 0, 0]);
    let flags = (libc::O_RDWR | libc::O_CREAT) as u64;
    let queue = r.call(libc::SYS_mq_open, &[name, flags, 0o600, attributes]);
    let queue = queue as u64;
    if (queue as i64) < 0 {
        r.skip("POSIX queues: mq_open fails");
    }
    let message = r.out(50);
    r.call(libc::SYS_mq_timedsend, &[queue, message, 50, 3, 0]);
    let (to, priority, timeout) = (r.out(200), r.out(4), r.words(&[0, 0]));
    r.call(libc::SYS_mq_timedreceive, &[queue, to, 200, priority, timeout]);
    let old = r.out(128);
    r.call(libc::SYS_mq_getsetattr, &[queue, 0, old]);
    r.call(libc::SYS_mq_notify, &[queue, 0]);
    r.call(libc::SYS_mq_unlink, &[name]);
}

fn keys(r: &mut Run) {
    let (kind, name, payload) = (r.str("user"), r.str("barchan"), r.str("a secret of some length"));
    let process_keyring = -2i64 as u64;
    let key = r.call(libc::SYS_add_key, &[kind, name, payload, 23, process_keyring]);
    if key < 0 {
        r.skip("keys: add_key fails");
    }
    r.call(libc::SYS_request_key, &[kind, name, 0, process_keyring]);
    let key = key as u64;
    // DESCRIBE, READ, GET_SECURITY; with much room and with little.
    for operation in [6, 11, 17] {
        for room in [256, 3, 0] {
            let to = r.out(256);
            r.call(libc::SYS_keyctl, &[operation, key, to, room]);
        }
    }
    // CAPABILITIES, PKEY_QUERY, DH_COMPUTE of nothing.
    for room in [100, 1] {
        let to = r.out(128);
        r.call(libc::SYS_keyctl, &[31, to, room]);
    }
    let (empty, to) = (r.str(""), r.out(128));
    r.call(libc::SYS_keyctl, &[24, key, 0, empty, to]);
    let (parameters, to) = (r.words(&[key, key, 0, 0]), r.out(128));
    r.call(libc::SYS_keyctl, &[23, parameters, to, 128, 0]);
    let parameters = r.words(&[key & 0xffff_ffff | 16 << 32, 64, 0, 0]);
    r.call(libc::SYS_keyctl, &[25, parameters, empty, to, to]);
    r.unbounded(libc::SYS_keyctl, &[9999, 0], Why::UnknownOperation);
}
