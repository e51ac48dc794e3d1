//! The servers of the table of steps. Only the command that needs them installs them.

use std::process::Command;

use super::{Finding, host};
use crate::steps::postgres;

pub(super) fn short() -> Vec<Finding> {
    let programs = [("redis-server", "redis-server"), ("cc", "gcc")];
    programs
        .into_iter()
        .map(|(program, package)| {
            let path = host::find(program).map(|path| path.display().to_string());
            finding(program, path, package)
        })
        .collect()
}

pub(super) fn all() -> Vec<Finding> {
    let echo = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
    let echo = std::fs::exists(echo)
        .is_ok_and(|there| there)
        .then(|| echo.to_owned());
    let setpriv = host::find("setpriv").map(|path| path.display().to_string());
    vec![
        finding("nginx's echo", echo, "libnginx-mod-http-echo"),
        finding(
            "PostgreSQL",
            postgres::programs().map(|bin| bin.display().to_string()),
            "postgresql",
        ),
        finding("setpriv", setpriv, "util-linux"),
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
