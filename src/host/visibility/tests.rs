use super::*;
use crate::{
    config::Config,
    documents::Row,
    visibility::{Lease, page::Page},
};

fn engine() -> Engine {
    let config = json!({ "listen": "127.0.0.1:0", "policy": { "visibility": { "mode": "shadow" } } });
    Engine::open(Config::from_json(config.to_string().as_bytes()).unwrap()).unwrap()
}

fn clients(engine: &Engine) -> Vec<Client> {
    let following = engine.documents.lock();
    following.watching.keeper.all_clients().map(|(_, client)| client.clone()).collect()
}

#[test]
fn names_that_clients_choose_are_cut() {
    let engine = engine();
    let long = "ä".repeat(1_000);
    engine.consumers("10.0.0.1", true, &[format!("10.1.0.1|{long}|{long}")], BTreeMap::new());
    let [client] = &clients(&engine)[..] else { panic!("there is one client") };
    for name in [&client.cell, &client.application] {
        assert_eq!(name.as_deref(), Some(&*"ä".repeat(MOST_NAME)));
    }
    let cut = "ä".repeat(MOST_NAME);
    assert_eq!(engine.consumer_lines().as_deref(), Some(&*format!("10.1.0.1|{cut}|{cut}\n")));
}

#[test]
fn an_address_is_the_same_in_either_form() {
    let [mapped, plain] = ["::ffff:10.1.0.1|c|a", "10.1.0.1|c|a"].map(read);
    assert_eq!(mapped, plain);
}

#[test]
fn lines_of_clients_are_made_when_they_are_asked_for() {
    let config = json!({ "listen": "127.0.0.1:0", "admin": { "token": "open sesame 1234" },
                         "policy": { "visibility": { "mode": "on" } } });
    let engine = Engine::open(Config::from_json(config.to_string().as_bytes()).unwrap()).unwrap();
    {
        let mut following = engine.documents.lock();
        following.watching.keeper.is("10.0.0.1/1");
        let all = following.documents.as_mut().unwrap();
        all.take(Name::Visibility, None);
        let stamp = Stamp { by: String::new(), when: 0, why: String::new() };
        let lease = Lease { holder: "10.0.0.1/1".into(), settled: true, pages: 0 };
        let write = all.set_lease(lease, &stamp).unwrap();
        all.take(write.name, Some(&Row { version: write.version, value: write.value }));
    }
    let is_made = || engine.documents.lock().watching.clients.as_ref().unwrap().lines.is_some();
    engine.consumers("10.0.0.1", true, &["10.1.0.1||a".to_owned()], BTreeMap::new());
    let (known, _) = engine.consumers_part("10.0.0.1", &["1 10.1.0.2||b".to_owned()], BTreeMap::new());
    assert!(known && !is_made());
    assert_eq!(engine.consumer_lines().as_deref(), Some("10.1.0.1||a\n10.1.0.2||b\n"));
    assert!(is_made());
    // Who computes no more knows of nobody what it was told in parts.
    engine.consumers_part("10.0.0.1", &["0 ".to_owned()], BTreeMap::new());
    engine.documents.lock().watching.keeper = keeper::Keeper::default();
    assert_eq!(engine.consumer_lines(), None);
}

#[test]
fn clients_beyond_the_bound_are_one_that_may_be_anywhere() {
    let engine = engine();
    let many: Vec<String> = (0..MOST + 10).map(|n| format!("10.1.0.1||app{n}")).collect();
    let services = [("a", format!("0 {} {}", MOST + 1, MOST + 9)), ("b", "1".to_owned())];
    let services = services.map(|(id, places)| (Arc::from(id), places)).into();
    engine.consumers("10.0.0.1", false, &many, services);
    assert_eq!(clients(&engine).len(), MOST + 1);
    let following = engine.documents.lock();
    let of = |id| following.watching.keeper.clients(id).map(|(_, client)| client.clone()).collect::<Vec<_>>();
    let [first, beyond] = &of("a")[..] else { panic!("{:?}", of("a")) };
    assert_eq!(first.application.as_deref(), Some("app0"));
    assert_eq!(beyond, &Client { application: None, address: None, cell: None });
    assert_eq!(of("b").len(), 1);
}

#[test]
fn where_not_all_clients_are_named_it_is_said() {
    let name = "x".repeat(MOST_NAME);
    let client = Client { application: Some(name.clone().into()), address: None, cell: Some(name.into()) };
    let all = lines(vec![client.clone(); MOST_LINES / 500].iter());
    assert!(all.len() < 16 << 20 && all.ends_with(&format!("x\n{MORE}")), "{}", all.len());
    assert!(!lines([client].iter()).contains(MORE));
}

#[test]
fn a_renewal_of_the_lease_wakes_nobody() {
    let config = json!({ "listen": "127.0.0.1:0", "admin": { "token": "open sesame 1234" },
                         "policy": { "visibility": { "mode": "on" } } });
    let engine = Engine::open(Config::from_json(config.to_string().as_bytes()).unwrap()).unwrap();
    let stamp = Stamp { by: String::new(), when: 0, why: String::new() };
    {
        let mut following = engine.documents.lock();
        let all = following.documents.as_mut().unwrap();
        [Name::Visibility, Name::VisibilityPage(0)].into_iter().for_each(|name| drop(all.take(name, None)));
    }
    let put = |holder: &str, page: Option<&str>| {
        let mut following = engine.documents.lock();
        let all = following.documents.as_mut().unwrap();
        let take = |all: &mut Documents, write: Write| {
            all.take(write.name, Some(&Row { version: write.version, value: write.value }));
        };
        let lease = all.set_lease(Lease { holder: holder.into(), settled: true, pages: 1 }, &stamp).unwrap();
        take(all, lease);
        if let Some(name) = page {
            let mut page = Page::default();
            page.add(ServiceId::of("a"), &name.into());
            let page = all.set_page(0, page, &stamp).unwrap();
            take(all, page);
        }
        engine.put_seen_in_force(&mut following);
        engine.shared.seen.load_full()
    };
    let first = put("10.0.0.1/1", Some("shop")).unwrap();
    for n in 0..3 {
        let renewed = put(&format!("10.0.0.{n}/1"), None).unwrap();
        assert!(Arc::ptr_eq(&first, &renewed), "whoever holds the lease, consumers are where they were");
    }
    let other = put("10.0.0.1/1", Some("pay")).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    assert!(other.get(ServiceId::of("a")).unwrap().namespaces.contains("pay"));
    // Rows that are gone, damaged or not signed have nobody see more.
    for value in [None, Some(String::new()), Some("{}".to_owned())] {
        let mut following = engine.documents.lock();
        for name in [Name::Visibility, Name::VisibilityPage(0)] {
            let row = value.clone().map(|value| Row { version: 99, value });
            let taken = following.documents.as_mut().unwrap().take(name, row.as_ref());
            assert!(taken.changed.is_empty());
        }
        engine.put_seen_in_force(&mut following);
        let seen = engine.shared.seen.load_full().unwrap();
        assert!(seen.get(ServiceId::of("a")).unwrap().namespaces.contains("pay"), "{value:?}");
    }
}
