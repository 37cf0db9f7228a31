//! Reads the configuration file and the files that it imports, and merges them: a later file wins for each value,
//! tables merge key by key, arrays are joined without repeats, as containerd's `imports` do.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Config, ConfigError, Loaded, handler, parse};

/// The configuration in `path`, with what it imports. A file that is not there gives the defaults, as containerd does.
pub(crate) fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Loaded { config: Config::default(), warnings: Vec::new() });
        }
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let mut loaded = Config::default();
    let (mut options, mut warnings) = (Default::default(), Vec::new());
    let main = table(path, &text)?;
    let imports = imported(path, &main)?;
    // Each file is read by the rules of its own version, so merging happens on the parsed configuration: values that a
    // file does not set keep what the files before it said.
    parse::apply(main, &mut loaded, &mut options, &mut warnings)
        .map_err(|what| ConfigError::Invalid { path: path.to_owned(), what })?;
    for import in imports {
        let text = fs::read_to_string(&import).map_err(|source| ConfigError::Read { path: import.clone(), source })?;
        let table = table(&import, &text)?;
        parse::apply(table, &mut loaded, &mut options, &mut warnings)
            .map_err(|what| ConfigError::Invalid { path: import.clone(), what })?;
    }
    handler::finish(&mut loaded.runtime.handlers, options, &mut warnings)
        .map_err(|what| ConfigError::Invalid { path: path.to_owned(), what })?;
    parse::validate(&loaded).map_err(|what| ConfigError::Invalid { path: path.to_owned(), what })?;
    Ok(Loaded { config: loaded, warnings })
}

fn table(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })
}

/// The files that `imports` names: relative to the importing file, at most one `*` in the last component, sorted.
fn imported(path: &Path, table: &Table) -> Result<Vec<PathBuf>, ConfigError> {
    let invalid = |what: String| ConfigError::Invalid { path: path.to_owned(), what };
    let Some(value) = table.get("imports") else { return Ok(Vec::new()) };
    let Value::Array(patterns) = value else { return Err(invalid("imports must be an array of paths".into())) };
    let mut files = Vec::new();
    for pattern in patterns {
        let Value::String(pattern) = pattern else { return Err(invalid("imports must be an array of paths".into())) };
        let full = path.parent().unwrap_or(Path::new("/")).join(pattern);
        files.extend(expand(&full).map_err(|source| ConfigError::Read { path: full.clone(), source })?);
    }
    // A file that imports itself (by a glob over its own directory) is already read.
    files.retain(|file| file != path);
    Ok(files)
}

fn expand(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((prefix, suffix)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() >= prefix.len() + suffix.len() && name.starts_with(prefix) && name.ends_with(suffix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
