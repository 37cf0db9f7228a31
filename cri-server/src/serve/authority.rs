//! Makes a socket path in `:authority` acceptable to the HTTP/2 server, without changing any length.
//!
//! gRPC C-core (Python, C++), grpc-java and old grpc-go send the unix socket's path as `:authority`. The `h2` crate
//! parses that field as a URI authority and resets the stream when it holds `%` or `/`, before any handler runs. The
//! field has no meaning on a unix socket, so [`Rewriter`] walks the client's HTTP/2 frames (RFC 9113 §4.1) and the HPACK
//! header blocks in them (RFC 7541 §6), and overwrites each `%` and `/` in a literal `:authority` by `-`.
//! `connection.rs` reads through it.
//!
//! All three characters have Huffman codes of six bits, so frame lengths stay as they are, and so does the size of the
//! entry in the dynamic table: both ends keep evicting the same entries.
//!
//! It never judges: what it cannot read passes as it came, and the HTTP/2 server answers for it.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// A header block beyond this passes unread; the server refuses it anyway.
const MAX_BLOCK: usize = 256 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The sans-IO half: bytes of the client in, the same number of bytes out, header blocks once they are whole.
#[derive(Debug)]
pub(super) struct Rewriter {
    state: State,
    /// Frames of the header block that has not ended, and the frame header being collected.
    held: Vec<u8>,
}

/// Where in the client's byte stream the rewriter stands.
#[derive(Debug)]
enum State {
    /// Within the connection preface, after this many bytes of it.
    Preface(usize),
    /// Collecting a frame header into `held`, whose current frame starts at this offset.
    Header(usize),
    /// Collecting the rest of a frame of a header block into `held`: bytes missing, and the frame's flags.
    Block { missing: usize, flags: u8 },
    /// Passing the payload of another frame: bytes left.
    Payload(usize),
    /// Not HTTP/2, or not readable: all passes.
    Transparent,
}

impl Default for Rewriter {
    fn default() -> Rewriter {
        Rewriter { state: State::Preface(0), held: Vec::new() }
    }
}

impl Rewriter {
    /// Takes `input` and appends what may go on to `output`.
    pub(super) fn push(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            let used = self.step(input, output);
            input = &input[used..];
        }
    }

    /// Lets go of what is held, as it came.
    pub(super) fn flush(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.held);
        self.state = State::Transparent;
    }

    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> usize {
        match self.state {
            State::Transparent => {
                output.extend_from_slice(input);
                input.len()
            }
            State::Preface(seen) => {
                let count = input.len().min(PREFACE.len() - seen);
                output.extend_from_slice(&input[..count]);
                self.state = if input[..count] != PREFACE[seen..seen + count] {
                    State::Transparent
                } else if seen + count == PREFACE.len() {
                    State::Header(0)
                } else {
                    State::Preface(seen + count)
                };
                count
            }
            State::Header(start) => {
                let count = input.len().min(FRAME_HEADER - (self.held.len() - start));
                self.held.extend_from_slice(&input[..count]);
                if self.held.len() - start == FRAME_HEADER {
                    self.frame_starts(start, output);
                }
                count
            }
            State::Block { missing, flags } => {
                let count = input.len().min(missing);
                self.held.extend_from_slice(&input[..count]);
                self.state = State::Block { missing: missing - count, flags };
                if missing == count {
                    self.frame_ends(flags, output);
                }
                count
            }
            State::Payload(left) => {
                let count = input.len().min(left);
                output.extend_from_slice(&input[..count]);
                self.state = if left == count { State::Header(0) } else { State::Payload(left - count) };
                count
            }
        }
    }

    fn frame_starts(&mut self, start: usize, output: &mut Vec<u8>) {
        let header = &self.held[start..];
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        let expected = if start == 0 { HEADERS } else { CONTINUATION };
        if self.held.len() + length > MAX_BLOCK || (start > 0 && kind != CONTINUATION) {
            self.flush(output);
        } else if kind == expected {
            self.state = State::Block { missing: length, flags };
            if length == 0 {
                self.frame_ends(flags, output);
            }
        } else {
            output.append(&mut self.held);
            self.state = if length == 0 { State::Header(0) } else { State::Payload(length) };
        }
    }

    fn frame_ends(&mut self, flags: u8, output: &mut Vec<u8>) {
        if flags & END_HEADERS == 0 {
            self.state = State::Header(self.held.len());
            return;
        }
        rewrite_frames(&mut self.held);
        output.append(&mut self.held);
        self.state = State::Header(0);
    }
}

/// Rewrites the header block that is spread over the whole `frames`: one HEADERS, then CONTINUATIONs.
fn rewrite_frames(frames: &mut [u8]) {
    let Some(fragments) = fragments(frames) else { return };
    let mut block: Vec<u8> = fragments.iter().flat_map(|range| &frames[range.clone()]).copied().collect();
    rewrite_block(&mut block);
    let mut from = 0;
    for range in fragments {
        let length = range.len();
        frames[range].copy_from_slice(&block[from..from + length]);
        from += length;
    }
}

/// Where the fragments of the header block lie, without padding and priority; `None` if lengths contradict each other.
fn fragments(frames: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < frames.len() {
        let header = frames.get(at..at + FRAME_HEADER)?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (kind, flags) = (header[3], header[4]);
        let (mut from, mut to) = (at + FRAME_HEADER, at + FRAME_HEADER + length);
        at = to;
        if kind == HEADERS && flags & PADDED != 0 {
            to = to.checked_sub(usize::from(*frames.get(from)?))?;
            from += 1;
        }
        if kind == HEADERS && flags & PRIORITY != 0 {
            from += 5;
        }
        if from > to || to > frames.len() {
            return None;
        }
        ranges.push(from..to);
    }
    Some(ranges)
}

/// Walks the representations of RFC 7541 §6; stops at the first that is malformed.
fn rewrite_block(block: &mut [u8]) {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let prefix = match first {
            0x80.. => 7,     // indexed: nothing follows
            0x40..0x80 => 6, // literal, added to the dynamic table
            0x20..0x40 => 5, // dynamic table size update: nothing follows
            0x00..0x20 => 4, // literal, not added
        };
        let Some((index, after)) = integer(block, at, prefix) else { return };
        at = after;
        if first >= 0x80 || (0x20..0x40).contains(&first) {
            continue;
        }
        let mut authority = index == 1; // static table, entry 1
        if index == 0 {
            let Some(name) = string(block, at) else { return };
            authority = !name.huffman && &block[name.from..name.to] == b":authority";
            at = name.to;
        }
        let Some(value) = string(block, at) else { return };
        at = value.to;
        if authority {
            let bytes = &mut block[value.from..value.to];
            if value.huffman { rewrite_huffman(bytes) } else { rewrite_plain(bytes) }
        }
    }
}

struct Text {
    huffman: bool,
    from: usize,
    to: usize,
}

/// A string literal (RFC 7541 §5.2) at `at`.
fn string(block: &[u8], at: usize) -> Option<Text> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, from) = integer(block, at, 7)?;
    let to = from.checked_add(length)?;
    (to <= block.len()).then_some(Text { huffman, from, to })
}

/// An integer (RFC 7541 §5.1) whose first byte, at `at`, gives it `prefix` bits; and where the next thing starts.
fn integer(block: &[u8], mut at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    at += 1;
    if value < mask {
        return Some((value, at));
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

fn rewrite_plain(bytes: &mut [u8]) {
    for byte in bytes {
        if matches!(*byte, b'%' | b'/') {
            *byte = b'-';
        }
    }
}

/// How many symbols have a code of each length, by RFC 7541 appendix B. The code is canonical: the codes of one length are
/// consecutive, so lengths alone tell where a code ends.
const CODES: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];
const PERCENT: u32 = 0x15;
const SLASH: u32 = 0x18;
const DASH: u32 = 0x16;

fn rewrite_huffman(bytes: &mut [u8]) {
    let bits = bytes.len() * 8;
    let bit = |bytes: &[u8], at: usize| u32::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let mut start = 0;
    while start < bits {
        let (mut code, mut length, mut first, mut before) = (0u32, 0u32, 0u32, 0u32);
        let found = CODES.iter().find(|(size, count)| {
            first = (first + before) << (size - length);
            while length < *size && start + (length as usize) < bits {
                code = code << 1 | bit(bytes, start + length as usize);
                length += 1;
            }
            before = *count;
            length == *size && code >= first && code - first < *count
        });
        // Only padding is left: fewer bits than any code, all ones.
        let Some((size, _)) = found else { return };
        if *size == 6 && (code == PERCENT || code == SLASH) {
            for offset in 0..6usize {
                let (byte, shift) = ((start + offset) / 8, 7 - (start + offset) % 8);
                let value = (DASH >> (5 - offset) & 1) as u8;
                bytes[byte] = bytes[byte] & !(1 << shift) | value << shift;
            }
        }
        start += *size as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, (payload.len() >> 8) as u8, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn plain(value: &[u8]) -> Vec<u8> {
        [&[0x41, value.len() as u8], value].concat()
    }

    /// What comes out when `input` arrives in pieces of `size` bytes.
    fn rewritten(input: &[u8], size: usize) -> Vec<u8> {
        let (mut rewriter, mut output) = (Rewriter::default(), Vec::new());
        for piece in input.chunks(size) {
            rewriter.push(piece, &mut output);
        }
        rewriter.flush(&mut output);
        output
    }

    fn check(before: &[Vec<u8>], after: &[Vec<u8>]) {
        let join = |frames: &[Vec<u8>]| [PREFACE, &frames.concat()].concat();
        for size in [1, 2, 7, 1 << 16] {
            assert_eq!(rewritten(&join(before), size), join(after), "in pieces of {size}");
        }
    }

    #[test]
    fn a_socket_path_becomes_a_plain_name_of_the_same_length() {
        check(
            &[frame(HEADERS, END_HEADERS, &plain(b"%2Frun%2Fx.sock")), frame(0, 1, b"/data%")],
            &[frame(HEADERS, END_HEADERS, &plain(b"-2Frun-2Fx.sock")), frame(0, 1, b"/data%")],
        );
    }

    #[test]
    fn a_path_in_another_field_stays() {
        // `:path` (static entry 4) as a literal, then `:authority` with a name of its own.
        let block = [&[0x04, 2], b"/a".as_slice(), &[0x00, 10], b":authority", &[3], b"/b/"].concat();
        let expected = [&[0x04, 2], b"/a".as_slice(), &[0x00, 10], b":authority", &[3], b"-b-"].concat();
        check(&[frame(HEADERS, END_HEADERS, &block)], &[frame(HEADERS, END_HEADERS, &expected)]);
    }

    #[test]
    fn a_block_may_be_padded_prioritised_and_continued_anywhere() {
        let (before, after) = (plain(b"/run/x/%2F"), plain(b"-run-x--2F"));
        for cut in 0..before.len() {
            let frames = |block: &[u8]| {
                let first = [&[3u8][..], &[0, 0, 0, 0, 16], &block[..cut], &[0, 0, 0]].concat();
                [frame(HEADERS, PADDED | PRIORITY, &first), frame(CONTINUATION, END_HEADERS, &block[cut..])]
            };
            check(&frames(&before), &frames(&after));
        }
    }

    #[test]
    fn a_huffman_coded_path_keeps_its_length() {
        // "/run/x" and "-run-x" by RFC 7541 appendix B: / 011000, r 101100, u 101101, n 101010, x 1111001, - 010110.
        let coded = |text: &str| {
            let mut bits: String = text
                .chars()
                .map(|c| match c {
                    '/' => "011000",
                    '-' => "010110",
                    '%' => "010101",
                    '2' => "00010",
                    'F' => "1100001",
                    'r' => "101100",
                    'u' => "101101",
                    'n' => "101010",
                    'x' => "1111001",
                    other => panic!("no code for {other}"),
                })
                .collect();
            while !bits.len().is_multiple_of(8) {
                bits.push('1');
            }
            let bytes: Vec<u8> =
                bits.as_bytes().chunks(8).map(|b| b.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'))).collect();
            [&[0x41, 0x80 | bytes.len() as u8], bytes.as_slice()].concat()
        };
        for text in ["/run/x", "%2Frun%2Fx", "xx/", "/", "%", "uuu%n/r"] {
            let dashed = text.replace(['/', '%'], "-");
            check(&[frame(HEADERS, END_HEADERS, &coded(text))], &[frame(HEADERS, END_HEADERS, &coded(&dashed))]);
        }
    }

    #[test]
    fn what_is_not_http2_passes_as_it_came() {
        let bytes = b"GET /run/x HTTP/1.1\r\n\r\n";
        assert_eq!(rewritten(bytes, 3), bytes);
    }

    proptest! {
        #[test]
        fn no_byte_is_added_lost_or_held_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1usize..40) {
            let input = [PREFACE, &bytes].concat();
            prop_assert_eq!(rewritten(&input, size).len(), input.len());
        }

        #[test]
        fn any_header_block_is_walked_without_panic(mut block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let length = block.len();
            rewrite_block(&mut block);
            prop_assert_eq!(block.len(), length);
        }
    }
}
