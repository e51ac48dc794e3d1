//! Who of several coordinators leads: whoever holds a Lease, as client-go elects leaders.
//!
//! A lease is written with the resource version that was read, so that of two who take it at once one
//! fails. Its times are for people: how long a holder has been silent is measured on the clock of who
//! waits, from when the lease was last seen to change.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use super::exchange::answered;

/// A holder that is silent for so long has lost it.
const LASTS: Duration = Duration::from_secs(15);
/// A holder that could not renew it for so long holds it no more: less than [`LASTS`], so that two
/// never lead.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A lease that one of several holds.
pub struct Lease {
    api: Api<LeaseObject>,
    name: String,
    identity: String,
    /// As it was last seen to be, and since when.
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
}

impl Lease {
    /// How often [`Lease::hold`] is to be called.
    pub const EVERY: Duration = Duration::from_secs(2);

    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
            renewed: None,
        }
    }

    /// Until when it is held, if it is not renewed before; none if another may hold it.
    pub fn held_until(&self) -> Option<Instant> {
        self.renewed.map(|at| at + RENEWED_WITHIN)
    }

    /// Takes or renews it, if nobody else holds it.
    ///
    /// # Errors
    /// Why the API server was not asked, in words; what was held is held until its time is over.
    pub async fn hold(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let holds = answered(ANSWER, self.try_to_hold(began)).await?;
        // From before the request: others count from when they see it, which is later.
        self.renewed = holds.then_some(began);
        Ok(())
    }

    /// Gives it back, so that another need not wait.
    pub async fn release(&mut self) {
        if self.renewed.take().is_none() {
            return;
        }
        let release = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                let params = PostParams::default();
                self.api.replace(&self.name, &params, &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        // Another waits until its time is over.
        let _unanswered = answered(ANSWER, release).await;
    }

    async fn try_to_hold(&mut self, now: Instant) -> Result<bool, kube::Error> {
        let params = PostParams::default();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = LeaseObject {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return written(self.api.create(&params, &lease).await);
        };
        let spec = lease.spec.unwrap_or_default();
        if !self.may_take(&spec, now) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        written(self.api.replace(&self.name, &params, &lease).await)
    }

    /// Whether it is ours, nobody's, or of one who has been silent for too long.
    fn may_take(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            self.seen = None;
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => now.saturating_duration_since(*since) >= LASTS,
            _ => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.cloned().unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: if is_ours {
                before.acquire_time
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_ours))),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict is no error: another was quicker.
fn written(answer: Result<LeaseObject, kube::Error>) -> Result<bool, kube::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen_by(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test]
    async fn a_holder_that_is_silent_for_the_leases_time_has_lost_it() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        let mut lease = Lease::new(client, "rebalancer", "coordinator", "b");
        let start = Instant::now();
        let second = Duration::from_secs;
        assert!(
            !lease.may_take(&seen_by("a", 1), start),
            "its clock may be wrong"
        );
        assert!(!lease.may_take(&seen_by("a", 1), start + second(14)));
        assert!(
            !lease.may_take(&seen_by("a", 2), start + second(20)),
            "it lives"
        );
        assert!(!lease.may_take(&seen_by("a", 2), start + second(34)));
        assert!(lease.may_take(&seen_by("a", 2), start + second(35)));
        assert!(lease.may_take(&seen_by("b", 2), start), "it is ours");
        assert!(lease.may_take(&seen_by("", 2), start), "it was given back");
    }
}
