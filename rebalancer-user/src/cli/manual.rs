//! `rebalancer completions` and `rebalancer man`: what shells and `man` know of the command line.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, print};

/// Print shell completions, e.g. for /usr/share/bash-completion/completions/rebalancer.
#[derive(Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // Into memory first: a closed pipe is then an error and no panic.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "rebalancer", &mut script);
        print(|out| out.write_all(&script))
    }
}

/// Print the manual page, or write one per command into a directory.
#[derive(Args)]
pub(super) struct Man {
    /// Write the pages of all commands into this directory instead, e.g. /usr/share/man/man1.
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let command = Cli::command();
        if let Some(dir) = self.dir {
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            return clap_mangen::generate_to(command, &dir)
                .with_context(|| format!("writing into {}", dir.display()));
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        print(|out| out.write_all(&page))
    }
}
