//! `mox.kubernetes`.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::mistakes::{LABELS, Mistakes},
    duration,
    istio::grammar::is_kubernetes_label,
};

/// Most characters of the owner, which leaves some for what it is a part of.
const MAX_OWNER: usize = 40;

/// Where and how services are written to a Kubernetes API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Whether services are written. Default: false.
    pub enabled: bool,
    /// File with the address of the API server and credentials; no exec plugins and no proxies: the loopback and what `NO_PROXY` names
    /// is reached directly. Default: none, and those of the pod's service account are taken.
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig. Default: its current one.
    pub context: Option<String>,
    /// Whose objects these are, a DNS label in lower case of at most 40 characters: part of the names of the lease and of
    /// the field manager, and a label of every object. Two registries that share a namespace need two. Default: `default`.
    pub owner: String,
    /// Namespace of the objects, which must exist. Default: `mox.namespace`.
    pub namespace: Option<String>,
    /// Namespace of the lease, which must exist. Default: that of the objects.
    pub lease_namespace: Option<String>,
    /// How long a session server that is gone stays the writer, 3 s to 1 h. A writer renews its lease every third of that,
    /// and begins no write after two thirds without a renewal. Default: 15 s.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// Most writes at once, 1 to 256. Default: 16.
    pub concurrency: usize,
    /// Most writes in a second, 1 to 10,000. Default: 100.
    pub rate: usize,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            enabled: false,
            kubeconfig: None,
            context: None,
            owner: "default".to_owned(),
            namespace: None,
            lease_namespace: None,
            lease: Duration::from_secs(15),
            concurrency: 16,
            rate: 100,
        }
    }
}

impl Kubernetes {
    pub(super) fn check(&self, mistakes: &mut Mistakes) {
        self.check_where(cfg!(feature = "kubernetes"), mistakes);
    }

    fn check_where(&self, is_built: bool, mistakes: &mut Mistakes) {
        let Self { enabled, kubeconfig: _, context: _, owner, namespace, lease_namespace, lease, concurrency, rate } =
            self;
        if *enabled && !is_built {
            let text =
                "true is not possible: this library was built without the cargo feature `kubernetes`; use one with it";
            mistakes.add("mox.kubernetes.enabled", text.to_owned());
        }
        if !is_kubernetes_label(owner) || owner.len() > MAX_OWNER {
            let allowed = format!("{LABELS}, {MAX_OWNER} characters at most");
            mistakes.add("mox.kubernetes.owner", format!("\"{owner}\" is not possible; {allowed}"));
        }
        for (key, name) in [("namespace", namespace), ("leaseNamespace", lease_namespace)] {
            if let Some(name) = name.as_ref().filter(|name| !is_kubernetes_label(name)) {
                mistakes.add(&format!("mox.kubernetes.{key}"), format!("\"{name}\" is no DNS label; {LABELS}"));
            }
        }
        mistakes.time("mox.kubernetes.lease", *lease, Duration::from_secs(3)..=Duration::from_secs(3_600));
        mistakes.number("mox.kubernetes.concurrency", *concurrency, 1..=256);
        mistakes.number("mox.kubernetes.rate", *rate, 1..=10_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_feature_it_cannot_be_enabled() {
        let told = |settings: &Kubernetes, is_built| {
            let mut mistakes = Mistakes::default();
            settings.check_where(is_built, &mut mistakes);
            mistakes.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let enabled = Kubernetes { enabled: true, ..Kubernetes::default() };
        assert_eq!(told(&enabled, true), [""; 0]);
        let says = "mox.kubernetes.enabled: true is not possible: this library was built without the cargo feature \
                    `kubernetes`; use one with it";
        assert_eq!(told(&enabled, false), [says]);
        assert_eq!(told(&Kubernetes::default(), false), [""; 0], "off, nobody minds");
    }
}
