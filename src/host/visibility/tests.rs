use super::*;
use crate::config::Config;

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
    let all = lines(&vec![client.clone(); MOST_LINES / 500]);
    assert!(all.len() < 16 << 20 && all.ends_with(&format!("x\n{MORE}")), "{}", all.len());
    assert!(!lines(&[client]).contains(MORE));
}
