//! Cooldowns: what is not tried again for a time, and why.

use std::io::{self, Write};

use serde::Serialize;

use super::envelope::{Notation, Origin, write_observed};
use crate::{
    plan::{Cooldown, CooldownOf, Subject},
    snapshot::{EndpointKey, KernelTime},
};

#[derive(Serialize)]
struct Body {
    items: Vec<Item>,
}

/// One of `connection`, `client` with `endpoint`, `rule` with `endpoint`, `rule` with `group`.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<EndpointKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    cause: &'static str,
    why: String,
    /// How often it did not work so far.
    times: u32,
    /// Null: for as long as the connection lives.
    until: Option<String>,
}

/// Writes those that last `now`.
pub fn write_cooldowns(
    out: &mut impl Write,
    notation: Notation,
    all: &[Cooldown],
    now: KernelTime,
    origin: &Origin,
) -> io::Result<()> {
    let items = all.iter().map(|one| item(one, now, origin)).collect();
    let body = Body { items };
    write_observed(out, notation, "CooldownList", now, origin, body)
}

fn item(one: &Cooldown, now: KernelTime, origin: &Origin) -> Item {
    let until = |until: KernelTime| (origin.generated_at + until.since(now)).to_string();
    let mut item = Item {
        cause: one.cause,
        why: one.why.clone(),
        times: one.times,
        until: one.until.map(until),
        ..Item::default()
    };
    match &one.of {
        CooldownOf::Connection(cookie, rule) => {
            item.connection = Some(cookie.to_string());
            item.rule = rule.as_ref().map(ToString::to_string);
        }
        CooldownOf::Returns(subject, endpoint) => {
            item.endpoint = Some(*endpoint);
            match subject {
                Subject::Client(address) => item.client = Some(address.to_string()),
                Subject::Rule(rule) => item.rule = Some(rule.to_string()),
            }
        }
        CooldownOf::Fill(rule, group) => {
            item.rule = Some(rule.to_string());
            item.group = Some(group.to_string());
        }
    }
    item
}
