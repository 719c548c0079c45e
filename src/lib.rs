//! Serves the services of a SOFARegistry session server to Istio as MCP-over-xDS.
//!
//! ```text
//! Java, the registry's threads          own threads, never attached to the JVM
//!   jni -> frame -> store ──dirty──> publisher ──view──> xds stream -> istiod
//!                                      translate, snapshot    (one per client)
//!                                                   └─────> kubernetes -> API server
//! ```
//!
//! Events are written into the [`registry::store`] on the caller's thread. The [`publisher`] translates what changed into an
//! immutable [`snapshot`], and every [`xds`] stream sends the newest one when its client is ready for it. Nothing calls
//! back into Java: status and log lines are pulled.
//!
//! Java is who uses this crate. Rust programs that do are its own tests and tools, by way of `testing`.

mod breaker;
mod config;
mod digest;
mod direct;

mod error;
mod gate;
mod host;
mod istio;
mod jni;
mod kubernetes;
mod model;

mod policy;
mod publisher;
mod registry;
mod services;
mod snapshot;
mod state;
mod translate;
mod unknown;
mod xds;

/// Messages of the wire, generated from `proto/`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/protos.rs"));
}

#[cfg(feature = "testing")]
pub mod testing;
