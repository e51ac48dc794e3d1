//! `rebalancer uninstall`: remove what tracking has left in the kernel.

use anyhow::Context as _;
use clap::Args;

use super::{KernelArgs, need_privilege, records};
use crate::{
    agent::{forget_kept, forget_pause},
    bpf::PinDir,
    http::RunDir,
};

/// Remove the agent from the kernel: detach its programs and remove its maps with their records.
///
/// For a node that is to run no agent; refused while one is running. Open connections
/// keep one callback flag (BPF_SOCK_OPS_STATE_CB) until they close, when other sock_ops programs, if
/// any, are called.
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
            self.forget_left()?;
            println!("{}: does not exist, nothing to remove", pins.display());
            return Ok(());
        }
        // Only an agent that has ended leaves its folder to us.
        let ours = PinDir::take(pins)?;
        let removed = ours
            .clear()
            .with_context(|| format!("removing what is in {}", pins.display()))?;
        self.forget_left()?;
        drop(ours);
        if pins.exists() {
            anyhow::bail!("{}: could not be removed", pins.display());
        }
        println!(
            "{}: removed {removed} pins and detached our programs; open connections keep a callback \
             flag until they close",
            pins.display()
        );
        Ok(())
    }

    /// A pause outlives its agent, and so does what it has done.
    fn forget_left(&self) -> anyhow::Result<()> {
        let dir = self.kernel.run_dir();
        if !dir.exists() {
            return Ok(());
        }
        // Only an agent that has ended leaves it to us; it goes with us if nothing else is in it.
        let _ours = RunDir::take(&dir)?;
        if forget_pause(&dir).with_context(|| format!("removing the pause in {}", dir.display()))? {
            println!("{}: removed the saved pause", dir.display());
        }
        forget_kept(&dir).with_context(|| format!("removing what is kept in {}", dir.display()))?;
        Ok(())
    }
}
