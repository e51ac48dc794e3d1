//! One move under way: what each look at its socket leads to.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{Shutdown, shutdown},
};

use super::{
    Mechanism, Quiet,
    guards::refusal,
    judge,
    mechanism::Attempt,
    owners::{Owners, read_live},
    pulse::Pulse,
    sniffer::{Sniffer, Sniffing, Verdict},
};
use crate::{
    bpf::{self, Walker},
    host::{Diag, Inode, Owner, Socket, SocketId, with_duplicate},
    observe,
    plan::{Move, Outcome, Refusal},
    policy::{AtEnd, Step, StepKind, When},
    snapshot::{CgroupId, Cookie, Netns, TcpState},
};

/// Minimum time that a server gets to close before the next step.
const TIME_TO_CLOSE: Duration = Duration::from_secs(1);

/// How long it must be silent to be at rest: longer than a tick of the kernel's clock, so that the ticks
/// mostly show which side sent last.
const REST: Duration = Duration::from_millis(10);

/// Raw resets that may miss before the move has failed.
const MOST_MISSES: u32 = 5;

/// One move to make.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the plan chose.
    pub chosen: Move,
    /// The interface that its socket is bound to, or 0.
    pub device: u32,
    /// The cgroup of its socket.
    pub cgroup: CgroupId,
}

/// A move under way.
pub(super) struct Active {
    pub(super) chosen: Move,
    pub(super) ordered: Instant,
    /// The guard that would have refused it, if guards were not ignored.
    pub(super) ignored: Option<Refusal>,
    id: SocketId,
    cgroup: CgroupId,
    step: usize,
    step_until: Instant,
    /// It was found at least once.
    seen: bool,
    /// The step in which the server was asked to close.
    asked: Option<usize>,
    misses: u32,
    /// When it was last looked at.
    looked: Cell<Instant>,
    /// From the last look to the end of the last step that was taken.
    pub(super) since_look: Option<Duration>,
    /// It was recalled after it had acted: no other step follows.
    is_last_step: bool,
    sniffing: Sniffing,
    /// Why a step could not be taken.
    trouble: Option<String>,
}

/// What one look led to.
pub(super) enum Next {
    /// Look again later.
    Wait,
    /// The step's condition holds, as far as one look shows: [`Active::act`] is next.
    Act,
    /// The move has ended.
    End(Outcome),
}

/// A socket as it was found, if it was.
pub(super) type Looked = io::Result<Option<Socket>>;

/// What a look needs, in the connection's network namespace.
pub(super) struct Inside<'a> {
    pub(super) netns: Netns,
    pub(super) diag: &'a Diag,
    pub(super) walker: &'a mut Walker,
    pub(super) owners: &'a Owners,
    pub(super) mechanism: Mechanism,
    pub(super) sniffer: &'a mut Sniffer,
    pub(super) pulse: &'a Pulse,
    /// The owners of the socket are known, or may be looked for: a step can be taken.
    pub(super) may_act: bool,
}

impl Active {
    pub(super) fn new(order: Order, now: Instant) -> Self {
        let Order {
            chosen,
            device,
            cgroup,
        } = order;
        let mut active = Self {
            id: SocketId {
                cookie: chosen.cookie(),
                local: chosen.local(),
                remote: chosen.remote(),
                device,
            },
            sniffing: if chosen.is_sniffed() {
                Sniffing::Pending
            } else {
                Sniffing::NotNeeded
            },
            chosen,
            ordered: now,
            ignored: None,
            cgroup,
            step: 0,
            step_until: now,
            seen: false,
            asked: None,
            misses: 0,
            looked: Cell::new(now),
            since_look: None,
            is_last_step: false,
            trouble: None,
        };
        active.begin(0, now);
        active
    }

    pub(super) fn cookie(&self) -> Cookie {
        self.id.cookie
    }

    /// The present step; none if all steps have passed.
    pub(super) fn step_kind(&self) -> Option<StepKind> {
        self.current().map(|step| step.kind())
    }

    /// One look.
    pub(super) fn look(&mut self, inside: &mut Inside<'_>) -> Next {
        let socket = match self.socket(inside.diag) {
            Ok(socket) => socket,
            Err(outcome) => return Next::End(outcome),
        };
        let now = Instant::now();
        let verdict = self.protocol(&socket, inside);
        if let Verdict::Refused(refusal) = verdict {
            return Next::End(self.left(Outcome::Refused(refusal)));
        }
        let is_accepted = socket.inode != Inode(0);
        while let Some(step) = self.current() {
            let in_time = now < self.step_until;
            let may_go =
                inside.may_act && verdict == Verdict::Movable && self.asked != Some(self.step);
            let sniff_now = self.sniffing.is_pending() && is_accepted && in_time;
            if sniff_now || may_go && self.holds(step, &socket, inside) {
                return Next::Act;
            }
            if in_time {
                return Next::Wait;
            }
            self.begin(self.step + 1, now);
        }
        let end = match self.trouble.take() {
            Some(words) => Outcome::Failed(words),
            None => Outcome::GaveUp,
        };
        Next::End(self.left(end))
    }

    /// Takes the step, if its condition still holds: to find the owners may have taken a while.
    pub(super) fn act(&mut self, inside: &mut Inside<'_>) -> Next {
        // A thread that was abandoned while it waited for the kernel does nothing any more.
        if inside.pulse.is_given_up() {
            return Next::Wait;
        }
        let owners = inside.owners.of(self.id.cookie);
        let facts = owners.iter().map(|owner| owner.facts);
        if let Some(guard) = refusal(facts, inside.netns, self.cgroup) {
            if self.chosen.heeds_guards() {
                return Next::End(self.refused(guard, inside.diag));
            }
            self.ignored = Some(guard);
        }
        if self.sniffing.is_pending() {
            return match inside.sniffer.start(self.id.cookie, self.cgroup) {
                Ok(Some(sniffing)) => {
                    self.sniffing = sniffing;
                    Next::Wait
                }
                Ok(None) => Next::Wait,
                Err(outcome) => Next::End(self.left(outcome)),
            };
        }
        let Some(step) = self.current() else {
            return Next::Wait;
        };
        // The last look: what follows is the step itself.
        let socket = match self.socket(inside.diag) {
            Ok(socket) => socket,
            Err(outcome) => return Next::End(outcome),
        };
        if self.protocol(&socket, inside) != Verdict::Movable || !self.holds(step, &socket, inside)
        {
            return Next::Wait;
        }
        if !inside.pulse.may_act(self.id.cookie) {
            return Next::Wait;
        }
        let next = match step.kind() {
            StepKind::Close => self.close(owners),
            StepKind::Reset => self.reset(owners, inside),
        };
        self.since_look = Some(self.looked.get().elapsed());
        next
    }

    /// A guard has refused it. If it has ended since it was looked at it has no owner, which is no refusal.
    fn refused(&mut self, guard: Refusal, diag: &Diag) -> Outcome {
        match self.socket(diag) {
            Ok(_) => self.left(Outcome::Refused(guard)),
            Err(outcome) => outcome,
        }
    }

    /// The socket, if it is still to be moved; otherwise how the move has ended.
    fn socket(&mut self, diag: &Diag) -> Result<Socket, Outcome> {
        let look = diag.look(&self.id);
        self.looked.set(Instant::now());
        match look {
            Ok(Some(socket)) if socket.state == TcpState::Established => {
                self.seen = true;
                Ok(socket)
            }
            Ok(other) => Err(self.gone(other.map(|socket| socket.state))),
            Err(e) => Err(Outcome::Failed(format!("sock_diag: {e}"))),
        }
    }

    /// What is known of its protocol; irrelevant once something was done to the connection.
    fn protocol(&mut self, socket: &Socket, inside: &mut Inside<'_>) -> Verdict {
        if self.asked.is_some() || self.misses > 0 {
            return Verdict::Movable;
        }
        let cookie = self.id.cookie;
        let verdict = inside.sniffer.verdict(&self.sniffing, cookie, socket);
        // In the middle of an exchange the bytes could mean anything: followed from the next rest on.
        if inside.sniffer.needs_rest(cookie)
            && self.is_quiet(socket, REST, inside)
            && inside.sniffer.capture(cookie)
            && let Ok(Some(after)) = inside.diag.look(&self.id)
            && self.is_quiet(&after, REST, inside)
        {
            inside.sniffer.rested(&mut self.sniffing, cookie, &after);
        }
        verdict
    }

    /// The present step: one of the rule's, and after them, with `atEnd: ResetNow`, a reset at once.
    fn current(&self) -> Option<Step> {
        let steps = self.chosen.steps();
        let at_end = || match self.chosen.at_end() {
            AtEnd::ResetNow if self.step == steps.len() => Some(Step::RESET_NOW),
            AtEnd::ResetNow | AtEnd::Skip => None,
        };
        steps.get(self.step).copied().or_else(at_end)
    }

    /// Whether it can be recalled: nothing was done to the connection. Otherwise the step that has
    /// acted is the last.
    pub(super) fn recall(&mut self) -> bool {
        self.is_last_step = true;
        let acts_now = self.misses > 0 || self.asked == Some(self.step);
        if !acts_now {
            self.begin(self.step + 1, Instant::now());
        }
        self.asked.is_none() && self.misses == 0
    }

    fn begin(&mut self, step: usize, now: Instant) {
        // Beyond the last there is none, nor a reset at the end.
        let past_all = self.chosen.steps().len() + 1;
        self.step = if self.is_last_step { past_all } else { step };
        self.step_until = now + self.current().map_or(Duration::ZERO, |step| step.timeout());
    }

    /// Whether the step's condition holds now.
    fn holds(&self, step: Step, socket: &Socket, inside: &mut Inside<'_>) -> bool {
        // Not accepted yet: there is no process to ask to close, or for the guards to check.
        if socket.inode == Inode(0) {
            return false;
        }
        match step.when() {
            When::AtOnce => true,
            When::Quiet { idle_for } => self.is_quiet(socket, idle_for, inside),
        }
    }

    fn is_quiet(&self, socket: &Socket, idle_for: Duration, inside: &mut Inside<'_>) -> bool {
        match judge(socket, idle_for) {
            Quiet::Yes => true,
            Quiet::No => false,
            Quiet::Tie if inside.sniffer.server_spoke_last(self.id.cookie, socket) => true,
            Quiet::Tie => self
                .server_spoke_last(socket, inside)
                .unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot determine who sent last");
                    false
                }),
        }
    }

    /// Reads which side sent last from the socket's record, and whether nothing has happened since `socket`
    /// was read: the answer only counts for the very state that was judged.
    fn server_spoke_last(
        &self,
        socket: &Socket,
        inside: &mut Inside<'_>,
    ) -> Result<bool, bpf::Error> {
        let cookie = self.id.cookie;
        let owners = inside.owners.known(cookie);
        let Some(live) = read_live(owners, cookie, inside.walker)? else {
            return Ok(false);
        };
        let same_socket = |now: &Socket| {
            now.state == socket.state
                && now.receive_queue == 0
                && now.send_queue == 0
                && now.bytes_received == socket.bytes_received
                && now.bytes_sent == socket.bytes_sent
        };
        let look = inside.diag.look(&self.id);
        self.looked.set(Instant::now());
        let unchanged = matches!(look, Ok(Some(now)) if same_socket(&now));
        Ok(observe::server_spoke_last(&live, inside.walker.jiffies(1)) && unchanged)
    }

    /// Makes the server read an end of file. It may still respond, and closes the connection itself.
    fn close(&mut self, owners: &[Owner]) -> Next {
        let now = Instant::now();
        // The duplicate is closed at once, as until then the server's own close sends no FIN.
        let asked = with_duplicate(owners, self.id.cookie, |duplicate| {
            shutdown(&duplicate, Shutdown::Read)
        });
        let trouble = match asked {
            Ok(()) => {
                self.asked = Some(self.step);
                self.step_until = self.step_until.max(now + TIME_TO_CLOSE);
                return Next::Wait;
            }
            // Something has changed: look again.
            Err(Some(Errno::SRCH | Errno::BADF | Errno::STALE | Errno::NOTCONN)) => {
                return Next::Wait;
            }
            Err(Some(e)) => format!("duplicating the server's descriptor: {e}"),
            Err(None) => "no process that holds it was found".to_owned(),
        };
        self.trouble = Some(trouble);
        self.begin(self.step + 1, now);
        Next::Wait
    }

    fn reset(&mut self, owners: &[Owner], inside: &mut Inside<'_>) -> Next {
        let Inside {
            diag,
            walker,
            mechanism,
            ..
        } = inside;
        match mechanism.reset(&self.id, owners, diag, walker) {
            Ok(Attempt::Hit) => Next::End(Outcome::Reset),
            Ok(Attempt::Gone) => Next::End(self.gone(None)),
            Ok(Attempt::Untouched) => Next::Wait,
            Ok(Attempt::Missed) if self.misses < MOST_MISSES => {
                self.misses += 1;
                Next::Wait
            }
            Ok(Attempt::Missed) => Next::End(Outcome::Failed(format!(
                "{} resets were sent and it lives",
                self.misses + 1
            ))),
            Err(words) => Next::End(Outcome::Failed(words)),
        }
    }

    /// It is open, but no owner leads to its network namespace.
    pub(super) fn out_of_reach(&self) -> Outcome {
        self.left(Outcome::Refused(Refusal::OwnerUnknown))
    }

    /// It does not exist any more, or is not established: whether the move has caused that.
    pub(super) fn gone(&self, state: Option<TcpState>) -> Outcome {
        if self.misses > 0 {
            Outcome::Reset
        } else if self.asked.is_some() && state != Some(TcpState::CloseWait) {
            Outcome::Closed
        } else if self.seen {
            Outcome::LeftByItself
        } else {
            Outcome::GoneBefore
        }
    }

    /// Whether the move may have caused the connection to end.
    pub(super) fn is_touched(&self) -> bool {
        self.misses > 0 || self.asked.is_some()
    }

    /// Ends the move, whatever became of it: a connection that was touched is looked at once more, in its
    /// network namespace, before it is reported as alive.
    pub(super) fn ended(&self, end: Outcome, look: impl FnOnce(&SocketId) -> Looked) -> Outcome {
        if !self.is_touched() {
            return end;
        }
        match look(&self.id) {
            Ok(Some(socket)) if socket.state == TcpState::Established => self.left(end),
            Ok(other) => self.gone(other.map(|socket| socket.state)),
            Err(e) => Outcome::Failed(format!(
                "whether it lives is not known: {e}; {} and the move {end}",
                if self.misses > 0 {
                    "resets were sent"
                } else {
                    "the server was asked to close"
                }
            )),
        }
    }

    /// The move ends while the connection is open: untouched, or not.
    pub(super) fn left(&self, end: Outcome) -> Outcome {
        if self.misses > 0 {
            Outcome::Failed(format!("resets were sent and it lives; the move {end}"))
        } else if self.asked.is_some() {
            Outcome::Failed(format!(
                "the server was asked to close and did not; the move {end}"
            ))
        } else {
            end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Pair,
        plan::{Guarded, manual},
        snapshot::{Connection, sample},
    };

    /// The move of a connection of our own.
    fn active(pair: &Pair) -> Active {
        let (local, remote) = (pair.server.local_addr(), pair.server.peer_addr());
        let connection = Connection {
            cookie: pair.cookie,
            local: local.unwrap(),
            remote: remote.unwrap(),
            ..sample::connection(0)
        };
        let chosen = manual(&connection, Step::RESET_NOW, Guarded::No).unwrap();
        let order = Order {
            chosen,
            device: 0,
            cgroup: connection.cgroup,
        };
        Active::new(order, Instant::now())
    }

    /// A move that has done nothing yet.
    fn waiting() -> Active {
        let chosen = manual(&sample::connection(1), Step::RESET_NOW, Guarded::Yes).unwrap();
        let order = Order {
            chosen,
            device: 0,
            cgroup: CgroupId(0),
        };
        Active::new(order, Instant::now())
    }

    fn recalled() -> Outcome {
        Outcome::Recalled("the policy was replaced".to_owned())
    }

    fn look(id: &SocketId) -> Looked {
        Diag::open()?.look(id)
    }

    #[test]
    fn a_connection_that_ended_after_a_reset_was_sent_counts_as_reset() {
        let pair = Pair::connect().unwrap();
        let mut active = active(&pair);
        active.misses = 1;
        let outcome = active.ended(recalled(), look);
        assert!(
            matches!(&outcome, Outcome::Failed(words) if words.contains("it lives")),
            "{outcome:?}"
        );
        rustix::net::connect_unspec(&pair.server).unwrap();
        assert_eq!(active.ended(recalled(), look), Outcome::Reset);
    }

    #[test]
    fn a_connection_that_ended_after_its_server_was_asked_counts_as_closed() {
        let pair = Pair::connect().unwrap();
        let mut active = active(&pair);
        active.asked = Some(0);
        drop(pair);
        assert_eq!(active.ended(recalled(), look), Outcome::Closed);
    }

    #[test]
    fn a_connection_that_has_ended_is_not_refused() {
        let pair = Pair::connect().unwrap();
        let (mut active, diag) = (active(&pair), Diag::open().unwrap());
        let refused = active.refused(Refusal::OwnerUnknown, &diag);
        assert_eq!(refused, Outcome::Refused(Refusal::OwnerUnknown));
        rustix::net::connect_unspec(&pair.server).unwrap();
        drop(pair);
        let refused = active.refused(Refusal::OwnerUnknown, &diag);
        assert_eq!(refused, Outcome::LeftByItself);
    }

    #[test]
    fn an_untouched_connection_is_not_looked_at_again() {
        let pair = Pair::connect().unwrap();
        let active = active(&pair);
        let outcome = active.ended(recalled(), |_| unreachable!());
        assert_eq!(outcome, recalled());
    }

    #[test]
    fn a_connection_that_cannot_be_looked_at_is_not_reported_as_open() {
        let pair = Pair::connect().unwrap();
        let mut active = active(&pair);
        active.misses = 1;
        let gone = |_: &SocketId| Err(io::Error::from_raw_os_error(libc::ENOENT));
        let outcome = active.ended(recalled(), gone);
        assert!(
            matches!(&outcome, Outcome::Failed(words) if words.contains("not known")),
            "{outcome:?}"
        );
    }

    #[test]
    fn a_recall_ends_untouched_moves_and_stops_the_others_after_their_step() {
        assert!(waiting().recall());

        // Resets were sent: the same step finds out whether it is gone.
        let mut missed = waiting();
        missed.misses = 1;
        assert!(!missed.recall());
        assert_eq!(missed.step_kind(), Some(StepKind::Reset));
        missed.begin(1, Instant::now());
        assert_eq!(missed.step_kind(), None);

        // Its server was asked to close and has its time for it, but nothing follows.
        let mut asked = waiting();
        asked.asked = Some(0);
        let until = asked.step_until;
        assert!(!asked.recall());
        assert_eq!((asked.step, asked.step_until), (0, until));
        let mut later = waiting();
        (later.asked, later.step) = (Some(0), 1);
        assert!(!later.recall());
        assert_eq!(later.step_kind(), None);
        assert!(matches!(later.left(Outcome::GaveUp), Outcome::Failed(_)));
    }
}
