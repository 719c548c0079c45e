//! The served resources: an immutable set of resources, encoded once, in pages that every stream shares.
//!
//! Resources are kept in 128 slices by the top 7 bits of their host's SHA-256, and there in pages sorted by name, each in
//! one piece of memory. A change rewrites one page; the others are shared with the snapshot before. Where pages begin and
//! end depends on history, the bytes of all of them together do not.
//!
//! Takes [`Changes`] of encoded resources; gives [`Snapshot`]s in a [`View`](view::View), and [`signals`] to those who wait
//! for another. Knows the wire format of resources, and neither the registry nor who is sent what.

mod index;
pub mod kubectl;
mod memory;
pub mod page;
pub mod partition;
pub mod resource;
pub mod set;
pub mod signals;
#[cfg(test)]
mod tests;
pub mod view;

pub use page::Item;
pub use resource::{Changes, Draft, Resource, Room, version_of};
pub use set::{Set, Snapshot};
