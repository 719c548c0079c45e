//! What one stream wants of one type and what it holds: a value without IO.
//!
//! The rules are those of the xDS protocol's state-of-the-world variant (`xds_protocol.rst`), with the two that istiod
//! needs: its first request of a type carries a made-up nonce, and it never sends an error.

use std::collections::BTreeSet;

/// One type on one stream.
#[derive(Debug, Default)]
pub struct Subscription {
    /// `None`: everything.
    names: Option<BTreeSet<String>>,
    /// Nonce of the last response; `None` before the first.
    nonce: Option<u64>,
    /// Whether that response is still unanswered.
    in_flight: bool,
    /// A response is due whatever the version.
    due: bool,
    /// Version of the last response.
    sent: Option<String>,
    /// Version of the last response that was accepted.
    acked: Option<String>,
    /// The client's words on the last response that it did not accept.
    error: Option<String>,
}

/// The parts of a request that matter here.
#[derive(Debug, Default, Clone, Copy)]
pub struct Request<'a> {
    /// `response_nonce`.
    pub nonce: &'a str,
    /// `resource_names`.
    pub names: &'a [String],
    /// `error_detail.message`, present on a NACK and only there.
    pub error: Option<&'a str>,
}

impl Subscription {
    /// Takes a request in.
    pub fn request(&mut self, request: Request<'_>) {
        // "The first request of a type on a stream" is initial whatever nonce it carries: nonces are only meaningful
        // within a stream, and istiod sends one of its own making. A later request without a nonce starts afresh.
        let Some(last) = self.nonce.filter(|_| !request.nonce.is_empty()) else {
            self.names = wanted(None, request.names);
            self.due = true;
            self.in_flight = false;
            return;
        };
        // "The server should not send a DiscoveryResponse for any DiscoveryRequest that has a stale nonce."
        if request.nonce != last.to_string() {
            return;
        }
        self.in_flight = false;
        match request.error {
            // A NACK. The same content is not sent again; what comes next is.
            Some(error) => self.error = Some(error.to_owned()),
            None => {
                self.acked.clone_from(&self.sent);
                self.error = None;
            }
        }
        // Names may change with any ACK or NACK: "the server must send … even if the client's version is current".
        let names = wanted(Some(&self.names), request.names);
        let fewer = matches!((&self.names, &names), (Some(old), Some(new)) if new.is_subset(old));
        self.due |= names != self.names && !fewer;
        self.names = names;
    }

    /// Whether a response should go out now that this is the newest version. At most one is unanswered at a time;
    /// what changes meanwhile goes into the next.
    pub fn wants(&self, version: &str) -> bool {
        let subscribed = self.names.as_ref().is_none_or(|names| !names.is_empty());
        !self.in_flight && (self.due || (self.sent.as_deref() != Some(version) && subscribed))
    }

    /// Notes that a response went out.
    pub fn respond(&mut self, nonce: u64, version: &str) {
        self.nonce = Some(nonce);
        self.in_flight = true;
        self.due = false;
        self.sent = Some(version.to_owned());
    }

    /// The names that are wanted; `None` for everything.
    pub fn names(&self) -> Option<&BTreeSet<String>> {
        self.names.as_ref()
    }

    /// Version of the last response.
    pub fn sent(&self) -> Option<&str> {
        self.sent.as_deref()
    }

    /// Version of the last response that was accepted.
    pub fn acked(&self) -> Option<&str> {
        self.acked.as_deref()
    }

    /// The client's words on the last response that it did not accept.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// "If the list is empty in the first request the client wants everything", and `*` says so at any time; an empty list
/// after names were given wants nothing.
fn wanted(before: Option<&Option<BTreeSet<String>>>, names: &[String]) -> Option<BTreeSet<String>> {
    let everything = names.iter().any(|name| name == "*");
    let nothing_said = names.is_empty() && before.is_none_or(Option::is_none);
    (!everything && !nothing_said).then(|| names.iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(subscription: &mut Subscription, nonce: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        subscription.request(Request { nonce, names: &names, error: None });
    }

    fn subscribed() -> Subscription {
        let mut subscription = Subscription::default();
        ask(&mut subscription, "2026-01-01 00:00:00 +0000 UTC m=+0.1", &[]);
        assert!(subscription.wants("v1"), "a first request is answered whatever its nonce");
        subscription.respond(1, "v1");
        subscription
    }

    #[test]
    fn one_response_is_unanswered_at_most() {
        let mut subscription = subscribed();
        assert!(!subscription.wants("v2"));
        ask(&mut subscription, "1", &[]);
        assert_eq!(subscription.acked(), Some("v1"));
        assert!(!subscription.wants("v1"), "equal content is not sent twice");
        assert!(subscription.wants("v3"));
    }

    #[test]
    fn a_stale_nonce_changes_nothing() {
        let mut subscription = subscribed();
        ask(&mut subscription, "1", &[]);
        subscription.respond(2, "v2");
        ask(&mut subscription, "1", &["a"]);
        assert_eq!((subscription.names(), subscription.wants("v3")), (None, false));
    }

    #[test]
    fn a_nack_is_kept_and_only_new_content_follows() {
        let mut subscription = subscribed();
        subscription.request(Request { nonce: "1", names: &[], error: Some("bad") });
        assert_eq!((subscription.error(), subscription.acked()), (Some("bad"), None));
        assert!(!subscription.wants("v1"));
        assert!(subscription.wants("v2"));
    }

    #[test]
    fn the_four_steps_of_the_specification() {
        let mut subscription = Subscription::default();
        ask(&mut subscription, "", &[]);
        subscription.respond(1, "v1");
        ask(&mut subscription, "1", &["*", "a"]);
        assert!(!subscription.wants("v1"), "everything is still everything");
        ask(&mut subscription, "1", &["a"]);
        assert!(subscription.wants("v1"));
        subscription.respond(2, "v1");
        ask(&mut subscription, "2", &[]);
        assert!(!subscription.wants("v2"), "no names after names is nothing, not everything");
        ask(&mut subscription, "2", &["b"]);
        assert!(subscription.wants("v1"), "an added name is answered even if nothing changed");
    }
}
