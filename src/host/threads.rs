//! The threads of an engine, which log to the subscriber that is current where they are started.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::process::setpriority_process;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
    task::JoinHandle,
};
use tracing::{Dispatch, dispatcher};

use crate::{
    catalog::rounds::Rounds,
    error::{Error, Result},
};

/// How long an end waits for streams to end before it cuts them.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it waits after that for what cannot be cut.
const LAST: Duration = Duration::from_secs(1);

/// How far the threads of the pages stand behind the others (`nice(1)`): a busy processor is theirs for a tenth.
const NICE: i32 = 10;

/// Pages that are made at a time on the admin listener, beside the thread that serves its connections.
const MAKING: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Threads {
    /// For streams, one thread each; the first is for all other tasks as well.
    serving: Vec<Runtime>,
    /// Where the admin listener is configured: its threads, which give way to all others.
    pages: Option<Runtime>,
    /// Closed when the thread of the rounds ends.
    rounds: oneshot::Receiver<()>,
}

impl Threads {
    /// Starts so many threads for streams, one at least, that of the rounds, and those of the pages where these are wanted.
    pub(super) fn start(serving: usize, with_pages: bool, rounds: Rounds) -> Result<Self> {
        let logs = dispatcher::get_default(Dispatch::clone);
        let failed = |error| Error::Internal(format!("a runtime does not start: {error}"));
        // A runtime each: see `xds::workers`.
        let serving: io::Result<Vec<_>> =
            (0..serving.max(1)).map(|_| one_worker("mox", &logs, || ()).build()).collect();
        let serving = serving.map_err(failed)?;
        let pages = with_pages.then(|| one_worker("mox-pages", &logs, give_way).max_blocking_threads(MAKING).build());
        let pages = pages.transpose().map_err(failed)?;
        let rounds = spawn_rounds(rounds, serving[0].handle().clone(), logs)?;
        Ok(Self { serving, pages, rounds })
    }

    /// The threads for streams.
    pub(super) fn serving(&self) -> impl Iterator<Item = &Handle> {
        self.serving.iter().map(Runtime::handle)
    }

    /// The thread for all other tasks.
    pub(super) fn handle(&self) -> &Handle {
        self.serving[0].handle()
    }

    /// The threads of the pages, where there are any.
    pub(super) fn pages(&self) -> Option<&Handle> {
        self.pages.as_ref().map(Runtime::handle)
    }

    /// Waits a bounded time for these tasks and for the rounds, which were told to end, and stops all threads. Must not be called
    /// from one of them.
    pub(super) fn end(self, tasks: impl Iterator<Item = JoinHandle<()>>) {
        let Self { serving, pages, rounds } = self;
        let ended = wait(DRAIN, async {
            // A task that panicked has stopped as well.
            for task in tasks {
                let _ = task.await;
            }
            let _ = rounds.await;
        });
        if ended.is_none() {
            tracing::warn!(event = "streams_cut", "some streams did not end in time and are cut");
        }
        // What a page still has in hand holds up nobody's stop.
        pages.into_iter().for_each(Runtime::shutdown_background);
        let until = Instant::now() + LAST;
        // The first may have files to write, and so has all the time that the others leave.
        for runtime in serving.into_iter().rev() {
            runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Stops all threads without a wait.
    pub(super) fn cut(self) {
        self.pages.into_iter().chain(self.serving).for_each(Runtime::shutdown_background);
    }
}

/// Waits on this thread, which is none of a runtime's, for what the engine's threads do, and no longer than that: none of them keeps the
/// time of it, since it may be the one that does not go on.
pub(super) fn wait<T>(most: Duration, what: impl Future<Output = T>) -> Option<T> {
    let clock = Builder::new_current_thread().enable_time().build().ok()?;
    clock.block_on(async { tokio::time::timeout(most, what).await.ok() })
}

/// Makes this thread log where the engine's opener does, for as long as the thread lives.
fn log_to(logs: &Dispatch) {
    std::mem::forget(dispatcher::set_default(logs));
}

/// A runtime of one worker, whose threads log to `logs` and begin with this.
fn one_worker(name: &str, logs: &Dispatch, begin: impl Fn() + Send + Sync + 'static) -> Builder {
    let (mut builder, logs) = (Builder::new_multi_thread(), logs.clone());
    builder.worker_threads(1).thread_name(name).enable_all().on_thread_start(move || {
        log_to(&logs);
        begin();
    });
    builder
}

/// Makes this thread stand behind others: whatever is asked of the pages, the others come first. In Linux a niceness is a thread's own.
fn give_way() {
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::warn!(event = "pages_not_nice", %error, "pages are made at the priority of pushes");
    }
}

/// Starts the thread of the rounds; the returned channel is closed when the thread ends. The thread serves no
/// streams, so that a round keeps none waiting.
fn spawn_rounds(rounds: Rounds, handle: Handle, logs: Dispatch) -> Result<oneshot::Receiver<()>> {
    let (ends, ended) = oneshot::channel();
    let run = move || {
        let _ends: oneshot::Sender<()> = ends;
        let _in_runtime = handle.enter();
        dispatcher::with_default(&logs, || rounds.run());
    };
    let started = std::thread::Builder::new().name("mox-publish".to_owned()).spawn(run);
    started.map_err(|error| Error::Internal(format!("the thread of the rounds does not start: {error}")))?;
    Ok(ended)
}
