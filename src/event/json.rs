//! The canonical encoding of `google.protobuf.Struct`, checked in place.
//!
//! What [`encoding`](super::encoding) calls canonical, for JSON: the members of an object are a map, so they are
//! in the order of their names, each once.

use super::encoding::{
    FIXED64, LEN, NotCanonical, VARINT, take_len, take_len_field, take_tag, take_varint,
};

/// How deep messages may be nested here; each level of JSON takes two or three. Decoders of protobuf go no
/// deeper than 100 in all, and what no reader could decode must not pass as canonical.
const DEPTH_MAX: u32 = 90;

/// Whether `encoded` is the canonical encoding of a `google.protobuf.Struct`. False if it is nested too deep to
/// tell.
pub fn is_canonical_struct(encoded: &[u8]) -> bool {
    check_struct(encoded, DEPTH_MAX).is_ok()
}

fn check_struct(mut rest: &[u8], depth: u32) -> Result<(), NotCanonical> {
    let depth = deeper(depth)?;
    let mut last = None;
    while !rest.is_empty() {
        let (1, member) = take_len_field(&mut rest)? else {
            return Err(NotCanonical);
        };
        let name = Some(check_member(member, depth)?);
        if last >= name {
            return Err(NotCanonical);
        }
        last = name;
    }
    Ok(())
}

/// Checks an entry of the map, and returns its key.
fn check_member(mut rest: &[u8], depth: u32) -> Result<&[u8], NotCanonical> {
    let depth = deeper(depth)?;
    let mut name: &[u8] = b"";
    let mut last = 0;
    while !rest.is_empty() {
        let (field, value) = take_len_field(&mut rest)?;
        if field <= last || value.is_empty() {
            return Err(NotCanonical);
        }
        last = field;
        match field {
            1 => name = text(value)?,
            2 => check_value(value, depth)?,
            _ => return Err(NotCanonical),
        }
    }
    Ok(name)
}

fn check_value(mut rest: &[u8], depth: u32) -> Result<(), NotCanonical> {
    let depth = deeper(depth)?;
    if rest.is_empty() {
        return Ok(());
    }
    match take_tag(&mut rest)? {
        (1, VARINT) => take_varint_upto(0, &mut rest)?,
        (2, FIXED64) => {
            (_, rest) = rest.split_at_checked(8).ok_or(NotCanonical)?;
        }
        (3, LEN) => _ = text(take_len(&mut rest)?)?,
        (4, VARINT) => take_varint_upto(1, &mut rest)?,
        (5, LEN) => check_struct(take_len(&mut rest)?, depth)?,
        (6, LEN) => check_list(take_len(&mut rest)?, depth)?,
        _ => return Err(NotCanonical),
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(NotCanonical)
    }
}

fn check_list(mut rest: &[u8], depth: u32) -> Result<(), NotCanonical> {
    let depth = deeper(depth)?;
    while !rest.is_empty() {
        let (1, value) = take_len_field(&mut rest)? else {
            return Err(NotCanonical);
        };
        check_value(value, depth)?;
    }
    Ok(())
}

fn deeper(depth: u32) -> Result<u32, NotCanonical> {
    depth.checked_sub(1).ok_or(NotCanonical)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(None),
            Just(Some(Kind::NullValue(0))),
            any::<f64>().prop_map(|number| Some(Kind::NumberValue(number))),
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
        fn what_prost_writes_is_canonical(json in any_struct()) {
            prop_assert!(is_canonical_struct(&json.encode_to_vec()));
        }

        /// Whatever is taken as canonical is what prost would write for it.
        #[test]
        fn what_is_canonical_prost_writes(
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
            if is_canonical_struct(&encoded) {
                let decoded = Struct::decode(&*encoded).expect("canonical is well-formed");
                prop_assert_eq!(decoded.encode_to_vec(), encoded);
            }
        }
    }

    #[test]
    fn other_encodings_are_told_apart() {
        let member = |name: &[u8]| [b"\x0a\x07\x0a\x01", name, b"\x12\x02\x20\x01"].concat();
        let (a, b) = (member(b"a"), member(b"b"));
        assert!(is_canonical_struct(&[&*a, &*b].concat()));
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
            assert!(!is_canonical_struct(&encoded), "{encoded:?}");
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_not_looked_into() {
        let nested = |levels: usize| {
            let mut json = Struct::default();
            for _ in 0..levels {
                let kind = Some(Kind::StructValue(json));
                json = Struct {
                    fields: [("a".to_owned(), Value { kind })].into(),
                };
            }
            json.encode_to_vec()
        };
        assert!(is_canonical_struct(&nested(29)));
        assert!(!is_canonical_struct(&nested(30)));
        assert!(!is_canonical_struct(&nested(1000)));
    }
}
