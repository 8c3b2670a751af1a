//! Chooses the format of a list of events.

use axum::http::{HeaderMap, HeaderValue, header};

use super::error::Failure;

/// A format of a list of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A page, as an array.
    Json,
    /// All events, one per line.
    Lines,
    /// Live, as long as somebody listens.
    EventStream,
}

/// In the order of choice when the client has no preference.
const FORMATS: [Format; 3] = [Format::Json, Format::Lines, Format::EventStream];

impl Format {
    const fn essence(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::EventStream => "text/event-stream",
        }
    }

    /// Its content type, as a header value.
    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.essence())
    }

    /// The format that a client prefers. RFC 9110, section 12.5.1.
    pub fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let ranges: Vec<Range> = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(Range::parse)
            .collect();
        if ranges.is_empty() {
            return Ok(Self::Json);
        }
        let mut best = (0, None);
        for format in FORMATS {
            let quality = quality(format.essence(), &ranges);
            if quality > best.0 {
                best = (quality, Some(format));
            }
        }
        best.1.ok_or_else(Failure::not_acceptable)
    }
}

/// A media range and its quality, in thousandths.
struct Range {
    essence: String,
    quality: u16,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next()?.to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let quality: f32 = quality.map_or(Ok(1.0), str::parse).ok()?;
        let quality = (quality.clamp(0.0, 1.0) * 1000.0).round() as u16;
        (!essence.is_empty()).then_some(Self { essence, quality })
    }
}

/// The quality of a format: that of the most specific range.
fn quality(essence: &str, ranges: &[Range]) -> u16 {
    let (kind, _) = essence.split_once('/').expect("a format has a subtype");
    let specificity = |range: &str| {
        if range == essence {
            Some(2)
        } else if range.strip_suffix("/*") == Some(kind) {
            Some(1)
        } else {
            (range == "*/*").then_some(0)
        }
    };
    let matching = ranges
        .iter()
        .filter_map(|range| Some((specificity(&range.essence)?, range.quality)));
    matching.max().map_or(0, |(_, quality)| quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(accept: &'static str) -> Option<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Format::of(&headers).ok()
    }

    #[test]
    fn the_preferred_format_is_chosen() {
        for (accept, chosen) in [
            ("", Some(Format::Json)),
            ("*/*", Some(Format::Json)),
            ("application/*", Some(Format::Json)),
            ("text/*", Some(Format::EventStream)),
            ("application/x-ndjson", Some(Format::Lines)),
            ("Text/Event-Stream", Some(Format::EventStream)),
            (
                "text/event-stream;q=0.5, application/json;q=0.4",
                Some(Format::EventStream),
            ),
            ("application/json;q=0, */*", Some(Format::Lines)),
            (
                "text/html, application/xhtml+xml, */*;q=0.8",
                Some(Format::Json),
            ),
            ("application/x-ndjson, */*;q=0.1", Some(Format::Lines)),
            ("text/html", None),
            ("*/*;q=0", None),
        ] {
            assert_eq!(format(accept), chosen, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()).ok(), Some(Format::Json));
    }
}
