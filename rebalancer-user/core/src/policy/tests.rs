//! What a policy file may contain, and the errors of one that is invalid.

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::snapshot::{CgroupPath, Connection, Who, sample};

const HEAD: &str = "apiVersion: rebalancer.dev/v1alpha1\nkind: RebalancePolicy\n";

/// Every field that this version has.
const WHOLE: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
interval: 2s
track: {loopback: true, maxPerEndpoint: 1000, maxPerNode: 2000, excludeCgroups: ['/system.slice/it''s.service', '*\\x2d*']}
budget: {window: 5m, perNode: 10%, perService: 20%, perEndpoint: 30, maxInFlight: 7}
guards: {minAge: 1m, minReadyEndpoints: 3, stabilizationWindow: 90s, allowSystemPorts: [53, 6443], allowHostNetwork: false, excludeNamespaces: [kube-system, infra]}
rules:
- name: checkout
  mode: DryRun
  match:
    ports: [{port: 8080}, {port: 50051, endPort: 50060}]
    peers: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}, {ipBlock: {cidr: 'fd00::/8'}}]
    cgroups: ['*/machine.slice/*', '/user.slice']
  limits: {maxAge: 30m, maxBytes: 10Gi, maxRate: {bytesPerSecond: 50Mi, for: 30s}}
  jitter: 25%
  onReconnect: LosesState
  steps:
  - {step: Close, when: AtOnce, timeout: 10s}
  - {step: Reset, when: Quiet, idleFor: 300ms, timeout: 1m}
  - {step: Reset, when: AtOnce}
  atEnd: ResetNow
  count: Messages
- name: rest
  match: {peers: [{ipBlock: {cidr: '::ffff:192.168.0.0/112'}}]}
  limits: {maxBytes: 1048576}
- name: pods
  match:
    services: ['*/cart', shop/pay]
    namespaceSelector: {matchLabels: {team: shop}, matchExpressions: [{key: a.io/tier, operator: NotIn, values: [dev, '']}]}
    podSelector: {matchExpressions: [{key: app, operator: Exists}]}
  limits: {maxAge: 2h}
  balance: {by: ByteRate, tolerance: 15%}
  drain: {on: [Terminating, Removed], within: 90s}
- name: chat
  match: {ports: [{port: 9000}]}
  balance: {by: MessageRate}
";

fn rule(fields: &str) -> String {
    format!(
        "{HEAD}rules:\n- name: a\n  match: {{ports: [{{port: 80}}]}}\n  limits: {{maxAge: 1h}}\n{fields}\n"
    )
}

fn connection(port: u16, remote: &str) -> Connection {
    let remote: SocketAddr = remote.parse().unwrap();
    let mut connection = sample::connection(1);
    connection.endpoint.port = port;
    Connection {
        cgroup_path: CgroupPath::new("/machine.slice/vm.scope"),
        local: SocketAddr::new(remote.ip(), port),
        remote,
        ..connection
    }
}

/// A fallback vouches for nothing: the policy must say what an end at any moment costs.
#[test]
fn a_step_at_any_moment_requires_on_reconnect() {
    let state = |fields: &str| {
        let policy = parse("p", &rule(fields)).map_err(|errors| errors.to_string())?;
        Ok::<_, String>(policy.rules()[0].on_reconnect())
    };
    let quiet = "  steps: [{step: Reset}]\n";
    let close = "  steps: [{step: Close, when: AtOnce}]\n";
    let at_once = "  steps: [{step: Close}, {step: Reset, when: AtOnce}]\n";
    let at_end = "  atEnd: ResetNow\n";
    assert_eq!(state(quiet), Ok(OnReconnect::Detect));
    for at_any_moment in [close, at_once, at_end] {
        let errors = state(at_any_moment).unwrap_err();
        assert!(errors.contains("missing field `onReconnect`"), "{errors}");
        let unknown = state(&format!("  onReconnect: Detect\n{at_any_moment}")).unwrap_err();
        assert!(
            unknown.contains("a contradiction within the rule"),
            "{unknown}"
        );
        for known in [OnReconnect::Safe, OnReconnect::LosesState] {
            let given = format!("  onReconnect: {known:?}\n{at_any_moment}");
            assert_eq!(state(&given), Ok(known));
        }
    }
    let one = state("  onReconnect: Perhaps\n  atEnd: ResetNow\n").unwrap_err();
    assert!(!one.contains("missing"), "one error is enough: {one}");
}

/// What the example gives beside the defaults, without them.
#[test]
fn the_example_has_the_defaults() {
    let example = parse("example.yaml", EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
    let short = format!(
        "{HEAD}rules:
- name: checkout
  mode: Enforce
  match:
    ports: [{{port: 50051, endPort: 50060}}]
    peers: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}}}]
    cgroups: ['*/machine.slice/*']
  balance: {{}}
  limits: {{maxAge: 30m, maxBytes: 10Gi, maxRate: {{bytesPerSecond: 50Mi, for: 30s}}}}
- name: pods
  match:
    services: ['*/cart', shop/pay]
    namespaceSelector: {{matchLabels: {{team: shop}}}}
    podSelector: {{matchExpressions: [{{key: tier, operator: NotIn, values: [dev]}}]}}
  limits: {{maxAge: 2h}}
"
    );
    assert_eq!(Ok(example), parse("short", &short));
}

#[test]
fn rules_may_be_empty_but_not_missing() {
    assert!(super::sample::policy("rules: []\n").rules().is_empty());
    assert!(parse("p", HEAD).is_err());
}

#[test]
fn the_safest_mode_wins() {
    for (file, own, flag, wins) in [
        ("Enforce", "Enforce", Mode::Enforce, Mode::Enforce),
        ("Enforce", "DryRun", Mode::Enforce, Mode::DryRun),
        ("DryRun", "Enforce", Mode::Enforce, Mode::DryRun),
        ("Enforce", "Enforce", Mode::DryRun, Mode::DryRun),
        ("Enforce", "Disabled", Mode::DryRun, Mode::Disabled),
        ("Enforce", "Enforce", Mode::Disabled, Mode::Disabled),
    ] {
        let text = format!("mode: {file}\n{}", rule(&format!("  mode: {own}")));
        let policy = parse("p", &text).unwrap().with_mode_at_most(flag);
        let mode = policy.mode_of(&policy.rules()[0]);
        assert_eq!(mode, wins, "{file} {own} {flag:?}");
    }
}

#[test]
fn the_first_rule_whose_ports_and_peers_match_applies() {
    let policy = parse("p", WHOLE).unwrap();
    let matched = |port, remote| {
        policy
            .rule_for(&connection(port, remote), &Who::NoPod)
            .unwrap()
            .map(|rule| rule.name().as_str())
    };
    for (port, remote, name) in [
        (8080, "10.0.0.1:5", Some("checkout")),
        (50051, "10.0.0.1:5", Some("checkout")),
        (50060, "10.0.0.1:5", Some("checkout")),
        (50061, "10.0.0.1:5", None),
        (8080, "10.9.0.1:5", None),
        (8080, "11.0.0.1:5", None),
        (8080, "[fd00::1]:5", Some("checkout")),
        (8080, "[fe80::1]:5", None),
        (8080, "[::ffff:10.0.0.1]:5", Some("checkout")),
        (8080, "192.168.3.4:5", Some("rest")),
        (1, "192.168.3.4:5", Some("rest")),
        (1, "[::ffff:192.168.3.4]:5", Some("rest")),
        (1, "192.169.3.4:5", None),
    ] {
        assert_eq!(matched(port, remote), name, "{port} {remote}");
    }
}

/// Every kind of error.
#[test]
fn errors_have_a_place_and_a_remedy() {
    let whole = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        WHOLE.replacen(from, to, 1)
    };
    let cases = [
        ("nothing", String::new()),
        ("only a comment", "# soon\n".into()),
        ("a list", "- a\n- b\n".into()),
        ("a text", "hello\n".into()),
        ("not a policy", "apiVersion: v1\nkind: ConfigMap\nrules: []\n".into()),
        ("unknown field, near", whole("maxAge", "maxage")),
        ("unknown field, far", whole("jitter", "wobble")),
        ("former field", rule("  sessionState: Keeps")),
        ("former guard", whole("stabilizationWindow: 90s", "settle: 90s")),
        ("former word", rule("  onReconnect: Keeps")),
        ("former end", rule("  atEnd: Spare")),
        ("unknown at the top", whole("interval", "intervall")),
        ("unknown number as field", whole("jitter", "7")),
        ("duplicate field", whole("jitter: 25%", "jitter: 25%\n  jitter: 25%")),
        ("duplicate part", format!("{WHOLE}rules: []\n")),
        ("duplicate in quotes", whole("jitter: 25%", "jitter: 25%\n  'jitter': 30%")),
        ("yes", whole("loopback: true", "loopback: yes")),
        ("off", whole("loopback: true", "loopback: Off")),
        ("quoted true", whole("loopback: true", "loopback: 'true'")),
        ("boolean number", whole("loopback: true", "loopback: 1")),
        ("name no", whole("name: checkout", "name: no")),
        ("name true", whole("name: checkout", "name: true")),
        ("name number", whole("name: checkout", "name: 17")),
        ("name not a label", whole("name: checkout", "name: Check_Out")),
        ("name too long", whole("checkout", &"x".repeat(64))),
        ("name twice", whole("name: rest", "name: checkout")),
        ("missing unit", whole("maxAge: 30m", "maxAge: 30")),
        ("missing unit, quoted", whole("maxAge: 30m", "maxAge: '30'")),
        ("missing unit at the end", whole("maxAge: 30m", "maxAge: 1h30")),
        ("days", whole("maxAge: 30m", "maxAge: 2d")),
        ("fraction", whole("maxAge: 30m", "maxAge: 1.5h")),
        ("fraction without unit", whole("maxAge: 30m", "maxAge: 1.5")),
        ("negative", whole("maxAge: 30m", "maxAge: -5")),
        ("octal", whole("maxAge: 30m", "maxAge: 010")),
        ("not a number", whole("maxAge: 30m", "maxAge: .nan")),
        ("infinite", whole("maxAge: 30m", "maxAge: 1e999")),
        ("boolean duration", whole("maxAge: 30m", "maxAge: true")),
        ("list duration", whole("maxAge: 30m", "maxAge: [30m]")),
        ("mapping duration", whole("maxAge: 30m", "maxAge: {minutes: 30}")),
        ("empty value", whole("jitter: 25%", "jitter:")),
        ("null value", whole("jitter: 25%", "jitter: ~")),
        ("zero age", whole("maxAge: 30m", "maxAge: 0s")),
        ("age below minAge", whole("maxAge: 30m", "maxAge: 10s")),
        ("endless age", whole("maxAge: 30m", "maxAge: 99999h99999h")),
        ("zero bytes", whole("maxBytes: 10Gi", "maxBytes: 0")),
        ("bytes in GB", whole("maxBytes: 10Gi", "maxBytes: 10GB")),
        ("bytes beyond u64", whole("maxBytes: 10Gi", "maxBytes: 99999999999999999999")),
        ("bytes with exponent", whole("maxBytes: 10Gi", "maxBytes: 1e9")),
        ("zero interval", whole("interval: 2s", "interval: 0s")),
        ("short interval", whole("interval: 2s", "interval: 100ms")),
        ("zero timeout", whole("timeout: 1m", "timeout: 0ms")),
        ("zero idleFor", whole("idleFor: 300ms", "idleFor: 0s")),
        ("minAge in days", whole("minAge: 1m", "minAge: 1d")),
        ("port 0", whole("port: 8080", "port: 0")),
        ("port beyond", whole("port: 8080", "port: 65536")),
        ("port far beyond", whole("port: 8080", "port: 99999999999999999999999")),
        ("port in hex", whole("port: 8080", "port: 0x50")),
        ("port as text", whole("port: 8080", "port: '8080'")),
        ("port by name", whole("port: 8080", "port: http")),
        ("port range backwards", whole("endPort: 50060", "endPort: 50")),
        ("no port", whole("{port: 8080}", "{endPort: 8080}")),
        ("bare port", whole("{port: 8080}", "8080")),
        ("host bits", whole("10.0.0.0/8", "10.1.2.3/8")),
        ("host bits, IPv6", whole("fd00::/8", "fd00::1/8")),
        ("no prefix", whole("10.0.0.0/8", "10.0.0.0")),
        ("prefix beyond", whole("10.0.0.0/8", "10.0.0.0/33")),
        ("no network", whole("10.0.0.0/8", "everything")),
        ("exception outside", whole("10.9.0.0/16", "11.9.0.0/16")),
        ("exception of all", whole("10.9.0.0/16", "10.0.0.0/8")),
        ("exception of the other family", whole("10.9.0.0/16", "'fd00::/16'")),
        ("percentage without sign", whole("jitter: 25%", "jitter: 25")),
        ("percentage beyond", whole("jitter: 25%", "jitter: 101%")),
        ("percentage with fraction", whole("jitter: 25%", "jitter: 2.5%")),
        ("budget 0", whole("perNode: 10%", "perNode: 0")),
        ("budget 0%", whole("perNode: 10%", "perNode: 0%")),
        ("budget as fraction", whole("perNode: 10%", "perNode: 1.5")),
        ("budget as word", whole("perNode: 10%", "perNode: unlimited")),
        ("in flight 0", whole("maxInFlight: 7", "maxInFlight: 0")),
        ("in flight negative", whole("maxInFlight: 7", "maxInFlight: -7")),
        ("in flight as percentage", whole("maxInFlight: 7", "maxInFlight: 7%")),
        ("mode in lower case", whole("mode: Enforce", "mode: enforce")),
        ("mode off", whole("mode: Enforce", "mode: off")),
        ("mode unknown", whole("mode: Enforce", "mode: Chaos")),
        ("no match", whole("  match: {peers: [{ipBlock: {cidr: '::ffff:192.168.0.0/112'}}]}\n", "")),
        ("empty match", whole("{peers: [{ipBlock: {cidr: '::ffff:192.168.0.0/112'}}]}", "{}")),
        ("empty peers", whole("[{ipBlock: {cidr: '::ffff:192.168.0.0/112'}}]", "[]")),
        ("no limits", whole("  limits: {maxBytes: 1048576}\n", "")),
        ("empty limits", whole("{maxBytes: 1048576}", "{}")),
        ("empty steps", rule("  steps: []")),
        ("step without a step", rule("  steps: [{when: Quiet}]")),
        ("idleFor with AtOnce", rule("  onReconnect: Safe\n  steps: [{step: Reset, when: AtOnce, idleFor: 1s}]")),
        ("step after the last", rule("  onReconnect: Safe\n  steps: [{step: Reset, when: AtOnce}, {step: Reset}]")),
        ("Notice without detection", rule("  onReconnect: Safe\n  steps: [{step: Notice}]")),
        ("Notice with AtOnce", rule("  onReconnect: LosesState\n  steps: [{step: Notice, when: AtOnce}]")),
        ("AtOnce without onReconnect", rule("  steps: [{step: Reset, when: AtOnce}]")),
        ("ResetNow without onReconnect", rule("  atEnd: ResetNow")),
        ("step Notify", rule("  steps: [{step: Notify}]")),
        ("glob without a root", whole("'/user.slice'", "user.slice")),
        ("glob with a slash at its end", whole("'/user.slice'", "/user.slice/")),
        ("glob of everything", whole("'/user.slice'", "/")),
        ("glob with an open class", whole("'/user.slice'", "'/user[a'")),
        ("glob of nothing", whole("'/user.slice'", "''")),
        ("glob too long", whole("'/user.slice'", &format!("/{}", "a".repeat(512)))),
        ("glob as a number", whole("'/user.slice'", "7")),
        ("globs as a text", whole("['*/machine.slice/*', '/user.slice']", "'*'")),
        ("no globs", whole("['*/machine.slice/*', '/user.slice']", "[]")),
        ("excluded globs", whole("'*\\x2d*'", "a, '/{b'")),
        ("too many globs", whole("'/user.slice'", &["'*'"; 70].join(", "))),
        ("count: Bytes", rule("  count: Bytes")),
        ("count as list", rule("  count: [Messages]")),
        ("host network as word", whole("allowHostNetwork: false", "allowHostNetwork: never")),
        ("rate without a time", whole("bytesPerSecond: 50Mi, for: 30s", "bytesPerSecond: 50Mi")),
        ("rate without a rate", whole("bytesPerSecond: 50Mi, for: 30s", "for: 30s")),
        ("rate as a size", whole("{bytesPerSecond: 50Mi, for: 30s}", "50Mi")),
        ("rate with a unit", whole("bytesPerSecond: 50Mi", "bytesPerSecond: 50Mi/s")),
        ("rate of nothing", whole("bytesPerSecond: 50Mi", "bytesPerSecond: 0")),
        ("rate held for a burst", whole("for: 30s", "for: 3s")),
        ("rate held for days", whole("for: 30s", "for: 48h")),
        ("excluded namespace", whole("[kube-system, infra]", "[kube_system]")),
        ("excluded namespaces as word", whole("[kube-system, infra]", "kube-system")),
        ("no services", whole("['*/cart', shop/pay]", "[]")),
        ("service in three parts", whole("shop/pay", "shop/pay/http")),
        ("service as DNS name", whole("shop/pay", "pay.shop.svc")),
        ("service of no namespace", whole("shop/pay", "/pay")),
        ("service without its namespace", whole("shop/pay", "pay")),
        ("service by number", whole("shop/pay", "7")),
        ("service as mapping", whole("shop/pay", "{name: pay}")),
        ("service as word", whole("['*/cart', shop/pay]", "'*/cart'")),
        ("label's key", whole("team: shop", "-team: shop")),
        ("label's prefix", whole("a.io/tier", "A_/tier")),
        ("label's value", whole("team: shop", "team: sh op")),
        ("label's value as number", whole("team: shop", "team: 1")),
        ("label's value as boolean", whole("team: shop", "team: true")),
        ("label's value like a boolean", whole("team: shop", "team: no")),
        ("label's value as list", whole("team: shop", "team: [shop]")),
        ("label twice", whole("team: shop", "team: shop, team: pay")),
        ("labels as list", whole("{team: shop}", "[team]")),
        ("labels without matchLabels", whole("matchLabels: {team: shop}", "team: shop")),
        ("operator", whole("operator: NotIn", "operator: notin")),
        ("operator unknown", whole("operator: NotIn", "operator: Gt")),
        ("no operator", whole("operator: Exists", "values: [a]")),
        ("no key", whole("key: app, ", "")),
        ("no values", whole(", values: [dev, '']", "")),
        ("values empty", whole("[dev, '']", "[]")),
        ("values with Exists", whole("operator: Exists", "operator: Exists, values: [a]")),
        ("selector as null", whole("{matchExpressions: [{key: app, operator: Exists}]}", "")),
        ("balance by nothing known", whole("by: ByteRate", "by: Requests")),
        ("balance in lower case", whole("by: ByteRate", "by: byteRate")),
        ("tolerance without sign", whole("tolerance: 15%", "tolerance: 15")),
        ("tolerance of nothing", whole("tolerance: 15%", "tolerance: 0%")),
        ("tolerance beyond", whole("tolerance: 15%", "tolerance: 101%")),
        ("balance as word", whole("{by: MessageRate}", "MessageRate")),
        ("balance as null", whole("{by: MessageRate}", "")),
        ("neither limits nor balance", whole("  balance: {by: MessageRate}\n", "")),
        ("no limits beside balance", whole("{maxAge: 2h}", "{}")),
        ("budget of a Service 0", whole("perService: 20%", "perService: 0")),
        ("budget of an endpoint as word", whole("perEndpoint: 30", "perEndpoint: all")),
        ("ready endpoints 0", whole("minReadyEndpoints: 3", "minReadyEndpoints: 0")),
        ("ready endpoints as percentage", whole("minReadyEndpoints: 3", "minReadyEndpoints: 50%")),
        ("stabilizationWindow without unit", whole("stabilizationWindow: 90s", "stabilizationWindow: 90")),
        ("stabilizationWindow for days", whole("stabilizationWindow: 90s", "stabilizationWindow: 48h")),
        (
            "many mistakes at once",
            "kind: RebalancePolicy\nmode: dryrun\ninterval: 5\nrules:\n- name: a\n  limits: {maxAge: 1x}\n\
             - match: {ports: [{port: 0}]}\n  limits: {maxBytes: 1Q}\n"
                .into(),
        ),
        ("rules as mapping", format!("{HEAD}rules: {{a: 1}}\n")),
        ("rules empty by comment", format!("{HEAD}rules:\n# - name: a\n")),
        ("tab", format!("{HEAD}track:\n\tloopback: true\n")),
        ("tab, later", format!("{HEAD}track:\n  loopback: true\n\tmaxPerNode: 1\n")),
        ("unclosed", whole("6443], allowHostNetwork", "6443, allowHostNetwork")),
        ("unclosed quote", whole("'fd00::/8'", "'fd00::/8")),
        ("colon in text", whole("name: rest", "name: rest: more")),
        ("anchor", whole("limits: {maxBytes: 1048576}", "limits: &l {maxBytes: 1048576}")),
        ("alias", whole("limits: {maxBytes: 1048576}", "limits: *l")),
        ("merge key", whole("{maxBytes: 1048576}", "{<<: {maxBytes: 1048576}}")),
        ("tag", whole("name: rest", "name: !secret rest")),
        ("two documents", format!("{WHOLE}---\n{WHOLE}")),
        ("deep", format!("{HEAD}track: {{loopback: {}1{}}}\n", "[".repeat(40), "]".repeat(40))),
        ("NUL", whole("name: rest", "name: re\0st")),
        ("escape sequence", whole("name: rest", "name: \u{1b}[31mrest")),
        ("block text", whole("name: rest", "name: |\n    rest\n    more")),
        ("complex key", whole("jitter: 25%", "? [jitter]\n  : 25%")),
        ("Windows line ends", whole("maxAge: 30m", "maxAge: 30").replace('\n', "\r\n")),
        ("byte-order mark", format!("\u{feff}{}", whole("maxAge: 30m", "maxAge: 30"))),
    ];
    let errors: String = cases
        .iter()
        .map(|(case, text)| match parse("policy.yaml", text) {
            Err(errors) => format!("# {case}\n{errors}\n\n"),
            Ok(_) => panic!("{case} was accepted:\n{text}"),
        })
        .collect();
    insta::assert_snapshot!(errors);
}

#[test]
fn a_file_over_one_mebibyte_is_rejected() {
    let errors = parse("p", &" ".repeat((1 << 20) + 1)).unwrap_err();
    assert_eq!(errors.errors()[0].message(), "the file is too large");
    assert!(parse("p", &format!("{}{}", rule(""), "#".repeat(1 << 19))).is_ok());
}

#[test]
fn lists_are_bounded() {
    let ports = "{port: 1},".repeat(257);
    let one = "{name: a, match: {ports: [{port: 1}]}, limits: {maxAge: 1h}},";
    let many = (0..257).map(|i| one.replacen(": a,", &format!(": a{i},"), 1));
    for rules in [many.collect(), one.replace("{port: 1}", &ports)] {
        let errors = parse("p", &format!("{HEAD}rules: [{rules}]\n")).unwrap_err();
        let mut messages = errors.errors().iter().map(PolicyError::message);
        assert!(messages.any(|it| it == "a list too long"), "{errors}");
    }
}

#[test]
fn an_alias_bomb_is_rejected() {
    let mut bomb = String::from("a0: &a0 [x]\n");
    for i in 1..30 {
        bomb += &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1);
    }
    let text = format!("{HEAD}rules:\n- match: {{services: &a [1]}}\n{bomb}");
    assert!(parse("p", &text).is_err());
}

/// A valid document with some of its bytes replaced by others that are likely to break it.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (
        0..WHOLE.len(),
        0..20usize,
        "[\\PC\n\t]{0,8}|[{}\\[\\]&*!|>'\"%@`#,:?~ \n-]{1,6}",
    );
    proptest::collection::vec(edit, 1..4).prop_map(|edits| {
        let mut text = WHOLE.to_owned();
        for (at, length, new) in edits {
            let start = at.min(text.len());
            let end = (start + length).min(text.len());
            if text.is_char_boundary(start) && text.is_char_boundary(end) {
                text.replace_range(start..end, &new);
            }
        }
        text
    })
}

/// What the accessors promise holds.
fn check_policy(policy: &Policy) {
    assert!(policy.interval() >= Duration::from_millis(200));
    assert!(!policy.budget().window().is_zero());
    for rule in policy.rules() {
        let limits = rule.limits();
        let (age, rate, balance) = (limits.max_age(), limits.max_rate(), rule.balance());
        let some = [
            age.is_some(),
            rate.is_some(),
            limits.max_bytes().is_some(),
            balance.is_some(),
        ];
        assert!(some.contains(&true));
        assert!(age.is_none_or(|age| age >= policy.guards().min_age() && !age.is_zero()));
        assert!(rate.is_none_or(|rate| rate.sustained_for() >= 2 * policy.interval()));
        assert!(balance.is_none_or(|balance| {
            balance.tolerance().get() >= 1
                && (balance.by() != By::MessageRate || rule.count() == Some(Count::Messages))
        }));
        let matches = rule.matches();
        let any = matches.ports().is_empty() && matches.peers().is_empty();
        assert!(!any || matches.names_pods() || !matches.cgroups().is_empty());
        let selectors = [matches.namespace_selector(), matches.pod_selector()];
        let selectors = selectors.into_iter().flatten();
        for requirement in selectors.flat_map(Selector::requirements) {
            let takes = requirement.operator().takes_values();
            assert_eq!(takes, !requirement.values().is_empty());
        }
        for range in matches.ports() {
            assert!(range.end_port().is_none_or(|end| range.port() <= end));
        }
        assert!(!rule.steps().is_empty());
        assert!(rule.steps().iter().all(|step| !step.timeout().is_zero()));
    }
}

/// Every error is complete and at a place that exists.
fn check_errors(text: &str, errors: &PolicyErrors) {
    assert!(!errors.errors().is_empty());
    let lines = text.matches('\n').count() + 1;
    let place = |error: &PolicyError| (error.line(), error.column());
    for error in errors.errors() {
        let (line, column) = place(error);
        assert!((1..=lines).contains(&line) && column >= 1, "{error:?}");
        let is_complete = !error.message().is_empty() && !error.remedy().is_empty();
        assert!(is_complete, "{error:?}");
    }
    assert!(errors.errors().is_sorted_by_key(place));
    let is_command = |c: char| c.is_control() && c != '\n';
    assert!(!errors.to_string().contains(is_command));
}

#[test]
fn a_policys_guards_precede_the_defaults_with_kubernetes() {
    let on_kubernetes = |guards: &str| {
        let text = format!("guards: {{{guards}}}\n{}", rule(""));
        let policy = parse("p", &text).unwrap().with_kubernetes_defaults();
        let guards = policy.guards();
        let excluded: Vec<_> = guards.exclude_namespaces().unwrap().iter().collect();
        format!("{:?} {excluded:?}", guards.allow_host_network().unwrap())
    };
    for (guards, expected) in [
        ("", r#"false ["kube-system"]"#),
        ("allowHostNetwork: true", r#"true ["kube-system"]"#),
        ("allowHostNetwork: false", r#"false ["kube-system"]"#),
        ("excludeNamespaces: []", "false []"),
        ("excludeNamespaces: [b, a, b]", r#"false ["a", "b"]"#),
    ] {
        assert_eq!(on_kubernetes(guards), expected, "{guards}");
    }
    let plain = parse("p", &rule("")).unwrap();
    let (network, excluded) = (
        plain.guards().allow_host_network(),
        plain.guards().exclude_namespaces(),
    );
    assert_eq!((network, excluded), (None, None));
}

#[test]
fn a_mismatch_has_its_reason() {
    let policy = parse("p", WHOLE).unwrap();
    let mismatch = |port, remote, path| {
        let connection = Connection {
            cgroup_path: CgroupPath::new(path),
            ..connection(port, remote)
        };
        let mismatch = policy.rules()[0].mismatch(&connection, &Who::NoPod);
        mismatch.map(|mismatch| mismatch.to_string())
    };
    let vm = "/machine.slice/vm.scope";
    let no_cgroup = "it names cgroups, and the connection's own is gone or not known";
    let other_cgroup = "the cgroup /a is not among its cgroups";
    let excepted = "10.9.0.1 is excepted from its peers";
    for (port, remote, path, reason) in [
        (81, "11.0.0.1:5", vm, "port 81 is not among its ports"),
        (8080, "11.0.0.1:5", vm, "11.0.0.1 is not among its peers"),
        (8080, "10.9.0.1:5", vm, excepted),
        (8080, "10.0.0.1:5", "/a", other_cgroup),
        (8080, "10.0.0.1:5", "", no_cgroup),
    ] {
        assert_eq!(mismatch(port, remote, path).as_deref(), Some(reason));
    }
    assert_eq!(mismatch(8080, "10.0.0.1:5", vm), None);
}

#[test]
fn no_rule_applies_behind_one_that_may_match() {
    let behind = "- name: b\n  match: {ports: [{port: 80}]}\n  limits: {maxAge: 1h}\n";
    let first = rule("").replace(
        "{ports: [{port: 80}]}",
        "{cgroups: [/a], ports: [{port: 80}]}",
    );
    let policy = parse("p", &format!("{first}{behind}")).unwrap();
    let of = |port, path: &str| Connection {
        cgroup_path: CgroupPath::new(path),
        ..connection(port, "10.0.0.1:5")
    };
    for (connection, rule, unsure) in [
        (of(80, "/a/b"), Some("a"), false),
        (of(80, "/b"), Some("b"), false),
        (of(80, ""), None, true),
        // Of another port it is not for the first rule, wherever it is.
        (of(81, ""), None, false),
    ] {
        let found = policy.rule_for(&connection, &Who::NoPod);
        let name = found.ok().flatten().map(|rule| rule.name().as_str());
        assert_eq!(name, rule, "{connection:?}");
        let lack = found.err().map(|(_, lack)| lack);
        let expected = unsure.then_some(MissingFact::Cgroup);
        assert_eq!(lack, expected, "{connection:?}");
    }
}

#[test]
fn explain_shows_every_field_and_marks_defaults() {
    insta::assert_snapshot!("explained_short", explain("p", &rule("")).unwrap());
    insta::assert_snapshot!("explained_whole", explain("p", WHOLE).unwrap());
}

#[test]
fn explain_quotes_names_that_yaml_would_read_otherwise() {
    for name in ["no", "on", "true", "null", "17", "1e3", "0x1f", "a-1", "0"] {
        let text = rule("").replace("name: a", &format!("name: \"{name}\""));
        let explained = explain("p", &text).unwrap();
        assert_eq!(parse("p", &explained), parse("p", &text), "{name}");
        assert!(parse("p", &text).is_ok(), "{name}");
    }
}

/// A document as an editor sees it.
fn as_json(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(&schema()).unwrap()).unwrap()
}

#[test]
fn the_schema_accepts_what_is_valid() {
    let validator = validator();
    let shortest = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
rules:
- {name: checkout, match: {ports: [{port: 8080}]}, limits: {maxAge: 30m}}
";
    let explained = explain("p", WHOLE).unwrap();
    let sizes = WHOLE.replace("10Gi", "'1.5G'").replace("50Mi", "1.5");
    let texts = [shortest, WHOLE, EXAMPLE, &explained, &sizes, &rule("")].map(str::to_owned);
    for text in texts {
        parse("p", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let errors: Vec<String> = validator
            .iter_errors(&as_json(&text))
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:?}\n{text}");
    }
}

#[test]
fn the_schema_rejects_what_is_invalid() {
    let validator = validator();
    for (from, to) in [
        ("v1alpha1", "v2"),
        ("kind: RebalancePolicy", "kind: ConfigMap"),
        ("mode: Enforce", "mode: enforce"),
        ("interval: 2s", "interval: 2"),
        ("interval: 2s", "interval: 2d"),
        ("interval: 2s", "intervall: 2s"),
        ("loopback: true", "loopback: 'true'"),
        ("perNode: 10%", "perNode: 0"),
        ("perNode: 10%", "perNode: 0%"),
        ("perNode: 10%", "perNode: 101%"),
        ("maxInFlight: 7", "maxInFlight: 7%"),
        ("name: checkout", "name: Check_Out"),
        ("name: checkout", "title: checkout"),
        ("port: 8080", "port: 0"),
        ("port: 8080", "port: 65536"),
        ("port: 8080", "port: '8080'"),
        ("{port: 8080}", "8080"),
        ("cidr: 10.0.0.0/8", "cidr: 10.0.0.0"),
        ("{maxBytes: 1048576}", "{}"),
        ("maxBytes: 10Gi", "maxBytes: 10GB"),
        ("maxBytes: 10Gi", "maxBytes: 0"),
        ("for: 30s", "for: 30"),
        ("bytesPerSecond: 50Mi, for: 30s", "for: 30s"),
        ("jitter: 25%", "jitter: 25"),
        ("onReconnect: LosesState", "onReconnect: loses"),
        ("count: Messages", "count: Bytes"),
        ("by: ByteRate", "by: Bytes"),
        ("tolerance: 15%", "tolerance: 0%"),
        ("  balance: {by: MessageRate}\n", ""),
        ("perService: 20%", "perService: 0"),
        ("perEndpoint: 30", "perEndpoint: 101%"),
        ("minReadyEndpoints: 3", "minReadyEndpoints: 0"),
        ("stabilizationWindow: 90s", "stabilizationWindow: 90"),
        ("step: Close", "step: Notify"),
        ("step: Close, when: AtOnce", "when: AtOnce"),
        ("when: AtOnce", "when: Never"),
        ("atEnd: ResetNow", "atEnd: Reset"),
        ("rules:", "balance: {}\nrules:"),
        ("[kube-system, infra]", "[Kube]"),
        ("shop/pay", "a/b/c"),
        ("team: shop", "team: 1"),
        ("a.io/tier", "a.io/"),
        ("operator: Exists", "operator: Gt"),
        ("operator: Exists", "values: [a]"),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let text = WHOLE.replacen(from, to, 1);
        assert!(parse("p", &text).is_err(), "{to}");
        assert!(!validator.is_valid(&as_json(&text)), "{to}");
    }
}

#[test]
fn the_schema_has_defaults_and_the_meaning_of_words() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let field = |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("{path}"));
    for (path, default) in [
        ("/properties/mode", json!("DryRun")),
        ("/$defs/Track/properties/loopback", json!(false)),
        ("/$defs/Track/properties/excludeCgroups", json!([])),
        ("/$defs/Budget/properties/perNode", json!(60)),
        ("/$defs/Step/properties/timeout", json!("2m")),
        ("/$defs/Balance/properties/tolerance", json!("10%")),
    ] {
        assert_eq!(field(path)["default"], default, "{path}");
    }
    let on_reconnect = &field("/$defs/Rule/properties/onReconnect")["description"];
    let text = on_reconnect.as_str().unwrap();
    let (begins, word) = (
        "What a reconnect costs the client.",
        "`Safe`: Nothing, whatever",
    );
    assert!(text.starts_with(begins) && text.contains(word), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_explained_policy_is_the_same_policy(text in mutated()) {
        let Ok(policy) = parse("p", &text) else { return Ok(()) };
        let explained = explain("p", &text).unwrap();
        prop_assert_eq!(parse("p", &explained), Ok(policy));
        prop_assert_eq!(explain("p", &explained).unwrap(), explained.replace(" # default\n", "\n"));
    }

    #[test]
    fn the_schema_accepts_every_valid_policy(text in mutated()) {
        use std::sync::LazyLock;
        static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(validator);
        if parse("p", &text).is_ok() {
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            prop_assert!(VALIDATOR.is_valid(&as_json(text)), "{}", text);
        }
    }

    #[test]
    fn a_mutated_policy_is_valid_or_has_errors(text in mutated()) {
        match parse("policy.yaml", &text) {
            Ok(policy) => check_policy(&policy),
            Err(errors) => check_errors(&text, &errors),
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|[\n\t\r{}\\[\\]:,-]){0,200}|.{0,100}") {
        match parse("policy.yaml", &text) {
            Ok(policy) => check_policy(&policy),
            Err(errors) => check_errors(&text, &errors),
        }
    }
}

#[test]
fn the_reference_in_the_repository_is_of_these_fields() {
    let file = include_str!("../../../POLICY.md");
    assert!(
        reference() == file,
        "run: cargo run -- policy reference > rebalancer-user/POLICY.md"
    );
}
