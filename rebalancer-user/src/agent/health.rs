//! Whether the agent lives and is ready, as a kubelet or a script asks.

use std::time::Instant;

use hyper::StatusCode;

use super::published::Published;
use crate::{
    api::Status,
    http::{Answer, text_answer},
    moves::Health,
};

/// `/healthz`: the loop makes progress. A listing that fails is reported elsewhere and is no reason to
/// restart the agent.
pub(super) fn live(published: &Published, now: Instant) -> Answer {
    answer(published.beat.at(now))
}

/// `/readyz`: the programs are attached, a policy is valid, the first listing was made, and the moving
/// thread works. A policy that is refused later changes nothing: the previous one stays in effect.
pub(super) fn ready(published: &Published, now: Instant) -> Answer {
    answer(is_ready(&published.status, published.mover.health(now)))
}

fn is_ready(status: &Status, mover: Option<Health>) -> Result<String, String> {
    match mover {
        Some(Health::Stuck { time, .. }) => {
            let seconds = time.as_secs();
            return Err(format!(
                "nothing is moved: the mover is stuck for {seconds} s"
            ));
        }
        Some(Health::Ended) => return Err("nothing is moved: the mover has ended".to_owned()),
        Some(Health::Fine) | None => {}
    }
    match (&status.last_pass, &status.pass_error) {
        (Some(_), _) => Ok(format!(
            "attached to {}, rules of {}: {}",
            status.cgroup, status.policy.file, status.policy.rules
        )),
        (None, Some(error)) => Err(format!("no pass has succeeded yet: {error}")),
        (None, None) => Err("no pass has completed yet".to_owned()),
    }
}

fn answer(verdict: Result<String, String>) -> Answer {
    match verdict {
        Ok(why) => text_answer(StatusCode::OK, format!("ok: {why}\n")),
        Err(why) => text_answer(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_agent_whose_mover_hangs_or_has_ended_is_not_ready() {
        let status = crate::api::sample_status();
        assert!(is_ready(&status, Some(Health::Fine)).is_ok());
        assert!(
            is_ready(&status, None).is_ok(),
            "a node where no reset mechanism works"
        );
        let stuck = Health::Stuck {
            time: Duration::from_secs(42),
            at: None,
        };
        let why = is_ready(&status, Some(stuck)).unwrap_err();
        assert_eq!(why, "nothing is moved: the mover is stuck for 42 s");
        assert!(is_ready(&status, Some(Health::Ended)).is_err());
    }
}
