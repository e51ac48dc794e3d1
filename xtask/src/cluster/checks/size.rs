//! The memory and CPU that many pods in the API cost an agent.

use std::{fmt::Write as _, time::Duration};

use anyhow::ensure;

use super::{Outcome, State, agents};
use crate::cluster::{kubectl, process};

const PODS: usize = 1_000;
/// The controller's maximum per slice.
const PER_SLICE: usize = 100;
const MEASURED: Duration = Duration::from_secs(20);

/// Creates pods that are never scheduled, as endpoints of one Service. Half of the slices place
/// them on a node of the cluster.
pub(super) fn many_pods(state: &mut State) -> Outcome {
    let node = state.nodes().next().unwrap_or_default();
    let (before, _) = agents::usage(&node)?;
    kubectl::apply(&objects(&node))?;
    process::wait("the objects", 120, || {
        let names = kubectl::run("get pods -l app=many -o name").ok()?;
        (names.lines().count() == PODS).then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(5));
    let (_, began) = agents::usage(&node)?;
    std::thread::sleep(MEASURED);
    let (resident, ended) = agents::usage(&node)?;
    let ticks = rustix::param::clock_ticks_per_second();
    let cpu = (ended - began) as f64 / ticks as f64 / MEASURED.as_secs_f64() * 100.0;
    let per_pod = resident.saturating_sub(before) as f64 / PODS as f64;
    ensure!(resident < 512 << 10, "{resident} KiB resident");
    for kind in ["pods", "services", "endpointslices"] {
        kubectl::run(&format!("delete {kind} -l app=many --wait=false --force"))?;
    }
    Ok(format!(
        "{:.1} MiB resident, {per_pod:.1} KiB more per pod; {cpu:.1} % of a CPU at an interval of 1 s",
        resident as f64 / 1024.0
    ))
}

fn objects(node: &str) -> String {
    let mut text = "\
apiVersion: v1
kind: Service
metadata: {name: many, labels: {app: many}}
spec: {ports: [{port: 80}]}
"
    .to_owned();
    for slice in 0..PODS / PER_SLICE {
        let _ = write!(
            text,
            "---\n\
             apiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\n\
             metadata: {{name: many-{slice}, labels: {{app: many, kubernetes.io/service-name: many}}}}\n\
             addressType: IPv4\n\
             ports: [{{port: 80}}]\n\
             endpoints:\n"
        );
        for index in 0..PER_SLICE {
            let pod = slice * PER_SLICE + index;
            let node = if slice % 2 == 0 { node } else { "elsewhere" };
            let _ = writeln!(
                text,
                "- {{addresses: [10.250.{}.{}], nodeName: {node}, conditions: {{ready: true}}, \
                 targetRef: {{kind: Pod, namespace: default, name: many-{pod}, uid: many-{pod}}}}}",
                pod / 250,
                pod % 250 + 1
            );
        }
    }
    for pod in 0..PODS {
        // Never scheduled: no kubelet tries to run them.
        let _ = write!(
            text,
            "---\n\
             apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{name: many-{pod}, labels: {{app: many, number: '{pod}'}}}}\n\
             spec:\n  \
               schedulingGates: [{{name: rebalancer.dev/never}}]\n  \
               containers: [{{name: none, image: none}}]\n"
        );
    }
    text
}
