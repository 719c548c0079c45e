//! Serves the services of a SOFARegistry session server to Istio as MCP-over-xDS.
//!
//! ```text
//! Java, the registry's threads          own threads, never attached to the JVM
//!   jni -> frame -> store ──dirty──> publisher ──view──> xds stream -> istiod
//!                                      translate, snapshot    (one per client)
//!                                                   └─────> kubernetes -> API server
//! ```
//!
//! Events are written into the [`store`] on the caller's thread. The [`publisher`] translates what changed into an
//! immutable [`snapshot`], and every [`xds`] stream sends the newest one when its client is ready for it. Nothing calls
//! back into Java: status and log lines are pulled.

pub mod breaker;
pub mod config;
pub mod digest;
pub mod direct;

pub mod error;
pub mod gate;
pub mod host;
pub mod istio;
mod jni;
pub mod kubernetes;
pub mod model;

pub mod policy;
pub mod publisher;
pub mod registry;
pub mod services;
pub mod snapshot;
pub mod state;
pub mod translate;
pub mod unknown;
pub mod xds;

/// Messages of the wire, generated from `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}
