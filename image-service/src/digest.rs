//! Content digests: `sha256:<64 hex>` and `sha512:<128 hex>`, and the hashers that make them.
//!
//! A [`Digest`] in hand is well-formed, so its text may be used as a file name and in a URL without further checks.
//! Nothing here reads content by itself; callers feed bytes to a [`Digester`].

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use serde::{Deserialize, Serialize};

/// The hash functions that the OCI image specification registers and this node can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon, which is also the directory name below `blobs/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A validated content digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// What is wrong with a text that was meant to be a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("invalid digest {0:?}: expected <algorithm>:<hex>")]
    Format(String),
    #[error("unsupported digest algorithm in {0:?}: use sha256 or sha512")]
    Algorithm(String),
    #[error("invalid digest {text:?}: expected {expected} lowercase hexadecimal characters after the colon")]
    Hex { text: String, expected: usize },
}

impl Digest {
    /// Parses `sha256:<hex>` or `sha512:<hex>`; the hexadecimal part is lowercase, as the specification demands.
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| DigestError::Format(cut(text)))?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm(cut(text))),
        };
        let expected = algorithm.hex_length();
        if hex.len() != expected || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Hex { text: cut(text), expected });
        }
        Ok(Digest { algorithm, hex: hex.to_owned() })
    }

    /// The sha256 digest of bytes that are in memory already.
    pub fn sha256_of(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    /// The digest of bytes that are in memory already.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut digester = Digester::new(algorithm);
        digester.update(bytes);
        digester.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether `bytes` hash to this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Digest::of(self.algorithm, bytes) == *self
    }
}

/// A text that is no digest, as errors quote it: no more of it than a digest is long.
fn cut(text: &str) -> String {
    const LONGEST: usize = 160;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Hashes a stream piece by piece.
pub struct Digester {
    algorithm: Algorithm,
    context: Context,
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digester").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Digester {
    pub fn new(algorithm: Algorithm) -> Digester {
        let function = match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        };
        Digester { algorithm, context: Context::new(function) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub fn finish(self) -> Digest {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let sum = self.context.finish();
        let mut hex = String::with_capacity(self.algorithm.hex_length());
        for byte in sum.as_ref() {
            hex.push(char::from(HEX[usize::from(byte >> 4)]));
            hex.push(char::from(HEX[usize::from(byte & 0xf)]));
        }
        Digest { algorithm: self.algorithm, hex }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        Digest::parse(text)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Digest, DigestError> {
        Digest::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(
            Digest::sha256_of(b"").to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::of(Algorithm::Sha512, b"").hex().len(), 128);
    }

    #[test]
    fn a_digest_that_could_be_a_path_is_refused() {
        for text in ["", "sha256", "sha256:", "sha256:../../etc", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
        let upper = format!("sha256:{}", "A".repeat(64));
        assert_eq!(Digest::parse(&upper), Err(DigestError::Hex { text: upper.clone(), expected: 64 }));
    }

    #[test]
    fn a_digest_travels_through_json_as_its_text() {
        let digest = Digest::sha256_of(b"x");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"sha256:zz\"").is_err());
    }

    #[test]
    fn a_text_that_is_no_digest_is_quoted_in_part() {
        let error = Digest::parse(&format!("sha256:{}", "\u{1b}[2J".repeat(1 << 20))).unwrap_err().to_string();
        assert!(error.len() < 2_000 && !error.contains('\u{1b}'), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn a_digest_is_read_back_and_nothing_near_it_is_one(hex in "[0-9a-f]{64}", at in 0..71usize, other in "[^0-9a-f]") {
            let text = format!("sha256:{hex}");
            assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
            let mut wrong = text.clone();
            wrong.replace_range(at..=at, &other);
            // The one before and the one behind may be equal in the name of the algorithm.
            assert!(wrong == text || Digest::parse(&wrong).is_err(), "{wrong:?}");
            assert!(Digest::parse(&text[..70]).is_err() && Digest::parse(&format!("{text}0")).is_err());
        }

        #[test]
        fn any_text_is_a_digest_or_an_error(text in "(sha(256|512|384|1):)?.{0,140}") {
            if let Ok(digest) = Digest::parse(&text) {
                // It is a file's name and a part of a URL as it stands.
                assert_eq!(digest.to_string(), text);
                assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
        }
    }
}
