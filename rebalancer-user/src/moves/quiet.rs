//! Whether a connection is at a quiet moment: nothing under way that a reset would lose, as far
//! as TCP shows.
//!
//! Quiet is not proof of idle: a transaction, a subscription or a slow call beside a fast one on
//! HTTP/2 look the same.
#![forbid(unsafe_code)]
#![deny(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros
)]

use std::time::Duration;

use crate::host::Socket;

/// The verdict on one look at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// All read, all acknowledged, silent for long enough, and the server sent last.
    Yes,
    /// Something is under way.
    No,
    /// Both sides sent last within one tick of the kernel's clock, so that other evidence must show which was
    /// later. Common with a fast client: its next request arrives within the tick of the last response, and
    /// everything else looks quiet while the server works on it.
    Tie,
}

/// Judges a socket. `idle_for`: how long it must have been silent.
pub fn judge(socket: &Socket, idle_for: Duration) -> Quiet {
    let at_rest = socket.receive_queue == 0 && socket.send_queue == 0;
    let silent = socket.since_sent >= idle_for && socket.since_received >= idle_for;
    // A socket's times start at its accept, so a fresh one whose first request is being worked
    // on would look answered: it must have sent something at all.
    let spoke = socket.bytes_sent.0 > 0;
    if !at_rest || !silent || !spoke {
        return Quiet::No;
    }
    match socket.since_sent.cmp(&socket.since_received) {
        std::cmp::Ordering::Less => Quiet::Yes,
        std::cmp::Ordering::Equal => Quiet::Tie,
        std::cmp::Ordering::Greater => Quiet::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Inode,
        snapshot::{Bytes, TcpState},
    };

    const IDLE: Duration = Duration::from_millis(200);

    fn quiet() -> Socket {
        Socket {
            state: TcpState::Established,
            inode: Inode(1),
            receive_queue: 0,
            send_queue: 0,
            bytes_received: Bytes(100),
            bytes_acked: Bytes(100),
            bytes_sent: Bytes(100),
            since_sent: Duration::from_millis(200),
            since_received: Duration::from_millis(204),
        }
    }

    #[test]
    fn an_answered_and_silent_connection_is_quiet() {
        assert_eq!(judge(&quiet(), IDLE), Quiet::Yes);
    }

    #[test]
    fn each_condition_alone_makes_a_connection_busy() {
        let conditions: [fn(&mut Socket); 5] = [
            |socket| socket.receive_queue = 1,
            |socket| socket.send_queue = 1,
            |socket| socket.bytes_sent = Bytes(0),
            |socket| socket.since_sent = Duration::from_millis(199),
            // The request came after our last answer: it is being worked on.
            |socket| socket.since_sent = Duration::from_millis(300),
        ];
        for condition in conditions {
            let mut socket = quiet();
            condition(&mut socket);
            assert_eq!(judge(&socket, IDLE), Quiet::No, "{socket:?}");
        }
    }

    #[test]
    fn the_same_tick_for_both_sides_is_a_tie() {
        let tie = Socket {
            since_received: Duration::from_millis(200),
            ..quiet()
        };
        assert_eq!(judge(&tie, IDLE), Quiet::Tie);
    }
}
