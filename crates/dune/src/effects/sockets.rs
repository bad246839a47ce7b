//! Calls on sockets.

use super::evaluate::{Evaluation, MOST_ELEMENTS};
use super::table::{Item, MMSGHDR, SOCKADDR};
use super::{Process, Why, Written};

/// `struct user_msghdr`, in bytes.
const MSGHDR: u64 = 56;

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SOL_UDP: i32 = 17;
const SOL_IPV6: i32 = 41;
const SOL_ICMPV6: i32 = 58;
const SOL_UDPLITE: i32 = 136;
const SOL_RAW: i32 = 255;
const SOL_PACKET: i32 = 263;
const SOL_NETLINK: i32 = 270;
const SOL_RDS: i32 = 276;
const SOL_ALG: i32 = 279;
const SOL_TLS: i32 = 282;
const SOL_XDP: i32 = 283;
const SOL_MPTCP: i32 = 284;
/// Options from here on are netfilter's, whose structures hold pointers that are written to.
const NETFILTER_BASE: i32 = 64;

impl<P: Process + ?Sized, F: FnMut(Written)> Evaluation<'_, P, F> {
    pub(super) fn socket(&mut self, item: Item) {
        match item {
            Item::Recvmsg => self.message(self.arg(1)),
            Item::Recvmmsg => {
                // `recvmmsg(fd, messages, count, flags, timeout)`; the count is not limited.
                let count = u64::from(self.arg(2) as u32);
                if count > MOST_ELEMENTS {
                    return self.unknown(Why::TooMany);
                }
                for i in 0..count {
                    let header = self.arg(1).saturating_add(i * u64::from(MMSGHDR));
                    self.message(header);
                    self.stored(header, MMSGHDR.into());
                }
            }
            Item::Setsockopt => self.setsockopt(),
            Item::Getsockopt => self.getsockopt(),
            _ => {}
        }
    }

    /// What a received message is stored to: the buffers, the sender's address, the control messages
    /// (all of which the kernel keeps within `msg_controllen`), and lengths and flags in the header.
    fn message(&mut self, header: u64) {
        self.stored(header, MSGHDR);
        let mut field = |at: u64| self.u64_at(header.saturating_add(at));
        let Some(name) = field(0) else { return };
        let Some(vector) = field(16) else { return };
        let Some(count) = field(24) else { return };
        let Some(control) = field(32) else { return };
        let Some(control_bytes) = field(40) else { return };
        // The kernel reads msg_namelen again after the data, which may lie over it, has arrived.
        self.stored(name, SOCKADDR.into());
        self.stored(control, control_bytes);
        self.iovec(vector, count, |this, base, len| this.stored(base, len));
    }

    /// `getsockopt(fd, level, option, value, length)`.
    fn getsockopt(&mut self) {
        const SO_GET_FILTER: i32 = 26;
        let (level, option) = (self.int(1), self.int(2));
        self.stored(self.arg(4), 4);
        let Some(len) = self.u32_at(self.arg(4)) else { return };
        // A negative one is refused.
        let len = u64::try_from(len as i32).unwrap_or(0);
        if !answers_within_length(level, option) {
            self.unknown(Why::UnknownOperation);
        }
        // The length counts instructions of 8 bytes here.
        let unit = if (level, option) == (SOL_SOCKET, SO_GET_FILTER) { 8 } else { 1 };
        // L2CAP_LM (of level 6, which is TCP's too) stores an `int` however little room there is.
        self.stored(self.arg(3), (len * unit).max(4));
    }

    /// `setsockopt(fd, level, option, value, length)`: netfilter's options store counters where the
    /// value points, IPV6_FLOWLABEL_MGR stores a label in the value, RDS and AF_XDP take memory for good.
    fn setsockopt(&mut self) {
        let option = self.int(2);
        match self.int(1) {
            SOL_SOCKET | SOL_TCP | SOL_UDP | SOL_ICMPV6 | SOL_UDPLITE | SOL_RAW | SOL_PACKET
            | SOL_NETLINK | SOL_ALG | SOL_TLS | SOL_MPTCP => {}
            SOL_IP if option < NETFILTER_BASE => {}
            SOL_IPV6 if is_own_of_ipv6(option) => {
                self.stored(self.arg(3), u64::try_from(self.int(4)).unwrap_or(0));
            }
            SOL_RDS | SOL_XDP => self.unknown(Why::Registered),
            _ => self.unknown(Why::UnknownOperation),
        }
    }
}

/// Whether `getsockopt` stores to as many bytes at the value as the length says, and nowhere else.
///
/// Not so are options that follow pointers in the value (`TCP_ZEROCOPY_RECEIVE`, `MPTCP_FULL_INFO`), and those
/// that store as many structures as the value asks for (`IP_MSFILTER`, `MCAST_MSFILTER`, `TCP_AO_GET_KEYS`). Where
/// such have come up, only options that were looked at are known (up to Linux 6.18), and so at the
/// levels that get new ones. Levels that are not listed (SCTP, RDS, TIPC, Bluetooth, vsock, SMC, ...) are not known.
fn answers_within_length(level: i32, option: i32) -> bool {
    const IP_MSFILTER: i32 = 41;
    const MCAST_MSFILTER: i32 = 48;
    match level {
        SOL_UDP | SOL_ICMPV6 | SOL_UDPLITE | SOL_RAW | SOL_PACKET | SOL_NETLINK | SOL_ALG
        | SOL_TLS | SOL_XDP => true,
        // To SO_INQ.
        SOL_SOCKET => (1..=84).contains(&option),
        // To IP_PROTOCOL.
        SOL_IP => (0..=52).contains(&option) && ![IP_MSFILTER, MCAST_MSFILTER].contains(&option),
        SOL_IPV6 => is_own_of_ipv6(option) && option != MCAST_MSFILTER,
        // NODELAY to MD5SIG, THIN_LINEAR_TIMEOUTS to FASTOPEN_NO_COOKIE, INQ, TX_DELAY, AO_INFO, AO_REPAIR,
        // IS_MPTCP, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US.
        SOL_TCP => matches!(option, 1..=14 | 16..=34 | 36 | 37 | 40 | 42..=46),
        // INFO, TCPINFO, SUBFLOW_ADDRS.
        SOL_MPTCP => matches!(option, 1..=3),
        _ => false,
    }
}

/// Whether an option of level `SOL_IPV6` is no other module's: 66 to 79 are IPV6_RECVTCLASS to the last of its own, 64,
/// 65 and those above are netfilter's and routing's.
fn is_own_of_ipv6(option: i32) -> bool {
    option < NETFILTER_BASE || (66..80).contains(&option)
}
