//! The threads of an engine, which log to the subscriber that is current where they are started.

use std::time::Duration;

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
    runtime: Runtime,
    /// Where the admin listener is configured: its threads, which give way to all others.
    pages: Option<Runtime>,
    /// Closed when the thread of the rounds ends.
    rounds: oneshot::Receiver<()>,
}

impl Threads {
    /// Starts so many workers for streams, the thread of the rounds, and those of the pages where these are wanted.
    pub(super) fn start(workers: usize, with_pages: bool, rounds: Rounds) -> Result<Self> {
        let logs = dispatcher::get_default(Dispatch::clone);
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("mox")
            .on_thread_start({
                let logs = logs.clone();
                move || log_to(&logs)
            })
            .enable_all()
            .build()
            .map_err(|error| Error::Internal(format!("the runtime does not start: {error}")))?;
        let pages = with_pages.then(|| pages_runtime(logs.clone())).transpose()?;
        let rounds = spawn_rounds(rounds, runtime.handle().clone(), logs)?;
        Ok(Self { runtime, pages, rounds })
    }

    /// The workers for streams.
    pub(super) fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// The threads of the pages, where there are any.
    pub(super) fn pages(&self) -> Option<&Handle> {
        self.pages.as_ref().map(Runtime::handle)
    }

    /// Waits a bounded time for these tasks and for the rounds, which were told to end, and stops all threads. Must not be called
    /// from one of them.
    pub(super) fn end(self, tasks: impl Iterator<Item = JoinHandle<()>>) {
        let Self { runtime, pages, rounds } = self;
        runtime.block_on(async {
            let all = async {
                // A task that panicked has stopped as well.
                for task in tasks {
                    let _ = task.await;
                }
                let _ = rounds.await;
            };
            if tokio::time::timeout(DRAIN, all).await.is_err() {
                tracing::warn!(event = "streams_cut", "some streams did not end in time and are cut");
            }
        });
        // What a page still has in hand holds up nobody's stop.
        pages.into_iter().for_each(Runtime::shutdown_background);
        runtime.shutdown_timeout(LAST);
    }

    /// Stops all threads without a wait.
    pub(super) fn cut(self) {
        self.pages.into_iter().chain([self.runtime]).for_each(Runtime::shutdown_background);
    }
}

/// Makes this thread log where the engine's opener does, for as long as the thread lives.
fn log_to(logs: &Dispatch) {
    std::mem::forget(dispatcher::set_default(logs));
}

/// Threads for the admin listener and its pages. Whatever is asked of them, the others come first: in Linux a niceness is a
/// thread's own.
fn pages_runtime(logs: Dispatch) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(MAKING)
        .thread_name("mox-pages")
        .on_thread_start(move || {
            log_to(&logs);
            if let Err(error) = setpriority_process(None, NICE) {
                tracing::warn!(event = "pages_not_nice", %error, "pages are made at the priority of pushes");
            }
        })
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("the runtime of the pages does not start: {error}")))
}

/// Starts the thread of the rounds; the returned channel is closed when the thread ends. The thread is none of the
/// runtime's: a round keeps no stream waiting, and nobody has to take over what a worker of the runtime leaves.
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
