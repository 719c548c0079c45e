//! Orders and questions as JSON, for callers on the other side of a language boundary.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::{self, Config},
    documents::{Name, Row},
    error::{Error, Result},
    host::{
        admin::{self, Answer, Credentials, Page, Request, large::Cursor},
        desk::Written,
        diff,
        documents::{Away, Next},
        engine::Engine,
        explain::beside,
        feed::Feed,
        metrics,
        peers::{self, About},
    },
};

/// An order or a question to the engine.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Command {
    /// Bind the listeners.
    Listen {},
    /// The first complete view is in.
    Loaded {},
    /// Services that could not be read; said before `loaded`, in as many commands as it takes.
    Unknown {
        /// Their dataInfoIds.
        data_info_ids: Vec<Arc<str>>,
    },
    /// How much another session server serves; said before `loaded`.
    Baseline {
        /// Services with endpoints.
        services: usize,
        /// Their endpoints.
        endpoints: usize,
    },
    /// Begin to ask the other session servers something.
    Question {
        /// What is asked.
        about: About,
    },
    /// Take what they answered.
    Answers {
        /// What was asked.
        about: About,
        /// The question, as it was sent.
        target: String,
        /// An answer of each of them.
        answers: Vec<peers::Answer>,
    },
    /// Say what the query of a page is with what the client accepts.
    Accepted {
        /// The query.
        query: String,
        /// The header `Accept`.
        accept: String,
    },
    /// Explain something, with what the other session servers say of it.
    Explain {
        /// The query of the page.
        query: String,
        /// An answer of each of them.
        answers: Vec<beside::Answer>,
    },
    /// Go on with a comparison of what is served here and on another session server, or with a document.
    Diff {
        /// The query of the page.
        query: String,
        /// The session servers that can be asked; `None`: the host looks only if they are wanted.
        #[serde(default)]
        listed: Option<Vec<String>>,
        /// What the one has answered so far.
        #[serde(default)]
        answers: Vec<diff::Answer>,
    },
    /// Set the operator's latch.
    Freeze {},
    /// Release it.
    Thaw {},
    /// The registry stopped its pushes, or goes on with them.
    Stopped {
        /// Which of the two.
        stopped: bool,
    },
    /// Let a held mass deletion or addition through, once.
    Release {},
    /// Replace the policy.
    Policy {
        /// The whole new document: its text, or the value itself.
        policy: Value,
        /// Change nothing, and tell what it would.
        #[serde(default)]
        dry_run: bool,
    },
    /// Wait until every earlier event is in the served snapshot.
    Flush {
        /// How long at most.
        timeout_millis: u64,
    },
    /// Take what the host says of how it follows the data servers.
    Feed {
        /// Body of the request.
        feed: Box<Feed>,
    },
    /// Refuse streams, or take them again.
    Fence {
        /// Which of the two.
        fenced: bool,
    },
    /// Which services have events that no read has borne out in time.
    Unconfirmed {
        /// How many at most.
        limit: usize,
    },
    /// The settings that the host acts on.
    Settings {},
    /// The engine's status.
    Status {},
    /// The same as metrics.
    Metrics {},
    /// An admin request that changes something.
    Change {
        /// Path, `/mox` included.
        path: String,
        /// Query without the question mark.
        #[serde(default)]
        query: String,
        /// Header `If-Match`; empty: none.
        #[serde(default)]
        if_match: String,
        /// The client's credentials.
        #[serde(default)]
        shown: Credentials,
        /// The request's body.
        #[serde(default)]
        body: String,
    },
    /// The documents' rows, as the host read them.
    Rows {
        /// By name; null where there is no row.
        #[serde(default)]
        rows: BTreeMap<Name, Option<Row>>,
        /// Why they could not be read, for pages.
        #[serde(default)]
        failure: Option<String>,
        /// The same for the log.
        #[serde(default)]
        detail: String,
    },
    /// The host is going to read documents.
    AwaitDocuments {},
    /// The host reads no documents, for a reason.
    NoDocuments {
        /// Why.
        why: String,
    },
    /// The outcome of a row that was to be written.
    Written(Written),
    /// The rows were read anew, as another session server asked.
    Refreshed {},
    /// Who this session server is; the answer says whether it is to collect who subscribes to what, and of which groups.
    Visibility {
        /// Its address, and behind a slash what tells this start of it from others.
        server: String,
    },
    /// The subscribers of a session server.
    Consumers {
        /// Its address.
        server: String,
        /// It is this one.
        #[serde(default)]
        own: bool,
        /// They are the same as it had before.
        #[serde(default)]
        same: bool,
        /// Clients: address, cell and application with a `|` between, or nothing where a place is empty.
        #[serde(default)]
        clients: Vec<String>,
        /// By dataInfoId the places of its clients among those, with spaces between.
        #[serde(default)]
        services: BTreeMap<Arc<str>, String>,
    },
    /// What is other with this session server's subscribers since they were told of; the answer says whether the rest is known.
    ConsumersPart {
        /// Its address.
        server: String,
        /// Clients that are others: their places among all, and behind a space who they are as above, if anybody.
        #[serde(default)]
        clients: Vec<String>,
        /// Services with other clients: the places of all of them.
        #[serde(default)]
        services: BTreeMap<Arc<str>, String>,
    },
    /// Every session server was asked for its subscribers.
    ConsumersRound {
        /// The addresses of all that are to have answered.
        listed: BTreeSet<Arc<str>>,
    },
}

/// Which page is asked for.
#[derive(Debug, Deserialize)]
struct Asked {
    /// Path, `/mox` included.
    path: String,
    /// Query without the question mark.
    #[serde(default)]
    query: String,
}

/// The head of a page's answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    status: u16,
    content_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<u64>,
    /// Where the rest of a large page is to be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<u64>,
}

/// Makes an admin page for a caller on the other side of a language boundary, who takes its bytes as they are: the length of
/// its head in four bytes, big end first, the head as JSON, and the page or the first chunk of a large one.
pub fn open_page(engine: &Engine, request: &[u8]) -> Result<(Vec<u8>, Option<Cursor>)> {
    let Asked { path, query } = serde_json::from_slice(request)
        .map_err(|error| Error::InvalidArgument(format!("this names no page: {error}")))?;
    let (head, body, cursor) = match admin::page(engine, &path, &query) {
        Answer::Page(Page { status, content_type, retry_after, etag, body, forward: _ }) => {
            (Head { status, content_type, retry_after, etag, cursor: None }, Bytes::from(body), None)
        }
        Answer::Large { content_type, cursor } => {
            let head = Head { status: 200, content_type, retry_after: None, etag: None, cursor: Some(cursor.id()) };
            (head, cursor.next()?.unwrap_or_default(), Some(cursor))
        }
    };
    let head = serde_json::to_vec(&head).map_err(|error| Error::Internal(error.to_string()))?;
    Ok(([&(head.len() as u32).to_be_bytes(), &*head, &*body].concat(), cursor))
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
        Command::Unknown { data_info_ids } => {
            engine.unknown(&data_info_ids);
            done
        }
        Command::Baseline { services, endpoints } => {
            engine.baseline(services, endpoints);
            done
        }
        Command::Question { about } => Ok(json!({ "target": engine.peers().question(about)? })),
        Command::Answers { about, target, answers } => to_value(engine.heard(about, &target, &answers)),
        Command::Accepted { query, accept } => Ok(json!({ "query": admin::as_accepted(&query, &accept) })),
        Command::Explain { query, answers } => to_value(admin::explained(engine, &query, answers)),
        Command::Diff { query, listed, answers } => admin::compared(engine, &query, listed.as_deref(), &answers),
        Command::Freeze {} => {
            engine.freeze();
            done
        }
        Command::Thaw {} => {
            engine.thaw();
            done
        }
        Command::Stopped { stopped } => {
            engine.stopped(stopped);
            done
        }
        Command::Release {} => {
            engine.release()?;
            done
        }
        Command::Policy { policy, dry_run } => {
            let namespace = &engine.config().namespace;
            let policy = match policy {
                Value::String(text) => admin::read_policy(text.as_bytes(), namespace)?,
                document => config::policy_from_json(document, namespace)?,
            };
            if dry_run {
                return to_value(engine.dry_run(policy)?.told()?);
            }
            let hash = engine.set_policy(policy)?;
            Ok(json!({ "hash": hash, "unmatched": engine.unmatched() }))
        }
        Command::Flush { timeout_millis } => {
            let flushed = engine.flush_within(Duration::from_millis(timeout_millis));
            to_value(flushed.ok_or(Error::Timeout { what: "flush", millis: timeout_millis })?)
        }
        Command::Feed { feed } => {
            engine.feed(*feed);
            done
        }
        Command::Fence { fenced } => {
            engine.fence(fenced);
            done
        }
        Command::Unconfirmed { limit } => Ok(json!({ "dataInfoIds": engine.unconfirmed(limit) })),
        Command::Settings {} => {
            let Config { scope, cluster, protect, .. } = engine.config();
            let millis = |duration: Duration| duration.as_millis() as u64;
            Ok(json!({
                "scope": scope,
                "debounceMillis": millis(cluster.debounce),
                "reconcileMillis": millis(cluster.reconcile),
                "reads": cluster.reads,
                "syncPort": cluster.sync_port,
                "maxStalenessMillis": millis(protect.max_staleness),
                "documents": engine.document_keys(),
            }))
        }
        Command::Change { path, query, if_match, shown, body } => {
            let request = Request { path: &path, query: &query, if_match: &if_match, body: body.as_bytes() };
            next(admin::ask(engine, &shown, request))
        }
        Command::Rows { rows, failure, detail } => {
            let writes = engine.documents_read(failure.map_or(Ok(rows), |why| Err(Away { why, detail })));
            Ok(json!({ "writes": writes, "read": engine.visibility_keys() }))
        }
        Command::AwaitDocuments {} => {
            engine.await_documents();
            done
        }
        Command::NoDocuments { why } => {
            engine.documents_off(&why);
            done
        }
        Command::Written(written) => next(engine.documents_written(written)),
        Command::Visibility { server } => Ok(engine.collects(&server)),
        Command::Consumers { server, own, same: true, .. } => {
            Ok(json!({ "known": engine.consumers_same(&server, own) }))
        }
        Command::Consumers { server, own, clients, services, .. } => {
            Ok(json!({ "due": engine.consumers(&server, own, &clients, services) }))
        }
        Command::ConsumersPart { server, clients, services } => {
            let (known, due) = engine.consumers_part(&server, &clients, services);
            Ok(json!({ "known": known, "due": due }))
        }
        Command::ConsumersRound { listed } => Ok(json!({ "due": engine.consumers_round(&listed) })),
        Command::Refreshed {} => to_value(engine.refreshed()),
        Command::Status {} => to_value(engine.status()),
        Command::Metrics {} => Ok(json!({ "metrics": metrics::of(&engine.status()) })),
    }
}

/// A page, or what the host is to do before there is one.
fn next(next: Next) -> Result<Value> {
    match next {
        Next::Page(page) => to_value(page),
        Next::Write(order) => Ok(json!({ "write": order })),
        Next::Refresh => Ok(json!({ "refresh": true })),
    }
}

fn to_value(answer: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(answer).map_err(|error| Error::Internal(error.to_string()))
}
