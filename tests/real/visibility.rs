//! Who sees what, in a registry of several session servers with real clients that subscribe: what follows from them, and what takes
//! nothing from anybody.

use std::{
    thread,
    time::{Duration, Instant},
};

use harness::{parts::Client, process::eventually};
use serde_json::{Value, json};

use crate::{
    cell::{Cell, DATABASE_PORT, SESSIONS, address, data_id, get, post, status},
    documents::{DATABASE, drop_packets, drop_packets_of},
};

/// How long a namespace keeps a service here.
const HOLD: &str = "30s";
/// Twice a round, a write, and what follows from it.
const PATIENCE: Duration = Duration::from_secs(90);

/// Posts until all have taken it: a store of documents that is slow for a moment, here or at another session server, is no fault, and
/// each of these may be said twice.
fn order(path: &str, body: &str) {
    eventually(PATIENCE, &format!("{path} is taken"), || {
        let answer = post(SESSIONS[0], path, "", body);
        assert!([200, 502, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(())
    });
}

fn set_policy(policy: &Value) {
    order("/mox/policy", &policy.to_string());
}

fn policy(mode: &str) -> Value {
    json!({ "visibility": { "mode": mode, "hold": HOLD,
                            "namespaces": { "shop": ["shop"] }, "cidrs": { "10.78.0.13/32": ["pay"] } } })
}

/// What a session server exports a service of the fleet to.
fn exported(n: u8, service: usize) -> Option<Vec<String>> {
    let dump: Value = serde_json::from_str(&get(n, 9603, "/mox/dump")?).ok()?;
    let host = format!("com.example.fleet{service}.sofa.mesh");
    let entry = dump["items"].as_array()?.iter().find(|item| item["spec"]["hosts"][0] == *host)?;
    let to = entry["spec"]["exportTo"].as_array()?.iter();
    to.map(|name| name.as_str().map(str::to_owned)).collect()
}

/// Waits until both session servers export it so; answers how long that took.
fn until_exported(service: usize, to: &[&str]) -> Duration {
    let begin = Instant::now();
    loop {
        let all = SESSIONS.map(|n| exported(n, service));
        if all.iter().all(|it| it.as_ref().is_some_and(|it| it.iter().eq(to))) {
            return begin.elapsed();
        }
        let id = format!("{}%23@%23DEFAULT_INSTANCE_ID%23@%23SOFA", data_id(service));
        let pages =
            || SESSIONS.map(|n| (get(n, 9603, &format!("/mox/services/{id}")), get(n, 9603, "/mox/visibility")));
        assert!(
            begin.elapsed() < PATIENCE,
            "Fleet{service} is to be exported to {to:?}, and is to {all:?}: {:#?}",
            pages()
        );
        thread::sleep(Duration::from_millis(200)); // the polling interval
    }
}

/// The session server that computes, and its counts.
fn computing() -> Option<(u8, Value)> {
    let of = |n: u8| (n, status(n)["visibility"].clone());
    SESSIONS.into_iter().map(of).find(|(_, it)| it["computing"] == true).map(|(n, it)| (n, it["counts"].clone()))
}

/// Waits for so many more rounds, complete or not, of one session server: each counts its own.
fn rounds(kind: &str, more: u64) {
    let count = || computing().and_then(|(holder, counts)| Some((holder, counts[kind].as_u64()?)));
    let mut before = eventually(PATIENCE, "one computes", count);
    eventually(PATIENCE, &format!("{more} more rounds are {kind}"), || {
        let (holder, now) = count()?;
        // Where another one computes, or the same one was started anew, it is counted from there.
        if holder != before.0 || now < before.1 {
            before = (holder, now);
        }
        (now >= before.1 + more).then_some(())
    });
}

/// A client on a machine of its own: of clients at one address another session server tells the address only.
fn subscriber(application: &str, services: &[usize]) -> Client {
    subscriber_at(SESSIONS[0], application, services)
}

/// A client on a machine of its own that is connected to a session server.
fn subscriber_at(server: u8, application: &str, services: &[usize]) -> Client {
    let (server, name) = (address(server).to_string(), format!("visibility-{application}-{server}"));
    let arguments = [&*server, "9603", application];
    let mut client = match application {
        "pay" => Client::start_on(&std::env::var("HOST_13").unwrap(), &name, &arguments),
        _ => Client::start_with(&name, &arguments),
    };
    for service in services {
        client.tell(&format!("subscribe {}", data_id(*service)));
    }
    client
}

pub(crate) fn follows_subscribers(cell: &mut Cell) {
    cell.churn(0);
    let shop = subscriber("shop", &[0, 2]);
    let mut pay = subscriber("pay", &[0, 1]);
    set_policy(&policy("on"));
    let took = until_exported(0, &["pay", "shop"]);
    println!("    switched on: both serve it after {took:.0?}");
    until_exported(1, &["pay"]);
    until_exported(2, &["shop"]);
    until_exported(3, &["*"]);
    cell.assert_same_bytes();

    // A consumer in a new namespace.
    let begin = Instant::now();
    let late = subscriber("shop", &[1]);
    until_exported(1, &["pay", "shop"]);
    println!("    a consumer in another namespace: both serve it after {:.0?}", begin.elapsed());
    late.kill();

    // A consumer that reconnects loses nothing.
    pay.kill();
    pay = subscriber("pay", &[0, 1]);
    rounds("complete", 4);
    until_exported(0, &["pay", "shop"]);

    // A session server that does not answer removes nothing, however long nobody is there.
    let (holder, _) = computing().expect("one computes");
    let silent = SESSIONS.into_iter().find(|n| *n != holder).expect("another one");
    drop_packets(true, silent, 9604);
    shop.kill();
    rounds("incomplete", 4);
    assert_eq!(exported(holder, 2), Some(vec!["shop".to_owned()]));
    drop_packets(false, silent, 9604);

    // What is switched on while frozen counts after the thaw.
    order("/mox/freeze", "");
    let before = SESSIONS.map(|n| status(n)["served"]["version"].clone());
    set_policy(&policy("off"));
    thread::sleep(Duration::from_secs(5)); // longer than it takes to read the policy
    set_policy(&policy("on"));
    thread::sleep(Duration::from_secs(5)); // longer than it takes to read the policy
    assert_eq!(SESSIONS.map(|n| status(n)["served"]["version"].clone()), before, "while frozen");
    order("/mox/thaw", "");
    until_exported(0, &["pay"]);

    // Whoever computes is killed: what was computed counts, and another goes on.
    let (holder, _) = eventually(PATIENCE, "one computes", computing);
    let which = SESSIONS.iter().position(|n| *n == holder).expect("a session server");
    cell.sessions[which].kill();
    let other = SESSIONS[1 - which];
    let _batch = subscriber_at(other, "shop", &[5]);
    eventually(PATIENCE * 2, "the other computes", || {
        exported(other, 5).is_some_and(|all| all == ["shop"]).then_some(())
    });
    assert_eq!(exported(other, 0), Some(vec!["pay".to_owned()]));
    cell.sessions[which].start();
    cell.sessions[which].wait_until_healthy();
    cell.sessions[which].wait_until_serving();
    until_exported(5, &["shop"]);
    set_policy(&Value::Null);
    until_exported(0, &["*"]);
    pay.kill();
}

/// Whoever computes is paused, cut off from the store, or back beside its successor; a consumer moves to another session server.
pub(crate) fn computing_moves(cell: &mut Cell) {
    cell.churn(0);
    // Of the client that moves, another session server tells where it is by its address.
    let mut pay = subscriber_at(SESSIONS[0], "pay", &[10]);
    set_policy(&policy("on"));
    until_exported(10, &["pay"]);
    let known = || SESSIONS.map(|n| exported(n, 10));
    let kept = [Some(vec!["pay".to_owned()]), Some(vec!["pay".to_owned()])];

    // The client reconnects elsewhere, and back: longer than the hold nothing is lost.
    for server in [SESSIONS[1], SESSIONS[0]] {
        pay.kill();
        pay = subscriber_at(server, "pay", &[10]);
        rounds("complete", 4);
        assert_eq!(known(), kept, "its consumer is at {}", address(server));
    }

    // Whoever computes is paused until another does, and comes back beside it: for a moment both think that it is theirs.
    let (holder, _) = eventually(PATIENCE, "one computes", computing);
    let which = SESSIONS.iter().position(|n| *n == holder).expect("a session server");
    let other = SESSIONS[1 - which];
    let begin = Instant::now();
    cell.sessions[which].signal("STOP");
    eventually(PATIENCE * 2, "the other computes", || (status(other)["visibility"]["computing"] == true).then_some(()));
    println!("    who computes is paused: another does after {:.0?}", begin.elapsed());
    assert_eq!(exported(other, 10), kept[0]);
    cell.sessions[which].signal("CONT");
    eventually(PATIENCE, "one alone computes", || {
        (SESSIONS.iter().filter(|n| status(**n)["visibility"]["computing"] == true).count() == 1).then_some(())
    });
    rounds("complete", 4);
    assert_eq!(known(), kept);

    // Whoever computes cannot reach the database: another does.
    let (holder, _) = eventually(PATIENCE, "one computes", computing);
    let other = SESSIONS.into_iter().find(|n| *n != holder).expect("another one");
    drop_packets_of(holder, true, DATABASE, DATABASE_PORT);
    let begin = Instant::now();
    eventually(PATIENCE * 2, "the other computes", || (status(other)["visibility"]["computing"] == true).then_some(()));
    println!("    who computes is cut off from the database: another does after {:.0?}", begin.elapsed());
    let late = subscriber_at(other, "shop", &[11]);
    eventually(PATIENCE, "a newcomer is seen", || exported(other, 11).is_some_and(|all| all == ["shop"]).then_some(()));
    assert_eq!(known(), kept, "the last word counts where the database cannot be read");
    drop_packets_of(holder, false, DATABASE, DATABASE_PORT);
    until_exported(11, &["shop"]);
    rounds("complete", 4);
    assert_eq!(known(), kept);
    late.kill();

    // Callers by host are warned of where it is switched on.
    let page: Value = serde_json::from_str(&get(other, 9603, "/mox/visibility").expect("the page")).expect("JSON");
    assert!(page["warning"].as_str().is_some_and(|text| text.contains("callers by host never subscribe")), "{page:#}");
    set_policy(&Value::Null);
    until_exported(10, &["*"]);
    pay.kill();
}
