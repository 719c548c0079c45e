//! Owns the runtime, the store, the publisher and the listeners.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};

use crate::{
    admin,
    config::Config,
    error::{Error, Result},
    frame,
    gate::Gate,
    model,
    policy::{Policy, PolicyConfig},
    publisher::{Orders, Publisher, Report, Shared, first_view},
    store::{Counts, Store},
    translate::TRANSLATION,
    view::Held,
    xds::{
        server::Ads,
        streams::{StreamState, Streams},
    },
};

/// How long a stop waits for streams to end before it cuts them.
const DRAIN: Duration = Duration::from_secs(5);

/// A running engine. Dropping it without [`Engine::close`] stops its threads without draining.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    streams: Arc<Streams>,
    draining: watch::Sender<bool>,
    running: Mutex<Option<Running>>,
    handle: Handle,
    listeners: Mutex<Listeners>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Running {
    runtime: Runtime,
    publisher: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Listeners {
    bound: Option<Bound>,
    servers: Vec<JoinHandle<()>>,
}

/// Where the engine listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// The MoX listener.
    pub mox: SocketAddr,
    /// The admin pages, if they have a listener of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
}

/// What a flush answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flushed {
    /// Served services.
    pub services: usize,
    /// Served endpoints.
    pub endpoints: u64,
    /// `version_info` of the served ServiceEntries.
    pub version: String,
    /// Why the served state is not the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// Everything an operator wants to know at a glance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of this library.
    pub release: &'static str,
    /// See [`TRANSLATION`].
    pub translation: u32,
    /// Where it listens.
    pub listening: Option<Bound>,
    /// What is served.
    pub served: Flushed,
    /// Its encoded size in bytes.
    pub bytes: usize,
    /// What the registry said.
    pub store: Counts,
    /// What the publisher made of it.
    pub publisher: Report,
    /// Hash of the policy.
    pub policy: String,
    /// Who is connected.
    pub streams: Vec<StreamState>,
    /// Responses sent, without priming.
    pub pushes: u64,
    /// Their size in bytes.
    pub pushed_bytes: u64,
    /// Responses that a client did not accept.
    pub nacks: u64,
}

impl Engine {
    /// Starts the engine's threads. Events are taken from now on; nothing listens yet.
    pub fn open(config: Config) -> Result<Self> {
        let policy = Policy::new(config.policy.clone(), config.vip_cidr)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads)
            .thread_name("mox")
            .enable_all()
            .build()
            .map_err(|error| Error::Internal(format!("the runtime does not start: {error}")))?;
        let gate = Gate::new(&config);
        let shared = Arc::new(Shared {
            store: Store::new(config.limits.store()),
            policy: ArcSwap::from_pointee(policy),
            view: watch::Sender::new(first_view()),
            flushed: watch::Sender::new(0),
            orders: Mutex::new(Orders::default()),
            report: Mutex::new(Report { held: Some(Held::NotLoaded), ..Report::default() }),
            config,
        });
        let handle = runtime.handle().clone();
        let publisher = runtime.spawn(Publisher::new(Arc::clone(&shared), gate).run());
        Ok(Self {
            shared,
            streams: Arc::default(),
            draining: watch::Sender::new(false),
            running: Mutex::new(Some(Running { runtime, publisher })),
            handle,
            listeners: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// Applies a packed frame and returns the sequence number of its last event. A malformed frame changes nothing; an
    /// event that meets a limit is dropped and the others are applied.
    pub fn apply(&self, frame: &[u8]) -> Result<u64> {
        let events = frame::decode(frame)?;
        let now = model::now();
        let (mut sequence, mut refused) = (0, None);
        for event in events {
            match self.shared.store.apply(&event, now) {
                Ok(applied) => sequence = applied,
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(sequence), Err)
    }

    /// Binds the listeners and serves; a second call answers the same addresses. All bind or none.
    pub fn listen(self: &Arc<Self>) -> Result<Bound> {
        let mut listeners = self.listeners.lock();
        if let Some(bound) = listeners.bound {
            return Ok(bound);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let config = &self.shared.config;
        let (mox, mox_address) = self.bind(config.listen)?;
        let admin = config.admin_listen.map(|address| self.bind(address)).transpose()?;
        let bound = Bound { mox: mox_address, admin: admin.as_ref().map(|(_, address)| *address) };
        let ads = Ads::new(config, self.shared.view.subscribe(), self.draining.subscribe(), Arc::clone(&self.streams));
        listeners.servers.push(self.handle.spawn(async move {
            if let Err(error) = ads.serve(mox).await {
                tracing::error!(%error, "the MoX listener failed");
            }
        }));
        if let Some((admin, _)) = admin {
            let served = admin::serve(admin, Arc::downgrade(self), self.draining.subscribe());
            listeners.servers.push(self.handle.spawn(served));
        }
        listeners.bound = Some(bound);
        self.order(|orders| orders.listening_since = Some(Instant::now()));
        tracing::info!(mox = %bound.mox, "listening");
        Ok(bound)
    }

    fn bind(&self, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
        let bound = std::net::TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let _in_runtime = self.handle.enter();
            let listener = TcpListener::from_std(listener)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        });
        bound.map_err(|source| Error::Bind { address, source })
    }

    /// Says that the first complete view is in: serving starts.
    pub fn loaded(&self) {
        self.order(|orders| orders.loaded = true);
    }

    /// Keeps what is served as it is until [`Engine::thaw`].
    pub fn freeze(&self) {
        self.order(|orders| orders.frozen = true);
    }

    /// Ends a freeze; what changed meanwhile is served.
    pub fn thaw(&self) {
        self.order(|orders| orders.frozen = false);
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.shared.orders.lock());
        self.shared.store.wake();
    }

    /// Replaces the policy; returns its hash. A document with a mistake changes nothing.
    pub fn set_policy(&self, config: PolicyConfig) -> Result<String> {
        let policy = Policy::new(config, self.shared.config.vip_cidr)?;
        let hash = policy.hash().to_owned();
        self.shared.policy.store(Arc::new(policy));
        self.shared.store.wake();
        Ok(hash)
    }

    /// Waits until the served snapshot contains every event that was applied before. Never waits for a client.
    pub async fn flush(&self) -> Flushed {
        let mut flushed = self.shared.flushed.subscribe();
        let ticket = {
            let mut orders = self.shared.orders.lock();
            orders.flushes += 1;
            orders.flushes
        };
        self.shared.store.wake();
        // The sender lives as long as `self`.
        let _ = flushed.wait_for(|answered| *answered >= ticket).await;
        self.served()
    }

    /// [`Engine::flush`] for a thread that is not the engine's; `None` if it takes longer than `timeout`.
    pub fn flush_within(&self, timeout: Duration) -> Option<Flushed> {
        self.handle.block_on(async { tokio::time::timeout(timeout, self.flush()).await.ok() })
    }

    fn served(&self) -> Flushed {
        let view = self.shared.view.borrow().clone();
        let snapshot = &view.service_entries;
        Flushed {
            services: snapshot.resources(),
            endpoints: snapshot.endpoints(),
            version: snapshot.version().to_string(),
            held: self.shared.report.lock().held,
        }
    }

    /// What the engine is doing.
    pub fn status(&self) -> Status {
        // No lock is held while another is taken.
        let (listening, publisher) = (self.listeners.lock().bound, self.shared.report.lock().clone());
        let bytes = self.view().service_entries.bytes();
        Status {
            release: env!("CARGO_PKG_VERSION"),
            translation: TRANSLATION,
            listening,
            served: self.served(),
            bytes,
            store: self.shared.store.counts(),
            publisher,
            policy: self.shared.policy.load().hash().to_owned(),
            streams: self.streams.list(),
            pushes: self.streams.pushes.load(Ordering::Relaxed),
            pushed_bytes: self.streams.bytes.load(Ordering::Relaxed),
            nacks: self.streams.nacks.load(Ordering::Relaxed),
        }
    }

    /// The view that streams see.
    pub(crate) fn view(&self) -> crate::view::View {
        self.shared.view.borrow().clone()
    }

    /// Ends streams without a last state, waits for them a bounded time, and stops the threads. Must not be called
    /// from one of the engine's own threads; a second call does nothing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let Some(Running { runtime, publisher }) = self.running.lock().take() else { return };
        self.draining.send_replace(true);
        let servers = std::mem::take(&mut self.listeners.lock().servers);
        publisher.abort();
        runtime.block_on(async {
            let all = async {
                for task in servers.into_iter().chain([publisher]) {
                    // One that panicked has stopped as well.
                    let _ = task.await;
                }
            };
            if tokio::time::timeout(DRAIN, all).await.is_err() {
                tracing::warn!("some streams did not end in time and are cut");
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(Running { runtime, .. }) = self.running.lock().take() {
            runtime.shutdown_background();
        }
    }
}
