//! The xDS server that istiod connects to, as a source of its configuration (MCP-over-xDS).
//!
//! The core knows no type of resource: a [`Catalog`] says what types there are and which of them rest on which.
//!
//! The floors, from the ground up; a file imports from lower floors only, and this file from none:
//!
//! 1. [`limits`] bounds a client, [`drain`] ends streams, [`pace`] divides a client's time, [`parts`] wakes streams,
//!    [`subscription`] is one type on one stream in either variant of the protocol;
//! 2. [`order`] decides what a stream is told and when, [`codec`] puts requests and responses on the wire, [`streams`] lists
//!    who is connected, [`tls`] keeps certificates;
//! 3. [`listener`] lets connections in, [`stream`] serves one stream;
//! 4. [`server`] is the gRPC service that makes streams of connections.

pub mod codec;
pub mod drain;
pub mod limits;
pub mod listener;
pub mod order;
pub mod pace;
pub mod parts;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;
pub mod tls;

use std::{fmt::Debug, sync::Arc};

use crate::{snapshot::Snapshot, view::View};

/// Every resource that is served at one moment, by kind.
pub trait Catalog: Clone + Send + Sync + 'static {
    /// Stands for one type, under whatever type URLs.
    type Kind: Copy + Ord + Debug + Send + Sync + 'static;

    /// What others rest on: what is new of these goes before [`Catalog::ABOVE`], what is gone after.
    const BENEATH: &'static [Self::Kind];
    /// What rests on [`Catalog::BENEATH`].
    const ABOVE: &'static [Self::Kind];

    /// The kind of a type URL. One that is unknown is answered empty and at once, since istiod waits for an answer to each;
    /// that is no statement about a type that is served.
    fn kind(type_url: &str) -> Option<Self::Kind>;

    /// The resources of a kind; `None` while nothing may be said about them.
    fn resources(&self, kind: Self::Kind) -> Option<&Arc<Snapshot>>;
}

/// What this server serves to istiod. istiod asks with `group/version/kind` of the version it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServedKind {
    /// Services.
    ServiceEntry,
    /// Endpoints, where they have resources of their own.
    WorkloadEntry,
    /// What a ServiceEntry cannot say.
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
