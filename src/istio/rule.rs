//! The rules that a resource may break, and where they are stricter here than in Istio.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// The table of the rules: name, meaning and remedy.
macro_rules! rules {
    ($($(#[$meaning:meta])+ $rule:ident: $remedy:literal,)+) => {
        /// A rule that a resource can break.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Rule {
            $($(#[$meaning])+ $rule,)+
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$rule,)+];

            /// The name that status and metrics use.
            pub fn name(self) -> &'static str {
                static NAMES: std::sync::OnceLock<BTreeMap<Rule, String>> = std::sync::OnceLock::new();
                let named = |rule: &Rule| (*rule, rule.to_string());
                &NAMES.get_or_init(|| Self::ALL.iter().map(named).collect())[&self]
            }

            /// The remedy: what would not break the rule.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Self::$rule => $remedy,)+
                }
            }
        }
    };
}

rules! {
    /// A resource's name that istiod cannot split.
    Name: "a name is namespace/name, with exactly one slash",
    /// Metadata label `istio.io/rev`.
    Revision: "leave the label istio.io/rev out: an istiod of another revision drops the resource",
    /// An annotation that Istio refuses.
    Annotation: "leave the annotation out: Istio refuses resources that carry it",
    /// An annotation by which istiod talks to itself.
    OwnAnnotation: "leave the annotation out: istiod would take it for its own",
    /// A selector with an empty key or a wildcard.
    Selector: "a selector needs non-empty keys, and no '*' in keys and values",
    /// A selector beside endpoints.
    SelectorWithEndpoints: "give either a workload selector or endpoints",
    /// No host at all.
    NoHost: "give at least one host",
    /// A host that is no DNS name.
    Host: "a host has at most 255 bytes, in labels of 1 to 63 letters, digits and inner '-', the last one no number; \
           the first may begin with '*' or '*-', or be '*' if others follow",
    /// A host of one label.
    ShortHost: "a host needs a dot: one without means another host in every namespace",
    /// An address of the service that is neither an IP address nor a CIDR block.
    Address: "an address is an IP address or a CIDR block",
    /// An IPv6 address with a zone.
    AddressZone: "leave the zone (%…) out: it means something on one machine only",
    /// A CIDR block where the resolution needs single addresses.
    CidrResolution: "CIDR blocks need resolution NONE or STATIC",
    /// A port name that is no DNS label.
    PortName: "a port name has 1 to 63 letters, digits and inner '-'",
    /// Two ports of one name.
    PortNameTwice: "each port needs a name of its own",
    /// A port number outside the range.
    PortNumber: "a port is a number from 1 to 65535",
    /// Two ports of one number.
    PortNumberTwice: "each port needs a number of its own",
    /// A target port outside the range.
    TargetPort: "a target port is 0 (unset) or a number from 1 to 65535",
    /// A protocol that Istio does not know.
    Protocol: "a protocol is empty or one of TCP, UDP, GRPC, GRPC-Web, HTTP, HTTP_PROXY, HTTP2, HTTPS, TLS, Mongo, \
               Redis and MySQL",
    /// A resolution that is not in the API.
    Resolution: "a resolution is NONE, STATIC, DNS or DNS_ROUND_ROBIN",
    /// Resolution `DYNAMIC_DNS`.
    DynamicDns: "use NONE, STATIC, DNS or DNS_ROUND_ROBIN: an istiod before 1.28 does not know DYNAMIC_DNS",
    /// Endpoints beside resolution NONE.
    EndpointsWithNone: "resolution NONE takes no endpoints",
    /// A host to be resolved that DNS cannot resolve.
    UnresolvableHost: "with a DNS resolution give endpoints, or only hosts without '*'",
    /// More than one endpoint beside DNS_ROUND_ROBIN.
    RoundRobinEndpoints: "DNS_ROUND_ROBIN takes at most one endpoint",
    /// Several hosts that the protocol does not tell apart.
    SeveralHosts: "several hosts need HTTP or TLS ports only, or resolution NONE",
    /// An `exportTo` that says nothing or contradicts itself.
    ExportTo: "exportTo is \"*\" or \"~\" alone, or \".\" and namespaces, each once and the own one as \".\" or by name",
    /// Weights that do not add up.
    WeightSum: "the weights of a service's endpoints must add up to less than 4294967296: Envoy refuses more",
    /// An endpoint without an address, or with one that its resolution does not take.
    EndpointAddress: "an endpoint needs an IP address; with a DNS resolution a DNS name will do, with STATIC a path \
                      after unix:// or a network",
    /// An endpoint port with a name that is no DNS label.
    EndpointPortName: "the name of an endpoint's port has 1 to 63 letters, digits and inner '-'",
    /// An endpoint port that the service does not have.
    UnknownPort: "an endpoint names ports of its service only",
    /// An endpoint port outside the range.
    EndpointPort: "an endpoint's port is a number from 1 to 65535",
    /// A label key that is no qualified name.
    LabelKey: "a label key is a name of 1 to 63 letters, digits and inner '-', '_', '.', after a DNS prefix and '/' if \
               there is one",
    /// A label value with characters that are not allowed.
    LabelValue: "a label value is empty or has letters, digits and inner '-', '_', '.'",
    /// A label value that Kubernetes refuses.
    LabelValueLength: "a label value has at most 63 bytes",
    /// A socket that is not named by an absolute path.
    UnixPath: "after unix:// comes an absolute path to a file, or '@' and a name",
    /// Ports of a socket.
    UnixPorts: "an endpoint on a socket has no ports",
    /// A socket in a service with any other number of ports than one.
    UnixServicePorts: "a service with an endpoint on a socket has exactly one port",
}

/// The rules that refuse what Istio takes, and why. All others are Istio's own.
#[cfg(any(test, feature = "testing"))]
pub const STRICT: [(Rule, &str); 7] = [
    (Rule::Revision, "the client does not say reliably which revision it is, and one of another drops the resource"),
    (
        Rule::OwnAnnotation,
        "ResourceVersion is overwritten by istiod's store; proxy.istio.io/health-checks-enabled takes a workload out of \
         service until something reports its health; internal.istio.io/parents and …/parent-namespace are refused by 1.29, \
         but not by 1.22",
    ),
    (Rule::ShortHost, "VirtualService and Sidecar complete a host without a dot with their own namespace"),
    (Rule::AddressZone, "a zone names an interface of the machine that wrote it; Envoy cannot dial it"),
    (Rule::DynamicDns, "refused before 1.28, and with other conditions in 1.29 than after it"),
    (Rule::WeightSum, "Envoy refuses the endpoints of a cluster whose weights exceed 32 bits"),
    (Rule::LabelValueLength, "Kubernetes refuses it, so such a service could not be written there"),
];

impl fmt::Display for Rule {
    /// The name that status and metrics use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invalid {
    /// The rule.
    pub rule: Rule,
    /// The field and its value.
    pub detail: String,
}

impl Invalid {
    /// `field` holds `value`, which `rule` does not allow. The value is shown in part, and as one line.
    pub(crate) fn new(rule: Rule, field: &str, value: impl fmt::Display) -> Self {
        const SHOWN: usize = 120;
        let value = value.to_string();
        let mut shown: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        if value.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Self { rule, detail: format!("{field} \"{shown}\"") }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} breaks {}: {}", self.detail, self.rule, self.rule.remedy())
    }
}
