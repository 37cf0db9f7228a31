//! Namespaces, users and profiles: what pods and containers have in common.

use api::cri;
use sandbox::model::{
    GroupsPolicy, IdMapping, NamespaceMode, Namespaces, RunAs, SecurityProfile, Selinux, UserNamespace,
};
use tonic::Status;

use super::{invalid, parse_enum, parse_id, parse_text};

pub(in crate::cri) fn parse_namespaces(
    options: Option<cri::NamespaceOption>,
    field: &str,
) -> Result<Namespaces, Status> {
    let Some(options) = options else { return Ok(Namespaces::default()) };
    let mode = |value: i32, name: &str| -> Result<NamespaceMode, Status> {
        Ok(match parse_enum::<cri::NamespaceMode>(value, &format!("{field}.{name}"))? {
            cri::NamespaceMode::Pod => NamespaceMode::Pod,
            cri::NamespaceMode::Container => NamespaceMode::Container,
            cri::NamespaceMode::Node => NamespaceMode::Node,
            cri::NamespaceMode::Target => NamespaceMode::Target,
        })
    };
    let pid = mode(options.pid, "pid")?;
    let target = match (pid, options.target_id.as_str()) {
        (NamespaceMode::Target, "") => return Err(invalid(&format!("{field}.target_id"), "is required by pid TARGET")),
        (NamespaceMode::Target, id) => Some(id.to_owned()),
        (_, _) => None,
    };
    let user = match options.userns_options {
        None => None,
        Some(user) => parse_user_namespace(user, &format!("{field}.userns_options"))?,
    };
    Ok(Namespaces { network: mode(options.network, "network")?, pid, ipc: mode(options.ipc, "ipc")?, target, user })
}

fn parse_user_namespace(options: cri::UserNamespace, field: &str) -> Result<Option<UserNamespace>, Status> {
    match parse_enum::<cri::NamespaceMode>(options.mode, &format!("{field}.mode"))? {
        cri::NamespaceMode::Node => {
            if options.uids.is_empty() && options.gids.is_empty() {
                Ok(None)
            } else {
                Err(invalid(field, "mode NODE takes no mappings"))
            }
        }
        cri::NamespaceMode::Pod => Ok(Some(UserNamespace {
            uid: parse_single_mapping(&options.uids, &format!("{field}.uids"))?,
            gid: parse_single_mapping(&options.gids, &format!("{field}.gids"))?,
        })),
        mode @ (cri::NamespaceMode::Container | cri::NamespaceMode::Target) => Err(invalid(
            &format!("{field}.mode"),
            format_args!("{} is not supported for user namespaces", mode.as_str_name()),
        )),
    }
}

fn parse_single_mapping(mappings: &[cri::IdMapping], field: &str) -> Result<IdMapping, Status> {
    let [mapping] = mappings else {
        return Err(invalid(field, format_args!("exactly one mapping is supported, not {}", mappings.len())));
    };
    if mapping.container_id != 0 || mapping.length == 0 {
        return Err(invalid(field, "the mapping must start at container id 0 and have a length"));
    }
    // The last id is no id: it says "no change" to chown(2) and its like.
    if mapping.host_id.checked_add(mapping.length).is_none() {
        let what = format_args!("{} ids from {} on are more than there are", mapping.length, mapping.host_id);
        return Err(invalid(field, what));
    }
    Ok(parse_mapping(mapping))
}

pub(in crate::cri) fn parse_mapping(mapping: &cri::IdMapping) -> IdMapping {
    IdMapping { container: mapping.container_id, host: mapping.host_id, length: mapping.length }
}

pub(in crate::cri) fn to_mapping(mapping: &IdMapping) -> cri::IdMapping {
    cri::IdMapping { container_id: mapping.container, host_id: mapping.host, length: mapping.length }
}

pub(in crate::cri) fn to_namespaces(namespaces: &Namespaces) -> cri::NamespaceOption {
    let mode = |mode: NamespaceMode| match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod as i32,
        NamespaceMode::Container => cri::NamespaceMode::Container as i32,
        NamespaceMode::Node => cri::NamespaceMode::Node as i32,
        NamespaceMode::Target => cri::NamespaceMode::Target as i32,
    };
    cri::NamespaceOption {
        network: mode(namespaces.network),
        pid: mode(namespaces.pid),
        ipc: mode(namespaces.ipc),
        target_id: namespaces.target.clone().unwrap_or_default(),
        userns_options: namespaces.user.as_ref().map(|user| cri::UserNamespace {
            mode: cri::NamespaceMode::Pod as i32,
            uids: vec![to_mapping(&user.uid)],
            gids: vec![to_mapping(&user.gid)],
        }),
    }
}

/// The parts of both security contexts that say who a process runs as.
pub(in crate::cri) struct RunAsFields {
    pub(in crate::cri) user: Option<cri::Int64Value>,
    pub(in crate::cri) group: Option<cri::Int64Value>,
    pub(in crate::cri) username: String,
    pub(in crate::cri) supplemental_groups: Vec<i64>,
    pub(in crate::cri) policy: i32,
}

pub(in crate::cri) fn parse_run_as(fields: RunAsFields, field: &str) -> Result<RunAs, Status> {
    let id = |value: Option<cri::Int64Value>, name: &str| {
        value.map(|value| parse_id(value.value, &format!("{field}.{name}"))).transpose()
    };
    let (user, group) = (id(fields.user, "run_as_user")?, id(fields.group, "run_as_group")?);
    if let (Some(group), None, "") = (group, user, fields.username.as_str()) {
        let what = format_args!("user group \"{group}\" is specified without user");
        return Err(invalid(&format!("{field}.run_as_group"), what));
    }
    let username = parse_text(fields.username, &format!("{field}.run_as_username"))?;
    let policy = parse_enum(fields.policy, &format!("{field}.supplemental_groups_policy"))?;
    Ok(RunAs {
        user,
        group,
        username: (!username.is_empty()).then_some(username),
        supplemental_groups: fields
            .supplemental_groups
            .into_iter()
            .map(|group| parse_id(group, &format!("{field}.supplemental_groups")))
            .collect::<Result<_, _>>()?,
        groups_policy: match policy {
            cri::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
            cri::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
        },
    })
}

/// A profile from its field, else from the deprecated string that older kubelets send beside it.
pub(in crate::cri) fn parse_profile(
    profile: Option<cri::SecurityProfile>,
    deprecated: &str,
    field: &str,
) -> Result<SecurityProfile, Status> {
    if let Some(profile) = profile {
        let localhost = parse_text(profile.localhost_ref, &format!("{field}.localhost_ref"))?;
        let kind = parse_enum(profile.profile_type, &format!("{field}.profile_type"))?;
        return match (kind, localhost.is_empty()) {
            (cri::security_profile::ProfileType::RuntimeDefault, true) => Ok(SecurityProfile::RuntimeDefault),
            (cri::security_profile::ProfileType::Unconfined, true) => Ok(SecurityProfile::Unconfined),
            (cri::security_profile::ProfileType::Localhost, false) => Ok(SecurityProfile::Localhost(localhost)),
            (cri::security_profile::ProfileType::Localhost, true) => {
                Err(invalid(&format!("{field}.localhost_ref"), "is required by profile_type Localhost"))
            }
            (_, false) => {
                Err(invalid(&format!("{field}.localhost_ref"), "is only allowed with profile_type Localhost"))
            }
        };
    }
    match deprecated {
        "" => Ok(SecurityProfile::Unset),
        "unconfined" => Ok(SecurityProfile::Unconfined),
        "runtime/default" | "docker/default" => Ok(SecurityProfile::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() => Ok(SecurityProfile::Localhost(parse_text(name.to_owned(), field)?)),
            _ => Err(invalid(field, format_args!("unknown profile {other:?}"))),
        },
    }
}

/// `None` when the client set nothing in it.
pub(in crate::cri) fn parse_selinux(
    options: Option<cri::SeLinuxOption>,
    field: &str,
) -> Result<Option<Selinux>, Status> {
    let Some(options) = options else { return Ok(None) };
    let part = |text: String, name: &str| parse_text(text, &format!("{field}.{name}"));
    let selinux = Selinux {
        user: part(options.user, "user")?,
        role: part(options.role, "role")?,
        kind: part(options.r#type, "type")?,
        level: part(options.level, "level")?,
    };
    Ok((selinux != Selinux::default()).then_some(selinux))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_as(user: Option<i64>, group: Option<i64>, username: &str) -> Result<RunAs, Status> {
        let fields = RunAsFields {
            user: user.map(|value| cri::Int64Value { value }),
            group: group.map(|value| cri::Int64Value { value }),
            username: username.into(),
            supplemental_groups: vec![7],
            policy: 1,
        };
        parse_run_as(fields, "security_context")
    }

    #[test]
    fn a_group_needs_a_user() {
        let error = run_as(None, Some(3), "").unwrap_err();
        assert_eq!(error.message(), "security_context.run_as_group: user group \"3\" is specified without user");
        assert_eq!(
            run_as(Some(1), Some(3), "").unwrap(),
            RunAs {
                user: Some(1),
                group: Some(3),
                username: None,
                supplemental_groups: vec![7],
                groups_policy: GroupsPolicy::Strict
            }
        );
        assert_eq!(run_as(None, Some(3), "nobody").unwrap().username.as_deref(), Some("nobody"));
    }

    #[test]
    fn the_profile_field_wins_over_the_deprecated_string() {
        let profile = |kind: i32, path: &str| cri::SecurityProfile { profile_type: kind, localhost_ref: path.into() };
        let check = |profile, deprecated: &str, expected: Option<SecurityProfile>| {
            assert_eq!(parse_profile(profile, deprecated, "seccomp").ok(), expected);
        };
        check(None, "", Some(SecurityProfile::Unset));
        check(None, "runtime/default", Some(SecurityProfile::RuntimeDefault));
        check(None, "localhost/a.json", Some(SecurityProfile::Localhost("a.json".into())));
        check(None, "localhost/", None);
        check(None, "nonsense", None);
        check(Some(profile(1, "")), "runtime/default", Some(SecurityProfile::Unconfined));
        check(Some(profile(2, "/p.json")), "", Some(SecurityProfile::Localhost("/p.json".into())));
        check(Some(profile(2, "")), "", None);
        check(Some(profile(0, "/p.json")), "", None);
        check(Some(profile(9, "")), "", None);
    }

    #[test]
    fn a_user_namespace_has_one_mapping_from_zero() {
        let mapping = |host_id, container_id, length| cri::IdMapping { host_id, container_id, length };
        let options = |mode: i32, uids: Vec<cri::IdMapping>| cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace { mode, gids: uids.clone(), uids }),
            ..Default::default()
        };
        let parsed = parse_namespaces(Some(options(0, vec![mapping(1000, 0, 65536)])), "n").unwrap();
        assert_eq!(to_namespaces(&parsed), options(0, vec![mapping(1000, 0, 65536)]));
        assert_eq!(parse_namespaces(Some(options(2, vec![])), "n").unwrap().user, None);
        for bad in [
            options(0, vec![]),
            options(0, vec![mapping(1, 0, 1), mapping(2, 1, 1)]),
            options(0, vec![mapping(1, 5, 1)]),
            options(0, vec![mapping(1, 0, u32::MAX)]),
            options(1, vec![]),
            options(3, vec![]),
            options(8, vec![]),
        ] {
            assert!(parse_namespaces(Some(bad.clone()), "n").is_err(), "{bad:?}");
        }
    }
}
