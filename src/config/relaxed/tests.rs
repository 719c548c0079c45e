use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::config::duration;

/// A setting of each type.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    text: String,
    on: bool,
    port: u16,
    number: usize,
    share: f64,
    #[serde(with = "duration")]
    time: Duration,
    file: Option<PathBuf>,
    address: Option<SocketAddr>,
    mode: Option<Mode>,
    texts: Vec<String>,
    numbers: Vec<u16>,
    some_texts: Option<Vec<String>>,
    by_name: BTreeMap<String, u16>,
    group: Group,
    groups: Vec<Group>,
    groups_by_name: BTreeMap<String, Group>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Group {
    inner_text: String,
    inner_texts: Vec<String>,
    some: Option<String>,
    deeper: BTreeMap<String, BTreeMap<String, u16>>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    WorkloadEntry,
}

fn read(tree: Value) -> Result<Settings, Vec<String>> {
    let reading = super::read::<Settings>("r", &tree);
    let mistakes: Vec<String> = reading.mistakes.iter().map(Mistake::to_string).collect();
    if mistakes.is_empty() { Ok(reading.settings.unwrap()) } else { Err(mistakes) }
}

fn keys(tree: Value) -> Vec<String> {
    let mistakes = read(tree).unwrap_err();
    let mut keys: Vec<String> = mistakes.iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
    keys.sort();
    keys
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_value_is_what_its_setting_asks_for() {
    let typed = |text: &str| Settings { text: text.to_owned(), ..Settings::default() };
    for (tree, read_as) in [
        (json!({ "text": " as it is " }), typed(" as it is ")),
        (json!({ "text": "5" }), typed("5")),
        (json!({ "on": "TRUE" }), Settings { on: true, ..Settings::default() }),
        (json!({ "on": " false " }), Settings::default()),
        (json!({ "on": true }), Settings { on: true, ..Settings::default() }),
        (json!({ "port": " 65535 " }), Settings { port: 65_535, ..Settings::default() }),
        (json!({ "number": "18446744073709551615" }), Settings { number: usize::MAX, ..Settings::default() }),
        (json!({ "number": u64::MAX }), Settings { number: usize::MAX, ..Settings::default() }),
        (json!({ "share": "0.25" }), Settings { share: 0.25, ..Settings::default() }),
        (json!({ "share": 1 }), Settings { share: 1.0, ..Settings::default() }),
        (json!({ "time": "250ms" }), Settings { time: Duration::from_millis(250), ..Settings::default() }),
        (json!({ "time": " 1h 10m" }), Settings { time: Duration::from_secs(4_200), ..Settings::default() }),
        (json!({ "file": "/a b" }), Settings { file: Some("/a b".into()), ..Settings::default() }),
        (json!({ "file": null, "address": "" }), Settings::default()),
        (json!({ "address": "[::1]:5" }), Settings { address: "[::1]:5".parse().ok(), ..Settings::default() }),
        (json!({ "mode": "workload-entry" }), Settings { mode: Some(Mode::WorkloadEntry), ..Settings::default() }),
        (json!({ "mode": " WORKLOADENTRY" }), Settings { mode: Some(Mode::WorkloadEntry), ..Settings::default() }),
        (json!({ "texts": "a, b,,c ," }), Settings { texts: texts(&["a", "b", "c"]), ..Settings::default() }),
        (json!({ "texts": ["a,b", " c"] }), Settings { texts: texts(&["a,b", " c"]), ..Settings::default() }),
        (
            json!({ "texts": { "10": "c", "[2]": "b", "0": "a" } }),
            Settings { texts: texts(&["a", "b", "c"]), ..Settings::default() },
        ),
        (json!({ "numbers": ["1", 2] }), Settings { numbers: vec![1, 2], ..Settings::default() }),
        (json!({ "some-texts": "" }), Settings { some_texts: Some(Vec::new()), ..Settings::default() }),
        (json!({ "some-texts": null }), Settings::default()),
        (
            json!({ "groups-by-name": { "a.b": { "some": "" }, "c": { "some": " " }, "d": { "some": "x" } } }),
            Settings {
                groups_by_name: ["a.b", "c", "d"]
                    .map(|key| {
                        let some = (key == "d").then(|| "x".to_owned());
                        (key.to_owned(), Group { some, ..Group::default() })
                    })
                    .into(),
                ..Settings::default()
            },
        ),
        (
            json!({ "by-name": { "[a.b]": "1", "A-b": 2 } }),
            Settings { by_name: BTreeMap::from([("a.b".to_owned(), 1), ("A-b".to_owned(), 2)]), ..Settings::default() },
        ),
        (json!({ "by-name": " " }), Settings::default()),
        (
            json!({ "group": { "INNERTEXT": "a" } }),
            Settings { group: Group { inner_text: "a".to_owned(), ..Group::default() }, ..Settings::default() },
        ),
        (
            json!({ "groups": { "0": { "inner_texts": { "0": "a" } } } }),
            Settings { groups: vec![Group { inner_texts: texts(&["a"]), ..Group::default() }], ..Settings::default() },
        ),
    ] {
        assert_eq!(read(tree.clone()).as_ref(), Ok(&read_as), "{tree}");
    }
}

#[test]
fn a_value_that_cannot_be_what_its_setting_asks_for_is_refused() {
    for tree in [
        json!({ "text": 5 }),
        json!({ "text": null }),
        json!({ "on": "yes" }),
        json!({ "on": 1 }),
        json!({ "port": 65_536 }),
        json!({ "port": "-1" }),
        json!({ "port": "" }),
        json!({ "number": 1.5 }),
        json!({ "number": "1e3" }),
        json!({ "share": "a half" }),
        json!({ "share": true }),
        json!({ "time": 5 }),
        json!({ "time": "5" }),
        json!({ "address": "::1" }),
        json!({ "mode": "entry" }),
        json!({ "texts": null }),
        json!({ "group": [] }),
        json!({ "group": "" }),
        json!({ "by-name": [] }),
    ] {
        let mistakes = read(tree.clone()).unwrap_err();
        let key = tree.as_object().unwrap().keys().next().unwrap();
        assert_eq!(mistakes.len(), 1, "{tree}");
        assert!(mistakes[0].starts_with(&format!("r.{key}: ")), "{mistakes:?}");
    }
}

#[test]
fn an_unknown_key_is_named_at_every_depth() {
    let tree = json!({
        "x1": 0,
        "group": { "x2": { "x": 0 }, "deeper": { "a.b": { "c.d": 1 } } },
        "groups": [{}, { "x3": 0, "inner-text": "a" }],
        "groups-by-name": { "com.example.*": { "x4": 0, "inner-text": "a" }, "plain": { "x5": 0 } },
        "texts": { "x6": "a", "0": "b" },
    });
    let unknown = [
        "r.group.x2",
        "r.groups-by-name.plain.x5",
        "r.groups-by-name[com.example.*].x4",
        "r.groups[1].x3",
        "r.texts.x6",
        "r.x1",
    ];
    assert_eq!(keys(tree), unknown);
}

#[test]
fn a_mistake_in_a_map_of_the_operators_own_keys_is_named_by_them() {
    let tree =
        json!({ "group": { "deeper": { "a.b": { "c d": "x", "e": 70_000, "f": 1 } }, "inner-texts": [1, "a"] } });
    assert_eq!(keys(tree), ["r.group.deeper[a.b].e", "r.group.deeper[a.b][c d]", "r.group.inner-texts[0]"]);
}

#[test]
fn a_key_may_be_there_in_several_spellings_with_one_value() {
    let one = json!({ "some-texts": "a, b", "someTexts": ["a", "b"], "SOME_TEXTS": { "0": "a", "1": "b" } });
    assert_eq!(read(one).unwrap().some_texts, Some(texts(&["a", "b"])));
    let several = json!({ "some-texts": "a", "someTexts": "b", "sometexts": "a" });
    assert_eq!(keys(several), ["r.someTexts"]);
    let wrong = json!({ "by-name": 5, "byname": 5, "group": { "innertext": 1, "inner-text": 1 } });
    assert_eq!(keys(wrong), ["r.by-name", "r.group.inner-text"], "a mistake is told once");
}

#[test]
fn a_mistake_found_later_is_named_as_the_tree_spells_it() {
    let tree = json!({
        "some-texts": "a",
        "groups": { "3": 5, "7": { "INNER_TEXT": "a" } },
        "groups-by-name": { "a.b": { "inner-text": "a" } },
    });
    let mut reading = super::read::<Settings>("r", &tree);
    let names =
        ["r.someTexts", "r.groups[0].innerText", "r.groupsByName[a.b].innerText", "r.byName", "r.groupsByName.c"];
    reading.add(names.map(|key| Mistake { key: key.to_owned(), text: String::new() }).into());
    let keys: Vec<&str> = reading.mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
    let spelled =
        ["r.some-texts", "r.groups[7].INNER_TEXT", "r.groups-by-name[a.b].inner-text", "r.byName", "r.groupsByName.c"];
    assert_eq!(keys, [&["r.groups[3]"][..], &spelled].concat());
}

#[test]
fn what_is_told_is_bounded() {
    let mistakes = read(json!({ "numbers": vec!["x".repeat(1_000); 1_000] })).unwrap_err();
    assert_eq!(mistakes.len(), MOST_MISTAKES + 1);
    assert_eq!(mistakes.last().unwrap(), "r: there may be more mistakes than these");
    assert!(mistakes.iter().all(|mistake| mistake.len() < 200), "{}", mistakes[0]);
}

#[test]
fn a_text_that_may_be_a_secret_is_not_repeated() {
    for tree in [json!({ "group": "sesame" }), json!({ "text": ["sesame"] }), json!({ "text": "sesame", "TEXT": "x" })]
    {
        let mistakes = read(tree).unwrap_err();
        assert!(!mistakes.concat().contains("sesame"), "{mistakes:?}");
    }
}
