//! `plan` and its kin as black boxes, on saved dumps: without privilege, without a kernel half.

use crate::{Ran, run_with};

const POLICY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
budget: {perNode: 2, perService: 100%, perEndpoint: 100%}
rules:
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h, maxBytes: 1Gi}, jitter: 0%}
";

/// Five connections on port 8080 of 1 to 5 hours, one on a port of no rule; ids 1 to 6.
fn dump() -> String {
    let item = |id: u64, port: u16| {
        format!(
            r#"{{"id": "{id:x}", "endpoint": {{"netns": 7, "port": {port}}}, "cgroup": 1,
            "local": "10.1.0.1:{port}", "peer": "10.0.0.{id}:40000", "state": "ESTAB",
            "mptcp": false, "adopted": false, "openedNanoseconds": {}, "bytesIn": 10, "bytesOut": 20,
            "receiveQueue": 0, "sendQueue": 0, "serverSpokeLast": true, "sinceSentNanoseconds": 0,
            "sinceReceivedNanoseconds": 0, "segmentsIn": 1, "segmentsOut": 1, "retransmits": 0,
            "rttMicroseconds": 300}}"#,
            (10 - id) * 3_600_000_000_000
        )
    };
    let items = (1..=5).map(|id| item(id, 8080)).chain([item(6, 81)]);
    let items: Vec<String> = items.collect();
    format!(
        r#"{{"apiVersion": "rebalancer.dev/v1alpha1", "kind": "ConnectionList", "node": "n1",
        "generatedAt": "2026-01-02T03:04:05Z", "source": "agent",
        "takenNanoseconds": 36000000000000, "endpoints": [], "items": [{}]}}"#,
        items.join(",")
    )
}

/// Runs the command with a policy file and the dump on stdin.
fn run(policy: &str, arguments: &[&str], stdin: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    let file = file.to_str().unwrap();
    let asked = [arguments, &["--policy", file, "--snapshot", "-"]].concat();
    let mut ran = run_with(&asked, stdin);
    ran.err = ran.err.replace(file, "policy.yaml");
    ran
}

#[test]
fn a_plan_of_a_dump_lists_moves_and_what_waits() {
    let Ran { code, out, err } = run(POLICY, &["plan"], &dump());
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("budgets are shown as unspent"), "{err}");
    insta::assert_snapshot!(out);
    insta::assert_snapshot!(run(POLICY, &["plan", "-o", "wide"], &dump()).out);
    insta::assert_snapshot!(run(POLICY, &["plan", "-o", "yaml"], &dump()).out);
}

#[test]
fn a_plan_is_limited_by_the_mode() {
    let dry = run(POLICY, &["plan", "--mode", "dry-run"], &dump()).out;
    let nothing_moves =
        dry.contains("5 to move: 2 would move now") && dry.contains("(dry run: none is)");
    assert!(nothing_moves && dry.contains("DryRun"), "{dry}");
    let none = run(POLICY, &["plan", "--mode", "disabled"], &dump()).out;
    assert!(
        none.contains("disabled") && none.contains("nothing to move"),
        "{none}"
    );
}

#[test]
fn json_is_an_envelope_with_every_connection() {
    let Ran { code, out, .. } = run(POLICY, &["plan", "-o", "json"], &dump());
    assert_eq!(code, 0);
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["kind"], "Plan");
    assert_eq!(plan["node"], "n1");
    assert_eq!(plan["generatedAt"], "2026-01-02T03:04:05Z");
    assert_eq!(plan["items"].as_array().map(Vec::len), Some(6));
    assert_eq!(plan["items"][0]["id"], "5");
    assert_eq!(plan["items"][0]["move"]["reasons"][0]["reason"], "age");
    assert_eq!(plan["skipped"]["budget"], 3);
}

#[test]
fn invalid_input_has_an_exit_code_and_an_error() {
    let (gone, pods) = (dump().replace("ESTAB", "GONE"), r#"{"kind": "PodList"}"#);
    let no_state = "the snapshot stdin: items[0].state: `GONE`";
    for (policy, dump, code, why) in [
        (POLICY, gone, 1, no_state),
        (POLICY, pods.to_owned(), 1, "apiVersion is missing"),
        ("rules: 1", dump(), 3, "policy.yaml:1:8"),
    ] {
        let err = run(policy, &["plan"], &dump).fails(code);
        assert!(err.contains(why), "{err}");
    }
    run(POLICY, &["plan", "-o", "xml"], &dump()).fails(2);
    run_with(&["plan", "--policy", "-", "--snapshot", "-"], "").fails(1);
}

#[test]
fn a_connection_is_explained() {
    let other = "rules:\n- {name: other, match: {ports: [{port: 9}]}, limits: {maxAge: 1h}}\n";
    let rules = POLICY.replace("rules:\n", other);
    let Ran { code, out, err } = run(&rules, &["explain", "3"], &dump());
    assert_eq!(code, 0, "{err}");
    insta::assert_snapshot!(out);
    insta::assert_snapshot!(run(&rules, &["explain", "3", "-o", "json"], &dump()).out);
    let moved = run(&rules, &["explain", "5"], &dump()).out;
    assert!(
        moved.contains("move (Enforce)") && !moved.contains("needs"),
        "{moved}"
    );
    let err = run(&rules, &["explain", "77"], &dump()).fails(1);
    assert!(err.contains("no connection 77 is tracked"), "{err}");
    assert_eq!(run(&rules, &["explain", "xyz"], &dump()).code, 2);
}
