//! `policy explain`, `policy schema` and `policy reference` as black boxes.

use crate::{Ran, run, run_with};

#[test]
fn an_explained_policy_is_valid_again() {
    let policy = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
rules:
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}}
";
    let explained = run_with(&["policy", "explain", "-"], policy).prints();
    let shows_default = explained.contains("interval: 5s # default\n");
    assert!(shows_default, "{explained}");
    let checked = run_with(&["policy", "check", "-"], &explained).prints();
    assert_eq!(checked, "stdin: valid, mode DryRun, 1 rule\n");
    let err = run_with(&["policy", "explain", "-"], "rules: 1").fails(3);
    assert!(err.contains("stdin:1:8"), "{err}");
}

#[test]
fn a_rule_for_pods_notes_that_it_needs_kubernetes() {
    let policy = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
rules:
- {name: shop, match: {services: ['*/checkout']}, limits: {maxAge: 1h}}
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 1h}}
";
    let Ran { code, out, err } = run_with(&["policy", "check", "-"], policy);
    assert_eq!(
        (code, out.as_str()),
        (0, "stdin: valid, mode DryRun, 2 rules\n")
    );
    assert_eq!(
        err,
        "note: rule shop names Services, namespaces or pods: without Kubernetes it matches nothing\n"
    );
}

#[test]
fn the_schema_is_json() {
    let out = run(&["policy", "schema"]).prints();
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(schema["title"], "RebalancePolicy");
    assert_eq!(schema["additionalProperties"], false);
}

/// The policy that is deployed by default is valid, to the agent and to editors.
#[test]
fn the_deployed_policy_is_valid_by_the_schema() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base/policy.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    run_with(&["policy", "check", "-"], &text).prints();
    let schema = run(&["policy", "schema"]).prints();
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    let policy: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let error = validator.iter_errors(&policy).next();
    assert!(error.is_none(), "{error:?}");
}

/// A test of the core holds POLICY.md to it.
#[test]
fn the_policy_reference_is_printed() {
    let file = include_str!("../../POLICY.md");
    assert_eq!(run(&["policy", "reference"]).prints(), file);
}
