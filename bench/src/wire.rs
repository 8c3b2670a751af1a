//! gRPC messages, read field by field as they arrive, without building them.

use bytes::Buf;

use crate::Result;

/// Before every message: whether it is compressed, and its length.
/// Format: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
pub const PREFIX_LEN: usize = 5;
const VARINT: u64 = 0;
const LEN: u64 = 2;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// Receives the fields of a stream's messages.
pub trait Sink: Send {
    /// A field of the outermost message.
    fn field(&mut self, number: u64, value: Value<'_>) -> Result<()>;
    /// The message is complete.
    fn message_end(&mut self) -> Result<()>;
}

/// The messages of a stream, in pieces of any size.
#[derive(Debug, Default)]
pub struct Messages {
    /// The start of a prefix or field.
    carry: Vec<u8>,
    /// The rest of the message after the carry; `None` between messages.
    left: Option<usize>,
}

impl Messages {
    /// Passes everything that `piece` completes to `sink`. Copies only what crosses pieces.
    pub fn feed(&mut self, mut piece: &[u8], sink: &mut impl Sink) -> Result<()> {
        while !piece.is_empty() {
            if self.carry.is_empty() {
                let taken = self.take(piece, sink)?;
                piece.advance(taken);
                if taken == 0 {
                    self.carry.push(piece.get_u8());
                }
                continue;
            }
            let carry = std::mem::take(&mut self.carry);
            let missing = match self.left {
                None => PREFIX_LEN - carry.len(),
                Some(left) => field_len(&carry, left)?.map_or(1, |len| len - carry.len()),
            };
            let (now, later) = piece.split_at(missing.min(piece.len()));
            piece = later;
            self.carry = carry;
            self.carry.extend_from_slice(now);
            let whole = std::mem::take(&mut self.carry);
            if self.take(&whole, sink)? == 0 {
                self.carry = whole;
            }
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub fn is_between_messages(&self) -> bool {
        self.carry.is_empty() && self.left.is_none()
    }

    /// Takes the complete part off the front, and returns its length.
    fn take(&mut self, piece: &[u8], sink: &mut impl Sink) -> Result<usize> {
        let mut rest = piece;
        loop {
            let left = match self.left {
                Some(left) => left,
                None => {
                    let Some((prefix, after)) = rest.split_first_chunk::<PREFIX_LEN>() else {
                        break;
                    };
                    if prefix[0] != 0 {
                        return Err("a compressed message".into());
                    }
                    rest = after;
                    u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize
                }
            };
            self.left = Some(left);
            if left == 0 {
                self.left = None;
                sink.message_end()?;
                continue;
            }
            let Some(len) = field_len(rest, left)?.filter(|len| *len <= rest.len()) else {
                break;
            };
            let (mut field, after) = rest.split_at(len);
            let (number, value) = take_field(&mut field)?.ok_or("a field without end")?;
            sink.field(number, value)?;
            rest = after;
            self.left = Some(left - len);
        }
        Ok(piece.len() - rest.len())
    }
}

/// The length of the field at the front, if enough of it is there. It must end within `left`.
fn field_len(piece: &[u8], left: usize) -> Result<Option<usize>> {
    let mut rest = piece;
    let Some(tag) = take_varint(&mut rest) else {
        return Ok(None);
    };
    let Some(value) = take_varint(&mut rest) else {
        return Ok(None);
    };
    let mut len = piece.len() - rest.len();
    match tag & 7 {
        VARINT => {}
        LEN => len += usize::try_from(value)?,
        other => return Err(format!("wire type {other}").into()),
    }
    if len > left {
        return Err("a field that ends behind its message".into());
    }
    Ok(Some(len))
}

/// Splits one field off the front: its number and its value. `None` at the end.
pub fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, Value<'a>)>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let tag = take_varint(rest).ok_or("a tag without end")?;
    let value = take_varint(rest).ok_or("a value without end")?;
    let value = match tag & 7 {
        VARINT => Value::Varint(value),
        LEN => {
            let len = usize::try_from(value)?;
            let (bytes, after) = rest.split_at_checked(len).ok_or("a field without end")?;
            *rest = after;
            Value::Bytes(bytes)
        }
        other => return Err(format!("wire type {other}").into()),
    };
    Ok(Some((tag >> 3, value)))
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if *byte < 0x80 {
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Debug, PartialEq)]
    struct Seen(Vec<String>);

    impl Sink for Seen {
        fn field(&mut self, number: u64, value: Value<'_>) -> Result<()> {
            self.0.push(format!("{number}: {value:?}"));
            Ok(())
        }

        fn message_end(&mut self) -> Result<()> {
            self.0.push("end".to_owned());
            Ok(())
        }
    }

    #[test]
    fn pieces_of_any_size_are_the_same_messages() {
        let mut stream = Vec::new();
        for message in [
            &b"\x08\x96\x01\x12\x03abc\x0a\x00"[..],
            b"",
            b"\x12\x81\x01",
        ] {
            let mut message = message.to_vec();
            if message.len() == 3 {
                message.extend([7; 129]);
            }
            stream.push(0);
            stream.extend(u32::try_from(message.len()).expect("works").to_be_bytes());
            stream.extend(message);
        }
        let mut whole = Seen::default();
        let mut messages = Messages::default();
        messages.feed(&stream, &mut whole).expect("works");
        assert!(messages.is_between_messages());
        assert_eq!(
            whole.0[..5],
            [
                "1: Varint(150)",
                "2: Bytes([97, 98, 99])",
                "1: Bytes([])",
                "end",
                "end"
            ]
        );
        assert_eq!(whole.0.len(), 7);
        for size in 1..stream.len() {
            let mut seen = Seen::default();
            let mut messages = Messages::default();
            for piece in stream.chunks(size) {
                messages.feed(piece, &mut seen).expect("works");
            }
            assert!(messages.is_between_messages());
            assert_eq!(seen, whole, "in pieces of {size}");
        }
    }

    #[test]
    fn a_malformed_message_is_an_error() {
        for bad in [
            &b"\x01\0\0\0\0"[..],
            b"\0\0\0\0\x02\x0a\x05",
            b"\0\0\0\0\x02\x0d\0",
        ] {
            let mut seen = Seen::default();
            assert!(Messages::default().feed(bad, &mut seen).is_err());
        }
    }
}
