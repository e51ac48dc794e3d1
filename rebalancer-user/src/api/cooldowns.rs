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
#[derive(Serialize)]
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
    let (mut client, mut endpoint, mut group, mut connection) = (None, None, None, None);
    let mut rule = None;
    match &one.of {
        CooldownOf::Connection(cookie, of) => {
            (connection, rule) = (Some(cookie.to_string()), of.clone());
        }
        CooldownOf::Returns(subject, at) => {
            endpoint = Some(*at);
            match subject {
                Subject::Client(address) => client = Some(address.to_string()),
                Subject::Rule(of) => rule = Some(of.clone()),
            }
        }
        CooldownOf::Fill(of, at) => (rule, group) = (Some(of.clone()), Some(at.to_string())),
    }
    let until = |until: KernelTime| (origin.generated_at + until.since(now)).to_string();
    Item {
        connection,
        client,
        rule: rule.map(|rule| rule.to_string()),
        endpoint,
        group,
        cause: one.cause,
        why: one.why.clone(),
        times: one.times,
        until: one.until.map(until),
    }
}
