use proptest::prelude::*;

use super::*;

const PHASES: [PodPhase; 4] = [PodPhase::New, PodPhase::Ready, PodPhase::NotReady, PodPhase::Stopped];
const VERBS: [PodVerb; 4] = [PodVerb::Run, PodVerb::Stop, PodVerb::Remove, PodVerb::Rescue];
const CONTAINER_PHASES: [ContainerPhase; 5] = [
    ContainerPhase::New,
    ContainerPhase::Created,
    ContainerPhase::Running,
    ContainerPhase::Exited,
    ContainerPhase::Unknown,
];
const CONTAINER_VERBS: [ContainerVerb; 5] =
    [ContainerVerb::Create, ContainerVerb::Start, ContainerVerb::Stop, ContainerVerb::Remove, ContainerVerb::Update];

/// One row a state, one column a verb (Run, Stop, Remove, Rescue).
fn pod_row(phase: PodPhase, in_flight: Option<PodVerb>) -> [Verdict; 4] {
    VERBS.map(|verb| admit_pod(phase, in_flight, verb))
}

fn container_row(gate: Gate, phase: ContainerPhase, in_flight: Option<ContainerVerb>) -> [Verdict; 5] {
    CONTAINER_VERBS.map(|verb| admit_container(gate, phase, in_flight, verb))
}

#[test]
fn an_idle_pod_follows_its_table() {
    use Verdict::{Deny, Done, Run};
    let taken = Deny(Refusal::Taken);
    assert_eq!(pod_row(PodPhase::New, None), [Run, Run, Run, Done]);
    assert_eq!(pod_row(PodPhase::Ready, None), [Done, Run, Run, Run]);
    assert_eq!(pod_row(PodPhase::NotReady, None), [taken, Run, Run, Run]);
    assert_eq!(pod_row(PodPhase::Stopped, None), [taken, Done, Run, Done]);
}

#[test]
fn a_busy_pod_follows_its_table_whatever_its_phase() {
    use Verdict::{Defer, Deny, Done, Interrupt, Join};
    for phase in PHASES {
        assert_eq!(pod_row(phase, Some(PodVerb::Run)), [Join, Interrupt, Interrupt, Done]);
        assert_eq!(pod_row(phase, Some(PodVerb::Stop)), [Deny(Refusal::Taken), Join, Defer, Done]);
        assert_eq!(pod_row(phase, Some(PodVerb::Remove)), [Defer, Defer, Join, Done]);
        assert_eq!(pod_row(phase, Some(PodVerb::Rescue)), [Defer, Defer, Defer, Done]);
    }
}

#[test]
fn an_idle_container_in_a_ready_pod_follows_its_table() {
    use Verdict::{Deny, Done, Run};
    let (taken, wrong) = (Deny(Refusal::Taken), Deny(Refusal::WrongState));
    let row = |phase| container_row(Gate::Open, phase, None);
    assert_eq!(row(ContainerPhase::New), [Run, wrong, Done, Run, wrong]);
    assert_eq!(row(ContainerPhase::Created), [Done, Run, Done, Run, Run]);
    assert_eq!(row(ContainerPhase::Running), [taken, wrong, Run, Run, Run]);
    assert_eq!(row(ContainerPhase::Exited), [taken, wrong, Done, Run, wrong]);
    assert_eq!(row(ContainerPhase::Unknown), [taken, wrong, Run, Run, wrong]);
}

#[test]
fn a_busy_container_follows_its_table_whatever_its_phase() {
    use Verdict::{Defer, Deny, Done, Interrupt, Join};
    let (taken, wrong, removing) = (Deny(Refusal::Taken), Deny(Refusal::WrongState), Deny(Refusal::Removing));
    for gate in [Gate::Open, Gate::Closed] {
        for phase in CONTAINER_PHASES {
            let row = |verb| container_row(gate, phase, Some(verb));
            assert_eq!(row(ContainerVerb::Create), [Join, wrong, Interrupt, Interrupt, Defer]);
            assert_eq!(row(ContainerVerb::Start), [Done, Join, Interrupt, Interrupt, Defer]);
            assert_eq!(row(ContainerVerb::Stop), [taken, wrong, Join, Interrupt, wrong]);
            assert_eq!(row(ContainerVerb::Remove), [Defer, removing, Defer, Join, removing]);
            assert_eq!(row(ContainerVerb::Update), [Done, Defer, Defer, Defer, Defer]);
        }
    }
}

#[test]
fn a_pod_that_is_not_ready_takes_no_container_starts_and_updates_none_but_stops_and_removes_them() {
    for phase in CONTAINER_PHASES {
        assert_eq!(
            admit_container(Gate::Closed, phase, None, ContainerVerb::Create),
            Verdict::Deny(Refusal::PodNotReady)
        );
        for verb in [ContainerVerb::Start, ContainerVerb::Update] {
            assert_ne!(admit_container(Gate::Closed, phase, None, verb), Verdict::Run);
        }
        for verb in [ContainerVerb::Stop, ContainerVerb::Remove] {
            assert_eq!(
                admit_container(Gate::Closed, phase, None, verb),
                admit_container(Gate::Open, phase, None, verb)
            );
        }
    }
}

/// A pod as the owner keeps it, driven by verdicts alone: what was deferred is asked again when the operation ended.
struct Model {
    phase: PodPhase,
    in_flight: Option<PodVerb>,
    deferred: Vec<PodVerb>,
    removed: bool,
}

impl Model {
    fn ask(&mut self, verb: PodVerb) {
        if self.removed {
            return;
        }
        match admit_pod(self.phase, self.in_flight, verb) {
            Verdict::Run => {
                assert_eq!(self.in_flight, None, "two operations of one pod at once");
                self.in_flight = Some(verb);
            }
            Verdict::Defer | Verdict::Interrupt => {
                assert!(self.in_flight.is_some(), "deferred with nothing to wait for");
                self.deferred.push(verb);
            }
            Verdict::Join => assert_eq!(self.in_flight, Some(verb)),
            Verdict::Done | Verdict::Deny(_) => {}
        }
    }

    fn end(&mut self, ok: bool) {
        let Some(verb) = self.in_flight.take() else { return };
        match (verb, ok) {
            (PodVerb::Run, true) => self.phase = PodPhase::Ready,
            (PodVerb::Stop, true) => self.phase = PodPhase::Stopped,
            (PodVerb::Remove, true) => self.removed = true,
            (PodVerb::Run, false) => self.phase = PodPhase::New,
            (PodVerb::Stop | PodVerb::Remove, false) | (PodVerb::Rescue, _) => self.phase = PodPhase::NotReady,
        }
        for verb in std::mem::take(&mut self.deferred) {
            self.ask(verb);
        }
    }
}

proptest! {
    #[test]
    fn whatever_happened_one_remove_that_succeeds_ends_every_pod(
        steps in prop::collection::vec((0usize..VERBS.len(), any::<bool>(), any::<bool>()), 0..40)
    ) {
        let mut model =
            Model { phase: PodPhase::New, in_flight: None, deferred: Vec::new(), removed: false };
        for (verb, end, ok) in steps {
            model.ask(VERBS[verb]);
            if end {
                model.end(ok);
            }
        }
        model.ask(PodVerb::Remove);
        for _ in 0..100 {
            model.end(true);
        }
        prop_assert!(model.removed);
        prop_assert!(model.in_flight.is_none());
    }
}
