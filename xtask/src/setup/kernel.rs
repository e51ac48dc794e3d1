//! What builds the kernel half: a compiler with a BPF core, and bpf-linker built with the same
//! LLVM. The compiler is either a pinned nightly with rust-src, or Debian's with its prebuilt BPF
//! core. A toolchain's name proves nothing, so its contents are checked.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::command::output;

use super::{Finding, apt, host};
use crate::{progress, root};

/// The file, ignored by git, in which rebalancer-user's build script finds the toolchain's name.
const CHOICE: &str = ".ebpf-toolchain";
const NIGHTLY: &str = "nightly-2026-05-20";
const DEBIAN: &str = "debian";
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Both compilers emit bitcode of this LLVM version, and the linker must be able to read it.
const LLVM: u32 = 22;
const LINKER: &str = "0.13.0";
const LINKER_LIBRARIES: [&str; 5] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Toolchain {
    Nightly,
    Debian,
}

impl Toolchain {
    fn name(self) -> &'static str {
        match self {
            Self::Nightly => NIGHTLY,
            Self::Debian => DEBIAN,
        }
    }

    /// The toolchain that already works, preferably the recorded one; else the one to install.
    fn choose() -> Self {
        let recorded = fs::read_to_string(root().join(CHOICE)).unwrap_or_default();
        let order = if recorded.trim() == NIGHTLY {
            [Self::Nightly, Self::Debian]
        } else {
            [Self::Debian, Self::Nightly]
        };
        let works = |toolchain: &Self| compiler(*toolchain).is_ok();
        order.into_iter().find(works).unwrap_or_else(|| {
            let has_packages = apt::can_install() && COMPILER.into_iter().all(apt::offers);
            if has_packages {
                Self::Debian
            } else {
                Self::Nightly
            }
        })
    }
}

pub(super) fn find() -> Vec<Finding> {
    let toolchain = Toolchain::choose();
    let (compiler, linker) = (compiler(toolchain), linker());
    let mut packages = [Vec::new(), Vec::new()];
    if compiler.is_err() && toolchain == Toolchain::Debian {
        packages[0].extend(COMPILER);
    }
    // If apt has no such LLVM, building the linker reports what to install.
    if linker.is_err() && apt::is_available() && apt::offers(LINKER_LIBRARIES[0]) {
        packages[1].extend(LINKER_LIBRARIES);
    }
    let found = [("BPF compiler", compiler), ("bpf-linker", linker)];
    let finding = |((what, state), packages)| Finding {
        what,
        state,
        packages,
    };
    found.into_iter().zip(packages).map(finding).collect()
}

/// Installs the toolchain and the linker; the packages are installed by now.
pub(super) fn install() -> Result<()> {
    let toolchain = Toolchain::choose();
    if compiler(toolchain).is_err() {
        if toolchain == Toolchain::Debian {
            progress::run(
                "linking Debian's compiler into rustup",
                Command::new("rustup").args(["toolchain", "link", DEBIAN, "/usr"]),
            )?;
        }
        if let Err(problem) = compiler(toolchain) {
            println!("  using {NIGHTLY}: {problem:#}");
            progress::run(
                &format!("installing {NIGHTLY} with rust-src, about a minute"),
                Command::new("rustup")
                    .args(["toolchain", "install", NIGHTLY, "--profile", "minimal"])
                    .args(["--component", "rust-src"]),
            )?;
            compiler(Toolchain::Nightly)?;
        }
    }
    if linker().is_err() {
        build_linker()?;
    }
    Ok(())
}

/// Writes the toolchain's name to the file that the build script reads. An unchanged file is not
/// written, as a write would rebuild the kernel half.
pub(super) fn record() -> Result<()> {
    let name = Toolchain::choose().name();
    let path = root().join(CHOICE);
    if fs::read_to_string(&path).is_ok_and(|recorded| recorded.trim() == name) {
        return Ok(());
    }
    fs::write(&path, format!("{name}\n")).with_context(|| format!("write {CHOICE}"))
}

/// Describes the toolchain's compiler, if it can build the kernel half.
fn compiler(toolchain: Toolchain) -> Result<String> {
    let name = toolchain.name();
    let version = rustc(name, &["-vV"])?;
    let release = field(&version, "release: ").context("rustc -vV prints no release")?;
    let llvm = field(&version, "LLVM version: ").context("rustc -vV prints no LLVM version")?;
    ensure!(
        llvm.split('.').next() == Some(LLVM.to_string().as_str()),
        "{name} has LLVM {llvm}, but the linker needs {LLVM}"
    );
    let library = PathBuf::from(rustc(name, &["--print", "sysroot"])?.trim());
    let library = library.join("lib/rustlib");
    let core = match toolchain {
        Toolchain::Debian => {
            let folder = library.join("bpfel-unknown-none/lib");
            let is_core = |name: &str| name.starts_with("libcore") && name.ends_with(".rlib");
            let found = fs::read_dir(&folder).is_ok_and(|mut files| {
                files.any(|file| file.is_ok_and(|it| is_core(&it.file_name().to_string_lossy())))
            });
            ensure!(found, "{name} has no BPF core in {}", folder.display());
            "BPF core prebuilt"
        }
        Toolchain::Nightly => {
            let source = library.join("src/rust/library/core/src/lib.rs");
            ensure!(source.exists(), "{name} has no rust-src");
            "rust-src"
        }
    };
    Ok(format!("{name}: rustc {release}, LLVM {LLVM}, {core}"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn rustc(toolchain: &str, arguments: &[&str]) -> Result<String> {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", toolchain, "rustc"]).args(arguments);
    output(rustc.env("RUSTUP_AUTO_INSTALL", "0"))
        .with_context(|| format!("no toolchain {toolchain} of rustup, see https://rustup.rs"))
}

/// The versions of bpf-linker and of its LLVM.
fn linker() -> Result<String> {
    let path = host::find("bpf-linker").context("not installed")?;
    let version = output(Command::new(&path).arg("--version"))?;
    let version = version.trim().trim_start_matches("bpf-linker ");
    ensure!(version == LINKER, "found version {version}, need {LINKER}");
    match llvm_library(&output(Command::new("ldd").arg(&path))?) {
        Some(major) if major != LLVM => bail!("built with LLVM {major}, need {LLVM}"),
        Some(major) => Ok(format!("{version}, LLVM {major}")),
        None => Ok(format!("{version}, LLVM linked in")),
    }
}

/// The LLVM that a program loads, from `ldd`: `libLLVM.so.22.1 => …` or `libLLVM-17.so.1 => …`.
fn llvm_library(ldd: &str) -> Option<u32> {
    let name = ldd
        .lines()
        .find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let name = name.trim_start_matches(".so.").trim_start_matches('-');
    name.split(|character: char| !character.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn build_linker() -> Result<()> {
    let prefix = llvm_prefix()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(prefix.join("bin")).chain(std::env::split_paths(&path));
    progress::run(
        &format!("building bpf-linker {LINKER} with LLVM {LLVM}, about a minute"),
        Command::new("cargo")
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER,
                "--locked",
                "--force",
            ])
            .args(["--no-default-features", "--features", "llvm-22"])
            // LLVM does the work. With its usual profile it takes twice as long to build.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", std::env::join_paths(folders)?)
            .env_remove("RUSTC_BOOTSTRAP")
            .current_dir("/"),
    )
}

fn llvm_prefix() -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if debian.join("bin/llvm-config").exists() {
        return Ok(debian);
    }
    for program in [format!("llvm-config-{LLVM}"), "llvm-config".to_owned()] {
        let ask = |argument| output(Command::new(&program).arg(argument));
        if ask("--version").is_ok_and(|version| version.starts_with(&format!("{LLVM}."))) {
            return Ok(ask("--prefix")?.trim().into());
        }
    }
    bail!(
        "bpf-linker needs LLVM {LLVM} with its headers; install it (packages {}), then run \
         `cargo xtask setup` again",
        LINKER_LIBRARIES.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::{field, llvm_library};

    #[test]
    fn parses_llvm_from_ldd() {
        let new = "\tlinux-vdso.so.1 (0x0)\n\tlibLLVM.so.22.1 => /usr/lib/libLLVM.so.22.1 (0x0)\n";
        assert_eq!(llvm_library(new), Some(22));
        assert_eq!(
            llvm_library("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x0)\n"),
            Some(17)
        );
        assert_eq!(llvm_library("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
    }

    #[test]
    fn parses_a_field_of_rustc() {
        let version = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(field(version, "LLVM version: "), Some("22.1.8"));
        assert_eq!(field(version, "host: "), None);
    }
}
