//! Scenarios: what happens in a simulated cluster.

use std::time::Duration;

use rebalancer_core::policy::By;

/// One scenario.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Endpoints at the start.
    pub(crate) replicas: usize,
    pub(crate) nodes: Nodes,
    pub(crate) clients: Vec<Clients>,
    pub(crate) acts: Vec<(Duration, Act)>,
    /// From when the imbalance exists; not before the last act.
    pub(crate) judged: Duration,
    pub(crate) ends: Duration,
    pub(crate) interval: Duration,
    pub(crate) by: By,
    pub(crate) tolerance: u64,
}

impl Scenario {
    /// Whether random placement and moves alone decide where connections are, so that the least number
    /// of moves is defined.
    pub(crate) fn has_least(&self) -> bool {
        let dead = self.acts.iter().any(|(_, act)| *act == Act::AddDead);
        !dead
            && self.clients.iter().all(|clients| {
                let by_chance = clients.dial == Dial::Chance && clients.stay.is_none();
                by_chance && matches!(clients.rate, Rate::Mean(_))
            })
    }

    /// An upper bound of the number of replicas.
    pub(crate) fn most_replicas(&self) -> usize {
        let scaled = self.acts.iter().map(|(_, act)| match act {
            Act::Scale(count) => *count,
            Act::Replace | Act::AddDead => 1,
        });
        self.replicas + scaled.sum::<usize>()
    }
}

/// How replicas are spread over nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// All on one plain host, without names.
    Plain,
    /// All on one node of a cluster.
    One,
    /// Each replica on a node of its own.
    Own,
}

/// A group of clients.
#[derive(Clone)]
pub(crate) struct Clients {
    /// The number of addresses.
    pub(crate) addresses: usize,
    /// The number of connections of all of them.
    pub(crate) connections: usize,
    pub(crate) dial: Dial,
    /// How long each client stays; `None`: for ever. Others arrive as these leave.
    pub(crate) stay: Option<Duration>,
    pub(crate) rate: Rate,
    pub(crate) backoff: Backoff,
}

/// The time until a client reconnects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backoff {
    /// At once.
    None,
    /// Mostly within a second, rarely ten.
    Short,
    /// Around this.
    Long(Duration),
}

/// How a client reaches an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dial {
    /// A random one each time.
    Chance,
    /// A random one at first, then always the same, as by ClientIP affinity.
    Sticky,
    /// Always this replica, as one that dials the pod does.
    Pod(usize),
}

/// Bytes per second.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// Heavy-tailed around the mean.
    Mean(f64),
    /// The same for each.
    Each(f64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Replicas are added, or the last ones removed.
    Scale(usize),
    /// A new replica is added and the oldest removed.
    Replace,
    /// A replica is added that is ready but ends each connection at once.
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

/// All of them; the churn lasts `churn` intervals.
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
            ..more("own-nodes", "each replica on a node of its own")
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
            nodes: Nodes::Own,
            clients: vec![Clients {
                backoff: Backoff::Long(seconds(60)),
                ..web(300, 60)
            }],
            ends: seconds(3600),
            ..more(
                "late-own-nodes",
                "the same, each replica on a node of its own; an hour",
            )
        },
        Scenario {
            nodes: Nodes::Own,
            clients: vec![web(1000, 2)],
            ..more(
                "ingress-own-nodes",
                "1,000 connections of two addresses, each replica on a node of its own",
            )
        },
        Scenario {
            nodes: Nodes::Own,
            ..scale_out(
                "scale-out-11-own-nodes",
                "1,100 connections on 10 replicas, 1 is added, each on a node of its own",
                10,
                11,
                vec![web(1100, 200)],
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

/// Clients that always return to their replica, after some minutes.
fn late_and_sticky() -> Clients {
    Clients {
        dial: Dial::Sticky,
        backoff: Backoff::Long(seconds(180)),
        ..web(300, 60)
    }
}

/// One of 50 connections carries 90 % of all bytes.
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

/// A client dials one pod directly, with as many connections as all others together.
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

/// Connections come and go, always placed at random: no move is needed.
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
