//! JSON objects as `google.protobuf.Struct`: checked in place, made canonical, and written.
//!
//! Canonical as in [`encoding`](super::encoding), for JSON: an object is a map, so its members are sorted by name, each
//! once. Values outside JSON do not occur: numbers that are not finite, values without a kind. Format:
//! <https://protobuf.dev/reference/protobuf/google.protobuf/#struct>.

use std::borrow::Cow;

use super::{
    JSON_DEPTH_MAX,
    fields::next_field,
    form::{Form, JsonError, deeper},
    members::Members,
    number,
    protobuf::{
        FIXED64, LEN, NotCanonical, VARINT, close_field, len_tag, open_field, put_field, take_len,
        take_len_field, take_tag, take_varint,
    },
};

/// Tags of the fields of a `Value`: `number << 3 | wire type`.
const NULL_TAG: u8 = 1 << 3;
pub(super) const NUMBER_TAG: u8 = 2 << 3 | 1;
pub(super) const STRING_TAG: u8 = len_tag(3);
pub(super) const BOOL_TAG: u8 = 4 << 3;
pub(super) const STRUCT_TAG: u8 = len_tag(5);
pub(super) const LIST_TAG: u8 = len_tag(6);
/// A member of a `Struct`, an element of a `ListValue`: both are field 1.
const ITEM_TAG: u8 = len_tag(1);
/// Name and value within a member.
pub(super) const NAME_TAG: u8 = len_tag(1);
const VALUE_TAG: u8 = len_tag(2);

/// Whether `encoded` is the canonical encoding of a `google.protobuf.Struct`.
pub(super) fn is_canonical(encoded: &[u8]) -> bool {
    check_struct(encoded, JSON_DEPTH_MAX).is_ok()
}

fn check_struct(mut rest: &[u8], depth_left: u32) -> Result<(), NotCanonical> {
    let depth_left = deeper(depth_left).map_err(|_| NotCanonical)?;
    let mut last = None;
    while !rest.is_empty() {
        let (1, member) = take_len_field(&mut rest)? else {
            return Err(NotCanonical);
        };
        let name = Some(check_member(member, depth_left)?);
        if last >= name {
            return Err(NotCanonical);
        }
        last = name;
    }
    Ok(())
}

/// Checks an entry of the map, and returns its key.
fn check_member(mut rest: &[u8], depth_left: u32) -> Result<&[u8], NotCanonical> {
    let mut name: &[u8] = b"";
    let (mut field, mut value) = take_len_field(&mut rest)?;
    if field == 1 {
        if value.is_empty() {
            return Err(NotCanonical);
        }
        name = text(value)?;
        (field, value) = take_len_field(&mut rest)?;
    }
    if field != 2 || !rest.is_empty() {
        return Err(NotCanonical);
    }
    check_value(value, depth_left)?;
    Ok(name)
}

fn check_value(mut rest: &[u8], depth_left: u32) -> Result<(), NotCanonical> {
    match take_tag(&mut rest)? {
        (1, VARINT) => take_varint_upto(0, &mut rest)?,
        (2, FIXED64) => {
            let number;
            (number, rest) = rest.split_first_chunk().ok_or(NotCanonical)?;
            if !f64::from_le_bytes(*number).is_finite() {
                return Err(NotCanonical);
            }
        }
        (3, LEN) => _ = text(take_len(&mut rest)?)?,
        (4, VARINT) => take_varint_upto(1, &mut rest)?,
        (5, LEN) => check_struct(take_len(&mut rest)?, depth_left)?,
        (6, LEN) => check_list(take_len(&mut rest)?, depth_left)?,
        _ => return Err(NotCanonical),
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(NotCanonical)
    }
}

fn check_list(mut rest: &[u8], depth_left: u32) -> Result<(), NotCanonical> {
    let depth_left = deeper(depth_left).map_err(|_| NotCanonical)?;
    while !rest.is_empty() {
        let (1, value) = take_len_field(&mut rest)? else {
            return Err(NotCanonical);
        };
        check_value(value, depth_left)?;
    }
    Ok(())
}

fn text(value: &[u8]) -> Result<&[u8], NotCanonical> {
    match std::str::from_utf8(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(NotCanonical),
    }
}

fn take_varint_upto(max: u64, rest: &mut &[u8]) -> Result<(), NotCanonical> {
    match take_varint(rest) {
        Some(value) if value <= max => Ok(()),
        Some(_) | None => Err(NotCanonical),
    }
}

/// Reads any encoding of a `google.protobuf.Struct`, and writes the canonical one.
///
/// Like every decoder, it skips unknown fields, takes the last value of a repeated field, and merges messages. A
/// name that occurs twice in an object is refused: decoders would keep one of its values.
pub(super) fn canonical(encoded: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut out = Vec::with_capacity(encoded.len());
    put_members(encoded, JSON_DEPTH_MAX, &mut out)?;
    Ok(out)
}

fn put_members(mut encoded: &[u8], depth_left: u32, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let depth_left = deeper(depth_left)?;
    let mut members = Members::new();
    while let Some((field, content)) = next_field(&mut encoded)? {
        let (1, content) = (field, content) else {
            continue;
        };
        let (name, value) = member(content.len()?)?;
        let start = out.len();
        let starts = StructForm::open_member(name, out);
        put_value(value.as_deref().unwrap_or_default(), depth_left, out)?;
        StructForm::close_member(starts, out);
        members.add(name, start..out.len());
    }
    members.sort(out)
}

fn member(mut entry: &[u8]) -> Result<(&str, Merged<'_>), JsonError> {
    let (mut name, mut value) = ("", None);
    while let Some((field, content)) = next_field(&mut entry)? {
        match field {
            1 => name = content.text()?,
            2 => merge(&mut value, content.len()?),
            _ => {}
        }
    }
    Ok((name, value))
}

/// A message, perhaps in several parts.
type Merged<'a> = Option<Cow<'a, [u8]>>;

/// The encoding of a merged message is the concatenation of its parts.
fn merge<'a>(message: &mut Merged<'a>, part: &'a [u8]) {
    match message {
        None => *message = Some(Cow::Borrowed(part)),
        Some(whole) => whole.to_mut().extend_from_slice(part),
    }
}

/// The kind of a `Value`.
enum Kind<'a> {
    None,
    Null,
    Number(f64),
    Text(&'a str),
    Bool(bool),
    Struct(Merged<'a>),
    List(Merged<'a>),
}

fn put_value(mut value: &[u8], depth_left: u32, out: &mut Vec<u8>) -> Result<(), JsonError> {
    let mut kind = Kind::None;
    while let Some((field, content)) = next_field(&mut value)? {
        match (field, &mut kind) {
            (1, _) => {
                content.varint()?;
                kind = Kind::Null;
            }
            (2, _) => kind = Kind::Number(content.double()?),
            (3, _) => kind = Kind::Text(content.text()?),
            (4, _) => kind = Kind::Bool(content.varint()? != 0),
            (5, Kind::Struct(merged)) | (6, Kind::List(merged)) => merge(merged, content.len()?),
            (5, _) => kind = Kind::Struct(Some(Cow::Borrowed(content.len()?))),
            (6, _) => kind = Kind::List(Some(Cow::Borrowed(content.len()?))),
            _ => {}
        }
    }
    match kind {
        Kind::None => return Err(JsonError::NoKind),
        Kind::Null => StructForm::null(out),
        Kind::Number(number) if number.is_finite() => put_number(number, out),
        Kind::Number(_) => return Err(JsonError::NotFinite),
        Kind::Text(text) => StructForm::string(text, out),
        Kind::Bool(value) => StructForm::boolean(value, out),
        Kind::Struct(members) => {
            let start = StructForm::open_object(out);
            put_members(&members.unwrap_or_default(), depth_left, out)?;
            StructForm::close_object(start, out);
        }
        Kind::List(list) => {
            let depth_left = deeper(depth_left)?;
            let start = StructForm::open_list(out);
            let list = list.unwrap_or_default();
            let mut rest = &*list;
            while let Some((field, content)) = next_field(&mut rest)? {
                if field == 1 {
                    let element = StructForm::open_element(out);
                    put_value(content.len()?, depth_left, out)?;
                    StructForm::close_element(element, out);
                }
            }
            StructForm::close_list(start, out);
        }
    }
    Ok(())
}

/// The canonical encoding of a `Struct`.
pub(super) struct StructForm;

impl Form for StructForm {
    const ROOT_IS_BARE: bool = true;

    fn null(out: &mut Vec<u8>) {
        out.extend_from_slice(&[NULL_TAG, 0]);
    }

    fn boolean(value: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&[BOOL_TAG, value.into()]);
    }

    fn number(literal: &str, out: &mut Vec<u8>) -> bool {
        match number::held(literal) {
            Some(number) => {
                put_number(number, out);
                true
            }
            None => false,
        }
    }

    fn string(text: &str, out: &mut Vec<u8>) {
        put_field(STRING_TAG, text.as_bytes(), out);
    }

    fn open_list(out: &mut Vec<u8>) -> usize {
        open_field(LIST_TAG, out)
    }

    fn open_element(out: &mut Vec<u8>) -> usize {
        open_field(ITEM_TAG, out)
    }

    fn close_element(start: usize, out: &mut Vec<u8>) {
        close_field(start, out);
    }

    fn close_list(start: usize, out: &mut Vec<u8>) {
        close_field(start, out);
    }

    fn open_object(out: &mut Vec<u8>) -> usize {
        open_field(STRUCT_TAG, out)
    }

    fn open_member(name: &str, out: &mut Vec<u8>) -> [usize; 2] {
        let start = open_field(ITEM_TAG, out);
        // An empty name is a default value, and omitted.
        if !name.is_empty() {
            put_field(NAME_TAG, name.as_bytes(), out);
        }
        [start, open_field(VALUE_TAG, out)]
    }

    fn close_member([start, value]: [usize; 2], out: &mut Vec<u8>) {
        close_field(value, out);
        close_field(start, out);
    }

    fn close_object(start: usize, out: &mut Vec<u8>) {
        close_field(start, out);
    }
}

fn put_number(number: f64, out: &mut Vec<u8>) {
    out.push(NUMBER_TAG);
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Some(Kind::NullValue(0))),
            prop::num::f64::NORMAL.prop_map(|number| Some(Kind::NumberValue(number))),
            ".{0,4}".prop_map(|text| Some(Kind::StringValue(text))),
            any::<bool>().prop_map(|bool| Some(Kind::BoolValue(bool))),
        ];
        let leaf = leaf.prop_map(|kind| Value { kind });
        leaf.prop_recursive(4, 20, 4, |value| {
            let list = prop::collection::vec(value.clone(), 0..4);
            let members = prop::collection::btree_map(".{0,2}", value, 0..4);
            let kind = prop_oneof![
                list.prop_map(|values| Kind::ListValue(ListValue { values })),
                members.prop_map(|fields| Kind::StructValue(Struct { fields })),
            ];
            kind.prop_map(|kind| Value { kind: Some(kind) })
        })
    }

    fn any_struct() -> impl Strategy<Value = Struct> {
        prop::collection::btree_map(".{0,2}", any_value(), 0..4)
            .prop_map(|fields| Struct { fields })
    }

    proptest! {
        #[test]
        fn prost_output_is_canonical(json in any_struct()) {
            prop_assert!(is_canonical(&json.encode_to_vec()));
        }

        /// Any encoding accepted as canonical equals prost's.
        #[test]
        fn prost_writes_canonical_bytes_unchanged(
            json in any_struct(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<bool>(),
        ) {
            let mut encoded = json.encode_to_vec();
            if !encoded.is_empty() {
                let at = at.index(encoded.len());
                if cut { encoded.truncate(at) } else { encoded[at] = byte }
            }
            if is_canonical(&encoded) {
                let decoded = Struct::decode(&*encoded).expect("canonical is well-formed");
                prop_assert_eq!(decoded.encode_to_vec(), encoded);
            }
        }
    }

    #[test]
    fn other_encodings_are_recognized() {
        let member = |name: &[u8]| [b"\x0a\x07\x0a\x01", name, b"\x12\x02\x20\x01"].concat();
        let (a, b) = (member(b"a"), member(b"b"));
        assert!(is_canonical(&[&*a, &*b].concat()));
        for encoded in [
            [&*b, &*a].concat(),
            [&*a, &*a].concat(),
            // An empty name, an empty value, a value before its name, bool 2, null 1, two kinds.
            b"\x0a\x02\x0a\x00".to_vec(),
            b"\x0a\x02\x12\x00".to_vec(),
            b"\x0a\x07\x12\x02\x20\x01\x0a\x01a".to_vec(),
            b"\x0a\x04\x12\x02\x20\x02".to_vec(),
            b"\x0a\x04\x12\x02\x08\x01".to_vec(),
            b"\x0a\x06\x12\x04\x20\x01\x20\x01".to_vec(),
        ] {
            assert!(!is_canonical(&encoded), "{encoded:?}");
        }
    }

    fn nested(levels: usize) -> Struct {
        (1..levels).fold(Struct::default(), |json, _| {
            of("a", Kind::StructValue(json))
        })
    }

    fn of(name: &str, kind: Kind) -> Struct {
        let value = Value { kind: Some(kind) };
        Struct {
            fields: [(name.to_owned(), value)].into(),
        }
    }

    #[test]
    fn a_payload_nested_too_deep_is_refused() {
        let deepest = nested(JSON_DEPTH_MAX as usize).encode_to_vec();
        assert!(is_canonical(&deepest));
        assert_eq!(canonical(&deepest), Ok(deepest));
        for levels in [JSON_DEPTH_MAX as usize + 1, 1000] {
            let deeper = nested(levels).encode_to_vec();
            assert!(!is_canonical(&deeper));
            assert_eq!(canonical(&deeper), Err(JsonError::TooDeep));
        }
    }

    #[test]
    fn values_outside_json_are_refused() {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for number in numbers {
            let json = of("n", Kind::NumberValue(number)).encode_to_vec();
            assert!(!is_canonical(&json));
            assert_eq!(canonical(&json), Err(JsonError::NotFinite));
        }
        // An empty value, and a missing one.
        for json in [&b"\x0a\x05\x0a\x01a\x12\x00"[..], b"\x0a\x03\x0a\x01a"] {
            assert!(!is_canonical(json));
            assert_eq!(canonical(json), Err(JsonError::NoKind), "{json:?}");
        }
        let once = of("a", Kind::BoolValue(true)).encode_to_vec();
        let twice = [&*once, &*once].concat();
        assert_eq!(canonical(&twice), Err(JsonError::NameTwice));
        let list = Kind::ListValue(ListValue {
            values: vec![Value {
                kind: Some(Kind::StructValue(Struct::decode(&*once).expect("valid"))),
            }],
        });
        let mut within = of("l", list).encode_to_vec();
        assert_eq!(canonical(&within), Ok(within.clone()));
        within.pop();
        assert_eq!(canonical(&within), Err(JsonError::NotStruct));
    }
}
