//! The meaning of each reason, and what to do about it. A reason without a remedy does not compile.

use crate::{snapshot::view::Held, translate::payload::Reject};

/// The meaning of a reject, and the remedy.
pub fn of_reject(reject: Reject) -> (&'static str, &'static str) {
    match reject {
        Reject::NotText => (
            "the data is no text: not a string in Java's serialization, or not UTF-8",
            "publish a string, as SOFARPC's and Dubbo's clients do",
        ),
        Reject::Empty => ("the text is empty", "publish an address"),
        Reject::UnknownForm => (
            "the text has none of the forms that are known",
            "publish a URL of SOFARPC's or Dubbo's, an instance of Dubbo 3, or host:port",
        ),
        Reject::BadPort => ("there is no port from 1 to 65535", "publish a port"),
        Reject::HostName => (
            "it names a host, and endpoints are addresses",
            "publish an address, or set overrides.<glob>.dns to true, and Envoy resolves the name",
        ),
        Reject::UnusableAddress => (
            "the address is nobody's service: loopback, link-local, multicast, or a cloud's metadata service",
            "publish the address that consumers reach; endpoints.allow opens a range by naming just that",
        ),
        Reject::VipRange => {
            ("the address is in mox.vip-cidr", "publish another address, or give the virtual addresses another range")
        }
        Reject::Denied => (
            "the policy's endpoints.allow or endpoints.deny leaves the address out",
            "change the policy's endpoints.allow or endpoints.deny",
        ),
        Reject::ZeroWeight => (
            "its weight is zero while others of the service have more, so no client calls it",
            "give it a weight again when it is to be called",
        ),
        Reject::OutOfService => {
            ("the provider is disabled, so no client calls it", "enable it again when it is to be called")
        }
        Reject::NotAProvider => (
            "the text is an override, a route or another text that is no provider",
            "nothing: nobody can be called there",
        ),
        Reject::UnknownProtocol => (
            "its protocol has no usual port",
            "name the protocol with a port in the policy's ports, and it is served as TCP",
        ),
        Reject::PublisherLimit => (
            "its publisher has more endpoints than mox.limits.endpoints-per-publisher",
            "raise mox.limits.endpoints-per-publisher, or publish fewer",
        ),
        Reject::ServiceLimit => (
            "the service has more endpoints than mox.limits.endpoints-per-service",
            "raise mox.limits.endpoints-per-service",
        ),
    }
}

/// The meaning of a hold, and the remedy.
pub fn of_held(held: Held) -> (&'static str, &'static str) {
    match held {
        Held::NotLoaded => (
            "the first view of the registry is not complete, so nothing is told yet",
            "wait; mox_feed_owed counts what is still to be read, and feed.lastFailure says why a read failed",
        ),
        Held::LastGood => (
            "the first view is not complete, so the last good state is served, and nothing goes from it",
            "wait, and look after the data servers that do not answer",
        ),
        Held::MassDelete => (
            "more went at once than a registry in its right mind takes away, so removals are withheld",
            "if it is really gone: POST /mox/release; else wait, the hold ends by itself",
        ),
        Held::MassAdd => (
            "more came at once than is let in, so new services wait",
            "if they are wanted: POST /mox/release; else see who publishes them",
        ),
        Held::Frozen => (
            "what is served is frozen, by an order or since the registry stopped its pushes",
            "POST /mox/thaw, or give the registry its pushes back",
        ),
    }
}
