//! One table of the configuration file: every read takes its key out, so what is left over is what nobody knows.
//!
//! A value of the wrong type is an error that names the key's whole path and what was expected.

use std::{path::PathBuf, time::Duration};

use toml::{Table, Value};

/// A table under its path, with the keys that were asked for.
#[derive(Clone)]
pub(super) struct Section {
    path: String,
    table: Table,
    known: Vec<&'static str>,
}

impl Section {
    /// The file's top level.
    pub(super) fn top(table: Table) -> Section {
        Section { path: String::new(), table, known: Vec::new() }
    }

    /// `key`'s whole path, as a person would write it.
    pub(super) fn path(&self, key: &str) -> String {
        let bare = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        let key = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> String {
        format!("{} must be {expected}, not {} {got}", self.path(key), got.type_str())
    }

    /// A table of known keys; empty if it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Section, String> {
        self.known.push(key);
        self.named_section(key)
    }

    /// A table whose name the file chose, such as a plugin's or a runtime's.
    pub(super) fn named_section(&mut self, key: &str) -> Result<Section, String> {
        let path = self.path(key);
        match self.table.remove(key) {
            None => Ok(Section { path, table: Table::new(), known: Vec::new() }),
            Some(Value::Table(table)) => Ok(Section { path, table, known: Vec::new() }),
            Some(other) => Err(self.wrong(key, "a table", &other)),
        }
    }

    /// A table that is taken as it is.
    pub(super) fn table(&mut self, key: &'static str) -> Result<Table, String> {
        match self.take(key) {
            None => Ok(Table::new()),
            Some(Value::Table(table)) => Ok(table),
            Some(other) => Err(self.wrong(key, "a table", &other)),
        }
    }

    /// A table that was taken out before, under the path that it had.
    pub(super) fn again(path: &str, table: Table) -> Section {
        Section { path: path.to_owned(), table, known: Vec::new() }
    }

    /// What a section that was taken out before has left, to be read on.
    pub(super) fn put_back(&mut self, key: &str, section: Section) {
        if !section.table.is_empty() {
            self.table.insert(key.to_owned(), Value::Table(section.table));
        }
    }

    /// Gives keys other names; one that is there under both keeps the newer.
    pub(super) fn rename(&mut self, name: impl Fn(&str) -> Option<String>) {
        for key in self.names() {
            let Some(newer) = name(&key) else { continue };
            if let Some(value) = self.table.remove(&key) {
                self.table.entry(newer).or_insert(value);
            }
        }
    }

    /// What nobody asked for so far.
    pub(super) fn left(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.table.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Forgets a key.
    pub(super) fn drop_key(&mut self, key: &str) {
        self.table.remove(key);
    }

    /// Forgets all keys that ask for nothing.
    pub(super) fn drop_off(&mut self) {
        self.table.retain(|_, value| !is_off(value));
    }

    /// The names left in this table.
    pub(super) fn names(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// Whether the table holds nothing more.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn string(&mut self, key: &'static str, into: &mut String) -> Result<(), String> {
        match self.take(key) {
            None => Ok(()),
            Some(Value::String(text)) => {
                *into = text;
                Ok(())
            }
            Some(other) => Err(self.wrong(key, "a string", &other)),
        }
    }

    /// A string that no message may show.
    pub(super) fn secret(&mut self, key: &'static str, into: &mut String) -> Result<(), String> {
        match self.take(key) {
            None => Ok(()),
            Some(Value::String(text)) => {
                *into = text;
                Ok(())
            }
            Some(other) => Err(format!("{} must be a string, not {}", self.path(key), other.type_str())),
        }
    }

    /// A string or an array of strings under a key whose name the file chose; no message shows them.
    pub(super) fn named_secrets(&mut self, key: &str) -> Result<Vec<String>, String> {
        let texts = match self.table.remove(key) {
            None => Some(Vec::new()),
            Some(Value::String(text)) => Some(vec![text]),
            Some(Value::Array(values)) => {
                values.into_iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>()
            }
            Some(_) => None,
        };
        texts.ok_or_else(|| format!("{} must be an array of strings", self.path(key)))
    }

    /// A string under a key whose name the file chose.
    pub(super) fn named_string(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", &other)),
        }
    }

    pub(super) fn path_value(&mut self, key: &'static str, into: &mut PathBuf) -> Result<(), String> {
        let mut text = String::new();
        self.string(key, &mut text)?;
        if text.is_empty() {
            return Ok(());
        }
        if !text.starts_with('/') {
            return Err(format!("{} must be an absolute path, not {text:?}", self.path(key)));
        }
        *into = PathBuf::from(text);
        Ok(())
    }

    pub(super) fn boolean(&mut self, key: &'static str, into: &mut bool) -> Result<(), String> {
        match self.take(key) {
            None => Ok(()),
            Some(Value::Boolean(value)) => {
                *into = value;
                Ok(())
            }
            Some(other) => Err(self.wrong(key, "true or false", &other)),
        }
    }

    /// A whole number that fits the target's type.
    pub(super) fn number<T: TryFrom<i64>>(&mut self, key: &'static str, into: &mut T) -> Result<(), String> {
        match self.take(key) {
            None => Ok(()),
            Some(Value::Integer(value)) => {
                *into = T::try_from(value).map_err(|_| format!("{} is out of range: {value}", self.path(key)))?;
                Ok(())
            }
            Some(other) => Err(self.wrong(key, "a whole number", &other)),
        }
    }

    pub(super) fn strings(&mut self, key: &'static str, into: &mut Vec<String>) -> Result<(), String> {
        match self.take(key) {
            None => Ok(()),
            Some(Value::Array(values)) => {
                *into = values
                    .into_iter()
                    .map(|value| match value {
                        Value::String(text) => Ok(text),
                        other => Err(self.wrong(key, "an array of strings", &other)),
                    })
                    .collect::<Result<_, _>>()?;
                Ok(())
            }
            Some(other) => Err(self.wrong(key, "an array of strings", &other)),
        }
    }

    /// A duration in Go's form, such as `4h0m0s` or `500ms`.
    pub(super) fn duration(&mut self, key: &'static str, into: &mut Duration) -> Result<(), String> {
        let mut text = String::new();
        self.string(key, &mut text)?;
        if text.is_empty() {
            return Ok(());
        }
        *into = parse_duration(&text)
            .ok_or_else(|| format!("{} must be a duration such as 5m0s, not {text:?}", self.path(key)))?;
        Ok(())
    }

    /// Marks keys that containerd acts on and this daemon does not yet: set to anything but "off", each is a warning.
    pub(super) fn pending(&mut self, keys: &[&'static str], warnings: &mut Vec<String>) {
        for key in keys {
            self.known.push(key);
            let off = self.table.remove(*key).is_none_or(|value| is_off(&value));
            if !off {
                warnings.push(format!("{} is not supported yet and has no effect", self.path(key)));
            }
        }
    }

    /// Marks a key that can be nothing but its default here: anything else is a warning that says why.
    pub(super) fn fixed(
        &mut self,
        key: &'static str,
        default: impl Into<Value>,
        why: &str,
        warnings: &mut Vec<String>,
    ) {
        let Some(value) = self.take(key) else { return };
        let off = matches!(&value, Value::Array(values) if values.is_empty());
        if value != default.into() && !off {
            warnings.push(format!("{} has no effect: {why}", self.path(key)));
        }
    }

    /// Whether the value under this key is a whole number.
    pub(super) fn is_number(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(Value::is_integer)
    }

    /// Marks keys that have no meaning here, or whose default is what this daemon does; they are accepted in silence.
    pub(super) fn accept(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.known.push(key);
            self.table.remove(*key);
        }
    }

    /// Warnings about every key that is left, with the nearest known name.
    pub(super) fn unknown(self, warnings: &mut Vec<String>) {
        for key in self.table.keys() {
            let mut text = format!("unknown key {} has no effect", self.path(key));
            if let Some(near) =
                self.known.iter().filter(|known| distance(known, key) <= 3).min_by_key(|k| distance(k, key))
            {
                text.push_str(&format!("; did you mean {near}?"));
            }
            warnings.push(text);
        }
    }
}

/// Whether a value asks for nothing: what Go has as the zero of its type, all through a table.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Boolean(value) => !value,
        Value::Integer(value) => *value == 0,
        Value::Array(values) => values.is_empty(),
        Value::Table(values) => values.values().all(is_off),
        Value::Float(_) | Value::Datetime(_) => false,
    }
}

/// Reads Go's duration syntax: a sequence of numbers with units, or `0`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

/// Levenshtein distance: how many letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(above + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
