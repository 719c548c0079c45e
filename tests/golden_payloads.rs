//! The payloads in `tests/golden/payloads`, published to the engine, are served as their files say; and so says docs/istio.md.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    Mox,
    golden::{Entry, Expect, Golden},
};
use registry_mox::testing::registry::frame::Publisher;
use serde_json::{Value, json};

/// Stands beside every payload, so that an entry exists and shows its weights: no sample has this one. Beside what is served by
/// another protocol than its dataInfoId's it is by that, too, and beside an instance it is one of the same protocols.
const COMPANION: &str = "192.0.2.254:1?weight=99";

/// The entries that the engine serves for the payloads of a file, by host, and what it left out. With `boxes` the payloads are in
/// the serialized form in which the registry holds them.
async fn translate(golden: &Golden, boxes: bool) -> (Vec<Entry>, Value) {
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
    let is_served = !golden.entries().is_empty();
    mox.publish(
        id,
        "companion",
        1,
        &[&companion(&golden.data[0]).filter(|_| is_served).unwrap_or(COMPANION.to_owned())],
    );
    mox.engine.flush().await;
    let served: Value = serde_json::from_str(&mox.page("/mox/dump", "").1).unwrap();
    let entry = |item: &Value| {
        assert_eq!(item["metadata"]["annotations"]["sofa.registry/data-info-id"], *id);
        let mut entry = Entry::of_json(item);
        let before = entry.endpoints.len();
        entry.endpoints.retain(|endpoint| endpoint.address != "192.0.2.254");
        assert_eq!(entry.endpoints.len(), before - 1, "the companion is served");
        entry
    };
    let mut entries: Vec<Entry> = served["items"].as_array().unwrap().iter().map(entry).collect();
    entries.sort_by(|a, b| a.host.cmp(&b.host));
    (entries, serde_json::to_value(mox.engine.status().rounds).unwrap()["rejects"].clone())
}

/// The companion of a text that says by which protocols it is called.
fn companion(text: &str) -> Option<String> {
    if let Ok(mut instance) = serde_json::from_str::<Value>(text) {
        instance["host"] = json!("192.0.2.254");
        instance["metadata"]["weight"] = json!("99");
        return Some(instance.to_string());
    }
    let (scheme, _) = text.split_once("://")?;
    Some(format!("{scheme}://{COMPANION}"))
}

/// A `java.lang.String` in Java serialization; the samples are short, and their UTF-8 is Java's.
fn serialize(text: &str) -> Vec<u8> {
    assert!(text.chars().all(|c| ('\u{1}'..='\u{FFFF}').contains(&c)));
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&[0xAC, 0xED, 0, 5, 0x74], length.as_slice(), text.as_bytes()].concat()
}

async fn check(folder: &str) {
    let all = Golden::read_all(folder);
    assert!(!all.is_empty(), "{folder} is empty");
    let mut wrong = Vec::new();
    for golden in all {
        for boxes in [false, true] {
            let (entries, rejects) = translate(&golden, boxes).await;
            let (as_expected, rejected) = match &golden.expect {
                Expect::Served(_) | Expect::Several(_) => (entries == golden.entries(), json!({})),
                Expect::Reject { reject } => {
                    (entries.iter().all(|it| it.endpoints.is_empty()), json!({ reject: golden.data.len() }))
                }
            };
            if !as_expected || rejects != rejected {
                let seen = serde_json::to_string_pretty(&entries).unwrap();
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

/// The table of real clients in docs/istio.md has a row for each captured file, in an order of its own.
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
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/istio.md")).unwrap();
    let (_, rows) =
        page.split_once(HEADER).unwrap_or_else(|| panic!("no table in docs/istio.md begins with\n{HEADER}"));
    let told: BTreeSet<_> = rows.lines().take_while(|line| line.starts_with('|')).map(str::to_owned).collect();
    let missing: Vec<_> = recorded.difference(&told).cloned().collect();
    let wrong: Vec<_> = told.difference(&recorded).cloned().collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "the table in docs/istio.md lacks\n{}\nand should not have\n{}",
        missing.join("\n"),
        wrong.join("\n")
    );
}

/// The second half of `docs/providers.md` is made from the files. `UPDATE=1` writes it.
#[test]
fn the_page_of_providers_is_made_from_the_files() {
    const MADE: &str = "<!-- From here on made by UPDATE=1 cargo test --test golden_payloads page -->\n";
    let mut made = String::new();
    for (title, folder) in
        [("Published by real clients to a real registry", "captured"), ("By the clients' sources", "facts")]
    {
        made += &format!("\n### {title}\n");
        Golden::read_all(folder).iter().for_each(|golden| made += &section(golden, folder));
    }
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/providers.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let (prose, _) = page.split_once(MADE).unwrap_or_else(|| panic!("docs/providers.md has no line\n{MADE}"));
    let wanted = format!("{prose}{MADE}{made}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &wanted).unwrap();
        return;
    }
    let stale = wanted.lines().zip(page.lines()).find(|(wanted, told)| wanted != told);
    assert!(page == wanted, "docs/providers.md is not what the files say, run this with UPDATE=1; first at {stale:?}");
}

/// What is published, and what becomes of it.
fn section(golden: &Golden, folder: &str) -> String {
    let parts: Vec<&str> = golden.data_info_id.split("#@#").collect();
    let [data_id, instance, group] = parts[..] else { panic!("{}: an id of another form", golden.path.display()) };
    let file = golden.path.file_name().unwrap().to_str().unwrap();
    let mut text =
        format!("\n**{}** ([{file}](../tests/golden/payloads/{folder}/{file})) under `{data_id}`", golden.from);
    for (what, value, usual) in [
        ("instance", instance, "DEFAULT_INSTANCE_ID"),
        ("group", group, "SOFA"),
        ("zone", &golden.cell, "DEFAULT_ZONE"),
    ] {
        if value != usual && !value.is_empty() {
            text += &format!(", {what} `{value}`");
        }
    }
    if !golden.policy.is_null() {
        text += &format!(", with the policy `{}`", golden.policy);
    }
    text += &format!("\n\n```text\n{}\n```\n\n", golden.data.join("\n"));
    if let Expect::Reject { reject } = &golden.expect {
        text += &format!("is left out: `{reject}`.\n");
    }
    for (n, Entry { host, port, protocol, port_name, endpoints }) in golden.entries().iter().enumerate() {
        let is = if n == 0 { "is" } else { "\nand" };
        text += &format!("{is} `{host}`, port {port} {protocol} `{port_name}`, with the endpoints\n\n");
        for endpoint in endpoints {
            let address: std::net::IpAddr = endpoint.address.parse().unwrap();
            let socket = std::net::SocketAddr::new(address, u16::try_from(endpoint.port).unwrap());
            text += &format!("- `{socket}`, weight {}", endpoint.weight);
            endpoint.labels.iter().for_each(|(key, value)| text += &format!(", `{key}: {value}`"));
            text += "\n";
        }
    }
    text
}
