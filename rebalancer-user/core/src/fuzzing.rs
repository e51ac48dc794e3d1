//! Fuzz targets: one function for each parser of foreign input, which panics if an invariant does
//! not hold. `cargo xtask fuzz` runs them with coverage guidance; a unit test runs them on the seeds,
//! which include every input that once failed.
#![allow(
    clippy::disallowed_methods,
    reason = "the tests read their seeds from files"
)]

use rebalancer_common::frames::{Frames, Header, Stop, flag, kind};

use crate::{
    exchange::{Content, Direction, Exchange, Piece, Position, State},
    policy,
};

/// The text of a policy: rejected with a place, or explained as a valid policy that is explained the
/// same.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return; // refused where the file is read
    };
    match policy::explain("policy.yaml", text) {
        Ok(whole) => {
            let again = policy::explain("explained", &whole)
                .unwrap_or_else(|errors| panic!("the explanation is rejected: {errors}\n{whole}"));
            assert_eq!(unmarked(&whole), unmarked(&again), "explained differently");
        }
        Err(errors) => {
            let errors = errors.to_string();
            assert!(
                errors.starts_with("policy.yaml:"),
                "without its place: {errors}"
            );
            assert!(
                !errors.contains(|c: char| c.is_control() && c != '\n'),
                "control characters reach a terminal: {errors:?}"
            );
        }
    }
}

/// Without the marks of defaults: an explanation leaves nothing out.
fn unmarked(explained: &str) -> String {
    explained.replace(" # default", "")
}

/// Data of both ends of a connection. Each part begins with a byte: its lowest bit is the direction, the
/// others are the length. However the data is cut into pieces, the state is the same.
pub fn exchange(bytes: &[u8]) {
    let base = [u32::MAX, u32::MAX - 100]; // shortly before they wrap around
    let mut at = Position {
        received: 0,
        acked: 0,
    };
    let [mut whole, mut bytewise] = [(); 2].map(|()| {
        let mut exchange = Exchange::default();
        exchange.based(base);
        exchange.rest(at);
        exchange
    });
    let mut rest = bytes;
    while let [turn, data @ ..] = rest {
        let (data, after) = data.split_at(data.len().min(usize::from(turn >> 1)));
        rest = after;
        let (direction, counter) = match turn & 1 {
            0 => (Direction::In, &mut at.received),
            _ => (Direction::Out, &mut at.acked),
        };
        let seq = base[direction as usize].wrapping_add(*counter as u32);
        *counter += data.len() as u64;
        let piece = |from: usize, bytes| Piece {
            direction,
            seq: seq.wrapping_add(from as u32),
            content: Content::Present(bytes),
        };
        whole.take_in(piece(0, data));
        for (from, byte) in data.chunks(1).enumerate() {
            bytewise.take_in(piece(from, byte));
            bytewise.take_in(piece(from, byte)); // retransmitted
        }
        let complete = |exchange: &mut Exchange| exchange.state(at) == State::Complete;
        assert_eq!(complete(&mut whole), complete(&mut bytewise), "{at:?}");
    }
}

/// What a server sends by HTTP/2. Each send begins with two bytes, its length. A boundary is one by
/// the lengths of all frames before, too, and nothing is followed past what no server sends.
pub fn frames(bytes: &[u8]) {
    let (mut frames, mut stream) = (Frames::default(), Vec::new());
    let mut rest = bytes;
    while let [high, low, data @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (data, after) = data.split_at(data.len().min(length));
        rest = after;
        let read = |at: u32| data.get(at as usize..)?.first_chunk().copied();
        let followed = frames.send(data.len() as u32, read);
        stream.extend_from_slice(data);
        match followed {
            Ok(()) => assert_eq!(frames.is_at_boundary(), ends_at_boundary(&stream)),
            Err(stop) => {
                assert_ne!(stop, Stop::Unreadable, "every byte was there");
                return;
            }
        }
    }
}

/// Whether these are whole frames, and no header block is open. They begin with one.
fn ends_at_boundary(stream: &[u8]) -> bool {
    let (mut rest, mut open) = (stream, false);
    while let Some(header) = rest.first_chunk().copied().map(Header::new) {
        open = match header.kind {
            kind::HEADERS | kind::CONTINUATION => header.flags & flag::END_HEADERS == 0,
            _ => open,
        };
        assert_ne!(header.kind, kind::GOAWAY, "followed past it");
        match rest.get(9 + header.length as usize..) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty() && !open
}

#[cfg(test)]
#[path = "../../fuzz/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::on_its_seeds;

    #[test]
    fn each_target_takes_its_seeds() {
        on_its_seeds("../fuzz/corpus/policy", super::policy);
        on_its_seeds("../fuzz/corpus/exchange", super::exchange);
        on_its_seeds("../fuzz/corpus/frames", super::frames);
    }
}
