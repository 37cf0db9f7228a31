//! Reads the configuration file and the files that it imports, and merges them: a later file wins for each value, and tables
//! merge key by key. A list is a value: what `containerd config dump` (2.2) shows of lists below `plugins` is the last one.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{self, Path, PathBuf},
};

use sandbox::glob;

use toml::{Table, Value};

use super::{Config, ConfigError, Loaded, handler, handler::Options, parse};

/// The configuration in `path`, with what it imports. A file that is not there gives the defaults, as containerd does.
pub(crate) fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Loaded { config: Config::default(), warnings: Vec::new() });
        }
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let mut reading = Reading::default();
    reading.file(path, &text, Some(DROP_INS))?;
    let Reading { mut config, options, mut warnings, .. } = reading;
    let invalid = |what| ConfigError::Invalid { path: path.to_owned(), what };
    handler::finish(&mut config.runtime.handlers, options, &mut warnings).map_err(invalid)?;
    parse::validate(&config).map_err(invalid)?;
    Ok(Loaded { config, warnings })
}

/// What a first file imports that does not say, beside itself: where other tools put theirs.
const DROP_INS: &str = "conf.d/*.toml";

#[derive(Default)]
struct Reading {
    config: Config,
    options: Options,
    warnings: Vec<String>,
    seen: BTreeSet<PathBuf>,
}

impl Reading {
    /// A file, then what it imports. Each is read by the rules of its own version, so merging happens on the parsed
    /// configuration: values that a file does not set keep what the files before it said.
    fn file(&mut self, path: &Path, text: &str, default_import: Option<&str>) -> Result<(), ConfigError> {
        // A file that is imported twice, or imports itself by a glob over its own directory, is read already.
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        let table = table(path, text)?;
        let imports = imported(path, &table, default_import)?;
        parse::apply(table, &mut self.config, &mut self.options, &mut self.warnings)
            .map_err(|what| ConfigError::Invalid { path: path.to_owned(), what })?;
        for import in imports {
            let text =
                fs::read_to_string(&import).map_err(|source| ConfigError::Read { path: import.clone(), source })?;
            self.file(&import, &text, None)?;
        }
        Ok(())
    }
}

fn table(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>().map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })
}

/// The files that `imports` names: relative to the importing file; patterns name those that are there, sorted.
fn imported(path: &Path, table: &Table, default: Option<&str>) -> Result<Vec<PathBuf>, ConfigError> {
    let invalid = |what: String| ConfigError::Invalid { path: path.to_owned(), what };
    let default = Value::Array(default.into_iter().map(Value::from).collect());
    let Value::Array(patterns) = table.get("imports").unwrap_or(&default) else {
        return Err(invalid("imports must be an array of paths".into()));
    };
    let mut files = Vec::new();
    for pattern in patterns {
        let Value::String(pattern) = pattern else { return Err(invalid("imports must be an array of paths".into())) };
        let full = path.parent().unwrap_or(Path::new("/")).join(pattern);
        let full = path::absolute(&full).map_err(|source| ConfigError::Read { path: full.clone(), source })?;
        match full.to_str() {
            Some(text) if text.contains('*') => files.extend(glob::expand(text)),
            _ => files.push(full),
        }
    }
    Ok(files)
}
