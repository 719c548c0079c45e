use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message;

use super::{page::MAX_PAGE, partition::Partition, *};
use crate::proto::istio::{mcp::v1alpha1::Resource as McpResource, networking::v1alpha3::ServiceEntry};

fn resource(name: &str, host: &str) -> Resource {
    let entry = ServiceEntry { hosts: vec![host.into()], ..ServiceEntry::default() };
    Resource::service_entry(format!("ns/{name}"), BTreeMap::new(), BTreeMap::new(), &entry)
}

fn changes(of: &[(usize, &str, Option<&str>)]) -> Changes {
    of.iter().map(|(s, name, host)| ((*s, (*name).into()), host.map(|host| resource(name, host)))).collect()
}

fn decoded(snapshot: &Snapshot) -> Vec<(String, String)> {
    let metadata = |resource: McpResource| resource.metadata.unwrap();
    snapshot.decode().into_iter().map(metadata).map(|m| (m.name, m.version)).collect()
}

#[test]
fn a_snapshot_is_its_content_whatever_the_history() {
    let all = changes(&[(5, "b", Some("b")), (5, "a", Some("a")), (1, "c", Some("c"))]);
    let once = Snapshot::default().with(&all);
    let steps = Snapshot::default()
        .with(&changes(&[(5, "a", Some("other")), (9, "gone", Some("x"))]))
        .with(&changes(&[(5, "b", Some("b")), (9, "gone", None), (9, "never", None)]))
        .with(&changes(&[(1, "c", Some("c")), (5, "a", Some("a"))]));
    assert_eq!(decoded(&once), decoded(&steps));
    assert_eq!(once.version(), steps.version());
    assert_eq!((steps.resources(), steps.bytes()), (3, once.bytes()));
    assert_eq!(decoded(&once).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["ns/c", "ns/a", "ns/b"]);
}

#[test]
fn versions_tell_contents_apart() {
    let base = Snapshot::default().with(&changes(&[(5, "a", Some("a"))]));
    let other = base.with(&changes(&[(5, "a", Some("a2"))]));
    assert_ne!(base.version(), other.version());
    assert_ne!(decoded(&base)[0].1, decoded(&other)[0].1);
    assert_eq!(other.with(&changes(&[(5, "a", None)])).version(), Snapshot::default().version());
}

#[test]
fn a_change_rewrites_only_the_page_of_its_slice() {
    let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
    let next = base.with(&changes(&[(5, "a", Some("z")), (6, "b", Some("b")), (6, "gone", None)]));
    let at = |snapshot: &Snapshot, index: usize| snapshot.slices[index].pages[0].bytes.as_ptr();
    assert_eq!(at(&base, 6), at(&next, 6));
    assert_ne!(at(&base, 5), at(&next, 5));
}

/// The definition: every resource, in the order of slices and names.
fn bytes_of(model: &BTreeMap<(usize, Arc<str>), Resource>) -> Vec<u8> {
    model.values().flat_map(|resource| resource.framed.to_vec()).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]

    #[test]
    fn pages_hold_what_any_history_left(
        history in proptest::collection::vec(
            proptest::collection::vec((0usize..2, 0u8..40, proptest::option::of(0usize..60_000)), 1..12), 1..12)
    ) {
        let (mut snapshot, mut model) = (Snapshot::default(), BTreeMap::new());
        for round in history {
            let mut changes = Changes::new();
            for (slice, name, size) in round {
                let name: Arc<str> = format!("n{name:02}").into();
                let made = size.map(|size| resource(&name, &"x".repeat(size)));
                match &made {
                    Some(made) => model.insert((slice, Arc::clone(&name)), made.clone()),
                    None => model.remove(&(slice, Arc::clone(&name))),
                };
                changes.insert((slice, name), made);
            }
            snapshot = snapshot.with(&changes);
            let served: Vec<u8> = snapshot.pages().flatten().copied().collect();
            proptest::prop_assert_eq!(&served, &bytes_of(&model));
            proptest::prop_assert_eq!((snapshot.resources(), snapshot.bytes()), (model.len(), served.len()));
            let sum = model.values().fold(0u128, |sum, resource| sum.wrapping_add(resource.digest));
            proptest::prop_assert_eq!(snapshot.totals.sum, sum);
            for page in snapshot.slices.iter().flat_map(|slice| &slice.pages) {
                proptest::prop_assert!(!page.items.is_empty());
                proptest::prop_assert!(page.bytes.len() <= MAX_PAGE || page.items.len() == 1);
            }
            for ((slice, name), resource) in &model {
                proptest::prop_assert_eq!(snapshot.slices[*slice].digest_of(name), Some(resource.digest));
            }
        }
    }
}

#[test]
fn a_change_copies_one_page_of_a_large_slice() {
    let all: Changes =
        (0..1_000).map(|n| ((5, format!("n{n:04}").into()), Some(resource("x", &"y".repeat(2_000))))).collect();
    let base = Snapshot::default().with(&all);
    let pages = |snapshot: &Snapshot| snapshot.pages().map(|page| page.as_ptr()).collect::<BTreeSet<_>>();
    assert!((8..=32).contains(&pages(&base).len()), "{} pages", pages(&base).len());
    let next = base.with(&changes(&[(5, "n0500", Some("other"))]));
    assert_eq!(pages(&next).difference(&pages(&base)).count(), 1);
}

fn whole(snapshot: &Arc<Snapshot>) -> Set {
    Set::new(Arc::clone(snapshot), Partition::WHOLE)
}

#[test]
fn what_is_gone_stays_until_the_new_is_in() {
    let base = changes(&[(5, "a", Some("a")), (5, "b", Some("b")), (6, "c", Some("c"))]);
    let old = Arc::new(Snapshot::default().with(&base));
    let new = Arc::new(old.with(&changes(&[(5, "a", None), (5, "b", Some("b2")), (7, "d", Some("d"))])));
    let both = whole(&new).with_all_of(&whole(&old));
    let versions: BTreeMap<String, String> = decoded(&new).into_iter().collect();
    let shown = decoded(&both.snapshot);
    assert_eq!(shown.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["ns/a", "ns/b", "ns/c", "ns/d"]);
    assert!(shown.iter().all(|(name, version)| name == "ns/a" || versions[name] == *version));
    assert_eq!(whole(&new).with_all_of(&whole(&new)).sum(), whole(&new).sum());
}

#[test]
fn resources_are_found_by_name() {
    let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
    let set = whole(&Arc::new(base));
    assert_eq!((set.find("b").map(|item| &**item.name()), set.find("missing").is_none()), (Some("b"), true));
}

#[test]
fn a_resource_of_a_delta_response_has_its_name_version_and_body() {
    use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    let set = whole(&Arc::new(Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]))));
    let bytes: Vec<u8> = set.delta_pages().flatten().copied().collect();
    let decoded = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
    assert_eq!(decoded.resources.iter().map(|resource| &*resource.name).collect::<Vec<_>>(), ["a", "b"]);
    for (resource, item) in decoded.resources.into_iter().zip(set.items()) {
        assert_eq!(*resource.version, *version_of(item.digest()));
        let mcp = McpResource::decode(resource.resource.unwrap().value).unwrap();
        assert_eq!(mcp.metadata.unwrap().version, resource.version);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn a_difference_is_what_makes_the_old_the_new(
        sets in proptest::collection::vec(
            proptest::collection::btree_map((0usize..3, 0u8..30), 0usize..60_000, 0..30), 2)
    ) {
        let all = |set: &BTreeMap<(usize, u8), usize>| -> Changes {
            let named = |((slice, name), size): (&(usize, u8), &usize)| {
                ((*slice, format!("{slice}-{name:02}").into()), Some(resource("x", &"y".repeat(*size))))
            };
            set.iter().map(named).collect()
        };
        let old = Arc::new(Snapshot::default().with(&all(&sets[0])));
        let mut next = all(&sets[1]);
        for key in all(&sets[0]).keys() {
            next.entry(key.clone()).or_insert(None);
        }
        let new = Arc::new(old.with(&next));
        for partition in [Partition::WHOLE, Partition::new(0, 128).unwrap(), Partition::new(1, 128).unwrap()] {
            let (old, new) = (Set::new(Arc::clone(&old), partition), Set::new(Arc::clone(&new), partition));
            let content = |set: &Set| -> BTreeMap<Arc<str>, u128> {
                set.items().map(|item| (Arc::clone(&item.name), item.digest())).collect()
            };
            let mut applied = content(&old);
            let difference = new.since(&old);
            for name in &difference.removed {
                proptest::prop_assert!(applied.remove(&***name).is_some());
            }
            for item in &difference.changed {
                proptest::prop_assert_ne!(applied.insert(Arc::clone(&item.name), item.digest()), Some(item.digest()));
            }
            proptest::prop_assert_eq!(&applied, &content(&new));
            let sum = applied.values().fold(0u128, |sum, digest| sum.wrapping_add(*digest));
            proptest::prop_assert_eq!(new.sum(), sum);
        }
    }
}

#[test]
fn pages_of_old_snapshots_are_counted_while_somebody_holds_them() {
    let host = |n: usize| "x".repeat(n);
    let old =
        Arc::new(Snapshot::default().with(&changes(&[(5, "a", Some(&host(1_000))), (9, "b", Some(&host(5_000)))])));
    assert_eq!(old.pinned(), 0);
    let new = Arc::new(old.with(&changes(&[(5, "a", Some("other"))])));
    assert!((1_000..1_300).contains(&new.pinned()), "the page that was rewritten: {}", new.pinned());
    let page = old.pages().next().unwrap().slice(10..20);
    let part = Set::new(Arc::clone(&old), Partition::new(1, 2).unwrap()).apart();
    drop(old);
    assert!((1_000..1_300).contains(&new.pinned()), "and a piece of it holds all of it");
    drop(page);
    assert_eq!(new.pinned(), 0, "the other partition's set does not hold it");
    let other = Set::new(Arc::clone(&new), Partition::new(0, 2).unwrap()).apart();
    assert_eq!((part.find("a").is_none(), other.find("a").is_some()), (true, true));
    let all = Set::new(Arc::clone(&new), Partition::WHOLE);
    let delta = all.delta_pages().cloned().collect::<Vec<_>>();
    let copied = all.copy(bytes::BytesMut::from(&[7; 300][..]));
    assert_eq!(new.pinned(), 300, "what every stream shares is none's");
    drop((copied, delta));
    assert_eq!(new.pinned(), 0);
}
