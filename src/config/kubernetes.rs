//! `mox.kubernetes`.

use std::{fmt::Display, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::istio::grammar::is_kubernetes_label;

/// Where and how services are written to a Kubernetes API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Whether services are written.
    pub enabled: bool,
    /// A file with address and credentials of the API server; none: those of the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig; none: its current one.
    pub context: Option<String>,
    /// Whose objects these are: part of the names of the lease and of the field manager, and a label of every object. Two
    /// registries that share a namespace need two.
    pub owner: String,
    /// Namespace of the objects, which must exist; none: `mox.namespace`.
    pub namespace: Option<String>,
    /// Namespace of the lease; none: that of the objects.
    pub lease_namespace: Option<String>,
    /// How long a session server that is gone stays the writer; 3 s to 1 h. A writer renews its lease every third of that,
    /// and begins no write after two thirds without a renewal.
    #[serde(serialize_with = "super::to_text", deserialize_with = "super::from_text")]
    pub lease: Duration,
    /// Most writes at once; 1 to 256.
    pub concurrency: usize,
    /// Most writes in a second; 1 to 10,000.
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
    /// The faults of these settings, a line each.
    pub(super) fn errors(&self) -> Vec<String> {
        self.errors_where(cfg!(feature = "kubernetes"))
    }

    fn errors_where(&self, built: bool) -> Vec<String> {
        fn bounds<T: PartialOrd + Display>(key: &str, value: T, low: T, high: T) -> Option<String> {
            let out = !(&low..=&high).contains(&&value);
            out.then(|| format!("mox.kubernetes.{key}: {value} is out of bounds; allowed are {low} to {high}"))
        }
        let span = |span: Duration| humantime::Duration::from(span);
        let lease = bounds("lease", span(self.lease), span(Duration::from_secs(3)), span(Duration::from_secs(3_600)));
        let mut errors: Vec<String> = lease.into_iter().collect();
        errors.extend(bounds("concurrency", self.concurrency, 1, 256));
        errors.extend(bounds("rate", self.rate, 1, 10_000));
        let names = [("namespace", &self.namespace), ("leaseNamespace", &self.lease_namespace)];
        for (key, name) in names.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            if !is_kubernetes_label(name) {
                errors.push(format!(
                    "mox.kubernetes.{key}: \"{name}\" is no DNS label; use the name of a namespace, which has up to 63 \
                     lower-case letters, digits and hyphens"
                ));
            }
        }
        if !is_kubernetes_label(&self.owner) || self.owner.len() > 40 {
            errors.push(format!(
                "mox.kubernetes.owner: \"{}\" is not possible; use up to 40 lower-case letters, digits and hyphens",
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

    #[test]
    fn errors_name_the_key_the_value_and_what_is_allowed() {
        let wrong = Kubernetes {
            lease: Duration::from_millis(1_500),
            rate: 0,
            namespace: Some("A".to_owned()),
            ..Kubernetes::default()
        };
        assert_eq!(
            wrong.errors(),
            [
                "mox.kubernetes.lease: 1s 500ms is out of bounds; allowed are 3s to 1h",
                "mox.kubernetes.rate: 0 is out of bounds; allowed are 1 to 10000",
                "mox.kubernetes.namespace: \"A\" is no DNS label; use the name of a namespace, which has up to 63 lower-case \
                 letters, digits and hyphens",
            ]
        );
    }
}
