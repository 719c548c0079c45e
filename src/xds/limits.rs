//! Bounds of a client: how many streams it may open, how large its messages may be, and how long it may take.

use std::time::Duration;

use crate::config::{Config, Limits};

/// How long a connection may be without a stream, and a stream without its first request.
pub(crate) const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// For how long a client may read nothing of what was sent.
pub(crate) const SLOW: Duration = Duration::from_secs(60);
/// How long a client that did not accept a response is left alone. The next response may well be refused as well, and sending
/// it takes as much of the other clients' time as if it were not.
pub(crate) const REFUSED: Duration = Duration::from_secs(1);
/// How long a kind that depends on another waits for the answer to a response of that, where the response lacks something that
/// is new. A client that never answers one type is told of the other types all the same.
pub(crate) const UNANSWERED: Duration = Duration::from_secs(10);

/// Bytes a second at which a client must take in a response, and send a request: a
/// quarter of 1 Mbit/s. The pages that slow clients hold are bounded by `mox.limits.pinned-bytes`, for however long.
const SLOWEST: usize = 32 << 10;

/// How long a message of so many bytes may take.
pub(crate) fn transfer(bytes: usize) -> Duration {
    SLOW + Duration::from_millis((bytes as u64 * 1_000) / SLOWEST as u64)
}

/// Bytes of a type URL; Istio's and Envoy's have less than 100.
pub(crate) const TYPE_URL: usize = 256;
/// Characters that are kept of a client's words on a response that it does not accept.
pub(crate) const NACK_TEXT: usize = 500;

/// The beginning of a text, of so many characters at most.
pub(crate) fn cut(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(at, _)| &text[..at])
}

/// How many streams there may be at once.
#[derive(Debug, Clone, Copy)]
pub struct MaxStreams {
    /// Streams of all clients.
    pub in_all: usize,
    /// Streams from one address.
    pub per_address: usize,
}

/// Bytes that streams may make the server keep.
#[derive(Debug, Clone, Copy)]
pub struct MaxBytes {
    /// Of what one stream asks for: names, texts, the request that comes in.
    pub stream: usize,
    /// The same of all streams together.
    pub streams: usize,
    /// Of pages that only streams hold, since there are newer ones.
    pub pinned: usize,
}

impl MaxBytes {
    /// No bounds.
    #[cfg(any(test, feature = "testing"))]
    pub const ANY: Self = Self { stream: usize::MAX, streams: usize::MAX, pinned: usize::MAX };
}

impl From<&Limits> for MaxBytes {
    fn from(limits: &Limits) -> Self {
        Self { stream: limits.stream_bytes, streams: limits.streams_bytes, pinned: limits.pinned_bytes }
    }
}

#[cfg(test)]
impl Default for MaxBytes {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

/// Bounds of the streams of a server.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// How many streams there may be.
    pub streams: MaxStreams,
    /// Types of one stream.
    pub types: usize,
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a response's resources.
    pub response: usize,
}

impl StreamLimits {
    /// The limits in the settings (`mox.limits`).
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            streams: MaxStreams { in_all: limits.streams, per_address: limits.streams_per_address },
            types: limits.types,
            request: limits.request,
            response: limits.response,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_megabit_is_fast_enough_for_the_largest_message() {
        for bytes in [0, 15_000_000, 150_000_000, usize::MAX >> 32] {
            assert!(transfer(bytes) > Duration::from_secs(bytes as u64 * 8 / 1_000_000), "{bytes}");
        }
    }
}
