//! What must hold for every input that comes from outside, whatever its bytes: one function for
//! each door. `cargo xtask fuzz` runs them on inputs that it makes up, guided by what they reach;
//! a unit test runs them on the seeds and on every input that was once a mistake.
//!
//! Each panics if something does not hold, and only then.

use std::{collections::BTreeMap, time::Duration};

use rebalancer_common::{EndpointKey, EndpointSums, Row, kind};
use zerocopy::FromBytes as _;

use crate::{
    api::{self, Dumped, Notation, Origin, Sort, Source},
    bpf::{self, Pass, Walked},
    host::{self, CgroupPaths},
    observe,
    plan::{Ledger, decide},
    policy::{self, Policy},
    render,
    snapshot::Netns,
};

/// Matches all, so that every record gets to the limits and the guards.
const POLICY: &str = "
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
guards: {minAge: 1ms}
rules:
- name: all
  match: {ports: [{port: 1, endPort: 65535}]}
  limits: {maxAge: 1m, maxBytes: 1Mi, maxRate: {bytesPerSecond: 1Ki, for: 10s}}
";

/// What the walk wrote: each record is a connection, a listener, closed, or counted as
/// senseless; each connection gets one verdict; and a dump of them is read back as it was.
pub fn records(bytes: &[u8]) {
    let sockets: Vec<Walked> = bytes
        .chunks_exact(size_of::<Row>())
        .filter_map(|row| Row::read_from_bytes(row).ok())
        .map(|row| Walked {
            connection: row.connection,
            live: row.live,
            holders: Vec::new(),
        })
        .collect();
    let pass = Pass {
        now_ns: sockets.len() as u64 * 1_000_000_000,
        sockets,
        ..Pass::default()
    };
    let sums = BTreeMap::from([(EndpointKey::default(), EndpointSums::default())]);
    let context = observe::Context {
        host: Netns(1),
        paths: &CgroupPaths::new(),
        jiffies: &|jiffies| Duration::from_millis(4 * u64::from(jiffies)),
    };
    let observation = observe::join(&pass, &sums, BTreeMap::new(), &context);
    let snapshot = &observation.snapshot;
    let candidates = pass
        .sockets
        .iter()
        .filter(|l| l.connection.kind != kind::LISTENER);
    assert!(snapshot.connections.len() as u64 + observation.invalid <= candidates.count() as u64);

    let policy = all();
    let mut ledger = Ledger::default();
    ledger.observe(&policy, snapshot);
    let plan = decide(&policy, snapshot, &ledger, snapshot.taken);
    assert_eq!(plan.decisions().count(), snapshot.connections.len());

    let origin = Origin::here(Source::Agent);
    let mut dump = Vec::new();
    api::write_connections(&mut dump, Notation::Json, snapshot, &origin, Sort::Endpoint)
        .expect("memory takes it");
    let again = api::read_snapshot(&dump[..])
        .unwrap_or_else(|error| panic!("our own dump is refused: {error}"));
    assert_eq!(again.snapshot.endpoints, snapshot.endpoints);
    assert_eq!(again.snapshot.connections.len(), snapshot.connections.len());
    render::connections_wide(&mut dump, snapshot, Sort::Endpoint).expect("memory takes it");
}

fn all() -> Policy {
    policy::parse("fuzzing", POLICY).expect("valid")
}

/// An answer of `sock_diag(7)`.
pub fn netlink(bytes: &[u8]) {
    host::parse_answer(bytes);
}

/// The kernel's types.
pub fn btf(bytes: &[u8]) {
    bpf::find_offsets(bytes);
}

/// A dump of anyone's, for `plan --snapshot`: refused, or planned for.
pub fn dump(bytes: &[u8]) {
    match api::read_snapshot(bytes) {
        Ok(Dumped { snapshot, .. }) => {
            let ledger = Ledger::default();
            let plan = decide(&all(), &snapshot, &ledger, snapshot.taken);
            assert_eq!(plan.decisions().count(), snapshot.connections.len());
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                !said.contains('\u{1b}'),
                "escapes reach a terminal: {said:?}"
            );
        }
    }
}

#[cfg(test)]
#[path = "../fuzz/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::on_its_seeds;

    #[test]
    fn each_target_takes_its_seeds() {
        on_its_seeds("fuzz/corpus/records", super::records);
        on_its_seeds("fuzz/corpus/netlink", super::netlink);
        on_its_seeds("fuzz/corpus/btf", super::btf);
        on_its_seeds("fuzz/corpus/dump", super::dump);
    }
}
