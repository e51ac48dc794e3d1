//! A pass: list the connections, decide, start moves; and keep what the kernel half knows up to date.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{
    Agent,
    fact::{Fact, Pass},
    kept::assume_change_before_first_list,
    looking::Observed,
    questions::Inspection,
    scope,
};
use crate::{
    bpf::{self, Adopt},
    counting::Counting,
    host::{CgroupPaths, CgroupTree},
    kubernetes::Names,
    moves::Order,
    observe::Observation,
    plan::{Plan, decide, report},
    policy::{Mode, Policy},
    snapshot::{Connection, Cookie, Snapshot},
};

/// How often endpoints without listeners and connections are removed from the map.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// An observation under way, and what it is for.
pub(super) struct Look {
    purpose: Purpose,
    began: Instant,
    /// The cgroups were read before: what is accepted in one made since then is of no known one.
    paths: Arc<CgroupPaths>,
    /// Another policy was loaded since: it may need what was not read, and leave out what was.
    outdated: bool,
}

enum Purpose {
    Pass {
        /// When the pass began.
        began: Instant,
    },
    Requests(Vec<Inspection>),
}

/// What was seen, how long it took to walk, and how long the next pass waits for it.
struct Looks {
    observation: Observation,
    took: Duration,
    put_off: Duration,
}

impl Agent {
    /// A pass is due: once the look under way is complete, and walks have not taken more than their share.
    pub(super) fn tick(&mut self) {
        if Instant::now() >= self.next_pass {
            self.pass_is_due = true;
            self.look_next();
        }
    }

    /// Looks on behalf of a request.
    pub(super) fn look_for(&mut self, inspection: Inspection) {
        self.waiting.push(inspection);
        self.look_next();
    }

    /// Another policy was loaded.
    pub(super) fn look_again(&mut self) {
        self.everywhere = true;
        if let Some(look) = &mut self.look {
            look.outdated = true;
        }
    }

    /// Begins the next pass, or to answer requests, unless a look is under way.
    fn look_next(&mut self) {
        if self.look.is_some() {
            return;
        }
        let began = Instant::now();
        let (purpose, paths) = if std::mem::take(&mut self.pass_is_due) {
            self.journal.pass_began();
            self.tend_mover(began);
            self.keep_tracking();
            let paths = read_cgroups(&self.policy, &self.cgroups);
            (Purpose::Pass { began }, paths)
        } else if !self.waiting.is_empty() {
            // Another policy may name cgroups, and people want to see them.
            let requests = std::mem::take(&mut self.waiting);
            (Purpose::Requests(requests), self.cgroups.read())
        } else {
            return;
        };
        self.exclude(&paths);
        let look = Look {
            purpose,
            began: Instant::now(),
            paths: Arc::new(paths),
            outdated: false,
        };
        match self.tracker.within() {
            Ok(cgroup) => {
                let room = room(&self.policy, self.recorded);
                let everywhere = std::mem::take(&mut self.everywhere);
                let adopt = Adopt::Below { cgroup, room };
                let paths = Arc::clone(&look.paths);
                self.looking.order(adopt, paths, everywhere);
                self.look = Some(look);
            }
            Err(error) => self.has_looked(look, Err(error)),
        }
    }

    /// The look under way is complete.
    pub(super) fn observed(&mut self, observed: Observed) {
        if let Some(look) = self.look.take() {
            self.has_looked(look, observed);
        }
        self.look_next();
    }

    fn has_looked(&mut self, look: Look, observed: Observed) {
        match look.purpose {
            Purpose::Pass { .. } if look.outdated => self.pass_is_due = true,
            Purpose::Requests(requests) if look.outdated => self.waiting.extend(requests),
            Purpose::Pass { began } => {
                match self.take_in(observed, &look.paths, look.began) {
                    Ok(looks) => self.pass(began, looks),
                    Err(error) => self.journal.listing_failed(&error),
                }
                self.journal.pass_ended();
                self.publish();
            }
            Purpose::Requests(requests) => {
                let looks = self.take_in(observed, &look.paths, look.began);
                let snapshot = looks
                    .map(|looks| Arc::new(looks.observation.snapshot))
                    .map_err(|error| error.to_string());
                for inspection in requests {
                    self.answer(inspection, snapshot.clone());
                }
            }
        }
    }

    /// Puts off the next pass if this walk, or what others have walked since the last, took long; names what
    /// was found.
    fn take_in(
        &mut self,
        observed: Observed,
        paths: &CgroupPaths,
        began: Instant,
    ) -> Result<Looks, bpf::Error> {
        let mut observation = observed?;
        let put_off = self.walking.passed(self.kernel.walked());
        self.next_pass = Instant::now() + put_off;
        self.recorded = observation.snapshot.connections.len() as u64;
        let took = began.elapsed();
        self.report_faults(&observation);
        self.keep_house(&observation);
        self.leave_out(&mut observation, paths);
        if let Some(names) = &mut self.names {
            names.name(&mut observation.snapshot);
            assume_change_before_first_list(&mut observation.snapshot, &mut self.named_since);
        }
        self.drains.add_to(&mut observation.snapshot);
        if let Some(exchange) = &self.exchange {
            observation.snapshot.views = exchange.views();
        }
        Ok(Looks {
            observation,
            took,
            put_off,
        })
    }

    /// Decides, and starts moves.
    fn pass(
        &mut self,
        began: Instant,
        Looks {
            observation,
            took: listing,
            put_off,
        }: Looks,
    ) {
        self.look_for_pods(&observation.snapshot);
        let snapshot = &observation.snapshot;
        self.now = snapshot.taken;
        let listed = Instant::now();
        self.ledger.observe(&self.policy, snapshot);
        if self.ramp {
            self.ledger.enforce(&self.policy, self.now);
        } else {
            self.ledger.end_ramps();
        }
        let plan = decide(&self.policy, snapshot, &self.ledger, self.now);
        let deciding = listed.elapsed();
        self.follow_drains(&plan, snapshot, began);
        for recall in plan.recalls() {
            self.recall(recall);
        }
        // Also here, as an agent that has just started knows the namespaces only now.
        self.look_at_namespace();
        let knows_pauses = self.names.as_ref().is_none_or(Names::knows_namespaces);
        if self.pause.now().is_none() && knows_pauses {
            self.carry_out(&plan, snapshot);
        }
        self.exchange(snapshot);
        self.count(snapshot);
        for hold in self.ledger.take_new_holds() {
            self.journal.record(Fact::CooldownStarted(&hold));
            self.saved.changed();
        }
        self.ledger
            .prune(snapshot, self.policy.budget().window(), self.now);
        self.saved
            .write_if_due(&self.ledger, &self.policy_text, self.now);
        self.journal.passed(Pass {
            observation: &observation,
            plan: &plan,
            ledger: &self.ledger,
            duration: began.elapsed(),
            listing,
            deciding,
            put_off,
        });
    }

    /// Offers what this node's endpoints hold to the other nodes.
    fn exchange(&mut self, snapshot: &Snapshot) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        exchange.offer(report(&self.policy, snapshot, &self.ledger));
        let trouble = exchange.trouble();
        if trouble.is_some() != self.is_cut_off {
            self.is_cut_off = trouble.is_some();
            let trouble = trouble.as_deref();
            self.journal.record(Fact::ExchangeChanged { trouble });
        }
    }

    /// Starts the moves of a plan, or reports those that the mode forbids.
    fn carry_out(&mut self, plan: &Plan, snapshot: &Snapshot) {
        let connections = snapshot.connections.iter();
        let by_cookie: BTreeMap<Cookie, &Connection> = connections.map(|c| (c.cookie, c)).collect();
        for chosen in plan.moves() {
            match chosen.mode() {
                Mode::Enforce => {
                    // A plan chooses among what it was given.
                    let Some(connection) = by_cookie.get(&chosen.cookie()) else {
                        continue;
                    };
                    let order = Order {
                        chosen: chosen.clone(),
                        device: connection.device,
                        cgroup: connection.cgroup,
                    };
                    self.start_move(chosen, snapshot, order);
                }
                Mode::DryRun | Mode::Disabled => {
                    self.journal.record(Fact::WouldMove { chosen });
                    self.ledger.reported(chosen, self.now);
                    self.saved.changed();
                }
            }
        }
    }

    /// A pod may start on what was a plain host: from then on nothing is moved.
    fn look_for_pods(&mut self, snapshot: &Snapshot) {
        let unnamed = self.unnamed.as_mut();
        let Some(pod) = unnamed.and_then(|unnamed| unnamed.look_at_new(snapshot)) else {
            return;
        };
        self.journal.record(Fact::PodsWithoutNames { cgroup: &pod });
        self.unnamed = None;
        self.mode = self.mode.safest(Mode::DryRun);
        self.policy = self.policy.clone().with_mode_at_most(self.mode);
        self.drains.forget_requests();
        self.recall_all("there are pods on this node whose names are unknown");
    }

    /// Passes the connections to count on to the counting thread.
    fn count(&mut self, snapshot: &Snapshot) {
        if self.counting.is_none() && Counting::is_asked(&self.policy) {
            let pins = self.tracker.pins().to_owned();
            let anywhere = self.count_despite_fionread;
            let reports = self.counting_reports.clone();
            let (kernel, sends) = (Arc::clone(&self.kernel), Arc::clone(&self.sends));
            match Counting::start(kernel, pins, sends, anywhere, reports) {
                Ok(counting) => self.counting = Some(counting),
                Err(error) => self
                    .journal
                    .record(Fact::CountingNotStarted { error: &error }),
            }
        }
        if let Some(counting) = &self.counting {
            counting.ask(&self.policy, snapshot);
        }
    }

    /// Attaches our program again if another program was attached after it.
    fn keep_tracking(&mut self) {
        let now = Instant::now();
        if !self.last.is_due(now) {
            return;
        }
        match self.tracker.stay_last() {
            Ok(false) => self.last.intact(),
            Ok(true) => {
                let next_check = self.last.repaired(now);
                self.journal.record(Fact::AttachedAgain { next_check });
            }
            Err(error) => {
                warn!(%error, "cannot check whether our program is the last one attached")
            }
        }
    }

    /// Removes endpoints without listeners and connections from the map.
    fn keep_house(&mut self, observation: &Observation) {
        let now = observation.snapshot.taken;
        if now.since(self.kept) < HOUSEKEEPING {
            return;
        }
        self.kept = now;
        let empty = &observation.empty_endpoints;
        match self.empty_endpoints.forget(self.tracker.pins(), empty) {
            Ok(0) => {}
            Ok(count) => debug!(count, "removed endpoints without listeners and connections"),
            Err(error) => warn!(%error, "could not remove endpoints from the map"),
        }
    }

    /// Updates the excluded cgroups in the kernel half, as cgroups are created and removed.
    fn exclude(&mut self, paths: &CgroupPaths) {
        let Some(excluded) = scope::excluded(self.policy.track(), paths) else {
            return;
        };
        if let Err(error) = self.tracker.exclude(excluded) {
            warn!(%error, "could not update the excluded cgroups in the kernel");
        }
    }

    /// Leaves out what has a record that the policy does not want: its cgroup was not known when it
    /// was made, or the policy was another. The kernel frees it with its socket.
    fn leave_out(
        &self,
        Observation {
            snapshot,
            listeners,
            ..
        }: &mut Observation,
        paths: &CgroupPaths,
    ) {
        let track = self.policy.track();
        snapshot.connections.retain(|c| {
            let wanted = track.loopback() || !c.remote.ip().is_loopback();
            wanted && scope::covers(track, c.cgroup_path.as_ref())
        });
        listeners.retain(|(_, id)| scope::covers(track, paths.get(id)));
    }

    fn report_faults(&mut self, observation: &Observation) {
        for (&fault, &total) in &observation.faults {
            let before = self.faults.insert(fault, total).unwrap_or(0);
            let new = total.saturating_sub(before);
            if new > 0 {
                self.journal.record(Fact::KernelFault { fault, new, total });
            }
        }
        let count = observation.invalid;
        if count > 0 {
            self.journal.record(Fact::InvalidRecords { count });
        }
    }
}

/// How many connections may be recorded beside those that are.
pub(super) fn room(policy: &Policy, recorded: u64) -> u64 {
    u64::from(policy.track().max_per_node().get()).saturating_sub(recorded)
}

/// The cgroups that are there; none if the policy names none, as walking them costs.
pub(super) fn read_cgroups(policy: &Policy, cgroups: &CgroupTree) -> CgroupPaths {
    if policy.names_cgroups() {
        cgroups.read()
    } else {
        CgroupPaths::new()
    }
}
