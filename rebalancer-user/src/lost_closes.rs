//! Connections that closed without the kernel half seeing it.
//!
//! Another sock_ops program may clear the callback of a recorded connection. If the walk finds such a
//! connection open, it counts as one whose close will not be seen. If it closes before the next pass, it
//! would remain in the kernel half's count of open connections, and use up the caps permanently.
//!
//! The walk also misses connections that are open: in an accept queue, in transit between processes,
//! held by io_uring alone. A connection counts as lost only if callbacks are cleared at its endpoint, it
//! was accepted before the first of two passes over all processes, and neither pass found it.

use std::collections::{BTreeMap, BTreeSet};

use rebalancer_common::{Connection, EndpointKey, EndpointSums, flags, kind};

use crate::{bpf::Pass, snapshot::Netns};

/// Connections missing at an endpoint in a pass over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missing {
    /// Connections accepted there up to that pass.
    accepted: u64,
    /// Lower bound of those accepted before the previous pass that count as open and were not found.
    count: u64,
}

/// Finds lost closes by comparing consecutive passes.
#[derive(Debug, Default)]
pub(crate) struct LostCloses {
    /// Endpoints with a connection whose callback was cleared.
    cleared: BTreeSet<EndpointKey>,
    missing: BTreeMap<EndpointKey, Missing>,
}

impl LostCloses {
    /// The endpoint with the most lost closes, and their number, from a pass over all processes and the
    /// sums read after it.
    pub(crate) fn find(
        &mut self,
        pass: &Pass,
        sums: &BTreeMap<EndpointKey, EndpointSums>,
        host: Netns,
    ) -> Option<(EndpointKey, u64)> {
        let all = pass.sockets.iter();
        let without_callback = all
            .clone()
            .map(|socket| &socket.connection)
            .filter(|record| {
                record.flags & flags::WITHOUT_CLOSE != 0 && record.flags & flags::ADOPTED == 0
            });
        self.cleared
            .extend(without_callback.map(|record| key(record, host)));
        self.cleared.retain(|key| sums.contains_key(key));
        let before = std::mem::take(&mut self.missing);
        if self.cleared.is_empty() {
            return None; // the usual case: no second loop over the connections
        }
        let mut found: BTreeMap<EndpointKey, u64> = BTreeMap::new();
        for socket in all {
            let record = &socket.connection;
            let count = match record.kind {
                kind::LISTENER => u64::from(socket.live.backlog),
                _ => u64::from(record.flags & flags::WITHOUT_CLOSE == 0),
            };
            *found.entry(key(record, host)).or_default() += count;
        }
        let mut most: Option<(EndpointKey, u64)> = None;
        for key in &self.cleared {
            let sums = sums[key];
            let known = before.get(key).copied();
            // Connections accepted since the last pass may still be in transit.
            let accepted = known.map_or(sums.accepted, |known| {
                sums.accepted.saturating_sub(known.accepted)
            });
            let listed = found.get(key).copied().unwrap_or(0);
            let missing = (sums.open.cast_signed().max(0).cast_unsigned())
                .saturating_sub(accepted)
                .saturating_sub(listed);
            let count = known.map_or(0, |known| known.count).min(missing);
            if count > most.map_or(0, |(_, count)| count) {
                most = Some((*key, count));
            }
            let accepted = sums.accepted;
            self.missing.insert(
                *key,
                Missing {
                    accepted,
                    count: missing,
                },
            );
        }
        if let Some((key, _)) = most {
            // The next pass accounts for them, so they are not missing then.
            self.missing.remove(&key);
        }
        most
    }
}

/// The endpoint's key, built as in the kernel half.
fn key(record: &Connection, host: Netns) -> EndpointKey {
    EndpointKey {
        cgroup: if Netns(record.netns) == host {
            record.cgroup
        } else {
            0
        },
        netns_cookie: record.netns_cookie,
        netns: record.netns,
        port: record.local_port,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use rebalancer_common::Live;

    use super::*;
    use crate::bpf::Walked;

    const KEY: EndpointKey = EndpointKey {
        cgroup: 0,
        netns_cookie: 1,
        netns: 2,
        port: 80,
        reserved: 0,
    };

    /// A listener with a queue, `with_close` connections, and one without its callback if `cleared`.
    fn pass(with_close: usize, cleared: bool, backlog: u32) -> Pass {
        let socket = |kind, flags, backlog| Walked {
            connection: Connection {
                netns_cookie: KEY.netns_cookie,
                netns: KEY.netns,
                local_port: KEY.port,
                kind,
                flags,
                ..Connection::ZERO
            },
            live: Live {
                backlog,
                ..Live::ZERO
            },
            holders: Vec::new(),
        };
        let mut sockets = vec![socket(kind::LISTENER, 0, backlog)];
        sockets.extend((0..with_close).map(|_| socket(kind::CONNECTION, 0, 0)));
        if cleared {
            sockets.push(socket(kind::CONNECTION, flags::NO_CLOSE_CALLBACK, 0));
        }
        Pass {
            sockets,
            ..Pass::default()
        }
    }

    fn sums(accepted: u64, open: i64) -> BTreeMap<EndpointKey, EndpointSums> {
        let sums = EndpointSums {
            accepted,
            open: open.cast_unsigned(),
            ..EndpointSums::ZERO
        };
        BTreeMap::from([(KEY, sums)])
    }

    fn find(closes: &mut LostCloses, pass: &Pass, accepted: u64, open: i64) -> Option<u64> {
        let found = closes.find(pass, &sums(accepted, open), Netns(1));
        found.map(|(key, count)| {
            assert_eq!(key, KEY);
            count
        })
    }

    #[test]
    fn what_two_passes_miss_is_lost_where_callbacks_are_cleared() {
        let mut closes = LostCloses::default();
        // The first pass does not know when connections were accepted.
        assert_eq!(find(&mut closes, &pass(3, true, 2), 20, 12), None);
        assert_eq!(find(&mut closes, &pass(3, false, 2), 20, 12), None);
        // One was accepted since the last pass and is not missed yet.
        assert_eq!(find(&mut closes, &pass(3, false, 2), 21, 13), Some(7));
        // Those were reported; what is missing now must be missed by two passes again.
        for _ in 0..2 {
            assert_eq!(find(&mut closes, &pass(3, false, 2), 21, 6), None);
        }
        assert_eq!(find(&mut closes, &pass(3, false, 2), 21, 6), Some(1));
        assert_eq!(find(&mut closes, &pass(3, false, 0), 21, -2), None);
    }

    #[test]
    fn what_the_walk_cannot_see_is_not_lost() {
        let mut closes = LostCloses::default();
        for _ in 0..3 {
            // For example held by io_uring: no callback is cleared here.
            assert_eq!(find(&mut closes, &pass(3, false, 0), 20, 12), None);
        }
        // An accept queue that fills, and short connections.
        for accepted in [20, 40, 60] {
            assert_eq!(find(&mut closes, &pass(3, true, 9), accepted, 12), None);
            assert_eq!(
                find(&mut closes, &pass(0, true, 0), accepted + 15, 12),
                None
            );
        }
    }
}
