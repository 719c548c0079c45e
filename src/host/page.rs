//! Pages as they are answered.

use serde::Serialize;

/// Media type of JSON.
pub(super) const JSON: &str = "application/json";

/// How many there are of something.
pub(super) fn counted(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// The request that other session servers are to get of one that this one has executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// Its path.
    pub path: String,
    /// Its query, without the question mark; empty for none.
    pub query: String,
    /// Its body.
    pub body: String,
}

/// A page.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// After how many seconds to ask again, where that makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// The revision of what it shows, for the `If-Match` of whoever changes that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<u64>,
    /// The text.
    pub body: String,
    /// What the other session servers are to be asked; `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Forward>,
}

impl Page {
    pub(super) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self { content_type: JSON, ..Self::text(200, body + "\n") },
            Err(error) => Self::text(500, format!("{error}\n")),
        }
    }

    pub(super) fn text(status: u16, body: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", retry_after: None, etag: None, body, forward: None }
    }

    /// With what the other session servers are to be asked, if this one did it.
    pub(super) fn with(self, path: &str, query: String, body: String) -> Self {
        let forward = (self.status == 200).then(|| Forward { path: path.to_owned(), query, body });
        Self { forward, ..self }
    }
}
