//! The pages for people: what tools get as JSON, escaped, with nothing from elsewhere, and at a bounded size.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use harness::{
    Mox,
    client::{BARRIER, DESTINATION_RULE, MoxClient, SERVICE_ENTRY, WORKLOAD_ENTRY, node},
    id, nth,
    process::eventually_is,
};
use registry_mox::testing::host::{
    admin::{self, Answer, as_accepted},
    hour::Sample,
};
use serde_json::{Value, json};

const PAGES: [&str; 5] = ["/mox", "/mox/services", "/mox/explain", "/mox/streams", "/mox/policy"];

async fn open(config: Value) -> Mox {
    let mox = Mox::open(config);
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

fn html(mox: &Mox, path: &str, query: &str) -> String {
    let (status, page) = mox.page(path, &format!("{query}&as=html"));
    assert_eq!(status, 200, "{path}: {page}");
    assert!(page.starts_with("<!DOCTYPE html>"), "{path}");
    page
}

fn json_of(mox: &Mox, path: &str, query: &str) -> Value {
    serde_json::from_str(&mox.page(path, query).1).unwrap()
}

/// Whatever publishers, clients and operators write stands there as text.
#[tokio::test]
async fn no_text_of_others_is_taken_for_html() {
    let evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;";
    let policy = json!({ "exclude": [format!("{evil}*")] });
    let mox = open(json!({ "policy": policy })).await;
    let service = id(format!("Evil{evil}"));
    mox.publish(&service, &format!("register{evil}"), 1, &[&format!("10.0.0.1:80?app_name={evil}"), evil]);
    mox.publish(&nth(1), evil, 1, &[evil]);
    mox.engine.flush().await;
    let mut client = mox.client(harness::client::node(evil)).await;
    client.auto_ack = false;
    client.subscribe(harness::client::SERVICE_ENTRY).unwrap();
    let response = client.next_of(harness::client::SERVICE_ENTRY).await;
    client.nack(&response, evil).unwrap();
    let nacked = async {
        while mox.engine.status().nacks == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(harness::SOON, nacked).await.expect("the NACK comes");
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let mut pages: Vec<String> = PAGES.iter().map(|path| html(&mox, path, "")).collect();
    for asked in [evil, &service, "10.0.0.1"] {
        pages.push(html(&mox, "/mox/explain", &format!("q={}", encoded(asked))));
        pages.push(html(&mox, "/mox/services", &format!("q={0}&app={0}", encoded(asked))));
    }
    pages.push(html(&mox, &format!("/mox/services/{}", encoded(&service)), ""));
    let streams = html(&mox, "/mox/streams", "");
    // As the client's name for itself, and as its words.
    assert_eq!(streams.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count(), 2, "{streams}");
    pages.push(streams);
    let rung = json!({ "step": evil, "verdict": evil, "found": evil, "reasons": [{ "key": evil, "says": evil }] });
    let said = json!({ "services": [{ "service": evil, "answer": evil, "ladder": [rung] }] }).to_string();
    let answers = json!([
        { "server": evil, "status": 200, "body": said },
        { "server": evil, "status": 500, "body": evil },
    ]);
    let answers = serde_json::from_value(answers).unwrap();
    let page = admin::explained(&mox.engine, &format!("q={}&as=html", encoded(&service)), answers).body;
    assert!(page.contains("differs"), "{page}");
    pages.push(page);
    for page in pages {
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert!(page.contains("<script src=\"/mox/console.js\" defer></script>") && !page.contains("<img"), "{page}");
        assert!(
            page.contains("default-src 'none'") && !page.contains("style=\"") && !page.contains("onclick"),
            "{page}"
        );
        let foreign = page.split("=\"").skip(1).any(|value| value.starts_with("http") || value.starts_with("//"));
        assert!(!foreign, "{page}");
    }
}

#[tokio::test]
async fn people_and_tools_read_the_same() {
    let mox = open(json!({})).await;
    for n in 0..120 {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80?app_name=shop", n + 1)]);
    }
    mox.publish(&nth(200), "a", 1, &["nonsense without a port"]);
    mox.engine.flush().await;
    let list = json_of(&mox, "/mox/services", "");
    assert_eq!(
        (&list["total"], &list["pages"], list["services"].as_array().unwrap().len()),
        (&json!(121), &json!(3), 50)
    );
    let last = json_of(&mox, "/mox/services", "page=3");
    assert_eq!(last["services"].as_array().unwrap().len(), 21);
    assert_eq!(json_of(&mox, "/mox/services", "app=shop")["total"], 120);
    assert_eq!(json_of(&mox, "/mox/services", "q=S20")["total"], 2);
    let missing = json_of(&mox, "/mox/services", "state=not-served");
    assert_eq!((&missing["total"], &missing["services"][0]["service"]), (&json!(1), &json!(nth(200))));
    assert_eq!(mox.page("/mox/services", "state=none").0, 400);
    assert_eq!(mox.page("/mox/services", "page=0").0, 400);
    let page = html(&mox, "/mox/services", "q=S20");
    assert!(page.contains("2 services") && page.contains("com.example.s20.sofa.mesh"), "{page}");

    let name = nth(5).replace('#', "%23");
    let one = json_of(&mox, &format!("/mox/services/{name}"), "");
    assert_eq!(one["publishers"][0]["payloads"][0]["endpoint"], "10.0.0.6:80");
    assert!(one["entry"].as_str().unwrap().contains("ServiceEntry"), "{one:#}");
    assert_eq!(json_of(&mox, "/mox/services/com.example.s5.sofa.mesh", "")["service"], nth(5));
    let page = html(&mox, &format!("/mox/services/{name}"), "");
    assert!(page.contains("ServiceEntry") && page.contains("10.0.0.6:80?app_name=shop"), "{page}");
    let bad = json_of(&mox, &format!("/mox/services/{}", nth(200).replace('#', "%23")), "");
    assert_eq!(bad["publishers"][0]["payloads"][0]["rejected"], "unknown-form");
    assert_eq!(mox.page("/mox/services/no.such.host", "").0, 404);
    assert!(html(&mox, "/mox", "").contains("<b>120</b>"));
    assert_eq!(mox.page("/mox/console.css", "").0, 200);
    assert!(mox.page("/mox/console.js", "").1.contains("X-Mox-Token"));
    let sample = Sample { services: 120, endpoints: 119, pushes: 3, ack_millis: 4_321 };
    mox.engine.hour().lock().take(sample);
    let hour = json_of(&mox, "/mox/hour", "");
    assert_eq!(hour["everySeconds"], 15);
    assert_eq!(hour["samples"].as_array().unwrap().last().unwrap()["ackMillis"], 4_321);
    assert!(html(&mox, "/mox", "").contains("Slowest ACK, ms: 4321, peak 4321"));
    // A page that is for tools only is so for browsers, too.
    assert!(mox.page("/mox/metrics", "as=html").1.contains("# HELP"));
}

/// Services by another protocol than their dataInfoId's main one are in the list beside it.
#[tokio::test]
async fn the_list_has_services_of_each_protocol_and_each_state() {
    let mox = open(json!({ "policy": { "exclude": ["com.example.Out*"] } })).await;
    let dubbo = |name: &str| format!("com.example.{name}:1.0@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA");
    let both = ["dubbo://10.0.0.1:20880?application=shop", "tri://10.0.0.1:50051?application=shop"];
    mox.publish(&dubbo("In"), "a", 1, &both);
    mox.publish(&dubbo("Out"), "a", 1, &both);
    mox.engine.unknown(&[nth(9).into()]);
    mox.engine.flush().await;
    let of = |query: &str| -> Vec<String> {
        let list = json_of(&mox, "/mox/services", query);
        list["services"].as_array().unwrap().iter().map(|row| row["service"].as_str().unwrap().to_owned()).collect()
    };
    let beside = |name: &str| format!("tri://{}", dubbo(name));
    assert_eq!(of(""), [dubbo("In"), dubbo("Out"), nth(9), beside("In")]);
    assert_eq!(of("state=served"), [dubbo("In"), beside("In")]);
    assert_eq!(of("state=not-served"), [dubbo("Out"), nth(9)]);
    assert_eq!(of("state=unknown"), [nth(9)]);
    let row = &json_of(&mox, "/mox/services", "q=tri://&state=served")["services"][0];
    assert_eq!((&row["publishers"], &row["endpoints"], &row["exportTo"]), (&json!(1), &json!(1), &json!(["*"])));
    assert!(row["host"].as_str().unwrap().ends_with(".sofa.mesh"), "{row}");
    assert_eq!(of("app=shop&state=served"), of("state=served"));
}

#[tokio::test]
async fn the_list_counts_workload_entries_as_endpoints() {
    let mox = open(json!({ "endpointMode": "workload-entry" })).await;
    for n in 0..3 {
        let payloads: Vec<String> = (0..=n).map(|e| format!("10.0.{n}.{}:80", e + 1)).collect();
        mox.publish(&nth(n), "a", 1, &payloads.iter().map(|text| &**text).collect::<Vec<_>>());
    }
    mox.engine.flush().await;
    let list = json_of(&mox, "/mox/services", "");
    let endpoints: Vec<&Value> = list["services"].as_array().unwrap().iter().map(|row| &row["endpoints"]).collect();
    assert_eq!(endpoints, [1, 2, 3]);
}

/// Each service that a search by state finds says so in its row, and no other does.
#[tokio::test]
async fn a_search_by_state_finds_what_the_rows_say() {
    let mox = Mox::open(json!({}));
    for n in 0..60 {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80?app_name=shop", n + 1)]);
    }
    mox.publish(&nth(200), "a", 1, &["nonsense without a port"]);
    mox.publish(&id("Same"), "a", 1, &["10.0.1.1:80"]);
    mox.publish(&id("SAME"), "a", 1, &["10.0.1.2:80?app_name=shop"]);
    mox.engine.unknown(&[nth(300).into()]);
    mox.engine.loaded();
    mox.engine.flush().await;
    (0..30).for_each(|n| mox.unpublish(&nth(n), "a", 2));
    mox.engine.flush().await;
    for rest in ["", "app=shop", "q=s1"] {
        let listed = |query: &str| -> Vec<Value> {
            let pages = json_of(&mox, "/mox/services", query)["pages"].as_u64().unwrap();
            let page = |n| {
                json_of(&mox, "/mox/services", &format!("{query}&page={n}"))["services"].as_array().unwrap().clone()
            };
            (1..=pages).flat_map(page).collect()
        };
        let all = listed(rest);
        for state in ["served", "not-served", "quarantined", "withheld", "waiting", "in-grace", "contested", "unknown"]
        {
            let has_it = |row: &&Value| row["states"].as_array().unwrap().contains(&state.into());
            let wanted: Vec<&Value> = all.iter().filter(has_it).collect();
            let found = listed(&format!("{rest}&state={state}"));
            assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{rest} {state}");
            let some = ["served", "not-served", "withheld", "contested", "unknown"].contains(&state);
            assert!(!some || !rest.is_empty() || !found.is_empty(), "{state}");
        }
    }
}

/// The host hands over the header: what makes a client a browser is said in one place.
#[test]
fn a_browser_says_what_it_is_by_the_header() {
    let mox = Mox::closed(json!({}));
    for (query, accept, wanted) in [
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", "as=html"),
        ("q=a", "text/html,application/xhtml+xml", "q=a&as=html"),
        ("as=json", "text/html,application/xhtml+xml", "as=json"),
        ("q=a", "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "q=a"),
        ("", "text/html", "as=html"),
        ("q=a", "Text/HTML; charset=utf-8;q=0.9, application/json;q=0.5", "q=a&as=html"),
        ("q=a", "text/html;q=0.5, application/json", "q=a"),
        ("q=a", "application/json, text/html", "q=a"),
        ("q=a", "text/html;q=0, */*", "q=a"),
        ("q=a", "application/xhtml+xml", "q=a&as=html"),
        ("as=json&q=a", "application/xhtml+xml", "as=json&q=a"),
        ("q=a", "text/html, */*; q=.2", "q=a&as=html"),
        ("q=a", "application/json", "q=a"),
        ("q=a", "", "q=a"),
        ("", "*/*", ""),
        ("", "", ""),
    ] {
        assert_eq!(as_accepted(query, accept), wanted);
        let answer = mox.tell(json!({ "op": "accepted", "query": query, "accept": accept }));
        assert_eq!(answer, json!({ "query": wanted }), "{query} {accept}");
    }
}

/// However many streams there are, people come to each of them.
#[tokio::test(flavor = "multi_thread")]
async fn every_stream_is_on_some_page() {
    const STREAMS: usize = 250;
    let mox = open(json!({})).await;
    let address = mox.address();
    let mut clients = Vec::new();
    for n in 0..STREAMS {
        let mut client = MoxClient::connect(&address, node(&format!("[{n}]"))).await.unwrap();
        for type_url in [BARRIER, WORKLOAD_ENTRY, DESTINATION_RULE, SERVICE_ENTRY] {
            client.subscribe(type_url).unwrap();
        }
        client.next_of(SERVICE_ENTRY).await;
        clients.push(client);
    }
    let (mut from, mut seen, mut pages) = (Some(String::new()), BTreeSet::new(), 0);
    while let Some(query) = from {
        let page = html(&mox, "/mox/streams", &query);
        assert!(page.contains(&format!("{STREAMS} streams of ")), "{page}");
        seen.extend((0..STREAMS).filter(|n| page.contains(&format!("[{n}]"))));
        pages += 1;
        from = page.split_once("/mox/streams?").map(|(_, rest)| rest.split_once('"').unwrap().0.to_owned());
    }
    assert_eq!((seen.len(), pages), (STREAMS, 2));
    assert_eq!(mox.page("/mox/streams", "from=x&as=html").0, 400);
}

/// Pages that walk over all services come one after the other, so they cost no more than one of them.
#[tokio::test]
async fn pages_that_walk_over_all_services_take_turns() {
    let mox = open(json!({})).await;
    mox.publish(&nth(0), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    let walks = [("/mox/services", "state=served"), ("/mox/explain", "q=10.0.0.1"), ("/mox/visibility", "")];
    let held = mox.engine.hold_turn();
    for (path, query) in walks {
        match admin::page(&mox.engine, path, query) {
            Answer::Page(page) => assert_eq!((page.status, page.retry_after), (429, Some(1)), "{path}"),
            Answer::Large { .. } => panic!("{path} is no large page"),
        }
    }
    assert_eq!(mox.page("/mox/status", "").0, 200, "the others wait for nobody");
    drop(held);
    for (path, query) in walks {
        assert_eq!(mox.page(path, query).0, 200, "{path}");
    }
}

/// Whoever stands back is found, however many want the same.
#[tokio::test]
async fn everybody_who_stands_back_is_contested() {
    let mox = open(json!({})).await;
    let names = ["SAME", "SAMe", "SAmE", "SAme", "SaME", "SaMe", "SamE", "Same"];
    for (n, name) in names.iter().enumerate() {
        mox.publish(&id(name), "a", 1, &[&format!("10.0.0.{}:80", n + 1)]);
    }
    mox.engine.flush().await;
    let list = json_of(&mox, "/mox/services", "state=contested");
    assert_eq!(list["total"], names.len() - 1, "all but the one that has the host: {list:#}");
    for row in list["services"].as_array().unwrap() {
        let page =
            json_of(&mox, "/mox/explain", &format!("q={}", row["service"].as_str().unwrap().replace('#', "%23")));
        let rung =
            &page["services"][0]["ladder"].as_array().unwrap().iter().find(|rung| rung["step"] == "names").unwrap();
        assert_eq!(rung["reasons"][0]["key"], "contested", "{page:#}");
    }
    for name in &names[1..] {
        mox.unpublish(&id(name), "a", 2);
    }
    mox.policy(json!({ "exclude": names[1..].iter().map(|name| format!("*.{name}:*")).collect::<Vec<_>>() }));
    mox.engine.release().ok();
    mox.engine.flush().await;
    assert_eq!(json_of(&mox, "/mox/services", "state=contested")["total"], 0);
}

/// The overview counts all that is to be decided, however many of it the status names.
#[tokio::test]
async fn the_overview_counts_all_that_is_withheld() {
    let mox = open(json!({})).await;
    for n in 0..150 {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80", n + 1)]);
    }
    mox.engine.flush().await;
    // At once: of removals one after the other the first go before the breaker counts enough of them.
    mox.policy(json!({ "exclude": ["com.example.*"] }));
    mox.engine.flush().await;
    let page = html(&mox, "/mox", "");
    assert!(page.contains("150 services of which removals are withheld"), "{page}");
    assert_eq!(json_of(&mox, "/mox/services", "state=withheld")["total"], 150);
}

/// Who was told nothing has acknowledged nothing, and who owes an answer is seen to.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_its_client_has() {
    let mox = Mox::open(json!({}));
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    let mut client = mox.client(node("istiod")).await;
    client.auto_ack = false;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let cells = || {
        let page = html(&mox, "/mox/streams", "");
        let row = page.split("<tr>").find(|row| row.contains(SERVICE_ENTRY)).unwrap_or_default();
        let cell = |cell: &str| -> String { cell.split_once('>').unwrap().1.split("</td>").next().unwrap().to_owned() };
        // How long is not the test's to say.
        let cell = |text: &str| cell(text).split(" for ").next().unwrap().to_owned();
        row.split("<td").skip(4).take(2).map(cell).collect::<Vec<_>>()
    };
    eventually_is(&vec!["nothing".to_owned(), String::new()], "nothing is said yet", cells);
    mox.engine.loaded();
    let response = client.next().await.unwrap();
    let version = response.version_info.clone();
    eventually_is(&vec![version.clone(), "nothing; owes an answer".to_owned()], "an answer is owed", cells);
    client.ack(&response).unwrap();
    eventually_is(&vec![version, "yes".to_owned()], "it has what it was sent", cells);
}
