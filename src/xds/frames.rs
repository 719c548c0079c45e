//! How many frames of HTTP/2 a client may send on a connection.
//!
//! Each frame costs the server work, most of them a client need not wait to send, and the transport bounds but some kinds. So a
//! connection has credit: it grows with time and with what the server sends, since that is what honest frames answer.
//!
//! A value without IO: the caller shows the bytes and says what time it is.

use std::time::Duration;

use tokio::time::Instant;

/// The preface of a client, which is no frame.
const PREFACE: usize = 24;
/// Bytes of a frame before its payload.
const HEAD: usize = 9;

/// Credit of a new connection, and the most that there can be: enough for as many streams at once as a connection may have.
const CREDIT: f64 = 8_000.0;
/// Credit that a second gives.
const PER_SECOND: f64 = 100.0;
/// Bytes sent that give a credit of one. A client may answer a small response by four frames: ACK, two windows and a PING.
const SENT: f64 = 128.0;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Cost of the beginning of a stream; any other frame costs one.
const STREAM: f64 = 20.0;
/// A DATA frame of so many bytes costs nothing: requests have bounds of their own.
const FREE: usize = 1 << 10;

/// The frames of one connection.
#[derive(Debug)]
pub(crate) struct Frames {
    /// As much as has come of the head of a frame.
    head: [u8; HEAD],
    filled: usize,
    /// Bytes to come of the payload of a frame, or of the preface.
    payload: usize,
    credit: f64,
    counted_until: Instant,
}

impl Frames {
    pub(crate) fn new(now: Instant) -> Self {
        Self { head: [0; HEAD], filled: 0, payload: PREFACE, credit: CREDIT, counted_until: now }
    }

    /// Counts the frames in bytes that came in; whether there are no more than there may be.
    pub(crate) fn read(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.counted_until);
        self.counted_until = now;
        self.earn(passed.as_secs_f64() * PER_SECOND);
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEAD - self.filled);
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            (self.filled, bytes) = (self.filled + taken, &bytes[taken..]);
            if self.filled == HEAD {
                let [a, b, c, kind, ..] = self.head;
                (self.filled, self.payload) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
                self.credit -= match kind {
                    DATA if self.payload >= FREE => 0.0,
                    HEADERS => STREAM,
                    _ => 1.0,
                };
            }
        }
        self.credit >= 0.0
    }

    /// Notes bytes that went out.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.earn(bytes as f64 / SENT);
    }

    fn earn(&mut self, credit: f64) {
        self.credit = (self.credit + credit).min(CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.extend(vec![7; payload]);
        frame
    }

    /// How many frames of a kind are read before there are too many, of `most` at most.
    fn most_of(kind: u8, payload: usize, most: usize) -> usize {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        assert!(frames.read(&[0; PREFACE], now));
        let frame = frame(kind, payload);
        (0..most).take_while(|_| frames.read(&frame, now)).count()
    }

    #[test]
    fn frames_of_every_kind_are_bounded_but_for_data_that_has_a_bound_of_its_own() {
        for (kind, payload) in
            [(DATA, 0), (DATA, 1), (2, 5), (3, 4), (4, 0), (4, 6), (6, 8), (7, 8), (8, 4), (9, 100), (99, 0)]
        {
            assert_eq!(most_of(kind, payload, 1 << 20), CREDIT as usize, "{kind}");
        }
        assert_eq!(most_of(HEADERS, 50, 1 << 20), (CREDIT / STREAM) as usize);
        assert_eq!(most_of(DATA, 16 << 10, 100_000), 100_000);
    }

    #[test]
    fn a_client_that_answers_what_it_is_sent_is_never_in_the_way() {
        let start = Instant::now();
        let mut frames = Frames::new(start);
        // 1,000 small responses a second for a minute; for each an ACK, two windows and a PING.
        for n in 0..60_000u32 {
            frames.sent(600);
            for (kind, payload) in [(DATA, 60), (8, 4), (8, 4), (6, 8)] {
                assert!(frames.read(&frame(kind, payload), start + Duration::from_millis(1) * n), "{n}");
            }
        }
        // A response of 100 MB, whose client opens both windows for each 16 KiB.
        for _ in 0..(100 << 20) / (16 << 10) {
            frames.sent(16 << 10);
            let both = [frame(8, 4), frame(8, 4)].concat();
            assert!(frames.read(&both, start + Duration::from_secs(60)));
        }
    }

    proptest! {
        #[test]
        fn frames_are_counted_the_same_however_they_come(
            of in proptest::collection::vec((0u8..12, 0usize..3_000), 0..20), cuts in proptest::collection::vec(1usize..500, 1..50),
        ) {
            let now = Instant::now();
            let bytes: Vec<u8> = [vec![0; PREFACE]].into_iter().chain(of.iter().map(|(kind, payload)| frame(*kind, *payload))).flatten().collect();
            let (mut whole, mut cut) = (Frames::new(now), Frames::new(now));
            whole.read(&bytes, now);
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                cut.read(piece, now);
                rest = later;
            }
            prop_assert_eq!(whole.credit, cut.credit);
            let cost = |(kind, payload): &(u8, usize)| match kind { 0 if *payload >= FREE => 0.0, 1 => STREAM, _ => 1.0 };
            prop_assert_eq!(whole.credit, CREDIT - of.iter().map(cost).sum::<f64>());
        }
    }
}
