//! `rebalancer pause` and `rebalancer resume`: stop moving on this node, at once, for a while.

use std::{io::Write as _, time::Duration};

use anyhow::anyhow;
use clap::Args;

use super::{KernelArgs, note, positive_duration, print, running};
use crate::{
    agent::{LONGEST_PAUSE, LONGEST_PAUSE_REASON},
    http::{PauseAnswer, PauseRequest},
};

/// Pause moves on this node for a limited time.
///
/// Waiting moves are recalled, and no new ones are started or reported. Tracking continues. The pause
/// ends by itself and survives a restart of the agent. A new pause replaces the current one.
#[derive(Args)]
pub(super) struct Pause {
    /// How long, at most 168h (7 days).
    #[arg(long = "for", value_name = "DURATION", value_parser = pause)]
    time: Duration,
    /// The reason, shown by `status` and `events`.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// End a pause now.
#[derive(Args)]
pub(super) struct Resume {
    #[command(flatten)]
    kernel: KernelArgs,
}

fn pause(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    if time > LONGEST_PAUSE {
        return Err(
            "at most 168h (7 days): for longer, set `mode: Disabled` in the policy".to_owned(),
        );
    }
    Ok(time)
}

fn reason(text: &str) -> Result<String, String> {
    if text.len() > LONGEST_PAUSE_REASON {
        return Err(format!("at most {LONGEST_PAUSE_REASON} bytes"));
    }
    Ok(text.to_owned())
}

impl Pause {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let wish = PauseRequest {
            milliseconds: u64::try_from(self.time.as_millis())?,
            reason: self.reason,
        };
        let answer = running::post(&self.kernel, "/pause", serde_json::to_vec(&wish)?)?;
        let answer: PauseAnswer = serde_json::from_slice(&answer)
            .map_err(|error| anyhow!("the agent's answer: {error}"))?;
        if let Some(why) = answer.not_kept {
            note(format_args!(
                "warning: a restart of the agent would end the pause, because it could not be saved: {}",
                crate::text::visible(&why)
            ));
        }
        let (until, recalled) = (answer.until, answer.recalled);
        print(|out| writeln!(out, "paused until {until:.0}; moves recalled: {recalled}"))
    }
}

impl Resume {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let answer = running::post(&self.kernel, "/resume", Vec::new())?;
        print(|out| out.write_all(&answer))
    }
}
