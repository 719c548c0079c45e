//! The report for operators.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::catalog::breaker::Lost;

/// How writing to the API server goes; all of it but the counts belongs to the session server that has the lease.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesReport {
    /// `mox.kubernetes.owner`.
    pub owner: String,
    /// Namespace of the objects.
    pub namespace: String,
    /// Group and version of the objects, once the API server was asked.
    pub api: Option<String>,
    /// This session server's name in the lease.
    pub identity: String,
    /// Whether this session server has the lease, and so is the one that writes.
    pub writer: bool,
    /// Who has the lease, as far as it is known.
    pub holder: Option<String>,
    /// Reason why nothing is written, in the API server's own words where it gave one.
    pub failure: Option<Arc<str>>,
    /// `version_info` of the ServiceEntries, WorkloadEntries and DestinationRules that are wanted.
    pub versions: Option<[String; 3]>,
    /// Objects that are wanted.
    pub objects: usize,
    /// Objects that are yet to be written or deleted, or tried again.
    pub pending: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Whether nothing is to be done.
    pub in_sync: bool,
    /// Server-side applies that went well.
    pub applies: u64,
    /// Deletes that went well.
    pub deletes: u64,
    /// Writes that the API server refused.
    pub refused: u64,
    /// Of `refused`: 409 Conflict, the object was in another state than was known.
    pub conflicts: u64,
    /// How often all writes were put off, since the API server said so (429, Retry-After) or did not answer.
    pub pauses: u64,
    /// How the first comparison after the lease was taken went.
    pub first_sync: Option<FirstSync>,
    /// Services and endpoints whose removal the breaker withholds; it judges what is in the API when the lease is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Lost>,
    /// An operator had everything deleted, and nothing is written until `resume`.
    pub purging: bool,
    /// How many problems there are.
    pub problem_count: usize,
    /// Objects that are not as they should be, and why; the first hundred.
    pub problems: BTreeMap<String, Problem>,
}

/// How the first comparison with the API went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstSync {
    /// Objects that are wanted.
    pub objects: usize,
    /// Writes and deletes that it took.
    pub writes: u64,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// Why an object is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// HTTP status of the API server, if the message is its word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// The API server's words, at most 500 characters of them, or what we do.
    pub message: Arc<str>,
    /// How often the write was tried.
    pub attempts: u32,
}

/// How pods are followed, by whose addresses it is known in which namespaces consumers are.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsReport {
    /// Whether all pods are known, as they are now. Where not, addresses count as they were known, and nothing is
    /// removed; a new pod with the address of an older one counts as that until pods are listed again.
    pub current: bool,
    /// Pods that are known, but for those of the host's network and those that have ended.
    pub pods: usize,
    /// Pods for which there was no room; at most as many as there was room for.
    pub left_out: usize,
    /// How often all pods were listed.
    pub lists: u64,
    /// Why they are not known, in the API server's own words where it gave some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Arc<str>>,
}
