//! Fields of a `google.protobuf.Struct` in any encoding that a publisher's library may produce.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::form::JsonError;

/// The content of a field, by its wire type.
pub(super) enum Content<'a> {
    Varint(u64),
    Double(f64),
    Len(&'a [u8]),
    Other,
}

impl<'a> Content<'a> {
    pub fn varint(&self) -> Result<u64, JsonError> {
        match self {
            Self::Varint(value) => Ok(*value),
            Self::Double(_) | Self::Len(_) | Self::Other => Err(JsonError::NotStruct),
        }
    }

    pub fn double(&self) -> Result<f64, JsonError> {
        match self {
            Self::Double(value) => Ok(*value),
            Self::Varint(_) | Self::Len(_) | Self::Other => Err(JsonError::NotStruct),
        }
    }

    pub fn len(&self) -> Result<&'a [u8], JsonError> {
        match self {
            Self::Len(content) => Ok(content),
            Self::Varint(_) | Self::Double(_) | Self::Other => Err(JsonError::NotStruct),
        }
    }

    pub fn text(&self) -> Result<&'a str, JsonError> {
        std::str::from_utf8(self.len()?).map_err(|_| JsonError::NotStruct)
    }
}

/// Splits a field off the front of any encoding.
pub(super) fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u32, Content<'a>)>, JsonError> {
    let malformed = |_| JsonError::NotStruct;
    if rest.is_empty() {
        return Ok(None);
    }
    let (field, wire_type) = decode_key(rest).map_err(malformed)?;
    let content = match wire_type {
        WireType::Varint => Content::Varint(decode_varint(rest).map_err(malformed)?),
        WireType::SixtyFourBit => {
            let (number, after) = rest.split_first_chunk().ok_or(JsonError::NotStruct)?;
            *rest = after;
            Content::Double(f64::from_le_bytes(*number))
        }
        WireType::LengthDelimited => {
            let len = decode_varint(rest).map_err(malformed)?;
            let len = usize::try_from(len).map_err(|_| JsonError::NotStruct)?;
            let (content, after) = rest.split_at_checked(len).ok_or(JsonError::NotStruct)?;
            *rest = after;
            Content::Len(content)
        }
        WireType::StartGroup | WireType::EndGroup | WireType::ThirtyTwoBit => {
            skip_field(wire_type, field, rest, DecodeContext::default()).map_err(malformed)?;
            Content::Other
        }
    };
    Ok(Some((field, content)))
}
