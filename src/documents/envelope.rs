//! The form of a document in the store: signed, so that nobody who reaches the database or meta's HTTP port can write one, and
//! packed where it is large, since the meta leader reads every row each 3 s.
//!
//! A row is JSON, or the prefix `gzip:` and the base64 of that JSON, gzipped. The signature is over the bytes of the content as
//! they stand in the text, so no two releases have to write JSON alike.

use std::io::{Read, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    digest::{from_hex, hex},
    documents::Name,
    error::quoted,
    model::Millis,
};

/// The most bytes of a row.
pub const MOST_ROW: usize = 64 << 10;
/// JSON of more bytes is packed.
const PACKED_ABOVE: usize = 16 << 10;
/// The most bytes of a packed row's JSON.
const MOST_TEXT: usize = 4 << 20;
/// How a packed row begins.
const PACKED: &str = "gzip:";
/// The number of this form; another release may have another.
const SCHEMA: u64 = 1;
/// The first line of what is signed: the token signs other things, too.
const PURPOSE: &str = "registry-mox document 1";
/// Nobody counts that far: a higher revision in a row that does not verify is not believed.
pub(super) const MOST_CLAIMED: u64 = 1 << 48;

/// Who wrote a document, when by the writer's clock, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stamp {
    /// As the operator says, or which part of this project.
    pub by: String,
    /// Milliseconds since 1970. For people only: documents are ordered by their revisions.
    pub when: Millis,
    /// The operator's reason; empty where none was given.
    pub why: String,
}

/// A document as it stands in a row.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope<'a> {
    schema: u64,
    name: String,
    revision: u64,
    by: String,
    when: Millis,
    why: String,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(default)]
    mac: Option<String>,
}

/// A document that verifies, its content not looked at yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) revision: u64,
    pub(super) stamp: Stamp,
    /// JSON.
    pub(super) content: String,
}

/// Why a row is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The row has more than 64 KiB, or a packed one more than 4 MiB.
    TooLarge,
    /// The row is not in the form of a document.
    Malformed,
    /// The row is in a form of another release.
    Schema,
    /// The row has no signature.
    Unsigned,
    /// The row's signature is not by this server's `mox.admin.token`.
    Signature,
    /// The row is another document than the row's name says.
    Name,
    /// The row's revision is lower than one that was there, or that of the document in force, which it is not: somebody put an
    /// old document back, or one that another writer was faster than.
    Older,
    /// The row's content has keys or values that this release does not take.
    Content,
    /// The row's version, by which it is compared and set, is not positive or the highest that there is: nothing can be written
    /// over it.
    Version,
    /// The row has vanished, and this server cannot put it back, since it could not read it.
    Gone,
}

impl Reason {
    /// All, for the metrics.
    pub const ALL: [Self; 10] = [
        Self::TooLarge,
        Self::Malformed,
        Self::Schema,
        Self::Unsigned,
        Self::Signature,
        Self::Name,
        Self::Older,
        Self::Content,
        Self::Version,
        Self::Gone,
    ];

    /// Whether a release may have written it that knows more than this one.
    pub(super) fn is_newer_release(self) -> bool {
        matches!(self, Self::Schema | Self::Content)
    }
}

/// A row that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The mistake, and the remedy.
    pub detail: String,
    /// The revision that the row says it has, whoever wrote it; 0 where it says none.
    pub revision: u64,
}

impl Refusal {
    /// Without the row's revision.
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), revision: 0 }
    }
}

/// Writes a document as a row; `None`: it would have more bytes than a row may have.
pub(super) fn seal(
    key: &hmac::Key,
    name: Name,
    revision: u64,
    stamp: &Stamp,
    content: &impl Serialize,
) -> Option<String> {
    let content = serde_json::value::to_raw_value(content).ok()?;
    let mac = hmac::sign(key, &message(name, revision, stamp, content.get()));
    let Stamp { by, when, why } = stamp.clone();
    let name = name.as_str().to_owned();
    let mac = Some(hex(mac.as_ref()));
    let envelope = Envelope { schema: SCHEMA, name, revision, by, when, why, content: &content, mac };
    let text = serde_json::to_string(&envelope).ok().filter(|text| text.len() <= MOST_TEXT)?;
    let text = if text.len() > PACKED_ABOVE { pack(&text)? } else { text };
    (text.len() <= MOST_ROW).then_some(text)
}

/// Reads a row, and verifies that it is the document of this name, signed by the key.
pub(super) fn open(key: &hmac::Key, name: Name, row: &str) -> Result<Opened, Refusal> {
    let text = unpack(row)?;
    let malformed = |error: serde_json::Error| {
        Refusal::new(Reason::Malformed, format!("it is no document: {error}; write documents by POST /mox/… only"))
    };
    let head: Head = serde_json::from_str(&text).map_err(malformed)?;
    if head.schema != SCHEMA {
        let what = format!("its schema is {}, this release reads {SCHEMA}; upgrade this session server", head.schema);
        return Err(Refusal::new(Reason::Schema, what));
    }
    let Envelope { name: named, revision, by, when, why, content, mac, .. } =
        serde_json::from_str(&text).map_err(malformed)?;
    let stamp = Stamp { by, when, why };
    let Some(mac) = mac else {
        return Err(Refusal::new(Reason::Unsigned, "it has no signature; write documents by POST /mox/… only"));
    };
    if named != name.as_str() {
        let what = format!("it is the document {}, and not {:?}; write it anew", quoted(&named), name.as_str());
        return Err(Refusal::new(Reason::Name, what));
    }
    let signature = from_hex(&mac).map(Vec::from).unwrap_or_default();
    if hmac::verify(key, &message(name, revision, &stamp, content.get()), &signature).is_err() {
        return Err(Refusal::new(
            Reason::Signature,
            "its signature does not fit: it was changed, or mox.admin.token was another where it was written; write it anew",
        ));
    }
    Ok(Opened { revision, stamp, content: content.get().to_owned() })
}

/// The revision that a row says it has, whoever wrote it; 0 where it says none.
pub(super) fn claimed(row: &str) -> u64 {
    let head = unpack(row).ok().and_then(|text| serde_json::from_str::<Head>(&text).ok());
    head.map(|head| head.revision).filter(|revision| *revision < MOST_CLAIMED).unwrap_or_default()
}

/// The part that every form has.
#[derive(Deserialize)]
struct Head {
    schema: u64,
    #[serde(default)]
    revision: u64,
}

fn message(name: Name, revision: u64, stamp: &Stamp, content: &str) -> Vec<u8> {
    let Stamp { by, when, why } = stamp;
    let mut message = format!("{PURPOSE}\n{}\n{revision}\n{when}\n", name.as_str()).into_bytes();
    for part in [by, why, content] {
        message.extend_from_slice(digest::digest(&digest::SHA256, part.as_bytes()).as_ref());
    }
    message
}

fn pack(text: &str) -> Option<String> {
    // No time and no name in its head, so that equal documents are equal rows.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).ok()?;
    Some(format!("{PACKED}{}", STANDARD.encode(encoder.finish().ok()?)))
}

fn unpack(row: &str) -> Result<std::borrow::Cow<'_, str>, Refusal> {
    if row.len() > MOST_ROW {
        let what = format!("it has more than {MOST_ROW} bytes; write a smaller one");
        return Err(Refusal::new(Reason::TooLarge, what));
    }
    let Some(packed) = row.strip_prefix(PACKED) else { return Ok(row.into()) };
    let malformed =
        |what: String| Refusal::new(Reason::Malformed, format!("{what}; write documents by POST /mox/… only"));
    let bytes = STANDARD.decode(packed).map_err(|error| malformed(format!("it is no base64: {error}")))?;
    let mut text = String::new();
    let mut decoder = GzDecoder::new(&*bytes).take(MOST_TEXT as u64 + 1);
    decoder.read_to_string(&mut text).map_err(|error| malformed(format!("it is no gzip of a text: {error}")))?;
    if text.len() > MOST_TEXT {
        let what = format!("unpacked it has more than {MOST_TEXT} bytes; write a smaller one");
        return Err(Refusal::new(Reason::TooLarge, what));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(token: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes())
    }

    fn stamp() -> Stamp {
        Stamp { by: "ann".into(), when: 1_700_000_000_000, why: "shop moves".into() }
    }

    fn reason(row: &str) -> Reason {
        open(&key("open sesame 1234"), Name::Policy, row).unwrap_err().reason
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let key = key("open sesame 1234");
        for (size, is_packed) in [(10, false), (40_000, true)] {
            let content = json!({ "policy": { "exclude": ["x".repeat(size)] }, "number": 0.1 });
            let row = seal(&key, Name::Policy, 7, &stamp(), &content).unwrap();
            assert_eq!(row.starts_with(PACKED), is_packed);
            assert_eq!(row, seal(&key, Name::Policy, 7, &stamp(), &content).unwrap());
            let opened = open(&key, Name::Policy, &row).unwrap();
            assert_eq!((opened.revision, opened.stamp), (7, stamp()));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&opened.content).unwrap(), content);
            assert_eq!(claimed(&row), 7);
        }
    }

    #[test]
    fn whatever_is_changed_of_a_row_it_is_refused() {
        let row = seal(&key("open sesame 1234"), Name::Policy, 7, &stamp(), &json!({ "policy": null })).unwrap();
        for (from, to) in [
            ("\"revision\":7", "\"revision\":8"),
            ("\"policy\":null", "\"policy\":{}"),
            ("\"policy\":null", "\"policy\": null"),
            ("ann", "bob"),
            ("shop moves", ""),
            ("1700000000000", "1700000000001"),
            ("\"mac\":\"", "\"mac\":\"0"),
        ] {
            assert!(row.contains(from), "{row}");
            assert_eq!(reason(&row.replace(from, to)), Reason::Signature, "{from} -> {to}");
        }
        assert_eq!(open(&key("open sesame 1235"), Name::Policy, &row).unwrap_err().reason, Reason::Signature);
        assert_eq!(open(&key("open sesame 1234"), Name::Orders, &row).unwrap_err().reason, Reason::Name);
        assert_eq!(reason(&row.replace("\"name\":\"policy\"", "\"name\":\"orders\"")), Reason::Name);
        assert_eq!(reason(&row.replace("\"schema\":1", "\"schema\":2,\"more\":1")), Reason::Schema);
        assert_eq!(reason(&row.replace("\"schema\":1", "\"schema\":1,\"more\":1")), Reason::Malformed);
        let unsigned = row.split(",\"mac\"").next().unwrap().to_owned() + "}";
        assert_eq!(reason(&unsigned), Reason::Unsigned);
        for odd in ["", "null", "{}", "[]", "gzip:", "gzip:!", "gzip:AAAA", &row[..row.len() - 1]] {
            assert_eq!(reason(odd), Reason::Malformed, "{odd}");
        }
    }

    #[test]
    fn what_is_too_large_is_neither_written_nor_read() {
        let key = key("open sesame 1234");
        // Digits of a hash do not pack to less than half.
        let noise: Vec<String> =
            (0..4_000).map(|n: u32| hex(&crate::digest::prefix_of::<32>(n.to_be_bytes()))).collect();
        assert!(seal(&key, Name::Policy, 1, &stamp(), &noise).is_none());
        assert_eq!(reason(&"x".repeat(MOST_ROW + 1)), Reason::TooLarge);
        // A small row of many zeros.
        let bomb = pack(&" ".repeat(MOST_TEXT + 1)).unwrap();
        assert!(bomb.len() < MOST_ROW);
        assert_eq!(reason(&bomb), Reason::TooLarge);
    }

    #[test]
    fn nobody_has_the_revisions_used_up() {
        for (text, revision) in [
            (r#"{"schema":1,"revision":9}"#, 9),
            (r#"{"schema":5,"revision":9,"more":[]}"#, 9),
            (r#"{"schema":1,"revision":18446744073709551615}"#, 0),
            (r#"{"schema":1,"revision":281474976710655}"#, (1 << 48) - 1),
            (r#"{"schema":1,"revision":281474976710656}"#, 0),
            (r#"{"schema":1,"revision":-1}"#, 0),
            ("none", 0),
        ] {
            assert_eq!(claimed(text), revision, "{text}");
        }
    }
}
