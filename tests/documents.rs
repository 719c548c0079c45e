//! Documents that session servers share: engines whose host carries rows between them and one store, as the registry's binding
//! does. On the real registry: `real/documents.rs`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use harness::{
    Mox, SOON,
    client::{SERVICE_ENTRY, node},
    nth as id,
    process::eventually,
    store::{Server, Table},
};
use registry_mox::testing::{model::RegisterVersion, registry::frame::Publisher};
use serde_json::{Value, json};

const SERVICES: usize = 10;

/// A session server that knows of [`SERVICES`].
fn start(table: Option<&Table>, config: Value) -> Server {
    Server::start(table, config, |mox| {
        (0..SERVICES).for_each(|n| mox.publish(&id(n), "r", 1, &[&format!("10.0.0.{n}:12200")]));
    })
}

fn excluding(n: usize) -> String {
    json!({ "exclude": [format!("*.S{n}:*")] }).to_string()
}

fn directory(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mox-documents-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    dir
}

#[tokio::test]
async fn a_policy_is_for_all_and_a_step_back_is_to_the_byte() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    assert_eq!(a.state().0, "on");
    let first = a.serves().await;
    assert_eq!(first.1, SERVICES);
    let (status, body) = a.post("/mox/policy", "by=ann&why=S1+moves", "0", &excluding(1));
    assert!(status == 200 && body.contains("\"unmatched\": []"), "{body}");
    b.poll();
    assert_eq!((a.serves().await.1, a.serves().await), (SERVICES - 1, b.serves().await));
    let page = b.policy();
    assert_eq!((&page["revision"], &page["from"]), (&json!(1), &json!("document")));
    assert_eq!((&page["stamp"]["by"], &page["stamp"]["why"]), (&json!("ann"), &json!("S1 moves")));

    assert_eq!(b.post("/mox/policy", "by=bob", "\"1\"", &excluding(2)).0, 200);
    let second = b.serves().await;
    let (status, body) = a.post("/mox/policy", "by=ann", "1", "{}");
    assert!(status == 409 && body.contains("\"revision\": 2"), "{body}");
    assert_eq!(a.serves().await, second, "who is told of a conflict has what is there");

    for (n, status) in [(9, 404), (2, 200), (1, 200)] {
        assert_eq!(a.post("/mox/policy", &format!("dryRun&rollback={n}"), "", "").0, status, "as without dryRun");
    }
    assert_eq!(a.post("/mox/policy", "rollback=9", "2", "").0, 404);
    assert_eq!(a.post("/mox/policy", "rollback=1&by=ann", "2", "").0, 200);
    b.poll();
    assert_eq!(a.serves().await, b.serves().await);
    assert_eq!((&b.policy()["revision"], &b.policy()["stamp"]["why"]), (&json!(3), &json!("back to revision 1")));
    assert_eq!(b.policy()["history"].as_array().unwrap().len(), 2);
    // The one in force is one of those that are remembered.
    let third = a.serves().await;
    assert_eq!(a.post("/mox/policy", "rollback=3&by=ann", "3", "").0, 200);
    assert_eq!((a.serves().await, a.policy()["revision"].clone()), (third, json!(4)));
    b.poll();
    let (status, told) = a.post("/mox/policy", "dryRun", "", " null\n");
    assert!(status == 200 && told.contains(&format!("\"services\": {SERVICES}")), "{told}");
    // Only a signed null goes back to the properties.
    assert_eq!(a.post("/mox/policy", "", "", "null").0, 200);
    b.poll();
    assert_eq!((a.serves().await, b.serves().await), (first.clone(), first));
    assert_eq!(b.policy()["from"], "properties");
}

#[tokio::test]
async fn what_is_wrong_at_the_door_is_written_nowhere() {
    let table = Table::default();
    let mut server = start(Some(&table), json!({}));
    for (query, if_match, body, status, says) in [
        ("", "", "{\"exclud\": []}", 400, "policy.exclud"),
        ("", "", "{", 400, "this is no JSON"),
        ("", "abc", "{}", 400, "If-Match"),
        ("", "7", "{}", 409, "another than you saw"),
        (&*format!("by={}", "x".repeat(101)), "", "{}", 400, "by has at most 100"),
        ("rollback=x", "", "", 400, "rollback"),
        ("dryRun&rollback=x", "", "", 400, "rollback"),
        ("dryRun", "", "", 400, "give one JSON object"),
    ] {
        let (got, body) = server.post("/mox/policy", query, if_match, body);
        assert!(got == status && body.contains(says), "{got}: {body}");
    }
    let large: Vec<String> = (0..6_000u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    assert_eq!(server.post("/mox/policy", "", "", &json!({ "exclude": large }).to_string()).0, 413);
    assert_eq!(table.row("policy"), None);
    assert_eq!(server.policy()["revision"], 0);
}

#[tokio::test]
async fn rows_that_do_not_count_and_rows_that_are_gone_change_nothing() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    a.post("/mox/policy", "", "", &excluding(1));
    let old = table.row("policy").unwrap().1;
    a.post("/mox/policy", "", "", &excluding(2));
    b.poll();
    let before = a.serves().await;
    let good = table.row("policy").unwrap().1;
    for (row, reason) in [
        (good.replace("S2", "S3"), "signature"),
        ("{}".to_owned(), "malformed"),
        (good.replace("\"mac\"", "\"Mac\""), "malformed"),
        ("x".repeat(70_000), "too-large"),
    ] {
        table.set("policy", row);
        for server in [&mut a, &mut b] {
            server.poll();
            assert_eq!(server.document("policy")["refused"]["reason"], reason);
            assert_eq!(server.serves().await, before);
            let metrics = server.mox.page("/mox/metrics", "").1;
            let metric = format!("mox_document_refused{{name=\"policy\",reason=\"{reason}\"}} 1\n");
            assert!(metrics.contains(&metric) && metrics.contains("mox_document_revision{name=\"policy\"} 2\n"));
        }
    }
    // A server that starts meanwhile knows no better than its properties, until somebody writes over the row.
    let mut c = start(Some(&table), json!({}));
    assert_eq!(c.serves().await.1, SERVICES);
    assert_eq!(b.post("/mox/policy", "", "2", &excluding(2)).0, 200);
    c.poll();
    a.poll();
    assert_eq!((c.serves().await, a.serves().await), (before.clone(), before.clone()));
    // An old one, and none, are put right by whoever knows the present one.
    table.set("policy", old);
    a.poll();
    assert_eq!(a.serves().await, before);
    table.clear();
    b.poll();
    let mut d = start(Some(&table), json!({}));
    assert_eq!(d.serves().await, before);
    d.poll();
    assert_eq!(d.document("policy")["revision"], 3);
}

#[tokio::test]
async fn what_is_known_outlives_a_restart_without_the_database() {
    let (table, dir) = (Table::default(), directory("kept"));
    let config = json!({ "stateDir": dir });
    let mut server = start(Some(&table), config.clone());
    server.post("/mox/policy", "", "", &excluding(1));
    let old = table.row("policy").unwrap().1;
    server.post("/mox/policy", "", "", &excluding(2));
    let before = server.serves().await;
    drop(server);
    let mut again = start(None, config.clone());
    assert_eq!((again.serves().await, again.state().0), (before.clone(), "unreachable".to_owned()));
    assert_eq!(again.post("/mox/policy", "", "", "{}").0, 503);
    assert_eq!(again.post("/mox/freeze", "", "", "").0, 503);
    assert_eq!(again.post("/mox/freeze", "local=1", "", "").0, 200);
    again.post("/mox/thaw", "local", "", "");
    // The database is back, with an old document in place of the last.
    table.set("policy", old);
    again.table = Some(table.clone());
    again.poll();
    assert_eq!((again.serves().await, again.state().0), (before.clone(), "on".to_owned()));
    let mut fresh = start(Some(&table), json!({}));
    assert_eq!(fresh.serves().await, before);
    // A file that is not ours is as good as none.
    drop(again);
    fs::write(dir.join("documents"), "{\"rows\":").unwrap();
    assert_eq!(start(None, config).serves().await.1, SERVICES);
    fresh.poll();
    // The engines that were dropped may still be writing their last good state.
    let _ = fs::remove_dir_all(dir);
}

#[tokio::test]
async fn without_a_token_or_a_store_everything_is_for_one_server() {
    let table = Table::default();
    let mut writer = start(Some(&table), json!({}));
    writer.post("/mox/policy", "", "", &excluding(1));
    let mut short = start(Some(&table), json!({ "admin": { "token": "open sesame 123" } }));
    short.poll();
    let (state, why) = short.state();
    assert!(state == "off" && why.contains("fewer than 16 bytes"), "{why}");
    assert_eq!(short.serves().await.1, SERVICES);

    let mut starting = start(None, json!({}));
    assert_eq!(starting.post("/mox/freeze", "", "", "").0, 503, "it is not known yet for whom");
    let alone = start(None, json!({}));
    alone.tell(json!({ "op": "noDocuments", "why": "not persistent: H2" }));
    assert_eq!(alone.state(), ("off".to_owned(), "not persistent: H2".to_owned()));
    let mut alone = alone;
    assert_eq!(alone.post("/mox/policy", "", "", &excluding(1)).0, 200);
    assert_eq!((alone.serves().await.1, alone.policy()["from"].clone()), (SERVICES - 1, json!("local")));
    let (status, body) = alone.post("/mox/policy", "", "", "null");
    assert!(status == 400 && body.contains("rollback=0"), "{body}");
    assert_eq!(alone.post("/mox/freeze", "for=1h", "", "").0, 409);
    assert_eq!(alone.post("/mox/freeze", "", "", "").0, 200);
    assert_eq!(table.row("orders"), None);
}

#[tokio::test]
async fn a_stored_policy_wins_over_one_that_is_set_here() {
    let table = Table::default();
    let mut server = start(Some(&table), json!({ "policy": { "exclude": ["*.S7:*"] } }));
    server.post("/mox/policy", "", "", &excluding(1));
    let error = server.mox.engine.set_policy(serde_json::from_value(json!({})).unwrap()).unwrap_err();
    assert!(error.to_string().contains("a stored policy is in force"), "{error}");
    // A policy that an older release passes on is for one server, and does not count either.
    assert_eq!(server.post("/mox/policy", "local=1", "", "{}").0, 400);
    let before = server.serves().await;
    server.post("/mox/policy", "", "", "null");
    assert_eq!(server.policy()["policy"]["exclude"], json!(["*.S7:*"]));
    assert_ne!(server.serves().await, before);
}

#[tokio::test]
async fn a_freeze_is_for_all_and_outlives_restarts() {
    let (table, dir) = (Table::default(), directory("frozen"));
    let config = json!({ "stateDir": dir, "scope": "cluster" });
    let mut a = start(Some(&table), config.clone());
    let mut b = start(Some(&table), json!({}));
    let before = a.serves().await;
    eventually(SOON, "the last good state is kept", || dir.join("last-good").exists().then_some(()));
    let (status, body) = a.post("/mox/freeze", "by=ann&why=a+move&for=2h", "", "");
    assert!(status == 200 && body.contains("\"until\": \"20"), "{body}");
    b.poll();
    for server in [&a, &b] {
        server.mox.publish(&id(50), "r", 1, &["10.0.0.50:12200"]);
        assert_eq!(server.mox.engine.flush().await.held.map(|held| json!(held)), Some(json!("frozen")));
        assert_eq!(
            (server.serves().await, server.document("orders")["stamp"]["why"].clone()),
            (before.clone(), json!("a move"))
        );
    }
    drop(a);
    let again = start(None, config);
    again.mox.publish(&id(50), "r", 1, &["10.0.0.50:12200"]);
    assert_eq!(again.serves().await, before, "its last good state, also without the database");
    // Two servers thaw at once: an order is tried again.
    let mut again = again;
    again.table = Some(table.clone());
    again.poll();
    assert_eq!(b.post("/mox/thaw", "by=bob", "", "").0, 200);
    assert_eq!(again.post("/mox/thaw", "by=ann", "", "").0, 200);
    assert_eq!((again.serves().await.1, b.serves().await.1), (SERVICES + 1, SERVICES + 1));
    assert_eq!(again.document("orders")["revision"], 3);
    // The engines that were dropped may still be writing their last good state.
    let _ = fs::remove_dir_all(dir);
}

/// The last way out for who has neither the database nor another session server.
#[tokio::test]
async fn a_thaw_of_one_server_ends_the_freeze_of_all_there() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    assert_eq!(b.serves().await.1, SERVICES);
    a.post("/mox/freeze", "", "", "");
    b.poll();
    b.mox.publish(&id(50), "r", 1, &["10.0.0.50:12200"]);
    assert_eq!(b.serves().await.1, SERVICES);
    b.table = None;
    b.poll();
    assert_eq!(b.post("/mox/thaw", "", "", "").0, 503);
    let (status, body) = b.post("/mox/thaw", "local=1", "", "");
    assert!(status == 200 && body.contains("\"frozen\": false") && body.contains("starts anew"), "{body}");
    assert_eq!(b.serves().await.1, SERVICES + 1);
    // The document that it has put aside does not come back by being read again; another does.
    b.table = Some(table.clone());
    b.poll();
    b.mox.publish(&id(51), "r", 1, &["10.0.0.51:12200"]);
    assert_eq!(b.serves().await.1, SERVICES + 2);
    a.post("/mox/freeze", "why=again", "", "");
    b.poll();
    b.mox.publish(&id(52), "r", 1, &["10.0.0.52:12200"]);
    assert_eq!(b.serves().await.1, SERVICES + 2);
    // What a thaw does not end is said.
    b.mox.engine.stopped(true);
    let (_, body) = b.post("/mox/thaw", "local=1", "", "");
    assert!(body.contains("\"frozen\": true") && body.contains("\"stopped\""), "{body}");
}

#[tokio::test]
async fn a_freeze_of_one_server_outlasts_that_of_all_and_ends_with_a_thaw_of_all() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    let held = |server: &Server| server.mox.engine.status().served.held.is_some();
    b.serves().await;
    assert_eq!(b.post("/mox/freeze", "local=1", "", "").0, 200);
    a.post("/mox/freeze", "for=1s", "", "");
    eventually(SOON, "that of all ends by itself", || {
        a.poll();
        b.poll();
        std::thread::sleep(Duration::from_millis(20)); // the polling interval
        (b.document("orders")["revision"] == 2).then_some(())
    });
    b.mox.engine.flush().await;
    assert!(held(&b));
    a.post("/mox/thaw", "by=ann", "", "");
    b.poll();
    b.mox.engine.flush().await;
    assert!(!held(&b));
}

#[tokio::test]
async fn what_is_mistyped_freezes_nothing() {
    let table = Table::default();
    let mut server = start(Some(&table), json!({}));
    for (path, query, says) in [
        ("/mox/freeze", "four=2h", "there are for, by, why, local"),
        ("/mox/freeze", "dryRun", "\"dryRun\" is not known"),
        ("/mox/thaw", "for=2h", "there are by, why, local"),
        ("/mox/thaw", "local=1&revision=2", "revision"),
        ("/mox/freeze", "local=maybe", "local is true or false"),
        ("/mox/policy", "local=maybe", "local is true or false"),
    ] {
        let (status, body) = server.post(path, query, "", "{}");
        assert!(status == 400 && body.contains(says), "{query}: {status}: {body}");
    }
    assert_eq!((table.row("orders"), table.row("policy")), (None, None));
    assert_eq!(server.post("/mox/freeze", "local=false", "", "").0, 200);
    assert!(table.row("orders").is_some(), "it is for all");
}

/// Whoever is told of a change and cannot read it does not say that it has it.
#[tokio::test]
async fn who_cannot_read_what_was_written_says_so() {
    let table = Table::default();
    let mut server = start(Some(&table), json!({}));
    assert_eq!(server.tell(json!({ "op": "refreshed" }))["status"], 200);
    server.table = None;
    server.poll();
    let page = server.tell(json!({ "op": "refreshed" }));
    assert!(page["status"] == 503 && page["body"].as_str().unwrap().contains("the database is away"), "{page}");
    server.tell(json!({ "op": "noDocuments", "why": "not persistent: H2" }));
    let (status, body) = server.post("/mox/refresh", "", "", "");
    assert!(status == 503 && body.contains("not persistent: H2"), "{body}");
}

#[tokio::test]
async fn a_freeze_ends_by_itself_everywhere() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    a.post("/mox/freeze", "for=1s", "", "");
    b.poll();
    let held = |server: &Server| server.mox.engine.status().served.held.is_some();
    b.mox.engine.flush().await;
    assert!(held(&b));
    b.table = None; // it ends for who cannot reach the store, too
    eventually(SOON, "both thaw", || {
        a.poll();
        b.poll();
        std::thread::sleep(Duration::from_millis(20)); // the polling interval
        (!held(&a) && !held(&b)).then_some(())
    });
    b.table = Some(table.clone());
    b.poll();
    assert_eq!(
        (b.document("orders")["revision"].clone(), b.document("orders")["stamp"]["by"].clone()),
        (json!(2), json!("registry-mox"))
    );
}

/// Two services that differ in the case of a letter want one host, and come to two session servers in another order.
#[tokio::test]
async fn a_contested_place_is_pinned_and_all_serve_alike_over_restarts_of_all() {
    let table = Table::default();
    let [mut a, mut b] = [(), ()].map(|()| start(Some(&table), json!({})));
    let ids = ["com.example.Contested", "com.example.CONTESTED"]
        .map(|name| format!("{name}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA"));
    let come = async |server: &Server, order: [usize; 2]| {
        for n in order {
            server.mox.publish(&ids[n], "r", 1, &[&format!("10.1.0.{n}:12200")]);
            server.mox.engine.flush().await;
        }
    };
    come(&a, [0, 1]).await;
    come(&b, [1, 0]).await;
    let has_it = |server: &Server| server.mox.page("/mox/dump", "").1.contains("\"com.example.contested.sofa.mesh\"");
    assert!(has_it(&a) && has_it(&b));
    assert_ne!(a.serves().await, b.serves().await, "each has another one under it");
    let first = a.serves().await;
    a.poll();
    b.poll();
    assert_eq!((a.serves().await, b.serves().await), (first.clone(), first.clone()), "who saw it first has its way");
    let revision = a.document("pins")["revision"].clone();
    assert_eq!((&revision, a.document("pins")["stamp"]["by"].clone()), (&json!(1), json!("registry-mox")));
    drop((a, b));
    let mut c = start(Some(&table), json!({}));
    come(&c, [1, 0]).await;
    assert_eq!(c.serves().await, first, "a newcomer moves nobody");
    c.poll();
    assert_eq!(c.document("pins")["revision"], revision);
}

/// Two session servers; clients subscribe at both, and `shown` is where the services are exported to by each.
struct Mesh {
    servers: [Server; 2],
    /// Of each session server: client, application and service.
    subscribed: [Vec<(&'static str, &'static str, usize)>; 2],
    /// Session servers that do not answer.
    silent: Vec<usize>,
}

impl Mesh {
    fn turn(&mut self) {
        for n in 0..2 {
            let server = &mut self.servers[n];
            let name = format!("10.0.0.{n}");
            let wanted = server.tell(json!({ "op": "visibility", "server": format!("{name}/1") }));
            if wanted["collect"] == true {
                assert_eq!(wanted["groups"], json!(["SOFA"]));
                for from in (0..2).filter(|from| !self.silent.contains(from)) {
                    let clients: Vec<String> = self.subscribed[from]
                        .iter()
                        .map(|(address, application, _)| format!("{address}||{application}"))
                        .collect();
                    let services: BTreeMap<String, String> = self.subscribed[from]
                        .iter()
                        .map(|(.., service)| {
                            let all = self.subscribed[from].iter().enumerate().filter(|(_, it)| it.2 == *service);
                            (id(*service), all.map(|(at, _)| at.to_string()).collect::<Vec<_>>().join(" "))
                        })
                        .collect();
                    let server = &self.servers[n];
                    server.tell(json!({ "op": "consumers", "server": format!("10.0.0.{from}"), "own": from == n,
                                        "clients": clients, "services": services }));
                }
                self.servers[n].tell(json!({ "op": "consumersRound", "listed": ["10.0.0.0", "10.0.0.1"] }));
            } else if wanted["asks"] == true {
                self.servers[n].tell(json!({ "op": "consumers", "server": name, "own": true }));
            }
            self.servers[n].poll();
        }
    }

    fn page(&self, n: usize, path: &str) -> Value {
        serde_json::from_str(&self.servers[n].mox.page(path, "").1).unwrap()
    }

    /// What a session server exports a service to.
    async fn exported(&self, n: usize, service: usize) -> Option<Vec<String>> {
        self.servers[n].mox.engine.flush().await;
        let mut client = self.servers[n].mox.client(node("probe")).await;
        client.subscribe(SERVICE_ENTRY).unwrap();
        client.next().await.unwrap();
        let name = harness::nth_name(service);
        client.state().get(&name).map(|resource| resource.entry.export_to.clone())
    }

    /// Turns until both session servers serve a service exported so.
    async fn until_exported(&mut self, service: usize, to: &[&str]) {
        let deadline = Instant::now() + SOON;
        loop {
            self.turn();
            let [one, other] = [self.exported(0, service).await, self.exported(1, service).await];
            if one == other && one.as_ref().is_some_and(|all| all.iter().eq(to)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{service} is to be exported to {to:?}, and is to {one:?} and {other:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await; // the pace of the host
        }
    }
}

#[tokio::test]
async fn services_are_exported_to_those_who_subscribe() {
    let table = Table::default();
    let config = json!({ "listen": "127.0.0.1:0", "protect": { "massDeleteShare": 100 } });
    let servers = [(), ()].map(|()| start(Some(&table), config.clone()));
    let mut mesh = Mesh {
        servers,
        subscribed: [vec![("10.1.0.1", "shop-web", 0), ("10.1.0.2", "", 1)], vec![("10.2.0.1", "pay", 0)]],
        silent: vec![1],
    };
    let policy = |mode: &str| {
        json!({ "visibility": { "mode": mode, "namespaces": { "shop*": ["shop"] }, "cidrs": { "10.2.0.0/16": ["pay"] },
                                "hold": "1s", "unused": "hide", "always": ["gateways"] } })
        .to_string()
    };
    assert_eq!(mesh.servers[0].post("/mox/policy", "", "", &policy("shadow")).0, 200);
    // Nothing counts before everybody has answered once.
    mesh.servers[1].poll();
    mesh.turn();
    assert_eq!(mesh.page(0, "/mox/visibility")["known"], false);
    mesh.silent.clear();
    eventually(SOON, "it is known who consumes what", || {
        mesh.turn();
        std::thread::sleep(Duration::from_millis(100)); // the pace of the host
        (0..2).all(|n| mesh.page(n, "/mox/visibility")["known"] == true).then_some(())
    });
    mesh.until_exported(0, &["*"]).await;
    let page = mesh.page(0, &format!("/mox/services/{}", id(0).replace('#', "%23")));
    let shown = if page["consumers"].is_array() { 0 } else { 1 };
    let page = mesh.page(shown, "/mox/services/com.example.s0.sofa.mesh");
    assert_eq!(page["visibility"]["visibleTo"], json!(["gateways", "pay", "shop"]), "{page:#}");
    assert_eq!(page["consumers"].as_array().unwrap().len(), 2, "{page:#}");
    let page = mesh.page(shown, "/mox/visibility");
    assert_eq!(page["unused"]["count"], SERVICES - 2, "{page:#}");
    assert_eq!((&page["unknown"]["count"], &page["consumersOfUnknownNamespace"]["count"]), (&json!(1), &json!(1)));
    assert_eq!(page["narrowed"]["count"], SERVICES - 1);
    let dry = mesh.servers[0].post("/mox/policy", "dryRun", "", &policy("on")).1;
    let dry: Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(dry["services"]["change"]["count"], SERVICES - 1, "{dry:#}");

    assert_eq!(mesh.servers[1].post("/mox/policy", "", "", &policy("on")).0, 200);
    mesh.until_exported(0, &["gateways", "pay", "shop"]).await;
    mesh.until_exported(1, &["*"]).await;
    mesh.until_exported(2, &["gateways"]).await;
    // Who goes while a session server is silent keeps what it had; the newcomer gets it.
    mesh.silent.push(1 - shown);
    mesh.subscribed = [vec![], vec![]];
    mesh.subscribed[shown] = vec![("10.1.0.9", "shop-web", 2)];
    mesh.until_exported(2, &["gateways", "shop"]).await;
    mesh.until_exported(0, &["gateways", "pay", "shop"]).await;
    // A start finds what was agreed on.
    let restarted = start(Some(&table), config);
    mesh.servers[shown] = restarted;
    mesh.until_exported(0, &["gateways", "pay", "shop"]).await;
    assert_eq!(mesh.servers[0].post("/mox/policy", "", "", "{}").0, 200);
    mesh.until_exported(2, &["*"]).await;
}

/// By this `tests/scale` measures what visibility is for, without a registry to ask who subscribes.
#[tokio::test]
async fn what_follows_subscribers_is_to_the_byte_what_overrides_say() {
    let publish = |mox: &Mox| {
        for n in 0..6 {
            let application = format!("app-{}", n / 3);
            let url = format!("10.0.{}.1:12200?appName={application}", n / 3);
            let publisher = Publisher {
                register_id: "r".into(),
                version: RegisterVersion { version: 1, timestamp: 0 },
                app_name: application.as_str().into(),
                payloads: vec![url.as_bytes().into()],
                ..Publisher::default()
            };
            mox.put(&id(n), &publisher);
        }
    };
    let direct = json!({ "applications": ["*"] });
    let named = json!({
        "exportTo": ["elsewhere"],
        "overrides": { "*.S0:*": { "exportTo": ["shop"] }, "*.S1:*": { "exportTo": ["pay"] }, "*.S3:*": { "exportTo": ["pay"] } },
        "direct": {
            "applications": ["*"],
            "overrides": { "app-0": { "exportTo": ["elsewhere", "pay", "shop"] }, "app-1": { "exportTo": ["elsewhere", "pay"] } },
        },
    });
    let by_policy = Mox::closed(json!({ "policy": named }));
    publish(&by_policy);
    by_policy.engine.loaded();
    let wanted = by_policy.engine.flush().await;

    let table = Table::default();
    let config = json!({ "protect": { "massDeleteShare": 100 } });
    let servers = [(), ()].map(|()| Server::start(Some(&table), config.clone(), publish));
    assert_ne!(servers[0].serves().await.0, wanted.version);
    let shop = vec![("10.1.0.1", "shop", 0), ("10.1.0.2", "pay", 1), ("10.1.0.2", "pay", 3)];
    let elsewhere = [2, 4, 5].map(|n| ("10.1.0.3", "elsewhere", n)).to_vec();
    let mut mesh = Mesh { servers, subscribed: [shop, elsewhere], silent: vec![] };
    let namespaces = json!({ "shop": ["shop"], "pay": ["pay"], "elsewhere": ["elsewhere"] });
    let followed =
        json!({ "visibility": { "mode": "on", "unused": "hide", "namespaces": namespaces }, "direct": direct });
    assert_eq!(mesh.servers[0].post("/mox/policy", "", "", &followed.to_string()).0, 200);
    eventually(SOON, "it is known who consumes what", || {
        mesh.turn();
        std::thread::sleep(Duration::from_millis(100)); // the pace of the host
        (0..2).all(|n| mesh.page(n, "/mox/visibility")["unused"]["count"] == 0).then_some(())
    });
    for server in &mesh.servers {
        assert_eq!(server.serves().await, (wanted.version.clone(), wanted.services));
    }
}

#[tokio::test]
async fn nobody_holds_the_lease_who_does_not_see_subscribers() {
    let table = Table::default();
    let policy = json!({ "visibility": { "mode": "shadow" } });
    let mut server = start(Some(&table), json!({ "listen": "127.0.0.1:0", "policy": policy }));
    let collects =
        |server: &Server| server.tell(json!({ "op": "visibility", "server": "10.0.0.1/1" }))["collect"].clone();
    server.mox.engine.flush().await; // the view is complete
    for _ in 0..3 {
        assert_eq!(collects(&server), false);
        server.poll();
    }
    assert!(table.row("visibility").is_none());
    server.tell(json!({ "op": "consumers", "server": "10.0.0.1", "own": true }));
    server.poll();
    assert_eq!(collects(&server), true);
}

#[test]
fn visibility_is_off_where_a_server_knows_its_own_services_only() {
    let table = Table::default();
    let policy = json!({ "visibility": { "mode": "on", "unused": "hide" } });
    let config = json!({ "listen": "127.0.0.1:0", "scope": "local", "policy": policy });
    let mut server = start(Some(&table), config);
    let wanted = server.tell(json!({ "op": "visibility", "server": "10.0.0.1/1" }));
    assert_eq!(wanted, json!({ "asks": false, "collect": false }));
    server.tell(json!({ "op": "consumers", "server": "10.0.0.1", "own": true }));
    server.poll();
    assert!(table.row("visibility").is_none() && server.more == json!({}));
    let status = server.tell(json!({ "op": "status" }))["visibility"].clone();
    assert_eq!((&status["asks"], &status["known"]), (&json!(false), &json!(false)), "{status:#}");
    assert!(status["off"].as_str().unwrap().starts_with("mox.scope is local"), "{status:#}");
}
