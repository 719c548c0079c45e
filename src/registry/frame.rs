//! The packed frame: how events cross from Java, one `byte[]` a call.
//!
//! Format 1, integers little-endian, `str16` = `u16` length and UTF-8 bytes:
//!
//! ```text
//! frame     := u8 format(=1) | u8 zero | u16 eventCount | event…
//! publish   := u8 1 | str16 source | str16 dataInfoId | body
//! unpublish := u8 2 | i64 version | i64 registerTimestamp | str16 source | str16 dataInfoId | str16 registerId
//! lost      := u8 4, the rest as unpublish
//! replace   := u8 3 | i64 version | i64 readAgeMillis | str16 source | str16 dataInfoId | u32 bodyCount | body…
//! begin     := u8 5, the rest as replace | i64 read
//! append    := u8 6, the rest as begin
//! commit    := u8 7, the rest as begin
//! body      := u8 flags | i64 version | i64 registerTimestamp | str16 registerId | str16 cell | str16 appName
//!            | str16 sourceAddress, where the flags say so | u16 attributeCount | (str16 key, str16 value)… | u16 payloadCount | (u32 length, bytes)…
//! ```
//!
//! A read's age is how long before the frame was handed over it started: what a sender's and the engine's clock show is never
//! compared.
//!
//! A replace that is too large for one frame, or for what its sender keeps, comes in pieces: a begin, any number of appends
//! and a commit, with the same fields and a number of the sender's that no other read has. The pieces are applied when
//! the commit is in, as one replace with the bodies of all.
//!
//! A frame is decoded whole, without copies, before anything of it is applied. Java writes frames; `encode` does so for tests
//! and tools.

#[cfg(any(test, feature = "testing"))]
mod encode;

#[cfg(any(test, feature = "testing"))]
pub use encode::{Publisher, encode_lost, encode_piece, encode_publish, encode_replace, encode_unpublish};

use crate::{
    error::{Error, Result},
    model::{Millis, RegisterVersion},
};

/// The format this release reads.
pub const FORMAT: u8 = 1;
/// Longest dataInfoId, in bytes.
pub const MAX_DATA_INFO_ID: usize = 4_096;
/// Longest registerId, in bytes.
pub const MAX_REGISTER_ID: usize = 512;
/// Longest source name, in bytes.
pub const MAX_SOURCE: usize = 64;
/// Longest source address, in bytes: an IPv6 address in full, with a zone and a port.
pub const MAX_SOURCE_ADDRESS: usize = 128;
/// Largest payload (one `ServerDataBox`), in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Largest frame, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

const OP_PUBLISH: u8 = 1;
const OP_UNPUBLISH: u8 = 2;
const OP_REPLACE: u8 = 3;
const OP_LOST: u8 = 4;
const OP_BEGIN: u8 = 5;
const OP_APPEND: u8 = 6;
const OP_COMMIT: u8 = 7;

/// Set when payloads are Java-serialized strings, as a session server holds them; else they are UTF-8 text.
const FLAG_SERIALIZED: u8 = 1;
/// Set when it is known which address the publisher's client has.
const FLAG_SOURCE_ADDRESS: u8 = 2;

/// A text as it lies in a frame: UTF-8, but as bytes, since ids are hashed and compared far more often than read. ASCII,
/// the usual case, is checked several times faster than it becomes a `str`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    fn check(bytes: &'a [u8]) -> Option<Self> {
        (bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()).then_some(Self(bytes))
    }

    /// Its UTF-8.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Its characters.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).expect("a text is checked where it is made")
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

impl std::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// An event of a frame, borrowing from it.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A publisher came or changed.
    Publish {
        /// Who speaks: `registry` or an extension's name.
        source: Text<'a>,
        /// The service.
        data_info_id: Text<'a>,
        /// The publisher.
        body: Body<'a>,
    },
    /// A publisher went.
    Unpublish {
        /// Who speaks.
        source: Text<'a>,
        /// The service.
        data_info_id: Text<'a>,
        /// The publisher.
        register_id: Text<'a>,
        /// The version that it went at.
        version: RegisterVersion,
    },
    /// A publisher's client is gone; what becomes of the publisher is for the next read to say.
    Lost {
        /// Who speaks.
        source: Text<'a>,
        /// The service.
        data_info_id: Text<'a>,
        /// The publisher.
        register_id: Text<'a>,
        /// The version that its client had published.
        version: RegisterVersion,
    },
    /// A successful full read of one service in one source.
    Replace {
        /// Who speaks.
        source: Text<'a>,
        /// The service.
        data_info_id: Text<'a>,
        /// The datum's version.
        version: i64,
        /// How long ago the read started, in milliseconds.
        read_age: Millis,
        /// Every publisher that the read named.
        bodies: Vec<Body<'a>>,
    },
    /// Some publishers of a full read that comes in pieces.
    Piece {
        /// Which of the pieces.
        part: Part,
        /// Which of its sender's reads.
        read: i64,
        /// Who speaks.
        source: Text<'a>,
        /// The service.
        data_info_id: Text<'a>,
        /// The datum's version.
        version: i64,
        /// How long ago the read started, in milliseconds.
        read_age: Millis,
        /// The publishers of this piece.
        bodies: Vec<Body<'a>>,
    },
}

/// Where in its read a piece stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first; an unfinished read of the same service is forgotten.
    Begin,
    /// Neither the first nor the last.
    Append,
    /// The last: the read is applied.
    Commit,
}

/// A publisher as it lies in a frame, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// The publisher's id, unique in the cluster.
    pub register_id: Text<'a>,
    /// Orders the publisher's states.
    pub version: RegisterVersion,
    /// How many payloads it has.
    pub boxes: u16,
    raw: &'a [u8],
}

impl<'a> Body<'a> {
    /// The bytes from flags to the last payload, for keeping; [`Body::parse`] reads them again.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Reads bytes that [`Body::raw`] gave.
    pub fn parse(raw: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { bytes: raw, at: 0 };
        let body = reader.body()?;
        reader.end()?;
        Ok(body)
    }

    /// The registerId in bytes that [`Body::raw`] gave, without a look at the rest.
    pub fn register_id_in(raw: &[u8]) -> &[u8] {
        // Behind the flags and the version.
        let length =
            raw.get(17..19).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes));
        raw.get(19..19 + usize::from(length)).unwrap_or_default()
    }

    /// Everything in it.
    pub fn details(&self) -> Result<Details<'a>> {
        let mut reader = Reader { bytes: self.raw, at: 0 };
        let flags = reader.u8()?;
        reader.take(16, "version")?;
        reader.text("registerId")?;
        let cell = reader.text("cell")?.as_str();
        let app_name = reader.text("appName")?.as_str();
        let source_address = reader.source_address(flags)?.map_or("", Text::as_str);
        let attributes = (0..reader.u16()?)
            .map(|_| Ok((reader.text("attribute key")?.as_str(), reader.text("attribute value")?.as_str())))
            .collect::<Result<Vec<_>>>()?;
        let payloads = (0..reader.u16()?).map(|_| reader.payload()).collect::<Read<Vec<_>>>()?;
        let serialized = flags & FLAG_SERIALIZED != 0;
        Ok(Details { serialized, cell, app_name, source_address, attributes, payloads })
    }
}

/// The parts of a [`Body`] that only translation and the admin pages need.
#[derive(Debug, PartialEq, Eq)]
pub struct Details<'a> {
    /// Whether payloads are Java-serialized strings.
    pub serialized: bool,
    /// The zone of the client.
    pub cell: &'a str,
    /// The application that the client named, empty if none.
    pub app_name: &'a str,
    /// The address of the client's connection, with or without a port; empty if it is not known.
    pub source_address: &'a str,
    /// The publisher's attributes.
    pub attributes: Vec<(&'a str, &'a str)>,
    /// The publisher's data, an element per box.
    pub payloads: Vec<&'a [u8]>,
}

/// The events of a frame. A single event, the usual case, needs no allocation.
#[derive(Debug)]
pub struct Events<'a> {
    first: Option<Event<'a>>,
    rest: Vec<Event<'a>>,
}

impl Events<'_> {
    /// Whether there are several.
    pub fn is_batch(&self) -> bool {
        !self.rest.is_empty()
    }
}

impl<'a> IntoIterator for Events<'a> {
    type Item = Event<'a>;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Event<'a>>, std::vec::IntoIter<Event<'a>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

/// Decodes a whole frame.
pub fn decode(frame: &[u8]) -> Result<Events<'_>> {
    check_size("frame", frame.len(), MAX_FRAME)?;
    let mut reader = Reader { bytes: frame, at: 0 };
    if reader.u8()? != FORMAT {
        return Err(Error::MalformedFrame { at: 0, what: "format 1 (the jar and the library differ in version)" });
    }
    if reader.u8()? != 0 {
        return Err(Error::MalformedFrame { at: 1, what: "a zero byte" });
    }
    let count = reader.u16()?;
    let first = if count > 0 { Some(reader.event()?) } else { None };
    let rest = (1..count).map(|_| reader.event()).collect::<Read<Vec<_>>>()?;
    reader.end()?;
    Ok(Events { first, rest })
}

/// A reader's result: small, since an event takes dozens of reads and hardly ever fails.
type Read<T> = Result<T, Box<Error>>;

#[cold]
fn malformed(at: usize, what: &'static str) -> Box<Error> {
    Box::new(Error::MalformedFrame { at, what })
}

fn check_size(field: &'static str, actual: usize, limit: usize) -> Read<()> {
    if actual > limit { Err(Box::new(Error::TooLarge { field, actual, limit })) } else { Ok(()) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

// Inlined by order: each is a few instructions, and an event takes some thirty of them.
impl<'a> Reader<'a> {
    #[inline(always)]
    fn take(&mut self, n: usize, what: &'static str) -> Read<&'a [u8]> {
        match self.bytes[self.at..].split_at_checked(n) {
            Some((taken, _)) => {
                self.at += n;
                Ok(taken)
            }
            None => Err(malformed(self.at, what)),
        }
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self, what: &'static str) -> Read<[u8; N]> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(taken) => {
                self.at += N;
                Ok(*taken)
            }
            None => Err(malformed(self.at, what)),
        }
    }

    #[inline(always)]
    fn u8(&mut self) -> Read<u8> {
        Ok(u8::from_le_bytes(self.array("a byte")?))
    }

    #[inline(always)]
    fn u16(&mut self) -> Read<u16> {
        Ok(u16::from_le_bytes(self.array("a 16-bit count")?))
    }

    #[inline(always)]
    fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array("a 32-bit count")?))
    }

    #[inline(always)]
    fn i64(&mut self) -> Read<i64> {
        Ok(i64::from_le_bytes(self.array("a 64-bit number")?))
    }

    #[inline(always)]
    fn text(&mut self, what: &'static str) -> Read<Text<'a>> {
        let length = usize::from(self.u16()?);
        let at = self.at;
        Text::check(self.take(length, what)?).ok_or_else(|| malformed(at, what))
    }

    /// A name that has to be there and has a bound of its own.
    #[inline(always)]
    fn name(&mut self, what: &'static str, limit: usize) -> Read<Text<'a>> {
        let at = self.at;
        let name = self.text(what)?;
        check_size(what, name.0.len(), limit)?;
        if name.0.is_empty() { Err(malformed(at, what)) } else { Ok(name) }
    }

    #[inline(always)]
    fn payload(&mut self) -> Read<&'a [u8]> {
        let length = self.u32()? as usize;
        check_size("payload", length, MAX_PAYLOAD)?;
        self.take(length, "payload")
    }

    #[inline(always)]
    fn source_address(&mut self, flags: u8) -> Read<Option<Text<'a>>> {
        if flags & FLAG_SOURCE_ADDRESS == 0 {
            Ok(None)
        } else {
            self.name("sourceAddress", MAX_SOURCE_ADDRESS).map(Some)
        }
    }

    fn version(&mut self) -> Read<RegisterVersion> {
        Ok(RegisterVersion { version: self.i64()?, timestamp: self.i64()? })
    }

    fn event(&mut self) -> Read<Event<'a>> {
        let at = self.at;
        match self.u8()? {
            OP_PUBLISH => {
                let (source, data_info_id) = self.address()?;
                Ok(Event::Publish { source, data_info_id, body: self.body()? })
            }
            op @ (OP_UNPUBLISH | OP_LOST) => {
                let version = self.version()?;
                let (source, data_info_id) = self.address()?;
                let register_id = self.name("registerId", MAX_REGISTER_ID)?;
                Ok(match op {
                    OP_LOST => Event::Lost { source, data_info_id, register_id, version },
                    _ => Event::Unpublish { source, data_info_id, register_id, version },
                })
            }
            op @ (OP_REPLACE | OP_BEGIN | OP_APPEND | OP_COMMIT) => {
                let (version, read_age) = (self.i64()?, self.i64()?);
                let (source, data_info_id) = self.address()?;
                let bodies = (0..self.u32()?).map(|_| self.body()).collect::<Read<Vec<_>>>()?;
                let part = match op {
                    OP_BEGIN => Part::Begin,
                    OP_APPEND => Part::Append,
                    OP_COMMIT => Part::Commit,
                    _ => return Ok(Event::Replace { source, data_info_id, version, read_age, bodies }),
                };
                Ok(Event::Piece { part, read: self.i64()?, source, data_info_id, version, read_age, bodies })
            }
            _ => Err(malformed(at, "an op from 1 (publish) to 7 (commit)")),
        }
    }

    fn address(&mut self) -> Read<(Text<'a>, Text<'a>)> {
        Ok((self.name("source", MAX_SOURCE)?, self.name("dataInfoId", MAX_DATA_INFO_ID)?))
    }

    fn body(&mut self) -> Read<Body<'a>> {
        let start = self.at;
        let flags = self.u8()?;
        if flags & !(FLAG_SERIALIZED | FLAG_SOURCE_ADDRESS) != 0 {
            return Err(malformed(start, "known flags"));
        }
        let version = self.version()?;
        let register_id = self.name("registerId", MAX_REGISTER_ID)?;
        self.text("cell")?;
        self.text("appName")?;
        self.source_address(flags)?;
        for _ in 0..self.u16()? {
            self.text("attribute key")?;
            self.text("attribute value")?;
        }
        let boxes = self.u16()?;
        for _ in 0..boxes {
            self.payload()?;
        }
        Ok(Body { register_id, version, boxes, raw: &self.bytes[start..self.at] })
    }

    fn end(&self) -> Read<()> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(malformed(self.at, "the end of the frame")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher() -> Publisher<'static> {
        Publisher {
            register_id: "reg-1".into(),
            version: RegisterVersion { version: 3, timestamp: 1_700_000_000_000 },
            cell: "RZ1".into(),
            app_name: "shop".into(),
            source_address: "10.0.0.1:54321".into(),
            attributes: vec![("k".into(), "v".into())],
            serialized: false,
            payloads: vec![b"10.0.0.1:12200".as_slice().into(), b"".as_slice().into()],
        }
    }

    #[test]
    fn publish_survives_the_round_trip() {
        let frame = encode_publish("registry", "a#@#b#@#c", &publisher()).unwrap();
        let events: Vec<_> = decode(&frame).unwrap().into_iter().collect();
        let [Event::Publish { source, data_info_id, body }] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!([source.as_str(), data_info_id.as_str()], ["registry", "a#@#b#@#c"]);
        assert_eq!(body.register_id.as_str(), "reg-1");
        assert_eq!(Body::parse(body.raw()).unwrap(), *body);
        let details = body.details().unwrap();
        assert_eq!((details.cell, details.app_name, details.source_address), ("RZ1", "shop", "10.0.0.1:54321"));
        assert_eq!(details.attributes, [("k", "v")]);
        assert_eq!(details.payloads, [b"10.0.0.1:12200".as_slice(), b""]);
    }

    #[test]
    fn replace_and_unpublish_survive_the_round_trip() {
        let frame = encode_replace("ext", "id", 7, 42, &[publisher(), publisher()]).unwrap();
        let events: Vec<_> = decode(&frame).unwrap().into_iter().collect();
        assert!(matches!(&events[..], [Event::Replace { version: 7, read_age: 42, bodies, .. }] if bodies.len() == 2));
        for part in [Part::Begin, Part::Append, Part::Commit] {
            let frame = encode_piece((part, -9), "ext", "id", 7, 42, &[publisher()]).unwrap();
            let events: Vec<_> = decode(&frame).unwrap().into_iter().collect();
            let [Event::Piece { part: found, read: -9, version: 7, read_age: 42, bodies, .. }] = &events[..] else {
                panic!("{events:?}")
            };
            assert_eq!((*found, bodies.len()), (part, 1));
            assert_eq!(Body::register_id_in(bodies[0].raw()), b"reg-1");
            for end in 0..frame.len() {
                assert!(decode(&frame[..end]).is_err(), "cut at {end}");
            }
        }
        let version = RegisterVersion { version: 1, timestamp: 2 };
        let frame = encode_unpublish("ext", "id", "r", version).unwrap();
        let events: Vec<_> = decode(&frame).unwrap().into_iter().collect();
        assert_eq!(
            events,
            [Event::Unpublish { source: "ext".into(), data_info_id: "id".into(), register_id: "r".into(), version }]
        );
    }

    #[test]
    fn every_truncation_and_any_surplus_is_refused() {
        let mut frame = encode_publish("registry", "id", &publisher()).unwrap();
        for end in 0..frame.len() {
            assert!(matches!(decode(&frame[..end]), Err(Error::MalformedFrame { .. })), "cut at {end}");
        }
        frame.push(0);
        assert!(matches!(decode(&frame), Err(Error::MalformedFrame { what: "the end of the frame", .. })));
    }

    #[test]
    fn a_source_address_has_bounds() {
        let long = Publisher { source_address: "1".repeat(MAX_SOURCE_ADDRESS + 1).into(), ..publisher() };
        let frame = encode_publish("registry", "id", &long).unwrap();
        assert!(matches!(decode(&frame), Err(Error::TooLarge { field: "sourceAddress", actual: 129, limit: 128 })));
        // The flag says that there is an address, so an empty one would be another form of none.
        let short = Publisher { source_address: "1".into(), ..publisher() };
        let mut frame = encode_publish("registry", "id", &short).unwrap();
        let at = frame.windows(3).position(|bytes| bytes == [1, 0, b'1']).unwrap();
        frame.remove(at + 2);
        frame[at] = 0;
        assert!(matches!(decode(&frame), Err(Error::MalformedFrame { what: "sourceAddress", .. })));
    }

    #[test]
    fn names_have_bounds() {
        let long = "x".repeat(MAX_DATA_INFO_ID + 1);
        let frame = encode_publish("registry", &long, &publisher()).unwrap();
        assert!(matches!(decode(&frame), Err(Error::TooLarge { field: "dataInfoId", actual: 4_097, limit: 4_096 })));
        let frame = encode_publish("", "id", &publisher()).unwrap();
        assert!(matches!(decode(&frame), Err(Error::MalformedFrame { what: "source", .. })));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, cut in 0usize..200, flip in 0usize..200, with: u8) {
            let _ = decode(&bytes);
            let mut frame = encode_publish("registry", "id", &publisher()).unwrap();
            let index = flip % frame.len();
            frame[index] ^= with;
            let end = frame.len() - cut % frame.len();
            let _ = decode(&frame[..end]);
        }
    }
}
