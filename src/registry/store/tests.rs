use std::collections::BTreeSet;

use super::*;
use crate::{
    model::RegisterVersion,
    registry::frame::{self, Publisher},
};

const ID: &str = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

fn store() -> Store {
    Store::new(Limits { sources: 2, ..Limits::NONE })
}

fn at(version: i64, timestamp: i64) -> RegisterVersion {
    RegisterVersion { version, timestamp }
}

fn publisher(register_id: &str, version: RegisterVersion) -> Publisher<'_> {
    Publisher { register_id: register_id.into(), version, ..Publisher::default() }
}

fn apply(store: &Store, frame: Vec<u8>, now: Millis) -> Result<u64> {
    let mut last = Ok(0);
    for event in frame::decode(&frame).unwrap() {
        last = store.apply(&event, now);
    }
    last
}

fn publish(store: &Store, register_id: &str, version: RegisterVersion, now: Millis) {
    let frame = frame::encode_publish("registry", ID, &publisher(register_id, version)).unwrap();
    apply(store, frame, now).unwrap();
}

fn unpublish(store: &Store, register_id: &str, version: RegisterVersion, now: Millis) {
    apply(store, frame::encode_unpublish("registry", ID, register_id, version).unwrap(), now).unwrap();
}

fn replace(store: &Store, source: &str, version: i64, started: Millis, publishers: &[Publisher<'_>]) {
    apply(store, frame::encode_replace(source, ID, version, 0, publishers).unwrap(), started).unwrap();
}

/// The live registerIds and versions of the one service, or `None` if nothing is dirty.
fn taken(store: &Store) -> Option<Vec<(String, i64)>> {
    let mut taken = store.take_dirty();
    assert!(taken.len() <= 1, "a dirty service is taken once");
    let mut live: Vec<_> =
        taken.pop()?.entries.iter().map(|e| (e.body().register_id.as_str().to_owned(), e.version.version)).collect();
    live.sort();
    Some(live)
}

fn live(ids: &[(&str, i64)]) -> Option<Vec<(String, i64)>> {
    Some(ids.iter().map(|(id, version)| ((*id).to_owned(), *version)).collect())
}

#[test]
fn dirty_services_are_taken_in_steps_and_each_once() {
    let all = 4 * STEPS * SHARDS;
    let store = Store::new(Limits::NONE);
    for n in 0..all {
        let frame = frame::encode_publish("registry", &format!("com.example.S{n}"), &publisher("a", at(1, 1))).unwrap();
        apply(&store, frame, 0).unwrap();
    }
    assert_eq!(store.take_dirty().len(), all);
    let mut ids = store.ids();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), store.take_dirty().len()), (all, 0));
    store.mark_dirty(ids[..100].iter().chain(&ids[..10]).chain([&"not there".into()]));
    let taken: BTreeSet<_> = store.take_dirty().into_iter().map(|taken| taken.data_info_id).collect();
    assert!(taken.iter().eq(&ids[..100]));
}

#[test]
fn the_newest_version_wins_whatever_the_order() {
    let store = store();
    publish(&store, "a", at(2, 10), 0);
    publish(&store, "a", at(1, 99), 0);
    assert_eq!(taken(&store), live(&[("a", 2)]));
    publish(&store, "a", at(2, 10), 0);
    assert_eq!(taken(&store), None, "the same state again changes nothing");
    publish(&store, "a", at(2, 11), 0);
    assert_eq!(taken(&store), live(&[("a", 2)]), "a reconnect: same version, newer timestamp");
}

#[test]
fn a_removal_wins_a_tie_and_outlives_late_publishes() {
    let store = store();
    publish(&store, "a", at(1, 10), 0);
    unpublish(&store, "a", at(1, 10), 0);
    assert_eq!(taken(&store), live(&[]));
    publish(&store, "a", at(1, 10), 5);
    assert_eq!(taken(&store), None);
    publish(&store, "a", at(1, 11), 6);
    assert_eq!(taken(&store), live(&[("a", 1)]));
    unpublish(&store, "a", at(1, 10), 7);
    assert_eq!(taken(&store), None, "the old connection's cleanup does not remove the new one");
}

#[test]
fn a_removal_before_its_publish_is_remembered() {
    let store = store();
    unpublish(&store, "a", at(2, 20), 0);
    publish(&store, "a", at(1, 10), 1);
    assert_eq!(taken(&store), None);
}

#[test]
fn tombstones_expire_and_empty_services_go() {
    let store = store();
    publish(&store, "a", at(1, 1), 0);
    unpublish(&store, "a", at(2, 2), 1_000);
    taken(&store);
    store.expire(1_000 + TOMBSTONE_MILLIS - 1);
    assert_eq!((taken(&store), store.counts().tombstones), (None, 1));
    store.expire(1_000 + TOMBSTONE_MILLIS);
    assert_eq!(taken(&store), None, "whoever takes services knows that it has no publishers");
    assert_eq!((store.counts().services, store.counts().tombstones), (0, 0));
}

#[test]
fn a_tombstone_set_again_expires_by_its_last_setting() {
    let store = store();
    unpublish(&store, "a", at(1, 1), 0);
    unpublish(&store, "a", at(2, 2), 1_000);
    store.expire(TOMBSTONE_MILLIS);
    assert_eq!(store.counts().tombstones, 1);
    store.expire(1_000 + TOMBSTONE_MILLIS);
    assert_eq!(store.counts().tombstones, 0);
}

#[test]
fn a_read_removes_what_it_does_not_name_but_spares_fresh_events() {
    let store = store();
    publish(&store, "old", at(1, 1), 0);
    publish(&store, "fresh", at(1, 1), 20_000);
    replace(&store, "registry", 1, 30_000, &[publisher("read", at(1, 1))]);
    assert_eq!(taken(&store), live(&[("fresh", 1), ("read", 1)]));
    replace(&store, "registry", 2, 31_000, &[]);
    assert_eq!(taken(&store), live(&[("fresh", 1)]), "what an earlier read brought, a later read removes at once");
    replace(&store, "registry", 2, 30_999, &[]);
    assert_eq!(taken(&store), None, "a read that is not newer is ignored");
    replace(&store, "registry", 3, 90_000, &[]);
    assert_eq!(taken(&store), live(&[]));
}

#[test]
fn an_older_read_does_not_fill_a_service_that_a_newer_one_emptied() {
    let store = store();
    replace(&store, "registry", 4, 1_000, &[publisher("a", at(1, 1))]);
    replace(&store, "registry", 6, 2_000, &[]);
    assert_eq!(taken(&store), live(&[]));
    replace(&store, "registry", 5, 1_500, &[publisher("a", at(1, 1))]);
    assert_eq!(taken(&store), None);
    store.expire(2_000 + TOMBSTONE_MILLIS);
    assert_eq!(taken(&store), None);
    assert_eq!((store.counts().services, store.counts().tombstones), (0, 0));
}

#[test]
fn a_service_that_was_read_goes_when_its_last_tombstone_went() {
    let store = store();
    replace(&store, "registry", 1, 0, &[publisher("a", at(1, 1))]);
    unpublish(&store, "a", at(2, 2), 1_000);
    taken(&store);
    store.expire(1_000 + TOMBSTONE_MILLIS);
    taken(&store);
    assert_eq!((store.counts().services, store.counts().tombstones), (0, 0));
}

#[test]
fn a_read_that_meets_a_limit_removes_all_the_same_and_may_come_again() {
    let store = Store::new(Limits { services: 1, publishers: 2, sources: 1, ..Limits::NONE });
    replace(&store, "registry", 1, 0, &[publisher("a", at(1, 1)), publisher("b", at(1, 1))]);
    let bodies = [publisher("b", at(1, 1)), publisher("c", at(1, 1)), publisher("d", at(1, 1))];
    let frame = frame::encode_replace("registry", ID, 2, i64::MAX, &bodies).unwrap();
    assert!(matches!(apply(&store, frame.clone(), 0), Err(Error::Limit { field: "publishers", limit: 2 })));
    assert_eq!(taken(&store), live(&[("b", 1), ("c", 1)]));
    unpublish(&store, "b", at(2, 1), 0);
    store.expire(TOMBSTONE_MILLIS);
    let bodies = [publisher("c", at(1, 1)), publisher("d", at(1, 1))];
    replace(&store, "registry", 2, 0, &bodies);
    assert_eq!(taken(&store), live(&[("c", 1), ("d", 1)]));
}

#[test]
fn a_read_overrides_a_tombstone_only_after_the_margin() {
    let store = store();
    publish(&store, "a", at(1, 1), 0);
    unpublish(&store, "a", at(1, 1), 1_000);
    taken(&store);
    replace(&store, "registry", 1, 1_000 + READ_MARGIN_MILLIS - 1, &[publisher("a", at(1, 1))]);
    assert_eq!(taken(&store), None);
    replace(&store, "registry", 2, 1_000 + READ_MARGIN_MILLIS, &[publisher("a", at(1, 1))]);
    assert_eq!(taken(&store), live(&[("a", 1)]));
}

/// Versions come from the clocks of data servers.
#[test]
fn a_read_after_the_last_one_counts_whatever_its_version() {
    let store = store();
    replace(&store, "registry", 9, 1_000, &[publisher("a", at(1, 1))]);
    taken(&store);
    replace(&store, "registry", 5, 999, &[publisher("b", at(1, 1))]);
    assert_eq!(taken(&store), None, "it may have been answered before the other");
    replace(&store, "registry", 5, 1_000, &[publisher("b", at(1, 1))]);
    assert_eq!(taken(&store), live(&[("b", 1)]), "another leader, with a slower clock");
    replace(&store, "registry", 5, 2_000, &[publisher("b", at(1, 7))]);
    assert_eq!(taken(&store), live(&[("b", 1)]), "registered again with the same data: the datum's version stays");
}

#[test]
fn a_lost_clients_publisher_is_for_the_next_read_to_say() {
    let store = store();
    for register_id in ["gone", "moved", "newer"] {
        publish(&store, register_id, at(1, 1), 1_000);
    }
    publish(&store, "newer", at(1, 2), 1_050);
    taken(&store);
    for register_id in ["gone", "moved", "newer"] {
        apply(&store, frame::encode_lost("registry", ID, register_id, at(1, 1)).unwrap(), 1_100).unwrap();
    }
    assert_eq!(taken(&store), None);
    replace(&store, "registry", 1, 1_099, &[]);
    assert_eq!(taken(&store), None, "a read that began before");
    replace(&store, "registry", 2, 1_200, &[publisher("moved", at(1, 5))]);
    assert_eq!(taken(&store), live(&[("moved", 1), ("newer", 1)]));
}

#[test]
fn services_are_unconfirmed_until_a_read_bears_every_event_out() {
    let store = store();
    let late = |now| store.unconfirmed(now, 9).len();
    publish(&store, "a", at(1, 1), 1_000);
    assert_eq!((late(1_000 + READ_MARGIN_MILLIS), late(1_001 + READ_MARGIN_MILLIS)), (0, 1));
    replace(&store, "registry", 1, 1_100, &[]);
    assert_eq!(late(90_000), 1, "the read may have been answered before the publish");
    replace(&store, "registry", 2, 1_200, &[publisher("a", at(1, 1))]);
    assert_eq!(late(90_000), 0);
    unpublish(&store, "a", at(2, 2), 2_000);
    replace(&store, "registry", 2, 2_001, &[publisher("a", at(1, 1))]);
    assert_eq!(late(90_000), 1, "the registry does not know of the removal yet, or refused it");
    replace(&store, "registry", 2, 60_000, &[publisher("a", at(1, 1))]);
    assert_eq!(late(90_000), 0);
    publish(&store, "b", at(1, 1), 70_000);
    replace(&store, "registry", 2, 90_000, &[]);
    assert_eq!(late(190_000), 0, "it was refused");
}

#[test]
fn sources_do_not_touch_each_other() {
    let store = store();
    publish(&store, "a", at(1, 1), 0);
    replace(&store, "extension", 1, 100_000, &[publisher("x", at(1, 1))]);
    replace(&store, "extension", 2, 200_000, &[]);
    assert_eq!(taken(&store), live(&[("a", 1)]));
}

#[test]
fn limits_drop_and_count_new_keys_only() {
    let store = Store::new(Limits { services: 1, publishers: 1, sources: 1, ..Limits::NONE });
    publish(&store, "a", at(1, 1), 0);
    let other = frame::encode_publish("registry", "other", &publisher("a", at(1, 1))).unwrap();
    assert!(matches!(apply(&store, other, 0), Err(Error::Limit { field: "services", limit: 1 })));
    let second = frame::encode_publish("registry", ID, &publisher("b", at(1, 1))).unwrap();
    assert!(matches!(apply(&store, second, 0), Err(Error::Limit { field: "publishers", limit: 1 })));
    let foreign = frame::encode_publish("extension", ID, &publisher("a", at(1, 1))).unwrap();
    assert!(matches!(apply(&store, foreign, 0), Err(Error::Limit { field: "sources", limit: 1 })));
    publish(&store, "a", at(2, 1), 0);
    assert_eq!(store.counts().dropped, 3);
    assert_eq!(taken(&store), live(&[("a", 2)]));
}

#[test]
fn only_the_first_dirty_service_wakes_the_publisher() {
    let store = store();
    let woken = || store.wake().is_woken();
    publish(&store, "a", at(1, 1), 0);
    assert!(woken());
    store.wake().wait(None);
    publish(&store, "b", at(1, 1), 0);
    assert!(!woken(), "one wake for both");
    store.take_dirty();
    publish(&store, "a", at(2, 1), 0);
    assert!(woken());
}

#[test]
fn what_is_remembered_is_bounded_by_keys_not_by_events() {
    const CYCLES: i64 = 200_000;
    let store = store();
    let mut frame = frame::encode_publish("registry", ID, &publisher("a", at(0, 0))).unwrap();
    let body = frame::decode(&frame).unwrap().into_iter().find_map(|event| match event {
        Event::Publish { body, .. } => Some(frame.len() - body.raw().len()),
        _ => None,
    });
    let body = body.unwrap();
    for version in 1..=CYCLES {
        frame[body + 1..body + 9].copy_from_slice(&version.to_le_bytes());
        for event in frame::decode(&frame).unwrap() {
            store.apply(&event, version / 1_000).unwrap();
        }
        let [source, data_info_id, register_id] = ["registry", ID, "a"].map(Text::from);
        let gone = Event::Unpublish { source, data_info_id, register_id, version: at(version, 0) };
        store.apply(&gone, version / 1_000).unwrap();
    }
    reference::audit(&store);
    assert_eq!((store.counts().publishers, store.counts().tombstones), (0, 1));
    for version in 1..1_000 {
        replace(&store, "registry", version, CYCLES, &[publisher("a", at(version, 0))]);
        unpublish(&store, "a", at(version + CYCLES, 0), CYCLES);
        replace(&store, "extension", version, CYCLES, &[]);
    }
    reference::audit(&store);
    assert_eq!(store.counts().tombstones, 2, "of one source the removal, of the other the read");
}

#[test]
fn a_service_is_unknown_until_a_read_of_the_registrys_own_is_applied() {
    let store = store();
    let unknown = |store: &Store| store.take_dirty().iter().map(|taken| taken.unknown).collect::<Vec<_>>();
    store.set_unknown(&[ID]);
    assert_eq!(unknown(&store), [true]);
    assert_eq!(store.counts().services, 1, "it is remembered though there is nothing else of it");
    publish(&store, "a", at(1, 1), 1_000);
    replace(&store, "extension", 1, 2_000, &[]);
    assert_eq!(unknown(&store), [true]);
    // Nobody looks for so long that the read itself is forgotten.
    replace(&store, "registry", 1, 90_000, &[]);
    store.expire(90_000 + TOMBSTONE_MILLIS);
    assert_eq!(unknown(&store), [false]);
    assert_eq!(store.counts().services, 0);
}

#[test]
fn a_service_that_was_read_does_not_become_unknown() {
    let store = store();
    replace(&store, "registry", 1, 0, &[publisher("a", at(1, 1))]);
    store.set_unknown(&[ID, "other"]);
    let taken = store.take_dirty();
    let unknown: Vec<_> = taken.iter().filter(|taken| taken.unknown).map(|taken| &*taken.data_info_id).collect();
    assert_eq!((taken.len(), unknown), (2, vec!["other"]));
}

#[test]
fn of_publishers_that_a_read_names_twice_the_newest_counts() {
    for order in [[2, 1], [1, 2]] {
        let store = store();
        replace(&store, "registry", 1, 0, &order.map(|version| publisher("a", at(version, 0))));
        assert_eq!(taken(&store), live(&[("a", 2)]));
        replace(&store, "registry", 2, 1, &order.map(|version| publisher("a", at(version, 0))));
        assert_eq!(taken(&store), None, "the same again changes nothing");
    }
}

/// A publisher with so many payloads of so many bytes each.
fn large(register_id: &str, version: i64, boxes: usize, bytes: usize) -> Publisher<'_> {
    let payloads = vec![vec![b'x'; bytes].into(); boxes];
    Publisher { payloads, ..publisher(register_id, at(version, 0)) }
}

fn try_publish(store: &Store, id: &str, publisher: &Publisher<'_>) -> Option<&'static str> {
    match apply(store, frame::encode_publish("registry", id, publisher).unwrap(), 0) {
        Ok(_) => None,
        Err(Error::Limit { field, .. }) => Some(field),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_publishers_bring_is_bounded_in_bytes_and_endpoints() {
    let limits = Limits { bytes: 10_000, endpoints: 6, endpoints_per_publisher: 4, ..Limits::NONE };
    let store = Store::new(limits);
    assert_eq!(try_publish(&store, ID, &large("a", 1, 1, 4_000)), None);
    assert_eq!(try_publish(&store, "b", &large("b", 1, 1, 5_000)), None);
    let before = store.counts();
    assert_eq!(try_publish(&store, "c", &large("c", 1, 1, 4_000)), Some("bytes"));
    assert_eq!(try_publish(&store, ID, &large("a", 2, 1, 5_000)), Some("bytes"), "nor may who is there grow");
    assert_eq!(store.counts().bytes, before.bytes);
    assert_eq!(try_publish(&store, ID, &large("a", 3, 1, 4_000)), None, "what is no larger always passes");
    assert_eq!(try_publish(&store, "b", &large("b", 2, 1, 10)), None);
    assert_eq!(try_publish(&store, "c", &large("c", 1, 100, 0)), None, "of a publisher four count");
    assert_eq!(store.counts().endpoints, 6);
    assert_eq!(try_publish(&store, "d", &large("d", 1, 1, 0)), Some("endpoints"));
    assert_eq!(try_publish(&store, "c", &large("c", 2, 90, 0)), None);
    assert_eq!(try_publish(&store, "d", &large("d", 1, 0, 0)), None, "without an endpoint there is room");
    unpublish(&store, "a", at(9, 9), 0);
    assert_eq!(try_publish(&store, "d", &large("d", 2, 1, 0)), None);
    let dropped = store.dropped();
    assert_eq!((dropped["bytes"].events, &*dropped["bytes"].last), (2, ID));
    assert_eq!((dropped["endpoints"].events, &*dropped["endpoints"].last), (1, "d"));
    assert_eq!((dropped["services"].events, store.counts().dropped), (0, 3));
    reference::audit(&store);
}

#[test]
fn a_services_name_takes_room_once_for_as_long_as_it_counts() {
    let store = Store::new(Limits { bytes: 10_000, ..Limits::NONE });
    let [one, two, three] = ["1", "2", "3"].map(|digit| digit.repeat(4_000));
    assert_eq!(try_publish(&store, &one, &large("a", 1, 1, 0)), None);
    assert_eq!(try_publish(&store, &one, &large("b", 1, 1, 0)), None);
    assert_eq!(try_publish(&store, &two, &large("a", 1, 1, 0)), None);
    let before = store.counts().bytes;
    assert!((8_000..9_000).contains(&before), "{before}");
    assert_eq!(try_publish(&store, &three, &large("a", 1, 1, 0)), Some("bytes"));
    assert_eq!(store.counts().bytes, before);
    let gone = |id: &str, register_id: &str| {
        apply(&store, frame::encode_unpublish("registry", id, register_id, at(2, 0)).unwrap(), 0).unwrap();
        store.counts().bytes
    };
    assert!(before - gone(&one, "a") < 1_000, "it has another publisher");
    assert!(before - gone(&one, "b") > 4_000);
    assert_eq!(try_publish(&store, &three, &large("a", 1, 1, 0)), None);
    // The registry names one, and it is not to be lost.
    store.set_unknown(&[&one, &two]);
    assert!(store.counts().bytes > 12_000);
    reference::audit(&store);
}

/// Whatever the order of a read's publishers and of reads that fill the rest: of those that a limit refuses the last by their
/// registerIds.
#[test]
fn of_a_read_that_meets_a_limit_the_same_publishers_are_taken_everywhere() {
    for order in [["c", "a", "d", "b"], ["d", "c", "b", "a"]] {
        let store = Store::new(Limits { publishers: 3, ..Limits::NONE });
        let bodies = order.map(|id| publisher(id, at(1, 1)));
        assert!(apply(&store, frame::encode_replace("registry", ID, 1, 0, &bodies).unwrap(), 0).is_err());
        assert_eq!(taken(&store), live(&[("a", 1), ("b", 1), ("c", 1)]));
    }
}

#[test]
fn removals_of_what_never_was_refuse_nobody() {
    let store = Store::new(Limits { services: 3, publishers: 3, removals: 10_000, ..Limits::NONE });
    for n in 0..10_000 {
        let (id, register_id) = (format!("s{n}"), format!("r{n}"));
        let unpublish = frame::encode_unpublish("registry", &id, &register_id, at(1, 1)).unwrap();
        apply(&store, unpublish, n).unwrap();
        let lost = frame::encode_lost("registry", &format!("lost{n}"), &register_id, at(1, 1)).unwrap();
        apply(&store, lost, n).unwrap();
    }
    let counts = store.counts();
    assert!((9_000..=10_000).contains(&counts.tombstone_bytes), "{counts:?}");
    assert_eq!(counts.tombstones_evicted as usize + counts.tombstones, 10_000);
    assert_eq!(counts.services, counts.tombstones, "a service is there for its removal alone");
    // The newest are remembered.
    let late = publisher("r9999", at(1, 1));
    assert_eq!(try_publish(&store, "s9999", &late), None);
    assert!(store.read("s9999").is_empty());
    for id in ["a", "b", "c"] {
        assert_eq!(try_publish(&store, id, &publisher("a", at(1, 1))), None);
    }
    assert_eq!(try_publish(&store, "d", &publisher("a", at(1, 1))), Some("services"));
    reference::audit(&store);
}

#[test]
fn services_are_forgotten_though_nobody_takes_them() {
    let store = Store::new(Limits { services: 10, ..Limits::NONE });
    assert_eq!(try_publish(&store, "seen", &publisher("a", at(1, 1))), None);
    assert_eq!(store.take_dirty().len(), 1);
    for round in 0..50 {
        for n in 0..9 {
            let (id, now) = (format!("s{round}-{n}"), round * TOMBSTONE_MILLIS);
            let publish = frame::encode_publish("registry", &id, &publisher("a", at(1, 1))).unwrap();
            apply(&store, publish, now).unwrap();
            apply(&store, frame::encode_unpublish("registry", &id, "a", at(2, 2)).unwrap(), now).unwrap();
        }
        let gone = frame::encode_unpublish("registry", "seen", "a", at(2, 2)).unwrap();
        apply(&store, gone, round * TOMBSTONE_MILLIS).unwrap();
        store.expire((round + 1) * TOMBSTONE_MILLIS);
        assert_eq!((store.counts().services, store.counts().tombstones), (1, 0));
    }
    let taken = store.take_dirty();
    let ids: Vec<_> = taken.iter().map(|taken| (&*taken.data_info_id, taken.entries.len())).collect();
    assert_eq!(ids, [("seen", 0)], "whoever took it hears that it is gone");
    assert_eq!(store.counts().services, 0);
    reference::audit(&store);
}

/// A read is seen as a whole, however many steps it takes and whoever changes the service meanwhile.
#[test]
fn a_read_in_steps_is_taken_as_a_whole_and_holds_nobody_up() {
    const PUBLISHERS: usize = 3_000;
    let store = store();
    let ids: Vec<String> = (0..PUBLISHERS).map(|n| format!("r{n:04}")).collect();
    let all = |version: i64| ids.iter().map(|id| publisher(id, at(version, 0))).collect::<Vec<_>>();
    replace(&store, "registry", 1, 0, &all(1));
    let done = AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        let publishes = scope.spawn(move || {
            let mut calls = 0;
            while !done.load(Ordering::SeqCst) || calls < 100 {
                calls += 1;
                publish(store, "own", at(calls, 0), 0);
                if calls % 3 == 0 {
                    unpublish(store, "own", at(calls, 0), 0);
                }
            }
            publish(store, "own", at(calls + 1, 0), 0);
            calls
        });
        let takes = scope.spawn(move || {
            let mut seen = 0;
            while !done.load(Ordering::SeqCst) {
                for taken in store.take_dirty() {
                    let of_reads = taken.entries.iter().filter(|entry| entry.register_id() != b"own");
                    let versions: BTreeSet<i64> = of_reads.clone().map(|entry| entry.version.version).collect();
                    assert_eq!((of_reads.count(), versions.len()), (PUBLISHERS, 1), "{versions:?}");
                    let now = versions.first().copied().unwrap();
                    assert!(now >= seen);
                    seen = now;
                }
            }
        });
        for version in 2..40 {
            replace(store, "registry", version, 0, &all(version));
        }
        done.store(true, Ordering::SeqCst);
        takes.join().unwrap();
        publishes.join().unwrap()
    });
    store.mark_dirty(&store.ids());
    let taken = store.take_dirty();
    assert_eq!(taken[0].entries.len(), PUBLISHERS + 1);
    assert!(taken[0].entries.iter().any(|entry| entry.register_id() == b"own" && entry.version.version == calls + 1));
    reference::audit(&store);
}
