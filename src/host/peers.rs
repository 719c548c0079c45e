//! What session servers ask each other: whether one is fresh, how much it serves, and the hashes of that.
//!
//! Their addresses are what meta lists, and meta takes anybody's word for being a session server. So a question has a number
//! that was never used, and where `mox.admin.token` has 16 bytes an answer counts only if it is signed with that for this very
//! question: a liar cannot sign, and an old answer is one to another question. A liar that passes the question on to a session
//! server hands over what that one says of itself. A shorter token signs nothing, since whoever reads an answer could try
//! them all; then all answers count.

use std::collections::BTreeMap;

use ring::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::breaker::Totals,
    digest::{from_hex, hex},
    documents::LEAST_TOKEN,
    error::{Error, Result},
    host::page::Page,
};

/// The body of a fresh server's answer.
const FRESH: &str = "fresh\n";
/// The first line of what is signed: the token signs other things, too.
const PURPOSE: &str = "registry-mox answer 1";
/// How the line begins that is behind a signed answer.
const SIGNED: &str = "signed ";
/// The name of a question's number in its query.
const NONCE: &str = "nonce";
/// Bytes of a question's number.
const NONCE_BYTES: usize = 16;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum About {
    /// Whether a server serves fresh data.
    Fresh,
    /// How much a server serves.
    Serving,
}

impl About {
    /// The page that says it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Fresh => "/mox/fresh",
            Self::Serving => "/mox/serving",
        }
    }
}

/// An answer as it came from wherever it was asked for.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// HTTP status; 0: there is no answer.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The answers that count, put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// How many servers are fresh.
    pub fresh: usize,
    /// Of the server that serves the most services; `None`: none says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<Totals>,
    /// How many answers would count if they were signed.
    pub unsigned: usize,
}

/// A server's part in these talks.
#[derive(Debug)]
pub struct Peers {
    /// `None`: the token is none, or too short to sign with.
    key: Option<hmac::Key>,
}

impl Peers {
    /// With the token that all session servers share; empty for none.
    pub fn new(token: &[u8]) -> Self {
        Self { key: (token.len() >= LEAST_TOKEN).then(|| hmac::Key::new(hmac::HMAC_SHA256, token)) }
    }

    /// The path and query of a question that was never asked before.
    pub fn question(&self, about: About) -> Result<String> {
        self.target(about.path())
    }

    /// The same for any page that is signed.
    pub fn target(&self, path: &str) -> Result<String> {
        let mut nonce = [0; NONCE_BYTES];
        let random = SystemRandom::new().fill(&mut nonce);
        random.map_err(|_| Error::Internal("the operating system gives no random bytes".to_owned()))?;
        Ok(format!("{path}?{NONCE}={}", hex(&nonce)))
    }

    /// What the answer to a question says, if it counts.
    pub fn said<'b>(&self, target: &str, body: &'b str) -> Option<&'b str> {
        let (said, signature) = parts(body);
        let verifies =
            |key: &hmac::Key| signature.is_some_and(|tag| hmac::verify(key, &message(target, said), &tag).is_ok());
        self.key.as_ref().is_none_or(verifies).then_some(said)
    }

    /// An answer with its signature, where the question has a number. Whoever has no number is a person, or an older release.
    pub fn sign(&self, path: &str, query: &str, page: Page) -> Page {
        let is_number = |text: &str| text.len() == 2 * NONCE_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let nonce = query.strip_prefix(NONCE).and_then(|rest| rest.strip_prefix('='));
        match (&self.key, nonce) {
            (Some(key), Some(nonce)) if page.status == 200 && is_number(nonce) => {
                let tag = hmac::sign(key, &message(&format!("{path}?{query}"), &page.body));
                let body = format!("{}{SIGNED}{}\n", page.body, hex(tag.as_ref()));
                Page { body, content_type: "text/plain; charset=utf-8", ..page }
            }
            _ => page,
        }
    }

    /// Puts together what the answers to a question say.
    pub fn hear(&self, about: About, target: &str, answers: &[Answer]) -> Heard {
        let mut heard = Heard::default();
        for Answer { body, .. } in answers.iter().filter(|answer| answer.status == 200) {
            let (said, _) = parts(body);
            let (is_fresh, serving) = match about {
                About::Fresh => (said == FRESH, None),
                About::Serving => (false, serving(said)),
            };
            if !is_fresh && serving.is_none() {
                continue;
            }
            if self.said(target, body).is_none() {
                heard.unsigned += 1;
                continue;
            }
            heard.fresh += usize::from(is_fresh);
            let most = |serving: &Totals| heard.serving.is_none_or(|most| serving.services > most.services);
            heard.serving = serving.filter(most).or(heard.serving);
        }
        heard
    }
}

/// What an answer says, and its signature.
fn parts(body: &str) -> (&str, Option<[u8; 32]>) {
    let line = body.strip_suffix('\n').and_then(|body| Some((body.rfind('\n')? + 1, body.len())));
    let signed = line.and_then(|(start, end)| Some((start, body.get(start..end)?.strip_prefix(SIGNED)?)));
    match signed.and_then(|(start, tag)| Some((&body[..start], from_hex(tag)?))) {
        Some((said, tag)) => (said, Some(tag)),
        None => (body, None),
    }
}

/// How much a server serves; numbers that no server reaches are none.
fn serving(said: &str) -> Option<Totals> {
    let mut numbers: BTreeMap<String, u32> = serde_json::from_str(said).ok()?;
    let (services, endpoints) = (numbers.remove("services")?, numbers.remove("endpoints")?);
    numbers.is_empty().then_some(Totals { services: services as usize, endpoints: endpoints as usize })
}

fn message(target: &str, said: &str) -> Vec<u8> {
    let mut message = format!("{PURPOSE}\n{target}\n").into_bytes();
    message.extend_from_slice(digest::digest(&digest::SHA256, said.as_bytes()).as_ref());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &[u8] = b"open sesame 1234";
    const SERVING: &str = "{\n  \"services\": 3,\n  \"endpoints\": 9\n}\n";

    fn answer(body: impl Into<String>) -> Answer {
        Answer { status: 200, body: body.into() }
    }

    fn said(by: &Peers, target: &str, body: &str) -> Answer {
        let (path, query) = target.split_once('?').unwrap();
        answer(by.sign(path, query, Page::text(200, body.to_owned())).body)
    }

    #[test]
    fn only_who_has_the_token_is_believed_and_only_for_the_question() {
        let (peers, other) = (Peers::new(TOKEN), Peers::new(b"another token 12"));
        let [one, two] = [(); 2].map(|()| peers.question(About::Fresh).unwrap());
        assert_ne!(one, two);
        let good = said(&peers, &one, FRESH);
        assert_eq!(peers.hear(About::Fresh, &one, std::slice::from_ref(&good)), Heard { fresh: 1, ..Heard::default() });
        for liar in
            [answer(FRESH), said(&other, &one, FRESH), said(&peers, &two, FRESH), answer(good.body.replace('a', "b"))]
        {
            let heard = peers.hear(About::Fresh, &one, std::slice::from_ref(&liar));
            let shows =
                usize::from(liar.body.starts_with(FRESH) && (liar.body == FRESH || parts(&liar.body).1.is_some()));
            assert_eq!(heard, Heard { unsigned: shows, ..Heard::default() }, "{liar:?}");
        }
        let failed = Answer { status: 503, ..good };
        assert_eq!(peers.hear(About::Fresh, &one, &[failed]), Heard::default());
    }

    #[test]
    fn the_one_that_serves_the_most_is_told() {
        let peers = Peers::new(TOKEN);
        let target = peers.question(About::Serving).unwrap();
        let more = SERVING.replace('3', "30");
        let all = [SERVING, &more, "{\"services\": 400, \"endpoints\": 400}"];
        let mut answers: Vec<Answer> = all.iter().map(|body| said(&peers, &target, body)).collect();
        answers[2].body = all[2].to_owned();
        let heard = peers.hear(About::Serving, &target, &answers);
        assert_eq!(heard.serving, Some(Totals { services: 30, endpoints: 9 }));
        assert_eq!((heard.fresh, heard.unsigned), (0, 1));
        assert_eq!(peers.hear(About::Fresh, &target, &answers), Heard::default(), "an answer to another question");
    }

    #[test]
    fn without_a_token_every_whole_answer_counts() {
        for token in [&b""[..], b"fifteen bytes!!"] {
            let peers = Peers::new(token);
            let target = peers.question(About::Serving).unwrap();
            assert_eq!(said(&peers, &target, SERVING).body, SERVING, "nothing is signed");
            let signed = said(&Peers::new(TOKEN), &target, SERVING);
            let heard = peers.hear(About::Serving, &target, &[answer(SERVING), signed]);
            assert_eq!(heard.serving, Some(Totals { services: 3, endpoints: 9 }));
            for none in [
                "",
                "[]",
                "[1, 2]",
                "{}",
                "{\"services\": -1, \"endpoints\": 2}",
                "{\"services\": 1e9, \"endpoints\": 2}",
            ] {
                assert_eq!(peers.hear(About::Serving, &target, &[answer(none)]), Heard::default(), "{none}");
            }
            let huge = "{\"services\": 99999999999, \"endpoints\": 2}";
            let more = "{\"services\": 1, \"endpoints\": 2, \"op\": \"loaded\"}";
            assert_eq!(peers.hear(About::Serving, &target, &[answer(huge), answer(more)]), Heard::default());
        }
    }

    #[test]
    fn what_has_no_number_is_not_signed() {
        let peers = Peers::new(TOKEN);
        let long = format!("nonce={}", "a".repeat(1_000));
        let number = format!("nonce={}", "a".repeat(32));
        let twice = format!("{number}&{number}");
        for query in ["", "nonce", "nonce=", "nonce=1234", "x=1", &long, &number.replace('a', "g"), &twice] {
            assert_eq!(peers.sign("/mox/fresh", query, Page::text(200, FRESH.to_owned())).body, FRESH, "{query}");
        }
        let not = Page::text(503, "not fresh\n".to_owned());
        assert_eq!(peers.sign("/mox/fresh", &number, not).body, "not fresh\n");
        assert!(peers.sign("/mox/fresh", &number, Page::text(200, FRESH.to_owned())).body.contains(SIGNED));
    }
}
