//! nginx in a host of the lab: one worker, in the foreground, that keeps idle connections.

use std::{path::Path, process::Command};

use anyhow::Result;
use fs_err as fs;

use super::Host;

/// A command that runs nginx in `host`, with these servers and more of the section `http`. Its files
/// are in `folder`.
pub fn nginx(host: &Host, folder: &Path, http: &str) -> Result<Command> {
    let path = folder.display();
    let text = format!(
        "daemon off;\n\
         worker_processes 1;\n\
         pid {path}/pid;\n\
         error_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
             access_log off;\n\
             client_body_temp_path {path}/bodies;\n\
             keepalive_requests 1000000;\n\
             keepalive_timeout 1h;\n\
             {http}\
         }}\n"
    );
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, text)?;
    let mut nginx = host.command("nginx");
    nginx.arg("-p").arg(folder).arg("-c").arg(configuration);
    Ok(nginx)
}
