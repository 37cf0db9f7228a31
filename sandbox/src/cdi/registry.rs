//! The files of all vendors on this node, read at each use: which device is defined where, and which definition counts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    document::{self, Document},
    edits::Edits,
    name::Name,
};
use crate::error::Error;

/// Larger than any vendor's file.
const MAX_FILE: u64 = 4 << 20;

/// One definition of a device.
#[derive(Clone, Copy)]
struct Place {
    /// Of its directory: a later one wins.
    priority: usize,
    document: usize,
    device: usize,
}

/// All files, read.
#[derive(Default)]
struct Registry {
    documents: Vec<(PathBuf, Document)>,
    devices: BTreeMap<Name, Vec<Place>>,
    /// Files that are not valid, and why.
    broken: Vec<(PathBuf, String)>,
}

/// What each of these devices brings, in order; what a file has for all its devices comes once, before its first. Blocks.
///
/// A directory that is not there is empty. A file that is not valid hides none but its own devices.
pub(crate) fn find(dirs: &[PathBuf], names: &[Name]) -> Result<Vec<Edits>, Error> {
    let registry = Registry::read(dirs);
    let mut places = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match registry.place(name)? {
            Some(place) => places.push((name, place)),
            None => missing.push(name.to_string()),
        }
    }
    if !missing.is_empty() {
        return Err(registry.unresolvable(&missing, dirs));
    }
    let mut used = Vec::new();
    let mut found = Vec::new();
    for (name, place) in places {
        let (path, document) = &registry.documents[place.document];
        let failed = |error: Error| {
            let what = format!("CDI device {name} of {}: {}", path.display(), error.chain());
            if matches!(error, Error::Precondition(_)) { Error::Precondition(what) } else { Error::plain(what) }
        };
        if !used.contains(&place.document) {
            used.push(place.document);
            found.push(Edits::resolve(&document.container_edits, name).map_err(failed)?);
        }
        found.push(Edits::resolve(&document.devices[place.device].container_edits, name).map_err(failed)?);
    }
    Ok(found)
}

impl Registry {
    fn read(dirs: &[PathBuf]) -> Registry {
        let mut registry = Registry::default();
        for (priority, dir) in dirs.iter().enumerate() {
            match files(dir) {
                Ok(files) => files.into_iter().for_each(|path| registry.add(priority, path)),
                Err(error) => registry.broken.push((dir.clone(), error.to_string())),
            }
        }
        for (path, why) in &registry.broken {
            tracing::warn!(file = %path.display(), why, "a CDI file is not usable");
        }
        registry
    }

    fn add(&mut self, priority: usize, path: PathBuf) {
        let read = read(&path).and_then(|text| document::parse(&path, &text));
        match read {
            Ok(document) => {
                for (device, entry) in document.devices.iter().enumerate() {
                    // Checked with the document.
                    if let Ok(name) = Name::new(&document.kind, &entry.name) {
                        let place = Place { priority, document: self.documents.len(), device };
                        self.devices.entry(name).or_default().push(place);
                    }
                }
                self.documents.push((path, document));
            }
            Err(why) => self.broken.push((path, why)),
        }
    }

    /// The definition that counts: that of the last directory. Two in one directory are nobody's to choose from.
    fn place(&self, name: &Name) -> Result<Option<Place>, Error> {
        let Some(all) = self.devices.get(name) else { return Ok(None) };
        let last = all.iter().map(|place| place.priority).max();
        let of_last: Vec<&Place> = all.iter().filter(|place| Some(place.priority) == last).collect();
        match of_last[..] {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            [first, second, ..] => {
                let file = |place: &Place| self.documents[place.document].0.display().to_string();
                Err(Error::Precondition(format!(
                    "CDI device {name} is defined twice, in {} and {}: remove one of them",
                    file(first),
                    file(second)
                )))
            }
        }
    }

    fn unresolvable(&self, missing: &[String], dirs: &[PathBuf]) -> Error {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        let broken: Vec<String> =
            self.broken.iter().map(|(path, why)| format!("; {} is not usable: {why}", path.display())).collect();
        Error::Precondition(format!(
            "unresolvable CDI devices {}: no file in {} defines them{}",
            missing.join(", "),
            dirs.join(", "),
            broken.concat()
        ))
    }
}

/// The directory's own files that are specs by their names, in the order of the names.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let known = path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
        if known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(length) if length as u64 > MAX_FILE => Err(format!("it is larger than {MAX_FILE} bytes")),
        Ok(_) => Ok(text),
    }
}
