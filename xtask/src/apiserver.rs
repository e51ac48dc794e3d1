//! A fake API server: it serves the objects of a test by list and watch, and injects faults. It
//! implements HTTP/1.1 itself, as a library would not cut off a response in the middle.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::{Value, json};

/// The served kinds: their plural names and the paths of their groups.
const KINDS: [(&str, &str); 6] = [
    ("pods", "/api/v1"),
    ("namespaces", "/api/v1"),
    ("services", "/api/v1"),
    ("endpointslices", "/apis/discovery.k8s.io/v1"),
    ("leases", "/apis/coordination.k8s.io/v1"),
    ("nodebalances", "/apis/rebalancer.dev/v1alpha1"),
];

/// A server on a loopback port. Dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    /// Watch events: version, kind, type (`ADDED` and so on) and object.
    events: Vec<(u64, &'static str, &'static str, Value)>,
    /// Watches from before this version expire.
    oldest: u64,
    /// Connections of an earlier generation are cut off.
    life: u64,
    up: bool,
    silent: bool,
    forbidden: Option<&'static str>,
    unknown: Option<&'static str>,
    asked: BTreeMap<String, u64>,
    /// Written Events: namespace and object.
    written: Vec<(String, Value)>,
    /// The only namespace that may be written to, if set.
    writable: Option<String>,
    connections: Vec<TcpStream>,
}

impl ApiServer {
    /// Starts a server without objects.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut server = Self {
            address: listener.local_addr()?,
            shared: Arc::default(),
            accepts: None,
        };
        server.serve(listener);
        Ok(server)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for this server.
    pub fn write_kubeconfig(&self, file: &Path) -> io::Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url()}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        std::fs::write(file, config.to_string())
    }

    /// Adds an object, or replaces the one with its name.
    pub fn set(&self, kind: &str, object: Value) {
        self.lock().set(known(kind), object);
        self.shared.changed.notify_all();
    }

    /// The object `namespace/name`, or `name`.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let key = (known(kind), name.to_owned());
        self.lock().objects.get(&key).cloned()
    }

    /// Deletes the object `namespace/name`.
    pub fn delete(&self, kind: &str, name: &str) {
        let kind = known(kind);
        let mut state = self.lock();
        let Some(mut object) = state.objects.remove(&(kind, name.to_owned())) else {
            return;
        };
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.happened(kind, "DELETED", object);
        self.shared.changed.notify_all();
    }

    /// Drops past events: a new watch from an older version gets 410 Gone.
    pub fn expire(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
    }

    /// Cuts off every connection, even in the middle of a response.
    pub fn cut(&self) {
        self.lock().cut();
        self.shared.changed.notify_all();
    }

    /// Stops responding without closing connections, as if packets were dropped.
    pub fn fall_silent(&self) {
        self.lock().silent = true;
    }

    /// Responds with 403 to requests for this kind; `None` ends that.
    pub fn forbid(&self, kind: Option<&str>) {
        self.lock().forbidden = kind.map(known);
    }

    /// Responds with 404 to requests for this kind, as if its definition were missing; `None` ends that.
    pub fn forget(&self, kind: Option<&str>) {
        self.lock().unknown = kind.map(known);
    }

    /// Stops it; its objects are kept for [`ApiServer::up`].
    pub fn down(&mut self) {
        {
            let mut state = self.lock();
            state.up = false;
            state.cut();
        }
        self.shared.changed.notify_all();
        // Wakes up its accept.
        drop(TcpStream::connect(self.address));
        if let Some(accepts) = self.accepts.take() {
            accepts.join().expect("the fake API server's thread ends");
        }
    }

    /// Starts it again, at the same address.
    pub fn up(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.serve(listener);
        Ok(())
    }

    /// Number of `list`, `watch`, `get` or `write` requests for a kind.
    pub fn asked(&self, verb: &str, kind: &str) -> u64 {
        let asked = format!("{verb} {}", known(kind));
        self.lock().asked.get(&asked).copied().unwrap_or(0)
    }

    /// The written Events and their namespaces.
    pub fn written(&self) -> Vec<(String, Value)> {
        self.lock().written.clone()
    }

    /// Responds with 403 to Events for other namespaces.
    pub fn allow_writes_to(&self, namespace: &str) {
        self.lock().writable = Some(namespace.to_owned());
    }

    fn serve(&mut self, listener: TcpListener) {
        self.lock().up = true;
        let shared = Arc::clone(&self.shared);
        self.accepts = Some(std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let life = {
                    let mut state = shared.state.lock();
                    if !state.up {
                        return;
                    }
                    state.connections.extend(stream.try_clone());
                    state.life
                };
                let shared = Arc::clone(&shared);
                // The thread ends with its connection.
                std::thread::spawn(move || shared.answer_all(stream, life));
            }
        }));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

impl State {
    fn set(&mut self, kind: &'static str, mut object: Value) -> Value {
        let key = (kind, key(&object));
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self.objects.insert(key, object.clone());
        let what = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.happened(kind, what, object.clone());
        object
    }

    /// Changes one object, as the real server does that knows the subresource `status`.
    fn write(&mut self, method: &str, at: &Target<'_>, body: Value) -> Result<Value, u16> {
        let before = at.name.as_ref().and_then(|name| {
            let key = (at.kind, name.clone());
            self.objects.get(&key).cloned()
        });
        let after = match (method, before) {
            ("POST", _) => {
                let mut object = body;
                if let Some(namespace) = at.namespace {
                    object["metadata"]["namespace"] = namespace.into();
                }
                if self.objects.contains_key(&(at.kind, key(&object))) {
                    return Err(409);
                }
                object
            }
            ("PUT", Some(before)) => {
                let version = &body["metadata"]["resourceVersion"];
                if version.is_string() && *version != before["metadata"]["resourceVersion"] {
                    return Err(409);
                }
                body
            }
            ("PATCH", Some(before)) => {
                let field = if at.is_status { "status" } else { "spec" };
                let mut object = before;
                object[field] = body[field].clone();
                object
            }
            // Only an apply makes one, and of the rest nothing asks for that.
            ("PATCH", None) if !at.is_status => {
                let mut object = body;
                object["status"] = Value::Null;
                object
            }
            _ => return Err(404),
        };
        Ok(self.set(at.kind, after))
    }

    fn happened(&mut self, kind: &'static str, what: &'static str, object: Value) {
        self.events.push((self.version, kind, what, object));
    }

    fn refuses(&self, kind: &str) -> Option<u16> {
        if self.unknown == Some(kind) {
            return Some(404);
        }
        (self.forbidden == Some(kind)).then_some(403)
    }

    fn cut(&mut self) {
        self.life += 1;
        for connection in self.connections.drain(..) {
            // It may be closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// What a path leads to: a kind, or one object of it.
struct Target<'a> {
    kind: &'static str,
    namespace: Option<&'a str>,
    /// With its namespace.
    name: Option<String>,
    is_status: bool,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        KINDS.iter().find_map(|(kind, group)| {
            let rest = path.strip_prefix(group)?.strip_prefix('/')?;
            let (namespace, rest) = match rest.strip_prefix("namespaces/") {
                Some(inside) => {
                    let (namespace, rest) = inside.split_once('/')?;
                    (Some(namespace), rest)
                }
                None => (None, rest),
            };
            let mut parts = rest.split('/');
            (parts.next()? == *kind).then_some(())?;
            let name = parts.next().map(|name| match namespace {
                Some(namespace) => format!("{namespace}/{name}"),
                None => name.to_owned(),
            });
            let is_status = match parts.next() {
                None => false,
                Some("status") => true,
                Some(_) => return None,
            };
            Some(Self {
                kind,
                namespace,
                name,
                is_status,
            })
        })
    }
}

impl Shared {
    /// Waits while the server is silent.
    fn wait_to_speak(&self, life: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let waits = |state: &mut State| state.silent && state.life == life;
        self.changed.wait_while(&mut state, waits);
        if state.life != life {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn answer_all(&self, stream: TcpStream, life: u64) {
        let Ok(mut out) = stream.try_clone() else {
            return;
        };
        let mut from = BufReader::new(stream);
        loop {
            let lines = from.by_ref().lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let mut words = head.first().map_or("", |line| line).split(' ');
            let (Some(method), Some(target)) = (words.next(), words.next()) else {
                return;
            };
            if self.wait_to_speak(life).is_err() {
                return;
            }
            if method != "GET" {
                let length = head.iter().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    let is_it = name.eq_ignore_ascii_case("content-length");
                    is_it.then(|| value.trim().parse().ok())?
                });
                let mut body = vec![0; length.unwrap_or(0)];
                if from.read_exact(&mut body).is_err()
                    || self.write(&mut out, method, target, &body).is_err()
                {
                    return;
                }
                continue;
            }
            if self.answer(&mut out, target, life).is_err() {
                return;
            }
        }
    }

    fn write(
        &self,
        out: &mut TcpStream,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let (path, _) = target.split_once('?').unwrap_or((target, ""));
        let Some(at) = Target::of(path) else {
            return self.write_event(out, path, body);
        };
        let Ok(body) = serde_json::from_slice::<Value>(body) else {
            return whole(out, 400, &status(400));
        };
        let written = {
            let mut state = self.state.lock();
            let asked = state.asked.entry(format!("write {}", at.kind));
            *asked.or_default() += 1;
            match state.refuses(at.kind) {
                Some(code) => Err(code),
                None => state.write(method, &at, body),
            }
        };
        self.changed.notify_all();
        match written {
            Ok(object) => whole(out, 200, &object),
            Err(code) => whole(out, code, &status(code)),
        }
    }

    /// Accepts an Event only in the namespace of the object that it refers to, like the real server.
    fn write_event(&self, out: &mut TcpStream, path: &str, body: &[u8]) -> io::Result<()> {
        let namespace = path
            .strip_prefix("/apis/events.k8s.io/v1/namespaces/")
            .and_then(|rest| rest.strip_suffix("/events"));
        let (Some(namespace), Ok(event)) = (namespace, serde_json::from_slice::<Value>(body))
        else {
            return whole(out, 404, &status(404));
        };
        {
            let mut state = self.state.lock();
            if state
                .writable
                .as_ref()
                .is_some_and(|only| only != namespace)
            {
                return whole(out, 403, &status(403));
            }
            if event["regarding"]["namespace"] != namespace {
                return whole(out, 422, &status(422));
            }
            state.written.push((namespace.to_owned(), event.clone()));
        }
        whole(out, 201, &event)
    }

    fn answer(&self, out: &mut TcpStream, target: &str, life: u64) -> io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = |name: &str| {
            query.split('&').find_map(|pair| {
                let value = pair.strip_prefix(name)?.strip_prefix('=')?;
                Some(
                    value
                        .replace("%3D", "=")
                        .replace("%2C", ",")
                        .replace("%2F", "/"),
                )
            })
        };
        let Some(Target { kind, name, .. }) = Target::of(path) else {
            return whole(out, 404, &status(404));
        };
        let verb = match name {
            Some(_) => "get",
            None => query("watch").map_or("list", |_| "watch"),
        };
        {
            let mut state = self.state.lock();
            *state.asked.entry(format!("{verb} {kind}")).or_default() += 1;
            // As the real one does: without a limit, any version will do, and its cache has one.
            if verb == "list" && query("resourceVersion").as_deref() == Some("0") {
                let cached = format!("list from cache {kind}");
                *state.asked.entry(cached).or_default() += 1;
            }
            if let Some(code) = state.refuses(kind) {
                return whole(out, code, &status(code));
            }
            if let Some(name) = name {
                return match state.objects.get(&(kind, name)) {
                    Some(object) => whole(out, 200, object),
                    None => whole(out, 404, &status(404)),
                };
            }
        }
        let field = query("fieldSelector").and_then(|selector| {
            let (field, value) = selector.split_once('=')?;
            Some((format!("/{}", field.replace('.', "/")), value.to_owned()))
        });
        let selects = |object: &Value| {
            let is_it = |(field, value): &(String, String)| {
                object.pointer(field).and_then(Value::as_str) == Some(value)
            };
            field.as_ref().is_none_or(is_it)
        };
        if verb == "list" {
            let limit = query("limit")
                .and_then(|n| n.parse().ok())
                .unwrap_or(usize::MAX);
            let after = query("continue");
            let list = self.list(kind, limit, after.as_deref(), selects);
            return whole(out, 200, &list);
        }
        let from = query("resourceVersion").and_then(|v| v.parse().ok());
        let most = query("timeoutSeconds").and_then(|s| s.parse().ok());
        let until = Instant::now() + Duration::from_secs(most.unwrap_or(290));
        self.watch(out, kind, from.unwrap_or(0), until, life, selects)
    }

    fn list(
        &self,
        kind: &str,
        limit: usize,
        after: Option<&str>,
        selects: impl Fn(&Value) -> bool,
    ) -> Value {
        let state = self.state.lock();
        let mut all = state.objects.iter().filter(|((of, name), object)| {
            *of == kind && after.is_none_or(|after| name.as_str() > after) && selects(object)
        });
        let page: Vec<_> = all.by_ref().take(limit).collect();
        let more = all
            .next()
            .and(page.last())
            .map(|((_, name), _)| name.clone());
        json!({
            "apiVersion": "v1", "kind": "List",
            "metadata": {"resourceVersion": state.version.to_string(), "continue": more.unwrap_or_default()},
            "items": page.into_iter().map(|(_, object)| object).collect::<Vec<_>>(),
        })
    }

    fn watch(
        &self,
        out: &mut TcpStream,
        kind: &str,
        from: u64,
        until: Instant,
        life: u64,
        selects: impl Fn(&Value) -> bool,
    ) -> io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        out.write_all(head.as_bytes())?;
        let mut seen = from;
        // Existing watches get all events; only a new watch from an older version must list again.
        if from < self.state.lock().oldest {
            let gone = json!({"type": "ERROR", "object": status(410)});
            chunk(out, &format!("{gone}\n"))?;
            return chunk(out, "");
        }
        loop {
            self.wait_to_speak(life)?;
            let state = self.state.lock();
            let new: Vec<String> = state
                .events
                .iter()
                .filter(|(version, of, _, object)| {
                    *version > seen && *of == kind && selects(object)
                })
                .map(|(_, _, what, object)| {
                    format!("{}\n", json!({"type": what, "object": object}))
                })
                .collect();
            seen = seen.max(state.version);
            drop(state);
            for event in new {
                chunk(out, &event)?;
            }
            if Instant::now() >= until {
                return chunk(out, "");
            }
            let mut state = self.state.lock();
            if state.version <= seen && state.life == life {
                self.changed.wait_until(&mut state, until);
            }
        }
    }
}

/// The constant with this name.
fn known(kind: &str) -> &'static str {
    let found = KINDS.iter().find(|(known, _)| *known == kind);
    found
        .unwrap_or_else(|| panic!("no kind {kind} is served"))
        .0
}

fn key(object: &Value) -> String {
    let meta = &object["metadata"];
    let name = meta["name"].as_str().expect("an object has a name");
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn status(code: u16) -> Value {
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        _ => "NotFound",
    };
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "metadata": {}, "message": reason,
           "reason": reason, "code": code})
}

fn whole(out: &mut TcpStream, code: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    out.write_all(format!("{head}{body}").as_bytes())
}

/// One chunk; an empty one is the last.
fn chunk(out: &mut TcpStream, text: &str) -> io::Result<()> {
    out.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}
