//! Tables for a terminal: one line each, no lines between, as kubectl's.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::units::{age, size};
use crate::{
    api::{Sort, container, rate, service_names, sorted},
    snapshot::{Bytes, Connection, Naming, Snapshot, Who},
    text::visible,
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
            key.cgroup.map_or("-".to_owned(), |id| id.0.to_string()),
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

/// Namespace, pod and Services, as columns.
pub(super) fn columns(who: &Who) -> [String; 3] {
    match who {
        Who::NoPod => ["-", "-", "-"].map(str::to_owned),
        Who::Unknown => ["?", "?", "?"].map(str::to_owned),
        Who::Pod(pod) => [
            pod.namespace.clone(),
            pod.pod.clone(),
            match &pod.services {
                None => "?".to_owned(),
                Some(services) if services.is_empty() => "-".to_owned(),
                Some(_) => service_names(pod).join(","),
            },
        ],
    }
}

/// Namespace and pod, in one.
pub(super) fn pod_name(who: &Who) -> String {
    match who {
        Who::NoPod => "-".to_owned(),
        Who::Unknown => "?".to_owned(),
        Who::Pod(pod) => pod.full_name(),
    }
}
