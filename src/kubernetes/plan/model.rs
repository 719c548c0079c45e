//! A naive API server in memory, and services that a view may have.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::kubernetes::{
    failure::Failure,
    objects::{Fingerprint, OwnObject},
};

pub(super) const SERVICES: u8 = 5;
pub(super) const ENDPOINTS: u8 = 4;
/// A bit of the digest of what the API server keeps in another form.
pub(super) const ADJUSTED: u128 = 1 << 120;

pub(super) fn key(kind: ObjectKind, name: impl AsRef<str>) -> ObjectKey {
    ObjectKey { kind, name: name.as_ref().into() }
}

/// As kube-apiserver says it of a user without the right.
pub(super) fn rbac(kind: ObjectKind) -> Failure {
    let plural = kind.plural();
    let message = format!(
        "{plural}.networking.istio.io \"x\" is forbidden: User \"u\" cannot patch resource \"{plural}\" in API group \
         \"networking.istio.io\" in the namespace \"n\""
    );
    Failure::refused(403, &message, None)
}

pub(super) fn denied() -> Failure {
    Failure::refused(403, "admission webhook \"v.example.com\" denied the request: host x cannot be used", None)
}

// The API server.

#[derive(Debug, Clone)]
pub(super) struct Stored {
    uid: u64,
    version: u64,
    pub(super) foreign: bool,
    pub(super) fingerprint: Fingerprint,
    deleting: bool,
    finalizer: bool,
}

#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) objects: BTreeMap<ObjectKey, Stored>,
    version: u64,
    /// How many objects there were, whatever was lost.
    uids: u64,
    /// Events by version: the object, and whether it is there (else gone).
    log: Vec<(u64, ObjectKey, Stored, bool)>,
    /// Objects that are kept in another form than they are written in.
    adjusts: BTreeSet<ObjectKey>,
}

impl Server {
    fn put(&mut self, key: &ObjectKey, mut object: Stored) -> Observed {
        self.version += 1;
        object.version = self.version;
        self.log.push((self.version, key.clone(), object.clone(), true));
        let observed = observed(&object);
        self.objects.insert(key.clone(), object);
        observed
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some(mut object) = self.objects.remove(key) {
            self.version += 1;
            object.version = self.version;
            self.log.push((self.version, key.clone(), object, false));
        }
    }

    /// Removes an object as a delete does.
    fn delete(&mut self, key: &ObjectKey) {
        match self.objects.get(key).cloned() {
            Some(object) if object.finalizer && !object.deleting => {
                self.put(key, Stored { deleting: true, ..object });
            }
            Some(object) if object.finalizer => drop(object),
            _ => self.remove(key),
        }
    }

    pub(super) fn list(&self, kind: ObjectKind, at: u64) -> Vec<(Arc<str>, Observed)> {
        let mut objects = BTreeMap::new();
        for (_, key, object, is_there) in self.log.iter().filter(|(v, key, ..)| *v <= at && key.kind == kind) {
            match is_there {
                true => objects.insert(Arc::clone(&key.name), observed(object)),
                false => objects.remove(&key.name),
            };
        }
        objects.into_iter().collect()
    }

    /// Somebody else does something to an object; false: there is nothing to do it to.
    pub(super) fn meddle(&mut self, key: &ObjectKey, how: Meddling) -> bool {
        let there = self.objects.get(key).cloned();
        match (how, there) {
            (Meddling::Delete, Some(_)) => self.delete(key),
            (Meddling::Edit, Some(mut object)) => {
                object.fingerprint.digest ^= 1 << 122;
                self.put(key, object);
            }
            (Meddling::EditOthers, Some(object)) => drop(self.put(key, object)),
            (Meddling::TakeOver, Some(object)) => drop(self.put(key, Stored { foreign: true, ..object })),
            (Meddling::Relabel, Some(mut object)) if key.kind == ObjectKind::WorkloadEntry => {
                object.fingerprint.digest |= 1 << 123;
                object.fingerprint.group = None;
                self.put(key, object);
            }
            (Meddling::AddFinalizer, Some(object)) if !object.deleting => {
                self.put(key, Stored { finalizer: true, ..object });
            }
            (Meddling::DropFinalizer, Some(object)) if object.finalizer => {
                let object = Stored { finalizer: false, ..object };
                if object.deleting { self.remove(key) } else { drop(self.put(key, object)) }
            }
            (Meddling::Create, None) => {
                self.uids += 1;
                let foreign = Stored {
                    uid: self.uids,
                    version: 0,
                    foreign: true,
                    fingerprint: Fingerprint::default(),
                    deleting: false,
                    finalizer: false,
                };
                self.put(key, foreign);
            }
            _ => return false,
        }
        true
    }

    /// All objects are gone, and versions begin lower.
    pub(super) fn lose_data(&mut self) {
        self.objects.clear();
        self.log.clear();
        self.version /= 2;
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The next event of the watch of a kind after a version: version, object, and whether that is there (else gone).
    pub(super) fn next_event(&self, kind: ObjectKind, after: u64) -> Option<(u64, ObjectKey, Observed, bool)> {
        let next = self.log.iter().find(|(version, key, ..)| *version > after && key.kind == kind);
        next.map(|(version, key, object, is_there)| (*version, key.clone(), observed(object), *is_there))
    }

    /// The object is kept in another form than it is written in, or no longer.
    pub(super) fn adjust(&mut self, key: &ObjectKey) {
        if !self.adjusts.remove(key) {
            self.adjusts.insert(key.clone());
        }
    }

    fn adjusted(&self, key: &ObjectKey, mut fingerprint: Fingerprint) -> Fingerprint {
        if self.adjusts.contains(key) {
            fingerprint.digest ^= ADJUSTED;
        }
        fingerprint
    }

    /// As kube-apiserver and [`write`](crate::kubernetes::write) together do it.
    pub(super) fn write(
        &mut self,
        key: &ObjectKey,
        request: &WriteRequest,
        content: Option<Fingerprint>,
    ) -> Result<Outcome, Failure> {
        let content = content.map(|content| self.adjusted(key, content));
        let there = self.objects.get(key).cloned();
        let over = match request {
            WriteRequest::Create => None,
            WriteRequest::Update(state) | WriteRequest::Unite(state) | WriteRequest::Delete(state) => Some(state),
        };
        if let Some(state) = over {
            match &there {
                None if matches!(request, WriteRequest::Delete(_)) => return Ok(Outcome::Deleted),
                None => return Err(Failure::refused(404, "serviceentries.networking.istio.io \"x\" not found", None)),
                Some(there) if there.state() != *state => {
                    return Err(Failure::refused(409, "the object has been modified", None));
                }
                Some(there) => assert!(!there.foreign, "{key} is another's and was to be written: {request:?}"),
            }
        }
        let mut content = match (request, content) {
            (WriteRequest::Delete(_), _) => {
                self.delete(key);
                return Ok(Outcome::Deleted);
            }
            (_, content) => content.expect("a write has a content"),
        };
        if let Some(there) = there.as_ref().filter(|there| there.foreign) {
            return Ok(Outcome::Foreign(observed(there)));
        }
        if let (WriteRequest::Unite(_), Some(there)) = (request, &there) {
            let all: BTreeSet<u64> = content.endpoints.iter().chain(&there.fingerprint.endpoints).copied().collect();
            content.endpoints = all.into_iter().collect();
            content.digest ^= 1 << 121;
        }
        self.uids += 1;
        let new = || Stored {
            uid: self.uids,
            version: 0,
            foreign: false,
            fingerprint: Fingerprint::default(),
            deleting: false,
            finalizer: false,
        };
        let object = Stored { fingerprint: content, ..there.unwrap_or_else(new) };
        Ok(Outcome::Applied(self.put(key, object)))
    }
}

impl Stored {
    fn state(&self) -> ObjectState {
        ObjectState { uid: format!("u{}", self.uid).into(), version: self.version.to_string().into() }
    }
}

fn observed(object: &Stored) -> Observed {
    let state = object.state();
    match object.foreign {
        true => Observed::Foreign(state.version),
        false => Observed::Own(OwnObject { state, fingerprint: object.fingerprint.clone(), deleting: object.deleting }),
    }
}

/// Somebody else's act on an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meddling {
    Delete,
    Edit,
    EditOthers,
    TakeOver,
    Create,
    Relabel,
    AddFinalizer,
    DropFinalizer,
}

impl Meddling {
    pub(super) const ALL: [Self; 8] = [
        Self::Delete,
        Self::Edit,
        Self::EditOthers,
        Self::TakeOver,
        Self::Create,
        Self::Relabel,
        Self::AddFinalizer,
        Self::DropFinalizer,
    ];
}

// Desired services.

/// How a service is served; `mask` has a bit for each endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) enum ServiceShape {
    #[default]
    Absent,
    Inline {
        mask: u8,
        revision: u8,
    },
    /// WorkloadEntries are resources of the view.
    Selecting {
        mask: u8,
        revision: u8,
    },
    /// WorkloadEntries are made of the endpoints of a ServiceEntry.
    Split {
        mask: u8,
        revision: u8,
    },
}

pub(super) fn service(n: u8) -> ObjectKey {
    key(ObjectKind::ServiceEntry, format!("s{n}"))
}

pub(super) fn converted(
    key: ObjectKey,
    digest: u128,
    endpoints: Vec<u64>,
    group: Option<u128>,
    selects: bool,
) -> Converted {
    let fingerprint = Fingerprint { digest, endpoints: endpoints.into(), group, selects };
    Converted { key, fingerprint, manifest: Arc::new(Manifest::of(digest.to_string())) }
}

/// The resources of a service, in the order in which a view gives them, with their objects.
pub(super) fn resources(n: u8, shape: ServiceShape) -> Vec<(ObjectKey, Vec<Converted>)> {
    let group = Some(u128::from(n) + 1);
    let bits = |mask: u8| (0..ENDPOINTS).filter(move |bit| mask >> bit & 1 == 1);
    let digest = |mode: u8, mask: u8, revision: u8| {
        u128::from(mode) << 24 | u128::from(n) << 16 | u128::from(mask) << 8 | u128::from(revision)
    };
    let workload = |prefix: &str, e: u8, revision: u8| {
        let key = key(ObjectKind::WorkloadEntry, format!("{prefix}{n}-{e}"));
        converted(key, digest(4, 1 << e, revision & 1), vec![e.into()], group, false)
    };
    match shape {
        ServiceShape::Absent => Vec::new(),
        ServiceShape::Inline { mask, revision } => {
            let endpoints = bits(mask).map(u64::from).collect();
            let service = converted(service(n), digest(1, mask, revision), endpoints, group, false);
            let rule = converted(
                key(ObjectKind::DestinationRule, format!("d{n}")),
                digest(5, 0, revision),
                vec![],
                None,
                false,
            );
            let rule = Some(rule).filter(|_| revision > 1);
            [service].into_iter().chain(rule).map(|object| (object.key.clone(), vec![object])).collect()
        }
        ServiceShape::Selecting { mask, revision } => {
            let workloads = bits(mask).map(|e| workload("w", e, revision));
            let service = converted(service(n), digest(2, 0, revision), Vec::new(), group, true);
            workloads.chain([service]).map(|object| (object.key.clone(), vec![object])).collect()
        }
        ServiceShape::Split { mask, revision } => {
            let own = converted(service(n), digest(3, 0, revision), Vec::new(), group, true);
            let workloads = bits(mask).map(|e| workload("p", e, revision));
            vec![(service(n), std::iter::once(own).chain(workloads).collect())]
        }
    }
}
