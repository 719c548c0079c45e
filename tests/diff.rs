//! What two session servers, or a document and what is served, differ in: each service by its hash, a bounded part for a page.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use harness::{Mox, nth, nth_name as name};
use registry_mox::testing::host::admin::{self, Credentials, Request};
use serde_json::{Value, json};

const TOKEN: &str = "open sesame 1234";
const OTHER: &str = "10.0.0.2";

async fn open(config: Value) -> Mox {
    let mut config = config;
    config["admin"] = json!({ "token": TOKEN });
    config["protect"] = json!({ "massDeleteShare": 100 });
    let mox = Mox::open(config);
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

async fn filled(config: Value, services: usize) -> Mox {
    let mox = open(config).await;
    for n in 0..services {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.{}.{}:80", n >> 8, n & 255)]);
    }
    mox.engine.flush().await;
    mox
}

/// One step of a comparison.
fn step(here: &Mox, query: &str, answers: &[Value]) -> Value {
    here.tell(json!({ "op": "diff", "query": query, "listed": [OTHER], "answers": answers }))
}

/// The page as the binding gets it, which asks what it is told to, and how often that was.
fn compared(here: &Mox, query: &str, mut ask: impl FnMut(&str) -> (u16, String)) -> (Value, usize) {
    let mut answers = Vec::new();
    loop {
        let next = step(here, query, &answers);
        let Some(target) = next["target"].as_str() else { return (next, answers.len()) };
        assert_eq!(next["server"], OTHER);
        let (status, body) = ask(target);
        answers.push(json!({ "target": target, "status": status, "body": body }));
    }
}

fn by(there: &Mox) -> impl FnMut(&str) -> (u16, String) {
    |target| {
        let (path, query) = target.split_once('?').unwrap();
        there.page(path, query)
    }
}

/// What is told of the other server, from a place on.
fn told(here: &Mox, there: &Mox, from: u64) -> Value {
    let (page, asked) = compared(here, &format!("server={OTHER}&from={from}"), by(there));
    assert_eq!(page["status"], 200, "{page}");
    assert!(asked <= 9, "{asked}");
    serde_json::from_str(page["body"].as_str().unwrap()).unwrap()
}

/// Names and whether they are here and there.
fn differing(told: &Value) -> Vec<(String, bool, bool)> {
    let rows = told["services"].as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["here"].is_string(), row["there"].is_string()))
        .collect()
}

#[tokio::test]
async fn each_service_that_differs_is_named() {
    for mode in ["inline", "workload-entry"] {
        let config = json!({ "endpointMode": mode });
        let (here, there) = (filled(config.clone(), 50).await, filled(config, 50).await);
        let same = told(&here, &there, 0);
        assert_eq!(
            (&same["same"], &same["parts"], &same["services"]),
            (&json!(true), &json!(0), &json!([])),
            "{same:#}"
        );
        assert_eq!(same["policy"]["here"], same["policy"]["there"]);

        here.publish(&nth(50), "a", 1, &["10.0.0.1:80"]);
        there.publish(&nth(51), "a", 1, &["10.0.0.1:80"]);
        there.publish(&nth(7), "a", 2, &["10.0.0.7:80", "10.9.9.9:80"]);
        here.engine.flush().await;
        there.engine.flush().await;
        let other = told(&here, &there, 0);
        assert_eq!(other["same"], false);
        let mut found = differing(&other);
        found.sort();
        assert_eq!(found, [(name(50), true, false), (name(51), false, true), (name(7), true, true)], "{other:#}");
        let rows = other["services"].as_array().unwrap();
        let known: Vec<&Value> = rows.iter().filter(|row| row["here"].is_string()).map(|row| &row["service"]).collect();
        assert!(known.contains(&&json!(nth(50))) && known.contains(&&json!(nth(7))), "{known:?}");
        assert!(other["next"].is_null() && other["leftOut"] == 0, "{other:#}");
    }
}

#[tokio::test]
async fn what_differs_everywhere_comes_in_pages_that_have_everything_once() {
    let here = filled(json!({ "policy": { "exportTo": ["a"] } }), 600).await;
    let there = filled(json!({ "policy": { "exportTo": ["b"] } }), 600).await;
    let (mut names, mut from, mut pages) = (BTreeSet::new(), Some(0), 0);
    while let Some(at) = from {
        let page = told(&here, &there, at);
        assert_ne!(page["policy"]["here"], page["policy"]["there"]);
        for (name, here, there) in differing(&page) {
            assert!(here && there && names.insert(name));
        }
        from = page["next"].as_u64();
        assert!(from.is_none_or(|next| next > at));
        pages += 1;
    }
    assert_eq!(names.len(), 600);
    assert!((600 / 200..=128 / 8).contains(&pages), "{pages}");
}

#[tokio::test]
async fn only_who_has_the_token_is_believed() {
    let (here, there) = (filled(json!({}), 3).await, filled(json!({}), 5).await);
    let query = format!("server={OTHER}");
    let silent = |ask: &mut dyn FnMut(&str) -> (u16, String)| {
        let (page, asked) = compared(&here, &query, ask);
        let told: Value = serde_json::from_str(page["body"].as_str().unwrap()).unwrap();
        assert!(told["services"] == json!([]), "{told:#}");
        (told["silent"].as_str().unwrap().to_owned(), asked)
    };
    let plain = there.page("/mox/hashes", "").1;
    assert!(silent(&mut |_| (200, plain.clone())).0.contains("not signed"));
    let old = there.page("/mox/hashes", &format!("nonce={}", "a".repeat(32))).1;
    assert!(silent(&mut |_| (200, old.clone())).0.contains("not signed"), "an answer to another question");
    let (why, asked) = silent(&mut |_| (503, format!("MoX\u{1b}[31m is off{}", "x".repeat(9_999))));
    assert!(why.starts_with("status 503: MoX [31m is off") && why.len() < 400 && asked == 1, "{why}");
    // A part of a liar that passed the first question on.
    let mut honest = by(&there);
    let mut first = true;
    let mut later = |target: &str| if std::mem::take(&mut first) { honest(target) } else { (200, "{}".to_owned()) };
    assert!(silent(&mut later).0.contains("not signed"));
    // Without a token every whole answer counts, and no other.
    let bare = Mox::open(json!({}));
    for text in ["", "[]", "{}", "{\"policy\":\"\",\"translation\":1,\"parts\":[]}", &"x".repeat(100_000)] {
        let (page, _) = compared(&bare, &query, |_| (200, text.to_owned()));
        let told: Value = serde_json::from_str(page["body"].as_str().unwrap()).unwrap();
        assert!(told["silent"].is_string() && told["same"].is_null(), "{told:#}");
    }
}

#[tokio::test]
async fn nobody_is_asked_whom_meta_does_not_list() {
    let here = filled(json!({}), 3).await;
    for query in ["server=169.254.169.254", "server=10.0.0.2%3A80", "server=10.0.0.2/x", "server="] {
        let page = step(&here, query, &[]);
        assert!(page["target"].is_null() && page["status"] == 200, "{page}");
        let told: Value = serde_json::from_str(page["body"].as_str().unwrap()).unwrap();
        assert_eq!((&told["servers"], told["server"].is_null()), (&json!([OTHER]), true), "{told:#}");
    }
    // A port of its own has nobody whom it could ask.
    let (status, body) = here.page("/mox/diff", &format!("server={OTHER}"));
    assert!(status == 200 && body.contains("9603"), "{body}");
    for (path, status) in
        [("/mox/hashes/127", 200), ("/mox/hashes/128", 404), ("/mox/hashes/-1", 404), ("/mox/hashes/", 200)]
    {
        assert_eq!(here.page(path, "").0, status, "{path}");
    }
    assert_eq!(Mox::open(json!({})).page("/mox/hashes", "").0, 503, "there is no complete view");
}

#[tokio::test]
async fn a_revision_of_the_policy_is_compared_with_what_is_served() {
    let mox = filled(json!({}), 20).await;
    let set = |policy: Value| {
        let (shown, body) = (Credentials { token: TOKEN.into(), ..Credentials::default() }, policy.to_string());
        let request = Request { path: "/mox/policy", query: "", if_match: "", body: body.as_bytes() };
        assert_eq!(admin::change(&mox.engine, &shown, request).status, 200);
    };
    set(json!({ "exclude": ["*.S1:*", "*.S2:*"] }));
    set(json!({ "exclude": ["*.S1:*"] }));
    mox.engine.flush().await;
    let told = |query: &str| {
        let (status, body) = mox.page("/mox/diff", &format!("document=policy{query}"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["services"].clone()
    };
    let counts = |services: &Value| ["come", "go", "change"].map(|kind| services[kind]["count"].as_u64().unwrap());
    assert_eq!(counts(&told("")), [0, 0, 0]);
    assert_eq!(counts(&told("&revision=1")), [0, 1, 0], "{:#}", told("&revision=1"));
    assert_eq!(counts(&told("&revision=0")), [1, 0, 0]);
    assert_eq!(mox.page("/mox/diff", "document=policy&revision=9").0, 404);
    assert_eq!(mox.page("/mox/diff", "document=orders").0, 400);
    assert_eq!(mox.engine.flush().await.services, 19, "nothing is set");
    let (status, page) = mox.page("/mox/diff", "document=policy&revision=1&as=html");
    assert!(status == 200 && page.contains("<h1>What differs?</h1>") && page.contains(&nth(2)), "{page}");
}

#[tokio::test]
async fn no_text_of_another_server_is_taken_for_html() {
    let here = filled(json!({}), 3).await;
    let bare = Mox::open(json!({}));
    bare.engine.loaded();
    bare.engine.flush().await;
    let script = "<script>alert(1)</script>";
    let (page, _) = compared(&bare, &format!("server={OTHER}&as=html"), |target| match target.contains("/hashes/") {
        true => (200, json!({ "services": { (script): script }, "leftOut": 0 }).to_string()),
        false => (200, json!({ "policy": script, "translation": 1, "parts": vec![script; 128] }).to_string()),
    });
    let text = page["body"].as_str().unwrap();
    assert!(page["contentType"].as_str().unwrap().starts_with("text/html"), "{page}");
    assert!(text.contains("128 of 128 parts differ") && text.contains("&lt;script&gt;alert") && !text.contains(script));
    let (page, _) = compared(&here, &format!("server={OTHER}&as=html"), |_| (500, script.to_owned()));
    let text = page["body"].as_str().unwrap();
    assert!(text.contains("status 500: &lt;script") && !text.contains(script), "{text}");
}

/// Who names a server that there is not, or a document, is answered while others take their turn; and so is who begins.
#[tokio::test]
async fn nobody_takes_a_turn_before_there_is_something_to_compare() {
    let here = filled(json!({}), 3).await;
    let query = format!("server={OTHER}");
    let answers = {
        let _others = here.engine.hold_turn();
        assert_eq!(here.tell(json!({ "op": "diff", "query": query })), json!({ "list": true }));
        let unknown = step(&here, "server=10.9.9.9", &[]);
        assert_eq!(unknown["status"], 200);
        assert!(unknown["body"].as_str().unwrap().contains("no session server that meta lists"), "{unknown}");
        assert_eq!(here.tell(json!({ "op": "diff", "query": "document=policy" }))["status"], 200);
        let first = step(&here, &query, &[]);
        assert!(first["target"].as_str().unwrap().starts_with("/mox/hashes?"), "{first}");
        let answers = [json!({ "target": first["target"], "status": 200, "body": "{}" })];
        assert_eq!(step(&here, &query, &answers)["status"], 429, "now all that is served is walked over");
        answers
    };
    assert_eq!(step(&here, &query, &answers)["status"], 200);
}
