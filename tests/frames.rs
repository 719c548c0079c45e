//! The packed frames in `tests/golden/frames`, which Java writes byte for byte, read as their README says.
#![allow(clippy::unwrap_used, missing_docs)]

use harness::DEMO;
use registry_mox::testing::{
    model::RegisterVersion,
    registry::frame::{self, Body, Event, Part, Text},
    translate::serialized,
};

const GREET: &str = "com.example.Grüße:1.0@tri#@#mandant-ä#@#SOFA";
const R1: &str = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0001";
const R2: &str = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0002";
const R3: &str = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0003";
const TS: i64 = 1_795_393_505_864;
const BOLT: &str = "10.0.0.1:12200?rpcVer=51302&serialization=hessian2&weight=100&app_name=demo&p=1&v=4.0";

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/frames/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let hex: Vec<u8> = std::fs::read(path).unwrap().into_iter().filter(u8::is_ascii_hexdigit).collect();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn at(version: i64, timestamp: i64) -> RegisterVersion {
    RegisterVersion { version, timestamp }
}

/// The fields of a body: version, registerId, cell, application, attributes, payload texts.
type Parts = (RegisterVersion, String, String, String, Vec<(String, String)>, Vec<String>);

fn parts(body: &Body<'_>) -> Parts {
    let details = body.details().unwrap();
    let text = |payload: &&[u8]| match details.serialized {
        true => serialized::decode(payload).unwrap().unwrap(),
        false => std::str::from_utf8(payload).unwrap().to_owned(),
    };
    let attributes = details.attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    (
        body.version,
        body.register_id.as_str().to_owned(),
        details.cell.to_owned(),
        details.app_name.to_owned(),
        attributes.collect(),
        details.payloads.iter().map(text).collect(),
    )
}

fn demo_r1() -> Parts {
    (at(1, TS), R1.into(), "DEFAULT_ZONE".into(), "demo".into(), vec![], vec![BOLT.into()])
}

#[test]
fn a_publish_of_text() {
    let frame = golden("publish-text");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let [Event::Publish { source, data_info_id, body }] = &events[..] else { panic!("{events:?}") };
    assert_eq!([source.as_str(), data_info_id.as_str()], ["registry", DEMO]);
    assert_eq!(parts(body), demo_r1());
}

#[test]
fn a_publish_of_boxes_with_text_of_every_kind() {
    let frame = golden("publish-boxes");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let [Event::Publish { source, data_info_id, body }] = &events[..] else { panic!("{events:?}") };
    assert_eq!([source.as_str(), data_info_id.as_str()], ["registry", GREET]);
    let attributes = vec![("region".into(), "東京".into()), ("empty".into(), String::new())];
    let payloads = vec!["10.0.0.2:50051?app_name=größe".into(), "[2001:db8::2]:50051?weight=50".into()];
    let app = "größe-日本-😀?".into();
    assert_eq!(parts(body), (at(-7, TS + 1), R2.into(), "zürich-1".into(), app, attributes, payloads));
}

#[test]
fn publishes_with_the_addresses_of_their_clients() {
    let frame = golden("publish-source");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let [Event::Publish { body: first, .. }, Event::Publish { data_info_id, body: second, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((parts(first), first.details().unwrap().source_address), (demo_r1(), "10.0.0.1:41234"));
    assert_eq!((data_info_id.as_str(), second.details().unwrap().source_address), (GREET, "2001:db8:0:0:0:0:0:2"));
    let expected = (at(1, TS + 6), R3.into(), String::new(), String::new(), vec![], vec!["10.0.0.3:12200".into()]);
    assert_eq!(parts(second), expected);
    let without = golden("publish-text");
    let Some(Event::Publish { body, .. }) = frame::decode(&without).unwrap().into_iter().next() else { panic!() };
    assert_eq!(body.details().unwrap().source_address, "");
}

#[test]
fn an_unpublish() {
    let frame = golden("unpublish");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let version = at(2, TS + 2);
    let [source, data_info_id, register_id] = ["registry", DEMO, R1].map(Text::from);
    assert_eq!(events, [Event::Unpublish { source, data_info_id, register_id, version }]);
}

#[test]
fn a_replace() {
    let frame = golden("replace");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let [Event::Replace { source, data_info_id, version: 41, read_age, bodies }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!([source.as_str(), data_info_id.as_str()], ["consul", DEMO]);
    assert_eq!(*read_age, TS + 3);
    let first = (at(3, TS + 4), R1.into(), String::new(), String::new(), vec![], vec![BOLT.into()]);
    assert_eq!(bodies.iter().map(parts).collect::<Vec<_>>(), [first, second_of_replace()]);
}

fn second_of_replace() -> Parts {
    let attributes = vec![("k".into(), "v".into())];
    (at(i64::MAX, i64::MIN), R3.into(), "rz-2".into(), "demo".into(), attributes, vec![])
}

#[test]
fn a_replace_in_pieces() {
    let first = (at(3, TS + 4), R1.into(), String::new(), String::new(), vec![], vec!["10.0.0.1:12200".into()]);
    for (name, wanted, named) in [
        ("replace-begin", Part::Begin, vec![first]),
        ("replace-append", Part::Append, vec![second_of_replace()]),
        ("replace-commit", Part::Commit, vec![]),
    ] {
        let frame = golden(name);
        let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
        let [Event::Piece { part, read: 77, source, data_info_id, version: 41, read_age, bodies }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((*part, *read_age), (wanted, TS + 3));
        assert_eq!([source.as_str(), data_info_id.as_str()], ["consul", DEMO]);
        assert_eq!(bodies.iter().map(parts).collect::<Vec<_>>(), named);
    }
}

#[test]
fn a_batch() {
    let frame = golden("batch");
    let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
    let [
        Event::Publish { data_info_id: one, body: first, .. },
        Event::Unpublish { data_info_id: two, register_id, version, .. },
        Event::Publish { data_info_id: three, body: last, .. },
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!([one, two, three, register_id].map(|text| text.as_str()), [DEMO, DEMO, GREET, R2]);
    assert_eq!((parts(first), *version), (demo_r1(), at(5, TS + 5)));
    let payloads = vec!["10.0.0.3:12200".into()];
    assert_eq!(parts(last), (at(1, TS + 6), R3.into(), String::new(), String::new(), vec![], payloads));
}
