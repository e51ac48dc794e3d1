//! Tables for a terminal: one line each, no lines between, as kubectl's.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::{
    Sort, cgroup,
    names::{columns, container},
    rate, sorted,
};
use crate::{
    policy::visible,
    snapshot::{Bytes, Connection, Naming, Snapshot},
};

/// Every connection.
pub fn connections_table(out: &mut impl Write, snapshot: &Snapshot, sort: Sort) -> io::Result<()> {
    let named = snapshot.naming != Naming::Off;
    let [id, netns, rest @ ..] = COLUMNS;
    let place: &[&str] = if named {
        &["NAMESPACE", "POD"]
    } else {
        &[netns]
    };
    let header: Vec<&str> = [&[id], place, &rest].concat();
    let numbers = header.len() - 6;
    let mut table = table(&header, numbers..header.len());
    for c in sorted(snapshot, sort) {
        let [id, netns, rest @ ..] = cells(c, snapshot);
        let place = if named {
            let [namespace, pod, _] = columns(snapshot.who(&c.endpoint));
            vec![namespace, pod]
        } else {
            vec![netns]
        };
        table.add_row([id].into_iter().chain(place).chain(rest));
    }
    write(out, &table)
}

/// Every connection, with all that is known of it.
pub fn connections_wide(out: &mut impl Write, snapshot: &Snapshot, sort: Sort) -> io::Result<()> {
    let more = [
        "CGROUP",
        "SENT",
        "RECEIVED",
        "SEGS-IN",
        "SEGS-OUT",
        "RETRANS",
        "RTT",
        "SENDS",
        "SEND-BYTES",
        "LAST",
        "FLAGS",
        "PATH",
    ];
    let named = snapshot.naming != Naming::Off;
    let [id, rest @ ..] = COLUMNS;
    let names: &[&str] = if named {
        &["NAMESPACE", "POD", "SERVICE", "CONTAINER"]
    } else {
        &[]
    };
    let header = [&[id], names, &rest, &more].concat();
    let numbers = names.len() + 5;
    let mut table = table(&header, numbers..numbers + 15);
    for c in sorted(snapshot, sort) {
        let flags: Vec<&str> = [(c.mptcp, "mptcp"), (c.adopted, "adopted")]
            .into_iter()
            .filter_map(|(set, word)| set.then_some(word))
            .collect();
        let more = [
            c.cgroup.0.to_string(),
            age(c.since_sent),
            age(c.since_received),
            c.segments_in.to_string(),
            c.segments_out.to_string(),
            c.retransmits.to_string(),
            format!("{:.1}ms", c.rtt.as_secs_f64() * 1000.0),
            c.sends
                .map_or("-".to_owned(), |sends| sends.messages.to_string()),
            c.sends.map_or("-".to_owned(), |sends| size(sends.bytes)),
            if c.server_spoke_last {
                "server"
            } else {
                "client"
            }
            .to_owned(),
            if flags.is_empty() {
                "-".to_owned()
            } else {
                flags.join(",")
            },
            c.cgroup_path
                .as_ref()
                .map_or("-".to_owned(), |path| visible(path.as_str())),
        ];
        let [id, rest @ ..] = cells(c, snapshot);
        let mut names = Vec::new();
        if named {
            names.extend(columns(snapshot.who(&c.endpoint)));
            names.push(container(c, snapshot).unwrap_or("-").to_owned());
        }
        table.add_row([id].into_iter().chain(names).chain(rest).chain(more));
    }
    write(out, &table)
}

const COLUMNS: [&str; 11] = [
    "ID", "NETNS", "LOCAL", "PEER", "STATE", "AGE", "IN", "OUT", "RATE", "RECV-Q", "SEND-Q",
];

fn cells(c: &Connection, snapshot: &Snapshot) -> [String; 11] {
    let more = if c.adopted { ">" } else { "" };
    [
        c.cookie.to_string(),
        c.endpoint.netns.0.to_string(),
        c.local.to_string(),
        c.remote.to_string(),
        c.state.name().to_owned(),
        format!("{more}{}", age(snapshot.taken.since(c.opened))),
        size(c.bytes_in),
        size(c.bytes_out),
        rate(c, snapshot).map_or("-".to_owned(), |rate| format!("{}/s", size(Bytes(rate)))),
        c.receive_queue.to_string(),
        c.send_queue.to_string(),
    ]
}

/// Every endpoint.
pub fn endpoints_table(out: &mut impl Write, snapshot: &Snapshot) -> io::Result<()> {
    let named = snapshot.naming != Naming::Off;
    let names: &[&str] = if named {
        &["NAMESPACE", "POD", "SERVICE"]
    } else {
        &[]
    };
    let sums = [
        "NETNS",
        "CGROUP",
        "PORT",
        "LISTENERS",
        "ACCEPTED",
        "OPEN",
        "CLOSED",
        "RESET",
        "ABORTED",
        "TIMED-OUT",
        "IN",
        "OUT",
    ];
    let header = [names, &sums].concat();
    let mut table = table(&header, names.len() + 2..header.len());
    for (key, e) in &snapshot.endpoints {
        let names = named.then(|| columns(&e.who)).into_iter().flatten();
        table.add_row(names.chain([
            key.netns.0.to_string(),
            cgroup(key).map_or("-".to_owned(), |id| id.to_string()),
            key.port.to_string(),
            e.listeners.to_string(),
            e.accepted.to_string(),
            e.open.to_string(),
            e.closed.to_string(),
            e.closed_by_reset.to_string(),
            e.closed_by_abort.to_string(),
            e.closed_by_timeout.to_string(),
            size(e.bytes_in),
            size(e.bytes_out),
        ]));
    }
    write(out, &table)
}

pub(super) fn table(header: &[&str], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn write(out: &mut impl Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

pub(super) fn size(bytes: Bytes) -> String {
    ByteSize::b(bytes.0).display().iec_short().to_string()
}

/// Two units at most, as `kubectl get` shows ages.
pub(super) fn age(age: Duration) -> String {
    let s = age.as_secs();
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match s {
        0..10 => format!("{:.1}s", age.as_secs_f64()),
        10..120 => format!("{s}s"),
        120..7_200 => format!("{m}m{}s", s % 60),
        7_200..172_800 => format!("{h}h{}m", m % 60),
        _ => format!("{d}d{}h", h % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let shown = [0, 9, 10, 119, 120, 7_199, 7_200, 172_799, 172_800]
            .map(|s| age(Duration::from_secs(s)));
        assert_eq!(
            shown,
            [
                "0.0s", "9.0s", "10s", "119s", "2m0s", "119m59s", "2h0m", "47h59m", "2d0h"
            ]
        );
    }
}
