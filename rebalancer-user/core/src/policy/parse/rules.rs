//! From a file's rules to [`Rule`]s.

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use serde_saphyr::Spanned;

use super::{
    DAY, YEAR,
    reader::{Reader, inner},
};
use crate::policy::{
    AtEnd, Balance, By, Count, Limits, Match, MaxRate, OnReconnect, Peer, Percent, PortRange, Rule,
    RuleName, Span, Step, StepKind, When,
    error::{Fault, quoted},
    file::{
        BalanceFile, Field, IpBlockFile, LimitsFile, List, MatchFile, PeerFile, PortFile, RateFile,
        RuleFile, Scalar, StepFile,
    },
    values,
};

/// Bounds on lists: each connection is held against each item.
const MOST_RULES: usize = 256;
pub(super) const MOST_ITEMS: usize = 256;
const MOST_STEPS: usize = 8;

impl Reader<'_> {
    pub(super) fn rules(
        &mut self,
        field: &List<RuleFile>,
        min_age: Duration,
        interval: Duration,
    ) -> Vec<Rule> {
        let mut names = BTreeMap::new();
        let files = self.list(field, MOST_RULES);
        files
            .iter()
            .filter_map(|file| {
                let rule = self.rule(file, min_age, interval)?;
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

    fn rule(
        &mut self,
        file: &Spanned<RuleFile>,
        min_age: Duration,
        interval: Duration,
    ) -> Option<Rule> {
        let at = self.place(file);
        let RuleFile {
            name,
            mode,
            matches,
            limits,
            jitter,
            on_reconnect,
            steps,
            at_end,
            count,
            balance,
        } = &file.value;
        self.required(name, "name", &at, "a name, e.g. `name: checkout`");
        self.required(
            matches,
            "match",
            &at,
            "what it is for, e.g. `match: {ports: [{port: 8080}]}`",
        );
        if balance.0.is_none() {
            self.required(
                limits,
                "limits",
                &at,
                "a limit, e.g. `limits: {maxAge: 30m}`, or `balance: {by: Connections}`",
            );
        }
        let on_reconnects = [
            ("Detect", OnReconnect::Detect),
            ("Safe", OnReconnect::Safe),
            ("LosesState", OnReconnect::LosesState),
        ];
        let ends = [("Skip", AtEnd::Skip), ("ResetNow", AtEnd::ResetNow)];
        let name = self.value(name, |value| values::name(value).map(Arc::from));
        let mode = self.mode(mode);
        let matches = self.matches(matches);
        let limits = self.limits(limits, min_age, interval);
        let balance = self.balance(balance);
        let jitter = self.value(jitter, |value| values::percent(value, 0));
        let state_at = self.place_of(on_reconnect);
        let state_is_given = on_reconnect.0.is_some();
        let on_reconnect = self.word(on_reconnect, &on_reconnects, &[]);
        let any_moment = self.at_any_moment(steps, at_end);
        let steps = self.steps(steps);
        let at_end = self.word(at_end, &ends, &[]).unwrap_or_default();
        match (any_moment, on_reconnect) {
            (Some(_), Some(OnReconnect::Detect)) => {
                let label = "with `AtOnce` or `ResetNow`, which do not wait for protocol detection";
                let remedy = "write `Safe` or `LosesState`, or wait for a quiet moment";
                let fault = Fault::new("a contradiction within the rule", label, remedy);
                self.report(state_at, fault);
            }
            // A rule's fallback must not become a word for what it ends.
            (Some(at), None) if !state_is_given => {
                let label = "ends connections at any moment, whatever their protocol";
                let remedy = "write `onReconnect: Safe` into the rule if that costs a client no more \
                              than a reconnect, `LosesState` if more may be lost; or wait for a quiet moment";
                self.report(at, Fault::new("missing field `onReconnect`", label, remedy));
            }
            _ => {}
        }
        let count = self.word(count, &[("Messages", Count::Messages)], &[]);
        let implied = balance.is_some_and(|balance| balance.by == By::MessageRate);
        Some(Rule {
            name: RuleName(name?),
            mode,
            matches,
            limits,
            balance,
            jitter: jitter.unwrap_or(const { Percent::new(10).unwrap() }),
            on_reconnect: on_reconnect.unwrap_or(OnReconnect::Detect),
            steps,
            at_end,
            count: count.or(implied.then_some(Count::Messages)),
        })
    }

    /// Where a rule says that connections may be ended without a condition.
    fn at_any_moment(
        &self,
        steps: &List<StepFile>,
        at_end: &Field<Scalar>,
    ) -> Option<Range<usize>> {
        let is = |field: &Field<Scalar>, word: &str| {
            let value = field.0.as_ref().map(|field| &field.value);
            value == Some(&Scalar::Text(word.to_owned()))
        };
        if is(at_end, "ResetNow") {
            return Some(self.place_of(at_end));
        }
        let steps = steps.0.iter().flat_map(|steps| &steps.value);
        let mut whens = steps.map(|step| &step.value.when);
        let when = whens.find(|when| is(when, "AtOnce"))?;
        Some(self.place_of(when))
    }

    fn balance(&mut self, field: &Field<BalanceFile>) -> Option<Balance> {
        const DEFAULT: Percent = Percent::new(10).unwrap();
        let BalanceFile { by, tolerance } = &field.0.as_ref()?.value;
        let words = [By::Connections, By::ByteRate, By::MessageRate].map(|by| (by.as_str(), by));
        Some(Balance {
            by: self.word(by, &words, &[]).unwrap_or_default(),
            tolerance: self
                .value(tolerance, |value| values::percent(value, 1))
                .unwrap_or(DEFAULT),
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
        let given = [
            ports.0.is_some(),
            peers.0.is_some(),
            services.0.is_some(),
            namespace_selector.0.is_some(),
            pod_selector.0.is_some(),
            cgroups.0.is_some(),
        ];
        if field.0.is_some() && !given.contains(&true) {
            let remedy = "write what it is for, e.g. `match: {ports: [{port: 8080}]}`";
            let fault = Fault::new("an empty match", "matches nothing", remedy);
            self.report(self.place_of(field), fault);
        }
        self.not_empty(ports, "ports");
        self.not_empty(peers, "peers");
        self.not_empty(cgroups, "cgroups");
        let ports = self.list(ports, MOST_ITEMS);
        let peers = self.list(peers, MOST_ITEMS);
        Match {
            ports: ports
                .iter()
                .filter_map(|port| self.port_range(port))
                .collect(),
            peers: peers.iter().filter_map(|peer| self.peer(peer)).collect(),
            pods: self.pods(services, namespace_selector, pod_selector),
            cgroups: self.cgroups(cgroups),
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

    fn limits(
        &mut self,
        field: &Field<LimitsFile>,
        min_age: Duration,
        interval: Duration,
    ) -> Limits {
        let default = LimitsFile::default();
        let LimitsFile {
            max_age: age,
            max_bytes: bytes,
            max_rate,
        } = inner(field, &default);
        let none = age.0.is_none() && bytes.0.is_none() && max_rate.0.is_none();
        if field.0.is_some() && none {
            let remedy = "write maxAge, maxBytes or maxRate, e.g. `limits: {maxAge: 30m}`";
            let fault = Fault::new("no limit", "nothing would ever exceed it", remedy);
            self.report(self.place_of(field), fault);
        }
        let max_age = self.duration(age, Duration::from_millis(1)..=YEAR);
        if max_age.is_some_and(|max_age| max_age < min_age) {
            let min_age = Span(min_age);
            let label = format!("below guards.minAge, {min_age}");
            let remedy = format!("write {min_age} or more, or lower guards.minAge");
            let fault = Fault::new("a limit that a guard forbids", label, remedy);
            self.report(self.place_of(age), fault);
        }
        Limits {
            max_age,
            max_bytes: self.value(bytes, values::size),
            max_rate: self.max_rate(max_rate, interval),
        }
    }

    fn max_rate(&mut self, field: &Field<RateFile>, interval: Duration) -> Option<MaxRate> {
        let at = self.place_of(field);
        let RateFile {
            bytes_per_second,
            sustained_for,
        } = &field.0.as_ref()?.value;
        let example = "e.g. `maxRate: {bytesPerSecond: 50Mi, for: 30s}`";
        self.required(bytes_per_second, "bytesPerSecond", &at, example);
        self.required(sustained_for, "for", &at, example);
        let per_second = self.value(bytes_per_second, values::size);
        let held = self.duration(sustained_for, Duration::from_millis(1)..=DAY);
        if held.is_some_and(|held| held < 2 * interval) {
            let label = format!("below twice the interval, {}", Span(interval));
            let least = Span(2 * interval);
            let remedy = format!("write {least} or more, or lower `interval`");
            let fault = Fault::new("too short to tell a burst from a rate", label, remedy);
            self.report(self.place_of(sustained_for), fault);
        }
        Some(MaxRate {
            bytes_per_second: per_second?,
            sustained_for: held?,
        })
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
        let files = self.list(field, MOST_STEPS);
        let steps: Arc<[Step]> = files.iter().map(|file| self.step(file, DEFAULT)).collect();
        let ends = |step: &Step| step.kind == StepKind::Reset && step.when == When::AtOnce;
        let last = steps.iter().position(ends);
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
        let kinds = [("Close", StepKind::Close), ("Reset", StepKind::Reset)];
        let kind = self.word(step, &kinds, &["Notice"]);
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
            kind: kind.unwrap_or(default.kind),
            when: if at_once { When::AtOnce } else { quiet },
            timeout: self.duration(timeout, some).unwrap_or(default.timeout),
        }
    }
}
