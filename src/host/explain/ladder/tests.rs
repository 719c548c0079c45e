//! Each reason, on a service that is well but for that.

use crate::{
    catalog::{assignment::claims::Contest, key::ServiceKey, report::Quarantine},
    config::Config,
    host::{
        engine::Engine,
        explain::{
            facts::{Facts, Told},
            ladder::{Step, Verdict, answer, clients::UNTOLD, kubernetes::FORBIDDEN, ladder},
        },
        feed::{Feed, Refused},
    },
    istio::rule::{Invalid, Rule},
    kubernetes::report::Problem,
    model::RegisterVersion,
    registry::{
        frame::{self, Publisher as Sent},
        store::Dropped,
    },
    snapshot::{partition::Partition, view::Held},
    xds::streams::ClientState,
};

const ID: &str = "com.example.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

/// A service that is served, and everything well.
async fn served() -> Facts {
    let engine = Engine::open(Config::default()).unwrap();
    engine.loaded();
    let sent = Sent {
        register_id: "a".into(),
        version: RegisterVersion { version: 1, timestamp: 0 },
        payloads: vec![b"10.0.0.1:80".as_slice().into()],
        ..Sent::default()
    };
    engine.apply(&frame::encode_publish("registry", ID, &sent).unwrap()).unwrap();
    engine.flush().await;
    let mut facts = Facts::of(&engine, &ServiceKey::from(ID), None);
    facts.listening = true;
    facts.streams = vec![told()];
    facts.feed = Some(Feed::default());
    facts
}

fn told() -> Told {
    Told {
        client: "istiod (10.0.0.9)".into(),
        asked: true,
        has_it: true,
        sent: true,
        acked: true,
        ever: true,
        delta: false,
        error: None,
        too_large: false,
        waits: None,
    }
}

fn refused() -> Feed {
    let refused = Refused { data_info_id: ID.into(), reason: "cell".into(), register_id: "b".into(), count: 1 };
    Feed { refused: vec![refused], ..Feed::default() }
}

type Change = fn(&mut Facts);

/// What is one by one not as it should be, where it shows, and whether the service is in the mesh all the same.
const TROUBLES: [(Change, Step, Verdict, &str); 30] = [
    (|it| it.feed = Some(refused()), Step::Registry, Verdict::Partly, "refused-cell"),
    (
        |it| drop(it.dropped.insert("bytes", Dropped { events: 2, last: ID.into() })),
        Step::Registry,
        Verdict::Partly,
        "limit-bytes",
    ),
    (|it| it.publishers = 0, Step::Registry, Verdict::Partly, "no-publisher"),
    (|it| (it.publishers, it.held) = (0, Some(Held::LastGood)), Step::Registry, Verdict::Partly, "not-read"),
    (|it| it.unknown = true, Step::Read, Verdict::Partly, "unknown"),
    (|it| (it.being_read, it.publishers) = (true, 0), Step::Read, Verdict::Partly, "being-read"),
    (|it| it.feed = Some(Feed { stale: true, ..Feed::default() }), Step::Read, Verdict::Partly, "stale"),
    (
        |it| {
            let contest = Contest { holder: "b".into(), waiting: vec![ID.into()], count: 1 };
            it.contests = vec![("a.sofa.mesh".into(), contest)];
        },
        Step::Names,
        Verdict::Partly,
        "contested",
    ),
    (
        |it| it.rivals = Some(Contest { holder: ID.into(), waiting: vec!["b".into()], count: 1 }),
        Step::Names,
        Verdict::Partly,
        "wanted-by-others",
    ),
    (
        |it| it.served.as_mut().unwrap().export_to = vec!["risk".into()],
        Step::ExportTo,
        Verdict::Partly,
        "exported-to-some",
    ),
    (
        |it| it.streams = vec![Told { error: Some("no".into()), acked: false, ..told() }],
        Step::Clients,
        Verdict::Partly,
        "nack",
    ),
    (|it| it.quarantine = Some(Quarantine::by_panic()), Step::Istio, Verdict::Partly, "quarantined-panic"),
    (
        |it| {
            it.quarantine = Some(Quarantine { reason: "export-to", detail: "exportTo: …".into() });
            it.served = None;
        },
        Step::Istio,
        Verdict::Failed,
        "quarantined-export-to",
    ),
    (
        |it| {
            let invalid = Invalid { rule: Rule::WeightSum, detail: "weight".into() };
            it.invalid = [(Rule::WeightSum, (1, invalid))].into();
        },
        Step::Istio,
        Verdict::Partly,
        "invalid-weight-sum",
    ),
    (|it| (it.held, it.shown) = (Some(Held::NotLoaded), false), Step::Held, Verdict::Failed, "not-loaded"),
    (|it| (it.held, it.shown) = (Some(Held::MassDelete), false), Step::Held, Verdict::Failed, "mass-delete"),
    (|it| (it.held, it.wanted) = (Some(Held::Frozen), Vec::new()), Step::Payloads, Verdict::Partly, "no-endpoint"),
    (|it| (it.held, it.wanted) = (Some(Held::LastGood), Vec::new()), Step::Held, Verdict::Partly, "last-good"),
    (|it| (it.held, it.served) = (Some(Held::Frozen), None), Step::Held, Verdict::Failed, "frozen"),
    (|it| it.withheld = true, Step::Held, Verdict::Partly, "mass-delete"),
    (|it| (it.waiting, it.served) = (true, None), Step::Held, Verdict::Failed, "mass-add"),
    (|it| it.grace = Some(1), Step::Held, Verdict::Partly, "in-grace"),
    (|it| it.served = None, Step::Served, Verdict::Failed, "not-served"),
    (
        |it| it.served.as_mut().unwrap().export_to = vec!["~".into()],
        Step::ExportTo,
        Verdict::Failed,
        "exported-to-nobody",
    ),
    (|it| it.listening = false, Step::Clients, Verdict::Partly, "not-listening"),
    (|it| it.fenced = true, Step::Clients, Verdict::Partly, "fenced"),
    (|it| it.streams.clear(), Step::Clients, Verdict::Partly, "no-istiod"),
    (|it| it.streams = vec![Told { sent: false, acked: false, ..told() }], Step::Clients, Verdict::Partly, "behind"),
    (
        |it| it.streams.push(Told { too_large: true, acked: false, ..told() }),
        Step::Clients,
        Verdict::Partly,
        "too-large",
    ),
    (
        |it| {
            let wrong = Some("it does not take every partition");
            let partitions = [Partition::WHOLE].into();
            it.wrong = vec![ClientState { address: None, node: "x".into(), streams: 1, partitions, wrong }];
        },
        Step::Clients,
        Verdict::Partly,
        "wrong-partitions",
    ),
];

#[tokio::test]
async fn a_read_that_is_being_applied_is_told() {
    let engine = Engine::open(Config::default()).unwrap();
    engine.loaded();
    let sent = Sent { register_id: "a".into(), payloads: vec![b"10.0.0.1:80".as_slice().into()], ..Sent::default() };
    engine.apply(&frame::encode_publish("registry", ID, &sent).unwrap()).unwrap();
    engine.flush().await;
    engine.shared().store.begin_read(ID);
    let ladder = ladder(&Facts::of(&engine, &ServiceKey::from(ID), None));
    let read = ladder.iter().find(|rung| rung.step == Step::Read).unwrap();
    assert_eq!((read.verdict, &*read.reasons[0].key), (Verdict::Partly, "being-read"));
    assert!(answer(&ladder).contains("a read of it is being applied right now"), "{}", answer(&ladder));
}

/// The words of the API server are of this object, or are said to be another's.
#[tokio::test]
async fn what_kubernetes_forbids_is_told_with_who_was_refused() {
    let own = "com.example.a";
    for (object, wanted) in [(own, "its object is not written: "), ("b", "of another, for example: ")] {
        let mut facts = served().await;
        let mut config = Config::default();
        config.kubernetes.enabled = true;
        facts.config = config.into();
        let message = format!("x \"{object}\" is forbidden: User \"system:serviceaccount:a:b\" cannot patch");
        facts.kubernetes = Some(Problem { code: Some(FORBIDDEN), message: message.into(), attempts: 2 });
        let answer = answer(&ladder(&facts));
        assert!(answer.starts_with("In the mesh") && answer.contains(wanted), "{answer}");
        let remedy = "/mox/kubernetes/rbac prints; its subject must be system:serviceaccount:a:b, who was refused";
        assert!(answer.contains(remedy), "{answer}");
    }
}

#[tokio::test]
async fn every_trouble_shows_where_it_is_and_nowhere_else() {
    let facts = served().await;
    let all_well = ladder(&facts);
    assert!(all_well.iter().all(|rung| rung.verdict == Verdict::Passed), "{all_well:#?}");
    assert!(answer(&all_well).starts_with("In the mesh, ServiceEntry"));
    for (change, step, verdict, key) in TROUBLES {
        let mut facts = served().await;
        change(&mut facts);
        let ladder = ladder(&facts);
        let rung = ladder.iter().find(|rung| rung.step == step).unwrap();
        let reason = rung.reasons.iter().find(|reason| reason.key == key);
        let Some(reason) = reason else { panic!("{key} is not in {rung:#?}") };
        assert_eq!(rung.verdict, verdict, "{key}");
        assert!(!reason.says.is_empty() && !reason.remedy.is_empty(), "{key}");
        let answer = answer(&ladder);
        // A proxy has it wherever it is served and told to somebody.
        let in_mesh = facts.served.as_ref().is_some_and(|it| it.export_to != ["~"]) && facts.shown;
        let untold = UNTOLD.contains(&key);
        assert_eq!(answer.starts_with("In the mesh"), in_mesh && !untold, "{key}: {answer}");
        assert_eq!(answer.starts_with("Served, ServiceEntry"), untold, "{key}: {answer}");
        // Others are told only where one follows from the other.
        let others = ladder.iter().filter(|rung| rung.step != step && rung.verdict != Verdict::Passed);
        let others: Vec<Step> = others.map(|rung| rung.step).collect();
        let follow = [Step::Served, Step::Names, Step::Payloads, Step::Held];
        assert!(others.iter().all(|other| follow.contains(other)), "{key}: {others:?}");
    }
}
