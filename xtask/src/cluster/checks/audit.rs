//! What the agents asked of the API server, held against what their role grants.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Outcome, Story, agents::SELECTOR};
use crate::cluster::{control_plane, kubectl};

const AGENT: &str = "system:serviceaccount:rebalancer:rebalancer";

/// A verb on a resource of a group.
type Right = (String, String, String);

/// Each call of the agents' was allowed, and the role grants nothing that no agent has used.
pub(super) fn role(_: &mut Story) -> Outcome {
    let (mut allowed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let log = fs::read_to_string(control_plane::audit_log()).context("the audit log")?;
    // The last line may be under way.
    let events = log.lines().flat_map(serde_json::from_str::<Value>);
    for event in events.filter(|event| event["user"]["username"] == AGENT) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        if object.is_null() {
            continue; // not a resource, as /version: open to all
        }
        let mut resource = text(&object["resource"]);
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        let right = (text(&object["apiGroup"]), resource, text(&event["verb"]));
        if event["responseStatus"]["code"] == 403 {
            refused.insert(right);
        } else {
            allowed.insert(right);
        }
    }
    let granted = granted()?;
    // While it starts, the API server knows no roles yet, and refuses what it allows later.
    let refused: BTreeSet<Right> = refused.difference(&allowed).cloned().collect();
    ensure!(refused.is_empty(), "refused: {}", words(&refused));
    let lacking: BTreeSet<Right> = allowed.difference(&granted).cloned().collect();
    ensure!(lacking.is_empty(), "not granted: {}", words(&lacking));
    let unused: BTreeSet<Right> = granted.difference(&allowed).cloned().collect();
    ensure!(unused.is_empty(), "granted, never used: {}", words(&unused));
    Ok(format!("{} rights, all used, none refused", granted.len()))
}

fn granted() -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for get in [
        &["get", "clusterroles", "-l", SELECTOR, "-o", "json"][..],
        &["get", "roles", "-n", "rebalancer", "-o", "json"],
    ] {
        let found: Value = serde_json::from_str(&kubectl::output(get)?)?;
        for role in found["items"].as_array().context("a list of roles")? {
            for rule in role["rules"].as_array().into_iter().flatten() {
                let list = |field: &str| -> Vec<String> {
                    let values = rule[field].as_array().into_iter().flatten();
                    values.flat_map(Value::as_str).map(str::to_owned).collect()
                };
                for group in list("apiGroups") {
                    for resource in list("resources") {
                        for verb in list("verbs") {
                            rights.insert((group.clone(), resource.clone(), verb));
                        }
                    }
                }
            }
        }
    }
    Ok(rights)
}

fn words(rights: &BTreeSet<Right>) -> String {
    let word = |(group, resource, verb): &Right| format!("{verb} {resource}.{group}");
    rights.iter().map(word).collect::<Vec<_>>().join(", ")
}
