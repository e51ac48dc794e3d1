//! `plan` and its kin as black boxes, on saved dumps: without privilege, without a kernel half.

mod black_box;

use black_box::rebalancer;

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
    let items: Vec<String> = (1..=5)
        .map(|id| item(id, 8080))
        .chain([item(6, 81)])
        .collect();
    format!(
        r#"{{"apiVersion": "rebalancer.dev/v1alpha1", "kind": "ConnectionList", "node": "n1",
        "generatedAt": "2026-01-02T03:04:05Z", "source": "agent",
        "takenNanoseconds": 36000000000000, "endpoints": [], "items": [{}]}}"#,
        items.join(",")
    )
}

/// Runs the command with a policy file and the dump on stdin.
fn run(policy: &str, arguments: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    let file = file.to_str().unwrap();
    let asked = [arguments, &["--policy", file, "--snapshot", "-"]].concat();
    let (code, out, error) = rebalancer(&asked, stdin);
    (code, out, error.replace(file, "policy.yaml"))
}

#[test]
fn a_plan_of_a_dump_tells_what_is_moved_and_what_waits() {
    let (code, out, err) = run(POLICY, &["plan"], &dump());
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("budgets are shown as unspent"), "{err}");
    insta::assert_snapshot!(out);
    insta::assert_snapshot!(run(POLICY, &["plan", "-o", "wide"], &dump()).1);
    insta::assert_snapshot!(run(POLICY, &["plan", "-o", "yaml"], &dump()).1);
}

#[test]
fn a_plan_is_no_more_than_the_mode_allows() {
    let dry = run(POLICY, &["plan", "--mode", "dry-run"], &dump()).1;
    assert!(
        dry.contains("5 to move: 2 would move now") && dry.contains("DryRun"),
        "{dry}"
    );
    let none = run(POLICY, &["plan", "--mode", "disabled"], &dump()).1;
    assert!(
        none.contains("disabled") && none.contains("nothing to move"),
        "{none}"
    );
}

#[test]
fn json_is_an_envelope_with_every_connection() {
    let (code, out, _) = run(POLICY, &["plan", "-o", "json"], &dump());
    assert_eq!(code, Some(0));
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["kind"], "Plan");
    assert_eq!(
        (&plan["node"], &plan["generatedAt"]),
        (&"n1".into(), &"2026-01-02T03:04:05Z".into())
    );
    assert_eq!(plan["items"].as_array().map(Vec::len), Some(6));
    assert_eq!(plan["items"][0]["id"], "5");
    assert_eq!(plan["items"][0]["move"]["reasons"][0]["reason"], "age");
    assert_eq!(plan["skipped"]["budget"], 3);
}

#[test]
fn what_is_wrong_is_told_with_its_exit_code() {
    let (code, out, err) = run(POLICY, &["plan"], &dump().replace("ESTAB", "GONE"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        err.contains("the snapshot stdin: items[0].state: `GONE`"),
        "{err}"
    );
    let (code, _, err) = run(POLICY, &["plan"], r#"{"kind": "PodList"}"#);
    assert_eq!(code, Some(1));
    assert!(err.contains("apiVersion is missing"), "{err}");
    let (code, _, err) = run("rules: 1", &["plan"], &dump());
    assert_eq!(code, Some(3));
    assert!(err.contains("policy.yaml:1:8"), "{err}");
    let (code, _, _) = run(POLICY, &["plan", "-o", "xml"], &dump());
    assert_eq!(code, Some(2));
    let (code, _, _) = rebalancer(&["plan", "--policy", "-", "--snapshot", "-"], "");
    assert_eq!(code, Some(1));
}

#[test]
fn a_connection_is_explained() {
    let rules = POLICY.replace(
        "rules:\n",
        "rules:\n- {name: other, match: {ports: [{port: 9}]}, limits: {maxAge: 1h}}\n",
    );
    let (code, out, err) = run(&rules, &["explain", "3"], &dump());
    assert_eq!(code, Some(0), "{err}");
    insta::assert_snapshot!(out);
    insta::assert_snapshot!(run(&rules, &["explain", "3", "-o", "json"], &dump()).1);
    let (_, moved, _) = run(&rules, &["explain", "5"], &dump());
    assert!(
        moved.contains("move (Enforce)") && !moved.contains("needs"),
        "{moved}"
    );
    let (code, _, err) = run(&rules, &["explain", "77"], &dump());
    assert_eq!(code, Some(1));
    assert!(err.contains("no connection 77 is tracked"), "{err}");
    assert_eq!(run(&rules, &["explain", "xyz"], &dump()).0, Some(2));
}
