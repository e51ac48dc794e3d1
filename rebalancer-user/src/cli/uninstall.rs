//! `rebalancer uninstall`: remove what tracking has left in the kernel.

use anyhow::Context as _;
use clap::Args;

use super::{KernelArgs, need_privilege, records};
use crate::bpf::PinDir;

/// Remove every trace: detach the program and remove its maps, with the records in them.
///
/// For a node on which no agent shall run any more. While one runs this is refused.
#[derive(Args)]
pub(super) struct Uninstall {
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Uninstall {
    pub(super) fn run(self) -> anyhow::Result<()> {
        need_privilege()?;
        let pins = &self.kernel.pins;
        records::remove_stale(pins);
        if !pins.exists() {
            println!("{}: nothing there, nothing to remove", pins.display());
            return Ok(());
        }
        // Only an agent that has ended leaves its folder to us.
        let ours = PinDir::take(pins)?;
        let removed = ours
            .clear()
            .with_context(|| format!("removing what is in {}", pins.display()))?;
        drop(ours);
        if pins.exists() {
            anyhow::bail!("{}: still there", pins.display());
        }
        println!(
            "{}: removed, with {removed} pins; no program of ours is attached by them any more",
            pins.display()
        );
        Ok(())
    }
}
