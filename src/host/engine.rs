//! Owns the threads and what they share; the API of those who embed it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

use crate::{
    catalog::{
        breaker,
        dry_run::{self, DryRun},
        orders::Orders,
        rounds::Rounds,
        shared::Shared,
    },
    config::{Config, Push},
    error::{Error, Result},
    host::{
        admin::{
            large::{Cursor, Large},
            signature::Signatures,
        },
        allowance::Allowance,
        desk::Desk,
        feed::{Feed, LastFeed},
        hour::Hour,
        peers::{About, Answer, Heard, Peers},
        status::{Bound, Flushed, Status, Times},
        threads::{self, Threads},
        unmatched::unmatched,
    },
    kubernetes::{Followed, PodWatch, Sink},
    model,
    policy::{Policy, PolicyConfig},
    registry::frame::{self, Event},
    snapshot::view::{Catalog, View},
    translate::TRANSLATION,
    xds::{
        limits::MaxBytes,
        pace::PaceRule,
        streams::{ClientState, StreamState, Streams, Totals},
    },
};

/// How long a page waits for its turn to walk over all services, of which one does at a time.
const TURN: Duration = Duration::from_secs(2);

/// How long names in a log line may be, in characters.
const LOGGED: usize = 300;

/// How long the answer to a policy waits for the globs that match nothing.
const UNMATCHED: Duration = Duration::from_secs(1);

/// Of clients, and of bytes of streams, a status or a page shows this much.
const SHOWN_CLIENTS: usize = 200;
const SHOWN_STREAMS: usize = 256 << 10;

/// How long the thread of the rounds may take until it has a moment for a dry run.
const OUTLINE: Duration = Duration::from_secs(10);

/// What became of a dry run.
#[derive(Debug)]
pub enum Tried {
    /// What the policy would change.
    Told(Box<DryRun>),
    /// Another is under way.
    Busy,
    /// The first complete view is not in yet.
    TooEarly,
}

impl Tried {
    /// For callers who have no other use for the rest.
    pub fn told(self) -> Result<Box<DryRun>> {
        match self {
            Self::Told(told) => Ok(told),
            Self::Busy => Err(Error::InvalidArgument("another dry run is under way; ask again in a second".to_owned())),
            Self::TooEarly => {
                let text = "the view is not complete, so it is not known what a policy would change; ask again later";
                Err(Error::InvalidArgument(text.to_owned()))
            }
        }
    }
}

/// A running engine. Dropping it without [`Engine::close`] stops its threads without draining.
#[derive(Debug)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) streams: Arc<Streams>,
    pub(super) draining: watch::Sender<bool>,
    /// Whether streams are refused, so that clients go to another session server.
    pub(super) fenced: watch::Sender<bool>,
    feed: Mutex<LastFeed>,
    kubernetes: Option<Sink>,
    pub(super) pods: PodWatch,
    large: Arc<Large>,
    pub(super) hour: Arc<Mutex<Hour>>,
    signatures: Signatures,
    peers: Peers,
    /// Held while a dry run is under way; closed once the copy of the last one is let go of.
    trying: Mutex<Option<mpsc::Receiver<()>>>,
    /// Held while a page walks over all services.
    walking: Mutex<()>,
    /// Held by what [`Engine::allow`] lets in.
    allowance: Mutex<Allowance>,
    pub(super) documents: Desk,
    threads: Mutex<Option<Threads>>,
    pub(super) handle: Handle,
    /// Of the threads that serve streams.
    pub(super) serving: Vec<Handle>,
    /// Of the threads that make pages.
    pub(super) pages: Option<Handle>,
    pub(super) listeners: Mutex<Listeners>,
    pub(super) closed: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) bound: Option<Bound>,
    pub(super) servers: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts the engine's threads, which log to the subscriber that is current here. Events are taken from now on; nothing
    /// listens yet.
    pub fn open(config: Config) -> Result<Self> {
        let shared = Arc::new(Shared::new(config)?);
        let (config, policy) = (&shared.config, shared.policy.load_full());
        let Push { duty, max, .. } = config.push;
        let streams = Arc::new(Streams::new(PaceRule { duty, max }, MaxBytes::from(&config.limits)));
        let threads = Threads::start(config.threads, config.admin_listen.is_some(), Rounds::new(Arc::clone(&shared)))?;
        let handle = threads.handle().clone();
        let (draining, fenced) = (watch::Sender::new(false), watch::Sender::new(false));
        let followed =
            Followed { view: shared.view.subscribe(), fenced: fenced.subscribe(), draining: draining.subscribe() };
        let kubernetes = Sink::start(&shared.config, &handle, followed);
        let pods = PodWatch::start(&shared.config.kubernetes, &handle);
        let documents = Desk::new(&shared.config, policy);
        let peers = Peers::new(shared.config.admin.token.as_ref().map_or(&[][..], |token| token.key()));
        let engine = Self {
            shared,
            streams,
            draining,
            fenced,
            feed: Mutex::default(),
            kubernetes,
            pods,
            large: Arc::default(),
            hour: Arc::default(),
            signatures: Signatures::new(model::date()),
            peers,
            trying: Mutex::default(),
            walking: Mutex::default(),
            allowance: Mutex::new(Allowance::new(Instant::now())),
            documents,
            pages: threads.pages().cloned(),
            serving: threads.serving().cloned().collect(),
            threads: Mutex::new(Some(threads)),
            handle,
            listeners: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        engine.put_kept_in_force();
        Ok(engine)
    }

    /// Applies a packed frame and returns the sequence number of its last event. A malformed frame changes nothing; an
    /// event that meets a limit is dropped and the others are applied.
    pub fn apply(&self, frame: &[u8]) -> Result<u64> {
        let events = frame::decode(frame)?;
        let clock = &self.shared.clock;
        let (mut sequence, mut refused) = (0, None);
        let _batch = events.is_batch().then(|| self.shared.store.wake().batch());
        for event in events {
            let now = match event {
                // Whether a read began before another one ended is a question of less than a tick.
                Event::Replace { .. } | Event::Piece { .. } => clock.now(),
                Event::Publish { .. } | Event::Unpublish { .. } | Event::Lost { .. } => clock.tick(),
            };
            match self.shared.store.apply(&event, now) {
                Ok(applied) => sequence = applied,
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(sequence), Err)
    }

    /// Says that the first complete view is in: serving starts.
    pub fn loaded(&self) {
        self.order(|orders| orders.loaded = true);
    }

    /// Says before [`Engine::loaded`] how much another session server serves: where no last good state is kept, a first view
    /// that has much less is held back for a while.
    pub fn baseline(&self, services: usize, endpoints: usize) {
        self.order(|orders| orders.baseline = Some(breaker::Totals { services, endpoints }));
    }

    /// Keeps what is served as it is until [`Engine::thaw`].
    pub fn freeze(&self) {
        self.order(|orders| orders.frozen = true);
    }

    /// Ends a freeze of this server, and has that of all session servers not count here until they are frozen or thawed anew, or
    /// this one starts anew; what changed meanwhile is served.
    pub fn thaw(&self) {
        self.order(|orders| (orders.frozen, orders.ordered) = (false, false));
    }

    /// The orders as they stand.
    pub(super) fn orders(&self) -> Orders {
        *self.shared.orders.lock()
    }

    pub(super) fn order(&self, change: impl FnOnce(&mut Orders)) {
        let frozen = {
            let mut orders = self.shared.orders.lock();
            change(&mut orders);
            orders.is_frozen()
        };
        self.kubernetes.iter().for_each(|sink| sink.freeze(frozen));
        self.shared.store.wake().wake();
    }

    /// Whether the registry has stopped its pushes; a latch of its own beside [`Engine::freeze`].
    pub fn stopped(&self, stopped: bool) {
        self.order(|orders| orders.stopped = stopped);
    }

    /// Takes what the host says of how it follows the data servers.
    pub fn feed(&self, feed: Feed) {
        self.feed.lock().take(feed);
    }

    /// What this server asks of the other session servers, and answers them.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Takes the other session servers' answers to a question; says which count, and logs once a minute that some do not.
    pub fn heard(&self, about: About, target: &str, answers: &[Answer]) -> Heard {
        let heard = self.peers.hear(about, target, answers);
        if heard.unsigned > 0 && self.feed.lock().may_log("answers-unsigned") {
            tracing::warn!(
                event = "answers_unsigned",
                servers = heard.unsigned,
                "answers of session servers that meta lists do not count, since they are not signed with mox.admin.token; it must be \
                 the same on all session servers, and their release as new as this one"
            );
        }
        heard
    }

    /// Ends the streams and refuses new ones, so that clients go to another session server; or ends that.
    pub fn fence(&self, fenced: bool) {
        if self.fenced.send_replace(fenced) != fenced {
            tracing::warn!(
                event = "fenced",
                fenced,
                "streams are refused while another session server has fresher data"
            );
        }
    }

    /// Says before [`Engine::loaded`] which services of the registry could not be read: what was served of them last stays
    /// until a read of them is applied.
    pub fn unknown(&self, ids: &[Arc<str>]) {
        self.shared.store.set_unknown(ids);
    }

    /// Services of the registry whose events no read has borne out in time.
    pub fn unconfirmed(&self, limit: usize) -> Vec<Arc<str>> {
        self.shared.store.unconfirmed(self.shared.clock.tick(), limit)
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Lets a held mass deletion or addition through, once; an error where none is held.
    pub fn release(&self) -> Result<()> {
        let in_kubernetes = self.kubernetes.as_ref().is_some_and(Sink::release);
        let is_held = {
            let report = self.shared.report.lock();
            report.withheld.is_some() || report.waiting.is_some() || report.narrowing.is_some()
        };
        if !is_held {
            if in_kubernetes {
                return Ok(());
            }
            return Err(Error::InvalidArgument("no mass deletion or addition is held".to_owned()));
        }
        self.order(|orders| orders.release = true);
        Ok(())
    }

    /// Checks a policy, and compiles it.
    pub(super) fn compiled(&self, config: PolicyConfig) -> Result<Arc<Policy>> {
        Policy::new(config, &self.shared.config.vip_cidr, &self.shared.config.namespace).map(Arc::new)
    }

    /// Puts a policy in force.
    pub(super) fn put_policy(&self, policy: Arc<Policy>) {
        self.shared.policy.store(policy);
        self.shared.store.wake().wake();
    }

    /// Tells what a policy would change, without a change of anything. It takes as long as the caller's thread needs to make
    /// everything anew that is served, so one is made at a time. An error names the mistakes of the document.
    pub fn dry_run(&self, config: PolicyConfig) -> Result<Tried> {
        let policy = Policy::new(config, &self.shared.config.vip_cidr, &self.shared.config.namespace)?;
        let Some(mut last) = self.trying.try_lock() else { return Ok(Tried::Busy) };
        // Two threads that take and give back the same memory are slower than one after the other.
        last.take().inspect(|gone| _ = gone.recv());
        let outlined = self.shared.outline();
        self.shared.store.wake().wake();
        let timeout = || Error::Timeout { what: "dry run", millis: OUTLINE.as_millis() as u64 };
        let outlined = outlined.recv_timeout(OUTLINE).map_err(|_| timeout())?;
        let Some((outline, view)) = outlined else { return Ok(Tried::TooEarly) };
        let now = self.shared.clock.now();
        let trial = dry_run::run(outline, &view, &self.shared.store, policy, now).map_err(Error::Internal)?;
        let told = trial.told().map_err(Error::Internal)?;
        // Who asked need not wait until that is let go of.
        let (going, gone) = mpsc::channel();
        *last = Some(gone);
        drop(self.handle.spawn_blocking(move || drop((trial, going))));
        Ok(Tried::Told(Box::new(told)))
    }

    /// The hash of the policy in force.
    pub(super) fn policy_hash(&self) -> String {
        self.shared.policy.load().hash().to_owned()
    }

    /// The globs of the policy in force that match nothing, for a thread that is not the engine's: another looks for them. `None`
    /// while nothing is known of the registry, or if it takes longer than a second.
    pub fn unmatched(&self) -> Option<Vec<String>> {
        let shared = Arc::clone(&self.shared);
        let (tell, told) = mpsc::sync_channel(1);
        // Where the engine is being closed nobody tells.
        self.handle.spawn_blocking(move || drop(tell.send(unmatched(&shared.store, &shared.policy.load_full()))));
        let unmatched = told.recv_timeout(UNMATCHED).ok()??;
        if !unmatched.is_empty() {
            let globs: String = unmatched.join(", ").chars().take(LOGGED).collect();
            tracing::warn!(
                event = "policy_globs_unmatched",
                count = unmatched.len(),
                globs,
                "globs of the policy match nothing"
            );
        }
        Some(unmatched)
    }

    /// Waits until the served snapshot contains every event that was applied before. Never waits for a client.
    pub async fn flush(&self) -> Flushed {
        let mut flushed = self.shared.flushed.subscribe();
        let ticket = {
            let mut orders = self.shared.orders.lock();
            orders.flushes += 1;
            orders.flushes
        };
        self.shared.store.wake().wake();
        // The sender lives as long as `self`.
        let _ = flushed.wait_for(|answered| *answered >= ticket).await;
        self.served()
    }

    /// [`Engine::flush`] for a thread that is not the engine's; `None` if it takes longer than `timeout`.
    pub fn flush_within(&self, timeout: Duration) -> Option<Flushed> {
        threads::wait(timeout, self.flush())
    }

    fn served(&self) -> Flushed {
        let view = self.shared.view.borrow().clone();
        let (services, workloads) = (&view.service_entries, &view.workload_entries);
        Flushed {
            services: services.resources(),
            endpoints: services.endpoints() + workloads.endpoints(),
            version: services.version().to_string(),
            workload_version: (workloads.resources() > 0).then(|| workloads.version().to_string()),
            held: self.shared.report.lock().held,
        }
    }

    /// The engine's status.
    pub fn status(&self) -> Status {
        // No lock is held while another is taken.
        let (listening, rounds) = (self.listeners.lock().bound.clone(), self.shared.report.lock().summary());
        let ((clients, totals), streams) = (self.clients(), self.streams(0));
        let View { service_entries, workload_entries, .. } = self.view();
        let bytes = service_entries.bytes() + workload_entries.bytes();
        Status {
            release: env!("CARGO_PKG_VERSION"),
            translation: TRANSLATION,
            listening,
            scope: self.shared.config.scope,
            served: self.served(),
            fenced: *self.fenced.borrow(),
            feed: self.feed.lock().feed().cloned(),
            bytes,
            store: self.shared.store.counts(),
            dropped: self.shared.store.dropped(),
            rounds,
            policy: self.policy_hash(),
            documents: self.documents_status(),
            visibility: self.visibility_status(),
            clients_left_out: totals.clients - clients.len(),
            // Streams come and go meanwhile.
            streams_left_out: totals.streams.saturating_sub(streams.len()),
            totals,
            clients,
            streams,
            pushes: self.streams.pushes.load(Ordering::Relaxed),
            pushed_bytes: self.streams.bytes.load(Ordering::Relaxed),
            nacks: self.streams.nacks.load(Ordering::Relaxed),
            slow_readers: self.streams.slow.load(Ordering::Relaxed),
            refused: self.streams.refused.load(Ordering::Relaxed),
            stream_bytes: self.streams.budget.held(),
            pinned_bytes: self.view().pinned(),
            relieved: self.streams.relieved.load(Ordering::Relaxed),
            floods: self.streams.floods.load(Ordering::Relaxed),
            over_budget: self.streams.budget.refused(),
            pages: self.large.counts(),
            times: Times { published: self.shared.published.counted(), responses: self.streams.times.counted() },
            kubernetes: self.kubernetes.as_ref().map(Sink::report),
        }
    }

    /// The last hour in numbers.
    pub fn hour(&self) -> &Mutex<Hour> {
        &self.hour
    }

    /// The turn of a page that walks over all services; `None`: others took theirs for too long.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.walking.try_lock_for(TURN)
    }

    /// Lets in who needs no token for what costs as much as a dry run, while the [`Allowance`] lasts: an error says in how many
    /// seconds it is time again.
    pub(super) fn allow<T>(&self, make: impl FnOnce() -> T) -> std::result::Result<T, u32> {
        let Some(mut allowance) = self.allowance.try_lock() else { return Err(1) };
        let began = Instant::now();
        allowance.ask(began)?;
        let made = make();
        allowance.take(began.elapsed());
        Ok(made)
    }

    /// What the rounds share with pages.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether anybody can connect, whether streams are refused, and the host's last report of the data servers.
    pub(super) fn reached(&self) -> (bool, bool, Option<Feed>) {
        let listening = self.listeners.lock().bound.is_some();
        (listening, *self.fenced.borrow(), self.feed.lock().feed().cloned())
    }

    /// Clients as a page shows them, and all streams in numbers.
    pub(crate) fn clients(&self) -> (Vec<ClientState>, Totals) {
        self.streams.clients(SHOWN_CLIENTS)
    }

    /// Streams as a page shows them, from one on.
    pub(crate) fn streams(&self, from: usize) -> Vec<StreamState> {
        self.streams.list(from, SHOWN_STREAMS)
    }

    /// Counts a connection that is not served.
    pub(crate) fn count_refused(&self) {
        self.streams.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Signatures of requests that other session servers passed on.
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// The place of the large page that is being read.
    pub fn large(&self) -> &Arc<Large> {
        &self.large
    }

    /// Leaves a large page to who knows its number, for as long as that reads it.
    pub fn keep(&self, cursor: Cursor) {
        cursor.keep(&self.handle);
    }

    /// The part that writes to the Kubernetes API, if it is switched on.
    pub fn kubernetes(&self) -> Option<&Sink> {
        self.kubernetes.as_ref()
    }

    /// Takes the turn of the pages that walk over all services.
    #[cfg(feature = "testing")]
    pub fn hold_turn(&self) -> MutexGuard<'_, ()> {
        self.walking.lock()
    }

    /// Follows the view that streams see.
    #[cfg(feature = "testing")]
    pub fn watch(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }

    /// The view that streams see.
    pub(crate) fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// Ends streams without a last state, waits for them a bounded time, and stops the threads. Must not be called
    /// from one of the engine's own threads; a second call does nothing.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let Some(threads) = self.threads.lock().take() else { return };
        self.draining.send_replace(true);
        self.large.end();
        let servers = std::mem::take(&mut self.listeners.lock().servers);
        self.shared.store.wake().stop();
        threads.end(servers.into_iter().chain(self.kubernetes.as_ref().and_then(Sink::take_task)));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.lock().take() {
            self.shared.store.wake().stop();
            threads.cut();
        }
    }
}
