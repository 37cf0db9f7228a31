//! Programs of the host that the fixtures run (ip, cc, tar, debootstrap, crictl): their output, or a panic that shows all
//! they said.

use std::{
    ffi::OsStr,
    process::{Command, Output, Stdio},
};

/// What a program answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end.
pub fn answer(program: &str, arguments: &[impl AsRef<OsStr>]) -> Answer {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install it"));
    to_answer(&output)
}

/// Runs a program that has to succeed, and gives its standard output.
pub fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> String {
    let answer = answer(program, arguments);
    let line: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy().into_owned()).collect();
    assert_eq!(answer.code, Some(0), "{program} {} failed:\n{}{}", line.join(" "), answer.stdout, answer.stderr);
    answer.stdout
}

fn to_answer(output: &Output) -> Answer {
    Answer {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
