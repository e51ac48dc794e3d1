//! `cargo xtask test deploy`: runs all checks, even after one has failed.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{Tools, chart, choices, objects, objects::Objects, prometheus, shipped, tools};
use crate::{
    check::{self, CheckReport, Outcome},
    root,
    setup::{self, Need},
    terminal,
};

type Check = (&'static str, fn(&Tools) -> Outcome);

const CHECKS: [Check; 10] = [
    ("all manifests render", renders),
    ("helm lint passes", lint),
    (
        "kustomize and helm render the same",
        choices::render_the_same,
    ),
    ("mistakes in values are rejected", mistakes_are_rejected),
    ("a custom policy is used", custom_policy),
    (
        "coordinators are rendered where a rule balances",
        coordinators_where_a_rule_balances,
    ),
    ("memory follows maxConnections", memory),
    ("AppArmor before and since 1.30", app_armor),
    ("promtool parses the alerts", prometheus::alerts),
    ("promtool parses the dashboard", prometheus::dashboard),
];

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Deploy])?;
    let tools = Tools::build()?;
    terminal::heading("Manifests");
    let results: Vec<CheckReport> = CHECKS
        .into_iter()
        .map(|(name, check)| CheckReport::run(name, || check(&tools)))
        .collect();
    check::summarize("Summary", &results)
}

fn renders(tools: &Tools) -> Outcome {
    let all = shipped(tools)?;
    let mut count = 0;
    for (name, text) in &all {
        let objects = objects::parse(text)?;
        let daemon_sets = objects.keys().filter(|key| key.starts_with("DaemonSet "));
        ensure!(daemon_sets.count() == 1, "{name}: {:?}", objects.keys());
        count += objects.len();
    }
    Ok(format!("{} renderings, {count} objects", all.len()))
}

fn lint(tools: &Tools) -> Outcome {
    let mut helm = tools.helm(&["lint", "--strict"]);
    let (report, _) = tools::run(helm.arg(chart()))?;
    ensure!(report.contains("0 chart(s) failed"), "{report}");
    // [INFO] asks for an icon, which only catalogues need.
    let complaints = report.lines().filter(|line| {
        ["[WARNING]", "[ERROR]"]
            .iter()
            .any(|level| line.starts_with(level))
    });
    let complaints: Vec<&str> = complaints.collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(String::new())
}

/// Mistakes, each with words that the error message must contain.
const MISTAKES: [(&str, &[&str]); 10] = [
    ("profil=privileged", &["profil"]),
    ("profile=least_privilege", &["/profile", "least-privilege"]),
    ("metrics.port=http", &["/metrics/port", "integer"]),
    ("metrics.enable=true", &["/metrics", "enable"]),
    ("metrics.address=example.org", &["/metrics/address"]),
    ("maxConnections=10", &["/maxConnections", "1,000"]),
    ("maxUnavailable=0%", &["/maxUnavailable"]),
    ("cgroup=sys/fs/cgroup", &["/cgroup"]),
    ("metrics.podMonitor.enabled=true", &["metrics.enabled=true"]),
    ("policy=policy.yaml", &["--set-file policy=policy.yaml"]),
];

fn mistakes_are_rejected(tools: &Tools) -> Outcome {
    for (value, words) in MISTAKES {
        let Err(error) = tools.template(&["--set", value]) else {
            bail!("--set {value} was accepted");
        };
        // The first line is the command, which contains all words.
        let message = format!("{error:#}");
        let message = message.split_once('\n').map_or("", |(_, rest)| rest);
        let missing = words.iter().find(|word| !message.contains(**word));
        ensure!(
            missing.is_none(),
            "--set {value}: no {missing:?} in: {message}"
        );
    }
    Ok(format!("{} mistakes", MISTAKES.len()))
}

fn custom_policy(tools: &Tools) -> Outcome {
    let file = chart().join("files/policy.yaml");
    let file = format!("policy={}", file.display());
    let ours = objects::parse(&tools.template(&["--set-file", &file])?)?;
    let found = objects::differences(&ours, &objects::parse(&tools.template(&[])?)?);
    ensure!(found.is_empty(), "{}", found.join("\n"));

    let theirs = objects::parse(&tools.template(&["--set", "existingConfigMap=mine"])?)?;
    let volumes = &pod(&theirs)["spec"]["volumes"];
    let mut all = volumes.as_array().into_iter().flatten();
    let volume = all.find(|volume| volume["name"] == "policy");
    ensure!(
        volume.is_some_and(|volume| volume["configMap"]["name"] == "mine")
            && !theirs.contains_key("ConfigMap rebalancer-policy"),
        "{volumes}"
    );
    Ok(String::new())
}

/// `coordinator.enabled: auto`, the default.
fn coordinators_where_a_rule_balances(tools: &Tools) -> Outcome {
    for (rule, coordinates) in [
        ("limits: {maxAge: 1h}", false),
        ("#balance: {}", false),
        ("balance: {}", true),
    ] {
        let file = root().join("target/deploy/policy.yaml");
        let text = format!("kind: RebalancePolicy\nrules:\n- name: a\n  {rule}\n");
        fs_err::write(&file, text)?;
        let file = format!("policy={}", file.display());
        let objects = objects::parse(&tools.template(&["--set-file", &file])?)?;
        ensure!(
            objects.contains_key("Deployment rebalancer-coordinator") == coordinates,
            "with {rule}: {:?}",
            objects.keys()
        );
    }
    Ok(String::new())
}

/// The template of the agents' pods.
fn pod(objects: &Objects) -> &Value {
    &objects["DaemonSet rebalancer"]["spec"]["template"]
}

/// AppArmor was an annotation of the pod before it became a field of the container.
fn app_armor(tools: &Tools) -> Outcome {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/agent";
    for (version, is_a_field) in [("1.29.0", false), ("1.30.0", true)] {
        let arguments = [
            "--set",
            "profile=least-privilege",
            "--kube-version",
            version,
        ];
        let objects = objects::parse(&tools.template(&arguments)?)?;
        let pod = pod(&objects);
        let field = &pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"];
        let annotation = &pod["metadata"]["annotations"][ANNOTATION];
        ensure!(
            (field["type"] == "Unconfined") == is_a_field
                && (*annotation == "unconfined") != is_a_field,
            "{version}: {field} and {annotation}"
        );
    }
    Ok(String::new())
}

const MI: u64 = 1 << 20;

fn memory(tools: &Tools) -> Outcome {
    let mut sizes = Vec::new();
    for connections in [1_000, 50_000, 100_000, 1_000_000] {
        let value = format!("maxConnections={connections}");
        let objects = objects::parse(&tools.template(&["--set", &value])?)?;
        let resources = &pod(&objects)["spec"]["containers"][0]["resources"];
        // Bytes per connection in the kernel and in the agent; printing a table of all takes 3,800
        // more.
        for (kind, each) in [("requests", 400 + 2_200), ("limits", 400 + 2_200 + 3_800)] {
            let mi = mebibytes(&resources[kind]["memory"])?;
            let needed = (20_000_000 + each * connections).max(128 * MI);
            ensure!(
                mi % 64 == 0 && mi * MI >= needed && (mi - 64) * MI < needed,
                "{kind} for {connections}: {mi} Mi, but {needed} bytes are needed"
            );
            if kind == "limits" {
                sizes.push(format!("{connections}: {mi} Mi"));
            }
        }
    }
    Ok(sizes.join(", "))
}

fn mebibytes(quantity: &Value) -> Result<u64> {
    let number = quantity.as_str().and_then(|text| text.strip_suffix("Mi"));
    match number.map(str::parse) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("{quantity}: not a number of Mi"),
    }
}
