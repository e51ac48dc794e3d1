//! The servers of the table of steps. Only the command that needs them installs them.

use std::{fs, path::PathBuf, process::Command};

use super::{Finding, host};

const DEBIAN: &str = "/usr/lib/postgresql";

pub(super) fn look() -> Vec<Finding> {
    let echo = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
    let echo = fs::exists(echo)
        .is_ok_and(|there| there)
        .then(|| echo.to_owned());
    let find = |program| host::find(program).map(|path| path.display().to_string());
    vec![
        finding("redis-server", find("redis-server"), "redis-server"),
        finding("cc", find("cc"), "gcc"),
        finding("nginx's echo", echo, "libnginx-mod-http-echo"),
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

/// The version of Debian's own Python module.
fn websockets() -> Option<String> {
    let code = "from importlib.metadata import version; print(version('websockets'))";
    let asked = Command::new("/usr/bin/python3").args(["-c", code]).output();
    let asked = asked.ok().filter(|asked| asked.status.success())?;
    Some(String::from_utf8_lossy(&asked.stdout).trim().to_owned())
}

/// Where Debian keeps the newest version's programs.
pub(crate) fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir(DEBIAN).ok()?.flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    programs
        .filter(|bin| bin.join("postgres").exists() && bin.join("pgbench").exists())
        .max()
}
