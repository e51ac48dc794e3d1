//! What each connection carries per second, for the rules that balance by it: its part of what its
//! endpoint holds.
//!
//! Of the last interval alone. The largest sum of three intervals counts for the mean, and the few
//! that carry much widen what chance explains, so that one burst moves nobody.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::matches::Matches;
use crate::{
    policy::{Balance, By, Policy},
    snapshot::{Connection, Cookie, KernelTime},
};

/// What one connection had carried when it was last listed, and how fast it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// When it was listed.
    pub listed: KernelTime,
    /// What it had carried until then, in the unit of what is balanced.
    pub total: u64,
    /// Per second; `None` before the second listing.
    pub rate: Option<u64>,
}

/// The flows of the connections whose rules balance by them. A value, fed with each snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flows {
    known: BTreeMap<Cookie, Flow>,
}

impl Flows {
    pub(super) fn entries(&self) -> Vec<(Cookie, Flow)> {
        self.known.iter().map(|(c, flow)| (*c, *flow)).collect()
    }

    pub(super) fn from_entries(entries: Vec<(Cookie, Flow)>) -> Self {
        Self {
            known: entries.into_iter().collect(),
        }
    }

    /// Takes in a snapshot. What is not in it, or of no rule that balances by a rate, is forgotten.
    pub(super) fn observe(&mut self, policy: &Policy, matches: &Matches<'_>, taken: KernelTime) {
        let before = std::mem::take(&mut self.known);
        let by_rate = |balance: Option<Balance>| {
            balance
                .map(|balance| balance.by())
                .filter(|by| *by != By::Connections)
        };
        if !policy
            .rules()
            .iter()
            .any(|rule| by_rate(rule.balance()).is_some())
        {
            return;
        }
        for (connection, rule) in matches.with_rules() {
            let Some(by) = by_rate(rule.balance()) else {
                continue;
            };
            let total = total(connection, by);
            let flow = match before.get(&connection.cookie) {
                Some(flow) => flow.then(total, taken),
                None => Flow::new(total, taken),
            };
            self.known.insert(connection.cookie, flow);
        }
    }

    pub(super) fn rate(&self, cookie: Cookie) -> Option<u64> {
        self.known.get(&cookie)?.rate
    }
}

fn total(connection: &Connection, by: By) -> u64 {
    match by {
        By::Connections => 1,
        By::ByteRate => connection.bytes().0,
        // None sent since they are counted.
        By::MessageRate => connection.sends.map_or(0, |sends| sends.messages),
    }
}

impl Flow {
    fn new(total: u64, listed: KernelTime) -> Self {
        Self {
            listed,
            total,
            rate: None,
        }
    }

    fn then(self, total: u64, listed: KernelTime) -> Self {
        // The same listing adds nothing; a clock or counter that runs backwards starts the flow again.
        if (total, listed) == (self.total, self.listed) {
            return self;
        }
        let (Some(more), time @ 1..) = (
            total.checked_sub(self.total),
            listed.since(self.listed).as_nanos(),
        ) else {
            return Self::new(total, listed);
        };
        let rate = u128::from(more) * 1_000_000_000 / time;
        Self {
            listed,
            total,
            rate: Some(u64::try_from(rate).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_that_of_the_last_interval() {
        let second = 1_000_000_000;
        let first = Flow::new(100, KernelTime(second));
        assert_eq!(first.rate, None);
        let next = first.then(1100, KernelTime(3 * second));
        assert_eq!(next.rate, Some(500));
        assert_eq!(next.then(1100, KernelTime(3 * second)), next);
        assert_eq!(next.then(1100, KernelTime(4 * second)).rate, Some(0));
        assert_eq!(next.then(7, KernelTime(4 * second)).rate, None);
        assert_eq!(next.then(1200, KernelTime(3 * second)).rate, None);
    }
}
