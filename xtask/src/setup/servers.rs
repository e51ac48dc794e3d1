//! The servers of `cargo xtask test steps`, which alone installs them.

use std::{fs, path::PathBuf, process::Command};

use super::{Finding, host};

const DEBIAN: &str = "/usr/lib/postgresql";

pub(super) fn find_all() -> Vec<Finding> {
    let echo = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
    let echo = matches!(fs::exists(echo), Ok(true)).then(|| echo.to_owned());
    let find = |program| host::find(program).map(|path| path.display().to_string());
    vec![
        finding("redis-server", find("redis-server"), "redis-server"),
        finding("cc", find("cc"), "gcc"),
        finding("nginx's echo module", echo, "libnginx-mod-http-echo"),
        finding(
            "PostgreSQL",
            postgres_programs().map(|bin| bin.display().to_string()),
            "postgresql",
        ),
        finding("setpriv", find("setpriv"), "util-linux"),
        finding("websockets", websockets(), "python3-websockets"),
    ]
}

fn finding(what: &'static str, found: Option<String>, package: &'static str) -> Finding {
    let missing = || "missing: for `cargo xtask test steps`".to_owned();
    Finding {
        what,
        state: found.ok_or_else(missing),
        packages: vec![package],
    }
}

/// The version of Debian's Python module.
fn websockets() -> Option<String> {
    let code = "from importlib.metadata import version; print(version('websockets'))";
    let output = Command::new("/usr/bin/python3").args(["-c", code]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The folder of the newest installed version's programs.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir(DEBIAN).ok()?.flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    programs
        .filter(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists())
        .max()
}
