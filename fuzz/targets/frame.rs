//! A frame that decodes is encoded again to the same bytes, and a store that it is applied to keeps its counts.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::registry::{
    frame::{self, Body, Event, Publisher},
    store::{Limits, Store, TOMBSTONE_MILLIS},
};

const LIMITS: Limits = Limits { services: 3, publishers: 6, sources: 2, ..Limits::NONE };
/// Format, zero, count.
const HEADER: usize = 4;

fn publisher<'a>(body: &Body<'a>) -> Publisher<'a> {
    assert_eq!(Body::parse(body.raw()).expect("a decoded body"), *body);
    let details = body.details().expect("a decoded body");
    Publisher {
        register_id: body.register_id.as_str().into(),
        version: body.version,
        cell: details.cell.into(),
        app_name: details.app_name.into(),
        source_address: details.source_address.into(),
        attributes: details.attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        serialized: details.serialized,
        payloads: details.payloads.iter().map(|payload| (*payload).into()).collect(),
    }
}

fn encode(event: &Event<'_>) -> Vec<u8> {
    let encoded = match event {
        Event::Publish { source, data_info_id, body } => {
            frame::encode_publish(source.as_str(), data_info_id.as_str(), &publisher(body))
        }
        Event::Unpublish { source, data_info_id, register_id, version } => {
            frame::encode_unpublish(source.as_str(), data_info_id.as_str(), register_id.as_str(), *version)
        }
        Event::Lost { source, data_info_id, register_id, version } => {
            frame::encode_lost(source.as_str(), data_info_id.as_str(), register_id.as_str(), *version)
        }
        Event::Replace { source, data_info_id, version, read_age, bodies } => {
            let publishers: Vec<_> = bodies.iter().map(publisher).collect();
            frame::encode_replace(source.as_str(), data_info_id.as_str(), *version, *read_age, &publishers)
        }
        Event::Piece { part, read, source, data_info_id, version, read_age, bodies } => {
            let publishers: Vec<_> = bodies.iter().map(publisher).collect();
            let (source, id) = (source.as_str(), data_info_id.as_str());
            frame::encode_piece((*part, *read), source, id, *version, *read_age, &publishers)
        }
    };
    encoded.expect("what was decoded is within its bounds")
}

fn id<'a>(event: &Event<'a>) -> &'a str {
    match event {
        Event::Publish { data_info_id, .. }
        | Event::Unpublish { data_info_id, .. }
        | Event::Lost { data_info_id, .. }
        | Event::Replace { data_info_id, .. }
        | Event::Piece { data_info_id, .. } => data_info_id.as_str(),
    }
}

/// Applies the events, each a while after the one before.
fn apply(events: &[Event<'_>]) {
    let store = Store::new(LIMITS);
    let ids: BTreeSet<&str> = events.iter().map(id).collect();
    let live = || ids.iter().map(|id| store.read(id).len()).collect::<Vec<_>>();
    let (mut now, mut refused) = (1_000, 0);
    for event in events {
        refused += u64::from(store.apply(event, now).is_err());
        let counts = store.counts();
        assert_eq!((counts.publishers, counts.dropped), (live().iter().sum(), refused));
        let services = live().iter().filter(|live| **live > 0).count();
        assert!(services <= LIMITS.services && counts.publishers <= LIMITS.publishers);
        now += 10_000;
        store.expire(now);
    }
    store.take_dirty();
    // A read that brought nothing and a removal are remembered for the same while.
    store.expire(now + TOMBSTONE_MILLIS);
    store.take_dirty();
    let counts = store.counts();
    assert_eq!((counts.tombstones, counts.services), (0, live().iter().filter(|live| **live > 0).count()));
}

fuzz_target!(|data: &[u8]| {
    let Ok(events) = frame::decode(data) else { return };
    let events: Vec<Event<'_>> = events.into_iter().collect();
    let encoded: Vec<u8> = events.iter().flat_map(|event| encode(event)[HEADER..].to_vec()).collect();
    assert_eq!(encoded, data[HEADER..], "every frame has one encoding");
    apply(&events);
});
