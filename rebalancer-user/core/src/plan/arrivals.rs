//! Moved clients that have arrived on other nodes, as the coordinator's views show it.
//!
//! A node sees no connection of another node, so it cannot see where its moved clients came. But what it sends
//! away arrives somewhere: as much as the connections on the other nodes have grown since, times this node's share
//! of the moves, so many of its moves are taken to have arrived, the oldest first. Those whose clients returned were
//! seen here, and are none of them; they are known as soon as moves that ended no earlier have arrived, so that both
//! count at the same time. Without a view nothing is taken to have arrived.

use std::{collections::BTreeMap, sync::Arc};

use super::{Group, PendingReturn, Reappearance};
use crate::{
    policy::RuleName,
    snapshot::{KernelTime, Snapshot},
    views::{View, Views},
};

/// How the other nodes' connections have grown, by rule and group, while moves are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals(BTreeMap<Key, Growth>);

/// A group under the rule that has moved there.
type Key = (RuleName, Arc<Group>);

/// When the last of the moves ended that have just arrived.
#[derive(Debug, Default)]
pub(super) struct UpTo(BTreeMap<Key, KernelTime>);

impl UpTo {
    /// Whether a move is no later than those that have arrived.
    pub(super) fn includes(&self, one: &PendingReturn) -> bool {
        let key = (one.charge.rule.clone(), Arc::clone(&one.charge.group));
        self.0.get(&key).is_some_and(|last| one.ended <= *last)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growth {
    /// The least that the other nodes had since the first of these moves was looked for.
    least: u64,
    /// Moves that were taken to have arrived since.
    arrived: u64,
}

impl Arrivals {
    /// Marks those of `moves` that have arrived on another node, and says up to when these ended. Moves of which
    /// the whole group is seen here are left alone.
    pub(super) fn mark<'a>(
        &mut self,
        snapshot: &Snapshot,
        moves: impl Iterator<Item = &'a mut PendingReturn>,
    ) -> UpTo {
        let mut up_to = UpTo::default();
        let mut waiting: BTreeMap<_, Vec<&mut PendingReturn>> = BTreeMap::new();
        for one in moves.filter(|one| !one.charge.whole && one.seen.is_none()) {
            let key = (one.charge.rule.clone(), Arc::clone(&one.charge.group));
            waiting.entry(key).or_default().push(one);
        }
        self.0.retain(|key, _| waiting.contains_key(key));
        for (key, mut moves) in waiting {
            let Some(view) = view_of(&snapshot.views, &key.0, &key.1) else {
                self.0.remove(&key);
                continue;
            };
            let growth = self.0.entry(key.clone()).or_insert(Growth {
                least: view.elsewhere,
                arrived: 0,
            });
            growth.least = growth.least.min(view.elsewhere);
            let arrived = view.share.of(view.elsewhere - growth.least);
            let new = arrived.saturating_sub(growth.arrived);
            moves.sort_by_key(|one| one.ended);
            for one in moves
                .into_iter()
                .take(usize::try_from(new).unwrap_or(usize::MAX))
            {
                one.seen = Some(Reappearance::Elsewhere);
                growth.arrived += 1;
                up_to.0.insert(key.clone(), one.ended);
            }
        }
        up_to
    }
}

fn view_of<'a>(views: &'a Views, rule: &RuleName, group: &Group) -> Option<&'a View> {
    let Views::Valid { services, .. } = views else {
        return None;
    };
    let service = group.service.as_ref()?.to_string();
    let is_it = |view: &&View| {
        let key = &view.key;
        key.service == service && key.port == group.port && key.rule == rule.as_str()
    };
    services.values().find(is_it)
}
