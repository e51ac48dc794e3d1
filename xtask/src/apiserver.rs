//! A fake API server: it serves the objects of a test by list and watch, and injects faults.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::{Instant, timeout_at},
};

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
    state: Arc<watch::Sender<State>>,
    /// Dropping it cuts off every connection.
    runtime: Option<Runtime>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

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
    silent: bool,
    forbidden: Option<&'static str>,
    unknown: Option<&'static str>,
    asked: BTreeMap<String, u64>,
    /// Written Events: namespace and object.
    written: Vec<(String, Value)>,
    /// The only namespace that may be written to, if set.
    writable: Option<String>,
}

impl ApiServer {
    /// Starts a server without objects.
    pub fn start() -> io::Result<Self> {
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: Arc::new(watch::Sender::default()),
            runtime: None,
        };
        server.up()?;
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
        change(&self.state, |state| state.set(known(kind), object));
    }

    /// The object `namespace/name`, or `name`.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let key = (known(kind), name.to_owned());
        self.state.borrow().objects.get(&key).cloned()
    }

    /// Deletes the object `namespace/name`.
    pub fn delete(&self, kind: &str, name: &str) {
        let kind = known(kind);
        change(&self.state, |state| {
            if let Some(mut object) = state.objects.remove(&(kind, name.to_owned())) {
                state.version += 1;
                object["metadata"]["resourceVersion"] = state.version.to_string().into();
                state.happened(kind, "DELETED", object);
            }
        });
    }

    /// Drops past events: a new watch from an older version gets 410 Gone.
    pub fn expire(&self) {
        change(&self.state, |state| {
            state.version += 1;
            state.oldest = state.version;
            state.events.clear();
        });
    }

    /// Cuts off every connection, even in the middle of a response.
    pub fn cut(&self) {
        change(&self.state, |state| state.life += 1);
    }

    /// Stops responding without closing connections, as if packets were dropped.
    pub fn fall_silent(&self) {
        change(&self.state, |state| state.silent = true);
    }

    /// Responds with 403 to requests for this kind; `None` ends that.
    pub fn forbid(&self, kind: Option<&str>) {
        change(&self.state, |state| state.forbidden = kind.map(known));
    }

    /// Responds with 404 to requests for this kind, as if its definition were missing; `None` ends that.
    pub fn forget(&self, kind: Option<&str>) {
        change(&self.state, |state| state.unknown = kind.map(known));
    }

    /// Stops it; its objects are kept for [`ApiServer::up`].
    pub fn down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On another thread, as the runtime of a test forbids to wait for the end of this one.
            let end = std::thread::spawn(|| drop(runtime));
            end.join().expect("the fake API server ends");
        }
    }

    /// Starts it again, at the same address.
    pub fn up(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.spawn(accept(listener, Arc::clone(&self.state)));
        self.runtime = Some(runtime);
        Ok(())
    }

    /// Number of `list`, `watch`, `get` or `write` requests for a kind.
    pub fn asked(&self, verb: &str, kind: &str) -> u64 {
        let asked = format!("{verb} {}", known(kind));
        self.state.borrow().asked.get(&asked).copied().unwrap_or(0)
    }

    /// The written Events and their namespaces.
    pub fn written(&self) -> Vec<(String, Value)> {
        self.state.borrow().written.clone()
    }

    /// Responds with 403 to Events for other namespaces.
    pub fn allow_writes_to(&self, namespace: &str) {
        change(&self.state, |state| {
            state.writable = Some(namespace.to_owned())
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

/// Changes the state and wakes up the watches.
fn change<T>(state: &watch::Sender<State>, work: impl FnOnce(&mut State) -> T) -> T {
    let mut done = None;
    state.send_modify(|state| done = Some(work(state)));
    done.expect("the work was done")
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

    /// A page of the objects of a kind that `selects` wants.
    fn list(
        &self,
        kind: &str,
        limit: usize,
        after: Option<&str>,
        selects: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut all = self.objects.iter().filter(|((of, name), object)| {
            *of == kind && after.is_none_or(|after| name.as_str() > after) && selects(object)
        });
        let page: Vec<_> = all.by_ref().take(limit).collect();
        let more = all
            .next()
            .and(page.last())
            .map(|((_, name), _)| name.clone());
        json!({
            "apiVersion": "v1", "kind": "List",
            "metadata": {"resourceVersion": self.version.to_string(), "continue": more.unwrap_or_default()},
            "items": page.into_iter().map(|(_, object)| object).collect::<Vec<_>>(),
        })
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

async fn accept(listener: TcpListener, state: Arc<watch::Sender<State>>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let (life, mut states) = (state.borrow().life, state.subscribe());
            let serve = service_fn(|request| answer(Arc::clone(&state), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), serve);
            tokio::select! {
                _ = connection => {}
                _ = states.wait_for(|state| state.life != life) => {}
            }
        });
    }
}

async fn answer(
    state: Arc<watch::Sender<State>>,
    request: Request<Incoming>,
) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let is_silent = state.borrow().silent;
    if is_silent {
        std::future::pending::<()>().await;
    }
    let path = head.uri.path();
    if head.method == Method::GET {
        let query = head.uri.query().unwrap_or_default();
        return Ok(read(&state, path, query));
    }
    let written = match (Target::of(path), serde_json::from_slice::<Value>(&body)) {
        (_, Err(_)) => Err(400),
        (Some(at), Ok(body)) => change(&state, |state| {
            let asked = state.asked.entry(format!("write {}", at.kind));
            *asked.or_default() += 1;
            match state.refuses(at.kind) {
                Some(code) => Err(code),
                None => state.write(head.method.as_str(), &at, body),
            }
        }),
        (None, Ok(event)) => change(&state, |state| write_event(state, path, event)),
    };
    Ok(written.map_or_else(failure, |object| whole(200, &object)))
}

/// Accepts an Event only in the namespace of the object that it refers to, like the real server.
fn write_event(state: &mut State, path: &str, event: Value) -> Result<Value, u16> {
    let namespace = path
        .strip_prefix("/apis/events.k8s.io/v1/namespaces/")
        .and_then(|rest| rest.strip_suffix("/events"))
        .ok_or(404_u16)?;
    if state
        .writable
        .as_ref()
        .is_some_and(|only| only != namespace)
    {
        return Err(403);
    }
    if event["regarding"]["namespace"] != namespace {
        return Err(422);
    }
    state.written.push((namespace.to_owned(), event.clone()));
    Ok(event)
}

fn read(state: &Arc<watch::Sender<State>>, path: &str, query: &str) -> Answer {
    let query: HashMap<_, _> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let query = |name: &str| query.get(name).map(String::as_str);
    let Some(Target { kind, name, .. }) = Target::of(path) else {
        return failure(404);
    };
    let verb = match name {
        Some(_) => "get",
        None => query("watch").map_or("list", |_| "watch"),
    };
    let refused = change(state, |state| {
        *state.asked.entry(format!("{verb} {kind}")).or_default() += 1;
        // As the real one does: without a limit, any version will do, and its cache has one.
        if verb == "list" && query("resourceVersion") == Some("0") {
            let cached = format!("list from cache {kind}");
            *state.asked.entry(cached).or_default() += 1;
        }
        state.refuses(kind)
    });
    if let Some(code) = refused {
        return failure(code);
    }
    if let Some(name) = name {
        let found = state.borrow().objects.get(&(kind, name)).cloned();
        return found.map_or_else(|| failure(404), |object| whole(200, &object));
    }
    let field = query("fieldSelector").and_then(|selector| {
        let (field, value) = selector.split_once('=')?;
        Some((format!("/{}", field.replace('.', "/")), value.to_owned()))
    });
    let selects = move |object: &Value| {
        let is_it = |(field, value): &(String, String)| {
            object.pointer(field).and_then(Value::as_str) == Some(value)
        };
        field.as_ref().is_none_or(is_it)
    };
    let number = |name: &str| query(name).and_then(|n| n.parse::<u64>().ok());
    if verb == "list" {
        let limit = number("limit").map_or(usize::MAX, |limit| limit as usize);
        let list = (state.borrow()).list(kind, limit, query("continue"), selects);
        return whole(200, &list);
    }
    let until = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(290));
    let from = number("resourceVersion").unwrap_or(0);
    watch(state.subscribe(), kind, from, until, selects)
}

fn watch(
    mut states: watch::Receiver<State>,
    kind: &'static str,
    from: u64,
    until: Instant,
    selects: impl Fn(&Value) -> bool + Send + 'static,
) -> Answer {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        // Existing watches get all events; only a new watch from an older version must list again.
        if from < states.borrow().oldest {
            let gone = json!({"type": "ERROR", "object": status(410)});
            let _ = sender.send_data(format!("{gone}\n").into()).await;
            return;
        }
        let mut seen = from;
        loop {
            let new: Vec<String> = {
                let Ok(state) = states.wait_for(|state| !state.silent).await else {
                    return;
                };
                let new = state.events.iter().filter(|(version, of, _, object)| {
                    *version > seen && *of == kind && selects(object)
                });
                let new = new
                    .map(|(_, _, what, object)| json!({"type": what, "object": object}).to_string())
                    .collect();
                seen = seen.max(state.version);
                new
            };
            for event in new {
                if sender.send_data(format!("{event}\n").into()).await.is_err() {
                    return;
                }
            }
            if !matches!(timeout_at(until, states.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    typed(200, body.boxed())
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

fn failure(code: u16) -> Answer {
    whole(code, &status(code))
}

fn whole(code: u16, body: &Value) -> Answer {
    typed(code, Full::from(body.to_string()).boxed())
}

fn typed(code: u16, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).expect("a status");
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
