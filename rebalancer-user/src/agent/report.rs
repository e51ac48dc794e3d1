//! One line per move: what was done, to which connection, and why.

use std::time::Duration;

use tracing::{info, warn};

use crate::{
    plan::{Load, Move, NewHold, Outcome, Refusal},
    render::What,
};

/// A move and its outcome.
pub(super) fn moved(chosen: &Move, outcome: &Outcome, waited: Duration) {
    macro_rules! line {
        ($level:ident) => {
            $level!(
                cookie = %chosen.cookie(),
                rule = %chosen.rule(),
                reason = chosen.why(),
                outcome = outcome.as_str(),
                cause = outcome.refusal().map(Refusal::as_str),
                detail = %outcome,
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

/// A move that the mode forbids.
pub(super) fn would_move(chosen: &Move) {
    info!(
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
    );
}

/// Moves that do not help, and are left off for a time: logged, and as an event.
pub(super) fn held(hold: &NewHold) -> What {
    match hold {
        NewHold::Returns {
            whom,
            endpoint,
            test,
            lasts,
        } => {
            warn!(
                %whom,
                netns = endpoint.netns.0,
                port = endpoint.port,
                moves = test.moves,
                returned = test.returned,
                by_chance = format!("one of {}", test.siblings),
                for_seconds = lasts.as_secs(),
                "moves do not help: clients return to the same endpoint; their connections are on \
                 cooldown"
            );
            What::Held {
                of: format!(
                    "{whom} at port {} of netns {}",
                    endpoint.port, endpoint.netns.0
                ),
                why: format!(
                    "{} of {} moves returned to the same endpoint, where one in {} does by chance",
                    test.returned, test.moves, test.siblings
                ),
                for_seconds: lasts.as_secs_f64(),
            }
        }
        NewHold::Futile {
            rule,
            group,
            futile,
            lasts,
        } => {
            warn!(
                %rule,
                %group,
                moves = futile.moves,
                emptiest = %Load(futile.by, futile.least),
                mean = %Load(futile.by, futile.mean),
                by_chance = %Load(futile.by, futile.brought),
                for_seconds = lasts.as_secs(),
                "moves do not help: an endpoint stays empty; its siblings' connections are on cooldown"
            );
            let (least, mean) = (Load(futile.by, futile.least), Load(futile.by, futile.mean));
            What::Held {
                of: format!("rule {rule}, {group}"),
                why: format!(
                    "{} moves have not filled the emptiest endpoint: it holds {least} of a mean of {mean}",
                    futile.moves
                ),
                for_seconds: lasts.as_secs_f64(),
            }
        }
    }
}
