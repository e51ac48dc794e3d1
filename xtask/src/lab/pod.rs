//! A pod: a host, with nginx while it serves. nginx reports its counts on a unix socket, so that
//! reading them creates no TCP connection to track.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::{Host, addresses::PORT, nginx};
use crate::process::Process;

/// The size of `/blob`.
pub const BLOB_BYTES: usize = 256 << 10;

/// One replica of the lab's Service.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub addr: IpAddr,
    /// `None` if the lab has no IPv6.
    pub addr6: Option<IpAddr>,
    pub host: Host,
    folder: PathBuf,
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    nginx: Process,
    /// Number of requests for its counts, which nginx counts as well.
    status_requests: u64,
}

/// What a pod's nginx has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub open: u64,
    pub accepted: u64,
    pub requests: u64,
}

impl Pod {
    pub(crate) fn new(
        name: String,
        addr: IpAddr,
        addr6: Option<IpAddr>,
        host: Host,
        folder: PathBuf,
    ) -> Self {
        Self {
            name,
            addr,
            addr6,
            host,
            folder,
            server: Mutex::new(None),
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.addr, PORT)
    }

    /// The IPv6 address that it listens on, if the lab has IPv6.
    pub fn address6(&self) -> Option<SocketAddr> {
        self.addr6.map(|addr| SocketAddr::new(addr, PORT))
    }

    /// Starts nginx and waits until it listens, unless it runs already.
    pub fn start_server(&self) -> Result<()> {
        let mut server = self.server.lock();
        if server.is_none() {
            *server = Some(
                self.start_nginx()
                    .with_context(|| format!("nginx in {}", self.name))?,
            );
        }
        Ok(())
    }

    /// Stops nginx, which closes its listener and its connections.
    pub fn stop_server(&self) -> Result<()> {
        let mut server = self.server.lock();
        if let Some(mut server) = server.take() {
            server.nginx.stop(Signal::TERM).context("stop nginx")?;
        }
        Ok(())
    }

    /// nginx's counts, without the requests for them.
    pub fn counts(&self) -> Result<Counts> {
        let mut server = self.server.lock();
        let server = server
            .as_mut()
            .with_context(|| format!("{} does not serve", self.name))?;
        server.status_requests += 1;
        let counts = parse_status(&self.status()?).context("nginx's status")?;
        Ok(Counts {
            open: counts.open.saturating_sub(1),
            accepted: counts.accepted.saturating_sub(server.status_requests),
            requests: counts.requests.saturating_sub(server.status_requests),
        })
    }

    fn start_nginx(&self) -> Result<Server> {
        fs::create_dir_all(&self.folder)?;
        // A killed nginx leaves its socket, which would prevent binding again.
        let _ = fs::remove_file(self.folder.join("status"));
        fs::write(self.folder.join("blob"), vec![b'x'; BLOB_BYTES])?;
        let mut nginx = nginx(&self.host, &self.folder, &self.servers())?;
        let mut nginx = Process::start(&mut nginx, self.folder.join("log"))?;
        nginx.wait("its status", Duration::from_secs(10), || self.status().ok())?;
        Ok(Server {
            nginx,
            status_requests: 1,
        })
    }

    fn servers(&self) -> String {
        let (folder, name) = (self.folder.display(), &self.name);
        let listen6 = match self.addr6 {
            Some(_) => format!("listen [::]:{PORT} backlog=4096;"),
            None => String::new(),
        };
        format!(
            "default_type text/plain;\n\
             server {{\n\
                 listen {PORT} backlog=4096;\n\
                 {listen6}\n\
                 add_header X-Pod {name};\n\
                 location / {{ return 200 \"{name}\\n\"; }}\n\
                 location = /blob {{ root {folder}; }}\n\
             }}\n\
             server {{ listen unix:{folder}/status; location / {{ stub_status; }} }}\n"
        )
    }

    fn status(&self) -> Result<String> {
        let mut socket = UnixStream::connect(self.folder.join("status"))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Parses the output of stub_status:
///
/// ```text
/// Active connections: 2
/// server accepts handled requests
///  3 3 5
/// Reading: 0 Writing: 1 Waiting: 1
/// ```
fn parse_status(status: &str) -> Option<Counts> {
    let open = status
        .split("Active connections:")
        .nth(1)?
        .split_whitespace()
        .next()?;
    let numbers = status.split("requests").nth(1)?;
    let mut numbers = numbers.split_whitespace().map(|number| number.parse().ok());
    let (accepted, _handled, requests) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(Counts {
        open: open.parse().ok()?,
        accepted,
        requests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_stub_status() {
        let status = "HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nActive connections: 2 \nserver \
                      accepts handled requests\n 3 3 5 \nReading: 0 Writing: 1 Waiting: 1 \n";
        let counts = Counts {
            open: 2,
            accepted: 3,
            requests: 5,
        };
        assert_eq!(parse_status(status), Some(counts));
        assert_eq!(parse_status("HTTP/1.1 404 Not Found\r\n\r\n"), None);
    }
}
