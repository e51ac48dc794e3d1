//! Which endpoints share clients: a Service at one port, or, where there are no Services, all
//! endpoints at one port.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    policy::Rule,
    snapshot::{EndpointKey, Identity, ServiceName, Snapshot, Who},
};

/// Endpoints that share clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The Service that leads to them; none on a host without Kubernetes.
    pub service: Option<ServiceName>,
    /// Their own port.
    pub port: u16,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{service}:{}", self.port),
            None => write!(f, "port {}", self.port),
        }
    }
}

impl Group {
    /// The endpoints that share clients with the one at `key` under `rule`: of the Services that
    /// lead there the first that the rule names, or the first at all. A headless one only where
    /// there is no other, as the guards see it: who asks it shares no clients by chance.
    pub(super) fn of(rule: &Rule, snapshot: &Snapshot, key: &EndpointKey) -> Self {
        let service = snapshot.who(key).pod().and_then(|pod| {
            let all = pod.services.iter().flatten().map(|at| at.name.as_str());
            let full = |name: &str| ServiceName {
                namespace: pod.namespace.clone(),
                name: name.to_owned(),
            };
            all.filter(|name| names(rule, pod, name))
                .map(full)
                .min_by_key(|name| {
                    let facts = snapshot.services.get(name);
                    (facts.is_some_and(|facts| facts.headless), name.clone())
                })
        });
        Self {
            service,
            port: key.port,
        }
    }

    /// Whether the endpoint at `key` is one of them.
    pub(super) fn has(&self, key: &EndpointKey, who: &Who) -> bool {
        let leads = |service: &ServiceName| {
            who.pod().is_some_and(|pod| {
                let mut at = pod.services.iter().flatten();
                pod.namespace == service.namespace && at.any(|at| at.name == service.name)
            })
        };
        self.port == key.port && self.service.as_ref().is_none_or(leads)
    }

    /// Whether new connections are sent to the endpoint at `key`, which is one of them.
    pub(super) fn is_ready(&self, who: &Who) -> bool {
        let (Some(service), Some(pod)) = (&self.service, who.pod()) else {
            return true;
        };
        let mut at = pod.services.iter().flatten();
        !pod.terminating && at.any(|at| at.name == service.name && at.ready && !at.terminating)
    }
}

fn names(rule: &Rule, pod: &Identity, service: &str) -> bool {
    let meant = rule.matches().services();
    let mut all = meant.iter();
    meant.is_empty() || all.any(|meant| meant.means(&pod.namespace, service))
}
