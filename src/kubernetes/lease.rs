//! The lease that makes one of the session servers the writer: a `coordination.k8s.io` Lease.
//!
//! As client-go's leader election has it: who finds it free, released, or unchanged for its whole length by its own clock takes it
//! over the version that was seen, so that of two only one can. Clocks of different machines are never compared.

use std::time::{Duration, SystemTime};

use http::Method;
use kube::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    api::{self, Call},
    failure::Failure,
};

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hold {
    /// We hold the lease; no write begins after this.
    Ours(Instant),
    /// Another session server holds the lease, by this name.
    Others(String),
}

/// The lease as this session server knows it.
pub(super) struct Lease {
    client: Client,
    namespace: String,
    name: String,
    identity: String,
    length: Duration,
    /// The version seen last, and when it was seen first.
    seen: Option<(String, Instant)>,
    known: Option<LeaseObject>,
}

#[derive(Debug, Clone, Deserialize)]
struct LeaseObject {
    metadata: LeaseMeta,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseMeta {
    resource_version: String,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
    acquire_time: Option<String>,
    renew_time: Option<String>,
    lease_transitions: Option<u64>,
}

impl std::fmt::Display for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} (for {})", self.namespace, self.name, self.identity)
    }
}

impl Lease {
    pub(super) fn new(client: Client, namespace: String, name: String, identity: String, length: Duration) -> Self {
        Self { client, namespace, name, identity, length, seen: None, known: None }
    }

    /// How often the lease is renewed, or looked at.
    pub(super) fn period(&self) -> Duration {
        self.length / 3
    }

    /// Our name in the lease.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    async fn call(&mut self, path: &str, call: Call) -> Result<LeaseObject, Failure> {
        let (_, body) = api::send(&self.client, path, call, self.period()).await?;
        let record: LeaseObject = serde_json::from_slice(&body)
            .map_err(|error| Failure::unreachable(format!("the lease cannot be read: {error}")))?;
        let version = &record.metadata.resource_version;
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != version) {
            self.seen = Some((version.clone(), Instant::now()));
        }
        self.known = Some(record.clone());
        Ok(record)
    }

    /// Takes or renews the lease, if it can be had.
    pub(super) async fn acquire(&mut self) -> Result<Hold, Failure> {
        // A renewal needs no look before: a version that is not the newest is refused.
        if let Some(record) = self.known.clone().filter(|record| self.is_ours(record)) {
            match self.write(Some(record)).await {
                Err(Failure::Refused { code: 404 | 409, .. }) => self.known = None,
                written => return written,
            }
        }
        let path = format!("{}/{}", self.collection(), self.name);
        let record = match self.call(&path, Call::get()).await {
            Err(Failure::Refused { code: 404, .. }) => return self.lost_if_conflict(None).await,
            record => record?,
        };
        let holder = record.spec.holder_identity.clone().unwrap_or_default();
        let lasts = Duration::from_secs(record.spec.lease_duration_seconds.unwrap_or_default());
        let over = self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() > lasts);
        if holder.is_empty() || holder == self.identity || over {
            return self.lost_if_conflict(Some(record)).await;
        }
        Ok(Hold::Others(holder))
    }

    fn is_ours(&self, record: &LeaseObject) -> bool {
        record.spec.holder_identity.as_deref() == Some(&self.identity)
    }

    /// Writes our name into the lease; whoever was faster is seen the next time.
    async fn lost_if_conflict(&mut self, over: Option<LeaseObject>) -> Result<Hold, Failure> {
        match self.write(over).await {
            Err(Failure::Refused { code: 409, .. }) => Ok(Hold::Others("another".to_owned())),
            written => written,
        }
    }

    async fn write(&mut self, over: Option<LeaseObject>) -> Result<Hold, Failure> {
        let began = Instant::now();
        let spec = over.as_ref().map(|record| record.spec.clone()).unwrap_or_default();
        let now = || humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        let ours = spec.holder_identity.as_deref() == Some(&self.identity);
        let transitions = spec.lease_transitions.unwrap_or_default() + u64::from(!ours);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.length.as_secs()),
            acquire_time: spec.acquire_time.filter(|_| ours).or_else(|| Some(now())),
            renew_time: Some(now()),
            lease_transitions: Some(transitions),
        };
        self.put(&spec, over.as_ref()).await?;
        Ok(Hold::Ours(began + self.length * 2 / 3))
    }

    async fn put(&mut self, spec: &LeaseSpec, over: Option<&LeaseObject>) -> Result<LeaseObject, Failure> {
        let mut lease: Value = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": spec,
        });
        match over {
            Some(record) => {
                lease["metadata"]["resourceVersion"] = record.metadata.resource_version.as_str().into();
                let path = format!("{}/{}", self.collection(), self.name);
                self.call(&path, Call::json(Method::PUT, &lease)).await
            }
            None => {
                let path = self.collection();
                self.call(&path, Call::json(Method::POST, &lease)).await
            }
        }
    }

    /// Gives the lease away, so that nobody has to wait for its end.
    pub(super) async fn release(&mut self) {
        let Some(record) = self.known.take().filter(|record| self.is_ours(record)) else { return };
        let spec =
            LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), ..record.spec.clone() };
        if let Err(error) = self.put(&spec, Some(&record)).await {
            tracing::info!(
                event = "kubernetes_lease_not_released",
                lease = %self,
                %error,
                "the lease is not released; it runs out by itself"
            );
        }
        self.known = None;
    }
}
