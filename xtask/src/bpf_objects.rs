//! What a process holds of BPF. Never asked by name: other agents on a machine have the same names.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A program, map or link, by bpftool's word for it and its id.
pub type Held = (&'static str, u64);

/// How the kernel describes a descriptor of each. A link's description names its program as well.
const KINDS: [(&str, &str); 3] = [
    ("link", "link_id:"),
    ("prog", "prog_id:"),
    ("map", "map_id:"),
];

/// Those that a process holds.
pub fn held_by(process: u32) -> Result<Vec<Held>> {
    let folder = format!("/proc/{process}/fdinfo");
    let mut held = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // A descriptor may be closed by now.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = |key| {
            let of = |line: &str| line.strip_prefix(key)?.trim().parse().ok();
            info.lines().find_map(of)
        };
        let mut kinds = KINDS.into_iter();
        held.extend(kinds.find_map(|(kind, key)| Some((kind, id(key)?))));
    }
    Ok(held)
}

/// Those of them that the kernel still has.
pub fn still_there(held: &[Held]) -> Result<Vec<Held>> {
    let mut there = Vec::new();
    for (kind, _) in KINDS {
        let list = Command::new("bpftool").args(["-j", kind, "show"]).output();
        let list = list.context("bpftool")?.stdout;
        let list: Vec<Value> = serde_json::from_slice(&list).context("bpftool's list")?;
        let ids = list.iter().filter_map(|one| one["id"].as_u64());
        there.extend(ids.map(|id| (kind, id)));
    }
    Ok(held
        .iter()
        .copied()
        .filter(|one| there.contains(one))
        .collect())
}
