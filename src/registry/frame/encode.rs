//! Writes frames as Java does, for tests and tools.

use std::borrow::Cow;

use super::{
    FLAG_SERIALIZED, FLAG_SOURCE_ADDRESS, FORMAT, MAX_PAYLOAD, OP_APPEND, OP_BEGIN, OP_COMMIT, OP_LOST, OP_PUBLISH,
    OP_REPLACE, OP_UNPUBLISH, Part, check_size,
};
use crate::{
    error::Result,
    model::{Millis, RegisterVersion},
};

/// Bytes before the first event.
const HEADER: usize = 4;

/// A publisher to encode.
#[derive(Debug, Clone, Default)]
pub struct Publisher<'a> {
    /// The publisher's id.
    pub register_id: Cow<'a, str>,
    /// Orders the publisher's states.
    pub version: RegisterVersion,
    /// The zone of the client.
    pub cell: Cow<'a, str>,
    /// The application that the client named, empty if none.
    pub app_name: Cow<'a, str>,
    /// The address of the client's connection, with or without a port; empty if it is not known.
    pub source_address: Cow<'a, str>,
    /// The publisher's attributes.
    pub attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Whether payloads are Java-serialized strings.
    pub serialized: bool,
    /// The publisher's data.
    pub payloads: Vec<Cow<'a, [u8]>>,
}

/// Encodes one publish.
pub fn encode_publish(source: &str, data_info_id: &str, publisher: &Publisher<'_>) -> Result<Vec<u8>> {
    let mut writer = Writer::one_event(OP_PUBLISH);
    writer.address(source, data_info_id)?;
    writer.body(publisher)?;
    Ok(writer.0)
}

/// Encodes that one publisher's client is gone.
pub fn encode_lost(source: &str, data_info_id: &str, register_id: &str, version: RegisterVersion) -> Result<Vec<u8>> {
    let mut frame = encode_unpublish(source, data_info_id, register_id, version)?;
    if let Some(op) = frame.get_mut(HEADER) {
        *op = OP_LOST;
    }
    Ok(frame)
}

/// Encodes one unpublish.
pub fn encode_unpublish(
    source: &str,
    data_info_id: &str,
    register_id: &str,
    version: RegisterVersion,
) -> Result<Vec<u8>> {
    let mut writer = Writer::one_event(OP_UNPUBLISH);
    writer.i64s([version.version, version.timestamp]);
    writer.address(source, data_info_id)?;
    writer.str16("registerId", register_id)?;
    Ok(writer.0)
}

/// Encodes one replace.
pub fn encode_replace(
    source: &str,
    data_info_id: &str,
    version: i64,
    read_age: Millis,
    publishers: &[Publisher<'_>],
) -> Result<Vec<u8>> {
    encode_read(OP_REPLACE, source, data_info_id, [version, read_age], publishers).map(|writer| writer.0)
}

/// Encodes one piece of the sender's read of that number.
pub fn encode_piece(
    (part, read): (Part, i64),
    source: &str,
    data_info_id: &str,
    version: i64,
    read_age: Millis,
    publishers: &[Publisher<'_>],
) -> Result<Vec<u8>> {
    let op = match part {
        Part::Begin => OP_BEGIN,
        Part::Append => OP_APPEND,
        Part::Commit => OP_COMMIT,
    };
    let mut writer = encode_read(op, source, data_info_id, [version, read_age], publishers)?;
    writer.i64s([read]);
    Ok(writer.0)
}

fn encode_read(op: u8, source: &str, id: &str, versions: [i64; 2], publishers: &[Publisher<'_>]) -> Result<Writer> {
    let mut writer = Writer::one_event(op);
    writer.i64s(versions);
    writer.address(source, id)?;
    writer.0.extend((publishers.len() as u32).to_le_bytes());
    for publisher in publishers {
        writer.body(publisher)?;
    }
    Ok(writer)
}

struct Writer(Vec<u8>);

impl Writer {
    fn one_event(op: u8) -> Self {
        Self(vec![FORMAT, 0, 1, 0, op])
    }

    fn i64s<const N: usize>(&mut self, values: [i64; N]) {
        values.iter().for_each(|value| self.0.extend(value.to_le_bytes()));
    }

    fn count16(&mut self, field: &'static str, count: usize) -> Result<()> {
        check_size(field, count, usize::from(u16::MAX))?;
        self.0.extend((count as u16).to_le_bytes());
        Ok(())
    }

    fn str16(&mut self, field: &'static str, value: &str) -> Result<()> {
        self.count16(field, value.len())?;
        self.0.extend(value.as_bytes());
        Ok(())
    }

    fn address(&mut self, source: &str, data_info_id: &str) -> Result<()> {
        self.str16("source", source)?;
        self.str16("dataInfoId", data_info_id)
    }

    fn body(&mut self, publisher: &Publisher<'_>) -> Result<()> {
        let has_source = !publisher.source_address.is_empty();
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        self.0.push(flag(publisher.serialized, FLAG_SERIALIZED) | flag(has_source, FLAG_SOURCE_ADDRESS));
        self.i64s([publisher.version.version, publisher.version.timestamp]);
        self.str16("registerId", &publisher.register_id)?;
        self.str16("cell", &publisher.cell)?;
        self.str16("appName", &publisher.app_name)?;
        if has_source {
            self.str16("sourceAddress", &publisher.source_address)?;
        }
        self.count16("attributes", publisher.attributes.len())?;
        for (key, value) in &publisher.attributes {
            self.str16("attribute key", key)?;
            self.str16("attribute value", value)?;
        }
        self.count16("payloads", publisher.payloads.len())?;
        for payload in &publisher.payloads {
            check_size("payload", payload.len(), MAX_PAYLOAD)?;
            self.0.extend((payload.len() as u32).to_le_bytes());
            self.0.extend(payload.as_ref());
        }
        Ok(())
    }
}
