//! Who subscribes to what, and in which namespaces: what session servers saw of it, and what they agree on.
//!
//! Takes reports of subscribers from each session server, and the documents as they stand in the registry's store; gives the document
//! that is to be written next. What the documents say is a [`Seen`](seen::Seen), by which `exportTo` is made where the policy wants it. The room is
//! a value: no lock, clock, log or IO, and whoever drives it says what time it is.
//!
//! Nothing here is about the application's name or address once a report was read: what is agreed on is namespaces by service. They only
//! grow, until in a namespace nobody has subscribed for as long as the policy says, in rounds that every session server answered.

mod absences;
pub mod keeper;
pub mod page;
pub mod report;
pub mod seen;
pub mod servers;

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::digest::prefix_of;

/// How many rows the namespaces of all services may take.
pub const PAGES: usize = 16;

/// Stands among the namespaces for consumers of which it is not known where they are; no namespace can have this name.
pub const UNKNOWN: &str = "?";

/// A service: the first eight bytes of the SHA-256 of its dataInfoId. So a document has the same size whatever the names, which anybody
/// chooses who registers. Two services that share one see what the other sees as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u64);

impl ServiceId {
    /// That of a dataInfoId.
    pub fn of(data_info_id: &str) -> Self {
        Self(u64::from_be_bytes(prefix_of::<8>(data_info_id)))
    }
}

/// Namespaces, and [`UNKNOWN`].
pub type Names = BTreeSet<Arc<str>>;

/// The document `visibility`: who computes, and whether what is computed counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lease {
    /// The session server that computes: its address, and what tells this start of it from others.
    pub holder: Arc<str>,
    /// Whether the pages have had every consumer in once since somebody began to compute. Before, and after the policy asked for none,
    /// they are of consumers that may be long gone, without those that came since.
    pub settled: bool,
    /// How many pages there are at least, from the first on. Who has not read them all knows too few consumers.
    pub pages: usize,
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
