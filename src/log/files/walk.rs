//! Reads the batches of one segment file.
//!
//! Owns [`Walk`]: frames and batches at an offset, all of them in turn, and whatever is behind the last.
//! Reads ahead; trusts nothing that fails a checksum. Changes nothing, and leaves decisions to its callers.

use std::{io, sync::Arc};

use bytes::Bytes;

use super::{
    frame::{ALIGN, Frame, HEAD_BYTES, PREFIX_BYTES},
    segment::Segment,
};
use crate::{
    event::{Sequence, Topic},
    log::{
        Batch,
        header::{Header, NotABatch},
    },
    platform::{Disk, DiskFile},
};

/// Zeros are skipped in steps of this many bytes.
const STEP_BYTES: usize = 4096;
const ZEROS: [u8; STEP_BYTES] = [0; STEP_BYTES];

/// Why there is no batch at an offset.
#[derive(Debug)]
pub(super) enum NoBatch {
    Io(io::Error),
    Damaged(&'static str),
}

impl From<io::Error> for NoBatch {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<NotABatch> for NoBatch {
    fn from(NotABatch(what): NotABatch) -> Self {
        Self::Damaged(what)
    }
}

/// Where a run of batches ends.
#[derive(Debug)]
pub(super) struct RunEnd {
    /// After the last batch.
    pub offset: u64,
    /// The sequence after the last event's.
    pub sequence: Sequence,
    /// Why no batch follows it.
    pub what: &'static str,
    /// The last batch.
    pub last: Option<Frame>,
}

/// What lies behind a run of batches.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The next frame that is not older than the run's end.
    pub frame: Option<Frame>,
    /// The end of the non-zero bytes, or the run's end if all are zero. Only computed if there is no frame.
    pub dirty_end: u64,
}

/// An open segment with a window read ahead. It hands out copies, so that an event keeps its batch in memory,
/// not the window it was read in.
pub(super) struct Walk {
    pub segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    window_at: u64,
    window: Vec<u8>,
    /// The least to read at a time, in bytes.
    pub ahead: usize,
}

impl Walk {
    pub fn open(segment: Arc<Segment>, disk: &dyn Disk, ahead: usize) -> io::Result<Self> {
        let file = segment.open(disk)?;
        Ok(Self {
            segment,
            file,
            window_at: 0,
            window: Vec::new(),
            ahead,
        })
    }

    /// The bytes read ahead from `offset` on.
    fn read_ahead(&self, offset: u64) -> &[u8] {
        let from = offset.checked_sub(self.window_at);
        let from = from.and_then(|from| usize::try_from(from).ok());
        from.and_then(|from| self.window.get(from..))
            .unwrap_or_default()
    }

    /// The bytes from `offset` to the segment's end. Fails if there are fewer than `bytes`.
    fn left(&self, offset: u64, bytes: usize) -> io::Result<usize> {
        let left = self.segment.end().saturating_sub(offset);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if bytes > left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(left)
    }

    /// A few `bytes` from `offset`, within the segment.
    fn peek(&mut self, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        if self.read_ahead(offset).len() < bytes {
            let left = self.left(offset, bytes)?;
            self.window.resize(bytes.max(self.ahead).min(left), 0);
            self.window_at = offset;
            if let Err(error) = self.file.read_exact_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        Ok(&self.read_ahead(offset)[..bytes])
    }

    /// A copy of `bytes` from `offset`, within the segment.
    fn copy(&mut self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        if bytes <= self.ahead {
            return Ok(Bytes::copy_from_slice(self.peek(offset, bytes)?));
        }
        self.left(offset, bytes)?;
        let mut copy = vec![0; bytes];
        let ahead = self.read_ahead(offset);
        let ahead = &ahead[..ahead.len().min(bytes)];
        let (head, rest) = copy.split_at_mut(ahead.len());
        head.copy_from_slice(ahead);
        let rest_at = offset + head.len() as u64;
        self.file.read_exact_at(rest, rest_at)?;
        Ok(copy.into())
    }

    /// Frees the window if all of it is before `offset`.
    pub fn release(&mut self, offset: u64) {
        if self.window_at + self.window.len() as u64 <= offset {
            self.window = Vec::new();
        }
    }

    /// The frame at `offset`.
    pub fn frame(&mut self, offset: u64) -> Result<Frame, NoBatch> {
        let end = self.segment.end();
        if offset + HEAD_BYTES as u64 > end {
            return Err(NoBatch::Damaged("the file ends"));
        }
        let salt = self.segment.header.salt;
        let head = self.peek(offset, HEAD_BYTES)?;
        let head = head.first_chunk().expect("so much was read");
        match Frame::parse(salt, offset, head) {
            Some(frame) if frame.end() <= end => Ok(frame),
            Some(_) => Err(NoBatch::Damaged("the batch is longer than the file")),
            None if *head == [0; HEAD_BYTES] => Err(NoBatch::Damaged("there is no batch")),
            None => Err(NoBatch::Damaged("the batch fails its checksum")),
        }
    }

    /// The bytes of a frame, including the batch.
    pub fn framed(&mut self, frame: &Frame) -> io::Result<Bytes> {
        self.copy(frame.offset, PREFIX_BYTES + frame.batch_bytes as usize)
    }

    /// The whole batch of a frame.
    pub fn batch(&mut self, frame: &Frame) -> Result<Batch, NoBatch> {
        let batch = self.copy(frame.batch_offset(), frame.batch_bytes as usize)?;
        Ok(Batch::decode(batch)?)
    }

    /// The batch of a frame with the events of one topic, reading only these.
    pub fn group(&mut self, frame: &Frame, topic: &Topic) -> Result<Batch, NoBatch> {
        let at = frame.batch_offset();
        let header = self.copy(at, frame.fixed.header_bytes as usize)?;
        let header = Header::parse(header, frame.batch_bytes as usize)?;
        let group = match header.find(topic.as_str()) {
            Some(group) => {
                let data = header.groups[group].data.clone();
                Some((group, self.copy(at + data.start as u64, data.len())?))
            }
            None => None,
        };
        Ok(Batch::from_group(header, group)?)
    }

    /// Reads consecutive batches from `offset`; the first must start at `sequence`.
    pub fn run(
        &mut self,
        mut offset: u64,
        mut sequence: Sequence,
        mut on_batch: impl FnMut(&Batch),
    ) -> io::Result<RunEnd> {
        let mut last = None;
        loop {
            match self.follow(offset, sequence) {
                Ok((frame, batch)) => {
                    last = Some(frame);
                    self.segment.note(sequence, offset);
                    on_batch(&batch);
                    offset = frame.next_offset();
                    sequence = batch.end_sequence();
                }
                Err(NoBatch::Io(error)) => return Err(error),
                Err(NoBatch::Damaged(what)) => {
                    return Ok(RunEnd {
                        offset: offset.min(self.segment.end()),
                        sequence,
                        what,
                        last,
                    });
                }
            }
        }
    }

    fn follow(&mut self, offset: u64, sequence: Sequence) -> Result<(Frame, Batch), NoBatch> {
        let frame = self.frame(offset)?;
        if frame.fixed.first_sequence != sequence {
            return Err(NoBatch::Damaged("the batch is not the next one"));
        }
        let batch = self.batch(&frame)?;
        Ok((frame, batch))
    }

    /// Looks behind a run of batches for a frame that can only be there if the run once went on.
    pub fn rest(&mut self, run: &RunEnd) -> io::Result<Rest> {
        let mut rest = Rest {
            frame: None,
            dirty_end: run.offset,
        };
        let end = self.segment.end();
        let mut at = run.offset;
        while at < end {
            let bytes = (end - at).min(STEP_BYTES as u64) as usize;
            let step = self.peek(at, bytes)?;
            if *step != ZEROS[..bytes] {
                let step = step.to_vec();
                let last = step.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                rest.dirty_end = at + last as u64 + 1;
                rest.frame = self.frame_behind(run, at, &step)?;
                if rest.frame.is_some() {
                    break;
                }
            }
            at += bytes as u64;
        }
        Ok(rest)
    }

    fn frame_behind(&mut self, run: &RunEnd, at: u64, step: &[u8]) -> io::Result<Option<Frame>> {
        let align = ALIGN as usize;
        for (offset, word) in (at..).step_by(align).zip(step.chunks(align)) {
            if word.starts_with(&[0; 4]) {
                continue;
            }
            match self.frame(offset) {
                Ok(frame) if run.is_before(&frame) => return Ok(Some(frame)),
                Ok(_) | Err(NoBatch::Damaged(_)) => (),
                Err(NoBatch::Io(error)) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl RunEnd {
    /// Whether a frame behind the run belongs to a batch appended after the missing one. The frame right
    /// behind the run may be the missing one itself, damaged only in its events.
    fn is_before(&self, frame: &Frame) -> bool {
        let first_sequence = frame.fixed.first_sequence;
        if frame.offset == self.offset {
            first_sequence != self.sequence
        } else {
            first_sequence >= self.sequence
        }
    }
}
