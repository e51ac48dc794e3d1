//! Writes a plan. It depends on nothing but its arguments, so a plan made again from a dump
//! reads byte for byte as the one made of the node itself.

use std::io::{self, Write};

use super::table::{pod_name, table, write as write_table};
use crate::{
    api::{Form, Notation, Origin, by_cookie, in_order, write_plan},
    plan::{Balanced, Load, Plan, Recall, Verdict},
    snapshot::{Naming, Snapshot},
};

/// The moves in their order, what is skipped in sums, and how long it takes.
fn essentials(out: &mut impl Write, plan: &Plan, snapshot: &Snapshot) -> io::Result<()> {
    let known = by_cookie(snapshot);
    let named = snapshot.naming != Naming::Off;
    let pod: &[&str] = if named { &["POD"] } else { &[] };
    let header = [
        &["PLACE", "ID", "RULE", "MODE"],
        pod,
        &["LOCAL", "PEER", "WHY"],
    ]
    .concat();
    let mut moves = table(&header, 0..1);
    for decision in plan.decisions() {
        let (Verdict::Move(chosen), Some(place)) = (decision.verdict, decision.place) else {
            continue;
        };
        let what = [
            place.to_string(),
            decision.cookie.to_string(),
            chosen.rule().to_string(),
            chosen.mode().as_str().to_owned(),
        ];
        let pod = named.then(|| chosen.pod().unwrap_or("-").to_owned());
        let what_and_why = [
            chosen.local().to_string(),
            chosen.remote().to_string(),
            chosen.why(),
        ];
        moves.add_row(what.into_iter().chain(pod).chain(what_and_why));
    }
    if plan.moves().next().is_some() {
        write_table(out, &moves)?;
        writeln!(out)?;
    }
    sums(out, plan, known.len())
}

/// Every connection: the moves in their order, then those that wait in theirs, then the others.
fn everything(out: &mut impl Write, plan: &Plan, snapshot: &Snapshot) -> io::Result<()> {
    let known = by_cookie(snapshot);
    let named = snapshot.naming != Naming::Off;
    let place = if named { "POD" } else { "NETNS" };
    let header = [
        "PLACE", "ID", place, "LOCAL", "PEER", "RULE", "VERDICT", "WHY",
    ];
    let mut all = table(&header, 0..1);
    for decision in in_order(plan) {
        let [place, local, peer] = match known.get(&decision.cookie) {
            Some(c) => [
                if named {
                    pod_name(snapshot.who(&c.endpoint))
                } else {
                    c.endpoint.netns.0.to_string()
                },
                c.local.to_string(),
                c.remote.to_string(),
            ],
            None => Default::default(),
        };
        let (verdict, why) = match decision.verdict {
            Verdict::Move(chosen) => ("move".to_owned(), chosen.why()),
            Verdict::Skipped(skipped) => (
                format!("skipped({})", skipped.as_str()),
                skipped.to_string(),
            ),
        };
        all.add_row([
            decision.place.map_or("-".to_owned(), |n| n.to_string()),
            decision.cookie.to_string(),
            place,
            local,
            peer,
            decision.rule.map_or("-".to_owned(), ToString::to_string),
            verdict,
            why,
        ]);
    }
    if plan.decisions().next().is_some() {
        write_table(out, &all)?;
        writeln!(out)?;
    }
    sums(out, plan, known.len())
}

fn sums(out: &mut impl Write, plan: &Plan, connections: usize) -> io::Result<()> {
    let skipped = plan.skipped();
    if !skipped.is_empty() {
        let mut sums = table(&["SKIPPED", "CONNECTIONS", "FOR EXAMPLE"], 1..2);
        for (cause, count) in skipped {
            let example = plan.decisions().find_map(|d| match d.verdict {
                Verdict::Skipped(skipped) if skipped.as_str() == cause => Some(skipped.to_string()),
                _ => None,
            });
            sums.add_row([
                cause.to_owned(),
                count.to_string(),
                example.unwrap_or_default(),
            ]);
        }
        write_table(out, &sums)?;
        writeln!(out)?;
    }
    for Recall { cookie, why } in plan.recalls() {
        writeln!(out, "the move of {cookie} is recalled: {why}")?;
    }
    for balanced in plan.balanced() {
        of_cluster(out, balanced)?;
    }
    let overdue = plan.overdue();
    writeln!(out, "{connections} connections, {overdue} overdue")?;
    if plan.forecasts().is_empty() {
        return writeln!(out, "nothing to move");
    }
    for forecast in plan.forecasts() {
        writeln!(out, "{forecast}")?;
    }
    // Not all of them may be moved in the end, which should not surprise the operator.
    let (noticed, sniffed): (Vec<_>, Vec<_>) = plan
        .moves()
        .filter(|chosen| chosen.is_sniffed())
        .partition(|chosen| chosen.gives_notice());
    if !noticed.is_empty() {
        let noticed = noticed.len();
        writeln!(
            out,
            "{noticed} of those only once HTTP/1 is detected, or HTTP/2, which takes the step Notice"
        )?;
    }
    match sniffed.len() {
        0 => Ok(()),
        sniffed => writeln!(
            out,
            "{sniffed} of those only once HTTP/1 is detected: their rules have no onReconnect"
        ),
    }
}

/// This node's part in a Service that is balanced over all nodes.
fn of_cluster(out: &mut impl Write, balanced: &Balanced) -> io::Result<()> {
    let (Some(cluster), Ok(facts)) = (balanced.cluster, balanced.facts) else {
        return Ok(());
    };
    let Balanced { group, rule, .. } = balanced;
    let by = balanced.balance.by();
    let [mean, excess] = [facts.mean(), cluster.excess].map(|load| Load(by, load));
    let percent = f64::from(cluster.share.to.saturating_sub(cluster.share.from)) / 10_000.0;
    writeln!(
        out,
        "{group}, rule {rule}: over the {} endpoints of all nodes the mean is {mean}; this node holds \
         {excess} above it, and its share of the Service's budget is {percent:.1} %",
        facts.endpoints
    )
}

/// A plan of `snapshot`, in a form.
///
/// # Errors
/// What writing says.
pub fn plan(
    out: &mut impl Write,
    form: Form,
    plan: &Plan,
    snapshot: &Snapshot,
    origin: &Origin,
) -> io::Result<()> {
    match form {
        Form::Table => essentials(out, plan, snapshot),
        Form::Wide => everything(out, plan, snapshot),
        Form::Json => write_plan(out, Notation::Json, plan, snapshot, origin),
        Form::Yaml => write_plan(out, Notation::Yaml, plan, snapshot, origin),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{
            KeptLedger, Sort, Source, any_origin, any_snapshot, read_kept_ledger, read_snapshot,
            write_connections, write_kept_ledger,
        },
        plan::{Ledger, Outcome, Refusal, decide},
        policy::{Policy, sample},
        snapshot::{
            Bytes, Connection, KernelTime, TcpState,
            sample::{connection, endpoint, listening, snapshot},
        },
    };

    fn policy() -> Policy {
        let text = "\
mode: Enforce
budget: {perNode: 2, perService: 100%, perEndpoint: 100%}
guards: {minAge: 0s}
rules:
- {name: low, match: {ports: [{port: 1, endPort: 30000}]}, limits: {maxAge: 30m, maxBytes: 1Gi}, mode: DryRun}
- {name: rest, match: {ports: [{port: 1, endPort: 65535}]}, limits: {maxAge: 8760h}, balance: {}}
";
        sample::policy(text)
    }

    /// In every form, in one string.
    fn shown(origin: &Origin, snapshot: &Snapshot, ledger: &Ledger) -> String {
        shown_by(&policy(), origin, snapshot, ledger)
    }

    fn shown_by(policy: &Policy, origin: &Origin, snapshot: &Snapshot, ledger: &Ledger) -> String {
        let made = decide(policy, snapshot, ledger, snapshot.taken);
        let mut out = Vec::new();
        for form in [Form::Table, Form::Wide, Form::Json, Form::Yaml] {
            plan(&mut out, form, &made, snapshot, origin).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    /// Such that some are moved.
    fn movable(mut snapshot: Snapshot) -> Snapshot {
        snapshot.taken = KernelTime(u64::MAX);
        for c in snapshot.connections.iter_mut().step_by(2) {
            (c.state, c.mptcp) = (TcpState::Established, false);
        }
        snapshot
    }

    /// The ledger of an agent that has moved some, and how that went.
    fn begun(snapshot: &Snapshot, outcomes: &[usize]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.observe(&policy(), snapshot);
        for outcome in outcomes {
            let made = decide(&policy(), snapshot, &ledger, snapshot.taken);
            let Some(chosen) = made.moves().next() else {
                break;
            };
            if chosen.mode() == crate::policy::Mode::DryRun {
                ledger.reported(chosen, snapshot.taken);
                continue;
            }
            ledger.started(chosen, snapshot.taken);
            let outcome = match outcome {
                0 => continue,
                1 => Outcome::LeftByItself,
                2 => Outcome::Closed,
                3 => Outcome::Reset,
                4 => Outcome::GoneBefore,
                5 => Outcome::GaveUp,
                6 => Outcome::Refused(Refusal::Sigpipe),
                _ => Outcome::Failed("EPERM (os error 1)".into()),
            };
            ledger.ended(chosen.cookie(), outcome, snapshot.taken);
        }
        ledger
    }

    /// As the next agent on the same boot reads it.
    fn kept(ledger: &Ledger, at: KernelTime) -> Ledger {
        let kept = KeptLedger {
            boot_id: String::new(),
            written_nanoseconds: at,
            policy: String::new(),
            entries: ledger.entries(),
        };
        let kept = read_kept_ledger(&write_kept_ledger(&kept).unwrap()).unwrap();
        Ledger::from_entries(kept.entries)
    }

    /// Two hot endpoints and one that keeps nothing: what is moved from the one comes to the other.
    fn listed(live: &BTreeMap<u64, u32>, interval: u64) -> Snapshot {
        let taken = 7_200_000_000_000 + interval * 60_000_000_000;
        let one = |(cookie, netns): (&u64, &u32)| Connection {
            endpoint: endpoint(*netns, 8080),
            bytes_out: Bytes(interval * (60_000 + cookie % 7 * 10_000)),
            opened: KernelTime(taken - 60_000_000_000 * if *cookie > 120 { 1 } else { 60 } + 1),
            ..connection(*cookie)
        };
        let listens = |netns| (endpoint(netns, 8080), listening());
        Snapshot {
            endpoints: (1..=3).map(listens).collect(),
            ..snapshot(taken, live.iter().map(one).collect())
        }
    }

    #[test]
    fn what_balance_decides_is_decided_again_from_a_dump_and_the_kept_ledger() {
        let origin = Origin {
            node: "n".into(),
            generated_at: jiff::Timestamp::UNIX_EPOCH,
            source: Source::Agent,
        };
        let mut words = BTreeMap::new();
        for by in ["Connections", "ByteRate"] {
            let policy = sample::policy(&format!(
                "mode: Enforce\n\
                 budget: {{perNode: 100%, perService: 100%, perEndpoint: 100%, maxInFlight: 1000}}\n\
                 guards: {{minAge: 0s}}\nrules:\n- {{name: web, match: {{ports: [{{port: 8080}}]}}, \
                 balance: {{by: {by}}}}}\n"
            ));
            let mut live: BTreeMap<u64, u32> = (1..=120).map(|c| (c, 1 + c as u32 % 2)).collect();
            let mut next = 121;
            let mut ledger = Ledger::default();
            for interval in 1..30 {
                let snapshot = listed(&live, interval);
                ledger.observe(&policy, &snapshot);
                let mut dump = Vec::new();
                let form = Notation::Json;
                write_connections(&mut dump, form, &snapshot, &origin, Sort::Id).unwrap();
                let read = read_snapshot(&dump[..]).unwrap();
                let again = kept(&ledger, snapshot.taken);
                assert_eq!(again.entries(), ledger.entries());
                assert_eq!(
                    shown_by(&policy, &origin, &snapshot, &ledger),
                    shown_by(&policy, &read.origin, &read.snapshot, &again)
                );
                let plan = decide(&policy, &snapshot, &ledger, snapshot.taken);
                words.extend(plan.skipped());
                for chosen in plan.moves() {
                    ledger.started(chosen, snapshot.taken);
                    ledger.ended(chosen.cookie(), Outcome::Reset, snapshot.taken);
                    live.remove(&chosen.cookie().0);
                    live.insert(next, 1 + next as u32 % 2);
                    next += 1;
                }
            }
        }
        for word in ["fillFailed", "firstFew", "othersMoved"] {
            assert!(words.contains_key(word), "{words:?}");
        }
    }

    proptest! {
        #[test]
        fn a_plan_made_again_from_a_dump_and_the_kept_ledger_is_the_same(
            origin in any_origin(), snapshot in any_snapshot().prop_map(movable),
            outcomes in prop::collection::vec(0..8_usize, 0..4),
            sort in prop::sample::select(vec![Sort::Endpoint, Sort::Age, Sort::Bytes, Sort::Rate, Sort::Id]),
        ) {
            let ledger = begun(&snapshot, &outcomes);
            let mut dump = Vec::new();
            write_connections(&mut dump, Notation::Json, &snapshot, &origin, sort).unwrap();
            let read = read_snapshot(&dump[..]).unwrap();
            let again = shown(&read.origin, &read.snapshot, &kept(&ledger, snapshot.taken));
            prop_assert_eq!(shown(&origin, &snapshot, &ledger), again);
        }
    }
}
