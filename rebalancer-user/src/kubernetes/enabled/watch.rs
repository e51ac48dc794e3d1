//! Watches the API server: each kind of object by a watch of its own, for as long as the agent runs.
//! What changes goes into a [`Cluster`], and so does that the server does not answer.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    client::ClientBuilder,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::JoinSet};
use tower::{layer::layer_fn, util::MapResponse};
use tracing::{debug, info, warn};

use super::{
    cluster::Cluster,
    objects,
    services::Spec,
    slices::Slice,
    store::{Change, Pace, Store},
};

/// What the watches write into.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    cluster: Arc<Mutex<Cluster>>,
    /// Another pod of this node is being deleted, or a Service sends no new connections to it any more.
    pub(super) leaving: Arc<Notify>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Cluster> {
        // Whoever panicked with it left each object whole.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slices in one answer of a list: what is parsed at once. Each has up to 100 endpoints, or 1,000, so
/// that all of a large cluster's would not fit into the memory of this container.
const SLICES_PAGE: u32 = 20;
/// Between two attempts, at most; chance adds up to as much again.
const MOST: Duration = Duration::from_millis(2500);
/// For one answer of a list, or the beginning of a watch.
const ANSWER: Duration = Duration::from_secs(30);

/// Watches a kind of object over connections of its own, on which answers are noted.
struct Follow<T: 'static> {
    kind: &'static str,
    shared: Shared,
    part: fn(&mut Cluster) -> &mut Store<T>,
    apply: fn(&Shared, Change<T>, Instant),
    patience: Duration,
}

impl<T> Clone for Follow<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            ..*self
        }
    }
}

/// Begins to follow the pods of `node`, and all namespaces, Services and EndpointSlices.
pub(super) fn start(
    config: &kube::Config,
    node: &str,
    shared: &Shared,
    pace: Pace,
) -> kube::Result<JoinSet<()>> {
    shared.lock().pace = pace;
    let seconds = u32::try_from(pace.watch.as_secs()).unwrap_or(u32::MAX);
    let paged = watcher::Config::default().timeout(seconds);
    // As kubelet and kube-proxy list: whatever version the API server's cache has, which a watch then
    // follows. A list of the latest version, or one in pages, may be read from etcd, and for a field
    // selector that is every pod of the cluster, for each agent.
    let cached = watcher::Config {
        page_size: None,
        ..paged.clone().any_semantic()
    };
    let of_node = cached.clone().fields(&format!("spec.nodeName={node}"));
    let node = node.to_owned();
    let mut watches = Watches {
        config,
        shared,
        patience: pace.patience,
        tasks: JoinSet::new(),
    };
    watches.follow::<Pod, _>(
        ("pods", |c| &mut c.pods),
        |shared, change, at| {
            if shared.lock().change_pods(change, at, Timestamp::now()) {
                shared.leaving.notify_one();
            }
        },
        of_node,
        |event| objects::change(event, objects::uid, objects::pod),
    )?;
    watches.follow::<PartialObjectMeta<Namespace>, _>(
        ("namespaces", |c| &mut c.namespaces),
        |shared, change, at| shared.lock().namespaces.change(change, at),
        cached.clone(),
        |event| objects::change(event, objects::name, objects::namespace),
    )?;
    watches.follow::<Service, _>(
        ("services", |c| &mut c.services),
        |shared, change, at| shared.lock().services.change(change, at),
        cached,
        |event| objects::change(event, objects::name, Spec::of),
    )?;
    watches.follow::<EndpointSlice, _>(
        ("endpointslices", |c| &mut c.slices),
        |shared, change, at| {
            if shared.lock().change_slices(change, at) {
                shared.leaving.notify_one();
            }
        },
        paged.page_size(SLICES_PAGE),
        move |event| objects::change(event, objects::name, |slice| Slice::of(&node, slice)),
    )?;
    Ok(watches.tasks)
}

/// The watches, one task each.
struct Watches<'a> {
    config: &'a kube::Config,
    shared: &'a Shared,
    patience: Duration,
    tasks: JoinSet<()>,
}

impl Watches<'_> {
    /// Follows the objects `K`, which are kept as `T` in this part of the cluster.
    fn follow<K, T>(
        &mut self,
        (kind, part): (&'static str, fn(&mut Cluster) -> &mut Store<T>),
        apply: fn(&Shared, Change<T>, Instant),
        list: watcher::Config,
        change: impl Fn(Event<K>) -> Option<Change<T>> + Send + 'static,
    ) -> kube::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        T: Send + 'static,
    {
        let follow = Follow {
            kind,
            shared: self.shared.clone(),
            part,
            apply,
            patience: self.patience,
        };
        let api: Api<K> = Api::all(follow.client(self.config)?);
        let watch = move || watcher::watcher(api.clone(), list.clone()).boxed();
        self.tasks.spawn(follow.run(watch, change));
        Ok(())
    }
}

impl<T: Send + 'static> Follow<T> {
    /// A client that records the time of every successful response: a watch that was restarted and has
    /// nothing to report is not silent, but yields no event.
    fn client(&self, config: &kube::Config) -> kube::Result<Client> {
        let listener = self.clone();
        let note_answers = layer_fn(move |service| {
            let listener = listener.clone();
            MapResponse::new(service, move |response: http::Response<_>| {
                if response.status().is_success() {
                    listener.with(|known| known.answered(Instant::now()));
                }
                response
            })
        });
        let builder = ClientBuilder::try_from(config.clone())?;
        Ok(builder.with_layer(&note_answers).build())
    }

    fn with<R>(&self, look: impl FnOnce(&mut Store<T>) -> R) -> R {
        look((self.part)(&mut self.shared.lock()))
    }

    /// Never ends.
    async fn run<K>(
        self,
        watch: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>>,
        change: impl Fn(Event<K>) -> Option<Change<T>>,
    ) where
        K: Debug + Send + 'static,
    {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(MOST)
            .without_max_times()
            .with_jitter();
        let mut pause = pauses.build();
        let mut events = watch();
        let mut silent = false;
        loop {
            match self.next(&mut events).await {
                Some(Ok(event)) => {
                    // A list that begins is not yet an answer.
                    if !matches!(event, Event::Init) {
                        pause = pauses.build();
                        if std::mem::take(&mut silent) {
                            info!(kind = self.kind, "the API server answers again");
                        }
                    }
                    if let Some(change) = change(event) {
                        (self.apply)(&self.shared, change, Instant::now());
                    }
                    continue;
                }
                Some(Err(error)) => self.report(&error, &mut silent),
                None => {
                    debug!(
                        kind = self.kind,
                        "the API server does not answer, restarting the watch"
                    );
                    events = watch();
                }
            }
            self.with(Store::failed);
            tokio::time::sleep(pause.next().unwrap_or(MOST)).await;
        }
    }

    /// The next event; `None` if the server has been silent for too long.
    async fn next<K>(
        &self,
        events: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
    ) -> Option<watcher::Result<Event<K>>> {
        loop {
            match tokio::time::timeout(ANSWER, events.next()).await {
                Ok(event) => return event,
                Err(_) if self.with(|known| known.waits(Instant::now(), ANSWER, self.patience)) => {
                    return None;
                }
                Err(_) => {}
            }
        }
    }

    fn report(&self, error: &watcher::Error, silent: &mut bool) {
        use watcher::Error;
        let (Error::WatchStartFailed(source) | Error::InitialListFailed(source)) = error else {
            // Watches end routinely; failing to start one again is not routine.
            return debug!(kind = self.kind, %error, "a watch has ended");
        };
        let source: &dyn std::error::Error = source;
        let chain = std::iter::successors(Some(source), |error| error.source());
        let error = chain
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ");
        if !std::mem::replace(silent, true) {
            warn!(
                kind = self.kind,
                error, "the API server does not answer; keeping the last known names"
            );
        } else {
            debug!(
                kind = self.kind,
                error, "the API server still does not answer"
            );
        }
    }
}
