//! Converts the view into objects, and tells the plan what changed.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    objects::{Converted, Manifest, ObjectKey, ObjectKind, convert, object_name},
    plan::{ManifestSource, Plan},
};
use crate::{
    snapshot::partition::Partition,
    snapshot::view::View,
    snapshot::{Set, Snapshot},
};

/// Converts resources of the view; each once a change, unless the plan has no room to keep it until it is written.
pub(super) struct Conversion {
    owner: Arc<str>,
    /// The view that the plan was told last.
    view: View,
    /// How many resources were converted.
    conversions: u64,
}

impl Conversion {
    pub(super) fn new(owner: Arc<str>) -> Self {
        Self { owner, view: View::default(), conversions: 0 }
    }

    /// Whether a view has nothing new.
    pub(super) fn knows(&self, view: &View) -> bool {
        ObjectKind::ALL.into_iter().all(|kind| Arc::ptr_eq(snapshot(view, kind), snapshot(&self.view, kind)))
    }

    /// Tells the plan what a view asks for otherwise than the one before. Costs the pages that changed.
    pub(super) fn follow(&mut self, view: &View, plan: &mut Plan) {
        let before = std::mem::replace(&mut self.view, view.clone());
        for kind in ObjectKind::ALL {
            let (new, old) = (set(view, kind), set(&before, kind));
            let difference = new.since(&old);
            for name in difference.removed {
                plan.desire(&key(kind, name), name, Vec::new());
            }
            for item in difference.changed {
                let key = key(kind, item.name());
                let objects = self.convert(kind, item.framed(), plan.selects(&key)).unwrap_or_default();
                plan.desire(&key, item.name(), objects);
            }
        }
    }

    /// The manifest of a write. `None` where the view has no such resource, which the plan does not ask for.
    pub(super) fn manifest(&mut self, key: &ObjectKey, source: ManifestSource) -> Option<Arc<Manifest>> {
        match source {
            ManifestSource::Kept(manifest) => Some(manifest),
            ManifestSource::View { name, selects } => {
                let set = set(&self.view, key.kind);
                let objects = self.convert(key.kind, set.find(&name)?.framed(), selects)?;
                objects.into_iter().next().map(|object| object.manifest)
            }
        }
    }

    /// `version_info` of the view that the plan was told last.
    pub(super) fn versions(&self) -> [String; 3] {
        self.view.versions().map(str::to_owned)
    }

    fn convert(&mut self, kind: ObjectKind, framed: &Bytes, selects: bool) -> Option<Vec<Converted>> {
        self.conversions += 1;
        convert(kind, framed, &self.owner, selects)
    }
}

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    ObjectKey { kind, name: object_name(name) }
}

fn set(view: &View, kind: ObjectKind) -> Set {
    Set::new(Arc::clone(snapshot(view, kind)), Partition::WHOLE)
}

fn snapshot(view: &View, kind: ObjectKind) -> &Arc<Snapshot> {
    match kind {
        ObjectKind::WorkloadEntry => &view.workload_entries,
        ObjectKind::ServiceEntry => &view.service_entries,
        ObjectKind::DestinationRule => &view.destination_rules,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::{
        config::Protect,
        kubernetes::{
            objects::{ApiObject, ObjectState, Observed},
            orders::SinkOrders,
            pace::Jitter,
            plan::{Outcome, PlanSettings},
        },
        proto::istio::networking::v1alpha3::{ServiceEntry, WorkloadEntry},
        snapshot::{Changes, Resource},
    };

    fn resource(name: &str, endpoints: usize) -> Resource {
        let endpoint = |n: usize| WorkloadEntry {
            address: format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
            ports: [("tcp".to_owned(), 80)].into(),
            ..WorkloadEntry::default()
        };
        let endpoints = (0..endpoints).map(endpoint).collect();
        let entry = ServiceEntry { hosts: vec![format!("{name}.mesh")], endpoints, ..ServiceEntry::default() };
        Resource::service_entry(format!("ns/{name}"), BTreeMap::new(), BTreeMap::new(), &entry)
    }

    /// A sink without an API server: what is written is remembered.
    struct Loop {
        plan: Plan,
        conversion: Conversion,
        view: View,
        written: BTreeMap<ObjectKey, Vec<u8>>,
        /// Of the API.
        version: u64,
    }

    impl Loop {
        fn new() -> Self {
            let settings = PlanSettings { concurrency: 16, rate: 10_000, protect: Protect::default() };
            let now = Instant::now();
            let lease_until = now + Duration::from_secs(60);
            let mut plan = Plan::new(settings, SinkOrders::default(), lease_until, Jitter::seeded(1), now);
            ObjectKind::ALL.into_iter().for_each(|kind| plan.listed(now, kind, now, "1", []));
            let view = View { complete: true, ..View::default() };
            let conversion = Conversion::new("me".into());
            let mut sink = Self { plan, conversion, view, written: BTreeMap::new(), version: 1 };
            sink.serve([]);
            sink
        }

        /// Serves services with so many endpoints and writes what that asks for; returns how many writes and conversions
        /// it took.
        fn serve<const N: usize>(&mut self, services: [(&str, Option<usize>); N]) -> (usize, u64) {
            let change = |(name, endpoints): (&str, Option<usize>)| {
                ((7, format!("ns/{name}").into()), endpoints.map(|endpoints| resource(name, endpoints)))
            };
            let changes: Changes = services.into_iter().map(change).collect();
            self.view.service_entries = Arc::new(self.view.service_entries.with(&changes));
            let before = self.conversion.conversions;
            self.conversion.follow(&self.view, &mut self.plan);
            assert!(self.conversion.knows(&self.view));
            self.plan.view_taken(Instant::now());
            let mut writes = 0;
            while let Some(write) = self.plan.next(Instant::now()) {
                writes += 1;
                let answer = match write.source {
                    Some(source) => Outcome::Applied(self.apply(&write.key, source)),
                    None => Outcome::Deleted,
                };
                self.plan.answered(Instant::now(), &write.key, Ok(answer));
            }
            (writes, self.conversion.conversions - before)
        }

        fn apply(&mut self, key: &ObjectKey, source: ManifestSource) -> Observed {
            let manifest = self.conversion.manifest(key, source).unwrap();
            self.version += 1;
            let state = ObjectState { uid: "u".into(), version: self.version.to_string().into() };
            let body = manifest.request("v1", "ns", key, Some(&state));
            let shown: ApiObject = serde_json::from_slice(&body).unwrap();
            self.written.insert(key.clone(), body);
            shown.observed(key.kind, "me")
        }
    }

    #[test]
    fn a_resource_is_converted_once_a_change() {
        let mut sink = Loop::new();
        assert_eq!(sink.serve([("a", Some(2)), ("b", Some(3))]), (2, 2));
        assert_eq!(sink.serve([("a", Some(5))]), (1, 1));
        assert_eq!(sink.serve([("a", Some(5))]), (0, 0), "nothing new");
        assert_eq!(sink.serve([("a", None), ("b", Some(4)), ("c", Some(1))]), (3, 2), "a delete needs none");
        let shown: serde_json::Value =
            serde_json::from_slice(&sink.written[&key(ObjectKind::ServiceEntry, "ns/b")]).unwrap();
        assert_eq!(shown["spec"]["endpoints"].as_array().unwrap().len(), 4);
        assert_eq!(sink.serve([("large", Some(3_501))]), (3_502, 1), "with all its WorkloadEntries");
    }

    #[test]
    fn what_found_no_room_is_converted_when_it_is_written() {
        let mut sink = Loop::new();
        sink.serve([("a", Some(2))]);
        let (of, name) = (key(ObjectKind::ServiceEntry, "ns/a"), "ns/a".into());
        let spec = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(body).unwrap()["spec"].clone();
        let before = spec(&sink.written[&of]);
        sink.apply(&of, ManifestSource::View { name, selects: false });
        assert_eq!(spec(&sink.written[&of]), before);
        assert_eq!(sink.conversion.conversions, 2);
        let gone = ManifestSource::View { name: "ns/gone".into(), selects: false };
        assert!(sink.conversion.manifest(&of, gone).is_none());
    }
}
