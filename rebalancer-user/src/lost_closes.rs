//! Connections that have ended without their close being seen.
//!
//! Another sock_ops program may clear the callback of a connection that was recorded with it. Where the
//! walk finds such a connection alive, it counts it as one without a close. One that ends before the
//! next pass stays in the kernel half's count of open connections, and would take room below the caps
//! for good. What is missing there differs from what the walk cannot see (in an accept queue, in
//! flight between processes, held by io_uring) in two signs: at this endpoint callbacks are cleared, and
//! as many have been missing in two passes over all processes, of those accepted before the first.

use std::collections::{BTreeMap, BTreeSet};

use rebalancer_common::{Connection, EndpointKey, EndpointSums, flags, kind};

use crate::{bpf::Pass, snapshot::Netns};

/// What was missing at an endpoint at a pass over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missing {
    /// Connections accepted there until then.
    accepted: u64,
    /// Of those of the pass before, how many are counted as open and nowhere to be found, at least.
    count: u64,
}

/// Finds them, from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct LostCloses {
    /// Where a connection without its callback was found.
    cleared: BTreeSet<EndpointKey>,
    missing: BTreeMap<EndpointKey, Missing>,
}

impl LostCloses {
    /// The endpoint that has lost most, and how many, by a pass over all processes and the sums that
    /// were read after it.
    pub(crate) fn find(
        &mut self,
        pass: &Pass,
        sums: &BTreeMap<EndpointKey, EndpointSums>,
        host: Netns,
    ) -> Option<(EndpointKey, u64)> {
        let mut found: BTreeMap<EndpointKey, u64> = BTreeMap::new();
        for socket in &pass.sockets {
            let record = &socket.connection;
            if record.kind == kind::LISTENER {
                *found.entry(key(record, host)).or_default() += u64::from(socket.live.backlog);
            } else if record.flags & flags::WITHOUT_CLOSE == 0 {
                *found.entry(key(record, host)).or_default() += 1;
            } else if record.flags & flags::ADOPTED == 0 {
                self.cleared.insert(key(record, host));
            }
        }
        self.cleared.retain(|key| sums.contains_key(key));
        let mut most: Option<(EndpointKey, u64)> = None;
        let before = std::mem::take(&mut self.missing);
        for key in &self.cleared {
            let sums = sums[key];
            let known = before.get(key).copied();
            // Those that were accepted since the last pass may be anywhere yet.
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
            // They are counted at the next pass, and are not missing there.
            self.missing.remove(&key);
        }
        most
    }
}

/// As the kernel half has it.
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

    /// As many with their callback, one without it, and a listener with a queue.
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
        // What was accepted when is not known at the first.
        assert_eq!(find(&mut closes, &pass(3, true, 2), 20, 12), None);
        assert_eq!(find(&mut closes, &pass(3, false, 2), 20, 12), None);
        // One is in neither place yet: it was accepted since.
        assert_eq!(find(&mut closes, &pass(3, false, 2), 21, 13), Some(7));
        // It was reported; what is missing then counts from the start.
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
            // Held by io_uring, say: nobody clears callbacks here.
            assert_eq!(find(&mut closes, &pass(3, false, 0), 20, 12), None);
        }
        // A queue that fills, and connections that come and go.
        for accepted in [20, 40, 60] {
            assert_eq!(find(&mut closes, &pass(3, true, 9), accepted, 12), None);
            assert_eq!(
                find(&mut closes, &pass(0, true, 0), accepted + 15, 12),
                None
            );
        }
    }
}
