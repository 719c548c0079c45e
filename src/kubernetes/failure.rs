//! Why a request to the API server failed, and what that says about other requests.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use super::objects::{GROUP, ObjectKind};

/// Most characters of the API server's words that are kept: admission webhooks repeat what publishers wrote.
const MAX_MESSAGE: usize = 500;

/// Why a request did not do what it should.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// The API server refused the request.
    Refused { code: u16, message: Arc<str>, retry_after: Option<Duration> },
    /// No answer came, or none that can be read.
    Unreachable(Arc<str>),
}

/// The meaning of a failed write for the writes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The API server wants to be left alone for a while: no write goes out meanwhile.
    Pause,
    /// No answer for this object. The API server may be down, or a webhook hangs on this very object: all writes pause
    /// only when another object has no answer either.
    Suspect,
    /// The object is not in the state that was known; the watch will show its new one.
    Refresh,
    /// Likely no object of this kind can be written: no such namespace, no such kind, no right to it.
    Bar,
    /// The API server refuses this very object.
    Shelve,
}

impl Failure {
    pub(super) fn refused(code: u16, message: &str, retry_after: Option<Duration>) -> Self {
        Self::Refused { code, message: shortened(message).into(), retry_after }
    }

    pub(super) fn unreachable(message: impl AsRef<str>) -> Self {
        Self::Unreachable(shortened(message.as_ref()).into())
    }

    /// From an error and its sources.
    pub(super) fn of_error(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            // Many errors repeat their source.
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = error.source();
        }
        Self::unreachable(text)
    }

    /// HTTP status of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable(_) => None,
        }
    }

    pub(super) fn message(&self) -> &Arc<str> {
        let (Self::Refused { message, .. } | Self::Unreachable(message)) = self;
        message
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable(_) => None,
        }
    }

    /// Whether the write may have been done, or may still be.
    pub(super) fn leaves_doubt(&self) -> bool {
        self.code().is_none_or(|code| code >= 500)
    }

    /// The meaning of this failure of a write of an object of `kind`.
    pub(super) fn remedy(&self, kind: ObjectKind) -> Remedy {
        let Self::Refused { code, message, retry_after } = self else { return Remedy::Suspect };
        match code {
            // A webhook chooses status, words and Retry-After of its refusal; the API server puts these words before them.
            _ if message.starts_with("admission webhook ") => Remedy::Shelve,
            401 | 429 => Remedy::Pause,
            502..=504 => Remedy::Suspect,
            _ if retry_after.is_some() => Remedy::Pause,
            409 => Remedy::Refresh,
            404 if misses_namespace_or_kind(message) => Remedy::Bar,
            404 => Remedy::Refresh,
            403 if forbids_kind(message, kind) => Remedy::Bar,
            _ => Remedy::Shelve,
        }
    }
}

/// Whether a 404 is about more than the object that was to be written.
fn misses_namespace_or_kind(message: &str) -> bool {
    message.starts_with("namespaces \"")
        || message.contains("page not found")
        || message.contains("could not find the requested resource")
}

/// Whether a 403 is RBAC's own (`… is forbidden: User "u" cannot patch resource "serviceentries" in API group …`) or that
/// of a namespace that is being deleted. Quotas and admission policies answer 403 as well, but for one object, and in words
/// that may hold what a publisher wrote: so the message is read from its beginning, which is the API server's.
fn forbids_kind(message: &str, kind: ObjectKind) -> bool {
    let of_kind = message.strip_prefix(kind.plural()).and_then(|rest| rest.strip_prefix('.')?.strip_prefix(GROUP));
    // The object's name, where the request has one, is a DNS name and holds no quote.
    let named = of_kind.and_then(|rest| match rest.strip_prefix(" \"") {
        Some(rest) => rest.split_once('"').map(|(_, rest)| rest),
        None => Some(rest),
    });
    let Some(why) = named.and_then(|rest| rest.strip_prefix(" is forbidden: ")) else { return false };
    let missing_right =
        why.strip_prefix("User \"").and_then(|rest| rest.split_once("\" cannot ")).and_then(|(_, rest)| {
            let (_verb, rest) = rest.split_once(' ')?;
            rest.strip_prefix("resource \"")?.strip_prefix(kind.plural())?.strip_prefix('"')
        });
    missing_right.is_some() || why.starts_with("unable to create new content in namespace ")
}

/// At most [`MAX_MESSAGE`] characters of a text.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, message, .. } => write!(f, "{code}: {message}"),
            Self::Unreachable(message) => f.write_str(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(code: u16, message: &str) -> Remedy {
        Failure::refused(code, message, None).remedy(ObjectKind::ServiceEntry)
    }

    /// As kube-apiserver 1.35 says it of a user without the right.
    const RBAC: &str = "serviceentries.networking.istio.io \"com.example.demo\" is forbidden: User \
                        \"system:serviceaccount:sofa-registry:session\" cannot patch resource \"serviceentries\" in API \
                        group \"networking.istio.io\" in the namespace \"mesh\"";

    #[test]
    fn refusals_are_told_apart() {
        let terminating = "serviceentries.networking.istio.io \"a\" is forbidden: unable to create new content in \
                           namespace x because it is being terminated";
        let quota = "serviceentries.networking.istio.io \"a\" is forbidden: exceeded quota: q";
        let cases = [
            (403, RBAC, Remedy::Bar),
            (403, terminating, Remedy::Bar),
            (403, quota, Remedy::Shelve),
            (404, "namespaces \"x\" not found", Remedy::Bar),
            (404, "404 page not found", Remedy::Bar),
            (404, "the server could not find the requested resource", Remedy::Bar),
            (404, "serviceentries.networking.istio.io \"a\" not found", Remedy::Refresh),
            (409, "the object has been modified", Remedy::Refresh),
            (422, "is invalid", Remedy::Shelve),
            (500, "etcdserver: request is too large", Remedy::Shelve),
            (503, "the server is currently unable to handle the request", Remedy::Suspect),
            (504, "Timeout: request did not complete within the allotted timeout", Remedy::Suspect),
            (429, "", Remedy::Pause),
            (401, "Unauthorized", Remedy::Pause),
        ];
        for (code, message, expected) in cases {
            assert_eq!(remedy(code, message), expected, "{code} {message}");
        }
        let later = Failure::refused(500, "", Some(Duration::from_secs(1)));
        assert_eq!(later.remedy(ObjectKind::ServiceEntry), Remedy::Pause);
        assert_eq!(Failure::unreachable("reset").remedy(ObjectKind::ServiceEntry), Remedy::Suspect);
    }

    #[test]
    fn no_refusal_of_one_object_passes_for_one_of_its_kind() {
        let webhook = format!("admission webhook \"v.example.com\" denied the request: {RBAC}");
        let policy = "serviceentries.networking.istio.io \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' \
                      denied request: User \"x\" cannot patch resource \"serviceentries\"";
        for message in [
            webhook.as_str(),
            policy,
            "[hosts] host a cannot be used in this cluster",
            "User \"x\" cannot patch resource \"serviceentries\" in API group \"networking.istio.io\"",
            "serviceentries.networking.istio.io \"a\" is forbidden: a namespace that is being terminated",
        ] {
            assert_eq!(remedy(403, message), Remedy::Shelve, "{message}");
        }
        assert_eq!(
            Failure::refused(403, RBAC, None).remedy(ObjectKind::WorkloadEntry),
            Remedy::Shelve,
            "another kind's"
        );
        // A webhook chooses the status and Retry-After of its answer, too.
        for code in [404, 429, 503] {
            let failure = Failure::refused(code, &webhook, Some(Duration::from_secs(3)));
            assert_eq!(failure.remedy(ObjectKind::ServiceEntry), Remedy::Shelve);
        }
    }

    #[test]
    fn messages_are_kept_short() {
        let failure = Failure::refused(422, &"ü".repeat(9_999), None);
        assert_eq!(failure.message().chars().count(), MAX_MESSAGE + 1);
    }
}
