//! The table: a Markdown table, which reads well on a terminal too.

use std::{collections::BTreeMap, fmt};

use super::{Defaults, Situation, columns::Column, tally::Seen};

/// What came of one column's policy in one situation.
pub(super) struct Cell {
    /// The moves, by outcome.
    pub(super) outcomes: BTreeMap<String, u64>,
    /// What the plan skipped, by cause.
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
    /// Connections that were ended.
    pub(super) fn moved(&self) -> u64 {
        let count = |outcome| self.outcomes.get(outcome).copied().unwrap_or(0);
        count("reset") + count("closed")
    }

    fn moves(&self) -> String {
        let outcomes: Vec<String> = self.outcomes.iter().map(moves).collect();
        if !outcomes.is_empty() {
            return outcomes.join(", ");
        }
        // What is still young says nothing.
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

/// A move's outcome and how often, for a reader who has not learnt the words.
fn moves((outcome, count): (&String, &u64)) -> String {
    match outcome.as_str() {
        "leftByItself" => format!("{count} waited for a quiet moment in vain"),
        "gaveUp" => format!("{count} gave up, never quiet"),
        other => match other.split_once(": ") {
            Some((word, guard)) => format!("{count} {word}: `{guard}`"),
            None => format!("{count} {other}"),
        },
    }
}

impl Row {
    /// What had to hold and does not.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (column, cell) in Column::ALL.iter().zip(&self.cells) {
            let mut must = |holds: bool, what: &str| {
                if !holds {
                    let (title, column) = (self.situation.title, column.title());
                    broken.push(format!("{title}, {column}: {what}"));
                }
            };
            must(cell.survived, "the server died");
            must(cell.seen.done > 0, "the clients did nothing");
            let refused = match self.situation.defaults {
                Defaults::Refused(outcome) => Some(outcome),
                _ => None,
            };
            if let Some(refused) = refused {
                let all = cell.outcomes.keys().all(|outcome| outcome == refused);
                must(all && !cell.outcomes.is_empty(), "not refused");
                must(cell.seen.lost == 0, "something was lost");
            } else if *column == Column::Defaults {
                self.with_the_defaults(cell, &mut must);
            } else {
                let can = self.situation.ever_quiet || *column == Column::AtOnce;
                let tried = cell.moved() + cell.outcomes.get("failed").copied().unwrap_or(0);
                must(!can || tried > 0, "nothing was moved");
            }
        }
        broken
    }

    fn with_the_defaults(&self, cell: &Cell, must: &mut impl FnMut(bool, &str)) {
        let problem = cell.seen.problem.as_deref().unwrap_or("no error seen");
        let nothing = &format!("something was lost: {problem}");
        match self.situation.defaults {
            Defaults::Moves => {
                must(cell.moved() > 0, "nothing was moved");
                must(cell.seen.lost == 0, nothing);
            }
            // Connections that the client's pool keeps beside may well be moved.
            Defaults::Waits => must(cell.seen.lost == 0, nothing),
            Defaults::Skips(cause) => {
                must(cell.outcomes.is_empty(), "it was not skipped");
                // The plan is not always able to tell: its listing may come out empty.
                let told = cell.skipped.is_empty() || cell.skipped.contains_key(cause);
                must(told, "skipped for another cause");
                must(cell.seen.lost == 0, nothing);
            }
            Defaults::Stays => {
                must(cell.moved() == 0, "it was moved");
                must(cell.seen.lost == 0, nothing);
            }
            Defaults::Hears(outcome) => {
                let all = cell.outcomes.keys().all(|of| of == outcome);
                must(all && !cell.outcomes.is_empty(), "it was not heard");
                must(cell.seen.lost == 0, nothing);
            }
            Defaults::Refused(_) => {}
        }
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

/// The first two lines.
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
    fn a_row_says_what_was_seen() {
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
    fn what_is_not_spared_as_it_should_be_is_told() {
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
