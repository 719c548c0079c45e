//! The status of an engine.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;

use crate::{
    catalog::report::Report,
    config::Scope,
    histogram::Counted,
    host::{admin::large::PageCounts, desk::DocumentsStatus, feed::Feed, watching::VisibilityStatus},
    kubernetes::report::KubernetesReport,
    registry::store::{Counts, Dropped},
    snapshot::view::Held,
    xds::{
        streams::{ClientState, StreamState, Totals},
        times::VariantTimes,
    },
};

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The MoX listener that serves everything.
    pub mox: SocketAddr,
    /// Listeners of the partitions: by N, the addresses of partition 0 to N - 1.
    pub partitions: BTreeMap<usize, Vec<SocketAddr>>,
    /// The admin pages, if they have a listener of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
}

/// Answer to a flush.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flushed {
    /// Served services.
    pub services: usize,
    /// Served endpoints.
    pub endpoints: u64,
    /// `version_info` of the served ServiceEntries.
    pub version: String,
    /// That of the served WorkloadEntries, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_version: Option<String>,
    /// Why the served state is not the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// How long what takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From a change to the view that has it; [`Shared::published`](crate::catalog::shared::Shared::published) says from when on.
    pub published: Counted,
    /// Responses: state of the world, and incremental.
    pub responses: [VariantTimes; 2],
}

/// Everything an operator wants to know at a glance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of this library.
    pub release: &'static str,
    /// See [`TRANSLATION`](crate::translate::TRANSLATION).
    pub translation: u32,
    /// Where it listens.
    pub listening: Option<Bound>,
    /// Which publishers are served.
    pub scope: Scope,
    /// Counts and version of what is served.
    pub served: Flushed,
    /// Whether streams are refused because this session server is cut off and another is not.
    pub fenced: bool,
    /// How the data servers are followed, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<Feed>,
    /// Encoded size in bytes of what is served.
    pub bytes: usize,
    /// Counts of the store: the registry's view.
    pub store: Counts,
    /// Events dropped at a limit, by the limit.
    pub dropped: BTreeMap<&'static str, Dropped>,
    /// Report of the rounds; its key is older than its name.
    #[serde(rename = "publisher")]
    pub rounds: Report,
    /// Hash of the policy.
    pub policy: String,
    /// The documents that session servers share.
    pub documents: DocumentsStatus,
    /// Who sees what, where the policy asks for that.
    #[serde(skip_serializing_if = "VisibilityStatus::is_off")]
    pub visibility: VisibilityStatus,
    /// All streams in numbers.
    pub totals: Totals,
    /// Who is connected, and whether with the right partitions; the first two hundred, those with something wrong before others.
    pub clients: Vec<ClientState>,
    /// How many more clients there are.
    pub clients_left_out: usize,
    /// Their streams, the oldest; `/mox/streams` has all.
    pub streams: Vec<StreamState>,
    /// How many more streams there are.
    pub streams_left_out: usize,
    /// Responses sent, without priming.
    pub pushes: u64,
    /// Their size in bytes.
    pub pushed_bytes: u64,
    /// Responses that a client did not accept.
    pub nacks: u64,
    /// Streams ended since their client read nothing for a minute, or a response at less than 256 KiB a second.
    pub slow_readers: u64,
    /// Connections and streams refused, for whatever reason.
    pub refused: u64,
    /// Bytes that streams make us keep: what they ask for, and requests that come in.
    pub stream_bytes: usize,
    /// Bytes of pages that were served before and that somebody still holds, mostly slow clients.
    pub pinned_bytes: usize,
    /// Streams ended since they held the oldest of more such bytes than `mox.limits.pinned-bytes`.
    pub relieved: u64,
    /// Connections ended since their client sent too many frames of HTTP/2.
    pub floods: u64,
    /// How often a stream was ended since it wanted more bytes than `mox.limits.stream-bytes` or `streams-bytes`.
    pub over_budget: u64,
    /// Counts of large admin pages by their end.
    pub pages: PageCounts,
    /// How long what takes, since the start; it is for the metrics.
    #[serde(skip)]
    pub times: Times,
    /// How writing to the Kubernetes API goes, if it is switched on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesReport>,
}
