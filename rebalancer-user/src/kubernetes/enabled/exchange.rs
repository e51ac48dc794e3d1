//! The agent's side of the balance across nodes: it writes this node's report and reads its views, each
//! in the one object of this node. Whatever fails is tried again after a while, longer each time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::{StreamExt as _, stream::BoxStream};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    connect::configure,
    node_balance::{NodeBalance, NodeBalanceSpec, NodeBalanceStatus},
};
use crate::{
    kubernetes::Access,
    views::{Report, ReportSchedule, ServiceReport, VIEW_COUNTS_FOR, View, Views},
};

/// Who owns the fields of a report.
const MANAGER: &str = "rebalancer-agent";
/// How often it is asked whether a report is due.
const LOOK: Duration = Duration::from_secs(1);
/// For one answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// Between two attempts, at most; chance adds up to as much again.
const MOST: Duration = Duration::from_secs(15);
/// A watch is renewed after so long, so that a connection that leads nowhere is noticed.
const WATCH: u32 = 60;

/// Exchanges reports and views with the coordinator for as long as it lives.
#[derive(Debug)]
pub struct Exchange {
    offered: watch::Sender<Vec<ServiceReport>>,
    state: Shared,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    received: Option<Received>,
    /// Why reports are not written, and why views are not read.
    trouble: [Option<String>; 2],
}

const WRITING: usize = 0;
const READING: usize = 1;

/// The last status that was read.
#[derive(Debug)]
struct Received {
    sequence: u64,
    views: Vec<View>,
    /// When its number was seen to change; of the first it is not known how old it is.
    at: Option<Instant>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, at: usize, error: String) {
        self.lock().trouble[at] = Some(error);
    }

    fn succeeded(&self, at: usize) {
        self.lock().trouble[at] = None;
    }
}

impl State {
    /// `is_news`: it was written just now, as far as is known.
    fn receive(&mut self, status: Option<NodeBalanceStatus>, is_news: bool, now: Instant) {
        let Some(status) = status else {
            self.received = None;
            return;
        };
        let at = match &self.received {
            Some(known) if known.sequence == status.sequence => return,
            Some(_) => Some(now),
            None => is_news.then_some(now),
        };
        self.received = Some(Received {
            sequence: status.sequence,
            views: status.services,
            at,
        });
    }

    fn views(&self, now: Instant) -> Views {
        let Some(received) = &self.received else {
            return Views::Awaited;
        };
        let Some(at) = received.at else {
            return Views::Awaited;
        };
        let left = VIEW_COUNTS_FOR.saturating_sub(now.saturating_duration_since(at));
        if left.is_zero() {
            return Views::Expired;
        }
        Views::valid(received.views.clone(), left)
    }
}

impl Exchange {
    /// Begins to exchange; `None` if there is no API server to ask.
    ///
    /// # Errors
    /// Why the API server cannot be asked. That it does not answer, or does not know the resource, is
    /// none.
    pub async fn connect(access: &Access) -> anyhow::Result<Option<Self>> {
        let Some((config, node)) = configure(access).await? else {
            return Ok(None);
        };
        Ok(Some(Self::start(Client::try_from(config)?, &node)))
    }

    pub(super) fn start(client: Client, node: &str) -> Self {
        let (offered, reports) = watch::channel(Vec::new());
        let state = Shared::default();
        let api: Api<NodeBalance> = Api::all(client);
        let mut tasks = JoinSet::new();
        let writer = Writer {
            api: api.clone(),
            node: node.to_owned(),
            state: state.clone(),
        };
        tasks.spawn(read(api, node.to_owned(), state.clone(), reports.clone()));
        tasks.spawn(writer.run(reports));
        Self {
            offered,
            state,
            _tasks: tasks,
        }
    }

    /// What this node's endpoints hold now: it is reported once a report is due.
    pub fn offer(&self, services: Vec<ServiceReport>) {
        self.offered.send_replace(services);
    }

    /// What is known of the cluster.
    pub fn views(&self) -> Views {
        self.state.lock().views(Instant::now())
    }

    /// Why reports are not written or views not read, if that is so.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        state.trouble.iter().flatten().next().cloned()
    }
}

struct Writer {
    api: Api<NodeBalance>,
    node: String,
    state: Shared,
}

impl Writer {
    async fn run(self, mut offered: watch::Receiver<Vec<ServiceReport>>) {
        let began = Instant::now();
        let mut schedule = ReportSchedule::default();
        let mut pauses = pauses();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let services = offered.borrow_and_update().clone();
            if !schedule.is_due(&services, began.elapsed()) {
                continue;
            }
            let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
            let report = Report::of(now.max(schedule.sequence() + 1), services);
            match self.write(report.clone()).await {
                Ok(()) => {
                    self.state.succeeded(WRITING);
                    pauses = self::pauses();
                    schedule.written(report, began.elapsed());
                }
                Err(error) => {
                    self.state
                        .failed(WRITING, format!("writing the report: {error}"));
                    tokio::time::sleep(pauses.next().unwrap_or(MOST)).await;
                }
            }
        }
    }

    async fn write(&self, report: Report) -> Result<(), String> {
        let object = NodeBalance::new(&self.node, NodeBalanceSpec::of(report));
        let as_ours = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let write = self.api.patch(&self.node, &as_ours, &patch);
        answered(ANSWER, write).await.map(drop)
    }
}

/// Reads this node's object, from when there is something to report: until then there is nothing to
/// learn. Never ends.
async fn read(
    api: Api<NodeBalance>,
    node: String,
    state: Shared,
    mut offered: watch::Receiver<Vec<ServiceReport>>,
) {
    let any = offered
        .wait_for(|services| !services.is_empty())
        .await
        .is_ok();
    if !any {
        return;
    }
    let of_node = watcher::Config::default()
        .fields(&format!("metadata.name={node}"))
        .timeout(WATCH);
    let watch =
        || -> BoxStream<'static, _> { watcher::watcher(api.clone(), of_node.clone()).boxed() };
    let mut pauses = pauses();
    let mut events = watch();
    loop {
        // Views are given again before they expire: a longer silence may be that of the connection.
        match timeout(VIEW_COUNTS_FOR, events.next()).await {
            Ok(Some(Ok(event))) => {
                if !matches!(event, Event::Init) {
                    state.succeeded(READING);
                    pauses = self::pauses();
                }
                let is_news = matches!(event, Event::Apply(_));
                let status = match event {
                    Event::Apply(object) | Event::InitApply(object) => object.status,
                    Event::Delete(_) => None,
                    Event::Init | Event::InitDone => continue,
                };
                state.lock().receive(status, is_news, Instant::now());
                continue;
            }
            Ok(Some(Err(error))) => {
                if let Some(error) = failure(&error) {
                    state.failed(READING, format!("reading the views: {error}"));
                }
            }
            Ok(None) | Err(_) => events = watch(),
        }
        tokio::time::sleep(pauses.next().unwrap_or(MOST)).await;
    }
}

/// None if it is routine: watches end.
pub(super) fn failure(error: &watcher::Error) -> Option<String> {
    use watcher::Error;
    match error {
        Error::WatchStartFailed(source) | Error::InitialListFailed(source) => {
            Some(explained(source))
        }
        _ => None,
    }
}

/// What was asked for.
///
/// # Errors
/// Why there is no answer in time, or none but an error; in words.
pub(super) async fn answered<T>(
    within: Duration,
    asked: impl Future<Output = kube::Result<T>>,
) -> Result<T, String> {
    match timeout(within, asked).await {
        Ok(answer) => answer.map_err(|error| explained(&error)),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

/// What the API server says, and what to do about it.
fn explained(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            "the cluster has no NodeBalance resource (404): apply deploy/components/coordinator"
                .to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => format!(
            "forbidden (403): {}: apply deploy/components/coordinator",
            status.message
        ),
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => {
            let other: &dyn std::error::Error = other;
            let chain = std::iter::successors(Some(other), |error| error.source());
            chain
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(": ")
        }
    }
}

pub(super) fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(MOST)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_view_counts_from_when_it_was_seen_to_be_new() {
        let start = Instant::now();
        let mut state = State::default();
        let given = |sequence| Some(NodeBalanceStatus::of(sequence, Vec::new(), "c"));
        assert_eq!(state.views(start), Views::Awaited);
        state.receive(given(1), false, start);
        assert_eq!(state.views(start), Views::Awaited, "it may be of last year");
        state.receive(given(1), false, start + second(1));
        assert_eq!(state.views(start + second(1)), Views::Awaited);
        state.receive(given(2), true, start + second(10));
        let valid = |left| Views::valid(Vec::new(), second(left));
        assert_eq!(state.views(start + second(10)), valid(60));
        // A list that repeats it does not make it younger.
        state.receive(given(2), false, start + second(30));
        assert_eq!(state.views(start + second(30)), valid(40));
        assert_eq!(state.views(start + second(70)), Views::Expired);
        // Another coordinator may count otherwise.
        state.receive(given(1), true, start + second(80));
        assert_eq!(state.views(start + second(80)), valid(60));
        state.receive(None, true, start + second(81));
        assert_eq!(state.views(start + second(81)), Views::Awaited);
        state.receive(given(2), true, start + second(82));
        assert_eq!(
            state.views(start + second(82)),
            valid(60),
            "it came while it was watched"
        );
    }
}
