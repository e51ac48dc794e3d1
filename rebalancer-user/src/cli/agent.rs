//! `rebalancer agent`: run the agent in the foreground.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{
    DEFAULT_POLICY, KernelArgs, ModeArg, log::LogArgs, message, names::NamesArgs, need_privilege,
    policy,
};
use crate::{
    agent::{self, Offer, OnExit},
    kubernetes::PodAt,
    moves::Mechanism,
};

/// Run the agent: track connections and, if the policy's mode is Enforce, move them.
///
/// SIGTERM and SIGINT stop it; --on-exit says whether tracking continues then. SIGHUP reloads the
/// policy. If it is killed, the next agent takes over its maps, and ages survive.
#[derive(Args)]
pub(super) struct Agent {
    /// The policy file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_POLICY)]
    policy: PathBuf,
    /// The most that the agent may do, whatever the policy says.
    #[arg(long, value_enum, ignore_case = true, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// Whether tracking continues after SIGTERM or SIGINT: with `keep` it does, and the next agent
    /// takes it over, so that ages survive a restart or an upgrade.
    #[arg(long, value_enum, default_value_t = OnExit::Remove)]
    on_exit: OnExit,
    #[command(flatten)]
    log: LogArgs,
    /// Count sends for rules with `count: Messages` even where FIONREAD then returns 0 on a socket
    /// with unread data (Linux 6.6.128, 6.12.75, 6.18.14 and later until the repair of July 2026; `doctor`
    /// tries it). nginx relies on it, and hangs in uploads.
    #[arg(long)]
    count_despite_fionread: bool,
    /// Grant each rule its whole budgets at once. Otherwise a rule that was not enforced before
    /// starts with 1/64 of them, which double with each window.
    #[arg(
        long,
        env = "REBALANCER_NO_RAMP",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    no_ramp: bool,
    /// Reset in this way, and in no other. For tests.
    #[arg(long, env = "REBALANCER_RESET_MECHANISM", value_enum, hide = true)]
    reset_mechanism: Option<Mechanism>,
    /// TCP address for metrics and health, in addition to the agent's socket: an address with a
    /// port, or `none` [default: 127.0.0.1:9321, if it is free].
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "REBALANCER_METRICS_ADDRESS",
        value_parser = offer
    )]
    metrics_address: Option<Offer>,
    /// Also create Kubernetes Events for moves, on the pods whose connections are moved: one per
    /// rule and pod in five minutes.
    #[arg(
        long,
        env = "REBALANCER_MOVE_EVENTS",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    move_events: bool,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    names: NamesArgs,
}

/// The default address of metrics: this machine only.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9321);

fn offer(text: &str) -> Result<Offer, String> {
    if text == "none" {
        return Ok(Offer::Nowhere);
    }
    text.parse().map(Offer::At).map_err(|_| {
        "not an address with a port: write e.g. 127.0.0.1:9321, [::1]:9321, 0.0.0.0:9321 or none"
            .to_owned()
    })
}

impl Agent {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.policy == Path::new("-") {
            bail!("--policy -: the agent reloads its policy, so it needs a file");
        }
        // The policy first: an operator who mistypes it sees the error without privileges.
        let loaded = load(&self.policy).loaded;
        let loaded = loaded.inspect_err(|error| self.tell_cluster(error))?;
        need_privilege()?;
        self.log.start()?;
        let options = agent::Options {
            run_dir: self.kernel.run_dir(),
            pins: self.kernel.pins,
            cgroup: self.kernel.cgroup,
            names: self.names.access(),
            own: own_pod(),
            move_events: self.move_events,
            on_exit: self.on_exit,
            offer: self.metrics_address.unwrap_or(Offer::IfFree(METRICS)),
            mode: self.mode.into(),
            mechanism: self.reset_mechanism,
            policy_file: self.policy.clone(),
            ramp: !self.no_ramp,
            count_despite_fionread: self.count_despite_fionread,
            reload: Box::new(move || load(&self.policy)),
        };
        // The loop is on this thread; what follows the API server is on another.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting the runtime")?
            .block_on(agent::run(options, loaded))
    }
}

impl Agent {
    /// A pod that ends at once is looked at from outside: its Events say why.
    fn tell_cluster(&self, error: &anyhow::Error) {
        let Some(own) = own_pod() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Ok(runtime) = runtime {
            let text = message(error);
            runtime.block_on(agent::report_refusal(&self.names.access(), own, &text));
        }
    }
}

/// The pod that this is, as the downward API says.
pub(super) fn own_pod() -> Option<PodAt> {
    let value = |name| env::var(name).ok().filter(|value| !value.is_empty());
    Some(PodAt {
        namespace: value("POD_NAMESPACE")?,
        name: value("POD_NAME")?,
        uid: value("POD_UID"),
    })
}

/// Reads the file once: what it held is what the policy is of.
fn load(file: &Path) -> agent::Reading {
    let read = agent::read_policy(file);
    let content = agent::Content::of(read.as_deref().ok());
    let loaded = policy::parse_bytes(file, read).map(|(policy, text)| agent::Loaded {
        policy,
        text: text.into(),
    });
    agent::Reading { content, loaded }
}
