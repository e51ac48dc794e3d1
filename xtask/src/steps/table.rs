//! The results as a Markdown table.

use std::{collections::BTreeMap, fmt};

use super::{Defaults, Situation, columns::Column, tally::Seen};

/// The result of one column's policy in one situation.
pub(super) struct Cell {
    /// The moves, by outcome.
    pub(super) outcomes: BTreeMap<String, u64>,
    /// Connections that the plan skipped, by cause.
    pub(super) skipped: BTreeMap<String, u64>,
    pub(super) seen: Seen,
    pub(super) survived: bool,
}

pub(super) struct Row {
    pub(super) situation: Situation,
    /// In the order of [`Column::ALL`].
    pub(super) cells: Vec<Cell>,
}

impl Cell {
    /// Number of connections that were ended.
    pub(super) fn moved(&self) -> u64 {
        let count = |outcome| self.outcomes.get(outcome).copied().unwrap_or(0);
        count("reset") + count("closed")
    }

    /// Whether there were moves, and all had this outcome.
    fn all_ended(&self, outcome: &str) -> bool {
        self.outcomes.keys().eq([outcome])
    }

    fn moves(&self) -> String {
        let outcomes: Vec<String> = self.outcomes.iter().map(moves).collect();
        if !outcomes.is_empty() {
            return outcomes.join(", ");
        }
        let causes = self.skipped.iter().max_by_key(|(_, count)| **count);
        causes.map_or("nothing moved".to_owned(), |(cause, _)| {
            format!("skipped: `{cause}`")
        })
    }

    fn text(&self, lost: &str) -> String {
        let Seen {
            done,
            lost: count,
            reconnects,
            ..
        } = self.seen;
        let mut text = format!("{}; {count} of {} {lost}", self.moves(), done + count);
        if reconnects > 0 {
            text += &format!(", {reconnects} reconnects");
        }
        if !self.survived {
            text += ", **the server died**";
        }
        text
    }
}

/// A count of moves and their outcome, readable without the list of outcomes.
fn moves((outcome, count): (&String, &u64)) -> String {
    match outcome.as_str() {
        "leftByItself" => format!("{count} waited for a quiet moment that never came"),
        "gaveUp" => format!("{count} gave up, never quiet"),
        other => match other.split_once(": ") {
            Some((word, guard)) => format!("{count} {word}: `{guard}`"),
            None => format!("{count} {other}"),
        },
    }
}

impl Row {
    /// Expectations that failed.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (column, cell) in Column::ALL.iter().zip(&self.cells) {
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    let (title, column) = (self.situation.title, column.title());
                    broken.push(format!("{title}, {column}: {what}"));
                }
            };
            expect(cell.survived, "the server died");
            expect(cell.seen.done > 0, "the clients did nothing");
            if let Defaults::Refused(outcome) = self.situation.defaults {
                expect(cell.all_ended(outcome), "not refused");
                expect(cell.seen.lost == 0, "something was lost");
            } else if *column == Column::Defaults {
                self.with_the_defaults(cell, &mut expect);
            } else {
                let can = self.situation.ever_quiet || *column == Column::AtOnce;
                let tried = cell.moved() + cell.outcomes.get("failed").copied().unwrap_or(0);
                expect(!can || tried > 0, "nothing was moved");
            }
        }
        broken
    }

    fn with_the_defaults(&self, cell: &Cell, expect: &mut impl FnMut(bool, &str)) {
        match self.situation.defaults {
            Defaults::Moves => expect(cell.moved() > 0, "nothing was moved"),
            // Spare connections of the client's pool may be moved.
            Defaults::Waits | Defaults::Refused(_) => {}
            Defaults::Skips(cause) => {
                expect(cell.outcomes.is_empty(), "it was not skipped");
                // The plan may list no connections.
                let as_expected = cell.skipped.is_empty() || cell.skipped.contains_key(cause);
                expect(as_expected, "skipped for another cause");
            }
            Defaults::Undetected => expect(cell.moved() == 0, "it was moved"),
            Defaults::Detected(outcome) => {
                expect(cell.all_ended(outcome), "the protocol was not detected");
            }
        }
        let problem = cell.seen.problem.as_deref().unwrap_or("no error seen");
        let lost = &format!("something was lost: {problem}");
        expect(cell.seen.lost == 0, lost);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "| {} ({}) |",
            self.situation.title, self.situation.client
        )?;
        let lost = self.situation.lost;
        self.cells
            .iter()
            .try_for_each(|cell| write!(f, " {} |", cell.text(lost)))
    }
}

/// The head of the table.
pub(super) fn head() -> String {
    let titles = Column::ALL.map(Column::title).join(" | ");
    format!("| Server and client | {titles} |\n|---|---|---|---|---|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(outcome: Option<(&str, u64)>, skipped: &str, lost: u64) -> Cell {
        let one = |key: &str, count| (key.to_owned(), count);
        Cell {
            outcomes: outcome.map(|(key, n)| one(key, n)).into_iter().collect(),
            skipped: [one(skipped, 20)].into(),
            seen: Seen {
                done: 100,
                lost,
                ..Seen::default()
            },
            survived: true,
        }
    }

    fn row(defaults: Cell) -> Row {
        let forced = || cell(Some(("reset", 20)), "inFlight", 20);
        Row {
            situation: super::super::redis::SUBSCRIBERS,
            cells: vec![defaults, forced(), forced(), forced()],
        }
    }

    #[test]
    fn a_row_shows_moves_and_losses() {
        let text = row(cell(None, "statefulPort", 0)).to_string();
        assert_eq!(
            text,
            "| Redis, SUBSCRIBE (redis-rs) | skipped: `statefulPort`; 0 of 100 messages missed | \
             20 reset; 20 of 120 messages missed | 20 reset; 20 of 120 messages missed | \
             20 reset; 20 of 120 messages missed |"
        );
        let refused = moves((&"refused: sigpipe".to_owned(), &3));
        assert_eq!(refused, "3 refused: `sigpipe`");
    }

    #[test]
    fn failed_expectations_are_reported() {
        assert_eq!(row(cell(None, "statefulPort", 0)).broken(), [""; 0]);
        let lost = row(cell(None, "statefulPort", 1)).broken();
        assert_eq!(
            lost,
            ["Redis, SUBSCRIBE, with the defaults: something was lost: no error seen"]
        );
        assert_eq!(row(cell(Some(("reset", 1)), "minAge", 0)).broken().len(), 2);
        let mut dead = row(cell(None, "statefulPort", 0));
        dead.cells[3].survived = false;
        dead.cells[1].outcomes.clear();
        assert_eq!(dead.broken().len(), 2);
    }
}
