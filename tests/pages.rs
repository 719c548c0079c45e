//! The admin pages, over HTTP and as the session server's own port has them: what they cost and whom they are shown.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use harness::{Mox, SOON, nth as id, process::eventually};
use registry_mox::testing::{
    host::{
        admin::{self, Answer},
        command,
    },
    snapshot::{
        Snapshot,
        kubectl::{Dump, Format},
    },
};
use serde_json::{Value, json};

/// An engine with this many services of two endpoints.
async fn serving(config: Value, services: usize) -> Mox {
    let mut config = config;
    config["adminListen"] = "127.0.0.1:0".into();
    let mox = Mox::open(config);
    for n in 0..services {
        let address = |e: usize| format!("10.{}.{}.{e}:12200", n >> 8, n & 255);
        mox.publish(&id(n), "r", 1, &[&address(1), &address(2)]);
    }
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

fn connect(mox: &Mox) -> TcpStream {
    TcpStream::connect(mox.engine.listen().unwrap().admin.unwrap()).unwrap()
}

/// All that comes; empty where the connection is refused.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn ask(mox: &Mox, request: &str) -> String {
    let mut stream = connect(mox);
    // A connection that is refused may be gone already.
    let _ = write!(stream, "{request}");
    rest(stream)
}

fn get(mox: &Mox, path: &str) -> String {
    ask(mox, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

/// A body that came in chunks, and whether it is whole.
fn body(answer: &str) -> (String, bool) {
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = more.get(..size) else { break };
        body += chunk;
        rest = more.get(size + 2..).unwrap_or_default();
    }
    (body, false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_has_everything_in_both_formats() {
    let mox = serving(json!({}), 3_000).await;
    let answer = get(&mox, "/mox/dump");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-type: application/json\r\n"));
    let (text, whole) = body(&answer);
    assert!(whole && text.len() > 1 << 20, "{} bytes", text.len());
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&json!("v1"), &json!("List")));
    let items = list["items"].as_array().unwrap();
    let mut shown: Vec<(String, Vec<&str>)> = Vec::new();
    for item in items {
        let annotations = &item["metadata"]["annotations"];
        let spec = &item["spec"];
        assert_eq!((&item["kind"], &spec["location"]), (&json!("ServiceEntry"), &json!("MESH_INTERNAL")));
        let addresses = spec["endpoints"].as_array().unwrap().iter().map(|e| e["address"].as_str().unwrap());
        shown.push((annotations["sofa.registry/data-info-id"].as_str().unwrap().to_owned(), addresses.collect()));
    }
    shown.sort();
    let addresses: Vec<[String; 2]> =
        (0..3_000).map(|n| [1, 2].map(|e| format!("10.{}.{}.{e}", n >> 8, n & 255))).collect();
    let mut expected: Vec<(String, Vec<&str>)> =
        addresses.iter().enumerate().map(|(n, both)| (id(n), both.iter().map(String::as_str).collect())).collect();
    expected.sort();
    assert_eq!(shown, expected);
    let yaml = get(&mox, "/mox/dump?type=ServiceEntry&format=yaml");
    assert!(yaml.contains("content-type: application/yaml\r\n"));
    let yaml = body(&yaml).0;
    let documents = yaml.split("---\n").skip(1).map(|document| serde_saphyr::from_str(document).unwrap());
    assert_eq!(documents.collect::<Vec<Value>>(), *items);
    for (path, status, says) in [
        ("/mox/dump?type=Gateway", 404, "there are ServiceEntry"),
        ("/mox/dump?format=xml", 400, "there are json and yaml"),
    ] {
        let answer = get(&mox, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says), "{answer}");
    }
    assert_eq!(body(&get(&mox, "/mox/dump?type=WorkloadEntry")).0.lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_large_page_is_read_at_a_time() {
    let mox = serving(json!({}), 10).await;
    let Answer::Large { cursor, .. } = admin::page(&mox.engine, "/mox/dump", "") else { panic!("it is large") };
    for path in ["/mox/dump", "/mox/dump?type=WorkloadEntry&format=yaml"] {
        let refused = get(&mox, path);
        assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
        assert!(refused.contains("another dump is being read"), "{refused}");
    }
    assert!(get(&mox, "/mox/status").starts_with("HTTP/1.1 200 "), "others are no large pages");
    let (head, none) = command::open_page(&mox.engine, br#"{"path":"/mox/dump"}"#).unwrap();
    let (head, length) = (String::from_utf8_lossy(&head[4..]), u32::from_be_bytes(head[..4].try_into().unwrap()));
    let (head, body_) = head.split_at(length as usize);
    let head: Value = serde_json::from_str(head).unwrap();
    assert_eq!(head, json!({ "status": 429, "contentType": "text/plain; charset=utf-8", "retryAfter": 1 }));
    assert!(none.is_none() && body_.starts_with("another dump"), "{body_}");
    drop(cursor);
    assert!(body(&get(&mox, "/mox/dump")).1);
    let status: Value = serde_json::from_str(&mox.page("/mox/status", "").1).unwrap();
    assert_eq!(status["pages"], json!({ "refused": 3, "ended": 0 }));
    assert!(mox.page("/mox/metrics", "").1.contains("\nmox_pages_refused_total 3\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_or_a_stop_frees_the_place() {
    let mox = serving(json!({}), 20_000).await;
    let begin = || {
        let mut stream = connect(&mox);
        write!(stream, "GET /mox/dump HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut first = [0; 1];
        stream.read_exact(&mut first).unwrap();
        stream
    };
    let nothing = || Dump::new("ServiceEntry", Format::Json, &Snapshot::none());
    let is_free = || mox.engine.large().open(nothing).is_some();
    let gone = begin();
    assert!(!is_free(), "it is not read to its end");
    drop(gone);
    eventually(SOON, "the place is free", || is_free().then_some(()));
    let cut = begin();
    let engine = std::sync::Arc::clone(&mox.engine);
    tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
    assert!(!rest(cut).ends_with("\r\n0\r\n\r\n"), "nobody takes it for whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited() {
    let mox = serving(json!({}), 1).await;
    let mut idle: Vec<TcpStream> = (0..64).map(|_| connect(&mox)).collect();
    let refused = || mox.engine.status().refused;
    assert_eq!((get(&mox, "/mox/status"), refused()), (String::new(), 1), "the 65th");
    assert_eq!((get(&mox, "/mox/status"), refused()), (String::new(), 2), "and the next");
    drop(idle.pop());
    let is_served = || get(&mox, "/mox/status").starts_with("HTTP/1.1 200 ");
    eventually(SOON, "one that ended makes room", || is_served().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_connect_to_mox_may_not_connect_here() {
    for (allow, allowed) in [(json!(["10.0.0.0/8"]), false), (json!(["10.0.0.0/8", "127.0.0.1/32"]), true)] {
        let mox = serving(json!({ "allowCidrs": allow }), 1).await;
        let answer = get(&mox, "/mox/status");
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), allowed, "{allow}: {answer}");
        assert_eq!(mox.engine.status().refused, u64::from(!allowed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_bounded() {
    let mox = serving(json!({ "admin": { "token": "sesame" } }), 1).await;
    let post = |length: usize| {
        let head = "POST /mox/policy HTTP/1.1\r\nHost: x\r\nX-Mox-Token: sesame\r\n";
        ask(&mox, &format!("{head}Content-Length: {length}\r\n\r\n{}", " ".repeat(length)))
    };
    assert!(post((1 << 20) - 2).starts_with("HTTP/1.1 400 "), "no JSON, but read");
    let too_large = post((1 << 20) + 1);
    assert!(
        too_large.starts_with("HTTP/1.1 413 ") && too_large.ends_with("a body has at most 1048576 bytes\n"),
        "{too_large}"
    );
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
    assert!(!ask(&mox, &long).starts_with("HTTP/1.1 200 "));
    assert!(ask(&mox, "DELETE /mox/dump HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(&mox, "GET /mox/status HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    assert_eq!(mox.page("/mox/streams", "from=x").0, 400);
    let streams: Value = serde_json::from_str(&mox.page("/mox/streams", "from=7").1).unwrap();
    assert_eq!((&streams["totals"]["streams"], &streams["streams"]), (&json!(0), &json!([])));
}
