//! Hosts from dataInfoIds, and their documented reading.
//!
//! `[protocol.][uniqueId.][v<version>.]<interface>[.<group>][.<instanceId>].<suffix>`, lower case, usual values left
//! out. A service that a dataInfoId of Dubbo's client has beside its main one, by another protocol, has that protocol in
//! front of it all. [`read`] gives the id and that protocol back from such a host. An id that it does not give back carries
//! the first 12 hex digits of the SHA-256 of its dataInfoId on its first label. That is decided from the id alone, so one
//! service never renames another; and nobody finds an id with the digits of a given other one in less than thousands of core
//! years.

use crate::{
    digest::{hex, prefix_of},
    model::DataInfoId,
};

/// The group of SOFARPC and Dubbo providers.
const GROUP: &str = "SOFA";
const INSTANCE: &str = "DEFAULT_INSTANCE_ID";
/// The protocol that SOFARPC writes for bolt and tr.
const PROTOCOL: &str = "DEFAULT";
const VERSION: &str = "1.0";
/// Last label, before the suffix, of the hosts of applications.
pub(crate) const APPLICATIONS: &str = "app";
const MAX_LABEL: usize = 63;
const MAX_HOST: usize = 255;
/// Hex digits of the hash in a label; those of the second are for ids that the first does not tell apart.
const HASH_DIGITS: [usize; 2] = [12, 32];
/// Bytes of the hash of a name that is told apart by it.
pub(crate) const HASH_BYTES: usize = HASH_DIGITS[0] / 2;

/// Protocols that a first label is read as; any other protocol in an id makes it a hashed one.
const PROTOCOLS: [&str; 9] = ["dubbo", "grpc", "h2c", "http", "rest", "tr", "tri", "triple", "xfire"];

/// The names that the service of a dataInfoId may be served under, or the one that it has beside that by another protocol, best
/// first, all without the suffix. The second and third are for those that the first does not tell apart.
pub fn candidates(id: &str, other: Option<&str>, suffix: &str) -> impl Iterator<Item = String> {
    let labels: Vec<String> = other.and_then(label).into_iter().chain(labels(id)).collect();
    let digest = match other {
        None => prefix_of::<16>(id),
        Some(other) => prefix_of::<16>(format!("{other}://{id}")),
    };
    let digest = hex(&digest);
    let room = MAX_HOST.saturating_sub(suffix.len() + 1);
    let plain = labels.join(".");
    let faithful = labels.iter().all(|label| label.len() <= MAX_LABEL)
        && plain.len() <= room
        && !is_application(&plain)
        && read(&plain).is_some_and(|(read, by)| read == id.to_ascii_lowercase() && by == other);
    let hashed = move |digits: usize| hash_first_label(&labels, &digest[..digits], room);
    let plain = faithful.then_some(plain);
    plain.into_iter().chain(HASH_DIGITS.into_iter().map(hashed))
}

/// The name of the resource with this host: the host without the suffix. A host of the operator's outside it has a hash
/// of itself, since what it would be called otherwise may be the name of a host with the suffix.
pub fn resource_name(host: &str, suffix: &str) -> String {
    if let Some(name) = host.strip_suffix(suffix).and_then(|name| name.strip_suffix('.')) {
        return name.to_owned();
    }
    let labels: Vec<String> = host.split('.').map(str::to_owned).collect();
    hash_first_label(&labels, &hex(&prefix_of::<16>(host)), MAX_HOST)
}

/// Whether a name has the form of an application's port, `p<port>.<application>.app`, which no service may have.
pub(crate) fn is_application(name: &str) -> bool {
    let port = |label: &str| label.strip_prefix('p').is_some_and(|port| port.parse::<u16>().is_ok());
    matches!(name.split('.').collect::<Vec<_>>()[..], [first, _, APPLICATIONS] if port(first))
}

/// The lower-case dataInfoId that a name (a host without its suffix) stands for, and the protocol if it is not the main service
/// of that; `None` for a hashed name, whose id stands in the annotation `sofa.registry/data-info-id` only.
pub fn read(name: &str) -> Option<(String, Option<&str>)> {
    let mut labels: Vec<&str> = name.split('.').collect();
    if carries_hash(labels[0]) {
        return None;
    }
    // A Java name has no dash, so a last label with one is an instanceId.
    let instance = match labels.last() {
        Some(last) if labels.len() > 1 && last.contains('-') => labels.pop()?,
        _ => INSTANCE,
    };
    let mut labels = labels.as_slice();
    let other = match labels {
        [first, "dubbo", _, ..] if *first != "dubbo" && PROTOCOLS.contains(first) => {
            labels = &labels[1..];
            Some(*first)
        }
        _ => None,
    };
    let protocol = match labels {
        [first, rest @ ..] if !rest.is_empty() && PROTOCOLS.contains(first) => {
            labels = rest;
            first
        }
        _ => PROTOCOL,
    };
    let (unique_id, version) = match labels {
        [version, rest @ ..] if !rest.is_empty() && is_version(version) => {
            labels = rest;
            (None, Some(version))
        }
        [unique_id, version, rest @ ..] if !rest.is_empty() && is_version(version) => {
            labels = rest;
            (Some(unique_id), Some(version))
        }
        _ => (None, None),
    };
    let mut id = labels.join(".");
    match version {
        Some(version) => id = format!("{id}:{}", version[1..].replace('-', ".")),
        None if protocol != "dubbo" => id = format!("{id}:{VERSION}"),
        None => {}
    }
    if let Some(unique_id) = unique_id {
        id = format!("{id}:{unique_id}");
    }
    Some((format!("{id}@{protocol}#@#{instance}#@#{GROUP}").to_ascii_lowercase(), other))
}

/// The labels of an id's host, each legal in itself but for its length; never empty.
fn labels(id: &str) -> Vec<String> {
    let parts = DataInfoId::parse(id).unwrap_or(DataInfoId { data_id: id, instance_id: INSTANCE, group: GROUP });
    let (name, protocol) = parts.data_id.rsplit_once('@').unwrap_or((parts.data_id, PROTOCOL));
    let mut name = name.splitn(3, ':');
    let (interface, version, unique_id) = (name.next().unwrap_or_default(), name.next(), name.next());
    let usual_version = if protocol == "dubbo" { None } else { Some(VERSION) };
    let version = version.filter(|version| unique_id.is_some() || Some(*version) != usual_version);
    let mut labels = Vec::new();
    if !protocol.eq_ignore_ascii_case(PROTOCOL) {
        labels.extend(label(protocol));
    }
    labels.extend(unique_id.and_then(label));
    labels.extend(version.and_then(|version| label(&format!("v{}", version.replace('.', "-")))));
    labels.extend(interface.split('.').filter_map(label));
    if !parts.group.eq_ignore_ascii_case(GROUP) {
        labels.extend(parts.group.split('.').filter_map(label));
    }
    if !parts.instance_id.eq_ignore_ascii_case(INSTANCE) {
        labels.extend(parts.instance_id.split('.').filter_map(label));
    }
    if labels.is_empty() {
        labels.push("service".to_owned());
    }
    labels
}

/// Lower case, with a `-` for everything that DNS does not allow; `None` if nothing is left.
pub(crate) fn label(text: &str) -> Option<String> {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = text.chars().map(legal).collect();
    let text = text.trim_matches('-');
    (!text.is_empty()).then(|| text.to_owned())
}

fn is_version(label: &str) -> bool {
    let mut parts = label.strip_prefix('v').unwrap_or_default().split('-');
    parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) fn carries_hash(label: &str) -> bool {
    let digits = |d: &str| HASH_DIGITS.contains(&d.len()) && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    label.rsplit_once('-').is_some_and(|(_, tail)| digits(tail))
}

/// The labels with `digits` on the first, cut so that labels and the whole stay within their bounds.
pub(crate) fn hash_first_label(labels: &[String], digits: &str, room: usize) -> String {
    let cut = |label: &str, to: usize| label[..label.len().min(to)].trim_end_matches('-').to_owned();
    let first = format!("{}-{digits}", cut(&labels[0], MAX_LABEL - 1 - digits.len()));
    let rest: Vec<String> = labels[1..].iter().map(|label| cut(label, MAX_LABEL)).collect();
    // Of a name that is too long the leading labels go first: the end of a Java name says most.
    let mut length = first.len() + rest.iter().map(|label| label.len() + 1).sum::<usize>();
    let mut kept = rest.as_slice();
    while length > room
        && let [gone, tail @ ..] = kept
    {
        length -= gone.len() + 1;
        kept = tail;
    }
    std::iter::once(first.as_str()).chain(kept.iter().map(String::as_str)).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use super::*;

    fn id(data_id: &str) -> String {
        format!("{data_id}#@#DEFAULT_INSTANCE_ID#@#SOFA")
    }

    fn name(id: &str) -> String {
        candidates(id, None, "sofa.mesh").next().unwrap()
    }

    fn hashed(id: &str, expected: &str) {
        let digest = &hex(&prefix_of::<6>(id));
        assert_eq!(name(id), expected.replace('#', digest), "{id}");
    }

    #[test]
    fn the_table_of_the_documentation() {
        for (data_id, expected) in [
            ("com.example.DemoService:1.0@DEFAULT", "com.example.demoservice"),
            ("com.example.DemoService:2.0@DEFAULT", "v2-0.com.example.demoservice"),
            ("com.example.DemoService:1.0:gray@DEFAULT", "gray.v1-0.com.example.demoservice"),
            ("com.example.DemoService:1.0@tri", "tri.com.example.demoservice"),
            ("com.example.DemoService@dubbo", "dubbo.com.example.demoservice"),
            ("com.example.DemoService:2.0.0:blue@dubbo", "dubbo.blue.v2-0-0.com.example.demoservice"),
        ] {
            assert_eq!(name(&id(data_id)), expected);
            assert_eq!(read(expected), Some((id(data_id).to_ascii_lowercase(), None)));
        }
        assert_eq!(name("com.example.DemoService:1.0@DEFAULT#@#tenant-a#@#SOFA"), "com.example.demoservice.tenant-a");
    }

    #[test]
    fn another_protocol_of_a_dubbo_id_stands_in_front_of_its_name() {
        let name = |data_id: &str, other| candidates(&id(data_id), Some(other), "sofa.mesh").next().unwrap();
        for (data_id, other, expected) in [
            ("com.example.DemoService@dubbo", "tri", "tri.dubbo.com.example.demoservice"),
            ("com.example.DemoService:2.0.0:blue@dubbo", "rest", "rest.dubbo.blue.v2-0-0.com.example.demoservice"),
        ] {
            assert_eq!(name(data_id, other), expected);
            assert_eq!(read(expected), Some((id(data_id).to_ascii_lowercase(), Some(other))));
        }
        // A protocol that a host is not read as, by itself and told apart from one that makes the same label.
        let hashed = ["hessian", "a+b", "a-b"].map(|other| name("com.example.DemoService@dubbo", other));
        assert!(
            hashed[0].starts_with("hessian-") && hashed[0].ends_with(".dubbo.com.example.demoservice"),
            "{hashed:?}"
        );
        assert!(hashed[1].starts_with("a-b-") && hashed[2].starts_with("a-b-") && hashed[1] != hashed[2], "{hashed:?}");
        assert!(hashed.iter().all(|name| read(name).is_none()));
        // SOFARPC's services that would be called so are not.
        let digest = &hex(&prefix_of::<6>(id("dubbo.DemoService:1.0@tri")));
        assert_eq!(super::tests::name(&id("dubbo.DemoService:1.0@tri")), format!("tri-{digest}.dubbo.demoservice"));
        assert_eq!(super::tests::name(&id("dubbo:1.0@tri")), "tri.dubbo");
    }

    #[test]
    fn an_id_that_its_host_does_not_give_back_is_hashed() {
        hashed(&id("com.example.Demo_Service:1.0@DEFAULT"), "com-#.example.demo-service");
        hashed(&id("com.example.DemoService@DEFAULT"), "com-#.example.demoservice");
        hashed(&id("com.example.DemoService:1.0"), "com-#.example.demoservice");
        hashed(&id("com.example.DemoService:beta@DEFAULT"), "vbeta-#.com.example.demoservice");
        hashed(&id("com.example.DemoService:1.0@odd"), "odd-#.com.example.demoservice");
        hashed("com.example.DemoService:1.0@DEFAULT#@#tenant#@#SOFA", "com-#.example.demoservice.tenant");
        hashed("my-app#@#DEFAULT_INSTANCE_ID#@#dubbo", "my-app-#.dubbo");
        hashed("no parts at all", "no-parts-at-all-#");
        hashed("", "service-#");
        hashed(&id("p80.orders.App:1.0@DEFAULT"), "p80-#.orders.app");
        hashed(&id("tri.Service:1.0@DEFAULT"), "tri-#.service");
        hashed(&id("x-0123456789ab.Service:1.0@DEFAULT"), "x-0123456789ab-#.service");
        assert_eq!(name(&id("x-0123abcd.Service:1.0@DEFAULT")), "x-0123abcd.service", "no hash of ours");
    }

    #[test]
    fn a_host_outside_the_suffix_has_a_name_that_no_other_can_have() {
        assert_eq!(resource_name("com.example.demo.sofa.mesh", "sofa.mesh"), "com.example.demo");
        let name = resource_name("com.example.demo", "sofa.mesh");
        assert!(
            name.starts_with("com-")
                && name.ends_with(".example.demo")
                && carries_hash(name.split('.').next().unwrap())
        );
    }

    #[test]
    fn long_names_are_cut_to_their_bounds() {
        let long = id(&format!("{}.{}:1.0@DEFAULT", "p".repeat(70), "q.".repeat(150)));
        for name in candidates(&long, None, "sofa.mesh") {
            assert!(name.len() + ".sofa.mesh".len() <= 255 && name.split('.').all(|l| (1..=63).contains(&l.len())));
        }
    }
}
