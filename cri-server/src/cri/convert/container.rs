//! `ContainerConfig`, checked.

use api::cri;
use sandbox::model::{Capabilities, ContainerName, ContainerSpec, Device};
use tonic::Status;

use super::{
    image::{Requested, parse_requested},
    invalid,
    mount::{Images, parse_mount},
    parse_enum, parse_host_path, parse_identifier, parse_marks, parse_name, parse_path, parse_resources, parse_text,
    parse_texts, parse_word, parse_words, required,
    security::{RunAsFields, parse_namespaces, parse_profile, parse_run_as, parse_selinux},
};

/// The container's spec, and the image that it asks for. `images` looks up the images that are to be mounted as volumes.
pub(in crate::cri) fn parse_container(
    config: cri::ContainerConfig,
    images: &Images<'_>,
) -> Result<(ContainerSpec, Requested), Status> {
    let metadata = required(config.metadata, "config.metadata")?;
    let image = parse_requested(required(config.image, "config.image")?, "config.image")?;
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let capabilities = context.capabilities.unwrap_or_default();
    let field = "config.linux.security_context";
    let (labels, annotations) = parse_marks(config.labels, config.annotations, "config")?;
    let capability = |names, of: &str| parse_texts(names, &format!("{field}.capabilities.{of}"));
    let spec = ContainerSpec {
        name: ContainerName {
            name: parse_identifier(metadata.name, "config.metadata.name")?,
            attempt: metadata.attempt,
        },
        command: parse_words(config.command, "config.command")?,
        args: parse_words(config.args, "config.args")?,
        working_dir: parse_text(config.working_dir, "config.working_dir")?,
        env: config.envs.into_iter().map(parse_env).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().map(|mount| parse_mount(mount, images)).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(parse_device).collect::<Result<_, _>>()?,
        cdi_devices: config
            .cdi_devices
            .into_iter()
            .map(|device| parse_name(device.name, "config.CDI_devices.name"))
            .collect::<Result<_, _>>()?,
        labels,
        annotations,
        log_path: parse_log_path(config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: parse_stop_signal(config.stop_signal)?,
        resources: parse_resources(linux.resources.unwrap_or_default(), "config.linux.resources")?,
        capabilities: Capabilities {
            add: capability(capabilities.add_capabilities, "add_capabilities")?,
            drop: capability(capabilities.drop_capabilities, "drop_capabilities")?,
            add_ambient: capability(capabilities.add_ambient_capabilities, "add_ambient_capabilities")?,
        },
        privileged: context.privileged,
        namespaces: parse_namespaces(context.namespace_options, &format!("{field}.namespace_options"))?,
        run_as: parse_run_as(
            RunAsFields {
                user: context.run_as_user,
                group: context.run_as_group,
                username: context.run_as_username,
                supplemental_groups: context.supplemental_groups,
                policy: context.supplemental_groups_policy,
            },
            field,
        )?,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: parse_texts(context.masked_paths, &format!("{field}.masked_paths"))?,
        readonly_paths: parse_texts(context.readonly_paths, &format!("{field}.readonly_paths"))?,
        seccomp: parse_profile(context.seccomp, &context.seccomp_profile_path, &format!("{field}.seccomp"))?,
        apparmor: parse_profile(context.apparmor, &context.apparmor_profile, &format!("{field}.apparmor"))?,
        selinux: parse_selinux(context.selinux_options, &format!("{field}.selinux_options"))?,
    };
    Ok((spec, image))
}

/// An environment entry; its value may be any bytes, but a process can only be given text here (OCI `process.env`).
fn parse_env(entry: cri::KeyValue) -> Result<(String, String), Status> {
    let field = "config.envs";
    let key = parse_name(entry.key, &format!("{field}.key"))?;
    if key.contains('=') {
        return Err(invalid(&format!("{field}.key"), format_args!("{key:?} must not contain \"=\"")));
    }
    let value = String::from_utf8(entry.value)
        .map_err(|_| invalid(&format!("{field}.value"), format_args!("of {key:?} is not UTF-8")))?;
    Ok((key, parse_word(value, &format!("{field}.value"))?))
}

fn parse_device(device: cri::Device) -> Result<Device, Status> {
    let field = "config.devices";
    if device.permissions.is_empty() || !device.permissions.chars().all(|c| "rwm".contains(c)) {
        let what = format_args!("{:?} must be some of r, w and m", device.permissions);
        return Err(invalid(&format!("{field}.permissions"), what));
    }
    Ok(Device {
        container_path: parse_name(device.container_path, &format!("{field}.container_path"))?,
        host_path: parse_host_path(device.host_path, &format!("{field}.host_path"))?,
        permissions: device.permissions,
    })
}

/// Relative to the pod's log directory, and never above it.
fn parse_log_path(path: String) -> Result<String, Status> {
    let path = parse_path(path, "config.log_path")?;
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        let what = format_args!("{path:?} must be relative to the pod's log directory, without \"..\"");
        return Err(invalid("config.log_path", what));
    }
    Ok(path)
}

/// CRI's own numbering, by name, so that the image's `StopSignal` and this one read alike: `SIGTERM`, `SIGRTMIN+3`.
fn parse_stop_signal(signal: i32) -> Result<Option<String>, Status> {
    match parse_enum(signal, "config.stop_signal")? {
        cri::Signal::RuntimeDefault => Ok(None),
        signal => Ok(Some(signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-"))),
    }
}

/// The way back, for ContainerStatus.
pub(in crate::cri) fn to_stop_signal(name: &str) -> cri::Signal {
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn every_stop_signal_survives_the_way_in_and_out() {
        for number in 1..=65 {
            let name = parse_stop_signal(number).unwrap().unwrap();
            assert_eq!(to_stop_signal(&name) as i32, number, "{name}");
        }
        assert_eq!(parse_stop_signal(38).unwrap().as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(parse_stop_signal(52).unwrap().as_deref(), Some("SIGRTMAX-13"));
        assert_eq!(parse_stop_signal(0).unwrap(), None);
        assert_eq!(parse_stop_signal(66).unwrap_err().message(), "config.stop_signal: unknown value 66");
    }

    #[test]
    fn each_bad_field_is_named() {
        let check = |change: fn(&mut cri::ContainerConfig), message: &str| {
            let mut config = config();
            change(&mut config);
            let status = parse_container(config, &|_| None).unwrap_err();
            assert!(status.message().starts_with(message), "{} should start with {message}", status.message());
        };
        check(|c| c.metadata = None, "config.metadata: is required");
        check(|c| c.image = None, "config.image: is required");
        check(|c| c.image.as_mut().unwrap().image.clear(), "config.image.image: must not be empty");
        check(|c| c.log_path = "../../etc/cron.d/x".into(), "config.log_path:");
        check(|c| c.log_path = "/etc/x".into(), "config.log_path:");
        check(|c| c.envs = vec![cri::KeyValue { key: "A=B".into(), value: vec![] }], "config.envs.key:");
        check(|c| c.envs = vec![cri::KeyValue { key: "A".into(), value: vec![0xff] }], "config.envs.value:");
        check(
            |c| c.mounts = vec![cri::Mount { container_path: "/x".into(), ..Default::default() }],
            "config.mounts.host_path: must not be empty",
        );
        check(
            |c| {
                let (container_path, host_path, permissions) = ("/dev/x".into(), "/dev/null".into(), "rx".into());
                c.devices = vec![cri::Device { container_path, host_path, permissions }];
            },
            "config.devices.permissions:",
        );
        check(|c| c.command = vec!["a\0b".into()], "config.command: must not contain a NUL byte");
    }

    #[test]
    fn the_image_is_what_the_client_wrote() {
        let (spec, image) = parse_container(config(), &|_| None).unwrap();
        assert_eq!((spec.name.name.as_str(), image.image.as_str()), ("app", "busybox"));
    }
}
