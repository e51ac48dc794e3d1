//! Parses the alert rules and the dashboard's queries with promtool. A test of rebalancer-user
//! checks that the metrics exist.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use serde_json::{Value, json};

use super::{Tools, folder, tools};
use crate::{root, setup};

/// Grafana's variables and their values for the check.
const VARIABLES: [(&str, &str); 4] = [
    ("$__rate_interval", "5m"),
    ("$__range", "1h"),
    ("$__interval", "1m"),
    ("$node", "node1"),
];

pub(super) fn alerts(_: &Tools) -> Result<String> {
    let file = folder().join("components/monitoring/prometheusrule.yaml");
    let text = fs::read_to_string(&file)?;
    let rule: Value = serde_saphyr::from_str(&text).context("prometheusrule.yaml")?;
    check("alerts.json", &rule["spec"])
}

/// Checks each query as a recording rule.
pub(super) fn dashboard(_: &Tools) -> Result<String> {
    let file = folder().join("components/monitoring/dashboard.json");
    let text = fs::read_to_string(&file)?;
    let dashboard: Value = serde_json::from_str(&text).context("dashboard.json")?;
    let mut queries = Vec::new();
    find_queries(&dashboard, &mut queries);
    ensure!(!queries.is_empty(), "the dashboard has no queries");
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(n, query)| json!({"record": format!("panel:query:{n}"), "expr": query}))
        .collect();
    check(
        "dashboard.json",
        &json!({"groups": [{"name": "dashboard", "rules": rules}]}),
    )
}

fn find_queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(query) = fields.get("expr").and_then(Value::as_str) {
                let mut query = query.to_owned();
                for (variable, value) in VARIABLES {
                    query = query.replace(variable, value);
                }
                found.push(query);
            }
            fields.values().for_each(|field| find_queries(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| find_queries(item, found)),
        _ => {}
    }
}

/// Checks rule groups with promtool, as JSON, which is valid YAML.
fn check(name: &str, groups: &Value) -> Result<String> {
    let folder = root().join("target/deploy");
    fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    fs::write(&file, groups.to_string())?;
    let mut promtool = Command::new(setup::find("promtool").context("promtool")?);
    let (report, _) = tools::run(promtool.args(["check", "rules"]).arg(&file))?;
    let summary = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("SUCCESS: "));
    Ok(summary.with_context(|| report.clone())?.to_owned())
}
