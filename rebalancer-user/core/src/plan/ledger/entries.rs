//! All that a ledger holds, to be kept over a restart and to be looked at.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        Charge, FillTest, Flow, Group, History, Ledger, PendingReturn, Subject, Sum, Test,
        fill::FillTests, flows::Flows, rates::Rates, returns::Returns,
    },
    Ended, SUMS, Spent, Turn,
};
use crate::{
    policy::RuleName,
    snapshot::{Cookie, EndpointKey, KernelTime, Netns, NetnsCookie},
};

/// All that a [`Ledger`] holds, to be written and read: a decision made with what was read back
/// is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entries {
    /// Moves under way, and when they began.
    pub in_flight: Vec<(Cookie, KernelTime, Charge)>,
    /// Connections of which moves ended, and how the last did.
    pub ended: Vec<(Cookie, Ended)>,
    /// Connections reported in dry run.
    pub reported: Vec<Cookie>,
    /// Moves that count against the budget, by when they began.
    pub made: Vec<(KernelTime, Cookie, Charge)>,
    /// Moves reported in dry run, which count against a budget of their own: when, and of what.
    pub dry_runs: Vec<(KernelTime, Cookie, Charge)>,
    /// The rates of connections whose rules ask for them.
    pub rates: Vec<(Cookie, History)>,
    /// The rates of connections whose rules balance by them.
    pub flows: Vec<(Cookie, Flow)>,
    /// Moves that ended, and whose clients are looked for.
    pub awaited: Vec<PendingReturn>,
    /// Those that have not been seen for a while.
    pub late: Vec<PendingReturn>,
    /// Connections that were taken for such a client.
    pub taken: Vec<Cookie>,
    /// What is known of returns.
    pub returns: Vec<(Subject, EndpointKey, Test)>,
    /// What groups held under rules, the latest last.
    pub sums: Vec<(RuleName, Group, Vec<Sum>)>,
    /// Endpoints that have begun to shed.
    pub shedding: Vec<(RuleName, EndpointKey)>,
    /// What was moved to fill what is empty, and whether it did.
    pub fills: Vec<(RuleName, Group, FillTest)>,
    /// Since when rules are enforced; of one that is not here it does not matter.
    pub enforced: Vec<(RuleName, KernelTime)>,
    /// Moves that were begun, whatever became of them: when, and whose turn it was.
    pub attempts: Vec<(KernelTime, Cookie, RuleName, Option<String>)>,
    /// The network namespaces that had these inodes last.
    pub namespaces: Vec<(Netns, NetnsCookie)>,
}

impl Entries {
    /// Whether it may be what was known `at` this time: nothing of it is of later, and no hold is longer
    /// than any. What was read from a file may be anything.
    pub fn is_of(&self, at: KernelTime) -> bool {
        let Self {
            in_flight,
            ended,
            reported: _,
            made,
            dry_runs,
            rates,
            flows: _,
            awaited,
            late,
            taken: _,
            returns,
            sums: _,
            shedding: _,
            fills,
            enforced,
            attempts,
            namespaces: _,
        } = self;
        let began = made.iter().chain(dry_runs).map(|(began, ..)| *began);
        let moves = awaited.iter().chain(late);
        let times = (in_flight.iter().map(|(_, began, _)| *began))
            .chain(began)
            .chain(moves.flat_map(|one| [one.began, one.ended, one.seen_at]))
            .chain(returns.iter().map(|(.., test)| test.last))
            .chain(
                fills
                    .iter()
                    .flat_map(|(.., test)| [test.last, test.lacked, test.since]),
            )
            .chain(enforced.iter().map(|(_, since)| *since))
            .chain(attempts.iter().map(|(began, ..)| *began));
        let holds = returns.iter().map(|(.., test)| test.hold);
        let mut holds = holds
            .chain(fills.iter().map(|(.., test)| test.hold))
            .chain(ended.iter().map(|(_, ended)| ended.hold));
        { times }.all(|time| time <= at)
            && holds.all(|hold| hold.is_of(at))
            && rates.iter().all(|(_, history)| history.makes_sense())
    }
}

impl Ledger {
    /// All that it holds, in order.
    pub fn entries(&self) -> Entries {
        let attempt = |((at, cookie), (rule, namespace)): (&(KernelTime, Cookie), &Turn)| {
            (*at, *cookie, rule.clone(), namespace.clone())
        };
        let spent = |spent: &Spent| {
            let entry =
                |((at, cookie), by): (&(KernelTime, Cookie), &Charge)| (*at, *cookie, by.clone());
            spent.iter().map(entry).collect()
        };
        let in_flight =
            |(cookie, (at, by)): (&Cookie, &(KernelTime, Charge))| (*cookie, *at, by.clone());
        let sums = |((rule, group), sums): (&(RuleName, Arc<Group>), &VecDeque<Sum>)| {
            let sums = sums.iter().copied().collect();
            (rule.clone(), Group::clone(group), sums)
        };
        let (awaited, late, taken, returns) = self.returns.entries();
        Entries {
            in_flight: self.in_flight.iter().map(in_flight).collect(),
            ended: self.ended.clone().into_iter().collect(),
            reported: self.reported.iter().copied().collect(),
            made: spent(&self.made),
            dry_runs: spent(&self.dry_runs),
            rates: self.rates.entries(),
            flows: self.flows.entries(),
            awaited,
            late,
            taken,
            returns,
            sums: self.sums.iter().map(sums).collect(),
            shedding: self.shedding.iter().cloned().collect(),
            fills: self.fills.entries(),
            enforced: self.enforced.clone().into_iter().collect(),
            attempts: self.attempts.iter().map(attempt).collect(),
            namespaces: self.namespaces.clone().into_iter().collect(),
        }
    }

    /// A ledger that holds `entries`.
    pub fn from_entries(entries: Entries) -> Self {
        let attempt = |(at, cookie, rule, namespace)| ((at, cookie), (rule, namespace));
        let in_flight = |(cookie, at, by)| (cookie, (at, by));
        let spent = |all: Vec<(KernelTime, Cookie, Charge)>| {
            let entry = |(at, cookie, by)| ((at, cookie), by);
            all.into_iter().map(entry).collect()
        };
        let sums = |(rule, group, sums): (RuleName, Group, Vec<Sum>)| {
            (
                (rule, Arc::new(group)),
                sums.into_iter().take(SUMS).collect(),
            )
        };
        Self {
            in_flight: entries.in_flight.into_iter().map(in_flight).collect(),
            ended: entries.ended.into_iter().collect(),
            reported: entries.reported.into_iter().collect(),
            made: spent(entries.made),
            dry_runs: spent(entries.dry_runs),
            rates: Rates::from_entries(entries.rates),
            flows: Flows::from_entries(entries.flows),
            returns: Returns::from_entries(
                entries.awaited,
                entries.late,
                entries.taken,
                entries.returns,
            ),
            sums: entries.sums.into_iter().map(sums).collect(),
            shedding: entries.shedding.into_iter().collect(),
            fills: FillTests::from_entries(entries.fills),
            enforced: entries.enforced.into_iter().collect(),
            attempts: entries.attempts.into_iter().map(attempt).collect(),
            namespaces: entries.namespaces.into_iter().collect(),
        }
    }
}
