//! `rebalancer drain`: empty an endpoint of this node by hand.

use std::{collections::BTreeMap, io::Write, ops::ControlFlow, time::Duration};

use anyhow::{anyhow, bail};
use clap::Args;

use super::{KernelArgs, note, positive_duration, print, running};
use crate::{
    agent::{LONGEST_DRAIN, SHORTEST_DRAIN},
    api::{self, DrainEndpoint, DrainTarget, EventDrain, EventKind},
    http::{CancelDrainRequest, DrainAnswer, DrainRequest},
    render,
};

/// Empty endpoints of this node: move the connections that they have now, spread over a time.
///
/// The running agent moves them, each at a quiet moment or by a GOAWAY, by the steps of the rule that matches
/// it; what no rule matches only if it is detected as HTTP. Modes and budgets of the policy do not apply, except
/// `maxInFlight`; guards and opt-outs do, and nothing is moved if no other endpoint is ready. New connections
/// are not moved: first see to it that none come, for instance by taking the pod out of its Service.
///
/// Waits until all have left or the time is over. Exit code 1 if some have not left.
#[derive(Args)]
pub(super) struct Drain {
    /// What to empty: pod/NAMESPACE/NAME, service/NAMESPACE/NAME (its endpoints on this node), ADDRESS:PORT
    /// or :PORT.
    #[arg(value_name = "TARGET")]
    target: DrainTarget,
    /// How long it may take, from 5s to 24h.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = within)]
    within: Duration,
    /// Show what would leave and what would stay, and move nothing.
    #[arg(long)]
    dry_run: bool,
    /// End the drain that was started with this target; moves that wait are recalled.
    #[arg(long, conflicts_with_all = ["within", "dry_run", "no_wait"])]
    cancel: bool,
    /// Return as soon as it has begun.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn within(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    if time < SHORTEST_DRAIN || time > LONGEST_DRAIN {
        return Err("from 5s to 24h".to_owned());
    }
    Ok(time)
}

impl Drain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if self.cancel {
            let target = self.target;
            let body = serde_json::to_vec(&CancelDrainRequest { target })?;
            let answer = running::post(&self.kernel, "/drain/cancel", body)?;
            return print(|out| out.write_all(&answer));
        }
        let request = DrainRequest {
            target: self.target.clone(),
            milliseconds: u64::try_from(self.within.as_millis())?,
            dry_run: self.dry_run,
        };
        let answer = running::post(&self.kernel, "/drain", serde_json::to_vec(&request)?)?;
        let answer: DrainAnswer = serde_json::from_slice(&answer)
            .map_err(|error| anyhow!("the agent's answer: {error}"))?;
        print(|out| render::drain(out, &answer.endpoints))?;
        for endpoint in &answer.endpoints {
            for service in &endpoint.ready_in {
                let at = render::drain_endpoint(endpoint);
                note(format_args!(
                    "note: {service} still sends new connections to {at}; clients may come back to it"
                ));
            }
        }
        if self.dry_run {
            return Ok(());
        }
        let leaving = answer.endpoints.iter();
        let leaving: Vec<&DrainEndpoint> = leaving.filter(|at| at.leaving > 0).collect();
        if leaving.is_empty() {
            note("nothing to move");
        } else {
            let cancel = format!("`rebalancer drain {} --cancel`", self.target);
            note(format_args!("draining; {cancel} ends it"));
            if self.no_wait {
                return Ok(());
            }
            self.wait(&answer, leaving.len())?;
        }
        let staying = answer.endpoints.iter().flat_map(|at| at.staying.values());
        match staying.sum() {
            0_u64 => Ok(()),
            left => bail!("connections that cannot be moved: {left}"),
        }
    }

    /// Follows the agent's events until so many endpoints are drained.
    fn wait(&self, answer: &DrainAnswer, endpoints: usize) -> anyhow::Result<()> {
        let path = format!("/events?run={}&after={}&follow=1", answer.run, answer.after);
        let mut under_way = endpoints;
        let mut left: BTreeMap<String, u64> = BTreeMap::new();
        let mut seen = Ok(());
        running::lines(&self.kernel, &path, |line| {
            seen = Self::line(line, &mut under_way, &mut left);
            if seen.is_err() || under_way == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        seen?;
        if under_way > 0 {
            bail!("the agent has stopped, and the drain has ended with it");
        }
        if left.is_empty() {
            return Ok(());
        }
        let why: Vec<String> = left.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let count: u64 = left.values().sum();
        bail!(
            "connections that have not left: {count} ({})",
            why.join(", ")
        )
    }

    fn line(
        line: &[u8],
        under_way: &mut usize,
        left: &mut BTreeMap<String, u64>,
    ) -> anyhow::Result<()> {
        // A blank one says that the agent is still there.
        if line.is_empty() {
            return Ok(());
        }
        let happened =
            api::read_event(line).map_err(|error| anyhow!("the agent's answer: {error}"))?;
        let drain: &EventDrain = match &happened.what {
            EventKind::DrainBegan(drain) | EventKind::DrainEnded(drain) => drain,
            _ => return Ok(()),
        };
        if drain.cause != "requested" {
            return Ok(());
        }
        print(|out| render::event_row(out, &happened))?;
        if let EventKind::DrainEnded(drain) = &happened.what {
            *under_way = under_way.saturating_sub(1);
            for (why, count) in &drain.connections {
                *left.entry(why.clone()).or_default() += count;
            }
        }
        Ok(())
    }
}
