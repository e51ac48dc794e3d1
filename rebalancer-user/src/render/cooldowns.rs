//! Cooldowns: what is not tried again for a time, and why.

use std::io::{self, Write};

use super::{
    table::{table, write as write_table},
    units::age,
};
use crate::{
    api::{Form, Origin, write_cooldowns},
    plan::Cooldown,
    snapshot::KernelTime,
};

/// Writes those that last `now`.
pub fn cooldowns(
    out: &mut impl Write,
    form: Form,
    all: &[Cooldown],
    now: KernelTime,
    origin: &Origin,
) -> io::Result<()> {
    match form.notation() {
        None => lines(out, form, all, now),
        Some(notation) => write_cooldowns(out, notation, all, now, origin),
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
        api::Source,
        plan::{CooldownOf, Group, Subject},
        policy::RuleName,
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
            (CooldownOf::Fill(rule, group), "fillFailed", Some(86_405)),
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
