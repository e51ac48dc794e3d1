//! What happens in a simulated cluster, and what is asked of it.

use std::time::Duration;

/// One story.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Endpoints at the start.
    pub(crate) replicas: usize,
    pub(crate) nodes: Nodes,
    pub(crate) clients: Vec<Clients>,
    pub(crate) acts: Vec<(Duration, Act)>,
    /// From when on the imbalance is there that is to be cured; the last act at the latest.
    pub(crate) judged: Duration,
    pub(crate) ends: Duration,
    pub(crate) interval: Duration,
    pub(crate) by: By,
    pub(crate) tolerance: u64,
}

impl Scenario {
    /// Whether chance and moves alone decide where connections are, so that there is a least.
    pub(crate) fn has_least(&self) -> bool {
        let dead = self.acts.iter().any(|(_, act)| *act == Act::AddDead);
        !dead
            && self.clients.iter().all(|clients| {
                let by_chance = clients.dial == Dial::Chance && clients.stay.is_none();
                by_chance && matches!(clients.rate, Rate::Mean(_))
            })
    }

    /// More replicas than there ever are.
    pub(crate) fn most_replicas(&self) -> usize {
        let scaled = self.acts.iter().map(|(_, act)| match act {
            Act::Scale(count) => *count,
            Act::Replace | Act::AddDead => 1,
        });
        self.replicas + scaled.sum::<usize>()
    }
}

/// Who sees what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// All on one plain host: no names.
    Plain,
    /// All on one node of a cluster.
    One,
    /// Each replica on a node of its own.
    Own,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Connections,
    ByteRate,
}

/// Clients of a kind.
#[derive(Clone)]
pub(crate) struct Clients {
    /// Addresses.
    pub(crate) addresses: usize,
    /// Connections of them all.
    pub(crate) connections: usize,
    pub(crate) dial: Dial,
    /// How long each connection is wanted; for ever if `None`. Others come as these go.
    pub(crate) stay: Option<Duration>,
    pub(crate) rate: Rate,
    pub(crate) backoff: Backoff,
}

/// After how long a client connects again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backoff {
    /// At once.
    None,
    /// Mostly within a second, rarely ten.
    Short,
    /// Around this.
    Long(Duration),
}

/// How a client comes to an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dial {
    /// By chance, each time.
    Chance,
    /// By chance, and then always there, as by ClientIP affinity.
    Sticky,
    /// Always this replica, as one that dials the pod does.
    Pod(usize),
}

/// Bytes per second.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// Heavy-tailed around the mean.
    Mean(f64),
    /// Each exactly.
    Each(f64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Replicas are added, or the last ones taken out.
    Scale(usize),
    /// A new replica is added and the oldest taken out.
    Replace,
    /// A replica is added that is ready and ends each connection at once.
    AddDead,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn web(connections: usize, addresses: usize) -> Clients {
    Clients {
        addresses,
        connections,
        dial: Dial::Chance,
        stay: None,
        rate: Rate::Mean(10_000.0),
        backoff: Backoff::Short,
    }
}

fn scale_out(
    name: &'static str,
    about: &'static str,
    from: usize,
    to: usize,
    clients: Vec<Clients>,
) -> Scenario {
    Scenario {
        name,
        about,
        replicas: from,
        nodes: Nodes::One,
        clients,
        acts: vec![(seconds(60), Act::Scale(to))],
        judged: seconds(61),
        ends: seconds(1200),
        interval: seconds(5),
        by: By::Connections,
        tolerance: 10,
    }
}

/// All of them; churn and holds last as long as is asked for.
pub(crate) fn all(churn: u32) -> Vec<Scenario> {
    let more = |name, about| scale_out(name, about, 1, 3, vec![web(300, 60)]);
    vec![
        more("scale-out-3", "300 connections on 1 replica, 2 are added"),
        scale_out(
            "scale-out-11",
            "1,100 connections on 10 replicas, 1 is added",
            10,
            11,
            vec![web(1100, 200)],
        ),
        Scenario {
            replicas: 5,
            acts: vec![(seconds(60), Act::Scale(3))],
            judged: seconds(75),
            ..more("scale-in", "300 connections on 5 replicas, 2 are taken out")
        },
        Scenario {
            replicas: 3,
            acts: [60, 72, 84].map(|at| (seconds(at), Act::Replace)).into(),
            judged: seconds(95),
            ..more("rolling-update", "3 replicas are replaced one by one")
        },
        Scenario {
            nodes: Nodes::Plain,
            clients: vec![Clients {
                backoff: Backoff::None,
                ..web(300, 1)
            }],
            interval: Duration::from_millis(500),
            tolerance: 20,
            ends: seconds(120),
            ..more(
                "lab",
                "300 connections of one address on 1 of 3, tolerance 20 %",
            )
        },
        Scenario {
            nodes: Nodes::Own,
            ..more(
                "own-nodes",
                "each replica on a node of its own, reports 10 s old",
            )
        },
        Scenario {
            clients: vec![web(1000, 2)],
            ..more(
                "ingress",
                "1,000 connections of two addresses, 2 replicas are added",
            )
        },
        Scenario {
            by: By::ByteRate,
            ..more(
                "rates",
                "by bytes per second, heavy-tailed; 2 replicas are added",
            )
        },
        elephant(),
        Scenario {
            clients: vec![Clients {
                dial: Dial::Sticky,
                ..web(300, 60)
            }],
            ends: seconds(4 * 3600),
            ..more(
                "sticky",
                "clients always come back to their replica; 4 hours",
            )
        },
        Scenario {
            clients: vec![late_and_sticky()],
            ends: seconds(4 * 3600),
            ..more(
                "sticky-late",
                "the same, and each only after some minutes; 4 hours",
            )
        },
        Scenario {
            nodes: Nodes::Own,
            clients: vec![late_and_sticky()],
            ends: seconds(4 * 3600),
            ..more(
                "sticky-late-own-nodes",
                "the same, each replica on a node of its own; 4 hours",
            )
        },
        Scenario {
            clients: vec![Clients {
                addresses: 3,
                stay: Some(seconds(300)),
                ..late_and_sticky()
            }],
            ends: seconds(4 * 3600),
            ..more(
                "sticky-shared",
                "300 of three addresses come and go, each address has its replica; 4 hours",
            )
        },
        Scenario {
            clients: vec![Clients {
                backoff: Backoff::Long(seconds(60)),
                ..web(300, 60)
            }],
            ends: seconds(3600),
            ..more(
                "late",
                "clients connect again by chance after a minute; an hour",
            )
        },
        Scenario {
            acts: vec![(seconds(60), Act::AddDead)],
            replicas: 2,
            ends: seconds(4 * 3600),
            ..more(
                "dead-replica",
                "300 connections on 2 replicas, 1 is added that ends each at once; 4 hours",
            )
        },
        flood(),
        self::churn(3, 300, churn),
        self::churn(10, 300, churn),
    ]
}

/// Who always comes back to its replica, and only after some minutes.
fn late_and_sticky() -> Clients {
    Clients {
        dial: Dial::Sticky,
        backoff: Backoff::Long(seconds(180)),
        ..web(300, 60)
    }
}

/// One of 50 connections carries nine tenths of all bytes.
fn elephant() -> Scenario {
    let small = Clients {
        rate: Rate::Mean(10_000.0),
        ..web(49, 10)
    };
    let heavy = Clients {
        rate: Rate::Each(9.0 * 49.0 * 10_000.0),
        ..web(1, 1)
    };
    Scenario {
        replicas: 3,
        by: By::ByteRate,
        acts: Vec::new(),
        judged: seconds(61),
        ends: seconds(3600),
        ..scale_out(
            "elephant",
            "one connection carries 90 % of the bytes; an hour",
            3,
            3,
            vec![small, heavy],
        )
    }
}

/// A client dials one pod directly, with as many connections as all others have together.
fn flood() -> Scenario {
    let direct = Clients {
        dial: Dial::Pod(0),
        ..web(300, 1)
    };
    Scenario {
        acts: Vec::new(),
        judged: seconds(61),
        ends: seconds(3600),
        ..scale_out(
            "flood",
            "one client dials one pod 300 times, 300 others come by chance; an hour",
            3,
            3,
            vec![web(300, 60), direct],
        )
    }
}

/// Connections come and go, always placed by chance: nothing is to be done.
fn churn(replicas: usize, connections: usize, intervals: u32) -> Scenario {
    let staying = Clients {
        stay: Some(seconds(300)),
        ..web(connections, 60)
    };
    let interval = seconds(5);
    Scenario {
        acts: Vec::new(),
        judged: Duration::ZERO,
        ends: interval * intervals,
        ..scale_out(
            if replicas == 3 { "churn-3" } else { "churn-10" },
            "300 connections come and go, placed by chance",
            replicas,
            replicas,
            vec![staying],
        )
    }
}
