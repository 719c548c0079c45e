//! The view of the streams: a snapshot, and whether it may be shown.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use serde::Serialize;

use crate::snapshot::Snapshot;

/// Why the served state is not the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// The first complete view is not in; streams are held silent.
    NotLoaded,
    /// The first complete view is not in; the last good state is served, with what is known to have come since.
    LastGood,
    /// More went than a registry in its right mind takes away.
    MassDelete,
    /// More came than anybody in his right mind brings at once; new services wait.
    MassAdd,
    /// The operator froze what is served, or the registry stopped its pushes.
    Frozen,
}

impl fmt::Display for Held {
    /// The name that status and metrics use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Handed to streams as a whole, so that they never see half a change.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Whether a complete view was in once.
    pub complete: bool,
    /// Whether streams may be told; until then nothing is said about services. A complete view is.
    pub shown: bool,
    /// ServiceEntries.
    pub service_entries: Arc<Snapshot>,
    /// WorkloadEntries; empty where endpoints stand in their ServiceEntry.
    pub workload_entries: Arc<Snapshot>,
    /// DestinationRules, for what a ServiceEntry cannot say.
    pub destination_rules: Arc<Snapshot>,
}

impl View {
    /// ServiceEntries, WorkloadEntries and DestinationRules.
    pub fn snapshots(&self) -> [&Arc<Snapshot>; 3] {
        [&self.service_entries, &self.workload_entries, &self.destination_rules]
    }

    /// Differ between any two views of different content.
    pub fn versions(&self) -> [&str; 3] {
        self.snapshots().map(|snapshot| &**snapshot.version())
    }
}

/// Every resource that is served at one moment, by kind.
pub trait Catalog: Clone + Send + Sync + 'static {
    /// A type of resource, whatever type URLs it has.
    type Kind: Copy + Ord + Debug + Send + Sync + 'static;

    /// Dependencies: additions are sent before the kinds in [`Catalog::ABOVE`], removals after.
    const BENEATH: &'static [Self::Kind];
    /// The kinds whose resources depend on resources of [`Catalog::BENEATH`].
    const ABOVE: &'static [Self::Kind];

    /// The kind of a type URL. A URL without a kind is answered empty and at once, since istiod waits for an answer to each
    /// type.
    fn kind(type_url: &str) -> Option<Self::Kind>;

    /// The resources of a kind; `None` while nothing may be said about them.
    fn resources(&self, kind: Self::Kind) -> Option<&Arc<Snapshot>>;

    /// Encoded size of all resources that may be told.
    fn size(&self) -> usize {
        let kinds = Self::BENEATH.iter().chain(Self::ABOVE);
        kinds.filter_map(|kind| self.resources(*kind)).map(|snapshot| snapshot.bytes()).sum()
    }

    /// Bytes of older views, and of what was encoded for single streams, that somebody still holds. This is to be the newest.
    fn pinned(&self) -> usize {
        let kinds = Self::BENEATH.iter().chain(Self::ABOVE);
        kinds.filter_map(|kind| self.resources(*kind)).map(|snapshot| snapshot.pinned()).sum()
    }
}

/// The types of resource that this server serves to istiod, which asks for `group/version/kind` in the version it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServedKind {
    /// Services.
    ServiceEntry,
    /// Endpoints that have resources of their own.
    WorkloadEntry,
    /// Settings that a ServiceEntry has no field for.
    DestinationRule,
}

impl Catalog for View {
    type Kind = ServedKind;
    const BENEATH: &'static [ServedKind] = &[ServedKind::WorkloadEntry, ServedKind::DestinationRule];
    const ABOVE: &'static [ServedKind] = &[ServedKind::ServiceEntry];

    /// The three API versions are aliases.
    fn kind(type_url: &str) -> Option<ServedKind> {
        let kind = ["v1", "v1beta1", "v1alpha3"].iter().find_map(|version| {
            type_url.strip_prefix("networking.istio.io/")?.strip_prefix(version)?.strip_prefix('/')
        });
        match kind {
            Some("ServiceEntry") => Some(ServedKind::ServiceEntry),
            Some("WorkloadEntry") => Some(ServedKind::WorkloadEntry),
            Some("DestinationRule") => Some(ServedKind::DestinationRule),
            _ => None,
        }
    }

    fn resources(&self, kind: ServedKind) -> Option<&Arc<Snapshot>> {
        let resources = match kind {
            ServedKind::ServiceEntry => &self.service_entries,
            ServedKind::WorkloadEntry => &self.workload_entries,
            ServedKind::DestinationRule => &self.destination_rules,
        };
        self.shown.then_some(resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_istio_means_the_same_kinds() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            assert_eq!(
                View::kind(&format!("networking.istio.io/{version}/ServiceEntry")),
                Some(ServedKind::ServiceEntry)
            );
            assert_eq!(
                View::kind(&format!("networking.istio.io/{version}/WorkloadEntry")),
                Some(ServedKind::WorkloadEntry)
            );
        }
        for other in ["networking.istio.io/v2/ServiceEntry", "networking.istio.io/v1/Gateway", "a/v1/ServiceEntry", ""]
        {
            assert_eq!(View::kind(other), None);
        }
    }
}
