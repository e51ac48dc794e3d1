//! Which moved clients have reconnected to other nodes, judging by the coordinator's views.
//!
//! A node does not see the connections of other nodes, so it cannot see where its moved clients went. The views show
//! how many connections the other nodes have. When that number has grown since an earlier view, the growth times this
//! node's share of the moves is the number of its moves that are taken to have arrived there, the oldest first. Growth
//! beyond the moves that are waiting is somebody else's, and is not saved for later moves. Without a view, no move is
//! taken to have arrived.
//!
//! Where several nodes move, their clients come to this node too, and the number of the others falls by as many: while
//! one of them moves much, it does not grow at all. So what fills those endpoints of the others that hold less than the
//! mean counts as growth as well: all that move give to these, and these give to nobody.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Charge, Group, cluster};
use crate::{
    policy::{By, RuleName},
    snapshot::{KernelTime, Snapshot},
    views::{Generation, Share, View, Views},
};

/// No view can show a move that ended so shortly before: its connection must have been reported and merged.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// A group under the rule that has moved there.
type Key = (RuleName, Arc<Group>);

/// The most that the other nodes had in a view, by rule and group, while moves are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals(BTreeMap<Key, Most>);

/// The most that the other nodes had in a view of one set of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Most {
    generation: Generation,
    connections: u64,
    /// What their endpoints held up to the mean, and that mean.
    filled: u64,
    mean: u64,
}

impl Most {
    fn of(view: &View) -> Self {
        Self {
            generation: view.generation,
            connections: view.elsewhere,
            filled: view.filled,
            mean: view.mean,
        }
    }

    /// Takes in the next view; how many connections came to the other nodes, at least.
    fn grow(&mut self, view: &View) -> u64 {
        if self.generation != view.generation {
            *self = Self::of(view);
            return 0;
        }
        let connections = view.elsewhere.saturating_sub(self.connections);
        self.connections = self.connections.max(view.elsewhere);
        // With the mean grows what counts of those that hold more, though nothing came to them.
        let with_the_mean = view.mean.saturating_sub(self.mean);
        let with_the_mean = with_the_mean.saturating_mul(view.full.into());
        let before = self.filled.saturating_add(with_the_mean);
        let filled = view.filled.saturating_sub(before);
        if filled > 0 {
            (self.filled, self.mean) = (view.filled, view.mean);
        }
        // A rate is no number of connections.
        let counts = view.key.by == By::Connections.as_str();
        connections.max(if counts { filled } else { 0 })
    }
}

/// When the last of the moves ended that have just arrived.
#[derive(Debug, Default)]
pub(super) struct UpTo(BTreeMap<Key, KernelTime>);

impl UpTo {
    /// Whether a move that ended then is no later than those that have arrived.
    pub(super) fn includes(&self, charge: &Charge, ended: KernelTime) -> bool {
        let key = (charge.rule.clone(), Arc::clone(&charge.group));
        !charge.whole && self.0.get(&key).is_some_and(|last| ended <= *last)
    }
}

impl Arrivals {
    /// For each group, the end of the latest move that has arrived by now. `unseen` are the moves whose clients have
    /// not been seen here, with when they ended. Moves whose whole group is on this node are ignored.
    pub(super) fn up_to<'a>(
        &mut self,
        snapshot: &Snapshot,
        unseen: impl Iterator<Item = (&'a Charge, KernelTime)>,
    ) -> UpTo {
        let mut waiting: BTreeMap<Key, Vec<KernelTime>> = BTreeMap::new();
        for (charge, at) in unseen.filter(|(charge, _)| !charge.whole) {
            let key = (charge.rule.clone(), Arc::clone(&charge.group));
            let ended = waiting.entry(key).or_default();
            if snapshot.taken.since(at) >= SHOWN_AFTER {
                ended.push(at);
            }
        }
        self.0.retain(|key, _| waiting.contains_key(key));
        let mut up_to = UpTo::default();
        for (key, mut ended) in waiting {
            let Some(view) = view_of(&snapshot.views, &key.0, &key.1) else {
                self.0.remove(&key);
                continue;
            };
            let most = self.0.entry(key.clone());
            let most = most.or_insert_with(|| Most::of(view));
            let arrived = view.share.of(most.grow(view));
            ended.sort_unstable();
            let arrived = usize::try_from(arrived).unwrap_or(usize::MAX);
            let last = ended.len().min(arrived).checked_sub(1);
            up_to.0.extend(last.map(|last| (key, ended[last])));
        }
        up_to
    }
}

/// Whether, by the last view, other nodes are moving clients of the same group, some of which reconnect to this node.
/// They are not while no endpoint holds more than the default tolerance allows, and none less than chance explains.
pub(super) fn others_move(snapshot: &Snapshot, charge: &Charge) -> bool {
    let view = view_of(&snapshot.views, &charge.rule, &charge.group);
    let is_uneven = |view: &&View| {
        view.most > view.mean.saturating_add(view.mean / 10)
            || cluster::facts(view, view.sums.into()).one_is_empty()
    };
    view.filter(is_uneven)
        .is_some_and(|view| view.share != Share::ALL)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view([elsewhere, filled, mean]: [u64; 3]) -> View {
        let mut view = View {
            elsewhere,
            filled,
            mean,
            full: 2,
            ..View::default()
        };
        view.key.by = By::Connections.as_str().to_owned();
        view
    }

    #[test]
    fn others_gain_what_they_hold_in_all_or_what_fills_those_that_lack() {
        let mut most = Most::of(&view([200, 100, 50]));
        assert_eq!(most.grow(&view([206, 104, 50])), 6);
        // Many of theirs have come here.
        assert_eq!(most.grow(&view([190, 109, 50])), 5);
        assert_eq!(most.grow(&view([190, 109, 50])), 0);
        // Reports of different times have one twice: the mean is above what it was.
        assert_eq!(most.grow(&view([195, 117, 52])), 4);
        assert_eq!(most.grow(&view([195, 113, 50])), 0);
        assert_eq!(
            most.grow(&view([207, 113, 50])),
            1,
            "and no lower bound is forgotten"
        );
        let mut by_rate = view([207, 900, 50]);
        by_rate.key.by = By::ByteRate.as_str().to_owned();
        assert_eq!(most.grow(&by_rate), 0);
        let others = View {
            generation: Generation(8),
            ..view([400, 300, 50])
        };
        assert_eq!(
            most.grow(&others),
            0,
            "of other endpoints nothing is known yet"
        );
    }
}
