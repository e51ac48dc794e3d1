//! What the clients observed: responses by kind and route, and when each connection was used.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{request::Kind, routes::Route};
use crate::agent::EndedMove;

/// One kind of response on one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    pub(super) route: Route,
}

/// A connection as its client saw it.
#[derive(Clone, Debug)]
struct Connection {
    cell: Cell,
    local: SocketAddr,
    opened: Instant,
    /// When each exchange began.
    exchanges: Vec<Instant>,
}

/// Sums of a cell.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) answers: u64,
    pub(super) broken: u64,
    pub(super) crossed: u64,
    /// Moves that ended a connection.
    pub(super) moved: u64,
    /// Of these, moves before the third exchange after the connection was chosen.
    pub(super) in_time: u64,
    /// Chosen connections that began a third exchange.
    pub(super) late: u64,
    /// Moves that did not end a connection, by outcome.
    pub(super) others: BTreeMap<String, u64>,
}

/// The observations of all clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Observations {
    connections: Vec<Connection>,
    pub(super) cells: BTreeMap<Cell, Sums>,
    pub(super) problems: Vec<String>,
}

/// Counts for all clients.
#[derive(Default)]
pub(super) struct Tally(Mutex<Observations>);

impl Tally {
    /// Adds a connection and returns its index for [`Tally::begin_exchange`].
    pub(super) fn add_connection(&self, cell: Cell, local: SocketAddr, opened: Instant) -> usize {
        let connections = &mut self.0.lock().connections;
        connections.push(Connection {
            cell,
            local,
            opened,
            exchanges: Vec::new(),
        });
        connections.len() - 1
    }

    /// Exchanges of [`Kind::Warm`] are too short for a move and do not count.
    pub(super) fn begin_exchange(&self, connection: usize, kind: Kind) {
        if kind != Kind::Warm {
            self.0.lock().connections[connection]
                .exchanges
                .push(Instant::now());
        }
    }

    pub(super) fn answered(&self, cell: Cell, answers: u64) {
        self.0.lock().cells.entry(cell).or_default().answers += answers;
    }

    /// Number of requests so far, including failed ones.
    pub(super) fn requested(&self, cell: Cell) -> u64 {
        let of = |sums: &Sums| sums.answers + sums.broken + sums.crossed;
        self.0.lock().cells.get(&cell).map_or(0, of)
    }

    pub(super) fn crossed(&self, cell: Cell) {
        self.0.lock().cells.entry(cell).or_default().crossed += 1;
    }

    pub(super) fn broken(&self, cell: Cell, why: String) {
        let mut seen = self.0.lock();
        seen.cells.entry(cell).or_default().broken += 1;
        seen.problems.push(format!("{cell:?}: {why}"));
    }

    pub(super) fn seen(&self) -> Observations {
        self.0.lock().clone()
    }
}

impl Cell {
    /// Whether its connections stay open after a response and stay HTTP/1.
    pub(super) fn can_move(self) -> bool {
        let ends = self.kind == Kind::UntilClose && self.route != Route::Nginx;
        !self.kind.is_tunnel() && !ends
    }
}

impl Observations {
    pub(super) fn has_moved(&self, cell: Cell) -> bool {
        self.cells.get(&cell).is_some_and(|sums| sums.moved > 0)
    }

    /// Adds the moves to the cells of their connections. A move of a connection that no client had
    /// is a problem.
    pub(super) fn add(&mut self, moves: &[EndedMove]) {
        for ended in moves {
            // A client address is used for several server ports and reused later.
            let of = |connection: &&Connection| {
                connection.local == ended.peer
                    && connection.cell.route.port() == ended.local.port()
                    && connection.opened <= ended.at
            };
            let Some(connection) = self.connections.iter().rev().find(of) else {
                self.problems
                    .push(format!("moved a connection of no client: {ended:?}"));
                continue;
            };
            let chosen = ended.at - Duration::from_millis(ended.waited_ms);
            let exchanges = connection.exchanges.iter();
            let since = exchanges.filter(|begun| **begun >= chosen).count();
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
                // It timed out, or its client left.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Cell = Cell {
        kind: Kind::Sized,
        route: Route::Nginx,
    };

    /// A connection with an exchange each second from its third second on.
    fn seen(exchanges: u64) -> (Observations, Instant) {
        let start = Instant::now();
        let begun = (3..3 + exchanges).map(|second| start + Duration::from_secs(second));
        let connection = Connection {
            cell: CELL,
            local: "10.0.0.1:4000".parse().unwrap(),
            opened: start,
            exchanges: begun.collect(),
        };
        let seen = Observations {
            connections: vec![connection],
            ..Observations::default()
        };
        (seen, start)
    }

    fn ended(start: Instant, outcome: &str, waited: u64) -> EndedMove {
        EndedMove {
            at: start + Duration::from_secs(10),
            local: SocketAddr::from(([10, 0, 0, 2], CELL.route.port())),
            peer: "10.0.0.1:4000".parse().unwrap(),
            rule: "old".to_owned(),
            outcome: outcome.to_owned(),
            cause: None,
            waited_ms: 1000 * waited,
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
            assert_eq!(seen.problems, [""; 0]);
        }
        // Exchanges before it was chosen do not count.
        let (mut seen, start) = seen(5);
        seen.add(&[ended(start, "reset", 4)]);
        assert_eq!(seen.cells[&CELL].in_time, 1);
    }

    #[test]
    fn a_move_of_an_unknown_connection_is_a_problem() {
        let (mut seen, start) = seen(1);
        let stranger = EndedMove {
            peer: "10.0.0.1:4001".parse().unwrap(),
            ..ended(start, "reset", 1)
        };
        // The same client address, another server port.
        let other_port = EndedMove {
            local: SocketAddr::from(([10, 0, 0, 2], Route::Haproxy.port())),
            ..ended(start, "reset", 1)
        };
        seen.add(&[stranger, other_port]);
        assert_eq!((seen.problems.len(), seen.cells.len()), (2, 0));
    }
}
