//! The hot messages in their encoded form.
//!
//! The server hashes, stores and sends events as the bytes they are; decoding each into a message
//! and encoding it again would be most of its work. These types stand in the generated service trait
//! for `PublishRequest`, `StreamingPublishRequest` and their hot responses, and carry the same bytes.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType},
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
