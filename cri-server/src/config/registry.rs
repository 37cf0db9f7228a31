//! `registry`: where images come from. `config_path` is the way; `mirrors`, `configs` and `auths` are the older one, which
//! real files still carry.

use std::path::PathBuf;

use image_service::{
    hosts::{ClientCertificate, Tls},
    policy::PolicyConfig,
    registry::parse_header,
};

use super::{Auth, Images, section::Section};

/// Puts what a `registry` table says into `images`.
pub(super) fn registry(mut section: Section, images: &mut Images, warnings: &mut Vec<String>) -> Result<(), String> {
    let mut roots = String::new();
    section.string("config_path", &mut roots)?;
    if !roots.is_empty() {
        images.registry_paths = roots.split(':').filter(|root| !root.is_empty()).map(PathBuf::from).collect();
    }
    section.boolean("allow_foreign_layers", &mut images.foreign_layers)?;
    configs(older(&mut section, "configs", images)?, images, warnings)?;
    auths(older(&mut section, "auths", images)?, images, warnings)?;
    mirrors(older(&mut section, "mirrors", images)?, images, warnings)?;
    headers(section.section("headers")?, images)?;
    section.unknown(warnings);
    Ok(())
}

/// A table of one of the older ways, noted if it says something.
fn older(section: &mut Section, way: &'static str, images: &mut Images) -> Result<Section, String> {
    let section = section.section(way)?;
    if !section.is_empty() {
        images.older_ways.insert(way);
    }
    Ok(section)
}

/// What only all files together can tell.
pub(super) fn validate(images: &Images) -> Result<(), String> {
    if !images.mirrors.is_empty() && images.registry_paths != Images::default().registry_paths {
        return Err(
            "registry.mirrors and registry.configs.<host>.tls cannot be set together with registry.config_path; \
             write a hosts.toml for each of them below config_path, or leave config_path out"
                .to_owned(),
        );
    }
    if images.policy.per_verifier_timeout.is_zero() {
        return Err("per_verifier_timeout of the image verifiers must be more than 0, such as \"10s\"".to_owned());
    }
    Ok(())
}

/// Puts what the image verifiers' table says into `policy`.
pub(super) fn verifiers(
    mut section: Section,
    policy: &mut PolicyConfig,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    section.path_value("bin_dir", &mut policy.bin_dir)?;
    let mut most = policy.max_verifiers.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX));
    section.number("max_verifiers", &mut most)?;
    // Less than none is no limit.
    policy.max_verifiers = usize::try_from(most).ok();
    section.duration("per_verifier_timeout", &mut policy.per_verifier_timeout)?;
    section.unknown(warnings);
    Ok(())
}

fn configs(mut section: Section, images: &mut Images, warnings: &mut Vec<String>) -> Result<(), String> {
    for host in section.names() {
        let mut host_section = section.named_section(&host)?;
        let auth_section = host_section.section("auth")?;
        if !auth_section.is_empty() {
            images.auths.insert(host.clone(), auth(auth_section, warnings)?);
        }
        let tls_section = host_section.section("tls")?;
        if !tls_section.is_empty() {
            images.mirrors.set_tls(&host, tls(tls_section, warnings)?);
        }
        host_section.unknown(warnings);
    }
    Ok(())
}

fn auth(mut section: Section, warnings: &mut Vec<String>) -> Result<Auth, String> {
    let mut auth = Auth::default();
    section.secret("username", &mut auth.username)?;
    section.secret("password", &mut auth.password)?;
    section.secret("auth", &mut auth.auth)?;
    section.secret("identitytoken", &mut auth.identity_token)?;
    section.unknown(warnings);
    Ok(auth)
}

fn tls(mut section: Section, warnings: &mut Vec<String>) -> Result<Tls, String> {
    let (mut ca, mut certificate, mut key) = (PathBuf::new(), PathBuf::new(), PathBuf::new());
    section.path_value("ca_file", &mut ca)?;
    section.path_value("cert_file", &mut certificate)?;
    section.path_value("key_file", &mut key)?;
    let given = |path: PathBuf| Some(path).filter(|path| *path != PathBuf::new());
    let (certificate, key) = (given(certificate), given(key));
    if certificate.is_none() && key.is_some() {
        return Err(format!("{} is set, but {} is not", section.path("key_file"), section.path("cert_file")));
    }
    let mut skip_verify = false;
    section.boolean("insecure_skip_verify", &mut skip_verify)?;
    section.unknown(warnings);
    Ok(Tls {
        ca: given(ca).into_iter().collect(),
        client: certificate.map(|certificate| ClientCertificate { certificate, key }).into_iter().collect(),
        skip_verify: skip_verify.then_some(true),
    })
}

/// The oldest form: by address, of which the host counts. What `configs` says about the same host goes before it.
fn auths(mut section: Section, images: &mut Images, warnings: &mut Vec<String>) -> Result<(), String> {
    for address in section.names() {
        let auth = auth(section.named_section(&address)?, warnings)?;
        let rest = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.is_empty() || host.contains('@') {
            return Err(format!("{} must be keyed by addresses such as \"https://gcr.io\"", section.path("")));
        }
        images.auths.entry(host.to_owned()).or_insert(auth);
    }
    Ok(())
}

fn mirrors(mut section: Section, images: &mut Images, warnings: &mut Vec<String>) -> Result<(), String> {
    for registry in section.names() {
        let mut mirror = section.named_section(&registry)?;
        let mut endpoints = Vec::new();
        mirror.strings("endpoint", &mut endpoints)?;
        let path = mirror.path("endpoint");
        mirror.pending(&["rewrite"], warnings);
        mirror.unknown(warnings);
        images.mirrors.set_endpoints(&registry, &endpoints).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// Values may be secrets, so no message shows one.
fn headers(mut section: Section, images: &mut Images) -> Result<(), String> {
    for name in section.names() {
        let path = section.path(&name);
        let values = section.named_secrets(&name)?;
        images.headers.remove(name.as_str());
        for value in values {
            let (name, value) = parse_header(&name, &value).map_err(|problem| format!("{path}: {problem}"))?;
            images.headers.append(name, value);
        }
    }
    Ok(())
}
