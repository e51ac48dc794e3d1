//! The coordinator: merges the reports of all nodes and gives each node its views.
//!
//! It needs no node, no privilege and no policy: what is compared and merged stands in the reports. Of
//! several that run one leads, by a lease; the others follow the reports too, so that they know their
//! ages when they take over. It moves nothing: without it agents do what they do without views.

mod metrics;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{debug, info, warn};

use self::metrics::Numbers;
use crate::{
    http::{Open, Server},
    kubernetes::{Access, Lease, NodeBalances, ReportEvent, coordination},
    views::{Merger, Publisher, REPORT_COUNTS_FOR, Report, View},
};

/// How often reports are merged.
const MERGE_EVERY: Duration = Duration::from_secs(2);
/// Reports that wait to be taken in.
const QUEUE: usize = 256;
/// Statuses that are written at a time.
const WRITES: usize = 16;
/// Until an object that could not be removed is tried again.
const REMOVED_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// For giving back the lease at the end.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

/// How to run.
pub struct Options {
    /// How to ask the API server.
    pub access: Access,
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub lease: String,
    /// Who this is among the coordinators: its pod.
    pub identity: String,
    /// Where metrics and health are served.
    pub serve_at: Option<SocketAddr>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start. That the API server does not answer is none.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let Options {
        access,
        namespace,
        lease,
        identity,
        serve_at,
    } = options;
    let (node_balances, lease) = coordination(&access, &namespace, &lease, &identity).await?;
    let numbers = Numbers::default();
    let _server = serve(serve_at, &numbers)?;
    let (to, mut events) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(node_balances.clone().follow(to));
    let (stop, stopped) = oneshot::channel();
    let (tell, held_until) = watch::channel(None);
    let holding = tokio::spawn(hold(lease, tell, stopped));
    info!(identity, namespace, "the coordinator has started");
    let mut coordinator = Coordinator::new(node_balances, identity, numbers, held_until);
    let mut ticks = interval(MERGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let signal = loop {
        tokio::select! {
            biased;
            _ = term.recv() => break "SIGTERM",
            _ = int.recv() => break "SIGINT",
            Some(written) = coordinator.writes.join_next() => coordinator.written(written),
            _ = ticks.tick() => coordinator.tick(),
            Some(event) = events.recv() => coordinator.take_in(event),
        }
    };
    info!(signal, "stopping");
    // Before it is given back: whoever takes it over may write at once.
    coordinator.writes.shutdown().await;
    drop(stop);
    let _released = timeout(RELEASE_WITHIN, holding).await;
    Ok(())
}

fn serve(at: Option<SocketAddr>, numbers: &Numbers) -> anyhow::Result<Option<Server>> {
    let Some(address) = at else { return Ok(None) };
    let open = Open::bind(address, numbers.router());
    let open = open.with_context(|| format!("serving metrics and health at {address}"))?;
    let server = Server::open(open).context("serving metrics and health")?;
    Ok(Some(server))
}

/// Holds the lease whenever that is possible, and says until when.
async fn hold(
    mut lease: Lease,
    tell: watch::Sender<Option<Instant>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut failed = false;
    loop {
        match lease.hold().await {
            Ok(()) => failed = false,
            Err(error) if !std::mem::replace(&mut failed, true) => {
                warn!(error, "cannot hold the lease; trying again");
            }
            Err(error) => debug!(error, "still cannot hold the lease"),
        }
        tell.send_replace(lease.held_until());
        tokio::select! {
            _ = &mut stopped => return lease.release().await,
            () = tokio::time::sleep(Lease::EVERY) => {}
        }
    }
}

/// What became of a write.
enum Written {
    /// A node was given its views, or was not, and why.
    Views(String, Result<(), String>),
    /// A node's object was removed, or was not, and why.
    Removed(String, Result<(), String>),
}

struct Coordinator {
    node_balances: NodeBalances,
    identity: String,
    numbers: Numbers,
    held_until: watch::Receiver<Option<Instant>>,
    began: Instant,
    merger: Merger,
    /// Nodes of a list that is not complete.
    listing: Option<BTreeSet<String>>,
    nodes: BTreeSet<String>,
    publisher: Publisher,
    led: bool,
    sequence: u64,
    waiting: VecDeque<(String, Vec<View>)>,
    writes: JoinSet<Written>,
    /// Nodes that are gone, and when their objects were to be removed lately.
    removing: BTreeMap<String, Duration>,
    /// The last write has failed.
    failing: bool,
}

impl Coordinator {
    fn new(
        node_balances: NodeBalances,
        identity: String,
        numbers: Numbers,
        held_until: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            node_balances,
            identity,
            numbers,
            held_until,
            began: Instant::now(),
            merger: Merger::default(),
            listing: None,
            nodes: BTreeSet::new(),
            publisher: Publisher::default(),
            led: false,
            sequence: 0,
            waiting: VecDeque::new(),
            writes: JoinSet::new(),
            removing: BTreeMap::new(),
            failing: false,
        }
    }

    fn leads(&self) -> bool {
        self.held_until
            .borrow()
            .is_some_and(|until| Instant::now() < until)
    }

    fn take_in(&mut self, event: ReportEvent) {
        match event {
            ReportEvent::ListBegins => self.listing = Some(BTreeSet::new()),
            ReportEvent::Reported(node, report) => self.report(node, report, true),
            ReportEvent::Listed(node, report) => self.report(node, report, false),
            ReportEvent::Removed(node) => {
                self.merger.remove(&node);
                self.nodes.remove(&node);
            }
            ReportEvent::ListEnds => {
                if let Some(listed) = self.listing.take() {
                    for gone in self.nodes.difference(&listed) {
                        self.merger.remove(gone);
                    }
                    self.nodes = listed;
                }
                self.numbers.listed();
            }
        }
    }

    fn report(&mut self, node: String, report: Report, is_news: bool) {
        (self.merger).report(&node, report, is_news, self.began.elapsed());
        self.numbers.reports.inc();
        if let Some(listing) = &mut self.listing {
            listing.insert(node.clone());
        }
        self.nodes.insert(node);
    }

    fn tick(&mut self) {
        let now = self.began.elapsed();
        self.numbers.came_round();
        let leads = self.leads();
        if leads != self.led {
            self.led = leads;
            self.publisher.forget();
            self.waiting.clear();
            let what = if leads { "leads" } else { "does not lead" };
            info!(identity = self.identity, "this coordinator {what}");
        }
        self.numbers.leads.set(leads.into());
        // Also without the lease: so the sums of late are known to who takes over.
        let merging = Instant::now();
        let views = self.merger.views(now);
        self.numbers.merge.set(merging.elapsed().as_secs_f64());
        self.count(now, views.values().map(Vec::len).sum());
        if !leads {
            return;
        }
        if self.waiting.is_empty() {
            self.waiting.extend(self.publisher.take_due(views, now));
        }
        self.remove_gone(now);
        self.write();
    }

    /// Removes the objects of nodes that are gone.
    fn remove_gone(&mut self, now: Duration) {
        (self.removing).retain(|_, tried| now.saturating_sub(*tried) < REMOVED_AGAIN_AFTER);
        let gone = self.merger.gone(now);
        let room = WRITES.saturating_sub(self.writes.len());
        let new = gone
            .filter(|node| !self.removing.contains_key(*node))
            .take(room);
        let new: Vec<String> = new.map(str::to_owned).collect();
        for node in new {
            self.removing.insert(node.clone(), now);
            let node_balances = self.node_balances.clone();
            self.writes.spawn(async move {
                let removed = node_balances.remove(&node).await;
                Written::Removed(node, removed)
            });
        }
    }

    fn count(&self, now: Duration, views: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let ages = self.merger.ages(now).filter_map(|(_, age)| age);
        let current: Vec<Duration> = ages.filter(|age| *age < REPORT_COUNTS_FOR).collect();
        let oldest = current.iter().max().copied().unwrap_or_default();
        self.numbers.nodes.set(number(self.nodes.len()));
        self.numbers.current.set(number(current.len()));
        self.numbers.oldest.set(oldest.as_secs_f64());
        self.numbers.views.set(number(views));
    }

    /// Starts as many writes as may be under way.
    fn write(&mut self) {
        while self.writes.len() < WRITES && self.leads() {
            let Some((node, views)) = self.waiting.pop_front() else {
                return;
            };
            let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
            self.sequence = now.max(self.sequence + 1);
            let (node_balances, identity) = (self.node_balances.clone(), self.identity.clone());
            let sequence = self.sequence;
            self.writes.spawn(async move {
                let given = node_balances.give(&node, sequence, views, &identity).await;
                Written::Views(node, given)
            });
        }
    }

    fn written(&mut self, done: Result<Written, tokio::task::JoinError>) {
        match done {
            Ok(Written::Views(_, Ok(()))) => {
                self.numbers.given.inc();
                self.failing = false;
            }
            Ok(Written::Views(node, Err(error))) => {
                self.numbers.failed.inc();
                self.publisher.failed(&node);
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(node, error, "cannot give a node its views; trying again");
                }
            }
            Ok(Written::Removed(node, Ok(()))) => {
                info!(
                    node,
                    "removed the object of a node that does not report any more"
                );
                self.merger.remove(&node);
            }
            Ok(Written::Removed(node, Err(error))) => warn!(
                node,
                error,
                "cannot remove the object of a node that is gone; trying again in ten minutes"
            ),
            Err(error) => warn!(%error, "a write has ended by itself"),
        }
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use xtask::apiserver::ApiServer;

    use super::*;
    use crate::waiting::until;

    fn report(api: &ApiServer, node: &str, sequence: u64, load: u64) {
        let service = json!({
            "service": "shop/web", "port": 80, "rule": "even", "by": "Connections", "generation": "7",
            "ready": 2, "loads": [load], "total": load, "squares": load.to_string(), "largest": 1,
            "connections": load
        });
        let spec = json!({"sequence": sequence, "services": [service]});
        let object = json!({
            "apiVersion": "rebalancer.dev/v1alpha1", "kind": "NodeBalance",
            "metadata": {"name": node}, "spec": spec
        });
        api.set("nodebalances", object);
    }

    #[tokio::test]
    async fn nodes_that_report_are_given_views_by_the_one_that_leads() {
        let api = ApiServer::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig).unwrap();
        report(&api, "n1", 1, 300);
        report(&api, "n2", 1, 0);
        report(&api, "of-last-year", 1, 5);
        let options = |identity: &str| Options {
            access: Access {
                kubeconfig: Some(kubeconfig.clone()),
                ..Access::default()
            },
            namespace: "rebalancer".to_owned(),
            lease: "coordinator".to_owned(),
            identity: identity.to_owned(),
            serve_at: None,
        };
        let holder = || {
            let lease = api.get("leases", "rebalancer/coordinator")?;
            Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
        };
        let mut coordinators = JoinSet::new();
        coordinators.spawn(run(options("a")));
        until("a leads", || holder().filter(|holder| holder == "a")).await;
        coordinators.spawn(run(options("b")));
        until("both follow reports", || {
            (api.asked("watch", "nodebalances") >= 2).then_some(())
        })
        .await;
        report(&api, "n1", 2, 300);
        report(&api, "n2", 2, 0);
        let status = |node: &str| -> Option<Value> {
            let status = api.get("nodebalances", node)?["status"].clone();
            (status["views"] == 1).then_some(status)
        };
        let first = until("n1 has a view", || status("n1")).await;
        let second = until("n2 has a view", || status("n2")).await;
        for status in [&first, &second] {
            let view = &status["services"][0];
            assert_eq!(status["coordinator"], "a");
            assert_eq!(
                (&view["mean"], &view["endpoints"]),
                (&json!(150), &json!(2))
            );
        }
        assert_eq!(first["excess"], 150);
        assert_eq!(
            first["services"][0]["share"],
            json!({"from": 0, "to": 1_000_000})
        );
        assert_eq!(second["services"][0]["share"], json!({"from": 0, "to": 0}));
        assert!(api.get("nodebalances", "of-last-year").unwrap()["status"].is_null());
        assert_eq!(holder().as_deref(), Some("a"));
    }
}
