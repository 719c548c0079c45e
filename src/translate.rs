//! From the registry's model to Istio's: pure functions, the same input gives the same bytes.

pub mod app_entry;
pub mod labels;
pub mod names;
pub mod payload;
pub mod port;
pub mod provider;
pub mod reading;
pub mod serialized;
pub mod service_entry;

pub use payload::Parsed;

/// How many endpoints are served at most. Of more it is those with the smallest addresses, whoever came first, so that every
/// session server serves the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of one publisher, in one service.
    pub per_publisher: usize,
    /// Of one service.
    pub per_service: usize,
}

impl Bounds {
    /// Bounds that nothing meets.
    #[cfg(any(test, feature = "testing"))]
    pub const NONE: Self = Self { per_publisher: usize::MAX, per_service: usize::MAX };
}

/// Raised by a release that would serve other bytes for the same data.
pub const TRANSLATION: u32 = 2;
