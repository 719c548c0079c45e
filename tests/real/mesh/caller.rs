//! Real consumers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use harness::{
    SOON,
    process::{Driven, START, script},
};

use super::{Framework, proxy::hosts_file, wait_for_line};

/// A consumer in a process of its own.
pub(super) struct Caller {
    driven: Driven,
    pub(super) calls: usize,
    pub(super) failed: usize,
    /// Answers by provider.
    pub(super) by: BTreeMap<String, usize>,
    pub(super) log: PathBuf,
}

impl Caller {
    /// Starts a consumer; the calls that fail are in the log.
    pub(super) fn start(framework: Framework, arguments: &[&str], log: PathBuf) -> Self {
        Self::run(&mut Self::command(framework, arguments, &log), log)
    }

    pub(super) fn command(framework: Framework, arguments: &[&str], log: &Path) -> Command {
        let mut command = script("consumer.sh", log);
        command.env("HOSTS_FILE", hosts_file());
        command.arg(if framework == Framework::Dubbo { "DubboConsumer" } else { "Consumer" }).args(arguments);
        command
    }

    pub(super) fn run(command: &mut Command, log: PathBuf) -> Self {
        let mut driven = Driven::start(command);
        wait_for_line(&mut driven, "ready");
        Self { driven, calls: 0, failed: 0, by: BTreeMap::new(), log }
    }

    /// Answers by provider.
    pub(super) fn call(&mut self, calls: usize, gap_ms: u64) -> BTreeMap<String, usize> {
        self.driven.tell(&format!("call {calls} {gap_ms}"));
        let line = loop {
            let line = self.driven.line(START);
            if let Some(counts) = line.strip_prefix("called ") {
                break counts.to_owned();
            }
        };
        let mut words = line.split(' ');
        self.failed += words.next().unwrap().parse::<usize>().unwrap();
        self.calls += calls;
        let pair = |word: &str| word.split_once('=').map(|(name, count)| (name.to_owned(), count.parse().unwrap()));
        let latest: BTreeMap<String, usize> = words.filter_map(pair).collect();
        latest.iter().for_each(|(name, count)| *self.by.entry(name.clone()).or_default() += count);
        latest
    }

    pub(super) fn up_to(&mut self, calls: usize) {
        if let more @ 1.. = calls.saturating_sub(self.calls) {
            self.call(more, 0);
        }
    }

    /// Goes on calling until something is seen.
    pub(super) fn until(&mut self, what: &str, mut seen: impl FnMut(&BTreeMap<String, usize>) -> bool) {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            let latest = self.call(30, 5);
            if seen(&latest) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {:?}: {what}", 2 * SOON);
        }
    }
}
