//! PostgreSQL, a server of `cargo xtask test steps`.

use std::{fs, path::PathBuf};

use anyhow::Context as _;

use super::Finding;

const DEBIAN: &str = "/usr/lib/postgresql";

pub(super) fn find() -> Finding {
    let programs = postgres_programs().context("missing: for the suite steps");
    Finding {
        what: "PostgreSQL",
        state: programs.map(|bin| bin.display().to_string()),
        packages: vec!["postgresql"],
    }
}

/// The folder of the newest installed version's programs.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir(DEBIAN).ok()?.flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    programs
        .filter(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists())
        .max()
}
