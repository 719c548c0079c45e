//! Who is connected, for status.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::Serialize;

/// What is known of one type on one stream.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeState {
    /// Version of the last response.
    pub sent: Option<String>,
    /// Version of the last accepted response.
    pub acked: Option<String>,
    /// The client's words on what it did not accept.
    pub error: Option<String>,
    /// Responses so far.
    pub pushes: u64,
}

/// What is known of one stream.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamState {
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The client's own name for itself; not unique.
    pub node: String,
    /// By type URL.
    pub types: BTreeMap<String, TypeState>,
}

/// All streams of a server.
#[derive(Debug, Default)]
pub struct Streams {
    open: Mutex<BTreeMap<u64, Arc<Mutex<StreamState>>>>,
    next: AtomicU64,
    /// Responses sent, without priming.
    pub pushes: AtomicU64,
    /// Bytes of those.
    pub bytes: AtomicU64,
    /// Responses that a client did not accept.
    pub nacks: AtomicU64,
}

/// Removes its stream from the list when dropped.
#[derive(Debug)]
pub struct Registered {
    streams: Arc<Streams>,
    id: u64,
    /// What is shown of the stream.
    pub state: Arc<Mutex<StreamState>>,
}

impl Streams {
    /// Adds a stream, unless there are `limit` already.
    pub fn register(self: &Arc<Self>, peer: Option<SocketAddr>, limit: usize) -> Option<Registered> {
        let mut open = self.open.lock();
        if open.len() >= limit {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(Mutex::new(StreamState { peer, node: String::new(), types: BTreeMap::new() }));
        open.insert(id, Arc::clone(&state));
        Some(Registered { streams: Arc::clone(self), id, state })
    }

    /// The streams at present, oldest first.
    pub fn list(&self) -> Vec<StreamState> {
        let open: Vec<_> = self.open.lock().values().map(Arc::clone).collect();
        open.iter().map(|state| state.lock().clone()).collect()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.open.lock().remove(&self.id);
    }
}
