//! Handles for Java: a `long` names a slot and its generation, so a stale or made-up one is an error and never a
//! pointer.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwapOption, Guard};

use crate::{
    error::{Error, Result},
    host::engine::Engine,
};

const SLOTS: usize = 64;
/// How long a close waits for calls in flight.
const PATIENCE: Duration = Duration::from_secs(5);

struct Slot {
    generation: u32,
    engine: Arc<Engine>,
}

static TABLE: [ArcSwapOption<Slot>; SLOTS] = [const { ArcSwapOption::const_empty() }; SLOTS];
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// An engine in use; a close waits for it to be dropped.
pub(crate) struct InUse(Guard<Option<Arc<Slot>>>);

impl InUse {
    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.slot().engine)
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

/// Puts an engine into a free slot.
pub(crate) fn insert(engine: Engine) -> Result<i64> {
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let slot = Arc::new(Slot { generation, engine: Arc::new(engine) });
    for (index, place) in TABLE.iter().enumerate() {
        let previous = place.compare_and_swap(&None::<Arc<Slot>>, Some(Arc::clone(&slot)));
        if previous.is_none() {
            return Ok(i64::from(generation) << 8 | index as i64);
        }
    }
    Err(Error::InvalidArgument(format!("{SLOTS} engines are open already; close one first")))
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
    // Those who loaded the slot before it was emptied hold a count of it; new ones cannot come.
    let deadline = Instant::now() + PATIENCE;
    while Arc::strong_count(&slot) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    slot.engine.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn open() -> i64 {
        insert(Engine::open(Config::default()).unwrap()).unwrap()
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
