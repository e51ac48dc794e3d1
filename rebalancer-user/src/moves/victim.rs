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
    notices::{NotJoined, Notices, Progress},
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

/// The beginning of a pause, after `idleFor`: some looks.
const EARLY: Duration = Duration::from_millis(100);

/// A pause is long from so many times `idleFor` on.
const LONG: u32 = 20;

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

/// A connection that is being moved.
pub(super) struct Victim {
    pub(super) chosen: Move,
    pub(super) ordered: Instant,
    /// The guard that would have refused it, if guards were not ignored.
    pub(super) ignored: Option<Refusal>,
    id: SocketId,
    cgroup: CgroupId,
    phase: Phase,
    step: usize,
    step_until: Instant,
    /// No step after this one is taken: that which acts when the move is recalled.
    last_step: usize,
    /// When it was last looked at.
    looked: Cell<Instant>,
    /// From the last look to the end of the last step that was taken.
    pub(super) since_look: Option<Duration>,
    /// Why a step could not be taken.
    trouble: Option<String>,
    /// From when on it may join the socket hash; none if it may not any more.
    may_join: Option<Instant>,
}

/// What was done to the connection so far.
enum Phase {
    /// Nothing.
    Untouched {
        /// It was found open at least once.
        found: bool,
        /// What is known of its protocol, which matters no longer once something was done.
        sniffing: Sniffing,
    },
    /// Its client was asked to leave, and is given until the end of this step.
    Notified,
    /// The server was asked to close, in this step.
    Asked { in_step: usize },
    /// Resets were sent, and it was still open after each.
    Missed {
        resets: u32,
        /// The step in which the server was asked to close as well.
        asked_in: Option<usize>,
    },
}

impl Phase {
    /// The step in which the server was asked to close.
    fn asked_in(&self) -> Option<usize> {
        match self {
            Self::Untouched { .. } | Self::Notified => None,
            Self::Asked { in_step } => Some(*in_step),
            Self::Missed { asked_in, .. } => *asked_in,
        }
    }

    /// Resets that were sent.
    fn resets(&self) -> u32 {
        match self {
            Self::Untouched { .. } | Self::Notified | Self::Asked { .. } => 0,
            Self::Missed { resets, .. } => *resets,
        }
    }

    /// To be sniffed, which has not started.
    fn awaits_sniffing(&self) -> bool {
        matches!(self, Self::Untouched { sniffing, .. } if sniffing.is_pending())
    }
}

/// What one look led to.
pub(super) enum Next {
    /// Look again later.
    Wait,
    /// The step's condition holds, as far as one look shows: [`Victim::act`] is next.
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
    pub(super) notices: &'a mut Notices,
    pub(super) pulse: &'a Pulse,
    /// The owners of the socket are known, or may be looked for: a step can be taken.
    pub(super) may_act: bool,
}

impl Victim {
    pub(super) fn new(order: Order, now: Instant) -> Self {
        let Order {
            chosen,
            device,
            cgroup,
        } = order;
        let mut victim = Self {
            id: SocketId {
                cookie: chosen.cookie(),
                local: chosen.local(),
                remote: chosen.remote(),
                device,
            },
            phase: Phase::Untouched {
                found: false,
                sniffing: if chosen.is_sniffed() {
                    Sniffing::Pending
                } else {
                    Sniffing::NotNeeded
                },
            },
            // The reset that may follow the rule's steps.
            last_step: chosen.steps().len(),
            chosen,
            ordered: now,
            ignored: None,
            cgroup,
            step: 0,
            step_until: now,
            looked: Cell::new(now),
            since_look: None,
            trouble: None,
            may_join: Some(now),
        };
        victim.begin(0, now);
        victim
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
            Err(outcome) => return Next::End(self.or_noticed(outcome, inside)),
        };
        let now = Instant::now();
        let verdict = self.protocol(&socket, inside);
        if let Some(refusal) = self.refused_as(verdict, inside.notices) {
            return Next::End(self.left(Outcome::Refused(refusal)));
        }
        if matches!(self.phase, Phase::Notified) {
            // No other step protects its calls.
            return if now < self.step_until {
                Next::Wait
            } else {
                Next::End(self.left(Outcome::GaveUp))
            };
        }
        if inside.notices.has_joined(self.id.cookie) {
            return self.follow(inside);
        }
        let is_accepted = socket.inode != Inode(0);
        while let Some(step) = self.current() {
            if self.is_for_others(step, verdict) {
                self.begin(self.step + 1, now);
                continue;
            }
            let in_time = now < self.step_until;
            let may_go = inside.may_act
                && verdict != Verdict::Unknown
                && self.phase.asked_in() != Some(self.step);
            let sniff_now = self.phase.awaits_sniffing() && is_accepted && in_time;
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
        // A thread that was abandoned while it waited for the kernel does nothing more.
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
        if let Phase::Untouched { sniffing, .. } = &mut self.phase
            && sniffing.is_pending()
        {
            return match inside.sniffer.start(self.id.cookie, self.cgroup) {
                Ok(Some(started)) => {
                    *sniffing = started;
                    Next::Wait
                }
                Ok(None) => Next::Wait,
                Err(outcome) => Next::End(outcome),
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
        let verdict = self.protocol(&socket, inside);
        if !matches!(verdict, Verdict::Movable | Verdict::Http2)
            || self.is_for_others(step, verdict)
            || !self.holds(step, &socket, inside)
        {
            return Next::Wait;
        }
        if !inside.pulse.may_act(self.id.cookie) {
            return Next::Wait;
        }
        let next = match step.kind() {
            StepKind::Notice => self.join(&socket, owners, inside),
            StepKind::Close => self.close(owners),
            StepKind::Reset => self.reset(owners, inside),
        };
        self.since_look = Some(self.looked.get().elapsed());
        next
    }

    /// Why what was detected must not be moved.
    fn refused_as(&self, verdict: Verdict, notices: &Notices) -> Option<Refusal> {
        match verdict {
            Verdict::Refused(refusal) => Some(refusal),
            Verdict::Http2 if !self.chosen.gives_notice() => Some(Refusal::Http2),
            Verdict::Http2 if !notices.is_available() => Some(Refusal::CannotNotice),
            Verdict::Http2 | Verdict::Movable | Verdict::Unknown => None,
        }
    }

    /// Whether the step is not for what was detected: HTTP/2 is only asked to leave, and nothing else is.
    fn is_for_others(&self, step: Step, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Http2 => !step.is_notice(),
            Verdict::Movable => step.is_notice(),
            Verdict::Unknown | Verdict::Refused(_) => false,
        }
    }

    /// Adds it to the socket hash at a quiet moment, at which its client's next byte and its server's begin a
    /// frame.
    fn join(&mut self, socket: &Socket, owners: &[Owner], inside: &mut Inside<'_>) -> Next {
        let cookie = self.id.cookie;
        let may_join = self.may_join.is_some_and(|at| at <= Instant::now());
        if !may_join || !inside.sniffer.capture(cookie) {
            return Next::Wait;
        }
        let Some(next) = inside.sniffer.next_out(cookie, socket) else {
            return Next::Wait;
        };
        match inside.notices.join(cookie, next, owners) {
            Ok(()) => {}
            Err(NotJoined::Now) => return Next::Wait,
            Err(NotJoined::Ever(why)) => {
                tracing::debug!(%cookie, why, "cannot be asked to leave");
                return Next::End(self.left(Outcome::Refused(Refusal::CannotNotice)));
            }
        }
        // Only if it has been quiet throughout do the followed bytes begin where the frames do.
        let same = |after: &Socket| {
            after.bytes_received == socket.bytes_received && after.bytes_acked == socket.bytes_acked
        };
        if let Ok(Some(after)) = inside.diag.look(&self.id)
            && same(&after)
            && self.is_quiet(&after, REST, inside)
            && let Phase::Untouched { sniffing, .. } = &mut self.phase
        {
            inside.sniffer.rested(sniffing, cookie, &after);
        } else {
            self.leave(inside);
        }
        Next::Wait
    }

    /// One look while it is in the socket hash.
    fn follow(&mut self, inside: &mut Inside<'_>) -> Next {
        let cookie = self.id.cookie;
        let opened = inside.sniffer.opened(cookie);
        match inside.notices.progress(cookie, opened) {
            Progress::Followed => {
                inside.notices.wake(cookie, inside.owners.known(cookie));
            }
            Progress::Notified | Progress::GivenUp => self.leave(inside),
            Progress::NoFrames => {
                self.leave(inside);
                self.may_join = None;
            }
        }
        Next::Wait
    }

    /// Removes it from the socket hash.
    fn leave(&mut self, inside: &mut Inside<'_>) {
        let cookie = self.id.cookie;
        self.may_join = Some(Notices::may_join_at(Instant::now()));
        let owners = inside.owners.known(cookie);
        if inside.notices.leave(cookie, owners, inside.sniffer) {
            self.was_notified();
        }
    }

    /// It has ended since the last look: perhaps because its client was asked to leave since then.
    fn or_noticed(&mut self, outcome: Outcome, inside: &mut Inside<'_>) -> Outcome {
        self.leave(inside);
        match (&self.phase, outcome) {
            (Phase::Notified, Outcome::LeftByItself) => Outcome::Noticed,
            (_, outcome) => outcome,
        }
    }

    /// Its client was asked to leave: from now on it is finished, whatever comes.
    pub(super) fn was_notified(&mut self) {
        self.phase = Phase::Notified;
        let step = self.current().map_or(Duration::ZERO, |step| step.timeout());
        self.step_until = Instant::now() + step.max(TIME_TO_CLOSE);
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
                if let Phase::Untouched { found, .. } = &mut self.phase {
                    *found = true;
                }
                Ok(socket)
            }
            Ok(other) => Err(self.gone(other.map(|socket| socket.state))),
            Err(e) => Err(Outcome::Failed(format!("sock_diag: {e}"))),
        }
    }

    /// What is known of its protocol; irrelevant once something was done to the connection.
    fn protocol(&mut self, socket: &Socket, inside: &mut Inside<'_>) -> Verdict {
        let Phase::Untouched { sniffing, .. } = &self.phase else {
            return Verdict::Movable;
        };
        let cookie = self.id.cookie;
        let verdict = inside.sniffer.verdict(sniffing, cookie, socket);
        // In the middle of an exchange the bytes could mean anything: followed from the next rest on.
        if inside.sniffer.needs_rest(cookie)
            && self.is_quiet(socket, REST, inside)
            && inside.sniffer.capture(cookie)
            && let Ok(Some(after)) = inside.diag.look(&self.id)
            && self.is_quiet(&after, REST, inside)
            && let Phase::Untouched { sniffing, .. } = &mut self.phase
        {
            inside.sniffer.rested(sniffing, cookie, &after);
        }
        verdict
    }

    /// The present step: one of the rule's, and after them, with `atEnd: ResetNow`, a reset at once.
    fn current(&self) -> Option<Step> {
        if self.step > self.last_step {
            return None;
        }
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
        self.last_step = self.step;
        let acts_now = self.phase.resets() > 0
            || matches!(self.phase, Phase::Notified)
            || self.phase.asked_in() == Some(self.step);
        if !acts_now {
            self.begin(self.step + 1, Instant::now());
        }
        !self.is_touched()
    }

    fn begin(&mut self, step: usize, now: Instant) {
        self.step = step;
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
            When::Quiet { idle_for } => {
                self.is_quiet(socket, idle_for, inside) && self.is_early(step, socket, idle_for)
            }
        }
    }

    /// Whether a pause between two exchanges has just begun, or lasts for so long that its end is as far as ever.
    /// A client that pauses for about the same time after each response is least likely to ask at the beginning.
    fn is_early(&self, step: Step, socket: &Socket, idle_for: Duration) -> bool {
        let Phase::Untouched {
            sniffing: Sniffing::Active { .. },
            ..
        } = &self.phase
        else {
            return true; // its exchanges are not followed
        };
        let left = self.step_until.saturating_duration_since(Instant::now());
        socket.since_sent < idle_for + EARLY
            || socket.since_sent >= idle_for * LONG
            || left < step.timeout() / 2
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
                let asked_in = Some(self.step);
                self.phase = match self.phase.resets() {
                    0 => Phase::Asked { in_step: self.step },
                    resets => Phase::Missed { resets, asked_in },
                };
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
            Ok(Attempt::Missed) => {
                let resets = self.phase.resets() + 1;
                if resets > MOST_MISSES {
                    let words = format!("{resets} resets were sent and it lives");
                    return Next::End(Outcome::Failed(words));
                }
                let asked_in = self.phase.asked_in();
                self.phase = Phase::Missed { resets, asked_in };
                Next::Wait
            }
            Err(words) => Next::End(Outcome::Failed(words)),
        }
    }

    /// It is open, but no owner leads to its network namespace.
    pub(super) fn out_of_reach(&self) -> Outcome {
        self.left(Outcome::Refused(Refusal::OwnerUnknown))
    }

    /// The outcome for a connection that is closed, or no longer established: whether the move caused that.
    pub(super) fn gone(&self, state: Option<TcpState>) -> Outcome {
        match self.phase {
            Phase::Missed { .. } => Outcome::Reset,
            Phase::Notified => Outcome::Noticed,
            Phase::Asked { .. } if state != Some(TcpState::CloseWait) => Outcome::Closed,
            Phase::Untouched { found: false, .. } => Outcome::GoneBefore,
            Phase::Asked { .. } | Phase::Untouched { .. } => Outcome::LeftByItself,
        }
    }

    /// Whether the move may have caused the connection to end.
    pub(super) fn is_touched(&self) -> bool {
        !matches!(self.phase, Phase::Untouched { .. })
    }

    /// The outcome of a move that is ended early: a connection that was touched is looked at once more, in
    /// its network namespace, before it is reported as alive.
    pub(super) fn ended(&self, end: Outcome, look: impl FnOnce(&SocketId) -> Looked) -> Outcome {
        let done = match self.phase {
            Phase::Untouched { .. } => return end,
            Phase::Notified => "its client was asked to leave",
            Phase::Asked { .. } => "the server was asked to close",
            Phase::Missed { .. } => "resets were sent",
        };
        match look(&self.id) {
            Ok(Some(socket)) if socket.state == TcpState::Established => self.left(end),
            Ok(other) => self.gone(other.map(|socket| socket.state)),
            Err(e) => Outcome::Failed(format!(
                "whether it lives is not known: {e}; {done} and the move {end}"
            )),
        }
    }

    /// The move ends while the connection is open: untouched, or not.
    pub(super) fn left(&self, end: Outcome) -> Outcome {
        match self.phase {
            Phase::Untouched { .. } => end,
            Phase::Notified => Outcome::Failed(format!(
                "its client was asked to leave and has not yet; the move {end}"
            )),
            Phase::Asked { .. } => Outcome::Failed(format!(
                "the server was asked to close and did not; the move {end}"
            )),
            Phase::Missed { .. } => {
                Outcome::Failed(format!("resets were sent and it lives; the move {end}"))
            }
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

    const MISSED: Phase = Phase::Missed {
        resets: 1,
        asked_in: None,
    };

    /// The move of a connection of our own.
    fn victim(pair: &Pair) -> Victim {
        let (local, remote) = (pair.server.local_addr(), pair.server.peer_addr());
        let connection = Connection {
            cookie: pair.cookie,
            local: local.unwrap(),
            remote: remote.unwrap(),
            ..sample::connection(0)
        };
        of(&connection, Guarded::No)
    }

    /// A move that has done nothing yet.
    fn waiting() -> Victim {
        of(&sample::connection(1), Guarded::Yes)
    }

    fn of(connection: &Connection, guarded: Guarded) -> Victim {
        let order = Order {
            chosen: manual(connection, Step::RESET_NOW, guarded).unwrap(),
            device: 0,
            cgroup: connection.cgroup,
        };
        Victim::new(order, Instant::now())
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
        let mut victim = victim(&pair);
        victim.phase = MISSED;
        let outcome = victim.ended(recalled(), look);
        assert!(
            matches!(&outcome, Outcome::Failed(words) if words.contains("it lives")),
            "{outcome:?}"
        );
        rustix::net::connect_unspec(&pair.server).unwrap();
        assert_eq!(victim.ended(recalled(), look), Outcome::Reset);
    }

    #[test]
    fn a_connection_that_ended_after_its_server_was_asked_counts_as_closed() {
        let pair = Pair::connect().unwrap();
        let mut victim = victim(&pair);
        victim.phase = Phase::Asked { in_step: 0 };
        drop(pair);
        assert_eq!(victim.ended(recalled(), look), Outcome::Closed);
    }

    #[test]
    fn a_connection_that_has_ended_is_not_refused() {
        let pair = Pair::connect().unwrap();
        let (mut victim, diag) = (victim(&pair), Diag::open().unwrap());
        let refused = victim.refused(Refusal::OwnerUnknown, &diag);
        assert_eq!(refused, Outcome::Refused(Refusal::OwnerUnknown));
        rustix::net::connect_unspec(&pair.server).unwrap();
        drop(pair);
        let refused = victim.refused(Refusal::OwnerUnknown, &diag);
        assert_eq!(refused, Outcome::LeftByItself);
    }

    #[test]
    fn an_untouched_connection_is_not_looked_at_again() {
        let pair = Pair::connect().unwrap();
        let victim = victim(&pair);
        let outcome = victim.ended(recalled(), |_| unreachable!());
        assert_eq!(outcome, recalled());
    }

    #[test]
    fn a_connection_that_cannot_be_looked_at_is_not_reported_as_open() {
        let pair = Pair::connect().unwrap();
        let mut victim = victim(&pair);
        victim.phase = MISSED;
        let gone = |_: &SocketId| Err(io::Error::from_raw_os_error(libc::ENOENT));
        let outcome = victim.ended(recalled(), gone);
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
        missed.phase = MISSED;
        assert!(!missed.recall());
        assert_eq!(missed.step_kind(), Some(StepKind::Reset));
        missed.begin(1, Instant::now());
        assert_eq!(missed.step_kind(), None);

        // Its server was asked to close and has its time for it, but nothing follows.
        let mut asked = waiting();
        asked.phase = Phase::Asked { in_step: 0 };
        let until = asked.step_until;
        assert!(!asked.recall());
        assert_eq!((asked.step, asked.step_until), (0, until));
        let mut later = waiting();
        (later.phase, later.step) = (Phase::Asked { in_step: 0 }, 1);
        assert!(!later.recall());
        assert_eq!(later.step_kind(), None);
        assert!(matches!(later.left(Outcome::GaveUp), Outcome::Failed(_)));
    }
}
