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
    net::IpAddr,
};

use super::{
    Balanced, LoadComparison, Reason, SkipReason,
    groups::{GroupLoad, Groups},
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
    pub(super) client: Client,
    pub(super) load: u64,
    /// It is a part of what its endpoint holds: its client does not always come back there.
    pub(super) counts: bool,
    pub(super) state: State,
}

/// A client's address as a number: many are sorted, and comparing octets takes longer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Client(u128);

impl Client {
    pub(super) fn of(connection: &Connection) -> Self {
        Self(match connection.remote.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        })
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
/// there is no reason of their own, or a better one. `everywhere`: what each client has at all
/// endpoints of the group.
pub(super) fn weigh<'a, 'b>(
    (group, balance): (&GroupLoad, Balance),
    endpoint: EndpointKey,
    weighed: &[Weighed<'b>],
    everywhere: impl FnOnce() -> &'a ClientLoads,
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
    for place in part(weighed, everywhere(), facts.endpoints, target) {
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
fn part(
    weighed: &[Weighed<'_>],
    everywhere: &ClientLoads,
    endpoints: u32,
    target: u64,
) -> Vec<usize> {
    let counted = weighed.iter().zip(0..).filter(|(one, _)| one.counts);
    let mut places: Vec<(Client, usize)> =
        counted.map(|(one, place)| (one.client, place)).collect();
    places.sort_unstable();
    let n = i128::from(endpoints);
    let mut clients = Vec::new();
    let mut shares = Vec::new();
    for of_client in places.chunk_by_mut(|a, b| a.0 == b.0) {
        let (client, _) = of_client[0];
        let here: u64 = of_client
            .iter()
            .map(|(_, place)| weighed[*place].load)
            .sum();
        let share = i128::from(here) * n - i128::from(everywhere.of(client));
        shares.push((share, Reverse(clients.len())));
        // What is to be moved first: the heaviest, then the oldest.
        of_client.sort_unstable_by_key(|(_, place)| {
            let one = &weighed[*place];
            (
                one.state.rank(),
                Reverse(one.load),
                one.connection.opened,
                one.index,
            )
        });
        clients.push(of_client.iter());
    }
    let mut shares = BinaryHeap::from(shares);
    let (mut left, mut largest, mut chosen) = (target, 0, Vec::new());
    while left > 0 {
        let Some(mut most) = shares.peek_mut() else {
            break;
        };
        let (_, Reverse(client)) = *most;
        let Some((_, place)) = clients[client].next() else {
            PeekMut::pop(most);
            continue;
        };
        let load = weighed[*place].load;
        // A smaller one of the same client may still fit. But the last twentieth is not worth many
        // small ones.
        let sliver = left <= target / 20 && load < largest;
        if load <= left && load > 0 && !sliver {
            left -= load;
            largest = largest.max(load);
            chosen.push(*place);
            // A part of those moved comes back.
            most.0 -= i128::from(load) * (n - 1);
        }
    }
    chosen
}

/// What each client has at all endpoints of a group, by address.
pub(super) struct ClientLoads(Vec<(Client, u64)>);

impl ClientLoads {
    pub(super) fn sum<'a>(weighed: impl Iterator<Item = &'a Weighed<'a>>) -> Self {
        let counted = weighed.filter(|one| one.counts);
        let mut loads: Vec<_> = counted.map(|one| (one.client, one.load)).collect();
        loads.sort_unstable();
        loads.dedup_by(|next, sum| {
            let same = next.0 == sum.0;
            if same {
                sum.1 += next.1;
            }
            same
        });
        Self(loads)
    }

    fn of(&self, client: Client) -> u64 {
        let found = self.0.binary_search_by_key(&client, |(client, _)| *client);
        found.map_or(0, |at| self.0[at].1)
    }
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
