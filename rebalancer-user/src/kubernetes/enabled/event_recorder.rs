//! Kubernetes Events: what an operator should see beside the pods.
//!
//! A task writes them, so that nobody waits for the API server; each is tried once, and lost if it
//! cannot be written in time: the log and the agent's own events have it too.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use super::connect::configure;
use crate::kubernetes::{Access, Notice, PodAt};

/// Events that wait to be written; more are dropped.
const QUEUE: usize = 64;
/// For one of them.
const WITHIN: Duration = Duration::from_secs(10);
/// The API takes no longer text, in bytes.
const LONGEST: usize = 1024;

const CONTROLLER: &str = "rebalancer.dev/agent";

/// Writes Events for as long as it lives.
#[derive(Debug)]
pub struct EventWriter {
    queue: Sender<Notice>,
    _task: JoinSet<()>,
}

impl EventWriter {
    /// One that writes with the agent's own access; `None` if there is no API server to write to.
    /// `own` is the agent's pod.
    ///
    /// # Errors
    /// Why the API server cannot be asked. That it does not answer is none.
    pub async fn connect(access: &Access, own: Option<PodAt>) -> anyhow::Result<Option<Self>> {
        let Some(writer) = Writer::connect(access, own).await? else {
            return Ok(None);
        };
        let (queue, notices) = channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(writer.write_all(notices));
        Ok(Some(Self { queue, _task: task }))
    }

    /// Queues it, if there is room.
    pub fn send(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err() {
            debug!("too many Kubernetes Events are queued: dropped one");
        }
    }
}

/// Writes one, and waits for that: for a process that is about to exit.
///
/// # Errors
/// Why it was not written.
pub async fn write_event(access: &Access, own: PodAt, notice: Notice) -> anyhow::Result<()> {
    let Some(writer) = Writer::connect(access, Some(own)).await? else {
        return Ok(());
    };
    writer.write(&notice).await
}

struct Writer {
    client: Client,
    own: Option<PodAt>,
    instance: String,
    warned: bool,
}

impl Writer {
    async fn connect(access: &Access, own: Option<PodAt>) -> anyhow::Result<Option<Self>> {
        let Some((config, node)) = configure(access).await? else {
            return Ok(None);
        };
        let client = Client::try_from(config).context("preparing to create Kubernetes Events")?;
        let instance = own.as_ref().map_or(node, |own| own.name.clone());
        Ok(Some(Self {
            client,
            own,
            instance,
            warned: false,
        }))
    }

    async fn write_all(mut self, mut notices: Receiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            match self.write(&notice).await {
                Ok(()) => debug!(reason = notice.reason, "created a Kubernetes Event"),
                Err(error) if !self.warned => {
                    self.warned = true;
                    warn!(
                        reason = notice.reason,
                        error = format!("{error:#}"),
                        "could not create a Kubernetes Event; further failures are logged at level debug. \
                         The service account needs permission to create events in events.k8s.io, in \
                         the namespace of the pod concerned"
                    );
                }
                Err(error) => debug!(
                    error = format!("{error:#}"),
                    "could not create a Kubernetes Event"
                ),
            }
        }
    }

    /// About the pod that it concerns; or, where that is forbidden, about our own.
    async fn write(&self, notice: &Notice) -> anyhow::Result<()> {
        let Some(first) = notice.about.as_ref().or(self.own.as_ref()) else {
            debug!("$POD_NAME is not set: no Kubernetes Event");
            return Ok(());
        };
        let written = self.create(first, None, notice).await;
        match (&written, &self.own) {
            (Err(kube::Error::Api(status)), Some(own)) if status.code == 403 && first != own => {
                self.create(own, Some(first), notice).await
            }
            _ => written,
        }
        .with_context(|| format!("about the pod {}/{}", first.namespace, first.name))
    }

    async fn create(
        &self,
        about: &PodAt,
        related: Option<&PodAt>,
        notice: &Notice,
    ) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &about.namespace);
        let event = self.event(about, related, notice, Timestamp::now());
        let post = PostParams::default();
        match timeout(WITHIN, api.create(&post, &event)).await {
            Ok(created) => created.map(drop),
            Err(late) => Err(kube::Error::Service(late.into())),
        }
    }

    fn event(
        &self,
        about: &PodAt,
        related: Option<&PodAt>,
        notice: &Notice,
        now: Timestamp,
    ) -> Event {
        Event {
            metadata: ObjectMeta {
                namespace: Some(about.namespace.clone()),
                // The naming of client-go: the time distinguishes Events of one pod.
                name: Some(format!("{}.{:x}", about.name, now.as_nanosecond())),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            regarding: Some(reference(about)),
            related: related.map(reference),
            reason: Some(notice.reason.to_owned()),
            action: Some(notice.action.to_owned()),
            note: Some(shortened(&notice.note).to_owned()),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(shortened_to(&self.instance, 128).to_owned()),
            ..Event::default()
        }
    }
}

fn reference(pod: &PodAt) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: pod.uid.clone(),
        ..ObjectReference::default()
    }
}

fn shortened(text: &str) -> &str {
    shortened_to(text, LONGEST)
}

fn shortened_to(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_ends_between_two_letters() {
        assert_eq!(shortened("short"), "short");
        let long = "ä".repeat(600);
        assert_eq!(shortened(&format!("a{long}")).len(), 1023);
    }
}
