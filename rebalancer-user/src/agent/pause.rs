//! A pause of moves that an operator has asked for: until when, why, and the file beside the
//! agent's socket that keeps it across a restart.
//!
//! The file is read as if anybody could have written it: what is not the agent's own is no pause.
//! One that is its own and cannot be understood is: whoever wrote it wanted one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    Agent,
    fact::{Fact, ResumeCause},
    own_file,
};
use crate::{
    api::{PausedBy, PausedStatus},
    http::PauseAnswer,
};

/// The longest pause: one that is forgotten must end.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest reason, in bytes.
pub const LONGEST_REASON: usize = 256;

/// How long moves are paused if the file cannot be understood.
const UNSURE: Duration = Duration::from_secs(3600);

const FILE: &str = "pause.json";
const LARGEST: u64 = 4096;

/// What became of the wish to resume.
#[derive(Debug)]
pub(super) enum Resumed {
    Now,
    WasNotPaused,
    /// The pause of all nodes is not this node's to end.
    StillByNamespace,
}

/// Whether moves are paused.
pub(super) struct Pause {
    file: PathBuf,
    now: Option<Current>,
    /// By the namespace of the agents; as long as its annotation is there, and kept nowhere.
    by_namespace: Option<PausedStatus>,
}

struct Current {
    status: PausedStatus,
    /// By a clock that nobody sets.
    ends: Instant,
}

/// As it is kept, and nothing else.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    since: Timestamp,
    until: Timestamp,
    reason: Option<String>,
}

impl Pause {
    fn none(file: PathBuf) -> Self {
        Self {
            file,
            now: None,
            by_namespace: None,
        }
    }

    /// The pause that the agent before has left in `dir`, if it has not ended.
    pub(super) fn resume(dir: &Path) -> Self {
        let file = dir.join(FILE);
        let at = Timestamp::now();
        let (kept, left) = match read(&file) {
            Ok(None) => return Self::none(file),
            Ok(Some(kept)) => {
                let left = left(&kept, at);
                (kept, left)
            }
            Err(why) => {
                warn!(
                    file = %file.display(), why,
                    "the saved pause is invalid: moves are paused for an hour, or until `rebalancer resume`"
                );
                let reason = Some("the saved pause was invalid".to_owned());
                let (since, until) = (at, at);
                (
                    Kept {
                        since,
                        until,
                        reason,
                    },
                    UNSURE,
                )
            }
        };
        let mut pause = Self::none(file);
        if left.is_zero() {
            pause.forget();
        } else {
            let until = after(at, left);
            pause.now = Some(Current {
                status: PausedStatus {
                    since: kept.since,
                    until: Some(until),
                    reason: kept.reason,
                    by: PausedBy::Operator,
                },
                ends: Instant::now() + left,
            });
        }
        pause
    }

    /// Pauses from now on, replacing any earlier pause. The pause is in effect even if it cannot be
    /// saved; the error is returned.
    pub(super) fn begin(
        &mut self,
        time: Duration,
        reason: Option<String>,
    ) -> (PausedStatus, Option<io::Error>) {
        let since = Timestamp::now();
        let kept = Kept {
            since,
            until: after(since, time),
            reason,
        };
        let saved = keep(&self.file, &kept);
        let status = PausedStatus {
            since,
            until: Some(kept.until),
            reason: kept.reason,
            by: PausedBy::Operator,
        };
        self.now = Some(Current {
            status: status.clone(),
            ends: Instant::now() + time,
        });
        (status, saved.err())
    }

    /// Ends it. Whether there was one.
    pub(super) fn end(&mut self) -> bool {
        self.forget();
        self.now.take().is_some()
    }

    /// The pause that is; of two the one that lasts longer.
    pub(super) fn now(&self) -> Option<&PausedStatus> {
        let by_operator = || self.now.as_ref().map(|current| &current.status);
        self.by_namespace.as_ref().or_else(by_operator)
    }

    /// What the namespace's annotation says now. Whether that is a change.
    fn set_by_namespace(&mut self, reason: Option<String>) -> bool {
        let before = self.by_namespace.as_ref();
        if before.and_then(|paused| paused.reason.as_ref()) == reason.as_ref() {
            return false;
        }
        self.by_namespace = reason.map(|reason| PausedStatus {
            since: Timestamp::now(),
            until: None,
            reason: Some(reason),
            by: PausedBy::Namespace,
        });
        true
    }

    /// Waits until the pause expires; without one, it never returns.
    pub(super) async fn over(&self) {
        match &self.now {
            Some(current) => tokio::time::sleep_until(current.ends.into()).await,
            None => std::future::pending().await,
        }
    }

    fn forget(&self) {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file = %self.file.display(), %error, "could not remove the saved pause: it will pause the next agent");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl Agent {
    /// No move is started from now on, and those in flight are recalled.
    pub(super) fn pause_moves(&mut self, time: Duration, reason: Option<String>) -> PauseAnswer {
        let (paused, not_saved) = self.pause.begin(time, reason);
        let recalled = self.ledger.in_flight();
        self.recall_all("moves were paused");
        self.journal.record(Fact::Paused {
            paused: &paused,
            recalled,
            not_saved: not_saved.as_ref(),
        });
        // The pause of all nodes outlasts it.
        if let Some(paused) = &self.pause.by_namespace {
            self.journal.record(Fact::StillPaused { paused });
        }
        self.publish();
        PauseAnswer {
            until: paused.until.unwrap_or(paused.since),
            recalled,
            not_kept: not_saved.map(|error| error.to_string()),
        }
    }

    /// Ends the pause of this node; whether there was one.
    pub(super) fn resume_moves(&mut self, cause: ResumeCause) -> Resumed {
        let was_paused = self.pause.end();
        if was_paused {
            self.pause_ended(cause);
        }
        match (was_paused, self.pause.now()) {
            (_, Some(_)) => Resumed::StillByNamespace,
            (true, None) => Resumed::Now,
            (false, None) => Resumed::WasNotPaused,
        }
    }

    /// Follows the annotation of the agents' namespace.
    pub(super) fn look_at_namespace(&mut self) {
        let (Some(names), Some(namespace)) = (&self.names, &self.namespace) else {
            return;
        };
        let reason = names.paused(namespace);
        if !self.pause.set_by_namespace(reason) {
            return;
        }
        if self.pause.by_namespace.is_none() {
            return self.pause_ended(ResumeCause::Annotation);
        }
        let recalled = self.ledger.in_flight();
        self.recall_all("moves were paused");
        if let Some(paused) = self.pause.now() {
            self.journal.record(Fact::Paused {
                paused,
                recalled,
                not_saved: None,
            });
        }
        self.publish();
    }

    /// One of two pauses has ended: moves resume unless there is another.
    fn pause_ended(&mut self, cause: ResumeCause) {
        self.journal.record(match self.pause.now() {
            Some(paused) => Fact::StillPaused { paused },
            None => Fact::Resumed { cause },
        });
        self.publish();
    }
}

/// What is left of it at `now`: at most its original duration, even if the clock was set since.
fn left(kept: &Kept, now: Timestamp) -> Duration {
    let until = |from: Timestamp| kept.until.duration_since(from);
    let left = Duration::try_from(until(now)).unwrap_or_default();
    let whole = Duration::try_from(until(kept.since)).unwrap_or_default();
    left.min(whole).min(LONGEST)
}

fn after(at: Timestamp, time: Duration) -> Timestamp {
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

/// What was kept; `None` if there is nothing of ours.
///
/// # Errors
/// What is wrong with ours.
fn read(path: &Path) -> Result<Option<Kept>, String> {
    let Some(text) = own_file::read(path, LARGEST)? else {
        return Ok(None);
    };
    let kept: Kept = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if kept
        .reason
        .as_ref()
        .is_some_and(|r| r.len() > LONGEST_REASON)
    {
        return Err("its reason is too long".to_owned());
    }
    Ok(Some(kept))
}

fn keep(path: &Path, kept: &Kept) -> io::Result<()> {
    own_file::write(path, &serde_json::to_vec(kept)?)
}

/// Removes what a pause has left in `dir`, for a node that is to run no agent. Returns whether there
/// was anything.
///
/// # Errors
/// What the system says.
pub fn forget_pause(dir: &Path) -> io::Result<bool> {
    own_file::remove(&dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn is_about(left: Duration, expected: Duration) -> bool {
        left <= expected && left > expected - Duration::from_secs(60)
    }

    fn left_of(pause: &Pause) -> Duration {
        let current = pause.now.as_ref().unwrap();
        current.ends.saturating_duration_since(Instant::now())
    }

    #[test]
    fn a_pause_outlives_its_agent_and_an_end_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Pause::resume(dir.path());
        assert!(first.now().is_none());
        let (status, not_kept) = first.begin(HOUR, Some("an incident".to_owned()));
        assert!(not_kept.is_none(), "{not_kept:?}");
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let mut second = Pause::resume(dir.path());
        assert_eq!(second.now().unwrap().since, status.since);
        assert_eq!(second.now().unwrap().reason, status.reason);
        assert!(is_about(left_of(&second), HOUR));
        assert!(second.end());
        assert!(!second.end());
        assert!(Pause::resume(dir.path()).now().is_none());
        assert!(!forget_pause(dir.path()).unwrap());
    }

    #[test]
    fn a_pause_of_all_nodes_is_beside_that_of_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let mut pause = Pause::resume(dir.path());
        assert!(!pause.set_by_namespace(None));
        pause.begin(HOUR, None);
        assert!(pause.set_by_namespace(Some("an incident".to_owned())));
        assert!(!pause.set_by_namespace(Some("an incident".to_owned())));
        let now = pause.now().unwrap();
        assert_eq!((now.by, now.until), (PausedBy::Namespace, None));
        assert!(pause.end());
        assert_eq!(pause.now().unwrap().by, PausedBy::Namespace);
        assert!(pause.set_by_namespace(None));
        assert!(pause.now().is_none());
        let next = Pause::resume(dir.path());
        assert!(next.now().is_none(), "the next agent looks itself");
    }

    #[test]
    fn a_saved_pause_ends_even_if_the_clock_is_set() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let kept = |since, until| Kept {
            since: at(since),
            until: at(until),
            reason: None,
        };
        let now = at("2026-01-02T00:00:00Z");
        let an_hour = kept("2026-01-01T23:30:00Z", "2026-01-02T00:30:00Z");
        assert_eq!(left(&an_hour, now), HOUR / 2);
        assert_eq!(left(&an_hour, at("2026-01-02T00:31:00Z")), Duration::ZERO);
        let set_back = at("2020-01-01T00:00:00Z");
        assert_eq!(left(&an_hour, set_back), HOUR);
        let for_ever = kept("2026-01-01T00:00:00Z", "9000-01-01T00:00:00Z");
        assert_eq!(left(&for_ever, now), LONGEST);
        let backwards = kept("2026-01-03T00:00:00Z", "2026-01-02T12:00:00Z");
        assert_eq!(left(&backwards, now), Duration::ZERO);
    }

    #[test]
    fn what_is_not_ours_is_no_pause_and_ours_that_is_broken_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let good =
            r#"{"since":"2026-01-01T00:00:00Z","until":"9000-01-01T00:00:00Z","reason":null}"#;
        let resumed = || Pause::resume(dir.path());

        fs::write(dir.path().join("elsewhere"), good).unwrap();
        symlink(dir.path().join("elsewhere"), &file).unwrap();
        assert!(resumed().now().is_none(), "a link");
        fs::remove_file(&file).unwrap();

        fs::create_dir(&file).unwrap();
        assert!(resumed().now().is_none(), "a folder");
        fs::remove_dir(&file).unwrap();

        fs::write(&file, good).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(resumed().now().is_none(), "one that others may write");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(is_about(left_of(&resumed()), LONGEST));

        let long = good.replace("null", &format!("{:?}", "x".repeat(300)));
        let huge = " ".repeat(5000);
        for broken in ["", "{", "[]", r#"{"until":1}"#, &long, &huge] {
            fs::write(&file, broken).unwrap();
            assert!(is_about(left_of(&resumed()), UNSURE), "{broken}");
        }
    }
}
