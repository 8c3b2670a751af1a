//! The payload of an event, and the single form of a JSON object in it.
//!
//! A JSON object is an encoded `google.protobuf.Struct` if doubles hold all its numbers, and canonical text
//! otherwise. So equal objects are equal bytes, whichever edge and form they come in.

use super::{
    form::JsonError,
    struct_json,
    structs::{self, StructForm},
    text::{self, Stop, TextForm},
};

/// The payload of an event, in its canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A JSON object as an encoded `google.protobuf.Struct`.
    Struct(&'a [u8]),
    /// A JSON object as canonical text, because a `Struct` cannot hold it.
    Text(&'a str),
    /// Opaque bytes.
    Data(&'a [u8]),
}

impl Payload<'_> {
    /// Whether this is the only form its content may have.
    pub(super) fn is_canonical(&self) -> bool {
        match *self {
            Self::Struct(encoded) => structs::is_canonical(encoded),
            Self::Text(text) => match Json::from_text(text, usize::MAX) {
                Ok(Json::Text(canonical)) => canonical == text,
                Ok(Json::Struct(_)) | Err(_) => false,
            },
            Self::Data(_) => true,
        }
    }

    /// Appends the JSON of a stored payload, on one line; null for bytes.
    pub fn write_json(&self, json: &mut Vec<u8>) {
        match *self {
            Self::Struct(encoded) => struct_json::write(encoded, json),
            Self::Text(text) => json.extend_from_slice(text.as_bytes()),
            Self::Data(_) => json.extend_from_slice(b"null"),
        }
    }
}

/// A JSON object in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// An encoded `google.protobuf.Struct`.
    Struct(Vec<u8>),
    /// Text: members sorted by name (as UTF-8 bytes, which sort like code points), no white space, numbers as written,
    /// strings as `JSON.stringify` writes them: escaping `"`, `\` and control characters below U+0020, these as `\b`,
    /// `\t`, `\n`, `\f`, `\r` or `\u00xx` with lower-case letters.
    Text(String),
}

impl Json {
    /// Reads the text of a JSON object whose canonical form takes at most `bytes_max` bytes.
    pub fn from_text(text: &str, bytes_max: usize) -> Result<Self, JsonError> {
        match text::read::<StructForm>(text, bytes_max) {
            Ok(encoded) => return Ok(Self::Struct(encoded)),
            Err(Stop::NotHeld) => {}
            Err(Stop::Error(error)) => return Err(error),
        }
        // Read again, for the rare case.
        match text::read::<TextForm>(text, bytes_max) {
            Ok(text) => Ok(Self::Text(
                String::from_utf8(text).expect("written as pieces of text"),
            )),
            Err(Stop::NotHeld) => unreachable!("text holds every number"),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// Reads a `google.protobuf.Struct` in any encoding. The canonical one is never longer.
    pub fn from_struct(encoded: &[u8]) -> Result<Self, JsonError> {
        structs::canonical(encoded).map(Self::Struct)
    }

    /// The payload with this object.
    pub fn as_payload(&self) -> Payload<'_> {
        match self {
            Self::Struct(encoded) => Payload::Struct(encoded),
            Self::Text(text) => Payload::Text(text),
        }
    }
}
