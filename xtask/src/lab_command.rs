//! `cargo xtask lab`: the lab by hand.

use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use xtask::lab::{self, Lab, LabState, Slot, Spec, State};

use crate::{
    setup::{self, Need},
    terminal::{bold, dim, green},
};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Bring a lab up and leave it up
    Up(Size),
    /// Remove the labs that are not in use
    Down,
    /// Bring a lab up, run a command beside it, and remove the lab
    Run {
        #[command(flatten)]
        size: Size,
        /// The command, in the machine's own namespaces; REBALANCER_LAB_* tell it where all is
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// List the labs of this machine
    Status,
}

#[derive(Args)]
pub(crate) struct Size {
    /// How many pods
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// How many of them serve; all if not said
    #[arg(long)]
    serving: Option<usize>,
}

impl Size {
    fn spec(&self) -> Spec {
        Spec {
            pods: self.pods,
            serving: self.serving.unwrap_or(self.pods),
        }
    }
}

pub(crate) fn run(action: &Action) -> Result<()> {
    match action {
        Action::Up(size) => {
            setup::ensure(&[Need::Host])?;
            let lab = Lab::start(size.spec())?;
            let state = lab.state();
            let slot = lab.keep()?;
            show(slot, &state, LabState::Kept);
            show_ways_in(&state);
            Ok(())
        }
        Action::Down => {
            let removed = lab::remove_unused()?;
            println!("removed {} labs", removed.len());
            for slot in Slot::all()? {
                let owner = slot.state().map_or(0, |state| state.owner);
                println!("in use and left: {} (process {owner})", slot.number());
            }
            Ok(())
        }
        Action::Run { size, command } => {
            setup::ensure(&[Need::Host])?;
            beside(&Lab::start(size.spec())?, command)
        }
        Action::Status => {
            let slots = Slot::all()?;
            if slots.is_empty() {
                println!("no lab is up");
            }
            for slot in slots {
                // One that is just being made or removed has no state.
                if let (Ok(state), Ok(standing)) = (slot.state(), slot.standing()) {
                    show(slot, &state, standing);
                }
            }
            Ok(())
        }
    }
}

fn beside(lab: &Lab, command: &[OsString]) -> Result<()> {
    let state = lab.state();
    let (program, arguments) = command.split_first().context("no command")?;
    let each = |part: fn(&lab::PodState) -> String| {
        state.pods.iter().map(part).collect::<Vec<_>>().join(" ")
    };
    let status = lab
        .machine()
        .command(program)
        .args(arguments)
        .env("REBALANCER_LAB_ID", lab.id().to_string())
        .env("REBALANCER_LAB_SERVICE", &state.service)
        .env(
            "REBALANCER_LAB_SERVICE6",
            state.service6.as_deref().unwrap_or_default(),
        )
        .env("REBALANCER_LAB_CLIENT_NETNS", &state.client)
        .env("REBALANCER_LAB_CLIENT_SUBNET", lab.client_subnet())
        .env("REBALANCER_LAB_NODE_NETNS", &state.node)
        .env("REBALANCER_LAB_PODS", each(|pod| pod.address.clone()))
        .env(
            "REBALANCER_LAB_PODS6",
            each(|pod| pod.address6.clone().unwrap_or_default()),
        )
        .env(
            "REBALANCER_LAB_POD_NETNS",
            each(|pod| pod.netns.display().to_string()),
        )
        .env(
            "REBALANCER_LAB_POD_CGROUPS",
            each(|pod| pod.cgroup.display().to_string()),
        )
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    if !status.success() {
        bail!("{}: {status}", program.display());
    }
    Ok(())
}

fn show(slot: Slot, state: &State, standing: LabState) {
    let standing = match standing {
        LabState::InUse => format!("in use by process {}", state.owner),
        LabState::Kept => green("up"),
        LabState::Abandoned => "abandoned".to_owned(),
    };
    println!("{} {standing}", bold(format!("lab {}", slot.number())));
    println!(
        "  {:<8} {:<18} {}",
        "service",
        state.service,
        dim("ClusterIP")
    );
    match (&state.service6, &state.no_ipv6) {
        (Some(service6), _) => println!("  {:<8} {service6}", ""),
        (None, Some(missing)) => println!("  {:<8} no IPv6: {missing}", ""),
        (None, None) => {}
    }
    println!(
        "  {:<8} {:<18} {}",
        "client",
        "",
        dim(state.client.display())
    );
    println!("  {:<8} {:<18} {}", "node", "", dim(state.node.display()));
    for pod in &state.pods {
        println!(
            "  {:<8} {:<18} {}",
            pod.name,
            pod.address,
            dim(pod.netns.display())
        );
        if let Some(address6) = &pod.address6 {
            println!("  {:<8} {address6}", "");
        }
    }
}

fn show_ways_in(state: &State) {
    let (client, node) = (state.client.display(), state.node.display());
    println!("\n{}", bold("Look into it"));
    println!(
        "  nsenter --net={client} curl -si http://{}/",
        state.service
    );
    println!("  nsenter --net={node} iptables-save -t nat");
    if let Some(service6) = &state.service6 {
        println!("  nsenter --net={client} curl -si http://{service6}/");
        println!("  nsenter --net={node} ip6tables-save -t nat");
    }
    if let Some(pod) = state.pods.first() {
        println!("  nsenter --net={} ss -tin", pod.netns.display());
    }
    println!("  cargo xtask lab down");
}
