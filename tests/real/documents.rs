//! The documents that session servers share, in a registry of several session servers with its database: a policy's life, and
//! what may happen to the store.

use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use harness::{
    SOON, http,
    process::{eventually, root},
};
use serde_json::{Value, json};

use crate::cell::{Cell, META, SESSIONS, SETTLED, TOKEN, address, get, on, status};

const DATABASE: u8 = 1;
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

/// An operator's request to a session server.
fn post(n: u8, path: &str, if_match: &str, body: &str) -> http::Answer {
    let (token, if_match) = (format!("X-Mox-Token: {TOKEN}"), format!("If-Match: {if_match}"));
    let headers = [&*token, "Content-Type: application/json", &*if_match];
    let headers = if if_match == "If-Match: " { &headers[..2] } else { &headers[..] };
    http::ask((address(n), 9603), SOON, "POST", path, headers, body).unwrap()
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

/// Drops what these session servers and another machine send each other, on a port of it, or ends that.
pub(crate) fn drop_packets(cut: bool, to: u8, port: u16) {
    for n in SESSIONS.into_iter().filter(|n| *n != to) {
        let (change, to, port) = (if cut { "-A" } else { "-D" }, address(to).to_string(), port.to_string());
        on(n, &["iptables", change, "OUTPUT", "-d", &to, "-p", "tcp", "--dport", &port, "-j", "DROP"]);
        on(n, &["iptables", change, "INPUT", "-s", &to, "-p", "tcp", "--sport", &port, "-j", "DROP"]);
    }
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

    drop_packets(true, DATABASE, 9092);
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
    drop_packets(false, DATABASE, 9092);
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
