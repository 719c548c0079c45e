//! Requests that another session server passes on. They are signed with `mox.admin.token`, so that the token itself never
//! travels between servers: an address that meta lists by mistake or malice learns nothing that it could use elsewhere.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use ring::{digest, hmac};

use crate::{digest::from_hex, model::Millis};

/// How far the clocks of two servers may differ, a request's way included, in milliseconds.
const WINDOW: Millis = 300_000;
/// How many signatures are kept. Only who has the token can fill this.
const KEPT: usize = 4_096;
/// The first line of what is signed: the token signs other things, too.
const PURPOSE: &str = "registry-mox request 1";

/// A signed request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'a> {
    /// HTTP method, in capitals.
    pub(super) method: &'a str,
    /// Path as it was sent, with the question mark and the query where there is one.
    pub(super) target: &'a str,
    /// Header `X-Mox-Time`: when the request was signed, milliseconds since 1970.
    pub(super) time: &'a str,
    /// Header `X-Mox-Signature`: 64 hexadecimal digits.
    pub(super) signature: &'a str,
    /// The request's body.
    pub(super) body: &'a [u8],
}

/// Why a request is refused: an HTTP status, and a text for the log of who sent it.
pub(super) type Refusal = (u16, String);

/// The signatures of the last minutes, each of which is good once.
#[derive(Debug)]
pub struct Signatures(Mutex<Taken>);

#[derive(Debug)]
struct Taken {
    /// With the time that each was made at.
    all: BTreeSet<(Millis, [u8; 32])>,
    /// Requests signed at this time or before cannot be told from requests that were taken already.
    forgotten: Millis,
}

impl Signatures {
    /// Takes what is signed later than `now`.
    pub fn new(now: Millis) -> Self {
        Self(Mutex::new(Taken { all: BTreeSet::new(), forgotten: now - 1 }))
    }

    /// Whether a request is one of somebody's who has the token, new, and not seen before.
    pub(super) fn check(&self, token: &[u8], request: Signed<'_>, now: Millis) -> Result<(), Refusal> {
        let refused = |why: String| Err((403, why));
        let Ok(time) = request.time.parse::<Millis>() else {
            return refused(format!("X-Mox-Time {:?} is no time in milliseconds since 1970", shown(request.time)));
        };
        let Some(signature) = from_hex(request.signature) else {
            return refused(format!("X-Mox-Signature has {} characters, not 64 hex digits", request.signature.len()));
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, token);
        if hmac::verify(&key, &message(request), &signature).is_err() {
            return refused(
                "the signature does not fit; mox.admin.token must be the same on all session servers".to_owned(),
            );
        }
        let ahead = time.saturating_sub(now);
        if ahead.saturating_abs() > WINDOW {
            let (seconds, which) = (ahead.saturating_abs() / 1_000, if ahead > 0 { "after" } else { "before" });
            return refused(format!(
                "the request was signed {seconds} s {which} this server's time, allowed are {} s; set the servers' clocks",
                WINDOW / 1_000
            ));
        }
        self.0.lock().take(time, signature, now)
    }
}

impl Taken {
    fn take(&mut self, time: Millis, signature: [u8; 32], now: Millis) -> Result<(), Refusal> {
        let within = self.all.split_off(&(now - WINDOW, [0; 32]));
        let old = std::mem::replace(&mut self.all, within);
        self.forgotten = old.last().map_or(self.forgotten, |(time, _)| self.forgotten.max(*time));
        if time <= self.forgotten {
            let late = "the request was signed before this server started, or its clock was set back; send a new one";
            return Err((403, late.to_owned()));
        }
        if self.all.len() == KEPT {
            return Err((429, format!("{KEPT} signed requests came within {} s; ask later", WINDOW / 1_000)));
        }
        match self.all.insert((time, signature)) {
            true => Ok(()),
            false => Err((403, "the request was taken before; send a new one".to_owned())),
        }
    }
}

fn message(request: Signed<'_>) -> Vec<u8> {
    let Signed { method, target, time, body, .. } = request;
    let mut message = format!("{PURPOSE}\n{method}\n{target}\n{time}\n").into_bytes();
    message.extend_from_slice(digest::digest(&digest::SHA256, body).as_ref());
    message
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_700_000_000_000;
    const TOKEN: &[u8] = b"open sesame";
    const BODY: &[u8] = br#"{"exclude":["a.*"]}"#;

    fn sign(token: &[u8], method: &str, path: &str, time: &str, body: &[u8]) -> String {
        let request = Signed { method, target: path, time, signature: "", body };
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token), &message(request));
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check_at(signatures: &Signatures, time: Millis, now: Millis) -> Result<(), Refusal> {
        let time = time.to_string();
        let signature = sign(TOKEN, "POST", "/mox/freeze", &time, b"");
        let request = Signed { method: "POST", target: "/mox/freeze", time: &time, signature: &signature, body: b"" };
        signatures.check(TOKEN, request, now)
    }

    /// As SessionsTest has it: both languages sign alike.
    #[test]
    fn a_signature_is_this() {
        let signature = sign(TOKEN, "POST", "/mox/policy", "1700000000000", BODY);
        assert_eq!(signature, "8049318598811d8791b7eb72413e0ca63aec2695cdf9bd602774ed7ff52a3409");
        let request =
            Signed { method: "POST", target: "/mox/policy", time: "1700000000000", signature: &signature, body: BODY };
        assert_eq!(Signatures::new(NOW).check(TOKEN, request, NOW), Ok(()));
    }

    #[test]
    fn whatever_is_changed_of_a_request_its_signature_does_not_fit() {
        let signatures = Signatures::new(NOW);
        let time = NOW.to_string();
        let signature = sign(TOKEN, "POST", "/mox/policy", &time, BODY);
        let good = Signed { method: "POST", target: "/mox/policy", time: &time, signature: &signature, body: BODY };
        let later = (NOW + 1).to_string();
        for wrong in [
            Signed { method: "GET", ..good },
            Signed { target: "/mox/freeze", ..good },
            Signed { time: &later, ..good },
            Signed { body: b"{}", ..good },
        ] {
            let (status, why) = signatures.check(TOKEN, wrong, NOW).unwrap_err();
            assert!(status == 403 && why.starts_with("the signature does not fit"), "{why}");
        }
        assert!(signatures.check(b"open sesam", good, NOW).is_err());
        for signature in ["", "0", &signature[1..], &format!("{signature}0"), &"x".repeat(64), &"ä".repeat(32)] {
            let (_, why) = signatures.check(TOKEN, Signed { signature, ..good }, NOW).unwrap_err();
            assert!(why.starts_with("X-Mox-Signature has "), "{why}");
        }
        for time in ["", "now", "-", "99999999999999999999"] {
            let (_, why) = signatures.check(TOKEN, Signed { time, ..good }, NOW).unwrap_err();
            assert!(why.starts_with("X-Mox-Time "), "{why}");
        }
        assert_eq!(signatures.check(TOKEN, good, NOW), Ok(()), "nothing of that was kept");
    }

    #[test]
    fn a_request_is_good_once_and_for_five_minutes() {
        let signatures = Signatures::new(NOW - WINDOW);
        assert_eq!(check_at(&signatures, NOW - WINDOW, NOW), Ok(()));
        assert_eq!(check_at(&signatures, NOW + WINDOW, NOW), Ok(()));
        for time in [NOW - WINDOW, NOW + WINDOW] {
            assert_eq!(check_at(&signatures, time, NOW).unwrap_err().1, "the request was taken before; send a new one");
        }
        let old = check_at(&signatures, NOW - WINDOW - 1_000, NOW).unwrap_err().1;
        assert!(old.starts_with("the request was signed 301 s before this server's time, allowed are 300 s"), "{old}");
        let early = check_at(&signatures, NOW + WINDOW + 60_000, NOW).unwrap_err().1;
        assert!(early.starts_with("the request was signed 360 s after this server's time"), "{early}");
        for time in [Millis::MIN, Millis::MAX] {
            assert!(check_at(&signatures, time, NOW).is_err());
        }
        // The future one is kept for as long as it is good.
        assert!(check_at(&signatures, NOW + WINDOW, NOW + 2 * WINDOW).is_err());
        assert_eq!(check_at(&signatures, NOW + 2 * WINDOW, NOW + 3 * WINDOW), Ok(()));
    }

    #[test]
    fn what_was_forgotten_is_not_taken_again() {
        let signatures = Signatures::new(NOW);
        assert!(check_at(&signatures, NOW - 1, NOW).is_err(), "perhaps taken before this server started");
        assert_eq!(check_at(&signatures, NOW, NOW), Ok(()));
        assert_eq!(check_at(&signatures, NOW + 2 * WINDOW, NOW + 2 * WINDOW), Ok(()));
        let back = check_at(&signatures, NOW, NOW).unwrap_err().1;
        assert!(back.contains("its clock was set back"), "{back}");
    }

    #[test]
    fn no_more_are_taken_than_are_kept() {
        let signatures = Signatures::new(NOW - WINDOW);
        for n in 0..KEPT as Millis {
            assert_eq!(check_at(&signatures, NOW + n, NOW), Ok(()));
        }
        assert_eq!(check_at(&signatures, NOW - 1, NOW).unwrap_err().0, 429);
        assert!(check_at(&signatures, NOW, NOW).is_err());
        assert_eq!(check_at(&signatures, NOW + 2 * WINDOW, NOW + 2 * WINDOW), Ok(()), "the oldest are over");
    }
}
