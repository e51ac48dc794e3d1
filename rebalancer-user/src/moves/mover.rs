//! The thread that moves: one state per move until its outcome.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use super::{Quiet, Socket, SocketId, diag::Diag, judge};
use crate::{
    bpf::{self, Lister},
    netns::{Namespaces, enter},
    plan::{Move, Outcome},
    policy::{AtEnd, Step, StepKind, When},
    snapshot::{Cookie, Netns, TcpState},
};

/// How often a waiting move's socket is looked at. A look costs some 20 microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Orders that may wait for the thread; more are refused, not queued without end.
const QUEUE: usize = 1024;

/// One move to make.
#[derive(Clone, Debug)]
pub struct Order {
    /// What the plan chose.
    pub chosen: Move,
    /// The interface that its socket is bound to, or 0.
    pub device: u32,
}

/// A move's end.
#[derive(Clone, Debug)]
pub struct Done {
    /// What the plan chose.
    pub chosen: Move,
    /// What became of it.
    pub outcome: Outcome,
    /// From the order to the outcome.
    pub waited: Duration,
}

/// Handle of the moving thread. Dropping it ends the thread; moves that wait end without harm.
pub struct Mover {
    orders: Option<SyncSender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Mover {
    /// Starts the thread. Each order gets exactly one [`Done`].
    ///
    /// `lister` answers who spoke last when the clock's ticks cannot.
    pub fn start(lister: Lister, done: UnboundedSender<Done>) -> io::Result<Self> {
        let (orders, queue) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("mover".to_owned())
            .spawn(move || {
                Room {
                    lister,
                    namespaces: Namespaces::default(),
                    active: BTreeMap::new(),
                    done,
                }
                .run(&queue);
            })?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Hands over a move. `false`: the thread cannot take it, and there will be no [`Done`].
    pub fn order(&self, order: Order) -> bool {
        self.orders
            .as_ref()
            .is_some_and(|orders| orders.try_send(order).is_ok())
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!("the moving thread panicked");
        }
    }
}

/// What the thread owns.
struct Room {
    lister: Lister,
    namespaces: Namespaces,
    active: BTreeMap<Cookie, Active>,
    done: UnboundedSender<Done>,
}

/// A move under way.
struct Active {
    chosen: Move,
    id: SocketId,
    ordered: Instant,
    step: usize,
    step_until: Instant,
    seen: bool,
}

/// What one look led to.
enum Next {
    Wait,
    End(Outcome),
}

impl Room {
    fn run(mut self, queue: &Receiver<Order>) {
        loop {
            let next = if self.active.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(LOOK_EVERY)
            };
            match next {
                Ok(order) => {
                    self.accept(order);
                    while let Ok(order) = queue.try_recv() {
                        self.accept(order);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_at_all();
        }
        for (_, active) in std::mem::take(&mut self.active) {
            self.tell(active, Outcome::Refused("shutdown"));
        }
    }

    fn accept(&mut self, Order { chosen, device }: Order) {
        let now = Instant::now();
        let cookie = chosen.cookie();
        let id = SocketId {
            cookie,
            local: chosen.local(),
            remote: chosen.remote(),
            device,
        };
        let step_until = now
            + chosen
                .steps()
                .first()
                .map_or(Duration::ZERO, |step| step.timeout());
        let active = Active {
            chosen,
            id,
            ordered: now,
            step: 0,
            step_until,
            seen: false,
        };
        if let Some(twice) = self.active.insert(cookie, active) {
            self.tell(twice, Outcome::Refused("orderedTwice"));
        }
    }

    fn look_at_all(&mut self) {
        let mut by_netns: BTreeMap<Netns, Vec<Cookie>> = BTreeMap::new();
        for (cookie, active) in &self.active {
            by_netns
                .entry(active.chosen.endpoint().netns)
                .or_default()
                .push(*cookie);
        }
        for (netns, cookies) in by_netns {
            for (cookie, next) in self.look_at(netns, &cookies) {
                let Next::End(outcome) = next else { continue };
                if let Some(active) = self.active.remove(&cookie) {
                    self.tell(active, outcome);
                }
            }
        }
    }

    /// Looks at the moves of one namespace, from inside it.
    fn look_at(&mut self, netns: Netns, cookies: &[Cookie]) -> Vec<(Cookie, Next)> {
        let all = |outcome: Outcome| {
            cookies
                .iter()
                .map(|cookie| (*cookie, Next::End(outcome.clone())))
                .collect()
        };
        let Some(target) = self.namespaces.open(netns) else {
            return all(Outcome::GoneBefore);
        };
        let Self { lister, active, .. } = self;
        let inside = || {
            let diag = match Diag::open() {
                Ok(diag) => diag,
                Err(e) => return all(Outcome::Failed(format!("sock_diag: {e}"))),
            };
            let mut next = Vec::with_capacity(cookies.len());
            for cookie in cookies {
                let Some(active) = active.get_mut(cookie) else {
                    continue;
                };
                // A defect in one move must not end the agent, nor the other moves.
                let look = catch_unwind(AssertUnwindSafe(|| active.look(&diag, lister)))
                    .unwrap_or_else(|_| Next::End(Outcome::Failed("panic".to_owned())));
                next.push((*cookie, look));
            }
            next
        };
        match enter(&target, inside) {
            Ok(next) => next,
            Err(e) => all(Outcome::Failed(format!(
                "entering the network namespace: {e}"
            ))),
        }
    }

    fn tell(&self, active: Active, outcome: Outcome) {
        let waited = active.ordered.elapsed();
        // The agent that does not listen any more is on its way out.
        let _agent_is_gone = self.done.send(Done {
            chosen: active.chosen,
            outcome,
            waited,
        });
    }
}

impl Active {
    /// One look; in the connection's namespace.
    fn look(&mut self, diag: &Diag, lister: &mut Lister) -> Next {
        let socket = match diag.look(&self.id) {
            Ok(Some(socket)) => socket,
            Ok(None) => return Next::End(self.gone()),
            Err(e) => return Next::End(Outcome::Failed(format!("sock_diag: {e}"))),
        };
        if socket.state != TcpState::Established {
            return Next::End(self.gone());
        }
        self.seen = true;
        let Some(step) = self.chosen.steps().get(self.step).copied() else {
            return self.end_of_steps(diag);
        };
        if self.holds(step, &socket, diag, lister) {
            match step.kind() {
                StepKind::Close => {
                    return Next::End(Outcome::Failed("step Close is not made yet".to_owned()));
                }
                StepKind::Reset => return Next::End(self.reset(diag)),
            }
        }
        if Instant::now() >= self.step_until {
            self.step += 1;
            match self.chosen.steps().get(self.step) {
                Some(step) => self.step_until = Instant::now() + step.timeout(),
                None => return self.end_of_steps(diag),
            }
        }
        Next::Wait
    }

    /// Whether the step's condition holds now.
    fn holds(&self, step: Step, socket: &Socket, diag: &Diag, lister: &mut Lister) -> bool {
        match step.when() {
            When::AtOnce => true,
            When::Quiet { idle_for } => match judge(socket, idle_for) {
                Quiet::Yes => true,
                Quiet::No => false,
                Quiet::Tie => {
                    self.server_spoke_last(socket, diag, lister)
                        .unwrap_or_else(|error| {
                            tracing::warn!(%error, "cannot tell who spoke last");
                            false
                        })
                }
            },
        }
    }

    /// Asks the iterator who spoke last, and whether nothing has happened since `socket` was
    /// looked at: what it says is only used for the very state that was judged.
    fn server_spoke_last(
        &self,
        socket: &Socket,
        diag: &Diag,
        lister: &mut Lister,
    ) -> Result<bool, bpf::Error> {
        let Some(listed) = lister.read_one(self.id.cookie)? else {
            return Ok(false);
        };
        let live = &listed.live;
        let spoke_last = live.bytes_sent > 0 && live.snd_wl1 == live.rcv_nxt;
        let same_socket = |now: &Socket| {
            now.state == socket.state
                && now.receive_queue == 0
                && now.send_queue == 0
                && now.bytes_received == socket.bytes_received
                && now.bytes_sent == socket.bytes_sent
        };
        let unchanged = matches!(diag.look(&self.id), Ok(Some(now)) if same_socket(&now));
        Ok(spoke_last && unchanged)
    }

    fn reset(&self, diag: &Diag) -> Outcome {
        match diag.destroy(&self.id) {
            Ok(true) => Outcome::Reset,
            Ok(false) => self.gone(),
            Err(e) => Outcome::Failed(format!("SOCK_DESTROY: {e}")),
        }
    }

    fn end_of_steps(&self, diag: &Diag) -> Next {
        Next::End(match self.chosen.at_end() {
            AtEnd::Spare => Outcome::GaveUp,
            AtEnd::ResetNow => self.reset(diag),
        })
    }

    /// It is not there any more: did it leave while we watched?
    fn gone(&self) -> Outcome {
        if self.seen {
            Outcome::LeftByItself
        } else {
            Outcome::GoneBefore
        }
    }
}
