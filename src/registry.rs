//! The registry's data: events as they cross from Java, and the store that they are written into.
//!
//! Takes packed [`frame`]s on the callers' threads; gives the services that changed, with their live publishers, to the
//! one thread that its [`wake`] wakes. Knows nothing of Istio, of policies, or of what is served.

pub mod frame;
mod pieces;
pub mod publication;
pub mod store;
pub mod wake;
