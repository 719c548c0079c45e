//! Pages as they are answered.

use serde::Serialize;

/// Media type of JSON.
pub(super) const JSON: &str = "application/json";

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
    /// The text.
    pub body: String,
}

impl Page {
    pub(super) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self { content_type: JSON, ..Self::text(200, body + "\n") },
            Err(error) => Self::text(500, format!("{error}\n")),
        }
    }

    pub(super) fn text(status: u16, body: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", retry_after: None, body }
    }
}
