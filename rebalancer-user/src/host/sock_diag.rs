//! `sock_diag(7)`: look at one socket, destroy one socket. Always by cookie.
//!
//! A destroy without a cookie, or for a connection that has ended, would hit the listener on the
//! same port; with the cookie the kernel answers ENOENT or ESTALE instead. The `states` of a
//! request do not filter a destroy, so the caller looks at the state just before.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::BytesMut;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{self, ExtensionFlags, InetRequest, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use crate::snapshot::{Bytes, Cookie, TcpState};

/// The longest answer: a header and the attributes asked for are some 500 bytes.
const MOST_BYTES: usize = 8 * 1024;

/// Names one socket within a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    /// Its cookie; addresses lead the kernel to the socket, the cookie makes it the right one.
    pub cookie: Cookie,
    /// The local address.
    pub local: SocketAddr,
    /// The remote address.
    pub remote: SocketAddr,
    /// The interface that it is bound to, or 0.
    pub device: u32,
}

/// A socket's inode, by which the descriptors that lead to it are known. 0: there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode(pub u32);

/// A socket as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its TCP state.
    pub state: TcpState,
    /// Its inode.
    pub inode: Inode,
    /// Received and not read yet.
    pub receive_queue: u32,
    /// Written and not acknowledged yet.
    pub send_queue: u32,
    /// Received in all.
    pub bytes_received: Bytes,
    /// Sent and acknowledged in all.
    pub bytes_acked: Bytes,
    /// Data sent in all, retransmissions included.
    pub bytes_sent: Bytes,
    /// Time since data was sent, in the kernel's ticks.
    pub since_sent: Duration,
    /// Time since data was received, in the kernel's ticks.
    pub since_received: Duration,
}

/// A socket of `sock_diag` in the network namespace in which it was opened.
pub(crate) struct Diag {
    netlink: Netlink,
}

impl Diag {
    /// Opens one in this thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut netlink = Netlink::new(NETLINK_SOCK_DIAG)?;
        netlink.bind_auto()?;
        netlink.connect(&NetlinkAddr::new(0, 0))?;
        // The kernel answers before `send` returns; later there is no answer.
        netlink.set_non_blocking(true)?;
        Ok(Self { netlink })
    }

    /// Looks at a socket; `None` if there is none with this cookie.
    pub(crate) fn look(&self, id: &SocketId) -> io::Result<Option<Socket>> {
        let request = SockDiagMessage::InetRequest(request(id));
        match self.call(NLM_F_REQUEST, request.into())? {
            // The kernel has compared it; an answer about another socket is never acted on.
            Answer::Socket(cookie, socket) => Ok((cookie == id.cookie).then_some(socket)),
            Answer::Gone => Ok(None),
            Answer::Done => Err(unexpected("an acknowledgement")),
        }
    }

    /// Destroys a socket: the peer gets a RST. `false` if there is none with this cookie.
    ///
    /// EOPNOTSUPP: the kernel lacks CONFIG_INET_DIAG_DESTROY.
    pub(crate) fn destroy(&self, id: &SocketId) -> io::Result<bool> {
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(request(id)));
        match self.call(NLM_F_REQUEST | NLM_F_ACK, request.into())? {
            Answer::Done => Ok(true),
            Answer::Gone => Ok(false),
            Answer::Socket(..) => Err(unexpected("a socket")),
        }
    }

    fn call<M>(&self, flags: u16, payload: NetlinkPayload<M>) -> io::Result<Answer>
    where
        M: netlink_packet_core::NetlinkSerializable,
    {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut buffer = BytesMut::zeroed(message.buffer_len());
        message.serialize(&mut buffer);
        self.netlink.send(&buffer, 0)?;
        let mut answer = BytesMut::with_capacity(MOST_BYTES);
        self.netlink.recv(&mut answer, 0)?;
        parse(&answer)
    }
}

/// An answer of the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Socket(Cookie, Socket),
    Done,
    Gone,
}

/// Parses one answer; it is checked like any input.
fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => socket(&response),
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(Answer::Done),
            Some(code) => match -code.get() {
                // ENOENT: no such socket. ESTALE: another one with these addresses.
                libc::ENOENT | libc::ESTALE => Ok(Answer::Gone),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
        },
        _ => Err(unexpected("another message")),
    }
}

/// For fuzzing: must not panic.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_answer(bytes: &[u8]) {
    let _ = parse(bytes);
}

/// The socket in an answer; `Gone` if only a time-wait socket is left: after the server's close it has the
/// addresses and the cookie until the client closes, in FIN-WAIT-2 or TIME-WAIT and without `tcp_info`.
fn socket(response: &inet::InetResponse) -> io::Result<Answer> {
    let state = TcpState::from_kernel(response.header.state);
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    });
    let Some(info) = info else {
        return match state {
            TcpState::Established => Err(unexpected("a socket without tcp_info")),
            _ => Ok(Answer::Gone),
        };
    };
    let cookie = Cookie(u64::from_ne_bytes(response.header.socket_id.cookie));
    Ok(Answer::Socket(
        cookie,
        Socket {
            state,
            inode: Inode(response.header.inode),
            receive_queue: response.header.recv_queue,
            send_queue: response.header.send_queue,
            bytes_received: Bytes(info.bytes_received),
            bytes_acked: Bytes(info.bytes_acked),
            bytes_sent: Bytes(info.bytes_sent),
            since_sent: Duration::from_millis(info.last_data_sent.into()),
            since_received: Duration::from_millis(info.last_data_recv.into()),
        },
    ))
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("sock_diag answered with {what}"),
    )
}

fn request(id: &SocketId) -> InetRequest {
    let (family, local, remote) = match (id.local.ip(), id.remote.ip()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => (AF_INET, local.into(), remote.into()),
        // A dual-stack socket's mapped addresses were made IPv4 above; the kernel's look-up for
        // IPv4 finds those sockets too.
        (local, remote) => (AF_INET6, six(local), six(remote)),
    };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id: inet::SocketId {
            source_port: id.local.port(),
            destination_port: id.remote.port(),
            source_address: local,
            destination_address: remote,
            interface_id: id.device,
            cookie: id.cookie.0.to_ne_bytes(),
        },
    }
}

fn six(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        six => six,
    }
}
