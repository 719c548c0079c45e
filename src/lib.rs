//! Serves the services of a SOFARegistry session server to Istio, as MCP-over-xDS and as objects of Kubernetes.
//!
//! ```text
//! Java, the registry's threads        own threads, never attached to the JVM
//!   jni -> registry ──dirty──> catalog ──view──> snapshot ──┬──> xds -> istiod
//!                              policy, translate, istio     └──> kubernetes -> API server
//! ```
//!
//! Events are written into the `registry`'s store on the caller's thread. The `catalog` makes the next `snapshot` from
//! what changed, and every `xds` stream sends the newest one when its client is ready for it. Nothing calls back into
//! Java: status, log lines and pages are pulled.
//!
//! A module imports only modules that stand before it here; `tests/architecture.rs` holds the arrows and
//! `docs/architecture.md` walks them. Java is who uses this crate. Rust programs that do are its own tests and tools, by way
//! of `testing`.

/// Messages of the wire, generated from `proto/`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

mod digest;
mod disk;
mod duration;
mod error;
mod histogram;
mod model;

mod istio;
mod registry;
mod snapshot;

mod policy;
mod translate;

mod config;
mod visibility;

mod documents;

mod catalog;

mod kubernetes;
mod xds;

mod host;
mod jni;

#[cfg(feature = "testing")]
pub mod testing;
