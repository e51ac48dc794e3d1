//! Signs of life of the moving thread: what it has in hand, and for how long it has been at one
//! connection.
//!
//! A look at a socket takes the socket's lock, and so does whatever is done to it. A process that
//! sends from memory whose pages do not come (a file on a server that is gone, or on purpose) holds
//! that lock, and whoever waits for it sleeps where no signal reaches. A thread in such a sleep
//! cannot be ended: it is given up, and another one goes on without that connection.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    plan::{Move, Outcome},
    snapshot::Cookie,
};

/// One connection never takes so long unless the kernel does not answer.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What the moving thread lets others see. Clones are of the same thread.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What it is at, and since when; none while it waits.
    turn: Option<(Instant, Option<Cookie>)>,
    in_hand: BTreeMap<Cookie, InHand>,
    has_ended: bool,
    given_up: bool,
}

#[derive(Debug)]
struct InHand {
    chosen: Move,
    /// Something may have been done to it.
    touched: bool,
}

/// How the moving thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It moves, or waits.
    Fine,
    /// The kernel has not answered it for too long.
    Stuck {
        /// For so long.
        time: Duration,
        /// About this connection; none if about anything else.
        at: Option<Cookie>,
    },
    /// It is no more.
    Ended,
}

impl Health {
    pub(super) const ENDED: &str = "moverEnded";

    /// The word by which orders are refused meanwhile.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Fine => None,
            Self::Stuck { .. } => Some("moverStuck"),
            Self::Ended => Some(Self::ENDED),
        }
    }
}

impl Pulse {
    /// How it is.
    pub fn health(&self, now: Instant) -> Health {
        let state = self.state();
        if state.has_ended {
            return Health::Ended;
        }
        match state.turn {
            Some((since, at)) if now.saturating_duration_since(since) >= STUCK_AFTER => {
                let time = now.saturating_duration_since(since);
                Health::Stuck { time, at }
            }
            _ => Health::Fine,
        }
    }

    /// It is ordered this move.
    pub(super) fn ordered(&self, chosen: &Move) {
        let in_hand = InHand {
            chosen: chosen.clone(),
            touched: false,
        };
        self.state().in_hand.insert(chosen.cookie(), in_hand);
    }

    /// The move has ended. `false`: the thread was given up, and the move with it.
    pub(super) fn ended(&self, cookie: Cookie) -> bool {
        let mut state = self.state();
        state.in_hand.remove(&cookie);
        !state.given_up
    }

    /// It begins with this connection, or with something else that may take its time.
    pub(super) fn turns_to(&self, cookie: Option<Cookie>, now: Instant) {
        let mut state = self.state();
        // What one that was given up is at stays to be seen.
        if !state.given_up {
            state.turn = Some((now, cookie));
        }
    }

    /// It waits for what is next.
    pub(super) fn waits(&self) {
        let mut state = self.state();
        if !state.given_up {
            state.turn = None;
        }
    }

    /// Whether it may do something to the connection now; from then on something was.
    pub(super) fn may_act(&self, cookie: Cookie) -> bool {
        let mut state = self.state();
        if state.given_up {
            return false;
        }
        if let Some(in_hand) = state.in_hand.get_mut(&cookie) {
            in_hand.touched = true;
        }
        true
    }

    /// Whether another thread has taken over, so that this one is to end without doing anything.
    pub(super) fn is_given_up(&self) -> bool {
        self.state().given_up
    }

    /// What it is at.
    pub(super) fn at(&self) -> Option<Cookie> {
        self.state().turn.and_then(|(_, at)| at)
    }

    /// Its thread is no more.
    pub(super) fn has_ended(&self) {
        self.state().has_ended = true;
    }

    /// Gives the thread up: whatever comes of it later is not told any more. Returns every move
    /// that it had in hand, with an outcome that says what is known of it.
    pub(super) fn give_up(&self, now: Instant) -> Vec<(Move, Outcome)> {
        let health = self.health(now);
        let mut state = self.state();
        state.given_up = true;
        let in_hand = std::mem::take(&mut state.in_hand);
        let outcome = |of: &InHand| outcome_of(of, health);
        in_hand
            .into_values()
            .map(|of| (outcome(&of), of.chosen))
            .map(|(outcome, chosen)| (chosen, outcome))
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outcome_of(of: &InHand, health: Health) -> Outcome {
    match health {
        Health::Stuck { time, at } if at == Some(of.chosen.cookie()) => {
            let seconds = time.as_secs();
            Outcome::Failed(format!("the kernel did not answer for {seconds} s"))
        }
        _ if of.touched => {
            Outcome::Failed("the moving thread did not come to see what became of it".to_owned())
        }
        health => Outcome::Refused(health.refusal().unwrap_or(Health::ENDED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Guarded, manual},
        policy::Step,
        snapshot::sample,
    };

    fn a_move(cookie: u64) -> Move {
        manual(&sample::connection(cookie), Step::RESET_NOW, Guarded::No).unwrap()
    }

    fn at_work(cookies: &[u64]) -> Pulse {
        let pulse = Pulse::default();
        for cookie in cookies {
            pulse.ordered(&a_move(*cookie));
        }
        pulse
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_thread_that_waits_is_fine_however_long() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.turns_to(Some(Cookie(1)), now);
        pulse.waits();
        assert_eq!(pulse.health(now + 3600 * SECOND), Health::Fine);
    }

    #[test]
    fn a_thread_that_is_at_one_connection_for_long_is_stuck_there() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.turns_to(Some(Cookie(1)), now);
        assert_eq!(pulse.health(now + 9 * SECOND), Health::Fine);
        let stuck = Health::Stuck {
            time: 42 * SECOND,
            at: Some(Cookie(1)),
        };
        assert_eq!(pulse.health(now + 42 * SECOND), stuck);
        // Many that take their time each are no reason.
        pulse.turns_to(Some(Cookie(2)), now + 42 * SECOND);
        assert_eq!(pulse.health(now + 43 * SECOND), Health::Fine);
    }

    #[test]
    fn each_move_of_a_thread_that_is_given_up_gets_one_outcome() {
        let now = Instant::now();
        let pulse = at_work(&[1, 2, 3, 4]);
        assert!(pulse.ended(Cookie(4)), "this one is told by the thread");
        assert!(pulse.may_act(Cookie(2)));
        pulse.turns_to(Some(Cookie(1)), now);
        let given_up = pulse.give_up(now + 12 * SECOND);
        let told: Vec<_> = given_up
            .iter()
            .map(|(chosen, outcome)| (chosen.cookie().0, outcome.clone()))
            .collect();
        let [(1, hung), (2, touched), (3, untouched)] = told.as_slice() else {
            panic!("{told:?}");
        };
        let words = "the kernel did not answer for 12 s".to_owned();
        assert_eq!(*hung, Outcome::Failed(words));
        assert!(matches!(touched, Outcome::Failed(_)), "{touched:?}");
        assert_eq!(*untouched, Outcome::Refused("moverStuck"));
        // What the thread says when it wakes up is not told a second time.
        assert!(!pulse.ended(Cookie(1)));
    }

    #[test]
    fn a_thread_that_wakes_up_after_it_was_given_up_does_nothing() {
        let now = Instant::now();
        let pulse = at_work(&[1, 2]);
        pulse.turns_to(Some(Cookie(1)), now);
        pulse.give_up(now + 10 * SECOND);
        assert!(!pulse.may_act(Cookie(1)) && !pulse.may_act(Cookie(2)));
        pulse.turns_to(Some(Cookie(2)), now + 60 * SECOND);
        pulse.waits();
        assert_eq!(pulse.at(), Some(Cookie(1)));
    }

    #[test]
    fn a_thread_that_has_ended_is_told_as_what_it_is() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.has_ended();
        assert_eq!(pulse.health(now).refusal(), Some("moverEnded"));
        let [(_, outcome)] = &pulse.give_up(now)[..] else {
            panic!("one move was in hand");
        };
        assert_eq!(*outcome, Outcome::Refused("moverEnded"));
    }
}
