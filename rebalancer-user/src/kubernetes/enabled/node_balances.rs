//! The coordinator's side of the balance across nodes: the reports of all nodes, and the views for each.

use std::time::Duration;

use futures_util::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use serde_json::json;
use tokio::{sync::mpsc::Sender, time::timeout};
use tracing::{debug, info, warn};

use super::{
    exchange::{ANSWER, answered, failure, pauses},
    node_balance::{NodeBalance, NodeBalanceStatus},
};
use crate::views::{Report, View};

/// A watch is renewed after so long, so that a connection that leads nowhere is noticed.
const WATCH: u32 = 60;
/// Longer than that, nothing from any node: the watch is started again.
const SILENCE: Duration = Duration::from_secs(120);

/// What became of a node's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportEvent {
    /// All are listed again: what is not among them until [`ReportEvent::ListEnds`] is gone.
    ListBegins,
    /// A node has reported.
    Reported(String, Report),
    /// A node is listed with its report, whose age is not known.
    Listed(String, Report),
    /// A node's object was deleted.
    Removed(String),
    /// The list is complete.
    ListEnds,
}

/// The `NodeBalance`s of all nodes.
#[derive(Clone)]
pub struct NodeBalances {
    api: Api<NodeBalance>,
}

impl NodeBalances {
    pub(super) fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
        }
    }

    /// Follows all reports. Ends once nobody listens.
    pub async fn follow(self, to: Sender<ReportEvent>) {
        let config = watcher::Config::default().timeout(WATCH);
        let watch = || watcher::watcher(self.api.clone(), config.clone()).boxed();
        let mut events = watch();
        let mut pauses = pauses();
        let mut failed = false;
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, Event::Init) {
                        pauses = self::pauses();
                        if std::mem::take(&mut failed) {
                            info!("reports are followed again");
                        }
                    }
                    event
                }
                other => {
                    match other {
                        Ok(Some(Err(error))) => match failure(&error) {
                            Some(error) if !std::mem::replace(&mut failed, true) => {
                                warn!(error, "cannot follow reports; trying again");
                            }
                            _ => debug!(%error, "following reports"),
                        },
                        _ => events = watch(),
                    }
                    let pause = pauses.next().unwrap_or(ANSWER);
                    tokio::time::sleep(pause.min(ANSWER)).await;
                    continue;
                }
            };
            let event = match event {
                Event::Init => ReportEvent::ListBegins,
                Event::InitDone => ReportEvent::ListEnds,
                Event::InitApply(object) => {
                    ReportEvent::Listed(object.name_any(), object.spec.report)
                }
                Event::Apply(object) => {
                    ReportEvent::Reported(object.name_any(), object.spec.report)
                }
                Event::Delete(object) => ReportEvent::Removed(object.name_any()),
            };
            if to.send(event).await.is_err() {
                return;
            }
        }
    }

    /// Gives a node its views; `sequence` must be another number each time.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn give(
        &self,
        node: &str,
        sequence: u64,
        views: Vec<View>,
        coordinator: &str,
    ) -> Result<(), String> {
        let status = NodeBalanceStatus::of(sequence, views, coordinator);
        // All fields are in it, and lists are replaced as a whole.
        let patch = Patch::Merge(json!({"status": status}));
        let params = PatchParams::default();
        answered(ANSWER, self.api.patch_status(node, &params, &patch))
            .await
            .map(drop)
    }

    /// Removes the object of a node that is gone.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn remove(&self, node: &str) -> Result<(), String> {
        answered(ANSWER, self.api.delete(node, &DeleteParams::default()))
            .await
            .map(drop)
    }
}
