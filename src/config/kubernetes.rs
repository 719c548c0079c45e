//! `mox.kubernetes`.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::istio::grammar::is_kubernetes_label;

/// Where and how services are written to a Kubernetes API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Whether they are.
    pub enabled: bool,
    /// A file with address and credentials; none: those of the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; none: its current one.
    pub context: Option<String>,
    /// Whose objects these are: part of the names of the lease and of the field manager, and a label of every object. Two
    /// registries that share a namespace need two.
    pub owner: String,
    /// Namespace of the objects, which must exist; none: `mox.namespace`.
    pub namespace: Option<String>,
    /// Namespace of the lease; none: that of the objects.
    pub lease_namespace: Option<String>,
    /// How long a session server that is gone stays the writer. It renews every third of that, and stops to write after
    /// two thirds without a renewal.
    #[serde(serialize_with = "super::to_text", deserialize_with = "super::from_text")]
    pub lease: Duration,
    /// Most writes at once.
    pub concurrency: usize,
    /// Most writes in a second.
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
    /// What is wrong with these settings, a line each.
    pub(super) fn errors(&self) -> Vec<String> {
        self.errors_where(cfg!(feature = "kubernetes"))
    }

    fn errors_where(&self, built: bool) -> Vec<String> {
        let mut errors = Vec::new();
        let mut bounds = |key: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                errors.push(format!("mox.kubernetes.{key}: {value} is out of bounds; allowed are {low} to {high}"));
            }
        };
        bounds("lease (s)", self.lease.as_secs() as usize, 3, 3_600);
        bounds("concurrency", self.concurrency, 1, 256);
        bounds("rate", self.rate, 1, 10_000);
        let names = [("namespace", &self.namespace), ("leaseNamespace", &self.lease_namespace)];
        for (key, name) in names.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            if !is_kubernetes_label(name) {
                errors.push(format!("mox.kubernetes.{key}: \"{name}\" is no DNS label"));
            }
        }
        if !is_kubernetes_label(&self.owner) || self.owner.len() > 40 {
            errors.push(format!(
                "mox.kubernetes.owner: \"{}\" is not possible; it needs a DNS label of 40 characters at most",
                self.owner
            ));
        }
        if self.enabled && !built {
            errors.push(
                "mox.kubernetes.enabled: this library was built without the cargo feature `kubernetes`; use one with it"
                    .to_owned(),
            );
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_feature_it_cannot_be_enabled() {
        let enabled = Kubernetes { enabled: true, ..Kubernetes::default() };
        assert_eq!(enabled.errors_where(true), [""; 0]);
        let errors = enabled.errors_where(false);
        assert!(errors.len() == 1 && errors[0].contains("cargo feature `kubernetes`"), "{errors:?}");
        assert_eq!(Kubernetes::default().errors_where(false), [""; 0], "off, nobody minds");
    }
}
