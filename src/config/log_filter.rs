//! The log filter: the text of `--log`.

use tracing_subscriber::filter::{LevelFilter, Targets};

const EXPECTED: &str = "a filter is a level (off, error, warn, info, debug, trace), target=level pairs, or both, \
                        with commas";
/// The level of unnamed targets when none is given.
const LEVEL_DEFAULT: LevelFilter = LevelFilter::INFO;

/// Parses a filter. A word that is not a level is refused rather than taken for a target: a misspelled level
/// would silence everything else.
pub(super) fn log_filter(text: &str) -> Result<Targets, String> {
    let mut filter = Targets::new().with_default(LEVEL_DEFAULT);
    for part in text.split(',').map(str::trim) {
        filter = match part.split_once('=') {
            None => filter.with_default(level(part)?),
            Some((target, named)) if is_target(target) => filter.with_target(target, level(named)?),
            Some((target, _)) => return Err(format!("'{target}' is not a target; {EXPECTED}")),
        };
    }
    Ok(filter)
}

fn level(text: &str) -> Result<LevelFilter, String> {
    // The parser accepts numbers as levels, and an empty text.
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphabetic()) && !text.is_empty();
    let level = text.parse().ok().filter(|_| is_word);
    level.ok_or_else(|| format!("'{text}' is not a level; {EXPECTED}"))
}

/// Whether this may be the path of a module.
fn is_target(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_and_targets_are_taken() {
        for (text, target, level, is_logged) in [
            ("info", "oncelog", Level::INFO, true),
            ("info", "oncelog", Level::DEBUG, false),
            ("DEBUG", "h2", Level::DEBUG, true),
            ("off", "oncelog", Level::ERROR, false),
            ("h2=debug", "h2", Level::DEBUG, true),
            ("h2=debug", "oncelog", Level::INFO, true),
            (
                "error, oncelog::log=trace",
                "oncelog::log::file",
                Level::TRACE,
                true,
            ),
            (
                "oncelog::log=trace,error",
                "oncelog::index",
                Level::WARN,
                false,
            ),
        ] {
            let filter = log_filter(text).expect("a filter");
            assert_eq!(filter.would_enable(target, &level), is_logged, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "", ",", "verbose", "nonsense", "info,", "h2=", "=info", "h2=loud", "3", "a b=info",
            "h2==info",
        ] {
            let error = log_filter(text).expect_err("no filter");
            assert!(error.ends_with(EXPECTED), "{error}");
        }
    }
}
