//! `cargo xtask lab`: starts, lists and removes labs.

use std::{ffi::OsString, fmt::Display, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use xtask::lab::{self, Lab, LabState, Slot, Spec, State};

use crate::{
    setup::{self, Need},
    terminal::{bold, dim, green},
};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Start a lab and leave it running
    Up(Size),
    /// Remove labs that are not in use
    Down,
    /// Start a lab, run a command, and remove the lab
    Run {
        #[command(flatten)]
        size: Size,
        /// The command, run in the machine's namespaces; REBALANCER_LAB_* describe the lab
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// List the labs of this machine
    Status,
}

#[derive(Args)]
pub(crate) struct Size {
    /// Number of pods
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// Number of pods that serve [default: all]
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
            show_commands(&state);
            Ok(())
        }
        Action::Down => {
            let removed = lab::remove_unused()?;
            println!("removed {} labs", removed.len());
            for slot in Slot::all()? {
                let owner = slot.state().map_or(0, |state| state.owner);
                println!("lab {} is in use by process {owner}, kept", slot.number());
            }
            Ok(())
        }
        Action::Run { size, command } => {
            setup::ensure(&[Need::Host])?;
            run_in(&Lab::start(size.spec())?, command)
        }
        Action::Status => {
            let slots = Slot::all()?;
            if slots.is_empty() {
                println!("no labs");
            }
            for slot in slots {
                // A lab that is being created or removed has no state.
                if let (Ok(state), Ok(lab_state)) = (slot.state(), slot.lab_state()) {
                    show(slot, &state, lab_state);
                }
            }
            Ok(())
        }
    }
}

fn run_in(lab: &Lab, command: &[OsString]) -> Result<()> {
    let state = lab.state();
    let (program, arguments) = command.split_first().context("no command")?;
    let each = |part: fn(&lab::PodState) -> String| {
        state.pods.iter().map(part).collect::<Vec<_>>().join(" ")
    };
    let path = |path: &Path| path.display().to_string();
    let variables = [
        ("ID", lab.id().to_string()),
        ("SERVICE", state.service.clone()),
        ("SERVICE6", state.service6.clone().unwrap_or_default()),
        ("CLIENT_NETNS", path(&state.client)),
        ("CLIENT_SUBNET", lab.client_subnet()),
        ("NODE_NETNS", path(&state.node)),
        ("PODS", each(|pod| pod.address.clone())),
        (
            "PODS6",
            each(|pod| pod.address6.clone().unwrap_or_default()),
        ),
        ("POD_NETNS", each(|pod| pod.netns.display().to_string())),
        ("POD_CGROUPS", each(|pod| pod.cgroup.display().to_string())),
    ];
    let named = variables.map(|(name, value)| (format!("REBALANCER_LAB_{name}"), value));
    let status = lab
        .machine()
        .command(program)
        .args(arguments)
        .envs(named)
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    if !status.success() {
        bail!("{}: {status}", program.display());
    }
    Ok(())
}

fn show(slot: Slot, state: &State, lab_state: LabState) {
    let label = match lab_state {
        LabState::InUse => format!("in use by process {}", state.owner),
        LabState::Kept => green("running"),
        LabState::Abandoned => "abandoned".to_owned(),
    };
    println!("{} {label}", bold(format!("lab {}", slot.number())));
    let line = |name: &str, address: &str, detail: &dyn Display| {
        println!("  {name:<8} {address:<18} {}", dim(detail));
    };
    line("service", &state.service, &"ClusterIP");
    match (&state.service6, &state.no_ipv6) {
        (Some(service6), _) => line("", service6, &""),
        (None, Some(missing)) => line("", &format!("no IPv6: {missing}"), &""),
        (None, None) => {}
    }
    line("client", "", &state.client.display());
    line("node", "", &state.node.display());
    for pod in &state.pods {
        line(&pod.name, &pod.address, &pod.netns.display());
        if let Some(address6) = &pod.address6 {
            line("", address6, &"");
        }
    }
}

fn show_commands(state: &State) {
    let (client, node) = (state.client.display(), state.node.display());
    println!("\n{}", bold("Commands to inspect it"));
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
