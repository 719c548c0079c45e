//! Orders and questions as JSON, for callers on the other side of a language boundary.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    admin, config,
    engine::Engine,
    error::{Error, Result},
};

/// One order or question.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Command {
    /// Bind the listeners.
    Listen {},
    /// The first complete view is in.
    Loaded {},
    /// Set the operator's latch.
    Freeze {},
    /// Release it.
    Thaw {},
    /// Let a held mass deletion through, once.
    Release {},
    /// Replace the policy.
    Policy {
        /// The whole new document.
        policy: Value,
    },
    /// Wait until every earlier event is in the served snapshot.
    Flush {
        /// How long at most.
        timeout_millis: u64,
    },
    /// What the engine is doing.
    Status {},
    /// An admin page.
    Page {
        /// Path, `/mox` included.
        path: String,
        /// Query without the question mark.
        #[serde(default)]
        query: String,
    },
}

/// Reads and executes a command on a thread that is not the engine's.
pub fn execute(engine: &Arc<Engine>, request: &[u8]) -> Result<Value> {
    let command: Command = serde_json::from_slice(request)
        .map_err(|error| Error::InvalidArgument(format!("this is no command: {error}")))?;
    let done = Ok(json!({}));
    match command {
        Command::Listen {} => to_value(engine.listen()?),
        Command::Loaded {} => {
            engine.loaded();
            done
        }
        Command::Freeze {} => {
            engine.freeze();
            done
        }
        Command::Thaw {} => {
            engine.thaw();
            done
        }
        Command::Release {} => Err(nothing_held()),
        Command::Policy { policy } => {
            let hash = engine.set_policy(config::policy_from_json(policy)?)?;
            Ok(json!({ "hash": hash }))
        }
        Command::Flush { timeout_millis } => {
            let flushed = engine.flush_within(Duration::from_millis(timeout_millis));
            to_value(flushed.ok_or_else(|| Error::Internal(format!("no flush within {timeout_millis} ms")))?)
        }
        Command::Status {} => to_value(engine.status()),
        Command::Page { path, query } => to_value(admin::page(engine, &path, &query)),
    }
}

/// The answer to a release while no mass deletion is held.
pub fn nothing_held() -> Error {
    Error::InvalidArgument("no mass deletion is held".to_owned())
}

fn to_value(answer: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Error::Internal(error.to_string()))
}
