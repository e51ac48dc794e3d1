//! One connection, looked at closely: all that [`decide`](super::decide) weighs, not only what decides.

use super::{
    Decision, FillTest, Ledger, LoadComparison, Plan, Reason, SkipReason, Subject, Test, Unknown,
    Verdict,
    groups::Groups,
    guards::Guards,
    limits::measure,
    matches::{Found, Matches},
};
use crate::{
    policy::{Mismatch, Policy, Rule},
    snapshot::{Connection, Cookie, KernelTime, Snapshot, Who},
};

/// Why a connection is moved or skipped, and what it would take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The connection.
    pub connection: &'a Connection,
    /// Who accepted it.
    pub who: &'a Who,
    /// The rules looked at, in order, with why each is not for it; the last one is, if it has no
    /// such reason, and may be, if that reason is not sure.
    pub rules: Vec<(&'a Rule, Option<Mismatch>)>,
    /// What it holds against each limit.
    pub measures: Vec<Reason>,
    /// A limit of which it is not known how near the connection is.
    pub unknown: Option<Unknown>,
    /// How its endpoint stands beside its siblings, if its rule balances and all are seen.
    pub balance: Option<LoadComparison>,
    /// What is known of where moved clients come back: the connection's own client, and all of its
    /// rule, from its endpoint.
    pub returns: Vec<(Subject, Test)>,
    /// What was moved to fill the emptiest of its endpoint and its siblings, if any holds too much.
    pub fill: Option<FillTest>,
    /// Every guard that skips it; the first is the one named in a plan.
    pub guards: Vec<SkipReason>,
    /// The verdict on it in the plan.
    pub decision: Decision<'a>,
}

impl Explanation<'_> {
    /// What it would take to be moved; none if it is.
    pub fn needs(&self) -> Option<String> {
        match self.decision.verdict {
            Verdict::Move(_) => None,
            Verdict::Skipped(skipped) => Some(match self.decision.place {
                Some(place) => format!("its turn: it is number {place} of those to move"),
                None => skipped.needs(),
            }),
        }
    }
}

/// Explains what `plan`, which [`decide`](super::decide) has made of the other arguments, says of the
/// connection `cookie`; `None` if it is not listed.
pub fn explain<'a>(
    policy: &'a Policy,
    snapshot: &'a Snapshot,
    plan: &'a Plan,
    ledger: &Ledger,
    now: KernelTime,
    cookie: Cookie,
) -> Option<Explanation<'a>> {
    let connection = snapshot
        .connections
        .iter()
        .filter(|c| c.cookie == cookie)
        .min_by_key(|c| (c.endpoint, c.opened))?;
    let mut decisions = plan.decisions();
    let decision = decisions.find(|decision| decision.cookie == cookie)?;
    let who = snapshot.who(&connection.endpoint);
    let manual = || {
        let is_requested = snapshot.is_drain_requested(&connection.endpoint);
        is_requested.then(Rule::manual)
    };
    let rule = policy.matching_rule(connection, snapshot).or_else(manual);
    let mut rules = Vec::new();
    for looked_at in policy.rules() {
        let miss = looked_at.mismatch(connection, who);
        // One that may be for it, or may not, hides those behind it.
        let found = miss.as_ref().is_none_or(|miss| !miss.is_sure());
        rules.push((looked_at, miss));
        if found {
            break;
        }
    }
    let (mut measures, unknown, guards): (Vec<_>, _, Vec<_>) = match rule {
        Some(rule) => {
            let mut measures = Vec::new();
            let unknown = measure(rule, connection, ledger, now, |reason| {
                measures.push(reason)
            });
            let guards = Guards::of(policy, rule, snapshot, &connection.endpoint);
            let guards = guards.all(connection).collect();
            (measures, unknown, guards)
        }
        None => Default::default(),
    };
    let is_no_limit =
        |reason: &&Reason| matches!(reason, Reason::Drain { .. } | Reason::Balance { .. });
    if let Verdict::Move(chosen) = decision.verdict {
        measures.extend(chosen.reasons().iter().find(is_no_limit));
    }
    let matches = Matches::of(policy, snapshot);
    let groups = Groups::of(policy, &matches, snapshot, ledger);
    let matched = matches
        .all
        .iter()
        .find(|matched| std::ptr::eq(matched.connection, connection));
    let group = matched.and_then(|matched| match matched.found {
        Found::Pair(pair) => Some(groups.of_pair(pair as usize)),
        Found::NoRule | Found::Undetermined(..) => None,
    });
    let balance = group.and_then(|group| {
        let at = group.endpoints.get(&connection.endpoint)?;
        Some(LoadComparison::of(
            group.balance?,
            group.facts.ok()?,
            at.load,
        ))
    });
    let fill = group.and_then(|group| ledger.fill(&group.rule, &group.name));
    let subjects = rule.map(|rule| Subject::both(connection.client(), rule.name()));
    let tests = ledger.returns(connection.endpoint);
    let known = |subject: Subject| {
        let test = *tests?.get(&subject)?;
        Some((subject, test))
    };
    let returns = subjects.into_iter().flatten().filter_map(known).collect();
    Some(Explanation {
        connection,
        who,
        rules,
        measures,
        unknown,
        balance,
        returns,
        fill: fill.cloned(),
        guards,
        decision,
    })
}
