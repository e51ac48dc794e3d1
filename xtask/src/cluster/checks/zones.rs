//! A Service whose traffic stays in zones: what is compared is what one zone's clients share.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, State,
    agents::moved_on,
    balance::{MOST_MOVES, REPORT_EVERY, ROUNDS, balance, least, wait_balanced},
    policy, traffic,
    workload::{NEAR_EAST, NEAR_WEST, Workload},
};
use crate::cluster::kubectl;

const LABEL: &str = "topology.kubernetes.io/zone";
/// Each node of a zone has so many replicas.
const REPLICAS: usize = 2;

/// Two nodes are one zone, the third is another. The first begins with one node.
pub(super) fn compared_within(state: &mut State) -> Outcome {
    let nodes: Vec<String> = state.nodes().collect();
    let [first, second, other] = nodes.as_slice() else {
        anyhow::bail!("{} nodes instead of three", nodes.len());
    };
    for (node, zone) in [(first, "west"), (second, "west"), (other, "east")] {
        kubectl::run(&format!("label node {node} {LABEL}={zone}"))?;
    }
    kubectl::run(&format!("cordon {second}"))?;
    let found = compared([first, second, other]);
    kubectl::run(&format!("uncordon {second}"))?;
    kubectl::run("delete pod near-west near-east --ignore-not-found")?;
    kubectl::run("delete deploy/near service/near --ignore-not-found")?;
    for node in [first, second, other] {
        kubectl::run(&format!("label node {node} {LABEL}-"))?;
    }
    found
}

/// The pods of the Service on some nodes.
fn pods_on(nodes: &[&String]) -> Result<Vec<String>> {
    let list: Value = serde_json::from_str(&kubectl::run("get pods -l app=near -o json")?)?;
    let pods = list["items"].as_array().context("a list of pods")?;
    let is_there = |pod: &&Value| nodes.iter().any(|node| pod["spec"]["nodeName"] == **node);
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
    Ok(pods.iter().filter(is_there).filter_map(name).collect())
}

/// What its client's connections are on.
fn answering(client: Workload) -> Result<BTreeSet<String>> {
    Ok(client.report()?.connections.into_keys().collect())
}

fn compared([first, second, other]: [&String; 3]) -> Outcome {
    let all = [first.clone(), second.clone(), other.clone()];
    let rule = format!("match: {{services: [default/near]}}\n  {}", balance());
    policy::enforce(&policy::with_rule("near", &rule, 300))?;
    kubectl::apply(include_str!("../../../cluster/zones.yaml"))?;
    NEAR_WEST.scale(2 * REPLICAS)?;
    let east: BTreeSet<String> = pods_on(&[other])?.into_iter().collect();
    ensure!(east.len() == REPLICAS, "{east:?} on {other}");
    for client in [NEAR_WEST, NEAR_EAST] {
        client.apply()?;
        client.wait_answered()?;
    }
    ensure!(
        answering(NEAR_EAST)? == east && answering(NEAR_WEST)?.is_disjoint(&east),
        "traffic leaves its zone: {:?}, {:?}",
        NEAR_WEST.report()?.connections,
        NEAR_EAST.report()?.connections
    );
    // Chance may have made one of two hold too much.
    std::thread::sleep(REPORT_EVERY);
    let (before, of_east, skewed) = (moved_on(&all)?, moved_on(&all[2..])?, NEAR_WEST.report()?);
    kubectl::run(&format!("uncordon {second}"))?;
    NEAR_WEST.scale(3 * REPLICAS)?;
    let west = pods_on(&[first, second])?;
    let (_, last) = wait_balanced(NEAR_WEST, &west, REPORT_EVERY * ROUNDS)
        .context("in the zone of two nodes")?;
    // Nothing more, and nothing in the zone where nothing has changed.
    std::thread::sleep(REPORT_EVERY);
    let there = moved_on(&all[2..])? - of_east;
    ensure!(
        there == 0,
        "{there} moves in the zone of {other}, whose replicas are even: by the load of the other zone"
    );
    let moves = moved_on(&all)? - before;
    let least = least(&skewed, west.len());
    // Of so few chance may take some more.
    ensure!(
        moves as f64 <= least * MOST_MOVES + 2.0 * least.sqrt(),
        "{moves} moves, where {least:.0} are the least: {last}"
    );
    let east = traffic::shares(&pods_on(&[other])?, &NEAR_EAST.report()?).line();
    let view = view_of_zone(first, west.len())?;
    Ok(format!(
        "{last} by {moves} moves of {least:.0} at least, by a mean of {view}; the other zone keeps {east}"
    ))
}

/// The mean that the node's view has: of its zone's endpoints alone.
fn view_of_zone(node: &str, endpoints: usize) -> Result<u64> {
    let object = kubectl::run(&format!("get nodebalance {node} -o json"))?;
    let object: Value = serde_json::from_str(&object)?;
    let views = object["status"]["services"].as_array().context("views")?;
    let of_zone = views.iter().find(|view| view["service"] == "default/near");
    let view = of_zone.context("a view of the Service")?;
    // A connection that has just been moved may count on two nodes.
    let total = view["total"].as_u64().context("a total")?;
    ensure!(
        view["zone"] == "west"
            && view["endpoints"] == endpoints
            && total < NEAR_WEST.connections + NEAR_EAST.connections / 2,
        "the view of {node} is not of its zone alone: {view}"
    );
    view["mean"].as_u64().context("a mean")
}
