//! `rebalancer bugreport`: what a report of a defect should have, in one archive.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;

use super::{KernelArgs, doctor::Doctor, masked::Masker, need_privilege, note, running};
use crate::{
    api::Form,
    http::{CooldownsRequest, PlanRequest},
    policy::LARGEST_FILE,
};

/// Write an archive for a bug report: doctor, status, events, policy, plan, cooldowns and metrics.
///
/// IP addresses are replaced by names such as `ipv4-1`, the same one wherever an address occurs. Names of nodes,
/// pods, Services and rules stay, as do ports, cgroups and what a policy says: read it before you publish it.
/// Without a running agent it has what the node says. Nothing is sent anywhere.
#[derive(Args)]
pub(super) struct Bugreport {
    /// The archive, which must not exist; `-` is stdout [default: rebalancer-bugreport-NODE-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// List what it would have, and write nothing.
    #[arg(long)]
    list: bool,
    /// The policy's file, if no agent says which it is.
    #[arg(long, value_name = "FILE", default_value = super::DEFAULT_POLICY)]
    policy: PathBuf,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// What the archive has: a file, and what it holds.
const PARTS: [(&str, &str); 9] = [
    (
        "README.txt",
        "version, node, time, and what is missing and why",
    ),
    (
        "doctor.json",
        "what the node provides and lacks, its kernel and distribution",
    ),
    (
        "status.json",
        "the agent: mode, budgets, moves in flight, sizes of maps, faults",
    ),
    ("events.ndjson", "its last 1,024 events"),
    ("policy.yaml", "the policy's file"),
    (
        "plan.json",
        "each connection, and why it is moved or skipped",
    ),
    ("cooldowns.json", "what is not tried again for a time"),
    ("services.json", "the endpoints of each Service"),
    ("metrics.txt", "all metrics"),
];

impl Bugreport {
    pub(super) fn run(self) -> anyhow::Result<()> {
        need_privilege()?;
        for (file, what) in PARTS {
            note(format_args!("{file:<16}{what}"));
        }
        if self.list {
            return Ok(());
        }
        let mut masker = Masker::default();
        let (mut parts, missing) = self.collect();
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let now = Timestamp::now();
        let readme = format!(
            "rebalancer {}, node {name}, {now:.0}\n{}",
            env!("CARGO_PKG_VERSION"),
            missing.join("\n")
        );
        parts.insert(0, ("README.txt", readme.into_bytes()));
        let parts = parts.into_iter().map(|(file, bytes)| {
            let text = String::from_utf8_lossy(&bytes);
            (file, masker.mask(&text).into_bytes())
        });
        let archive = archive(parts, now)?;
        for line in &missing {
            note(masker.mask(line));
        }
        let addresses = masker.count();
        match self.output {
            Some(path) if path.as_os_str() == "-" => {
                io::stdout()
                    .lock()
                    .write_all(&archive)
                    .context("writing to stdout")?;
            }
            path => {
                let default = || {
                    let name: String = name
                        .chars()
                        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
                        .collect();
                    let time = now.strftime("%Y%m%dT%H%M%SZ");
                    PathBuf::from(format!("rebalancer-bugreport-{name}-{time}.tar.gz"))
                };
                let path = path.unwrap_or_else(default);
                write_new(&path, &archive)?;
                note(format_args!(
                    "{}: {} KiB, {addresses} addresses masked; names are not: read it before you publish it",
                    path.display(),
                    archive.len().div_ceil(1024)
                ));
            }
        }
        Ok(())
    }

    /// What there is, and what is missing and why.
    fn collect(&self) -> (Vec<(&'static str, Vec<u8>)>, Vec<String>) {
        let kernel = &self.kernel;
        let (mut parts, mut missing) = (Vec::new(), Vec::new());
        let mut add = |file: &'static str, part: anyhow::Result<Vec<u8>>| match part {
            Ok(bytes) => parts.push((file, bytes)),
            Err(error) => missing.push(format!("missing: {file}: {error:#}")),
        };
        let get = |path: &str| Ok(running::text(kernel, path)?.to_vec());
        let post = |path: &str, body: serde_json::Result<Vec<u8>>| {
            Ok(running::post(kernel, path, body?)?.to_vec())
        };
        add("doctor.json", Doctor::json(kernel).map_err(Into::into));
        add("status.json", get("/status"));
        add("events.ndjson", get("/events"));
        let status = running::status(kernel);
        let policy = status.map_or_else(|_| self.policy.clone(), |s| PathBuf::from(s.policy.file));
        add("policy.yaml", read_policy(&policy));
        let form = Form::Json;
        let plan = PlanRequest {
            form,
            ..PlanRequest::default()
        };
        add("plan.json", post("/plan", serde_json::to_vec(&plan)));
        let cooldowns = serde_json::to_vec(&CooldownsRequest { form });
        add("cooldowns.json", post("/cooldowns", cooldowns));
        add("services.json", get("/services"));
        add("metrics.txt", get("/metrics"));
        (parts, missing)
    }
}

fn read_policy(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;

    let shown = path.display().to_string();
    let file = std::fs::File::open(path).context(shown.clone())?;
    if !file.metadata()?.is_file() {
        bail!("{shown}: not a file");
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE)
        .read_to_end(&mut bytes)
        .context(shown)?;
    Ok(bytes)
}

fn archive(
    parts: impl Iterator<Item = (&'static str, Vec<u8>)>,
    now: Timestamp,
) -> anyhow::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (file, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
        let path = format!("rebalancer-bugreport/{file}");
        tar.append_data(&mut header, path, bytes.as_slice())?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// Writes a file that only its owner may read, and that was not there before.
fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| {
            format!(
                "{}\n  remedy: name another file by --output\n  cause",
                path.display()
            )
        })?;
    file.write_all(bytes)
        .with_context(|| path.display().to_string())
}
