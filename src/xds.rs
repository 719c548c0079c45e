//! The MCP-over-xDS server that istiod connects to.

pub mod codec;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;

use std::sync::Arc;

use crate::{snapshot::Snapshot, view::View};

/// Never answered: istiod does not wait for it, and old versions block on an answer.
pub const MESH_CONFIG: &str = "core/v1alpha1/MeshConfig";
/// A type that is not used by this server and small in istiod; see [`stream`] on priming.
pub const PRIME_TYPE: &str = "extensions.istio.io/v1alpha1/WasmPlugin";

/// What stands behind a type URL. istiod asks with `group/version/kind` of the version it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    ServiceEntry,
    /// Endpoints, where they have resources of their own.
    WorkloadEntry,
    /// What a ServiceEntry cannot say.
    DestinationRule,
    /// Any other type: empty, and said at once, since istiod waits for an answer to each.
    Other,
}

impl Kind {
    /// The kind of a type URL; the three API versions are aliases.
    pub fn of(type_url: &str) -> Self {
        let kind = ["v1", "v1beta1", "v1alpha3"].iter().find_map(|version| {
            type_url.strip_prefix("networking.istio.io/")?.strip_prefix(version)?.strip_prefix('/')
        });
        match kind {
            Some("ServiceEntry") => Self::ServiceEntry,
            Some("WorkloadEntry") => Self::WorkloadEntry,
            Some("DestinationRule") => Self::DestinationRule,
            _ => Self::Other,
        }
    }
}

impl Kind {
    /// Kinds that services rest on: what is new of them goes before the services, what is gone after.
    pub const BENEATH: [Self; 2] = [Self::WorkloadEntry, Self::DestinationRule];
}

/// The resources of a kind in a view; `None` while nothing may be said about it.
pub(crate) fn snapshot(kind: Kind, view: &View) -> Option<Arc<Snapshot>> {
    match kind {
        Kind::ServiceEntry => view.shown.then(|| Arc::clone(&view.service_entries)),
        Kind::WorkloadEntry => view.shown.then(|| Arc::clone(&view.workload_entries)),
        Kind::DestinationRule => view.shown.then(|| Arc::clone(&view.destination_rules)),
        Kind::Other => Some(Snapshot::none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_istio_means_the_same_kinds() {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            assert_eq!(Kind::of(&format!("networking.istio.io/{version}/ServiceEntry")), Kind::ServiceEntry);
            assert_eq!(Kind::of(&format!("networking.istio.io/{version}/WorkloadEntry")), Kind::WorkloadEntry);
        }
        for other in ["networking.istio.io/v2/ServiceEntry", "networking.istio.io/v1/Gateway", "a/v1/ServiceEntry", ""]
        {
            assert_eq!(Kind::of(other), Kind::Other);
        }
    }
}
