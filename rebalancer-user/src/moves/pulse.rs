//! Signs of life of the moving thread: its moves, and for how long it has worked on one connection.
//!
//! Reading a socket takes its lock, and so does every step. A process that sends from memory whose pages
//! cannot be read (a file on a server that is gone, or on purpose) holds that lock, and waiting for it is an
//! uninterruptible sleep. A thread in it cannot be ended: it is abandoned, and another one continues without
//! that connection.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    plan::{Move, Outcome, Refusal},
    snapshot::Cookie,
};

/// One connection never takes so long unless the kernel does not answer.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What the moving thread shows to others. Clones show the same thread.
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
    /// It is recalled, and the thread has not seen that yet.
    recall: Option<Recall>,
}

/// How a move is recalled, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Recall {
    /// It ends, if nothing was done to the connection; if something was, with its present step.
    IfUntouched(String),
    /// It ends.
    Now(&'static str),
}

/// The state of the moving thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works or waits.
    Fine,
    /// The kernel has not answered it for too long.
    Stuck {
        /// For so long.
        time: Duration,
        /// About this connection; none if about anything else.
        at: Option<Cookie>,
    },
    /// It has ended.
    Ended,
}

impl Health {
    /// Why orders are refused meanwhile.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Fine => None,
            Self::Stuck { .. } => Some(Refusal::MoverStuck),
            Self::Ended => Some(Refusal::MoverEnded),
        }
    }
}

impl Pulse {
    /// Its state at `now`.
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

    /// It was given this move.
    pub(super) fn ordered(&self, chosen: &Move) {
        let in_hand = InHand {
            chosen: chosen.clone(),
            touched: false,
            recall: None,
        };
        self.state().in_hand.insert(chosen.cookie(), in_hand);
    }

    /// This move is recalled: nothing more is done to the connection before the thread has seen it,
    /// whatever it is at.
    pub(super) fn recall(&self, cookie: Cookie, why: String) {
        if let Some(in_hand) = self.state().in_hand.get_mut(&cookie) {
            in_hand.recall.get_or_insert(Recall::IfUntouched(why));
        }
    }

    /// The same for every move.
    pub(super) fn recall_all(&self, why: &'static str) {
        for in_hand in self.state().in_hand.values_mut() {
            in_hand.recall = Some(Recall::Now(why));
        }
    }

    /// What was recalled of those that are `known` to the thread.
    pub(super) fn take_recalls(&self, known: impl Fn(Cookie) -> bool) -> Vec<(Cookie, Recall)> {
        let mut state = self.state();
        let in_hand = state.in_hand.iter_mut();
        let recalled = in_hand.filter(|(cookie, _)| known(**cookie));
        recalled
            .filter_map(|(cookie, of)| Some((*cookie, of.recall.take()?)))
            .collect()
    }

    /// The move has ended. `false`: the thread was given up, and the move with it.
    pub(super) fn ended(&self, cookie: Cookie) -> bool {
        let mut state = self.state();
        state.in_hand.remove(&cookie);
        !state.given_up
    }

    /// It begins with this connection, or with something else that may take its time.
    pub(super) fn works_on(&self, cookie: Option<Cookie>, now: Instant) {
        let mut state = self.state();
        // The connection at which an abandoned thread is stuck remains visible.
        if !state.given_up {
            state.turn = Some((now, cookie));
        }
    }

    /// It waits for what is next.
    pub(super) fn idles(&self) {
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
            if in_hand.recall.is_some() {
                return false;
            }
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

    /// Its thread has ended.
    pub(super) fn has_ended(&self) {
        self.state().has_ended = true;
    }

    /// Abandons the thread: it reports nothing from then on. Returns every move that it had in hand,
    /// with an outcome that says what is known of it.
    pub(super) fn give_up(&self, now: Instant) -> Vec<(Move, Outcome)> {
        let mut state = self.state();
        state.given_up = true;
        let turn = state.turn;
        let in_hand = std::mem::take(&mut state.in_hand);
        let in_hand = in_hand.into_values();
        in_hand.map(|of| given_up(of, turn, now)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing more is done to a connection that was not touched: it lives, and only the connection at which
/// the thread was stuck is not to be tried again soon.
fn given_up(of: InHand, turn: Option<(Instant, Option<Cookie>)>, now: Instant) -> (Move, Outcome) {
    let since = turn.and_then(|(since, at)| (at? == of.chosen.cookie()).then_some(since));
    let outcome = match (since, of.touched) {
        (Some(since), true) => {
            let seconds = now.saturating_duration_since(since).as_secs();
            Outcome::Failed(format!("the kernel did not answer for {seconds} s"))
        }
        (Some(_), false) => Outcome::Refused(Refusal::Unanswered),
        (None, true) => {
            Outcome::Failed("the moving thread was abandoned before it saw the result".to_owned())
        }
        (None, false) => Outcome::Recalled(match of.recall {
            Some(Recall::IfUntouched(why)) => why,
            Some(Recall::Now(why)) => why.to_owned(),
            None => "the moving thread was abandoned".to_owned(),
        }),
    };
    (of.chosen, outcome)
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
        pulse.works_on(Some(Cookie(1)), now);
        pulse.idles();
        assert_eq!(pulse.health(now + 3600 * SECOND), Health::Fine);
    }

    #[test]
    fn a_thread_that_is_at_one_connection_for_long_is_stuck_there() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.works_on(Some(Cookie(1)), now);
        assert_eq!(pulse.health(now + 9 * SECOND), Health::Fine);
        let stuck = Health::Stuck {
            time: 42 * SECOND,
            at: Some(Cookie(1)),
        };
        assert_eq!(pulse.health(now + 42 * SECOND), stuck);
        // Many that take their time each are no reason.
        pulse.works_on(Some(Cookie(2)), now + 42 * SECOND);
        assert_eq!(pulse.health(now + 43 * SECOND), Health::Fine);
    }

    fn outcomes(given_up: Vec<(Move, Outcome)>) -> Vec<(u64, Outcome)> {
        let given_up = given_up.into_iter();
        given_up
            .map(|(chosen, outcome)| (chosen.cookie().0, outcome))
            .collect()
    }

    #[test]
    fn each_move_of_a_thread_that_is_given_up_gets_one_outcome() {
        let now = Instant::now();
        let pulse = at_work(&[1, 2, 3, 4, 5]);
        assert!(pulse.ended(Cookie(4)), "this one is reported by the thread");
        assert!(pulse.may_act(Cookie(2)));
        pulse.recall(Cookie(5), "its pod opts out".to_owned());
        pulse.works_on(Some(Cookie(1)), now);
        let recalled = |why: &str| Outcome::Recalled(why.to_owned());
        let unseen = "the moving thread was abandoned before it saw the result".to_owned();
        let expected = [
            (1, Outcome::Refused(Refusal::Unanswered)),
            (2, Outcome::Failed(unseen)),
            (3, recalled("the moving thread was abandoned")),
            (5, recalled("its pod opts out")),
        ];
        let given_up = outcomes(pulse.give_up(now + 12 * SECOND));
        assert_eq!(given_up, expected);
        // Only what may have been harmed counts against a budget.
        let harmless = given_up.iter().map(|(_, outcome)| outcome.harmless());
        assert_eq!(harmless.collect::<Vec<_>>(), [true, false, true, true]);
        // What the thread reports when it wakes up is not reported a second time.
        assert!(!pulse.ended(Cookie(1)));
    }

    #[test]
    fn a_connection_that_may_have_been_touched_is_reported_as_failed() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.works_on(Some(Cookie(1)), now);
        assert!(pulse.may_act(Cookie(1)));
        let words = "the kernel did not answer for 12 s".to_owned();
        let given_up = outcomes(pulse.give_up(now + 12 * SECOND));
        assert_eq!(given_up, [(1, Outcome::Failed(words))]);
    }

    #[test]
    fn a_recalled_move_does_nothing_before_the_thread_has_seen_the_recall() {
        let pulse = at_work(&[1, 2, 3]);
        pulse.recall(Cookie(1), "its pod opts out".to_owned());
        assert!(!pulse.may_act(Cookie(1)) && pulse.may_act(Cookie(2)));
        pulse.recall_all("moves were paused");
        assert!(!pulse.may_act(Cookie(1)) && !pulse.may_act(Cookie(2)));
        // The order of the third is on its way still.
        let now = Recall::Now("moves were paused");
        let known = |cookie| cookie != Cookie(3);
        let expected = [(Cookie(1), now.clone()), (Cookie(2), now.clone())];
        assert_eq!(pulse.take_recalls(known), expected);
        assert_eq!(pulse.take_recalls(known), []);
        assert_eq!(pulse.take_recalls(|_| true), [(Cookie(3), now)]);
        // One that had acted ends with its step.
        assert!(pulse.may_act(Cookie(2)));
    }

    #[test]
    fn a_thread_that_wakes_up_after_it_was_given_up_does_nothing() {
        let now = Instant::now();
        let pulse = at_work(&[1, 2]);
        pulse.works_on(Some(Cookie(1)), now);
        pulse.give_up(now + 10 * SECOND);
        assert!(!pulse.may_act(Cookie(1)) && !pulse.may_act(Cookie(2)));
        pulse.works_on(Some(Cookie(2)), now + 60 * SECOND);
        pulse.idles();
        assert_eq!(pulse.at(), Some(Cookie(1)));
    }

    #[test]
    fn a_thread_that_has_ended_is_reported_as_ended() {
        let now = Instant::now();
        let pulse = at_work(&[1]);
        pulse.has_ended();
        assert_eq!(pulse.health(now).refusal(), Some(Refusal::MoverEnded));
        let recalled = Outcome::Recalled("the moving thread was abandoned".to_owned());
        assert_eq!(outcomes(pulse.give_up(now)), [(1, recalled)]);
    }
}
