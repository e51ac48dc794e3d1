//! What should be done now, and why: a `Plan`, decided from a policy, a snapshot and what was
//! done before.
//!
//! [`decide`] is a pure function: the same input gives the same plan, in whatever order the
//! snapshot lists its connections; it cannot fail. A plan has exactly one verdict for every
//! connection, move or skip, with the reason. Only a plan makes a [`Move`], and only a move may harm
//! a connection.

mod arrivals;
mod balance;
mod budget;
mod budget_of;
mod chance;
mod charge;
mod cluster;
mod cooldown;
mod decide;
mod drain;
mod drained;
mod explain;
mod fair_queue;
mod fill;
mod first_few;
mod flows;
mod forecast;
mod group;
mod groups;
mod guards;
mod judge;
mod later;
mod ledger;
mod limits;
mod load;
mod lookup;
mod manual;
mod matches;
mod observe;
mod outcome;
mod pods;
mod ports;
mod ramp;
mod rates;
mod recall;
mod refusal;
mod report;
mod returns;
mod services;
mod skip;
mod slots;

pub use budget_of::BudgetOf;
pub use charge::{Charge, Fate, Subject};
pub use cluster::ClusterShare;
pub use cooldown::{Cooldown, CooldownOf, FIRST_HOLD, Hold};
pub use decide::decide;
pub use drained::{DRAIN_MARGIN, DRAIN_PASS, DrainCause, Drained, TooShort};
pub use explain::{Explanation, explain};
pub use fill::{FillFailure, FillTest};
pub use flows::Flow;
pub use forecast::Forecast;
pub use group::Group;
pub use ledger::{Ended, Entries, Ledger, NewHold};
pub use limits::{Reason, Unknown};
pub use load::{Load, LoadComparison, NoClusterView, NoView, ServiceFacts, Sum};
pub use manual::{Guarded, manual};
pub use outcome::{Outcome, SILENT};
pub use ramp::Ramp;
pub use rates::{History, Level};
pub use recall::Recall;
pub use refusal::Refusal;
pub use report::report;
pub use returns::{
    FIRST_FEW, LOOKED_FOR, PendingReturn, Reappearance, ReturnCounts, SEEN_WITHIN, Test,
};
pub use skip::SkipReason;

use judge::Judgement;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use crate::{
    policy::{AtEnd, Balance, Mode, RuleName, Step},
    snapshot::{Cookie, EndpointKey},
};

/// What should be done with each connection of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The policy's rules, by index.
    rules: Vec<RuleName>,
    /// One for each connection, by cookie.
    judgements: Vec<Judgement>,
    /// Why connections are skipped, by index.
    reasons: Vec<SkipReason>,
    /// In the order in which to start them, each with the index of its connection's judgement.
    moves: Vec<(usize, Move)>,
    forecasts: Vec<Forecast>,
    balanced: Vec<Balanced>,
    recalls: Vec<Recall>,
    overdue: u64,
    budget_left: u64,
    drained: Vec<Drained>,
    too_short: Vec<TooShort>,
}

/// How a group that a rule balances stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// The rule.
    pub rule: RuleName,
    /// The group.
    pub group: Group,
    /// What is balanced, and how evenly.
    pub balance: Balance,
    /// What its endpoints hold together, if all of them are seen.
    pub facts: Result<ServiceFacts, NoView>,
    /// This node's part in it, if its facts are of the cluster.
    pub cluster: Option<ClusterShare>,
    /// Each ready endpoint that is seen here, what it holds, and whether it has begun to shed.
    pub endpoints: Vec<(EndpointKey, u64, bool)>,
}

impl Plan {
    /// One per connection: the moves in the order in which to start them, then the skipped by
    /// cookie.
    pub fn decisions(&self) -> impl Iterator<Item = Decision<'_>> {
        let moves = self.moves.iter().map(|(index, chosen)| {
            let judgement = &self.judgements[*index];
            self.decision(judgement, Verdict::Move(chosen))
        });
        let skipped = self.judgements.iter().filter_map(|judgement| {
            let why = &self.reasons[judgement.why? as usize];
            Some(self.decision(judgement, Verdict::Skipped(why)))
        });
        moves.chain(skipped)
    }

    fn decision<'a>(&'a self, judgement: &Judgement, verdict: Verdict<'a>) -> Decision<'a> {
        Decision {
            cookie: judgement.cookie,
            rule: judgement.rule.map(|rule| &self.rules[rule as usize]),
            place: judgement.place.map(u64::from),
            verdict,
        }
    }

    /// The moves, in the order in which to start them.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter().map(|(_, chosen)| chosen)
    }

    /// How many connections were skipped, by the reason's word.
    pub fn skipped(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        let reasons = self.judgements.iter().filter_map(|judgement| judgement.why);
        for why in reasons {
            let word = self.reasons[why as usize].as_str();
            *counts.entry(word).or_default() += 1;
        }
        counts
    }

    /// What the budgets make of the chosen, for each mode in which any were, dry runs first.
    pub fn forecasts(&self) -> &[Forecast] {
        &self.forecasts
    }

    /// The groups that rules balance, by rule and in the order of their endpoints.
    pub fn balanced(&self) -> &[Balanced] {
        &self.balanced
    }

    /// Moves in flight that are not to be made any more, by cookie.
    pub fn recalls(&self) -> &[Recall] {
        &self.recalls
    }

    /// Connections beyond their rule's full limit that no guard skips: chosen, or waiting for
    /// budget or for an outcome.
    pub fn overdue(&self) -> u64 {
        self.overdue
    }

    /// The endpoints that are drained. If there are any, the next plan should be made after [`DRAIN_PASS`].
    pub fn drained(&self) -> &[Drained] {
        &self.drained
    }

    /// The endpoints that are not drained because their pods stop too soon.
    pub fn too_short(&self) -> &[TooShort] {
        &self.too_short
    }

    /// Moves that the window has left after those of this plan.
    pub fn budget_left(&self) -> u64 {
        self.budget_left
    }
}

/// What was decided about one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The connection.
    pub cookie: Cookie,
    /// The first rule that matches it.
    pub rule: Option<&'a RuleName>,
    /// Its place, from 1, among all that have reached a limit and that no guard skips: those
    /// moved now, and then those that wait for budget, in the order of their turns.
    pub place: Option<u64>,
    /// Move it or skip it.
    pub verdict: Verdict<'a>,
}

/// Move a connection or skip it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is to be moved (or, in dry run, would be).
    Move(&'a Move),
    /// It is left.
    Skipped(&'a SkipReason),
}

/// One connection to end so that its client reconnects. Made by [`decide`] and [`manual`] alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    cookie: Cookie,
    endpoint: EndpointKey,
    local: SocketAddr,
    remote: SocketAddr,
    pod: Option<String>,
    rule: RuleName,
    reasons: Vec<Reason>,
    steps: Arc<[Step]>,
    at_end: AtEnd,
    mode: Mode,
    heeds_guards: bool,
    is_sniffed: bool,
    charge: Box<Charge>,
}

impl Move {
    /// The connection.
    pub fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Where it was accepted.
    pub fn endpoint(&self) -> EndpointKey {
        self.endpoint
    }

    /// The server's address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The client's address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The pod that accepted it, as `namespace/name`, if it is known.
    pub fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }

    /// The rule that asks for it.
    pub fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// The endpoints among which its client may choose.
    pub fn group(&self) -> &Group {
        &self.charge.group
    }

    /// The limits exceeded, the most exceeded first, or the excess that it is of; empty only of a
    /// manual move.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// The same in words.
    pub fn why(&self) -> String {
        let words: Vec<String> = self.reasons.iter().map(ToString::to_string).collect();
        words.join("; ")
    }

    /// How to end it, in order; never empty.
    pub fn steps(&self) -> &Arc<[Step]> {
        &self.steps
    }

    /// What to do when all steps have timed out.
    pub fn at_end(&self) -> AtEnd {
        self.at_end
    }

    /// Whether what the executor learns of the process that holds the connection may skip it.
    /// False only of a manual move that asks for it.
    pub fn heeds_guards(&self) -> bool {
        self.heeds_guards
    }

    /// Whether it may be moved only once it is found to speak HTTP/1, or HTTP/2 with a step Notice.
    pub fn is_sniffed(&self) -> bool {
        self.is_sniffed
    }

    /// Whether one of its steps tells the client to leave.
    pub fn gives_notice(&self) -> bool {
        self.steps.iter().any(Step::is_notice)
    }

    /// `DryRun`: report it ([`Ledger::reported`]). `Enforce`: make it. Never `Disabled`.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}
