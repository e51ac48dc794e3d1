//! The servers of `cargo xtask test steps`, which alone installs them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Finding, host::find_program};

const PURPOSE: &str = "`cargo xtask test steps`";

const DEBIAN: &str = "/usr/lib/postgresql";

pub(super) fn find_all() -> Vec<Finding> {
    let echo = "/usr/lib/nginx/modules/ngx_http_echo_module.so";
    let echo = Path::new(echo).exists().then(|| echo.to_owned());
    let postgres = postgres_programs().map(|bin| bin.display().to_string());
    vec![
        find_program(("redis-server", "redis-server", PURPOSE)),
        find_program(("cc", "gcc", PURPOSE)),
        Finding::new(
            "nginx's echo module",
            echo,
            PURPOSE,
            "libnginx-mod-http-echo",
        ),
        Finding::new("PostgreSQL", postgres, PURPOSE, "postgresql"),
        find_program(("setpriv", "util-linux", PURPOSE)),
        Finding::new("websockets", websockets(), PURPOSE, "python3-websockets"),
    ]
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
