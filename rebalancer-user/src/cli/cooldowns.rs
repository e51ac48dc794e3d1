//! `rebalancer cooldowns`: what the agent does not try again for a time, and how to have it tried.

use std::io::Write as _;

use clap::{ArgGroup, Args, Subcommand};

use super::{KernelArgs, print, running};
use crate::{
    api::Form,
    http::{ClearRequest, CooldownsRequest},
    policy::RuleName,
};

/// List or clear cooldowns: periods in which the agent does not repeat moves that did not work.
///
/// Of a connection whose move was refused, failed or gave up; of clients that came back to the same
/// endpoint, which only maxAge still moves; of a group in which an endpoint stays empty. The first
/// lasts 10 minutes, each next one twice as long, up to a day.
#[derive(Subcommand)]
pub(super) enum Cooldowns {
    List(List),
    Clear(Clear),
}

/// List the cooldowns that last: of what, why, how often so far, and when they end.
#[derive(Args)]
pub(super) struct List {
    /// The form of the output; wide has the reasons in words.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// End cooldowns now, so that the next pass may try again.
///
/// Budgets and guards hold as ever. Where clients come back, or an endpoint stays empty, the next
/// cooldown is as long as if this one had expired.
#[derive(Args)]
#[command(group = ArgGroup::new("which").required(true).args(["rule", "all"]))]
pub(super) struct Clear {
    /// Those of this rule, and of single clients where it has moved any.
    #[arg(long, value_name = "NAME", value_parser = rule)]
    rule: Option<RuleName>,
    /// All of them.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn rule(text: &str) -> Result<RuleName, String> {
    RuleName::try_from(text.to_owned())
}

impl Cooldowns {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let answer = match self {
            Self::List(List { output, kernel }) => {
                let form = output;
                let body = serde_json::to_vec(&CooldownsRequest { form })?;
                running::post(&kernel, "/cooldowns", body)?
            }
            Self::Clear(Clear { rule, kernel, .. }) => {
                let body = serde_json::to_vec(&ClearRequest { rule })?;
                running::post(&kernel, "/cooldowns/clear", body)?
            }
        };
        print(|out| out.write_all(&answer))
    }
}
