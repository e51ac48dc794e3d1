//! Servers of the tests' own, each a process in a pod, as real ones are: the guards look at the
//! process that holds a connection.
//!
//! Each byte is a request, and answered with itself: `s` after a second, `h` after three, all
//! others at once. End of file ends the connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use xtask::lab::{Host, Lab, Pod};

use crate::{
    program::{self, Program},
    support::{Agent, PATIENCE, lab, send_signal},
};

/// Where a server's connections come from.
#[derive(Serialize, Deserialize)]
enum Source {
    Accepts(SocketAddr),
    /// Others hand them over at this path.
    IsHanded(PathBuf),
    /// It was started with its only one, as its standard input.
    Inherits,
}

#[derive(Serialize, Deserialize)]
struct Orders {
    kind: Kind,
    source: Source,
    /// Where [`Kind::HandsOver`] hands them over.
    worker: Option<PathBuf>,
}

/// What is special about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Nothing: it ignores SIGPIPE, as any Rust program does.
    Plain,
    /// SIGPIPE would kill it.
    DiesOfSigpipe,
    /// It passes each connection on to a program that it starts, and to which SIGPIPE is news.
    Leaks,
    /// It holds each connection where no process's table shows it.
    Hides,
    /// The kernel asks its clients every second whether they are there, and those answer.
    Probes,
    /// It does not close on end of file.
    Stays,
    /// It takes 300 ms from end of file to its close.
    Lingers,
    /// It listens with MPTCP.
    Mptcp,
    /// It passes each connection to a worker and closes its own descriptor. SIGPIPE would kill
    /// it, not the worker.
    HandsOver,
    /// It starts a program for each connection, which inherits it, as inetd does, and closes its
    /// own descriptor. SIGPIPE would kill it, not the program.
    Inetd,
    /// It speaks HTTP/1, and pauses amid its answers: see [`answer_to`].
    Verdict,
    /// The same, with a filter of its own on each connection.
    Filters,
    /// It answers each byte with one send of that many times [`UNIT`] bytes, of [`pattern`].
    Sends,
    /// It answers `l` from memory whose page does not come before `u` is asked on another
    /// connection: until then the send holds its socket's lock.
    Holds,
}

/// See [`Kind::Sends`].
pub const UNIT: usize = 100;

/// The byte at a place of a [`Kind::Sends`] server's stream.
pub fn pattern(place: usize) -> u8 {
    (place % 251) as u8
}

/// A server. Dropping it kills it.
pub struct Server {
    pub program: Program<()>,
}

/// A lab with a pod, and a server in it.
pub fn served(port: u16, kind: Kind) -> (Lab, SocketAddr, Server) {
    let lab = lab(1);
    let (address, server) = Server::in_pod(lab.pod(0), port, kind);
    (lab, address, server)
}

/// The same with an agent that moves its connections soon.
pub fn served_and_moved(port: u16, kind: Kind, steps: &str) -> (Lab, SocketAddr, Server, Agent) {
    let (lab, address, server) = served(port, kind);
    let agent = Agent::moving(&lab, port, "maxAge: 300ms", steps);
    (lab, address, server, agent)
}

impl Server {
    /// Starts one at an address of this host, and waits until it listens.
    pub fn start(host: &Host, address: impl Into<SocketAddr>, kind: Kind) -> Self {
        Self::run(host, kind, Source::Accepts(address.into()), None)
    }

    /// Starts one in a pod; returns its address, too.
    pub fn in_pod(pod: &Pod, port: u16, kind: Kind) -> (SocketAddr, Self) {
        let address = SocketAddr::from((pod.addr, port));
        (address, Self::start(&pod.host, address, kind))
    }

    /// Starts one that hands its connections to the worker at this path.
    pub fn handing_over(pod: &Pod, port: u16, worker: &Path) -> (SocketAddr, Self) {
        let address = SocketAddr::from((pod.addr, port));
        let source = Source::Accepts(address);
        let server = Self::run(&pod.host, Kind::HandsOver, source, Some(worker.into()));
        (address, server)
    }

    /// Starts one that serves what it is handed at this path.
    pub fn worker(host: &Host, at: &Path, kind: Kind) -> Self {
        Self::run(host, kind, Source::IsHanded(at.into()), None)
    }

    fn run(host: &Host, kind: Kind, source: Source, worker: Option<PathBuf>) -> Self {
        let orders = Orders {
            kind,
            source,
            worker,
        };
        let program = Program::start(host, THE_SERVER, &orders);
        Self { program }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(&self.program.child, signal);
    }

    /// Whether it runs.
    pub fn lives(&mut self) -> bool {
        self.program.child.try_wait().unwrap().is_none()
    }

    /// How many of its sends wait for memory, see [`Kind::Holds`].
    pub fn locks(&self) -> usize {
        threads_at(self.id(), "handle_userfault")
    }
}

/// How many threads of a process sleep in this function of the kernel.
pub fn threads_at(process: u32, function: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let sleeps = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at == function)
    };
    tasks.filter(sleeps).count()
}

const THE_SERVER: &str = "server::serves_as_a_program";

/// Not a test but the server, if the environment says so.
#[test]
fn serves_as_a_program() {
    let Some(Orders {
        kind,
        source,
        worker,
    }) = program::orders()
    else {
        return;
    };
    if matches!(kind, Kind::DiesOfSigpipe | Kind::HandsOver | Kind::Inetd) {
        // SAFETY: no handler of ours is replaced.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let serve_all = |streams: &mut dyn Iterator<Item = TcpStream>| {
        program::ready();
        for stream in streams {
            let worker = worker.clone();
            std::thread::spawn(move || serve(stream, kind, worker));
        }
    };
    match source {
        Source::Accepts(address) => {
            let listener = listen(address, kind);
            serve_all(&mut listener.incoming().map_while(Result::ok));
        }
        Source::IsHanded(path) => {
            let handed = UnixListener::bind(path).unwrap();
            let streams = handed.incoming().map_while(Result::ok);
            serve_all(&mut streams.filter_map(|from| receive_descriptor(&from)));
        }
        Source::Inherits => {
            // Its standard input stays open until the process ends, a moment later.
            let inherited = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
            answer(TcpStream::from(inherited), kind);
        }
    }
}

fn listen(address: SocketAddr, kind: Kind) -> TcpListener {
    if kind != Kind::Mptcp {
        let listener = TcpListener::bind(address).unwrap();
        if kind == Kind::Probes {
            use rustix::net::sockopt;
            // What it accepts has the same.
            sockopt::set_socket_keepalive(&listener, true).unwrap();
            sockopt::set_tcp_keepidle(&listener, Duration::from_secs(1)).unwrap();
            sockopt::set_tcp_keepintvl(&listener, Duration::from_secs(1)).unwrap();
        }
        return listener;
    }
    let socket = mptcp_socket();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 128).unwrap();
    TcpListener::from(socket)
}

/// A socket for IPv4 that offers MPTCP.
fn mptcp_socket() -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    socket(
        AddressFamily::INET,
        SocketType::STREAM,
        Some(ipproto::MPTCP),
    )
    .expect("this test needs a kernel with CONFIG_MPTCP")
}

/// A client's connection that offers MPTCP.
pub fn connect_mptcp(lab: &Lab, to: SocketAddr) -> TcpStream {
    let socket = lab.client().enter(mptcp_socket).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn serve(stream: TcpStream, kind: Kind, worker: Option<PathBuf>) {
    match kind {
        Kind::Hides => hide(stream),
        Kind::Leaks => leak(&stream),
        Kind::HandsOver => {
            let worker = UnixStream::connect(worker.unwrap()).unwrap();
            send_descriptor(&worker, stream);
        }
        Kind::Inetd => start_program(stream),
        Kind::Sends => send(stream),
        Kind::Holds => hold(stream),
        Kind::Verdict => speak(stream),
        Kind::Filters => {
            filter(&stream);
            speak(stream);
        }
        _ => answer(stream, kind),
    }
}

fn answer(stream: TcpStream, kind: Kind) {
    let mut request = [0];
    loop {
        match (&stream).read(&mut request) {
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
        // By write(2), as in C: Rust's own would never signal. After a reset the first one is an
        // error, and only the second is a SIGPIPE.
        let fails = || rustix::io::write(&stream, &request).is_err();
        if fails() && fails() {
            return;
        }
    }
}

/// How long a [`Kind::Verdict`] server pauses before each piece of an answer: longer than it takes to
/// be quiet.
pub const PAUSE: Duration = Duration::from_millis(300);

/// What is behind the head of `/file`, sent by sendfile in two pieces.
pub const FILE: usize = 1 << 20;

/// The pieces of a [`Kind::Verdict`] server's answer.
pub fn answer_to(target: &str) -> &'static [&'static str] {
    match target {
        "/sized" => &[
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "abc",
            "def",
            "ghi",
        ],
        "/events" => &[
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
            "9\r\ndata: 1\n\n\r\n",
            "9\r\ndata: 2\n\n\r\n",
            "0\r\n\r\n",
        ],
        "/trailers" => &[
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;x=y\r\n",
            "abc",
            "\r\n0\r\nA: b\r\n",
            "\r\n",
        ],
        "/early" => &[
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        ],
        "/head" => &["HTTP/1.", "1 200 OK\r\nContent-", "Length: 0\r\n", "\r\n"],
        "/unchanged" => &["HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"],
        "/only-head" => &["HTTP/1.1 200 OK\r\n", "Content-Length: 9\r\n\r\n"],
        "/until-close" => &["HTTP/1.0 200 OK\r\n\r\n", "abc", "def", "ghi"],
        "/file" => &["HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"],
        "/websocket" => &["HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"],
        "a:443" => &["HTTP/1.1 200 Connection established\r\n\r\n"],
        _ => &["HTTP/1.1 204 No Content\r\n\r\n"],
    }
}

/// A few requests after one another, and the bytes of a tunnel, which it answers with themselves.
fn speak(mut stream: TcpStream) {
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    let pause = || std::thread::sleep(PAUSE);
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            match requests.read_line(&mut line) {
                Ok(1..) => head.push_str(&line),
                _ => return,
            }
        }
        if head.contains("Expect: 100-continue") {
            pause();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            requests.read_exact(&mut [0; UPLOAD.len()]).unwrap();
        }
        let target = head.split(' ').nth(1).unwrap();
        for piece in answer_to(target) {
            pause();
            if stream.write_all(piece.as_bytes()).is_err() {
                return;
            }
        }
        match target {
            "/until-close" => return,
            "/file" => {
                let file = tempfile::tempfile().unwrap();
                file.set_len(FILE as u64).unwrap();
                let mut offset = 0;
                while (offset as usize) < FILE {
                    pause();
                    let some = FILE / 2;
                    if rustix::fs::sendfile(&stream, &file, Some(&mut offset), some).is_err() {
                        return;
                    }
                }
            }
            "/websocket" | "a:443" => {
                let mut byte = [0];
                while requests.read_exact(&mut byte).is_ok() {
                    pause();
                    if stream.write_all(&byte).is_err() {
                        return;
                    }
                }
                return;
            }
            _ => {}
        }
    }
}

/// What comes after 100 Continue.
pub const UPLOAD: &str = "upload";

/// Passes all.
fn filter(stream: &TcpStream) {
    use std::os::fd::AsRawFd as _;
    let mut all = libc::sock_filter {
        code: 6, // BPF_RET | BPF_K
        jt: 0,
        jf: 0,
        k: u32::MAX,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut all,
    };
    // SAFETY: the program and its one instruction live for the call.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0);
}

fn send(mut stream: TcpStream) {
    let (mut request, mut place) = ([0], 0);
    while let Ok(1) = stream.read(&mut request) {
        let to = place + usize::from(request[0]) * UNIT;
        let answer: Vec<u8> = (place..to).map(pattern).collect();
        if stream.write_all(&answer).is_err() {
            return;
        }
        place = to;
    }
}

/// What withholds the pages from which is sent. Closed, it does so no longer.
static WITHHOLDING: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

fn hold(mut stream: TcpStream) {
    let mut request = [0];
    while let Ok(1) = stream.read(&mut request) {
        let answer = match &request {
            b"l" => withheld(),
            b"u" => {
                WITHHOLDING.lock().unwrap().clear();
                &request
            }
            _ => &request,
        };
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// A byte whose page does not come.
fn withheld() -> &'static [u8; 1] {
    use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};
    use std::os::fd::AsRawFd as _;
    // `UFFDIO_API`, `UFFDIO_REGISTER`, and what they take, of `linux/userfaultfd.h`.
    const API: (libc::c_ulong, u64) = (0xc018_aa3f, 0xaa);
    const REGISTER: (libc::c_ulong, u64) = (0xc020_aa00, 1); // when a page is missing
    let length = rustix::param::page_size();
    // SAFETY: a fresh mapping, which stays for as long as the process. What is withheld is this
    // page alone, of which nothing is read but by the kernel.
    unsafe {
        let handler = userfaultfd(UserfaultfdFlags::CLOEXEC).unwrap();
        let (read, private) = (ProtFlags::READ, MapFlags::PRIVATE);
        let page = mmap_anonymous(std::ptr::null_mut(), length, read, private).unwrap();
        let mut api = [API.1, 0, 0];
        let done = libc::ioctl(handler.as_raw_fd(), API.0, &raw mut api);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        let mut range = [page as u64, length as u64, REGISTER.1, 0];
        let done = libc::ioctl(handler.as_raw_fd(), REGISTER.0, &raw mut range);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        WITHHOLDING.lock().unwrap().push(handler);
        &*page.cast()
    }
}

/// Under way in a unix socket, a descriptor is in nobody's table.
fn hide(stream: TcpStream) {
    let (sender, _receiver) = UnixStream::pair().unwrap();
    send_descriptor(&sender, stream);
    std::thread::sleep(Duration::from_secs(3600));
}

/// Passes the connection on, and closes the own descriptor of it.
pub fn send_descriptor(to: &UnixStream, stream: TcpStream) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let descriptors = [stream.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let one = [std::io::IoSlice::new(b"x")];
    sendmsg(to, &one, &mut message, SendFlags::empty()).unwrap();
}

pub fn receive_descriptor(from: &UnixStream) -> Option<TcpStream> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut one = [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(from, &mut one, &mut message, RecvFlags::CMSG_CLOEXEC).ok()?;
    message.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut all) => all.next().map(TcpStream::from),
        _ => None,
    })
}

fn start_program(stream: TcpStream) {
    let orders = Orders {
        kind: Kind::Plain,
        source: Source::Inherits,
        worker: None,
    };
    let mut program = program::this_binary(Command::new, THE_SERVER);
    program::order(&mut program, &orders)
        .stdin(OwnedFd::from(stream))
        .stdout(Stdio::null());
    let mut started = program.spawn().unwrap();
    drop(program); // and with it the own descriptor
    started.wait().unwrap();
}

fn leak(stream: &TcpStream) {
    let inherited = OwnedFd::from(stream.try_clone().unwrap());
    let mut sleep = Command::new("sleep");
    let mut child = sleep.arg("3600").stdin(inherited).spawn().unwrap();
    drop(sleep); // and with it the own descriptor
    answer(stream.try_clone().unwrap(), Kind::Plain);
    child.kill().unwrap();
    child.wait().unwrap();
}
