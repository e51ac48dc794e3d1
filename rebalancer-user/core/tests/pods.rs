//! Rules and guards that depend on names of pods, namespaces and Services.

use std::time::Duration;

use proptest::{collection::btree_map, option, prelude::*};
use rebalancer_core::{
    plan::{Outcome, SkipReason},
    policy::{Mismatch, MissingFact, Policy},
    snapshot::{
        Cookie, Identity, Labels, Naming, Service, ServiceAt, Snapshot, Who, sample::service_at,
    },
};

mod agent;
mod named;
use agent::{Agent, decided};
use named::{named, policy, snapshot, verdict, web, why};

/// A snapshot of the pod with this change.
fn with(change: fn(&mut Identity)) -> Snapshot {
    let mut identity = web();
    change(&mut identity);
    snapshot(named(identity), Naming::Fresh)
}

#[test]
fn services_and_selectors_match_as_in_kubernetes() {
    let seen = snapshot(named(web()), Naming::Fresh);
    let matched = [
        "services: ['*/checkout']",
        "services: ['*/cart', '*/web']",
        "services: [shop/checkout]",
        "services: ['*/checkout'], ports: [{port: 8080}]",
        "services: ['*/checkout'], namespaceSelector: {matchLabels: {team: shop}}",
        "namespaceSelector: {}",
        "podSelector: {}",
        "podSelector: {matchLabels: {app: web, tier: front}}",
        "podSelector: {matchExpressions: [{key: tier, operator: In, values: [back, front]}]}",
        "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}]}",
        "podSelector: {matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}",
        "podSelector: {matchExpressions: [{key: app, operator: Exists}]}",
        "podSelector: {matchExpressions: [{key: zone, operator: DoesNotExist}]}",
    ];
    let not_matched = [
        "services: ['*/cart']",
        "services: [other/checkout]",
        "services: ['*/checkout'], ports: [{port: 80}]",
        "services: ['*/checkout'], namespaceSelector: {matchLabels: {team: pay}}",
        "podSelector: {matchLabels: {app: web, tier: back}}",
        "podSelector: {matchLabels: {zone: ''}}",
        "podSelector: {matchExpressions: [{key: tier, operator: In, values: [back]}]}",
        "podSelector: {matchExpressions: [{key: zone, operator: In, values: ['']}]}",
        "podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}",
        "podSelector: {matchExpressions: [{key: zone, operator: Exists}]}",
        "podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}",
        "podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: In, values: [back]}]}",
    ];
    for (all, expected) in [(&matched[..], "moved by rule-0"), (&not_matched, "noRule")] {
        for matches in all {
            let found = verdict(&policy("", &[matches]), &seen);
            assert_eq!(found, expected, "{matches}");
        }
    }
}

#[test]
fn without_kubernetes_a_rule_for_pods_matches_nothing() {
    let plain = snapshot(Who::NoPod, Naming::Off);
    for matches in [
        "services: ['*/checkout']",
        "podSelector: {}",
        "namespaceSelector: {}",
    ] {
        let policy = policy("", &[matches, "ports: [{port: 8080}]"]);
        assert_eq!(verdict(&policy, &plain), "moved by rule-1", "{matches}");
        assert_eq!(policy.rules_for_pods().count(), 1);
    }
}

/// A move waits for its quiet moment, perhaps for minutes: each pass looks at it again.
#[test]
fn a_move_in_flight_is_recalled_when_its_pod_may_not_be_moved_from_any_more() {
    let policy = policy("", &["services: ['*/checkout']"]);
    let (before, agent) = in_flight(&policy);
    assert!(agent.plan(&before).recalls().is_empty());
    type Change = fn(&mut Identity, &mut Snapshot);
    let changes: [(&str, Change); 8] = [
        ("optedOut", |pod, _| pod.opted_out = true),
        ("terminating", |pod, _| pod.terminating = true),
        ("unready", |pod, _| {
            pod.services.as_mut().unwrap()[0].ready = false
        }),
        ("staleFacts", |_, seen| {
            seen.naming = Naming::Stale { silent: None }
        }),
        ("minReadyEndpoints", |_, seen| {
            let facts = |facts: &mut Service| facts.ready = 1;
            seen.services.values_mut().for_each(facts);
        }),
        ("stabilizing", |_, seen| {
            let facts = |facts: &mut Service| facts.changed = Some(Duration::ZERO);
            seen.services.values_mut().for_each(facts);
        }),
        ("otherRule", |pod, _| pod.services.as_mut().unwrap().clear()),
        ("unnamed", |pod, _| pod.services = None),
    ];
    for (word, change) in changes {
        let (mut seen, mut agent) = in_flight(&policy);
        let mut identity = web();
        change(&mut identity, &mut seen);
        for endpoint in seen.endpoints.values_mut() {
            endpoint.who = named(identity.clone());
        }
        let plan = agent.plan(&seen);
        let [recall] = plan.recalls() else {
            panic!("{word}: {:?}", plan.recalls())
        };
        assert_eq!((recall.cookie, recall.why.as_str()), (Cookie(1), word));
        // It is in flight until the mover reports its end; then it may be selected again at once.
        assert_eq!(plan.skipped(), [("inFlight", 1)].into());
        let outcome = Outcome::Recalled(recall.why.to_string());
        agent.ledger.ended(Cookie(1), outcome, seen.taken);
        let plan = agent.plan(&before);
        let found = (plan.moves().count(), plan.recalls());
        assert_eq!(found, (1, &[][..]), "{word}");
    }
}

/// One that is moved, and an agent that has begun to.
fn in_flight(policy: &Policy) -> (Snapshot, Agent) {
    let seen = snapshot(named(web()), Naming::Fresh);
    let mut agent = Agent::new(policy.clone());
    let plan = agent.plan(&seen);
    agent.begin(&plan, seen.taken);
    assert_eq!(agent.ledger.in_flight(), 1);
    (seen, agent)
}

/// The first rule that matches applies, so one that may match must not be passed over.
#[test]
fn no_rule_applies_behind_one_that_is_undetermined() {
    let nobody = snapshot(Who::Unknown, Naming::Fresh);
    let no_services = with(|pod| pod.services = None);
    let no_labels = with(|pod| pod.namespace_labels = None);
    let by_service = ["services: ['*/cart']", "ports: [{port: 8080}]"];
    let by_namespace = [
        "namespaceSelector: {matchLabels: {a: b}}",
        "ports: [{port: 8080}]",
    ];
    for (matches, seen, lack) in [
        (by_service, &nobody, MissingFact::Pod),
        (by_namespace, &nobody, MissingFact::Pod),
        (by_service, &no_services, MissingFact::Services),
        (by_namespace, &no_labels, MissingFact::NamespaceLabels),
    ] {
        let policy = policy("", &matches);
        let rule = Some(policy.rules()[0].name().clone());
        assert_eq!(why(&policy, seen), SkipReason::Unnamed { lack, rule });
    }
    // A certain mismatch is passed over, whatever else is unknown.
    let passed_over = |seen: &Snapshot, matches: &str| {
        let policy = policy("", &[matches, "ports: [{port: 8080}]"]);
        let plan = decided(&policy, seen);
        assert_eq!(plan.decisions().count(), 1);
        plan.decisions().next().unwrap().rule.unwrap().to_string()
    };
    for (matches, seen) in [
        (
            "services: ['*/cart'], podSelector: {matchLabels: {app: db}}",
            &no_services,
        ),
        ("services: [other/cart]", &no_services),
        ("services: ['*/cart'], ports: [{port: 80}]", &nobody),
        (
            "namespaceSelector: {matchLabels: {a: b}}, services: ['*/cart']",
            &no_labels,
        ),
    ] {
        assert_eq!(passed_over(seen, matches), "rule-1", "{matches}");
    }
    // A rule that needs no unknown fact is decided.
    let policy = policy("", &["ports: [{port: 8080}]", "services: ['*/cart']"]);
    assert_eq!(verdict(&policy, &nobody), "moved by rule-0");
}

#[test]
fn stale_names_move_nothing() {
    let silent = Some(Duration::from_secs(90));
    let by_name = policy("", &["services: ['*/checkout']"]);
    let by_port = policy("", &["ports: [{port: 8080}]"]);
    for (naming, verdict_by_name) in [
        (Naming::Fresh, "moved by rule-0"),
        (Naming::Stale { silent }, "staleFacts"),
        (Naming::Stale { silent: None }, "staleFacts"),
    ] {
        let seen = snapshot(named(web()), naming);
        assert_eq!(verdict(&by_name, &seen), verdict_by_name);
        // A pod's Services may have changed too, whatever the rule matches.
        assert_eq!(verdict(&by_port, &seen), verdict_by_name);
        let no_pod = snapshot(Who::NoPod, naming);
        assert_eq!(verdict(&by_port, &no_pod), "moved by rule-0");
    }
    let seen = snapshot(named(web()), Naming::Stale { silent });
    assert_eq!(why(&by_name, &seen), SkipReason::StaleFacts { silent });
}

#[test]
fn pods_of_excluded_or_unknown_namespaces_are_skipped() {
    let port = ["ports: [{port: 8080}]"];
    let shop = snapshot(named(web()), Naming::Fresh);
    let unknown = snapshot(Who::Unknown, Naming::Fresh);
    let no_pod = snapshot(Who::NoPod, Naming::Fresh);
    let system = with(|pod| pod.namespace = "kube-system".to_owned());
    let (moved, excluded) = ("moved by rule-0", "excludedNamespace");
    for (guards, of_shop, of_system, of_unknown) in [
        ("", moved, excluded, "unnamed"),
        ("excludeNamespaces: [shop]", excluded, moved, "unnamed"),
        ("excludeNamespaces: []", moved, moved, moved),
    ] {
        let policy = policy(guards, &port).with_kubernetes_defaults();
        assert_eq!(verdict(&policy, &shop), of_shop, "{guards}");
        assert_eq!(verdict(&policy, &system), of_system, "{guards}");
        assert_eq!(verdict(&policy, &unknown), of_unknown, "{guards}");
        assert_eq!(verdict(&policy, &no_pod), moved, "{guards}");
    }
    // A plain host has no namespaces to exclude.
    assert_eq!(verdict(&policy("", &port), &unknown), moved);
}

#[test]
fn pods_that_opt_out_or_terminate_are_skipped() {
    let policy = policy("", &["ports: [{port: 8080}]"]);
    let out = "opts out: its `rebalancer.dev/enabled` is not \"true\"";
    let ends = "pod shop/web-0 is being taken out of service";
    type Change = fn(&mut Identity);
    let changes: [(Change, &str); 6] = [
        (|pod| pod.opted_out = true, &format!("pod shop/web-0 {out}")),
        (
            |pod| pod.services.as_mut().unwrap()[1].opted_out = true,
            &format!("Service shop/web {out}"),
        ),
        (
            |pod| pod.namespace_opted_out = true,
            &format!("namespace shop {out}"),
        ),
        (
            |pod| pod.namespace_labels = None,
            "it is not known which labels its namespace has: that may opt out",
        ),
        (|pod| pod.terminating = true, ends),
        (
            |pod| pod.services.as_mut().unwrap()[0].terminating = true,
            ends,
        ),
    ];
    for (change, reason) in changes {
        assert_eq!(why(&policy, &with(change)).to_string(), reason);
    }
}

#[test]
fn an_explanation_has_known_and_missing_facts() {
    let rules = [
        "services: ['*/cart']",
        "services: ['*/checkout']",
        "ports: [{port: 1}]",
    ];
    let agent = Agent::new(policy("", &rules));
    let undetermined = Mismatch::Undetermined(MissingFact::Pod);
    for (who, misses, pod) in [
        (
            named(web()),
            &[Some(Mismatch::Services), None][..],
            Some("web-0"),
        ),
        (Who::Unknown, &[Some(undetermined)], None),
    ] {
        let seen = snapshot(who, Naming::Fresh);
        let plan = agent.plan(&seen);
        let explained = agent.explain(&seen, &plan, 1).unwrap();
        let rules: Vec<_> = explained
            .rules
            .iter()
            .map(|(_, miss)| miss.clone())
            .collect();
        assert_eq!(rules, misses, "{pod:?}");
        assert_eq!(explained.who.pod().map(|it| it.pod.as_str()), pod);
    }
}

fn any_labels() -> impl Strategy<Value = Labels> {
    btree_map("[abc]", "[xyz]", 0..4)
}

type Holds = fn(&Labels, &str, &[String]) -> bool;

/// One requirement: its text, whether it holds of labels by its definition, its key and values.
type Requirement = (String, Holds, String, Vec<String>);

fn any_requirement() -> impl Strategy<Value = Requirement> {
    let operators: [(&str, Holds); 4] = [
        ("In", |l, k, v| l.get(k).is_some_and(|x| v.contains(x))),
        ("NotIn", |l, k, v| !l.get(k).is_some_and(|x| v.contains(x))),
        ("Exists", |l, k, _| l.contains_key(k)),
        ("DoesNotExist", |l, k, _| !l.contains_key(k)),
    ];
    let operator = prop::sample::select(operators.to_vec());
    (operator, "[abcd]", prop::collection::vec("[xyz]", 1..3)).prop_map(
        |((name, holds), key, values)| {
            let listed = match name.ends_with("In") {
                true => format!(", values: {values:?}"),
                false => String::new(),
            };
            let text = format!("{{key: {key}, operator: {name}{listed}}}");
            (text, holds, key, values)
        },
    )
}

proptest! {
    #[test]
    fn a_selector_selects_by_its_definition(
        pod in any_labels(), wanted in any_labels(), requirements in prop::collection::vec(any_requirement(), 0..3),
    ) {
        let listed = wanted.iter().map(|(k, v)| format!("{k}: \"{v}\"")).collect::<Vec<_>>().join(", ");
        let expressions = requirements.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>().join(", ");
        let policy = policy("", &[&format!(
            "podSelector: {{matchLabels: {{{listed}}}, matchExpressions: [{expressions}]}}"
        )]);
        let expected = wanted.iter().all(|(k, v)| pod.get(k) == Some(v))
            && requirements.iter().all(|(_, holds, key, values)| holds(&pod, key, values));
        let seen = snapshot(named(Identity { labels: pod, ..web() }), Naming::Fresh);
        prop_assert_eq!(verdict(&policy, &seen) == "moved by rule-0", expected);
    }

    /// What is moved while facts are missing is also moved once they are known.
    #[test]
    fn missing_facts_never_move_more(
        namespace in option::of(any_labels()), services in option::of(prop::sample::subsequence(vec!["a", "b", "c"], 0..3)),
        known: bool, all_services in prop::sample::subsequence(vec!["a", "b", "c"], 0..3), all_labels in any_labels(),
    ) {
        let policy = policy("", &[
            "services: ['*/a', '*/b'], namespaceSelector: {matchLabels: {a: x}}",
            "namespaceSelector: {matchExpressions: [{key: b, operator: Exists}]}",
            "services: ['*/c']",
            "ports: [{port: 8080}]",
        ]);
        let at = |names: &[&str]| -> Vec<ServiceAt> {
            names.iter().map(|name| ServiceAt { ready: false, ..service_at(name) }).collect()
        };
        let whole = Identity { namespace_labels: Some(all_labels), services: Some(at(&all_services)), ..web() };
        let part = Identity {
            namespace_labels: namespace.and(whole.namespace_labels.clone()),
            services: services.and(whole.services.clone()),
            ..whole.clone()
        };
        let part = if known { named(part) } else { Who::Unknown };
        let before = verdict(&policy, &snapshot(part, Naming::Fresh));
        let after = verdict(&policy, &snapshot(named(whole), Naming::Fresh));
        prop_assert!(before == "unnamed" || before == after, "{} {}", before, after);
    }
}
