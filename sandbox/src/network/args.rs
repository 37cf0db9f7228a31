//! What a pod tells plugins: CNI_ARGS, and the runtime configuration that plugins ask for by capability.

use serde_json::{Map, Value, json};

use super::Attachment;
use crate::{
    error::Error,
    model::{PortMapping, Protocol, StringMap},
};

/// The pairs of `CNI_ARGS`, in their order.
pub(super) fn cni_args(pod: &Attachment) -> Result<Vec<[String; 2]>, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", pod.name.namespace.as_str()),
        ("K8S_POD_NAME", &pod.name.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id.as_str()),
        ("K8S_POD_UID", &pod.name.uid),
    ];
    for (name, value) in pairs {
        // It would end the pair, and what follows would be another argument.
        if value.contains(';') || value.contains('\0') {
            return Err(Error::Invalid(format!("{name} {value:?} has a character that CNI arguments cannot carry")));
        }
    }
    Ok(pairs.map(|(name, value)| [name.to_owned(), value.to_owned()]).to_vec())
}

/// `CNI_ARGS` as one text.
pub(super) fn join(pairs: &[[String; 2]]) -> String {
    pairs.iter().map(|[name, value]| format!("{name}={value}")).collect::<Vec<_>>().join(";")
}

/// All that plugins may ask for, by the name of the capability.
pub(super) fn capabilities(pod: &Attachment) -> Result<Map<String, Value>, Error> {
    let mut found = Map::new();
    found.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    let ports: Vec<Value> = pod.port_mappings.iter().filter(|port| port.host_port > 0).map(port).collect();
    if !ports.is_empty() {
        found.insert("portMappings".into(), Value::Array(ports));
    }
    if let Some(bandwidth) = bandwidth(&pod.annotations)? {
        found.insert("bandwidth".into(), bandwidth);
    }
    if let Some(dns) = &pod.dns {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        found.insert("dns".into(), dns);
    }
    if !pod.cgroup_parent.is_empty() {
        found.insert("cgroupPath".into(), json!(pod.cgroup_parent));
    }
    Ok(found)
}

fn port(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": protocol,
        "hostIP": port.host_ip,
    })
}

/// Bits a second, from the annotations that Kubernetes defines; the burst is not limited.
fn bandwidth(annotations: &StringMap) -> Result<Option<Value>, Error> {
    let mut found = Map::new();
    for direction in ["ingress", "egress"] {
        let name = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = annotations.get(&name) else { continue };
        let rate = parse_quantity(text).filter(|rate| (1_000..=1_000_000_000_000_000).contains(rate));
        let rate =
            rate.ok_or_else(|| Error::Invalid(format!("annotation {name} {text:?} is not a rate from 1k to 1P")))?;
        found.insert(format!("{direction}Rate"), json!(rate));
        found.insert(format!("{direction}Burst"), json!(u32::MAX));
    }
    Ok((!found.is_empty()).then_some(Value::Object(found)))
}

/// A Kubernetes quantity (`10M`, `1.5Gi`, `2e6`) as a whole number, rounded up.
fn parse_quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let power = |base: u128, exponent: u32| base.checked_pow(exponent);
    let factor = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => power(10, 6)?,
        "G" => power(10, 9)?,
        "T" => power(10, 12)?,
        "P" => power(10, 15)?,
        "E" => power(10, 18)?,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        other => power(10, other.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = power(10, u32::try_from(fraction.len()).ok()?)?;
    u64::try_from(digits.checked_mul(factor)?.div_ceil(divisor)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(parse_quantity("10M"), Some(10_000_000));
        assert_eq!(parse_quantity("1.5Ki"), Some(1536));
        assert_eq!(parse_quantity("2e6"), Some(2_000_000));
        assert_eq!(parse_quantity("1000"), Some(1000));
        for bad in ["", "M", "-1M", "1X", "1.2.3", "1e99", "99999999999999999999E"] {
            assert_eq!(parse_quantity(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bandwidth_out_of_range_is_refused() {
        let check = |value: &str| {
            bandwidth(&StringMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), value.to_owned())]))
        };
        assert_eq!(check("1M").unwrap().unwrap(), json!({"ingressRate": 1_000_000, "ingressBurst": u32::MAX}));
        assert!(matches!(check("999"), Err(Error::Invalid(_))));
        assert!(matches!(check("2P"), Err(Error::Invalid(_))));
        assert_eq!(bandwidth(&StringMap::new()).unwrap(), None);
    }
}
