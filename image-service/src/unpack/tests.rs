use std::io::Write;

use super::*;

fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    inflate(BufReader::new(bytes)).unwrap().read_to_end(&mut out).unwrap();
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_first_bytes_tell_the_compression() {
    assert_eq!(plain(b"tar"), b"tar");
    assert_eq!(plain(b""), b"");
    assert_eq!(plain(&gzip(b"tar")), b"tar");
    assert_eq!(plain(&[gzip(b"two "), gzip(b"members")].concat()), b"two members");
    assert_eq!(plain(&zstd::encode_all(b"tar".as_slice(), 1).unwrap()), b"tar");
    let skippable =
        [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd::encode_all(b"tar".as_slice(), 1).unwrap().as_slice()]
            .concat();
    assert_eq!(plain(&skippable), b"tar");
}

/// One piece again and again, so many times.
struct Repeated {
    piece: Vec<u8>,
    at: usize,
    left: u64,
}

impl Repeated {
    fn new(piece: Vec<u8>, times: u64) -> BufReader<Repeated> {
        BufReader::with_capacity(COMPRESSED, Repeated { piece, at: 0, left: times })
    }
}

impl Read for Repeated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() && self.left > 0 {
            let count = (buffer.len() - filled).min(self.piece.len() - self.at);
            buffer[filled..filled + count].copy_from_slice(&self.piece[self.at..self.at + count]);
            (filled, self.at) = (filled + count, self.at + count);
            if self.at == self.piece.len() {
                (self.at, self.left) = (0, self.left - 1);
            }
        }
        Ok(filled)
    }
}

/// Bytes of memory that only this process has.
fn private_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    kibibytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn members_and_frames_that_hold_nothing_are_passed_over_one_by_one() {
    let empty_frame = zstd::encode_all(b"".as_slice(), 1).unwrap();
    let skippable = vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let before = private_memory();
    // A hundred megabytes each: what recurses, or keeps anything of a member, does not come to the end.
    for (what, piece) in [("gzip", gzip(b"")), ("zstd", empty_frame), ("skippable", skippable)] {
        let times = 5_000_000;
        let count = io::copy(&mut inflate(Repeated::new(piece, times)).unwrap(), &mut io::sink()).unwrap();
        assert_eq!(count, 0, "{what}");
        let grown = private_memory().saturating_sub(before);
        assert!(grown < 64 << 20, "{what}: {grown} bytes of memory");
    }
}

#[test]
fn a_window_that_takes_more_memory_than_zstd_gives_by_itself_is_refused() {
    // The header of a frame (RFC 8878, section 3.1.1.1): no checksum, no size, and a window of two to the power of this.
    let frame = |log: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0], [0; 64].as_slice()].concat();
    for log in [28, 31, 41] {
        let mut plain = Vec::new();
        let blob = frame(log);
        let error = inflate(BufReader::new(blob.as_slice())).unwrap().read_to_end(&mut plain).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{log}: {error}");
    }
    let blob = zstd::encode_all(b"small".as_slice(), 19).unwrap();
    assert_eq!(plain(&blob), b"small");
}

#[test]
fn headers_of_gzip_without_an_end_stop() {
    // A name, or a comment, goes on until a zero byte (RFC 1952, section 2.3.1).
    for flag in [0x08, 0x10] {
        let header = [0x1f, 0x8b, 8, flag, 0, 0, 0, 0, 0, 3];
        let endless = Repeated::new(vec![b'n'; 1024], 1 << 20);
        let blob = BufReader::new(header.as_slice().chain(endless));
        let error = inflate(blob).unwrap().read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn what_is_broken_anywhere_is_an_error_and_never_a_shorter_archive() {
    let text: Vec<u8> = (0..20_000u32).flat_map(|n| n.to_le_bytes()).collect();
    // gzip and, where it is told to write one, zstd end in a checksum.
    let mut checked = zstd::Encoder::new(Vec::new(), 1).unwrap();
    checked.include_checksum(true).unwrap();
    checked.write_all(&text).unwrap();
    for blob in [gzip(&text), checked.finish().unwrap()] {
        let ends = |blob: &[u8]| {
            let mut plain = Vec::new();
            inflate(BufReader::new(blob)).and_then(|mut stream| stream.read_to_end(&mut plain)).map(|_| plain)
        };
        assert_eq!(ends(&blob).unwrap(), text);
        for step in 0..64 {
            // Beyond the first bytes, which tell the compression.
            let at = 10 + step * (blob.len() - 11) / 64;
            assert!(ends(&blob[..at]).is_err(), "cut at {at}");
            let mut other = blob.clone();
            other[at] ^= 0x55;
            // A flipped bit may be in what nobody reads, such as a name; it never makes another archive.
            assert!(ends(&other).map_or(true, |plain| plain == text), "changed at {at}");
        }
        assert!(ends(&[blob.as_slice(), b"garbage"].concat()).is_err(), "garbage behind the end");
    }
}
