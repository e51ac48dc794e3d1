//! What a ledger holds for balance, as it travels: whose moves were, where their clients came, and
//! what endpoints held.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    json::{EndpointRef, endpoint_ref},
    ledger::id,
    read::{ReadError, quoted},
};
use crate::{
    plan::{Charge, Fate, Flow, Group, PendingReturn, Reappearance, Subject, Sum, Test},
    policy::RuleName,
    snapshot::{CgroupId, Cookie, EndpointKey, KernelTime, Netns, ServiceName},
};

/// Whose a move is.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpenderItem {
    rule: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    group: GroupItem,
    endpoint: EndpointRef,
    client: IpAddr,
    /// Connections that the client had there.
    #[serde(default)]
    here: u64,
    load: u64,
    /// In millionths of the mean.
    #[serde(default)]
    share: u64,
    siblings: u32,
    all_seen: bool,
    stage: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupItem {
    /// `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    port: u16,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowItem {
    id: String,
    listed_nanoseconds: u64,
    total: u64,
    per_second: Option<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AwaitedItem {
    id: String,
    began_nanoseconds: u64,
    ended_nanoseconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<String>,
    by: SpenderItem,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReturnItem {
    /// The one or the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    endpoint: EndpointRef,
    moves: u64,
    returned: u64,
    #[serde(default)]
    elsewhere: u64,
    siblings: u32,
    score_millionths: i64,
    holds: u32,
    held_until_nanoseconds: u64,
    last_nanoseconds: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SumsItem {
    rule: String,
    group: GroupItem,
    sums: Vec<SumItem>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct SumItem {
    total: u64,
    /// In decimal: it may be beyond what readers of JSON take for a number.
    squares: String,
    largest: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SheddingItem {
    rule: String,
    endpoint: EndpointRef,
}

const STAGES: [Fate; 4] = [Fate::There, Fate::Away, Fate::Returned, Fate::Elsewhere];

const BACKS: [Reappearance; 3] = [
    Reappearance::Returned,
    Reappearance::Elsewhere,
    Reappearance::Unseen,
];

impl SpenderItem {
    pub(super) fn of(by: &Charge) -> Self {
        Self {
            rule: by.rule.to_string(),
            namespace: by.namespace.clone(),
            group: GroupItem::of(&by.group),
            endpoint: endpoint_ref(&by.endpoint),
            client: by.client,
            here: by.here,
            load: by.load,
            share: by.share,
            siblings: by.siblings,
            all_seen: by.whole,
            stage: by.stage.as_str().to_owned(),
        }
    }

    pub(super) fn charge(&self, path: &str) -> Result<Charge, ReadError> {
        let stage = STAGES.into_iter().find(|s| s.as_str() == self.stage);
        Ok(Charge {
            rule: rule(&self.rule, path)?,
            namespace: self.namespace.clone(),
            group: self.group.group(path)?.into(),
            endpoint: endpoint(&self.endpoint),
            client: self.client,
            here: self.here,
            load: self.load,
            share: self.share,
            siblings: self.siblings,
            whole: self.all_seen,
            stage: stage.ok_or_else(|| unknown(path, "stage", &self.stage))?,
        })
    }
}

impl GroupItem {
    pub(super) fn of(group: &Group) -> Self {
        Self {
            service: group.service.as_ref().map(ToString::to_string),
            port: group.port,
        }
    }

    pub(super) fn group(&self, path: &str) -> Result<Group, ReadError> {
        let read = |text: &str| -> Result<ServiceName, ReadError> {
            let parts = text.split_once('/');
            let (namespace, name) = parts.ok_or_else(|| unknown(path, "group.service", text))?;
            Ok(ServiceName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        };
        Ok(Group {
            service: self.service.as_deref().map(read).transpose()?,
            port: self.port,
        })
    }
}

impl FlowItem {
    pub(super) fn of((cookie, flow): &(Cookie, Flow)) -> Self {
        Self {
            id: cookie.to_string(),
            listed_nanoseconds: flow.listed.0,
            total: flow.total,
            per_second: flow.rate,
        }
    }

    pub(super) fn flow(&self, path: &str) -> Result<(Cookie, Flow), ReadError> {
        let flow = Flow {
            listed: KernelTime(self.listed_nanoseconds),
            total: self.total,
            rate: self.per_second,
        };
        Ok((id(&self.id, path)?, flow))
    }
}

impl AwaitedItem {
    pub(super) fn of(awaited: &PendingReturn) -> Self {
        Self {
            id: awaited.cookie.to_string(),
            began_nanoseconds: awaited.began.0,
            ended_nanoseconds: awaited.ended.0,
            seen: awaited.seen.map(|back| back.as_str().to_owned()),
            by: SpenderItem::of(&awaited.charge),
        }
    }

    pub(super) fn awaited(&self, path: &str) -> Result<PendingReturn, ReadError> {
        let back = |word: &String| {
            let known = BACKS.into_iter().find(|back| back.as_str() == word);
            known.ok_or_else(|| unknown(path, "seen", word))
        };
        Ok(PendingReturn {
            ended: KernelTime(self.ended_nanoseconds),
            cookie: id(&self.id, path)?,
            began: KernelTime(self.began_nanoseconds),
            charge: self.by.charge(&format!("{path}.by"))?,
            seen: self.seen.as_ref().map(back).transpose()?,
        })
    }
}

impl ReturnItem {
    pub(super) fn of((whom, endpoint, test): &(Subject, EndpointKey, Test)) -> Self {
        let (client, rule) = match whom {
            Subject::Client(client) => (Some(*client), None),
            Subject::Rule(rule) => (None, Some(rule.to_string())),
        };
        Self {
            client,
            rule,
            endpoint: endpoint_ref(endpoint),
            moves: test.moves,
            returned: test.returned,
            elsewhere: test.elsewhere,
            siblings: test.siblings,
            score_millionths: test.score,
            holds: test.holds,
            held_until_nanoseconds: test.held_until.0,
            last_nanoseconds: test.last.0,
        }
    }

    pub(super) fn test(&self, path: &str) -> Result<(Subject, EndpointKey, Test), ReadError> {
        let whom = match (self.client, &self.rule) {
            (Some(client), None) => Subject::Client(client),
            (None, Some(text)) => Subject::Rule(rule(text, path)?),
            _ => {
                return Err(ReadError::Value {
                    path: path.to_owned(),
                    value: "what it has".to_owned(),
                    expected: "`client` or `rule`, one of the two",
                });
            }
        };
        let test = Test {
            moves: self.moves,
            returned: self.returned,
            elsewhere: self.elsewhere,
            siblings: self.siblings,
            score: self.score_millionths,
            holds: self.holds,
            held_until: KernelTime(self.held_until_nanoseconds),
            last: KernelTime(self.last_nanoseconds),
        };
        Ok((whom, endpoint(&self.endpoint), test))
    }
}

impl SumsItem {
    pub(super) fn of((rule, group, sums): &(RuleName, Group, Vec<Sum>)) -> Self {
        let sum = |sum: &Sum| SumItem {
            total: sum.total,
            squares: sum.squares.to_string(),
            largest: sum.largest,
        };
        Self {
            rule: rule.to_string(),
            group: GroupItem::of(group),
            sums: sums.iter().map(sum).collect(),
        }
    }

    pub(super) fn sums(&self, path: &str) -> Result<(RuleName, Group, Vec<Sum>), ReadError> {
        let sum = |item: &SumItem| {
            let squares = item.squares.parse();
            Ok(Sum {
                total: item.total,
                squares: squares.map_err(|_| unknown(path, "squares", &item.squares))?,
                largest: item.largest,
            })
        };
        let sums: Result<_, ReadError> = self.sums.iter().map(sum).collect();
        Ok((rule(&self.rule, path)?, self.group.group(path)?, sums?))
    }
}

impl SheddingItem {
    pub(super) fn of((rule, endpoint): &(RuleName, EndpointKey)) -> Self {
        Self {
            rule: rule.to_string(),
            endpoint: endpoint_ref(endpoint),
        }
    }

    pub(super) fn shedding(&self, path: &str) -> Result<(RuleName, EndpointKey), ReadError> {
        Ok((rule(&self.rule, path)?, endpoint(&self.endpoint)))
    }
}

pub(super) fn endpoint(of: &EndpointRef) -> EndpointKey {
    EndpointKey {
        netns: Netns(of.netns),
        cgroup: of.cgroup.map(CgroupId),
        port: of.port,
    }
}

pub(super) fn rule(text: &str, path: &str) -> Result<RuleName, ReadError> {
    RuleName::known(text).ok_or_else(|| ReadError::Value {
        path: format!("{path}.rule"),
        value: quoted(text),
        expected: "a rule's name",
    })
}

fn unknown(path: &str, field: &str, value: &str) -> ReadError {
    ReadError::Value {
        path: format!("{path}.{field}"),
        value: quoted(value),
        expected: "what an agent writes there",
    }
}
