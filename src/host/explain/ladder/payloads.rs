//! What translation makes of the publishers' payloads: endpoints, or why none.

use std::net::IpAddr;

use crate::{
    host::{
        explain::{
            facts::{Facts, Publisher},
            find,
            ladder::rung::{Reason, Rung, Step, Verdict, reason},
            remedies,
        },
        page::counted,
    },
    policy::{Policy, Refusal},
    translate::{payload::Reject, reading::Reading, service_entry::Member},
};

/// The payloads, or those at the address that is asked for.
pub(super) fn payloads(facts: &Facts) -> Option<Rung> {
    if facts.publishers == 0 {
        return None;
    }
    if let Some(address) = facts.address {
        return Some(payloads_at(facts, address));
    }
    let mut rejects: Vec<_> = facts.rejects.iter().collect();
    // A decision of a publisher's is no fault.
    rejects.sort_by_key(|(why, _)| why.is_decision());
    let of_reject = |(why, (count, sample)): (&Reject, &(u32, Box<str>))| {
        rejected(&facts.policy, *why, &format!("{count}, such as"), sample)
    };
    let mut reasons: Vec<Reason> = rejects.into_iter().map(of_reject).collect();
    if facts.wanted.is_empty()
        && reasons.is_empty()
        && facts.policy.serves(facts.key.id())
        && facts.quarantine.is_none()
    {
        let says = match facts.key.other() {
            Some(protocol) => format!("no publisher has an endpoint of protocol {protocol}"),
            None => "no publisher has an endpoint; those of another protocol than the dataInfoId's are services of their own".to_owned(),
        };
        let remedy = "see the payloads at /mox/services/<dataInfoId>, and the services beside it";
        reasons.push(reason("no-endpoint", says, remedy));
    }
    let verdict = if facts.wanted.is_empty() { Verdict::Failed } else { Verdict::Partly };
    let found = counted(facts.wanted.len(), "endpoint");
    Some(Rung::of(Step::Payloads, verdict, found, reasons))
}

/// Why the payload with this text is left out; `of` says whose it is, or how many such there are.
fn rejected(policy: &Policy, why: Reject, of: &str, text: &str) -> Reason {
    let (means, remedy) = remedies::of_reject(why);
    let means = match why {
        Reject::Denied => denied(policy, text).unwrap_or_else(|| means.to_owned()),
        _ => means.to_owned(),
    };
    reason(why.to_string(), format!("{means} ({of} {text})"), remedy)
}

/// The range of the policy that denies the address in a text, or that none allows it.
fn denied(policy: &Policy, text: &str) -> Option<String> {
    let parts = text.split(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
    let address = |part: &str| {
        [part, part.trim_matches(['[', ']'])].into_iter().find_map(find::address).map(|(address, _)| address)
    };
    let denied = |address: &IpAddr| policy.check_address(*address) == Err(Refusal::Denied);
    let address = parts.filter_map(address).find(denied)?;
    Some(match policy.denied_by(address) {
        Some(range) => format!("the policy's endpoints.deny has {range}, in which {address} is"),
        None => format!("no range of the policy's endpoints.allow has {address}"),
    })
}

/// The payloads at the address that is asked for: which of them is served, and what becomes of each other.
fn payloads_at(facts: &Facts, (ip, port): (IpAddr, Option<u16>)) -> Rung {
    let (mut reasons, mut served) = (Vec::new(), 0);
    for Publisher { register_id, readings, .. } in &facts.looked_at {
        let rejected = |why, text| rejected(&facts.policy, why, &format!("publisher {register_id},"), text);
        for Reading { text, made } in readings.iter().filter(|reading| reading.is_at(ip, port)) {
            match made {
                Err(why) => reasons.push(rejected(*why, text)),
                // Of another protocol, and so of a service beside this one.
                Ok((protocol, _)) if protocol.as_deref() != facts.key.other() => {}
                Ok((_, endpoint)) => {
                    let is_it = |member: &&Member| member.key() == (&endpoint.address, endpoint.port);
                    match facts.wanted.iter().find(is_it) {
                        Some(member) if member.register_id() == register_id => served += 1,
                        Some(member) => reasons.push(reason(
                            "newer-publisher",
                            format!("publisher {} registered the same address and port later than {register_id}", member.register_id()),
                            "nothing, if both are the same provider; else one of them should not publish it",
                        )),
                        None if endpoint.weight == 0 => reasons.push(rejected(Reject::ZeroWeight, text)),
                        None => reasons.push(reason(
                            "cut",
                            format!("publisher {register_id} has it, and the service or the publisher has too many endpoints"),
                            "raise mox.limits.endpoints-per-service or mox.limits.endpoints-per-publisher",
                        )),
                    }
                }
            }
        }
    }
    for place in &facts.lingering {
        reasons.push(reason(
            "lingering",
            format!("{place} stays in the entry of its application for a while, though its provider went"),
            "nothing; direct.linger of the policy says for how long",
        ));
    }
    let verdict = if served == 0 { Verdict::Failed } else { Verdict::Partly };
    Rung::of(Step::Payloads, verdict, counted(served, "endpoint") + " at that address", reasons)
}
