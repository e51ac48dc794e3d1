//! What a group holds on all nodes, as the coordinator has it.

use super::{Group, NoClusterView, ServiceFacts, Sum};
use crate::{
    policy::{Balance, RuleName},
    snapshot::{Service, Snapshot},
    views::{Key, Share, Sums, View, Views},
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
    Ok((facts(view, Some(here)), share))
}

/// What all nodes hold by a view, if this node holds `here` now.
pub(super) fn facts(view: &View, here: Option<Sum>) -> ServiceFacts {
    // Reports are of several moments, and a connection that is moved between two of them is in both, or in none. Of
    // its own part a node knows more than it last reported, and what it has moved counts until a view shows that it
    // has arrived: so what it moves itself is counted once.
    let sum = match (view.others, here) {
        (Some(others), Some(here)) => {
            let mut sum = sum_of(others);
            sum.join(here);
            sum
        }
        _ => sum_of(view.sums),
    };
    ServiceFacts {
        endpoints: view.endpoints,
        sum,
        least: view.least,
        most: view.most,
    }
}

fn sum_of(sums: Sums) -> Sum {
    Sum {
        total: sums.total,
        squares: sums.squares,
        largest: sums.largest,
    }
}
