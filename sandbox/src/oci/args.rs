//! The command line of a process: CRI's command and args over the image's entrypoint and cmd.

use oci_spec::image::Config;

use crate::error::Error;

/// A command replaces both of the image's lists; args replace only its cmd.
pub fn resolve(command: &[String], args: &[String], image: Option<&Config>) -> Result<Vec<String>, Error> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut line = command.to_vec();
    let mut rest = args.to_vec();
    if command.is_empty()
        && let Some(image) = image
    {
        line = list(image.entrypoint());
        // Some builders write "no entrypoint" as one empty word.
        if line == [""] {
            line.clear();
        }
        if args.is_empty() {
            rest = list(image.cmd());
        }
    }
    line.append(&mut rest);
    if line.is_empty() {
        return Err(Error::Invalid("no command specified".into()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]) -> String {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut image = Config::default();
        image.set_entrypoint(Some(list(entrypoint))).set_cmd(Some(list(cmd)));
        match resolve(&list(command), &list(args), Some(&image)) {
            Ok(line) => line.join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_request_replaces_what_the_image_says() {
        assert_eq!(check(&["c"], &["a"], &["e"], &["d"]), "c a");
        assert_eq!(check(&["c"], &[], &["e"], &["d"]), "c");
        assert_eq!(check(&[], &["a"], &["e"], &["d"]), "e a");
        assert_eq!(check(&[], &[], &["e"], &["d"]), "e d");
        assert_eq!(check(&[], &[], &[""], &["d"]), "d");
        assert_eq!(check(&[], &[], &[], &[]), "no command specified");
    }
}
