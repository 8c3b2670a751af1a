//! JSON numbers, and the doubles that hold them.
//!
//! Every double stands for one decimal: a whole double below 2^64 in magnitude for its exact value, any other for
//! the shortest decimal that parses to it. So doubles hold 0.1 and 1e300, but not 9007199254740993, 1e400 or
//! 0.12345678901234567890, and no two values share a double. Negative zero is a distinct number, which a double
//! holds; it is written `-0.0`, because many parsers read `-0` as the integer 0.

use std::io::Write as _;

/// Whole doubles below this magnitude are written in full.
const WHOLE_MAX: f64 = (1u128 << 64) as f64;
/// More significant digits than any double needs: 2^64 has 20.
const DIGITS_MAX: u64 = 20;
/// A decimal of this many significant digits survives a double, and is the shortest decimal for it, where doubles
/// are neither subnormal nor infinite (`DBL_DIG`).
const DIGITS_SAFE: u64 = f64::DIGITS as u64;
/// Magnitudes of 10 where [`DIGITS_SAFE`] can be relied on: above, whole doubles have more digits to check.
const SAFE_MAGNITUDES: std::ops::Range<i64> = -300..15;

/// The double that holds `literal`, a JSON number. `None` if there is none.
pub(super) fn held(literal: &str) -> Option<f64> {
    let decimal = Decimal::parse(literal)?;
    let number: f64 = literal.parse().ok()?;
    if decimal.is_safe() {
        return Some(number);
    }
    if !number.is_finite() {
        return None;
    }
    let mut written = Vec::with_capacity(24);
    write(number, &mut written);
    let written = Decimal::parse(std::str::from_utf8(&written).ok()?);
    (written == Some(decimal)).then_some(number)
}

/// Appends the decimal that `number` stands for. A number outside JSON becomes one of the strings "NaN", "Infinity" and
/// "-Infinity": earlier versions stored such events.
pub(super) fn write(number: f64, json: &mut Vec<u8>) {
    let is_whole = number.trunc() == number && number.abs() < WHOLE_MAX;
    let written = if number == 0.0 && number.is_sign_negative() {
        json.write_all(b"-0.0")
    } else if is_whole {
        write!(json, "{}", number as i128)
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

/// The value of a literal: `mantissa * 10^exponent`, without trailing zeros in the mantissa.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    mantissa: u128,
    digits: u64,
    exponent: i64,
}

impl Decimal {
    /// `None` if it has more than [`DIGITS_MAX`] significant digits.
    fn parse(literal: &str) -> Option<Self> {
        let (is_negative, literal) = match literal.strip_prefix('-') {
            Some(literal) => (true, literal),
            None => (false, literal),
        };
        let (digits, exponent) = match literal.split_once(['e', 'E']) {
            Some((digits, exponent)) => (digits, parse_exponent(exponent)),
            None => (literal, 0),
        };
        let fraction = digits.split_once('.').map_or("", |(_, fraction)| fraction);
        let mut decimal = Self {
            is_negative,
            mantissa: 0,
            digits: 0,
            exponent: exponent.saturating_sub_unsigned(fraction.len() as u64),
        };
        let mut zeros = 0;
        for digit in digits.bytes().filter(u8::is_ascii_digit) {
            if digit == b'0' {
                zeros += u64::from(decimal.mantissa > 0);
                continue;
            }
            decimal.digits += zeros + 1;
            if decimal.digits > DIGITS_MAX {
                return None;
            }
            for _ in 0..=zeros {
                decimal.mantissa *= 10;
            }
            decimal.mantissa += u128::from(digit - b'0');
            zeros = 0;
        }
        decimal.exponent = match decimal.mantissa {
            0 => 0,
            _ => decimal.exponent.saturating_add_unsigned(zeros),
        };
        Some(decimal)
    }

    fn is_safe(&self) -> bool {
        let magnitude = self.exponent.saturating_add_unsigned(self.digits);
        self.digits <= DIGITS_SAFE && SAFE_MAGNITUDES.contains(&magnitude)
    }
}

/// An exponent; one too large for any double may be confused with another such.
fn parse_exponent(text: &str) -> i64 {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.trim_start_matches('+')),
    };
    let magnitude = digits.bytes().fold(0i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    if is_negative { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(number: f64) -> String {
        let mut json = Vec::new();
        write(number, &mut json);
        String::from_utf8(json).expect("UTF-8")
    }

    #[test]
    fn a_double_holds_what_it_is_written_as() {
        for (literal, number) in [
            ("0", 0.0),
            ("0e999999999999999999999", 0.0),
            ("0.000", 0.0),
            ("12", 12.0),
            ("12.0", 12.0),
            ("1.2e1", 12.0),
            ("120E-1", 12.0),
            ("0.1", 0.1),
            ("-2.5e-3", -0.0025),
            ("1e300", 1e300),
            ("5e-324", 5e-324),
            ("1.7976931348623157e308", f64::MAX),
            ("9007199254740992", 9_007_199_254_740_992.0),
            ("1152921504606846976", 1_152_921_504_606_846_976.0),
            ("-9223372036854775808", -9_223_372_036_854_775_808.0),
            ("9223372036854775808", 9_223_372_036_854_775_808.0),
            ("10000000000000000000", 1e19),
        ] {
            assert_eq!(held(literal), Some(number), "{literal}");
            assert_eq!(held(&written(number)), Some(number), "{literal}");
        }
        for literal in ["-0", "-0.0", "-0e7"] {
            let number = held(literal).expect(literal);
            assert!(number == 0.0 && number.is_sign_negative(), "{literal}");
        }
        assert_eq!(written(-0.0), "-0.0");
        assert_eq!(written(12.0), "12");
    }

    #[test]
    fn numbers_no_double_holds_are_not_held() {
        for literal in [
            "9007199254740993",
            "18446744073709551615",
            "-9223372036854775807",
            // The nearest double stands for 1152921504606846976.
            "1152921504606847000",
            "9007199254740993.5",
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "2e-324",
            "0.12345678901234567890",
            "0.1000000000000000055511151231257827",
            "1234567890123450000e-10000000000000000000000",
        ] {
            assert_eq!(held(literal), None, "{literal}");
        }
    }

    proptest! {
        /// Each double holds one value, the one it is written as.
        #[test]
        fn every_double_comes_back(bits: u64) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            prop_assert_eq!(held(&written(number)).map(f64::to_bits), Some(bits));
        }

        /// A literal that a double holds is written with its own value, however it was spelled.
        #[test]
        fn a_held_literal_keeps_its_value(
            literal in "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        ) {
            if let Some(number) = held(&literal) {
                prop_assert_eq!(Decimal::parse(&written(number)), Decimal::parse(&literal));
            }
        }

        /// A whole number is held exactly if its nearest double equals it.
        #[test]
        fn a_whole_number_is_held_if_it_is_a_double(whole: u64) {
            let exact = whole as f64 as u128 == u128::from(whole);
            prop_assert_eq!(held(&whole.to_string()).is_some(), exact);
        }
    }
}
