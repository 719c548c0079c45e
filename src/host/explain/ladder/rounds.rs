//! What rounds make of the endpoints: a host, an entry that Istio takes, what is held back, and what is served.

use crate::{
    host::{
        explain::{
            facts::{Facts, Freeze},
            ladder::rung::{Rung, Step, Verdict, reason},
            remedies,
        },
        page::counted,
    },
    snapshot::view::Held,
};

/// Whether it has the host and the addresses that it would rather have.
pub(super) fn names(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    for (place, contest) in &facts.contests {
        reasons.push(reason(
            "contested",
            format!(
                "{place}, which it would rather have, is {}'s{}",
                contest.holder,
                case(facts.key.text(), &contest.holder)
            ),
            "give one of them a host of its own: overrides.<glob>.host",
        ));
    }
    if let Some(rivals) = &facts.rivals {
        let named: Vec<String> =
            rivals.waiting.iter().map(|rival| format!("{rival}{}", case(facts.key.text(), rival))).collect();
        let more = rivals.count.saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        reasons.push(reason(
            "wanted-by-others",
            format!("its host is what {}{more} would rather have, and calls may be meant for that", named.join(", ")),
            "give one of them a host of its own: overrides.<glob>.host",
        ));
    }
    let found = match &facts.served {
        Some(served) => format!("host {}", served.host),
        None if facts.wanted.is_empty() => return None,
        None => "no host yet".to_owned(),
    };
    Some(Rung::of(Step::Names, Verdict::Partly, found, reasons))
}

/// That two names are the same but for their case, which hosts have none of.
fn case(one: &str, other: &str) -> &'static str {
    if one.eq_ignore_ascii_case(other) { " (they differ by the case of letters only)" } else { "" }
}

/// Whether Istio takes it, and with all of its endpoints.
pub(super) fn istio(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if let Some(quarantine) = &facts.quarantine {
        reasons.push(reason(
            format!("quarantined-{}", quarantine.reason),
            format!("Istio would refuse its newest form ({}): {}", quarantine.reason, quarantine.detail),
            match facts.served.is_some() {
                true => "change what it says; its last good form is served until then",
                false => "change what it says; it has no good form to be served",
            },
        ));
    }
    for (rule, (count, invalid)) in &facts.invalid {
        let says = format!(
            "{count} endpoints are left out, since Istio would refuse the service with them: {}",
            invalid.detail
        );
        reasons.push(reason(format!("invalid-{}", rule.name()), says, rule.remedy()));
    }
    let nothing = facts.quarantine.is_some() && facts.served.is_none();
    let verdict = if nothing { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Istio, verdict, "as Istio's own validation has it", reasons))
}

/// Whether a breaker, a freeze or the first view holds back what is other with it.
pub(super) fn held(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    let mut failed = false;
    let hold = |held: Held, detail: &str| {
        let (means, remedy) = remedies::of_held(held);
        match facts.freeze.as_ref().filter(|_| held == Held::Frozen) {
            Some(Freeze { says, remedy }) => {
                reason(held.to_string(), format!("{detail}what is served is frozen, {says}"), *remedy)
            }
            None => reason(held.to_string(), format!("{detail}{means}"), remedy),
        }
    };
    if !facts.shown && facts.held != Some(Held::NotLoaded) {
        failed = true;
        reasons.push(hold(facts.held.unwrap_or(Held::NotLoaded), "clients are told nothing yet: "));
    }
    if facts.waiting {
        failed |= facts.served.is_none();
        reasons.push(hold(Held::MassAdd, "it waits: "));
    }
    if facts.withheld {
        reasons.push(hold(Held::MassDelete, "what went of it is still served: "));
    }
    match facts.held {
        Some(held @ Held::NotLoaded) => {
            failed = true;
            reasons.push(hold(held, ""));
        }
        Some(held @ (Held::LastGood | Held::Frozen)) if facts.shown && !facts.is_as_wanted() => {
            failed |= facts.served.is_none() && !facts.wanted.is_empty();
            reasons.push(hold(held, ""));
        }
        // Others' removals and additions are no matter of this service.
        Some(Held::LastGood | Held::Frozen | Held::MassDelete | Held::MassAdd) | None => {}
    }
    if facts.grace.is_some() && facts.served.is_some() {
        let says = "its last endpoint went a short while ago, and its entry stays without any";
        reasons.push(reason("in-grace", says, "nothing; mox.protect.empty-grace says for how long"));
    }
    let verdict = if failed { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Held, verdict, "breakers, freeze and the first view", reasons))
}

/// Whether it is served, and the address that is asked for with it.
pub(super) fn served(facts: &Facts) -> Option<Rung> {
    let Some(served) = &facts.served else {
        let says = "it is not served, and the steps before say why; where none does, its round is under way";
        let wanted = !facts.wanted.is_empty() && facts.policy.serves(facts.key.id());
        let remedy = if wanted { "ask again in a second" } else { "see the first step that failed" };
        return Some(Rung::of(
            Step::Served,
            Verdict::Failed,
            "no ServiceEntry",
            vec![reason("not-served", says, remedy)],
        ));
    };
    let mut reasons = Vec::new();
    if let (Some((ip, port)), Some(places)) = (facts.address, &served.places) {
        let is_at = |place: &(String, u16)| place.0 == ip.to_string() && port.is_none_or(|port| port == place.1);
        if !places.iter().any(is_at) {
            reasons.push(reason(
                "endpoint-not-served",
                "no endpoint of the entry is at that address",
                "see the steps before",
            ));
        }
    }
    let found = format!(
        "ServiceEntry {} with {}, version {}",
        served.name,
        counted(served.endpoints, "endpoint"),
        served.version
    );
    let verdict = if facts.address.is_some() { Verdict::Failed } else { Verdict::Partly };
    Some(Rung::of(Step::Served, verdict, found, reasons))
}
