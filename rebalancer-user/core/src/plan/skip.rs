//! Why a connection is left.

use std::{fmt, sync::Arc, time::Duration};

use bytesize::ByteSize;

use super::{
    BudgetOf, DrainCause, FillFailure, Load, LoadComparison, NoView, Outcome, Reason, Refusal,
    Subject, Test, Unknown, limits::rounded,
};
use crate::{
    policy::{By, MissingFact, RuleName},
    snapshot::{ServiceName, TcpState},
};

/// The annotation or label by which a pod, a Service or a namespace opts out.
const OPT_OUT: &str = "rebalancer.dev/enabled";

/// One row for each: its fields, each with a value for the test; then its stable word, what it says
/// of the connection, and what it would take for it to be moved. A text is a literal in which fields
/// stand in braces, or a block that makes a `String`.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $({$($(#[$field_doc:meta])* $field:ident: $type:ty = $sample:expr),*})?
        => $word:tt: $sentence:tt, needs $needs:tt;)*) => {
        /// Why a connection is left. Shown as a sentence without its full stop.
        ///
        /// There is one for nearly each connection: what is large is shared or boxed.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum SkipReason {
            $($(#[$doc])* $variant $({$($(#[$field_doc])* $field: $type),*})?,)*
        }

        #[allow(unused_variables, reason = "not every text names every field")]
        impl SkipReason {
            /// A stable word, for logs and metrics.
            pub fn as_str(&self) -> &'static str {
                match self { $(Self::$variant $({$($field),*})? => word!($word),)* }
            }

            /// What it would take for the connection to be moved, as a phrase.
            pub fn needs(&self) -> String {
                match self { $(Self::$variant $({$($field),*})? => text!($needs),)* }
            }

            fn sentence(&self) -> String {
                match self { $(Self::$variant $({$($field),*})? => text!($sentence),)* }
            }

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                vec![$(Self::$variant $({$($field: $sample),*})?,)*]
            }
        }
    };
}

macro_rules! word {
    ($word:literal) => {
        $word
    };
    ($block:block) => {
        $block
    };
}

macro_rules! text {
    ($text:literal) => {
        format!($text)
    };
    ($block:block) => {
        $block
    };
}

reasons! {
    // The listing, the rules, and moves under way.

    /// The snapshot has its cookie more than once: which is meant is not known.
    Duplicate => "duplicate": "its cookie was listed more than once", needs "a listing that has it once";
    /// A move of it has been started and not ended.
    InFlight => "inFlight": "a move of it is under way", needs "nothing: it is being moved";
    /// No rule matches it.
    NoRule => "noRule": "no rule matches it", needs "a rule whose `match` covers it";
    /// The rule that chose it does not match it any more: its move is recalled.
    OtherRule { /** The rule. */ chosen_by: RuleName = RuleName::manual() }
        => "otherRule": "rule {chosen_by}, which chose it, does not match it any more",
        needs "nothing: it is judged by the rule that matches it now";
    /// A rule names cgroups, and the path of this one's is not known.
    CgroupUnknown => "cgroupUnknown": "a rule names cgroups, and its own is gone or not known",
        needs "a rule for it that names no cgroups, in front";
    /// The policy or its rule is disabled.
    Disabled => "disabled": "the policy or its rule is disabled",
        needs "mode DryRun or Enforce: in the policy, the rule and --mode";

    // What it is: guards of the socket and its ports.

    /// Not in a state to be moved.
    NotEstablished { /** Its state. */ state: TcpState = TcpState::CloseWait }
        => "notEstablished": { format!("its state is {}", state.name()) },
        needs "nothing: it is ending by itself";
    /// A subflow of an MPTCP connection: without it its client would be stranded.
    Mptcp => "mptcp": "it is a subflow of an MPTCP connection",
        needs "a plain TCP connection: MPTCP is never moved";
    /// Its client is at a loopback address, and `track.loopback` is not set.
    Loopback => "loopback": "its client is at a loopback address", needs "`track.loopback: true`";
    /// Client and server have one address: a hop of a host, or of a pod, to itself.
    SameHost => "sameHost": "client and server have the same address",
        needs "a client elsewhere: this one would come back here";
    /// It is of the host's own network namespace, and `guards.allowHostNetwork` is false.
    HostNetwork => "hostNetwork": "it is of the host's own network namespace",
        needs "`guards.allowHostNetwork: true`";
    /// A port of the node's own services, not in `guards.allowSystemPorts`.
    SystemPort { /** The port. */ port: u16 = 22, /** Whose it is. */ service: &'static str = "SSH" }
        => "systemPort": "port {port} is a system port ({service}), not in allowSystemPorts",
        needs "{port} in `guards.allowSystemPorts`";
    /// A port of a protocol that keeps a session's state in its connection.
    StatefulPort {
        /** The port. */ port: u16 = 5432,
        /** The protocol. */ protocol: &'static str = "PostgreSQL"
    }
        => "statefulPort": "port {port} ({protocol}) may hold session state",
        needs "`onReconnect: LosesState` in its rule, if that may be lost";

    // Whose it is: guards of its pod, and of what is known of it.

    /// Its pod, a Service that leads there, or their namespace asks to be left alone.
    OptedOut {
        /** `pod`, `Service` or `namespace`. */ kind: &'static str = "Service",
        /** Namespace and name; a namespace's own. */ name: Arc<str> = "shop/checkout".into()
    }
        => "optedOut": "{kind} {name} opts out: its `{OPT_OUT}` is not \"true\"",
        needs "{kind} {name} without `{OPT_OUT}`, or with \"true\" in it";
    /// Its pod is being deleted, or taken out of its Service.
    Terminating { /** Namespace and name. */ pod: Arc<str> = "shop/web-0".into() }
        => "terminating": "pod {pod} is being taken out of service", needs "nothing: its pod is ending";
    /// Its rule drains, but its pod is asked to stop too soon.
    NoTimeToDrain {
        /** Namespace and name. */ pod: Arc<str> = "shop/web-0".into(),
        /** From its deletion on. */ stops_after: Duration = Duration::ZERO,
        /** What would be enough. */ enough: Duration = Duration::from_secs(15)
    }
        => "noTimeToDrain": {
            let stops_after = rounded(*stops_after);
            format!("pod {pod} is being deleted and asked to stop after {stops_after}: too soon to drain it")
        },
        needs {
            let seconds = enough.as_secs();
            format!("a container with `lifecycle: {{preStop: {{sleep: {{seconds: {seconds}}}}}}}`")
        };
    /// Its rule does nothing but drain, and its endpoint is not drained.
    NotDrained => "notDrained": "its rule only drains, and no event that begins it has happened",
        needs "`limits` or `balance` in its rule, or an event that its `drain` names";
    /// Its endpoint is drained, and others leave first.
    DrainedLater {
        /** Why it is drained. */ cause: DrainCause = DrainCause::Terminating,
        /** Until its pod is asked to stop, or the drain ends. */ left: Duration = AGE
    }
        => "drainedLater": {
            let left = rounded(*left);
            match cause {
                DrainCause::Terminating => format!("its pod is asked to stop in {left}, and others leave it first"),
                DrainCause::Removed | DrainCause::Unready | DrainCause::Requested => {
                    format!("its endpoint is drained for another {left}, and others leave it first")
                }
            }
        },
        needs "nothing: it leaves before that";
    /// Its endpoint is drained, and it was opened after that began.
    OpenedLater => "openedLater": "it was opened after the drain of its endpoint began",
        needs "nothing: only connections that were opened before leave";
    /// Its pod is of a namespace in `guards.excludeNamespaces`.
    ExcludedNamespace { /** The namespace. */ namespace: Arc<str> = "kube-system".into() }
        => "excludedNamespace": "namespace {namespace} is in excludeNamespaces",
        needs "`guards.excludeNamespaces` without {namespace}";
    /// What is asked of its names is not known.
    Unnamed {
        /** What would have to be known. */ lack: MissingFact = MissingFact::Pod,
        /** The rule that asks; without one, a guard. */ rule: Option<RuleName> = None
    }
        => "unnamed": {
            let unless = match (rule, lack) {
                (Some(rule), _) => format!("rule {rule} may be for it"),
                (None, MissingFact::Pod) => "its namespace may be in excludeNamespaces".to_owned(),
                (None, MissingFact::NamespaceLabels) => "that may opt out".to_owned(),
                (None, _) => "a move may not help".to_owned(),
            };
            format!("it is not known {lack}: {unless}")
        },
        needs {
            let of_guard = (*lack, rule) == (MissingFact::Pod, &None);
            let its = if of_guard { "its pod" } else { "its names" };
            let or = if of_guard { ", or `guards.excludeNamespaces: []`" } else { "" };
            format!("{its} in the API server's answer{or}")
        };
    /// Its rule asks for names, and the API server does not answer: they may have changed.
    StaleFacts {
        /** For how long it has not; `None`: never yet. */ silent: Option<Duration> = Some(AGE)
    }
        => "staleFacts": {
            match silent.map(rounded) {
                Some(silent) => format!("the API server has not answered for {silent}: names may have changed"),
                None => "the API server has not answered yet".to_owned(),
            }
        },
        needs "that the API server answers";

    // Where its client would go: guards of its Services.

    /// Its Service sends new connections elsewhere.
    Unready {
        /** The pod's namespace and name. */ pod: Arc<str> = "shop/web-0".into(),
        /** The Service. */ service: Arc<ServiceName> = service("checkout")
    }
        => "unready": "pod {pod} is not ready: Service {service} does not lead there now",
        needs "that pod {pod} becomes ready";
    /// No Service leads to this port of its pod: its client has dialled the pod and would again.
    NoService => "noService": "no Service leads to this port of its pod: its client would come back",
        needs "a Service that leads to this port of its pod";
    /// A Service leads there of which nothing is known.
    ServiceUnknown { /** The Service. */ service: Arc<ServiceName> = service("checkout") }
        => "serviceUnknown": "nothing is known of Service {service}, which leads there",
        needs "Service {service} in the API server's answer";
    /// Only a headless Service leads there: its clients choose their endpoints by themselves.
    Headless { /** The Service. */ service: Arc<ServiceName> = service("checkout") }
        => "headless": "Service {service} is headless: its clients choose an endpoint themselves",
        needs "a Service with a cluster IP in front of its pod";
    /// Services with different endpoints lead there, and its rule does not name one alone.
    AmbiguousService {
        /** One of them. */ one: Arc<ServiceName> = service("checkout"),
        /** Another. */ other: Arc<ServiceName> = service("all")
    }
        => "ambiguousService": "Services {one} and {other} lead there and have different endpoints",
        needs "a rule that names one of them alone in `match.services`";
    /// `sessionAffinity: ClientIP`: its client would come back.
    SessionAffinity { /** The Service. */ service: Arc<ServiceName> = service("checkout") }
        => "sessionAffinity": "Service {service} has sessionAffinity ClientIP: its client would come back",
        needs "`sessionAffinity: None` in Service {service}";
    /// Its client is another endpoint of its own Service.
    SiblingPeer { /** The Service. */ service: Arc<ServiceName> = service("checkout") }
        => "siblingPeer": "its client is an endpoint of Service {service} itself",
        needs "another client: endpoints of a Service talk among themselves";
    /// The Service keeps traffic on the node it has reached, and this node has too few endpoints.
    LocalTraffic {
        /** The Service. */ service: Arc<ServiceName> = service("checkout"),
        /** `internalTrafficPolicy` or `externalTrafficPolicy`. */ policy: &'static str = "internalTrafficPolicy",
        /** Ready endpoints on this node. */ ready: u32 = 1,
        /** The guard's. */ min: u32 = 2
    }
        => "localTraffic": "Service {service} has {policy} Local and {ready} ready on this node, below minReadyEndpoints {min}",
        needs { format!("{} more ready on this node", min.saturating_sub(*ready)) };
    /// Fewer ready endpoints than `guards.minReadyEndpoints`.
    MinReadyEndpoints {
        /** The Service. */ service: Arc<ServiceName> = service("checkout"),
        /** It keeps traffic to zones or nodes: there are more, farther away. */ in_zone: bool = false,
        /** Ready endpoints. */ ready: u32 = 0,
        /** The guard's. */ min: u32 = 2
    }
        => "minReadyEndpoints": {
            let near = if *in_zone { " near this node" } else { "" };
            format!("Service {service} has {ready} of the {min} ready endpoints{near} that minReadyEndpoints asks for")
        },
        needs { format!("{} more ready, or a lower `guards.minReadyEndpoints`", min.saturating_sub(*ready)) };
    /// The Service's ready endpoints changed less than `guards.stabilizationWindow` ago.
    Stabilizing {
        /** The Service. */ service: Arc<ServiceName> = service("checkout"),
        /** Since they changed. */ since: Duration = AGE,
        /** The guard's. */ stabilization_window: Duration = AGE * 5
    }
        => "stabilizing": {
            let [since, window] = [*since, *stabilization_window].map(rounded);
            format!("the endpoints of Service {service} changed {since} ago, less than stabilizationWindow {window}")
        },
        needs { format!("{} without a change", rounded(stabilization_window.saturating_sub(*since))) };
    /// The Service declares HTTP/2 for its port, where a slow call may hide behind others.
    Http2 { /** The port. */ port: u16 = 8080, /** The Service. */ service: Arc<ServiceName> = service("checkout") }
        => "http2": "port {port} speaks HTTP/2 by the word of Service {service}",
        needs "a step `Notice` in its rule, or `onReconnect: LosesState`, if calls may be lost";

    // Limits.

    /// No limit is exceeded.
    WithinLimits { /** The limit that it is nearest to. */ nearest: Reason = REASON }
        => "withinLimits": "within its limits: {nearest}",
        needs {
            match *nearest {
                Reason::Age { value, limit, .. } => format!("an age of {} more", rounded(limit.saturating_sub(value))),
                Reason::Bytes { value, limit, .. } => format!("{} more", ByteSize::b(limit.0.saturating_sub(value.0))),
                Reason::Rate { limit, held, .. } => format!("{}/s held for {}", ByteSize::b(limit.0), rounded(held)),
                // No limit.
                Reason::Drain { .. } | Reason::Balance { .. } => "an excess of its endpoint".to_owned(),
            }
        };
    /// The one limit is of a rate that is not known.
    RateUnknown { /** Which. */ unknown: Unknown = unknown() }
        => "rateUnknown": "{unknown}",
        needs { format!("to be watched for {}, as the agent does", rounded(unknown.0.sustained_for())) };

    // Why it is not moved now.

    /// Younger than `guards.minAge`.
    MinAge { /** Its age. */ age: Duration = AGE, /** The guard's. */ min: Duration = AGE * 3 }
        => "minAge": { format!("age {} is below minAge {}", rounded(*age), rounded(*min)) },
        needs { format!("an age of {} more", rounded(min.saturating_sub(*age))) };
    /// A move of it ended less than [`super::FIRST_HOLD`] ago.
    Held {
        /** How it ended. */ after: Outcome = Outcome::GaveUp,
        /** Until it may be chosen again. */ left: Duration = Duration::from_millis(599_900)
    }
        => { match after {
            Outcome::GaveUp => "gaveUp",
            Outcome::Refused(_) | Outcome::Recalled(_) => "refused",
            Outcome::Failed(_) => "failed",
            Outcome::LeftByItself | Outcome::Noticed | Outcome::Closed | Outcome::Reset | Outcome::GoneBefore => "moved",
        } }: { format!("a move of it {after}; not again for {}", rounded(*left)) },
        needs { if after.leaves_it() { wait_or_clear(*left) } else { format!("a wait of {}", rounded(*left)) } };
    /// Its first bytes showed a protocol that a quiet moment does not protect, or none that the agent
    /// recognises.
    Sniffed {
        /** What. */ refusal: Refusal = Refusal::Http2,
        /** Until it may be chosen again; without it, for as long as it lives. */ left: Option<Duration> = None
    }
        => { refusal.as_str() }: {
            let until = left.map(|left| format!("; not again for {}", rounded(left)));
            format!("{}{}", refusal.sentence(), until.unwrap_or_default())
        },
        needs { refusal.remedy().to_owned() };
    /// Its client sends nothing at present, so that its protocol cannot be detected.
    Silent { /** Since it was last received from. */ since: Duration = AGE }
        => "silent": { format!("its client has sent nothing for {}, so its protocol cannot be detected", rounded(*since)) },
        needs "that its client sends something, or `onReconnect: Safe` in its rule, if a reconnect costs its client nothing";
    /// In dry run, and reported already.
    DryRun => "dryRun": "would be moved (dry run, already reported)",
        needs "mode Enforce: in the policy, the rule and --mode";
    /// Moves were seen not to help: clients came back to the same endpoint more often than by
    /// chance. Not of one that has reached its `maxAge`.
    Returns {
        /** Whose clients. */ subject: Subject = Subject::Client([10, 0, 0, 7].into()),
        /** The evidence. */ test: Box<Test> = Box::new(Test { moves: 6, returned: 6, siblings: 3, ..Test::default() }),
        /** Until a move is tried again. */ left: Duration = Duration::from_secs(600)
    }
        => "returns": {
            let Test { moves, returned, siblings, .. } = **test;
            let left = rounded(*left);
            format!("{returned} of {moves} moves of {subject} came back to this endpoint, where chance brings one of {siblings}; only maxAge moves it for {left}")
        },
        needs { wait_or_clear(*left) };
    /// It is not known yet whether moves help: the first few are under way.
    FirstFew {
        /** Whose moves. */ subject: Subject = Subject::Client([10, 0, 0, 7].into()),
        /** How many. */ under_way: u64 = 6,
        /** How many may be until then. */ most: u64 = 6
    }
        => "firstFew": "{under_way} moves of {subject} are under way, and it is not known yet whether they help (at most {most} until then)",
        needs "that their clients are seen at another endpoint";

    // Budgets.

    /// As many moves as are allowed are in flight.
    MaxInFlight { /** The bound. */ max: u64 = 20 }
        => "maxInFlight": "{max} moves are under way, the most allowed", needs "that a move under way ends";
    /// Its rule and namespace have more than half of the moves that may be in flight, and others wait.
    OthersWait { /** How many they have. */ held: u64 = 15, /** The bound. */ max: u64 = 20 }
        => "othersWait": "its rule and namespace have {held} of the {max} moves that may be under way, and others wait",
        needs "its turn";
    /// The window's moves are used up.
    Budget {
        /** Whose. */ of: BudgetOf = BudgetOf::Node,
        /** The bound. */ moves: u64 = 60,
        /** What the bound grows to, if its rule has not been enforced for long; else the same. */ whole: u64 = 60,
        /** Over this time. */ window: Duration = Duration::from_secs(60)
    }
        => { of.skip_word() }: {
            let grows = if whole > moves { format!("; it grows to {whole} (ramp)") } else { String::new() };
            let window = rounded(*window);
            match moves {
                0 => format!("the budget has no move yet in {window} ({of}){grows}"),
                _ => format!("the budget of {moves} moves in {window} ({of}) is used up{grows}"),
            }
        },
        needs { format!("its turn, within {} or later", rounded(*window)) };

    // Balance.

    /// Its endpoint does not hold more than its siblings, beyond tolerance and chance.
    WithinBalance { /** How it compares. */ comparison: LoadComparison = COMPARISON }
        => "withinBalance": "{comparison}",
        needs {
            match comparison.start {
                Some(start) => format!("an endpoint that holds {}", Load(comparison.by, start)),
                None => "more connections, so that chance explains less".to_owned(),
            }
        };
    /// Its endpoint sheds others, and then holds no more than it should.
    OthersMoved { /** How it compares. */ comparison: LoadComparison = COMPARISON }
        => "othersMoved": {
            let [stop, load] = [comparison.stop, comparison.load].map(|load| Load(comparison.by, load));
            format!("others are moved until the endpoint holds {stop}, not {load}")
        },
        needs "nothing: others are moved";
    /// It counts for more than its endpoint has too much: any other would be as hot with it.
    LargerThanExcess {
        /** What is balanced. */ by: By = By::ByteRate,
        /** What it counts for. */ load: u64 = 90 << 20,
        /** What the endpoint has too much. */ excess: u64 = 50 << 20
    }
        => "largerThanExcess": {
            let [load, excess] = [*load, *excess].map(|load| Load(*by, load));
            format!("it counts for {load}, more than the {excess} that its endpoint has too much")
        },
        needs { format!("an excess of {}", Load(*by, *load)) };
    /// What it counts for has not been measured yet.
    LoadUnknown => "loadUnknown": "its rate has not been measured yet", needs "one listing more";
    /// Not all endpoints that share its clients are seen here, so that their mean is not known.
    NoClusterView { /** What is seen. */ view: NoView = NoView { here: 1, all: Some(3), cause: super::NoClusterView::Off } }
        => "noClusterView": {
            let seen = match (view.here, view.all) {
                (here, Some(all)) => format!("of the {all} ready endpoints of its Service {here} are seen here"),
                (_, None) => "the endpoints that share its clients are not known".to_owned(),
            };
            match view.cause.sentence() {
                Some(cause) => format!("{seen}, and {cause}"),
                None => seen,
            }
        },
        needs {
            let here = "all ready endpoints of its Service on this node";
            match view.cause.needs() {
                Some(cause) => format!("{cause}, or {here}"),
                None => here.to_owned(),
            }
        };
    /// New connections are not sent to its endpoint: it is compared with no other.
    NotReady => "notReady": "its endpoint is not ready", needs "that its endpoint is ready";
    /// Moves among its endpoint and its siblings have not filled the emptiest of them.
    FillFailed {
        /** What was moved. */ failure: Box<FillFailure> = Box::new(FILL_FAILURE),
        /** Until a move is tried again. */ left: Duration = Duration::from_secs(600)
    }
        => "fillFailed": { format!("{failure}; not again for {}", rounded(*left)) },
        needs { format!("that the emptiest endpoint keeps what comes to it, or {}", wait_or_clear(*left)) };
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())
    }
}

fn wait_or_clear(left: Duration) -> String {
    format!(
        "a wait of {}, or `rebalancer cooldowns clear`",
        rounded(left)
    )
}

#[cfg(test)]
use tests::{AGE, COMPARISON, FILL_FAILURE, REASON, service, unknown};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::NoClusterView, policy, snapshot::sample};

    pub(super) const AGE: Duration = Duration::from_secs(12);

    pub(super) const REASON: Reason = Reason::Age {
        value: AGE,
        limit: Duration::from_secs(24),
        max: Duration::from_secs(36),
    };

    pub(super) const COMPARISON: LoadComparison = LoadComparison {
        by: By::Connections,
        endpoints: 3,
        load: 104,
        mean: 100,
        stop: 110,
        start: Some(143),
    };

    pub(super) const FILL_FAILURE: FillFailure = FillFailure {
        moves: 480,
        by: By::Connections,
        endpoints: 3,
        least: 0,
        mean: 100,
        brought: 160,
    };

    pub(super) fn service(name: &str) -> Arc<ServiceName> {
        Arc::new(sample::service(name))
    }

    pub(super) fn unknown() -> Unknown {
        let fast =
            "match: {ports: [{port: 80}]}, limits: {maxRate: {bytesPerSecond: 1Mi, for: 30s}}";
        let policy = policy::sample::policy(&format!("rules: [{{name: fast, {fast}}}]\n"));
        Unknown(policy.rules()[0].limits().max_rate().expect("a rate"))
    }

    /// Each once, and those whose texts depend on their fields in every other way.
    #[test]
    fn each_reads_as_a_sentence_with_its_word() {
        let rule = || Some(RuleName::manual());
        let (minute, left) = (Duration::from_secs(60), Some(AGE));
        let held = |after| SkipReason::Held {
            after,
            left: minute,
        };
        let budget = |of, whole| SkipReason::Budget {
            of,
            moves: 60,
            whole,
            window: minute,
        };
        let sniffed = |refusal, left| SkipReason::Sniffed { refusal, left };
        let unnamed = |lack, rule| SkipReason::Unnamed { lack, rule };
        let (service, by) = (service("checkout"), By::Connections);
        let mut all = SkipReason::samples();
        all.extend([
            unnamed(MissingFact::NamespaceLabels, None),
            unnamed(MissingFact::Services, None),
            unnamed(MissingFact::Services, rule()),
            SkipReason::StaleFacts { silent: None },
            SkipReason::MinReadyEndpoints {
                service,
                in_zone: true,
                ready: 1,
                min: 2,
            },
            held(Outcome::Refused(Refusal::Sigpipe)),
            held(Outcome::Failed("EPERM".into())),
            held(Outcome::Reset),
            sniffed(Refusal::Tls, None),
            sniffed(Refusal::Upgraded, None),
            sniffed(Refusal::ProtocolUnknown, left),
            sniffed(Refusal::Silent, left),
            sniffed(Refusal::CannotSniff, left),
            SkipReason::Returns {
                subject: Subject::Rule(RuleName::manual()),
                test: Box::default(),
                left: minute,
            },
            budget(BudgetOf::Service, 60),
            budget(BudgetOf::Endpoint, 60),
            budget(BudgetOf::Share, 60),
            budget(BudgetOf::Node, 600),
            SkipReason::Budget {
                of: BudgetOf::Service,
                moves: 0,
                whole: 3,
                window: minute,
            },
            SkipReason::WithinBalance {
                comparison: LoadComparison {
                    start: None,
                    ..COMPARISON
                },
            },
            SkipReason::LargerThanExcess {
                by,
                load: 3,
                excess: 2,
            },
        ]);
        let causes = [
            NoClusterView::Off,
            NoClusterView::Awaited,
            NoClusterView::Expired,
            NoClusterView::OtherGeneration,
            NoClusterView::Incomplete,
        ];
        all.extend(causes.map(|cause| {
            let all = (cause != NoClusterView::Off).then_some(3);
            let view = NoView {
                here: 1,
                all,
                cause,
            };
            SkipReason::NoClusterView { view }
        }));
        let line = |skip: &SkipReason| {
            let needs = skip.needs();
            format!("{}: {skip}; needs {needs}\n", skip.as_str())
        };
        insta::assert_snapshot!(all.iter().map(line).collect::<String>());
    }
}
