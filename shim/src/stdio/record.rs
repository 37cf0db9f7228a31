//! Cutting a byte stream into CRI log records. Pure: bytes in, records out.
//!
//! A record is `<time> <stream> <F|P> <content>\n`. Lines longer than the limit become `P` records and a last `F`;
//! what is left at the end of the stream without a newline becomes a `P`. The `\r` of a `\r\n` goes with the newline.

use super::Stream;

/// One record's content; `full` ends a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) content: &'a [u8],
    pub(crate) full: bool,
}

/// Holds the unfinished line of one stream, never more than the limit and one chunk.
#[derive(Debug)]
pub(crate) struct Splitter {
    pending: Vec<u8>,
    max_line: usize,
}

impl Splitter {
    pub(crate) fn new(max_line: usize) -> Self {
        Self { pending: Vec::new(), max_line }
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if self.pending.last() == Some(&b'\r') {
                self.pending.pop();
            }
            self.cut(&mut emit);
            emit(Piece { content: &self.pending, full: true });
            self.pending.clear();
        }
        self.pending.extend_from_slice(bytes);
        // A trailing \r does not count yet: the next byte may be its newline.
        let carriage = self.pending.pop_if(|byte| *byte == b'\r');
        self.cut(&mut emit);
        self.pending.extend(carriage);
    }

    /// The end of the stream.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        self.cut(&mut emit);
        if !self.pending.is_empty() {
            emit(Piece { content: &self.pending, full: false });
            self.pending.clear();
        }
    }

    fn cut(&mut self, emit: &mut impl FnMut(Piece<'_>)) {
        let mut start = 0;
        while self.pending.len() - start > self.max_line {
            emit(Piece { content: &self.pending[start..start + self.max_line], full: false });
            start += self.max_line;
        }
        self.pending.drain(..start);
    }
}

pub(crate) fn append(out: &mut Vec<u8>, time: &str, stream: Stream, piece: &Piece<'_>) {
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend_from_slice(if piece.full { b"F " } else { b"P " });
    out.extend_from_slice(piece.content);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(max_line: usize, chunks: &[&[u8]]) -> Vec<(String, char)> {
        let mut splitter = Splitter::new(max_line);
        let mut pieces = Vec::new();
        let mut keep = |piece: Piece<'_>| {
            let tag = if piece.full { 'F' } else { 'P' };
            pieces.push((String::from_utf8_lossy(piece.content).into_owned(), tag));
        };
        for chunk in chunks {
            splitter.push(chunk, &mut keep);
        }
        splitter.finish(&mut keep);
        pieces
    }

    fn expect(pieces: &[(&str, char)]) -> Vec<(String, char)> {
        pieces.iter().map(|(content, tag)| ((*content).to_owned(), *tag)).collect()
    }

    #[test]
    fn a_line_of_exactly_the_limit_stays_whole() {
        assert_eq!(split(4, &[b"abcd\nabcde\n"]), expect(&[("abcd", 'F'), ("abcd", 'P'), ("e", 'F')]));
    }

    #[test]
    fn the_end_without_a_newline_is_partial() {
        assert_eq!(split(10, &[b"a\n\nb"]), expect(&[("a", 'F'), ("", 'F'), ("b", 'P')]));
    }

    #[test]
    fn a_carriage_return_goes_with_its_newline_even_across_reads() {
        assert_eq!(split(4, &[b"abcd\r", b"\nx\ry\r"]), expect(&[("abcd", 'F'), ("x\ry\r", 'P')]));
    }

    #[test]
    fn a_record_has_single_spaces_and_ends_with_a_newline() {
        let mut out = Vec::new();
        append(&mut out, "2026-01-02T03:04:05Z", Stream::Stderr, &Piece { content: b"", full: true });
        assert_eq!(out, b"2026-01-02T03:04:05Z stderr F \n");
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_read_does_not_change_the_records(
            text in "[ab\r\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..5)
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(5, &chunks), split(5, &[bytes]));
        }
    }
}
