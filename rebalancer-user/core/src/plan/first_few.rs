//! Balance alone waits until moves are seen to help: until then only a few are under way.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Charge, Ledger, SkipReason, Subject};
use crate::{
    policy::{Rule, RuleName},
    snapshot::{Connection, EndpointKey},
};

/// Moves under way from each endpoint whose use is not known yet.
#[derive(Default)]
pub(super) struct FirstFew(BTreeMap<EndpointKey, BTreeMap<Subject, Moves>>);

#[derive(Clone, Copy, Default)]
struct Moves {
    under_way: u64,
    /// Where not all endpoints are seen: those of them whose clients have not been seen for a while.
    late: u64,
}

impl FirstFew {
    pub(super) fn of(ledger: &Ledger) -> Self {
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
    pub(super) fn count(&mut self, client: IpAddr, rule: &Rule, endpoint: EndpointKey) {
        self.add((client, rule.name(), endpoint), |moves| {
            &mut moves.under_way
        });
    }

    fn add(
        &mut self,
        (client, rule, endpoint): (IpAddr, &RuleName, EndpointKey),
        count: fn(&mut Moves) -> &mut u64,
    ) {
        let of_endpoint = self.0.entry(endpoint).or_default();
        for subject in Subject::both(client, rule) {
            *count(of_endpoint.entry(subject).or_default()) += 1;
        }
    }

    /// Whether balance may begin one more.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn allow(
        &self,
        connection: &Connection,
        rule: &Rule,
        endpoint: EndpointKey,
        ledger: &Ledger,
    ) -> Result<(), SkipReason> {
        // Most of the time there are none, and of none one is allowed in any case.
        let Some(moves) = self.0.get(&endpoint) else {
            return Ok(());
        };
        let tests = ledger.returns(endpoint);
        for subject in Subject::both(connection.client(), rule.name()) {
            let test = tests.and_then(|tests| tests.get(&subject));
            let test = test.copied().unwrap_or_default();
            let moves = moves.get(&subject).copied().unwrap_or_default();
            let late = if test.hold.times > 0 { moves.late } else { 0 };
            let (under_way, most) = (moves.under_way + late, test.allowed());
            if under_way >= most {
                return Err(SkipReason::FirstFew {
                    subject,
                    under_way,
                    most,
                });
            }
        }
        Ok(())
    }
}
