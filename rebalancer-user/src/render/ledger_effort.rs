//! What a ledger holds of moves that are to fill what is empty, as it travels.

use serde::{Deserialize, Serialize};

use super::{
    json::{EndpointRef, endpoint_ref},
    ledger_balance::{GroupItem, endpoint, rule},
    read::ReadError,
};
use crate::{
    plan::{FillTest, Group},
    policy::RuleName,
    snapshot::KernelTime,
};

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EffortItem {
    rule: String,
    group: GroupItem,
    endpoints: Vec<EndpointRef>,
    siblings: u32,
    #[serde(default)]
    lacked_nanoseconds: u64,
    missing_millionths: u64,
    #[serde(default)]
    since_nanoseconds: u64,
    moves: u64,
    moved_millionths: u64,
    largest_millionths: u64,
    again: bool,
    holds: u32,
    held_until_nanoseconds: u64,
    last_nanoseconds: u64,
}

impl EffortItem {
    pub(super) fn of((rule, group, effort): &(RuleName, Group, FillTest)) -> Self {
        Self {
            rule: rule.to_string(),
            group: GroupItem::of(group),
            endpoints: effort.endpoints.iter().map(endpoint_ref).collect(),
            siblings: effort.siblings,
            lacked_nanoseconds: effort.lacked.0,
            missing_millionths: effort.missing,
            since_nanoseconds: effort.since.0,
            moves: effort.moves,
            moved_millionths: effort.moved,
            largest_millionths: effort.largest,
            again: effort.again,
            holds: effort.holds,
            held_until_nanoseconds: effort.held_until.0,
            last_nanoseconds: effort.last.0,
        }
    }

    pub(super) fn effort(&self, path: &str) -> Result<(RuleName, Group, FillTest), ReadError> {
        let effort = FillTest {
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            siblings: self.siblings,
            lacked: KernelTime(self.lacked_nanoseconds),
            missing: self.missing_millionths,
            since: KernelTime(self.since_nanoseconds),
            moves: self.moves,
            moved: self.moved_millionths,
            largest: self.largest_millionths,
            again: self.again,
            holds: self.holds,
            held_until: KernelTime(self.held_until_nanoseconds),
            last: KernelTime(self.last_nanoseconds),
        };
        Ok((rule(&self.rule, path)?, self.group.group(path)?, effort))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::{super::read::tests::any_key, *};
    use crate::{
        plan::{Entries, Ledger},
        snapshot::ServiceName,
    };

    fn any_effort() -> impl Strategy<Value = FillTest> {
        (
            btree_set(any_key(), 0..4),
            any::<[u32; 2]>(),
            any::<[u64; 8]>(),
            any::<bool>(),
        )
            .prop_map(|(endpoints, [siblings, holds], n, again)| FillTest {
                endpoints,
                siblings,
                missing: n[0],
                moves: n[1],
                moved: n[2],
                largest: n[3],
                again,
                holds,
                held_until: KernelTime(n[4]),
                last: KernelTime(n[5]),
                lacked: KernelTime(n[6]),
                since: KernelTime(n[7]),
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(effort in any_effort(), named: bool, port: u16) {
            let service = named.then(|| ServiceName { namespace: "shop".into(), name: "web".into() });
            let efforts = vec![(RuleName::manual(), Group { service, port }, effort)];
            let ledger = Ledger::from_entries(Entries { efforts, ..Entries::default() });
            let text = serde_json::to_string(&super::super::ledger::LedgerItem::of(&ledger)).unwrap();
            let item: super::super::ledger::LedgerItem = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(item.ledger("").unwrap(), ledger);
        }
    }
}
