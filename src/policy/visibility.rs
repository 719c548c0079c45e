//! Who sees what: the part of a policy by which `exportTo` follows those who subscribe.
//!
//! A service that every proxy sees costs every proxy. The registry knows who subscribes to it; the policy says in which namespaces
//! these consumers run, and for which services that counts.

use std::{borrow::Cow, collections::BTreeMap, collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::duration;

/// How long a namespace keeps a service that nobody in it subscribes to any more.
const USUAL_HOLD: Duration = Duration::from_secs(86_400);

/// `mox.policy.visibility`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VisibilityPolicy {
    /// Whether `exportTo` follows the consumers. Default: `off`.
    pub mode: Mode,
    /// Namespaces of consumers by globs on the names of their applications; of several globs the one decides with the most
    /// characters that are no wildcards, then the first by its text. Default: none.
    pub namespaces: BTreeMap<String, Vec<String>>,
    /// Namespaces of consumers by the range (CIDR) that their address is in, where their application says none; the longest prefix
    /// decides. Default: none.
    pub cidrs: BTreeMap<IpNet, Vec<String>>,
    /// Whether the namespace of a consumer of which neither says it is that of the pod with its address, asked of the Kubernetes API server
    /// that `mox.kubernetes` names. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kubernetes: bool,
    /// Namespaces that see every service, as those of gateways; `.` is the resources' own. Default: none.
    pub always: Vec<String>,
    /// What becomes of a service that nobody is known to subscribe to. Default: `keep`.
    pub unused: Unused,
    /// How long a namespace keeps a service after the last consumer in it went, counted while every session server answers; 1 s to 30
    /// days. Default: 24 h.
    #[serde(with = "duration")]
    pub hold: Duration,
}

/// Whether `exportTo` follows the consumers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does not.
    #[default]
    Off,
    /// It does not; what it would be is computed and shown.
    Shadow,
    /// It does.
    On,
}

/// Whose word it is in which namespaces a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The policy's on its application.
    Application,
    /// The policy's on its address.
    Cidr,
    /// Kubernetes' on the pod with its address.
    Kubernetes,
}

/// What becomes of a service that nobody is known to subscribe to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unused {
    /// It is exported as the policy says.
    #[default]
    Keep,
    /// It is exported to `always` only.
    Hide,
}

impl Default for VisibilityPolicy {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            namespaces: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            kubernetes: false,
            always: Vec::new(),
            unused: Unused::Keep,
            hold: USUAL_HOLD,
        }
    }
}

impl VisibilityPolicy {
    /// Whether it is the default.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The namespaces that a service's consumers are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consumers {
    /// Namespaces.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Of some consumer it is not known where it is.
    pub unknown: bool,
}

impl Consumers {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        self.namespaces.extend(other.namespaces.iter().cloned());
        self.unknown |= other.unknown;
    }
}

/// The `exportTo` of something, as the policy says it without regard to consumers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exported<'a> {
    /// Istio's list.
    pub to: &'a [String],
    /// An exception for it names the list; else it is that of all.
    pub is_own: bool,
}

impl<'a> Exported<'a> {
    /// What it is to these consumers, for resources in `namespace`; `None`: nobody is known to consume it. A list of the policy's that
    /// names namespaces is a bound: consumers elsewhere did not see the service before. That of an exception comes on top.
    pub(super) fn to(
        self,
        visibility: &VisibilityPolicy,
        consumers: Option<&Consumers>,
        namespace: &str,
    ) -> Cow<'a, [String]> {
        let is_all = is_all(self.to);
        // Consumers of unknown place only add: they may be anywhere that the policy says, and those of known place stay where they are.
        let is_open = consumers.map_or(visibility.unused == Unused::Keep, |consumers| consumers.unknown);
        if is_open && is_all {
            return Cow::Borrowed(self.to);
        }
        let named = |name: &String| named(name, namespace);
        let policy: BTreeSet<String> = self.to.iter().map(named).collect();
        let of_consumers = consumers.into_iter().flat_map(|it| &it.namespaces).map(|name| name.to_string());
        let may = |name: &String| self.is_own || is_all || policy.contains(name);
        let mut to: BTreeSet<String> = of_consumers.filter(may).collect();
        to.extend(visibility.always.iter().map(named));
        if is_open && to.is_subset(&policy) {
            return Cow::Borrowed(self.to);
        }
        if self.is_own || is_open {
            to.extend(policy);
        }
        if to.contains("*") {
            return Cow::Owned(vec!["*".to_owned()]);
        }
        to.remove("~");
        if to.is_empty() {
            to.insert("~".to_owned());
        }
        Cow::Owned(to.into_iter().collect())
    }
}

/// Whether a list of `exportTo` is every namespace.
fn is_all(list: &[String]) -> bool {
    list.is_empty() || list.iter().any(|name| name == "*")
}

/// The namespace that a name in `exportTo` is, for resources in `namespace`.
fn named(name: &str, namespace: &str) -> String {
    if name == "." { namespace } else { name }.to_owned()
}

/// Whether a list of `exportTo` has everything that another has, for resources in `namespace`.
pub fn covers(wide: &[String], narrow: &[String], namespace: &str) -> bool {
    let names: BTreeSet<String> = wide.iter().map(|name| named(name, namespace)).collect();
    let has = |name: &String| name == "~" || names.contains(&named(name, namespace));
    is_all(wide) || (!is_all(narrow) && narrow.iter().all(has))
}

/// A compiled [`VisibilityPolicy`]: in which namespaces a consumer is.
#[derive(Debug)]
pub(super) struct Places {
    /// The most specific first.
    applications: Vec<(wildmatch::WildMatch, Vec<Arc<str>>)>,
    /// The longest prefix first.
    ranges: Vec<(IpNet, Vec<Arc<str>>)>,
}

impl Places {
    pub(super) fn new(visibility: &VisibilityPolicy, specific: impl Fn(&str) -> std::cmp::Reverse<usize>) -> Self {
        let shared = |names: &Vec<String>| names.iter().map(|name| Arc::from(&**name)).collect();
        let mut globs: Vec<(&String, &Vec<String>)> = visibility.namespaces.iter().collect();
        globs.sort_by_key(|(glob, _)| specific(glob));
        let applications =
            globs.into_iter().map(|(glob, names)| (wildmatch::WildMatch::new(glob), shared(names))).collect();
        let mut ranges: Vec<(IpNet, Vec<Arc<str>>)> =
            visibility.cidrs.iter().map(|(range, names)| (*range, shared(names))).collect();
        ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        Self { applications, ranges }
    }

    /// `None`: not known.
    pub(super) fn of(&self, application: Option<&str>, address: Option<IpAddr>) -> Option<(Source, &[Arc<str>])> {
        let by_name = application.and_then(|name| self.applications.iter().find(|(glob, _)| glob.matches(name)));
        let by_address = || address.and_then(|address| self.ranges.iter().find(|(range, _)| range.contains(&address)));
        let by_name = by_name.map(|(_, names)| (Source::Application, &**names));
        by_name.or_else(|| by_address().map(|(_, names)| (Source::Cidr, &**names)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Policy, PolicyConfig};

    fn policy(document: serde_json::Value) -> Policy {
        Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "sofa").unwrap()
    }

    fn consumers(namespaces: &[&str]) -> Consumers {
        Consumers { namespaces: namespaces.iter().map(|name| Arc::from(*name)).collect(), unknown: false }
    }

    #[test]
    fn a_service_is_exported_to_its_consumers() {
        let on = |export_to: &[&str], overridden: Option<&[&str]>, unused: &str| {
            let mut document = serde_json::json!({
                "exportTo": export_to,
                "visibility": { "mode": "on", "always": ["gateways"], "unused": unused },
            });
            if let Some(list) = overridden {
                document["overrides"] = serde_json::json!({ "a*": { "exportTo": list } });
            }
            policy(document)
        };
        let none: Option<&[&str]> = None;
        let unknown = |names: &[&str]| Some(Consumers { unknown: true, ..consumers(names) });
        for (export_to, overridden, unused, of, expected) in [
            (&["*"][..], none, "keep", Some(consumers(&["shop", "pay"])), &["gateways", "pay", "shop"][..]),
            (&["*"], none, "keep", None, &["*"]),
            (&["*"], none, "hide", None, &["gateways"]),
            (&["*"], none, "keep", unknown(&["shop"]), &["*"]),
            (&["shop", "."], none, "keep", Some(consumers(&["shop", "pay", "sofa"])), &["gateways", "shop", "sofa"]),
            (&["~"], none, "keep", Some(consumers(&["shop"])), &["gateways"]),
            (&["shop", "."], none, "keep", None, &["gateways", "shop", "sofa"]),
            (&["."], none, "keep", unknown(&["x"]), &["gateways", "sofa"]),
            (&["*"], Some(&["batch", "."]), "keep", Some(consumers(&["shop"])), &["batch", "gateways", "shop", "sofa"]),
            (&["*"], Some(&["*"]), "keep", Some(consumers(&["shop"])), &["*"]),
            (&["*"], Some(&["~"]), "hide", None, &["gateways"]),
            (&["*"], Some(&["batch"]), "keep", unknown(&["shop"]), &["batch", "gateways", "shop"]),
            (&["*"], Some(&["batch"]), "hide", unknown(&[]), &["batch", "gateways"]),
            (&["*"], Some(&["~"]), "keep", unknown(&["shop"]), &["gateways", "shop"]),
            (&["*"], Some(&["*"]), "keep", unknown(&["shop"]), &["*"]),
            (&["shop", "batch"], none, "keep", unknown(&["shop", "pay"]), &["batch", "gateways", "shop"]),
        ] {
            let policy = on(export_to, overridden, unused);
            assert_eq!(
                policy.rules("abc").visible_to(of.as_ref(), "sofa"),
                expected,
                "{export_to:?} {overridden:?} {of:?}"
            );
        }
        let alone = policy(serde_json::json!({ "visibility": { "mode": "on", "unused": "hide" } }));
        assert_eq!(alone.rules("abc").visible_to(None, "sofa")[..], ["~"], "an empty list would be everybody");
        let own = serde_json::json!({ "a*": { "exportTo": ["batch", "."] } });
        let own = policy(serde_json::json!({ "visibility": { "mode": "on" }, "overrides": own }));
        let of = |consumers: Option<Consumers>| own.rules("abc").visible_to(consumers.as_ref(), "sofa").into_owned();
        assert_eq!(of(unknown(&["shop"])), ["batch", "shop", "sofa"], "who is known to be there keeps it");
        assert_eq!(of(unknown(&["batch"])), ["batch", "."], "nothing is added, so the list is as it was written");
    }

    #[test]
    fn an_application_says_where_its_consumers_are_before_their_address_does() {
        let policy = policy(serde_json::json!({ "visibility": {
            "namespaces": { "shop*": ["shop"], "shop-batch": ["batch", "shop"] },
            "cidrs": { "10.0.0.0/8": ["all"], "10.1.0.0/16": ["pay"] },
        }}));
        let of = |application, address: &str| {
            let (_, names) = policy.place_of(application, address.parse().ok()).unwrap_or((Source::Kubernetes, &[]));
            names.iter().map(|name| &**name).collect::<Vec<_>>()
        };
        assert_eq!(of(Some("shop-web"), "10.1.0.1"), ["shop"]);
        assert_eq!(of(Some("shop-batch"), "10.1.0.1"), ["batch", "shop"]);
        assert_eq!(of(Some("pay"), "10.1.0.1"), ["pay"]);
        assert_eq!(of(None, "10.2.0.1"), ["all"]);
        assert!(of(None, "11.0.0.1").is_empty() && of(Some("pay"), "").is_empty());
        let source = |application| policy.place_of(application, "10.1.0.1".parse().ok()).map(|(source, _)| source);
        assert_eq!((source(Some("shop-web")), source(None)), (Some(Source::Application), Some(Source::Cidr)));
    }

    #[test]
    fn a_list_covers_another() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (wide, narrow, holds) in [
            (&["*"][..], &["a"][..], true),
            (&[], &["*"], true),
            (&["a", "b"], &["b"], true),
            (&["a"], &["a", "b"], false),
            (&["a"], &["*"], false),
            (&["."], &["sofa"], true),
            (&["~"], &["~"], true),
            (&["a"], &["~"], true),
            (&["~"], &["a"], false),
        ] {
            assert_eq!(covers(&list(wide), &list(narrow), "sofa"), holds, "{wide:?} {narrow:?}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let document = serde_json::json!({
            "visibility": { "namespaces": { "a*": ["*"], "b": [] }, "cidrs": { "10.0.0.0/8": ["A"] },
                            "always": ["."], "hold": "0s" },
        });
        let bad = Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "sofa");
        let text = bad.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        for says in ["namespaces[a*]", "namespaces.b", "cidrs[10.0.0.0/8]", "visibility.hold"] {
            assert!(
                text.contains(&format!("policy.visibility.{}", says.trim_start_matches("visibility."))),
                "{says}: {text}"
            );
        }
    }
}
