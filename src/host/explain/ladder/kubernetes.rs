//! Whether its object is in Kubernetes, where the session servers write there.

use crate::host::explain::{
    facts::Facts,
    ladder::rung::{Rung, Step, Verdict, reason},
};

/// HTTP status of the API server for what may not be done.
pub(super) const FORBIDDEN: u16 = 403;

/// Whether the API server took it.
pub(super) fn written(facts: &Facts) -> Option<Rung> {
    if !facts.config.kubernetes.enabled {
        return None;
    }
    let name = facts.served.as_ref().and_then(|served| served.name.rsplit('/').next());
    let problem = facts.kubernetes.as_ref().map(|problem| {
        let words = &problem.message;
        // What is refused to one object is not tried for each.
        let is_own = name.is_some_and(|name| words.contains(&format!("\"{name}\"")));
        let says = match problem.code == Some(FORBIDDEN) && !is_own {
            true => format!("its object is not written, as others are not; of another, for example: {words}"),
            false => format!("its object is not written: {words}"),
        };
        let user = words.split_once("User \"").and_then(|(_, rest)| rest.split('"').next());
        let remedy = match (problem.code, user) {
            (Some(FORBIDDEN), Some(user)) => {
                format!("apply what /mox/kubernetes/rbac prints; its subject must be {user}, who was refused")
            }
            (Some(FORBIDDEN), None) => {
                "apply what /mox/kubernetes/rbac prints; its subject must be who was refused".to_owned()
            }
            _ => "see /mox/kubernetes".to_owned(),
        };
        reason("kubernetes-problem", says, remedy)
    });
    let found = "written to Kubernetes by the session server that has the lease";
    Some(Rung::of(Step::Kubernetes, Verdict::Partly, found, problem.into_iter().collect()))
}
