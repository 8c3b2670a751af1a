//! What the two forms of a JSON object have in common: their parts, and what cannot be stored in either.

use thiserror::Error;

use super::JSON_DEPTH_MAX;

/// How the parts of a JSON object are written. What is opened returns where it began, for its close.
pub(super) trait Form {
    /// Whether the outermost object is written as its members only.
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
    /// Returns where the member and where its value began.
    fn open_member(name: &str, out: &mut Vec<u8>) -> [usize; 2];
    fn close_member(starts: [usize; 2], out: &mut Vec<u8>);
    fn close_object(start: usize, out: &mut Vec<u8>);
}

/// Appends a string as canonical text has it.
pub(super) fn put_string(text: &str, json: &mut Vec<u8>) {
    serde_json::to_writer(json, text).expect("a Vec takes everything");
}

/// The depth that is left within an object or an array.
pub(super) fn deeper(depth_left: u32) -> Result<u32, JsonError> {
    depth_left.checked_sub(1).ok_or(JsonError::TooDeep)
}

/// Why something is not a JSON object that can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JsonError {
    /// The text is no JSON.
    #[error("not JSON: {expected} is expected at byte {at}")]
    NotJson {
        /// What would be.
        expected: &'static str,
        /// Where, in bytes from the beginning of the object.
        at: usize,
    },
    /// The bytes are no encoded `google.protobuf.Struct`.
    #[error("not an encoded google.protobuf.Struct")]
    NotStruct,
    /// One name has two values.
    #[error("a name twice in one object")]
    NameTwice,
    /// It is nested deeper than every reader could decode.
    #[error(
        "nested too deeply; the limit is {JSON_DEPTH_MAX} objects and arrays within each other"
    )]
    TooDeep,
    /// A number that JSON does not have.
    #[error("a number that is NaN or infinite; JSON has only finite ones")]
    NotFinite,
    /// A `google.protobuf.Value` without a kind.
    #[error("a google.protobuf.Value without a kind; give null_value for null")]
    NoKind,
    /// The canonical form is over the limit.
    #[error("over the limit on the size of an event")]
    TooLarge,
}
