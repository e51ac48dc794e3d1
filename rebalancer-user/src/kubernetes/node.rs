//! Whether this is a node of Kubernetes: whether any of its processes is in a pod.

use std::{fs, path::Path};

use super::cgroup::PodCgroup;

/// The cgroups, as `/proc/PID/cgroup` has them, of a process that is in a pod; `None` if there is
/// no such process, or none that can be seen.
pub fn process_in_pod() -> Option<String> {
    look_through(Path::new("/proc"))
}

fn look_through(proc: &Path) -> Option<String> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok())
        })
        // What has ended meanwhile is in no pod.
        .filter_map(|entry| fs::read_to_string(entry.path().join("cgroup")).ok())
        .find_map(|text| line_of_pod(&text))
}

/// The line that names a pod. That several are named is no reason to doubt that there is one.
fn line_of_pod(text: &str) -> Option<String> {
    let named = |line: &&str| !matches!(PodCgroup::of_process(line), Ok(None));
    text.lines().find(named).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "pod0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33";

    fn with(processes: &[(&str, &str)]) -> Option<String> {
        let proc = tempfile::tempdir().unwrap();
        for (pid, cgroups) in processes {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cgroup"), cgroups).unwrap();
        }
        look_through(proc.path())
    }

    #[test]
    fn a_process_in_a_pod_shows_a_node_whatever_the_hierarchy() {
        let host = ("1", "0::/init.scope\n");
        let v2 = format!("0::/kubepods/burstable/{POD}/c\n");
        let v1 = format!("4:memory:/kubepods/{POD}/c\n0::/system.slice/containerd.service\n");
        assert_eq!(with(&[host, ("7", &v2)]).as_deref(), Some(v2.trim_end()));
        let line = format!("4:memory:/kubepods/{POD}/c");
        assert_eq!(with(&[host, ("7", &v1)]), Some(line));
    }

    #[test]
    fn kubelet_alone_containers_and_what_is_no_process_show_none() {
        let pod = format!("0::/kubepods/{POD}\n");
        for processes in [
            vec![],
            vec![("1", "0::/\n"), ("9", "0::/system.slice/kubelet.service\n")],
            vec![("9", "0::/system.slice/docker-0.scope\n")],
            vec![("self", &*pod), ("sys", &pod)],
        ] {
            assert_eq!(with(&processes), None, "{processes:?}");
        }
    }
}
