//! The members of a JSON object being written: sorted by name, each once.

use std::ops::Range;

use super::form::JsonError;

/// The members written so far. Names are compared as UTF-8 bytes, which sort like their code points.
pub(super) struct Members<N> {
    written: Vec<(N, Range<usize>)>,
    in_order: bool,
}

impl<N: Ord> Members<N> {
    pub fn new() -> Self {
        Self {
            written: Vec::new(),
            in_order: true,
        }
    }

    /// Adds the member at `place` in the output, right behind the last one.
    pub fn add(&mut self, name: N, place: Range<usize>) {
        self.in_order &= self.written.last().is_none_or(|(last, _)| *last < name);
        self.written.push((name, place));
    }

    /// Sorts the members, which are at the end of `out`.
    pub fn sort(mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        if self.in_order {
            return Ok(());
        }
        let first = self.written[0].1.start;
        self.written.sort_by(|(a, _), (b, _)| a.cmp(b));
        if self.written.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(JsonError::NameTwice);
        }
        let mut sorted = Vec::with_capacity(out.len() - first);
        for (_, place) in self.written {
            sorted.extend_from_slice(&out[place]);
        }
        out.truncate(first);
        out.extend_from_slice(&sorted);
        Ok(())
    }
}
