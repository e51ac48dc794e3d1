//! The results of `rebalancer move`, as a table.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use super::table::{table, write as write_table};
use crate::{api::Moved, snapshot::Connection};

/// A line for each, in the order asked for.
pub fn moved_table(out: &mut impl Write, moved: &[Moved<'_>]) -> io::Result<()> {
    let mut lines = table(&["ID", "LOCAL", "PEER", "OUTCOME", "DETAIL"], 0..0);
    for one in moved {
        let address = |of: fn(&Connection) -> SocketAddr| {
            one.connection.map_or("-".to_owned(), |c| of(c).to_string())
        };
        lines.add_row([
            one.id.to_string(),
            address(|c| c.local),
            address(|c| c.remote),
            one.end.as_str().to_owned(),
            one.end.detail(),
        ]);
    }
    write_table(out, &lines)
}
