//! What a snapshot adds to what is known: rates, returns, and endpoints that hold too much.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Fate, Ledger, Reappearance,
    fill::Listed,
    groups::{GroupLoad, Groups},
    ledger::SUMS,
    matches::Matches,
};
use crate::{
    policy::{Policy, Rule, RuleName},
    snapshot::{EndpointKey, KernelTime, Netns, NetnsCookie, Snapshot},
};

impl Ledger {
    /// Takes in what connections have carried so far, where the clients of moves came, and which
    /// endpoints hold too much. Call it with each snapshot, before its plan: rates need two
    /// listings at least.
    pub fn observe(&mut self, policy: &Policy, snapshot: &Snapshot) {
        self.forget_namespaces_before(&snapshot.namespaces);
        let matches = Matches::of(policy, snapshot);
        self.rates.observe(policy, &matches, snapshot.taken);
        self.flows.observe(policy, &matches, snapshot.taken);
        let spreads = |rule: &Rule| {
            let limits = rule.limits();
            let by_weight = limits.max_bytes().is_some() || limits.max_rate().is_some();
            by_weight || rule.balance().is_some()
        };
        let rules = policy.rules().iter().filter(|rule| spreads(rule));
        let tested: BTreeSet<&RuleName> = rules.map(Rule::name).collect();
        let is_tested = |rule: &RuleName| tested.contains(rule);
        for (began, cookie, back) in self.returns.observe(snapshot, is_tested) {
            if let Some(charge) = self.made.get_mut(&(began, cookie)) {
                charge.fate = match back {
                    Reappearance::Returned => Fate::Returned,
                    Reappearance::Elsewhere => Fate::Elsewhere,
                    Reappearance::Unseen => Fate::Away,
                };
            }
        }
        if policy.rules().iter().any(|rule| rule.balance().is_some()) {
            let groups = Groups::of(policy, &matches, snapshot, self);
            self.remember(&groups, snapshot.taken);
        } else {
            self.sums.clear();
            self.shedding.clear();
            self.fills.clear();
        }
    }

    /// Forgets what is known of endpoints whose namespace is another one by now, with the same inode:
    /// another pod's. What they have spent of budgets stays spent.
    fn forget_namespaces_before(&mut self, now: &BTreeMap<Netns, NetnsCookie>) {
        let mut gone = BTreeSet::new();
        for (netns, cookie) in now {
            let before = self.namespaces.insert(*netns, *cookie);
            if before.is_some_and(|before| before != *cookie) {
                gone.insert(*netns);
            }
        }
        if gone.is_empty() {
            return;
        }
        let is_gone = |endpoint: &EndpointKey| gone.contains(&endpoint.netns);
        self.returns.forget(is_gone);
        self.fills.forget(is_gone);
        self.shedding.retain(|(_, endpoint)| !is_gone(endpoint));
    }

    /// Sums for the next mean, and endpoints that go on until they are at their stop. One at its
    /// stop may be above it in a moment if its moved clients have not all been seen again, or if
    /// another has more than chance explains: a part of what that one sheds comes here.
    fn remember(&mut self, groups: &Groups, now: KernelTime) {
        let mut sums = std::mem::take(&mut self.sums);
        let mut shedding = BTreeSet::new();
        for group in groups.iter() {
            let Some(balance) = group.balance else {
                continue;
            };
            let key = (group.rule.clone(), Arc::clone(&group.name));
            let mut last = sums.remove(&key).unwrap_or_default();
            last.push_back(group.sum);
            while last.len() > SUMS {
                last.pop_front();
            }
            self.sums.insert(key, last);
            let Ok(facts) = group.facts else { continue };
            for (endpoint, at) in group.endpoints.iter().filter(|(_, at)| at.ready) {
                let key = (group.rule.clone(), *endpoint);
                let keeps = facts.keeps(at.load, balance.tolerance(), at.sheds);
                let is_hot = |start| facts.most >= start;
                let goes_on = || {
                    let start = facts.start(balance.tolerance());
                    self.is_unsettled(&key) || start.is_some_and(is_hot)
                };
                if keeps.is_some() || at.sheds && goes_on() {
                    shedding.insert(key);
                }
            }
        }
        let listed = groups.iter().map(|group| {
            let key = (group.rule.clone(), Arc::clone(&group.name));
            (key, listed(group, &shedding))
        });
        self.fills.observe(listed, now);
        self.shedding = shedding;
    }
}

fn listed(group: &GroupLoad, shedding: &BTreeSet<(RuleName, EndpointKey)>) -> Option<Listed> {
    let is_shedding = |endpoint: &EndpointKey| shedding.contains(&(group.rule.clone(), *endpoint));
    let ready = group.endpoints.iter().filter(|(_, at)| at.ready);
    Some(Listed {
        by: group.balance?.by(),
        facts: group.facts.ok()?,
        ready: ready.map(|(key, _)| *key).collect(),
        sheds: !shedding.is_empty() && group.endpoints.keys().any(is_shedding),
    })
}
