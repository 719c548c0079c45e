//! The `serve` program: its lines in and out, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use harness::{
    DEMO,
    serve::{Serve, program},
};
use serde_json::{Value, json};

fn start(arguments: &[&str]) -> Serve {
    Serve::start(Command::new(program()).args(arguments).stderr(Stdio::piped()))
}

/// Ends it as an operator does: its exit status, and what it logged. Its input is open still, if it was before.
fn terminate(mut serve: Serve) -> (i32, String) {
    let process = &mut serve.driven.process;
    let status = process.terminate(Duration::from_secs(20));
    (status.code().unwrap(), process.errors())
}

fn publish(n: u32, register_id: &str, version: i64, data: &[&str]) -> Value {
    json!({ "id": n, "op": "publish", "dataInfoId": DEMO, "registerId": register_id, "version": version,
            "registerTimestamp": 1, "data": data })
}

#[test]
fn it_speaks_the_documented_lines() {
    let mut serve = start(&[]);
    assert_eq!(serve.first["slices"], json!({}));
    assert!(serve.first["mox"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(serve.ask(&publish(1, "a", 1, &["10.0.0.1:12200"])), json!({ "id": 1, "ok": true }));
    assert_eq!(serve.ask(&json!({ "id": 2, "op": "flush" }))["held"], "not-loaded");
    assert_eq!(serve.ask(&json!({ "id": 3, "op": "loaded" })), json!({ "id": 3, "ok": true }));
    let box_of_text = "rO0ABXQADjEwLjAuMC4yOjEyMjAw"; // a serialized "10.0.0.2:12200"
    let boxed = json!({ "id": 4, "op": "publish", "dataInfoId": DEMO, "registerId": "b", "version": 1,
                        "registerTimestamp": 1, "dataBase64": [box_of_text], "cell": "z", "appName": "app",
                        "attributes": { "k": "v" } });
    assert_eq!(serve.ask(&boxed), json!({ "id": 4, "ok": true }));
    let flushed = serve.ask(&json!({ "id": 5, "op": "flush" }));
    assert_eq!((&flushed["services"], &flushed["endpoints"]), (&json!(1), &json!(2)));
    assert!(flushed.get("held").is_none() && flushed["version"].as_str().unwrap().len() == 32);
    let unpublish = json!({ "id": 6, "op": "unpublish", "dataInfoId": DEMO, "registerId": "a", "version": 2,
                            "registerTimestamp": 1 });
    assert_eq!(serve.ask(&unpublish), json!({ "id": 6, "ok": true }));
    let replace = json!({ "id": 7, "op": "replace", "dataInfoId": DEMO, "version": 1, "source": "extension",
        "publishers": [{ "registerId": "x", "version": 1, "registerTimestamp": 1, "data": ["10.0.0.3:1"] }] });
    assert_eq!(serve.ask(&replace), json!({ "id": 7, "ok": true }));
    assert_eq!(serve.ask(&json!({ "id": 8, "op": "flush" }))["endpoints"], 2);
    let served = serve.ask(&json!({ "id": 9, "op": "flush" }));
    let tried = json!({ "id": 11, "op": "policy", "policy": { "exclude": ["*"] }, "dryRun": true });
    let tried = serve.ask(&tried);
    assert_eq!((&tried["ok"], &tried["services"]["go"]["count"]), (&json!(true), &served["services"]), "{tried}");
    let mut policy = |policy: Value| {
        assert_eq!(serve.ask(&json!({ "id": 10, "op": "policy", "policy": policy }))["ok"], true);
        serve.ask(&json!({ "id": 9, "op": "flush" }))
    };
    assert_eq!(policy(json!({ "exclude": ["*"] }))["services"], 0);
    assert_eq!(policy(json!({})), served, "to the last byte");
    assert_eq!(policy(json!({ "exclude": ["*"] }))["services"], 0);
    assert_eq!(serve.ask(&json!({ "id": 11, "op": "freeze" }))["ok"], true);
    assert_eq!(serve.ask(&json!({ "id": 12, "op": "flush" }))["held"], "frozen");
    assert_eq!(serve.ask(&json!({ "id": 13, "op": "thaw" }))["ok"], true);
    assert!(serve.ask(&json!({ "id": 12, "op": "flush" })).get("held").is_none(), "thawed");
    let release = serve.ask(&json!({ "id": 14, "op": "release" }));
    assert_eq!(release, json!({ "id": 14, "ok": false, "error": "no mass deletion or addition is held" }));
    assert!(serve.page("/mox/status").body.contains("\"translation\": 2"));
    let metrics = serve.page("/mox/metrics").body;
    for line in
        ["# TYPE mox_services gauge\nmox_services 0\n", "\nmox_held{reason=\"frozen\"} 0\n", "\nmox_tombstones 1\n"]
    {
        assert!(metrics.contains(line), "{line:?} is not in {metrics}");
    }
    assert!(serve.page("/mox/dump?type=ServiceEntry").body.contains("\"kind\":\"List\""));
    assert_eq!(serve.page("/nowhere").status, 404);
}

#[test]
fn a_bad_line_gets_its_error_and_changes_nothing() {
    let mut serve = start(&[]);
    for (line, says) in [
        (json!({ "id": 1, "op": "dance" }), "unknown variant `dance`"),
        (json!({ "id": 2 }), "missing field `op`"),
        (json!({ "id": 3, "op": "publish", "dataInfoId": DEMO }), "missing field `registerId`"),
        (json!({ "id": 4, "op": "unpublish", "dataInfoId": DEMO, "registerId": 5 }), "expected a string"),
        (json!({ "id": 5, "op": "policy", "policy": { "includes": [] } }), "did you mean include?"),
        (json!({ "id": 6, "op": "flush", "extra": 1 }), "unknown field `extra`"),
        (
            json!({ "id": 7, "op": "publish", "dataInfoId": DEMO, "registerId": "a", "version": 1,
                 "registerTimestamp": 1, "dta": [] }),
            "unknown field `dta`",
        ),
    ] {
        let answer = serve.ask(&line);
        assert_eq!((&answer["id"], &answer["ok"]), (&line["id"], &json!(false)));
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    }
    // Without an id there is no answer: the next one is the flush's.
    serve.say(&json!([1]));
    serve.driven.tell("not json");
    serve.say(&json!({ "op": "dance" }));
    assert_eq!(serve.ask(&json!({ "id": 7, "op": "flush" }))["services"], 0);
}

#[test]
fn it_goes_on_after_the_end_of_input_and_ends_well_when_told() {
    let mut serve = start(&[]);
    serve.ask(&publish(1, "a", 1, &["10.0.0.1:12200"]));
    drop(serve.driven.take_input());
    assert!(serve.page("/mox/status").body.contains("\"publishers\": 1"));
    let (code, log) = terminate(serve);
    assert_eq!(code, 0, "{log}");
}

#[test]
fn it_ends_well_while_its_input_is_open() {
    let mut serve = start(&[]);
    serve.ask(&publish(1, "a", 1, &["10.0.0.1:12200"]));
    let (code, log) = terminate(serve);
    assert_eq!(code, 0, "{log}");
}

#[test]
fn what_the_configuration_says_goes_before_its_own_defaults() {
    let file = std::env::temp_dir().join(format!("mox-serve-given-{}.json", std::process::id()));
    std::fs::write(&file, r#"{"listen": "127.0.0.2:0", "protect": {"startup-hold": "60s"}}"#).unwrap();
    let mut serve = start(&["--config", file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
    assert!(serve.first["mox"].as_str().unwrap().starts_with("127.0.0.2:"), "{}", serve.first);
    assert_eq!(serve.ask(&json!({ "id": 1, "op": "flush" }))["held"], "not-loaded");
}

#[test]
fn a_bad_configuration_ends_it_with_one_message() {
    let file = std::env::temp_dir().join(format!("mox-serve-{}.json", std::process::id()));
    std::fs::write(&file, r#"{"hostSufix": "a.b"}"#).unwrap();
    let output = Command::new(program()).arg("--config").arg(&file).stdin(Stdio::null()).output().unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("mox.hostSufix: unknown key; did you mean hostSuffix?"), "{said}");
}
