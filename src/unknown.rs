//! Services that the registry has and that could not be read: nothing is known to be gone from them.
//!
//! The store says which they are, until a read of one is applied. The publisher keeps what was served of them last, and
//! this says so to the operator.

use std::{collections::BTreeSet, sync::Arc};

use serde::Serialize;

/// How many are named in the status.
const NAMED: usize = 20;
/// How long the names may be in the log, in characters.
const LOGGED: usize = 300;

/// What the status says of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Those of which the last good form is served.
    pub last_good: usize,
    /// Those that have none and are missing in the mesh.
    pub missing: usize,
    /// Some of them by dataInfoId, first those that are missing.
    pub sample: Vec<Arc<str>>,
}

/// The services that are not known.
#[derive(Debug, Default)]
pub struct Unknown {
    ids: BTreeSet<Arc<str>>,
    /// The report is not of now.
    changed: bool,
    logged: bool,
}

impl Unknown {
    /// Takes what the store says of a service that was looked at.
    pub fn note(&mut self, id: &Arc<str>, unknown: bool) {
        self.changed |= match unknown {
            true => {
                self.ids.insert(Arc::clone(id));
                // It may be served now.
                true
            }
            false => self.ids.remove(id),
        };
    }

    /// Whether a service is not known.
    pub fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// The report, if it is another than before. What it says first is an error in the log.
    pub fn report(&mut self, is_served: impl Fn(&str) -> bool) -> Option<Report> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let (served, missing): (Vec<_>, Vec<_>) = self.ids.iter().partition(|id| is_served(id));
        let sample = missing.iter().chain(&served).take(NAMED).map(|id| Arc::clone(id)).collect();
        let report = Report { last_good: served.len(), missing: missing.len(), sample };
        let log = !self.ids.is_empty();
        if log && !self.logged {
            let names: String = report.sample.join(", ").chars().take(LOGGED).collect();
            tracing::error!(
                event = "service_unknown",
                kept = report.last_good,
                missing = report.missing,
                names,
                "services of the registry cannot be read: their last good form is served where there is one"
            );
        } else if !log && self.logged {
            tracing::info!(event = "service_known", "every service of the registry could be read");
        }
        self.logged = log;
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reports_what_changed_and_names_the_missing_first() {
        let mut unknown = Unknown::default();
        assert_eq!(unknown.report(|_| true), None);
        let ids: Vec<Arc<str>> = (10..40).map(|n| format!("s{n}").into()).collect();
        ids.iter().for_each(|id| unknown.note(id, true));
        let report = unknown.report(|id| id < "s35").unwrap();
        assert_eq!((report.last_good, report.missing, report.sample.len()), (25, 5, NAMED));
        assert_eq!((&*report.sample[0], &*report.sample[5]), ("s35", "s10"));
        assert_eq!(unknown.report(|_| true), None, "nothing changed");
        unknown.note(&ids[0], true);
        assert_eq!(unknown.report(|_| true).unwrap().missing, 0, "they may be served now");
        ids.iter().for_each(|id| unknown.note(id, false));
        assert!(!unknown.contains("s10"));
        assert_eq!(unknown.report(|_| true), Some(Report::default()));
        unknown.note(&ids[0], false);
        assert_eq!(unknown.report(|_| true), None);
    }
}
