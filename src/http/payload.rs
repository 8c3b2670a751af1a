//! JSON objects as `google.protobuf.Struct`, and back, without a tree in between.
//!
//! What [`encode`] writes is canonical, byte for byte what gRPC stores for the same object: members in the
//! order of their names, every number a double. It refuses what would not come back as it was: a
//! name twice, an integer that a double does not hold.
//! Format: <https://protobuf.dev/reference/protobuf/google.protobuf/#struct>.

use std::{fmt, io::Write as _, ops::Range};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{put_varint, take_varint, varint_len};

/// Tags of the fields of a `Value`: `number << 3 | wire type`.
const NULL_TAG: u8 = 1 << 3;
const NUMBER_TAG: u8 = 2 << 3 | 1;
const STRING_TAG: u8 = 3 << 3 | 2;
const BOOL_TAG: u8 = 4 << 3;
const STRUCT_TAG: u8 = 5 << 3 | 2;
const LIST_TAG: u8 = 6 << 3 | 2;
/// A member of a `Struct`, an element of a `ListValue`: both are field 1.
const ITEM_TAG: u8 = 1 << 3 | 2;
/// Name and value within a member.
const NAME_TAG: u8 = 1 << 3 | 2;
const VALUE_TAG: u8 = 2 << 3 | 2;

/// How deep messages may be nested in a payload so that every reader can decode them: decoders take 100 levels,
/// and a `ListEventsResponse` has the payload at its third.
const LEVELS_MAX: usize = 97;

/// Why an object cannot be a payload.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Its encoding is over the limit.
    TooLarge,
    /// What is wrong with it.
    Invalid(String),
}

/// Encodes a JSON object as a payload of at most `bytes_max` bytes.
pub(super) fn encode(json: &RawValue, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(json.get().len());
    let seed = Members {
        out: &mut out,
        levels_left: LEVELS_MAX,
        bytes_max,
    };
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let encoded = deserializer.deserialize_map(seed);
    if out.len() > bytes_max {
        return Err(Refusal::TooLarge);
    }
    encoded.map_err(|error| Refusal::Invalid(without_place(&error)))?;
    Ok(out)
}

/// What is wrong, without the place: that is within the value, and would be taken for one in the body.
pub(super) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// Appends a length-delimited field whose length is known when `content` has written it.
fn put_field<T, E>(
    tag: u8,
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>) -> Result<T, E>,
) -> Result<T, E> {
    out.push(tag);
    out.push(0);
    let start = out.len();
    let written = content(out)?;
    close_field(start, out);
    Ok(written)
}

/// Writes the length of the field whose content begins at `start`, after the byte set aside for it. Returns by
/// how much that moves the content.
fn close_field(start: usize, out: &mut Vec<u8>) -> usize {
    let len = (out.len() - start) as u64;
    if let Ok(len) = u8::try_from(len)
        && len < 0x80
    {
        out[start - 1] = len;
        return 0;
    }
    let mut encoded = Vec::with_capacity(varint_len(len));
    put_varint(len, &mut encoded);
    out.splice(start - 1..start, encoded.iter().copied());
    encoded.len() - 1
}

/// Appends a JSON value as a `Value`.
struct ValueSeed<'a> {
    out: &'a mut Vec<u8>,
    levels_left: usize,
    bytes_max: usize,
}

/// The levels that are left within a message: a `Value`, `Struct`, `ListValue` or member.
fn level_below<E: Error>(levels_left: usize) -> Result<usize, E> {
    levels_left.checked_sub(1).ok_or_else(|| {
        E::custom("nested too deeply; the limit is 32 objects or 47 arrays within each other")
    })
}

impl ValueSeed<'_> {
    fn number<E>(self, number: f64) -> Result<(), E> {
        self.out.push(NUMBER_TAG);
        self.out.extend_from_slice(&number.to_le_bytes());
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(mut self, deserializer: D) -> Result<(), D::Error> {
        self.levels_left = level_below(self.levels_left)?;
        if self.out.len() > self.bytes_max {
            return Err(D::Error::custom("over the limit"));
        }
        deserializer.deserialize_any(self)
    }
}

fn inexact<E: Error>() -> E {
    E::custom("an integer that a double does not hold exactly; send it as a string")
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.extend_from_slice(&[NULL_TAG, 0]);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.out.extend_from_slice(&[BOOL_TAG, value.into()]);
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        let number = value as f64;
        if number as i128 != i128::from(value) {
            return Err(inexact());
        }
        self.number(number)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        let number = value as f64;
        if number as u128 != u128::from(value) {
            return Err(inexact());
        }
        self.number(number)
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.out.push(STRING_TAG);
        put_varint(value.len() as u64, self.out);
        self.out.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let levels_left = level_below(self.levels_left)?;
        put_field(LIST_TAG, self.out, |out| {
            loop {
                let end = out.len();
                let more = put_field(ITEM_TAG, out, |out| {
                    elements.next_element_seed(ValueSeed {
                        out,
                        levels_left,
                        bytes_max: self.bytes_max,
                    })
                })?;
                if more.is_none() {
                    out.truncate(end);
                    return Ok(());
                }
            }
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<(), A::Error> {
        let levels_left = level_below(self.levels_left)?;
        let bytes_max = self.bytes_max;
        put_field(STRUCT_TAG, self.out, |out| {
            let seed = Members {
                out,
                levels_left,
                bytes_max,
            };
            seed.visit_map(members)
        })
    }
}

/// Appends a JSON object as the content of a `Struct`.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    levels_left: usize,
    bytes_max: usize,
}

/// Where a member is.
struct Member {
    start: usize,
    name: Range<usize>,
    end: usize,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { out, bytes_max, .. } = self;
        let mut members: Vec<Member> = Vec::new();
        let mut in_order = true;
        loop {
            let start = out.len();
            out.extend_from_slice(&[ITEM_TAG, 0]);
            let content = out.len();
            let Some(name) = map.next_key_seed(NameSeed(out))? else {
                out.truncate(start);
                break;
            };
            let levels_left = level_below(self.levels_left)?;
            put_field(VALUE_TAG, out, |out| {
                map.next_value_seed(ValueSeed {
                    out,
                    levels_left,
                    bytes_max,
                })
            })?;
            let moved = close_field(content, out);
            let member = Member {
                start,
                name: name.start + moved..name.end + moved,
                end: out.len(),
            };
            in_order &= members
                .last()
                .is_none_or(|last| out[last.name.clone()] < out[member.name.clone()]);
            members.push(member);
        }
        if in_order {
            return Ok(());
        }
        sort(members, out)
    }
}

/// Puts the members that are at the end of `out` in the order of their names.
fn sort<E: Error>(mut members: Vec<Member>, out: &mut Vec<u8>) -> Result<(), E> {
    let first = members.first().map_or(out.len(), |member| member.start);
    members.sort_by(|a, b| out[a.name.clone()].cmp(&out[b.name.clone()]));
    let is_twice = |pair: &[Member]| out[pair[0].name.clone()] == out[pair[1].name.clone()];
    if members.windows(2).any(is_twice) {
        return Err(E::custom("a name twice in one object"));
    }
    let sorted: Vec<u8> = members
        .iter()
        .flat_map(|member| &out[member.start..member.end])
        .copied()
        .collect();
    out.truncate(first);
    out.extend_from_slice(&sorted);
    Ok(())
}

/// Appends the name of a member, and tells where it is.
struct NameSeed<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Range<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Range<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        let out = self.0;
        // An empty name is a default value, which is left out.
        if !name.is_empty() {
            out.push(NAME_TAG);
            put_varint(name.len() as u64, out);
            out.extend_from_slice(name.as_bytes());
        }
        Ok(out.len() - name.len()..out.len())
    }
}

/// Appends the JSON of a stored `Struct`.
///
/// A number that JSON does not have is one of the strings "NaN", "Infinity" and "-Infinity", a value
/// without a kind is null.
pub(super) fn write_json(mut encoded: &[u8], json: &mut Vec<u8>) {
    json.push(b'{');
    let mut separator = None;
    while !encoded.is_empty() {
        json.extend(separator.replace(b','));
        let mut member = take_field(&mut encoded);
        // Both are left out when they are empty.
        let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
        if member.first() == Some(&NAME_TAG) {
            name = take_field(&mut member);
        }
        if !member.is_empty() {
            value = take_field(&mut member);
        }
        write_text(name, json);
        json.push(b':');
        write_value(value, json);
    }
    json.push(b'}');
}

fn write_list(mut encoded: &[u8], json: &mut Vec<u8>) {
    json.push(b'[');
    let mut separator = None;
    while !encoded.is_empty() {
        json.extend(separator.replace(b','));
        write_value(take_field(&mut encoded), json);
    }
    json.push(b']');
}

fn write_value(mut value: &[u8], json: &mut Vec<u8>) {
    match value {
        [NUMBER_TAG, number @ ..] => {
            let number = number.try_into().expect("a double has 8 bytes");
            write_number(f64::from_le_bytes(number), json);
        }
        [BOOL_TAG, 0] => json.extend_from_slice(b"false"),
        [BOOL_TAG, _] => json.extend_from_slice(b"true"),
        [STRING_TAG, ..] => write_text(take_field(&mut value), json),
        [STRUCT_TAG, ..] => write_json(take_field(&mut value), json),
        [LIST_TAG, ..] => write_list(take_field(&mut value), json),
        _ => json.extend_from_slice(b"null"),
    }
}

fn write_text(text: &[u8], json: &mut Vec<u8>) {
    let text = std::str::from_utf8(text).expect("stored text is UTF-8");
    serde_json::to_writer(json, text).expect("a Vec takes everything");
}

fn write_number(number: f64, json: &mut Vec<u8>) {
    /// Below it, every whole double is an i64.
    const WHOLE_MAX: f64 = (1u64 << 63) as f64;
    let is_whole = number.trunc() == number && (-WHOLE_MAX..WHOLE_MAX).contains(&number);
    let written = if is_whole && !(number == 0.0 && number.is_sign_negative()) {
        write!(json, "{}", number as i64)
    } else if number.is_finite() {
        serde_json::to_writer(&mut *json, &number).map_err(Into::into)
    } else if number.is_nan() {
        json.write_all(b"\"NaN\"")
    } else if number > 0.0 {
        json.write_all(b"\"Infinity\"")
    } else {
        json.write_all(b"\"-Infinity\"")
    };
    written.expect("a Vec takes everything");
}

/// Takes a length-delimited field off the front of a stored message; returns its content.
fn take_field<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    const STORED: &str = "a stored payload is canonical";
    *rest = &rest[1..];
    let len = take_varint(rest).expect(STORED);
    let (content, after) = rest.split_at(usize::try_from(len).expect(STORED));
    *rest = after;
    content
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;
    use crate::proto::v1;

    const BYTES_MAX: usize = 1 << 20;

    fn encoded(json: &str) -> Result<Vec<u8>, String> {
        let raw = serde_json::from_str(json).expect("JSON");
        encode(raw, BYTES_MAX).map_err(|refusal| match refusal {
            Refusal::TooLarge => "too large".to_owned(),
            Refusal::Invalid(msg) => msg,
        })
    }

    fn json_of(encoded: &[u8]) -> String {
        let mut json = Vec::new();
        write_json(encoded, &mut json);
        String::from_utf8(json).expect("UTF-8")
    }

    /// The message that the contract has for a JSON value.
    fn message(json: &serde_json::Value) -> Value {
        let kind = match json {
            serde_json::Value::Null => Kind::NullValue(0),
            serde_json::Value::Bool(value) => Kind::BoolValue(*value),
            serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().expect("f64")),
            serde_json::Value::String(text) => Kind::StringValue(text.clone()),
            serde_json::Value::Array(values) => Kind::ListValue(ListValue {
                values: values.iter().map(message).collect(),
            }),
            serde_json::Value::Object(object) => Kind::StructValue(Struct {
                fields: object
                    .iter()
                    .map(|(k, v)| (k.clone(), message(v)))
                    .collect(),
            }),
        };
        Value { kind: Some(kind) }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let number = prop_oneof![
            (-(1i64 << 53)..=1 << 53).prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
        ];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            number,
            ".{0,200}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
                proptest::collection::btree_map(".{0,3}", inner, 0..6).prop_map(object),
            ]
        })
    }

    fn object(members: BTreeMap<String, serde_json::Value>) -> serde_json::Value {
        serde_json::Value::Object(members.into_iter().collect())
    }

    proptest! {
        #[test]
        fn an_object_is_what_the_contract_has_and_comes_back(
            members in proptest::collection::vec((".{0,3}", any_json()), 0..6),
        ) {
            // In the order of arrival, which is none.
            let unique: BTreeMap<_, _> = members.iter().cloned().collect();
            prop_assume!(unique.len() == members.len());
            let texts: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{}:{value}", serde_json::json!(name)))
                .collect();
            let encoded = encoded(&format!("{{{}}}", texts.join(", "))).expect("valid");

            let json = object(unique);
            let Some(Kind::StructValue(expected)) = message(&json).kind else {
                panic!("an object is a Struct");
            };
            prop_assert_eq!(&encoded, &expected.encode_to_vec());
            let back: serde_json::Value = serde_json::from_str(&json_of(&encoded)).expect("JSON");
            prop_assert_eq!(message(&back), message(&json));
        }
    }

    #[test]
    fn numbers_are_printed_as_they_were_published() {
        for number in [
            "0",
            "12",
            "-7",
            "9007199254740993.5",
            "0.1",
            "-0.0",
            "9007199254740992",
            "-9223372036854775808",
            "1152921504606846976",
            "1e+300",
            "5e-324",
        ] {
            let json = format!("{{\"n\":{number}}}");
            let printed = json_of(&encoded(&json).expect("valid"));
            if number == "9007199254740993.5" {
                assert_eq!(printed, "{\"n\":9007199254740994}");
            } else {
                assert_eq!(printed, json);
            }
        }
        assert_eq!(
            json_of(&encoded("{\"n\":12.0}").expect("valid")),
            "{\"n\":12}"
        );
    }

    #[test]
    fn what_json_does_not_have_is_text() {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let values = numbers.map(|number| Value {
            kind: Some(Kind::NumberValue(number)),
        });
        let mut values = values.to_vec();
        values.push(Value { kind: None });
        let list = Value {
            kind: Some(Kind::ListValue(ListValue { values })),
        };
        let fields = [(String::new(), list)].into();
        assert_eq!(
            json_of(&Struct { fields }.encode_to_vec()),
            r#"{"":["NaN","Infinity","-Infinity",null]}"#
        );
        let none = Value { kind: None };
        let fields = [("a".to_owned(), none.clone()), (String::new(), none)].into();
        assert_eq!(
            json_of(&Struct { fields }.encode_to_vec()),
            r#"{"":null,"a":null}"#
        );
    }

    #[test]
    fn what_would_not_come_back_is_refused() {
        for (json, says) in [
            (r#"{"a":1,"a":1}"#, "a name twice in one object"),
            (r#"{"b":[{"":1,"":2}]}"#, "a name twice in one object"),
            (
                r#"{"n":9007199254740993}"#,
                "an integer that a double does not hold",
            ),
            (
                r#"{"n":18446744073709551615}"#,
                "an integer that a double does not hold",
            ),
            (
                r#"{"n":-9223372036854775807}"#,
                "an integer that a double does not hold",
            ),
            (r#"{"n":1e999}"#, "number out of range"),
            (r#"{"s":"\ud800"}"#, "unexpected end of hex escape"),
        ] {
            let error = encoded(json).expect_err("refused");
            assert!(error.contains(says), "{json}: {error}");
            assert!(!error.contains("column"), "{error}");
        }
    }

    #[test]
    fn a_payload_over_the_limit_is_left_early() {
        let json = format!("{{\"n\":[{}0]}}", "0,".repeat(BYTES_MAX));
        let error = encoded(&json).expect_err("too large");
        assert_eq!(error, "too large");
    }

    /// The deepest payload that is taken can be read by everyone, and one level more could not.
    #[test]
    fn depth_is_what_readers_can_decode() {
        let listed = |payload: Vec<u8>| {
            let mut event = vec![5 << 3 | 2];
            put_varint(payload.len() as u64, &mut event);
            event.extend(payload);
            let mut response = event;
            for tag in [1 << 3 | 2, 1 << 3 | 2] {
                let mut outer = vec![tag];
                put_varint(response.len() as u64, &mut outer);
                outer.extend(response);
                response = outer;
            }
            v1::ListEventsResponse::decode(&*response)
        };
        for (open, close, innermost) in [
            ("{\"a\":", "}", "{}"),
            ("{\"a\":", "}", "[0]"),
            ("[", "]", "[]"),
            ("[", "]", "0"),
            ("[{\"\":", "}]", "{\"a\":[]}"),
        ] {
            let nested = |depth| {
                let inner = format!("{}{innermost}{}", open.repeat(depth), close.repeat(depth));
                format!("{{\"p\":{inner}}}")
            };
            let deepest = (0..).find(|depth| encoded(&nested(depth + 1)).is_err());
            let deepest = deepest.expect("there is a limit");
            listed(encoded(&nested(deepest)).expect("taken")).expect("readable");

            let json = serde_json::from_str(&nested(deepest + 1)).expect("JSON");
            let Some(Kind::StructValue(deeper)) = message(&json).kind else {
                panic!("an object is a Struct");
            };
            listed(deeper.encode_to_vec()).expect_err("too deep for a reader");
        }
    }
}
