//! The crate's error and the stable codes that Java shares.

use std::{fmt, net::SocketAddr};

/// Errors at the engine's surface. Every message names the field, the value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The handle is closed or was never valid.
    #[error("the engine is closed")]
    Closed,
    /// A packed frame that does not follow the format; nothing of it was applied.
    #[error("malformed frame at byte {at}: {what}")]
    MalformedFrame {
        /// Offset of the first byte that could not be read.
        at: usize,
        /// The expected content.
        what: &'static str,
    },
    /// A value over its bound; nothing was applied.
    #[error("{field} has {actual} bytes, allowed are at most {limit}; shorten it, or send it in parts")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Size of the value in bytes.
        actual: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// The configuration has wrong values, at least one; the text has a line for each.
    #[error("{0}")]
    Config(String),
    /// The listen address could not be bound.
    #[error("cannot listen on {address} (mox.listen): {source}; choose a free address or stop what holds it")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A call with an argument that it does not take.
    #[error("{0}")]
    InvalidArgument(String),
    /// A bound on the number of keys is reached; the event was dropped and counted.
    #[error("{field} reached its limit of {limit}; raise mox.limits.{field} or publish fewer")]
    Limit {
        /// The key under `mox.limits`.
        field: &'static str,
        /// Value of the key.
        limit: usize,
    },
    /// A call that waits for something gave up; nothing was taken back.
    #[error(
        "{what} took longer than {millis} ms (timeoutMillis); allow more time, or see in /mox/status what the engine does"
    )]
    Timeout {
        /// The call.
        what: &'static str,
        /// How long it waited, in milliseconds.
        millis: u64,
    },
    /// A bug: a caught panic or a runtime that did not start.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A setting that cannot be as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The setting's key from the root on, as `mox.policy.overrides[com.example.*].port`.
    pub key: String,
    /// The key's value, why it cannot be and what can.
    pub text: String,
}

impl Mistake {
    /// The key of an entry of a map whose keys are the operator's own: in brackets unless it is a single word.
    pub fn entry(map: &str, key: &str) -> String {
        let is_word = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if is_word { format!("{map}.{key}") } else { format!("{map}[{key}]") }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, text } = self;
        // Keys and values are the operator's, and a mistake is one line.
        let shown = format!("{key}: {text}").replace(char::is_control, "\u{fffd}");
        f.write_str(&shown)
    }
}

impl From<Vec<Mistake>> for Error {
    fn from(mistakes: Vec<Mistake>) -> Self {
        Self::Config(mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n"))
    }
}

impl From<Box<Self>> for Error {
    fn from(error: Box<Self>) -> Self {
        *error
    }
}

impl Error {
    /// The code that the Java facade shows, stable over releases.
    pub fn code(&self) -> i32 {
        match self {
            Self::Closed => 1,
            Self::MalformedFrame { .. } => 2,
            Self::TooLarge { .. } => 3,
            Self::Config(_) => 4,
            Self::Bind { .. } => 5,
            Self::InvalidArgument(_) => 6,
            Self::Limit { .. } => 7,
            Self::Internal(_) => 8,
            Self::Timeout { .. } => 9,
        }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Most characters of a text that a message repeats.
const QUOTED: usize = 40;

/// A text in quotes as a message repeats it, however long whoever sent it made it.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_repeats_the_beginning_of_a_text() {
        assert_eq!(quoted("a\n\"b"), "\"a\\n\\\"b\"");
        assert_eq!(quoted(&"好".repeat(QUOTED)), format!("\"{}\"", "好".repeat(QUOTED)));
        assert_eq!(quoted(&"好".repeat(9_999)), format!("\"{}\"…", "好".repeat(QUOTED)));
    }
}
