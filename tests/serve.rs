//! The `serve` program: its lines in and out, and how it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const DEMO: &str = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

struct Serve {
    child: Child,
    out: BufReader<ChildStdout>,
    first: Value,
}

impl Serve {
    fn start(arguments: &[&str]) -> Self {
        // Cargo builds examples beside the tests.
        let program = std::env::current_exe().unwrap().parent().unwrap().join("../examples/serve");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let first = read(&mut out);
        Self { child, out, first }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn ask(&mut self, line: Value) -> Value {
        self.say(&line.to_string());
        read(&mut self.out)
    }

    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.first["admin"].as_str().unwrap()).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(mut self) -> (i32, String) {
        // `wait` would close it.
        let _input = self.child.stdin.take();
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(5)); // the polling interval
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code().unwrap(), log)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // Ended already, or killed now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(out: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn publish(id: u32, register_id: &str, version: i64, data: &[&str]) -> Value {
    json!({ "id": id, "op": "publish", "dataInfoId": DEMO, "registerId": register_id, "version": version,
            "registerTimestamp": 1, "data": data })
}

#[test]
fn it_speaks_the_documented_lines() {
    let mut serve = Serve::start(&[]);
    assert_eq!(serve.first["slices"], json!({}));
    assert!(serve.first["mox"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(serve.ask(publish(1, "a", 1, &["10.0.0.1:12200"])), json!({ "id": 1, "ok": true }));
    assert_eq!(serve.ask(json!({ "id": 2, "op": "flush" }))["held"], "not-loaded");
    assert_eq!(serve.ask(json!({ "id": 3, "op": "loaded" })), json!({ "id": 3, "ok": true }));
    let box_of_text = "rO0ABXQADjEwLjAuMC4yOjEyMjAw"; // a serialized "10.0.0.2:12200"
    let boxed = json!({ "id": 4, "op": "publish", "dataInfoId": DEMO, "registerId": "b", "version": 1,
                        "registerTimestamp": 1, "dataBase64": [box_of_text], "cell": "z", "appName": "app",
                        "attributes": { "k": "v" } });
    assert_eq!(serve.ask(boxed), json!({ "id": 4, "ok": true }));
    let flushed = serve.ask(json!({ "id": 5, "op": "flush" }));
    assert_eq!((&flushed["services"], &flushed["endpoints"]), (&json!(1), &json!(2)));
    assert!(flushed.get("held").is_none() && flushed["version"].as_str().unwrap().len() == 32);
    let unpublish = json!({ "id": 6, "op": "unpublish", "dataInfoId": DEMO, "registerId": "a", "version": 2,
                            "registerTimestamp": 1 });
    assert_eq!(serve.ask(unpublish), json!({ "id": 6, "ok": true }));
    let replace = json!({ "id": 7, "op": "replace", "dataInfoId": DEMO, "version": 1, "source": "extension",
        "publishers": [{ "registerId": "x", "version": 1, "registerTimestamp": 1, "data": ["10.0.0.3:1"] }] });
    assert_eq!(serve.ask(replace), json!({ "id": 7, "ok": true }));
    assert_eq!(serve.ask(json!({ "id": 8, "op": "flush" }))["endpoints"], 2);
    let served = serve.ask(json!({ "id": 9, "op": "flush" }));
    let mut policy = |policy: Value| {
        assert_eq!(serve.ask(json!({ "id": 10, "op": "policy", "policy": policy }))["ok"], true);
        serve.ask(json!({ "id": 9, "op": "flush" }))
    };
    assert_eq!(policy(json!({ "exclude": ["*"] }))["services"], 0);
    assert_eq!(policy(json!({})), served, "to the last byte");
    assert_eq!(policy(json!({ "exclude": ["*"] }))["services"], 0);
    assert_eq!(serve.ask(json!({ "id": 11, "op": "freeze" }))["ok"], true);
    assert_eq!(serve.ask(json!({ "id": 12, "op": "flush" }))["held"], "frozen");
    assert_eq!(serve.ask(json!({ "id": 13, "op": "thaw" }))["ok"], true);
    assert!(serve.ask(json!({ "id": 12, "op": "flush" })).get("held").is_none(), "thawed");
    let release = serve.ask(json!({ "id": 14, "op": "release" }));
    assert_eq!(release, json!({ "id": 14, "ok": false, "error": "no mass deletion is held" }));
    assert!(serve.page("/mox/status").contains("\"translation\": 1"));
    let metrics = serve.page("/mox/metrics");
    for line in
        ["# TYPE mox_services gauge\nmox_services 0\n", "\nmox_held{reason=\"frozen\"} 0\n", "\nmox_tombstones 1\n"]
    {
        assert!(metrics.contains(line), "{line:?} is not in {metrics}");
    }
    assert!(serve.page("/mox/dump?type=ServiceEntry").contains("\"kind\":\"List\""));
    assert!(serve.page("/nowhere").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_bad_line_gets_its_error_and_changes_nothing() {
    let mut serve = Serve::start(&[]);
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
        let answer = serve.ask(line.clone());
        assert_eq!((&answer["id"], &answer["ok"]), (&line["id"], &json!(false)));
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    }
    // Without an id there is no answer: the next one is the flush's.
    serve.say(&json!([1]).to_string());
    serve.say("not json");
    serve.say(&json!({ "op": "dance" }).to_string());
    assert_eq!(serve.ask(json!({ "id": 7, "op": "flush" }))["services"], 0);
}

#[test]
fn it_goes_on_after_the_end_of_input_and_ends_well_when_told() {
    let mut serve = Serve::start(&[]);
    serve.ask(publish(1, "a", 1, &["10.0.0.1:12200"]));
    drop(serve.child.stdin.take());
    assert!(serve.page("/mox/status").contains("\"publishers\": 1"));
    let (code, log) = serve.terminate();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn it_ends_well_while_its_input_is_open() {
    let mut serve = Serve::start(&[]);
    serve.ask(publish(1, "a", 1, &["10.0.0.1:12200"]));
    let (code, log) = serve.terminate();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn what_the_configuration_says_goes_before_its_own_defaults() {
    let file = std::env::temp_dir().join(format!("mox-serve-given-{}.json", std::process::id()));
    std::fs::write(&file, r#"{"listen": "127.0.0.2:0", "protect": {"startup-hold": "60s"}}"#).unwrap();
    let mut serve = Serve::start(&["--config", file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
    assert!(serve.first["mox"].as_str().unwrap().starts_with("127.0.0.2:"), "{}", serve.first);
    assert_eq!(serve.ask(json!({ "id": 1, "op": "flush" }))["held"], "not-loaded");
}

#[test]
fn a_bad_configuration_ends_it_with_one_message() {
    let file = std::env::temp_dir().join(format!("mox-serve-{}.json", std::process::id()));
    std::fs::write(&file, r#"{"hostSufix": "a.b"}"#).unwrap();
    let program = std::env::current_exe().unwrap().parent().unwrap().join("../examples/serve");
    let output = Command::new(program).arg("--config").arg(&file).stdin(Stdio::null()).output().unwrap();
    std::fs::remove_file(file).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("mox.hostSufix: unknown key; did you mean hostSuffix?"), "{said}");
}
