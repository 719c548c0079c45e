//! The MCP-over-xDS server that istiod connects to.

pub mod codec;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;

use std::collections::BTreeSet;

use crate::view::View;

/// Never answered: istiod does not wait for it, and old versions block on an answer.
pub const MESH_CONFIG: &str = "core/v1alpha1/MeshConfig";
/// A type that is not used by this server and small in istiod; see [`stream`] on priming.
pub const PRIME_TYPE: &str = "extensions.istio.io/v1alpha1/WasmPlugin";

/// What stands behind a type URL. istiod asks with `group/version/kind` of the version it prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Services.
    ServiceEntry,
    /// Endpoints of their own; none are made at present, and until the view is complete not even that is said.
    WorkloadEntry,
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
            _ => Self::Other,
        }
    }
}

/// `version_info` of a set that is always empty.
const EMPTY_VERSION: &str = "00000000000000000000000000000000";

/// The version of a kind in a view; `None` while nothing may be said about it.
pub(crate) fn version(kind: Kind, view: &View) -> Option<&str> {
    match kind {
        Kind::ServiceEntry => view.complete.then(|| &**view.service_entries.version()),
        Kind::WorkloadEntry => view.complete.then_some(EMPTY_VERSION),
        Kind::Other => Some(EMPTY_VERSION),
    }
}

/// The encoded resources of a kind in a view: all, or those with the given names.
pub(crate) fn resources(kind: Kind, view: &View, names: Option<&BTreeSet<String>>) -> Vec<bytes::Bytes> {
    match (kind, names) {
        (Kind::ServiceEntry, None) => view.service_entries.pages().cloned().collect(),
        (Kind::ServiceEntry, Some(names)) => view.service_entries.named(names).cloned().collect(),
        (Kind::WorkloadEntry | Kind::Other, _) => Vec::new(),
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
