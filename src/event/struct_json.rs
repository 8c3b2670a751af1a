//! The JSON of a stored `google.protobuf.Struct`, written without an intermediate tree.

use super::{
    form::put_string,
    number,
    protobuf::take_len_field,
    structs::{BOOL_TAG, LIST_TAG, NAME_TAG, NUMBER_TAG, STRING_TAG, STRUCT_TAG},
};

/// Appends the JSON of a stored `Struct`.
///
/// Earlier versions stored values outside JSON: one without a kind becomes null, and [`number::write`] covers numbers
/// that are not finite.
pub(super) fn write(mut encoded: &[u8], json: &mut Vec<u8>) {
    json.push(b'{');
    let mut separator = None;
    while !encoded.is_empty() {
        json.extend(separator.replace(b','));
        let mut member = take_stored(&mut encoded);
        // Both are omitted when empty.
        let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
        if member.first() == Some(&NAME_TAG) {
            name = take_stored(&mut member);
        }
        if !member.is_empty() {
            value = take_stored(&mut member);
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
        write_value(take_stored(&mut encoded), json);
    }
    json.push(b']');
}

fn write_value(mut value: &[u8], json: &mut Vec<u8>) {
    match value {
        [NUMBER_TAG, number @ ..] => {
            let number = number.try_into().expect("a double has 8 bytes");
            number::write(f64::from_le_bytes(number), json);
        }
        [BOOL_TAG, 0] => json.extend_from_slice(b"false"),
        [BOOL_TAG, _] => json.extend_from_slice(b"true"),
        [STRING_TAG, ..] => write_text(take_stored(&mut value), json),
        [STRUCT_TAG, ..] => write(take_stored(&mut value), json),
        [LIST_TAG, ..] => write_list(take_stored(&mut value), json),
        _ => json.extend_from_slice(b"null"),
    }
}

fn write_text(text: &[u8], json: &mut Vec<u8>) {
    put_string(
        std::str::from_utf8(text).expect("stored text is UTF-8"),
        json,
    );
}

/// Splits a length-delimited field off the front of a stored message; returns its content.
fn take_stored<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let field = take_len_field(rest);
    field.expect("a stored payload is canonical").1
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;

    fn of(name: &str, kind: Kind) -> Struct {
        let value = Value { kind: Some(kind) };
        Struct {
            fields: [(name.to_owned(), value)].into(),
        }
    }

    /// Earlier versions stored such values.
    #[test]
    fn values_outside_json_are_listed_as_text() {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let values = numbers.map(|number| Value {
            kind: Some(Kind::NumberValue(number)),
        });
        let mut values = values.to_vec();
        values.push(Value { kind: None });
        let json_of = |json: &Struct| {
            let mut text = Vec::new();
            write(&json.encode_to_vec(), &mut text);
            String::from_utf8(text).expect("UTF-8")
        };
        let list = of("", Kind::ListValue(ListValue { values }));
        assert_eq!(
            json_of(&list),
            r#"{"":["NaN","Infinity","-Infinity",null]}"#
        );
        let none = Value { kind: None };
        let fields = [("a".to_owned(), none.clone()), (String::new(), none)].into();
        assert_eq!(json_of(&Struct { fields }), r#"{"":null,"a":null}"#);
    }
}
