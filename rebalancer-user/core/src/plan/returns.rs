//! Whether moves help: where the clients of moved connections come back.
//!
//! A client that chooses by chance comes to the same endpoint once in N. One that is sent there by
//! ClientIP affinity, by a sticky balancer, or because it dials the pod itself, always does, and to
//! move it is harm without use. Each move is an observation: its client's next connection to the
//! group is at the same endpoint, or it is not, or is not seen. A sequential test (Wald's) weighs
//! the two explanations, for each client at each endpoint and for each rule at each endpoint:
//! chance, p = 1/N, against a return by rule, p = [`STICKY`]. Six returns in a row are evidence, at
//! most; with many siblings fewer are. Then nothing is moved there for [`super::FIRST_HOLD`], and one more
//! return doubles that, up to a day. That is for `balance`, `maxBytes` and `maxRate`: weight that comes
//! back has not been moved. `maxAge` asks for a new connection, and is content with any: it moves those
//! that come back too, and a rule that has nothing else is not tested.
//!
//! Until moves are seen to help, few are under way: [`FIRST_FEW`] of a client, and of a rule at an
//! endpoint. All of these may be lost on one that always comes back.
//!
//! A client that is not seen again proves nothing: it may wait for minutes before it connects, and
//! come back then. It is looked for during [`LOOKED_FOR`], and as long as moves are not seen to help
//! it stays one of the few that are under way.
//!
//! Where only a part of the group is seen, a client that returns is seen and one that goes elsewhere is
//! not, unless the coordinator's views show that the other nodes have gained as many ([`Arrivals`]): counting
//! returns as they come would count them first. So a move counts there after
//! [`SEEN_WITHIN`], as returned or not, and is corrected if its client returns later. Because no client
//! is seen elsewhere, the number of moves that may be under way then grows only with clients not seen
//! to return; and once there was evidence, clients that are not seen count as under way here too.
//!
//! Clients are known by their address alone, and many may share one. Where the whole group is seen
//! that does no harm: new connections of an address come to the same endpoint as often as those of its
//! moved clients do. Where a part is seen, all new ones would be returns. There one counts as a
//! return only if the address has as many connections at the endpoint as that makes, and if no others of the
//! address are on their way here: those that another node moves, and those whose endpoint has gone, which may
//! be known only after they have come ([`COUNTS_AFTER`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Charge, Cooldown, CooldownOf, Hold, Subject,
    arrivals::{Arrivals, others_move},
};
use crate::{
    policy::RuleName,
    snapshot::{Connection, Cookie, EndpointKey, KernelTime, Snapshot, Who},
};

/// A moved client that was not seen for this long no longer counts for its group.
pub const SEEN_WITHIN: Duration = Duration::from_secs(30);

/// How long the agent looks for a moved client. Clients wait for minutes before they reconnect if an
/// earlier attempt failed or they have no request to send.
pub const LOOKED_FOR: Duration = Duration::from_secs(900);

/// Where only a part of the group is seen, a return counts once it has been seen for so long and the endpoints have not
/// changed meanwhile. Clients of a pod that goes away reconnect before the API server tells that it has, and would be
/// taken for those that were moved.
const COUNTS_AFTER: Duration = Duration::from_secs(10);

/// Moves that may be under way while it is not known whether they help.
pub const FIRST_FEW: u64 = 6;

/// For each move after which nobody returned, so many may be under way, where nobody could be seen
/// elsewhere.
const UNSEEN_GROWTH: u64 = 8;

/// The chance of a return, if it is no chance.
const STICKY: f64 = 0.95;

/// Evidence against chance, as the logarithm of how much better the other explanation is; a
/// thousand times.
const EVIDENCE: f64 = 6.9;

/// Tests kept. Beyond that the longest unused are forgotten: forgetting a client costs it a few more
/// moves without use.
const MOST: usize = 16_384;

/// The test of returns to one endpoint, of one client or rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Test {
    /// Moves whose end is known.
    pub moves: u64,
    /// Of them, those whose client came back to the same endpoint.
    pub returned: u64,
    /// Of them, those whose client was seen at another endpoint. Of the others it is not known.
    pub elsewhere: u64,
    /// Endpoints among which chance would choose; as of the last move.
    pub siblings: u32,
    /// How much better a return by rule explains them than chance, as the logarithm, in
    /// millionths.
    pub score: i64,
    /// How often there was evidence that moves do not help, and until when none is made.
    pub hold: Hold,
    /// The last move whose end is known.
    pub last: KernelTime,
}

/// A move that has ended, and whose client is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingReturn {
    /// When it ended.
    pub ended: KernelTime,
    /// The connection that was moved.
    pub cookie: Cookie,
    /// When it began.
    pub began: KernelTime,
    /// Whose it was.
    pub charge: Charge,
    /// Its client was seen again.
    pub seen: Option<Reappearance>,
    /// When that was.
    #[serde(default)]
    pub seen_at: KernelTime,
    /// By a view as many clients as were moved until then have arrived at other nodes, or were seen here.
    #[serde(default)]
    pub has_arrived: bool,
    /// Its client may have been seen, or another of the same address: if no view shows that it has arrived elsewhere,
    /// it proves nothing.
    #[serde(default)]
    pub is_doubtful: bool,
}

impl PendingReturn {
    /// Whether it is known what to make of it that its client was seen.
    fn is_certain(&self, now: KernelTime) -> bool {
        let is_back = self.seen == Some(Reappearance::Returned);
        self.charge.whole || !is_back || now.since(self.seen_at) >= COUNTS_AFTER
    }

    /// Whether it may have been taken for the client of an endpoint that the Service lost so long ago.
    fn may_be_of_those_lost(&self, ago: Duration, now: KernelTime) -> bool {
        let since_seen = now.since(self.seen_at);
        since_seen.saturating_sub(ago) <= COUNTS_AFTER
            && ago.saturating_sub(since_seen) < SEEN_WITHIN
    }

    /// Of which test it is, besides that of its client.
    fn test(&self) -> (RuleName, EndpointKey) {
        (self.charge.rule.clone(), self.charge.endpoint)
    }
}

/// Where a moved client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reappearance {
    /// To the same endpoint.
    Returned,
    /// To another of the group.
    Elsewhere,
    /// It has not been seen.
    Unseen,
}

/// How many moves were followed by what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReturnCounts {
    /// Clients that came to the same endpoint.
    pub returned: u64,
    /// Clients that came to another.
    pub elsewhere: u64,
    /// Clients that were not seen.
    pub unseen: u64,
}

/// The test of a client or rule at an endpoint.
type Entry = (Subject, EndpointKey, Test);

/// Evidence that has just become enough, and for how long nothing is moved.
pub(super) type NewReturns = (Entry, Duration);

/// What became of some moves.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    returned: u64,
    elsewhere: u64,
    /// They were not seen where they would have been, had they returned.
    not_returned: u64,
    /// They were counted among those, and have returned later.
    after_all: u64,
}

/// All that is known of returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Returns {
    awaited: Vec<PendingReturn>,
    /// Not seen within [`SEEN_WITHIN`].
    late: Vec<PendingReturn>,
    /// Connections that were taken for the client of a move, so that none is taken twice.
    taken: BTreeSet<Cookie>,
    /// None of them empty.
    tests: BTreeMap<EndpointKey, BTreeMap<Subject, Test>>,
    arrivals: Arrivals,
    counts: ReturnCounts,
    new_holds: Vec<NewReturns>,
}

impl Returns {
    pub(super) fn awaits(&mut self, awaited: PendingReturn) {
        self.awaited.push(awaited);
    }

    pub(super) fn awaited(&self) -> &[PendingReturn] {
        &self.awaited
    }

    /// Those that were not seen for a while and are still looked for.
    pub(super) fn late(&self) -> &[PendingReturn] {
        &self.late
    }

    pub(super) fn counts(&self) -> ReturnCounts {
        self.counts
    }

    pub(super) fn take_new_holds(&mut self) -> Vec<NewReturns> {
        std::mem::take(&mut self.new_holds)
    }

    /// Clients and rules at endpoints from which nothing of theirs is moved.
    pub(super) fn cooldowns(&self, now: KernelTime) -> impl Iterator<Item = Cooldown> {
        let held = self
            .tests()
            .filter(move |(.., test)| test.hold.left(now).is_some());
        held.map(|(endpoint, subject, test)| Cooldown {
            of: CooldownOf::Returns(subject.clone(), endpoint),
            cause: "returns",
            why: format!(
                "{} of {} moves came back to the same endpoint, where chance brings one in {}",
                test.returned, test.moves, test.siblings
            ),
            until: Some(test.hold.until),
            times: test.hold.times,
        })
    }

    pub(super) fn hold(&mut self, subject: &Subject, endpoint: EndpointKey) -> Option<&mut Hold> {
        let test = self.tests.get_mut(&endpoint)?.get_mut(subject)?;
        Some(&mut test.hold)
    }

    /// What is known of returns to an endpoint, if anything.
    pub(super) fn at(&self, endpoint: EndpointKey) -> Option<&BTreeMap<Subject, Test>> {
        self.tests.get(&endpoint)
    }

    fn tests(&self) -> impl Iterator<Item = (EndpointKey, &Subject, &Test)> {
        self.tests.iter().flat_map(|(endpoint, tests)| {
            let of_subject = |(subject, test)| (*endpoint, subject, test);
            tests.iter().map(of_subject)
        })
    }

    pub(super) fn entries(
        &self,
    ) -> (
        Vec<PendingReturn>,
        Vec<PendingReturn>,
        Vec<Cookie>,
        Vec<Entry>,
    ) {
        let entry = |(endpoint, subject, test): (EndpointKey, &Subject, &Test)| {
            (subject.clone(), endpoint, *test)
        };
        (
            self.awaited.clone(),
            self.late.clone(),
            self.taken.iter().copied().collect(),
            self.tests().map(entry).collect(),
        )
    }

    pub(super) fn from_entries(
        awaited: Vec<PendingReturn>,
        late: Vec<PendingReturn>,
        taken: Vec<Cookie>,
        tests: Vec<Entry>,
    ) -> Self {
        let mut returns = Self {
            awaited,
            late,
            taken: taken.into_iter().collect(),
            ..Self::default()
        };
        for (subject, endpoint, test) in tests {
            returns
                .tests
                .entry(endpoint)
                .or_default()
                .insert(subject, test);
        }
        returns
    }

    /// Looks for the clients of moves. Gives those found, or given up: when their moves began,
    /// which connections they were, and where they are now. `is_tested`: whether a rule moves in order to
    /// spread.
    pub(super) fn observe(
        &mut self,
        snapshot: &Snapshot,
        is_tested: impl Fn(&RuleName) -> bool,
    ) -> Vec<(KernelTime, Cookie, Reappearance)> {
        if self.awaited.is_empty() {
            self.arrivals = Arrivals::default();
            if self.late.is_empty() {
                return Vec::new();
            }
        }
        // First, as a view is of before this snapshot: what other nodes have moved since may be here already, and
        // would be taken for returns.
        let unseen = self.awaited.iter().filter(|one| one.seen.is_none());
        let unseen = unseen.map(|one| (&one.charge, one.ended));
        let arrived = self.arrivals.up_to(snapshot, unseen);
        for one in &mut self.awaited {
            one.has_arrived |= arrived.includes(&one.charge, one.ended);
            if one.has_arrived && one.seen.is_none() {
                one.seen = Some(Reappearance::Elsewhere);
            }
        }
        self.look_for(snapshot);
        let now = snapshot.taken;
        let mut settled = Vec::new();
        // What is known at the same time counts as a whole: which of several moves a client's new
        // connection follows is a guess, and in a row it would be evidence.
        let mut known: BTreeMap<(IpAddr, RuleName, EndpointKey, u32), Seen> = BTreeMap::new();
        let mut learned = |one: &PendingReturn, count: fn(&mut Seen) -> &mut u64| {
            let by = &one.charge;
            if by.siblings >= 2 && is_tested(&by.rule) {
                let key = (by.client, by.rule.clone(), by.endpoint, by.siblings);
                *count(known.entry(key).or_default()) += 1;
            }
        };
        let service = |one: &PendingReturn| {
            let name = one.charge.group.service.as_ref()?;
            snapshot.services.get(name).filter(|_| !one.charge.whole)
        };
        for moves in [&mut self.late, &mut self.awaited] {
            moves.retain(|one| {
                let changed = service(one).and_then(|service| service.changed);
                let is_void = changed.is_some_and(|ago| now.since(one.ended) >= ago);
                settled.extend(is_void.then(|| self.counts.count(one)));
                !is_void
            });
        }
        // Clients are known by address only, and many may share one. Clients of an endpoint that has gone reconnect
        // here, and so do clients that other nodes have moved: neither says where those went that were moved here. But
        // one of them may be.
        for one in self.late.iter_mut().chain(&mut self.awaited) {
            let lost = service(one).and_then(|service| service.lost);
            let is_lost = lost.is_some_and(|ago| one.may_be_of_those_lost(ago, now));
            let is_seen = !one.charge.whole && !one.has_arrived && one.seen.is_some();
            if is_seen && (is_lost || others_move(snapshot, &one.charge)) {
                (one.seen, one.is_doubtful) = (None, true);
            }
        }
        let mut late = Vec::new();
        for one in std::mem::take(&mut self.late) {
            match one.seen {
                None if one.is_doubtful => {}
                _ if !one.is_certain(now) => {
                    late.push(one);
                    continue;
                }
                Some(Reappearance::Returned) if one.charge.whole => {
                    learned(&one, |seen| &mut seen.returned)
                }
                Some(Reappearance::Returned) => learned(&one, |seen| &mut seen.after_all),
                Some(_) if one.charge.whole => learned(&one, |seen| &mut seen.elsewhere),
                Some(_) => {}
                None if now.since(one.ended) < LOOKED_FOR => {
                    late.push(one);
                    continue;
                }
                None => {}
            }
            settled.push(self.counts.count(&one));
        }
        let mut still = Vec::new();
        let uncertain = self.awaited.iter().filter(|one| !one.is_certain(now));
        let uncertain: BTreeSet<_> = uncertain.map(PendingReturn::test).collect();
        // Before the first that was not seen all are known.
        let mut unseen: BTreeMap<_, KernelTime> = BTreeMap::new();
        for one in self.awaited.iter().filter(|one| one.seen.is_none()) {
            let first = unseen.entry(one.test()).or_insert(one.ended);
            *first = one.ended.min(*first);
        }
        for one in std::mem::take(&mut self.awaited) {
            let is_late = now.since(one.ended) >= SEEN_WITHIN;
            let first_unseen = unseen.get(&one.test());
            let is_before = first_unseen.is_none_or(|first| one.ended < *first);
            let is_seen = one.seen.is_some() && (one.charge.whole || is_before);
            let is_known = one.has_arrived || is_seen;
            if !is_late && (!is_known || uncertain.contains(&one.test())) {
                still.push(one);
                continue;
            }
            match one.seen {
                // As long as it is not certain that it has returned, it counts as one that has not.
                Some(Reappearance::Returned) if !one.is_certain(now) => {
                    learned(&one, |seen| &mut seen.not_returned);
                    late.push(one);
                    continue;
                }
                Some(Reappearance::Returned) => learned(&one, |seen| &mut seen.returned),
                Some(_) => learned(&one, |seen| &mut seen.elsewhere),
                None if one.is_doubtful => {}
                None => {
                    if !one.charge.whole {
                        learned(&one, |seen| &mut seen.not_returned);
                    }
                    late.push(one);
                    continue;
                }
            }
            settled.push(self.counts.count(&one));
        }
        late.drain(..late.len().saturating_sub(MOST));
        (self.awaited, self.late) = (still, late);
        for ((client, rule, endpoint, siblings), seen) in known {
            self.learn((client, rule, endpoint), siblings, seen, now);
        }
        settled
    }

    /// Each new connection of a client is that of its first move that waits, once.
    fn look_for(&mut self, snapshot: &Snapshot) {
        let all: Vec<&mut PendingReturn> = self.late.iter_mut().chain(&mut self.awaited).collect();
        let Some(first) = all.iter().map(|one| one.ended).min() else {
            return;
        };
        let mut waiting: BTreeMap<IpAddr, Waiting<'_>> = BTreeMap::new();
        for one in all.into_iter().filter(|one| one.seen.is_none()) {
            let of_client = waiting.entry(one.charge.client).or_default();
            of_client.moves.push(one);
        }
        let mut new: Vec<&Connection> = Vec::new();
        for connection in &snapshot.connections {
            let Some(waiting) = waiting.get_mut(&connection.client()) else {
                continue;
            };
            *waiting.here.entry(connection.endpoint).or_default() += 1;
            if connection.opened > first && !connection.adopted {
                new.push(connection);
            }
        }
        new.sort_unstable_by_key(|c| (c.opened, c.cookie));
        for connection in new {
            let Some(waiting) = waiting.get_mut(&connection.client()) else {
                continue;
            };
            let who = snapshot.who(&connection.endpoint);
            let Some(place) = waiting.place_of(connection, who) else {
                continue;
            };
            if !self.taken.insert(connection.cookie) {
                continue;
            }
            let one = waiting.moves.remove(place);
            let same = one.charge.endpoint == connection.endpoint;
            one.seen = Some(if same {
                Reappearance::Returned
            } else {
                Reappearance::Elsewhere
            });
            one.seen_at = snapshot.taken;
        }
    }

    fn learn(
        &mut self,
        (client, rule, endpoint): (IpAddr, RuleName, EndpointKey),
        siblings: u32,
        seen: Seen,
        now: KernelTime,
    ) {
        let client = Subject::Client(client);
        let is_another = |other: &Subject| matches!(other, Subject::Client(_)) && *other != client;
        let tests = self.tests.entry(endpoint).or_default();
        let test = tests.entry(client.clone()).or_default();
        let before = test.score;
        let hold = test.learn(siblings, seen, now).map(|lasts| (*test, lasts));
        let is_held = test.hold.left(now).is_some();
        // One client may be sent back by something of its own; of several it is the rule's.
        let of_client = is_held
            && !tests
                .iter()
                .any(|(other, test)| is_another(other) && test.hold.left(now).is_some());
        let rule = Subject::Rule(rule);
        let of_rule = tests.entry(rule.clone()).or_default();
        if let Some((test, lasts)) = hold {
            // The client's own returns are no evidence about the rule's other clients, nor that moves
            // help.
            // Once: what it does later was never counted against the rule.
            if of_client && test.hold.times == 1 {
                let others = of_rule.score.saturating_sub(before.max(0)).max(0);
                of_rule.score = of_rule.score.min(others);
            }
            self.new_holds.push(((client, endpoint, test), lasts));
        }
        if of_client {
            return;
        }
        if let Some(lasts) = of_rule.learn(siblings, seen, now) {
            self.new_holds.push(((rule, endpoint, *of_rule), lasts));
        }
    }

    /// Forgets all that is known of endpoints. Of their moves whose clients are looked for it stays
    /// unknown where these came: a new endpoint may be taken for the one they were moved from.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&EndpointKey) -> bool) {
        self.tests.retain(|endpoint, _| !is_gone(endpoint));
        for moves in [&mut self.awaited, &mut self.late] {
            let before = moves.len();
            moves.retain(|one| !is_gone(&one.charge.endpoint));
            self.counts.unseen += (before - moves.len()) as u64;
        }
    }

    /// Forgets connections that are gone, endpoints that are gone, and what is too old to count.
    pub(super) fn prune(
        &mut self,
        snapshot: &Snapshot,
        lives: impl Fn(&Cookie) -> bool,
        now: KernelTime,
    ) {
        self.taken.retain(lives);
        if self.awaited.is_empty() && self.late.is_empty() {
            self.taken.clear();
        }
        let endpoints = &snapshot.endpoints;
        self.tests.retain(|endpoint, tests| {
            tests.retain(|_, test| !test.hold.is_stale(test.last, now));
            !tests.is_empty() && endpoints.get(endpoint).is_none_or(|e| e.listeners > 0)
        });
        let surplus = self.tests().count().saturating_sub(MOST);
        if surplus > 0 {
            let last = self
                .tests()
                .map(|(at, subject, test)| (test.last, subject.clone(), at));
            let mut last: Vec<_> = last.collect();
            last.sort_unstable();
            for (_, subject, endpoint) in last.iter().take(surplus) {
                if let Some(tests) = self.tests.get_mut(endpoint) {
                    tests.remove(subject);
                }
            }
            self.tests.retain(|_, tests| !tests.is_empty());
        }
        // Nobody has asked for them.
        let surplus = self.new_holds.len().saturating_sub(MOST);
        self.new_holds.drain(..surplus);
    }
}

/// Moves of one client that is looked for, and how many connections it has at each endpoint.
#[derive(Default)]
struct Waiting<'a> {
    moves: Vec<&'a mut PendingReturn>,
    here: BTreeMap<EndpointKey, u64>,
}

impl Waiting<'_> {
    /// The move that a new connection follows. Late moves are the least likely. Where the whole group is
    /// seen, it is the first of the others. Where a part is seen it is the last: some clients never come
    /// back there, and the return of a later move would be taken for theirs.
    fn place_of(&self, connection: &Connection, who: &Who) -> Option<usize> {
        let is_of = |one: &&mut PendingReturn| {
            one.ended < connection.opened && one.charge.group.has(&connection.endpoint, who)
        };
        let moves = &self.moves;
        let late = |one: &&mut PendingReturn| connection.opened.since(one.ended) >= SEEN_WITHIN;
        let whole = |one: &&mut PendingReturn| one.charge.whole && is_of(one);
        let first = moves.iter().position(|one| whole(one) && !late(one));
        first.or_else(|| moves.iter().position(whole)).or_else(|| {
            let may = |one: &&mut PendingReturn| {
                let same = one.charge.endpoint == connection.endpoint;
                is_of(one) && (!same || self.is_back(one))
            };
            moves.iter().rposition(may)
        })
    }

    /// Whether its client has as many connections at its endpoint as if it had come back: as many as
    /// there were before, but for others that were moved since and have not been seen again.
    fn is_back(&self, one: &PendingReturn) -> bool {
        let endpoint = one.charge.endpoint;
        let since = |other: &&&mut PendingReturn| {
            other.charge.endpoint == endpoint && other.ended >= one.began
        };
        let away = self.moves.iter().filter(since).count() as u64;
        let here = self.here.get(&endpoint).copied().unwrap_or(0);
        // It is one of those itself.
        here + away > one.charge.here
    }
}

impl ReturnCounts {
    /// Counts a move of whose client no more will be known; gives it.
    fn count(&mut self, one: &PendingReturn) -> (KernelTime, Cookie, Reappearance) {
        let back = one.seen.unwrap_or(Reappearance::Unseen);
        let count = match back {
            Reappearance::Returned => &mut self.returned,
            Reappearance::Elsewhere => &mut self.elsewhere,
            Reappearance::Unseen => &mut self.unseen,
        };
        *count += 1;
        (one.began, one.cookie, back)
    }
}

impl Test {
    /// Whether moves were seen to help.
    pub(super) fn helps(&self) -> bool {
        // Asked for each candidate, and a logarithm takes long.
        self.score < 0 && self.score <= -evidence(self.siblings) / 2
    }

    /// Moves that may be under way.
    pub(super) fn allowed(&self) -> u64 {
        match (self.helps(), self.hold.times) {
            (true, _) if self.elsewhere > 0 => u64::MAX,
            // No more is known than that they have not been seen to return yet.
            (true, _) => {
                let not = self.moves.saturating_sub(self.returned);
                not.saturating_mul(UNSEEN_GROWTH).max(FIRST_FEW)
            }
            (false, 0) => FIRST_FEW,
            (false, _) => 1,
        }
    }

    fn learn(&mut self, siblings: u32, seen: Seen, now: KernelTime) -> Option<Duration> {
        self.siblings = siblings;
        let moves = seen.returned + seen.elsewhere + seen.not_returned;
        self.moves = self.moves.saturating_add(moves);
        let returned = seen.returned + seen.after_all;
        self.returned = self.returned.saturating_add(returned);
        self.elsewhere = self.elsewhere.saturating_add(seen.elsewhere);
        self.last = now;
        let enough = evidence(siblings);
        let times = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let for_it = times(returned).saturating_mul(weight(siblings, true));
        let not = times(seen.elsewhere + seen.not_returned) - times(seen.after_all);
        let against = not.saturating_mul(weight(siblings, false));
        let score = self.score.saturating_add(for_it).saturating_add(against);
        // Trust grows beyond what is needed for it: the longer chance has explained them, the more
        // returns in a row it takes.
        self.score = score.clamp(-2 * enough, enough);
        if self.helps() {
            self.hold.times = 0;
        }
        // Those that were under way when it began to hold are a part of the same evidence.
        if returned == 0 || self.score < enough || self.hold.left(now).is_some() {
            return None;
        }
        Some(self.hold.begin(now))
    }
}

/// The logarithm of how much likelier it is by rule than by chance, in millionths.
fn weight(siblings: u32, returned: bool) -> i64 {
    let chance = 1.0 / f64::from(siblings.max(2));
    let (sticky, chance) = if returned {
        (STICKY, chance)
    } else {
        (1.0 - STICKY, 1.0 - chance)
    };
    ((sticky / chance).ln() * 1e6) as i64
}

/// What is evidence: six returns in a row are, in any case.
fn evidence(siblings: u32) -> i64 {
    let few = i64::try_from(FIRST_FEW).unwrap_or(i64::MAX);
    (few * weight(siblings, true)).min((EVIDENCE * 1e6) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FIRST_HOLD;

    fn one(returned: bool) -> Seen {
        Seen {
            returned: returned.into(),
            elsewhere: (!returned).into(),
            ..Seen::default()
        }
    }

    /// After how many returns in a row there is evidence.
    fn returns_to_a_hold(siblings: u32) -> u64 {
        let mut test = Test::default();
        (1..)
            .find(|_| test.learn(siblings, one(true), KernelTime(1)).is_some())
            .unwrap()
    }

    #[test]
    fn six_returns_are_enough_and_fewer_where_chance_is_small() {
        assert_eq!(
            [2, 3, 4, 5, 10, 100].map(returns_to_a_hold),
            [6, 6, 6, 5, 4, 2]
        );
    }

    #[test]
    fn a_hold_doubles_with_each_return_after_it_up_to_a_day() {
        let (mut test, mut now) = (Test::default(), KernelTime(0));
        let mut lasted = Vec::new();
        for _ in 0..16 {
            if let Some(lasts) = test.learn(3, one(true), now) {
                lasted.push(lasts.as_secs() / 60);
                assert_eq!(test.hold.left(now), Some(lasts));
                assert_eq!(test.allowed(), 1);
                now = test.hold.until;
                assert_eq!(test.hold.left(now), None);
            }
        }
        assert_eq!(lasted[..9], [10, 20, 40, 80, 160, 320, 640, 1280, 1440]);
        assert_eq!(lasted.last(), Some(&1440));
    }

    #[test]
    fn moves_that_go_elsewhere_help() {
        let mut test = Test::default();
        assert_eq!(test.allowed(), FIRST_FEW);
        for returned in [true, false, false, true, false, false] {
            assert_eq!(test.learn(3, one(returned), KernelTime(1)), None);
        }
        assert!(test.helps());
        assert_eq!(test.allowed(), u64::MAX);
        // One that becomes sticky afterwards is found out as well.
        let more = (1..).find(|_| test.learn(3, one(true), KernelTime(1)).is_some());
        assert!(more.unwrap() <= 18);
    }

    #[test]
    fn who_is_not_seen_is_counted_as_gone_only_until_it_returns() {
        let some = |not_returned, after_all| Seen {
            not_returned,
            after_all,
            ..Seen::default()
        };
        let mut test = Test::default();
        assert_eq!(test.learn(3, some(6, 0), KernelTime(1)), None);
        // It is no sight of them elsewhere: eight times as many may be tried.
        assert_eq!((test.helps(), test.allowed()), (true, 48));
        assert_eq!(test.learn(3, some(6, 0), KernelTime(2)), None);
        assert_eq!(test.allowed(), 96);
        // All of them come back after all.
        assert_eq!(test.learn(3, some(0, 12), KernelTime(3)), Some(FIRST_HOLD));
        assert_eq!((test.moves, test.returned, test.allowed()), (12, 12, 1));
    }

    /// By the exact distribution: how likely it is that chance alone makes a test hold within many
    /// moves.
    #[test]
    fn chance_seldom_looks_like_a_rule() {
        for (siblings, most) in [(2, 0.03), (3, 0.005), (10, 0.003)] {
            let p = 1.0 / f64::from(siblings);
            let enough = evidence(siblings);
            let mut states = BTreeMap::from([(0_i64, 1.0_f64)]);
            let mut held = 0.0;
            for _ in 0..1000 {
                let mut next = BTreeMap::new();
                for (score, chance) in states {
                    for (returned, share) in [(true, p), (false, 1.0 - p)] {
                        let score = (score + weight(siblings, returned)).clamp(-2 * enough, enough);
                        if score >= enough {
                            held += chance * share;
                        } else {
                            *next.entry(score).or_default() += chance * share;
                        }
                    }
                }
                states = next;
            }
            assert!(held < most, "{siblings}: {held}");
        }
    }
}
