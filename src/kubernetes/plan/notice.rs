//! Notices: the plan's lines for the log.

use std::{collections::HashSet, hash::Hash, time::Duration};

use tokio::time::Instant;

use crate::{
    catalog::breaker::Lost,
    kubernetes::{
        failure::{Failure, Remedy},
        objects::{ObjectKey, ObjectKind},
        report::{FirstSync, Problem},
    },
};

/// A line for the log.
#[derive(Debug, Clone)]
pub(in crate::kubernetes) enum Notice {
    /// A write failed; for debugging. `unsaid` notices of this sort were left out since the last.
    Failed { key: ObjectKey, failure: Failure, remedy: Remedy, unsaid: usize },
    /// An object is not as it should be.
    Problem { key: ObjectKey, problem: Problem, unsaid: usize },
    /// The API server keeps an object in another form than it was written in.
    Adjusted { key: ObjectKey, unsaid: usize },
    /// No object of a kind can be written.
    Barred { kind: ObjectKind, failure: Failure },
    /// All writes are put off.
    Paused { failure: Failure, wait: Duration, unsaid: usize },
    /// Removals are withheld from now on.
    MassDeletion(Lost),
    /// Removals are no longer withheld.
    RemovalsGoOn { why: &'static str, objects: usize },
    /// Objects are being written.
    Progress { written: u64, to_go: usize, problems: usize },
    /// The first comparison with the API is through.
    Compared(FirstSync),
}

/// The notices since the last time that they were taken.
#[derive(Debug)]
pub(super) struct Notices {
    given: Vec<Notice>,
    failures: Quiet<ObjectKey>,
    problems: Quiet<ObjectKey>,
    adjustments: Quiet<ObjectKey>,
    pauses: Quiet<()>,
}

impl Notices {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            given: Vec::new(),
            failures: Quiet::new(now),
            problems: Quiet::new(now),
            adjustments: Quiet::new(now),
            pauses: Quiet::new(now),
        }
    }

    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.given)
    }

    /// For what no publisher can cause often.
    pub(super) fn give(&mut self, notice: Notice) {
        self.given.push(notice);
    }

    pub(super) fn failed(&mut self, now: Instant, key: &ObjectKey, failure: &Failure, remedy: Remedy) {
        let unsaid = self.failures.ask(key.clone(), now);
        self.given.extend(unsaid.map(|unsaid| {
            let (key, failure) = (key.clone(), failure.clone());
            Notice::Failed { key, failure, remedy, unsaid }
        }));
    }

    pub(super) fn problem(&mut self, now: Instant, key: &ObjectKey, problem: &Problem) {
        let unsaid = self.problems.ask(key.clone(), now);
        self.given.extend(unsaid.map(|unsaid| {
            let (key, problem) = (key.clone(), problem.clone());
            Notice::Problem { key, problem, unsaid }
        }));
    }

    pub(super) fn adjusted(&mut self, now: Instant, key: &ObjectKey) {
        let unsaid = self.adjustments.ask(key.clone(), now);
        self.given.extend(unsaid.map(|unsaid| Notice::Adjusted { key: key.clone(), unsaid }));
    }

    pub(super) fn paused(&mut self, now: Instant, failure: &Failure, wait: Duration) {
        let unsaid = self.pauses.ask((), now);
        self.given.extend(unsaid.map(|unsaid| Notice::Paused { failure: failure.clone(), wait, unsaid }));
    }
}

/// Notices that a publisher or a webhook can cause: one about a subject and [`MOST`] in all within [`SPAN`].
#[derive(Debug)]
struct Quiet<S> {
    since: Instant,
    said: HashSet<S>,
    unsaid: usize,
}

const MOST: usize = 10;
const SPAN: Duration = Duration::from_secs(60);

impl<S: Eq + Hash> Quiet<S> {
    fn new(now: Instant) -> Self {
        Self { since: now, said: HashSet::new(), unsaid: 0 }
    }

    /// Whether a notice about this subject may be given; if so, how many were not since the last.
    fn ask(&mut self, subject: S, now: Instant) -> Option<usize> {
        if now >= self.since + SPAN {
            self.since = now;
            self.said.clear();
        }
        if self.said.len() < MOST && self.said.insert(subject) {
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_told_once_a_minute_and_ten_in_all() {
        let begin = Instant::now();
        let mut quiet = Quiet::new(begin);
        assert_eq!(quiet.ask(1, begin), Some(0));
        assert_eq!(quiet.ask(1, begin + SPAN / 2), None);
        let told = (2..100).filter(|subject| quiet.ask(*subject, begin + SPAN / 2).is_some()).count();
        assert_eq!(told, MOST - 1);
        assert_eq!(quiet.ask(1, begin + SPAN), Some(98 - 9), "those since the last that was told");
        assert_eq!(quiet.ask(2, begin + SPAN), Some(0));
    }
}
