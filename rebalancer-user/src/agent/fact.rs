//! Everything that the agent reports.

use std::{io, time::Duration};

use rebalancer_common::Fault;

use super::mover_signs::MoverSigns;
use crate::{
    api::PausedStatus,
    bpf,
    counting::CountingReport,
    observe::Observation,
    plan::{Cooldown, Drained, Ledger, Move, NewHold, Outcome, Plan, Recall, TooShort},
    policy::{Mode, Policy, StepKind},
    snapshot::{Cookie, Snapshot},
};

/// Something that happened to the agent, or that it did.
pub(super) enum Fact<'a> {
    /// A policy was accepted: the `first`, or a later one.
    PolicyLoaded {
        /// The mode that the file sets.
        mode: Mode,
        /// As it is in effect on this node.
        policy: &'a Policy,
        first: bool,
    },
    /// A policy was refused; the one before it stays in effect.
    PolicyRefused { error: &'a str },
    /// There are pods on this node, and no API server to ask which of them to skip.
    PodsWithoutNames { cgroup: &'a str },
    /// An operator has paused moves.
    Paused {
        paused: &'a PausedStatus,
        /// Moves that were in flight.
        recalled: usize,
        /// Why a restart would end the pause.
        not_saved: Option<&'a io::Error>,
    },
    /// The pause that the previous agent saved is still in effect.
    StillPaused { paused: &'a PausedStatus },
    /// The pause has ended.
    Resumed { cause: ResumeCause },
    /// A pass is complete.
    Passed(Pass<'a>),
    /// A pass could not list; it is `repeated` if the one before could not either.
    ListingFailed {
        error: &'a bpf::Error,
        repeated: bool,
    },
    /// A pass could list again.
    ListingRecovered,
    /// The mode forbids a move that is due.
    WouldMove { chosen: &'a Move },
    /// A move was started.
    MoveStarted {
        chosen: &'a Move,
        snapshot: &'a Snapshot,
    },
    /// A move in flight was recalled.
    MoveRecalled(&'a Recall),
    /// A move has ended.
    MoveEnded {
        chosen: &'a Move,
        /// The step at which it ended.
        step: Option<StepKind>,
        outcome: &'a Outcome,
        /// From its start.
        waited: Duration,
    },
    /// The connections of an endpoint begin to leave.
    DrainBegan(&'a Drained),
    /// It is empty, or its time is over.
    DrainEnded {
        drained: &'a Drained,
        /// The most connections that it had.
        all: u64,
    },
    /// A pod is being deleted that stops too soon to be drained.
    DrainTooShort(&'a TooShort),
    /// Moves do not help; the agent stops trying them for a time.
    CooldownStarted(&'a NewHold),
    /// An operator has ended a cooldown.
    CooldownCleared(&'a Cooldown),
    /// The moving thread is stuck or has panicked, and was abandoned.
    MoverLost { cause: MoverLoss, may_restart: bool },
    /// Another moving thread was started.
    MoverReplaced { signs: MoverSigns },
    /// The system call of an abandoned moving thread returned, and the thread ended.
    MoverAnswered { at: Option<Cookie> },
    /// What the counting of sends reports.
    Counting(&'a CountingReport),
    /// The thread that counts sends could not be started.
    CountingNotStarted { error: &'a io::Error },
    /// Another program was attached after ours, so ours was attached again after it.
    AttachedAgain { next_check: Duration },
    /// The kernel half has counted `new` faults since the last pass.
    KernelFault { fault: Fault, new: u64, total: u64 },
    /// Reports of this node or views of the cluster are not exchanged, and why; or they are again.
    ExchangeChanged { trouble: Option<&'a str> },
    /// Records with invalid values.
    InvalidRecords { count: u64 },
}

/// A pass that is complete.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) observation: &'a Observation,
    pub(super) plan: &'a Plan,
    pub(super) ledger: &'a Ledger,
    /// Duration of the whole pass.
    pub(super) duration: Duration,
    /// Duration of listing.
    pub(super) listing: Duration,
    /// Duration of deciding.
    pub(super) deciding: Duration,
    /// How much the next pass is delayed to keep walks below their share of a CPU.
    pub(super) put_off: Duration,
}

/// Why a pause has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResumeCause {
    Asked,
    Expired,
    /// The namespace's annotation is gone.
    Annotation,
}

impl ResumeCause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Expired => "expired",
            Self::Annotation => "annotation",
        }
    }
}

/// Why a moving thread was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MoverLoss {
    /// The kernel does not answer it.
    Stuck {
        time: Duration,
        at: Option<Cookie>,
    },
    Panicked,
}

impl MoverLoss {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stuck { .. } => "stuck",
            Self::Panicked => "panicked",
        }
    }

    /// The connection at which it is stuck.
    pub(super) fn at(self) -> Option<Cookie> {
        match self {
            Self::Stuck { at, .. } => at,
            Self::Panicked => None,
        }
    }
}
