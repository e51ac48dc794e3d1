//! Cooldowns: what is not tried again for a time, and why.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    Form, Origin,
    json::{EndpointRef, endpoint_ref, write as write_json},
    table::{age, table, write as write_table},
};
use crate::{
    plan::{Cooldown, CooldownOf, Subject},
    snapshot::{KernelTime, Snapshot},
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
    endpoint: Option<EndpointRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    cause: &'static str,
    why: String,
    /// How often it was in vain so far.
    times: u32,
    /// Null: for as long as the connection lives.
    until: Option<String>,
}

/// Writes those that last `now`.
pub fn cooldowns(
    out: &mut impl Write,
    form: Form,
    all: &[Cooldown],
    now: KernelTime,
    origin: &Origin,
) -> io::Result<()> {
    let Some(notation) = form.notation() else {
        return lines(out, form, all, now);
    };
    let items = all.iter().map(|one| item(one, now, origin)).collect();
    let taken = Snapshot {
        taken: now,
        ..Snapshot::default()
    };
    write_json(
        out,
        notation,
        "CooldownList",
        &taken,
        origin,
        Body { items },
    )
}

fn item(one: &Cooldown, now: KernelTime, origin: &Origin) -> Item {
    let (mut client, mut endpoint, mut group, mut connection) = (None, None, None, None);
    let mut rule = None;
    match &one.of {
        CooldownOf::Connection(cookie, of) => {
            (connection, rule) = (Some(cookie.to_string()), of.clone());
        }
        CooldownOf::Returns(whom, at) => {
            endpoint = Some(endpoint_ref(at));
            match whom {
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

fn lines(out: &mut impl Write, form: Form, all: &[Cooldown], now: KernelTime) -> io::Result<()> {
    let is_wide = matches!(form, Form::Wide);
    let mut header = vec!["OF", "CAUSE", "TIMES", "ENDS IN"];
    header.extend(is_wide.then_some("WHY"));
    let mut lines = table(&header, 2..3);
    for one in all {
        let left = |until: KernelTime| age(until.since(now));
        let mut row = vec![
            one.of.to_string(),
            one.cause.to_owned(),
            one.times.to_string(),
            one.until.map_or("never".to_owned(), left),
        ];
        row.extend(is_wide.then(|| one.why.clone()));
        lines.add_row(row);
    }
    write_table(out, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::Group,
        policy::RuleName,
        render::Source,
        snapshot::{Cookie, sample::connection},
    };

    #[test]
    fn each_says_of_what_it_is_why_and_until_when() {
        let rule = RuleName::manual();
        let endpoint = connection(1).endpoint;
        let client = Subject::Client([10, 0, 0, 7].into());
        let group = Group {
            service: None,
            port: 8080,
        };
        let of = [
            (
                CooldownOf::Connection(Cookie(0xab), Some(rule.clone())),
                "http2",
                None,
            ),
            (CooldownOf::Returns(client, endpoint), "returns", Some(605)),
            (
                CooldownOf::Returns(Subject::Rule(rule.clone()), endpoint),
                "returns",
                Some(1205),
            ),
            (CooldownOf::Fill(rule, group), "futile", Some(86_405)),
        ];
        let all = of.map(|(of, cause, until)| Cooldown {
            of,
            cause,
            why: "so it is".to_owned(),
            until: until.map(|seconds: u64| KernelTime(seconds * 1_000_000_000)),
            times: 2,
        });
        let origin = Origin {
            node: "n".into(),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
            source: Source::Agent,
        };
        let shown = [Form::Table, Form::Wide, Form::Json].map(|form| {
            let mut out = Vec::new();
            cooldowns(&mut out, form, &all, KernelTime(5_000_000_000), &origin).unwrap();
            String::from_utf8(out).unwrap()
        });
        insta::assert_snapshot!(shown.join("\n"));
    }
}
