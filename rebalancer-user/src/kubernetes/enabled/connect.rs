//! The way to the API server: a pod's own token, or a kubeconfig.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::task::JoinSet;

use super::{
    name::name,
    pod_lookup::PodLookup,
    store::Pace,
    watch::{self, Shared},
};
use crate::{
    host::CgroupTree,
    kubernetes::{Access, Ask},
    snapshot::Snapshot,
};

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What the API server reports, watched for as long as this lives.
#[derive(Debug)]
pub struct Names {
    shared: Shared,
    pod_lookup: PodLookup,
    node: String,
    config: Config,
    tasks: JoinSet<()>,
}

impl Names {
    /// Starts to watch the API server; `None` if none is configured. `cgroup` is the folder below which
    /// sockets are looked at, instead of the hierarchy's root. A kind of objects about which the API
    /// server has not answered within `stabilizationWindow` is outdated.
    ///
    /// # Errors
    /// The configuration is not usable. A server that does not answer is no error.
    pub async fn connect(
        access: &Access,
        cgroup: Option<&Path>,
        stabilization_window: Duration,
    ) -> anyhow::Result<Option<Self>> {
        let Some((config, node)) = configure(access).await? else {
            return Ok(None);
        };
        let tree = CgroupTree::find(cgroup)?;
        let shared = Shared::default();
        let tasks = follow(&config, &node, &shared, Pace::within(stabilization_window))?;
        Ok(Some(Self {
            shared,
            pod_lookup: PodLookup::of_tree(tree),
            node,
            config,
            tasks,
        }))
    }

    /// Changes the `stabilizationWindow`. What is known stays; if the API server must answer at another
    /// pace, the watches are started again.
    ///
    /// # Errors
    /// The watches cannot be started again: everything becomes outdated sooner or later.
    pub fn stabilization_window(&mut self, stabilization_window: Duration) -> anyhow::Result<()> {
        let pace = Pace::within(stabilization_window);
        if self.shared.lock().pace != pace {
            self.tasks = follow(&self.config, &self.node, &self.shared, pace)?;
        }
        Ok(())
    }

    /// Waits until everything was listed, for so long at most. Whether it was.
    pub async fn listed(&self, patience: Duration) -> bool {
        let listed = async {
            while !self.shared.lock().is_listed() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, listed).await.is_ok()
    }

    /// Puts names to the endpoints of a snapshot.
    pub fn name(&mut self, snapshot: &mut Snapshot) {
        let cluster = self.shared.lock();
        name(snapshot, &cluster, &mut self.pod_lookup, Instant::now());
    }

    /// Waits until another pod of this node is being deleted, or a Service sends no new connections to it any
    /// more.
    pub async fn pod_leaves(&self) {
        self.shared.leaving.notified().await;
    }

    /// Whether namespaces have been listed once: before, one may pause its agents.
    pub fn knows_namespaces(&self) -> bool {
        self.shared.lock().namespaces.is_listed()
    }

    /// Why a namespace pauses the agents in it, if it does, as it was last reported.
    pub fn paused(&self, namespace: &str) -> Option<String> {
        self.shared.lock().paused(namespace).map(str::to_owned)
    }

    /// What the API server calls this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The time since the API server last answered, about the kind of objects for which that is longest
    /// ago. `None` while one kind has had no answer.
    pub fn age(&self) -> Option<Duration> {
        self.shared.lock().age(Instant::now())
    }

    /// Pods of this node, namespaces, and Services with endpoints on this node.
    pub fn counts(&self) -> [usize; 3] {
        self.shared.lock().counts()
    }
}

fn follow(config: &Config, node: &str, shared: &Shared, pace: Pace) -> anyhow::Result<JoinSet<()>> {
    watch::start(config, node, shared, pace).context("preparing to ask the API server")
}

pub(super) async fn configure(access: &Access) -> anyhow::Result<Option<(Config, String)>> {
    if access.ask == Ask::Off {
        return Ok(None);
    }
    if let Some(path) = &access.kubeconfig {
        let config = from_kubeconfig(path).await?;
        let node = match &access.node {
            Some(node) => node.clone(),
            None => host_name(),
        };
        return Ok(Some((config, node)));
    }
    let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some() && fs::exists(TOKEN)?;
    if !in_pod && access.ask == Ask::Auto {
        return Ok(None);
    }
    if !in_pod {
        bail!(
            "--kubernetes on: this is not a pod with a token ({TOKEN} and \
             $KUBERNETES_SERVICE_HOST)\n  remedy: in a pod, automountServiceAccountToken: true, and \
             see that no admission policy removes the token; elsewhere --kubeconfig FILE"
        );
    }
    let Some(node) = access.node.clone() else {
        bail!(
            "which node this is is not known\n  remedy: give --node-name, or $NODE_NAME by a \
             fieldRef to spec.nodeName, or --kubernetes off"
        );
    };
    let config = Config::incluster().context("reading the pod's own access to the API server")?;
    Ok(Some((config, node)))
}

async fn from_kubeconfig(path: &PathBuf) -> anyhow::Result<Config> {
    let shown = path.display();
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("reading the kubeconfig {shown}"))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("the kubeconfig {shown}"))
}

/// The name that kubelet gives its node by default.
fn host_name() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().to_lowercase()
}
