//! A line of the log for each fact.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::fact::{Fact, MoverLoss, Pass};
use crate::{
    counting::CountingReport,
    plan::{Load, Move, NewHold, Outcome, Refusal},
    snapshot::Identity,
};

pub(super) fn write(fact: &Fact<'_>) {
    match fact {
        // The line about the start has it.
        Fact::PolicyLoaded { first: true, .. } => {}
        Fact::PolicyLoaded { policy, .. } => {
            let (mode, rules) = (policy.mode().as_str(), policy.rules().len());
            info!(mode, rules, "policy reloaded");
        }
        Fact::PolicyRefused { error } => {
            error!(error, "policy refused, keeping the last valid one");
        }
        Fact::PodsWithoutNames { cgroup } => error!(
            cgroup,
            "there are pods on this node, but no access to the API server: which connections to skip is \
             unknown, so dry runs only. Start the agent with a token or --kubeconfig and \
             --kubernetes=on; or, if no Kubernetes guard is needed, with --kubernetes=off"
        ),
        Fact::Paused {
            paused,
            recalled,
            not_saved,
        } => {
            info!(
                until = paused.until.map(display),
                reason = paused.reason.as_deref(),
                by = paused.by.as_str(),
                recalled,
                "moves are paused"
            );
            if let Some(error) = not_saved {
                warn!(%error, "could not save the pause: a restart would end it");
            }
        }
        Fact::StillPaused { paused } => {
            info!(
                until = paused.until.map(display),
                reason = paused.reason.as_deref(),
                "moves are still paused"
            );
        }
        Fact::Resumed { cause } => info!(cause = cause.as_str(), "moves resumed"),
        Fact::Passed(pass) => passed(pass),
        Fact::ListingFailed { error, .. } => error!(%error, "pass failed, nothing is moved"),
        Fact::ListingRecovered => info!("listing recovered"),
        Fact::WouldMove { chosen } => info!(
            cookie = %chosen.cookie(),
            rule = %chosen.rule(),
            reason = chosen.why(),
            mode = chosen.mode().as_str(),
            must_be_sniffed = chosen.is_sniffed(),
            local = %chosen.local(),
            peer = %chosen.remote(),
            netns = chosen.endpoint().netns.0,
            pod = chosen.pod(),
            "would move"
        ),
        // Its end has all of it.
        Fact::MoveStarted { chosen, .. } => {
            debug!(cookie = %chosen.cookie(), rule = %chosen.rule(), "move started");
        }
        Fact::MoveRecalled(recall) => {
            let cause = recall.why.as_str();
            debug!(cookie = %recall.cookie, cause, detail = %recall.why, "recalling a move");
        }
        Fact::MoveEnded {
            chosen,
            outcome,
            waited,
            ..
        } => moved(chosen, outcome, *waited),
        Fact::CooldownStarted(hold) => cooldown(hold),
        Fact::CooldownCleared(one) => {
            info!(of = %one.of, cause = one.cause, times = one.times, "cooldown cleared");
        }
        Fact::MoverLost { cause, may_restart } => mover_lost(*cause, *may_restart),
        Fact::MoverReplaced { signs } => {
            warn!(replaced = signs.replaced, "started another moving thread");
        }
        Fact::MoverAnswered { at } => info!(
            cookie = at.map(|cookie| cookie.to_string()),
            "the kernel has answered an abandoned moving thread, which has ended"
        ),
        Fact::Counting(report) => counting(report),
        Fact::CountingNotStarted { error } => error!(%error, "could not start the counting thread"),
        Fact::AttachedAgain { next_check } => warn!(
            ?next_check,
            "another sock_ops program was attached after ours; attached ours again, after it"
        ),
        Fact::DrainBegan(drained) => info!(
            cause = drained.cause.as_str(),
            pod = drained.who.pod().map(Identity::full_name),
            port = drained.endpoint.port,
            rule = %drained.rule,
            connections = drained.count(),
            left_ms = drained.left.as_millis() as u64,
            "draining an endpoint"
        ),
        Fact::DrainEnded { drained, .. } if drained.count() == 0 => info!(
            cause = drained.cause.as_str(),
            pod = drained.who.pod().map(Identity::full_name),
            port = drained.endpoint.port,
            rule = %drained.rule,
            took_ms = drained.took.as_millis() as u64,
            "drained: all connections have left"
        ),
        Fact::DrainEnded { drained, all } => warn!(
            cause = drained.cause.as_str(),
            pod = drained.who.pod().map(Identity::full_name),
            port = drained.endpoint.port,
            rule = %drained.rule,
            connections = drained.count(),
            states = ?drained.connections,
            enough_seconds = drained.enough(*all).map(|enough| enough.as_secs()),
            "not all connections have left an endpoint in time"
        ),
        Fact::DrainTooShort(short) => warn!(
            pod = short.who.pod().map(Identity::full_name),
            port = short.endpoint.port,
            rule = %short.rule,
            connections = short.connections,
            enough_seconds = short.enough.as_secs(),
            "a pod is being deleted that stops too soon to be drained: its connections break off; a preStop \
             hook that sleeps gives them time"
        ),
        Fact::KernelFault { fault, new, total } => {
            warn!(fault = fault.text(), new, total, "kernel fault");
        }
        Fact::ExchangeChanged {
            trouble: Some(trouble),
        } => warn!(
            trouble,
            "no balance across nodes: this node's report and views are not exchanged; trying again"
        ),
        Fact::ExchangeChanged { trouble: None } => {
            info!("this node's report and views are exchanged");
        }
        Fact::InvalidRecords { count } => warn!(count, "skipped invalid records"),
    }
}

fn passed(
    Pass {
        observation,
        plan,
        listing,
        deciding,
        ..
    }: &Pass<'_>,
) {
    let snapshot = &observation.snapshot;
    debug!(
        connections = snapshot.connections.len(),
        endpoints = snapshot.endpoints.len(),
        moves = plan.moves().count(),
        overdue = plan.overdue(),
        budget_left = plan.budget_left(),
        skipped = ?plan.skipped(),
        files = observation.files,
        unseen = observation.unseen,
        naming = ?snapshot.naming,
        ?listing,
        ?deciding,
        "listed"
    );
}

fn moved(chosen: &Move, outcome: &Outcome, waited: Duration) {
    // Of the others the outcome says it all.
    let detail = outcome.leaves_it().then(|| outcome.to_string());
    macro_rules! line {
        ($level:ident) => {
            $level!(
                cookie = %chosen.cookie(),
                rule = %chosen.rule(),
                reason = chosen.why(),
                outcome = outcome.as_str(),
                cause = outcome.refusal().map(Refusal::as_str),
                detail = detail.as_deref(),
                waited_ms = waited.as_millis() as u64,
                local = %chosen.local(),
                peer = %chosen.remote(),
                netns = chosen.endpoint().netns.0,
                pod = chosen.pod(),
                "move"
            )
        };
    }
    match outcome {
        Outcome::Failed(_) => line!(warn),
        _ => line!(info),
    }
}

fn cooldown(hold: &NewHold) {
    match hold {
        NewHold::Returns {
            subject,
            endpoint,
            test,
            lasts,
        } => warn!(
            cause = "returns",
            %subject,
            netns = endpoint.netns.0,
            port = endpoint.port,
            moves = test.moves,
            returned = test.returned,
            by_chance = format!("one of {}", test.siblings),
            for_seconds = lasts.as_secs(),
            "moves do not help: clients return to the same endpoint; until the cooldown ends only \
             maxAge moves their connections"
        ),
        NewHold::FillFailed {
            rule,
            group,
            failure,
            lasts,
        } => warn!(
            cause = "fillFailed",
            %rule,
            %group,
            moves = failure.moves,
            emptiest = %Load(failure.by, failure.least),
            mean = %Load(failure.by, failure.mean),
            by_chance = %Load(failure.by, failure.brought),
            for_seconds = lasts.as_secs(),
            "moves do not help: an endpoint stays empty; its siblings' connections are on cooldown"
        ),
    }
}

fn counting(report: &CountingReport) {
    match report {
        CountingReport::Started(fionread) => {
            info!(?fionread, "counting sends for rules with `count: Messages`");
        }
        CountingReport::WrongFionread => warn!(
            reason = "fionread",
            remedy = "use another kernel; or, if none of these servers uses FIONREAD (nginx does), \
                      --count-despite-fionread",
            "on this kernel FIONREAD returns 0 on a counted socket with unread data: sends are not \
             counted"
        ),
        CountingReport::Unavailable(error) => warn!(
            reason = "unavailable",
            error, "this node cannot count sends"
        ),
        CountingReport::Changed { joined, left, all } => {
            debug!(joined, left, all, "counting sends");
        }
        // The first of each reason as a warning; the others would only fill the log.
        CountingReport::NotCounted {
            reason,
            cookie,
            new,
            total,
        } if total == new => {
            warn!(%reason, %cookie, new, total, "sends not counted");
        }
        CountingReport::NotCounted {
            reason,
            cookie,
            new,
            total,
        } => debug!(%reason, %cookie, new, total, "sends not counted"),
        CountingReport::NoHolders(error) => {
            warn!(%error, "cannot find the holders of the sockets to count on");
        }
        CountingReport::StillCounted(cookie, error) => {
            warn!(%error, %cookie, "could not stop counting a connection");
        }
        CountingReport::Stopped { left } => info!(left, "stopped counting sends"),
        CountingReport::Panicked => error!("the counting thread panicked"),
    }
}

fn mover_lost(cause: MoverLoss, may_restart: bool) {
    match cause {
        MoverLoss::Stuck { time, at } => error!(
            cause = cause.as_str(),
            seconds = time.as_secs(),
            cookie = at.map(|cookie| cookie.to_string()),
            "the moving thread is stuck: the kernel does not answer it, because something holds the \
             socket's lock; abandoned the thread, that connection is not touched again"
        ),
        MoverLoss::Panicked => error!(cause = cause.as_str(), "the moving thread has panicked"),
    }
    if !may_restart {
        error!(
            "too many moving threads are stuck: nothing is moved until the kernel answers one of them"
        );
    }
}
