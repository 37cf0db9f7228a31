//! Lines of a container's log as CRI defines them: `<RFC 3339 time with nanoseconds> <stream> <P|F> <text>`.

use std::{fs, path::Path};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `P` for a part of a line, `F` for its end.
    pub tag: String,
    pub text: String,
}

impl LogLine {
    pub fn new(stream: &str, text: &str) -> LogLine {
        LogLine { stream: stream.into(), tag: "F".into(), text: text.into() }
    }
}

/// All whole lines of a log file; one that is not there has none.
pub fn read(path: &Path) -> Vec<LogLine> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // A last line without its newline is still being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(parse).collect()
}

/// The text of one stream, lines joined as the program wrote them.
pub fn text(lines: &[LogLine], stream: &str) -> String {
    let of_stream = lines.iter().filter(|line| line.stream == stream);
    of_stream.fold(String::new(), |text, line| text + &line.text + if line.tag == "F" { "\n" } else { "" })
}

/// One line, or a panic that shows it.
pub fn parse(line: &str) -> LogLine {
    let mut parts = line.splitn(4, ' ');
    let mut next = || parts.next().unwrap_or_else(|| panic!("not a CRI log line: {line:?}")).to_owned();
    let (time, stream, tag, text) = (next(), next(), next(), next());
    // 2006-01-02T15:04:05.000000000Z07:00 with any number of fractional digits.
    let shape = time.len() >= 20 && time.as_bytes()[10] == b'T' && time.as_bytes()[4] == b'-';
    assert!(shape, "not a time: {line:?}");
    assert!(matches!(stream.as_str(), "stdout" | "stderr"), "not a stream: {line:?}");
    assert!(matches!(tag.as_str(), "P" | "F"), "not a tag: {line:?}");
    LogLine { stream, tag, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_and_an_unfinished_line_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let time = "2024-05-01T10:00:00.123456789Z";
        let content = format!("{time} stdout P one \n{time} stderr F err\n{time} stdout F two\n{time} stdout F unfin");
        fs::write(&path, content).unwrap();
        let lines = read(&path);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], LogLine::new("stderr", "err"));
        assert_eq!(text(&lines, "stdout"), "one two\n");
        assert_eq!(read(&dir.path().join("missing")), []);
    }
}
