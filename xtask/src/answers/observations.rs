//! What the clients saw: answers by kind and way, and when each connection was asked what.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{proxies::Way, question::Kind};
use crate::agent::Ended;

/// One kind of answer by one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    pub(super) way: Way,
}

/// One connection as its client saw it.
#[derive(Clone, Debug)]
struct Connection {
    cell: Cell,
    local: SocketAddr,
    opened: Instant,
    /// When each exchange began.
    begun: Vec<Instant>,
}

/// Sums of a cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) answers: u64,
    pub(super) broken: u64,
    pub(super) crossed: u64,
    /// Moves that ended a connection.
    pub(super) moved: u64,
    /// Of these, before a third exchange had begun since it was chosen.
    pub(super) in_time: u64,
    /// Connections that were chosen and began a third exchange after that.
    pub(super) late: u64,
    /// Moves that ended none, by outcome.
    pub(super) others: BTreeMap<String, u64>,
}

/// All that was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    connections: Vec<Connection>,
    pub(super) cells: BTreeMap<Cell, Sums>,
    pub(super) troubles: Vec<String>,
}

/// Where the clients count.
#[derive(Default)]
pub(super) struct Tally(Mutex<Seen>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`Tally::begins`] calls it by.
    pub(super) fn opened(&self, cell: Cell, local: SocketAddr, opened: Instant) -> usize {
        let connections = &mut self.lock().connections;
        connections.push(Connection {
            cell,
            local,
            opened,
            begun: Vec::new(),
        });
        connections.len() - 1
    }

    /// Short exchanges leave no time for a move, and count for none.
    pub(super) fn begins(&self, connection: usize, kind: Kind) {
        if kind != Kind::Warm {
            self.lock().connections[connection]
                .begun
                .push(Instant::now());
        }
    }

    pub(super) fn answered(&self, cell: Cell, answers: u64) {
        self.lock().cells.entry(cell).or_default().answers += answers;
    }

    /// Answers so far, also those that were lost.
    pub(super) fn asked(&self, cell: Cell) -> u64 {
        let of = |sums: &Sums| sums.answers + sums.broken + sums.crossed;
        self.lock().cells.get(&cell).map_or(0, of)
    }

    pub(super) fn crossed(&self, cell: Cell) {
        self.lock().cells.entry(cell).or_default().crossed += 1;
    }

    pub(super) fn broken(&self, cell: Cell, why: String) {
        let mut seen = self.lock();
        seen.cells.entry(cell).or_default().broken += 1;
        seen.troubles.push(format!("{cell:?}: {why}"));
    }

    pub(super) fn seen(&self) -> Seen {
        self.lock().clone()
    }
}

impl Cell {
    /// Whether its connections are of use to their clients behind an answer, and HTTP/1 still.
    pub(super) fn can_move(self) -> bool {
        let ends = self.kind == Kind::UntilClose && self.way != Way::Nginx;
        !self.kind.is_tunnel() && !ends
    }
}

impl Seen {
    pub(super) fn has_moved(&self, cell: Cell) -> bool {
        self.cells.get(&cell).is_some_and(|sums| sums.moved > 0)
    }

    /// Tells the moves to the cells of their connections. A move of a connection that is none of the
    /// clients' is not known.
    pub(super) fn add(&mut self, moves: &[Ended]) {
        for ended in moves {
            // An address of the client's is used towards several ports, and again after a while.
            let of = |connection: &&Connection| {
                connection.local == ended.peer
                    && connection.cell.way.port() == ended.local.port()
                    && connection.opened <= ended.at
            };
            let Some(connection) = self.connections.iter().rev().find(of) else {
                self.troubles.push(format!("whose move is this? {ended:?}"));
                continue;
            };
            let chosen = ended.at - ended.waited;
            let since = connection.begun.iter().filter(|begun| **begun >= chosen);
            let since = since.count();
            let sums = self.cells.entry(connection.cell).or_default();
            let has_ended = ["reset", "closed"].contains(&ended.outcome.as_str());
            if has_ended {
                sums.moved += 1;
            } else {
                *sums.others.entry(ended.outcome.clone()).or_default() += 1;
            }
            match since {
                3.. => sums.late += 1,
                _ if has_ended => sums.in_time += 1,
                // Its time was over, or its client's.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CELL: Cell = Cell {
        kind: Kind::Sized,
        way: Way::Nginx,
    };

    /// A connection that began an exchange each second from its third on.
    fn seen(exchanges: u64) -> (Seen, Instant) {
        let start = Instant::now();
        let begun = (3..3 + exchanges).map(|second| start + Duration::from_secs(second));
        let connection = Connection {
            cell: CELL,
            local: "10.0.0.1:4000".parse().unwrap(),
            opened: start,
            begun: begun.collect(),
        };
        let seen = Seen {
            connections: vec![connection],
            ..Seen::default()
        };
        (seen, start)
    }

    fn ended(start: Instant, outcome: &str, waited: u64) -> Ended {
        Ended {
            at: start + Duration::from_secs(10),
            local: SocketAddr::from(([10, 0, 0, 2], CELL.way.port())),
            peer: "10.0.0.1:4000".parse().unwrap(),
            outcome: outcome.to_owned(),
            waited: Duration::from_secs(waited),
        }
    }

    #[test]
    fn a_move_is_late_once_a_third_exchange_has_begun_since_it_was_chosen() {
        for (exchanges, outcome, expected) in [
            (2, "reset", (1, 1, 0)),
            (3, "reset", (1, 0, 1)),
            (3, "gaveUp", (0, 0, 1)),
            (2, "recalled", (0, 0, 0)),
        ] {
            let (mut seen, start) = seen(exchanges);
            seen.add(&[ended(start, outcome, 8)]);
            let sums = &seen.cells[&CELL];
            assert_eq!((sums.moved, sums.in_time, sums.late), expected, "{outcome}");
            assert_eq!(seen.troubles, [""; 0]);
        }
        // Those before it was chosen do not count.
        let (mut seen, start) = seen(5);
        seen.add(&[ended(start, "reset", 4)]);
        assert_eq!(seen.cells[&CELL].in_time, 1);
    }

    #[test]
    fn a_move_of_nobodys_connection_is_told() {
        let (mut seen, start) = seen(1);
        let stranger = Ended {
            peer: "10.0.0.1:4001".parse().unwrap(),
            ..ended(start, "reset", 1)
        };
        // From the same address to another port.
        let beside = Ended {
            local: SocketAddr::from(([10, 0, 0, 2], Way::Haproxy.port())),
            ..ended(start, "reset", 1)
        };
        seen.add(&[stranger, beside]);
        assert_eq!((seen.troubles.len(), seen.cells.len()), (2, 0));
    }
}
