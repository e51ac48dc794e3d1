//! What the agent answers when it is asked.
//!
//! `/status`, `/metrics` and the probes' paths tell what the loop published last; it is not asked.
//! `/ledger` is a copy that the loop makes when it has nothing else to do. All of it is for the
//! agent's own user, on its socket; an open port has metrics and probes alone.

use std::{
    fmt,
    future::ready,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{
        mpsc::{Receiver, Sender, channel},
        oneshot, watch,
    },
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
    http::{Answer, Asked, Open, Router, RunDir, Server, body_of, json_answer, text_answer},
    plan::Ledger,
    render::{
        AgentLedger, Notation, PauseAnswer, PauseWish, ServiceItem, Services, Status, agent_ledger,
        services, status,
    },
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
    /// Who wants to know the ledger.
    Ledger(oneshot::Sender<Ledger>),
    /// To pause moves for so long, and why.
    Pause(Duration, Option<String>, oneshot::Sender<PauseAnswer>),
    /// To go on; the answer is whether there was a pause.
    Resume(oneshot::Sender<bool>),
}

/// What the loop lets others know.
pub(super) struct Published {
    pub(super) status: Status,
    /// The text of the policy in effect.
    pub(super) policy: Arc<str>,
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
    let of_ledger = published.clone();
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
        .on(Method::GET, "/ledger", move |_| {
            ledger_answer(ask.clone(), of_ledger.clone())
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
            info!(%address, "metrics and health are offered");
            Ok(Some(open))
        }
        Err(error) if matches!(offer, Offer::IfFree(_)) => {
            warn!(
                %address, %error,
                "metrics and health are offered on the agent's socket alone: \
                 --metrics-address names another address, or none"
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

/// For how long to pause, and why; or what to answer instead.
async fn wished(asked: Asked) -> Result<(Duration, Option<String>), Answer> {
    let refused = |why: String| text_answer(StatusCode::BAD_REQUEST, format!("{why}\n"));
    let body = body_of(asked).await?;
    let wish: PauseWish =
        serde_json::from_slice(&body).map_err(|error| refused(format!("the body: {error}")))?;
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
        Ok(true) => text_answer(StatusCode::OK, "moves go on\n"),
        Ok(false) => text_answer(StatusCode::OK, "moves were not paused\n"),
        Err(answer) => answer,
    }
}

async fn ledger_answer(ask: Sender<Question>, published: Watched) -> Answer {
    let ledger = match of_loop(ask, Question::Ledger).await {
        Ok(ledger) => ledger,
        Err(answer) => return answer,
    };
    let published = Arc::clone(&published.borrow());
    let status = &published.status;
    written(agent_ledger(&AgentLedger {
        pid: status.pid,
        pins: status.pins.clone(),
        mode: status.mode.effective.clone(),
        policy_file: status.policy.file.clone(),
        policy: published.policy.to_string(),
        ledger,
    }))
}

/// A body as it was written, or why it was not.
fn written<E: fmt::Display>(body: Result<Vec<u8>, E>) -> Answer {
    match body {
        Ok(body) => json_answer(body),
        Err(e) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}
