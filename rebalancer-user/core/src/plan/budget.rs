//! How many of the chosen may be moved now.

use std::{collections::BTreeMap, time::Duration};

use super::{
    BudgetOf, Charge, ClusterShare, Forecast, Group, Ledger, Ramp, SkipReason,
    fair_queue::{Queue, Queues},
    forecast::Pace,
    groups::Groups,
    matches::Matches,
    slots::Slots,
};
use crate::{
    policy::{Budget, Mode, Policy, RuleName},
    snapshot::{EndpointKey, KernelTime},
};

/// What a candidate's move is counted against, besides the node: by its index.
#[derive(Clone, Copy)]
pub(super) struct Account {
    pub(super) queue: usize,
    group: usize,
    /// Under its rule.
    under_rule: usize,
    endpoint: usize,
}

/// Who may be moved: what is counted against budgets, and how many connections that has.
pub(super) struct Population<'a> {
    node: u64,
    pub(super) queues: Queues<'a>,
    groups: Vec<(&'a Group, u64)>,
    /// Of each group under each rule: whose, and this node's part of the Service's budget if others
    /// have parts of it.
    under_rules: Vec<(&'a RuleName, &'a Group, Option<ClusterShare>)>,
    endpoints: Vec<(EndpointKey, u64)>,
    /// By the index of an endpoint and its rule.
    accounts: Vec<Account>,
}

impl<'a> Population<'a> {
    pub(super) fn of(matches: &Matches<'a>, groups: &'a Groups) -> Self {
        let mut population = Self {
            node: u64::try_from(matches.all.len()).unwrap_or(u64::MAX),
            queues: Queues::default(),
            groups: Vec::new(),
            under_rules: Vec::new(),
            endpoints: Vec::new(),
            accounts: Vec::new(),
        };
        let under_rules = groups
            .iter()
            .map(|group| (&group.rule, &*group.name, group.cluster));
        population.under_rules = under_rules.collect();
        // One group under two rules is one.
        let mut indexes: BTreeMap<&Group, usize> = BTreeMap::new();
        let of_groups = groups.iter().map(|group| {
            let index = *indexes.entry(&group.name).or_insert_with(|| {
                population.groups.push((&group.name, 0));
                population.groups.len() - 1
            });
            population.groups[index].1 += group.connections;
            index
        });
        let of_groups: Vec<usize> = of_groups.collect();
        let mut endpoints: Vec<Option<usize>> = vec![None; matches.endpoints.len()];
        for (pair, group) in matches.pairs.iter().zip(groups.indexes()) {
            let endpoint = *endpoints[pair.endpoint_index].get_or_insert_with(|| {
                let connections = matches.endpoints[pair.endpoint_index];
                population.endpoints.push((pair.endpoint, connections));
                population.endpoints.len() - 1
            });
            let namespace = pair.who.pod().map(|pod| pod.namespace.as_str());
            population.accounts.push(Account {
                queue: population
                    .queues
                    .add((pair.rule.name().as_str(), namespace)),
                group: of_groups[*group],
                under_rule: *group,
                endpoint,
            });
        }
        population
    }

    /// That of the pair with this index.
    pub(super) fn account(&self, pair: usize) -> Account {
        self.accounts[pair]
    }
}

/// What is left of the budgets of one mode.
pub(super) struct Allowance<'a> {
    mode: Mode,
    budget: Budget,
    population: &'a Population<'a>,
    interval: Duration,
    node: Bucket,
    pub(super) slots: Slots,
    /// What the rule that may move most has of the budgets.
    widest: Option<Ramp>,
    /// The longest ramp of those that asked.
    ramp: Option<Ramp>,
    /// By the group's index, once it was asked for; and so on.
    groups: Vec<Option<Bucket>>,
    shares: Vec<Option<Bucket>>,
    endpoints: Vec<Option<Bucket>>,
    spent: Spent<'a>,
}

/// One budget.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    limit: u64,
    spent: u64,
    /// Of what is spent, what was taken now.
    taken: u64,
    asked: u64,
}

/// Moves within the window, and those of them that are not there any more.
#[derive(Default)]
struct Spent<'a> {
    queues: BTreeMap<Queue<'a>, u64>,
    groups: BTreeMap<&'a Group, (u64, u64)>,
    /// Of these, by rule: those that balance chose.
    balanced: BTreeMap<(&'a RuleName, &'a Group), u64>,
    endpoints: BTreeMap<EndpointKey, (u64, u64)>,
    all: u64,
}

impl<'a> Spent<'a> {
    fn add(mut self, charge: &'a Charge) -> Self {
        let group = self.groups.entry(&charge.group).or_default();
        *group = (group.0 + 1, group.1 + u64::from(charge.is_away()));
        if charge.share > 0 {
            let key = (&charge.rule, &*charge.group);
            *self.balanced.entry(key).or_default() += 1;
        }
        let endpoint = self.endpoints.entry(charge.endpoint).or_default();
        *endpoint = (endpoint.0 + 1, endpoint.1 + u64::from(charge.has_left()));
        self.all += 1;
        self
    }
}

impl Bucket {
    fn new(limit: u64, spent: u64) -> Self {
        Self {
            limit,
            spent,
            ..Self::default()
        }
    }

    fn limit(self, ramp: Option<Ramp>) -> u64 {
        ramp.map_or(self.limit, |ramp| ramp.of_budget(self.limit))
    }
}

impl<'a> Allowance<'a> {
    pub(super) fn new(
        policy: &Policy,
        mode: Mode,
        ledger: &'a Ledger,
        population: &'a Population<'a>,
        now: KernelTime,
    ) -> Self {
        let budget = policy.budget();
        let max_in_flight = u64::from(budget.max_in_flight().get());
        // What is only reported is never in flight; a round of it is as large as a real one.
        let slots = if mode == Mode::DryRun {
            Slots::all(&population.queues, max_in_flight)
        } else {
            Slots::beside(ledger, &population.queues, max_in_flight)
        };
        let mut spent = ledger
            .charges(mode, budget.window(), now)
            .fold(Spent::default(), Spent::add);
        for (rule, namespace) in ledger.turns(mode, budget.window(), now) {
            *spent.queues.entry((rule.as_str(), namespace)).or_default() += 1;
        }
        Self {
            mode,
            budget,
            population,
            interval: policy.interval(),
            node: Bucket::new(budget.per_node().of(population.node), spent.all),
            slots,
            widest: match mode {
                Mode::Enforce => Ramp::widest(policy, ledger, now),
                Mode::DryRun | Mode::Disabled => None,
            },
            ramp: None,
            groups: vec![None; population.groups.len()],
            shares: vec![None; population.under_rules.len()],
            endpoints: vec![None; population.endpoints.len()],
            spent,
        }
    }

    /// How many moves each queue of candidates had within the window.
    pub(super) fn turns(&self) -> &BTreeMap<Queue<'a>, u64> {
        &self.spent.queues
    }

    /// Takes only a slot: what must leave in time waits for no budget.
    ///
    /// # Errors
    /// None is free.
    pub(super) fn take_slot(&mut self, of: Account) -> Result<(), SkipReason> {
        self.node.asked += 1;
        self.slots.take(of.queue)?;
        self.node.taken += 1;
        Ok(())
    }

    /// Takes one move out of it, for a rule with this ramp. What is moved for its excess is also counted
    /// against this node's share of the Service's budget on all nodes; a limit is one on each node.
    ///
    /// # Errors
    /// Why there is none left.
    pub(super) fn take(
        &mut self,
        of: Account,
        ramp: Option<Ramp>,
        is_excess: bool,
    ) -> Result<(), SkipReason> {
        let (budget, population, spent) = (self.budget, self.population, &self.spent);
        let longest = self.ramp.into_iter().chain(ramp);
        self.ramp = longest.max_by_key(|ramp| ramp.whole_in);
        // Those that were moved away and are not seen again are of its connections still, as a pod
        // that is disrupted is of its Deployment.
        let group = self.groups[of.group].get_or_insert_with(|| {
            let (group, connections) = population.groups[of.group];
            let (spent, away) = spent.groups.get(group).copied().unwrap_or_default();
            Bucket::new(budget.per_service().of(connections + away), spent)
        });
        let endpoint = self.endpoints[of.endpoint].get_or_insert_with(|| {
            let (endpoint, connections) = population.endpoints[of.endpoint];
            let (spent, left) = spent.endpoints.get(&endpoint).copied().unwrap_or_default();
            Bucket::new(budget.per_endpoint().of(connections + left), spent)
        });
        let (rule, name, cluster) = population.under_rules[of.under_rule];
        let share = cluster.filter(|_| is_excess).map(|cluster| {
            self.shares[of.under_rule].get_or_insert_with(|| {
                let whole = budget.per_service().of(cluster.connections);
                let spent = spent.balanced.get(&(rule, name)).copied();
                Bucket::new(cluster.share.of(whole), spent.unwrap_or_default())
            })
        });
        let mut bounds = [
            Some((BudgetOf::Node, &mut self.node)),
            Some((BudgetOf::Service, group)),
            Some((BudgetOf::Endpoint, endpoint)),
            share.map(|share| (BudgetOf::Share, share)),
        ];
        for (_, bound) in bounds.iter_mut().flatten() {
            bound.asked += 1;
        }
        for (of, bound) in bounds.iter().flatten() {
            let moves = bound.limit(ramp);
            if bound.spent >= moves {
                return Err(SkipReason::Budget {
                    of: *of,
                    moves,
                    whole: bound.limit,
                    window: budget.window(),
                });
            }
        }
        self.slots.take(of.queue)?;
        for (_, bound) in bounds.into_iter().flatten() {
            bound.spent += 1;
            bound.taken += 1;
        }
        Ok(())
    }

    /// How long it makes take what was asked of it; none if nothing was.
    pub(super) fn forecast(&self) -> Option<Forecast> {
        let pace = |limit: u64| Pace {
            limit,
            max_in_flight: self.budget.max_in_flight().get().into(),
            window: self.budget.window(),
            interval: self.interval,
        };
        // What was asked includes what was taken, and that is spent.
        let last = |bound: &Bucket| {
            let before = bound.spent.saturating_sub(bound.taken);
            pace(bound.limit.min(self.node.limit)).last_start(before + bound.asked)
        };
        let sum = |bounds: &mut dyn Iterator<Item = &Bucket>| {
            bounds.fold(0_u64, |sum, bound| sum.saturating_add(bound.limit))
        };
        let tightest = self
            .node
            .limit
            .min(sum(&mut self.groups.iter().flatten()))
            .min(sum(&mut self.endpoints.iter().flatten()));
        let parts = self.groups.iter().chain(&self.shares);
        let parts = parts.chain(&self.endpoints).flatten();
        let lasts = parts.chain([&self.node]).map(last).max();
        let until_whole = self.ramp.map_or(Duration::ZERO, |ramp| ramp.whole_in);
        (self.node.asked > 0).then(|| Forecast {
            mode: self.mode,
            chosen: self.node.asked,
            now: self.node.taken,
            per_window: pace(tightest).per_window(),
            window: self.budget.window(),
            // As if nothing were moved until then.
            lasts: lasts.unwrap_or_default().saturating_add(until_whole),
            ramp: self.ramp,
        })
    }

    /// Moves that the node's window still has.
    pub(super) fn left(&self) -> u64 {
        let limit = self.node.limit(self.widest);
        limit.saturating_sub(self.node.spent)
    }
}
