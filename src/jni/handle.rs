//! Handles for Java: a `long` names a slot and its generation, so a stale or made-up one is an error and never a
//! pointer.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwapOption, Guard};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use tracing::{Dispatch, dispatcher};

use crate::{
    config::Config,
    error::{Error, Result},
    host::{
        engine::Engine,
        log::{Line, Log},
    },
};

const SLOTS: usize = 64;
/// How long a close waits for calls in flight.
const PATIENCE: Duration = Duration::from_secs(5);

struct Slot {
    generation: u32,
    engine: Arc<Engine>,
    /// The engine's subscriber, for calls on threads that are not the engine's.
    logs: Dispatch,
}

static TABLE: [ArcSwapOption<Slot>; SLOTS] = [const { ArcSwapOption::const_empty() }; SLOTS];
/// Logs by handle, each until its engine is closed and its last line was read.
static LOGS: Mutex<BTreeMap<i64, Arc<Log>>> = Mutex::new(BTreeMap::new());
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// An engine in use; a close waits for it to be dropped.
pub(crate) struct InUse(Guard<Option<Arc<Slot>>>);

impl InUse {
    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.slot().engine)
    }

    /// Does something on a thread that is not the engine's, and logs it as the engine's.
    pub(crate) fn logging<T>(&self, work: impl FnOnce() -> T) -> T {
        dispatcher::with_default(&self.slot().logs, work)
    }

    fn slot(&self) -> &Slot {
        self.0.as_ref().expect("an engine in use was found in its slot")
    }
}

impl Deref for InUse {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.slot().engine
    }
}

/// Opens an engine with a log of its own and puts it into a free slot.
pub(crate) fn open(config: Config) -> Result<i64> {
    log_strays();
    let log = Arc::<Log>::default();
    let logs = log.dispatch();
    let engine = Arc::new(dispatcher::with_default(&logs, || Engine::open(config))?);
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let slot = Arc::new(Slot { generation, engine, logs });
    for (index, place) in TABLE.iter().enumerate() {
        let handle = i64::from(generation) << 8 | index as i64;
        let previous = place.compare_and_swap(&None::<Arc<Slot>>, Some(Arc::clone(&slot)));
        if previous.is_none() {
            LOGS.lock().insert(handle, log);
            return Ok(handle);
        }
    }
    slot.engine.close();
    Err(Error::InvalidArgument(format!("{SLOTS} engines are open already; close one first")))
}

/// Gives lines from threads of no engine, as of a panic in a call of the registry's, to every engine's log.
fn log_strays() {
    static INSTALLED: Lazy<()> = Lazy::new(|| {
        let everywhere = |line: Line| LOGS.lock().values().for_each(|log| log.push(line.clone()));
        // A program that hosts the library as Rust may have a subscriber already, which then has these lines.
        let _ = dispatcher::set_global_default(Log::subscriber(everywhere));
    });
    Lazy::force(&INSTALLED);
}

/// The next lines of an engine's log, none after `timeout`; `None` once the engine is closed and every line was read.
pub(crate) fn next_logs(handle: i64, timeout: Duration) -> Option<Vec<Line>> {
    let log = Arc::clone(LOGS.lock().get(&handle)?);
    let lines = log.take(timeout);
    if lines.is_empty() && log.is_over() {
        LOGS.lock().remove(&handle);
        return None;
    }
    Some(lines)
}

fn place(handle: i64) -> Option<(&'static ArcSwapOption<Slot>, u32)> {
    let generation = u32::try_from(handle >> 8).ok()?;
    Some((TABLE.get((handle & 0xFF) as usize)?, generation))
}

/// The engine of a handle.
pub(crate) fn get(handle: i64) -> Result<InUse> {
    let (place, generation) = place(handle).ok_or(Error::Closed)?;
    let slot = place.load();
    match &*slot {
        Some(found) if found.generation == generation => Ok(InUse(slot)),
        _ => Err(Error::Closed),
    }
}

/// Takes an engine out, waits for calls in flight, and closes it. Nothing happens for a handle that names none.
pub(crate) fn remove(handle: i64) {
    let Some((place, generation)) = place(handle) else { return };
    let current = place.load_full();
    let Some(slot) = current.filter(|slot| slot.generation == generation) else { return };
    let taken = place.compare_and_swap(&slot, None);
    if !taken.as_ref().is_some_and(|taken| Arc::ptr_eq(taken, &slot)) {
        return;
    }
    drop(taken);
    // Callers who loaded the slot before it was emptied hold a count of it; new callers cannot come.
    let deadline = Instant::now() + PATIENCE;
    while Arc::strong_count(&slot) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    dispatcher::with_default(&slot.logs, || slot.engine.close());
    if let Some(log) = LOGS.lock().get(&handle) {
        log.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> i64 {
        super::open(Config::default()).unwrap()
    }

    fn messages(handle: i64) -> Vec<String> {
        let lines = std::iter::from_fn(|| next_logs(handle, Duration::from_secs(60)));
        lines.flatten().map(|line| line.message).collect()
    }

    #[test]
    fn each_engine_has_the_lines_that_it_caused() {
        let handles = [open(), open()];
        for (handle, name) in handles.iter().zip(["engine-a", "engine-b"]) {
            let engine = get(*handle).unwrap();
            engine.logging(|| tracing::warn!("called by {name}"));
            engine.loaded();
            engine.flush_within(Duration::from_secs(60)).unwrap();
        }
        handles.iter().for_each(|handle| remove(*handle));
        for (handle, (own, other)) in handles.iter().zip([("engine-a", "engine-b"), ("engine-b", "engine-a")]) {
            let lines = messages(*handle);
            assert!(lines.contains(&format!("called by {own}")), "{lines:?}");
            assert!(!lines.iter().any(|line| line.contains(other)), "{lines:?}");
            let of_the_publisher = lines.iter().filter(|line| line.starts_with("the view is complete"));
            assert_eq!(of_the_publisher.count(), 1, "{lines:?}");
        }
    }

    #[test]
    fn a_line_from_a_thread_of_no_engine_is_in_every_log() {
        let handles = [open(), open()];
        std::thread::spawn(|| tracing::error!("a panic somewhere")).join().unwrap();
        handles.iter().for_each(|handle| remove(*handle));
        handles.iter().for_each(|handle| assert!(messages(*handle).contains(&"a panic somewhere".to_owned())));
    }

    #[test]
    fn a_handle_is_good_until_it_is_closed() {
        let handle = open();
        assert!(handle > 0 && get(handle).is_ok());
        remove(handle);
        remove(handle);
        assert!(matches!(get(handle), Err(Error::Closed)));
        let next = open();
        assert_ne!(handle, next, "a used slot has a new generation");
        assert!(get(handle).is_err());
        remove(next);
    }

    #[test]
    fn made_up_handles_name_nothing() {
        let handle = open();
        for forged in [0, -1, 1, i64::MAX, i64::MIN, handle ^ 1, handle + 256, handle | 0xFF, handle | 1 << 40] {
            assert!(get(forged).is_err(), "{forged}");
            remove(forged);
        }
        assert!(get(handle).is_ok());
        remove(handle);
    }

    #[test]
    fn a_close_waits_for_calls_in_flight() {
        let handle = open();
        let in_use = get(handle).unwrap();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| remove(handle));
            while get(handle).is_ok() {
                std::thread::yield_now();
            }
            assert!(!closing.is_finished() && in_use.apply(&[1, 0, 0, 0]).is_ok(), "the call goes on");
            drop(in_use);
        });
    }
}
