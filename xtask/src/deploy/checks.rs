//! `cargo xtask test deploy`: the checks, one by one; the others go on after one that fails.

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{Tools, chart, choices, objects, prometheus, shipped, tools};
use crate::{
    check::{CheckReport, Outcome},
    setup::{self, Need},
    terminal,
};

type Check = (&'static str, fn(&Tools) -> Outcome);

/// The width of the names.
const NAMES: usize = 34;

const CHECKS: [Check; 9] = [
    ("what is shipped renders", renders),
    ("helm lint has nothing to say", lint),
    ("kustomize and helm give the same", choices::give_the_same),
    ("a mistake in values is refused", mistakes_are_refused),
    ("a policy of one's own arrives", policy_arrives),
    ("memory follows maxConnections", memory),
    ("AppArmor before and from 1.30 on", app_armor),
    ("promtool reads the alerts", prometheus::alerts),
    ("promtool reads the dashboard", prometheus::dashboard),
];

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Deploy])?;
    let tools = Tools::build()?;
    terminal::heading("Manifests");
    let results: Vec<CheckReport> = CHECKS
        .into_iter()
        .map(|(name, check)| CheckReport::run(name, || check(&tools)))
        .collect();
    terminal::heading("Summary");
    for result in &results {
        result.summarize(NAMES);
    }
    let failed = results.iter().filter(|result| result.has_failed()).count();
    if failed > 0 {
        bail!("checks of deploy/ that failed: {failed}");
    }
    Ok(())
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
    let (said, _) = tools::run(helm.arg(chart()))?;
    ensure!(said.contains("0 chart(s) failed"), "{said}");
    // An icon is for catalogues; this chart is in none.
    let complaints = said.lines().filter(|line| {
        ["[WARNING]", "[ERROR]"]
            .iter()
            .any(|level| line.starts_with(level))
    });
    let complaints: Vec<&str> = complaints.collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(String::new())
}

/// Each with the words by which whoever made it finds it.
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

fn mistakes_are_refused(tools: &Tools) -> Outcome {
    for (value, words) in MISTAKES {
        match tools.template(&["--set", value]) {
            Ok(_) => bail!("--set {value} was taken"),
            Err(error) => {
                // What comes first is the command, and has them all.
                let said = format!("{error:#}");
                let said = said.split_once('\n').map_or("", |(_, said)| said);
                let missing = words.iter().find(|word| !said.contains(**word));
                ensure!(
                    missing.is_none(),
                    "--set {value}: no {missing:?} in: {said}"
                );
            }
        }
    }
    Ok(format!("{} of them", MISTAKES.len()))
}

fn policy_arrives(tools: &Tools) -> Outcome {
    let file = chart().join("files/policy.yaml");
    let file = format!("policy={}", file.display());
    let ours = objects::parse(&tools.template(&["--set-file", &file])?)?;
    let found = objects::differences(&ours, &objects::parse(&tools.template(&[])?)?);
    ensure!(found.is_empty(), "{}", found.join("\n"));

    let theirs = objects::parse(&tools.template(&["--set", "existingConfigMap=mine"])?)?;
    let volumes = &theirs["DaemonSet rebalancer"]["spec"]["template"]["spec"]["volumes"];
    let volume = volumes
        .as_array()
        .and_then(|all| all.iter().find(|volume| volume["name"] == "policy"));
    ensure!(
        volume.is_some_and(|volume| volume["configMap"]["name"] == "mine")
            && !theirs.contains_key("ConfigMap rebalancer-policy"),
        "{volumes}"
    );
    Ok(String::new())
}

/// An annotation of the pod's until it became a field of the container's.
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
        let pod = &objects["DaemonSet rebalancer"]["spec"]["template"];
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
    let mut told = Vec::new();
    for connections in [1_000, 50_000, 100_000, 1_000_000] {
        let value = format!("maxConnections={connections}");
        let objects = objects::parse(&tools.template(&["--set", &value])?)?;
        let resources = &objects["DaemonSet rebalancer"]["spec"]["template"]["spec"]["containers"]
            [0]["resources"];
        // In the kernel and in the agent; a table of them all takes 3,600 B more of each.
        for (of, each) in [("requests", 385 + 770), ("limits", 385 + 770 + 3_600)] {
            let mi = mebibytes(&resources[of]["memory"])?;
            let needed = (20_000_000 + each * connections).max(128 * MI);
            ensure!(
                mi % 64 == 0 && mi * MI >= needed && (mi - 64) * MI < needed,
                "{of} for {connections}: {mi} Mi, and {needed} bytes are needed"
            );
            if of == "limits" {
                told.push(format!("{connections}: {mi} Mi"));
            }
        }
    }
    Ok(told.join(", "))
}

fn mebibytes(quantity: &Value) -> Result<u64> {
    let number = quantity.as_str().and_then(|text| text.strip_suffix("Mi"));
    match number.map(str::parse) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("{quantity}: no number of Mi"),
    }
}
