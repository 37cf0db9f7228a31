//! Tables of references, and the law that printing and parsing are each other's inverse.

use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[track_caller]
fn check(input: &str, complete: &str) {
    assert_eq!(Reference::parse(input).map(|reference| reference.to_string()), Ok(complete.to_owned()), "{input}");
}

#[track_caller]
fn refuse(input: &str, reason: ReferenceProblem) {
    assert_eq!(Reference::parse(input), Err(ReferenceError { input: input.to_owned(), reason }));
}

#[test]
fn short_names_are_completed() {
    check("busybox", "docker.io/library/busybox:latest");
    check("busybox:1.36", "docker.io/library/busybox:1.36");
    check("team/app", "docker.io/team/app:latest");
    check("docker.io/busybox", "docker.io/library/busybox:latest");
    check("index.docker.io/busybox", "docker.io/library/busybox:latest");
    check("docker.io/library/busybox:latest", "docker.io/library/busybox:latest");
    check("localhost", "docker.io/library/localhost:latest");
    check("localhost:5000", "docker.io/library/localhost:5000");
}

#[test]
fn the_first_component_is_a_registry_if_it_looks_like_a_host() {
    check("localhost/app", "localhost/app:latest");
    check("quay.io/a/b/c:v1", "quay.io/a/b/c:v1");
    check("host:5000/app", "host:5000/app:latest");
    check("Host/app", "Host/app:latest");
    check("[::1]:5000/app:x", "[::1]:5000/app:x");
    check("10.0.0.1/app", "10.0.0.1/app:latest");
    check("host/app", "docker.io/host/app:latest");
}

#[test]
fn a_digest_is_kept_and_wins_over_a_tag() {
    check(&format!("busybox@sha256:{HEX}"), &format!("docker.io/library/busybox@sha256:{HEX}"));
    check(&format!("h:1/a:v1@sha256:{HEX}"), &format!("h:1/a@sha256:{HEX}"));
    let reference = Reference::parse(&format!("h:1/a:v1@sha256:{HEX}")).unwrap();
    assert_eq!((reference.tag(), reference.digest().map(Digest::hex)), (None, Some(HEX)));
    assert_eq!((reference.domain(), reference.path(), reference.repo().as_str()), ("h:1", "a", "h:1/a"));
}

#[test]
fn separators_in_names_follow_the_grammar() {
    for name in ["a.b", "a_b", "a__b", "a-b", "a---b", "a/b-c/d.e", "a0"] {
        check(name, &format!("docker.io/{}{name}:latest", if name.contains('/') { "" } else { "library/" }));
    }
    for component in ["a..b", "a___b", "-a", "a-", "a.", "_a", "a._b", "é", "a b"] {
        refuse(&format!("x.y/{component}"), ReferenceProblem::PathComponent(component.to_owned()));
    }
}

#[test]
fn what_is_wrong_is_said() {
    refuse("", ReferenceProblem::Empty);
    refuse(HEX, ReferenceProblem::ImageId);
    refuse("quay.io/", ReferenceProblem::EmptyPath);
    refuse("quay.io/Team/app", ReferenceProblem::Uppercase("Team/app".into()));
    refuse("Busybox", ReferenceProblem::Uppercase("library/Busybox".into()));
    refuse("quay.io//app", ReferenceProblem::PathComponent(String::new()));
    refuse("a:", ReferenceProblem::Tag(String::new()));
    refuse("a:-x", ReferenceProblem::Tag("-x".into()));
    refuse("a:b:c", ReferenceProblem::Tag("b:c".into()));
    refuse("host:port/app", ReferenceProblem::Domain("host:port".into()));
    refuse("../etc/passwd", ReferenceProblem::Domain("..".into()));
    refuse("-bad.io/app", ReferenceProblem::Domain("-bad.io".into()));
    refuse("a@sha256:1", ReferenceProblem::Digest(Digest::parse("sha256:1").unwrap_err()));
    refuse(&format!("q.io/{}", "a".repeat(256)), ReferenceProblem::PathTooLong);
    assert!(Reference::parse(&format!("q.io/{}", "a".repeat(255))).is_ok());
    let tag = "t".repeat(129);
    refuse(&format!("a:{tag}"), ReferenceProblem::Tag(tag));
}

#[test]
fn an_error_is_one_line_that_quotes_the_input() {
    let error = Reference::parse("quay.io/a b\n").unwrap_err().to_string();
    assert!(error.starts_with("invalid image reference \"quay.io/a b\\n\": "), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

proptest! {
    #[test]
    fn printing_a_reference_and_parsing_it_gives_the_same(
        domain in "([a-z0-9]{1,8}\\.[a-z]{2,4}|localhost|\\[::[0-9a-f]{1,3}\\])(:[0-9]{1,5})?",
        path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
        version in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?(@sha256:[0-9a-f]{64})?",
    ) {
        let reference = Reference::parse(&format!("{domain}/{path}{version}")).unwrap();
        prop_assert_eq!(reference.domain(), domain.as_str());
        prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
    }

    #[test]
    fn any_text_that_parses_survives_printing(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
    }
}
