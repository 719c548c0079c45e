use super::*;
use crate::{
    config::Config,
    model::RegisterVersion,
    registry::frame::{self, Publisher},
    snapshot::view::Held,
};

fn change(shared: &Shared, service: usize, version: i64, data: Option<&str>) {
    let (id, register_id) = (format!("com.example.S{service}"), "r");
    let version = RegisterVersion { version, timestamp: 0 };
    let frame = match data {
        Some(data) => {
            let payloads = vec![data.as_bytes().into()];
            let publisher = Publisher { register_id: register_id.into(), version, payloads, ..Publisher::default() };
            frame::encode_publish("registry", &id, &publisher)
        }
        None => frame::encode_unpublish("registry", &id, register_id, version),
    };
    for event in frame::decode(&frame.unwrap()).unwrap() {
        shared.store.apply(&event, 0).unwrap();
    }
}

fn served(shared: &Shared) -> (usize, u64, Option<Held>) {
    let entries = Arc::clone(&shared.view.borrow().service_entries);
    (entries.resources(), entries.endpoints(), shared.report.lock().held)
}

#[test]
fn what_is_held_is_held_when_everything_is_made_anew() {
    let shared = Arc::new(Shared::new(Config::default()).unwrap());
    let mut rounds = Rounds::new(Arc::clone(&shared));
    (0..30).for_each(|service| change(&shared, service, 1, Some("10.0.0.1:80")));
    shared.orders.lock().loaded = true;
    assert!(rounds.round());
    let before = shared.view.borrow().service_entries.version().to_string();
    (0..20).for_each(|service| change(&shared, service, 2, None));
    assert!(rounds.round());
    assert_eq!(served(&shared), (30, 30, Some(Held::MassDelete)));
    assert_eq!(shared.report.lock().withheld_services.len(), 20);
    // Twice: also when the first try gets nowhere.
    rounds.start_over();
    rounds.broken = true;
    assert!(shared.report.lock().withheld_services.is_empty());
    assert!(rounds.round() && !rounds.broken);
    assert_eq!(served(&shared), (30, 30, Some(Held::MassDelete)));
    assert_eq!(shared.report.lock().withheld_services.len(), 20);
    assert_eq!(**shared.view.borrow().service_entries.version(), *before, "to the last byte");
    shared.orders.lock().release = true;
    assert!(rounds.round());
    assert_eq!(served(&shared), (30, 10, None));
    assert!(shared.report.lock().withheld_services.is_empty());
    assert!(rounds.round());
    assert_eq!(served(&shared), (30, 10, None), "a release counts once");
}

#[test]
fn another_policy_is_no_change_of_the_registry() {
    let shared = Arc::new(Shared::new(Config::default()).unwrap());
    let mut rounds = Rounds::new(Arc::clone(&shared));
    (0..3).for_each(|service| change(&shared, service, 1, Some("10.0.0.1:80")));
    shared.orders.lock().loaded = true;
    assert!(rounds.round());
    let told = || {
        (shared.published.counted().within.last().copied(), shared.view.borrow().service_entries.version().to_string())
    };
    let before = told();
    let policy = serde_json::from_value(serde_json::json!({ "exportTo": ["shop"] })).unwrap();
    shared.policy.store(Arc::new(crate::policy::Policy::new(policy, &[], "sofa-registry").unwrap()));
    assert!(rounds.round());
    let after = told();
    assert_eq!(after.0, before.0);
    assert_ne!(after.1, before.1, "all are exported to others");
    change(&shared, 1, 2, Some("10.0.0.2:80"));
    assert!(rounds.round());
    assert_eq!(told().0, before.0.map(|count| count + 1));
}

/// A hundred services in a state file, then a start under a policy that Istio's validation refuses for all of them.
#[tokio::test]
async fn a_start_under_a_policy_that_istio_would_refuse_serves_the_last_good_state() {
    let dir = std::env::temp_dir().join(format!("mox-rounds-{}", std::process::id()));
    let open = || {
        let config = Config { state_dir: Some(dir.clone()), ..Config::default() };
        let shared = Arc::new(Shared::new(config).unwrap());
        shared.orders.lock().loaded = true;
        (Arc::clone(&shared), Rounds::new(shared))
    };
    let (shared, mut rounds) = open();
    (0..100).for_each(|service| change(&shared, service, 1, Some("10.0.0.1:80")));
    assert!(rounds.round());
    rounds.keep();
    while !dir.join("last-good").exists() {
        tokio::time::sleep(Duration::from_millis(1)).await; // the polling interval
    }
    let before = shared.view.borrow().service_entries.version().to_string();

    let (shared, mut rounds) = open();
    assert_eq!(**shared.view.borrow().service_entries.version(), *before, "there before the first round");
    assert!(!shared.view.borrow().shown && !shared.view.borrow().complete, "but not to be seen");
    let refused = serde_json::from_str(r#"{"exportTo": ["sofa-registry", "."]}"#).unwrap();
    shared.policy.store(Arc::new(crate::policy::Policy::compile(refused, &shared.config.vip_cidr).unwrap()));
    (0..100).for_each(|service| change(&shared, service, 1, Some("10.0.0.1:80")));
    assert!(rounds.round());
    assert_eq!(served(&shared), (100, 100, None));
    assert_eq!(**shared.view.borrow().service_entries.version(), *before, "to the last byte");
    assert_eq!(shared.report.lock().quarantined_by["export-to"], 100);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_unknown_is_unknown_when_everything_is_made_anew() {
    let shared = Arc::new(Shared::new(Config::default()).unwrap());
    let mut rounds = Rounds::new(Arc::clone(&shared));
    change(&shared, 0, 1, Some("10.0.0.1:80"));
    shared.orders.lock().loaded = true;
    assert!(rounds.round());
    shared.store.set_unknown(&["com.example.S0"]);
    change(&shared, 0, 2, None);
    let found = || (shared.view.borrow().service_entries.endpoints(), shared.report.lock().unknown.last_good);
    assert!(rounds.round());
    assert_eq!(found(), (1, 1));
    rounds.broken = true;
    assert!(rounds.round());
    assert_eq!(found(), (1, 1));
    let read = frame::encode_replace("registry", "com.example.S0", 1, i64::MIN, &[]).unwrap();
    for event in frame::decode(&read).unwrap() {
        shared.store.apply(&event, 3).unwrap();
    }
    assert!(rounds.round());
    assert_eq!(found(), (0, 0));
}

/// Whatever publishers say.
#[test]
fn a_line_that_names_applications_is_short() {
    let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let taken = Arc::clone(&lines);
    let subscriber = crate::host::log::Log::subscriber(move |line| taken.lock().push(line.message));
    let (id, application) = (Arc::<str>::from("i".repeat(9_999)), Box::<str>::from("\u{1}\"\u{200b}".repeat(3_333)));
    let address = "2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap();
    let claimed_by = (0..9).map(|n| format!("{n}{application}").into()).collect();
    tracing::dispatcher::with_default(&subscriber, || {
        log(&Notice::AddressContested { address, port: 65_535, newest: Some(application.clone()), claimed_by });
        log(&Notice::AddressNotOwn { id, address, port: 65_535, application: application.clone() });
        log(&Notice::MtlsMixed { application, port: 65_535 });
    });
    let lengths: Vec<usize> = lines.lock().iter().map(|line| line.chars().count()).collect();
    assert!(lengths.len() == 3 && lengths.iter().all(|length| *length <= 500), "{lengths:?}");
}
