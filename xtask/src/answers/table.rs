//! The results as a Markdown table.

use std::fmt::Write as _;

use clap::ValueEnum as _;

use super::{
    observations::{Cell, Observations, Sums},
    request::Kind,
    routes::Route,
};

pub(super) fn table(seen: &Observations) -> String {
    let routes = Route::ALL.map(Route::title).join(" | ");
    let mut table = format!("| Kind of response | {routes} |\n|---|---|---|---|\n");
    for &kind in Kind::value_variants() {
        let cells = Route::ALL.map(|route| match seen.cells.get(&Cell { kind, route }) {
            Some(sums) => text(kind, sums),
            None => "–".to_owned(),
        });
        let _written = writeln!(table, "| {} | {} |", kind.title(), cells.join(" | "));
    }
    table
}

fn text(kind: Kind, sums: &Sums) -> String {
    let Sums {
        answers,
        broken,
        crossed,
        moved,
        in_time,
        late,
        others,
    } = sums;
    let all = answers + broken + crossed;
    let mut text = if kind.is_tunnel() {
        format!("{broken} of {all} ended")
    } else {
        format!("{broken} of {all} cut off")
    };
    if *crossed > 0 {
        let _written = write!(text, ", {crossed} crossed a reset");
    }
    let _written = write!(text, "; {moved} moved");
    if in_time + late > 0 {
        let _written = write!(text, ", {in_time} of {} in time", in_time + late);
    }
    for (outcome, count) in others {
        let _written = write!(text, ", {count} {outcome}");
    }
    text
}
