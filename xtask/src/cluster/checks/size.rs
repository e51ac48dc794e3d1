//! What many pods in the API cost an agent.

use std::{fmt::Write as _, time::Duration};

use anyhow::ensure;

use super::{Outcome, Story, agents};
use crate::cluster::{kubectl, process};

const PODS: usize = 1_000;
/// As many as the controllers put into one slice.
const IN_A_SLICE: usize = 100;
const WATCHED: Duration = Duration::from_secs(20);

/// Pods as objects: of a node that has no kubelet, and endpoints of one Service. Half of their
/// slices say that the pod is on a node of the cluster's.
pub(super) fn many_pods(story: &mut Story) -> Outcome {
    let node = story.nodes().next().unwrap_or_default();
    let (before, _) = agents::usage(&node)?;
    kubectl::apply(&objects(&node))?;
    process::wait("the objects", 120, || {
        let count = ["get", "pods", "-l", "app=many", "-o", "name"];
        (kubectl::output(&count).ok()?.lines().count() == PODS).then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(5));
    let (_, began) = agents::usage(&node)?;
    std::thread::sleep(WATCHED);
    let (resident, ended) = agents::usage(&node)?;
    let ticks = rustix::param::clock_ticks_per_second();
    let cpu = (ended - began) as f64 / ticks as f64 / WATCHED.as_secs_f64() * 100.0;
    let per_pod = resident.saturating_sub(before) as f64 / PODS as f64;
    ensure!(resident < 512 << 10, "{resident} KiB resident");
    for kind in ["pods", "services", "endpointslices"] {
        let delete = ["delete", kind, "-l", "app=many", "--wait=false", "--force"];
        kubectl::output(&delete)?;
    }
    Ok(format!(
        "{:.1} MiB resident, {per_pod:.1} KiB more a pod; {cpu:.1} % of a CPU at an interval of 1 s",
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
    for slice in 0..PODS / IN_A_SLICE {
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
        for index in 0..IN_A_SLICE {
            let pod = slice * IN_A_SLICE + index;
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
        // Never scheduled: no kubelet asks for what cannot be run.
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
