//! The documents that session servers share, in a registry of several session servers with its database: a policy's life, and
//! what may happen to the store.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use harness::{
    SOON, http,
    process::{eventually, fresh_home, root},
};
use registry_mox::testing::digest::hex;
use ring::{digest, hmac};
use serde_json::{Value, json};

use crate::cell::{Cell, DATABASE_PORT, META, SESSIONS, SETTLED, Server, TOKEN, address, get, on, post, status};

pub(crate) const DATABASE: u8 = 1;
const POLICY: &str = "registry-mox.policy#@#9600#@#CONFIG";

/// Events, and the times that it took.
#[derive(Default)]
struct Times(Vec<(&'static str, Duration, &'static str)>);

impl Times {
    fn note(&mut self, what: &'static str, since: Instant, until: &'static str) {
        println!("    {what}: {until} after {:.2?}", since.elapsed());
        self.0.push((what, since.elapsed(), until));
    }

    /// A line for each; also written to a file of `target/real`.
    fn table(&self, file: &str) {
        let mut text = "| what | takes | until |\n| --- | --- | --- |\n".to_owned();
        for (what, time, until) in &self.0 {
            writeln!(text, "| {what} | {:.1} s | {until} |", time.as_secs_f64()).unwrap();
        }
        println!("{text}");
        fs::write(root().join("target/real").join(file), text).unwrap();
    }
}

fn excluding(services: &[usize]) -> String {
    let globs: Vec<String> = services.iter().map(|n| format!("com.example.Fleet{n}:*")).collect();
    json!({ "exclude": globs }).to_string()
}

/// The version of what a session server serves, whole or not.
fn version(n: u8) -> String {
    status(n)["served"]["version"].as_str().unwrap_or_default().to_owned()
}

fn document(n: u8, name: &str) -> Value {
    status(n)["documents"]["documents"][name].clone()
}

fn revision(n: u8) -> u64 {
    document(n, "policy")["revision"].as_u64().unwrap_or_default()
}

/// Waits until every session server has the policy of this revision, and all serve the same; answers what.
fn agreed(revision_: u64) -> String {
    eventually(SETTLED, &format!("all have revision {revision_} and serve the same"), || {
        let versions = SESSIONS.map(version);
        let agree = SESSIONS.iter().all(|n| revision(*n) == revision_) && versions[0] == versions[1];
        (agree && !versions[0].is_empty()).then(|| versions[0].clone())
    })
}

fn refused(n: u8) -> Option<String> {
    document(n, "policy")["refused"]["reason"].as_str().map(str::to_owned)
}

/// The policy's row as meta shows it to anybody.
fn row() -> Option<(i64, String)> {
    let path = format!("/persistentData/query?dataInfoId={}", POLICY.replace('#', "%23").replace('@', "%40"));
    let answer: Value = serde_json::from_str(&get(META, 9615, &path)?).ok()?;
    Some((answer["data"]["version"].as_i64()?, answer["data"]["data"].as_str()?.to_owned()))
}

/// Writes over the policy's row as anybody can who reaches meta, which refuses that until it has read the row that is there.
fn vandal(operation: &str, value: &str) {
    eventually(SOON, "meta does it", || {
        let seen = row().map_or(0, |(version, _)| version);
        let version = if operation == "remove" { seen } else { seen.max(crate::recorder::now() as i64) + 1 };
        let body = json!({ "dataId": "registry-mox.policy", "instanceId": "9600", "group": "CONFIG", "version": version, "data": value });
        let headers = ["Content-Type: application/json"];
        let path = format!("/persistentData/{operation}");
        let answer = http::ask((address(META), 9615), SOON, "POST", &path, &headers, &body.to_string()).ok()?;
        (answer.body.contains("\"success\":true")).then_some(())
    });
}

/// Drops what the session servers and another machine send each other, on a port of it, or ends that.
pub(crate) fn drop_packets(cut: bool, to: u8, port: u16) {
    SESSIONS.into_iter().filter(|n| *n != to).for_each(|n| drop_packets_of(n, cut, to, port));
}

/// The same of one session server.
pub(crate) fn drop_packets_of(n: u8, cut: bool, to: u8, port: u16) {
    let (change, to, port) = (if cut { "-A" } else { "-D" }, address(to).to_string(), port.to_string());
    on(n, &["iptables", change, "OUTPUT", "-d", &to, "-p", "tcp", "--dport", &port, "-j", "DROP"]);
    on(n, &["iptables", change, "INPUT", "-s", &to, "-p", "tcp", "--sport", &port, "-j", "DROP"]);
}

/// From the first policy to the step back.
pub(crate) fn a_policy_lives(cell: &mut Cell) {
    cell.churn(0);
    let [one, other] = SESSIONS;
    let mut times = Times::default();
    let before = agreed(revision(one));
    let first = revision(one);

    let begin = Instant::now();
    let answer = post(one, "/mox/policy?by=ann&why=Fleet1+moves", &first.to_string(), &excluding(&[1]));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains(&address(other).to_string()), "it names the other: {}", answer.body);
    let second = agreed(first + 1);
    times.note("a policy is posted to one", begin, "both serve it");
    assert_ne!(second, before);

    drop_packets(true, other, 9603);
    let begin = Instant::now();
    let answer = post(one, "/mox/policy?by=ann", "", &excluding(&[1, 2]));
    let answered = begin.elapsed();
    agreed(first + 2);
    times.note("the same where the other cannot be told", begin, "both serve it");
    assert!(answer.status == 502 && answered > Duration::from_secs(1), "{}", answer.body);
    drop_packets(false, other, 9603);

    let begin = Instant::now();
    let answer = post(other, &format!("/mox/policy?rollback={}&by=bob", first + 1), &(first + 2).to_string(), "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(agreed(first + 3), second, "to the last byte");
    times.note("a step back", begin, "both serve the bytes of before");

    for which in 0..SESSIONS.len() {
        cell.sessions[which].kill();
    }
    let begin = Instant::now();
    for session in &mut cell.sessions {
        session.start();
    }
    for session in &mut cell.sessions {
        session.wait_until_healthy();
        session.wait_until_serving();
    }
    assert_eq!(agreed(first + 3), second, "after a restart of both");
    times.note("both are killed and started", begin, "both serve the bytes of before");

    let begin = Instant::now();
    assert_eq!(post(one, "/mox/policy?by=ann", "", "null").status, 200);
    assert_eq!(agreed(first + 4), before);
    times.note("a null", begin, "both serve by their properties");
    let page: Value = serde_json::from_str(&get(other, 9603, "/mox/policy").unwrap()).unwrap();
    assert_eq!((&page["from"], page["history"].as_array().map(Vec::len) >= Some(3)), (&json!("properties"), true));
    times.table("documents.md");
    the_chapter_says_how(one);
    agreed(first + 7);
}

/// Runs the commands of the chapter as they stand there, but for the server, the token and the revision that are the reader's own.
fn the_chapter_says_how(n: u8) {
    let chapter = fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let mut script = chapter.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    assert_eq!(script.matches("\ncurl ").count(), 7, "{script}");
    let (present, frozen) = (revision(n), document(n, "orders")["revision"].as_u64().unwrap_or_default());
    for (readers, own) in [
        ("session-server.example.com".to_owned(), address(n).to_string()),
        ("TOKEN=...".to_owned(), format!("TOKEN={TOKEN}")),
        ("If-Match: 3".to_owned(), format!("If-Match: {present}")),
        ("rollback=3".to_owned(), format!("rollback={present}")),
    ] {
        assert!(script.contains(&readers), "{readers}: {script}");
        script = script.replace(&readers, &own);
    }
    let dir = fresh_home("cell/chapter");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("policy.json"), excluding(&[1])).unwrap();
    let script = format!("curl() {{ command curl --silent --show-error --fail \"$@\"; }}\n{script}");
    let run = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).current_dir(dir).output().unwrap();
    assert!(run.status.success(), "{}: {script}", String::from_utf8_lossy(&run.stderr));
    assert_eq!((revision(n), document(n, "orders")["revision"].as_u64()), (present + 3, Some(frozen + 2)));
}

/// Whatever happens to the store: nobody differs for long after it is over, and nobody serves what is not signed.
pub(crate) fn faults(cell: &mut Cell) {
    cell.churn(0);
    let [one, other] = SESSIONS;
    let mut times = Times::default();
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[3])).status, 200);
    let mut known = revision(one);
    agreed(known);
    // Meta reads every 3 s: before that it shows a row of before.
    let (_, old) = eventually(SOON, "meta has read the row", || row().filter(|(_, value)| value.contains("Fleet3")));
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[4])).status, 200);
    known += 1;
    let served = agreed(known);

    let begin = Instant::now();
    let writers = SESSIONS.map(|n| {
        thread::spawn(move || post(n, "/mox/policy", &known.to_string(), &excluding(&[4, usize::from(n)])).status)
    });
    let mut answers = writers.map(|writer| writer.join().unwrap());
    answers.sort_unstable();
    assert_eq!(answers, [200, 409], "of two writers that saw the same one is told of the other");
    agreed(known + 1);
    times.note("two writers at once", begin, "both serve the same");
    assert_eq!(post(other, "/mox/policy", "", &excluding(&[4])).status, 200);
    known += 2;
    assert_eq!(agreed(known), served);

    for (what, row, reason) in [
        ("a row is tampered with", old.replace("Fleet3", "Fleet5"), "signature"),
        ("a row larger than it may be", "x".repeat(70_000), "too-large"),
    ] {
        vandal("put", &row);
        let begin = Instant::now();
        eventually(SOON, "both refuse it", || {
            SESSIONS.iter().all(|n| refused(*n).as_deref() == Some(reason)).then_some(())
        });
        times.note(what, begin, "both have refused it");
        assert_eq!(SESSIONS.map(version), [served.clone(), served.clone()], "{what}");
        let begin = Instant::now();
        assert_eq!(post(other, "/mox/policy", &known.to_string(), &excluding(&[4])).status, 200);
        known += 1;
        assert_eq!(agreed(known), served);
        assert_eq!(SESSIONS.map(refused), [None, None]);
        times.note(what, begin, "both serve what the operator wrote over it");
    }

    for (what, operation) in [("an old row is put back", "put"), ("a row is removed", "remove")] {
        vandal(operation, &old);
        let begin = Instant::now();
        eventually(SOON, "the last one is put back", || {
            let there = row().is_some_and(|(_, value)| value.contains(&format!("\"revision\":{known},")));
            there.then_some(())
        });
        times.note(what, begin, "meta shows the last one again");
        assert_eq!(agreed(known), served, "{what}");
    }

    drop_packets(true, DATABASE, DATABASE_PORT);
    let begin = Instant::now();
    eventually(SOON, "both say so", || {
        SESSIONS.iter().all(|n| status(*n)["documents"]["state"] == "unreachable").then_some(())
    });
    times.note("the database is cut off", begin, "both say so");
    let begin = Instant::now();
    let answer = post(one, "/mox/policy", "", "{}");
    assert_eq!(answer.status, 503, "{}", answer.body);
    times.note("the database is cut off", begin, "a policy is refused");
    let away = std::env::var("REGISTRY_DATABASE_AWAY_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    thread::sleep(Duration::from_secs(away)); // the length of the fault
    assert_eq!(SESSIONS.map(version), [served.clone(), served.clone()], "an unreachable store changes nothing");
    drop_packets(false, DATABASE, DATABASE_PORT);
    let begin = Instant::now();
    eventually(SETTLED, "both read it again", || {
        SESSIONS.iter().all(|n| status(*n)["documents"]["state"] == "on").then_some(())
    });
    times.note("the database is back", begin, "both read it again");
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[4])).status, 200);
    known += 1;
    assert_eq!(agreed(known), served);

    let token = cell.sessions[1].options.iter().position(|option| option.starts_with("-Dmox.admin.token=")).unwrap();
    let with_token = std::mem::replace(&mut cell.sessions[1].options[token], "-Dmox.threads=2".to_owned());
    crate::faults::restart(cell, 1);
    let begin = Instant::now();
    assert_eq!((status(other)["documents"]["state"].as_str(), revision(other)), (Some("off"), 0));
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[4])).status, 502, "the other cannot be told");
    known += 1;
    assert_eq!(version(one), served);
    times.note("a server without token", begin, "it says so, and the others go on");
    cell.sessions[1].options[token] = with_token;
    crate::faults::restart(cell, 1);
    assert_eq!(agreed(known), served);

    let begin = Instant::now();
    assert_eq!(post(one, "/mox/freeze?by=ann&why=upgrade&for=2h", "", "").status, 200);
    SESSIONS.iter().for_each(|n| crate::cell::wait_until_held(*n, Some("frozen")));
    times.note("a freeze is ordered at one", begin, "both are frozen");
    cell.sessions[1].kill();
    cell.sessions[1].start();
    cell.sessions[1].wait_until_healthy();
    let begin = Instant::now();
    eventually(SETTLED, "frozen, and served from its last good state", || {
        let status = status(other);
        let frozen = status["served"]["held"] == "frozen" && status["served"]["version"] == json!(served);
        (frozen && status["documents"]["state"] == "on").then_some(())
    });
    times.note("a restart under a freeze", begin, "it serves the last good state, frozen");
    // The server is up before what writes documents is.
    eventually(SOON, "a thaw is taken", || (post(other, "/mox/thaw?by=ann", "", "").status == 200).then_some(()));
    SESSIONS.iter().for_each(|n| crate::cell::wait_until_held(*n, None));
    assert_eq!(post(one, "/mox/policy", "", "null").status, 200);
    agreed(known + 1);
    times.table("document-faults.md");
    cell.assert_same_bytes();
}

/// A row that is signed as every release signs.
fn signed(schema: u64, revision: u64, content: &str) -> String {
    let (by, when, why) = ("ann", 1_700_000_000_000u64, "it can more");
    let mut message = format!("registry-mox document 1\npolicy\n{revision}\n{when}\n").into_bytes();
    for part in [by, why, content] {
        message.extend_from_slice(digest::digest(&digest::SHA256, part.as_bytes()).as_ref());
    }
    let mac = hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, TOKEN.as_bytes()), &message).as_ref());
    let head = json!({ "schema": schema, "name": "policy", "revision": revision, "by": by, "when": when, "why": why, "mac": mac });
    head.to_string().replacen('{', &format!("{{\"content\":{content},"), 1)
}

/// Old and new release side by side: these are the old ones.
pub(crate) fn newer_release(cell: &mut Cell) {
    cell.churn(0);
    let [one, other] = SESSIONS;
    let mut times = Times::default();
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[6])).status, 200);
    let mut known = revision(one);
    let served = agreed(known);
    let content = r#"{"policy":{"exclude":[],"fromNextYear":true},"history":[]}"#;
    for (schema, reason) in [(1, "content"), (2, "schema")] {
        let row_ = signed(schema, known + 1, content);
        vandal("put", &row_);
        let begin = Instant::now();
        eventually(SOON, "both refuse it", || {
            SESSIONS.iter().all(|n| refused(*n).as_deref() == Some(reason)).then_some(())
        });
        times.note(
            "a newer release writes what this one does not know",
            begin,
            "both refuse it and serve what they did",
        );
        crate::faults::restart(cell, 1);
        assert_eq!((refused(other).as_deref(), revision(other)), (Some(reason), known), "after a restart");
        assert_eq!(SESSIONS.map(version), [served.clone(), served.clone()]);
        assert_eq!(row().map(|(_, value)| value), Some(row_), "it stays for those that can read it");
        let answer = post(one, "/mox/policy", "", &excluding(&[6]));
        assert!(answer.status == 409 && answer.body.contains("a newer release wrote"), "{}", answer.body);
        let begin = Instant::now();
        let answer = post(one, "/mox/policy", &(known + 1).to_string(), &excluding(&[6]));
        assert_eq!(answer.status, 200, "{}", answer.body);
        known += 2;
        assert_eq!(agreed(known), served);
        times.note(
            "a newer release writes what this one does not know",
            begin,
            "both serve what the operator wrote over it",
        );
    }
    assert_eq!(post(one, "/mox/policy", "", "null").status, 200);
    agreed(known + 1);
    times.table("document-releases.md");
    cell.assert_same_bytes();
}

/// A library that sets the clock of a program back by an hour. (With one that is ahead a session server does not start: to it the
/// lease of meta's leader is over.)
fn an_hour_behind() -> PathBuf {
    let (source, library) = (root().join("tests/real/clock.c"), root().join("target/real/clock.so"));
    let made = Command::new("cc").args(["-shared", "-fPIC", "-DAHEAD=-3600", "-o"]).args([&library, &source]).status();
    assert!(made.unwrap().success());
    library
}

pub(crate) fn clocks_apart(cell: &mut Cell) {
    cell.churn(0);
    let [one, other] = SESSIONS;
    let mut times = Times::default();
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[7])).status, 200);
    let mut known = revision(one);
    let served = agreed(known);
    cell.sessions[1].environment = vec![("LD_PRELOAD", an_hour_behind())];
    crate::faults::restart(cell, 1);
    assert_eq!(agreed(known), served);
    for (n, behind) in [(other, true), (one, false)] {
        let begin = Instant::now();
        let answer = post(n, "/mox/policy?by=ann", &known.to_string(), &excluding(&[7, usize::from(n)]));
        known += 1;
        agreed(known);
        times.note("clocks are an hour apart, and a policy is posted to one", begin, "both serve it");
        assert!(answer.status == 502 && answer.body.contains("set the servers' clocks"), "{}", answer.body);
        let when = document(one, "policy")["stamp"]["when"].as_u64().unwrap();
        assert_eq!(when + 3_500_000 < crate::recorder::now(), behind, "by the clock of who writes it");
    }
    for n in [other, one] {
        let begin = Instant::now();
        assert_eq!(post(n, "/mox/freeze?by=ann&for=8s", "", "").status, 502);
        SESSIONS.iter().for_each(|n| crate::cell::wait_until_held(*n, Some("frozen")));
        times.note("clocks are an hour apart, and a freeze of 8 s is ordered at one", begin, "both are frozen");
        SESSIONS.iter().for_each(|n| crate::cell::wait_until_held(*n, None));
        times.note("clocks are an hour apart, and a freeze of 8 s is ordered at one", begin, "both are thawed");
    }
    assert_eq!(post(other, "/mox/policy", &known.to_string(), "null").status, 502);
    agreed(known + 1);
    cell.sessions[1].environment.clear();
    crate::faults::restart(cell, 1);
    agreed(known + 1);
    times.table("document-clocks.md");
    cell.assert_same_bytes();
}

/// The registry's own start waits for the database. So that comes back until the servers are up, and is away again before they have
/// read a document.
pub(crate) fn start_without_database(cell: &mut Cell) {
    cell.churn(0);
    let [one, _] = SESSIONS;
    let mut times = Times::default();
    assert_eq!(post(one, "/mox/policy", "", &excluding(&[8])).status, 200);
    let known = revision(one);
    let served = agreed(known);
    cell.sessions.iter_mut().for_each(Server::kill);
    drop_packets(true, DATABASE, DATABASE_PORT);
    cell.sessions.iter_mut().for_each(Server::start);
    thread::sleep(Duration::from_secs(15)); // the length of the fault
    assert!(cell.sessions.iter_mut().all(Server::is_alive), "they wait");
    drop_packets(false, DATABASE, DATABASE_PORT);
    let begin = Instant::now();
    let mut starting: Vec<&Server> = cell.sessions.iter().collect();
    eventually(SETTLED, "both are up", || {
        starting.retain(|server| {
            let is_up = TcpStream::connect_timeout(&(address(server.n), 9600).into(), SOON).is_ok();
            if is_up {
                server.signal("STOP");
                drop_packets_of(server.n, true, DATABASE, DATABASE_PORT);
                server.signal("CONT");
            }
            !is_up
        });
        starting.is_empty().then_some(())
    });
    times.note("all start without the database", begin, "the registry is up, once the database is back");
    let begin = Instant::now();
    for session in &mut cell.sessions {
        session.wait_until_healthy();
        session.wait_until_serving();
    }
    for n in SESSIONS {
        let documents = &status(n)["documents"];
        assert_eq!((&documents["state"], &documents["readMillisAgo"]), (&json!("unreachable"), &Value::Null), "{n}");
        assert_eq!((revision(n), version(n)), (known, served.clone()), "as it was kept");
    }
    times.note(
        "all start, and the database is gone when they are up",
        begin,
        "both serve by the documents that they have kept",
    );
    assert_eq!(post(one, "/mox/policy", "", "{}").status, 503);
    drop_packets(false, DATABASE, DATABASE_PORT);
    let begin = Instant::now();
    eventually(SETTLED, "both read it again", || {
        SESSIONS.iter().all(|n| status(*n)["documents"]["state"] == "on").then_some(())
    });
    times.note("all start, and the database is back after they are up", begin, "both read it again");
    assert_eq!(post(one, "/mox/policy", &known.to_string(), "null").status, 200);
    agreed(known + 1);
    times.table("document-starts.md");
    cell.assert_same_bytes();
}
