//! What a group holds on all nodes, as the coordinator has it.

use super::{Group, NoClusterView, ServiceFacts, Sum};
use crate::{
    policy::{Balance, RuleName},
    snapshot::{Service, Snapshot},
    views::{Key, Share, View, Views},
};

/// A node's part in the balance of a Service over all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterShare {
    /// Its part of the Service's budget.
    pub share: Share,
    /// The connections of all nodes, of which that budget may be a percentage.
    pub connections: u64,
    /// What its endpoints hold above the mean, as the coordinator saw it.
    pub excess: u64,
}

/// By what a group under a rule is named in reports, and what is known of its Service; none if its
/// clients are not spread over the endpoints of all nodes.
pub(super) fn key<'a>(
    (rule, group): (&RuleName, &Group),
    balance: Balance,
    snapshot: &'a Snapshot,
) -> Option<(Key, &'a Service)> {
    let Group { service, port } = group;
    let name = service.as_ref()?;
    let service = snapshot.services.get(name)?;
    if service.headless || service.local_policy().is_some() {
        return None;
    }
    let key = Key {
        service: name.to_string(),
        port: *port,
        zone: service.zone.clone(),
        rule: rule.to_string(),
        by: balance.by().as_str().to_owned(),
    };
    Some((key, service))
}

/// What all nodes hold of a group, of which `all` endpoints are ready and this node holds `here`, and this node's
/// part in it.
///
/// # Errors
/// Why that is not known.
pub(super) fn view(
    group: (&RuleName, &Group),
    balance: Balance,
    snapshot: &Snapshot,
    (here, all): (Sum, Option<u32>),
) -> Result<(ServiceFacts, ClusterShare), NoClusterView> {
    let views = match &snapshot.views {
        Views::Off => return Err(NoClusterView::Off),
        Views::Awaited => return Err(NoClusterView::Awaited),
        Views::Expired => return Err(NoClusterView::Expired),
        Views::Valid { services, .. } => services,
    };
    let (key, service) = key(group, balance, snapshot).ok_or(NoClusterView::Off)?;
    let view: &View = views.get(&key).ok_or(NoClusterView::Incomplete)?;
    if service.generation != Some(view.generation) || all != Some(view.endpoints) {
        return Err(NoClusterView::OtherGeneration);
    }
    let share = ClusterShare {
        share: view.share,
        connections: view.connections,
        excess: view.excess,
    };
    // Reports are taken at different moments: a connection that moves between two of them is counted twice, or not at
    // all. A node knows what it holds better than its last report, and counts what it has moved until a view shows
    // that it has arrived. So it counts its own moves exactly once.
    let sum = match view.others {
        Some(others) => {
            let mut sum = Sum::from(others);
            sum.join(here);
            sum
        }
        None => view.sums.into(),
    };
    Ok((facts(view, sum), share))
}

/// The facts of a view in which all endpoints hold `sum` together.
pub(super) fn facts(view: &View, sum: Sum) -> ServiceFacts {
    ServiceFacts {
        endpoints: view.endpoints,
        sum,
        least: view.least,
        most: view.most,
    }
}
