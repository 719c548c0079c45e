//! Session servers of one cluster: what they have in common, what a server does that is cut off, and who may change
//! something.
#![allow(clippy::unwrap_used, missing_docs)]

use harness::{
    Mox, SOON,
    client::{SERVICE_ENTRY, istiod_node},
    http, nth as id,
};
use registry_mox::testing::{
    model::RegisterVersion,
    registry::frame::{self, Publisher},
};
use ring::{digest, hmac};
use serde_json::{Value, json};
use tonic::Code;

fn publisher(register_id: &str, version: i64, data: &str) -> Publisher<'static> {
    Publisher {
        register_id: register_id.to_owned().into(),
        version: RegisterVersion { version, timestamp: 5 },
        payloads: vec![data.as_bytes().to_vec().into()],
        ..Publisher::default()
    }
}

/// The first engine hears everything twice and in odd order, and reads; the second reads alone, at the end.
#[tokio::test]
async fn the_same_bytes_are_served_however_they_were_learned() {
    for mode in ["inline", "workload-entry"] {
        let config = json!({ "endpointMode": mode });
        let (heard, read) = (Mox::closed(config.clone()), Mox::closed(config));
        let a = |n: usize| publisher("a", 2, &format!("10.0.{n}.1:12200?app_name=demo&weight=5"));
        let b = |n: usize| publisher("b", 1, &format!("10.0.{n}.2:12200?zone=GZ00A"));
        for n in (0..50).rev() {
            let publish = |p: &Publisher<'_>| heard.put(&id(n), p);
            publish(&a(n));
            publish(&publisher("a", 1, "10.9.9.9:1"));
            publish(&publisher("gone", 1, "10.9.9.8:1"));
            let version = RegisterVersion { version: 2, timestamp: 5 };
            heard.engine.apply(&frame::encode_unpublish("registry", &id(n), "gone", version).unwrap()).unwrap();
        }
        heard.engine.loaded();
        heard.engine.flush().await;
        for (mox, ids) in [(&heard, (0..50).collect::<Vec<_>>()), (&read, (0..50).rev().collect())] {
            for n in ids {
                let frame = frame::encode_replace("registry", &id(n), 7, i64::MIN, &[b(n), a(n)]).unwrap();
                mox.engine.apply(&frame).unwrap();
            }
        }
        read.engine.loaded();
        assert_eq!(heard.engine.flush().await, read.engine.flush().await);
        let [heard, read] = [&heard, &read].map(|mox| {
            let view = mox.engine.watch().borrow().clone();
            [view.service_entries, view.workload_entries].map(|all| all.pages().cloned().collect::<Vec<_>>())
        });
        assert_eq!(heard, read);
    }
}

#[tokio::test]
async fn a_fenced_server_sends_its_clients_away() {
    let mox = Mox::open(json!({ "scope": "cluster" }));
    mox.publish(&id(1), "a", 1, &["10.0.0.1:12200"]);
    mox.engine.loaded();
    let mut client = mox.client(istiod_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
    mox.tell(json!({ "op": "fence", "fenced": true }));
    assert_eq!(client.end(SOON).await.unwrap(), Code::Unavailable);
    assert_eq!(client.state().len(), 1, "it keeps what it has");
    assert!(mox.engine.status().fenced);
    let mut client = mox.client(istiod_node()).await;
    // The stream may be refused before the client has said anything.
    let _ = client.subscribe(SERVICE_ENTRY);
    assert_eq!(client.end(SOON).await.unwrap(), Code::Unavailable);
    mox.tell(json!({ "op": "fence", "fenced": false }));
    let mut client = mox.client(istiod_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
}

#[tokio::test]
async fn it_says_how_much_it_serves_to_one_that_starts() {
    let mox = Mox::open(json!({ "policy": { "direct": { "applications": ["*"] } } }));
    for n in 0..3 {
        mox.publish(&id(n), "a", 1, &["10.0.0.1:12200?app_name=demo", "10.0.0.2:12200?app_name=demo"]);
    }
    mox.engine.flush().await;
    assert_eq!(mox.page("/mox/serving", "").0, 503, "no complete view");
    mox.engine.loaded();
    mox.unpublish(&id(2), "a", 2);
    mox.engine.flush().await;
    let (status, page) = mox.page("/mox/serving", "");
    assert_eq!(status, 200);
    // As another release reads it: these two, in this order, and neither entries of applications nor services without endpoints.
    assert_eq!(page.split_whitespace().collect::<String>(), r#"{"services":2,"endpoints":4}"#);
}

/// What one asks another, as the host carries it to and fro.
#[tokio::test]
async fn an_answer_counts_for_the_question_that_it_was_signed_for() {
    let [one, other] = [(); 2].map(|()| Mox::open(json!({ "admin": { "token": "open sesame 1234" } })));
    let unsigned = Mox::open(json!({}));
    for mox in [&other, &unsigned] {
        mox.publish(&id(1), "a", 1, &["10.0.0.1:12200"]);
        mox.engine.loaded();
        mox.engine.flush().await;
        mox.tell(json!({ "op": "feed", "feed": { "oldestContactMillis": 1 } }));
    }
    let question = |about: &str| one.tell(json!({ "op": "question", "about": about }))["target"].clone();
    let ask = |mox: &Mox, target: &Value| {
        let (path, query) = target.as_str().unwrap().split_once('?').unwrap();
        let (status, body) = mox.page(path, query);
        json!({ "status": status, "body": body })
    };
    let hear = |about: &str, target: &Value, answers: &[Value]| {
        one.tell(json!({ "op": "answers", "about": about, "target": target, "answers": answers }))
    };
    for (about, good) in [
        ("fresh", json!({ "fresh": 1 })),
        ("serving", json!({ "fresh": 0, "serving": { "services": 1, "endpoints": 1 } })),
    ] {
        let (first, second) = (question(about), question(about));
        let (signed, liar) = (ask(&other, &first), ask(&unsigned, &first));
        let mut heard = hear(about, &first, &[signed.clone(), liar]);
        assert_eq!(heard["unsigned"].take(), 1);
        heard.as_object_mut().unwrap().remove("unsigned");
        assert_eq!(heard, good);
        assert_eq!(hear(about, &second, &[signed]), json!({ "fresh": 0, "unsigned": 1 }), "an old answer");
    }
    assert_eq!(other.page("/mox/fresh", ""), (200, "fresh\n".to_owned()), "people see no signature");
}

#[tokio::test]
async fn it_is_fresh_while_it_hears_of_the_data_servers() {
    let mox = Mox::open(json!({ "protect": { "maxStaleness": "60s" } }));
    let fresh = || mox.page("/mox/fresh", "").0;
    let hear = |millis: u64| mox.tell(json!({ "op": "feed", "feed": { "oldestContactMillis": millis } }));
    hear(1);
    assert_eq!(fresh(), 503, "no complete view");
    mox.engine.loaded();
    mox.engine.flush().await;
    assert_eq!(fresh(), 200);
    hear(30_000);
    assert_eq!(fresh(), 503);
    hear(1);
    mox.tell(json!({ "op": "fence", "fenced": true }));
    assert_eq!(fresh(), 503);
}

/// A request as another session server passes it on, over HTTP.
#[tokio::test]
async fn a_signed_change_is_made_once() {
    let mox = Mox::open(json!({ "adminListen": "127.0.0.1:0", "admin": { "token": "sesame" } }));
    mox.engine.loaded();
    let admin = mox.engine.listen().unwrap().admin.unwrap();
    let post = |path: &str, token: &str, millis_ago: i64| {
        let time = registry_mox::testing::model::date() - millis_ago;
        let mut message = format!("registry-mox request 1\nPOST\n/mox/freeze\n{time}\n").into_bytes();
        message.extend_from_slice(digest::digest(&digest::SHA256, b"").as_ref());
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes()), &message);
        let signature: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let headers = [format!("X-Mox-Time: {time}"), format!("X-Mox-Signature: {signature}")];
        let path = path.to_owned();
        move || http::ask(admin, SOON, "POST", &path, &[&headers[0], &headers[1]], "").unwrap()
    };
    for (wrong, why) in [
        (post("/mox/freeze", "sesam", 0)(), "the signature does not fit"),
        (post("/mox/thaw", "sesame", 0)(), "the signature does not fit"),
        (post("/mox/freeze", "sesame", 310_000)(), "the request was signed 31"),
    ] {
        assert!(wrong.status == 403 && wrong.body.starts_with(why), "{wrong:?}");
    }
    assert_eq!(mox.engine.flush().await.held, None);
    // A moment ahead: what was signed before the start might be a replay.
    let good = post("/mox/freeze", "sesame", -1_000);
    assert_eq!(good().status, 200);
    assert!(mox.engine.flush().await.held.is_some());
    let again = good();
    assert!(again.status == 403 && again.body.starts_with("the request was taken before"), "{again:?}");
}

#[tokio::test]
async fn the_query_of_what_is_passed_on_is_signed() {
    let mox = Mox::open(json!({ "adminListen": "127.0.0.1:0", "admin": { "token": "sesame" } }));
    let admin = mox.engine.listen().unwrap().admin.unwrap();
    let body = r#"{"exclude":["a.*"]}"#;
    let post = |target: &str, signed: &str| {
        let time = registry_mox::testing::model::date() + 1_000;
        let mut message = format!("registry-mox request 1\nPOST\n{signed}\n{time}\n").into_bytes();
        message.extend_from_slice(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"sesame"), &message);
        let signature: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let headers = [format!("X-Mox-Time: {time}"), format!("X-Mox-Signature: {signature}")];
        http::ask(admin, SOON, "POST", target, &[&headers[0], &headers[1]], body).unwrap()
    };
    let (ann, bob) = ("/mox/policy?by=ann", "/mox/policy?by=bob");
    for (target, signed) in [(bob, ann), (ann, "/mox/policy"), ("/mox/policy", ann)] {
        assert_eq!(post(target, signed).status, 403, "{target} for {signed}");
    }
    let done = post(ann, ann);
    assert!(done.status == 200 && done.body.contains(r#""by": "ann""#), "{done:?}");
}

#[tokio::test]
async fn changes_need_the_token() {
    let mox = Mox::open(json!({ "adminListen": "127.0.0.1:0", "admin": { "token": "sesame" } }));
    mox.engine.loaded();
    let admin = mox.engine.listen().unwrap().admin.unwrap();
    // The engine answers on threads of its own.
    let post = |path: &str, token: &str, body: &str| {
        http::ask(admin, SOON, "POST", path, &[&format!("X-Mox-Token: {token}")], body).unwrap()
    };
    for token in ["", "sesam", "sesame2"] {
        assert_eq!(post("/mox/freeze", token, "").status, 403, "{token:?}");
    }
    assert_eq!(mox.engine.flush().await.held, None);
    assert_eq!(post("/mox/freeze", "sesame", "").status, 200);
    assert!(mox.engine.flush().await.held.is_some());
    assert_eq!(post("/mox/thaw", "sesame", "").status, 200);
    assert!(post("/mox/release", "sesame", "").body.contains("\"released\": false"));
    assert!(post("/mox/policy", "sesame", "{\"exclude\": [\"a.*\"]}").body.contains("hash"));
    assert_eq!(post("/mox/policy", "sesame", "{\"exlude\": []}").status, 400);
    assert_eq!(post("/mox/else", "sesame", "").status, 404);
    let closed = Mox::closed(json!({}));
    let refused = closed.tell(json!({ "op": "change", "path": "/mox/freeze" }));
    assert_eq!(refused["status"], 403, "no token is set");
}
