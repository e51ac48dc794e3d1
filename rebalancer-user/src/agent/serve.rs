//! The agent's answers to requests.
//!
//! `/status`, `/metrics` and the probes' paths answer from what the loop published last, without a question to it.
//! `/dump`, `/plan` and `/cooldowns` are of the moment: the loop has a thread look, decides, and a thread of
//! the server writes the answer. All of it is for the agent's own user, on its socket; an open port has metrics
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
    drains::NotDrained,
    events::Events,
    health, metrics,
    pause::{self, Resumed},
    published::Published,
    questions::{Inspection, Looked, Question, Trial},
};
use crate::{
    api::{
        Notation, Origin, PausedBy, Services, Sort, Source, write_connections, write_services,
        write_status,
    },
    http::{
        Answer, Asked, CancelDrainRequest, ClearRequest, CooldownsRequest, DrainRequest, Open,
        PauseRequest, PlanRequest, Router, RunDir, Server, body_of, json_answer, metrics_answer,
        text_answer,
    },
    policy,
    render::{self, not_tracked},
    snapshot::Cookie,
};

/// Questions asked of the loop and not answered yet.
const MOST_ASKED: usize = 4;
/// How long a drain that an operator asks for may take.
pub const SHORTEST_DRAIN: Duration = Duration::from_secs(5);
/// See [`SHORTEST_DRAIN`].
pub const LONGEST_DRAIN: Duration = Duration::from_secs(24 * 3600);
/// A loop that takes longer is overloaded.
const LOOP_WITHIN: Duration = Duration::from_secs(10);

/// Where metrics and probes are offered, beside the agent's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nowhere else.
    Nowhere,
    /// Here, if the port is free; if not, a warning is logged.
    IfFree(SocketAddr),
    /// Here, or it is an error.
    At(SocketAddr),
}

type Latest = watch::Receiver<Arc<Published>>;

/// Serves in `dir` and where it is offered, until it is dropped.
pub(super) fn serve(
    dir: RunDir,
    offer: Offer,
    published: &Latest,
    events: Events,
) -> anyhow::Result<(Server, Receiver<Question>)> {
    let (ask, asked) = channel(MOST_ASKED);
    let registry = Arc::new(metrics::registry(published.clone(), events.missed()));
    let of_status = published.clone();
    let of_services = published.clone();
    let (for_pause, for_resume, for_dump, for_plan) =
        (ask.clone(), ask.clone(), ask.clone(), ask.clone());
    let (for_drain, for_cancel) = (ask.clone(), ask.clone());
    let (for_cooldowns, for_clear) = (ask.clone(), ask);
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
        .on(Method::POST, "/pause", move |asked| {
            either(pause_answer(for_pause.clone(), asked))
        })
        .on(Method::POST, "/resume", move |_| {
            either(resume_answer(for_resume.clone()))
        })
        .on(Method::POST, "/cooldowns", move |asked| {
            either(cooldowns_answer(for_cooldowns.clone(), asked))
        })
        .on(Method::POST, "/cooldowns/clear", move |asked| {
            either(clear_answer(for_clear.clone(), asked))
        })
        .on(Method::POST, "/drain", move |asked| {
            either(drain_answer(for_drain.clone(), asked))
        })
        .on(Method::POST, "/drain/cancel", move |asked| {
            either(cancel_drain_answer(for_cancel.clone(), asked))
        })
        .on(Method::GET, "/dump", move |_| {
            either(dump_answer(for_dump.clone()))
        })
        .on(Method::POST, "/plan", move |asked| {
            either(plan_answer(for_plan.clone(), asked))
        });
    let open = open(offer, || for_all(published, &registry))?;
    Ok((Server::start(dir, router, open)?, asked))
}

/// The paths that are open to everyone: no answer names a client.
fn for_all(published: &Latest, registry: &Arc<Registry>) -> Router {
    let (of_live, of_ready) = (published.clone(), published.clone());
    let registry = Arc::clone(registry);
    Router::default()
        .on(Method::GET, "/metrics", move |asked| {
            ready(metrics_answer(&registry, asked.headers()))
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
    let mut status = published.status.clone();
    let steps = &published.mover.steps;
    status.mover = published.mover.status(Instant::now());
    for in_flight in &mut status.in_flight {
        let step = in_flight.id.parse().ok().and_then(|id| steps.of(id));
        in_flight.step = step.map(|step| step.as_str().to_owned());
    }
    let mut body = Vec::new();
    written(write_status(&mut body, Notation::Json, &status).map(|()| body))
}

fn services_answer(published: &Published) -> Answer {
    let status = &published.status;
    let services = Services {
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
    written(write_services(&mut body, &services).map(|()| body))
}

/// An answer, or the one that is given instead.
async fn either(answer: impl Future<Output = Result<Answer, Answer>>) -> Answer {
    answer.await.unwrap_or_else(|instead| instead)
}

fn bad_request(why: impl fmt::Display) -> Answer {
    text_answer(StatusCode::BAD_REQUEST, format!("{why}\n"))
}

/// The loop's answer to a question, or what to answer instead.
async fn of_loop<T>(
    ask: Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, Answer> {
    let asked = async {
        let (reply, answer) = oneshot::channel();
        ask.send(question(reply)).await.ok()?;
        answer.await.ok()
    };
    let answer = timeout(LOOP_WITHIN, asked).await.ok().flatten();
    answer.ok_or_else(|| {
        let text = "the agent's loop is busy or ends\n";
        text_answer(StatusCode::SERVICE_UNAVAILABLE, text)
    })
}

/// What the loop has seen, or what to answer instead.
async fn looked<T>(
    ask: Sender<Question>,
    inspection: impl FnOnce(oneshot::Sender<Looked<T>>) -> Inspection,
) -> Result<T, Answer> {
    let looked = of_loop(ask, |reply| Question::Inspect(Box::new(inspection(reply)))).await?;
    looked.map_err(|why| text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")))
}

/// What a body in JSON asks for, or what to answer instead.
async fn request<T: DeserializeOwned>(asked: Asked) -> Result<T, Answer> {
    let body = body_of(asked).await?;
    serde_json::from_slice(&body).map_err(|error| bad_request(format!("the body: {error}")))
}

async fn pause_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let PauseRequest {
        milliseconds,
        reason,
    } = request(asked).await?;
    let time = Duration::from_millis(milliseconds);
    if time.is_zero() || time > pause::LONGEST {
        return Err(bad_request("a pause lasts more than 0, and 168h at most"));
    }
    let reason = reason.filter(|reason| !reason.is_empty());
    let longest = pause::LONGEST_REASON;
    if reason.as_ref().is_some_and(|r| r.len() > longest) {
        return Err(bad_request(format!("a reason has {longest} bytes at most")));
    }
    let paused = of_loop(ask, |reply| Question::Pause(time, reason, reply)).await?;
    Ok(written(serde_json::to_vec(&paused)))
}

async fn resume_answer(ask: Sender<Question>) -> Result<Answer, Answer> {
    let text = match of_loop(ask, Question::Resume).await? {
        Resumed::Now => "moves resumed\n",
        Resumed::WasNotPaused => "moves were not paused\n",
        Resumed::StillByNamespace => {
            let ends_by = PausedBy::Namespace.ends_by();
            let text = format!("moves stay paused, on all nodes; {ends_by} ends that pause\n");
            return Ok(text_answer(StatusCode::OK, text));
        }
    };
    Ok(text_answer(StatusCode::OK, text))
}

async fn cooldowns_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let CooldownsRequest { form } = request(asked).await?;
    let (all, now) = of_loop(ask, Question::Cooldowns).await?;
    let origin = Origin::here(Source::Agent);
    Ok(drawn(move |out| render::cooldowns(out, form, &all, now, &origin)).await)
}

async fn clear_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let ClearRequest { rule } = request(asked).await?;
    let count = of_loop(ask, |reply| Question::ClearCooldowns(rule, reply)).await?;
    let text = format!("cooldowns cleared: {count}\n");
    Ok(text_answer(StatusCode::OK, text))
}

async fn drain_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let request: DrainRequest = request(asked).await?;
    let within = Duration::from_millis(request.milliseconds);
    if within < SHORTEST_DRAIN || within > LONGEST_DRAIN {
        return Err(bad_request("a drain takes from 5s to 24h"));
    }
    let drained = looked(ask, |reply| Inspection::Drain(request, reply)).await?;
    let answer = drained.map_err(|why| match why {
        NotDrained::NoEndpoint(what) => text_answer(StatusCode::NOT_FOUND, what),
        NotDrained::Forbidden(why) => text_answer(StatusCode::CONFLICT, why),
    })?;
    Ok(written(serde_json::to_vec(&answer)))
}

async fn cancel_drain_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let CancelDrainRequest { target } = request(asked).await?;
    let name = target.to_string();
    match of_loop(ask, |reply| Question::CancelDrain(target, reply)).await? {
        0 => {
            let text = format!("{name}: no drain was asked for by this name, or it has ended");
            Err(text_answer(StatusCode::NOT_FOUND, text))
        }
        count => {
            let text = format!("drain cancelled, endpoints: {count}\n");
            Ok(text_answer(StatusCode::OK, text))
        }
    }
}

async fn dump_answer(ask: Sender<Question>) -> Result<Answer, Answer> {
    let snapshot = looked(ask, Inspection::Dump).await?;
    let origin = Origin::here(Source::Agent);
    let sort = Sort::Endpoint;
    Ok(drawn(move |out| write_connections(out, Notation::Json, &snapshot, &origin, sort)).await)
}

async fn plan_answer(ask: Sender<Question>, asked: Asked) -> Result<Answer, Answer> {
    let request: PlanRequest = request(asked).await?;
    let policy = request.policy.as_ref();
    let policy = policy.map(|policy| policy::parse(&policy.name, &policy.text));
    let policy = policy.transpose().map_err(bad_request)?;
    let (mode, form) = (request.mode, request.form);
    let trial = Trial { policy, mode };
    let Some(id) = request.connection else {
        let (snapshot, plan) = looked(ask, |reply| Inspection::Plan(trial, reply)).await?;
        let origin = Origin::here(Source::Agent);
        return Ok(drawn(move |out| render::plan(out, form, &plan, &snapshot, &origin)).await);
    };
    let id: Cookie = (id.parse()).map_err(|_| bad_request("connection: not an id"))?;
    let inspection = |reply| Inspection::Explain(trial, id, form, reply);
    match looked(ask, inspection).await? {
        Some(text) => Ok(json_answer(text)),
        None => Err(text_answer(StatusCode::NOT_FOUND, not_tracked(id))),
    }
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
