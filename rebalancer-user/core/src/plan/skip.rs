//! Why a connection is left.

use std::{fmt, time::Duration};

use bytesize::ByteSize;

use super::{
    BudgetOf, Futile, LoadComparison, NoView, Outcome, Reason, Refusal, Subject, Unknown,
    limits::{Load, rounded},
};
use crate::{
    policy::{By, MissingFact, RuleName},
    snapshot::{ServiceName, TcpState},
};

/// What a pod or a Service says to be left alone.
const OPT_OUT: &str = "rebalancer.dev/enabled";

/// Why a connection is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The snapshot has its cookie more than once: which is meant is not known.
    Duplicate,
    /// A move of it has been started and not ended.
    InFlight,
    /// No rule matches it.
    NoRule,
    /// The rule that chose it does not match it any more: its move is recalled.
    OtherRule {
        /// The rule.
        chosen_by: RuleName,
    },
    /// A rule names cgroups, and the path of this one's is not known.
    CgroupUnknown,
    /// The policy or its rule is disabled.
    Disabled,
    /// Not in a state to be moved.
    NotEstablished {
        /// Its state.
        state: TcpState,
    },
    /// A subflow of an MPTCP connection: without it its client would be stranded.
    Mptcp,
    /// Its client is at a loopback address, and `track.loopback` is not set.
    Loopback,
    /// Client and server have one address: a hop of a host, or of a pod, to itself.
    SameHost,
    /// It is of the host's own network namespace, and `guards.allowHostNetwork` is false.
    HostNetwork,
    /// A port of the node's own services, not in `guards.allowSystemPorts`.
    SystemPort {
        /// The port.
        port: u16,
        /// Whose it is.
        service: &'static str,
    },
    /// A port of a protocol that keeps a session's state in its connection.
    StatefulPort {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: &'static str,
    },
    /// Its pod, a Service that leads there, or their namespace asks to be left alone.
    OptedOut {
        /// `pod`, `Service` or `namespace`.
        kind: &'static str,
        /// Namespace and name; a namespace's own.
        name: String,
    },
    /// Its pod is being deleted, or taken out of its Service.
    Terminating {
        /// Namespace and name.
        pod: String,
    },
    /// Its Service sends new connections elsewhere.
    Unready {
        /// The pod's namespace and name.
        pod: String,
        /// The Service.
        service: ServiceName,
    },
    /// No Service leads to this port of its pod: its client has dialled the pod and would again.
    NoService,
    /// A Service leads there of which nothing is known.
    ServiceUnknown {
        /// The Service.
        service: ServiceName,
    },
    /// Only a headless Service leads there: its clients choose their endpoints by themselves.
    Headless {
        /// The Service.
        service: ServiceName,
    },
    /// Services with different endpoints lead there, and its rule does not name one alone.
    AmbiguousService {
        /// One of them.
        one: ServiceName,
        /// Another.
        other: ServiceName,
    },
    /// `sessionAffinity: ClientIP`: its client would come back.
    SessionAffinity {
        /// The Service.
        service: ServiceName,
    },
    /// Its client is another endpoint of its own Service.
    SiblingPeer {
        /// The Service.
        service: ServiceName,
    },
    /// The Service keeps traffic on the node it has reached, and this node has too few endpoints.
    LocalTraffic {
        /// The Service.
        service: ServiceName,
        /// `internalTrafficPolicy` or `externalTrafficPolicy`.
        policy: &'static str,
        /// Ready endpoints on this node.
        ready: u32,
        /// The guard's.
        min: u32,
    },
    /// Fewer ready endpoints than `guards.minReadyEndpoints`.
    MinReadyEndpoints {
        /// The Service.
        service: ServiceName,
        /// It keeps traffic to zones or nodes: there are more, farther away.
        in_zone: bool,
        /// Ready endpoints.
        ready: u32,
        /// The guard's.
        min: u32,
    },
    /// The Service's ready endpoints changed less than `guards.stabilizationWindow` ago.
    Stabilizing {
        /// The Service.
        service: ServiceName,
        /// Since they changed.
        since: Duration,
        /// The guard's.
        stabilization_window: Duration,
    },
    /// By the Service's own word its port speaks HTTP/2, where a call may hide behind another.
    Http2 {
        /// The port.
        port: u16,
        /// The Service.
        service: ServiceName,
    },
    /// Its pod is of a namespace in `guards.excludeNamespaces`.
    ExcludedNamespace {
        /// The namespace.
        namespace: String,
    },
    /// What is asked of its names is not known.
    Unnamed {
        /// What would have to be known.
        lack: MissingFact,
        /// The rule that asks; without one, a guard.
        rule: Option<RuleName>,
    },
    /// Its rule asks for names, and the API server does not answer: they may have changed.
    StaleFacts {
        /// For how long it has not; `None`: never yet.
        silent: Option<Duration>,
    },
    /// Younger than `guards.minAge`.
    MinAge {
        /// Its age.
        age: Duration,
        /// The guard's.
        min: Duration,
    },
    /// No limit is exceeded.
    WithinLimits {
        /// The limit that it is nearest to.
        nearest: Reason,
    },
    /// The one limit is of a rate that is not known.
    RateUnknown(Unknown),
    /// A move of it ended less than [`super::FIRST_HOLD`] ago.
    Held {
        /// How it ended.
        after: Outcome,
        /// Until it may be chosen again.
        left: Duration,
    },
    /// It was heard to speak something that a quiet moment does not protect, or nothing that could
    /// be told.
    Sniffed {
        /// What.
        refusal: Refusal,
        /// Until it may be chosen again; without it, for as long as it lives.
        left: Option<Duration>,
    },
    /// Its client says nothing now, so that it cannot be heard to speak HTTP/1.
    Silent {
        /// Since it was last received from.
        since: Duration,
    },
    /// In dry run, and told already.
    DryRun,
    /// As many moves as are allowed are in flight.
    MaxInFlight {
        /// The bound.
        max: u64,
    },
    /// Its rule and namespace have more than half of the moves that may be in flight, and others wait.
    OthersWait {
        /// How many they have.
        held: u64,
        /// The bound.
        max: u64,
    },
    /// The window's moves are used up.
    Budget {
        /// Whose.
        of: BudgetOf,
        /// The bound.
        moves: u64,
        /// What the bound grows to, if its rule has not been enforced for long; else the same.
        whole: u64,
        /// Over this time.
        window: Duration,
    },
    /// Its endpoint does not hold more than its siblings, beyond tolerance and chance.
    WithinBalance(LoadComparison),
    /// Its endpoint sheds others, and then holds no more than it should.
    OthersMoved(LoadComparison),
    /// It counts for more than its endpoint has too much: any other would be as hot with it.
    LargerThanExcess {
        /// What is balanced.
        by: By,
        /// What it counts for.
        load: u64,
        /// What the endpoint has too much.
        excess: u64,
    },
    /// What it counts for has not been measured yet.
    LoadUnknown,
    /// Not all endpoints that share its clients are seen here, so that their mean is not known.
    NoClusterView(NoView),
    /// New connections are not sent to its endpoint: it is compared with no other.
    NotReady,
    /// Moves were seen not to help: clients came back to the same endpoint more often than by
    /// chance.
    Returns {
        /// Whose clients.
        whom: Subject,
        /// Of so many moves,
        moves: u64,
        /// so many came back,
        returned: u64,
        /// where one of so many does by chance.
        siblings: u32,
        /// Until a move is tried again.
        left: Duration,
    },
    /// Moves among its endpoint and its siblings have not filled the emptiest of them.
    Futile {
        /// What was moved.
        futile: Futile,
        /// Until a move is tried again.
        left: Duration,
    },
    /// It is not known yet whether moves help: the first few are under way.
    FirstFew {
        /// Whose moves.
        whom: Subject,
        /// How many.
        under_way: u64,
        /// How many may be until then.
        most: u64,
    },
}

impl SkipReason {
    /// A stable word, for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::InFlight => "inFlight",
            Self::NoRule => "noRule",
            Self::OtherRule { .. } => "otherRule",
            Self::CgroupUnknown => "cgroupUnknown",
            Self::Disabled => "disabled",
            Self::NotEstablished { .. } => "notEstablished",
            Self::Mptcp => "mptcp",
            Self::Loopback => "loopback",
            Self::SameHost => "sameHost",
            Self::HostNetwork => "hostNetwork",
            Self::SystemPort { .. } => "systemPort",
            Self::StatefulPort { .. } => "statefulPort",
            Self::OptedOut { .. } => "optedOut",
            Self::Terminating { .. } => "terminating",
            Self::Unready { .. } => "unready",
            Self::NoService => "noService",
            Self::ServiceUnknown { .. } => "serviceUnknown",
            Self::Headless { .. } => "headless",
            Self::AmbiguousService { .. } => "ambiguousService",
            Self::SessionAffinity { .. } => "sessionAffinity",
            Self::SiblingPeer { .. } => "siblingPeer",
            Self::LocalTraffic { .. } => "localTraffic",
            Self::MinReadyEndpoints { .. } => "minReadyEndpoints",
            Self::Stabilizing { .. } => "stabilizing",
            Self::Http2 { .. } => "http2",
            Self::ExcludedNamespace { .. } => "excludedNamespace",
            Self::Unnamed { .. } => "unnamed",
            Self::StaleFacts { .. } => "staleFacts",
            Self::MinAge { .. } => "minAge",
            Self::WithinLimits { .. } => "withinLimits",
            Self::RateUnknown(_) => "rateUnknown",
            Self::Held { after, .. } => match after {
                Outcome::GaveUp => "gaveUp",
                Outcome::Refused(_) | Outcome::Recalled(_) => "refused",
                Outcome::Failed(_) => "failed",
                Outcome::LeftByItself | Outcome::Closed | Outcome::Reset | Outcome::GoneBefore => {
                    "moved"
                }
            },
            Self::Sniffed { refusal, .. } => refusal.as_str(),
            Self::Silent { .. } => "silent",
            Self::DryRun => "dryRun",
            Self::MaxInFlight { .. } => "maxInFlight",
            Self::OthersWait { .. } => "othersWait",
            Self::Budget { of, .. } => match of {
                BudgetOf::Node => "budget",
                BudgetOf::Service => "serviceBudget",
                BudgetOf::Endpoint => "endpointBudget",
            },
            Self::WithinBalance(_) => "withinBalance",
            Self::OthersMoved(_) => "othersMoved",
            Self::LargerThanExcess { .. } => "largerThanExcess",
            Self::LoadUnknown => "loadUnknown",
            Self::NoClusterView(_) => "noClusterView",
            Self::NotReady => "notReady",
            Self::Returns { .. } => "returns",
            Self::Futile { .. } => "futile",
            Self::FirstFew { .. } => "firstFew",
        }
    }

    /// What it would take for the connection to be moved, as a phrase.
    pub fn needs(&self) -> String {
        match self {
            Self::Duplicate => "a listing that has it once".to_owned(),
            Self::InFlight => "nothing: it is being moved".to_owned(),
            Self::NoRule => "a rule whose `match` covers it".to_owned(),
            Self::OtherRule { .. } => "nothing: it is judged by the rule that matches it now".to_owned(),
            Self::CgroupUnknown => "a rule for it that names no cgroups, in front".to_owned(),
            Self::Disabled => {
                "mode DryRun or Enforce: in the policy, the rule and --mode".to_owned()
            }
            Self::NotEstablished { .. } => "nothing: it is ending by itself".to_owned(),
            Self::Mptcp => "a plain TCP connection: MPTCP is never moved".to_owned(),
            Self::Loopback => "`track.loopback: true`".to_owned(),
            Self::SameHost => "a client elsewhere: this one would come back here".to_owned(),
            Self::HostNetwork => "`guards.allowHostNetwork: true`".to_owned(),
            Self::SystemPort { port, .. } => format!("{port} in `guards.allowSystemPorts`"),
            Self::StatefulPort { .. } => {
                "`onReconnect: LosesState` in its rule, if that may be lost".to_owned()
            }
            Self::OptedOut { kind, name } => {
                format!("{kind} {name} without `{OPT_OUT}`, or with \"true\" in it")
            }
            Self::Terminating { .. } => "nothing: its pod is ending".to_owned(),
            Self::Unready { pod, .. } => format!("that pod {pod} becomes ready"),
            Self::NoService => "a Service that leads to this port of its pod".to_owned(),
            Self::ServiceUnknown { service } => {
                format!("Service {service} in the API server's answer")
            }
            Self::Headless { .. } => "a Service with a cluster IP in front of its pod".to_owned(),
            Self::AmbiguousService { .. } => {
                "a rule that names one of them alone in `match.services`".to_owned()
            }
            Self::SessionAffinity { service } => {
                format!("`sessionAffinity: None` in Service {service}")
            }
            Self::SiblingPeer { .. } => {
                "another client: endpoints of a Service talk among themselves".to_owned()
            }
            Self::LocalTraffic { ready, min, .. } => {
                format!("{} more ready on this node", min.saturating_sub(*ready))
            }
            Self::MinReadyEndpoints { ready, min, .. } => format!(
                "{} more ready, or a lower `guards.minReadyEndpoints`",
                min.saturating_sub(*ready)
            ),
            Self::Stabilizing { since, stabilization_window, .. } => {
                format!(
                    "{} without a change",
                    rounded(stabilization_window.saturating_sub(*since))
                )
            }
            Self::Http2 { .. } => {
                "`onReconnect: LosesState` in its rule, if calls may be lost".to_owned()
            }
            Self::ExcludedNamespace { namespace } => {
                format!("`guards.excludeNamespaces` without {namespace}")
            }
            Self::Unnamed {
                lack: MissingFact::Pod,
                rule: None,
            } => "its pod in the API server's answer, or `guards.excludeNamespaces: []`".to_owned(),
            Self::Unnamed { .. } => "its names in the API server's answer".to_owned(),
            Self::StaleFacts { .. } => "that the API server answers".to_owned(),
            Self::MinAge { age, min } => {
                format!("an age of {} more", rounded(min.saturating_sub(*age)))
            }
            Self::WithinLimits { nearest } => match *nearest {
                Reason::Age { value, limit, .. } => {
                    format!("an age of {} more", rounded(limit.saturating_sub(value)))
                }
                Reason::Bytes { value, limit, .. } => {
                    let more = limit.0.saturating_sub(value.0);
                    format!("{} more", ByteSize::b(more))
                }
                Reason::Rate { limit, held, .. } => {
                    format!("{}/s held for {}", ByteSize::b(limit.0), rounded(held))
                }
                // No limit.
                Reason::Balance { .. } => "an excess of its endpoint".to_owned(),
            },
            Self::RateUnknown(Unknown(asked)) => format!(
                "to be watched for {}, as the agent does",
                rounded(asked.sustained_for())
            ),
            Self::Held { after, left } if after.leaves_it() => wait_or_clear(*left),
            Self::Held { left, .. } => format!("a wait of {}", rounded(*left)),
            Self::Silent { .. } => {
                "that its client sends something, or `onReconnect: Safe` in its rule, if a reconnect costs its client nothing".to_owned()
            }
            Self::Sniffed { refusal, .. } => refusal.remedy().to_owned(),
            Self::DryRun => "mode Enforce: in the policy, the rule and --mode".to_owned(),
            Self::MaxInFlight { .. } => "that a move under way ends".to_owned(),
            Self::OthersWait { .. } => "its turn".to_owned(),
            Self::Budget { window, .. } => {
                format!("its turn, within {} or later", rounded(*window))
            }
            Self::WithinBalance(standing) => match standing.start {
                Some(start) => format!("an endpoint that holds {}", Load(standing.by, start)),
                None => "more connections, so that chance explains less".to_owned(),
            },
            Self::OthersMoved(_) => "nothing: others are moved".to_owned(),
            Self::LargerThanExcess { by, load, .. } => {
                format!("an excess of {}", Load(*by, *load))
            }
            Self::LoadUnknown => "one listing more".to_owned(),
            Self::NoClusterView(_) => "all ready endpoints of its Service on this node".to_owned(),
            Self::NotReady => "that its endpoint is ready".to_owned(),
            Self::Returns { left, .. } => wait_or_clear(*left),
            Self::Futile { left, .. } => format!(
                "that the emptiest endpoint keeps what comes to it, or {}",
                wait_or_clear(*left)
            ),
            Self::FirstFew { .. } => {
                "that their clients are seen at another endpoint".to_owned()
            }
        }
    }
}

fn wait_or_clear(left: Duration) -> String {
    format!(
        "a wait of {}, or `rebalancer cooldowns clear`",
        rounded(left)
    )
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate => f.write_str("its cookie was listed more than once"),
            Self::InFlight => f.write_str("a move of it is under way"),
            Self::NoRule => f.write_str("no rule matches it"),
            Self::OtherRule { chosen_by } => {
                write!(
                    f,
                    "rule {chosen_by}, which chose it, does not match it any more"
                )
            }
            Self::CgroupUnknown => {
                f.write_str("a rule names cgroups, and its own is gone or not known")
            }
            Self::Disabled => f.write_str("the policy or its rule is disabled"),
            Self::NotEstablished { state } => write!(f, "its state is {}", state.name()),
            Self::Mptcp => f.write_str("it is a subflow of an MPTCP connection"),
            Self::Loopback => f.write_str("its client is at a loopback address"),
            Self::SameHost => f.write_str("client and server have the same address"),
            Self::HostNetwork => f.write_str("it is of the host's own network namespace"),
            Self::SystemPort { port, service } => {
                write!(
                    f,
                    "port {port} is a system port ({service}), not in allowSystemPorts"
                )
            }
            Self::StatefulPort { port, protocol } => {
                write!(f, "port {port} ({protocol}) may hold session state")
            }
            Self::OptedOut { kind, name } => {
                write!(f, "{kind} {name} opts out: its `{OPT_OUT}` is not \"true\"")
            }
            Self::Terminating { pod } => write!(f, "pod {pod} is being taken out of service"),
            Self::Unready { pod, service } => {
                write!(
                    f,
                    "pod {pod} is not ready: Service {service} does not lead there now"
                )
            }
            Self::NoService => {
                f.write_str("no Service leads to this port of its pod: its client would come back")
            }
            Self::ServiceUnknown { service } => {
                write!(
                    f,
                    "nothing is known of Service {service}, which leads there"
                )
            }
            Self::Headless { service } => {
                write!(
                    f,
                    "Service {service} is headless: its clients choose an endpoint themselves"
                )
            }
            Self::AmbiguousService { one, other } => {
                write!(
                    f,
                    "Services {one} and {other} lead there and have different endpoints"
                )
            }
            Self::SessionAffinity { service } => write!(
                f,
                "Service {service} has sessionAffinity ClientIP: its client would come back"
            ),
            Self::SiblingPeer { service } => {
                write!(f, "its client is an endpoint of Service {service} itself")
            }
            Self::LocalTraffic {
                service,
                policy,
                ready,
                min,
            } => write!(
                f,
                "Service {service} has {policy} Local and {ready} ready on this node, below \
                 minReadyEndpoints {min}"
            ),
            Self::MinReadyEndpoints {
                service,
                in_zone,
                ready,
                min,
            } => {
                let near = if *in_zone { " near this node" } else { "" };
                write!(
                    f,
                    "Service {service} has {ready} of the {min} ready endpoints{near} that \
                     minReadyEndpoints asks for"
                )
            }
            Self::Stabilizing {
                service,
                since,
                stabilization_window,
            } => write!(
                f,
                "the endpoints of Service {service} changed {} ago, less than stabilizationWindow {}",
                rounded(*since),
                rounded(*stabilization_window)
            ),
            Self::Http2 { port, service } => {
                write!(
                    f,
                    "port {port} speaks HTTP/2 by the word of Service {service}"
                )
            }
            Self::ExcludedNamespace { namespace } => {
                write!(f, "namespace {namespace} is in excludeNamespaces")
            }
            Self::Unnamed {
                lack,
                rule: Some(rule),
            } => {
                write!(f, "it is not known {lack}: rule {rule} may be for it")
            }
            Self::Unnamed {
                lack: MissingFact::Pod,
                rule: None,
            } => write!(
                f,
                "it is not known {}: its namespace may be in excludeNamespaces",
                MissingFact::Pod
            ),
            Self::Unnamed {
                lack: MissingFact::NamespaceLabels,
                rule: None,
            } => write!(
                f,
                "it is not known {}: that may opt out",
                MissingFact::NamespaceLabels
            ),
            Self::Unnamed { lack, rule: None } => {
                write!(f, "it is not known {lack}: a move may not help")
            }
            Self::StaleFacts {
                silent: Some(silent),
            } => write!(
                f,
                "the API server has not answered for {}: names may have changed",
                rounded(*silent)
            ),
            Self::StaleFacts { silent: None } => f.write_str("the API server has not answered yet"),
            Self::MinAge { age, min } => {
                write!(f, "age {} is below minAge {}", rounded(*age), rounded(*min))
            }
            Self::WithinLimits { nearest } => write!(f, "within its limits: {nearest}"),
            Self::RateUnknown(unknown) => unknown.fmt(f),
            Self::Held { after, left } => {
                write!(f, "a move of it {after}; not again for {}", rounded(*left))
            }
            Self::Silent { since } => write!(
                f,
                "its client has sent nothing for {}, so its protocol cannot be detected",
                rounded(*since)
            ),
            Self::Sniffed { refusal, left } => {
                f.write_str(refusal.sentence())?;
                left.map_or(Ok(()), |left| {
                    write!(f, "; not again for {}", rounded(left))
                })
            }
            Self::DryRun => f.write_str("would be moved (dry run, already reported)"),
            Self::MaxInFlight { max } => write!(f, "{max} moves are under way, the most allowed"),
            Self::OthersWait { held, max } => write!(
                f,
                "its rule and namespace have {held} of the {max} moves that may be under way, and \
                 others wait"
            ),
            Self::Budget {
                of,
                moves,
                whole,
                window,
            } => {
                let window = rounded(*window);
                write!(
                    f,
                    "the budget of {moves} moves in {window} ({of}) is used up"
                )?;
                if whole > moves {
                    write!(f, "; it grows to {whole} (ramp)")?;
                }
                Ok(())
            }
            Self::WithinBalance(standing) => standing.fmt(f),
            Self::OthersMoved(standing) => {
                let LoadComparison { load, stop, .. } = *standing;
                let (load, stop) = (Load(standing.by, load), Load(standing.by, stop));
                write!(
                    f,
                    "others are moved until the endpoint holds {stop}, not {load}"
                )
            }
            Self::LargerThanExcess { by, load, excess } => write!(
                f,
                "it counts for {}, more than the {} that its endpoint has too much",
                Load(*by, *load),
                Load(*by, *excess)
            ),
            Self::LoadUnknown => f.write_str("its rate has not been measured yet"),
            Self::NoClusterView(NoView { here, all }) => match all {
                Some(all) => write!(
                    f,
                    "of the {all} ready endpoints of its Service {here} are seen here"
                ),
                None => f.write_str("the endpoints that share its clients are not known"),
            },
            Self::NotReady => f.write_str("its endpoint is not ready"),
            Self::Returns {
                whom,
                moves,
                returned,
                siblings,
                left,
            } => write!(
                f,
                "{returned} of {moves} moves of {whom} came back to this endpoint, where chance \
                 brings one of {siblings}; not again for {}",
                rounded(*left)
            ),
            Self::Futile { futile, left } => {
                write!(f, "{futile}; not again for {}", rounded(*left))
            }
            Self::FirstFew {
                whom,
                under_way,
                most,
            } => write!(
                f,
                "{under_way} moves of {whom} are under way, and it is not known yet whether they \
                 help (at most {most} until then)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FIRST_FEW;

    #[test]
    fn each_reads_as_a_sentence_with_its_word() {
        let age = Duration::from_secs(12);
        let nearest = Reason::Age {
            value: age,
            limit: age * 2,
            max: age * 3,
        };
        let service = || ServiceName {
            namespace: "shop".into(),
            name: "checkout".into(),
        };
        let held = |after| SkipReason::Held {
            after,
            left: Duration::from_millis(599_900),
        };
        let budget = |of| SkipReason::Budget {
            of,
            moves: 60,
            whole: 60,
            window: Duration::from_secs(60),
        };
        let standing = LoadComparison {
            by: By::Connections,
            endpoints: 3,
            load: 104,
            mean: 100,
            stop: 110,
            start: Some(143),
        };
        let returns = |whom| SkipReason::Returns {
            whom,
            moves: 6,
            returned: 6,
            siblings: 3,
            left: Duration::from_secs(600),
        };
        let all = [
            SkipReason::Duplicate,
            SkipReason::InFlight,
            SkipReason::NoRule,
            SkipReason::OtherRule {
                chosen_by: RuleName::manual(),
            },
            SkipReason::CgroupUnknown,
            SkipReason::Disabled,
            SkipReason::NotEstablished {
                state: TcpState::CloseWait,
            },
            SkipReason::Mptcp,
            SkipReason::Loopback,
            SkipReason::SameHost,
            SkipReason::HostNetwork,
            SkipReason::SystemPort {
                port: 22,
                service: "SSH",
            },
            SkipReason::StatefulPort {
                port: 5432,
                protocol: "PostgreSQL",
            },
            SkipReason::OptedOut {
                kind: "Service",
                name: "shop/checkout".into(),
            },
            SkipReason::Terminating {
                pod: "shop/web-0".into(),
            },
            SkipReason::Unready {
                pod: "shop/web-0".into(),
                service: service(),
            },
            SkipReason::NoService,
            SkipReason::ServiceUnknown { service: service() },
            SkipReason::Headless { service: service() },
            SkipReason::AmbiguousService {
                one: service(),
                other: ServiceName {
                    name: "all".into(),
                    ..service()
                },
            },
            SkipReason::SessionAffinity { service: service() },
            SkipReason::SiblingPeer { service: service() },
            SkipReason::LocalTraffic {
                service: service(),
                policy: "internalTrafficPolicy",
                ready: 1,
                min: 2,
            },
            SkipReason::MinReadyEndpoints {
                service: service(),
                in_zone: false,
                ready: 0,
                min: 2,
            },
            SkipReason::MinReadyEndpoints {
                service: service(),
                in_zone: true,
                ready: 1,
                min: 2,
            },
            SkipReason::Stabilizing {
                service: service(),
                since: age,
                stabilization_window: age * 5,
            },
            SkipReason::Http2 {
                port: 8080,
                service: service(),
            },
            SkipReason::ExcludedNamespace {
                namespace: "kube-system".into(),
            },
            SkipReason::Unnamed {
                lack: MissingFact::Pod,
                rule: None,
            },
            SkipReason::Unnamed {
                lack: MissingFact::Services,
                rule: None,
            },
            SkipReason::Unnamed {
                lack: MissingFact::Services,
                rule: Some(RuleName::manual()),
            },
            SkipReason::StaleFacts { silent: Some(age) },
            SkipReason::StaleFacts { silent: None },
            SkipReason::MinAge { age, min: age * 3 },
            SkipReason::WithinLimits { nearest },
            held(Outcome::GaveUp),
            held(Outcome::Refused(Refusal::Sigpipe)),
            held(Outcome::Failed("EPERM".into())),
            held(Outcome::Reset),
            SkipReason::Sniffed {
                refusal: Refusal::Http2,
                left: None,
            },
            SkipReason::Sniffed {
                refusal: Refusal::Tls,
                left: None,
            },
            SkipReason::Sniffed {
                refusal: Refusal::Upgraded,
                left: None,
            },
            SkipReason::Sniffed {
                refusal: Refusal::ProtocolUnknown,
                left: Some(age),
            },
            SkipReason::Sniffed {
                refusal: Refusal::Silent,
                left: Some(age),
            },
            SkipReason::Sniffed {
                refusal: Refusal::CannotSniff,
                left: Some(age),
            },
            SkipReason::Silent { since: age },
            SkipReason::DryRun,
            SkipReason::MaxInFlight { max: 20 },
            SkipReason::OthersWait { held: 15, max: 20 },
            budget(BudgetOf::Node),
            budget(BudgetOf::Service),
            budget(BudgetOf::Endpoint),
            SkipReason::Budget {
                of: BudgetOf::Node,
                moves: 1,
                whole: 60,
                window: Duration::from_secs(60),
            },
            SkipReason::WithinBalance(standing),
            SkipReason::WithinBalance(LoadComparison {
                start: None,
                ..standing
            }),
            SkipReason::OthersMoved(standing),
            SkipReason::LargerThanExcess {
                by: By::ByteRate,
                load: 90 << 20,
                excess: 50 << 20,
            },
            SkipReason::LoadUnknown,
            SkipReason::NoClusterView(NoView {
                here: 1,
                all: Some(3),
            }),
            SkipReason::NoClusterView(NoView { here: 1, all: None }),
            SkipReason::NotReady,
            returns(Subject::Client("10.0.0.7".parse().unwrap())),
            returns(Subject::Rule(RuleName::manual())),
            SkipReason::Futile {
                futile: Futile {
                    moves: 480,
                    by: By::Connections,
                    endpoints: 3,
                    least: 0,
                    mean: 100,
                    brought: 160,
                },
                left: Duration::from_secs(600),
            },
            SkipReason::FirstFew {
                whom: Subject::Client("10.0.0.7".parse().unwrap()),
                under_way: 6,
                most: FIRST_FEW,
            },
        ];
        let told: String = all
            .iter()
            .map(|skipped| {
                format!(
                    "{}: {skipped}; needs {}\n",
                    skipped.as_str(),
                    skipped.needs()
                )
            })
            .collect();
        insta::assert_snapshot!(told);
    }
}
