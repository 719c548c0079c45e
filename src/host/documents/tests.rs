use std::{fs, time::Instant};

use super::*;
use crate::{config::Config, documents::Write};

const TOKEN: &str = "open sesame 1234";

fn engine(config: Value) -> Engine {
    let mut config = config;
    config["listen"] = "127.0.0.1:0".into();
    config["admin"] = json!({ "token": TOKEN });
    let engine = Engine::open(Config::from_json(config.to_string().as_bytes()).unwrap()).unwrap();
    engine.await_documents();
    engine
}

/// Rows of a policy that was written `n` times.
fn rows(n: u64) -> BTreeMap<Name, Option<Row>> {
    let mut documents = Documents::new(TOKEN.as_bytes(), "sofa-registry").unwrap();
    documents.take(Name::Policy, None);
    let mut row = None;
    for n in 0..n {
        let policy = json!({ "exclude": [format!("a{n}*")] });
        let Write { version, value, .. } = documents.set_policy(Some(policy), &Stamp::default(), None).unwrap();
        row = Some(Row { version, value });
        documents.take(Name::Policy, row.as_ref());
    }
    [(Name::Policy, row)].into()
}

#[test]
fn pages_and_the_status_wait_for_no_disk() {
    let dir = std::env::temp_dir().join(format!("mox-slow-disk-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    let engine = engine(json!({ "stateDir": dir }));
    // Whoever writes the file holds this for as long as the disk takes.
    let disk = engine.documents.hold_file();
    std::thread::scope(|scope| {
        scope.spawn(|| engine.documents_read(Ok(rows(1))));
        let begun = Instant::now();
        let knows = || engine.documents.try_lock().is_some_and(|it| it.status().documents[&Name::Policy].revision == 1);
        while !knows() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it waits for the disk");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(engine.policies_shown()["revision"], 1);
        drop(disk);
    });
    assert!(fs::read_to_string(dir.join("documents")).unwrap().contains("\"highest\":{\"policy\":1}"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_policy_of_before_is_compiled_once() {
    let engine = engine(json!({}));
    engine.documents_read(Ok(rows(3)));
    let hashes = |engine: &Engine| -> Vec<Value> {
        engine.policies_shown()["history"].as_array().unwrap().iter().map(|past| past["hash"].clone()).collect()
    };
    let hash = |n: u64| {
        let policy = engine.compiled_json(&json!({ "exclude": [format!("a{n}*")] })).unwrap();
        Value::from(policy.hash())
    };
    assert_eq!(hashes(&engine), [hash(1), hash(0)]);
    // What was made once is shown, and is taken over when another policy is in force.
    engine.documents.lock().hashes.iter_mut().for_each(|(revision, _, hash)| *hash = Some(format!("of {revision}")));
    assert_eq!(hashes(&engine), ["of 2", "of 1"]);
    engine.documents_read(Ok(rows(4)));
    assert_eq!(hashes(&engine), [hash(2), "of 2".into(), "of 1".into()]);
}

#[test]
fn what_a_database_says_is_on_no_page() {
    let engine = engine(json!({}));
    let away =
        Away { why: "java.sql.SQLException".to_owned(), detail: "jdbc:mysql://db/registry: access denied".to_owned() };
    engine.documents_read(Err(away));
    let status = serde_json::to_string(&engine.status()).unwrap();
    assert!(status.contains("java.sql.SQLException") && !status.contains("jdbc:mysql"), "{status}");
    assert!(!engine.policies_shown().to_string().contains("jdbc:mysql"));
}
