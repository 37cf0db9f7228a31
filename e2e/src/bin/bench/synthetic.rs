//! Images to pull, made on the spot: the bulk of machine code and text, in the sizes of a real image's files.
//!
//! The machine code is this program's own, cut up and shuffled, and the text is made of words, so that gzip finds as much to
//! do as in a real layer. The same build makes the same bytes. Layers are compressed by the machine's gzip, as most are.
//!
//! An image can be had in variants, which differ in every digest and in nothing else.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    thread,
};

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::json;
use tar::{Builder, EntryType, Header};
use windlass_e2e::{image::Image, layer::Layer, push::Pusher};

use crate::error::BenchError;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Directories of a tree hold this many files.
const CROWD: usize = 40;

/// What one layer holds.
struct Plan {
    seed: u64,
    /// Small files, and how large they are on average.
    files: usize,
    average: usize,
    /// Programs and libraries.
    large: usize,
    size: usize,
    /// Takes away one file of the layer with this seed, and replaces another.
    over: Option<u64>,
}

const NOTHING: Plan = Plan { seed: 0, files: 0, average: 0, large: 0, size: 0, over: None };

/// An image that was made, in no variant yet.
pub(crate) struct Made {
    layers: Vec<Packed>,
}

struct Packed {
    blob: Vec<u8>,
    /// Over the plain archive.
    hash: Context,
}

impl Made {
    /// Compressed bytes of all layers.
    pub(crate) fn size(&self) -> usize {
        self.layers.iter().map(|layer| layer.blob.len()).sum()
    }

    pub(crate) fn push(&self, variant: u32, pusher: &Pusher, repository: &str) -> Result<(), BenchError> {
        let layers = self.layers.iter().map(|layer| layer.variant(variant)).collect::<Result<_, _>>()?;
        Image::new(layers, json!({"Cmd": ["/bin/nothing"]})).push(pusher, repository, &variant.to_string());
        Ok(())
    }
}

impl Packed {
    /// With something behind the end of the archive, in a gzip member of its own.
    fn variant(&self, variant: u32) -> Result<Layer, BenchError> {
        let mut mark = vec![0; 512];
        mark[..4].copy_from_slice(&variant.to_le_bytes());
        let mut hash = self.hash.clone();
        hash.update(&mark);
        let diff_id =
            hash.finish().as_ref().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"));
        let mut blob = self.blob.clone();
        blob.extend(gzip(mark)?);
        Ok(Layer { blob, diff_id })
    }
}

/// Six layers, about 117 MB compressed: a distribution, libraries, packages of small files, a tool chain, configuration and
/// an application.
pub(crate) fn large() -> Result<Made, BenchError> {
    image(&[
        Plan { seed: 1, files: 3000, average: 16 * KIB, large: 6, size: 4 * MIB, ..NOTHING },
        Plan { seed: 2, files: 300, average: 32 * KIB, large: 8, size: 6 * MIB, ..NOTHING },
        Plan { seed: 3, files: 8000, average: 6 * KIB, ..NOTHING },
        Plan { seed: 4, large: 2, size: 36 * MIB, ..NOTHING },
        Plan { seed: 5, files: 60, average: 2 * KIB, over: Some(1), ..NOTHING },
        Plan { seed: 6, files: 500, average: 8 * KIB, large: 1, size: 40 * MIB, over: Some(3) },
    ])
}

/// One of several images that have nothing in common, about 10 MB compressed.
pub(crate) fn medium(number: u64) -> Result<Made, BenchError> {
    let seed = 100 + 2 * number;
    image(&[
        Plan { seed, files: 400, average: 8 * KIB, large: 2, size: 4 * MIB, ..NOTHING },
        Plan { seed: seed + 1, large: 1, size: 14 * MIB, ..NOTHING },
    ])
}

/// Sixty layers of a few small files.
pub(crate) fn thin() -> Result<Made, BenchError> {
    let plans: Vec<Plan> =
        (0..60).map(|number| Plan { seed: 1000 + number, files: 3, average: KIB, ..NOTHING }).collect();
    image(&plans)
}

fn image(plans: &[Plan]) -> Result<Made, BenchError> {
    let code = std::fs::read("/proc/self/exe").map_err(|error| BenchError::failed("this program", error))?;
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut layers = Vec::new();
    for batch in plans.chunks(workers) {
        let made: Vec<Result<Packed, BenchError>> = thread::scope(|scope| {
            let started: Vec<_> = batch.iter().map(|plan| scope.spawn(|| plan.build(&code))).collect();
            let lost = |_| Err(BenchError::Usage("a layer's thread panicked".into()));
            started.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        });
        for layer in made {
            layers.push(layer?);
        }
    }
    Ok(Made { layers })
}

impl Plan {
    fn build(&self, code: &[u8]) -> Result<Packed, BenchError> {
        let mut source = Source { code, state: self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 };
        let mut tar = Builder::new(Vec::new());
        let failed = |error| BenchError::failed("a layer's archive", error);
        // As builders write them, layers have every directory that they have something in.
        let share = [Some(self.seed), self.over].map(|seed| seed.map(|seed| format!("usr/share/bench-{seed}/")));
        for path in ["usr/", "usr/lib/", "usr/share/"].into_iter().chain(share.iter().flatten().map(String::as_str)) {
            directory(&mut tar, path).map_err(failed)?;
        }
        if let Some(below) = self.over {
            directory(&mut tar, &format!("{}/", crowd(below, 0))).map_err(failed)?;
        }
        for number in 0..self.files {
            if number % CROWD == 0 {
                directory(&mut tar, &format!("{}/", crowd(self.seed, number))).map_err(failed)?;
            }
            // Most files are small, and a few are not: the average comes of a flat range of two powers.
            let size = (self.average / 4) << (source.next() % 4);
            let size = size / 2 + source.below(size.max(1));
            let content = if number % 3 == 0 { source.code(size) } else { source.text(size) };
            file(&mut tar, &small(self.seed, number), &content).map_err(failed)?;
        }
        for number in 0..self.large {
            let content = source.code(self.size);
            file(&mut tar, &format!("usr/lib/bench-{}-{number}.so", self.seed), &content).map_err(failed)?;
        }
        if let Some(below) = self.over {
            let (gone, replaced) = (small(below, 1), small(below, 2));
            let marker = gone.replace("/file", "/.wh.file");
            file(&mut tar, &marker, b"").map_err(failed)?;
            file(&mut tar, &replaced, b"replaced").map_err(failed)?;
            let mut header = header(EntryType::Link, 0);
            tar.append_link(&mut header, format!("{replaced}-again"), &replaced).map_err(failed)?;
        }
        let tar = tar.into_inner().map_err(failed)?;
        let mut hash = Context::new(&SHA256);
        hash.update(&tar);
        Ok(Packed { blob: gzip(tar)?, hash })
    }
}

fn crowd(seed: u64, number: usize) -> String {
    format!("usr/share/bench-{seed}/{}", number / CROWD)
}

fn small(seed: u64, number: usize) -> String {
    format!("{}/file-{number}", crowd(seed, number))
}

fn directory(tar: &mut Builder<Vec<u8>>, path: &str) -> std::io::Result<()> {
    tar.append_data(&mut header(EntryType::Directory, 0), path, &[][..])
}

fn file(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) -> std::io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, content.len()), path, content)
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

fn gzip(plain: Vec<u8>) -> Result<Vec<u8>, BenchError> {
    let failed = |error: std::io::Error| BenchError::failed("gzip", error);
    let mut child =
        Command::new("gzip").args(["-n", "-6"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let writing = thread::spawn(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(&plain)));
    let mut packed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut packed).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    writing.join().map_err(|_| BenchError::Usage("the thread that feeds gzip panicked".into()))?.map_err(failed)?;
    if status.success() { Ok(packed) } else { Err(BenchError::Usage(format!("gzip ended with {status}"))) }
}

/// Bytes without end; xorshift, for neither randomness nor speed matters much here.
struct Source<'a> {
    code: &'a [u8],
    state: u64,
}

impl Source<'_> {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, limit: usize) -> usize {
        // The rest is less than the limit, which is a usize.
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Pieces of this program, each from another place.
    fn code(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let length = (256 + self.below(8 * KIB)).min(size - bytes.len()).min(self.code.len());
            let start = self.below(self.code.len() - length + 1);
            bytes.extend_from_slice(&self.code[start..start + length]);
        }
        bytes
    }

    /// Lines of words of which a few thousand exist.
    fn text(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 32);
        while bytes.len() < size {
            // The square makes some words frequent and most rare.
            let word = self.below(4096) * self.below(4096) / 4096;
            let mut rest = word.wrapping_mul(2_654_435_761) ^ 0x5bd1_e995;
            for _ in 0..3 + word % 7 {
                bytes.push(b'a' + (rest % 26) as u8);
                rest /= 7;
            }
            bytes.push(if self.below(9) == 0 { b'\n' } else { b' ' });
        }
        bytes.truncate(size);
        bytes
    }
}
