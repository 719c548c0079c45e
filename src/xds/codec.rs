//! Requests in, responses out. A response's resources are encoded already and only written.

use bytes::{Buf, BufMut, Bytes};
use prost::{Message, encoding};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::proto::envoy::{config::core::v3::ControlPlane, service::discovery::v3::DiscoveryRequest};

/// A DiscoveryResponse whose resources are pages of a snapshot.
#[derive(Debug, Clone)]
pub struct Response {
    /// The type that was asked for, byte for byte.
    pub type_url: String,
    /// Version of the content.
    pub version: String,
    /// Unique on the stream.
    pub nonce: String,
    /// Encoded `resources` fields.
    pub pages: Vec<Bytes>,
}

/// Name of this server, the same everywhere.
const IDENTIFIER: &str = "registry-mox";

// Field numbers of envoy.service.discovery.v3.DiscoveryResponse; `pages` are field 2.
const VERSION_INFO: u32 = 1;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const CONTROL_PLANE: u32 = 6;

impl Response {
    fn encode(&self, buffer: &mut impl BufMut) {
        encoding::string::encode(VERSION_INFO, &self.version, buffer);
        self.pages.iter().for_each(|page| buffer.put_slice(page));
        encoding::string::encode(TYPE_URL, &self.type_url, buffer);
        encoding::string::encode(NONCE, &self.nonce, buffer);
        encoding::message::encode(CONTROL_PLANE, &ControlPlane { identifier: IDENTIFIER.to_owned() }, buffer);
    }

    /// Encoded size.
    pub fn size(&self) -> usize {
        self.pages.iter().map(Bytes::len).sum::<usize>() + self.type_url.len() + self.version.len() + 64
    }
}

/// The codec of the ADS stream.
#[derive(Debug, Default, Clone, Copy)]
pub struct AdsCodec;

impl Codec for AdsCodec {
    type Encode = Response;
    type Decode = DiscoveryRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AdsCodec {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, response: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(response.size());
        response.encode(buffer);
        Ok(())
    }
}

impl Decoder for AdsCodec {
    type Item = DiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DiscoveryRequest>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let request = DiscoveryRequest::decode(bytes);
        request.map(Some).map_err(|error| Status::invalid_argument(format!("no DiscoveryRequest: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::envoy::service::discovery::v3::DiscoveryResponse;

    #[test]
    fn a_response_decodes_as_the_protocols_message() {
        let response = Response { type_url: "a/b/c".into(), version: "v".into(), nonce: "7".into(), pages: Vec::new() };
        let mut buffer = Vec::new();
        response.encode(&mut buffer);
        assert!(buffer.len() <= response.size());
        let decoded = DiscoveryResponse::decode(buffer.as_slice()).unwrap();
        assert_eq!((decoded.type_url, decoded.version_info, decoded.nonce), ("a/b/c".into(), "v".into(), "7".into()));
        assert_eq!(decoded.control_plane.unwrap().identifier, "registry-mox");
    }
}
