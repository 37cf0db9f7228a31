use super::*;
use serde_json::json;

fn descriptor(media_type: &str) -> Descriptor {
    Descriptor::new(media_type, Digest::sha256_of(b"d"), 1)
}

fn entry(name: &str, platform: serde_json::Value) -> Descriptor {
    let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256_of(name.as_bytes()), 1);
    descriptor.platform = serde_json::from_value(platform).unwrap();
    descriptor
}

#[test]
fn a_document_is_what_its_fields_say() {
    let check = |media_type: &str, json: serde_json::Value| {
        parse_document(&descriptor(media_type), json.to_string().as_bytes())
    };
    let config =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256_of(b"c"), "size": 2});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    assert!(matches!(check(media_type::OCI_MANIFEST, manifest.clone()), Ok(Document::Manifest(_))));
    assert!(matches!(check("", manifest.clone()), Ok(Document::Manifest(_))));
    assert!(matches!(check(media_type::OCI_INDEX, json!({"manifests": []})), Ok(Document::Index(_))));
    assert!(matches!(check("", json!({"schemaVersion": 1})), Err(ManifestError::Schema1(_))));
    assert!(matches!(check("", json!({"manifests": [], "config": config})), Err(ManifestError::Invalid { .. })));
    assert!(matches!(check("text/x", json!({})), Err(ManifestError::NotAnImage { .. })));
    let chart = json!({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": Digest::sha256_of(b"c"), "size": 2}});
    assert!(matches!(check("", chart), Err(ManifestError::NotAnImage { .. })));
    let sealed = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": Digest::sha256_of(b"l"), "size": 2});
    assert!(matches!(check("", json!({"config": config, "layers": [sealed]})), Err(ManifestError::Invalid { .. })));
    let lies = json!({"mediaType": media_type::OCI_INDEX, "config": config});
    assert!(matches!(check(media_type::OCI_MANIFEST, lies), Err(ManifestError::Invalid { .. })));
    let many: Vec<_> = (0..501).map(|_| config.clone()).collect();
    assert!(matches!(check("", json!({"config": config, "layers": many})), Err(ManifestError::Invalid { .. })));
}

#[test]
fn the_best_platform_is_chosen_and_attestations_never() {
    let wanted = Node { os: "linux", architecture: "arm64", variants: &["v8", ""] };
    let digest = Digest::sha256_of(b"index");
    let entries = [
        entry("attestation", json!({"os": "unknown", "architecture": "unknown"})),
        entry("amd64", json!({"os": "linux", "architecture": "amd64"})),
        entry("plain", json!({"os": "linux", "architecture": "arm64"})),
        entry("v8", json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
    ];
    assert_eq!(choose(&digest, &entries, &wanted).unwrap().digest, Digest::sha256_of(b"v8"));
    assert_eq!(choose(&digest, &entries[..3], &wanted).unwrap().digest, Digest::sha256_of(b"plain"));
    assert_eq!(
        choose(&digest, &entries[..2], &wanted).unwrap_err().to_string(),
        format!("no image for linux/arm64 in {digest}; it has: linux/amd64")
    );
}

#[test]
fn chain_ids_are_the_specifications() {
    let (a, b) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"));
    let expected = Digest::sha256_of(format!("{a} {b}").as_bytes()).to_string();
    assert_eq!(chain_ids(&[a.clone(), b]), [a.to_string(), expected]);
    assert_eq!(chain_ids(&[]), Vec::<String>::new());
}

#[test]
fn a_configuration_must_fit_the_manifest_and_the_node() {
    let node = Node { os: "linux", architecture: "amd64", variants: &[""] };
    let manifest = Manifest { config: descriptor("c"), layers: vec![descriptor("l")] };
    let config = |arch: &str, ids: Vec<String>| {
        let json = json!({"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
        parse_config(&manifest, json.to_string().as_bytes(), Some(&node))
    };
    let id = Digest::sha256_of(b"layer");
    assert_eq!(config("amd64", vec![id.to_string()]).unwrap(), std::slice::from_ref(&id));
    assert!(matches!(config("arm64", vec![id.to_string()]), Err(ManifestError::NoPlatform { .. })));
    assert!(matches!(config("amd64", vec![]), Err(ManifestError::Invalid { .. })));
    assert!(matches!(config("amd64", vec!["sha256:zz".into()]), Err(ManifestError::Invalid { .. })));
}

fn layer_of(size: serde_json::Value) -> serde_json::Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::sha256_of(b"l"), "size": size})
}

fn config_of(size: serde_json::Value) -> serde_json::Value {
    json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256_of(b"c"), "size": size})
}

/// The error is one line that a log and a gRPC status can take.
#[track_caller]
fn refused(media_type: &str, text: &str, expected: &str) {
    let error = parse_document(&descriptor(media_type), text.as_bytes()).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}, not {expected}");
    assert!(error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
}

#[test]
fn a_document_that_can_be_read_in_two_ways_is_refused() {
    use media_type::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
    let (config, layers, manifests) = (config_of(json!(2)), json!([layer_of(json!(2))]), json!([layer_of(json!(2))]));
    let both = [
        json!({"schemaVersion": 2, "manifests": manifests, "config": config, "layers": layers}),
        json!({"schemaVersion": 2, "manifests": manifests, "config": config}),
        json!({"schemaVersion": 2, "manifests": manifests, "layers": layers}),
    ];
    for document in both {
        for own in ["", OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            let mut document = document.clone();
            if !own.is_empty() {
                document["mediaType"] = own.into();
            }
            refused(own, &document.to_string(), "is both an index and a manifest");
            refused("", &document.to_string(), "is both an index and a manifest");
        }
    }
    let (manifest, index) = (json!({"config": config, "layers": layers}), json!({"manifests": manifests}));
    for (document, contrary) in [(&manifest, [OCI_INDEX, DOCKER_INDEX]), (&index, [OCI_MANIFEST, DOCKER_MANIFEST])] {
        for media_type in contrary {
            refused(media_type, &document.to_string(), "and has the fields of");
            let mut own = document.clone();
            own["mediaType"] = media_type.into();
            refused("", &own.to_string(), "and has the fields of");
            refused(media_type, &own.to_string(), "and has the fields of");
        }
    }
    // The same key twice: other tools take the last, or the first.
    for text in [
        format!(r#"{{"config":{config},"config":{config},"layers":[]}}"#),
        format!(r#"{{"config":{config},"layers":[],"layers":{layers}}}"#),
        r#"{"manifests":[],"manifests":[]}"#.to_owned(),
        format!(r#"{{"mediaType":"{OCI_INDEX}","mediaType":"{OCI_MANIFEST}","config":{config}}}"#),
    ] {
        refused("", &text, "duplicate field");
    }
    let digest = Digest::sha256_of(b"x");
    refused("", &format!(r#"{{"config":{{"digest":"{digest}","digest":"{digest}","size":1}}}}"#), "duplicate field");
}

#[test]
fn what_cannot_be_fetched_is_refused_before_it_is() {
    let manifest = |config, layer| json!({"config": config_of(config), "layers": [layer_of(layer)]}).to_string();
    for size in [json!(-1), json!(1e30), json!("1"), json!(1.5), json!(null), json!([])] {
        refused("", &manifest(json!(1), size.clone()), "not valid JSON");
        refused("", &manifest(size, json!(1)), "not valid JSON");
    }
    refused("", &manifest(json!(1), json!(1u64 << 63)), "more than any file");
    refused("", &manifest(json!(MAX_DOCUMENT + 1), json!(1)), "at most 8388608 are read");
    refused("", &manifest(json!(1u64 << 40), json!(1)), "at most 8388608 are read");
    for digest in [
        "sha256:../../../../etc/passwd",
        "",
        "sha256:",
        "a:b:c",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &Digest::sha256_of(b"x").to_string().to_uppercase(),
        &format!("{}/../x", Digest::sha256_of(b"x")),
        &"x".repeat(1 << 20),
    ] {
        let layer = json!({"digest": digest, "size": 1});
        refused("", &json!({"config": config_of(json!(1)), "layers": [layer]}).to_string(), "digest");
    }
}

#[test]
fn documents_of_any_shape_are_read_in_memory_that_is_in_proportion() {
    let config = config_of(json!(1));
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(200_000), close.repeat(200_000));
    for text in [deep("[", "]"), deep("{\"a\":", "}"), format!("{{\"config\":{}}}", deep("[", "]"))] {
        refused("", &text, "not valid JSON");
    }
    // What nobody reads is passed over, however deep it is; nothing recurses.
    let unknown = format!("{{\"config\":{config},\"unknown\":{}}}", deep("[", "]"));
    assert!(matches!(parse_document(&descriptor(""), unknown.as_bytes()), Ok(Document::Manifest(_))));
    let many = |what: &str| format!("{{\"{what}\":[{}0]}}", "0,".repeat(MAX_VALUES));
    for what in ["manifests", "layers", "annotations", "unknown"] {
        refused("", &many(what), "values, at most 100000 are read");
    }
    for text in ["", "{", "null", "[]", "\"\"", "1", "\u{feff}{}", "<html>", "{}{}", "{\"config\":\u{7f}}"] {
        assert!(parse_document(&descriptor(""), text.as_bytes()).is_err(), "{text:?}");
    }
    assert!(parse_document(&descriptor(""), b"{\"config\":\"\xff\xfe\"}").is_err());
    // Commas in strings are none, whatever is escaped there.
    let label = format!("{{\"config\":{config},\"annotations\":{{\"a\":\"\\\\\\\"{}\"}}}}", ",".repeat(MAX_VALUES));
    assert!(parse_document(&descriptor(""), label.as_bytes()).is_ok());
}

#[test]
fn errors_show_of_foreign_texts_only_what_fits_on_a_line() {
    let wild = format!("a\u{1b}[31m\n\u{202e}{}", "x".repeat(1 << 16));
    let node = Node { os: "linux", architecture: "amd64", variants: &[""] };
    let entries: Vec<Descriptor> =
        (0..5_000).map(|n| entry(&n.to_string(), json!({"os": wild, "architecture": wild, "variant": wild}))).collect();
    let error = choose(&Digest::sha256_of(b"index"), &entries, &node).unwrap_err().to_string();
    assert!(error.len() < 4_000 && !error.contains(char::is_control), "{error:?}");
    assert!(error.ends_with("and 4980 more"), "{error}");
    refused(&wild, "{}", "neither a manifest nor an index");
    refused("", &json!({"mediaType": wild}).to_string(), "neither a manifest nor an index");
    let config = json!({"mediaType": wild, "digest": Digest::sha256_of(b"c"), "size": 1});
    refused("", &json!({"config": config}).to_string(), "neither a manifest nor an index");
    refused("", &json!({"config": wild}).to_string(), "not valid JSON");
    let manifest = json!({"mediaType": wild, "config": config_of(json!(1))}).to_string();
    refused(media_type::OCI_MANIFEST, &manifest, "but was announced as");
}

#[test]
fn a_configuration_that_is_none_or_does_not_fit_is_refused() {
    let node = Node { os: "linux", architecture: "amd64", variants: &[""] };
    let manifest = Manifest { config: descriptor("c"), layers: vec![descriptor("l"), descriptor("l")] };
    let parse = |text: &str, node: Option<&Node>| {
        parse_config(&manifest, text.as_bytes(), node).map_err(|error| {
            let error = error.to_string();
            assert!(error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
            error
        })
    };
    let id = Digest::sha256_of(b"layer").to_string();
    let good = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [id, id]}});
    // Two layers may well be the same.
    assert_eq!(parse(&good.to_string(), Some(&node)).unwrap().len(), 2);
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        let (parent, key) = path.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[key] = value;
        changed.to_string()
    };
    for (text, expected) in [
        (with("/rootfs/diff_ids", json!([id])), "names 1 layers, the manifest has 2"),
        (with("/rootfs/diff_ids", json!([id, id, id])), "names 3 layers, the manifest has 2"),
        (with("/rootfs/diff_ids", json!([id, "sha256:../x"])), "bad diff id"),
        (with("/rootfs/diff_ids", json!([id, "y".repeat(1 << 20)])), "bad diff id"),
        (with("/rootfs/diff_ids", json!([id, 1])), "not valid JSON"),
        (with("/rootfs/diff_ids", json!({})), "not valid JSON"),
        (with("/rootfs", json!(null)), "not valid JSON"),
        (with("/architecture", json!("arm64")), "no image for linux/amd64"),
        (with("/architecture", json!("z\u{1b}".repeat(9999))), "no image for linux/amd64"),
        (with("/os", json!("windows")), "no image for linux/amd64"),
        (with("/architecture", json!(7)), "not valid JSON"),
        (with("/config", json!([])), "not valid JSON"),
        (with("/config", json!({"Env": "A=1"})), "not valid JSON"),
        (with("/config", json!({"Env": [1]})), "not valid JSON"),
        (with("/config", json!({"Labels": ["a"]})), "not valid JSON"),
        (with("/config", json!({"Entrypoint": "sh"})), "not valid JSON"),
        (with("/history", json!(vec![json!({}); 200_000])), "values, at most 100000"),
        (with("/history", json!("none")), "not valid JSON"),
        (json!({"schemaVersion": 2, "config": config_of(json!(1)), "layers": []}).to_string(), "not valid JSON"),
        (good.to_string().replacen('{', "{\"os\":\"linux\",", 1), "duplicate field"),
        ("tar".repeat(100), "not valid JSON"),
        (String::new(), "not valid JSON"),
    ] {
        let error = parse(&text, Some(&node)).expect_err(expected);
        assert!(error.contains(expected), "{error}, not {expected}");
    }
    // Nonsense in what only people read is no reason.
    for text in [
        with("/history", json!([{"created": "yesterday", "created_by": "\u{1b}[2J"}])),
        with("/author", json!("x".repeat(1 << 16))),
        with("/config", json!({"Labels": {"": "", "a=b": "\n"}, "Env": ["", "=", "NO_EQUALS", "A=\u{0}"]})),
    ] {
        parse(&text, Some(&node)).unwrap_or_else(|error| panic!("{error}"));
    }
    // Who named the image directly is taken at the word, whatever the platform.
    assert!(parse(&with("/os", json!("plan9")), None).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_document_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = parse_document(&descriptor(media_type::OCI_MANIFEST), &bytes);
    }

    /// What is written as JSON comes back as it was, and a cut anywhere is an error.
    #[test]
    fn a_manifest_is_read_back_and_cut_short_refused(sizes in proptest::collection::vec(0..u64::from(u32::MAX), 0..8), at in 0.0..1.0) {
        let layers: Vec<serde_json::Value> = sizes.iter().map(|size| layer_of(json!(size))).collect();
        let text = json!({"schemaVersion": 2, "config": config_of(json!(3)), "layers": layers}).to_string();
        let Ok(Document::Manifest(found)) = parse_document(&descriptor(""), text.as_bytes()) else { panic!("{text}") };
        assert_eq!(found.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), sizes);
        let cut = (text.len() as f64 * at) as usize;
        assert!(parse_document(&descriptor(""), &text.as_bytes()[..cut]).is_err());
    }
}
