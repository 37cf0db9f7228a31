//! The runtime's error text: the last error of its JSON log, or the last line of its stderr.

use std::fs::File;
use std::io::{Read, Seek};

/// Enough for any message; a runtime that writes more has said the important part in its last lines.
const LONGEST: u64 = 64 * 1024;

#[derive(serde::Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    level: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    msg: std::borrow::Cow<'a, str>,
}

/// Reads what a finished runtime wrote; a file that cannot be read says nothing, and the exit code still does.
pub(super) fn read(mut file: File) -> String {
    let mut bytes = Vec::new();
    let outcome = file.rewind().and_then(|()| file.take(LONGEST).read_to_end(&mut bytes));
    match outcome {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

pub(super) fn last_error(log: &str) -> Option<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Line<'_>>(line).ok())
        .rfind(|line| matches!(&*line.level, "error" | "fatal"))
        .map(|line| line.msg.trim().to_owned())
}

pub(super) fn last_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_the_log_is_the_message() {
        let log = concat!(
            r#"{"level":"warning","msg":"a hint","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: \"nope\": not found","time":"t"}"#,
            "\nnot json\n"
        );
        assert_eq!(last_error(log).as_deref(), Some("exec: \"nope\": not found"));
    }

    #[test]
    fn a_log_without_errors_leaves_the_word_to_stderr() {
        assert_eq!(last_error(r#"{"level":"info","msg":"x"}"#), None);
        assert_eq!(last_line("flag provided\nbad usage\n\n").as_deref(), Some("bad usage"));
    }
}
