//! A connection of which both ends are ours, to try things on.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use rustix::net::sockopt::socket_cookie;

use crate::snapshot::Cookie;

/// Both ends, on a loopback address.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    /// Of the server's end.
    pub(crate) cookie: Cookie,
}

impl Pair {
    pub(crate) fn connect() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        let cookie = Cookie(socket_cookie(server.as_fd())?);
        Ok(Self {
            client,
            server,
            cookie,
        })
    }
}
