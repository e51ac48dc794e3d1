//! Compares the agents' API requests in the audit log with the rights that their roles grant.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Outcome, State, agents::SELECTOR};
use crate::cluster::{control_plane, kubectl};

const AGENT: &str = "system:serviceaccount:rebalancer:rebalancer";

const NOT_OF_COORDINATORS: &str = "app.kubernetes.io/component!=coordinator";

/// API group, resource and verb.
type Right = (String, String, String);

/// Checks that no request was denied, and that every granted right was used.
pub(super) fn role(_: &mut State) -> Outcome {
    let (mut allowed, mut denied) = (BTreeSet::new(), BTreeSet::new());
    let log = fs::read_to_string(control_plane::audit_log()).context("the audit log")?;
    // The last line may be incomplete.
    let events = log.lines().flat_map(serde_json::from_str::<Value>);
    // What another check tries with the token of an agent is not the agent's.
    let is_kubectl = |event: &Value| {
        let by = event["userAgent"].as_str().unwrap_or_default();
        by.starts_with("kubectl/")
    };
    let is_agent = |event: &Value| event["user"]["username"] == AGENT && !is_kubectl(event);
    for event in events.filter(is_agent) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        if object.is_null() {
            continue; // not a resource, such as /version, which is open to all
        }
        let mut resource = text(&object["resource"]);
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        let (group, verb) = (text(&object["apiGroup"]), text(&event["verb"]));
        let code = &event["responseStatus"]["code"];
        // A server-side apply that makes the object needs both rights, and is logged as a patch.
        if verb == "patch" && *code == 201 {
            allowed.insert((group.clone(), resource.clone(), "create".to_owned()));
        }
        let right = (group, resource, verb);
        if *code == 403 {
            denied.insert(right);
        } else {
            allowed.insert(right);
        }
    }
    let granted = granted()?;
    // While it starts, the API server has not loaded the roles and denies what it allows later.
    let denied: BTreeSet<Right> = denied.difference(&allowed).cloned().collect();
    ensure!(denied.is_empty(), "denied: {}", list(&denied));
    let missing: BTreeSet<Right> = allowed.difference(&granted).cloned().collect();
    ensure!(missing.is_empty(), "not granted: {}", list(&missing));
    let unused: BTreeSet<Right> = granted.difference(&allowed).cloned().collect();
    ensure!(unused.is_empty(), "granted, never used: {}", list(&unused));
    Ok(format!("{} rights, all used, none denied", granted.len()))
}

fn granted() -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for get in [
        format!("get clusterroles -l {SELECTOR},{NOT_OF_COORDINATORS} -o json"),
        format!("get roles -n rebalancer -l {SELECTOR},{NOT_OF_COORDINATORS} -o json"),
    ] {
        let roles: Value = serde_json::from_str(&kubectl::run(&get)?)?;
        for role in roles["items"].as_array().context("a list of roles")? {
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

fn list(rights: &BTreeSet<Right>) -> String {
    let word = |(group, resource, verb): &Right| format!("{verb} {resource}.{group}");
    rights.iter().map(word).collect::<Vec<_>>().join(", ")
}
