//! Log lines of an engine, for a host that pulls them: no upcalls into the JVM.
//!
//! An engine's threads log to the subscriber that was current where the engine was opened. For a host that pulls, that is
//! the [`Log`] of this one engine: a bounded ring. Who reads it too slowly loses the oldest lines and is told how many.

use std::{
    collections::VecDeque,
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tracing::{
    Dispatch, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

const CAPACITY: usize = 1_024;
const MAX_MESSAGE: usize = 4_096;

/// A line for the host's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// ERROR, WARN, INFO or DEBUG.
    pub level: &'static str,
    /// The module that speaks.
    pub target: &'static str,
    /// The text, without control characters.
    pub message: String,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    dropped: u64,
    closed: bool,
}

/// Lines of one engine that wait for its host.
#[derive(Debug, Default)]
pub struct Log {
    ring: Mutex<Ring>,
    more: Condvar,
}

impl Log {
    /// A subscriber that hands this crate's events to `take`, for threads or a process to make their default.
    pub fn subscriber(take: impl Fn(Line) + Send + Sync + 'static) -> Dispatch {
        Dispatch::new(tracing_subscriber::registry().with(ToLines(take)))
    }

    /// The subscriber that puts this crate's events into this log.
    pub fn dispatch(self: &Arc<Self>) -> Dispatch {
        let log = Arc::clone(self);
        Self::subscriber(move |line| log.push(line))
    }

    /// Takes the lines that are there; where there are none, waits for some until `timeout` or [`Log::close`].
    pub fn take(&self, timeout: Duration) -> Vec<Line> {
        let deadline = Instant::now() + timeout;
        let mut ring = self.ring.lock();
        while ring.lines.is_empty() && !ring.closed {
            if self.more.wait_until(&mut ring, deadline).timed_out() {
                break;
            }
        }
        let mut lines: Vec<Line> = ring.lines.drain(..).collect();
        let dropped = std::mem::take(&mut ring.dropped);
        if dropped > 0 {
            let message = format!("{dropped} log lines were dropped, they came faster than they were read");
            lines.push(Line { level: "WARN", target: module_path!(), message });
        }
        lines
    }

    /// Says that the last line is in, so that nobody waits for more.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.more.notify_all();
    }

    /// Whether every line was taken and none will come.
    pub fn is_over(&self) -> bool {
        let ring = self.ring.lock();
        ring.closed && ring.lines.is_empty()
    }

    /// Adds a line; the oldest gives way where the ring is full.
    pub fn push(&self, line: Line) {
        let mut ring = self.ring.lock();
        if ring.lines.len() == CAPACITY {
            ring.lines.pop_front();
            ring.dropped += 1;
        }
        ring.lines.push_back(line);
        self.more.notify_one();
    }
}

struct ToLines<F>(F);

impl<S: Subscriber, F: Fn(Line) + 'static> Layer<S> for ToLines<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = event.metadata().level().as_str();
        let message = format!("{}{}", text.message, text.fields);
        (self.0)(Line { level, target: event.metadata().target(), message: clean(&message) });
    }
}

/// Publishers choose parts of what is logged; they do not get to write lines of their own.
fn clean(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> Line {
        Line { level: "INFO", target: "t", message: n.to_string() }
    }

    #[test]
    fn the_oldest_lines_go_first_and_are_counted() {
        let log = Log::default();
        (0..CAPACITY + 5).for_each(|n| log.push(line(n)));
        let lines = log.take(Duration::ZERO);
        assert_eq!(lines[0], line(5));
        assert_eq!(lines.len(), CAPACITY + 1);
        assert!(lines[CAPACITY].message.starts_with("5 log lines were dropped"));
        assert_eq!(log.take(Duration::ZERO), []);
    }

    #[test]
    fn who_waits_gets_lines_as_they_come_and_leaves_when_closed() {
        let log = Log::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| log.take(Duration::from_secs(60)));
            log.push(line(1));
            assert_eq!(reader.join().unwrap(), [line(1)]);
        });
        log.push(line(2));
        log.close();
        assert!(!log.is_over(), "the last line is there for whoever asks");
        assert_eq!(log.take(Duration::from_secs(60)), [line(2)]);
        assert_eq!(log.take(Duration::from_secs(60)), []);
        assert!(log.is_over());
    }

    #[test]
    fn control_characters_do_not_reach_the_log() {
        assert_eq!(clean("a\nERROR forged\u{1b}[0m"), "a ERROR forged [0m");
    }
}
