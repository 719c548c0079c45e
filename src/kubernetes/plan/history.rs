//! Random histories of changes, events, answers, meddling and lost leases, against the world of [`super::simulation`].

use proptest::prelude::*;

use super::{model::*, simulation::*, *};

/// Steps of all histories together; `MOX_PLAN_STEPS` asks for more.
const STEPS: usize = 120_000;
const LONGEST: usize = 400;

/// A step of a history.
#[derive(Clone)]
enum HistoryStep {
    Want(Vec<(u8, ServiceShape)>),
    Deliver(ObjectKind, u8),
    Serve(u8),
    Answer(u8, Fault),
    /// With an object that is being written, one that is there, or any.
    Meddle(u8, Meddling),
    Pass(Duration),
    PassToWake,
    LoseWatch(ObjectKind),
    Freeze(bool),
    Purge(bool),
    Release,
    Lease(Duration),
    NewTerm {
        done: bool,
    },
    LoseData,
    Adjust(ObjectKey),
    Refuse(ObjectKey, Fault),
    RefuseNone,
    RefuseKind(ObjectKind),
    RefuseNoKind,
}

/// A line each.
impl std::fmt::Debug for HistoryStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Want(shapes) => write!(f, "want {shapes:?}"),
            Self::Deliver(kind, late) => write!(f, "deliver {} {late}", kind.name()),
            Self::Serve(index) => write!(f, "serve {index}"),
            Self::Answer(index, fault) => write!(f, "answer {index} {fault:?}"),
            Self::Meddle(n, how) => write!(f, "meddle {n} {how:?}"),
            Self::Pass(span) => write!(f, "pass {span:?}"),
            Self::PassToWake => write!(f, "pass to wake"),
            Self::LoseWatch(kind) => write!(f, "lose watch {}", kind.name()),
            Self::Freeze(on) => write!(f, "freeze {on}"),
            Self::Purge(on) => write!(f, "purge {on}"),
            Self::Release => write!(f, "release"),
            Self::Lease(span) => write!(f, "lease {span:?}"),
            Self::NewTerm { done } => write!(f, "new term {done}"),
            Self::LoseData => write!(f, "lose data"),
            Self::Adjust(key) => write!(f, "adjust {key}"),
            Self::Refuse(key, fault) => write!(f, "refuse {key} {fault:?}"),
            Self::RefuseNone => write!(f, "refuse none"),
            Self::RefuseKind(kind) => write!(f, "refuse {}", kind.name()),
            Self::RefuseNoKind => write!(f, "refuse no kind"),
        }
    }
}

impl HistoryStep {
    /// From three numbers, so that a history that fails shrinks to a short one.
    fn of((what, a, b): (u8, u8, u8)) -> Self {
        let kind = |n: u8| ObjectKind::ALL[usize::from(n) % 3];
        match what % 40 {
            0..=5 => Self::Want(vec![(a % SERVICES, shape(b))]),
            6 => Self::Want((0..SERVICES).filter(|n| a >> n & 1 == 1).map(|n| (n, shape(b.wrapping_add(n)))).collect()),
            7..=15 => Self::Deliver(kind(a), b),
            16..=18 => Self::Serve(a),
            19..=23 => Self::Answer(a, Fault::None),
            24 | 25 => Self::Answer(a, Fault::ALL[usize::from(b) % Fault::ALL.len()]),
            26..=28 => Self::Meddle(a, Meddling::ALL[usize::from(b) % Meddling::ALL.len()]),
            29 => Self::Pass(Duration::from_millis(u64::from(a) * 8)),
            30..=32 => Self::PassToWake,
            33 => Self::Pass(Duration::from_secs(a.into())),
            34 => Self::LoseWatch(kind(a)),
            35 => match a % 8 {
                0 => Self::Purge(b & 1 == 1),
                1 => Self::Release,
                2 => Self::Lease(Duration::ZERO),
                3 => Self::Lease(Duration::from_secs(b.into())),
                _ => Self::Freeze(b & 3 == 3),
            },
            36 if a < 64 => Self::NewTerm { done: b & 1 == 1 },
            36 if a < 80 => Self::LoseData,
            36 => Self::Adjust(Simulation::some_key(b)),
            37 => {
                let faults = [Fault::Denied, Fault::Hangs, Fault::Invalid, Fault::NoRight, Fault::Lost];
                Self::Refuse(Simulation::some_key(a), faults[usize::from(b) % faults.len()])
            }
            38 => Self::RefuseNone,
            _ if a < 48 => Self::RefuseKind(kind(b)),
            _ => Self::RefuseNoKind,
        }
    }

    fn take(self, world: &mut Simulation) {
        world.pass(Duration::from_millis(1));
        match self {
            Self::Want(shapes) => world.want(&shapes),
            Self::Deliver(kind, late) => drop(world.deliver(kind, late)),
            Self::Serve(index) => world.serve(index.into()),
            Self::Answer(index, fault) => world.answer(index.into(), fault),
            Self::Meddle(n, how) => world.meddle(&world.key_to_meddle(n), how),
            Self::Pass(span) => world.pass(span),
            Self::PassToWake => world.pass_to_wake(),
            Self::LoseWatch(kind) => world.lose_watch(kind),
            Self::Freeze(on) => world.order(|orders| orders.frozen = on),
            Self::Purge(on) => world.order(|orders| orders.purging = on),
            Self::Release => world.order(|orders| orders.releases += 1),
            Self::Lease(span) => world.renew(span),
            Self::NewTerm { done } => world.new_term(done),
            Self::LoseData => world.lose_data(),
            Self::Adjust(key) => world.adjust(&key),
            Self::Refuse(key, fault) => drop(world.refuses.insert(key, fault)),
            Self::RefuseNone => world.refuses.clear(),
            Self::RefuseKind(kind) => drop(world.refuses_kind.insert(kind)),
            Self::RefuseNoKind => world.refuses_kind.clear(),
        }
    }
}

fn shape(a: u8) -> ServiceShape {
    let (mask, revision) = (a & 15, a >> 4 & 3);
    match a >> 6 {
        0 => ServiceShape::Absent,
        1 => ServiceShape::Inline { mask, revision },
        2 => ServiceShape::Selecting { mask, revision },
        _ => ServiceShape::Split { mask, revision },
    }
}

fn steps() -> usize {
    std::env::var("MOX_PLAN_STEPS").map_or(STEPS, |steps| steps.parse().expect("MOX_PLAN_STEPS is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        // A history has half of the most steps on average.
        cases: (steps() * 2 / LONGEST) as u32,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the history: no promise of a plan is broken at any moment, and once nothing goes wrong any more everything
    /// that is desired comes to be.
    #[test]
    fn any_history_ends_in_sync(
        history in proptest::collection::vec(any::<(u8, u8, u8)>().prop_map(HistoryStep::of), 0..=LONGEST)
    ) {
        let mut world = Simulation::new();
        for (n, step) in history.into_iter().enumerate() {
            step.take(&mut world);
            if n % 16 == 0 {
                world.check_plan();
            }
        }
        world.check_plan();
        world.calm_down();
    }
}
