//! The xDS server that istiod connects to, as a source of its configuration (MCP-over-xDS).
//!
//! The core knows no type of resource: a [`Catalog`] says what types there are and which of them rest on which.
//!
//! The floors, from the ground up; a file imports from lower floors only, and this file from none:
//!
//! 1. [`limits`] bounds a client, [`drain`] ends streams, [`pace`] divides a client's time, [`parts`] wakes streams, [`quiet`]
//!    bounds what clients can log, [`tls`] keeps certificates;
//! 2. [`subscription`] is one type on one stream, in either variant of the protocol, [`streams`] lists who is connected;
//! 3. [`order`] decides what a stream is told and when, [`codec`] puts requests and responses on the wire, [`listener`] lets
//!    connections in;
//! 4. [`stream`] serves one stream;
//! 5. [`server`] is the gRPC service that makes streams of connections.

pub mod codec;
pub mod drain;
pub mod limits;
pub mod listener;
pub mod order;
pub mod pace;
pub mod parts;
pub mod quiet;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;
pub mod tls;

use std::{fmt::Debug, sync::Arc};

use crate::{snapshot::Snapshot, view::View};

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
