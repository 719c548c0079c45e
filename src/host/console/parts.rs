//! What several pages are made of.

use maud::{Markup, html};
use serde_json::Value;

use crate::host::admin::query;

/// A service's own page.
pub(super) fn link(service: &str) -> String {
    format!("/mox/services/{}", query::encoded(service))
}

/// A table that scrolls by itself where the window is narrow, which a keyboard can do, too.
pub(super) fn scrolling(name: &str, table: &Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(name) { (table) } }
}

/// Buttons with the token that they need, and where answers appear.
pub(super) fn with_token(buttons: &Markup) -> Markup {
    html! {
        p { label { "Token (" code { "mox.admin.token" } "), kept in the memory of this page alone" input #token type="password" autocomplete="off"; } }
        p { (buttons) }
        pre #answer tabindex="-1" aria-live="polite" {}
    }
}

/// A text of JSON, or the JSON itself.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
