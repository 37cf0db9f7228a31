//! V-C26: archives that try to read or write outside of what is theirs.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::sample::{Sample, archive};
use crate::{
    Error,
    checkpoint::{
        unpack::{Base, base, unpack},
        verify::{Circumstances, verify},
    },
    host::CgroupMode,
};

const MOST: u64 = 1 << 20;
const CONFIG: &[u8] =
    br#"{"rootfsImageRef": "sha256:ab", "rootfsImageName": "docker.io/library/busybox:1", "runtime": "runc"}"#;
const CANARY: &str = "of the host";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("canary"), CANARY).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Unpacks; answers the names of what was written.
    fn unpack(&self, most: u64) -> Result<Vec<String>, Error> {
        let into = self.path("into");
        fs::create_dir_all(&into).unwrap();
        unpack(&self.path("c.tar"), &into, most)?;
        let mut names = Vec::new();
        list(&into, &into, &mut names);
        names.sort();
        Ok(names)
    }
}

fn list(root: &Path, dir: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        assert!(!entry.file_type().unwrap().is_symlink());
        match entry.file_type().unwrap().is_dir() {
            true => list(root, &entry.path(), names),
            false => names.push(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
        }
    }
}

/// One entry of any type.
fn entry(tar: &mut tar::Builder<impl std::io::Write>, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    // By hand, since the library refuses names that a hostile archive has.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn hostile(path: &Path, kind: tar::EntryType, name: &str, link: &str) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    entry(&mut tar, tar::EntryType::Regular, "config.dump", "", CONFIG);
    entry(&mut tar, tar::EntryType::Regular, "checkpoint/inventory.img", "", b"x");
    entry(&mut tar, kind, name, link, b"");
    tar.into_inner().unwrap();
}

#[test]
fn an_archive_gives_its_images_and_its_layer_and_nothing_else() {
    let place = Place::new();
    let members: Vec<(&str, &[u8])> = vec![
        ("./", b""),
        ("config.dump", CONFIG),
        ("spec.dump", b"{\"hooks\": {}}"),
        ("status.dump", b"{}"),
        ("container.log", b"a line\n"),
        ("dump.log", b"done\n"),
        ("checkpoint/", b""),
        ("./checkpoint/inventory.img", b"inventory"),
        ("checkpoint/pages-1.img", b"pages"),
        ("checkpoint/dump.log", b"done\n"),
        ("checkpoint/stats-dump", b"fast"),
        ("rootfs-diff.tar", b"layer"),
        ("network.status", b"{}"),
        ("deleted.files", b"[]"),
    ];
    archive(&place.path("c.tar"), &members);
    let expected = Base { reference: "sha256:ab".into(), name: "docker.io/library/busybox:1".into() };
    assert_eq!(base(&place.path("c.tar"), MOST).unwrap(), expected);
    let kept = [
        "checkpoint/inventory.img",
        "checkpoint/pages-1.img",
        "container.log",
        "deleted.files",
        "rootfs-diff.tar",
        "spec.dump",
    ];
    assert_eq!(place.unpack(MOST).unwrap(), kept);
    assert_eq!(fs::read(place.path("into/checkpoint/pages-1.img")).unwrap(), b"pages");

    for program in ["gzip", "zstd"] {
        let plain = fs::read(place.path("c.tar")).unwrap();
        let packed = match program {
            "gzip" => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut out, &plain).unwrap();
                out.finish().unwrap()
            }
            _ => zstd::encode_all(plain.as_slice(), 1).unwrap(),
        };
        let packed_place = Place::new();
        fs::write(packed_place.path("c.tar"), packed).unwrap();
        assert_eq!(packed_place.unpack(MOST).unwrap().len(), kept.len(), "{program}");
    }
}

#[test]
fn v_c26_members_that_are_no_regular_files_are_refused() {
    use tar::EntryType as Type;
    for name in ["container.log", "rootfs-diff.tar", "config.dump", "spec.dump", "checkpoint/pages-1.img", "checkpoint"]
    {
        for (kind, link) in [
            (Type::Symlink, "../canary"),
            (Type::Link, "config.dump"),
            (Type::Fifo, ""),
            (Type::Char, ""),
            (Type::Block, ""),
            (Type::Directory, ""),
        ] {
            if kind == Type::Directory && name == "checkpoint" {
                continue;
            }
            let place = Place::new();
            hostile(&place.path("c.tar"), kind, name, link);
            let refused = place.unpack(MOST).unwrap_err();
            assert!(matches!(&refused, Error::Invalid(text) if text.contains(name)), "{name} {kind:?}: {refused}");
            assert_eq!(fs::read_to_string(place.path("canary")).unwrap(), CANARY);
        }
    }
}

#[test]
fn v_c26_names_that_lead_elsewhere_are_refused() {
    for name in [
        "../canary",
        "checkpoint/../../canary",
        "/etc/canary",
        "checkpoint/..",
        "checkpoint//pages-1.img",
        "a/../b",
        "checkpoint/./pages-1.img",
        "checkpoint/sub/pages-1.img",
        "checkpoint/parent",
        "checkpoint/creds-6.img",
        "checkpoint/iptables-10.img",
        "checkpoint/\n.img",
    ] {
        let place = Place::new();
        hostile(&place.path("c.tar"), tar::EntryType::Regular, name, "");
        let refused = place.unpack(MOST).unwrap_err();
        assert!(matches!(&refused, Error::Invalid(_)), "{name}: {refused}");
        assert_eq!(fs::read_to_string(place.path("canary")).unwrap(), CANARY);
    }
}

#[test]
fn v_c26_an_archive_that_is_a_link_or_no_file_is_not_opened() {
    let place = Place::new();
    archive(&place.path("real.tar"), &[("config.dump", CONFIG)]);
    std::os::unix::fs::symlink("real.tar", place.path("c.tar")).unwrap();
    assert!(matches!(base(&place.path("c.tar"), MOST), Err(Error::Invalid(_))));
    for path in [place.path(""), "/dev/zero".into()] {
        assert!(matches!(base(&path, MOST), Err(Error::Invalid(_))), "{}", path.display());
    }
    rustix::fs::mknodat(rustix::fs::CWD, place.path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(base(&place.path("fifo"), MOST), Err(Error::Invalid(_))));
    assert!(matches!(base(&place.path("none.tar"), MOST), Err(Error::NotFound { .. })));
}

#[test]
fn archives_that_are_none_or_say_things_twice_are_refused() {
    let image: (&str, &[u8]) = ("checkpoint/inventory.img", b"x");
    let config = ("config.dump", CONFIG);
    for (reason, members) in [
        ("there twice", vec![config, image, image]),
        ("there twice", vec![config, image, config]),
        ("holds no images", vec![config]),
    ] {
        let place = Place::new();
        archive(&place.path("c.tar"), &members);
        let refused = place.unpack(MOST).unwrap_err();
        assert!(matches!(&refused, Error::Invalid(text) if text.contains(reason)), "{reason}: {refused}");
    }
    for (reason, content) in [("config.dump", b"{".as_slice()), ("which image", b"{}".as_slice())] {
        let place = Place::new();
        archive(&place.path("c.tar"), &[("config.dump", content)]);
        let refused = base(&place.path("c.tar"), MOST).unwrap_err();
        assert!(matches!(&refused, Error::Invalid(text) if text.contains(reason)), "{reason}: {refused}");
    }
    let place = Place::new();
    archive(&place.path("c.tar"), &[image]);
    assert!(base(&place.path("c.tar"), MOST).unwrap_err().to_string().contains("lacks config.dump"));
    fs::write(place.path("c.tar"), "no archive at all, but a text that is longer than one block of a tar".repeat(20))
        .unwrap();
    assert!(matches!(base(&place.path("c.tar"), MOST), Err(Error::Invalid(_))));
}

#[test]
fn an_archive_that_holds_more_than_may_be_unpacked_is_refused() {
    let place = Place::new();
    let pages = vec![7; 4096];
    let members: Vec<(&str, &[u8])> = vec![("config.dump", CONFIG), ("checkpoint/pages-1.img", &pages)];
    archive(&place.path("c.tar"), &members);
    let refused = place.unpack(4096).unwrap_err();
    assert!(matches!(&refused, Error::Invalid(text) if text.contains("max_bytes")), "{refused}");
}

/// What is unpacked of an archive is what is verified.
#[test]
fn a_whole_checkpoint_goes_through() {
    let place = Place::new();
    let files = Sample::new().all();
    let named: Vec<(String, &[u8])> =
        files.iter().map(|(name, content)| (format!("checkpoint/{name}"), content.as_slice())).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("config.dump", CONFIG)];
    members.extend(named.iter().map(|(name, content)| (name.as_str(), *content)));
    archive(&place.path("c.tar"), &members);
    place.unpack(MOST).unwrap();
    let spec = Sample::new().spec;
    let rootfs = place.path("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let images = place.path("into/checkpoint");
    let circumstances = Circumstances { had_profile: false, is_filtered: false, criu: (3, 17) };
    verify(&images, &spec, &rootfs, CgroupMode::V2, &circumstances, "c.tar").unwrap();
}
