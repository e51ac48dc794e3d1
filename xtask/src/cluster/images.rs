//! The images of the cluster's pods, built from this machine's programs without a registry. The
//! agent's is that of `cargo xtask image`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use fs_err as fs;
use serde_json::{Value, json};

use super::{layout, process::output};
use crate::{
    image::{self, Image, Root},
    root, setup,
};

/// The sandbox of every pod.
pub(super) const PAUSE: &str = "rebalancer.local/pause:1";
/// nginx, a replica of the Service.
pub(crate) const WEB: &str = "rebalancer.local/web:1";
/// A shell, and the keep-alive client at `/usr/bin/xtask`.
pub(crate) const CLIENT: &str = "rebalancer.local/client:1";

const SHELL: &[&str] = &["sh", "cat", "sleep", "ls", "env", "hostname", "kill"];

/// The built images, as tars.
pub(super) struct Images {
    /// Also PID 1 of each node.
    pub(super) pause_program: PathBuf,
    tars: Vec<PathBuf>,
}

impl Images {
    /// Builds them in the cluster's folder, and that of `agent`.
    pub(super) fn make(agent: &Path) -> Result<Self> {
        let folder = layout::state().join("images");
        fs::create_dir_all(&folder)?;
        let pause_program = folder.join("pause");
        compile_pause(&pause_program)?;
        let write = |name: &str, root: &Root, config: Value| -> Result<PathBuf> {
            let file = name.replace(['/', ':'], "-");
            let path = folder.join(format!("{file}.tar"));
            let image = Image { name, root, config };
            fs::write(&path, image.tar()?)?;
            Ok(path)
        };
        let mut pause = Root::default();
        pause.program("/pause", &pause_program)?;
        let nginx = json!({"Entrypoint": ["/usr/sbin/nginx"], "StopSignal": "SIGQUIT"});
        let shell = json!({"Entrypoint": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]});
        Ok(Self {
            tars: vec![
                write(PAUSE, &pause, json!({"Entrypoint": ["/pause"]}))?,
                write(WEB, &web()?, nginx)?,
                write(CLIENT, &client()?, shell)?,
                image::write(agent)?,
            ],
            pause_program,
        })
    }

    pub(super) fn all(&self) -> &[PathBuf] {
        &self.tars
    }
}

/// Builds it static, as its image contains nothing else.
fn compile_pause(path: &Path) -> Result<()> {
    let source = root().join("xtask/cluster/images/pause.c");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-Os", "-static", "-s", "-o"])
        .arg(path)
        .arg(source);
    output(&mut compiler).map(drop)
}

fn web() -> Result<Root> {
    let mut root = with_shell()?;
    root.program("/usr/sbin/nginx", &setup::find("nginx").context("nginx")?)?;
    let path = crate::root().join("xtask/cluster/images/nginx.conf");
    let text = fs::read_to_string(&path)?;
    root.text("/etc/nginx/nginx.conf", &text);
    root.text("/etc/nginx/slow", &"slow\n".repeat(500));
    for folder in ["/run", "/tmp", "/var/log/nginx", "/var/lib/nginx"] {
        root.folder(folder);
    }
    Ok(root)
}

fn client() -> Result<Root> {
    let mut root = with_shell()?;
    let this = std::env::current_exe().context("this program's path")?;
    root.program("/usr/bin/xtask", &this)?;
    Ok(root)
}

fn with_shell() -> Result<Root> {
    let mut root = Root::default();
    root.program("/bin/busybox", &setup::find("busybox").context("busybox")?)?;
    for name in SHELL {
        root.link(&format!("/bin/{name}"), "busybox");
    }
    root.text(
        "/etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    );
    root.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n");
    Ok(root)
}
