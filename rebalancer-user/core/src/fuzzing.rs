//! What must hold for every input that comes from outside and is read here, whatever its bytes: one
//! function for each. `cargo xtask fuzz` runs them on inputs that it makes up, guided by what they
//! reach; a unit test runs them on the seeds and on every input that was once a mistake.
//!
//! Each panics if something does not hold, and only then.
#![allow(
    clippy::disallowed_methods,
    reason = "the tests read their seeds from files"
)]

use crate::{
    exchange::{Content, Direction, Exchange, Piece, Position, State},
    policy,
};

/// The text of a policy: refused with a place inside it, or explained as a policy that is valid
/// and is explained as the same.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return; // refused where the file is read
    };
    match policy::explain("policy.yaml", text) {
        Ok(whole) => {
            let again = policy::explain("explained", &whole)
                .unwrap_or_else(|errors| panic!("explained, and then refused: {errors}\n{whole}"));
            assert_eq!(unmarked(&whole), unmarked(&again), "explained differently");
        }
        Err(errors) => {
            let said = errors.to_string();
            assert!(
                said.starts_with("policy.yaml:"),
                "without its place: {said}"
            );
            assert!(
                !said.contains(|c: char| c.is_control() && c != '\n'),
                "control characters reach a terminal: {said:?}"
            );
        }
    }
}

/// Without the marks of what was left out: in the explained whole nothing is.
fn unmarked(explained: &str) -> String {
    explained.replace(" # default", "")
}

/// What two ends of a connection say, in turns: a byte whose lowest bit says who and whose others how
/// much, and that. However it is cut into pieces, it is as complete.
pub fn exchange(bytes: &[u8]) {
    let base = [u32::MAX, u32::MAX - 100]; // they begin anew soon
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
    while let [turn, said @ ..] = rest {
        let (said, after) = said.split_at(said.len().min(usize::from(turn >> 1)));
        rest = after;
        let (direction, counter) = match turn & 1 {
            0 => (Direction::In, &mut at.received),
            _ => (Direction::Out, &mut at.acked),
        };
        let seq = base[direction as usize].wrapping_add(*counter as u32);
        *counter += said.len() as u64;
        let piece = |from: usize, bytes| Piece {
            direction,
            seq: seq.wrapping_add(from as u32),
            content: Content::Present(bytes),
        };
        whole.take_in(piece(0, said));
        for (from, byte) in said.chunks(1).enumerate() {
            bytewise.take_in(piece(from, byte));
            bytewise.take_in(piece(from, byte)); // sent again
        }
        let complete = |exchange: &mut Exchange| exchange.state(at) == State::Complete;
        assert_eq!(complete(&mut whole), complete(&mut bytewise), "{at:?}");
    }
}

#[cfg(test)]
#[path = "../../fuzz/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::on_its_seeds;

    #[test]
    fn seeds_of_policy() {
        on_its_seeds("../fuzz/corpus/policy", super::policy);
    }

    #[test]
    fn seeds_of_exchange() {
        on_its_seeds("../fuzz/corpus/exchange", super::exchange);
    }
}
