//! Which connections of a hot endpoint are its excess.
//!
//! An endpoint that holds too much ([`ServiceFacts::keeps`]) sheds what is above its stop. A client
//! that is moved is placed by chance, and comes to the same endpoint once in N: to have `excess`
//! less, `excess · N/(N−1)` are to be moved at once. So many are moved by the least patient of all
//! movers, which moves one, looks where it came, and moves the next; more would be too many, and
//! fewer takes more rounds. The last few are moved with a margin of two standard deviations of how
//! many come back, as another round for one connection costs more than a connection too many.
//!
//! Who is moved: the excess is parted among the clients first, each by what it has here beyond its
//! own share, the 1/N of all that it has at the group's endpoints. The one with most of that gives
//! one of its connections, then again the one with most. What falls to a client that must not be
//! moved is left, and falls to no other: a flood of one client does not push its neighbours out.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    net::{IpAddr, Ipv6Addr},
};

use super::{
    Balanced, LoadComparison, Reason, SkipReason,
    groups::{GroupLoad, Groups},
    lookup::Lookup,
};
use crate::{
    policy::{Balance, By},
    snapshot::{Connection, EndpointKey},
};

/// A connection whose rule balances.
pub(super) struct Weighed<'a> {
    pub(super) connection: &'a Connection,
    /// The index of its judgement: in the order of cookies.
    pub(super) index: usize,
    /// Its client's index in its group; none if that always comes back to this endpoint, as then the
    /// connection is no part of what chance placed there.
    pub(super) client: Option<u32>,
    pub(super) load: u64,
    pub(super) state: State,
}

/// What each client has at all endpoints of each group.
pub(super) struct Clients {
    indexes: Lookup<(u32, Ipv6Addr), u32>,
    loads: Vec<u64>,
}

impl Clients {
    /// With room for so many.
    pub(super) fn with_capacity(clients: usize) -> Self {
        Self {
            indexes: Lookup::with_capacity(clients),
            loads: Vec::new(),
        }
    }

    /// Adds what one of a client's connections counts for; the client's index.
    pub(super) fn add(&mut self, group: usize, connection: &Connection, load: u64) -> u32 {
        let client = match connection.remote.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let index = *self.indexes.slot((group as u32, client), || {
            self.loads.push(0);
            self.loads.len() as u32 - 1
        });
        let sum = &mut self.loads[index as usize];
        *sum = sum.saturating_add(load);
        index
    }

    fn load(&self, client: u32) -> u64 {
        self.loads[client as usize]
    }
}

/// What else is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It goes in any case, or was reported in dry run: it is a part of the excess that is no longer
    /// looked for.
    Goes,
    /// It may be moved.
    Free,
    /// It may be moved, but not now.
    Later,
    /// Likewise, as its client comes back. What is true of the others is not true of it.
    Returns,
    /// It stays.
    Stays,
}

impl State {
    /// The lowest are the first to be counted off the excess.
    fn rank(self) -> u8 {
        match self {
            Self::Goes => 0,
            Self::Free => 1,
            Self::Later | Self::Returns => 2,
            Self::Stays => 3,
        }
    }
}

/// What becomes of one that was weighed.
pub(super) enum Weighing {
    /// It is to be moved.
    Move(Reason),
    /// It is left, and why.
    Skip(SkipReason),
}

/// Weighs the connections of one endpoint that one rule is for, and hands what becomes of them to
/// `answer`: those to be moved first, in the order of their turns; of the others those for which
/// there is no reason of their own, or a better one.
pub(super) fn weigh<'b>(
    (group, balance): (&GroupLoad, Balance),
    endpoint: EndpointKey,
    weighed: &[Weighed<'b>],
    clients: &Clients,
    mut answer: impl FnMut(&Weighed<'b>, Weighing),
) {
    let mut skip_all = |why: &dyn Fn(&Weighed<'_>) -> SkipReason| {
        let asked = weighed.iter();
        let asked = asked.filter(|one| matches!(one.state, State::Free | State::Later));
        asked.for_each(|one| answer(one, Weighing::Skip(why(one))));
    };
    let facts = match group.facts {
        Ok(facts) => facts,
        Err(view) => return skip_all(&|_| SkipReason::NoClusterView { view }),
    };
    let Some(at) = group.endpoints.get(&endpoint).filter(|at| at.ready) else {
        return skip_all(&|_| SkipReason::NotReady);
    };
    let comparison = LoadComparison::of(balance, facts, at.load);
    let within_balance = || SkipReason::WithinBalance { comparison };
    let Some(keeps) = facts.keeps(at.load, balance.tolerance(), at.sheds) else {
        return skip_all(&|_| within_balance());
    };
    if let Some((failure, left)) = group.held {
        return skip_all(&|_| SkipReason::FillFailed {
            failure: Box::new(failure),
            left,
        });
    }
    let (by, excess) = (balance.by(), at.load.saturating_sub(keeps));
    if at.largest > excess {
        // Without that one the endpoint would hold less than the stop: the others are not what
        // makes it hot, and that one would make any other hot.
        return skip_all(&|one| {
            let load = one.load;
            if load > excess {
                SkipReason::LargerThanExcess { by, load, excess }
            } else {
                within_balance()
            }
        });
    }
    let last_few = by == By::Connections && comparison.start.is_none_or(|start| at.load < start);
    let target = to_move(excess, facts.endpoints, last_few).min(at.load);
    let reason = Reason::Balance {
        by,
        load: at.load,
        mean: facts.mean(),
        stop: keeps,
    };
    let mut is_left = vec![true; weighed.len()];
    for place in part(weighed, clients, facts.endpoints, target) {
        is_left[place] = false;
        let one = &weighed[place];
        if one.state == State::Free {
            answer(one, Weighing::Move(reason));
        }
    }
    let comparison = LoadComparison {
        stop: keeps,
        ..comparison
    };
    for (one, is_left) in weighed.iter().zip(is_left) {
        if is_left && matches!(one.state, State::Free | State::Later) {
            answer(one, Weighing::Skip(SkipReason::OthersMoved { comparison }));
        }
    }
}

/// How much is to be moved, so that `excess` less is here afterwards.
pub(super) fn to_move(excess: u64, endpoints: u32, last_few: bool) -> u64 {
    let n = u128::from(endpoints.max(2));
    let moved = (u128::from(excess) * n).div_ceil(n - 1);
    let moved = u64::try_from(moved).unwrap_or(u64::MAX);
    if !last_few {
        return moved;
    }
    // Of k moves k/N come back, give or take √(k·(N−1))/N.
    let spread = (moved as f64 * (n - 1) as f64).sqrt() / n as f64;
    moved.saturating_add((2.0 * spread).ceil() as u64)
}

/// Parts `target` among the clients; the places, in `weighed`, of what falls to them, in order.
fn part(weighed: &[Weighed<'_>], clients: &Clients, endpoints: u32, target: u64) -> Vec<usize> {
    let counted = weighed.iter().zip(0_u32..);
    let mut places: Vec<(u32, u32)> = counted
        .filter_map(|(one, place)| Some((one.client?, place)))
        .collect();
    places.sort_unstable();
    let n = i128::from(endpoints);
    let mut queues = Vec::with_capacity(places.len());
    let mut shares = Vec::with_capacity(places.len());
    for of_client in places.chunk_by_mut(|a, b| a.0 == b.0) {
        let (client, _) = of_client[0];
        let at = |place: &u32| &weighed[*place as usize];
        let here: u64 = of_client.iter().map(|(_, place)| at(place).load).sum();
        let share = i128::from(here) * n - i128::from(clients.load(client));
        shares.push((clamped(share), Reverse(queues.len() as u32)));
        // What is to be moved first: the heaviest, then the oldest.
        of_client.sort_unstable_by_key(|(_, place)| {
            let one = at(place);
            (
                one.state.rank(),
                Reverse(one.load),
                one.connection.opened,
                one.index,
            )
        });
        queues.push(of_client.iter());
    }
    let mut shares = BinaryHeap::from(shares);
    let (mut left, mut largest, mut chosen) = (target, 0, Vec::new());
    while left > 0 {
        let Some(mut most) = shares.peek_mut() else {
            break;
        };
        let (_, Reverse(client)) = *most;
        let queue = &mut queues[client as usize];
        let Some((_, place)) = queue.next() else {
            PeekMut::pop(most);
            continue;
        };
        let place = *place as usize;
        let load = weighed[place].load;
        // A smaller one of the same client may still fit. But the last twentieth is not worth many
        // small ones.
        let sliver = left <= target / 20 && load < largest;
        if load <= left && load > 0 && !sliver {
            left -= load;
            largest = largest.max(load);
            chosen.push(place);
            if queue.len() > 0 {
                // A part of those moved comes back.
                most.0 = clamped(i128::from(most.0) - i128::from(load) * (n - 1));
            }
        }
        if queue.len() == 0 {
            PeekMut::pop(most);
        }
    }
    chosen
}

/// What is beyond the range of a share is beyond that of any load; small numbers are compared faster.
fn clamped(share: i128) -> i64 {
    share.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// How each group that a rule balances stands.
pub(super) fn standings(groups: &Groups) -> Vec<Balanced> {
    let balanced = groups.iter().filter_map(|group| {
        let balance = group.balance?;
        let loads = group.endpoints.iter().filter(|(_, at)| at.ready);
        Some(Balanced {
            rule: group.rule.clone(),
            group: (*group.name).clone(),
            balance,
            facts: group.facts,
            cluster: group.cluster,
            endpoints: loads.map(|(key, at)| (*key, at.load, at.sheds)).collect(),
        })
    });
    let mut balanced: Vec<Balanced> = balanced.collect();
    balanced.sort_by(|a, b| (&a.rule, &a.group).cmp(&(&b.rule, &b.group)));
    balanced
}
