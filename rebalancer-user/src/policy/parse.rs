//! From the file's types to a [`Policy`]: the errors of meaning, all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    ops::{Range, RangeInclusive},
    sync::Arc,
    time::Duration,
};

use serde_saphyr::Spanned;

use super::{
    Amount, AtEnd, Budget, Guards, Limits, Match, Mode, Peer, Percent, Policy, PolicyErrors,
    PortRange, Rule, RuleName, SessionState, Step, StepKind, Track, When,
    error::{Fault, Problem, quoted},
    file::{
        BudgetFile, Field, GuardsFile, IpBlockFile, LimitsFile, List, MatchFile, PeerFile,
        PolicyFile, PortFile, RuleFile, Scalar, StepFile, TrackFile, Unsupported,
    },
    syntax,
    values::{self, Value},
};

const API_VERSION: &str = "rebalancer.dev/v1alpha1";
const KIND: &str = "RebalancePolicy";

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const MODES: [(&str, Mode); 3] = [
    ("Disabled", Mode::Disabled),
    ("DryRun", Mode::DryRun),
    ("Enforce", Mode::Enforce),
];
/// Bounds on lists: each connection is held against each item.
const MOST_RULES: usize = 256;
const MOST_ITEMS: usize = 256;

/// Reads a policy; `source_name` is what errors call it.
///
/// # Errors
/// The first error of syntax or shape, or else all errors of meaning, sorted by place.
pub fn parse(source_name: &str, text: &str) -> Result<Policy, PolicyErrors> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let file = syntax::read(text)
        .map_err(|problem| PolicyErrors::new(source_name, text, vec![problem]))?;
    let mut reader = Reader {
        text,
        problems: Vec::new(),
    };
    let policy = reader.policy(&file);
    if reader.problems.is_empty() {
        Ok(policy)
    } else {
        Err(PolicyErrors::new(source_name, text, reader.problems))
    }
}

/// Builds the parts and gathers what is wrong with them. Where something is wrong a default
/// takes its place, so that the rest is judged too; the policy is then thrown away.
struct Reader<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn policy(&mut self, file: &PolicyFile) -> Policy {
        let head = 0..0;
        let fixed = [
            (&file.api_version, "apiVersion", API_VERSION),
            (&file.kind, "kind", KIND),
        ];
        for (field, name, expected) in fixed {
            self.required(field, name, &head, &format!("{name}: {expected}"));
            self.value(field, |value| values::exactly(value, expected));
        }
        self.required(&file.rules, "rules", &head, "rules, or `rules: []`");
        let guards = self.guards(&file.guards);
        Policy {
            mode: self.mode(&file.mode).unwrap_or_default(),
            interval: self
                .duration(&file.interval, Duration::from_millis(200)..=DAY / 24)
                .unwrap_or(5 * SECOND),
            track: self.track(&file.track),
            budget: self.budget(&file.budget),
            rules: self.rules(&file.rules, guards.min_age),
            guards,
        }
    }

    fn track(&mut self, field: &Field<TrackFile>) -> Track {
        let default = TrackFile::default();
        let TrackFile {
            sockets,
            loopback,
            max_per_endpoint,
        } = inner(field, &default);
        self.word(sockets, &[("All", ())], &["Matched"]);
        Track {
            loopback: self.value(loopback, values::boolean).unwrap_or(false),
            max_per_endpoint: self.count(max_per_endpoint, 1 << 20, 65_536),
        }
    }

    fn budget(&mut self, field: &Field<BudgetFile>) -> Budget {
        let default = BudgetFile::default();
        let BudgetFile {
            window,
            per_node,
            max_in_flight,
            per_service,
            per_endpoint,
        } = inner(field, &default);
        self.unsupported(per_service, "perService", "perNode");
        self.unsupported(per_endpoint, "perEndpoint", "perNode");
        Budget {
            window: self.duration(window, SECOND..=DAY).unwrap_or(60 * SECOND),
            per_node: self
                .value(per_node, |value| values::amount(value, 1_000_000))
                .unwrap_or(Amount::Fixed(const { NonZeroU32::new(60).unwrap() })),
            max_in_flight: self.count(max_in_flight, 10_000, 20),
        }
    }

    fn guards(&mut self, field: &Field<GuardsFile>) -> Guards {
        let default = GuardsFile::default();
        let GuardsFile {
            min_age,
            allow_system_ports,
            exclude_namespaces,
            min_ready_endpoints,
            settle,
        } = inner(field, &default);
        let supported = "minAge and allowSystemPorts";
        self.unsupported(exclude_namespaces, "excludeNamespaces", supported);
        self.unsupported(min_ready_endpoints, "minReadyEndpoints", supported);
        self.unsupported(settle, "settle", supported);
        let ports: BTreeSet<u16> = self
            .list(allow_system_ports, u16::MAX.into())
            .iter()
            .filter_map(|port| self.item(port, values::port))
            .map(Into::into)
            .collect();
        Guards {
            min_age: self.duration(min_age, Duration::ZERO..=YEAR).unwrap_or(
                if min_age.0.is_some() {
                    Duration::ZERO
                } else {
                    30 * SECOND
                },
            ),
            allow_system_ports: ports,
        }
    }

    fn rules(&mut self, field: &List<RuleFile>, min_age: Duration) -> Vec<Rule> {
        let mut names = BTreeMap::new();
        let files = self.list(field, MOST_RULES);
        files
            .iter()
            .filter_map(|file| {
                let rule = self.rule(file, min_age)?;
                let at = self.place_of(&file.value.name);
                if let Some(first) = names.insert(rule.name.clone(), at.start) {
                    let line = self.text[..first].matches('\n').count() + 1;
                    let message = format!("two rules are named {}", quoted(rule.name.as_str()));
                    let label = format!("the first is on line {line}");
                    self.report(at, Fault::new(message, label, "give each its own name"));
                }
                Some(rule)
            })
            .collect()
    }

    fn rule(&mut self, file: &Spanned<RuleFile>, min_age: Duration) -> Option<Rule> {
        let at = self.place(file);
        let RuleFile {
            name,
            mode,
            matches,
            limits,
            jitter,
            session_state,
            steps,
            at_end,
            balance,
            count,
        } = &file.value;
        self.unsupported(balance, "balance", "limits");
        self.unsupported(count, "count", "maxBytes");
        self.required(name, "name", &at, "a name, e.g. `name: checkout`");
        self.required(
            matches,
            "match",
            &at,
            "what it is for, e.g. `match: {ports: [{port: 8080}]}`",
        );
        self.required(
            limits,
            "limits",
            &at,
            "a limit, e.g. `limits: {maxAge: 30m}`",
        );
        let session_states = [
            ("Keeps", SessionState::Keeps),
            ("Loses", SessionState::Loses),
        ];
        let ends = [("Spare", AtEnd::Spare), ("ResetNow", AtEnd::ResetNow)];
        let name = self.value(name, |value| values::name(value).map(Arc::from));
        let mode = self.mode(mode);
        let matches = self.matches(matches);
        let limits = self.limits(limits, min_age);
        let jitter = self.value(jitter, |value| values::percent(value, 0));
        let session_state = self.word(session_state, &session_states, &[]);
        let steps = self.steps(steps);
        let at_end = self.word(at_end, &ends, &[]);
        Some(Rule {
            name: RuleName(name?),
            mode,
            matches,
            limits,
            jitter: jitter.unwrap_or(const { Percent::new(10).unwrap() }),
            session_state: session_state.unwrap_or_default(),
            steps,
            at_end: at_end.unwrap_or_default(),
        })
    }

    fn matches(&mut self, field: &Field<MatchFile>) -> Match {
        let default = MatchFile::default();
        let MatchFile {
            ports,
            peers,
            services,
            namespace_selector,
            pod_selector,
            cgroups,
        } = inner(field, &default);
        let supported = "ports and peers";
        self.unsupported(services, "services", supported);
        self.unsupported(namespace_selector, "namespaceSelector", supported);
        self.unsupported(pod_selector, "podSelector", supported);
        self.unsupported(cgroups, "cgroups", supported);
        let given = |field: &Unsupported| field.0.is_some();
        let later = [services, namespace_selector, pod_selector, cgroups]
            .into_iter()
            .any(given);
        if field.0.is_some() && ports.0.is_none() && peers.0.is_none() && !later {
            let remedy = "write ports or peers, e.g. `match: {ports: [{port: 8080}]}`";
            let fault = Fault::new("an empty match", "matches nothing", remedy);
            self.report(self.place_of(field), fault);
        }
        self.not_empty(ports, "ports");
        self.not_empty(peers, "peers");
        let ports = self.list(ports, MOST_ITEMS);
        let peers = self.list(peers, MOST_ITEMS);
        Match {
            ports: ports
                .iter()
                .filter_map(|port| self.port_range(port))
                .collect(),
            peers: peers.iter().filter_map(|peer| self.peer(peer)).collect(),
        }
    }

    fn port_range(&mut self, file: &Spanned<PortFile>) -> Option<PortRange> {
        let at = self.place(file);
        let PortFile { port, end_port } = &file.value;
        self.required(port, "port", &at, "a port, e.g. `port: 8080`");
        let first = self.value(port, values::port);
        let last = self.value(end_port, values::port);
        let first = first?;
        let range = PortRange {
            first,
            last: last.unwrap_or(first),
        };
        if range.last < first {
            let label = format!("below `port`, {first}");
            let remedy = "write the lower one in `port`, the higher one in `endPort`";
            self.report(
                self.place_of(end_port),
                Fault::new("an empty range", label, remedy),
            );
        }
        Some(range)
    }

    fn peer(&mut self, file: &Spanned<PeerFile>) -> Option<Peer> {
        let at = self.place(file);
        let block = &file.value.ip_block;
        let example = "`ipBlock: {cidr: 10.0.0.0/8}`";
        self.required(block, "ipBlock", &at, example);
        let IpBlockFile { cidr, except } = &block.0.as_ref()?.value;
        self.required(cidr, "cidr", &self.place_of(block), example);
        let net = self.value(cidr, values::network);
        let excepted = self.list(except, MOST_ITEMS);
        let mut inside = Vec::new();
        for item in excepted {
            let Some(hole) = self.item(item, values::network) else {
                continue;
            };
            if net.is_some_and(|net| net == hole || !net.contains(&hole)) {
                let net = net.map(|net| net.to_string()).unwrap_or_default();
                let label = format!("not a part of {net}");
                let remedy = format!("write a network that is smaller than {net} and inside it");
                self.report(
                    self.place(item),
                    Fault::new("an exception from nothing", label, remedy),
                );
            }
            inside.push(hole);
        }
        Some(Peer {
            cidr: net?,
            except: inside,
        })
    }

    fn limits(&mut self, field: &Field<LimitsFile>, min_age: Duration) -> Limits {
        let default = LimitsFile::default();
        let LimitsFile {
            max_age: age,
            max_bytes: bytes,
            max_rate,
        } = inner(field, &default);
        self.unsupported(max_rate, "maxRate", "maxAge and maxBytes");
        let none = age.0.is_none() && bytes.0.is_none() && max_rate.0.is_none();
        if field.0.is_some() && none {
            let remedy = "write maxAge or maxBytes, e.g. `limits: {maxAge: 30m}`";
            let fault = Fault::new("no limit", "nothing would ever exceed it", remedy);
            self.report(self.place_of(field), fault);
        }
        let max_age = self.duration(age, Duration::from_millis(1)..=YEAR);
        if max_age.is_some_and(|max_age| max_age < min_age) {
            let min_age = super::Span(min_age);
            let label = format!("below guards.minAge, {min_age}");
            let remedy = format!("write {min_age} or more, or lower guards.minAge");
            let fault = Fault::new("a limit that a guard forbids", label, remedy);
            self.report(self.place_of(age), fault);
        }
        Limits {
            max_age,
            max_bytes: self.value(bytes, values::size),
        }
    }

    fn steps(&mut self, field: &List<StepFile>) -> Arc<[Step]> {
        const DEFAULT: Step = Step {
            kind: StepKind::Reset,
            when: When::Quiet {
                idle_for: Duration::from_millis(200),
            },
            timeout: Duration::from_secs(120),
        };
        if field.0.is_none() {
            return [DEFAULT].into();
        }
        self.not_empty(field, "steps");
        let files = self.list(field, 8);
        let steps: Arc<[Step]> = files.iter().map(|file| self.step(file, DEFAULT)).collect();
        let last = steps.iter().position(|step| step.when == When::AtOnce);
        if let Some(unreached) = last.and_then(|last| files.get(last + 1)) {
            let label = "a reset at once has ended the connection before";
            let fault = Fault::new("a step that is never reached", label, "remove it");
            self.report(self.place(unreached), fault);
        }
        steps
    }

    fn step(&mut self, file: &Spanned<StepFile>, default: Step) -> Step {
        let StepFile {
            step,
            when,
            idle_for,
            timeout,
        } = &file.value;
        self.required(step, "step", &self.place(file), "one, e.g. `step: Reset`");
        self.word(step, &[("Reset", ())], &["Close", "Notice"]);
        let at_once = self.word(when, &[("Quiet", false), ("AtOnce", true)], &[]) == Some(true);
        if at_once && idle_for.0.is_some() {
            let label = "`when: AtOnce` waits for no idle time";
            let fault = Fault::new("a condition without effect", label, "remove `idleFor`");
            self.report(self.place_of(idle_for), fault);
        }
        let some = Duration::from_millis(1)..=DAY;
        let idle_for = self.duration(idle_for, some.clone());
        let quiet = idle_for.map_or(default.when, |idle_for| When::Quiet { idle_for });
        Step {
            kind: StepKind::Reset,
            when: if at_once { When::AtOnce } else { quiet },
            timeout: self.duration(timeout, some).unwrap_or(default.timeout),
        }
    }

    fn mode(&mut self, field: &Field<Scalar>) -> Option<Mode> {
        self.word(field, &MODES, &[])
    }

    fn duration(
        &mut self,
        field: &Field<Scalar>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.value(field, |value| values::duration(value, range))
    }

    fn count(&mut self, field: &Field<Scalar>, most: u32, default: u32) -> NonZeroU32 {
        let count = self.value(field, |value| values::count(value, most));
        count
            .or(NonZeroU32::new(default))
            .unwrap_or(NonZeroU32::MIN)
    }

    fn word<T: Copy>(
        &mut self,
        field: &Field<Scalar>,
        known: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        self.value(field, |value| values::word(value, known, later))
    }

    /// A field's value; `None` where it is left out, or wrong and reported.
    fn value<T>(
        &mut self,
        field: &Field<Scalar>,
        read: impl FnOnce(Value<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        self.item(field.0.as_ref()?, read)
    }

    fn item<T>(
        &mut self,
        item: &Spanned<Scalar>,
        read: impl FnOnce(Value<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        let at = self.place(item);
        let raw = self.text.get(at.clone()).unwrap_or_default();
        read(Value {
            scalar: &item.value,
            raw,
        })
        .map_err(|fault| self.report(at, fault))
        .ok()
    }

    /// The first `most` of a list, which should be all.
    fn list<'f, T>(&mut self, field: &'f List<T>, most: usize) -> &'f [Spanned<T>] {
        let Some(Spanned { value: items, .. }) = &field.0 else {
            return &[];
        };
        if let Some(surplus) = items.get(most) {
            let label = format!("item {} of {}", most + 1, items.len());
            let remedy = format!("write at most {most}");
            self.report(
                self.place(surplus),
                Fault::new("a list too long", label, remedy),
            );
        }
        &items[..items.len().min(most)]
    }

    fn not_empty<T>(&mut self, field: &List<T>, name: &str) {
        if field.0.as_ref().is_some_and(|list| list.value.is_empty()) {
            let fault = Fault::new(
                "an empty list",
                "nothing in it",
                format!("fill or remove `{name}`"),
            );
            self.report(self.place_of(field), fault);
        }
    }

    fn required<T>(&mut self, field: &Field<T>, name: &str, at: &Range<usize>, write: &str) {
        if field.0.is_none() {
            let message = format!("missing field `{name}`");
            let fault = Fault::new(
                message,
                format!("has no `{name}`"),
                format!("write {write}"),
            );
            self.report(at.clone(), fault);
        }
    }

    fn unsupported(&mut self, field: &Unsupported, name: &str, supported: &str) {
        let Some(value) = &field.0 else { return };
        let value = self.place(value).start.min(self.text.len());
        let key = self.text.get(..value).and_then(|before| before.rfind(name));
        let at = key.map_or(value..value, |key| key..key + name.len());
        let fault = Fault::new(
            format!("this version does not support `{name}` yet"),
            "of a later version",
            format!("remove it; this version has {supported}"),
        );
        self.report(at, fault);
    }

    fn report(&mut self, at: Range<usize>, fault: Fault) {
        self.problems.push(fault.at(at));
    }

    fn place<T>(&self, spanned: &Spanned<T>) -> Range<usize> {
        syntax::place(self.text, &spanned.referenced)
    }

    fn place_of<T>(&self, field: &Field<T>) -> Range<usize> {
        field.0.as_ref().map_or(0..0, |value| self.place(value))
    }
}

/// A part's fields, or those of an empty one where it is left out.
fn inner<'f, T>(field: &'f Field<T>, default: &'f T) -> &'f T {
    field.0.as_ref().map_or(default, |part| &part.value)
}
