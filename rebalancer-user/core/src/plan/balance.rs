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

use std::{cmp::Reverse, collections::BinaryHeap, net::IpAddr, ptr};

use super::{
    Reason, SkipReason,
    groups::{GroupLoad, Groups},
    limits::LoadComparison,
    lookup::Lookup,
};
use crate::{
    policy::{Balance, By},
    snapshot::{Connection, EndpointKey},
};

/// A connection whose rule balances.
#[derive(Debug)]
pub(super) struct Weighed<'a> {
    pub(super) connection: &'a Connection,
    pub(super) shared: &'a GroupLoad,
    pub(super) balance: Balance,
    pub(super) load: u64,
    /// It is a part of what its endpoint holds: its client does not always come back there.
    pub(super) counts: bool,
    pub(super) state: State,
}

/// What else is known of it. The first are the first to be counted off the excess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It goes in any case, or was told in dry run to go: it is a part of the excess that is no
    /// longer looked for.
    Goes,
    /// It may be moved.
    Free,
    /// It may be moved, but not now.
    Later(SkipReason),
    /// It stays, and this is said of it elsewhere.
    Stays,
}

impl State {
    fn rank(&self) -> u8 {
        match self {
            Self::Goes => 0,
            Self::Free => 1,
            Self::Later(_) => 2,
            Self::Stays => 3,
        }
    }
}

/// What becomes of those that are [`State::Free`] or [`State::Later`].
pub(super) enum Weighing {
    /// To be moved.
    Move(Reason),
    /// Left, and why.
    Skip(SkipReason),
}

/// Weighs all; the answers are by index, those to be moved in the order of their turns, and for no
/// other than was asked.
pub(super) fn weigh(weighed: &[Weighed<'_>]) -> Vec<(usize, Weighing)> {
    let mut places: Lookup<(*const GroupLoad, EndpointKey), usize> = Lookup::default();
    let mut by_endpoint: Vec<Vec<usize>> = Vec::new();
    for (index, one) in weighed.iter().enumerate() {
        let key = (ptr::from_ref(one.shared), one.connection.endpoint);
        let place = *places.slot(key, || by_endpoint.len());
        if place == by_endpoint.len() {
            by_endpoint.push(Vec::new());
        }
        by_endpoint[place].push(index);
    }
    by_endpoint.sort_by_key(|indexes| {
        let first = &weighed[indexes[0]];
        (first.shared.rule.as_str(), first.connection.endpoint)
    });
    let mut clients = ClientLoads::default();
    let mut all = Vec::with_capacity(weighed.len());
    for indexes in &by_endpoint {
        weigh_endpoint(weighed, indexes, &mut clients, &mut all);
    }
    all
}

fn weigh_endpoint(
    weighed: &[Weighed<'_>],
    indexes: &[usize],
    clients: &mut ClientLoads,
    all: &mut Vec<(usize, Weighing)>,
) {
    let Some(first) = indexes.first().and_then(|index| weighed.get(*index)) else {
        return;
    };
    let (shared, endpoint) = (first.shared, first.connection.endpoint);
    let tell = |all: &mut Vec<(usize, Weighing)>, why: &dyn Fn(&Weighed<'_>) -> SkipReason| {
        for (index, one) in indexes.iter().filter_map(|i| Some((*i, weighed.get(*i)?))) {
            match &one.state {
                // It is not compared: what is said of the others is not true of it.
                State::Later(returns @ SkipReason::Returns { .. }) => {
                    all.push((index, Weighing::Skip(returns.clone())));
                }
                State::Free | State::Later(_) => {
                    all.push((index, Weighing::Skip(why(one))));
                }
                State::Goes | State::Stays => {}
            }
        }
    };
    let facts = match shared.facts {
        Ok(facts) => facts,
        Err(view) => return tell(all, &|_| SkipReason::NoClusterView(view)),
    };
    let Some(held) = shared.endpoints.get(&endpoint).filter(|held| held.ready) else {
        return tell(all, &|_| SkipReason::NotReady);
    };
    let standing = LoadComparison::of(first.balance, facts, held.load);
    let Some(keeps) = facts.keeps(held.load, first.balance.tolerance(), held.sheds) else {
        return tell(all, &|_| SkipReason::WithinBalance(standing));
    };
    if let Some((futile, left)) = shared.held {
        return tell(all, &|_| SkipReason::Futile { futile, left });
    }
    let excess = held.load.saturating_sub(keeps);
    if held.largest > excess {
        // Without that one the endpoint would hold less than the stop: the others are not what
        // makes it hot, and that one would make any other hot.
        return tell(all, &|one| {
            if one.load > excess {
                let (load, by) = (one.load, first.balance.by());
                SkipReason::LargerThanExcess { by, load, excess }
            } else {
                SkipReason::WithinBalance(standing)
            }
        });
    }
    let last_few = first.balance.by() == By::Connections
        && standing.start.is_none_or(|start| held.load < start);
    let target = to_move(excess, facts.endpoints, last_few).min(held.load);
    let chosen = part(
        weighed,
        indexes,
        clients.of(weighed, shared),
        facts.endpoints,
        target,
    );
    let reason = Reason::Balance {
        by: first.balance.by(),
        load: held.load,
        mean: facts.mean(),
        stop: keeps,
    };
    let mut is_chosen = vec![false; indexes.len()];
    for place in chosen {
        is_chosen[place] = true;
        let index = indexes[place];
        match &weighed[index].state {
            State::Free => all.push((index, Weighing::Move(reason))),
            State::Later(why) => all.push((index, Weighing::Skip(why.clone()))),
            State::Goes | State::Stays => {}
        }
    }
    for (index, chosen) in indexes.iter().zip(is_chosen) {
        let state = &weighed[*index].state;
        let asked = matches!(state, State::Free | State::Later(_));
        if let State::Later(returns @ SkipReason::Returns { .. }) = state
            && !chosen
        {
            all.push((*index, Weighing::Skip(returns.clone())));
        } else if asked && !chosen {
            let standing = LoadComparison {
                stop: keeps,
                ..standing
            };
            all.push((*index, Weighing::Skip(SkipReason::OthersMoved(standing))));
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

/// Parts `target` among the clients; the places, in `indexes`, of what falls to them, in order.
fn part(
    weighed: &[Weighed<'_>],
    indexes: &[usize],
    everywhere: &Loads,
    endpoints: u32,
    target: u64,
) -> Vec<usize> {
    let mut places: Lookup<IpAddr, usize> = Lookup::default();
    let mut clients: Vec<Client> = Vec::new();
    let counted = indexes.iter().map(|i| &weighed[*i]).enumerate();
    for (place, one) in counted.filter(|(_, one)| one.counts) {
        let address = client(one.connection);
        let at = *places.slot(address, || clients.len());
        if at == clients.len() {
            clients.push(Client {
                address,
                here: 0,
                queue: Vec::new(),
            });
        }
        clients[at].queue.push(place);
        clients[at].here += one.load;
    }
    for client in &mut clients {
        // Taken from the end: the heaviest, then the oldest first.
        client.queue.sort_by_key(|place| {
            let one = &weighed[indexes[*place]];
            let c = one.connection;
            Reverse((one.state.rank(), Reverse(one.load), c.opened, c.cookie))
        });
    }
    let n = i128::from(endpoints);
    let share = |client: &Client| {
        let all = everywhere.get(&client.address).copied();
        i128::from(client.here) * n - i128::from(all.unwrap_or(client.here))
    };
    let mut heap: BinaryHeap<(i128, Reverse<IpAddr>, usize)> = (clients.iter().zip(0..))
        .map(|(client, at)| (share(client), Reverse(client.address), at))
        .collect();
    let (mut left, mut largest, mut chosen) = (target, 0, Vec::new());
    while left > 0 {
        let Some((beyond, address, at)) = heap.pop() else {
            break;
        };
        let Some(place) = clients[at].queue.pop() else {
            continue;
        };
        let load = weighed[indexes[place]].load;
        // A smaller one of the same client may still fit. But the last twentieth is not worth many
        // small ones.
        let sliver = left <= target / 20 && load < largest;
        let fits = load <= left && load > 0 && !sliver;
        if fits {
            left -= load;
            largest = largest.max(load);
            chosen.push(place);
        }
        // A part of those moved comes back.
        let relief = if fits { i128::from(load) * (n - 1) } else { 0 };
        let beyond = beyond - relief;
        heap.push((beyond, address, at));
    }
    chosen
}

/// What one client has at an endpoint.
struct Client {
    address: IpAddr,
    here: u64,
    /// Its connections' places, those to be moved first last.
    queue: Vec<usize>,
}

pub(super) fn client(connection: &Connection) -> IpAddr {
    connection.remote.ip().to_canonical()
}

/// What each client has.
type Loads = Lookup<IpAddr, u64>;

/// What each client has at all endpoints of a group, found when first asked for.
#[derive(Default)]
struct ClientLoads {
    known: Option<Lookup<*const GroupLoad, Loads>>,
}

impl ClientLoads {
    fn of(&mut self, weighed: &[Weighed<'_>], shared: &GroupLoad) -> &Loads {
        let known = self.known.get_or_insert_with(|| {
            let mut known: Lookup<_, Loads> = Lookup::default();
            for one in weighed.iter().filter(|one| one.counts) {
                let loads = known.slot(ptr::from_ref(one.shared), Loads::default);
                *loads.slot(client(one.connection), || 0) += one.load;
            }
            known
        });
        known.slot(ptr::from_ref(shared), Loads::default)
    }
}

/// How each group that a rule balances stands.
pub(super) fn standings(groups: &Groups) -> Vec<super::Balanced> {
    let balanced = groups.iter().filter_map(|shared| {
        let balance = shared.balance?;
        let loads = shared.endpoints.iter().filter(|(_, held)| held.ready);
        Some(super::Balanced {
            rule: shared.rule.clone(),
            group: (*shared.group).clone(),
            balance,
            facts: shared.facts,
            endpoints: loads
                .map(|(key, held)| (*key, held.load, held.sheds))
                .collect(),
        })
    });
    let mut balanced: Vec<super::Balanced> = balanced.collect();
    balanced.sort_by(|a, b| (&a.rule, &a.group).cmp(&(&b.rule, &b.group)));
    balanced
}
