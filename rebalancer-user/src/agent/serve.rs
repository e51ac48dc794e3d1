//! What the agent answers when it is asked.
//!
//! `/status` is what the loop published last; it is not asked. `/ledger` is a copy that the loop
//! makes when it has nothing else to do.

use std::{sync::Arc, time::Duration};

use hyper::{Method, StatusCode};
use tokio::{
    sync::{
        mpsc::{Receiver, Sender, channel},
        oneshot, watch,
    },
    time::timeout,
};

use crate::{
    http::{Answer, Router, RunDir, RunDirError, Server, json_answer, text_answer},
    moves::Steps,
    plan::Ledger,
    render::{AgentLedger, Notation, Status, agent_ledger, status},
};

/// Ledgers asked for and not given yet.
const MOST_ASKED: usize = 4;
/// A loop that takes longer has other troubles.
const LOOP_WITHIN: Duration = Duration::from_secs(10);

/// Who wants to know the ledger.
pub(super) type LedgerAsked = oneshot::Sender<Ledger>;

/// What the loop lets others know.
pub(super) struct Published {
    pub(super) status: Status,
    /// The text of the policy in effect.
    pub(super) policy: Arc<str>,
}

/// Serves in `dir`, until it is dropped.
pub(super) fn serve(
    dir: RunDir,
    published: watch::Receiver<Arc<Published>>,
    steps: Steps,
) -> Result<(Server, Receiver<LedgerAsked>), RunDirError> {
    let (ask, asked) = channel(MOST_ASKED);
    let of_ledger = published.clone();
    let router = Router::default()
        .on(Method::GET, "/status", move || {
            let published = Arc::clone(&published.borrow());
            let steps = steps.clone();
            async move { status_answer(published.status.clone(), &steps) }
        })
        .on(Method::GET, "/ledger", move || {
            ledger_answer(ask.clone(), of_ledger.clone())
        });
    Ok((Server::start(dir, router)?, asked))
}

fn status_answer(mut said: Status, steps: &Steps) -> Answer {
    for in_flight in &mut said.in_flight {
        let step = in_flight.id.parse().ok().and_then(|id| steps.of(id));
        in_flight.step = step.map(|step| step.as_str().to_owned());
    }
    let mut body = Vec::new();
    match status(&mut body, Notation::Json, &said) {
        Ok(()) => json_answer(body),
        Err(e) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

async fn ledger_answer(
    ask: Sender<LedgerAsked>,
    published: watch::Receiver<Arc<Published>>,
) -> Answer {
    let copy = async {
        let (tell, told) = oneshot::channel();
        ask.send(tell).await.ok()?;
        told.await.ok()
    };
    let Ok(Some(ledger)) = timeout(LOOP_WITHIN, copy).await else {
        let text = "the agent's loop is busy or ends\n";
        return text_answer(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let published = Arc::clone(&published.borrow());
    let status = &published.status;
    let body = agent_ledger(&AgentLedger {
        pid: status.pid,
        pins: status.pins.clone(),
        mode: status.mode.effective.clone(),
        policy_file: status.policy.file.clone(),
        policy: published.policy.to_string(),
        ledger,
    });
    match body {
        Ok(body) => json_answer(body),
        Err(e) => text_answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}
