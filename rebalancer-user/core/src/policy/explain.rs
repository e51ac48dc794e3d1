//! The effective whole of a policy, each default marked: valid again, and the same policy.

use std::fmt::{Display, Write as _};

use ipnet::IpNet;

use super::{
    AtEnd, CgroupGlobs, Count, Match, OnReconnect, Pods, Policy, PolicyErrors, Rule, Selector,
    ServiceRef, Size, Span, Step, StepKind, When,
    file::{Field, GuardsFile, List, PolicyFile, RuleFile, StepFile},
    parse::{API_VERSION, KIND, read},
};

/// Reads a policy and writes all of it out, with `# default` behind what the file leaves out.
///
/// # Errors
/// As [`super::parse`].
pub fn explain(source_name: &str, text: &str) -> Result<String, PolicyErrors> {
    let (file, policy) = read(source_name, text)?;
    let mut lines = Lines::default();
    lines.policy(&file, &policy);
    Ok(lines.0)
}

/// Whether the file gives a field.
fn given<T>(field: &Field<T>) -> bool {
    field.0.is_some()
}

/// A part's fields, if the file gives the part.
fn part<T>(field: &Field<T>) -> Option<&T> {
    field.0.as_ref().map(|part| &part.value)
}

/// Whether the file gives a field of a part.
fn within<T, V>(field: &Field<T>, inner: impl Fn(&T) -> &Field<V>) -> bool {
    part(field).is_some_and(|part| given(inner(part)))
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, indent: &str, text: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{indent}{text}");
    }

    fn field(&mut self, indent: &str, name: &str, value: impl Display, given: bool) {
        let mark = if given { "" } else { " # default" };
        self.line(indent, format_args!("{name}: {value}{mark}"));
    }

    fn policy(&mut self, file: &PolicyFile, policy: &Policy) {
        let PolicyFile {
            mode,
            interval,
            track,
            budget,
            guards,
            rules,
            ..
        } = file;
        self.field("", "apiVersion", API_VERSION, true);
        self.field("", "kind", KIND, true);
        self.field("", "mode", policy.mode().as_str(), given(mode));
        self.field("", "interval", Span(policy.interval()), given(interval));

        let effective = policy.track();
        self.line("", "track:");
        let loopback = within(track, |t| &t.loopback);
        self.field("  ", "loopback", effective.loopback(), loopback);
        let most = within(track, |t| &t.max_per_endpoint);
        self.field("  ", "maxPerEndpoint", effective.max_per_endpoint(), most);
        let most = within(track, |t| &t.max_per_node);
        self.field("  ", "maxPerNode", effective.max_per_node(), most);
        let excluded = within(track, |t| &t.exclude_cgroups);
        let globs = globs(effective.exclude_cgroups());
        self.field("  ", "excludeCgroups", globs, excluded);

        let effective = policy.budget();
        self.line("", "budget:");
        let window = within(budget, |b| &b.window);
        self.field("  ", "window", Span(effective.window()), window);
        let per_node = within(budget, |b| &b.per_node);
        self.field("  ", "perNode", effective.per_node(), per_node);
        let per_service = within(budget, |b| &b.per_service);
        self.field("  ", "perService", effective.per_service(), per_service);
        let per_endpoint = within(budget, |b| &b.per_endpoint);
        self.field("  ", "perEndpoint", effective.per_endpoint(), per_endpoint);
        let in_flight = within(budget, |b| &b.max_in_flight);
        self.field("  ", "maxInFlight", effective.max_in_flight(), in_flight);

        self.guards(guards, policy);
        self.rules(rules, policy);
    }

    fn guards(&mut self, file: &Field<GuardsFile>, policy: &Policy) {
        let guards = policy.guards();
        self.line("", "guards:");
        let min_age = within(file, |g| &g.min_age);
        self.field("  ", "minAge", Span(guards.min_age()), min_age);
        let ready = within(file, |g| &g.min_ready_endpoints);
        self.field(
            "  ",
            "minReadyEndpoints",
            guards.min_ready_endpoints(),
            ready,
        );
        let stabilization_window = within(file, |g| &g.stabilization_window);
        self.field(
            "  ",
            "stabilizationWindow",
            Span(guards.stabilization_window()),
            stabilization_window,
        );
        let ports: Vec<String> = guards
            .allow_system_ports()
            .iter()
            .map(ToString::to_string)
            .collect();
        let ports_given = within(file, |g| &g.allow_system_ports);
        let ports = format!("[{}]", ports.join(", "));
        self.field("  ", "allowSystemPorts", ports, ports_given);
        match guards.allow_host_network() {
            Some(allowed) => self.field("  ", "allowHostNetwork", allowed, true),
            // It depends on where the agent runs, so no value would be right.
            None => self.line(
                "  ",
                "# allowHostNetwork: true # default; with Kubernetes false",
            ),
        }
        match guards.exclude_namespaces() {
            Some(excluded) => {
                let excluded: Vec<String> = excluded.iter().map(|n| name(n)).collect();
                let excluded = format!("[{}]", excluded.join(", "));
                self.field("  ", "excludeNamespaces", excluded, true);
            }
            None => self.line(
                "  ",
                "# excludeNamespaces: [] # default; with Kubernetes [kube-system]",
            ),
        }
    }

    fn rules(&mut self, files: &List<RuleFile>, policy: &Policy) {
        if policy.rules().is_empty() {
            return self.line("", "rules: []");
        }
        self.line("", "rules:");
        let files = part(files).map(Vec::as_slice).unwrap_or_default();
        for (file, rule) in files.iter().zip(policy.rules()) {
            self.rule(&file.value, rule, policy);
        }
    }

    fn rule(&mut self, file: &RuleFile, rule: &Rule, policy: &Policy) {
        self.line("", format_args!("- name: {}", name(rule.name().as_str())));
        match rule.mode() {
            Some(mode) => self.field("  ", "mode", mode.as_str(), true),
            // Written out, it would no longer follow the policy's.
            None => self.line(
                "  ",
                format_args!("# mode: {} # default; the policy's", policy.mode().as_str()),
            ),
        }
        self.matches(rule.matches());
        let limits = rule.limits();
        if given(&file.limits) {
            self.line("  ", "limits:");
        }
        if let Some(age) = limits.max_age() {
            self.field("    ", "maxAge", Span(age), true);
        }
        if let Some(bytes) = limits.max_bytes() {
            self.field("    ", "maxBytes", Size(bytes.get()), true);
        }
        if let Some(rate) = limits.max_rate() {
            self.line("    ", "maxRate:");
            let per_second = Size(rate.bytes_per_second().get());
            self.field("      ", "bytesPerSecond", per_second, true);
            self.field("      ", "for", Span(rate.sustained_for()), true);
        }
        if let Some(balance) = rule.balance() {
            self.line("  ", "balance:");
            let by = within(&file.balance, |b| &b.by);
            self.field("    ", "by", balance.by().as_str(), by);
            let tolerance = within(&file.balance, |b| &b.tolerance);
            self.field("    ", "tolerance", balance.tolerance(), tolerance);
        }
        self.field("  ", "jitter", rule.jitter(), given(&file.jitter));
        let state = match rule.on_reconnect() {
            OnReconnect::Detect => "Detect",
            OnReconnect::Safe => "Safe",
            OnReconnect::LosesState => "LosesState",
        };
        self.field("  ", "onReconnect", state, given(&file.on_reconnect));
        self.steps(&file.steps, rule);
        let end = match rule.at_end() {
            AtEnd::Skip => "Skip",
            AtEnd::ResetNow => "ResetNow",
        };
        self.field("  ", "atEnd", end, given(&file.at_end));
        match rule.count() {
            // Where it is not given, what is balanced implies it.
            Some(Count::Messages) => self.field("  ", "count", "Messages", given(&file.count)),
            // There is no word for nothing.
            None => self.line("  ", "# count: Messages # default; nothing is counted"),
        }
    }

    fn matches(&mut self, matches: &Match) {
        self.line("  ", "match:");
        if !matches.ports().is_empty() {
            self.line("    ", "ports:");
        }
        for range in matches.ports() {
            self.line("    ", format_args!("- port: {}", range.first()));
            if range.last() != range.first() {
                self.field("      ", "endPort", range.last(), true);
            }
        }
        self.pods(matches.pods());
        if !matches.peers().is_empty() {
            self.line("    ", "peers:");
        }
        for peer in matches.peers() {
            self.line("    ", "- ipBlock:");
            self.field("        ", "cidr", network(&peer.cidr()), true);
            if !peer.except().is_empty() {
                let except: Vec<String> = peer.except().iter().map(network).collect();
                let except = format!("[{}]", except.join(", "));
                self.field("        ", "except", except, true);
            }
        }
        if !matches.cgroups().is_empty() {
            self.field("    ", "cgroups", globs(matches.cgroups()), true);
        }
    }

    fn pods(&mut self, pods: &Pods) {
        if !pods.services().is_empty() {
            let services: Vec<String> = pods.services().iter().map(service).collect();
            let services = format!("[{}]", services.join(", "));
            self.field("    ", "services", services, true);
        }
        let selectors = [
            ("namespaceSelector", pods.namespace_selector()),
            ("podSelector", pods.pod_selector()),
        ];
        for (field, selector) in selectors {
            if let Some(selector) = selector {
                self.selector(field, selector);
            }
        }
    }

    fn selector(&mut self, field: &str, selector: &Selector) {
        if selector.is_any() {
            return self.field("    ", field, "{}", true);
        }
        self.line("    ", format_args!("{field}:"));
        if !selector.labels().is_empty() {
            self.line("      ", "matchLabels:");
        }
        for (key, value) in selector.labels() {
            self.field("        ", &name(key), name(value), true);
        }
        if !selector.requirements().is_empty() {
            self.line("      ", "matchExpressions:");
        }
        for requirement in selector.requirements() {
            self.line("      ", format_args!("- key: {}", name(requirement.key())));
            let operator = requirement.operator();
            self.field("        ", "operator", operator.as_str(), true);
            if operator.takes_values() {
                let values: Vec<String> = requirement.values().iter().map(|v| name(v)).collect();
                self.field(
                    "        ",
                    "values",
                    format!("[{}]", values.join(", ")),
                    true,
                );
            }
        }
    }

    fn steps(&mut self, files: &List<StepFile>, rule: &Rule) {
        let Some(files) = part(files) else {
            self.line("  ", "steps: # default");
            for step in rule.steps().iter() {
                self.step(*step, [true; 3]);
            }
            return;
        };
        self.line("  ", "steps:");
        for (file, step) in files.iter().zip(rule.steps().iter()) {
            let file = &file.value;
            let given = [
                given(&file.when),
                given(&file.idle_for),
                given(&file.timeout),
            ];
            self.step(*step, given);
        }
    }

    /// `given`: condition, idle time, timeout.
    fn step(&mut self, step: Step, given: [bool; 3]) {
        let kind = match step.kind() {
            StepKind::Close => "Close",
            StepKind::Reset => "Reset",
        };
        self.line("  ", format_args!("- step: {kind}"));
        match step.when() {
            When::Quiet { idle_for } => {
                self.field("    ", "when", "Quiet", given[0]);
                self.field("    ", "idleFor", Span(idle_for), given[1]);
            }
            When::AtOnce => self.field("    ", "when", "AtOnce", given[0]),
        }
        self.field("    ", "timeout", Span(step.timeout()), given[2]);
    }
}

/// A name, in quotes where YAML could take it for something else.
fn name(name: &str) -> String {
    let words = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf",
    ];
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase()) && !words.contains(&name);
    if plain {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

fn service(service: &ServiceRef) -> String {
    match service.namespace() {
        // No word that YAML knows has a slash; a number in front of one is a text.
        Some(_) => service.to_string(),
        // A leading star is an alias of YAML's.
        None => format!("'{service}'"),
    }
}

/// Globs, each in single quotes: nothing but a quote has a meaning in them.
fn globs(globs: &CgroupGlobs) -> String {
    let quoted: Vec<String> = globs
        .as_strs()
        .map(|glob| format!("'{}'", glob.replace('\'', "''")))
        .collect();
    format!("[{}]", quoted.join(", "))
}

/// A network; IPv6 in quotes, for its colons.
fn network(net: &IpNet) -> String {
    match net {
        IpNet::V4(net) => net.to_string(),
        IpNet::V6(net) => format!("\"{net}\""),
    }
}
