//! Which pod and container a cgroup is, by the names that kubelet and the container runtimes give
//! them. Pure.
//!
//! kubelet with cgroupfs and with systemd, `container` being containerd's, CRI-O's or Docker's:
//!
//! ```text
//! /kubepods/burstable/pod<uid>/<id>
//! /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope
//! ```
//!
//! Guaranteed pods have no part for their class. In front may stand anything: kubelet's
//! `--cgroup-root` (which systemd repeats in each name, as in `kubelet-kubepods.slice`), or the
//! cgroup of a node that is itself a container. Behind may stand anything too, for a pod may be
//! allowed to make cgroups of any name below its own: so the outermost pod is the one.

/// What a cgroup's path says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodCgroup {
    /// The pod's uid. That of a static pod is kubelet's own, not the API server's.
    pub(super) uid: String,
    /// The runtime's id of the container; none of the pod's own cgroup and of the runtime's helpers.
    pub(super) container: Option<String>,
}

impl PodCgroup {
    /// From a cgroup's path; `None` if it is no pod's.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        // The first folder of kubelet's decides; what is not a pod right there is none.
        let (slice, root) = parts.by_ref().find_map(|part| {
            let name = part.strip_suffix(".slice").unwrap_or(part);
            let is_root = name == "kubepods" || name.ends_with("-kubepods");
            is_root.then_some((name != part, name))
        })?;
        let first = parts.next()?;
        let (class, pod) = match class_of(first, root, slice) {
            Some(class) => (Some(class), parts.next()?),
            None => (None, first),
        };
        let uid = if slice {
            let prefix = match class {
                Some(class) => format!("{root}-{class}-pod"),
                None => format!("{root}-pod"),
            };
            let uid = pod.strip_prefix(&prefix)?.strip_suffix(".slice")?;
            // kubelet's own escape: `-` separates the names of slices.
            uid.replace('_', "-")
        } else {
            pod.strip_prefix("pod")?.to_owned()
        };
        is_uid(&uid).then(|| Self {
            uid,
            container: parts.next().and_then(container_of),
        })
    }

    /// From the text of `/proc/PID/cgroup`, which lists all hierarchies of v1 and v2.
    ///
    /// `Ok(None)` if no hierarchy knows of a pod. On hybrid hosts only some do.
    ///
    /// # Errors
    /// They name several pods: it is not known which is meant.
    pub(super) fn of_process(text: &str) -> Result<Option<Self>, Disagree> {
        let mut found: Option<Self> = None;
        for line in text.lines() {
            // hierarchy-ID:controller-list:cgroup-path
            let Some(pod) = line.splitn(3, ':').nth(2).and_then(Self::of_path) else {
                continue;
            };
            match &mut found {
                None => found = Some(pod),
                Some(known) if known.uid != pod.uid => return Err(Disagree),
                Some(known) if known.container.is_none() => *known = pod,
                Some(_) => {}
            }
        }
        Ok(found)
    }
}

/// Several pods where there should be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disagree;

fn class_of(part: &str, root: &str, slice: bool) -> Option<&'static str> {
    ["besteffort", "burstable"].into_iter().find(|class| {
        if slice {
            part == format!("{root}-{class}.slice")
        } else {
            part == *class
        }
    })
}

/// A UUID; of a static pod, kubelet's hash of its manifest. What it is worth the API server says.
fn is_uid(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(inner)
}

/// Of `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`, `crio-<id>` or `<id>`.
fn container_of(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = ["cri-containerd-", "crio-", "docker-"]
        .into_iter()
        .find_map(|runtime| name.strip_prefix(runtime))
        .unwrap_or(name);
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f4c2a1e-7b1d-4c58-9c8e-2d4f7a6b1c33";
    const ID: &str = "4be3f0c2a4a7a1d3b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7";

    fn pod(path: &str) -> Option<(String, Option<String>)> {
        PodCgroup::of_path(path).map(|pod| (pod.uid, pod.container))
    }

    /// As nodes have them; `U` is the uid, `_U` the same in systemd's notation, `I` a container.
    fn filled(template: &str) -> String {
        template
            .replace("_U", &UID.replace('-', "_"))
            .replace('U', UID)
            .replace('I', ID)
    }

    #[test]
    fn real_paths_are_read() {
        let both = Some((UID.to_owned(), Some(ID.to_owned())));
        for template in [
            // cgroupfs: containerd, CRI-O, guaranteed, kubelet's --cgroup-root, kind.
            "/kubepods/burstable/podU/I",
            "/kubepods/besteffort/podU/crio-I",
            "/kubepods/podU/I",
            "/kubelet/kubepods/burstable/podU/I",
            "/docker/I/kubelet/kubepods/besteffort/podU/I",
            "/rebalancer-lab-1/kubepods/burstable/podU/I",
            // systemd: containerd, CRI-O, Docker, guaranteed, kubelet's --cgroup-root, kind.
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_U.slice/cri-containerd-I.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod_U.slice/crio-I.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod_U.slice/docker-I.scope",
            "/kubepods.slice/kubepods-pod_U.slice/cri-containerd-I.scope",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod_U.slice/cri-containerd-I.scope",
            "/docker/I/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod_U.slice/cri-containerd-I.scope",
            "/system.slice/docker-I.scope/kubepods.slice/kubepods-pod_U.slice/crio-I.scope",
            // Read from inside a cgroup namespace beside it; cgroups that the container has made.
            "/../../kubepods/burstable/podU/I",
            "/kubepods/burstable/podU/I/init.scope",
            "/kubepods.slice/kubepods-pod_U.slice/crio-I.scope/container/a/b",
        ] {
            assert_eq!(pod(&filled(template)), both, "{template}");
        }
        let pod_alone = Some((UID.to_owned(), None));
        for template in [
            "/kubepods/burstable/podU",
            "/kubepods/burstable/podU/init.scope",
            "/kubepods.slice/kubepods-pod_U.slice",
            "/kubepods.slice/kubepods-pod_U.slice/crio-conmon-I.scope",
        ] {
            assert_eq!(pod(&filled(template)), pod_alone, "{template}");
        }
        let static_pod = "/kubepods/burstable/pod7d0cbcf2a92cc55b2d5b1eb3cd4f6f10/".to_owned() + ID;
        assert_eq!(
            pod(&static_pod).unwrap().0,
            "7d0cbcf2a92cc55b2d5b1eb3cd4f6f10"
        );
    }

    #[test]
    fn what_is_no_pod_is_none() {
        for template in [
            "",
            "/",
            "/init.scope",
            "/system.slice/ssh.service",
            "/system.slice/kubelet.service",
            "/system.slice/docker-I.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/podU",
            "/machine.slice/libpod-I.scope",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods/burstable/pod",
            "/kubepods/burstable/pod../I",
            "/kubepods/burstable/podU extra/I",
            "/kubepods/guaranteed/podU/I",
            "/kubepods/podburst/../podU",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod_U.slice/I",
            "/kubepods.slice/kubepods-burstable-pod_U.slice/I",
            "/kubepods.slice/burstable/pod_U/I",
            "/kubepods.slice/podU/I",
            "/mykubepods/burstable/podU/I",
            "/podU/I",
        ] {
            let read = pod(&filled(template));
            let none = read.is_none() || template.contains("podburst");
            assert!(none, "{template}: {read:?}");
            assert!(read.is_none_or(|(uid, _)| uid != UID), "{template}");
        }
    }

    /// What a pod that may make cgroups can make, and a process that joined them.
    #[test]
    fn a_pod_that_imitates_another_below_its_own_stays_itself() {
        let victim = "ffffffff-ffff-4fff-8fff-ffffffffffff";
        let victims = victim.replace('-', "_");
        for below in [
            format!("kubepods/burstable/pod{victim}/{ID}"),
            format!("pod{victim}/{ID}"),
            format!("kubepods.slice/kubepods-pod{victims}.slice/cri-containerd-{ID}.scope"),
            format!("../../pod{victim}/{ID}"),
        ] {
            for own in [
                "/kubepods/burstable/podU/I",
                "/kubepods.slice/kubepods-pod_U.slice/crio-I.scope",
                "/kubepods/burstable/podU",
            ] {
                let path = format!("{}/{below}", filled(own));
                assert_eq!(pod(&path).unwrap().0, UID, "{path}");
            }
        }
    }

    #[test]
    fn a_process_is_read_on_v1_hybrid_and_v2() {
        let both = Ok(Some(PodCgroup {
            uid: UID.to_owned(),
            container: Some(ID.to_owned()),
        }));
        let v2 = "0::/kubepods/burstable/podU/I\n";
        let v1 = "12:memory:/kubepods/burstable/podU/I\n2:cpu,cpuacct:/kubepods/burstable/podU/I\n\
                  1:name=systemd:/kubepods/burstable/podU/I\n";
        let hybrid = format!("{v1}0::/system.slice/containerd.service\n");
        let systemd = "5:pids:/kubepods.slice/kubepods-pod_U.slice/cri-containerd-I.scope\n0::/\n";
        let pod_first = "9:pids:/kubepods/podU\n8:cpu:/kubepods/podU/I\n";
        for text in [v2, v1, &hybrid, systemd, pod_first] {
            assert_eq!(PodCgroup::of_process(&filled(text)), both, "{text}");
        }
        for text in [
            "",
            "0::/\n",
            "0::/init.scope\n4:pids:/user.slice\n",
            "nonsense",
            ":\n::\n",
        ] {
            assert_eq!(PodCgroup::of_process(text), Ok(None), "{text}");
        }
        let other = "0::/kubepods/burstable/podU/I\n4:pids:/kubepods/podffff/I\n";
        assert_eq!(PodCgroup::of_process(&filled(other)), Err(Disagree));
    }

    fn any_uid() -> impl Strategy<Value = String> {
        "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    }

    fn any_part() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z0-9._@:-]{1,20}",
            Just("..".to_owned()),
            Just("system.slice".to_owned()),
            "docker-[0-9a-f]{64}\\.scope",
            Just("kubelet.slice".to_owned()),
        ]
    }

    /// A pod's cgroup as any kubelet names it, its class and root folder chosen at random.
    fn any_pod_path(uid: String) -> impl Strategy<Value = String> {
        let class = prop::sample::select(vec!["", "burstable", "besteffort"]);
        let root = prop::sample::select(vec!["kubepods", "kubelet-kubepods", "a-b-kubepods"]);
        (any::<bool>(), class, root).prop_map(move |(systemd, class, root)| {
            let dash = if class.is_empty() { "" } else { "-" };
            let slash = if class.is_empty() { "" } else { "/" };
            if systemd {
                let uid = uid.replace('-', "_");
                let class_slice = match class {
                    "" => String::new(),
                    class => format!("/{root}-{class}.slice"),
                };
                format!("{root}.slice{class_slice}/{root}{dash}{class}-pod{uid}.slice")
            } else {
                format!("{root}/{class}{slash}pod{uid}")
            }
        })
    }

    proptest! {
        #[test]
        fn the_outermost_pod_is_the_one(
            (uid, path) in any_uid().prop_flat_map(|uid| (Just(uid.clone()), any_pod_path(uid))),
            inner in any_uid().prop_flat_map(any_pod_path),
            front in prop::collection::vec(any_part(), 0..4), behind in prop::collection::vec(any_part(), 0..3),
        ) {
            prop_assume!(front.iter().all(|part| !part.contains("kubepods")));
            let path = format!("/{}/{path}/{}/{inner}", front.join("/"), behind.join("/"));
            prop_assert_eq!(PodCgroup::of_path(&path).map(|pod| pod.uid), Some(uid), "{}", path);
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,200}", lines in "[0-9:a-z/.\n-]{0,200}") {
            for uid in [PodCgroup::of_path(&text), PodCgroup::of_process(&lines).ok().flatten()].into_iter().flatten() {
                prop_assert!(is_uid(&uid.uid));
            }
        }
    }
}
