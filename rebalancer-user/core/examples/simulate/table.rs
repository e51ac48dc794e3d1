//! The printed table.

use comfy_table::{CellAlignment, Table, presets};

use crate::{csv::Row, spread::Spread};

pub(crate) fn of(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "SCENARIO",
        "STRATEGY",
        "BALANCED",
        "ROUNDS",
        "SECONDS",
        "MOVES",
        "LEAST",
        "÷ LEAST",
        "IDLE MOVES",
        "WORST CLIENT",
        "LAST MOVE",
        "MAX/MEAN",
        "SKIPPED MOST",
    ]);
    for row in rows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            row.scenario.to_owned(),
            row.strategy.to_owned(),
            format!("{}/{}", row.balanced, row.runs),
            spread(row.rounds),
            or_dash(row.seconds.map(spread)),
            spread(row.moves),
            or_dash(row.least.map(spread)),
            or_dash(
                row.ratio()
                    .map(|(ratio, sd)| format!("{ratio:.2} ± {sd:.2}")),
            ),
            spread(row.while_balanced),
            format!("{:.0} %", 100.0 * row.worst_client.mean),
            format!("{:.0} s", row.last_move.most),
            format!("{:.2}", row.hottest.mean),
            row.skipped.clone(),
        ]);
    }
    for column in table.column_iter_mut().skip(2).take(10) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn spread(of: Spread) -> String {
    format!("{:.1} ± {:.1}", of.mean, of.deviation)
}
