//! The incremental variant: a response has what is different from what the client has.
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds>

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::BytesMut;

use crate::{
    proto::envoy::service::discovery::v3::DeltaDiscoveryRequest,
    snapshot::{Item, Set, version_of},
    xds::subscription::{EVERYTHING, Exchange, NAME, Names, Nonce, ResponseContent, Subscription, names},
};

/// Bytes of a version as it is kept.
const VERSION: usize = size_of::<Option<u128>>();

/// A type on a stream in the incremental variant.
#[derive(Debug, Default)]
pub struct Delta {
    /// Whether everything is wanted.
    wildcard: bool,
    /// Names that are wanted, beside everything or alone.
    names: Names,
    /// Names of which the client is to be told what there is, whether it changed or not.
    owed: Names,
    /// Whether the client is to be told everything that there is.
    owes_all: bool,
    /// Hashes of the resources that the client has from before this stream, by name; empty after the first response. `None`: a
    /// version that was never given out here.
    initial: BTreeMap<Arc<str>, Option<u128>>,
    /// Bytes of that.
    initial_bytes: usize,
    /// The set that the client has, as far as it wants what is in it; `None` before the first response.
    base: Option<Set>,
    /// Hash of a set of which the client was found to lack something, since its last request that names anything.
    lacking: Option<u128>,
    /// Whether a request was taken in.
    known: bool,
    exchange: Exchange,
}

/// The difference between what there is and what the client has.
#[derive(Default)]
struct News<'a> {
    changed: Vec<&'a Item>,
    removed: BTreeSet<&'a str>,
}

impl News<'_> {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Delta {
    fn subscribe(&mut self, name: String) {
        if name == EVERYTHING {
            self.owes_all |= !self.wildcard;
            self.wildcard = true;
        } else {
            // "The server must still provide those resources […] the client may have 'forgotten' those resources despite
            // apparently remaining subscribed."
            // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#xds-protocol-delta-subscribe
            let name = Arc::<str>::from(name);
            self.names.insert(Arc::clone(&name));
            self.owed.insert(name);
        }
    }

    fn unsubscribe(&mut self, name: String) {
        if name == EVERYTHING {
            self.wildcard = false;
            self.owes_all = false;
            // A name that was owed as one of everything is not wanted any more.
            let names = &self.names;
            self.owed.retain(|name| names.contains(name));
        } else if self.names.remove(&name) {
            // While everything is wanted, "the server must send a response that includes the specific resource", or says that
            // there is none. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#xds-protocol-unsubscribe
            match self.wildcard {
                true => self.owed.insert(name.into()),
                false => _ = self.owed.remove(&name),
            }
        }
    }

    fn news<'a>(&'a self, set: &'a Set) -> News<'a> {
        let mut news = News::default();
        let has = |item: &Item| self.initial.get(item.name()).is_some_and(|digest| *digest == Some(item.digest()));
        if self.owes_all {
            news.changed.extend(set.items().filter(|item| !has(item)));
            news.removed.extend(self.owed.iter().map(|name| &**name).filter(|name| set.find(name).is_none()));
            let gone = self.base.as_ref().map(|base| set.since(base).removed).unwrap_or_default();
            news.removed.extend(gone.into_iter().map(|name| &**name).filter(|name| self.names.contains(name)));
        } else {
            for name in self.owed.iter() {
                match set.find(name) {
                    Some(item) if has(item) => {}
                    Some(item) => news.changed.push(item),
                    None => _ = news.removed.insert(name),
                }
            }
            if let Some(base) = &self.base {
                let difference = set.since(base);
                let wanted = |name: &str| (self.wildcard || self.names.contains(name)) && !self.owed.contains(name);
                news.changed.extend(difference.changed.into_iter().filter(|item| wanted(item.name())));
                news.removed.extend(difference.removed.into_iter().map(|name| &**name).filter(|name| wanted(name)));
            }
        }
        // Resources that the client has from before this stream and that are gone.
        let stale = self.initial.keys().map(|name| &**name).filter(|name| self.wildcard || self.names.contains(name));
        news.removed.extend(stale.filter(|name| set.find(name).is_none()));
        news
    }

    /// Nothing is owed any more to a client that has this set.
    fn settle(&mut self, set: &Set) {
        (self.owes_all, self.lacking) = (false, None);
        (self.owed, self.initial, self.initial_bytes) = Default::default();
        self.base = Some(set.apart());
    }
}

/// The hash that is written as this version.
fn digest_of(version: &str) -> Option<u128> {
    let digest = u128::from_str_radix(version, 16).ok()?;
    (*version_of(digest) == *version).then_some(digest)
}

impl Subscription for Delta {
    type Request = DeltaDiscoveryRequest;
    const METHOD: &'static str = "DeltaAggregatedResources";
    const DELTA: bool = true;

    fn request(&mut self, request: DeltaDiscoveryRequest) -> bool {
        // A stale nonce is no answer, but "the server must honor changes to the subscription state even if the nonce is stale".
        // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
        let nonce = self.exchange.answer(&request.response_nonce, request.error_detail.as_ref());
        let mut asked = names(request.resource_names_subscribe, request.resource_locators_subscribe).peekable();
        let mut left = names(request.resource_names_unsubscribe, request.resource_locators_unsubscribe).peekable();
        if !std::mem::replace(&mut self.known, true) {
            // Versions count "on reconnect", so in the first request only. A first request that names nothing wants everything.
            // https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
            let initial = request.initial_resource_versions.into_iter();
            self.initial = initial.map(|(name, version)| (name.into(), digest_of(&version))).collect();
            self.initial_bytes = self.initial.keys().map(|name| NAME + VERSION + name.len()).sum();
            if asked.peek().is_none() && left.peek().is_none() {
                self.subscribe(EVERYTHING.to_owned());
            }
        }
        if asked.peek().is_some() || left.peek().is_some() {
            self.lacking = None;
        }
        asked.for_each(|name| self.subscribe(name));
        left.for_each(|name| self.unsubscribe(name));
        nonce == Nonce::Answers
    }

    fn lacks(&mut self, set: &Set) -> bool {
        // A request for everything is answered even if there is nothing: the client waits for the answer.
        if self.owes_all || self.lacking == Some(set.sum()) {
            return true;
        }
        let same = self.base.as_ref().is_some_and(|base| base.sum() == set.sum());
        if same && self.owed.is_empty() {
            return false;
        }
        // A name that is owed is news, unless the client has its resource from before this stream.
        let owes = !self.owed.is_empty() && self.initial.is_empty();
        let lacks = owes || !self.news(set).is_empty();
        if lacks {
            self.lacking = Some(set.sum());
        } else {
            // Changes of what is not wanted are not compared again, and their pages not kept.
            self.settle(set);
        }
        lacks
    }

    fn asked(&self) -> bool {
        self.owes_all || !self.owed.is_empty()
    }

    fn kept(&self) -> usize {
        self.names.bytes + self.owed.bytes + self.initial_bytes + self.exchange.kept()
    }

    fn holds(&self) -> Option<&Set> {
        self.base.as_ref()
    }

    fn lookups(&self, set: &Set, told: bool) -> usize {
        let known = self.owes_all || self.initial.is_empty() || self.lacking == Some(set.sum());
        if known && !told { 0 } else { self.owed.len() + self.initial.len() }
    }

    fn respond(&mut self, set: &Set, nonce: u64) -> ResponseContent {
        let mut content = ResponseContent::default();
        let news = self.news(set);
        content.removed = news.removed.iter().map(|name| (*name).to_owned()).collect();
        if self.owes_all && self.initial.is_empty() {
            content.pages = set.delta_pages().cloned().collect();
        } else {
            let mut bytes = BytesMut::new();
            news.changed.iter().for_each(|item| item.put_delta(&mut bytes));
            content.pages.push(set.copy(bytes));
        }
        self.settle(set);
        self.exchange.respond(nonce, set.sum());
        content
    }

    fn exchange(&self) -> &Exchange {
        &self.exchange
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        proto::envoy::service::discovery::v3::DeltaDiscoveryResponse,
        snapshot::{set::testing::looked_up, version_of},
        xds::subscription::testing::set,
    };

    /// A client that holds what it was sent.
    #[derive(Default)]
    struct Client {
        subscription: Delta,
        has: BTreeMap<String, String>,
        nonce: u64,
    }

    impl Client {
        fn ask(&mut self, nonce: &str, subscribe: &[&str], unsubscribe: &[&str]) {
            self.first(nonce, subscribe, unsubscribe, &[]);
        }

        fn first(&mut self, nonce: &str, subscribe: &[&str], unsubscribe: &[&str], has: &[(&str, &str)]) {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            self.subscription.request(DeltaDiscoveryRequest {
                response_nonce: nonce.into(),
                resource_names_subscribe: owned(subscribe),
                resource_names_unsubscribe: owned(unsubscribe),
                initial_resource_versions: has.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
                ..DeltaDiscoveryRequest::default()
            });
        }

        /// The next response, ACKed: names that it brings, and names that it takes; `None` if there is none.
        fn next(&mut self, set: &Set) -> Option<(Vec<String>, Vec<String>)> {
            if !self.subscription.wants(set) {
                return None;
            }
            self.nonce += 1;
            let ResponseContent { pages, removed } = self.subscription.respond(set, self.nonce);
            let bytes: Vec<u8> = pages.iter().flatten().copied().collect();
            let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
            let mut brought = Vec::new();
            for resource in response.resources {
                assert!(!removed.contains(&resource.name), "never in both");
                self.has.insert(resource.name.clone(), resource.version);
                brought.push(resource.name);
            }
            removed.iter().for_each(|name| _ = self.has.remove(name));
            self.ask(&self.nonce.to_string(), &[], &[]);
            Some((brought, removed))
        }
    }

    fn some(brought: &[&str], removed: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Some((owned(brought), owned(removed)))
    }

    #[test]
    fn everything_is_told_once_and_then_what_changes() {
        let mut client = Client::default();
        client.ask("", &[], &[]);
        assert_eq!(client.next(&set(&[])), some(&[], &[]), "answered though it is empty");
        assert_eq!(client.next(&set(&[])), None);
        assert_eq!(client.next(&set(&[("a", "1"), ("bb", "1")])), some(&["a", "bb"], &[]));
        assert_eq!(client.next(&set(&[("a", "2"), ("ccc", "1")])), some(&["a", "ccc"], &["bb"]));
        assert_eq!(client.next(&set(&[("ccc", "1"), ("a", "2")])), None);
    }

    #[test]
    fn what_changes_in_flight_is_told_as_it_is_at_last() {
        let mut client = Client::default();
        client.ask("", &[], &[]);
        client.next(&set(&[("a", "1")]));
        client.subscription.respond(&set(&[("a", "2")]), 9);
        for newer in [set(&[("a", "3"), ("bb", "1")]), set(&[("a", "4")])] {
            assert!(!client.subscription.wants(&newer));
        }
        client.ask("9", &[], &[]);
        assert_eq!(client.next(&set(&[("a", "4")])), some(&["a"], &[]), "bb came and went");
    }

    #[test]
    fn what_the_client_had_is_not_sent_again_and_what_is_gone_is_removed() {
        let now = set(&[("a", "1"), ("bb", "1")]);
        let version = |name: &str| version_of(now.find(name).unwrap().digest()).to_string();
        let mut client = Client::default();
        client.first("", &["*"], &[], &[("a", &version("a")), ("bb", "old"), ("gone", "x")]);
        assert_eq!(client.next(&now), some(&["bb"], &["gone"]));
        let mut client = Client::default();
        client.first("", &["a", "gone"], &[], &[("a", &version("a")), ("gone", "x"), ("bb", "not asked for")]);
        assert_eq!(client.next(&now), some(&[], &["gone"]));
        client.first("", &["bb"], &[], &[("bb", &version("bb"))]);
        assert_eq!(client.next(&now), some(&["bb"], &[]), "versions count in the first request only");
    }

    #[test]
    fn names_are_answered_at_once_missing_ones_too() {
        let mut client = Client::default();
        client.ask("", &["a", "missing"], &[]);
        let now = set(&[("a", "1"), ("bb", "1")]);
        assert_eq!(client.next(&now), some(&["a"], &["missing"]));
        assert_eq!(client.next(&set(&[("a", "1"), ("bb", "2")])), None);
        assert_eq!(client.next(&set(&[("a", "1"), ("missing", "1")])), some(&["missing"], &[]));
        client.ask("stale", &["a"], &[]);
        assert_eq!(client.next(&set(&[("a", "1"), ("missing", "1")])), some(&["a"], &[]), "asked for again");
        client.ask("", &[], &["a", "phantom"]);
        assert_eq!(client.next(&set(&[("a", "2"), ("missing", "1")])), None);
    }

    #[test]
    fn everything_and_names_are_left_one_by_one() {
        let now = set(&[("a", "1"), ("bb", "1")]);
        let mut client = Client::default();
        client.ask("", &["*", "a", "missing"], &[]);
        assert_eq!(client.next(&now), some(&["a", "bb"], &["missing"]));
        client.ask("", &[], &["a", "missing"]);
        assert_eq!(client.next(&now), some(&["a"], &["missing"]), "it is still among everything");
        client.ask("", &["a"], &[]);
        client.ask("", &[], &["a"]);
        client.ask("", &["bb"], &["*"]);
        assert_eq!(client.next(&now), some(&["bb"], &[]), "a is not wanted any more, though it was asked about");
        assert_eq!(client.next(&set(&[("a", "2"), ("bb", "1")])), None);
        client.ask("", &[], &["bb"]);
        assert_eq!(client.next(&set(&[])), None, "nothing is wanted");
        client.ask("", &[], &[]);
        assert_eq!(client.next(&now), None, "an empty request later on does not mean everything");
    }

    #[test]
    fn names_are_looked_up_once_for_each_set_and_never_while_a_response_is_unanswered() {
        let of: Vec<String> = (0..1_000).map(|n| format!("ns/{n:060}")).collect();
        let names: Vec<&str> = of.iter().map(String::as_str).collect();
        let (now, next) = (set(&[(names[0], "1")]), set(&[(names[0], "2")]));
        let version = version_of(now.find(names[0]).unwrap().digest()).to_string();
        let mut client = Client::default();
        client.first("", &names, &[], &[(names[0], &version)]);
        let looks = |client: &mut Client, set: &Set, lacks: bool| {
            let (before, most) = (looked_up(), client.subscription.lookups(set, false));
            assert_eq!(client.subscription.lacks(set), lacks);
            let looked = looked_up() - before;
            assert!(looked <= most, "{looked} of {most}");
            looked
        };
        assert_eq!(looks(&mut client, &now, true), 1_001, "it may have all of them already");
        client.ask("stale", &[], &[]);
        assert_eq!(looks(&mut client, &now, true), 0, "a request that names nothing");
        assert_eq!(looks(&mut client, &next, true), 1_001);
        client.ask("stale", &[], &["phantom"]);
        assert_eq!(looks(&mut client, &next, true), 1_001);
        assert_eq!(client.subscription.lookups(&next, true), 1_001, "to make the response");
        client.subscription.respond(&next, 1);
        assert_eq!(looks(&mut client, &next, false), 0);
        client.ask("stale", &names, &[]);
        assert!(client.subscription.exchange().in_flight());
        assert_eq!((looks(&mut client, &next, true), looks(&mut client, &now, true)), (0, 0));
        assert_eq!(client.next(&next), None);
        client.ask("1", &[], &[]);
        let (brought, removed) = client.next(&next).unwrap();
        assert_eq!((brought.len(), removed.len()), (1, 999));
    }

    #[test]
    fn what_is_kept_is_counted_and_goes_with_the_names() {
        let mut client = Client::default();
        let names: Vec<String> = (0..1_000).map(|n| format!("ns/{n:060}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        client.first("", &names, &[], &[(names[0], "1"), (names[1], "1")]);
        let none = set(&[]);
        let (asked, lookups) = (client.subscription.kept(), client.subscription.lookups(&none, true));
        assert!(asked > 2 * 1_000 * 63 && lookups == 1_002, "{asked} {lookups}");
        client.next(&set(&[])).unwrap();
        let told = client.subscription.kept();
        assert!(told <= asked / 2 && client.subscription.lookups(&none, true) == 0, "{told}");
        client.ask("", &names, &[]);
        assert_eq!(client.subscription.kept(), 2 * told, "they are owed once more, and are names as before");
        assert_eq!(client.subscription.lookups(&none, true), 1_000);
        client.ask("", &[], &names);
        assert_eq!((client.subscription.kept(), client.subscription.lookups(&none, true)), (0, 0));
    }
}
