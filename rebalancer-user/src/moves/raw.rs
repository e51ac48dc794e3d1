//! A reset by two raw segments with RST, one to each end, with sequence numbers that the walk has read.
//! For kernels that offer nothing better.
//!
//! An end takes a RST only with exactly the sequence number that it expects next (RFC 5961), so
//! a connection with data in flight may survive: look, and try again. The server is
//! reached by a segment that claims to come from its client; it never leaves the host, and as it
//! is looped back with its route already found, no reverse-path filter sees it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with,
};

/// Length of a TCP header without options.
const HEADER: usize = 20;

/// The ends of a connection, and what each expects next of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// The server's address.
    pub(super) server: SocketAddr,
    /// The client's address.
    pub(super) client: SocketAddr,
    /// The server's `snd_nxt`: what the client expects next, if it has received everything.
    pub(super) to_client: u32,
    /// The server's `rcv_nxt`: what the server expects next.
    pub(super) to_server: u32,
}

/// Sends both resets, from this thread's network namespace, which must be the server's.
///
/// The server's end first: if the client's is lost or refused, whatever the client sends next is
/// answered by the kernel with the RST that fits.
pub(super) fn reset(ends: &Ends) -> io::Result<()> {
    send(ends.client, ends.server, ends.to_server)?;
    send(ends.server, ends.client, ends.to_client)
}

fn send(from: SocketAddr, to: SocketAddr, sequence: u32) -> io::Result<()> {
    let family = match from {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(
        family,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )?;
    allow_any_source(&socket, from)?;
    // A raw socket's port is its protocol, or none.
    let without_port = |mut address: SocketAddr| {
        address.set_port(0);
        address
    };
    bind(&socket, &without_port(from))?;
    let segment = segment(from, to, sequence);
    sendto(&socket, &segment, SendFlags::DONTWAIT, &without_port(to))?;
    Ok(())
}

/// Lets a socket use an address that is not this host's, here the client's.
fn allow_any_source(socket: &OwnedFd, from: SocketAddr) -> io::Result<()> {
    let (level, option) = match from {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    };
    crate::host::set_option(socket, level, option, 1)
}

/// A TCP header with nothing but RST; the kernel puts the IP header before it.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32) -> [u8; HEADER] {
    const RST: u8 = 4;
    let mut segment = [0; HEADER];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[12] = (HEADER as u8 / 4) << 4;
    segment[13] = RST;
    let checksum = checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// The Internet checksum over the pseudo-header and the segment (RFC 9293, 3.1).
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
            .sum()
    };
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    let mut sum = address(from)
        + address(to)
        + ipproto::TCP.as_raw().get() as u64
        + segment.len() as u64
        + words(segment);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_a_reset_with_a_valid_checksum() {
        let from: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let to: SocketAddr = "10.0.0.2:40000".parse().unwrap();
        let segment = segment(from, to, 0x0102_0304);
        assert_eq!(segment[..4], [0, 80, 0x9c, 0x40]);
        assert_eq!(segment[4..8], [1, 2, 3, 4]);
        // Five words of header, and RST alone.
        assert_eq!(segment[12..14], [0x50, 0x04]);
        // The sum over a segment with its checksum is all ones.
        assert_eq!(checksum(from.ip(), to.ip(), &segment), 0);
        let (six, too) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let segment = super::segment(SocketAddr::new(six, 80), SocketAddr::new(too, 1), 7);
        assert_eq!(checksum(six, too, &segment), 0);
    }
}
