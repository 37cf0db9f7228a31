//! A plugin's answer: read in any version from 0.1 to 1.1, raised to the newest form, merged for CRI.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{
    cni::IpPreference,
    config::{VERSIONS, Version},
};

/// The answer of one network in the form of version 1.1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raised {
    interfaces: Vec<Map<String, Value>>,
    ips: Vec<Map<String, Value>>,
    routes: Vec<Value>,
    dns: Value,
}

/// The answer in the version `wanted`, which is what the next plugin and the cache expect.
pub(super) fn convert(mut answer: Value, wanted: Version) -> Result<Value, String> {
    let raised = raise(&answer, wanted)?;
    let Value::Object(fields) = &mut answer else { return Err("is not an object".into()) };
    let own = fields.get("cniVersion").and_then(Value::as_str).and_then(Version::parse).unwrap_or(wanted);
    // 0.1 and 0.2 have one form, 0.3 to 0.4 another, 1.0 and above the third.
    let form = |version: Version| (version <= Version::V0_2, version < Version::V1_0);
    if form(own) != form(wanted) {
        *fields = raised.lower(wanted);
    }
    fields.insert("cniVersion".into(), json!(wanted.as_str()));
    Ok(answer)
}

/// Raises an answer. `wanted` is the version that was asked for: an answer that names none is of it, as libcni takes it.
pub(super) fn raise(answer: &Value, wanted: Version) -> Result<Raised, String> {
    let Value::Object(answer) = answer else { return Err("is not an object".into()) };
    let version = match answer.get("cniVersion").and_then(Value::as_str).unwrap_or_default() {
        "" => wanted,
        text => Version::parse(text)
            .ok_or_else(|| format!("has cniVersion {text:?}, which is none of {}", VERSIONS.join(", ")))?,
    };
    let dns = answer.get("dns").cloned().unwrap_or_else(|| json!({}));
    if version <= Version::V0_2 {
        return Ok(raise_from_two(answer, dns));
    }
    let mut ips = objects(answer, "ips")?;
    if version < Version::V1_0 {
        // Told by the address since.
        for ip in &mut ips {
            ip.remove("version");
        }
    }
    let routes = list(answer, "routes")?;
    Ok(Raised { interfaces: objects(answer, "interfaces")?, ips, routes, dns })
}

/// 0.1 and 0.2 have no interfaces, and one address of each family with its own routes.
fn raise_from_two(answer: &Map<String, Value>, dns: Value) -> Raised {
    let mut raised = Raised { interfaces: Vec::new(), ips: Vec::new(), routes: Vec::new(), dns };
    for family in ["ip4", "ip6"] {
        let Some(Value::Object(found)) = answer.get(family) else { continue };
        let mut ip = Map::new();
        ip.extend(found.get("ip").map(|address| ("address".to_owned(), address.clone())));
        ip.extend(found.get("gateway").map(|gateway| ("gateway".to_owned(), gateway.clone())));
        raised.ips.push(ip);
        raised.routes.extend(found.get("routes").and_then(Value::as_array).into_iter().flatten().cloned());
    }
    raised
}

fn is_ipv6(ip: &Map<String, Value>) -> bool {
    ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'))
}

fn list(answer: &Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    match answer.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(_) => Err(format!("has {key:?}, which is not a list")),
    }
}

fn objects(answer: &Map<String, Value>, key: &str) -> Result<Vec<Map<String, Value>>, String> {
    let object = |value| match value {
        Value::Object(object) => Ok(object),
        _ => Err(format!("has {key:?} with something that is not an object")),
    };
    list(answer, key)?.into_iter().map(object).collect()
}

impl Raised {
    /// In the form of an older version.
    fn lower(&self, wanted: Version) -> Map<String, Value> {
        let mut lowered = Map::new();
        lowered.insert("dns".into(), self.dns.clone());
        if wanted <= Version::V0_2 {
            for ip in self.ips.iter().rev() {
                let family = if is_ipv6(ip) { "ip6" } else { "ip4" };
                let mut entry = Map::new();
                entry.extend(ip.get("address").map(|address| ("ip".to_owned(), address.clone())));
                entry.extend(ip.get("gateway").map(|gateway| ("gateway".to_owned(), gateway.clone())));
                lowered.insert(family.into(), Value::Object(entry));
            }
            return lowered;
        }
        let mut ips = self.ips.clone();
        if wanted < Version::V1_0 {
            for ip in &mut ips {
                let version = if is_ipv6(ip) { "6" } else { "4" };
                ip.insert("version".into(), json!(version));
            }
        }
        lowered.insert("interfaces".into(), json!(self.interfaces));
        lowered.insert("ips".into(), json!(ips));
        lowered.insert("routes".into(), json!(self.routes));
        lowered
    }

    /// The addresses of `interface`; one that names no interface is the network's own, `default`.
    fn addresses(&self, default: &str, interface: &str) -> Result<Vec<(IpAddr, Option<String>)>, String> {
        let mut found = Vec::new();
        for ip in &self.ips {
            let name = match ip.get("interface").and_then(Value::as_u64) {
                None => default,
                Some(index) => {
                    let at = usize::try_from(index).ok().and_then(|index| self.interfaces.get(index));
                    let at = at.ok_or_else(|| format!("has an address on interface {index}, which is not listed"))?;
                    at.get("name").and_then(Value::as_str).unwrap_or_default()
                }
            };
            if name != interface {
                continue;
            }
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let bare = text.split_once('/').map_or(text, |(bare, _)| bare);
            let address = bare.parse().map_err(|_| format!("has {text:?}, which is not an address"))?;
            found.push((address, ip.get("gateway").and_then(Value::as_str).map(str::to_owned)));
        }
        Ok(found)
    }
}

/// The addresses of a pod, the primary one first: those of its first interface.
pub(super) fn pod_ips(
    networks: &[(String, Raised)],
    primary: &str,
    preference: IpPreference,
) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for (interface, raised) in networks {
        found.extend(raised.addresses(interface, primary)?.into_iter().map(|(address, _)| address));
    }
    let first = match preference {
        IpPreference::Ipv4 => found.iter().position(IpAddr::is_ipv4),
        IpPreference::Ipv6 => found.iter().position(IpAddr::is_ipv6),
        IpPreference::Cni => None,
    };
    if let Some(at) = first {
        let primary = found.remove(at);
        found.insert(0, primary);
    }
    Ok(found.iter().map(ToString::to_string).collect())
}

/// All networks in one, in the form that verbose status shows.
pub(super) fn merge(networks: &[(String, Raised)]) -> Result<Value, String> {
    let mut interfaces = Map::new();
    for (own, raised) in networks {
        let mut names: Vec<&str> =
            raised.interfaces.iter().filter_map(|found| found.get("name").and_then(Value::as_str)).collect();
        if !names.contains(&own.as_str()) {
            names.push(own);
        }
        for name in names {
            let known = raised.interfaces.iter().find(|found| found.get("name").and_then(Value::as_str) == Some(name));
            let field = |key: &str| known.and_then(|found| found.get(key)).cloned().unwrap_or_else(|| json!(""));
            let to_json =
                |(ip, gateway): (IpAddr, Option<String>)| json!({ "IP": ip, "Gateway": gateway.unwrap_or_default() });
            let ips: Vec<Value> = raised.addresses(own, name)?.into_iter().map(to_json).collect();
            let entry = json!({ "IPConfigs": ips, "Mac": field("mac"), "Sandbox": field("sandbox") });
            interfaces.insert(name.to_owned(), entry);
        }
    }
    let dns: Vec<&Value> = networks.iter().map(|(_, raised)| &raised.dns).collect();
    let routes: Vec<&Value> = networks.iter().flat_map(|(_, raised)| &raised.routes).collect();
    Ok(json!({ "Interfaces": interfaces, "DNS": dns, "Routes": routes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(answer: Value, preference: IpPreference) -> Result<Vec<String>, String> {
        let raised = raise(&answer, Version::V1_0)?;
        pod_ips(&[("eth0".to_owned(), raised)], "eth0", preference)
    }

    #[test]
    fn every_version_gives_the_same_addresses() {
        let two = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}, "ip6": {"ip": "fd00::2/64"}});
        let four = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [
                {"version": "4", "interface": 1, "address": "10.0.0.2/24"},
                {"version": "6", "interface": 1, "address": "fd00::2/64"},
                {"version": "4", "interface": 0, "address": "10.0.0.1/24"},
            ],
        });
        let one = json!({"ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]});
        for answer in [two, four, one] {
            assert_eq!(ips(answer, IpPreference::Ipv4).unwrap(), ["10.0.0.2", "fd00::2"]);
        }
    }

    #[test]
    fn an_answer_of_another_version_is_converted_to_the_networks() {
        let two = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}, "dns": {}});
        let four = json!({
            "cniVersion": "0.4.0", "dns": {}, "interfaces": [], "routes": [],
            "ips": [{"version": "4", "address": "10.0.0.2/24"}],
        });
        let one = json!({
            "cniVersion": "1.0.0", "dns": {}, "interfaces": [], "routes": [],
            "ips": [{"address": "10.0.0.2/24"}],
        });
        for answer in [&two, &four, &one] {
            for wanted in [&two, &four, &one] {
                let version = Version::parse(wanted["cniVersion"].as_str().unwrap()).unwrap();
                assert_eq!(&convert(answer.clone(), version).unwrap(), wanted);
            }
        }
    }

    #[test]
    fn the_preference_chooses_the_primary_address() {
        let answer =
            || json!({"ips": [{"address": "fd00::2/64"}, {"address": "10.0.0.2/24"}, {"address": "fd00::3/64"}]});
        assert_eq!(ips(answer(), IpPreference::Ipv4).unwrap(), ["10.0.0.2", "fd00::2", "fd00::3"]);
        assert_eq!(ips(answer(), IpPreference::Ipv6).unwrap(), ["fd00::2", "10.0.0.2", "fd00::3"]);
        assert_eq!(ips(answer(), IpPreference::Cni).unwrap(), ["fd00::2", "10.0.0.2", "fd00::3"]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_says_why() {
        assert_eq!(ips(json!([]), IpPreference::Cni).unwrap_err(), "is not an object");
        assert_eq!(
            ips(json!({"cniVersion": "7.0.0"}), IpPreference::Cni).unwrap_err(),
            "has cniVersion \"7.0.0\", which is none of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
        );
        assert_eq!(
            ips(json!({"ips": [{"interface": 4, "address": "1.2.3.4/8"}]}), IpPreference::Cni).unwrap_err(),
            "has an address on interface 4, which is not listed"
        );
        assert_eq!(
            ips(json!({"ips": [{"address": "here"}]}), IpPreference::Cni).unwrap_err(),
            "has \"here\", which is not an address"
        );
    }
}
