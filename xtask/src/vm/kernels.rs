//! A kernel out of its packages: what qemu boots, and the modules that the lab and the agent need.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use fs_err as fs;
use xtask::command::output;

use crate::{once, progress, setup};

/// Of `/lib/modules/RELEASE/kernel`.
const NEEDED: [&str; 14] = [
    "arch/x86/crypto",
    "arch/x86/lib",
    "crypto",
    "drivers/net/veth.ko",
    "lib",
    "net/802",
    "net/bridge",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/mptcp",
    "net/netfilter",
    "net/tls",
];

pub(super) struct Kernel {
    /// As `uname -r` prints it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// Holds `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Unpacks these packages, unless that was done before.
    pub(super) fn unpack(packages: &[PathBuf], folder: &Path) -> Result<Self> {
        let name = |package: &PathBuf| Some(package.file_stem()?.to_str()?.to_owned());
        let names: Option<Vec<_>> = packages.iter().map(name).collect();
        let done = folder
            .join("kernels")
            .join(names.context("a package's name")?.join("-and-"));
        once(&done, |partial| {
            fs::create_dir_all(partial)?;
            for package in packages {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("-x").arg(package).arg(partial);
                progress::run(&format!("unpacking {}", package.display()), &mut unpack)?;
            }
            choose(partial)
        })?;
        let release = release(&done.join("lib/modules"))?;
        Ok(Self {
            image: done.join("vmlinuz"),
            modules: done,
            release,
        })
    }
}

/// The one release in a folder of modules.
fn release(modules: &Path) -> Result<String> {
    let mut found = fs::read_dir(modules)?;
    let first = found
        .next()
        .with_context(|| format!("no modules in {}", modules.display()))??;
    let name = first.file_name().into_string();
    name.ok().context("a release that is no UTF-8")
}

/// Leaves of an unpacked kernel what is needed, modules without compression: busybox looks for what
/// they depend on only in those.
fn choose(unpacked: &Path) -> Result<()> {
    let places = ["usr/lib/modules", "lib/modules"].map(|place| unpacked.join(place));
    let all = places.iter().find(|place| place.exists());
    let all = all.context("no modules in these packages: give those of linux-modules-* too")?;
    let release = release(all)?;
    let from = all.join(&release);
    let images = [
        unpacked.join(format!("boot/vmlinuz-{release}")),
        from.join("vmlinuz"),
    ];
    let image = images.iter().find(|image| image.exists());
    let image = image.context("no kernel in these packages: give that of linux-binary-* too")?;
    fs::rename(image, unpacked.join("vmlinuz")).context("the kernel's image")?;
    let chosen = unpacked.join("chosen");
    let to = chosen.join("lib/modules").join(&release);
    let mut modules = Vec::new();
    for needed in NEEDED {
        let needed = Path::new("kernel").join(needed);
        for suffix in ["", ".xz"] {
            let mut name = needed.clone().into_os_string();
            name.push(suffix);
            take(&from.join(&name), &to.join(&name), &mut modules)?;
        }
    }
    for index in ["modules.builtin", "modules.order"] {
        take(&from.join(index), &to.join(index), &mut Vec::new())?;
    }
    let compressed: Vec<_> = modules
        .iter()
        .filter(|it| it.extension().is_some_and(|it| it == "xz"))
        .collect();
    if !compressed.is_empty() {
        output(Command::new("xz").arg("--decompress").args(compressed))?;
    }
    for part in ["boot", "usr", "lib", "etc"] {
        let _not_there = fs::remove_dir_all(unpacked.join(part));
    }
    fs::rename(chosen.join("lib"), unpacked.join("lib")).context("modules")?;
    let busybox = setup::find("busybox").context("busybox")?;
    let mut depmod = Command::new(busybox);
    depmod.args(["depmod", "-b"]).arg(unpacked).arg(&release);
    output(&mut depmod).map(drop)
}

/// Moves a file, or all files of a folder, if they are there.
fn take(from: &Path, to: &Path, taken: &mut Vec<PathBuf>) -> Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            take(&from.join(&name), &to.join(&name), taken)?;
        }
    } else if from.exists() {
        let parent = to.parent().context("a module's folder")?;
        fs::create_dir_all(parent)?;
        fs::rename(from, to)?;
        taken.push(to.to_owned());
    }
    Ok(())
}
