//! What is published, as metrics: their names, types, labels and texts. deploy/metrics.txt is the
//! list of them, and a test holds it to this.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelValue},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use rebalancer_common::{ABI_VERSION, Fault};
use tokio::sync::watch;

use crate::{
    agent::{
        numbers::{Distribution, MODES},
        published::Published,
    },
    moves::Health,
};

/// Every metric of an agent that lets know of itself by `published`; `missed` counts what followers
/// of its events came too late for.
pub(in crate::agent) fn registry(
    published: watch::Receiver<Arc<Published>>,
    missed: Arc<AtomicU64>,
) -> Registry {
    let mut registry = Registry::with_prefix("rebalancer");
    registry.register_collector(Box::new(Exposition { published, missed }));
    registry
}

struct Exposition {
    published: watch::Receiver<Arc<Published>>,
    missed: Arc<AtomicU64>,
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exposition")
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let published = Arc::clone(&self.published.borrow());
        let mut out = Out(encoder);
        agent(&mut out, &published)?;
        policy(&mut out, &published)?;
        last_pass(&mut out, &published)?;
        moves(&mut out, &published)?;
        kernel(&mut out, &published)?;
        let missed = self.missed.load(Ordering::Relaxed);
        out.counter(
            "events_missed",
            "Events that followers missed because they were too slow.",
            missed,
        )
    }
}

fn agent(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    out.info(
        "build",
        "Version of the agent, and ABI version of the records shared with the kernel half.",
        [
            ("version", status.version.clone()),
            ("abi", ABI_VERSION.to_string()),
        ],
    )?;
    let effective = status.mode.effective.as_str();
    out.gauges(
        "mode",
        "1 for the mode in effect: the safest of policy, flag and what this node can do.",
        MODES.map(|mode| {
            let mode = mode.as_str();
            ([("mode", mode)], u64::from(mode == effective))
        }),
    )?;
    out.gauge(
        "paused",
        "1 while moves are paused by an operator.",
        u64::from(status.paused.is_some()),
    )?;
    out.gauges_of(
        "paused_until_timestamp",
        "When the pause expires; no sample while moves are not paused.",
        Some(Unit::Seconds),
        status.paused.iter().map(|p| (NONE, seconds(p.until))),
    )?;
    mover(out, published)?;
    let up = status.generated_at.duration_since(status.up_since);
    let stale = numbers.names_stale(up.try_into().unwrap_or_default());
    out.gauges_of(
        "names_stale",
        "Time since the API server last answered, 0 while it does; no sample without Kubernetes.",
        Some(Unit::Seconds),
        stale.map(|stale| (NONE, stale)),
    )
}

/// As it is now, and not as of the last pass.
fn mover(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let health = published.mover.health(Instant::now());
    out.gauges(
        "mover_up",
        "1 while the moving thread works or waits, 0 while it is stuck or has ended; no sample where no reset mechanism works.",
        health.map(|health| (NONE, u64::from(health == Health::Fine))),
    )?;
    let stuck = match health {
        Some(Health::Stuck { time, .. }) => time.as_secs_f64(),
        Some(Health::Fine | Health::Ended) | None => 0.0,
    };
    out.gauges_of(
        "mover_stuck",
        "Time for which the kernel has not answered the moving thread, once it counts as stuck.",
        Some(Unit::Seconds),
        [(NONE, stuck)],
    )?;
    out.counter(
        "mover_replaced",
        "Number of times the moving thread was replaced because it was stuck or had ended.",
        published.mover.replaced,
    )
}

fn policy(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (policy, numbers) = (&published.status.policy, &published.numbers);
    out.gauge(
        "policy_reload_success",
        "1 if the last policy load was accepted; 0 if it was refused and the previous policy stays in effect.",
        u64::from(policy.refused.is_none()),
    )?;
    out.gauges_of(
        "policy_reload_success_timestamp",
        "When the policy in effect was loaded.",
        Some(Unit::Seconds),
        [(NONE, seconds(policy.loaded_at))],
    )?;
    out.counters(
        "policy_reloads",
        "Policy loads, including the first, by result: accepted or refused.",
        [
            ([("result", "accepted")], numbers.loads),
            ([("result", "refused")], numbers.refused_loads),
        ],
    )?;
    let rules = u64::try_from(policy.rules).unwrap_or(u64::MAX);
    out.gauge("policy_rules", "Rules of the policy in effect.", rules)
}

fn last_pass(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    out.counters(
        "passes",
        "Passes, by result: listed or failed.",
        [
            ([("result", "listed")], numbers.passes),
            ([("result", "failed")], numbers.failed_passes),
        ],
    )?;
    out.histograms(
        "pass_duration",
        "Duration of a pass: list, decide, start moves.",
        [(NONE, &numbers.pass_durations)],
    )?;
    out.histograms(
        "listing_duration",
        "Time to list all connections.",
        [(NONE, &numbers.listings)],
    )?;
    out.histograms(
        "decision_duration",
        "Time to decide what to move, for all connections.",
        [(NONE, &numbers.decisions)],
    )?;
    let pass = status.last_pass.as_ref();
    out.gauge(
        "descriptors",
        "Open descriptors walked by the last pass.",
        pass.map_or(0, |pass| pass.descriptors),
    )?;
    out.gauge(
        "unseen_connections",
        "Recorded connections that no descriptor leads to, as of the last pass.",
        pass.map_or(0, |pass| pass.unseen),
    )?;
    out.gauges_of(
        "last_pass_timestamp",
        "When the last successful pass started.",
        Some(Unit::Seconds),
        pass.map(|pass| (NONE, seconds(pass.at))),
    )?;
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    out.gauge(
        "connections",
        "Connections tracked, as of the last pass.",
        pass.map_or(0, |pass| number(pass.connections)),
    )?;
    out.gauge(
        "overdue",
        "Connections beyond their rule's full limit that no guard skips, as of the last pass.",
        pass.map_or(0, |pass| pass.overdue),
    )?;
    out.gauges(
        "skipped",
        "Connections skipped by the last pass, by cause; 0 for a cause of a pass before.",
        numbers
            .skipped
            .iter()
            .map(|(cause, n)| ([("cause", cause.as_str())], *n)),
    )?;
    out.gauges(
        "connections_by_age",
        "Connections at the last pass that are no older than `le` seconds; for those older than the agent the age is a lower bound. Cumulative, usable with histogram_quantile as is.",
        bounds(&numbers.ages),
    )?;
    out.gauges(
        "connections_by_size",
        "Connections at the last pass that have carried no more than `le` bytes, both directions together. Cumulative, usable with histogram_quantile as is.",
        bounds(&numbers.sizes),
    )
}

fn moves(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    out.counters(
        "moves",
        "Moves that ended, and connections reported in dry run (outcome dryRun), by rule, the limit most exceeded, the step at which the move ended, mode and outcome.",
        numbers.moves.iter().map(|(kind, n)| {
            let labels = [
                ("rule", kind.rule.as_str()),
                ("reason", kind.reason),
                ("step", kind.step),
                ("mode", kind.mode),
                ("outcome", kind.outcome),
            ];
            (labels, *n)
        }),
    )?;
    let durations = numbers.durations.iter();
    out.histograms(
        "move_duration",
        "Time from the start of a move to its outcome, by outcome.",
        durations.map(|(outcome, spread)| ([("outcome", *outcome)], spread)),
    )?;
    let in_flight = u64::try_from(status.in_flight.len()).unwrap_or(u64::MAX);
    out.gauge("moves_in_flight", "Moves under way.", in_flight)?;
    out.gauge(
        "moves_in_flight_max",
        "Maximum number of moves in flight.",
        status.max_in_flight,
    )?;
    let budgets = status.budgets.iter();
    out.gauges(
        "budget_moves",
        "Moves that the node's budget allows per window, by mode.",
        budgets
            .clone()
            .map(|b| ([("mode", b.mode.as_str())], b.per_node)),
    )?;
    out.gauges(
        "budget_moves_left",
        "Moves left in the current window, by mode.",
        budgets.map(|b| ([("mode", b.mode.as_str())], b.left)),
    )?;
    let returns = numbers.returns;
    let returns = [
        ("returned", returns.returned),
        ("elsewhere", returns.elsewhere),
        ("unseen", returns.unseen),
    ];
    out.counters(
        "returns",
        "Moves whose client was looked for, by result: it returned to the same endpoint, to another one, or was not seen on this node again.",
        returns.map(|(result, n)| ([("result", result)], n)),
    )?;
    let labels =
        |(rule, service): &(String, String)| [("rule", rule.clone()), ("service", service.clone())];
    let imbalances = numbers.imbalances.iter();
    out.gauges_of(
        "service_imbalance_ratio",
        "Load of the fullest endpoint as a ratio to the mean of all, in the unit that the rule balances; without Kubernetes the label service is empty, and the worst of several ports counts. Beyond 1024 rules and Services the others are shown as _other, by the worst.",
        None,
        imbalances
            .clone()
            .map(|(of, ratio)| (labels(of), ratio.most)),
    )?;
    out.gauges_of(
        "service_imbalance_start_ratio",
        "The ratio above which moves begin, the larger of tolerance and chance; no sample while random placement explains any distribution.",
        None,
        imbalances.filter_map(|(of, ratio)| Some((labels(of), ratio.start?))),
    )
}

fn kernel(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    out.gauges(
        "map_entries",
        "Entries of the kernel's maps: endpoints, and records of connections and listeners.",
        [
            ([("map", "endpoints")], numbers.endpoints_recorded),
            ([("map", "connections")], numbers.records),
        ],
    )?;
    out.gauges(
        "map_capacity",
        "Maximum entries of a map; connections are bounded by the policy, track.maxPerNode.",
        [
            ([("map", "endpoints")], numbers.endpoints_most),
            (
                [("map", "connections")],
                u64::from(status.capacity.max_per_node),
            ),
        ],
    )?;
    out.gauge(
        "endpoint_connections_most",
        "Connections of the endpoint with the most connections.",
        numbers.fullest_endpoint,
    )?;
    out.gauge(
        "endpoint_connections_capacity",
        "Maximum connections recorded for one endpoint, set by the policy.",
        u64::from(status.capacity.max_per_endpoint),
    )?;
    out.gauges_of(
        "kernel_memory",
        "Kernel memory of the records, estimated from their number.",
        Some(Unit::Bytes),
        [(NONE, numbers.kernel_bytes())],
    )?;
    let fault = |fault: &Fault| {
        let count = status.kernel_faults.get(fault.text()).copied().unwrap_or(0);
        ([("fault", word(*fault))], count)
    };
    out.counters(
        "kernel_faults",
        "Faults in the kernel half since tracking started, by fault.",
        Fault::ALL.iter().map(fault),
    )?;
    out.counter(
        "attached_again",
        "Number of times the program was attached again, after another program.",
        status.attached_again,
    )
}

/// A fault's name, as other words are written.
fn word(fault: Fault) -> String {
    let name = format!("{fault:?}");
    let (first, rest) = name.split_at(1);
    format!("{}{rest}", first.to_ascii_lowercase())
}

fn bounds(spread: &Distribution) -> impl Iterator<Item = ([(&'static str, String); 1], u64)> {
    spread.cumulative().map(|(bound, count)| {
        let bound = if bound.is_finite() {
            format!("{bound:?}")
        } else {
            "+Inf".to_owned()
        };
        ([("le", bound)], count)
    })
}

/// Unix time.
fn seconds(at: Timestamp) -> f64 {
    // Milliseconds are exact for thousands of years, and enough.
    at.as_millisecond() as f64 / 1000.0
}

const NONE: [(&str, &str); 0] = [];

/// Writes each metric once, with all its samples.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn info(&mut self, name: &str, help: &str, labels: [(&str, String); 2]) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        metric.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(NONE, value)])
    }

    fn gauges<const N: usize, V: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        self.gauges_of(name, help, None, samples)
    }

    fn gauges_of<const N: usize, V: EncodeLabelValue, G: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], G)>,
    ) -> fmt::Result {
        let unit = unit.as_ref();
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            if N == 0 {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(NONE, value)])
    }

    fn counters<const N: usize, V: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            let no_exemplar =
                None::<&prometheus_client::metrics::exemplar::Exemplar<[(&str, &str); 0], u64>>;
            if N == 0 {
                metric.encode_counter(&value, no_exemplar)?;
            } else {
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_counter(&value, no_exemplar)?;
            }
        }
        Ok(())
    }

    /// All are of seconds.
    fn histograms<'n, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'static str); N], &'n Distribution)>,
    ) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut metric = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, spread) in samples {
            let (sum, count, buckets) = (spread.sum(), spread.count(), spread.buckets());
            let none = None::<&std::collections::HashMap<usize, _>>;
            if N == 0 {
                metric.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, none)?;
            } else {
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, none)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::agent::numbers::Imbalance;
    use crate::{
        agent::{
            mover_signs::MoverSigns,
            numbers::{Kind, MOVES, Numbers},
            published::Beat,
        },
        api::{BudgetStatus, PassStatus, PausedStatus, Status, read_status},
        moves::Pulse,
        snapshot::Naming,
    };

    /// One of everything.
    fn published() -> Published {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let status = r#"{
            "apiVersion": "rebalancer.dev/v1alpha1", "kind": "Status", "node": "n",
            "generatedAt": "2026-01-02T03:04:05Z", "version": "1.2.3", "pid": 1,
            "upSince": "2026-01-02T03:04:05Z",
            "mode": {"effective": "Enforce", "policy": "Enforce", "flag": "Enforce",
                     "limitedBy": []},
            "policy": {"file": "f", "loadedAt": "2026-01-02T03:04:05Z", "rules": 1},
            "pins": "p", "cgroup": "c", "attachedAgain": 0, "intervalSeconds": 5.0,
            "capacity": {"maxPerEndpoint": 10, "maxPerNode": 100, "refused": 0}, "kernelFaults": {},
            "budgets": [], "maxInFlight": 3, "inFlight": [], "ended": {}, "reportedInDryRun": 0
        }"#;
        let mut status: Status = read_status(status.as_bytes()).unwrap();
        status.paused = Some(PausedStatus {
            since: at,
            until: at,
            reason: None,
        });
        status.last_pass = Some(PassStatus {
            at,
            duration_seconds: 1.0,
            descriptors: 1,
            unseen: 0,
            next_after_seconds: 1.0,
            connections: 2,
            endpoints: 1,
            moves: 0,
            overdue: 0,
            skipped: BTreeMap::from([("noRule".to_owned(), 2)]),
        });
        status.budgets = vec![BudgetStatus {
            mode: "Enforce".to_owned(),
            per_node: 10,
            window_seconds: 60.0,
            used: 1,
            left: 9,
            refills_at: None,
        }];
        let mut numbers = Numbers::new(16_384);
        let kind = Kind {
            rule: "web".to_owned(),
            reason: "age",
            step: "Reset",
            mode: "Enforce",
            outcome: "reset",
        };
        numbers.moves.insert(kind, 1);
        let mut spread = Distribution::new(MOVES);
        spread.observe(0.2);
        numbers.durations.insert("reset", spread);
        let imbalance = Imbalance {
            most: 1.5,
            start: Some(1.25),
        };
        let of = ("web".to_owned(), "shop/web".to_owned());
        numbers.imbalances.insert(of, imbalance);
        numbers.naming = Naming::Fresh;
        numbers.skipped.insert("noRule".to_owned(), 2);
        Published {
            status,
            numbers,
            services: Arc::default(),
            mover: MoverSigns {
                pulse: Some(Pulse::default()),
                ..MoverSigns::default()
            },
            beat: Beat {
                started: Instant::now(),
                last: None,
                interval: std::time::Duration::from_secs(5),
            },
        }
    }

    fn exposed() -> String {
        let (_publish, published) = watch::channel(Arc::new(published()));
        let mut text = String::new();
        encode(&mut text, &registry(published, Arc::default())).unwrap();
        text
    }

    /// Name and type, labels, and text of every metric, in the form of deploy/metrics.txt.
    fn list(exposed: &str) -> String {
        let mut list = String::new();
        for block in exposed.split("# HELP ").skip(1) {
            let mut lines = block.lines();
            let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
            let (_, kind) = lines.next().unwrap().rsplit_once(' ').unwrap();
            let sample = lines.find(|line| !line.starts_with('#')).unwrap();
            let labels = sample.split_once('{').map_or("", |(_, rest)| {
                let (labels, _) = rest.rsplit_once('}').unwrap();
                labels
            });
            let labels: Vec<&str> = labels
                .split("\",")
                .filter_map(|label| Some(label.split_once('=')?.0))
                .collect();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            list.push_str(&format!("{name}{suffix} {kind} {{{}}}\n", labels.join(",")));
            list.push_str(&format!("    {help}\n"));
        }
        list
    }

    #[test]
    fn the_list_of_metrics_is_complete() {
        let listed = include_str!("../../../../deploy/metrics.txt");
        let body: Vec<&str> = listed
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let exposed = list(&exposed());
        assert_eq!(
            body.join("\n").trim(),
            exposed.trim(),
            "deploy/metrics.txt shall be:\n{exposed}"
        );
    }

    #[test]
    fn no_text_needs_what_the_forms_write_differently() {
        for line in exposed().lines().filter(|line| line.starts_with("# HELP")) {
            assert!(!line.contains(['"', '\\']) && line.ends_with('.'), "{line}");
        }
    }

    #[test]
    fn faults_have_words() {
        assert_eq!(word(Fault::OverCap), "overCap");
        assert_eq!(word(Fault::NoTcpSock), "noTcpSock");
    }
}
