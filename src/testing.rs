//! What tests, benches, fuzz targets and examples use of the inside, by the rooms where it is. Not a promise: it changes with the
//! inside. Built with the feature `testing` alone, so that the compiler sees in every other build what nothing uses.

/// Who is served under which host.
pub mod catalog {
    /// Hosts and addresses.
    pub mod assignment {
        pub use crate::catalog::assignment::claims;
    }
}

/// The settings.
pub mod config {
    pub use crate::config::{Config, policy_from_json};
}

/// Hashes of content.
pub mod digest {
    pub use crate::digest::{hex, prefix_of};
}

/// What can go wrong.
pub mod error {
    pub use crate::error::{Error, Result};
}

/// The engine, and what is asked of it.
pub mod host {
    pub use crate::host::{admin, command, engine, log, status};
}

/// What Istio accepts.
pub mod istio {
    pub use crate::istio::{names, rule, validate};
}

/// What the writer of Kubernetes objects needs, and what it tells.
pub mod kubernetes {
    pub use crate::kubernetes::{rbac, report};
}

/// Terms of the registry.
pub mod model {
    pub use crate::model::{RegisterVersion, now};
}

/// The operator's policy.
pub mod policy {
    pub use crate::policy::{Policy, PolicyConfig, Rules};
}

/// What the registry says.
pub mod registry {
    pub use crate::registry::{frame, store};
}

/// What is served.
pub mod snapshot {
    pub use crate::snapshot::{Changes, Resource, Set, Snapshot, kubectl, partition, signals, view};
}

/// From what publishers say to what Istio reads.
pub mod translate {
    pub use crate::translate::{Parsed, names, payload, serialized, service_entry};
}

/// The streams.
pub mod xds {
    pub use crate::xds::{
        budget, codec, drain, limits, listener, order, pace, requests, server, streams, subscription,
    };
}
