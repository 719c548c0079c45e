//! The inside as tests, benches, fuzz targets and examples use it, by the rooms where it is. Not a promise: it changes with the
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

/// What session servers agree on.
pub mod documents {
    pub use crate::documents::{Documents, Freeze, Kept, Name, OrdersContent, Row, Shown, Stamp, Taken, Write};
}

/// Errors at the engine's surface.
pub mod error {
    pub use crate::error::{Error, Result};
}

/// How long what takes.
pub mod histogram {
    pub use crate::histogram::{Counted, Histogram};
}

/// The engine, and what is asked of it.
pub mod host {
    pub use crate::host::{admin, command, engine, hour, log, metrics, peers, status};
}

/// Istio's grammar and rules.
pub mod istio {
    pub use crate::istio::{names, rule, validate};
}

/// The writer of Kubernetes objects and its report.
pub mod kubernetes {
    pub use crate::kubernetes::{rbac, report};
}

/// Terms of the registry.
pub mod model {
    pub use crate::model::{RegisterVersion, date};
}

/// The operator's policy.
pub mod policy {
    pub use crate::policy::{Policy, PolicyConfig, Rules};
}

/// The registry's view: frames and the store.
pub mod registry {
    pub use crate::registry::{frame, store};
}

/// The served resources.
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
        budget, codec, drain, limits, listener, order, pace, requests, server, streams, subscription, workers,
    };
}
