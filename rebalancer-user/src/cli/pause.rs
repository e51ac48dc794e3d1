//! `rebalancer pause` and `rebalancer resume`: stop moving on this node, at once, for a while.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{KernelArgs, note, positive_duration, running};
use crate::{
    agent::{LONGEST_PAUSE, LONGEST_PAUSE_REASON},
    http::{PauseAnswer, PauseRequest},
};

/// Move nothing on this node for a while, from now on.
///
/// Moves that wait are called back, and nothing new is moved or told. Tracking goes on. The pause
/// ends by itself, and outlives a restart of the agent. Another pause takes the place of the one
/// that is.
#[derive(Args)]
pub(super) struct Pause {
    /// How long, 168h (7 days) at most.
    #[arg(long = "for", value_name = "DURATION", value_parser = pause)]
    time: Duration,
    /// Why, for whoever finds it: `status` and `events` show it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Let moves go on before the pause ends by itself.
#[derive(Args)]
pub(super) struct Resume {
    #[command(flatten)]
    kernel: KernelArgs,
}

fn pause(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    if time > LONGEST_PAUSE {
        return Err(
            "168h (7 days) at most: for longer, set `mode: Disabled` in the policy".to_owned(),
        );
    }
    Ok(time)
}

fn reason(text: &str) -> Result<String, String> {
    if text.len() > LONGEST_PAUSE_REASON {
        return Err(format!("of {LONGEST_PAUSE_REASON} bytes at most"));
    }
    Ok(text.to_owned())
}

impl Pause {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let wish = PauseRequest {
            milliseconds: u64::try_from(self.time.as_millis())?,
            reason: self.reason,
        };
        let said = running::tell(&self.kernel, "/pause", serde_json::to_vec(&wish)?)?;
        let said: PauseAnswer = serde_json::from_slice(&said)
            .map_err(|error| anyhow!("the agent's answer: {error}"))?;
        if let Some(why) = said.not_kept {
            note(format_args!(
                "warning: a restart of the agent would end the pause, as it could not be kept: {}",
                crate::policy::visible(&why)
            ));
        }
        writeln!(
            io::stdout(),
            "paused until {:.0}; moves called back: {}",
            said.until,
            said.recalled
        )
        .context("writing to stdout")
    }
}

impl Resume {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let said = running::tell(&self.kernel, "/resume", Vec::new())?;
        io::stdout().write_all(&said).context("writing to stdout")
    }
}
