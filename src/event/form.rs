//! The common ground of the two forms of a JSON object: their parts, and what neither can store.

use thiserror::Error;

use super::JSON_DEPTH_MAX;

/// How to write the parts of a JSON object. Opening a part returns its start, which closing it takes.
pub(super) trait Form {
    /// Whether the outermost object is written as just its members.
    const ROOT_IS_BARE: bool;

    fn null(out: &mut Vec<u8>);
    fn boolean(value: bool, out: &mut Vec<u8>);
    /// False if the form cannot hold the number.
    fn number(literal: &str, out: &mut Vec<u8>) -> bool;
    fn string(text: &str, out: &mut Vec<u8>);
    fn open_list(out: &mut Vec<u8>) -> usize;
    fn open_element(out: &mut Vec<u8>) -> usize;
    fn close_element(start: usize, out: &mut Vec<u8>);
    fn close_list(start: usize, out: &mut Vec<u8>);
    fn open_object(out: &mut Vec<u8>) -> usize;
    /// Returns the starts of the member and of its value.
    fn open_member(name: &str, out: &mut Vec<u8>) -> [usize; 2];
    fn close_member(starts: [usize; 2], out: &mut Vec<u8>);
    fn close_object(start: usize, out: &mut Vec<u8>);
}

/// Appends a string in canonical text.
pub(super) fn put_string(text: &str, json: &mut Vec<u8>) {
    serde_json::to_writer(json, text).expect("a Vec takes everything");
}

/// The depth that remains inside an object or array.
pub(super) fn deeper(depth_left: u32) -> Result<u32, JsonError> {
    depth_left.checked_sub(1).ok_or(JsonError::TooDeep)
}

/// Why a value is not a JSON object that can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JsonError {
    /// The text is not JSON.
    #[error("not JSON: {expected} is expected at byte {at}")]
    NotJson {
        /// What was expected there.
        expected: &'static str,
        /// The offset in bytes from the start of the object.
        at: usize,
    },
    /// The bytes are not an encoded `google.protobuf.Struct`.
    #[error("not an encoded google.protobuf.Struct")]
    NotStruct,
    /// An object has a name twice.
    #[error("a repeated name in one object")]
    NameTwice,
    /// It nests deeper than every reader can decode.
    #[error("nested too deeply; the limit is {JSON_DEPTH_MAX} nested objects and arrays")]
    TooDeep,
    /// A number outside JSON.
    #[error("a number that is NaN or infinite; JSON has only finite ones")]
    NotFinite,
    /// A `google.protobuf.Value` without a kind.
    #[error("a google.protobuf.Value without a kind; give null_value for null")]
    NoKind,
    /// The canonical form is over the limit.
    #[error("over the limit on the size of an event")]
    TooLarge,
}
