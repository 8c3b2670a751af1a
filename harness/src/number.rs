//! The formatting of numbers.

/// The digits of a whole number, with commas between groups of three.
pub fn grouped(digits: &str) -> String {
    let mut written = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            written.push(',');
        }
        written.push(digit);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_three_digits_are_a_group() {
        let written = ["", "7", "999", "1000", "123456", "1234567"].map(grouped);
        let expected = ["", "7", "999", "1,000", "123,456", "1,234,567"];
        assert_eq!(written, expected);
    }
}
