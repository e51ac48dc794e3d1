//! The BPF programs, maps and links that a process holds, by ID: other agents on the machine use
//! the same names.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A program, map or link: bpftool's word for its kind, and its ID.
pub type BpfObject = (&'static str, u64);

/// Each kind and its line in `fdinfo`. A link's `fdinfo` names its program as well, so links come
/// first.
const KINDS: [(&str, &str); 3] = [
    ("link", "link_id:"),
    ("prog", "prog_id:"),
    ("map", "map_id:"),
];

/// The objects that process `pid` holds by a descriptor.
pub fn held_by(pid: u32) -> Result<Vec<BpfObject>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut held = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // The descriptor may have been closed meanwhile.
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

/// Those of `objects` that the kernel still has.
pub fn remaining(objects: &[BpfObject]) -> Result<Vec<BpfObject>> {
    let mut loaded = Vec::new();
    for (kind, _) in KINDS {
        let list = Command::new("bpftool").args(["-j", kind, "show"]).output();
        let list = list.context("bpftool")?.stdout;
        let list: Vec<Value> = serde_json::from_slice(&list).context("bpftool's list")?;
        let ids = list.iter().filter_map(|one| one["id"].as_u64());
        loaded.extend(ids.map(|id| (kind, id)));
    }
    let objects = objects.iter().copied();
    Ok(objects.filter(|object| loaded.contains(object)).collect())
}
