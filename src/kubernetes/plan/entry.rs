//! Everything that the plan knows of an object.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{ManifestSource, WriteRequest, schedule::Standing};
use crate::kubernetes::{
    objects::{Fingerprint, Manifest, ObjectKind, Observed, OwnObject},
    pace::Backoff,
};

/// After this many failures in a row that say nothing of the object itself its service no longer waits for it.
const PATIENCE: u32 = 3;
/// An unknown outcome is of the past after this: the API server ends a request whose client is gone.
const DOUBTFUL: Duration = Duration::from_secs(30);

/// An object that is desired or was seen in the API; there is no entry for any other.
#[derive(Debug, Default)]
pub(super) struct ObjectEntry {
    pub(super) desired: Option<Desired>,
    pub(super) observed: Option<Observed>,
    pub(super) standing: Standing,
    pub(super) in_flight: Option<Box<InFlight>>,
    pub(super) refusal: Option<Box<Refusal>>,
    pub(super) written: Option<Box<LastWrite>>,
    /// Digests of the content that was written and of the form in which the API server keeps it, where these differ.
    pub(super) adjusted: Option<Box<(u128, u128)>>,
    pub(super) doubt: Option<Box<Doubt>>,
    /// The group that counts the object as missing.
    pub(super) missing_in: Option<u128>,
}

/// An object that the view asks for.
#[derive(Debug)]
pub(super) struct Desired {
    pub(super) fingerprint: Fingerprint,
    pub(super) text: DesiredText,
}

/// Where the manifest of a desired object is found.
#[derive(Debug)]
pub(super) enum DesiredText {
    /// A resource of the view has this name there. Its manifest is kept until it is written, if there is room.
    Resource(Arc<str>, Option<Arc<Manifest>>),
    /// A WorkloadEntry of a service with too many endpoints. To convert it is to convert the service, so it is kept.
    Split(Arc<Manifest>),
}

/// The basis of a write: digest of the desired content, version of the observed state.
pub(super) type Basis = (Option<u128>, Option<Arc<str>>);

/// A write under way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) request: WriteRequest,
    pub(super) basis: Basis,
    /// The group that the ServiceEntry selects once it is written.
    pub(super) selects: Option<u128>,
    /// As of this version there was no such object, as the watch said meanwhile.
    pub(super) gone: Option<Arc<str>>,
}

/// The outcome of writes is unknown: they may have been done, or may yet be, until the watch shows as many other states of the
/// object or `until` is over.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) until: Instant,
    /// The group that the ServiceEntry may select.
    selects: Option<u128>,
    /// Whether the object may be gone.
    deleted: bool,
    /// How many writes have an unknown outcome. Each may be a state of its own, which the watch shows before the next.
    writes: u32,
}

/// The last write failed, and the object rests unless it is to be written from another basis.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) basis: Basis,
    pub(super) until: Instant,
    pub(super) backoff: Backoff,
    /// Failures in a row, whatever was written.
    failures: u32,
    /// Whether the object's service goes on without it.
    pub(super) excused: bool,
}

/// The last write, and how long the object rests when another writer undoes it.
#[derive(Debug)]
pub(super) struct LastWrite {
    pub(super) digest: u128,
    pub(super) at: Instant,
    pub(super) backoff: Backoff,
    pub(super) rests_until: Instant,
}

/// The cause that a failed write is laid to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Blame {
    /// The object: the API server refuses it.
    Object,
    /// Not known yet.
    Nobody,
    /// All objects of the kind.
    Kind,
}

impl Desired {
    pub(super) fn source(&self) -> ManifestSource {
        match &self.text {
            DesiredText::Split(manifest) | DesiredText::Resource(_, Some(manifest)) => {
                ManifestSource::Kept(Arc::clone(manifest))
            }
            DesiredText::Resource(name, None) => {
                ManifestSource::View { name: Arc::clone(name), selects: self.fingerprint.selects }
            }
        }
    }

    /// Bytes of the manifest that is kept until it is written.
    pub(super) fn kept(&self) -> usize {
        match &self.text {
            DesiredText::Resource(_, Some(manifest)) => manifest.len(),
            _ => 0,
        }
    }
}

impl Refusal {
    /// Of a write that failed now, after the refusal that is known. `backoff` is how it begins.
    pub(super) fn after(known: Option<Box<Self>>, basis: Basis, blame: Blame, backoff: Backoff, now: Instant) -> Self {
        let failures = known.as_ref().map_or(0, |known| known.failures) + 1;
        let same = known.filter(|known| known.basis == basis && known.backoff.is_like(&backoff));
        let backoff = same.map_or(backoff, |known| known.backoff);
        let excused = match blame {
            Blame::Object => true,
            Blame::Nobody => failures >= PATIENCE,
            Blame::Kind => false,
        };
        Self { basis, until: now, backoff, failures, excused }
    }
}

impl Doubt {
    /// Left by a write without a known outcome, after the doubt that is known.
    pub(super) fn after(known: Option<&Self>, in_flight: &InFlight, now: Instant) -> Self {
        Self {
            until: now + DOUBTFUL,
            selects: in_flight.selects.or_else(|| known.and_then(|known| known.selects)),
            deleted: matches!(in_flight.request, WriteRequest::Delete(_)) || known.is_some_and(|known| known.deleted),
            writes: known.map_or(0, |known| known.writes) + 1,
        }
    }

    /// The watch shows another state, which is that of the first write at most. Whether the outcome of others is still unknown.
    pub(super) fn outlives_a_state(&mut self) -> bool {
        self.writes -= 1;
        self.writes > 0
    }
}

impl ObjectEntry {
    pub(super) fn own(&self) -> Option<&OwnObject> {
        self.observed.as_ref().and_then(Observed::own)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.desired.is_none() && self.observed.is_none() && self.in_flight.is_none() && self.doubt.is_none()
    }

    /// The basis of a write that would begin now.
    pub(super) fn basis(&self) -> Basis {
        let desired = self.desired.as_ref().map(|desired| desired.fingerprint.digest);
        (desired, self.own().map(|own| Arc::clone(&own.state.version)))
    }

    /// Until when the object is left alone: after a refusal, or since another writer undoes what is written.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let basis = self.basis();
        let refusal = self.refusal.as_ref().filter(|refusal| refusal.basis == basis).map(|refusal| refusal.until);
        let fought = self.written.as_ref().filter(|written| Some(written.digest) == basis.0);
        refusal.into_iter().chain(fought.map(|written| written.rests_until)).max()
    }

    /// The groups that the object belongs to.
    pub(super) fn groups(&self) -> [Option<u128>; 4] {
        let [observed, in_flight, doubt] = self.selected();
        let own = self.own().and_then(|own| own.fingerprint.group);
        [self.desired.as_ref().and_then(|desired| desired.fingerprint.group), own.or(observed), in_flight, doubt]
    }

    /// The groups that a ServiceEntry in the API selects, will select once a write is there, and may select.
    pub(super) fn selected(&self) -> [Option<u128>; 3] {
        let observed = self.own().filter(|own| own.fingerprint.selects).and_then(|own| own.fingerprint.group);
        let in_flight = self.in_flight.as_ref().and_then(|in_flight| in_flight.selects);
        [observed, in_flight, self.doubt.as_ref().and_then(|doubt| doubt.selects)]
    }

    /// The group in which a WorkloadEntry is missing: desired, not there as far as is known, and worth waiting for.
    pub(super) fn is_missing_in(&self, kind: ObjectKind) -> Option<u128> {
        let desired = self.desired.as_ref().filter(|_| kind == ObjectKind::WorkloadEntry)?;
        let group = desired.fingerprint.group?;
        let goes = self.in_flight.as_ref().is_some_and(|write| matches!(write.request, WriteRequest::Delete(_)))
            || self.doubt.as_ref().is_some_and(|doubt| doubt.deleted);
        let is_there = match &self.observed {
            Some(Observed::Own(own)) => !own.deleting && !goes && own.fingerprint.group == Some(group),
            // Never ours to write.
            Some(Observed::Foreign(_)) => true,
            None => false,
        };
        let excused = self.refusal.as_ref().is_some_and(|refusal| refusal.excused);
        (!is_there && !excused).then_some(group)
    }
}
