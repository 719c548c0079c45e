//! What the operator's policy says of a service: whether it is let in, and who sees it.

use crate::{
    host::explain::{
        facts::Facts,
        ladder::rung::{Rung, Step, Verdict, reason},
    },
    policy::{Globs, Mode},
};

/// Whether the policy lets it in.
pub(super) fn lets_in(facts: &Facts) -> Option<Rung> {
    let (id, document) = (facts.key.id(), facts.policy.document());
    if facts.policy.serves(id) {
        return Some(Rung::passed(Step::Policy, format!("the policy {} lets it in", short(facts.policy.hash()))));
    }
    let exclude = Globs::new(document.exclude.iter().map(String::as_str)).matching(id);
    let mut reasons = vec![match exclude.first().and_then(|at| document.exclude.get(*at)) {
        Some(glob) => reason(
            "excluded",
            format!("the policy's exclude has \"{glob}\", which matches it"),
            "take that glob out of exclude, or make it narrower",
        ),
        None => reason(
            "not-included",
            "no glob of the policy's include matches it",
            "add its dataId to include; POST /mox/policy?dryRun tells what that changes",
        ),
    }];
    // Who has let it in by a document that does not count looks for that here.
    reasons.extend(facts.policy_refused.as_ref().map(|why| {
        let says = format!("a newer document of the policy is refused, so the one before counts: {why}");
        reason("policy-refused", says, "set the policy anew, by POST /mox/policy or in the console")
    }));
    Some(Rung::of(
        Step::Policy,
        Verdict::Failed,
        format!("the policy {} keeps it out", short(facts.policy.hash())),
        reasons,
    ))
}

/// As much of a hash as people compare.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Which namespaces see it, and by which word of the policy.
pub(super) fn export_to(facts: &Facts) -> Option<Rung> {
    let to = &facts.served.as_ref()?.export_to;
    let found = if to.is_empty() { "every namespace".to_owned() } else { to.join(", ") };
    if to.is_empty() || to.iter().any(|to| to == "*") {
        return Some(Rung::passed(Step::ExportTo, found));
    }
    let rules = facts.key.rules(&facts.policy);
    let by = match (rules.visibility, rules.export_to_glob) {
        (Mode::On, _) => "by who subscribes to it, as visibility says".to_owned(),
        // What is served may be of a policy before.
        _ if rules.export_to != to => "by an earlier policy".to_owned(),
        (_, Some(glob)) => format!("by overrides.{glob}.exportTo of the policy"),
        (_, None) => "by exportTo of the policy".to_owned(),
    };
    if to.iter().all(|to| to == "~") {
        let says = format!("its exportTo is \"~\", {by}: istiod has it, and no proxy hears of it");
        let remedy = "name namespaces, or \"*\", in exportTo or overrides.<glob>.exportTo of the policy; where visibility is on, nobody is known to subscribe to it";
        return Some(Rung::of(
            Step::ExportTo,
            Verdict::Failed,
            found,
            vec![reason("exported-to-nobody", says, remedy)],
        ));
    }
    let own = |to: &str| match to {
        "." => format!("{} (its own)", facts.config.namespace),
        other => other.to_owned(),
    };
    let names: Vec<String> = to.iter().map(|to| own(to)).collect();
    let says = format!("visible only to {}, {by}", names.join(", "));
    let remedy = "nothing, if its callers are there; else name their namespaces in that";
    Some(Rung::of(Step::ExportTo, Verdict::Partly, found, vec![reason("exported-to-some", says, remedy)]))
}
