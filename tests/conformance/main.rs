//! The duties of an xDS server, item by item. The name of a test begins with its number in the list, its comment says
//! what it shows; `README.md` beside this file is made of the comments.
#![allow(clippy::unwrap_used, missing_docs)]

mod delta;
mod payload;
mod raw;
mod sotw;
mod stream;

use std::collections::BTreeMap;

use harness::{
    Mox, SOON,
    client::{Resource, decode},
    id,
};
use registry_mox::proto::envoy::service::discovery::v3::DiscoveryResponse;
use serde_json::json;

/// The name of the resource of a service with a short name.
fn resource(name: &str) -> String {
    format!("sofa-registry/com.example.{}", name.to_lowercase())
}

/// A server with these services, each with one endpoint.
async fn serving(names: &[&str]) -> Mox {
    with(json!({}), names).await
}

async fn with(config: serde_json::Value, names: &[&str]) -> Mox {
    let mut config = config;
    config["push"]["duty"] = 1.into();
    let mox = Mox::open(config);
    names.iter().for_each(|name| set(&mox, name, 1));
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

/// Gives a service another endpoint.
fn set(mox: &Mox, name: &str, n: i64) {
    mox.publish(&id(name), "a", n, &[&format!("10.0.{}.{}:12200", n / 250, n % 250 + 1)]);
}

fn resources(response: &DiscoveryResponse) -> Vec<Resource> {
    response.resources.iter().map(|any| decode(&any.value).unwrap()).collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    resources(response).into_iter().map(|resource| resource.name).collect()
}

/// Waits until no stream is open.
async fn nobody(mox: &Mox) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !mox.engine.status().streams.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "streams are left: {:?}", mox.engine.status().streams);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await; // the polling interval
    }
}

/// Every item of the list has a test, and the table in `README.md` says what they show. `UPDATE=1` writes it.
#[test]
fn the_table_is_that_of_the_tests() {
    let mut items: BTreeMap<u32, (String, String)> = BTreeMap::new();
    for source in
        [include_str!("stream.rs"), include_str!("sotw.rs"), include_str!("payload.rs"), include_str!("delta.rs")]
    {
        let lines: Vec<&str> = source.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(name) =
                line.trim_start_matches("async ").strip_prefix("fn n").and_then(|rest| rest.split_once('('))
            else {
                continue;
            };
            let Ok(number) = name.0.chars().take(2).collect::<String>().parse::<u32>() else { continue };
            let says: Vec<&str> = lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with("///") || line.starts_with("#["))
                .filter_map(|line| line.strip_prefix("/// "))
                .collect();
            let says = says.into_iter().rev().collect::<Vec<_>>().join(" ");
            assert!(!says.is_empty(), "{} says nothing", name.0);
            assert!(items.insert(number, (format!("n{}", name.0), says)).is_none(), "{number} stands twice");
        }
    }
    assert_eq!(items.keys().copied().collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    let rows: String =
        items.iter().map(|(number, (name, says))| format!("| {number} | {says} | `{name}` |\n")).collect();
    let table = format!(
        "# What the xDS server does\n\nMade from the tests of this folder (`UPDATE=1 cargo test --test conformance table`), each of which shows one \
         item on the real server over a socket.\n\n| item | what it does | test |\n| --- | --- | --- |\n{rows}"
    );
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/README.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &table).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), table, "run it with UPDATE=1");
}
