//! Balance alone waits until moves are seen to help: until then only a few are under way.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Charge, Ledger, SkipReason, Subject};
use crate::{
    policy::RuleName,
    snapshot::{Connection, EndpointKey},
};

/// Moves under way from each endpoint whose use is not known yet.
#[derive(Default)]
pub(super) struct FirstFew<'a>(BTreeMap<EndpointKey, AtEndpoint<'a>>);

/// Each move is counted under its client and under its rule.
#[derive(Default)]
struct AtEndpoint<'a> {
    clients: BTreeMap<IpAddr, Moves>,
    rules: BTreeMap<&'a RuleName, Moves>,
}

#[derive(Clone, Copy, Default)]
struct Moves {
    under_way: u64,
    /// Where not all endpoints are seen: those of them whose clients have not been seen for a while.
    late: u64,
}

impl<'a> FirstFew<'a> {
    pub(super) fn of(ledger: &'a Ledger) -> Self {
        let mut few = Self::default();
        let under_way: fn(&mut Moves) -> &mut u64 = |moves| &mut moves.under_way;
        let late = |charge: &Charge| {
            let late: fn(&mut Moves) -> &mut u64 = |moves| &mut moves.late;
            if charge.whole { under_way } else { late }
        };
        let unsettled = ledger.unsettled().map(|charge| (charge, under_way));
        for (by, count) in unsettled.chain(ledger.late().map(|by| (by, late(by)))) {
            few.add((by.client, &by.rule, by.endpoint), count);
        }
        few
    }

    /// Counts one that begins now.
    pub(super) fn count(&mut self, connection: &Connection, rule: &'a RuleName) {
        self.add((connection.client(), rule, connection.endpoint), |moves| {
            &mut moves.under_way
        });
    }

    fn add(
        &mut self,
        (client, rule, endpoint): (IpAddr, &'a RuleName, EndpointKey),
        count: fn(&mut Moves) -> &mut u64,
    ) {
        let at = self.0.entry(endpoint).or_default();
        *count(at.clients.entry(client).or_default()) += 1;
        *count(at.rules.entry(rule).or_default()) += 1;
    }

    /// Whether balance may begin one more.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn allow(
        &self,
        (endpoint, rule): (EndpointKey, &RuleName),
        connection: &Connection,
        ledger: &Ledger,
    ) -> Result<(), SkipReason> {
        // Most of the time there are none, and of none one is allowed in any case.
        let Some(at) = self.0.get(&endpoint) else {
            return Ok(());
        };
        let client = connection.client();
        let tests = ledger.returns(endpoint);
        let allow = |moves: Option<&Moves>, subject: &dyn Fn() -> Subject| {
            let moves = moves.copied().unwrap_or_default();
            let test = tests.and_then(|tests| tests.get(&subject()));
            let test = test.copied().unwrap_or_default();
            let late = if test.hold.times > 0 { moves.late } else { 0 };
            let (under_way, most) = (moves.under_way + late, test.allowed());
            if under_way < most {
                return Ok(());
            }
            Err(SkipReason::FirstFew {
                subject: subject(),
                under_way,
                most,
            })
        };
        allow(at.clients.get(&client), &|| Subject::Client(client))?;
        allow(at.rules.get(rule), &|| Subject::Rule(rule.clone()))
    }
}
