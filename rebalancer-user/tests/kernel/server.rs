//! Servers of the tests' own, each a process in a pod, as real ones are: the guards look at the
//! process that holds a connection. It is this test binary, started again.
//!
//! Each byte is a request, and answered with itself: `s` after a second, `h` after three, all
//! others at once. End of file ends the connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use xtask::lab::Host;

use crate::program::again;

const ADDRESS: &str = "REBALANCER_TEST_SERVER";
const KIND: &str = "REBALANCER_TEST_SERVER_KIND";

/// What is special about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: it ignores SIGPIPE, as any Rust program does.
    Plain,
    /// SIGPIPE would kill it.
    DiesOfSigpipe,
    /// It passes each connection on to a program that it starts, and to which SIGPIPE is news.
    Leaks,
    /// It holds each connection where no process's table shows it.
    Hides,
    /// It does not close on end of file.
    Stays,
    /// It takes 300 ms from end of file to its close.
    Lingers,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::DiesOfSigpipe,
        Self::Leaks,
        Self::Hides,
        Self::Stays,
        Self::Lingers,
    ];
}

/// A server. Dropping it kills it.
pub struct Server {
    pub address: SocketAddr,
    pub child: Child,
}

impl Server {
    /// Starts one at an address of this host, and waits until it listens.
    pub fn start(host: &Host, address: impl Into<SocketAddr>, kind: Kind) -> Self {
        let address = address.into();
        let mut child = again(host, "server::serves_when_told")
            .env(ADDRESS, address.to_string())
            .env(KIND, format!("{kind:?}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        assert!(
            lines.any(|line| line.ends_with("listening")),
            "the server at {address} does not listen"
        );
        Self { address, child }
    }

    /// Whether it runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test but the server, if the environment says so.
#[test]
fn serves_when_told() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let name = std::env::var(KIND).unwrap();
    let is_it = |kind: &Kind| format!("{kind:?}") == name;
    let kind = Kind::ALL.into_iter().find(is_it).unwrap();
    if kind == Kind::DiesOfSigpipe {
        // SAFETY: no handler of ours is replaced.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let listener = TcpListener::bind(address.parse::<SocketAddr>().unwrap()).unwrap();
    println!("listening");
    for stream in listener.incoming().map_while(Result::ok) {
        std::thread::spawn(move || serve(stream, kind));
    }
}

fn serve(stream: TcpStream, kind: Kind) {
    match kind {
        Kind::Hides => hide(&stream),
        Kind::Leaks => leak(&stream),
        _ => answer(stream, kind),
    }
}

fn answer(mut stream: TcpStream, kind: Kind) {
    let mut request = [0];
    loop {
        match stream.read(&mut request) {
            Ok(1) => {}
            Ok(_) if kind == Kind::Stays => std::thread::sleep(Duration::from_secs(3600)),
            Ok(_) if kind == Kind::Lingers => {
                return std::thread::sleep(Duration::from_millis(300));
            }
            _ => return,
        }
        match &request {
            b"s" => std::thread::sleep(Duration::from_secs(1)),
            b"h" => std::thread::sleep(Duration::from_secs(3)),
            _ => {}
        }
        if stream.write_all(&request).is_err() {
            return;
        }
    }
}

/// Under way in a unix socket, a descriptor is in nobody's table.
fn hide(stream: &TcpStream) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let (sender, _receiver) = UnixStream::pair().unwrap();
    let descriptors = [stream.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let one = [std::io::IoSlice::new(b"x")];
    sendmsg(&sender, &one, &mut message, SendFlags::empty()).unwrap();
    // SAFETY: the stream is not used, nor closed by its value, any more: the process ends first.
    unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(stream)) };
    std::thread::sleep(Duration::from_secs(3600));
}

fn leak(stream: &TcpStream) {
    let inherited: Stdio = std::os::fd::OwnedFd::from(stream.try_clone().unwrap()).into();
    let mut child = Command::new("sleep")
        .arg("3600")
        .stdin(inherited)
        .spawn()
        .unwrap();
    answer(stream.try_clone().unwrap(), Kind::Plain);
    child.kill().unwrap();
    child.wait().unwrap();
}
