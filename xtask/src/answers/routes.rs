//! The routes to the server, all within one pod: directly, and through reverse proxies, whose
//! client connections are the ones that are moved.

use std::fs;

use anyhow::{Context as _, Result};
use xtask::lab::{self, Lab, Pod};

use super::request::{Kind, file};
use crate::server::{Running, folder};

/// How clients reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Route {
    Direct,
    Nginx,
    Haproxy,
}

impl Route {
    pub(super) const ALL: [Self; 3] = [Self::Direct, Self::Nginx, Self::Haproxy];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    pub(super) fn port(self) -> u16 {
        match self {
            Self::Direct => 8070,
            Self::Nginx => 8071,
            Self::Haproxy => 8072,
        }
    }

    /// Whether the route supports this kind of response, without any agent.
    pub(super) fn carries(self, kind: Kind) -> bool {
        match self {
            Self::Direct => true,
            // nginx takes 103 for the final response and does not support CONNECT.
            Self::Nginx => !matches!(kind, Kind::Early | Kind::Connect),
            // haproxy does not forward an h2c upgrade.
            Self::Haproxy => kind != Kind::H2c,
        }
    }
}

/// Starts the server and both proxies.
pub(super) fn start(lab: &Lab, pod: &Pod) -> Result<[Running; 3]> {
    Ok([server(lab, pod)?, nginx(lab, pod)?, haproxy(lab, pod)?])
}

fn server(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "answers")?;
    let path = folder.join("file");
    fs::write(&path, file())?;
    let port = Route::Direct.port();
    let mut server = pod
        .host
        .command(std::env::current_exe().context("this program's path")?);
    server.args(["answers-server", &format!("0.0.0.0:{port}")]);
    Running::start(lab, pod, &folder, server.arg(path), &[port])
}

fn nginx(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "nginx")?;
    fs::write(folder.join("file"), file())?;
    let (path, port, server) = (folder.display(), Route::Nginx.port(), Route::Direct.port());
    let text = format!(
        "proxy_temp_path {path}/proxied;\n\
         sendfile on;\n\
         map $http_upgrade $upgrade {{ default $http_connection; '' ''; }}\n\
         upstream server {{ server 127.0.0.1:{server}; keepalive 512; }}\n\
         server {{\n\
             listen {port} backlog=4096;\n\
             location / {{\n\
                 proxy_pass http://server;\n\
                 proxy_http_version 1.1;\n\
                 proxy_buffering off;\n\
                 proxy_read_timeout 10m;\n\
                 proxy_set_header Upgrade $http_upgrade;\n\
                 proxy_set_header Connection $upgrade;\n\
             }}\n\
             # A file of its own, at a limited rate.\n\
             location /file/ {{\n\
                 root {path};\n\
                 try_files /file =404;\n\
                 limit_rate 256k;\n\
             }}\n\
         }}\n"
    );
    let mut nginx = lab::nginx(&pod.host, &folder, &text)?;
    Running::start(lab, pod, &folder, &mut nginx, &[port])
}

fn haproxy(lab: &Lab, pod: &Pod) -> Result<Running> {
    let folder = folder(lab, pod, "haproxy")?;
    let configuration = folder.join("haproxy.cfg");
    let (port, server) = (Route::Haproxy.port(), Route::Direct.port());
    let text = format!(
        "global\n\
         \x20 maxconn 4096\n\
         \x20 nbthread 1\n\
         defaults\n\
         \x20 mode http\n\
         \x20 timeout connect 10s\n\
         \x20 timeout client 1h\n\
         \x20 timeout server 10m\n\
         \x20 timeout tunnel 1h\n\
         \x20 timeout http-keep-alive 1h\n\
         frontend clients\n\
         \x20 bind :{port}\n\
         \x20 default_backend server\n\
         backend server\n\
         \x20 http-reuse safe\n\
         \x20 server one 127.0.0.1:{server}\n"
    );
    fs::write(&configuration, text)?;
    let mut haproxy = pod.host.command("haproxy");
    haproxy.args(["-db", "-f"]).arg(configuration);
    Running::start(lab, pod, &folder, &mut haproxy, &[port])
}
