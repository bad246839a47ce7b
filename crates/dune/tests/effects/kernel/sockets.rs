//! Sockets.

use dune::effects::Why;

use super::Case;
use super::arena::Run;

pub const CASES: &[Case] = &[
    ("addresses", addresses),
    ("datagrams", datagrams),
    ("messages", messages),
    ("many messages", many_messages),
    ("options", options),
    ("far options", far_options),
    ("netlink", netlink),
];

const DONTWAIT: u64 = libc::MSG_DONTWAIT as u64;

/// 127.0.0.1, with a port.
fn loopback(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = libc::AF_INET as u8;
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn socket(r: &mut Run, family: i32, kind: i32) -> u64 {
    r.ok(libc::SYS_socket, &[family as u64, kind as u64, 0]) as u64
}

fn bound(r: &mut Run, kind: i32) -> (u64, u64) {
    let fd = socket(r, libc::AF_INET, kind);
    let address = r.bytes(&loopback(0));
    r.ok(libc::SYS_bind, &[fd, address, 16]);
    let (name, length) = (r.out(128), r.int(128));
    r.wrote(libc::SYS_getsockname, &[fd, name, length]);
    let bytes = r.get(name, 16);
    (fd, r.bytes(&bytes))
}

fn addresses(r: &mut Run) {
    let (listener, address) = bound(r, libc::SOCK_STREAM);
    r.ok(libc::SYS_listen, &[listener, 10]);
    for (call, room) in [(libc::SYS_accept, 128), (libc::SYS_accept4, 5), (libc::SYS_accept4, 0)] {
        let client = socket(r, libc::AF_INET, libc::SOCK_STREAM);
        r.ok(libc::SYS_connect, &[client, address, 16]);
        let (peer, length) = (r.out(128), r.int(room));
        let server = r.wrote(call, &[listener, peer, length, 0]) as u64;
        let (peer, length) = (r.out(128), r.int(room));
        r.wrote(libc::SYS_getpeername, &[client, peer, length]);
        r.ok(libc::SYS_shutdown, &[server, 1]);
    }
    let client = socket(r, libc::AF_INET, libc::SOCK_STREAM);
    r.ok(libc::SYS_connect, &[client, address, 16]);
    r.ok(libc::SYS_accept, &[listener, 0, 0]);
}

fn datagrams(r: &mut Run) {
    let (a, to_a) = bound(r, libc::SOCK_DGRAM);
    let (b, _) = bound(r, libc::SOCK_DGRAM);
    let data = r.out(100);
    r.ok(libc::SYS_sendto, &[b, data, 100, 0, to_a, 16]);
    let (buffer, from, length) = (r.out(1000), r.out(128), r.int(128));
    assert_eq!(r.wrote(libc::SYS_recvfrom, &[a, buffer, 1000, 0, from, length]), 100);
    // Truncated: the result may be longer than the buffer.
    r.ok(libc::SYS_sendto, &[b, data, 100, 0, to_a, 16]);
    let (buffer, from, length) = (r.out(10), r.out(128), r.int(4));
    let flags = libc::MSG_TRUNC as u64;
    assert_eq!(r.wrote(libc::SYS_recvfrom, &[a, buffer, 10, flags, from, length]), 100);
    r.fails(libc::SYS_recvfrom, &[a, buffer, 10, DONTWAIT, 0, 0], libc::EAGAIN);
}

/// A `msghdr`: name, its room, a vector, control messages and their room.
fn header(r: &mut Run, name: (u64, u64), vector: (u64, u64), control: (u64, u64)) -> u64 {
    r.words(&[name.0, name.1, vector.0, vector.1, control.0, control.1, 0])
}

fn messages(r: &mut Run) {
    let pair = r.out(8);
    let stream = libc::SOCK_DGRAM as u64;
    r.wrote(libc::SYS_socketpair, &[libc::AF_UNIX as u64, stream, 0, pair]);
    let (a, b) = (r.get_i32(pair) as u64, r.get_i32(pair + 4) as u64);
    let on = r.int(1);
    r.ok(libc::SYS_setsockopt, &[b, 1, libc::SO_PASSCRED as u64, on, 4]);
    r.ok(libc::SYS_setsockopt, &[b, 1, libc::SO_TIMESTAMPNS as u64, on, 4]);
    // Two descriptors travel along; the receiver has room for all, for one, for half a header, for none.
    for room in [256u64, 24, 40, 20, 16, 8, 0] {
        let data = r.out(50);
        let vector = r.words(&[data, 50]);
        let rights = r.bytes(
            &[24u64.to_le_bytes(), (1u64 | 1 << 32).to_le_bytes(), (a | b << 32).to_le_bytes()]
                .concat(),
        );
        let sent = header(r, (0, 0), (vector, 1), (rights, 24));
        assert_eq!(r.ok(libc::SYS_sendmsg, &[a, sent, 0]), 50);
        let (x, y, name, control) = (r.out(20), r.out(20), r.out(128), r.out(room as usize));
        let vector = r.words(&[x, 20, y, 20]);
        let received = header(r, (name, 110), (vector, 2), (control, room));
        assert_eq!(r.wrote(libc::SYS_recvmsg, &[b, received, 0]), 40);
    }
    let (vector, control) = (r.words(&[0, 0]), r.out(64));
    let empty = header(r, (0, 0), (vector, 0), (control, 64));
    r.fails(libc::SYS_recvmsg, &[b, empty, DONTWAIT], libc::EAGAIN);
    // Addresses and packet information.
    let (c, to_c) = bound(r, libc::SOCK_DGRAM);
    for (level, option) in [(0, libc::IP_PKTINFO), (0, libc::IP_RECVTTL), (1, libc::SO_TIMESTAMP)] {
        r.ok(libc::SYS_setsockopt, &[c, level, option as u64, on, 4]);
    }
    let data = r.out(50);
    r.ok(libc::SYS_sendto, &[c, data, 50, 0, to_c, 16]);
    let (x, name, control) = (r.out(64), r.out(128), r.out(256));
    let vector = r.words(&[x, 64]);
    let received = header(r, (name, 128), (vector, 1), (control, 256));
    assert_eq!(r.wrote(libc::SYS_recvmsg, &[c, received, 0]), 50);
    // The data lies over the header's length of the name, which the kernel reads after it has come.
    let long = [0x7f; 50];
    r.set(data, &long);
    r.ok(libc::SYS_sendto, &[c, data, 50, 0, to_c, 16]);
    let (name, vector) = (r.out(128), r.words(&[0, 0]));
    let received = header(r, (name, 16), (vector, 1), (0, 0));
    r.set(vector, &[(received + 8).to_le_bytes(), 4u64.to_le_bytes()].concat());
    r.call(libc::SYS_recvmsg, &[c, received, 0]);
}

fn many_messages(r: &mut Run) {
    let (a, to_a) = bound(r, libc::SOCK_DGRAM);
    let mut headers = Vec::new();
    for _ in 0..3 {
        let data = r.out(30);
        let vector = r.words(&[data, 30]);
        headers.extend([to_a, 16, vector, 1, 0, 0, 0, 0x5555]);
    }
    let list = r.words(&headers);
    assert_eq!(r.wrote(libc::SYS_sendmmsg, &[a, list, 3, 0]), 3);
    let mut headers = Vec::new();
    for _ in 0..5 {
        let (data, name) = (r.out(64), r.out(128));
        let vector = r.words(&[data, 64]);
        headers.extend([name, 128, vector, 1, 0, 0, 0, 0x5555]);
    }
    let list = r.words(&headers);
    let timeout = r.words(&[1, 0]);
    assert_eq!(r.wrote(libc::SYS_recvmmsg, &[a, list, 5, DONTWAIT, timeout]), 3);
}

fn options(r: &mut Run) {
    let tcp = socket(r, libc::AF_INET, libc::SOCK_STREAM);
    let pair = r.out(8);
    r.wrote(libc::SYS_socketpair, &[libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, pair]);
    let unix = r.get_i32(pair) as u64;
    // All of the socket level's, with much room, with little, with none.
    for option in 1..85u64 {
        for room in [512i32, 4, 1, 0, -1] {
            for fd in [tcp, unix] {
                let (value, length) = (r.base + 8192, r.base + 16384);
                r.set(length, &room.to_le_bytes());
                r.call(libc::SYS_getsockopt, &[fd, 1, option, value, length]);
            }
        }
    }
    let tcp6 = r.call(libc::SYS_socket, &[libc::AF_INET6 as u64, libc::SOCK_STREAM as u64, 0]);
    if tcp6 < 0 {
        r.skip("options of IPv6: the kernel has no IPv6");
    }
    for (fd, level, last, unbounded) in [
        (tcp, 0u64, 52u64, &[41, 48][..]),
        (tcp, 6, 46, &[15, 35, 38, 39, 41]),
        (tcp6 as u64, 41, 79, &[48, 64, 65]),
    ] {
        for option in (1..=last).filter(|option| !unbounded.contains(option)) {
            for room in [512i32, 16, 4, 0] {
                let (value, length) = (r.base + 8192, r.base + 16384);
                r.set(length, &room.to_le_bytes());
                r.call(libc::SYS_getsockopt, &[fd, level, option, value, length]);
            }
        }
    }
    let (value, length) = (r.out(128), r.int(64));
    let why = Why::UnknownOperation;
    r.unbounded(libc::SYS_getsockopt, &[tcp, 6, 35, value, length], why);
    r.unbounded(libc::SYS_getsockopt, &[tcp, 0, 64, value, length], why);
    r.unbounded(libc::SYS_setsockopt, &[tcp, 0, 64, value, 8], why);
    // A filter of four instructions: SO_GET_FILTER's length counts instructions, 8 bytes each.
    let udp = socket(r, libc::AF_INET, libc::SOCK_DGRAM);
    let filter = r.words(&[0x06 | 0xffff << 32; 4]);
    let program = r.words(&[4, filter]);
    r.ok(libc::SYS_setsockopt, &[udp, 1, libc::SO_ATTACH_FILTER as u64, program, 16]);
    let (value, length) = (r.out(256), r.int(6));
    r.wrote(libc::SYS_getsockopt, &[udp, 1, 26, value, length]);
    assert_eq!(r.get_i32(value + 24), 6, "four instructions in room for six bytes");
    // The label that IPV6_FLOWLABEL_MGR chooses is stored in the value.
    if tcp6 >= 0 {
        let request = r.bytes(&[0; 32]);
        r.set(request + 15, &[1]); // ::1
        r.set(request + 20, &[0, 1, 1, 0, 10, 0, 10, 0]); // get, any share, create
        r.call(libc::SYS_setsockopt, &[tcp6 as u64, 41, 32, request, 32]);
    }
}

/// Options whose answer goes where the value points, or is as long as the value says.
fn far_options(r: &mut Run) {
    let why = Why::UnknownOperation;
    // IP_MSFILTER: three sources, and a length that ends before the first.
    let udp = socket(r, libc::AF_INET, libc::SOCK_DGRAM);
    let (group, here) = (u32::from_le_bytes([239, 1, 2, 3]), u32::from_le_bytes([127, 0, 0, 1]));
    let mut joined = true;
    for source in 1..=3 {
        let source = u32::from_le_bytes([10, 0, 0, source]);
        let request = r.bytes(&[group, here, source].map(u32::to_le_bytes).concat());
        let add = libc::IP_ADD_SOURCE_MEMBERSHIP as u64;
        joined &= r.call(libc::SYS_setsockopt, &[udp, 0, add, request, 12]) == 0;
    }
    let filter = r.out(28);
    r.set(filter, &[group, here, 1, 3].map(u32::to_le_bytes).concat());
    let length = r.int(16);
    let got = r.unbounded(libc::SYS_getsockopt, &[udp, 0, 41, filter, length], why);
    if joined && got == 0 {
        assert_eq!(r.get(filter + 16, 2), [10, 0], "it is no longer than its length");
    } else {
        r.skip("IP_MSFILTER: no group can be joined");
    }
    // MPTCP_FULL_INFO: both of its arrays lie elsewhere.
    let listener = r.call(libc::SYS_socket, &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 262]);
    if listener < 0 {
        return r.skip("MPTCP_FULL_INFO: the kernel has no MPTCP");
    }
    let listener = listener as u64;
    let address = r.bytes(&loopback(0));
    r.ok(libc::SYS_bind, &[listener, address, 16]);
    r.ok(libc::SYS_listen, &[listener, 1]);
    let (name, length) = (r.out(128), r.int(128));
    r.wrote(libc::SYS_getsockname, &[listener, name, length]);
    let client = r.ok(libc::SYS_socket, &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 262]);
    r.ok(libc::SYS_connect, &[client as u64, name, 16]);
    let (subflows, tcp) = (r.out(264), r.out(248));
    let before = (r.get(subflows, 264), r.get(tcp, 248));
    // size_tcpinfo_kernel, size_tcpinfo_user, size_sfinfo_kernel, size_sfinfo_user, num_subflows, size_arrays_user.
    let info = r.out(256);
    r.set(info, &[0u32, 248, 0, 264, 0, 1].map(u32::to_le_bytes).concat());
    r.set(info + 24, &[subflows, tcp].map(u64::to_le_bytes).concat());
    let length = r.int(256);
    if r.unbounded(libc::SYS_getsockopt, &[client as u64, 284, 4, info, length], why) < 0 {
        return r.skip("MPTCP_FULL_INFO: an older kernel");
    }
    assert_ne!((r.get(subflows, 264), r.get(tcp, 248)), before, "its arrays lie within the value");
}

fn netlink(r: &mut Run) {
    let fd = r.call(libc::SYS_socket, &[libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0]);
    if fd < 0 {
        return r.skip("netlink: no such socket");
    }
    let fd = fd as u64;
    // RTM_GETLINK, a dump.
    let request = r.words(&[20 | 18 << 32 | 0x301 << 48, 1, 0, 0]);
    r.ok(libc::SYS_sendto, &[fd, request, 32, 0, 0, 0]);
    let (data, name) = (r.out(8192), r.out(128));
    let vector = r.words(&[data, 8192]);
    let received = header(r, (name, 12), (vector, 1), (0, 0));
    r.wrote(libc::SYS_recvmsg, &[fd, received, 0]);
    for option in 1..13u64 {
        let (value, length) = (r.base + 8192, r.base + 16384);
        r.set(length, &64i32.to_le_bytes());
        r.call(libc::SYS_getsockopt, &[fd, 270, option, value, length]);
    }
}
