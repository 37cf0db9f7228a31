//! The runtime's options as a shim takes them: those of runc in runc's message, those of anything else in the generic one.

use shim::proto::{AnyMessage, generic, runc, to_any};

use crate::{Handler, config::RuntimeOptions};

/// `io_owner` is who gets the pipes of a container with a user namespace; zeros leave it to the configuration.
pub(super) fn options(handler: &Handler, io_owner: (u32, u32)) -> Option<AnyMessage> {
    match &handler.options {
        RuntimeOptions::Runc(options) => {
            let (io_uid, io_gid) = if io_owner == (0, 0) { (options.io_uid, options.io_gid) } else { io_owner };
            Some(to_any(&runc::Options {
                no_pivot_root: options.no_pivot_root,
                no_new_keyring: options.no_new_keyring,
                shim_cgroup: options.shim_cgroup.clone(),
                io_uid,
                io_gid,
                binary_name: options.binary_name.clone(),
                root: options.root.clone(),
                systemd_cgroup: options.systemd_cgroup,
                criu_image_path: options.criu_image_path.clone(),
                criu_work_path: options.criu_work_path.clone(),
                ..runc::Options::default()
            }))
        }
        RuntimeOptions::Generic(options) => Some(to_any(&generic::Options {
            type_url: options.type_url.clone(),
            config_path: options.config_path.clone(),
            config_body: options.config_body.clone().into(),
        })),
        RuntimeOptions::None => None,
    }
}

#[cfg(test)]
mod tests {
    use shim::proto::parse_any;

    use super::*;
    use crate::config::{GenericOptions, RuncOptions};

    fn handler(options: RuntimeOptions) -> Handler {
        Handler { options, ..Handler::default() }
    }

    #[test]
    fn a_user_namespaces_root_owns_the_pipes_whatever_is_configured() {
        let configured = RuncOptions { io_uid: 7, io_gid: 8, binary_name: "crun".into(), ..RuncOptions::default() };
        let handler = handler(RuntimeOptions::Runc(configured));
        for (owner, expected) in [((0, 0), (7, 8)), ((100_000, 100_001), (100_000, 100_001))] {
            let any = options(&handler, owner).unwrap();
            assert_eq!(any.type_url, "containerd.runc.v1.Options");
            let sent = parse_any::<runc::Options>(&any).unwrap().unwrap();
            assert_eq!(((sent.io_uid, sent.io_gid), sent.binary_name.as_str()), (expected, "crun"));
        }
    }

    #[test]
    fn another_runtime_gets_its_configuration_as_it_is() {
        let body = "key = \"value\"\n".to_owned();
        let given = GenericOptions { config_body: body.clone(), ..GenericOptions::default() };
        let any = options(&handler(RuntimeOptions::Generic(given)), (0, 0)).unwrap();
        assert_eq!(any.type_url, "runtimeoptions.v1.Options");
        let sent = parse_any::<generic::Options>(&any).unwrap().unwrap();
        assert_eq!((sent.config_path.as_str(), &sent.config_body[..]), ("", body.as_bytes()));
        assert_eq!(options(&handler(RuntimeOptions::None), (0, 0)), None);
    }
}
