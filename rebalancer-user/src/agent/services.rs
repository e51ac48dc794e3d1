//! The endpoints of a snapshot by Service, for who looks at them.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    api::{BalanceItem, EndpointItem, ServiceItem},
    plan::{Balanced, Group, Plan},
    snapshot::{Endpoint, EndpointKey, Identity, Snapshot},
};

/// Endpoints shown; those with fewest connections are left out.
const MOST: usize = 2000;

/// Each Service's endpoints; those of none by their port.
pub(super) fn by_service(
    snapshot: &Snapshot,
    plan: &Plan,
    in_flight: impl Iterator<Item = EndpointKey>,
) -> Vec<ServiceItem> {
    let mut moving: BTreeMap<EndpointKey, u64> = BTreeMap::new();
    for endpoint in in_flight {
        *moving.entry(endpoint).or_default() += 1;
    }
    let mut shown: Vec<(&EndpointKey, &Endpoint)> = snapshot
        .endpoints
        .iter()
        .filter(|(_, endpoint)| endpoint.open > 0 || endpoint.listeners > 0)
        .collect();
    shown.sort_by_key(|(key, endpoint)| (Reverse(endpoint.open), **key));
    shown.truncate(MOST);
    let mut services: BTreeMap<String, Vec<EndpointItem>> = BTreeMap::new();
    for (key, endpoint) in shown {
        let pod = endpoint.who.pod();
        let item = EndpointItem {
            netns: key.netns.0,
            cgroup: key.cgroup.map(|id| id.0),
            port: key.port,
            pod: pod.map(Identity::full_name),
            connections: endpoint.open,
            bytes: endpoint.bytes_in.0.saturating_add(endpoint.bytes_out.0),
            in_flight: moving.get(key).copied().unwrap_or(0),
        };
        let names = pod.and_then(|pod| {
            let services = pod.services.as_ref()?;
            let names = services.iter();
            Some(names.map(|at| format!("{}/{}", pod.namespace, at.name)))
        });
        let mut names: Vec<String> = names.into_iter().flatten().collect();
        if names.is_empty() {
            names.push(format!("port {}", key.port));
        }
        for name in names {
            services.entry(name).or_default().push(item.clone());
        }
    }
    let mut balances: BTreeMap<String, Vec<BalanceItem>> = BTreeMap::new();
    for balanced in plan.balanced() {
        let of_name = balances.entry(shown_as(&balanced.group)).or_default();
        of_name.push(balance(balanced));
    }
    let mut services: Vec<ServiceItem> = services
        .into_iter()
        .map(|(name, endpoints)| ServiceItem {
            balances: balances.remove(&name).unwrap_or_default(),
            name,
            endpoints,
        })
        .collect();
    services.sort_by_key(|service| Reverse(service.connections()));
    services
}

/// The name under which a group's endpoints are shown.
fn shown_as(group: &Group) -> String {
    let service = group.service.as_ref();
    service.map_or_else(|| group.to_string(), ToString::to_string)
}

/// How a rule sees them.
fn balance(balanced: &Balanced) -> BalanceItem {
    let facts = balanced.facts.as_ref().ok();
    let tolerance = balanced.balance.tolerance();
    BalanceItem {
        rule: balanced.rule.to_string(),
        by: balanced.balance.by().as_str().to_owned(),
        port: balanced.group.port,
        mean: facts.map(|facts| facts.mean()),
        start: facts.and_then(|facts| facts.start(tolerance)),
        stop: facts.map(|facts| facts.stop(tolerance)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Ledger, decide},
        policy,
        snapshot::{
            Bytes,
            sample::{self, connection, endpoint as key, listening},
        },
    };

    #[test]
    fn endpoints_are_by_port_and_the_fullest_is_first() {
        let endpoint = |open, bytes| Endpoint {
            open,
            bytes_in: Bytes(bytes),
            ..listening()
        };
        let snapshot = Snapshot {
            endpoints: BTreeMap::from([
                (key(1, 8080), endpoint(1, 10)),
                (key(2, 8080), endpoint(5, 20)),
                (key(3, 22), endpoint(0, 0)),
                (key(4, 23), Endpoint::default()),
            ]),
            ..sample::snapshot(0, vec![connection(7)])
        };
        let policy = policy::sample::policy(
            "rules: [{name: even, match: {ports: [{port: 8080}]}, balance: {by: Connections}}]\n",
        );
        let plan = decide(&policy, &snapshot, &Ledger::default(), snapshot.taken);
        let services = by_service(&snapshot, &plan, [key(1, 8080)].into_iter());
        let names: Vec<&str> = services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["port 8080", "port 22"]);
        let first = &services[0];
        assert_eq!(first.balances[0].rule, "even");
        assert_eq!(first.balances[0].by, "Connections");
        assert!(services[1].balances.is_empty());
        assert_eq!(first.connections(), 6);
        let netns: Vec<u32> = first.endpoints.iter().map(|e| e.netns).collect();
        assert_eq!(netns, [2, 1]);
        assert_eq!(
            (first.endpoints[1].in_flight, first.endpoints[0].bytes),
            (1, 20)
        );
    }
}
