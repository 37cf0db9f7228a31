//! Parses `WWW-Authenticate`: several challenges in one header, several headers, commas inside quotes.
//!
//! ```text
//! Bearer realm="https://auth.example/token",service="a,b",scope="repository:x:pull", Basic realm="x"
//! ```
//!
//! Lenient where servers are careless: a broken parameter ends its challenge and does not hide the others.

use std::collections::BTreeMap;

/// One way in which a server wants a client to say who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lowercase.
    pub scheme: String,
    /// Names are lowercase.
    pub parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

/// All challenges of one header value, in order.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut cursor = Cursor { rest: header };
    loop {
        cursor.skip(|c| c == ',' || c.is_whitespace());
        let word = cursor.take_while(is_token);
        if word.is_empty() {
            // Neither a scheme nor a parameter: go on behind the next comma.
            if cursor.rest.is_empty() {
                return challenges;
            }
            cursor.take_while(|c| c != ',');
            continue;
        }
        let before_space = cursor.rest;
        cursor.skip(char::is_whitespace);
        match (cursor.eat('='), challenges.last_mut()) {
            (true, Some(challenge)) => {
                cursor.skip(char::is_whitespace);
                let value = cursor.take_value();
                challenge.parameters.entry(word.to_ascii_lowercase()).or_insert(value);
            }
            (true, None) => {
                cursor.skip(char::is_whitespace);
                cursor.take_value();
            }
            (false, _) => {
                cursor.rest = before_space;
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: BTreeMap::new() });
            }
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        self.take_while(unwanted);
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A quoted string, or everything up to a comma or space: servers leave out quotes around URLs.
    fn take_value(&mut self) -> String {
        if !self.eat('"') {
            return self.take_while(|c| c != ',' && !c.is_whitespace()).to_owned();
        }
        let mut value = String::new();
        let mut characters = self.rest.char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return value;
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                other => value.push(other),
            }
        }
        self.rest = "";
        value
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &str, expected: &[(&str, &[(&str, &str)])]) {
        let expected: Vec<Challenge> = expected
            .iter()
            .map(|(scheme, parameters)| Challenge {
                scheme: (*scheme).to_owned(),
                parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            })
            .collect();
        assert_eq!(parse_challenges(header), expected);
    }

    #[test]
    fn a_bearer_challenge_has_its_parameters() {
        check(
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
            &[(
                "bearer",
                &[
                    ("realm", "https://auth.example/token"),
                    ("service", "registry.example"),
                    ("scope", "repository:a/b:pull,push"),
                ],
            )],
        );
    }

    #[test]
    fn several_challenges_in_one_header_are_told_apart() {
        check(
            r#"Basic realm="a, b", Bearer realm="https://x/y?z=1" , error="insufficient_scope""#,
            &[
                ("basic", &[("realm", "a, b")]),
                ("bearer", &[("realm", "https://x/y?z=1"), ("error", "insufficient_scope")]),
            ],
        );
        check("Negotiate, Basic realm=x", &[("negotiate", &[]), ("basic", &[("realm", "x")])]);
    }

    #[test]
    fn quotes_may_be_escaped_missing_or_left_open() {
        check(r#"Basic realm="say \"hi\"""#, &[("basic", &[("realm", "say \"hi\"")])]);
        check(
            "Bearer realm=https://x/token, service=s",
            &[("bearer", &[("realm", "https://x/token"), ("service", "s")])],
        );
        check(r#"Bearer realm="open"#, &[("bearer", &[("realm", "open")])]);
        check(r#"BEARER Realm = "x""#, &[("bearer", &[("realm", "x")])]);
    }

    #[test]
    fn what_is_no_challenge_gives_none() {
        check("", &[]);
        check(" , ,, ", &[]);
        check("=x", &[]);
        check(r#"realm="x""#, &[]);
        check("é Basic", &[]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in ".{0,200}") {
            parse_challenges(&text);
        }
    }
}
