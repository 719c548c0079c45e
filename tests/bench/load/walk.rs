//! Reads a gRPC stream of discovery responses as it arrives, in pieces of any size, and looks at no more of it than
//! is wanted: a full state of the world is megabytes, of which one resource is of interest.

use prost::bytes::Buf;

/// So much of a resource is shown before it is decided whether it is wanted: its name is in there.
pub(crate) const HEAD: usize = 256;

/// Fields of DiscoveryResponse and of DeltaDiscoveryResponse; these are the same in both.
const VERSION: u64 = 1;
const RESOURCES: u64 = 2;
const TYPE_URL: u64 = 4;
const NONCE: u64 = 5;
/// Of DeltaDiscoveryResponse; in the other it is something else.
const REMOVED: u64 = 6;

/// Takes what is read.
pub(crate) trait Sink {
    /// The first byte of a message is here.
    fn begin(&mut self);
    /// Whether a resource is to be shown whole.
    fn wanted(&mut self, head: &[u8]) -> bool;
    /// A whole resource: the value of the field.
    fn resource(&mut self, bytes: &[u8]) -> Result<(), String>;
    /// A message is complete.
    fn end(&mut self, message: Message) -> Result<(), String>;
}

/// A message without its resources: its fields, and how many resources and bytes there were.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) type_url: String,
    pub(crate) version: String,
    pub(crate) nonce: String,
    pub(crate) resources: usize,
    /// With delta only.
    pub(crate) removed: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
enum Stage {
    /// Five bytes of gRPC.
    Prefix,
    Tag,
    Length {
        field: u64,
    },
    Value {
        field: u64,
        left: usize,
        keep: Keep,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Keep {
    Undecided,
    All,
    Nothing,
}

/// Where in the stream the reader is.
#[derive(Debug)]
pub(crate) struct Walk {
    stage: Stage,
    /// Bytes of this message that are still to come.
    left: usize,
    kept: Vec<u8>,
    message: Message,
}

impl Walk {
    pub(crate) fn new() -> Self {
        Self { stage: Stage::Prefix, left: 0, kept: Vec::new(), message: Message::default() }
    }

    /// Reads the next piece.
    pub(crate) fn feed(&mut self, mut piece: &[u8], sink: &mut impl Sink) -> Result<(), String> {
        while !piece.is_empty() {
            match self.stage {
                Stage::Prefix => {
                    if self.kept.is_empty() {
                        sink.begin();
                    }
                    let take = piece.len().min(5 - self.kept.len());
                    self.kept.extend(&piece[..take]);
                    piece.advance(take);
                    if self.kept.len() < 5 {
                        continue;
                    }
                    let mut prefix = &self.kept[..];
                    if prefix.get_u8() != 0 {
                        return Err("a compressed message".to_owned());
                    }
                    self.left = prefix.get_u32() as usize;
                    self.kept.clear();
                    self.message = Message { bytes: self.left + 5, ..Message::default() };
                    self.stage = Stage::Tag;
                    self.finish(sink)?;
                }
                Stage::Tag => {
                    let Some(tag) = self.varint(&mut piece)? else { continue };
                    if tag & 7 != 2 {
                        return Err(format!("field {} has wire type {}", tag >> 3, tag & 7));
                    }
                    self.stage = Stage::Length { field: tag >> 3 };
                }
                Stage::Length { field } => {
                    let Some(length) = self.varint(&mut piece)? else { continue };
                    let keep = if field == RESOURCES { Keep::Undecided } else { Keep::All };
                    self.message.resources += usize::from(field == RESOURCES);
                    self.message.removed += usize::from(field == REMOVED);
                    if length > self.left as u64 {
                        return Err("a field crosses the end of its message".to_owned());
                    }
                    self.stage = Stage::Value { field, left: length as usize, keep };
                    if length == 0 {
                        self.value(field, sink, &[])?;
                        self.finish(sink)?;
                    }
                }
                Stage::Value { field, left, keep } => {
                    let take = left.min(piece.len());
                    let (here, later) = piece.split_at(take);
                    piece = later;
                    self.left -= take;
                    if self.kept.is_empty() && take == left && keep != Keep::Nothing {
                        // All of it lies in one piece: nothing is copied.
                        if keep == Keep::All || sink.wanted(&here[..take.min(HEAD)]) {
                            self.value(field, sink, here)?;
                        } else {
                            self.stage = Stage::Tag;
                        }
                        self.finish(sink)?;
                        continue;
                    }
                    let left = left - take;
                    let keep = match keep {
                        Keep::Undecided => {
                            self.kept.extend(here);
                            if self.kept.len() < HEAD && left > 0 {
                                Keep::Undecided
                            } else if sink.wanted(&self.kept[..self.kept.len().min(HEAD)]) {
                                Keep::All
                            } else {
                                self.kept.clear();
                                Keep::Nothing
                            }
                        }
                        Keep::All => {
                            self.kept.extend(here);
                            Keep::All
                        }
                        Keep::Nothing => Keep::Nothing,
                    };
                    self.stage = Stage::Value { field, left, keep };
                    if left == 0 {
                        if keep == Keep::All {
                            let kept = std::mem::take(&mut self.kept);
                            self.value(field, sink, &kept)?;
                        }
                        self.kept.clear();
                        self.stage = Stage::Tag;
                        self.finish(sink)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A number that may be cut anywhere.
    fn varint(&mut self, piece: &mut &[u8]) -> Result<Option<u64>, String> {
        while piece.has_remaining() {
            let byte = piece.get_u8();
            self.left = self.left.checked_sub(1).ok_or("a field crosses the end of its message")?;
            self.kept.push(byte);
            if byte & 0x80 == 0 {
                let value = prost::encoding::decode_varint(&mut &self.kept[..]).map_err(|error| error.to_string())?;
                self.kept.clear();
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn value(&mut self, field: u64, sink: &mut impl Sink, bytes: &[u8]) -> Result<(), String> {
        self.stage = Stage::Tag;
        let text = || String::from_utf8_lossy(bytes).into_owned();
        match field {
            RESOURCES => return sink.resource(bytes),
            VERSION => self.message.version = text(),
            TYPE_URL => self.message.type_url = text(),
            NONCE => self.message.nonce = text(),
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, sink: &mut impl Sink) -> Result<(), String> {
        if self.left == 0 && matches!(self.stage, Stage::Tag) {
            self.stage = Stage::Prefix;
            sink.end(std::mem::take(&mut self.message))?;
        }
        Ok(())
    }
}
