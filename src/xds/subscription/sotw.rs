//! State of the world: a response has everything that is wanted.
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#basic-protocol-overview>
//!
//! Beside the specification, two things that istiod needs: its first request of a type carries a made-up nonce, and it never
//! sends an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    proto::envoy::service::discovery::v3::DiscoveryRequest,
    snapshot::Set,
    xds::subscription::{EVERYTHING, Exchange, NAME, Nonce, ResponseContent, Subscription, names},
};

/// Bytes of what is kept with a name.
const SENT: usize = size_of::<Option<u128>>();

/// A type on a stream in state of the world.
#[derive(Debug, Default)]
pub struct Sotw {
    /// Names that are wanted, `None`: everything is wanted.
    names: Option<Wanted>,
    /// Whether a response is due even if nothing has changed.
    due: bool,
    exchange: Exchange,
}

/// Names that are wanted.
#[derive(Debug, Default)]
struct Wanted {
    /// Each with the hash of the resource that was sent.
    sent: BTreeMap<Arc<str>, Option<u128>>,
    /// Bytes of that.
    bytes: usize,
    /// The last set that was looked at, and the names of which it has something else than what was sent. So that another set costs
    /// what is different in it, not all names. `None`: none was since the last request or response.
    seen: Option<(Set, BTreeSet<Arc<str>>)>,
}

fn digest(set: &Set, name: &str) -> Option<u128> {
    set.find(name).map(|item| item.digest())
}

impl Wanted {
    fn of(asked: BTreeSet<Arc<str>>, known: Option<&Self>) -> Self {
        let known = |name: &str| known.and_then(|known| known.sent.get(name).copied().flatten());
        let bytes = asked.iter().map(|name| NAME + SENT + name.len()).sum();
        Self {
            sent: asked.into_iter().map(|name| (known(&name), name)).map(|(sent, name)| (name, sent)).collect(),
            bytes,
            seen: None,
        }
    }

    /// Whether this set has something else than what was sent.
    fn differs(&mut self, set: &Set) -> bool {
        let Self { sent, seen, .. } = self;
        let different = match seen.take() {
            None => {
                let different = sent.iter().filter(|(name, sent)| digest(set, name) != **sent);
                different.map(|(name, _)| Arc::clone(name)).collect()
            }
            Some((last, mut different)) => {
                let news = set.since(&last);
                let changed = news.changed.into_iter().map(|item| (item.name(), Some(item.digest())));
                for (name, digest) in changed.chain(news.removed.into_iter().map(|name| (name, None))) {
                    match sent.get_key_value(name) {
                        Some((_, sent)) if *sent == digest => _ = different.remove(name),
                        Some((name, _)) => _ = different.insert(Arc::clone(name)),
                        None => {}
                    }
                }
                different
            }
        };
        !seen.insert((set.apart(), different)).1.is_empty()
    }
}

impl Sotw {
    /// Takes the names of a request in. `*` wants everything, and so does an empty list where "all requests on the stream for
    /// that resource type have had an empty resource_names field"; an empty list after names "is interpreted as an
    /// unsubscription".
    /// <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return>
    fn want(&mut self, asked: BTreeSet<Arc<str>>, first: bool) {
        let everything = asked.contains(EVERYTHING) || (asked.is_empty() && (first || self.names.is_none()));
        if !first && !everything && self.names.as_ref().is_some_and(|names| names.sent.keys().eq(&asked)) {
            return;
        }
        let names = (!everything).then(|| Wanted::of(asked, self.names.as_ref()));
        // "The server must resend any newly requested resources, even if it previously sent those resources"; fewer names are
        // no reason for a response.
        self.due = first
            || match (&self.names, &names) {
                (None, None) => self.due,
                (Some(old), Some(new)) => self.due || new.sent.keys().any(|name| !old.sent.contains_key(name)),
                _ => true,
            };
        self.names = names;
    }
}

impl Subscription for Sotw {
    type Request = DiscoveryRequest;
    const METHOD: &'static str = "StreamAggregatedResources";
    const DELTA: bool = false;

    fn request(&mut self, request: DiscoveryRequest) -> bool {
        let asked = names(request.resource_names, request.resource_locators).map(Arc::from).collect();
        // The first request of a type is initial whatever nonce it carries: "the nonce is valid only in the context of an
        // individual xDS stream", and istiod sends one of its own making. A later request without a nonce starts afresh.
        // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#basic-protocol-overview
        if self.exchange.nonce.is_none() || request.response_nonce.is_empty() {
            self.want(asked, true);
            self.exchange.in_flight = false;
            return false;
        }
        // "The management server should not send a DiscoveryResponse for any DiscoveryRequest that has a stale nonce."
        // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#resource-updates
        let nonce = self.exchange.answer(&request.response_nonce, request.error_detail.as_ref());
        if nonce != Nonce::Stale {
            let same = |names: &Wanted| names.sent.keys().eq(&asked);
            // "Warming of Cluster is completed only when a ClusterLoadAssignment response is supplied": for a cluster that has
            // changed Envoy asks again for what it has, by a second request with the nonce and names of its ACK.
            // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#resource-warming
            self.due |= nonce == Nonce::Again && self.names.as_ref().is_some_and(same);
            // Names may change with any ACK or NACK.
            self.want(asked, false);
        }
        nonce == Nonce::Answers
    }

    fn lacks(&mut self, set: &Set) -> bool {
        match &mut self.names {
            None => self.due || self.exchange.sent != Some(set.sum()),
            Some(names) if names.sent.is_empty() => false,
            Some(names) => self.due || names.differs(set),
        }
    }

    fn asked(&self) -> bool {
        self.due
    }

    fn kept(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.bytes) + self.exchange.kept()
    }

    fn holds(&self) -> Option<&Set> {
        let (seen, _) = self.names.as_ref()?.seen.as_ref()?;
        Some(seen)
    }

    fn lookups(&self, _set: &Set, told: bool) -> usize {
        let Some(names) = &self.names else { return 0 };
        // A set costs what is different in it from the one that was seen before.
        let (known, lacks) = match &names.seen {
            _ if self.due => (true, true),
            Some((_, different)) => (true, !different.is_empty()),
            None => (false, true),
        };
        if known && !(told && lacks) { 0 } else { names.sent.len() }
    }

    fn respond(&mut self, set: &Set, nonce: u64) -> ResponseContent {
        self.due = false;
        let (content, pages) = match &mut self.names {
            None => (set.sum(), set.pages().cloned().collect()),
            Some(names) => {
                // Nothing of this set is kept while the client takes its time.
                names.seen = None;
                let mut pages = Vec::new();
                let mut sum = 0u128;
                for (name, sent) in &mut names.sent {
                    let item = set.find(name);
                    *sent = item.map(|item| item.digest());
                    sum = sum.wrapping_add(sent.unwrap_or_default());
                    pages.extend(item.map(|item| item.framed().clone()));
                }
                (sum, pages)
            }
        };
        self.exchange.respond(nonce, content);
        ResponseContent { pages, removed: Vec::new() }
    }

    fn exchange(&self) -> &Exchange {
        &self.exchange
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::google::rpc, snapshot::set::testing::looked_up, xds::subscription::testing::set};

    fn ask(subscription: &mut Sotw, nonce: &str, names: &[&str]) {
        let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
        subscription.request(DiscoveryRequest {
            response_nonce: nonce.into(),
            resource_names,
            ..DiscoveryRequest::default()
        });
    }

    fn subscribed() -> Sotw {
        let mut subscription = Sotw::default();
        ask(&mut subscription, "2026-01-01 00:00:00 +0000 UTC m=+0.1", &[]);
        assert!(subscription.wants(&set(&[])), "a first request is answered whatever its nonce");
        subscription.respond(&set(&[]), 1);
        subscription
    }

    #[test]
    fn one_response_is_unanswered_at_most() {
        let mut subscription = subscribed();
        assert!(!subscription.wants(&set(&[("a", "1")])));
        ask(&mut subscription, "1", &[]);
        assert_eq!(subscription.exchange().acked(), Some(0));
        assert!(!subscription.wants(&set(&[])), "equal content is not sent twice");
        assert!(subscription.wants(&set(&[("a", "1")])));
    }

    #[test]
    fn a_stale_nonce_changes_nothing() {
        let mut subscription = subscribed();
        ask(&mut subscription, "1", &[]);
        subscription.respond(&set(&[("a", "1")]), 2);
        ask(&mut subscription, "1", &["a"]);
        assert!(subscription.names.is_none() && !subscription.wants(&set(&[("a", "2")])));
    }

    #[test]
    fn a_nack_is_kept_and_only_new_content_follows() {
        let mut subscription = subscribed();
        let error_detail = Some(rpc::Status { message: "bad".into(), ..rpc::Status::default() });
        subscription.request(DiscoveryRequest {
            response_nonce: "1".into(),
            error_detail,
            ..DiscoveryRequest::default()
        });
        assert_eq!((subscription.exchange().error(), subscription.exchange().acked()), (Some("bad"), None));
        assert!(!subscription.wants(&set(&[])));
        ask(&mut subscription, "1", &[]);
        assert_eq!(subscription.exchange().error(), Some("bad"), "what a later request says is no ACK");
        assert!(subscription.wants(&set(&[("a", "1")])));
    }

    #[test]
    fn the_four_steps_of_the_specification() {
        let (one, two) = (set(&[("a", "1"), ("bb", "1")]), set(&[("a", "2"), ("bb", "1")]));
        let mut subscription = Sotw::default();
        ask(&mut subscription, "", &[]);
        subscription.respond(&one, 1);
        ask(&mut subscription, "1", &["*", "a"]);
        assert!(!subscription.wants(&one), "everything is still everything");
        ask(&mut subscription, "1", &["a"]);
        assert!(subscription.wants(&one));
        assert_eq!(subscription.respond(&one, 2).pages.len(), 1);
        ask(&mut subscription, "2", &[]);
        assert!(!subscription.wants(&two), "no names after names is nothing, not everything");
        ask(&mut subscription, "2", &["bb"]);
        assert!(subscription.wants(&one), "an added name is answered even if nothing changed");
    }

    #[test]
    fn names_that_are_asked_for_once_more_are_sent_once_more() {
        let all = set(&[("a", "1"), ("bb", "1")]);
        let mut subscription = Sotw::default();
        ask(&mut subscription, "", &["a", "bb"]);
        subscription.respond(&all, 1);
        ask(&mut subscription, "1", &["a", "bb"]);
        assert!(!subscription.wants(&all), "that was the ACK");
        ask(&mut subscription, "1", &["a", "bb"]);
        assert!(subscription.wants(&all));
        assert_eq!(subscription.respond(&all, 2).pages.len(), 2);
        ask(&mut subscription, "2", &["a", "bb"]);
        ask(&mut subscription, "2", &["a"]);
        assert!(!subscription.wants(&all), "fewer names ask for nothing");
        let mut everything = subscribed();
        ask(&mut everything, "1", &[]);
        ask(&mut everything, "1", &[]);
        assert!(!everything.wants(&set(&[])), "it is no name that is asked for");
    }

    #[test]
    fn names_are_looked_up_once_and_then_what_is_different() {
        let names: Vec<String> = (0..1_000).map(|n| format!("ns/{n:060}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let [one, two] = ["1", "2"].map(|host| set(&[(names[0], host)]));
        let mut subscription = Sotw::default();
        ask(&mut subscription, "", &names);
        assert_eq!((subscription.lookups(&one, false), subscription.lookups(&one, true)), (0, 1_000));
        subscription.respond(&one, 1);
        // While the response is unanswered another type may wait for what this one lacks.
        for (set, most) in [(&one, 1_000), (&two, 0), (&one, 0)] {
            let before = looked_up();
            assert_eq!(subscription.lookups(set, false), most);
            subscription.lacks(set);
            assert_eq!(looked_up() - before, most);
        }
        subscription.lacks(&two);
        assert_eq!((subscription.lookups(&two, false), subscription.lookups(&two, true)), (0, 1_000));
    }

    #[test]
    fn a_name_is_sent_again_when_it_changes_and_only_then() {
        let mut subscription = Sotw::default();
        ask(&mut subscription, "", &["a", "missing"]);
        subscription.respond(&set(&[("a", "1"), ("bb", "1")]), 1);
        ask(&mut subscription, "1", &["a", "missing"]);
        assert!(!subscription.wants(&set(&[("a", "1"), ("bb", "2"), ("ccc", "1")])));
        assert!(subscription.wants(&set(&[("a", "2")])));
        assert!(subscription.wants(&set(&[])), "it is gone");
        assert!(subscription.wants(&set(&[("a", "1"), ("missing", "1")])), "it has come");
        ask(&mut subscription, "1", &["missing"]);
        assert!(!subscription.wants(&set(&[("a", "2")])), "it is not wanted any more");
    }
}
