//! The xDS server that istiod connects to, as a source of its configuration (MCP-over-xDS).
//!
//! The core knows no type of resource: what types there are and in which order they go out is said by a [`Catalog`].

pub mod codec;
pub mod listener;
pub mod pace;
pub mod server;
pub mod stream;
pub mod streams;
pub mod subscription;
pub mod tls;

/// Never answered: istiod does not wait for it, and old versions block on an answer.
pub const MESH_CONFIG: &str = "core/v1alpha1/MeshConfig";
/// A type that is not used by this server and small in istiod; see [`stream`] on priming.
pub const PRIME_TYPE: &str = "extensions.istio.io/v1alpha1/WasmPlugin";
