//! JSON for programs: an envelope, exact numbers, and all that a decision needs.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use serde::Serialize;

use super::{cgroup, ordered, rate};
use crate::snapshot::{Connection, Endpoint, EndpointKey, Snapshot};

/// Whose records a dump shows.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// Those of the agent that runs.
    Agent,
    /// Only those made during this call.
    ThisCall,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    api_version: &'static str,
    kind: &'static str,
    node: String,
    generated_at: String,
    source: Source,
    /// `CLOCK_MONOTONIC` when the snapshot was taken.
    taken_nanoseconds: u64,
    items: Vec<T>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointRef {
    netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<u64>,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionItem {
    /// The socket's cookie in hexadecimal, as `ss -e` shows it behind `sk:`.
    id: String,
    endpoint: EndpointRef,
    cgroup: u64,
    local: SocketAddr,
    peer: SocketAddr,
    #[serde(skip_serializing_if = "is_zero")]
    device: u32,
    state: &'static str,
    owned: bool,
    mptcp: bool,
    adopted: bool,
    opened_nanoseconds: u64,
    age_seconds: f64,
    bytes_in: u64,
    bytes_out: u64,
    bytes_per_second: Option<u64>,
    receive_queue: u32,
    send_queue: u32,
    server_spoke_last: bool,
    since_sent_nanoseconds: u64,
    since_received_nanoseconds: u64,
    segments_in: u32,
    segments_out: u32,
    retransmits: u32,
    rtt_microseconds: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointItem {
    #[serde(flatten)]
    endpoint: EndpointRef,
    listeners: u64,
    accepted: u64,
    open: u64,
    closed: u64,
    closed_by_reset: u64,
    closed_by_abort: u64,
    closed_by_timeout: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// Every connection.
pub fn connections_json(
    out: &mut impl Write,
    snapshot: &Snapshot,
    source: Source,
) -> io::Result<()> {
    let items = ordered(snapshot)
        .into_iter()
        .map(|c| connection(c, snapshot))
        .collect();
    write(out, "ConnectionList", snapshot, source, items)
}

/// Every endpoint.
pub fn endpoints_json(out: &mut impl Write, snapshot: &Snapshot, source: Source) -> io::Result<()> {
    let items = snapshot
        .endpoints
        .iter()
        .map(|(key, e)| endpoint(key, e))
        .collect();
    write(out, "EndpointList", snapshot, source, items)
}

fn write<T: Serialize>(
    out: &mut impl Write,
    kind: &'static str,
    snapshot: &Snapshot,
    source: Source,
    items: Vec<T>,
) -> io::Result<()> {
    let envelope = Envelope {
        api_version: "rebalancer.dev/v1alpha1",
        kind,
        node: node_name(),
        generated_at: jiff::Timestamp::now().to_string(),
        source,
        taken_nanoseconds: snapshot.taken.0,
        items,
    };
    serde_json::to_writer_pretty(&mut *out, &envelope)?;
    writeln!(out)
}

/// The node's host name.
fn node_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn endpoint_ref(key: &EndpointKey) -> EndpointRef {
    EndpointRef {
        netns: key.netns.0,
        cgroup: cgroup(key),
        port: key.port,
    }
}

fn connection(c: &Connection, snapshot: &Snapshot) -> ConnectionItem {
    ConnectionItem {
        id: c.cookie.to_string(),
        endpoint: endpoint_ref(&c.endpoint),
        cgroup: c.cgroup.0,
        local: c.local,
        peer: c.remote,
        device: c.device,
        state: c.state.name(),
        owned: c.owned,
        mptcp: c.mptcp,
        adopted: c.adopted,
        opened_nanoseconds: c.opened.0,
        age_seconds: snapshot.taken.since(c.opened).as_secs_f64(),
        bytes_in: c.bytes_in.0,
        bytes_out: c.bytes_out.0,
        bytes_per_second: rate(c, snapshot),
        receive_queue: c.receive_queue,
        send_queue: c.send_queue,
        server_spoke_last: c.server_spoke_last,
        since_sent_nanoseconds: nanoseconds(c.since_sent),
        since_received_nanoseconds: nanoseconds(c.since_received),
        segments_in: c.segments_in,
        segments_out: c.segments_out,
        retransmits: c.retransmits,
        rtt_microseconds: c.rtt.as_micros() as u64,
    }
}

fn endpoint(key: &EndpointKey, e: &Endpoint) -> EndpointItem {
    EndpointItem {
        endpoint: endpoint_ref(key),
        listeners: e.listeners,
        accepted: e.accepted,
        open: e.open,
        closed: e.closed,
        closed_by_reset: e.closed_by_reset,
        closed_by_abort: e.closed_by_abort,
        closed_by_timeout: e.closed_by_timeout,
        bytes_in: e.bytes_in.0,
        bytes_out: e.bytes_out.0,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
