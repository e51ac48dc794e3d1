//! How many of the chosen may be moved now.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use super::{
    Forecast, Group, Ledger, Ramp, SkipReason, fair_queue::Queue, forecast::Pace, groups::Groups,
    ledger::Charge, lookup::Lookup, slots::Slots,
};
use crate::{
    policy::{Budget, Mode, Policy},
    snapshot::{EndpointKey, KernelTime, Snapshot},
};

/// Of what a budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetOf {
    /// Of the node.
    Node,
    /// Of the Service, or of what shares a port where there are no Services.
    Service,
    /// Of the endpoint.
    Endpoint,
}

impl BudgetOf {
    /// The field in the policy file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "perNode",
            Self::Service => "perService",
            Self::Endpoint => "perEndpoint",
        }
    }
}

impl fmt::Display for BudgetOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many connections there are, of which budgets may be a share.
pub(super) struct Population {
    node: u64,
    groups: BTreeMap<Arc<Group>, u64>,
    endpoints: Lookup<EndpointKey, u64>,
}

impl Population {
    pub(super) fn of(snapshot: &Snapshot, groups: &Groups) -> Self {
        let mut there = Self {
            node: u64::try_from(snapshot.connections.len()).unwrap_or(u64::MAX),
            groups: BTreeMap::new(),
            endpoints: Lookup::default(),
        };
        for connection in &snapshot.connections {
            *there.endpoints.slot(connection.endpoint, || 0) += 1;
        }
        for shared in groups.iter() {
            let group = Arc::clone(&shared.group);
            *there.groups.entry(group).or_default() += shared.connections;
        }
        there
    }
}

/// What is left of the budgets of one mode.
pub(super) struct Allowance<'a> {
    mode: Mode,
    budget: Budget,
    there: &'a Population,
    interval: Duration,
    node: Bucket,
    pub(super) slots: Slots<'a>,
    /// What the rule that may move most has of the budgets.
    widest: Option<Ramp>,
    /// The longest ramp of those that asked.
    ramp: Option<Ramp>,
    groups: BTreeMap<Arc<Group>, Bucket>,
    endpoints: BTreeMap<EndpointKey, Bucket>,
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
    endpoints: BTreeMap<EndpointKey, (u64, u64)>,
    all: u64,
}

impl<'a> Spent<'a> {
    fn add(mut self, charge: &'a Charge) -> Self {
        let group = self.groups.entry(&charge.group).or_default();
        *group = (group.0 + 1, group.1 + u64::from(charge.is_away()));
        let endpoint = self.endpoints.entry(charge.endpoint).or_default();
        *endpoint = (endpoint.0 + 1, endpoint.1 + u64::from(charge.has_left()));
        self.all += 1;
        self
    }
}

impl Bucket {
    fn limit(self, ramp: Option<Ramp>) -> u64 {
        ramp.map_or(self.limit, |ramp| ramp.of_budget(self.limit))
    }
}

impl<'a> Allowance<'a> {
    pub(super) fn new(
        policy: &Policy,
        mode: Mode,
        ledger: &'a Ledger,
        there: &'a Population,
        now: KernelTime,
    ) -> Self {
        let budget = policy.budget();
        let max_in_flight = u64::from(budget.max_in_flight().get());
        // What is only told is never in flight; a round of it is as large as a real one.
        let slots = if mode == Mode::DryRun {
            Slots::all(max_in_flight)
        } else {
            Slots::beside(ledger, max_in_flight)
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
            there,
            interval: policy.interval(),
            node: Bucket {
                limit: budget.per_node().of(there.node),
                spent: spent.all,
                ..Bucket::default()
            },
            slots,
            widest: match mode {
                Mode::Enforce => Ramp::widest(policy, ledger, now),
                Mode::DryRun | Mode::Disabled => None,
            },
            ramp: None,
            groups: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            spent,
        }
    }

    /// How many moves each queue of candidates had within the window.
    pub(super) fn turns(&self) -> &BTreeMap<Queue<'a>, u64> {
        &self.spent.queues
    }

    /// Takes one move out of it: of this queue and group, at this endpoint, by a rule with this ramp.
    ///
    /// # Errors
    /// Why there is none left.
    pub(super) fn take(
        &mut self,
        queue: Queue<'a>,
        of: &Arc<Group>,
        at: EndpointKey,
        ramp: Option<Ramp>,
    ) -> Result<(), SkipReason> {
        let window = self.budget.window();
        let refused = |of: BudgetOf, bound: Bucket| {
            let moves = bound.limit(ramp);
            (bound.spent >= moves).then_some(SkipReason::Budget {
                of,
                moves,
                whole: bound.limit,
                window,
            })
        };
        self.ramp = self
            .ramp
            .into_iter()
            .chain(ramp)
            .max_by_key(|ramp| ramp.whole_in);
        self.node.asked += 1;
        let node = self.node;
        let group = *self.group(of);
        let endpoint = *self.endpoint(at);
        let bounds = [
            (BudgetOf::Node, node),
            (BudgetOf::Service, group),
            (BudgetOf::Endpoint, endpoint),
        ];
        if let Some(why) = bounds.into_iter().find_map(|(of, b)| refused(of, b)) {
            return Err(why);
        }
        self.slots.take(queue)?;
        let group = self.groups.get_mut(of);
        let endpoint = self.endpoints.get_mut(&at);
        for bound in [Some(&mut self.node), group, endpoint]
            .into_iter()
            .flatten()
        {
            bound.spent += 1;
            bound.taken += 1;
        }
        Ok(())
    }

    /// The group's bound, of which one more is asked. Those that were moved away and are not seen
    /// again are of its connections still, as a pod that is disrupted is of its Deployment.
    fn group(&mut self, group: &Arc<Group>) -> &Bucket {
        let (spent, there, budget) = (&self.spent, self.there, self.budget);
        let bound = self.groups.entry(Arc::clone(group)).or_insert_with(|| {
            let (spent, away) = spent.groups.get(&**group).copied().unwrap_or_default();
            let base = there.groups.get(group).copied().unwrap_or(0);
            Bucket {
                limit: budget.per_service().of(base + away),
                spent,
                ..Bucket::default()
            }
        });
        bound.asked += 1;
        bound
    }

    fn endpoint(&mut self, endpoint: EndpointKey) -> &Bucket {
        let (spent, there, budget) = (&self.spent, self.there, self.budget);
        let bound = self.endpoints.entry(endpoint).or_insert_with(|| {
            let (spent, left) = spent.endpoints.get(&endpoint).copied().unwrap_or_default();
            let base = there.endpoints.get(&endpoint).copied().unwrap_or(0);
            Bucket {
                limit: budget.per_endpoint().of(base + left),
                spent,
                ..Bucket::default()
            }
        });
        bound.asked += 1;
        bound
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
            .min(sum(&mut self.groups.values()))
            .min(sum(&mut self.endpoints.values()));
        let parts = self.groups.values().chain(self.endpoints.values());
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
