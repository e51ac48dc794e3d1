//! An agent's ledger, as it is kept for the next one.

use serde::{Deserialize, Serialize};

use super::{
    envelope::compact,
    parse::{ReadError, check_kind, parse},
};
use crate::{plan::Entries, snapshot::KernelTime};

const KIND: &str = "KeptLedger";

/// What an agent leaves for the next one on the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptLedger {
    /// The boot, by the kernel's own id.
    pub boot_id: String,
    /// When it was written.
    pub written_nanoseconds: KernelTime,
    /// The text of its policy.
    pub policy: String,
    /// What it has done.
    pub entries: Entries,
}

/// Writes it as JSON.
pub fn write_kept_ledger(kept: &KeptLedger) -> serde_json::Result<Vec<u8>> {
    compact(KIND, kept)
}

/// Reads what [`write_kept_ledger`] has written.
///
/// # Errors
/// Why it is invalid, with the path of the field.
pub fn read_kept_ledger(text: &[u8]) -> Result<KeptLedger, ReadError> {
    check_kind(text, KIND)?;
    let kept: KeptLedger = parse(text)?;
    if !kept.entries.is_of(kept.written_nanoseconds) {
        return Err(ReadError::Value {
            path: "entries".to_owned(),
            value: "a time or a rate in it".to_owned(),
            expected: "one before `writtenNanoseconds`, a hold of a day at most, or rates that rise",
        });
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::{super::read_dump::tests::any_key, *};
    use crate::{
        plan::{FillTest, Group, Hold, Sum},
        policy::RuleName,
        snapshot::ServiceName,
    };

    fn kept(entries: Entries) -> KeptLedger {
        KeptLedger {
            boot_id: "boot".to_owned(),
            written_nanoseconds: KernelTime(u64::MAX),
            policy: "rules: []".to_owned(),
            entries,
        }
    }

    fn any_effort() -> impl Strategy<Value = FillTest> {
        (
            btree_set(any_key(), 0..4),
            any::<[u32; 2]>(),
            any::<[u64; 8]>(),
            any::<bool>(),
        )
            .prop_map(|(endpoints, [siblings, times], n, again)| FillTest {
                endpoints,
                siblings,
                missing: n[0],
                moves: n[1],
                moved: n[2],
                largest: n[3],
                again,
                hold: Hold {
                    times,
                    until: KernelTime(n[4]),
                },
                last: KernelTime(n[5]),
                lacked: KernelTime(n[6]),
                since: KernelTime(n[7]),
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            effort in any_effort(), named: bool, port: u16, total: u64, squares: u128,
        ) {
            let service = named.then(|| ServiceName { namespace: "shop".into(), name: "web".into() });
            let (rule, group) = (RuleName::manual(), Group { service, port });
            let sum = Sum { total, squares, largest: total };
            let kept = kept(Entries {
                fills: vec![(rule.clone(), group.clone(), effort)],
                sums: vec![(rule, group, vec![sum])],
                ..Entries::default()
            });
            prop_assert_eq!(read_kept_ledger(&write_kept_ledger(&kept).unwrap()).unwrap(), kept);
        }
    }

    /// A file that says otherwise than an agent would, in each list that could.
    #[test]
    fn what_no_agent_writes_is_refused_with_its_place() {
        let written =
            String::from_utf8(write_kept_ledger(&kept(Entries::default())).unwrap()).unwrap();
        let level = |rate: u64| {
            let interval = rate - 1;
            format!(r#"{{"rate":{rate},"since":{rate},"interval":{interval}}}"#)
        };
        let rates = |first, second| {
            let levels = format!("[{},{}]", level(first), level(second));
            let history = r#"{"listed":9,"bytes":1,"intervals":5,"levels":"#;
            format!("[[1,{history}{levels}}}]]")
        };
        let no_rule = r#"[["No Rule",{"netns":1,"cgroup":null,"port":80}]]"#;
        let no_guard = r#"[[1,{"outcome":{"refused":"noGuard"}}]]"#;
        let no_outcome = r#"[[1,{"outcome":"moved"}]]"#;
        for (field, list, place) in [
            ("rates", &*rates(2, 3), None),
            ("rates", &rates(3, 2), Some("entries: ")),
            ("rates", &rates(3, 7), Some("entries: ")),
            ("shedding", no_rule, Some("entries.shedding[0]")),
            ("ended", no_guard, Some("entries.ended[0]")),
            ("ended", no_outcome, Some("entries.ended[0]")),
            ("reported", "[-1]", Some("entries.reported[0]")),
        ] {
            let text = written.replace(&format!("\"{field}\":[]"), &format!("\"{field}\":{list}"));
            assert_ne!(text, written, "{field}");
            let read = read_kept_ledger(text.as_bytes()).map_err(|error| error.to_string());
            match place {
                None => assert!(read.is_ok(), "{read:?}"),
                Some(place) => assert!(read.as_ref().unwrap_err().contains(place), "{read:?}"),
            }
        }
        // What it says of a failure is shown to people.
        let escape =
            r#"[1,{"outcome":{"failed":"\u001b[2J"},"rule":null,"hold":{"times":1,"until":1}}]"#;
        let failed = written.replace("\"ended\":[]", &format!("\"ended\":[{escape}]"));
        let read = read_kept_ledger(failed.as_bytes()).unwrap();
        let shown = format!("{:?}", read.entries.ended);
        assert!(!shown.contains("u{1b}") && shown.contains("[2J"), "{shown}");
    }
}
