//! An agent's ledger, as it is kept for the next one.

use std::{collections::BTreeSet, sync::Mutex, sync::PoisonError};

use serde::{Deserialize, Serialize};

use super::{
    json::API_VERSION,
    ledger_balance::{
        AwaitedItem, FlowItem, ReturnItem, SheddingItem, SpenderItem, SumsItem, rule,
    },
    ledger_effort::EffortItem,
    read::{ReadError, check_kind, parse, quoted},
};
use crate::{
    plan::{Charge, Entries, History, Ledger, Level, Outcome},
    policy::RuleName,
    snapshot::{Bytes, Cookie, KernelTime, Netns, NetnsCookie},
};

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LedgerItem {
    in_flight: Vec<BeganItem>,
    ended: Vec<EndedItem>,
    told_in_dry_run: Vec<String>,
    spent: Vec<BeganItem>,
    spent_in_dry_run: Vec<BeganItem>,
    rates: Vec<RateItem>,
    #[serde(default)]
    flows: Vec<FlowItem>,
    /// Moves whose clients have not been seen again.
    #[serde(default)]
    awaited: Vec<AwaitedItem>,
    /// Of those, moves whose clients have not been seen for a while.
    #[serde(default)]
    late: Vec<AwaitedItem>,
    /// Connections that were taken for such a client.
    #[serde(default)]
    seen: Vec<String>,
    #[serde(default)]
    returns: Vec<ReturnItem>,
    #[serde(default)]
    sums: Vec<SumsItem>,
    #[serde(default)]
    shedding: Vec<SheddingItem>,
    #[serde(default)]
    efforts: Vec<EffortItem>,
    #[serde(default)]
    enforced: Vec<EnforcedItem>,
    #[serde(default)]
    attempts: Vec<AttemptItem>,
    #[serde(default)]
    namespaces: Vec<NamespaceItem>,
}

/// A network namespace, by its inode and its cookie.
#[derive(Deserialize, Serialize)]
struct NamespaceItem {
    netns: u32,
    cookie: u64,
}

/// Since when a rule is enforced.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct EnforcedItem {
    rule: String,
    since_nanoseconds: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct BeganItem {
    id: String,
    began_nanoseconds: u64,
    #[serde(flatten)]
    by: SpenderItem,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndedItem {
    id: String,
    outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    ended_nanoseconds: u64,
    /// Moves of it that had ended so far.
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttemptItem {
    id: String,
    began_nanoseconds: u64,
    rule: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct RateItem {
    id: String,
    listed_nanoseconds: u64,
    bytes: u64,
    intervals: u64,
    levels: Vec<LevelItem>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct LevelItem {
    bytes_per_second: u64,
    since_nanoseconds: u64,
    interval: u64,
}

impl LedgerItem {
    pub(super) fn of(ledger: &Ledger) -> Self {
        let Entries {
            in_flight,
            ended,
            said,
            made,
            told,
            rates,
            flows,
            awaited,
            late,
            taken,
            returns,
            sums,
            shedding,
            efforts,
            enforced,
            attempts,
            namespaces,
        } = ledger.entries();
        let spent = |all: Vec<(KernelTime, Cookie, Charge)>| {
            all.into_iter().map(|(t, c, by)| began(c, t, &by))
        };
        let flying = |(c, t, by): (Cookie, KernelTime, Charge)| began(c, t, &by);
        let namespace = |(netns, cookie): (Netns, NetnsCookie)| NamespaceItem {
            netns: netns.0,
            cookie: cookie.0,
        };
        Self {
            in_flight: in_flight.into_iter().map(flying).collect(),
            ended: ended.into_iter().map(ended_item).collect(),
            told_in_dry_run: said.iter().map(ToString::to_string).collect(),
            spent: spent(made).collect(),
            spent_in_dry_run: spent(told).collect(),
            rates: rates.into_iter().map(rate_item).collect(),
            flows: flows.iter().map(FlowItem::of).collect(),
            awaited: awaited.iter().map(AwaitedItem::of).collect(),
            late: late.iter().map(AwaitedItem::of).collect(),
            seen: taken.iter().map(ToString::to_string).collect(),
            returns: returns.iter().map(ReturnItem::of).collect(),
            sums: sums.iter().map(SumsItem::of).collect(),
            shedding: shedding.iter().map(SheddingItem::of).collect(),
            efforts: efforts.iter().map(EffortItem::of).collect(),
            enforced: enforced.iter().map(enforced_item).collect(),
            attempts: attempts.into_iter().map(attempt_item).collect(),
            namespaces: namespaces.into_iter().map(namespace).collect(),
        }
    }

    /// # Errors
    /// What makes no sense in it; `above` is the path that leads to it.
    pub(super) fn ledger(&self, above: &str) -> Result<Ledger, ReadError> {
        let spent = |field: &str, items: &[BeganItem]| {
            each(items, above, field, |item, path| {
                let by = item.by.charge(path)?;
                Ok((KernelTime(item.began_nanoseconds), id(&item.id, path)?, by))
            })
        };
        Ok(Ledger::from_entries(Entries {
            in_flight: spent("inFlight", &self.in_flight)?
                .into_iter()
                .map(|(began, cookie, by)| (cookie, began, by))
                .collect(),
            ended: each(&self.ended, above, "ended", |item, path| {
                let at = KernelTime(item.ended_nanoseconds);
                let outcome = outcome(item, path)?;
                Ok((id(&item.id, path)?, outcome, at, item.times))
            })?,
            said: each(
                &self.told_in_dry_run,
                above,
                "toldInDryRun",
                |text, path| id(text, path),
            )?,
            made: spent("spent", &self.spent)?,
            told: spent("spentInDryRun", &self.spent_in_dry_run)?,
            rates: each(&self.rates, above, "rates", |item, path| {
                Ok((id(&item.id, path)?, history(item, path)?))
            })?,
            flows: each(&self.flows, above, "flows", FlowItem::flow)?,
            awaited: each(&self.awaited, above, "awaited", AwaitedItem::awaited)?,
            late: each(&self.late, above, "late", AwaitedItem::awaited)?,
            taken: each(&self.seen, above, "seen", |text, path| id(text, path))?,
            returns: each(&self.returns, above, "returns", ReturnItem::test)?,
            sums: each(&self.sums, above, "sums", SumsItem::sums)?,
            shedding: each(&self.shedding, above, "shedding", SheddingItem::shedding)?,
            efforts: each(&self.efforts, above, "efforts", EffortItem::effort)?,
            enforced: each(&self.enforced, above, "enforced", |item, path| {
                Ok((rule(&item.rule, path)?, KernelTime(item.since_nanoseconds)))
            })?,
            attempts: each(&self.attempts, above, "attempts", |item, path| {
                let began = KernelTime(item.began_nanoseconds);
                let (id, rule) = (id(&item.id, path)?, rule(&item.rule, path)?);
                Ok((began, id, rule, item.namespace.clone()))
            })?,
            namespaces: (self.namespaces.iter())
                .map(|item| (Netns(item.netns), NetnsCookie(item.cookie)))
                .collect(),
        }))
    }
}

fn enforced_item((rule, since): &(RuleName, KernelTime)) -> EnforcedItem {
    EnforcedItem {
        rule: rule.to_string(),
        since_nanoseconds: since.0,
    }
}

fn began(cookie: Cookie, began: KernelTime, by: &Charge) -> BeganItem {
    BeganItem {
        id: cookie.to_string(),
        began_nanoseconds: began.0,
        by: SpenderItem::of(by),
    }
}

fn attempt_item(
    (began, cookie, rule, namespace): (KernelTime, Cookie, RuleName, Option<String>),
) -> AttemptItem {
    AttemptItem {
        id: cookie.to_string(),
        began_nanoseconds: began.0,
        rule: rule.to_string(),
        namespace,
    }
}

fn ended_item((cookie, outcome, at, times): (Cookie, Outcome, KernelTime, u32)) -> EndedItem {
    let word = outcome.as_str().to_owned();
    EndedItem {
        id: cookie.to_string(),
        outcome: word,
        why: match outcome {
            Outcome::Refused(guard) => Some(guard.to_owned()),
            Outcome::Failed(why) => Some(why),
            _ => None,
        },
        ended_nanoseconds: at.0,
        times,
    }
}

fn rate_item((cookie, history): (Cookie, History)) -> RateItem {
    let (listed, bytes) = history.listed();
    let level = |level: &Level| LevelItem {
        bytes_per_second: level.rate,
        since_nanoseconds: level.since.0,
        interval: level.interval,
    };
    RateItem {
        id: cookie.to_string(),
        listed_nanoseconds: listed.0,
        bytes: bytes.0,
        intervals: history.intervals(),
        levels: history.levels().iter().map(level).collect(),
    }
}

/// Reads each item of a list, given its path.
fn each<I, T>(
    items: &[I],
    above: &str,
    field: &str,
    read: impl Fn(&I, &str) -> Result<T, ReadError>,
) -> Result<Vec<T>, ReadError> {
    let path = |index| format!("{above}{field}[{index}]");
    let items = items.iter().enumerate();
    items.map(|(i, item)| read(item, &path(i))).collect()
}

pub(super) fn id(text: &str, path: &str) -> Result<Cookie, ReadError> {
    text.parse().map_err(|_| ReadError::Value {
        path: format!("{path}.id"),
        value: quoted(text),
        expected: "a socket's cookie in hexadecimal",
    })
}

fn outcome(item: &EndedItem, path: &str) -> Result<Outcome, ReadError> {
    let fixed = [
        Outcome::LeftByItself,
        Outcome::Closed,
        Outcome::Reset,
        Outcome::GoneBefore,
        Outcome::GaveUp,
    ];
    let why = item.why.as_deref().unwrap_or_default();
    let known = match item.outcome.as_str() {
        "failed" => Some(Outcome::Failed(crate::policy::visible(why))),
        "refused" => word(why).map(Outcome::Refused),
        other => fixed.into_iter().find(|outcome| outcome.as_str() == other),
    };
    known.ok_or_else(|| ReadError::Value {
        path: format!("{path}.outcome"),
        value: quoted(&format!("{} {why}", item.outcome)),
        expected: "an outcome of a move",
    })
}

/// A guard's word, which outlives what it was read from: there are few of them, each is kept
/// once, and a text that has more is refused.
fn word(text: &str) -> Option<&'static str> {
    const MOST: usize = 256;
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if text.len() > 40 || !text.chars().all(|c| c.is_ascii_alphanumeric()) {
        return None;
    }
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = words.get(text) {
        return Some(known);
    }
    (words.len() < MOST).then(|| {
        let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
        words.insert(kept);
        kept
    })
}

fn history(item: &RateItem, path: &str) -> Result<History, ReadError> {
    let level = |item: &LevelItem| Level {
        rate: item.bytes_per_second,
        since: KernelTime(item.since_nanoseconds),
        interval: item.interval,
    };
    History::known(
        KernelTime(item.listed_nanoseconds),
        Bytes(item.bytes),
        item.intervals,
        item.levels.iter().map(level).collect(),
    )
    .ok_or_else(|| ReadError::Value {
        path: format!("{path}.levels"),
        value: format!("a list of {}", item.levels.len()),
        expected: "a list of rates, each higher and later than the one before",
    })
}

const KEPT: &str = "KeptLedger";

/// What an agent leaves for the next one on the same boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLedger {
    /// The boot, by the kernel's own id.
    pub boot: String,
    /// When it was written.
    pub at: KernelTime,
    /// The text of its policy.
    pub policy: String,
    /// What it has done.
    pub ledger: Ledger,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct KeptLedgerItem {
    api_version: String,
    kind: String,
    boot_id: String,
    written_nanoseconds: u64,
    policy: String,
    ledger: LedgerItem,
}

/// As JSON.
pub fn kept_ledger(kept: &KeptLedger) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&KeptLedgerItem {
        api_version: API_VERSION.to_owned(),
        kind: KEPT.to_owned(),
        boot_id: kept.boot.clone(),
        written_nanoseconds: kept.at.0,
        policy: kept.policy.clone(),
        ledger: LedgerItem::of(&kept.ledger),
    })
}

/// Reads what [`kept_ledger`] has written.
///
/// # Errors
/// Why it is none, with the path of the field.
pub fn read_kept_ledger(text: &[u8]) -> Result<KeptLedger, ReadError> {
    check_kind(text, KEPT)?;
    let item: KeptLedgerItem = parse(text)?;
    let at = KernelTime(item.written_nanoseconds);
    let ledger = item.ledger.ledger("ledger.")?;
    if !ledger.is_of(at) {
        return Err(ReadError::Value {
            path: "ledger".to_owned(),
            value: "a time in it".to_owned(),
            expected: "one before `writtenNanoseconds`, or a hold of a day at most",
        });
    }
    Ok(KeptLedger {
        boot: item.boot_id,
        at,
        policy: item.policy,
        ledger,
    })
}
