//! From the registry's model to Istio's: pure functions, the same input gives the same bytes.

pub mod app_entry;
pub mod labels;
pub mod names;
pub mod payload;
pub mod provider;
pub mod serialized;
pub mod service_entry;

pub use payload::Parsed;

/// Raised by a release that would serve other bytes for the same data.
pub const TRANSLATION: u32 = 2;
