//! Whether this node can reset a connection, tried on one of our own.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use rustix::net::sockopt::socket_cookie;

use super::{SocketId, diag::Diag};
use crate::snapshot::Cookie;

/// Makes a loopback connection to ourselves, destroys its server side and sees that the client
/// side is reset and that the listener lives on.
pub fn can_destroy() -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(step("listening"))?;
    let address = listener.local_addr().map_err(step("listening"))?;
    let mut client = TcpStream::connect(address).map_err(step("connecting"))?;
    let (server, remote) = listener.accept().map_err(step("accepting"))?;
    let cookie = socket_cookie(server.as_fd()).map_err(|e| step("SO_COOKIE")(e.into()))?;
    let id = SocketId {
        cookie: Cookie(cookie),
        local: address,
        remote,
        device: 0,
    };

    let diag = Diag::open().map_err(step("sock_diag"))?;
    if diag
        .look(&id)
        .map_err(step("looking by sock_diag"))?
        .is_none()
    {
        return Err("sock_diag does not find a connection that is there \
                    (kernel without CONFIG_INET_DIAG, or its module inet_diag/tcp_diag not loaded)"
            .to_owned());
    }
    match diag.destroy(&id) {
        Ok(true) => {}
        Ok(false) => return Err("SOCK_DESTROY does not find a connection that is there".to_owned()),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err("kernel without CONFIG_INET_DIAG_DESTROY".to_owned());
        }
        Err(e) => return Err(step("SOCK_DESTROY")(e)),
    }
    let wait = Some(Duration::from_secs(1));
    client
        .set_read_timeout(wait)
        .map_err(step("waiting for the reset"))?;
    match client.read(&mut [0]) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
        other => {
            return Err(format!(
                "a destroyed connection's client saw {other:?}, not a reset"
            ));
        }
    }
    match diag.destroy(&id) {
        Ok(false) => {}
        other => return Err(format!("destroying a destroyed connection gave {other:?}")),
    }
    TcpStream::connect(address).map_err(step("the listener did not survive"))?;
    Ok(())
}
