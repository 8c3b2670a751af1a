//! JSON objects as text, read into their canonical form without an intermediate tree.
//!
//! Format: RFC 8259. Everything read is written at once; an object with unsorted members is sorted at its end.

use std::{borrow::Cow, marker::PhantomData};

use super::{
    JSON_DEPTH_MAX,
    form::{Form, JsonError, deeper, put_string},
    members::Members,
};

/// Reads the text of an object, and writes it in the form `F`, in at most `bytes_max` bytes.
pub(super) fn read<F: Form>(text: &str, bytes_max: usize) -> Result<Vec<u8>, Stop> {
    Parser::<F>::read(text, bytes_max)
}

/// Why reading stopped early.
pub(super) enum Stop {
    /// The form cannot hold a number.
    NotHeld,
    /// It is not an object that can be stored.
    Error(JsonError),
}

impl From<JsonError> for Stop {
    fn from(error: JsonError) -> Self {
        Self::Error(error)
    }
}

struct Parser<'a, F> {
    text: &'a str,
    at: usize,
    out: Vec<u8>,
    bytes_max: usize,
    form: PhantomData<F>,
}

impl<'a, F: Form> Parser<'a, F> {
    fn read(text: &'a str, bytes_max: usize) -> Result<Vec<u8>, Stop> {
        let mut parser = Self {
            text,
            at: 0,
            out: Vec::with_capacity(text.len().min(bytes_max)),
            bytes_max,
            form: PhantomData::<F>,
        };
        parser.skip_space();
        if !parser.take(b'{') {
            return Err(parser.expected("an object").into());
        }
        if F::ROOT_IS_BARE {
            parser.members(JSON_DEPTH_MAX)?;
        } else {
            parser.object(JSON_DEPTH_MAX)?;
        }
        parser.skip_space();
        if parser.at < text.len() {
            return Err(parser.expected("the end").into());
        }
        parser.check_size()?;
        Ok(parser.out)
    }

    /// Reads an object after its brace. `depth_left` counts it and those inside it.
    fn object(&mut self, depth_left: u32) -> Result<(), Stop> {
        let start = F::open_object(&mut self.out);
        self.members(depth_left)?;
        F::close_object(start, &mut self.out);
        Ok(())
    }

    fn members(&mut self, depth_left: u32) -> Result<(), Stop> {
        let depth_left = deeper(depth_left)?;
        let mut members = Members::new();
        self.skip_space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.expected("a name").into());
            }
            let name = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.expected("a colon").into());
            }
            let start = self.out.len();
            let starts = F::open_member(&name, &mut self.out);
            self.value(depth_left)?;
            F::close_member(starts, &mut self.out);
            members.add(name, start..self.out.len());
            self.skip_space();
            if self.take(b'}') {
                return Ok(members.sort(&mut self.out)?);
            }
            if !self.take(b',') {
                return Err(self.expected("a comma or a brace").into());
            }
            self.skip_space();
        }
    }

    /// Reads an array after its bracket.
    fn list(&mut self, depth_left: u32) -> Result<(), Stop> {
        let depth_left = deeper(depth_left)?;
        let start = F::open_list(&mut self.out);
        self.skip_space();
        if !self.take(b']') {
            loop {
                let element = F::open_element(&mut self.out);
                self.value(depth_left)?;
                F::close_element(element, &mut self.out);
                self.skip_space();
                if self.take(b']') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.expected("a comma or a bracket").into());
                }
            }
        }
        F::close_list(start, &mut self.out);
        Ok(())
    }

    fn value(&mut self, depth_left: u32) -> Result<(), Stop> {
        self.check_size()?;
        self.skip_space();
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                self.object(depth_left)
            }
            Some(b'[') => {
                self.at += 1;
                self.list(depth_left)
            }
            Some(b'"') => {
                let text = self.string()?;
                F::string(&text, &mut self.out);
                Ok(())
            }
            Some(b'-' | b'0'..=b'9') => {
                let literal = self.number()?;
                if F::number(literal, &mut self.out) {
                    Ok(())
                } else {
                    Err(Stop::NotHeld)
                }
            }
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<(), Stop> {
        let rest = &self.text.as_bytes()[self.at..];
        let len = if rest.starts_with(b"null") {
            F::null(&mut self.out);
            4
        } else if rest.starts_with(b"true") {
            F::boolean(true, &mut self.out);
            4
        } else if rest.starts_with(b"false") {
            F::boolean(false, &mut self.out);
            5
        } else {
            return Err(self.expected("a value").into());
        };
        self.at += len;
        Ok(())
    }

    /// Reads a string, starting at its quote.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let start = self.at;
        let mut is_plain = true;
        loop {
            self.at += 1;
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    is_plain = false;
                    self.at += 1;
                }
                Some(0..0x20) => return Err(self.expected("an escape")),
                Some(_) => {}
                None => return Err(self.expected("the end of the string")),
            }
        }
        self.at += 1;
        if is_plain {
            return Ok(Cow::Borrowed(&self.text[start + 1..self.at - 1]));
        }
        let unescaped = serde_json::from_str(&self.text[start..self.at]).map(Cow::Owned);
        unescaped.map_err(|_| JsonError::NotJson {
            expected: "Unicode in valid escapes",
            at: start,
        })
    }

    fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.expected("a digit"));
        }
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn check_size(&self) -> Result<(), JsonError> {
        if self.out.len() > self.bytes_max {
            return Err(JsonError::TooLarge);
        }
        Ok(())
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        let at = self.at;
        JsonError::NotJson { expected, at }
    }
}

/// Canonical text. Every closed part ends with a comma, which the end of the enclosing part removes.
pub(super) struct TextForm;

impl TextForm {
    fn close(bracket: u8, out: &mut Vec<u8>) {
        if out.last() == Some(&b',') {
            out.pop();
        }
        out.push(bracket);
    }
}

impl Form for TextForm {
    const ROOT_IS_BARE: bool = false;

    fn null(out: &mut Vec<u8>) {
        out.extend_from_slice(b"null");
    }

    fn boolean(value: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn number(literal: &str, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(literal.as_bytes());
        true
    }

    fn string(text: &str, out: &mut Vec<u8>) {
        put_string(text, out);
    }

    fn open_list(out: &mut Vec<u8>) -> usize {
        out.push(b'[');
        out.len()
    }

    fn open_element(out: &mut Vec<u8>) -> usize {
        out.len()
    }

    fn close_element(_: usize, out: &mut Vec<u8>) {
        out.push(b',');
    }

    fn close_list(_: usize, out: &mut Vec<u8>) {
        Self::close(b']', out);
    }

    fn open_object(out: &mut Vec<u8>) -> usize {
        out.push(b'{');
        out.len()
    }

    fn open_member(name: &str, out: &mut Vec<u8>) -> [usize; 2] {
        let start = out.len();
        put_string(name, out);
        out.push(b':');
        [start, out.len()]
    }

    fn close_member(_: [usize; 2], out: &mut Vec<u8>) {
        out.push(b',');
    }

    fn close_object(_: usize, out: &mut Vec<u8>) {
        Self::close(b'}', out);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;
    use crate::{
        event::{
            Json, Payload,
            protobuf::{len_tag, put_field},
        },
        proto::v1,
    };

    const BYTES_MAX: usize = 1 << 20;

    fn parse(json: &str, bytes_max: usize) -> Result<Json, JsonError> {
        Json::from_text(json, bytes_max)
    }

    fn encoded(json: &str) -> Result<Vec<u8>, JsonError> {
        match parse(json, BYTES_MAX)? {
            Json::Struct(encoded) => Ok(encoded),
            Json::Text(text) => panic!("{text} is held by a Struct"),
        }
    }

    fn text(json: &str) -> String {
        match parse(json, BYTES_MAX).expect("valid") {
            Json::Struct(_) => panic!("{json} is not held by a Struct"),
            Json::Text(text) => text,
        }
    }

    fn json_of(encoded: &[u8]) -> String {
        let mut json = Vec::new();
        Payload::Struct(encoded).write_json(&mut json);
        String::from_utf8(json).expect("UTF-8")
    }

    /// The contract's message for a JSON value.
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
            any::<f64>()
                .prop_filter("written to the last digit, which others do not", |number| {
                    !(9e15..2e19).contains(&number.abs())
                })
                .prop_map(serde_json::Value::from),
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
            // In arbitrary order.
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
    fn numbers_come_back_as_they_were_published() {
        for number in [
            "0",
            "12",
            "-7",
            "9007199254740992",
            "-9223372036854775808",
            "9223372036854775808",
            "1152921504606846976",
            "0.1",
            "-0.0",
            "1e+300",
            "5e-324",
        ] {
            let json = format!("{{\"n\":{number}}}");
            assert_eq!(json_of(&encoded(&json).expect("valid")), json);
        }
        assert_eq!(
            json_of(&encoded("{\"n\":12.0}").expect("valid")),
            "{\"n\":12}"
        );
    }

    #[test]
    fn payloads_a_struct_cannot_hold_are_canonical_text() {
        for number in [
            "9007199254740993",
            "-18446744073709551615",
            "1e400",
            "1E-400",
            "0.12345678901234567890",
        ] {
            let json = format!("{{\"n\":{number}}}");
            assert_eq!(text(&json), json);
        }
        // One such number, and all are kept as written.
        assert_eq!(
            text(" { \"b\" : [ 1.50 , -0, 9007199254740993 ],\n\"a\":\t{ } , \"\":[ ]}"),
            r#"{"":[],"a":{},"b":[1.50,-0,9007199254740993]}"#
        );
    }

    #[test]
    fn names_are_in_the_order_of_code_points_and_strings_have_one_form() {
        assert_eq!(
            text(
                r#"{"\ud83d\ude00":1e400,"\uffee":null,"\u0041":"\/\u0022\u000a\u001F\u007f\u2028","a\"":true}"#
            ),
            "{\"A\":\"/\\\"\\n\\u001f\u{7f}\u{2028}\",\"a\\\"\":true,\"\u{ffee}\":null,\"\u{1f600}\":1e400}"
        );
    }

    #[test]
    fn a_payload_that_is_no_object_is_refused() {
        let not_json = |expected, at| JsonError::NotJson { expected, at };
        for (json, error) in [
            (r#"{"a":1,"a":1}"#, JsonError::NameTwice),
            (r#"{"a":1e400,"\u0061":1}"#, JsonError::NameTwice),
            (r#"{"b":[{"":1,"":2}]}"#, JsonError::NameTwice),
            ("", not_json("an object", 0)),
            ("[]", not_json("an object", 0)),
            ("{", not_json("a name", 1)),
            ("{} {}", not_json("the end", 3)),
            ("{\"a\"}", not_json("a colon", 4)),
            ("{\"a\":1,}", not_json("a name", 7)),
            ("{\"a\":[1,]}", not_json("a value", 8)),
            ("{\"a\":[1}", not_json("a comma or a bracket", 7)),
            ("{\"a\":01}", not_json("a comma or a brace", 6)),
            ("{\"a\":-}", not_json("a digit", 6)),
            ("{\"a\":1.}", not_json("a digit", 7)),
            ("{\"a\":1e+}", not_json("a digit", 8)),
            ("{\"a\":nul}", not_json("a value", 5)),
            ("{\"a\":\"\n\"}", not_json("an escape", 6)),
            ("{\"a\":\"x", not_json("the end of the string", 7)),
            (r#"{"a":"\ud800"}"#, not_json("Unicode in valid escapes", 5)),
        ] {
            assert_eq!(parse(json, BYTES_MAX), Err(error), "{json}");
        }
    }

    #[test]
    fn a_payload_over_the_limit_is_left_early() {
        let json = format!("{{\"n\":[{}0]}}", "0,".repeat(BYTES_MAX));
        assert_eq!(parse(&json, BYTES_MAX), Err(JsonError::TooLarge));
    }

    #[test]
    fn depth_is_counted_alike_in_both_forms() {
        for innermost in ["1", "1e400"] {
            for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
                let nested = |depth: usize| {
                    format!(
                        "{{\"p\":{}{innermost}{}}}",
                        open.repeat(depth - 1),
                        close.repeat(depth - 1)
                    )
                };
                let depth = JSON_DEPTH_MAX as usize;
                assert!(parse(&nested(depth), BYTES_MAX).is_ok());
                assert_eq!(
                    parse(&nested(depth + 1), BYTES_MAX),
                    Err(JsonError::TooDeep)
                );
            }
        }
    }

    /// Every reader can decode the deepest payload that is accepted.
    #[test]
    fn the_deepest_payload_is_what_readers_can_decode() {
        for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
            let levels = JSON_DEPTH_MAX as usize - 1;
            let json = format!("{{\"p\":{}0{}}}", open.repeat(levels), close.repeat(levels));
            let mut message = encoded(&json).expect("valid");
            // Inside an event, a stored event and a response.
            for field in [5, 1, 1] {
                let mut outer = Vec::new();
                put_field(len_tag(field), &message, &mut outer);
                message = outer;
            }
            v1::ListEventsResponse::decode(&*message).expect("readable");
        }
    }

    proptest! {
        /// Canonical text is a fixed point, with all digits of each number and all other values.
        #[test]
        fn canonical_text_keeps_its_value(
            members in proptest::collection::btree_map(".{0,3}", any_json(), 0..6),
            literal in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
        ) {
            let mut json = object(members).to_string();
            json.pop();
            let comma = if json.len() > 1 { "," } else { "" };
            let json = format!("{json}{comma} \"longer name\" : {literal} }}");
            crate::event::fuzzing::json_text(json.as_bytes());
        }

        #[test]
        fn garbage_is_no_panic(text in "[{}\\[\\]:,\"\\\\truefalsn0-9.eE+\\- u]{0,40}") {
            crate::event::fuzzing::json_text(text.as_bytes());
            crate::event::fuzzing::json_text(format!("{{\"a\":{text}}}").as_bytes());
        }
    }
}
