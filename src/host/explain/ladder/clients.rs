//! Whether the streams of this session server have it.

use crate::host::{
    explain::{
        facts::{Facts, Told},
        ladder::rung::{Rung, Step, Verdict, reason},
    },
    page::counted,
};

/// Keys of the reasons for which no client of this session server can have a service.
pub(super) const UNTOLD: [&str; 3] = ["not-listening", "fenced", "no-istiod"];

/// Whether istiods are told of it, and took it.
pub(super) fn clients(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if !facts.listening {
        let says = "nothing listens at mox.listen";
        reasons.push(reason("not-listening", says, "see the log; the port may be another's"));
    } else if facts.fenced {
        let says = "streams are refused, since another session server has fresher data";
        reasons.push(reason(
            "fenced",
            says,
            "istiods are at that one; look after the data servers that this one cannot reach",
        ));
    }
    let concerned: Vec<&Told> = facts.streams.iter().filter(|told| told.asked && told.has_it).collect();
    if concerned.is_empty() && reasons.is_empty() && !facts.config.kubernetes.enabled {
        let says = match facts.streams.is_empty() {
            true => "no istiod is connected to this session server",
            false => "no stream here asked for the ServiceEntries of its part",
        };
        reasons.push(reason("no-istiod", says, "see meshConfig.configSources, and ask the other session servers"));
    }
    // A stream's part has other services, too, so that the last ACK may be of a change of theirs: what matters is whether any
    // response was taken at all. Other session servers may have the clients that this one has not.
    let none_has = !concerned.is_empty() && !concerned.iter().any(|told| told.ever) && !facts.config.kubernetes.enabled;
    for told in &concerned {
        let Told { client, error, too_large, sent, acked, waits, delta, .. } = told;
        if let Some(error) = error {
            reasons.push(reason(
                "nack",
                match told.ever {
                    true => format!("{client} refused the last response, and keeps all that it had before: {error}"),
                    false => format!("{client} refused the response, and has nothing: {error}"),
                },
                "please report it, with these words",
            ));
        } else if *too_large {
            let says = format!("{client} keeps its last response, since the newest state is too large for one");
            reasons.push(reason(
                "too-large",
                says,
                "set mox.partitions, and list the parts in meshConfig.configSources",
            ));
        } else if !*sent && !*delta && waits.is_none() {
            let says =
                format!("{client} is to be told of a change of its part, which may be of this service or of another");
            reasons.push(reason("behind", says, "wait; mox.push.max bounds it"));
        } else if !*acked && waits.is_some() {
            let says = format!("{client} has not acknowledged its part for {} ms", waits.unwrap_or_default());
            reasons.push(reason(
                "unacknowledged",
                says,
                "see that istiod's load; it stays connected however long that takes",
            ));
        }
    }
    for client in &facts.wrong {
        let address = client.address.map(|address| address.to_string()).unwrap_or_default();
        let says = format!("{} ({address}): {}", client.node, client.wrong.unwrap_or_default());
        reasons.push(reason(
            "wrong-partitions",
            says,
            "paste what /mox/istio-config prints into meshConfig.configSources",
        ));
    }
    // Of reasons of several clients those first for which one lags until something is done.
    let lags = |key: &str| UNTOLD.contains(&key) || ["nack", "too-large"].contains(&key);
    reasons.sort_by_key(|reason| !lags(&reason.key));
    let ever = concerned.iter().filter(|told| told.ever && told.error.is_none()).count();
    let found = format!("its part is taken by {ever} of {}", counted(concerned.len(), "stream"));
    Some(Rung::of(Step::Clients, if none_has { Verdict::Failed } else { Verdict::Partly }, found, reasons))
}
