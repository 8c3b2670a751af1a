//! The frequent messages in their encoded form.
//!
//! The server hashes, stores and sends events as bytes; decoding each into a message and encoding it again
//! would be most of its work. These types replace `PublishRequest`, `StreamingPublishRequest` and their
//! frequent responses in the generated service trait, and carry the same bytes.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message, Oneof,
    encoding::{DecodeContext, WireType, bytes as bytes_field, skip_field},
};

/// An encoded `PublishRequest` or `StreamingPublishRequest`: both are `repeated Event events = 1`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawPublishRequest(pub Bytes);

impl From<Bytes> for RawPublishRequest {
    fn from(encoded: Bytes) -> Self {
        Self(encoded)
    }
}

/// An encoded `StreamingPublishResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawStreamingPublishResponse(pub Bytes);

/// An encoded `ListEventsResponse`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawListEventsResponse(pub Bytes);

macro_rules! raw_message {
    ($name:ident) => {
        impl Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.0);
            }

            fn encoded_len(&self) -> usize {
                self.0.len()
            }

            fn clear(&mut self) {
                self.0.clear();
            }

            fn merge(&mut self, mut buf: impl Buf) -> Result<(), DecodeError> {
                self.0 = buf.copy_to_bytes(buf.remaining());
                Ok(())
            }

            fn merge_field(
                &mut self,
                _tag: u32,
                _wire_type: WireType,
                _buf: &mut impl Buf,
                _ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                unreachable!("merge takes the message whole, and no message embeds this one")
            }
        }
    };
}

raw_message!(RawPublishRequest);
raw_message!(RawStreamingPublishResponse);
raw_message!(RawListEventsResponse);

/// An `oncelog.v1.Event` in any encoding, with its `Struct` left encoded.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AnyEvent {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(string, tag = "2")]
    pub event_id: String,
    #[prost(message, optional, tag = "3")]
    pub timestamp: Option<prost_types::Timestamp>,
    #[prost(string, tag = "4")]
    pub source: String,
    #[prost(oneof = "AnyPayload", tags = "5, 6, 8")]
    pub payload: Option<AnyPayload>,
    #[prost(btree_map = "string, string", tag = "7")]
    pub attributes: BTreeMap<String, String>,
}

/// The payload of an [`AnyEvent`].
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AnyPayload {
    #[prost(message, tag = "5")]
    Json(RawStruct),
    #[prost(bytes = "bytes", tag = "6")]
    Data(Bytes),
    #[prost(string, tag = "8")]
    JsonText(String),
}

/// An encoded `google.protobuf.Struct`, which is `map<string, Value> fields = 1`: its members in a row, in any order.
/// Several values of one field are merged, as in every decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RawStruct(pub Vec<u8>);

impl RawStruct {
    const FIELDS: u32 = 1;
}

impl Message for RawStruct {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != Self::FIELDS {
            return skip_field(wire_type, tag, buf, ctx);
        }
        let mut member = Bytes::new();
        bytes_field::merge(wire_type, &mut member, buf, ctx)?;
        bytes_field::encode(Self::FIELDS, &member, &mut self.0);
        Ok(())
    }
}
