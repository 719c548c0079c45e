//! The feed: how the host follows the registry's data servers, as it reports it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often a reason is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// How much of a name is logged, in characters.
const LOGGED_CHARS: usize = 160;

/// How the host follows the registry's data servers, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Feed {
    /// Slots of the registry's slot table.
    pub slots: u64,
    /// Services that the data servers have, as far as it is known.
    pub ids: u64,
    /// Services that a comparison found different from what is known, and that were not read since.
    pub owed: u64,
    /// Services that could not be read again and again while their data server answers, or not be taken in; they are tried on.
    pub unreadable: u64,
    /// Services that are to be read now.
    pub dirty: u64,
    /// Notices of changed services.
    pub notices: u64,
    /// Reads of a service.
    pub reads: u64,
    /// Bytes of publishers' data in them.
    pub read_bytes: u64,
    /// Reads that failed.
    pub read_failures: u64,
    /// Comparisons of a slot.
    pub compares: u64,
    /// Comparisons that failed.
    pub compare_failures: u64,
    /// Services of which a comparison found that another state was known.
    pub differences: u64,
    /// Comparisons of everything without a failure.
    pub reconciled: u64,
    /// How long ago the last one began, in milliseconds.
    pub reconciled_millis_ago: Option<u64>,
    /// How long the first complete view took, in milliseconds.
    pub bootstrap_millis: Option<u64>,
    /// For how long at least one slot's leader was not heard of, in milliseconds.
    pub oldest_contact_millis: Option<u64>,
    /// Whether the registry has stopped its pushes.
    pub push_stopped: bool,
    /// Other session servers that serve MoX from fresh data, when this was last asked.
    pub fresh_peers: Option<u64>,
    /// Publishers that are not taken, or not whole, as the last reads found them; by the reason.
    pub refused_publishers: BTreeMap<String, u64>,
    /// Some of them, the newest first.
    pub refused: Vec<Refused>,
    /// How often a client of this session server published what is not taken, or not whole; by the reason.
    pub refused_events: BTreeMap<String, u64>,
    /// Text of the last failure.
    pub last_failure: Option<String>,
    /// This session server has been cut off from data for longer than `mox.protect.max-staleness`.
    pub stale: bool,
}

/// Publishers of one service that are not taken for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refused {
    /// The service.
    pub data_info_id: String,
    /// Why.
    pub reason: String,
    /// The registerId of one of them, shortened.
    pub register_id: String,
    /// How many they are.
    pub count: u64,
}

/// The last word of the host, and what was logged of it.
#[derive(Debug, Default)]
pub struct LastFeed {
    feed: Option<Feed>,
    /// When each reason was logged last.
    logged: HashMap<String, Instant>,
}

impl LastFeed {
    /// The host's last report; `None` where no data server is followed.
    pub fn feed(&self) -> Option<&Feed> {
        self.feed.as_ref()
    }

    /// Takes the newest word, and logs what is worse than before, and what is good again.
    pub fn take(&mut self, feed: Feed) {
        let before = self.feed.take().unwrap_or_default();
        match (before.stale, feed.stale) {
            (false, true) => tracing::error!(
                event = "feed_stale",
                "cut off from the registry's data servers for longer than mox.protect.max-staleness; what is served is old"
            ),
            (true, false) => tracing::warn!(event = "feed_fresh", "in contact with the registry's data servers again"),
            _ => {}
        }
        for (reason, count) in &feed.refused_publishers {
            if *count > before.refused_publishers.get(reason).copied().unwrap_or(0) && self.may_log(reason) {
                let sample = feed.refused.iter().find(|refused| refused.reason == *reason).cloned().unwrap_or_default();
                let cut = |name: &str| name.chars().take(LOGGED_CHARS).collect::<String>();
                tracing::warn!(
                    event = "publishers_refused",
                    reason,
                    count,
                    data_info_id = cut(&sample.data_info_id),
                    register_id = cut(&sample.register_id),
                    "publishers are not taken, or not whole; their services are served with all others"
                );
            }
        }
        self.feed = Some(feed);
    }

    /// Whether a line may be logged now: each reason once a minute.
    pub fn may_log(&mut self, reason: &str) -> bool {
        let quiet = self.logged.get(reason).is_some_and(|at| at.elapsed() < LOGGED_EVERY);
        if !quiet {
            self.logged.insert(reason.to_owned(), Instant::now());
        }
        !quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_is_logged_once_a_minute() {
        let mut followed = LastFeed::default();
        assert!(followed.may_log("a") && followed.may_log("b"));
        assert!(!followed.may_log("a"));
        tokio::time::advance(LOGGED_EVERY).await;
        assert!(followed.may_log("a"));
    }
}
