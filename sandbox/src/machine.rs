//! What may happen to a pod and to a container, as pure functions: state in, verdict out.
//!
//! ```text
//! pod        New ──Run──► Ready ──Stop──► Stopped ──Remove──► (gone)
//!             │             └─ pause or shim died ─► NotReady ──Stop──► Stopped
//!             └─ failed ─► (gone), or New again while a teardown is owed
//! container  New ──Create──► Created ──Start──► Running ──exit──► Exited ──Remove──► (gone)
//!                               └── start failed (128) ──────────► Exited      Unknown: only Stop and Remove
//! ```
//!
//! Nothing here knows of tasks, locks or time. The matches have no wildcard over a state, so a new one is decided
//! everywhere or does not compile. What a verdict means is the owner's business (`owner.rs`):
//! `Run` commits the intent and starts the operation, `Join` adds the caller to the running one, `Defer` asks again when
//! that has ended, `Interrupt` cancels it first, `Done` answers at once, `Deny` refuses.

use serde::{Deserialize, Serialize};

/// What a pod is between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodPhase {
    /// Has not been ready yet. Without a running operation: a start failed and its teardown is owed. The retry of the
    /// start, a stop or a remove does that first.
    New,
    Ready,
    /// Does not run any more and owes a teardown.
    NotReady,
    /// Torn down. Only the record and the files that Status may show are left.
    Stopped,
}

/// An operation on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodVerb {
    Run,
    Stop,
    Remove,
    /// Not asked by a client: the connection to the shim was lost.
    Rescue,
}

/// What a container is between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerPhase {
    /// Its creation runs, or failed and left something: no client sees it.
    New,
    Created,
    Running,
    Exited,
    Unknown,
}

/// An operation on a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerVerb {
    Create,
    Start,
    Stop,
    Remove,
    /// Of resources.
    Update,
}

/// Whether a pod takes containers: it does while it is ready and nobody stops or removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Run,
    Join,
    Defer,
    Interrupt,
    Done,
    Deny(Refusal),
}

/// Why a verb is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The name is taken by something that this request cannot be a retry of.
    Taken,
    /// The pod is not ready.
    PodNotReady,
    /// The container is not in the state that the verb starts from.
    WrongState,
    /// The container is being removed.
    Removing,
}

/// The verdict on a verb for a pod. For `Run`, the caller has checked that the spec is the same.
pub(crate) fn admit_pod(phase: PodPhase, in_flight: Option<PodVerb>, verb: PodVerb) -> Verdict {
    use PodPhase::{New, NotReady, Ready, Stopped};
    use PodVerb::{Remove, Rescue, Run, Stop};
    match (in_flight, verb) {
        (Some(Run), Run) | (Some(Stop), Stop) | (Some(Remove), Remove) => Verdict::Join,
        (Some(Run), Stop | Remove) => Verdict::Interrupt,
        // Rescue ends by itself: it has a deadline, and what it leaves undone the next Stop does.
        (Some(Stop | Rescue), Remove) | (Some(Remove | Rescue), Stop) | (Some(Rescue), Run) => Verdict::Defer,
        // The name becomes free, or the removal fails and the pod is still there: the answer is known then.
        (Some(Remove), Run) => Verdict::Defer,
        (Some(Stop), Run) => Verdict::Deny(Refusal::Taken),
        // These notice a dead shim themselves and do all that a rescue would.
        (Some(Run | Stop | Remove | Rescue), Rescue) => Verdict::Done,
        (None, Run) => match phase {
            New => Verdict::Run,
            Ready => Verdict::Done,
            NotReady | Stopped => Verdict::Deny(Refusal::Taken),
        },
        (None, Stop) => match phase {
            New | Ready | NotReady => Verdict::Run,
            Stopped => Verdict::Done,
        },
        (None, Remove) => Verdict::Run,
        (None, Rescue) => match phase {
            Ready | NotReady => Verdict::Run,
            New | Stopped => Verdict::Done,
        },
    }
}

/// The verdict on a verb for a container. For `Create`, the caller has checked that the spec is the same.
pub(crate) fn admit_container(
    gate: Gate,
    phase: ContainerPhase,
    in_flight: Option<ContainerVerb>,
    verb: ContainerVerb,
) -> Verdict {
    use ContainerVerb::{Create, Remove, Start, Stop, Update};
    match (in_flight, verb) {
        (Some(Create), Create) | (Some(Start), Start) | (Some(Stop), Stop) | (Some(Remove), Remove) => Verdict::Join,
        (Some(Create | Start), Stop | Remove) => Verdict::Interrupt,
        // The stop then kills at once, and its caller gets an answer all the same.
        (Some(Stop), Remove) => Verdict::Interrupt,
        (Some(Remove), Stop) => Verdict::Defer,
        (Some(Remove), Start) => Verdict::Deny(Refusal::Removing),
        (Some(Remove), Create) => Verdict::Defer,
        (Some(Create | Stop), Start) => Verdict::Deny(Refusal::WrongState),
        // The container is there already: a retry of its creation only wants the id.
        (Some(Start), Create) => Verdict::Done,
        (Some(Stop), Create) => Verdict::Deny(Refusal::Taken),
        // Another update may want other limits, so it does not join. An update has a deadline and ends by itself.
        (Some(Update), Start | Stop | Remove | Update) => Verdict::Defer,
        (Some(Update), Create) => Verdict::Done,
        (Some(Create | Start), Update) => Verdict::Defer,
        (Some(Stop), Update) => Verdict::Deny(Refusal::WrongState),
        (Some(Remove), Update) => Verdict::Deny(Refusal::Removing),
        (None, Create) => create(gate, phase),
        (None, Start) => start(gate, phase),
        (None, Stop) => match phase {
            ContainerPhase::Running | ContainerPhase::Unknown => Verdict::Run,
            ContainerPhase::New | ContainerPhase::Created | ContainerPhase::Exited => Verdict::Done,
        },
        (None, Remove) => Verdict::Run,
        (None, Update) => update(gate, phase),
    }
}

fn create(gate: Gate, phase: ContainerPhase) -> Verdict {
    match (phase, gate) {
        (_, Gate::Closed) => Verdict::Deny(Refusal::PodNotReady),
        (ContainerPhase::New, Gate::Open) => Verdict::Run,
        (ContainerPhase::Created, Gate::Open) => Verdict::Done,
        (ContainerPhase::Running | ContainerPhase::Exited | ContainerPhase::Unknown, Gate::Open) => {
            Verdict::Deny(Refusal::Taken)
        }
    }
}

fn start(gate: Gate, phase: ContainerPhase) -> Verdict {
    match (phase, gate) {
        (ContainerPhase::Created, Gate::Open) => Verdict::Run,
        (ContainerPhase::Created, Gate::Closed) => Verdict::Deny(Refusal::PodNotReady),
        (
            ContainerPhase::New | ContainerPhase::Running | ContainerPhase::Exited | ContainerPhase::Unknown,
            Gate::Open | Gate::Closed,
        ) => Verdict::Deny(Refusal::WrongState),
    }
}

fn update(gate: Gate, phase: ContainerPhase) -> Verdict {
    match (phase, gate) {
        (ContainerPhase::Created | ContainerPhase::Running, Gate::Open) => Verdict::Run,
        (ContainerPhase::Created | ContainerPhase::Running, Gate::Closed) => Verdict::Deny(Refusal::PodNotReady),
        (ContainerPhase::New | ContainerPhase::Exited | ContainerPhase::Unknown, Gate::Open | Gate::Closed) => {
            Verdict::Deny(Refusal::WrongState)
        }
    }
}

#[cfg(test)]
mod tests;
