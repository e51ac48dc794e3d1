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
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelValue, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
    registry::{Registry, Unit},
};
use rebalancer_common::{ABI_VERSION, Fault};
use tokio::sync::watch;

use crate::{
    agent::{
        numbers::{Distribution, Drains, MODES},
        published::Published,
    },
    moves::Health,
    plan::DrainCause,
    views::Views,
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

/// A row for each metric: its type, name and unit, its samples, and its text.
macro_rules! expose {
    ($out:ident: $($kind:ident $name:ident $(in $unit:ident)? = $samples:expr, $help:literal;)*) => {{
        $($out.$kind(stringify!($name), $help, expose!(@unit $($unit)?), $samples)?;)*
        Ok(())
    }};
    (@unit) => { None };
    (@unit $unit:ident) => { Some(&Unit::$unit) };
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
        expose! { out:
            counter events_missed = one(self.missed.load(Ordering::Relaxed)),
                "Events that followers missed because they were too slow.";
        }
    }
}

fn agent(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    let version = [
        ("version", status.version.clone()),
        ("abi", ABI_VERSION.to_string()),
    ];
    let effective = status.mode.effective.as_str();
    let modes = MODES.map(|mode| {
        (
            [("mode", mode.as_str())],
            u64::from(mode.as_str() == effective),
        )
    });
    let paused = &status.paused;
    // Of the mover as it is now, and not as of the last pass.
    let health = published.mover.health(Instant::now());
    let stuck = match health {
        Some(Health::Stuck { time, .. }) => time.as_secs_f64(),
        Some(Health::Fine | Health::Ended) | None => 0.0,
    };
    let cluster = status.cluster.as_ref();
    let views = cluster.into_iter().flat_map(|cluster| {
        let is = |state| u64::from(state == cluster.views);
        Views::STATES.map(|state| ([("state", state)], is(state)))
    });
    let up = status.generated_at.duration_since(status.up_since);
    let stale = numbers.names_stale(up.try_into().unwrap_or_default());
    expose! { out:
        info build = [version],
            "Version of the agent, and ABI version of the records shared with the kernel half.";
        gauge mode = modes,
            "1 for the mode in effect: the safest of policy, flag and what this node can do.";
        gauge paused = one(u64::from(paused.is_some())),
            "1 while moves are paused by an operator.";
        gauge paused_until_timestamp in Seconds = paused.iter().filter_map(|p| Some((NONE, seconds(p.until?)))),
            "When the pause expires; no sample while moves are not paused.";
        gauge mover_up = health.map(|health| (NONE, u64::from(health == Health::Fine))),
            "1 while the moving thread works or waits, 0 while it is stuck or has ended; no sample where no reset mechanism works.";
        gauge mover_stuck in Seconds = one(stuck),
            "Time for which the kernel has not answered the moving thread, once it counts as stuck.";
        counter mover_replaced = one(published.mover.replaced),
            "Number of times the moving thread was replaced because it was stuck or had ended.";
        gauge names_stale in Seconds = stale.map(|stale| (NONE, stale)),
            "Time since the API server last answered, 0 while it does; no sample without Kubernetes.";
        gauge exchange_up = cluster.map(|cluster| (NONE, u64::from(cluster.trouble.is_none()))),
            "1 while this node's report is written and its views are read, 0 while the API server refuses or does not answer; no sample without Kubernetes.";
        gauge cluster_views = views,
            "1 for the state of the coordinator's views of other nodes: awaited, expired or valid; no sample without Kubernetes.";
    }
}

fn policy(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (policy, numbers) = (&published.status.policy, &published.numbers);
    let loads = [
        ([("result", "accepted")], numbers.loads),
        ([("result", "refused")], numbers.refused_loads),
    ];
    expose! { out:
        gauge policy_reload_success = one(u64::from(policy.refused.is_none())),
            "1 if the last policy load was accepted; 0 if it was refused and the previous policy stays in effect.";
        gauge policy_reload_success_timestamp in Seconds = one(seconds(policy.loaded_at)),
            "When the policy in effect was loaded.";
        counter policy_reloads = loads,
            "Policy loads, including the first, by result: accepted or refused.";
        gauge policy_rules = one(number(policy.rules)),
            "Rules of the policy in effect.";
    }
}

fn last_pass(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let numbers = &published.numbers;
    let pass = published.status.last_pass.as_ref();
    let passes = [
        ([("result", "listed")], numbers.passes),
        ([("result", "failed")], numbers.failed_passes),
    ];
    let skipped = numbers.skipped.iter();
    expose! { out:
        counter passes = passes,
            "Passes, by result: listed or failed.";
        histogram pass_duration in Seconds = one(&numbers.pass_durations),
            "Duration of a pass: list, decide, start moves.";
        histogram listing_duration in Seconds = one(&numbers.listings),
            "Time to list all connections.";
        histogram decision_duration in Seconds = one(&numbers.decisions),
            "Time to decide what to move, for all connections.";
        gauge descriptors = one(pass.map_or(0, |pass| pass.descriptors)),
            "Open descriptors walked by the last pass.";
        gauge unseen_connections = one(pass.map_or(0, |pass| pass.unseen)),
            "Recorded connections that no descriptor leads to, as of the last pass.";
        gauge last_pass_timestamp in Seconds = pass.map(|pass| (NONE, seconds(pass.at))),
            "When the last successful pass started.";
        gauge connections = one(pass.map_or(0, |pass| number(pass.connections))),
            "Connections tracked, as of the last pass.";
        gauge overdue = one(pass.map_or(0, |pass| pass.overdue)),
            "Connections beyond their rule's full limit that no guard skips, as of the last pass.";
        gauge skipped = skipped.map(|(cause, n)| ([("cause", cause.as_str())], *n)),
            "Connections skipped by the last pass, by cause; 0 for a cause of a pass before.";
        gauge connections_by_age = bounds(&numbers.ages),
            "Connections at the last pass that are no older than `le` seconds; for those older than the agent the age is a lower bound. Cumulative, usable with histogram_quantile as is.";
        gauge connections_by_size = bounds(&numbers.sizes),
            "Connections at the last pass that have carried no more than `le` bytes, both directions together. Cumulative, usable with histogram_quantile as is.";
    }
}

fn moves(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    let moves = numbers.moves.iter().map(|(kind, n)| {
        let labels = [
            ("rule", kind.rule.as_str()),
            ("reason", kind.reason),
            ("step", kind.step),
            ("mode", kind.mode),
            ("outcome", kind.outcome),
        ];
        (labels, *n)
    });
    let durations = numbers.durations.iter();
    let budgets = || {
        status
            .budgets
            .iter()
            .map(|b| ([("mode", b.mode.as_str())], b))
    };
    let drains = |of: fn(&Drains) -> u64| {
        DrainCause::ALL.map(|cause| {
            let drains = numbers.drains.get(cause.as_str());
            ([("cause", cause.as_str())], drains.map_or(0, of))
        })
    };
    let drain_durations = numbers.drain_durations.iter();
    let returns = [
        ([("result", "returned")], numbers.returns.returned),
        ([("result", "elsewhere")], numbers.returns.elsewhere),
        ([("result", "unseen")], numbers.returns.unseen),
    ];
    let imbalances = || {
        let of = |(rule, service): &(String, String)| {
            [("rule", rule.clone()), ("service", service.clone())]
        };
        numbers
            .imbalances
            .iter()
            .map(move |(key, ratio)| (of(key), ratio))
    };
    expose! { out:
        counter moves = moves,
            "Moves that ended, and connections reported in dry run (outcome dryRun), by rule, the limit most exceeded, the step at which the move ended, mode and outcome.";
        histogram move_duration in Seconds = durations.map(|(outcome, spread)| ([("outcome", *outcome)], spread)),
            "Time from the start of a move to its outcome, by outcome.";
        gauge moves_in_flight = one(number(status.in_flight.len())),
            "Moves under way.";
        gauge moves_in_flight_max = one(status.max_in_flight),
            "Maximum number of moves in flight.";
        gauge budget_moves = budgets().map(|(mode, budget)| (mode, budget.per_node)),
            "Moves that the node's budget allows per window, by mode.";
        gauge budget_moves_left = budgets().map(|(mode, budget)| (mode, budget.left)),
            "Moves left in the current window, by mode.";
        counter returns = returns,
            "Moves whose client was looked for, by result: it returned to the same endpoint, to another one, or was not seen on this node again.";
        counter drains = drains(|drains| drains.ended),
            "Endpoints that were drained, by cause: their pods were being deleted (terminating), were removed from their Service (removed) or were not ready any more (unready), or an operator asked for it (requested).";
        counter drained_connections = drains(|drains| drains.left),
            "Connections that left such endpoints in time, by cause.";
        counter drain_leftover_connections = drains(|drains| drains.leftover),
            "Connections that were still there at the end, by cause: where the pod was terminating they have broken off.";
        histogram drain_duration in Seconds = drain_durations.map(|(cause, spread)| ([("cause", *cause)], spread)),
            "Time that drains took, until the last connection had left or the time was over, by cause.";
        gauge service_imbalance_ratio = imbalances().map(|(of, ratio)| (of, ratio.most)),
            "Load of the fullest endpoint as a ratio to the mean of all, in the unit that the rule balances; without Kubernetes the label service is empty, and the worst of several ports counts. Beyond 1024 rules and Services the others are shown as _other, by the worst.";
        gauge service_imbalance_start_ratio = imbalances().filter_map(|(of, ratio)| Some((of, ratio.start?))),
            "The ratio above which moves begin, the larger of tolerance and chance; no sample while random placement explains any distribution.";
    }
}

fn kernel(out: &mut Out<'_>, published: &Published) -> fmt::Result {
    let (status, numbers) = (&published.status, &published.numbers);
    let of_maps = |endpoints: u64, connections: u64| {
        [
            ([("map", "endpoints")], endpoints),
            ([("map", "connections")], connections),
        ]
    };
    let capacity = &status.capacity;
    let fault = |fault: &Fault| {
        let count = status.kernel_faults.get(fault.text()).copied().unwrap_or(0);
        ([("fault", word(*fault))], count)
    };
    expose! { out:
        gauge map_entries = of_maps(numbers.endpoints_recorded, numbers.records),
            "Entries of the kernel's maps: endpoints, and records of connections and listeners.";
        gauge map_capacity = of_maps(numbers.endpoints_most, capacity.max_per_node.into()),
            "Maximum entries of a map; connections are bounded by the policy, track.maxPerNode.";
        gauge endpoint_connections_most = one(numbers.fullest_endpoint),
            "Connections of the endpoint with the most connections.";
        gauge endpoint_connections_capacity = one(u64::from(capacity.max_per_endpoint)),
            "Maximum connections recorded for one endpoint, set by the policy.";
        gauge kernel_memory in Bytes = one(numbers.kernel_bytes()),
            "Kernel memory of the records, estimated from their number.";
        counter kernel_faults = Fault::ALL.iter().map(fault),
            "Faults in the kernel half since tracking started, by fault.";
        counter attached_again = one(status.attached_again),
            "Number of times the program was attached again, after another program.";
    }
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

/// A metric without labels.
fn one<T>(value: T) -> [([(&'static str, &'static str); 0], T); 1] {
    [(NONE, value)]
}

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Writes each metric once, with all its samples.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn start<'a>(
        &'a mut self,
        name: &'a str,
        help: &'a str,
        unit: Option<&'a Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'a>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn info(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        [labels]: [[(&str, String); 2]; 1],
    ) -> fmt::Result {
        let mut metric = self.start(name, help, unit, MetricType::Info)?;
        metric.encode_info(&labels)
    }

    fn gauge<const N: usize, V: EncodeLabelValue, G: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], G)>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            if N == 0 {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter<const N: usize, V: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, unit, MetricType::Counter)?;
        for (labels, value) in samples {
            let no_exemplar = None::<&Exemplar<[(&str, &str); 0], u64>>;
            if N == 0 {
                metric.encode_counter(&value, no_exemplar)?;
            } else {
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_counter(&value, no_exemplar)?;
            }
        }
        Ok(())
    }

    fn histogram<'n, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = ([(&'static str, &'static str); N], &'n Distribution)>,
    ) -> fmt::Result {
        let mut metric = self.start(name, help, unit, MetricType::Histogram)?;
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
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::agent::numbers::Imbalance;
    use crate::{
        agent::{
            mover_signs::MoverSigns,
            numbers::{Kind, MOVES, Numbers},
            published::Beat,
        },
        api::{ClusterStatus, PausedBy, PausedStatus, sample_status},
        http::assert_metrics_listed,
        moves::Pulse,
        snapshot::Naming,
    };

    /// One of everything.
    fn published() -> Published {
        let at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let mut status = sample_status();
        status.paused = Some(PausedStatus {
            since: at,
            until: Some(at),
            reason: None,
            by: PausedBy::Operator,
        });
        status.cluster = Some(ClusterStatus {
            views: "valid".to_owned(),
            ..ClusterStatus::default()
        });
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
        numbers.durations.insert("reset", spread.clone());
        numbers.drain_durations.insert("removed", spread);
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

    #[test]
    fn the_list_of_metrics_is_complete() {
        let listed = include_str!("../../../../deploy/metrics.txt");
        assert_metrics_listed(listed, &exposed());
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
