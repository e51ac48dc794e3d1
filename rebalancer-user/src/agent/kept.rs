//! The ledger, saved for the next agent: one that is killed again and again must not start with a
//! fresh budget each time, nor retry moves that were found not to help.
//!
//! It is saved after each pass that started a move, reported one in dry run or began a cooldown, and
//! once a minute. Its times are those of the kernel's monotonic clock and its connections those of this
//! boot, so it is useless after a reboot. A file that makes no sense is ignored, with a warning.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

use super::own_file;
use crate::{
    api::{KeptLedger, read_kept_ledger, write_kept_ledger},
    plan::Ledger,
    snapshot::{KernelTime, Naming, Snapshot},
};

const FILE: &str = "ledger.json";

/// Room for some hundred thousand connections reported in dry run.
const LARGEST: u64 = 32 << 20;

/// How often it is written, if nothing happens.
const EVERY: Duration = Duration::from_secs(60);

/// The file, and when it was written.
pub(super) struct SavedLedger {
    file: PathBuf,
    boot: Option<String>,
    written: KernelTime,
    changed: bool,
    failed: bool,
}

impl SavedLedger {
    /// Reads what the previous agent saved in `dir`. `policy` is the text of the policy in effect:
    /// connections that another policy reported in dry run are reported again.
    pub(super) fn resume(dir: &Path, policy: &str) -> (Self, Ledger) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.inspect_err(|error| {
            warn!(%error, "cannot read the boot id: a restart will forget budgets and cooldowns");
        });
        let kept = Self {
            file: dir.join(FILE),
            boot: boot.ok().map(|boot| boot.trim().to_owned()),
            written: KernelTime::default(),
            changed: false,
            failed: false,
        };
        let ledger = kept.read(policy, now()).unwrap_or_else(|why| {
            let file = kept.file.display();
            warn!(%file, why, "could not read what the previous agent saved: budgets and cooldowns start empty");
            Ledger::default()
        });
        (kept, ledger)
    }

    fn read(&self, policy: &str, now: KernelTime) -> Result<Ledger, String> {
        let Some(boot) = &self.boot else {
            return Ok(Ledger::default());
        };
        let Some(text) = own_file::read(&self.file, LARGEST)? else {
            return Ok(Ledger::default());
        };
        let kept = read_kept_ledger(&text).map_err(|error| error.to_string())?;
        if kept.boot_id != *boot {
            info!("ignoring what an agent saved before this boot");
            return Ok(Ledger::default());
        }
        if kept.written_nanoseconds > now {
            return Err("it was written later than now".to_owned());
        }
        let mut ledger = Ledger::from_entries(kept.entries);
        if kept.policy != policy {
            ledger.forget_reported();
        }
        info!(
            seconds_ago = now.since(kept.written_nanoseconds).as_secs(),
            "budgets and cooldowns continue from the previous agent"
        );
        Ok(ledger)
    }

    /// Something has happened that must not be forgotten.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Writes it, if it is time to.
    pub(super) fn write_if_due(&mut self, ledger: &Ledger, policy: &str, now: KernelTime) {
        if self.changed || now.since(self.written) >= EVERY {
            self.write(ledger, policy, now);
        }
    }

    /// Writes it, unless there was no pass yet.
    pub(super) fn write(&mut self, ledger: &Ledger, policy: &str, now: KernelTime) {
        let Some(boot) = &self.boot else { return };
        if now == KernelTime::default() {
            return;
        }
        let kept = KeptLedger {
            boot_id: boot.clone(),
            written_nanoseconds: now,
            policy: policy.to_owned(),
            entries: ledger.to_keep().entries(),
        };
        let text = write_kept_ledger(&kept).map_err(io::Error::from);
        let written = text.and_then(|text| own_file::write(&self.file, &text));
        self.changed = false;
        self.written = now;
        if let Err(error) = &written
            && !self.failed
        {
            let file = self.file.display();
            warn!(%file, %error, "could not save budgets and cooldowns: a restart will forget them");
        }
        self.failed = written.is_err();
    }
}

/// The time on the clock that the kernel half uses.
pub(super) fn now() -> KernelTime {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    KernelTime(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    )
}

/// Whether endpoints of Services changed before the first list is unknown, so that the first list counts
/// as a change: after a restart Services must stabilize again. `since`: the first listing with fresh names.
pub(super) fn assume_change_before_first_list(
    snapshot: &mut Snapshot,
    since: &mut Option<KernelTime>,
) {
    if snapshot.naming == Naming::Fresh {
        since.get_or_insert(snapshot.taken);
    }
    let ago = since.map_or(Duration::ZERO, |since| snapshot.taken.since(since));
    for service in snapshot.services.values_mut() {
        service.changed.get_or_insert(ago);
    }
}

/// Removes what an agent has left in `dir`, for a node that is to run no agent. Returns whether there
/// was anything.
///
/// # Errors
/// What the system says.
pub fn forget_kept(dir: &Path) -> io::Result<bool> {
    own_file::remove(&dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        plan::{Outcome, decide},
        policy::{Mode, Policy, parse},
        snapshot::{Service, sample},
    };

    const POLICY: &str = "\
apiVersion: rebalancer.dev/v1alpha1
kind: RebalancePolicy
mode: Enforce
budget: {perNode: 2, window: 1h, perService: 100%, perEndpoint: 100%}
guards: {minAge: 0s}
rules:
- {name: web, match: {ports: [{port: 8080}]}, limits: {maxAge: 30s}, onReconnect: Safe}
";

    fn policy() -> Policy {
        parse("test", POLICY).unwrap()
    }

    fn listed(now: KernelTime) -> Snapshot {
        sample::snapshot(now.0, (0..5).map(sample::connection).collect())
    }

    /// An agent's pass at `now`; how many moves it begins.
    fn pass(ledger: &mut Ledger, now: KernelTime) -> usize {
        let (policy, listed) = (policy(), listed(now));
        ledger.observe(&policy, &listed);
        let plan = decide(&policy, &listed, ledger, now);
        plan.moves().for_each(|chosen| ledger.started(chosen, now));
        plan.moves().count()
    }

    #[test]
    fn an_agent_that_is_killed_again_and_again_has_one_budget() {
        let dir = tempfile::tempdir().unwrap();
        let mut moves = 0;
        for _ in 0..5 {
            let (mut kept, mut ledger) = SavedLedger::resume(dir.path(), POLICY);
            let now = now();
            moves += pass(&mut ledger, now);
            let spent = ledger.spent(Mode::Enforce, Duration::from_secs(3600), now);
            assert_eq!(spent, 2);
            kept.changed();
            kept.write_if_due(&ledger, POLICY, now);
            let mode = fs::metadata(&kept.file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(moves, 2);
        assert!(forget_kept(dir.path()).unwrap());
        assert!(!forget_kept(dir.path()).unwrap());
    }

    #[test]
    fn what_was_in_flight_counts_as_moved_and_holds_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, mut ledger) = SavedLedger::resume(dir.path(), POLICY);
        let now = now();
        assert_eq!(pass(&mut ledger, now), 2);
        ledger.enforce(&policy(), now);
        let first = ledger.moves_in_flight().next().unwrap().0;
        ledger.ended(first, Outcome::GaveUp, now);
        kept.write(&ledger, POLICY, now);
        let (_, next) = SavedLedger::resume(dir.path(), POLICY);
        assert_eq!((ledger.in_flight(), next.in_flight()), (1, 0));
        assert_eq!(next.spent(Mode::Enforce, Duration::from_secs(3600), now), 1);
        assert_eq!(next.entries().ended, ledger.entries().ended);
        assert_eq!(next.entries().enforced, ledger.entries().enforced);
    }

    #[test]
    fn what_makes_no_sense_is_left_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, mut ledger) = SavedLedger::resume(dir.path(), POLICY);
        let now = now();
        pass(&mut ledger, now);
        ledger.enforce(&policy(), now);
        kept.write(&ledger, POLICY, now);
        let good = fs::read_to_string(&kept.file).unwrap();
        let resumed = || SavedLedger::resume(dir.path(), POLICY).1.entries();
        assert_ne!(resumed(), Ledger::default().entries());
        let later = KernelTime(now.0 + 3_600_000_000_000);
        let boot = kept.boot.clone().unwrap();
        let (now, later) = (now.0.to_string(), later.0.to_string());
        let (rule, of_future) = ("\"enforced\":[[\"web\",", "\"enforced\":[[\"web\",9");
        for (what, text) in [
            ("nothing", String::new()),
            ("a part", good[..good.len() / 2].to_owned()),
            ("another kind", good.replace("KeptLedger", "Ledger")),
            ("another version", good.replace("/v1alpha1", "/v9")),
            ("an older form", good.replace("\"entries\":", "\"ledger\":")),
            ("another boot", good.replace(&boot, "0-0")),
            ("the future", good.replace(&now, &later)),
            ("a future rule", good.replace(rule, of_future)),
            ("too much", " ".repeat(LARGEST as usize + 1)),
        ] {
            assert_ne!(text, good, "{what}");
            fs::write(&kept.file, text).unwrap();
            assert_eq!(resumed(), Ledger::default().entries(), "{what}");
        }
        fs::write(&kept.file, &good).unwrap();
        fs::set_permissions(&kept.file, fs::Permissions::from_mode(0o666)).unwrap();
        let nothing = Ledger::default().entries();
        assert_eq!(resumed(), nothing, "others may write it");
    }

    #[test]
    fn connections_reported_by_another_policy_are_reported_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut kept, mut ledger) = SavedLedger::resume(dir.path(), POLICY);
        let now = now();
        let dry = policy().with_mode_at_most(Mode::DryRun);
        let plan = decide(&dry, &listed(now), &ledger, now);
        plan.moves().for_each(|chosen| ledger.reported(chosen, now));
        kept.write(&ledger, POLICY, now);
        for (policy, reported) in [(POLICY, 2), ("another", 0)] {
            let kept = SavedLedger::resume(dir.path(), policy).1.entries();
            assert_eq!((kept.reported.len(), kept.dry_runs.len()), (reported, 2));
        }
    }

    #[test]
    fn services_settle_after_a_restart() {
        let name = sample::service("web");
        let mut since = None;
        let mut seen = |naming, taken, changed| {
            let mut snapshot = Snapshot {
                naming,
                ..sample::snapshot(taken, Vec::new())
            };
            let service = Service {
                changed,
                ..Service::default()
            };
            snapshot.services.insert(name.clone(), service);
            assume_change_before_first_list(&mut snapshot, &mut since);
            snapshot.services[&name].changed.unwrap().as_nanos()
        };
        assert_eq!(seen(Naming::Stale { silent: None }, 5, None), 0);
        assert_eq!(seen(Naming::Fresh, 10, None), 0);
        assert_eq!(seen(Naming::Stale { silent: None }, 30, None), 20);
        assert_eq!(seen(Naming::Fresh, 50, Some(Duration::from_nanos(7))), 7);
    }
}
