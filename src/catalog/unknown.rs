//! Services that the registry has and that could not be read: nothing is known to be gone from them.
//!
//! The store says which services are unknown, until a read of each is applied. A round keeps what was served of them last,
//! and this tells the operator.

use std::{collections::BTreeSet, sync::Arc};

use crate::catalog::{notices::Notice, report::UnknownReport};

/// How many services are named in the status.
const NAMED: usize = 20;
/// How long the names may be in the log, in characters.
const LOGGED: usize = 300;

/// The services that are not known.
#[derive(Debug, Default)]
pub struct Unknown {
    ids: BTreeSet<Arc<str>>,
    /// The last report is out of date.
    changed: bool,
    /// The operator was told of unknown services, and not yet that there are none any more.
    noticed: bool,
}

impl Unknown {
    /// Takes what the store says of a service that is looked at.
    pub fn note(&mut self, id: &Arc<str>, unknown: bool) {
        self.changed |= match unknown {
            true => {
                self.ids.insert(Arc::clone(id));
                // An unknown service may be served now that was missing before.
                true
            }
            false => self.ids.remove(id),
        };
    }

    /// Whether a service is not known.
    pub fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ids.iter()
    }

    /// The report, if it is another than before.
    pub fn report(&mut self, is_served: impl Fn(&Arc<str>) -> bool) -> Option<UnknownReport> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let (served, missing): (Vec<_>, Vec<_>) = self.ids.iter().partition(|id| is_served(id));
        let sample = missing.iter().chain(&served).take(NAMED).map(|id| Arc::clone(id)).collect();
        Some(UnknownReport { last_good: served.len(), missing: missing.len(), sample })
    }

    /// The notice that a report calls for: when services become unknown, and when every service is known again.
    pub fn notice(&mut self, report: &UnknownReport) -> Option<Notice> {
        let was = std::mem::replace(&mut self.noticed, !self.ids.is_empty());
        match (was, self.noticed) {
            (false, true) => {
                let UnknownReport { last_good: kept, missing, sample } = report;
                let names = sample.join(", ").chars().take(LOGGED).collect();
                Some(Notice::ServicesUnknown { kept: *kept, missing: *missing, names })
            }
            (true, false) => Some(Notice::ServicesKnown),
            _ => None,
        }
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
        let report = unknown.report(|id| &**id < "s35").unwrap();
        assert_eq!((report.last_good, report.missing, report.sample.len()), (25, 5, NAMED));
        assert_eq!((&*report.sample[0], &*report.sample[5]), ("s35", "s10"));
        assert_eq!(unknown.report(|_| true), None, "nothing changed");
        let told = unknown.notice(&report).unwrap();
        assert!(matches!(&told, Notice::ServicesUnknown { kept: 25, missing: 5, names } if names.starts_with("s35, ")));
        assert_eq!(unknown.notice(&report), None, "once");
        unknown.note(&ids[0], true);
        assert_eq!(unknown.report(|_| true).unwrap().missing, 0, "they may be served now");
        ids.iter().for_each(|id| unknown.note(id, false));
        assert!(!unknown.contains("s10"));
        assert_eq!(unknown.report(|_| true), Some(UnknownReport::default()));
        assert_eq!(unknown.notice(&UnknownReport::default()), Some(Notice::ServicesKnown));
        assert_eq!(unknown.notice(&UnknownReport::default()), None);
        unknown.note(&ids[0], false);
        assert_eq!(unknown.report(|_| true), None);
    }
}
