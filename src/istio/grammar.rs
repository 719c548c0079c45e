//! Istio's grammar of names, labels and addresses. Letters are ASCII, lengths are bytes.

use std::net::{IpAddr, Ipv6Addr};

use crate::istio::rule::Rule;

const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;
const MAX_KEY_PREFIX: usize = 253;

/// Letters, digits and inner characters of `inner`; at least one.
fn is_word(text: &str, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || inner.contains(byte))
}

/// `labels.IsDNS1123Label`: unlike Kubernetes, Istio allows upper case.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_word(text, b"-")
}

/// `IsDNS1123Label` of Kubernetes, as the names of namespaces are: a DNS label in lower case.
pub(crate) fn is_kubernetes_label(text: &str) -> bool {
    is_dns_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The reason to refuse a host for which [`is_kubernetes_name`] is true.
pub(crate) const KUBERNETES_NAMES: &str = "names under svc.* and cluster.local are those of Kubernetes Services, whose \
                                           traffic it would take; choose a domain of your own, as sofa.mesh";

/// Whether Kubernetes may give a name to a Service or pod, whatever the cluster's domain is: a label is `svc`, or it ends in
/// the usual domain. Names are in lower case.
pub(crate) fn is_kubernetes_name(name: &str) -> bool {
    let is_under = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    name.split('.').any(|label| label == "svc") || is_under("cluster.local")
}

/// `labels.IsWildcardDNS1123Label`: a label, `*`, or a label after `*` or `*-`.
fn is_wildcard_label(text: &str) -> bool {
    let rest = text.strip_prefix("*-").or_else(|| text.strip_prefix('*')).unwrap_or(text);
    text.len() <= MAX_LABEL && (text == "*" || is_word(rest, b"-"))
}

/// `ValidateDNS1123Labels`: a trailing dot is allowed, a last label that is a number is not.
fn are_dns_labels(text: &str) -> bool {
    let (before, last) = text.rsplit_once('.').map_or((None, text), |(before, last)| (Some(before), last));
    last.parse::<i64>().is_err()
        && before.is_none_or(|before| before.split('.').all(is_dns_label))
        && (last.is_empty() || is_dns_label(last))
}

/// `ValidateFQDN`.
pub(crate) fn is_fqdn(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && are_dns_labels(text)
}

/// `ValidateWildcardDomain`, and no bare `*`. A single label may be a number.
pub(crate) fn is_host(text: &str) -> bool {
    let (first, rest) = text.split_once('.').map_or((text, None), |(first, rest)| (first, Some(rest)));
    (1..=MAX_NAME).contains(&text.len()) && text != "*" && is_wildcard_label(first) && rest.is_none_or(are_dns_labels)
}

/// `netip.ParseAddr`, but for zones; `otherwise` is the rule that anything else breaks.
pub(crate) fn check_address(text: &str, otherwise: Rule) -> Result<(), Rule> {
    let zoned = || text.split_once('%').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) if zoned() => Err(Rule::AddressZone),
        Err(_) => Err(otherwise),
    }
}

/// `ValidateIPSubnet`: an address or a block; a block may have host bits.
pub(crate) fn check_subnet(text: &str) -> Result<(), Rule> {
    match text.split_once('/') {
        Some((address, bits)) if !bits.contains('/') => {
            let decimal = bits.bytes().all(|byte| byte.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
            let most = address.parse().map(|address: IpAddr| if address.is_ipv4() { 32 } else { 128 });
            let within = matches!((most, bits.parse::<u8>()), (Ok(most), Ok(bits)) if bits <= most);
            if decimal && within { Ok(()) } else { Err(Rule::Address) }
        }
        _ => check_address(text, Rule::Address),
    }
}

/// `validateTagKey`: labels of the prefix may have any length, the prefix as a whole may not.
pub(crate) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let legal = |prefix: &str| prefix.len() <= MAX_KEY_PREFIX && prefix.split('.').all(|label| is_word(label, b"-"));
    name.len() <= MAX_LABEL && is_word(name, b"-_.") && prefix.is_none_or(legal)
}

/// Istio has no limit for the length of a value.
pub(crate) fn check_label_value(text: &str) -> Result<(), Rule> {
    match text {
        "" => Ok(()),
        _ if !is_word(text, b"-_.") => Err(Rule::LabelValue),
        _ if text.len() > MAX_LABEL => Err(Rule::LabelValueLength),
        _ => Ok(()),
    }
}

/// `ValidateUnixAddress`, of what follows `unix://`.
pub(crate) fn is_unix_path(text: &str) -> bool {
    text.starts_with('@') || (text.starts_with('/') && !text.ends_with('/'))
}
