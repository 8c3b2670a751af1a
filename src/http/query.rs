//! The parameters of a query, decoded strictly: each must be known, given once, and UTF-8.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::Failure;

/// How much of an unknown name is repeated, in characters.
const UNKNOWN_NAME_CHARS_MAX: usize = 64;

/// The values of the parameters `names` in a query, in this order.
pub(super) fn parameters<'a, const N: usize>(
    query: Option<&'a str>,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], Failure> {
    let mut values = [const { None }; N];
    for pair in query.unwrap_or_default().split('&') {
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).unwrap_or_default();
        let Some(at) = names.iter().position(|known| *known == name) else {
            let name: String = name.chars().take(UNKNOWN_NAME_CHARS_MAX).collect();
            let msg = format!("not a parameter; the parameters are {}", names.join(", "));
            return Err(Failure::query(name, msg));
        };
        let value = decode(value).ok_or_else(|| Failure::query(names[at], "not UTF-8"))?;
        if values[at].replace(value).is_some() {
            return Err(Failure::query(names[at], "given twice"));
        }
    }
    Ok(values)
}

/// A number of at least 1.
pub(super) fn positive(
    name: &'static str,
    value: Option<&str>,
    max: u64,
) -> Result<Option<u64>, Failure> {
    let number = value.map(|value| match value.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        Ok(_) | Err(_) => {
            let msg = format!("a whole number is expected; the limit is 1 to {max}");
            Err(Failure::query(name, msg))
        }
    });
    number.transpose()
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return percent_decode_str(text).decode_utf8().ok();
    }
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Escaping does not change a value.
        #[test]
        fn any_value_comes_back(a in ".{0,20}", b in "[ -~]{0,20}") {
            let escaped = |value: &str| utf8_percent_encode(value, NON_ALPHANUMERIC).to_string();
            let query = format!("a={}&b={}", escaped(&a), escaped(&b).replace("%20", "+"));
            prop_assert_eq!(values(&query), Ok([Some(a), Some(b)]));
        }
    }

    fn values(query: &str) -> Result<[Option<String>; 2], String> {
        let values = parameters(Some(query), ["a", "b"]);
        let values = values.map_err(Failure::into_json)?;
        Ok(values.map(|value| value.map(Cow::into_owned)))
    }

    #[test]
    fn values_are_decoded() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(values(""), Ok([None, None]));
        assert_eq!(values("b=1"), Ok([None, some("1")]));
        assert_eq!(values("a=x+y%2Bz%26&&b"), Ok([some("x y+z&"), some("")]));
        assert_eq!(values("%61=%C3%A9=%"), Ok([some("é=%"), None]));
    }

    #[test]
    fn unknown_parameters_are_named() {
        for (query, says) in [
            (
                "c=1",
                r#"{"detail":[{"loc":["query","c"],"msg":"not a parameter; the parameters are a, b"}]}"#,
            ),
            (
                "a=1&a=1",
                r#"{"detail":[{"loc":["query","a"],"msg":"given twice"}]}"#,
            ),
            (
                "a=%ff",
                r#"{"detail":[{"loc":["query","a"],"msg":"not UTF-8"}]}"#,
            ),
        ] {
            assert_eq!(values(query), Err(says.to_owned()));
        }
    }

    #[test]
    fn numbers_have_limits() {
        let number = |value| positive("n", Some(value), 10).ok().flatten();
        assert_eq!(number("1"), Some(1));
        assert_eq!(number("10"), Some(10));
        for value in ["0", "11", "-1", "1.0", "", "x", "99999999999999999999"] {
            assert_eq!(number(value), None, "{value}");
        }
    }
}
