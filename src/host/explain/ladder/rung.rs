//! What stands on the ladder: a step, its outcome, and the reasons for that.

use serde::Serialize;

/// Reasons of one step that are told.
const TOLD: usize = 20;

/// A step, in the order of the data's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The registry has publishers of it.
    Registry,
    /// This session server has read them.
    Read,
    /// The policy lets it in.
    Policy,
    /// Payloads are endpoints.
    Payloads,
    /// The service has a host, and a virtual address.
    Names,
    /// Istio takes it.
    Istio,
    /// Nothing holds it back.
    Held,
    /// The service is served as the registry has it.
    Served,
    /// Namespaces see it.
    ExportTo,
    /// Kubernetes has it, where it is written there.
    Kubernetes,
    /// Clients have it.
    Clients,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All is well.
    Passed,
    /// The step is passed, but for a part.
    Partly,
    /// The way ends here.
    Failed,
}

/// Why a step did not pass, or not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A stable name.
    pub key: String,
    /// The state of things.
    pub says: String,
    /// The remedy.
    pub remedy: String,
}

/// A step with what was found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rung {
    /// The step.
    pub step: Step,
    /// Its outcome.
    pub verdict: Verdict,
    /// A sentence on what was found.
    pub found: String,
    /// Why it did not pass, the worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// The page that tells more.
    pub page: &'static str,
}

/// A reason that has all of its three parts.
pub(super) fn reason(key: impl Into<String>, says: impl Into<String>, remedy: impl Into<String>) -> Reason {
    Reason { key: key.into(), says: says.into(), remedy: remedy.into() }
}

impl Rung {
    /// Passed, with nothing to say but what was found.
    pub(super) fn passed(step: Step, found: impl Into<String>) -> Self {
        Self { step, verdict: Verdict::Passed, found: found.into(), reasons: Vec::new(), page: page(step) }
    }

    /// Passed where there are no reasons.
    pub(super) fn of(step: Step, verdict: Verdict, found: impl Into<String>, mut reasons: Vec<Reason>) -> Self {
        reasons.truncate(TOLD);
        let verdict = if reasons.is_empty() { Verdict::Passed } else { verdict };
        Self { step, verdict, found: found.into(), reasons, page: page(step) }
    }
}

/// The page of the documentation about a step.
fn page(step: Step) -> &'static str {
    match step {
        Step::Registry | Step::Read => "docs/protection.md",
        Step::Policy | Step::ExportTo => "docs/policy.md",
        Step::Payloads => "docs/providers.md",
        Step::Names | Step::Istio | Step::Served => "docs/istio.md",
        Step::Held => "docs/concepts.md",
        Step::Kubernetes => "docs/kubernetes.md",
        Step::Clients => "docs/operations.md",
    }
}
