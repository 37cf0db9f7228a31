//! `PodSandboxConfig`, checked.

use api::cri;
use sandbox::model::{Dns, PodName, PodSpec, PortMapping, Protocol, StringMap};
use tonic::Status;

use super::{
    invalid, parse_enum, parse_file_name, parse_identifier, parse_map, parse_marks, parse_path, parse_resources,
    parse_text, required,
    security::{RunAsFields, parse_namespaces, parse_profile, parse_run_as, parse_selinux},
};

pub(in crate::cri) fn parse_pod(config: cri::PodSandboxConfig, handler: String) -> Result<PodSpec, Status> {
    let metadata = required(config.metadata, "config.metadata")?;
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let field = "config.linux.security_context";
    let (labels, annotations) = parse_marks(config.labels, config.annotations, "config")?;
    Ok(PodSpec {
        name: PodName {
            name: parse_identifier(metadata.name, "config.metadata.name")?,
            namespace: parse_identifier(metadata.namespace, "config.metadata.namespace")?,
            uid: parse_file_name(metadata.uid, "config.metadata.uid")?,
            attempt: metadata.attempt,
        },
        hostname: parse_hostname(config.hostname)?,
        log_directory: parse_absolute(config.log_directory, "config.log_directory")?,
        dns: config.dns_config.map(parse_dns).transpose()?,
        port_mappings: config.port_mappings.into_iter().map(parse_port).collect::<Result<_, _>>()?,
        labels,
        annotations,
        cgroup_parent: parse_cgroup_parent(linux.cgroup_parent)?,
        sysctls: parse_sysctls(parse_map(linux.sysctls, "config.linux.sysctls")?)?,
        namespaces: parse_namespaces(context.namespace_options, &format!("{field}.namespace_options"))?,
        run_as: parse_run_as(
            RunAsFields {
                user: context.run_as_user,
                group: context.run_as_group,
                username: String::new(),
                supplemental_groups: context.supplemental_groups,
                policy: context.supplemental_groups_policy,
            },
            field,
        )?,
        readonly_rootfs: context.readonly_rootfs,
        privileged: context.privileged,
        seccomp: parse_profile(context.seccomp, &context.seccomp_profile_path, &format!("{field}.seccomp"))?,
        apparmor: parse_profile(context.apparmor, "", &format!("{field}.apparmor"))?,
        selinux: parse_selinux(context.selinux_options, &format!("{field}.selinux_options"))?,
        overhead: linux.overhead.map(|r| parse_resources(r, "config.linux.overhead")).transpose()?,
        resources: linux.resources.map(|r| parse_resources(r, "config.linux.resources")).transpose()?,
        handler: parse_text(handler, "runtime_handler")?,
    })
}

/// The kernel takes 64 bytes (sethostname(2)); a line break would forge a second line of `/etc/hostname`.
fn parse_hostname(hostname: String) -> Result<String, Status> {
    let field = "config.hostname";
    if hostname.len() > 64 {
        return Err(invalid(field, format_args!("is {} bytes long, the kernel allows 64", hostname.len())));
    }
    if hostname.chars().any(|c| c.is_control() || c == '/') {
        return Err(invalid(field, format_args!("{hostname:?} must not contain slashes or control characters")));
    }
    Ok(hostname)
}

/// A path below which files of the host are made: absolute, and never above itself.
fn parse_absolute(path: String, field: &str) -> Result<String, Status> {
    let path = parse_path(path, field)?;
    if path.is_empty() {
        return Ok(path);
    }
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format_args!("{path:?} must be an absolute path without \"..\"")));
    }
    Ok(path)
}

fn parse_cgroup_parent(path: String) -> Result<String, Status> {
    let field = "config.linux.cgroup_parent";
    let path = parse_path(path, field)?;
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format_args!("{path:?} must not contain \"..\"")));
    }
    Ok(path)
}

fn parse_sysctls(sysctls: StringMap) -> Result<StringMap, Status> {
    for name in sysctls.keys() {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if name.is_empty() || name.contains("..") || !name.chars().all(word) {
            return Err(invalid("config.linux.sysctls", format_args!("{name:?} is not the name of a sysctl")));
        }
    }
    Ok(sysctls)
}

/// Each entry becomes part of a line of resolv.conf (resolv.conf(5)), so none may hold a line break.
fn parse_dns(dns: cri::DnsConfig) -> Result<Dns, Status> {
    let lines = |entries: Vec<String>, name: &str| {
        for entry in &entries {
            if entry.is_empty() || entry.chars().any(|c| c.is_control() || c == ' ') {
                let what = format_args!("{entry:?} must be one word");
                return Err(invalid(&format!("config.dns_config.{name}"), what));
            }
        }
        Ok(entries)
    };
    Ok(Dns {
        servers: lines(dns.servers, "servers")?,
        searches: lines(dns.searches, "searches")?,
        options: lines(dns.options, "options")?,
    })
}

fn parse_port(mapping: cri::PortMapping) -> Result<PortMapping, Status> {
    let field = "config.port_mappings";
    let port = |value: i32, name: &str| {
        u16::try_from(value).map_err(|_| invalid(&format!("{field}.{name}"), format_args!("{value} is not a port")))
    };
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
        let what = format_args!("{:?} is not an IP address", mapping.host_ip);
        return Err(invalid(&format!("{field}.host_ip"), what));
    }
    Ok(PortMapping {
        protocol: match parse_enum(mapping.protocol, &format!("{field}.protocol"))? {
            cri::Protocol::Tcp => Protocol::Tcp,
            cri::Protocol::Udp => Protocol::Udp,
            cri::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: port(mapping.container_port, "container_port")?,
        host_port: port(mapping.host_port, "host_port")?,
        host_ip: mapping.host_ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_name_is_kept_and_the_rest_has_defaults() {
        let spec = parse_pod(config(), String::new()).unwrap();
        assert_eq!(spec.name.key(), "web_default_u1_2");
        assert_eq!(spec.dns, None);
        assert!(!spec.privileged);
    }

    #[test]
    fn each_bad_field_is_named() {
        let check = |change: fn(&mut cri::PodSandboxConfig), field: &str| {
            let mut config = config();
            change(&mut config);
            let status = parse_pod(config, String::new()).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{} should start with {field}", status.message());
        };
        check(|c| c.metadata = None, "config.metadata: is required");
        check(|c| c.metadata.as_mut().unwrap().name.clear(), "config.metadata.name: must not be empty");
        check(|c| c.metadata.as_mut().unwrap().uid = "../x".into(), "config.metadata.uid:");
        check(|c| c.hostname = "a\nb".into(), "config.hostname:");
        check(|c| c.hostname = "h".repeat(65), "config.hostname: is 65 bytes long");
        check(|c| c.log_directory = "var/log".into(), "config.log_directory:");
        check(|c| c.log_directory = "/var/../etc".into(), "config.log_directory:");
        check(
            |c| c.dns_config = Some(cri::DnsConfig { servers: vec!["1.1.1.1\nsearch x".into()], ..Default::default() }),
            "config.dns_config.servers:",
        );
        check(
            |c| c.port_mappings = vec![cri::PortMapping { host_port: 70_000, ..Default::default() }],
            "config.port_mappings.host_port: 70000 is not a port",
        );
        check(
            |c| c.port_mappings = vec![cri::PortMapping { protocol: 7, ..Default::default() }],
            "config.port_mappings.protocol: unknown value 7",
        );
        check(
            |c| {
                let sysctls = [("net/../kernel.x".to_owned(), "1".to_owned())].into();
                c.linux = Some(cri::LinuxPodSandboxConfig { sysctls, ..Default::default() });
            },
            "config.linux.sysctls:",
        );
        check(
            |c| {
                let cgroup_parent = "/a/../..".into();
                c.linux = Some(cri::LinuxPodSandboxConfig { cgroup_parent, ..Default::default() });
            },
            "config.linux.cgroup_parent:",
        );
    }
}
