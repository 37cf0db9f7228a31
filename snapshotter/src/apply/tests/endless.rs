//! Streams that go on and on, of what compresses to almost nothing: each ends at a limit, in little memory, and before it has
//! cost much. They are made while they are read, so that no test holds what it is about.

use std::io::Read;

use super::super::meter::{MAX_NAMES, MAX_WALKS};
use super::*;

/// A start, and then entries for as long as somebody reads who has a limit.
struct Endless<F> {
    next: F,
    number: u64,
    piece: Vec<u8>,
    at: usize,
    read: u64,
}

impl<F: FnMut(u64) -> Tar> Endless<F> {
    fn new(start: &Tar, next: F) -> Endless<F> {
        Endless { next, number: 0, piece: start.entries().to_vec(), at: 0, read: 0 }
    }
}

impl<F: FnMut(u64) -> Tar> Read for Endless<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Without the limits, the test fails here and not when the machine's memory is used up.
        if self.read > 4 * MAX_NAMES {
            return Ok(0);
        }
        if self.at == self.piece.len() {
            self.piece = (self.next)(self.number).entries().to_vec();
            (self.number, self.at) = (self.number + 1, 0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        self.read += count as u64;
        Ok(count)
    }
}

/// What the limits say of a stream that begins so and goes on so for ever, in either mode; and how much of it was read.
fn ends(start: &Tar, next: fn(u64) -> Tar, limits: &Limits) -> (String, u64) {
    let [one, other] = [Whiteouts::Remove, Whiteouts::Overlay].map(|whiteouts| {
        let world = World::new(whiteouts);
        let before = surroundings(&world.root());
        let mut stream = Endless::new(start, next);
        let target = Target { root: world.root(), parents: Vec::new(), whiteouts };
        let error = apply(&mut stream, &target, limits).unwrap_err();
        assert_eq!(surroundings(&world.root()), before, "{error}");
        let Error::TooMuch { what, limit } = error else { panic!("{error:?}") };
        (format!("{what} {limit}"), stream.read)
    });
    assert_eq!(one, other);
    one
}

fn few() -> Limits {
    Limits { bytes: 1 << 20, inodes: 500, ..Limits::default() }
}

#[test]
fn privileged_entries_without_an_end_stop_at_the_limit_whatever_they_are() {
    confined(|| {
        let start = Tar::new().dir("d", 0o755).file("d/f", "");
        for (what, next) in [
            ("files", (|number| Tar::new().file(format!("{number}"), "")) as fn(u64) -> Tar),
            ("one file again and again", |_| Tar::new().file("f", "")),
            ("directories", |number| Tar::new().dir(format!("d/{number}"), 0o755)),
            ("one directory again and again", |_| Tar::new().dir("d", 0o755)),
            ("links", |number| Tar::new().symlink(format!("{number}"), "f")),
            ("hard links", |number| Tar::new().hardlink(format!("{number}"), "d/f")),
            ("one hard link again and again", |_| Tar::new().hardlink("h", "d/f")),
            ("hard links of files to themselves", |_| Tar::new().hardlink("d/f", "d/f")),
            ("whiteouts", |number| Tar::new().file(format!("d/.wh.{number}"), "")),
            ("one whiteout again and again", |_| Tar::new().file("d/.wh.g", "")),
            ("opaque directories", |_| Tar::new().file("d/.wh..wh..opq", "")),
            ("notes of old drivers", |_| Tar::new().file(".wh..wh.plnk", "")),
            ("the root", |_| Tar::new().dir(".", 0o755)),
            ("pipes", |number| Tar::new().node(format!("p{number}"), b'6', 0, 0)),
            ("global headers", |_| Tar::new().raw("g", b'g', "", b"12 comment=\n", |_| {})),
        ] {
            let (ended, read) = ends(&start, next, &few());
            assert!(["entries 500", "files 500"].contains(&ended.as_str()), "{what}: {ended}");
            // Nothing is read far ahead.
            assert!(read < (500 * 1024) + (1 << 20), "{what}: {read}");
        }
    });
}

#[test]
fn privileged_the_content_of_what_is_not_written_counts() {
    confined(|| {
        let piece = |_| Tar::from_content(&[0; 1 << 16]);
        let size = |header: &mut build::Header| header.octal(124, 12, 1 << 32);
        for (what, start) in [
            ("the root as a file", Tar::new().raw("./", b'0', "", b"", size)),
            ("a whiteout", Tar::new().raw(".wh.x", b'0', "", b"", size)),
            ("an opaque directory", Tar::new().raw(".wh..wh..opq", b'0', "", b"", size)),
            ("notes of old drivers", Tar::new().raw(".wh..wh.plnk", b'0', "", b"", size)),
        ] {
            let (ended, read) = ends(&start, piece, &few());
            assert_eq!(ended, "bytes of what is no file 1048576", "{what}");
            assert!(read < 3 << 20, "{what}: {read}");
        }
        // Of several, all together.
        let next = |_| Tar::new().raw(".", b'0', "", &[0; 100_000], |_| {});
        assert_eq!(ends(&Tar::new(), next, &few()).0, "bytes of what is no file 1048576");
        // What follows the end counts with it.
        let half = vec![0; 600_000];
        let whole = Tar::new().raw(".", b'0', "", &half, |_| {}).after_the_end(&half);
        let world = World::new(Whiteouts::Remove);
        let error = world.apply_within(&whole, &few()).unwrap_err();
        assert!(matches!(error, Error::TooMuch { what: "bytes after its end", .. }), "{error:?}");
    });
}

#[test]
fn privileged_attributes_and_targets_of_links_are_bytes_as_well() {
    confined(|| {
        let next = |number| {
            let value = vec![b'v'; 30_000];
            Tar::new().pax(&[("SCHILY.xattr.trusted.one", &value)]).file(format!("{number}"), "")
        };
        let (ended, read) = ends(&Tar::new(), next, &few());
        assert_eq!(ended, "bytes of files 1048576");
        assert!(read < 3 << 20, "{read}");
        let next = |number| {
            let long = "t".repeat(4000);
            Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink(format!("{number}"), "x")
        };
        assert_eq!(ends(&Tar::new(), next, &few()).0, "bytes of files 1048576");
    });
}

#[test]
fn privileged_the_names_that_have_to_be_remembered_are_bounded() {
    confined(|| {
        fn next(number: u64) -> Tar {
            let long = format!("{}{number}", format!("{}/", "n".repeat(200)).repeat(20));
            Tar::new().pax(&[("path", long.as_bytes())]).dir("d", 0o755)
        }
        let (ended, read) = ends(&Tar::new(), next, &Limits { inodes: 100_000, ..Limits::default() });
        assert_eq!(ended, format!("bytes of names of directories {MAX_NAMES}"));
        assert!(read < 2 * MAX_NAMES, "{read}");
    });
}

#[test]
fn privileged_a_directory_is_not_searched_again_and_again_for_what_is_deleted() {
    confined(|| {
        // In one directory with the layers below, each of these looks at all that is in `d`.
        let limits = Limits { inodes: 2_000, ..Limits::default() };
        let world = World::new(Whiteouts::Remove);
        fs::create_dir(world.root().join("d")).unwrap();
        let start = (0..1_000).fold(Tar::new(), |tar, number| tar.file(format!("d/{number}"), ""));
        let mut stream = Endless::new(&start, |_| Tar::new().file("d/.wh..wh..opq", ""));
        let target = Target { root: world.root(), parents: Vec::new(), whiteouts: Whiteouts::Remove };
        let error = apply(&mut stream, &target, &limits).unwrap_err();
        assert!(
            matches!(error, Error::TooMuch { what: "files to look at for what it deletes", limit } if limit == 2_000 * MAX_WALKS),
            "{error:?}"
        );
        assert!(stream.number < 40, "{}", stream.number);
    });
}

#[test]
fn privileged_a_hard_link_to_a_file_of_holes_below_copies_its_data_only() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        // Eight exbibytes less one, as far as the file system allows.
        let sizes = [b"9223372036854775807".as_slice(), b"1099511627776"];
        let sparse = |size: &[u8], name: &str| {
            Tar::new()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size)])
                .sparse(name, &[(8192, b"data"), (1 << 39, b"more")])
        };
        let holes = sizes.into_iter().find(|size| World::new(Whiteouts::Remove).apply(&sparse(size, "s")).is_ok());
        world.below(&sparse(holes.unwrap(), "s"));
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        world.apply_within(&Tar::new().hardlink("again", "s"), &limits).unwrap();
        let below = fs::metadata(world.dir.path().join("below0/s")).unwrap();
        let copy = fs::metadata(world.root().join("again")).unwrap();
        assert_eq!((copy.len(), copy.nlink()), (below.len(), 2));
        assert!(copy.blocks() < 64, "{}", copy.blocks());
        let file = fs::File::open(world.root().join("s")).unwrap();
        for (at, data) in [(8192, b"data"), (1 << 39, b"more")] {
            let mut found = [0; 4];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, at).unwrap();
            assert_eq!(&found, data);
        }
    });
}
