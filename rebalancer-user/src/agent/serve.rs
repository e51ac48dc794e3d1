//! What the agent answers when it is asked.
//!
//! `/status`, `/metrics` and the probes' paths tell what the loop published last; it is not asked.
//! `/dump`, `/plan` and `/cooldowns` are of the moment: the loop looks and decides, and a thread of the server's
//! writes it down. All of it is for the agent's own user, on its socket; an open port has metrics
//! and probes alone.

use std::{
    fmt,
    future::ready,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{
        mpsc::{Receiver, Sender, channel},
        oneshot, watch,
    },
    task::spawn_blocking,
    time::timeout,
};
use tracing::{info, warn};

use super::{
    events::Events,
    health::{self, Beat},
    metrics::{self, Numbers},
    mover::MoverSigns,
    pause,
};
use crate::{
    http::{
        Answer, Asked, ClearRequest, CooldownsRequest, Open, PauseAnswer, PauseRequest,
        PlanRequest, Router, RunDir, Server, body_of, json_answer, text_answer,
    },
    plan::{Cooldown, Plan},
    policy::{self, Mode, Policy, RuleName},
    render::{
        self, Form, Notation, Origin, ServiceItem, Services, Sort, Source, Status, connections,
        not_tracked, services, status,
    },
    snapshot::{Cookie, KernelTime, Snapshot},
};

/// Questions asked of the loop and not answered yet.
const MOST_ASKED: usize = 4;
/// A loop that takes longer has other troubles.
const LOOP_WITHIN: Duration = Duration::from_secs(10);

/// Where metrics and probes are offered, beside the agent's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nowhere else.
    Nowhere,
    /// Here, if the port is free; if it is not, that is only said.
    IfFree(SocketAddr),
    /// Here, or it is an error.
    At(SocketAddr),
}

/// What the loop itself is asked.
pub(super) enum Question {
    /// What it sees now.
    Dump(oneshot::Sender<Looked<Snapshot>>),
    /// What it would do now.
    Plan(Trial, oneshot::Sender<Looked<(Snapshot, Plan)>>),
    /// What it says of a connection now, in this form; `None` if there is no such connection.
    Explain(
        Trial,
        Cookie,
        Form,
        oneshot::Sender<Looked<Option<Vec<u8>>>>,
    ),
    /// What is not tried again for a time, as of now.
    Cooldowns(oneshot::Sender<(Vec<Cooldown>, KernelTime)>),
    /// To try it again: what is of this rule, or all; the answer is how many there were.
    ClearCooldowns(Option<RuleName>, oneshot::Sender<usize>),
    /// To pause moves for so long, and why.
    Pause(Duration, Option<String>, oneshot::Sender<PauseAnswer>),
    /// To go on; the answer is whether there was a pause.
    Resume(oneshot::Sender<bool>),
}

/// What came of looking: an error in words.
pub(super) type Looked<T> = Result<T, String>;

/// By which policy to decide, without doing anything.
#[derive(Default)]
pub(super) struct Trial {
    /// Another one than the agent's.
    pub(super) policy: Option<Policy>,
    /// Do no more than this.
    pub(super) mode: Option<Mode>,
}

/// What the loop lets others know.
pub(super) struct Published {
    pub(super) status: Status,
    pub(super) numbers: Numbers,
    pub(super) services: Arc<Vec<ServiceItem>>,
    pub(super) mover: MoverSigns,
    pub(super) beat: Beat,
}

type Watched = watch::Receiver<Arc<Published>>;

/// Serves in `dir` and where it is offered, until it is dropped.
pub(super) fn serve(
    dir: RunDir,
    offer: Offer,
    published: &Watched,
    events: Events,
) -> anyhow::Result<(Server, Receiver<Question>)> {
    let (ask, asked) = channel(MOST_ASKED);
    let registry = Arc::new(metrics::registry(published.clone(), events.missed()));
    let of_status = published.clone();
    let of_services = published.clone();
    let router = for_all(published, &registry)
        .on(Method::GET, "/status", move |_| {
            ready(status_answer(&of_status.borrow()))
        })
        .on(Method::GET, "/services", move |_| {
            ready(services_answer(&of_services.borrow()))
        })
        .on(Method::GET, "/events", move |asked| {
            ready(events.answer(&asked))
        })
        .on(Method::POST, "/pause", {
            let ask = ask.clone();
            move |asked| pause_answer(ask.clone(), asked)
        })
        .on(Method::POST, "/resume", {
            let ask = ask.clone();
            move |_| resume_answer(ask.clone())
        })
        .on(Method::POST, "/cooldowns", {
            let ask = ask.clone();
            move |asked| cooldowns_answer(ask.clone(), asked)
        })
        .on(Method::POST, "/cooldowns/clear", {
            let ask = ask.clone();
            move |asked| clear_answer(ask.clone(), asked)
        })
        .on(Method::GET, "/dump", {
            let ask = ask.clone();
            move |_| dump_answer(ask.clone())
        })
        .on(Method::POST, "/plan", move |asked| {
            plan_answer(ask.clone(), asked)
        });
    let open = open(offer, || for_all(published, &registry))?;
    Ok((Server::start(dir, router, open)?, asked))
}

/// What anybody may ask: nothing of it tells of a client.
fn for_all(published: &Watched, registry: &Arc<Registry>) -> Router {
    let (of_live, of_ready) = (published.clone(), published.clone());
    let registry = Arc::clone(registry);
    Router::default()
        .on(Method::GET, "/metrics", move |asked| {
            ready(metrics::answer(&registry, asked.headers()))
        })
        .on(Method::GET, "/healthz", move |_| {
            ready(health::live(&of_live.borrow(), Instant::now()))
        })
        .on(Method::GET, "/readyz", move |_| {
            ready(health::ready(&of_ready.borrow(), Instant::now()))
        })
}

fn open(offer: Offer, router: impl FnOnce() -> Router) -> anyhow::Result<Option<Open>> {
    let address = match offer {
        Offer::Nowhere => return Ok(None),
        Offer::IfFree(address) | Offer::At(address) => address,
    };
    let opened = Open::bind(address, router()).and_then(|open| Ok((open.address()?, open)));
    match opened {
        Ok((address, open)) => {
            info!(%address, "serving metrics and health");
            Ok(Some(open))
        }
        Err(error) if matches!(offer, Offer::IfFree(_)) => {
            warn!(
                %address, %error,
                "serving metrics and health on the agent's socket only: set --metrics-address to \
                 another address, or to none"
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| {
            format!(
                "--metrics-address {address}\n  remedy: name another address or a free port, or \
                 `none`\n  cause"
            )
        }),
    }
}

/// As the loop has published it, and the moving thread as it is now.
fn status_answer(published: &Published) -> Answer {
    let mut said = published.status.clone();
    let steps = &published.mover.steps;
    said.mover = published.mover.status(Instant::now());
    for in_flight in &mut said.in_flight {
        let step = in_flight.id.parse().ok().and_then(|id| steps.of(id));
        in_flight.step = step.map(|step| step.as_str().to_owned());
    }
    let mut body = Vec::new();
    written(status(&mut body, Notation::Json, &said).map(|()| body))
}

fn services_answer(published: &Published) -> Answer {
    let status = &published.status;
    let said = Services {
        node: status.node.clone(),
        at: status.last_pass.as_ref().map(|pass| pass.at),
        mode: status.mode.effective.clone(),
        paused: status.paused.clone(),
        in_flight: status.in_flight.len(),
        max_in_flight: status.max_in_flight,
        budget_left: status.budgets.first().map_or(0, |budget| budget.left),
        items: published.services.to_vec(),
    };
    let mut body = Vec::new();
    written(services(&mut body, &said).map(|()| body))
}

/// The loop's answer to a question, or what to answer instead.
async fn of_loop<T>(
    ask: Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, Answer> {
    let asked = async {
        let (tell, told) = oneshot::channel();
        ask.send(question(tell)).await.ok()?;
        told.await.ok()
    };
    let answer = timeout(LOOP_WITHIN, asked).await.ok().flatten();
    answer.ok_or_else(|| {
        let text = "the agent's loop is busy or ends\n";
        text_answer(StatusCode::SERVICE_UNAVAILABLE, text)
    })
}

async fn pause_answer(ask: Sender<Question>, asked: Asked) -> Answer {
    let (time, reason) = match wished(asked).await {
        Ok(wish) => wish,
        Err(answer) => return answer,
    };
    let question = |tell| Question::Pause(time, reason, tell);
    let paused = match of_loop(ask, question).await {
        Ok(paused) => paused,
        Err(answer) => return answer,
    };
    written(serde_json::to_vec(&paused))
}

/// What a body in JSON asks for, or what to answer instead.
async fn request<T: DeserializeOwned>(asked: Asked) -> Result<T, Answer> {
    let body = body_of(asked).await?;
    serde_json::from_slice(&body)
        .map_err(|error| text_answer(StatusCode::BAD_REQUEST, format!("the body: {error}\n")))
}

/// For how long to pause, and why; or what to answer instead.
async fn wished(asked: Asked) -> Result<(Duration, Option<String>), Answer> {
    let refused = |why: String| text_answer(StatusCode::BAD_REQUEST, format!("{why}\n"));
    let wish: PauseRequest = request(asked).await?;
    let time = Duration::from_millis(wish.milliseconds);
    if time.is_zero() || time > pause::LONGEST {
        return Err(refused(
            "a pause lasts more than 0, and 168h at most".to_owned(),
        ));
    }
    let reason = wish.reason.filter(|reason| !reason.is_empty());
    if reason
        .as_ref()
        .is_some_and(|r| r.len() > pause::LONGEST_REASON)
    {
        let most = pause::LONGEST_REASON;
        return Err(refused(format!("a reason has {most} bytes at most")));
    }
    Ok((time, reason))
}

async fn resume_answer(ask: Sender<Question>) -> Answer {
    match of_loop(ask, Question::Resume).await {
        Ok(true) => text_answer(StatusCode::OK, "moves resumed\n"),
        Ok(false) => text_answer(StatusCode::OK, "moves were not paused\n"),
        Err(answer) => answer,
    }
}

async fn cooldowns_answer(ask: Sender<Question>, asked: Asked) -> Answer {
    let CooldownsRequest { form } = match request(asked).await {
        Ok(request) => request,
        Err(answer) => return answer,
    };
    match of_loop(ask, Question::Cooldowns).await {
        Ok((all, now)) => {
            drawn(move |out| render::cooldowns(out, form, &all, now, &Origin::here(Source::Agent)))
                .await
        }
        Err(answer) => answer,
    }
}

async fn clear_answer(ask: Sender<Question>, asked: Asked) -> Answer {
    let cleared = async {
        let ClearRequest { rule } = request(asked).await?;
        of_loop(ask, |tell| Question::ClearCooldowns(rule, tell)).await
    };
    match cleared.await {
        Ok(count) => text_answer(StatusCode::OK, format!("cooldowns cleared: {count}\n")),
        Err(answer) => answer,
    }
}

async fn dump_answer(ask: Sender<Question>) -> Answer {
    match looked(ask, Question::Dump).await {
        Ok(snapshot) => {
            drawn(move |out| {
                let origin = Origin::here(Source::Agent);
                connections(out, Notation::Json, &snapshot, &origin, Sort::Endpoint)
            })
            .await
        }
        Err(answer) => answer,
    }
}

async fn plan_answer(ask: Sender<Question>, asked: Asked) -> Answer {
    match planned(ask, asked).await {
        Ok(answer) | Err(answer) => answer,
    }
}

/// The answer, or what to answer instead.
async fn planned(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let refused = |why: String| text_answer(StatusCode::BAD_REQUEST, format!("{why}\n"));
    let request: PlanRequest = request(asked).await?;
    let policy = match &request.policy {
        Some(policy) => {
            let policy = policy::parse(&policy.name, &policy.text);
            Some(policy.map_err(|errors| refused(errors.to_string()))?)
        }
        None => None,
    };
    let (mode, form) = (request.mode, request.form);
    let trial = Trial { policy, mode };
    let Some(id) = request.connection else {
        let question = |tell| Question::Plan(trial, tell);
        let (snapshot, plan) = looked(ask, question).await?;
        return Ok(drawn(move |out| {
            let origin = Origin::here(Source::Agent);
            render::plan(out, form, &plan, &snapshot, &origin)
        })
        .await);
    };
    let id: Cookie = (id.parse()).map_err(|_| refused("connection: not an id".to_owned()))?;
    let question = |tell| Question::Explain(trial, id, form, tell);
    match looked(ask, question).await? {
        Some(text) => Ok(json_answer(text)),
        None => Err(text_answer(StatusCode::NOT_FOUND, not_tracked(id))),
    }
}

/// What the loop has seen, or what to answer instead.
async fn looked<T>(
    ask: Sender<Question>,
    question: impl FnOnce(oneshot::Sender<Looked<T>>) -> Question,
) -> Result<T, Answer> {
    let looked = of_loop(ask, question).await?;
    looked.map_err(|why| text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")))
}

/// An answer that takes time to write: neither the loop nor another answer waits for it.
async fn drawn(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()> + Send + 'static) -> Answer {
    let body = spawn_blocking(|| {
        let mut body = Vec::new();
        write(&mut body).map(|()| body)
    });
    written(body.await.map_err(io::Error::other).and_then(|body| body))
}

/// A body as it was written, or why it was not.
fn written<E: fmt::Display>(body: Result<Vec<u8>, E>) -> Answer {
    match body {
        Ok(body) => json_answer(body),
        Err(e) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}
