//! Recent events and their followers: a ring of bounded length, for which the loop never waits.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::channel::Sender;
use hyper::StatusCode;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    api::{Event, EventKind, write_event},
    http::{Answer, Asked, stream_answer, text_answer, typed},
};

/// Events kept.
const CAPACITY: usize = 1024;
/// Events sent at once.
const BATCH: usize = 64;
/// Who may follow at once: each holds a cursor of the server's for as long as it likes.
const MOST_FOLLOWERS: usize = 4;
/// How often an empty line is sent: writing it fails once the follower has disconnected.
const BLANK_EVERY: Duration = Duration::from_secs(10);

const LINES: &str = "application/x-ndjson";

/// The ring. Clones share it.
#[derive(Clone)]
pub(super) struct Events(Arc<Shared>);

struct Shared {
    run: String,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    followers: AtomicUsize,
    missed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Ring {
    /// Those kept, the oldest first; their numbers have no gaps.
    kept: VecDeque<Arc<Event>>,
    newest: u64,
}

impl Events {
    /// An empty one, of the agent that started at `up_since`.
    pub(super) fn new(up_since: Timestamp) -> Self {
        let (newest, _) = watch::channel(0);
        Self(Arc::new(Shared {
            run: format!("{:x}-{:x}", std::process::id(), up_since.as_nanosecond()),
            ring: Mutex::default(),
            newest,
            followers: AtomicUsize::new(0),
            missed: Arc::new(AtomicU64::new(0)),
        }))
    }

    /// Events that followers have missed.
    pub(super) fn missed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.missed)
    }

    /// Adds an event, and drops the oldest if the ring is full.
    pub(super) fn add(&self, what: EventKind) {
        let at = Timestamp::now();
        let newest = {
            let mut ring = self.ring();
            ring.newest += 1;
            let seq = ring.newest;
            let run = self.0.run.clone();
            if ring.kept.len() == CAPACITY {
                ring.kept.pop_front();
            }
            ring.kept.push_back(Arc::new(Event { seq, run, at, what }));
            seq
        };
        self.0.newest.send_replace(newest);
    }

    /// The run, and the number of its newest event.
    pub(super) fn newest(&self) -> (String, u64) {
        (self.0.run.clone(), self.ring().newest)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Whoever panicked with it left it whole.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next events after `seq`, at most one part, and how many before them were dropped.
    fn after(&self, seq: u64) -> (u64, Vec<Arc<Event>>) {
        let ring = self.ring();
        let Some(oldest) = ring.kept.front().map(|happened| happened.seq) else {
            return (0, Vec::new());
        };
        let missed = oldest.saturating_sub(seq.saturating_add(1));
        let skip =
            usize::try_from(seq.saturating_add(1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        let next = ring.kept.iter().skip(skip).take(BATCH).cloned().collect();
        (missed, next)
    }

    /// `/events`: those kept, as lines. With `follow=1` also those to come, for as long as the
    /// client stays. With `run` and `after`: only what came after that number of that run, so that
    /// a client that reconnects sees nothing twice.
    pub(super) fn answer(&self, asked: &Asked) -> Answer {
        let query = match Query::of(asked.uri().query().unwrap_or_default()) {
            Ok(query) => query,
            Err(what) => {
                let text = format!("{what}: there are follow=1, run=RUN and after=NUMBER\n");
                return text_answer(StatusCode::BAD_REQUEST, text);
            }
        };
        let known = query.run.as_deref() == Some(self.0.run.as_str());
        let from = if known { query.after } else { 0 };
        if !query.follow {
            let mut lines = Vec::new();
            let mut cursor = Cursor { seq: from, known };
            while let Some(part) = self.part(&mut cursor) {
                lines.extend_from_slice(&part);
            }
            return typed(StatusCode::OK, LINES, lines.into());
        }
        let Some(follower) = self.enter() else {
            let text = format!("{MOST_FOLLOWERS} follow already: end one of them\n");
            return text_answer(StatusCode::SERVICE_UNAVAILABLE, text);
        };
        let (sender, answer) = stream_answer(LINES);
        tokio::spawn(follower.follow(Cursor { seq: from, known }, sender));
        answer
    }

    /// The next part after `cursor`, which it moves on; none if there is nothing new.
    fn part(&self, cursor: &mut Cursor) -> Option<Bytes> {
        let (missed, next) = self.after(cursor.seq);
        let last = next.last()?.seq;
        let mut lines = Vec::new();
        // A client that is new has not missed what was dropped before it came.
        if missed > 0 && cursor.known {
            self.0.missed.fetch_add(missed, Ordering::Relaxed);
            let first = &next[0];
            let notice = Event {
                seq: first.seq - 1,
                run: self.0.run.clone(),
                at: first.at,
                what: EventKind::Missed { count: missed },
            };
            write(&mut lines, &notice);
        }
        for happened in &next {
            write(&mut lines, happened);
        }
        *cursor = Cursor {
            seq: last,
            known: true,
        };
        Some(lines.into())
    }

    fn enter(&self) -> Option<Follower> {
        let one_more = |n| (n < MOST_FOLLOWERS).then_some(n + 1);
        let followers = &self.0.followers;
        followers
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Follower(self.clone()))
    }
}

/// A vector takes all that is written, and what happened is always JSON.
fn write(lines: &mut Vec<u8>, happened: &Event) {
    let _cannot_fail = write_event(lines, happened);
}

/// The last event that a client has seen, and whether it has seen any of this run.
struct Cursor {
    seq: u64,
    known: bool,
}

/// One follower, until it is dropped.
struct Follower(Events);

impl Follower {
    async fn follow(self, mut cursor: Cursor, mut sender: Sender<Bytes, Infallible>) {
        let mut newest = self.0.0.newest.subscribe();
        loop {
            newest.mark_unchanged();
            // A slow client holds up this task, not the agent's loop.
            while let Some(part) = self.0.part(&mut cursor) {
                if sender.send_data(part).await.is_err() {
                    return; // it has disconnected
                }
            }
            match tokio::time::timeout(BLANK_EVERY, newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) if sender.send_data(Bytes::from_static(b"\n")).await.is_err() => return,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    follow: bool,
    run: Option<String>,
    after: u64,
}

impl Query {
    /// # Errors
    /// What is not understood.
    fn of(text: &str) -> Result<Self, &'static str> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("follow", "1")) => query.follow = true,
                Some(("run", run)) => query.run = Some(run.to_owned()),
                Some(("after", seq)) => {
                    query.after = seq.parse().map_err(|_| "after is no number")?;
                }
                _ => return Err("a part of the query is unknown"),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::read_event;

    const NEW: Cursor = Cursor {
        seq: 0,
        known: false,
    };

    fn all(events: &Events, cursor: &mut Cursor) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(part) = events.part(cursor) {
            let lines = part.split(|byte| *byte == b'\n');
            let lines = lines.filter(|line| !line.is_empty());
            all.extend(lines.map(|line| read_event(line).unwrap()));
        }
        all
    }

    fn happen(events: &Events, count: usize) {
        for _ in 0..count {
            events.add(EventKind::ListingRecovered);
        }
    }

    #[test]
    fn a_client_that_reconnects_sees_nothing_twice_and_a_slow_one_how_much_it_missed() {
        let events = Events::new(Timestamp::now());
        let mut cursor = NEW;
        assert!(all(&events, &mut cursor).is_empty());
        happen(&events, 3);
        let numbers = all(&events, &mut cursor).into_iter().map(|event| event.seq);
        assert!(numbers.eq(1..=3));
        assert!(all(&events, &mut cursor).is_empty());
        happen(&events, CAPACITY + 5);
        let late = all(&events, &mut cursor);
        assert_eq!(late[0].what, EventKind::Missed { count: 5 });
        assert_eq!(late.len(), CAPACITY + 1);
        assert_eq!((late[1].seq, cursor.seq), (9, 3 + CAPACITY as u64 + 5));
        assert_eq!(events.missed().load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_new_client_sees_what_is_kept_and_has_missed_nothing() {
        let events = Events::new(Timestamp::now());
        happen(&events, CAPACITY + 5);
        let kept = all(&events, &mut { NEW });
        assert_eq!((kept.len(), kept[0].seq), (CAPACITY, 6));
        assert_eq!(events.missed().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn followers_are_bounded_and_one_that_leaves_makes_room() {
        let events = Events::new(Timestamp::now());
        let followers: Vec<_> = (0..MOST_FOLLOWERS).map(|_| events.enter()).collect();
        assert!(followers.iter().all(Option::is_some));
        assert!(events.enter().is_none());
        drop(followers);
        assert!(events.enter().is_some());
    }

    #[test]
    fn queries_are_read_strictly() {
        assert_eq!(Query::of(""), Ok(Query::default()));
        let query = Query::of("follow=1&run=a-b&after=7").unwrap();
        assert_eq!(
            (query.follow, query.run.as_deref(), query.after),
            (true, Some("a-b"), 7)
        );
        for wrong in ["follow=2", "after=-1", "after=x", "more=1", "follow"] {
            assert!(Query::of(wrong).is_err(), "{wrong}");
        }
    }
}
