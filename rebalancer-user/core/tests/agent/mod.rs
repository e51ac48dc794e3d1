//! What an agent decides by and knows from one pass to the next, for tests of decisions.
#![allow(dead_code, reason = "each test uses some")]

use std::collections::BTreeMap;

use rebalancer_core::{
    plan::{Explanation, Ledger, Move, Outcome, Plan, decide, explain},
    policy::Policy,
    snapshot::{Cookie, KernelTime, Snapshot},
};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const HOUR: u64 = 60 * MINUTE;

/// A policy, and what its agent has learnt.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) policy: Policy,
    pub(crate) ledger: Ledger,
}

impl Agent {
    /// One that has just started.
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            ledger: Ledger::default(),
        }
    }

    /// What it decides now.
    pub(crate) fn plan(&self, listed: &Snapshot) -> Plan {
        decide(&self.policy, listed, &self.ledger, listed.taken)
    }

    /// The same after it has learnt from what is listed.
    pub(crate) fn observe(&mut self, listed: &Snapshot) -> Plan {
        self.ledger.observe(&self.policy, listed);
        self.plan(listed)
    }

    /// The explanation of this connection in a plan of this snapshot.
    pub(crate) fn explain<'a>(
        &'a self,
        listed: &'a Snapshot,
        plan: &'a Plan,
        cookie: u64,
    ) -> Option<Explanation<'a>> {
        let (policy, now) = (&self.policy, listed.taken);
        explain(policy, listed, plan, &self.ledger, now, Cookie(cookie))
    }

    /// All moves of a plan begin.
    pub(crate) fn begin(&mut self, plan: &Plan, now: KernelTime) {
        for chosen in plan.moves() {
            self.ledger.started(chosen, now);
        }
    }

    /// A move begins, and ends at once.
    pub(crate) fn moved(&mut self, chosen: &Move, outcome: Outcome, now: KernelTime) {
        self.ledger.started(chosen, now);
        self.ledger.ended(chosen.cookie(), outcome, now);
    }

    /// All moves of a plan begin, and reset their connections.
    pub(crate) fn reset(&mut self, plan: &Plan, now: KernelTime) {
        for chosen in plan.moves() {
            self.moved(chosen, Outcome::Reset, now);
        }
    }

    /// All moves of a plan are reported, as in a dry run.
    pub(crate) fn report(&mut self, plan: &Plan, now: KernelTime) {
        for chosen in plan.moves() {
            self.ledger.reported(chosen, now);
        }
    }

    /// Forgets what is over, at the end of a pass.
    pub(crate) fn prune(&mut self, listed: &Snapshot) {
        let window = self.policy.budget().window();
        self.ledger.prune(listed, window, listed.taken);
    }
}

/// What a new agent decides.
pub(crate) fn decided(policy: &Policy, listed: &Snapshot) -> Plan {
    decide(policy, listed, &Ledger::default(), listed.taken)
}

/// How many are moved, and how many are skipped by the word of their reason.
pub(crate) fn words(plan: &Plan) -> BTreeMap<&'static str, u64> {
    let mut words = plan.skipped();
    // A connection that is there after it was moved is skipped by the same word.
    *words.entry("moved").or_default() += plan.moves().count() as u64;
    words
}
