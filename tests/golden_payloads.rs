//! The payloads in `tests/golden/payloads`, published to the engine, are served as their files say; and so says the README.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    Mox,
    golden::{Entry, Expect, Golden},
};
use registry_mox::testing::registry::frame::Publisher;
use serde_json::{Value, json};

/// Stands beside every payload, so that an entry exists and shows its weights: no sample has this one. Beside what is served by
/// another protocol than its dataInfoId's it is by that, too.
const COMPANION: &str = "192.0.2.254:1?weight=99";

/// What the engine serves for the payloads of a file, and what it left out. As boxes, payloads are what the registry holds.
async fn translate(golden: &Golden, boxes: bool) -> (Entry, Value) {
    let policy = if golden.policy.is_null() { json!({}) } else { golden.policy.clone() };
    let mox = Mox::closed(json!({ "policy": policy }));
    mox.engine.loaded();
    let payload = |text: &String| if boxes { serialize(text) } else { text.as_bytes().to_vec() };
    let publisher = Publisher {
        register_id: "golden".into(),
        cell: golden.cell.as_str().into(),
        serialized: boxes,
        payloads: golden.data.iter().map(|text| payload(text).into()).collect(),
        ..Publisher::default()
    };
    let id = &golden.data_info_id;
    mox.put(id, &publisher);
    let scheme = golden.data[0].split_once("://").map_or("", |(scheme, _)| scheme);
    let is_other = id.contains("@dubbo") && matches!(golden.expect, Expect::Served(_)) && !scheme.is_empty();
    mox.publish(
        id,
        "companion",
        1,
        &[&if is_other { format!("{scheme}://{COMPANION}") } else { COMPANION.to_owned() }],
    );
    mox.engine.flush().await;
    let served: Value = serde_json::from_str(&mox.page("/mox/dump", "").1).unwrap();
    let items = served["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{}", golden.path.display());
    assert_eq!(items[0]["metadata"]["annotations"]["sofa.registry/data-info-id"], *id);
    let mut entry = Entry::of_json(&items[0]);
    let before = entry.endpoints.len();
    entry.endpoints.retain(|endpoint| endpoint.address != "192.0.2.254");
    assert_eq!(entry.endpoints.len(), before - 1, "the companion is served");
    (entry, serde_json::to_value(mox.engine.status().rounds).unwrap()["rejects"].clone())
}

/// A `java.lang.String` in Java serialization; the samples are ASCII and short.
fn serialize(text: &str) -> Vec<u8> {
    assert!(text.is_ascii());
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&[0xAC, 0xED, 0, 5, 0x74], length.as_slice(), text.as_bytes()].concat()
}

async fn check(folder: &str) {
    let all = Golden::read_all(folder);
    assert!(!all.is_empty(), "{folder} is empty");
    let mut wrong = Vec::new();
    for golden in all {
        for boxes in [false, true] {
            let (entry, rejects) = translate(&golden, boxes).await;
            let (as_expected, rejected) = match &golden.expect {
                Expect::Served(wanted) => (entry == *wanted, json!({})),
                Expect::Reject { reject } => (entry.endpoints.is_empty(), json!({ reject: golden.data.len() })),
            };
            if !as_expected || rejects != rejected {
                let seen = serde_json::to_string_pretty(&entry).unwrap();
                wrong.push(format!("{} is served as {seen}\nand left out is {rejects}", golden.path.display()));
                break; // as boxes it is as wrong
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[tokio::test]
async fn samples_of_the_facts_are_served_as_recorded() {
    check("facts").await;
}

#[tokio::test]
async fn what_real_clients_publish_is_served_as_recorded() {
    check("captured").await;
}

/// The README's table of real clients has a row for each captured file, in an order of its own.
#[test]
fn the_readme_tells_what_is_recorded() {
    const HEADER: &str = "| published by | dataId | host | port | endpoint labels |\n| --- | --- | --- | --- | --- |\n";
    let row = |golden: &Golden| {
        let Entry { host, port, protocol, endpoints, .. } = golden.entry();
        let all: BTreeMap<_, _> = endpoints.iter().flat_map(|endpoint| &endpoint.labels).collect();
        let labels: Vec<_> = all.iter().map(|(key, value)| format!("`{key}: {value}`")).collect();
        let data_id = golden.data_id();
        format!("| {} | `{data_id}` | `{host}` | {port} {protocol} | {} |", golden.from, labels.join(", "))
    };
    let recorded: BTreeSet<_> = Golden::read_all("captured").iter().map(row).collect();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, rows) = readme.split_once(HEADER).unwrap_or_else(|| panic!("no table in the README begins with\n{HEADER}"));
    let told: BTreeSet<_> = rows.lines().take_while(|line| line.starts_with('|')).map(str::to_owned).collect();
    let missing: Vec<_> = recorded.difference(&told).cloned().collect();
    let wrong: Vec<_> = told.difference(&recorded).cloned().collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "the README's table lacks\n{}\nand should not have\n{}",
        missing.join("\n"),
        wrong.join("\n")
    );
}
