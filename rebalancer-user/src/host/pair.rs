//! A connection of which both ends are ours, to try things on.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use rustix::net::sockopt::socket_cookie;

use super::SocketId;
use crate::snapshot::Cookie;

/// Both ends, on a loopback address, and the listener that accepted it.
pub(crate) struct Pair {
    // Dropped in this order.
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) listener: TcpListener,
    /// Of the server's end.
    pub(crate) cookie: Cookie,
}

impl Pair {
    pub(crate) fn connect() -> io::Result<Self> {
        Self::connect_over(Ipv4Addr::LOCALHOST.into())
    }

    pub(crate) fn connect_over(loopback: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((loopback, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        let cookie = Cookie(socket_cookie(server.as_fd())?);
        Ok(Self {
            client,
            server,
            listener,
            cookie,
        })
    }

    /// The server's end.
    pub(crate) fn id(&self) -> io::Result<SocketId> {
        Ok(SocketId {
            cookie: self.cookie,
            local: self.server.local_addr()?,
            remote: self.client.local_addr()?,
            device: 0,
        })
    }
}
