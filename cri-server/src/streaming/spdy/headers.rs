//! Header blocks: names and values, compressed with zlib and SPDY/3's preset dictionary.
//!
//! ```text
//! block = count:u32 { length:u32 name  length:u32 value }*        all through one zlib stream a direction
//! ```
//!
//! Both zlib streams live as long as the connection: a block can refer to the ones before it, so a block that was skipped
//! or cut short would break all later ones, and any error here ends the connection. A name is lower case on the wire; a
//! value with NULs in it is a list. What a block inflates to is bounded.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::FrameError;

/// Headers in the order they came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of the header of this lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        value.split('\0').next()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Headers {
        Headers(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The most a block may inflate to. What clients send is under 200 bytes.
const MAX_BLOCK: usize = 64 * 1024;

/// What is compressed or inflated in one step.
const STEP: usize = 4 * 1024;

/// The writing side's zlib stream.
pub(super) struct Compressor(Compress);

impl Compressor {
    pub(super) fn new() -> Compressor {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(DICTIONARY).expect("a fresh zlib stream takes any dictionary");
        Compressor(zlib)
    }

    /// The block as it goes on the wire. It ends at a flush, so the peer can read it at once.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let plain = plain_block(headers);
        let mut rest = plain.as_slice();
        let mut out = Vec::with_capacity(plain.len() + 64);
        loop {
            out.reserve(STEP);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut out, FlushCompress::Sync)
                .expect("zlib compresses anything that is given room");
            let taken = usize::try_from(self.0.total_in() - before).expect("no more than was given");
            rest = &rest[taken..];
            // Room that is left over means that zlib has nothing more to give.
            if rest.is_empty() && out.len() < out.capacity() {
                return out;
            }
        }
    }
}

/// The reading side's zlib stream.
pub(super) struct Decompressor(Decompress);

impl Decompressor {
    pub(super) fn new() -> Decompressor {
        Decompressor(Decompress::new(true))
    }

    /// The headers of a block off the wire.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        parse_block(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, FrameError> {
        let mut rest = block;
        let mut out = Vec::with_capacity(STEP);
        loop {
            let (before_in, before_out) = (self.0.total_in(), out.len());
            let inflated = self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before_in).map_err(|_| FrameError::Headers("inflate"))?;
            rest = &rest[taken..];
            match inflated {
                Ok(Status::StreamEnd) => return Err(FrameError::Headers("the compressed stream has ended")),
                Ok(Status::Ok | Status::BufError) => {}
                // The stream names its dictionary after the first two bytes, once a connection.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| FrameError::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(FrameError::Headers("not a zlib stream")),
            }
            if out.len() > MAX_BLOCK {
                return Err(FrameError::Headers("too large"));
            }
            let full = out.len() == out.capacity();
            if rest.is_empty() && !full {
                return Ok(out);
            }
            if taken == 0 && out.len() == before_out && !full {
                return Err(FrameError::Headers("the compressed stream is stuck"));
            }
            out.reserve(STEP);
        }
    }
}

fn plain_block(headers: &Headers) -> Vec<u8> {
    let mut block = BytesMut::new();
    let mut put = |text: &str| {
        // A text of 4 GiB cannot be had from anything in this daemon.
        block.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        block.put_slice(text.as_bytes());
    };
    for (name, value) in &headers.0 {
        put(name);
        put(value);
    }
    let mut counted = Vec::with_capacity(block.len() + 4);
    counted.put_u32(u32::try_from(headers.0.len()).unwrap_or(u32::MAX));
    counted.extend_from_slice(&block);
    counted
}

fn parse_block(mut plain: &[u8]) -> Result<Headers, FrameError> {
    let count = number(&mut plain)?;
    let mut headers: Vec<(String, String)> = Vec::new();
    for _ in 0..count {
        // Go clients send names in lower case, as the protocol says; one that does not is still understood.
        let name = text(&mut plain)?.to_ascii_lowercase();
        let value = text(&mut plain)?;
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(FrameError::Headers("a name is empty or given twice"));
        }
        headers.push((name, value));
    }
    if plain.is_empty() { Ok(Headers(headers)) } else { Err(FrameError::Headers("bytes after the last header")) }
}

fn number(plain: &mut &[u8]) -> Result<usize, FrameError> {
    let number = plain.try_get_u32().map_err(|_| FrameError::Headers("cut short"))?;
    usize::try_from(number).map_err(|_| FrameError::Headers("too large"))
}

fn text(plain: &mut &[u8]) -> Result<String, FrameError> {
    let length = number(plain)?;
    let (text, rest) = plain.split_at_checked(length).ok_or(FrameError::Headers("cut short"))?;
    *plain = rest;
    String::from_utf8(text.to_vec()).map_err(|_| FrameError::Headers("not text"))
}

/// SPDY/3's dictionary, of which every byte counts: another one works only between two peers that share the mistake.
/// Its Adler-32 is `e3c6a7c2`.
const DICTIONARY: &[u8] = b"\
    \x00\x00\x00\x07options\x00\x00\x00\x04head\x00\x00\x00\x04post\x00\x00\x00\x03put\x00\x00\x00\x06delete\
    \x00\x00\x00\x05trace\x00\x00\x00\x06accept\x00\x00\x00\x0eaccept-charset\x00\x00\x00\x0faccept-encoding\
    \x00\x00\x00\x0faccept-language\x00\x00\x00\x0daccept-ranges\x00\x00\x00\x03age\x00\x00\x00\x05allow\
    \x00\x00\x00\x0dauthorization\x00\x00\x00\x0dcache-control\x00\x00\x00\x0aconnection\
    \x00\x00\x00\x0ccontent-base\x00\x00\x00\x10content-encoding\x00\x00\x00\x10content-language\
    \x00\x00\x00\x0econtent-length\x00\x00\x00\x10content-location\x00\x00\x00\x0bcontent-md5\
    \x00\x00\x00\x0dcontent-range\x00\x00\x00\x0ccontent-type\x00\x00\x00\x04date\x00\x00\x00\x04etag\
    \x00\x00\x00\x06expect\x00\x00\x00\x07expires\x00\x00\x00\x04from\x00\x00\x00\x04host\
    \x00\x00\x00\x08if-match\x00\x00\x00\x11if-modified-since\x00\x00\x00\x0dif-none-match\
    \x00\x00\x00\x08if-range\x00\x00\x00\x13if-unmodified-since\x00\x00\x00\x0dlast-modified\
    \x00\x00\x00\x08location\x00\x00\x00\x0cmax-forwards\x00\x00\x00\x06pragma\
    \x00\x00\x00\x12proxy-authenticate\x00\x00\x00\x13proxy-authorization\x00\x00\x00\x05range\
    \x00\x00\x00\x07referer\x00\x00\x00\x0bretry-after\x00\x00\x00\x06server\x00\x00\x00\x02te\
    \x00\x00\x00\x07trailer\x00\x00\x00\x11transfer-encoding\x00\x00\x00\x07upgrade\x00\x00\x00\x0auser-agent\
    \x00\x00\x00\x04vary\x00\x00\x00\x03via\x00\x00\x00\x07warning\x00\x00\x00\x10www-authenticate\
    \x00\x00\x00\x06method\x00\x00\x00\x03get\x00\x00\x00\x06status\x00\x00\x00\x06200 OK\
    \x00\x00\x00\x07version\x00\x00\x00\x08HTTP/1.1\x00\x00\x00\x03url\x00\x00\x00\x06public\
    \x00\x00\x00\x0aset-cookie\x00\x00\x00\x0akeep-alive\x00\x00\x00\x06origin\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Una\
    uthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Servic\
    e UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu\
    , Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,applic\
    ation/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=u\
    tf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// Made with Python's zlib from the published dictionary, as one stream of three blocks.
    const FOREIGN: [(&str, Option<&str>); 3] = [
        ("78bbe3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff", Some("error")),
        ("c22a054ccc29f9a52500000000ffff", Some("stdout")),
        ("02b21800000000ffff", None),
    ];

    #[test]
    fn blocks_of_another_zlib_are_read_in_order() {
        let mut zlib = Decompressor::new();
        for (block, value) in FOREIGN {
            let expected: Headers = value.map(|value| ("streamtype", value)).into_iter().collect();
            assert_eq!(zlib.headers(&hex(block)), Ok(expected));
        }
    }

    #[test]
    fn a_block_that_refers_to_one_never_seen_is_refused() {
        let mut zlib = Decompressor::new();
        assert!(zlib.headers(&hex(FOREIGN[1].0)).is_err());
    }

    #[test]
    fn the_first_block_names_the_published_dictionary() {
        let block = Compressor::new().block(&Headers::default());
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(DICTIONARY.len(), 1423);
    }

    #[test]
    fn what_is_compressed_is_inflated_again_over_many_blocks() {
        let (mut there, mut back) = (Compressor::new(), Decompressor::new());
        for round in 0..50 {
            let long = "x".repeat(round * 300);
            let headers: Headers = [("streamtype", "data"), ("port", "8080"), ("long", &long)].into_iter().collect();
            assert_eq!(back.headers(&there.block(&headers)), Ok(headers));
        }
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let headers: Headers = [("bomb", "0".repeat(MAX_BLOCK))].into_iter().collect();
        let block = Compressor::new().block(&headers);
        assert!(block.len() < 1024);
        assert_eq!(Decompressor::new().headers(&block), Err(FrameError::Headers("too large")));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let cases: [(&[u8], &str); 5] = [
            (b"", "cut short"),
            (b"\0\0\0\x01\0\0\0\x09abc", "cut short"),
            (b"\0\0\0\x01\0\0\0\0\0\0\0\x01b", "a name is empty or given twice"),
            (b"\0\0\0\x02\0\0\0\x01a\0\0\0\x01b\0\0\0\x01A\0\0\0\x01c", "a name is empty or given twice"),
            (b"\0\0\0\0more", "bytes after the last header"),
        ];
        for (block, why) in cases {
            assert_eq!(parse_block(block), Err(FrameError::Headers(why)), "{block:?}");
        }
    }
}
