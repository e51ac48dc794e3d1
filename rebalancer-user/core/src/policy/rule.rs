//! One rule: which connections, how old or large they may grow, and how they are ended.

use std::{
    fmt,
    num::NonZeroU64,
    ops::Range,
    sync::{Arc, LazyLock},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    error::Fault,
    matching::{Match, Mismatch, MissingFact},
    mode::Mode,
    notation::{self, Bytes, Name, PercentFrom, Read, Scalar, Time, is_label, word, words},
    section::{
        Constraints, Fields, Reader, items, list, optional, or, or_empty, part, required, section,
    },
    shape::Shape,
    units::Percent,
};
use crate::{
    snapshot::{Connection, Who},
    text::quoted,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

const TEN_PERCENT: Percent = Percent::new(10).unwrap();

section! {
    /// Which connections, how old or large they may grow, and how they are ended.
    pub struct Rule "Rule" {
        /// The rule's name: unique in this policy.
        name "name": RuleName as &RuleName = required(NameOfRule, "a name, e.g. `name: checkout`");
        /// The most that this rule may do; the policy's `mode` bounds it.
        mode "mode": Option<Mode> = optional(word()).means("the policy's `mode`");
        /// Which connections the rule applies to.
        matches "match": Match as &Match = required(
            part(), "what it is for, e.g. `match: {ports: [{port: 8080}]}`");
        /// How old or large a connection may grow. One that exceeds any limit is to be moved. A
        /// rule has `limits`, `balance` or `drain`, or several of them.
        limits "limits": Limits = or_empty(part());
        /// When an endpoint holds too much compared with the others of its Service; only the excess
        /// is moved.
        balance "balance": Option<Balance> = optional(part());
        /// When a pod's connections leave it because it stops, or receives no new ones.
        drain "drain": Option<Drain> as Option<&Drain> = optional(part());
        /// By how much, at most, each connection's own limits are below those of the rule, so that
        /// connections opened together are not moved together.
        jitter "jitter": Percent = or(PercentFrom(0), TEN_PERCENT);
        /// What a reconnect costs the client. A rule with a step `AtOnce` or `atEnd: ResetNow` must
        /// set `Safe` or `LosesState`.
        on_reconnect "onReconnect": OnReconnect = or(word(), OnReconnect::Detect);
        /// Ways to end a connection, in order, the gentlest first. Defaults to one `Reset` at a
        /// quiet moment.
        steps "steps": Arc<[Step]> as &Arc<[Step]> = or(
            list(part(), 8).not_empty(), [Step::DEFAULT].into());
        /// What happens once all steps have timed out.
        at_end "atEnd": AtEnd = or(word(), AtEnd::Skip);
        /// What the kernel counts on each connection beyond what it counts anyway, at some cost to
        /// each send. Without it no program runs on a send.
        count "count": Option<Count> = optional(word()).means("nothing, unless `balance.by` implies it");
    }
}

impl Constraints for Rule {
    fn check(rule: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        if fields.get("balance").is_none() && fields.get("drain").is_none() {
            let write = "a limit, e.g. `limits: {maxAge: 30m}`, or `balance: {by: Connections}`";
            fields.require("limits", write, reader);
        }
        if let Some(at) = at_any_moment(fields, reader) {
            if fields.get("onReconnect").is_none() {
                // A fallback alone must not vouch for what it ends.
                let label = "ends connections at any moment, whatever their protocol";
                let remedy = "write `onReconnect: Safe` into the rule if that costs a client no \
                              more than a reconnect, `LosesState` if more may be lost; or wait \
                              for a quiet moment";
                reader.report(at, Fault::new("missing field `onReconnect`", label, remedy));
            } else if fields.is("onReconnect", "Detect") {
                let label = "with `AtOnce` or `ResetNow`, which do not wait for protocol detection";
                let remedy = "write `Safe` or `LosesState`, or wait for a quiet moment";
                let fault = Fault::new("a contradiction within the rule", label, remedy);
                reader.report(reader.place_of(fields.get("onReconnect")), fault);
            }
        }
        if fields.get("onReconnect").is_some() && !fields.is("onReconnect", "Detect") {
            let steps = items(fields.get("steps")).iter();
            let mut steps = steps.filter_map(|step| step.value.field("step"));
            if let Some(notice) = steps.find(|step| step.value.is("Notice")) {
                let label = "is for what is detected as HTTP/2, and this rule detects nothing";
                let remedy = "write `onReconnect: Detect`, or remove the step";
                let fault = Fault::new("a contradiction within the rule", label, remedy);
                reader.report(reader.place(notice), fault);
            }
        }
        let steps = rule.map(|rule| rule.steps.iter()).unwrap_or_default();
        let given = items(fields.get("steps")).iter();
        let ends = |(step, _): &(&Step, _)| {
            step.kind == StepKind::Reset && step.condition == Condition::AtOnce
        };
        if let Some((_, unreached)) = steps.zip(given).skip_while(|step| !ends(step)).nth(1) {
            let label = "a reset at once has ended the connection before";
            let fault = Fault::new("a step that is never reached", label, "remove it");
            reader.report(reader.place(unreached), fault);
        }
    }

    fn completed(mut self) -> Self {
        let by = self.balance.map(|balance| balance.by);
        let implied = (by == Some(By::MessageRate)).then_some(Count::Messages);
        self.count = self.count.or(implied);
        self
    }

    fn schema() -> Json {
        let required = ["limits", "balance", "drain"].map(|field| json!({"required": [field]}));
        json!({"anyOf": required})
    }
}

impl Rule {
    /// The rule of connections that an operator drains and that no rule of the policy matches.
    pub fn manual() -> &'static Self {
        static MANUAL: LazyLock<Rule> = LazyLock::new(|| Rule {
            name: RuleName::manual(),
            mode: None,
            matches: Match::default(),
            limits: Limits::default(),
            balance: None,
            drain: None,
            jitter: TEN_PERCENT,
            on_reconnect: OnReconnect::Detect,
            steps: [Step::NOTICE, Step::DEFAULT].into(),
            at_end: AtEnd::Skip,
            count: None,
        });
        &MANUAL
    }

    /// Why it is not for `connection`, accepted by `who`; `None` if it is.
    ///
    /// A certain mismatch takes precedence over facts that are missing.
    pub fn mismatch(&self, connection: &Connection, who: &Who) -> Option<Mismatch> {
        self.matches
            .mismatch(connection, who, self.drains_removed_within())
    }

    /// Whether connections accepted at `port` by `who` can match: which fact about the endpoint is
    /// missing, if any.
    ///
    /// # Errors
    /// They cannot.
    pub(crate) fn of_endpoint(
        &self,
        port: u16,
        who: &Who,
    ) -> Result<Option<MissingFact>, Mismatch> {
        self.matches
            .of_endpoint(port, who, self.drains_removed_within())
    }

    /// For how long a Service that a pod was removed from still counts as one of the pod's.
    fn drains_removed_within(&self) -> Duration {
        let drain = self.drain.as_ref();
        let drain = drain.filter(|drain| drain.begins_on(DrainOn::Removed));
        drain.map_or(Duration::ZERO, |drain| drain.within)
    }

    /// Whether one of its steps tells the client to leave.
    pub fn gives_notice(&self) -> bool {
        self.steps.iter().any(Step::is_notice)
    }
}

/// Where a rule says that connections may be ended without a condition.
fn at_any_moment(fields: &Fields<'_>, reader: &Reader<'_>) -> Option<Range<usize>> {
    if fields.is("atEnd", "ResetNow") {
        return Some(reader.place_of(fields.get("atEnd")));
    }
    let mut whens = items(fields.get("steps"))
        .iter()
        .filter_map(|step| step.value.field("when"));
    whens
        .find(|when| when.value.is("AtOnce"))
        .map(|when| reader.place(when))
}

/// A rule's name: a DNS label, unique in its policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleName(Arc<str>);

impl RuleName {
    /// Stands for the rule of a manual move. No rule of a policy can have this name.
    pub fn manual() -> Self {
        Self("(manual)".into())
    }

    /// A name as an agent shows it; `None` if no rule can have it.
    pub fn known(text: &str) -> Option<Self> {
        let manual = Self::manual();
        if text == manual.as_str() {
            return Some(manual);
        }
        is_label(text).then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuleName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::known(&text).ok_or_else(|| format!("{} is not a rule's name", quoted(&text)))
    }
}

impl From<RuleName> for String {
    fn from(name: RuleName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// [`RuleName`]s as a policy writes them.
struct NameOfRule;

impl Scalar for NameOfRule {
    type Value = RuleName;

    fn read(&self, value: notation::Value<'_>) -> Read<RuleName> {
        Scalar::read(&Name, value).map(|name| RuleName(name.into()))
    }

    fn show(&self, value: &RuleName) -> String {
        Scalar::show(&Name, &value.to_string())
    }

    fn shape(&self) -> Shape {
        Scalar::shape(&Name)
    }
}

section! {
    /// How old or large a connection may grow: at least one limit.
    #[derive(Copy, Default)]
    pub struct Limits "Limits" {
        /// The time since it was accepted.
        max_age "maxAge": Option<Duration> = optional(Time(MILLISECOND..=YEAR));
        /// The bytes it has carried, both directions together.
        max_bytes "maxBytes": Option<NonZeroU64> = optional(Bytes);
        /// Its byte rate, both directions together.
        max_rate "maxRate": Option<MaxRate> = optional(part());
    }
}

impl Constraints for Limits {
    fn check(_: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        if fields.is_empty() {
            let remedy = "write maxAge, maxBytes or maxRate, e.g. `limits: {maxAge: 30m}`";
            let fault = Fault::new("no limit", "nothing would ever exceed it", remedy);
            reader.report(fields.at.clone(), fault);
        }
    }

    fn schema() -> Json {
        json!({"minProperties": 1})
    }
}

section! {
    /// A rate that is too high if it is sustained without a pause; a burst is not.
    #[derive(Copy)]
    pub struct MaxRate "Rate" {
        /// The rate, in bytes per second.
        bytes_per_second "bytesPerSecond": NonZeroU64 = required(
            Bytes, "e.g. `maxRate: {bytesPerSecond: 50Mi, for: 30s}`");
        /// How long it must have been sustained: at least twice the interval, so that no single
        /// burst is long enough.
        sustained_for "for": Duration = required(
            Time(MILLISECOND..=DAY), "e.g. `maxRate: {bytesPerSecond: 50Mi, for: 30s}`");
    }
}

impl Constraints for MaxRate {}

section! {
    /// When an endpoint holds too much compared with the others of its Service.
    #[derive(Copy)]
    pub struct Balance "Balance" {
        /// The load that is compared with the mean.
        by "by": By = or(word(), By::Connections);
        /// How far above the mean an endpoint may stay. An excess that random placement explains is
        /// left in any case.
        tolerance "tolerance": Percent = or(PercentFrom(1), TEN_PERCENT);
    }
}

impl Constraints for Balance {}

section! {
    /// When a pod's connections leave it: at quiet moments or by a step `Notice`, spread over the time that is
    /// left. Of the budgets only `maxInFlight` bounds them.
    pub struct Drain "Drain" {
        /// The events that begin it.
        on "on": Arc<[DrainOn]> as &Arc<[DrainOn]> = required(
            list(word(), 3).not_empty(), "an event, e.g. `drain: {on: [Terminating]}`");
        /// How long the connections of a pod that was `Removed` or is `Unready` may take to leave. One that is
        /// `Terminating` has until its containers are asked to stop.
        within "within": Duration = or(Time(Duration::from_secs(5)..=HOUR), MINUTE);
    }
}

impl Constraints for Drain {}

impl Drain {
    /// Whether this event begins it.
    pub fn begins_on(&self, event: DrainOn) -> bool {
        self.on.contains(&event)
    }
}

words! {
    /// What begins a drain.
    pub enum DrainOn {
        /// The pod is being deleted. Its containers must have at least five seconds until they are asked to
        /// stop, as by `preStop: {sleep: {seconds: 15}}`.
        Terminating,
        /// The pod lives, but is no endpoint of its Service any more: the selector or the pod's labels have
        /// changed. Connections that were opened before leave it.
        Removed,
        /// The pod is an endpoint of its Service still, but is not ready any more. Connections that were opened
        /// before leave it.
        Unready,
    }
}

words! {
    /// The load of an endpoint.
    pub enum By {
        /// The number of connections.
        Connections,
        /// Bytes per second, both directions together.
        ByteRate,
        /// Sends of the server per second; implies `count: Messages`.
        MessageRate,
    }
}

words! {
    /// What a reconnect costs the client.
    pub enum OnReconnect {
        /// Unknown, so the agent sniffs the protocol and moves only HTTP/1 connections, between two
        /// exchanges, and with a step `Notice` HTTP/2. Ports of protocols that keep state in the
        /// connection (PostgreSQL, Redis, MQTT and others; gRPC without that step) are skipped.
        Detect,
        /// Nothing, whatever the protocol: a quiet moment is enough. Those ports are skipped.
        Safe,
        /// The state in the connection, and losing it is acceptable.
        LosesState,
    }
}

section! {
    /// One way to end a connection.
    #[derive(Copy)]
    pub struct Step "Step" {
        /// What is done.
        kind "step": StepKind = required(word(), "one, e.g. `step: Reset`");
        /// When it is done.
        condition "when": Condition = or(word(), Step::DEFAULT.condition);
        /// How long nothing must have been exchanged for a moment to be quiet.
        idle_for "idleFor": Duration = or(Time(MILLISECOND..=DAY), Step::DEFAULT.idle_for);
        /// How long the step may take before the next one is tried.
        timeout "timeout": Duration = or(Time(MILLISECOND..=DAY), Step::DEFAULT.timeout);
    }
}

impl Constraints for Step {
    fn check(_: Option<&Self>, fields: &Fields<'_>, reader: &mut Reader<'_>) {
        let idle_for = fields.get("idleFor");
        if fields.is("step", "Notice") && fields.is("when", "AtOnce") {
            let label = "`step: Notice` begins at a quiet moment";
            let fault = Fault::new("a condition that it cannot have", label, "remove `when`");
            reader.report(reader.place_of(fields.get("when")), fault);
        }
        if fields.is("when", "AtOnce") && idle_for.is_some() {
            let label = "`when: AtOnce` waits for no idle time";
            let fault = Fault::new("a condition without effect", label, "remove `idleFor`");
            reader.report(reader.place_of(idle_for), fault);
        }
    }

    fn hides(&self, name: &str) -> bool {
        name == "idleFor" && self.condition == Condition::AtOnce
    }
}

impl Step {
    /// The only step of a rule that gives none.
    const DEFAULT: Self = Self {
        kind: StepKind::Reset,
        condition: Condition::Quiet,
        idle_for: Duration::from_millis(200),
        timeout: Duration::from_secs(120),
    };

    const NOTICE: Self = Self {
        kind: StepKind::Notice,
        ..Self::DEFAULT
    };

    /// The step that `atEnd: ResetNow` adds.
    pub const RESET_NOW: Self = Self {
        condition: Condition::AtOnce,
        timeout: Duration::from_secs(5),
        ..Self::DEFAULT
    };

    /// A step; `None` if its times are not more than 0.
    pub fn new(kind: StepKind, when: When, timeout: Duration) -> Option<Self> {
        let (condition, idle_for) = match when {
            When::Quiet { idle_for } => (Condition::Quiet, idle_for),
            When::AtOnce => (Condition::AtOnce, Self::DEFAULT.idle_for),
        };
        (!idle_for.is_zero() && !timeout.is_zero()).then_some(Self {
            kind,
            condition,
            idle_for,
            timeout,
        })
    }

    /// Whether it tells the client to leave.
    pub fn is_notice(&self) -> bool {
        self.kind == StepKind::Notice
    }

    /// The condition that it waits for.
    pub fn when(&self) -> When {
        match self.condition {
            Condition::Quiet => When::Quiet {
                idle_for: self.idle_for,
            },
            Condition::AtOnce => When::AtOnce,
        }
    }
}

words! {
    /// What a step does.
    pub enum StepKind {
        /// Tells the client of an HTTP/2 connection in clear text, such as gRPC, to leave: with a
        /// GOAWAY in front of what the server sends. The client finishes its calls, opens no new
        /// ones on it, and closes it. Only what is detected as HTTP/2 takes this step, and no
        /// other; it begins at a quiet moment, and what cannot be followed from there on is left.
        Notice,
        /// Gives the server an end of file, as if its client had closed, so that it closes.
        Close,
        /// Resets the connection at both ends.
        Reset,
    }
}

words! {
    /// When a step acts.
    pub enum Condition {
        /// Once all data has been read and acknowledged, the server has sent last, and nothing has
        /// been exchanged for `idleFor`.
        Quiet,
        /// Immediately, whatever is under way.
        AtOnce,
    }
}

/// When a step acts, as [`Condition`] and `idleFor` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At a quiet moment.
    Quiet {
        /// More than 0.
        idle_for: Duration,
    },
    /// Without a condition.
    AtOnce,
}

words! {
    /// What happens when all steps have timed out.
    pub enum AtEnd {
        /// The connection is kept.
        Skip,
        /// The connection is reset, whatever is under way.
        ResetNow,
    }
}

words! {
    /// What a program of the agent counts on a connection, at some cost to it.
    pub enum Count {
        /// Each send of the server, and its bytes.
        Messages,
    }
}
