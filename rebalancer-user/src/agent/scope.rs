//! Which sockets are recorded, from the policy: the kernel half is told ports and cgroups as bits,
//! and what the policy means by them is decided here.

use std::{collections::BTreeMap, ops::RangeInclusive};

use rebalancer_common::{GROUPS, class};

use crate::{
    bpf::{CgroupPaths, Tracking},
    policy::{CgroupGlobs, Policy, Rule, Sockets},
    snapshot::{CgroupId, CgroupPath},
};

/// Ports and the groups of rules that name them, a bit for each.
type Ports = Vec<(RangeInclusive<u16>, u8)>;

/// What a policy wants recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    exclude: CgroupGlobs,
    /// Of rules that name the same cgroups, from the second on; the first names none.
    groups: Vec<Vec<CgroupGlobs>>,
    /// `None`: all of them.
    ports: Option<Ports>,
}

impl Scope {
    pub(super) fn of(policy: &Policy) -> Self {
        let track = policy.track();
        let mut scope = Self {
            exclude: track.exclude_cgroups().clone(),
            ..Self::default()
        };
        if track.sockets() == Sockets::Matched {
            let ports = policy.rules().iter().flat_map(|rule| {
                let group = scope.group_of(rule);
                ports_of(rule).map(move |range| (range, 1 << group))
            });
            scope.ports = Some(ports.collect());
        }
        scope
    }

    /// The number of the rule's group. There are not without end: the last is for all the others,
    /// and records what any of them may mean.
    fn group_of(&mut self, rule: &Rule) -> usize {
        let cgroups = rule.matches().cgroups();
        if cgroups.is_empty() {
            return 0;
        }
        let known = self.groups.iter().position(|group| group.contains(cgroups));
        let index = known.unwrap_or_else(|| {
            if self.groups.len() < GROUPS - 1 {
                self.groups.push(Vec::new());
            }
            let last = self.groups.len() - 1;
            self.groups[last].push(cgroups.clone());
            last
        });
        index + 1
    }

    /// Whether the kernel half must look at cgroups.
    fn names_cgroups(&self) -> bool {
        !self.exclude.is_empty() || !self.groups.is_empty()
    }

    /// What the kernel half shall know of each cgroup; `None` if it need not look.
    pub(super) fn classes(&self, paths: &CgroupPaths) -> Option<BTreeMap<CgroupId, u32>> {
        self.names_cgroups().then(|| {
            let class = |(id, path): (&CgroupId, &CgroupPath)| (*id, self.class(path));
            paths.iter().map(class).collect()
        })
    }

    fn class(&self, path: &CgroupPath) -> u32 {
        let groups = (1..).zip(&self.groups);
        let named = groups
            .filter(|(_, globs)| globs.iter().any(|globs| globs.name(path)))
            .fold(0, |bits, (group, _)| bits | 1 << group);
        let excluded = self.exclude.name(path);
        named | if excluded { class::EXCLUDED } else { 0 }
    }

    /// Whether the kernel half shall have a record of a socket on `port`. Of one in an unknown cgroup
    /// it has.
    pub(super) fn covers(&self, port: u16, cgroup: Option<&CgroupPath>) -> bool {
        let class = match cgroup.filter(|_| self.names_cgroups()) {
            Some(path) => self.class(path),
            None => class::ALL_GROUPS,
        };
        let wanted = self.ports.as_ref().is_none_or(|ports| {
            let named = class | class::ANY_CGROUP;
            ports
                .iter()
                .any(|(range, bit)| range.contains(&port) && named & u32::from(*bit) != 0)
        });
        wanted && class & class::EXCLUDED == 0
    }

    /// This scope as the kernel half is told it.
    pub(super) fn tracking(&self, policy: &Policy, paths: &CgroupPaths) -> Tracking {
        Tracking {
            loopback: policy.track().loopback(),
            max_per_endpoint: policy.track().max_per_endpoint().get(),
            max_per_node: policy.track().max_per_node().get(),
            only_ports: self.ports.clone(),
            cgroups: self.classes(paths),
        }
    }
}

/// The ports that a rule names: all if it names none.
fn ports_of(rule: &Rule) -> impl Iterator<Item = RangeInclusive<u16>> + use<> {
    let ports = rule.matches().ports().to_vec();
    let any = ports.is_empty().then_some(0..=u16::MAX);
    let named = ports.into_iter().map(|p| p.first().get()..=p.last().get());
    named.chain(any)
}
