//! Reads that come in pieces, until the last piece is in.
//!
//! Their entries wait here, outside of the shards: an unfinished read changes nothing, and nobody who publishes waits for it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::{
    error::{Error, Result},
    model::Millis,
    registry::{frame::Part, publication::Publication},
};

/// How much all unfinished reads may hold. Four readers have one each, of at most 256 MiB.
const MOST_BYTES: usize = 1 << 30;
/// After this long without a piece a sender has given its read up.
const STALE_MILLIS: Millis = 60_000;

/// Source and dataInfoId.
pub(super) type Key = (Box<[u8]>, Box<[u8]>);

#[derive(Debug)]
struct Unfinished {
    read: i64,
    entries: Vec<Arc<Publication>>,
    bytes: usize,
    /// When its last piece came.
    touched: Millis,
}

#[derive(Debug, Default)]
struct Reads {
    by_service: HashMap<Key, Unfinished>,
    bytes: usize,
}

impl Reads {
    fn remove(&mut self, key: &Key) -> Option<Unfinished> {
        let removed = self.by_service.remove(key)?;
        self.bytes -= removed.bytes;
        Some(removed)
    }

    fn take_stale(&mut self, now: Millis) -> Vec<Unfinished> {
        let stale = |unfinished: &Unfinished| now.saturating_sub(unfinished.touched) >= STALE_MILLIS;
        let keys: Vec<Key> =
            self.by_service.iter().filter(|(_, read)| stale(read)).map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }
}

/// The unfinished reads, at most one of each service in each source.
#[derive(Debug)]
pub(super) struct Pieces {
    reads: Mutex<Reads>,
    most_bytes: usize,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { reads: Mutex::default(), most_bytes: MOST_BYTES }
    }
}

impl Pieces {
    /// Takes a piece; with the last one, answers the entries of all. After an error nothing is left of that read.
    pub(super) fn add(
        &self,
        key: Key,
        part: Part,
        read: i64,
        entries: Vec<Arc<Publication>>,
        now: Millis,
    ) -> Result<Option<Vec<Arc<Publication>>>> {
        let bytes: usize = entries.iter().map(|entry| entry.size().bytes).sum();
        // Freed when the lock is free again.
        let mut forgotten = Vec::new();
        let mut reads = self.reads.lock();
        forgotten.extend(reads.take_stale(now));
        if part == Part::Begin {
            forgotten.extend(reads.remove(&key));
            let begun = Unfinished { read, entries: Vec::new(), bytes: 0, touched: now };
            reads.by_service.insert(key.clone(), begun);
        }
        let held = reads.bytes;
        let Some(unfinished) = reads.by_service.get_mut(&key).filter(|unfinished| unfinished.read == read) else {
            return Err(Error::InvalidArgument(format!(
                "a piece of read {read} of {}, of which there is no begin: it took too long, or another read of the \
                 service has begun since; read it again",
                String::from_utf8_lossy(&key.1)
            )));
        };
        if held + bytes > self.most_bytes {
            let error = Error::TooLarge { field: "unfinished reads", actual: held + bytes, limit: self.most_bytes };
            forgotten.extend(reads.remove(&key));
            return Err(error);
        }
        unfinished.entries.extend(entries);
        unfinished.bytes += bytes;
        unfinished.touched = now;
        reads.bytes += bytes;
        Ok(if part == Part::Commit { reads.remove(&key).map(|whole| whole.entries) } else { None })
    }

    /// Forgets those that have waited for too long.
    pub(super) fn expire(&self, now: Millis) {
        let stale = self.reads.lock().take_stale(now);
        drop(stale);
    }

    /// How many there are, and what they hold in bytes.
    #[cfg(test)]
    pub(super) fn unfinished(&self) -> (usize, usize) {
        let reads = self.reads.lock();
        assert_eq!(reads.bytes, reads.by_service.values().map(|read| read.bytes).sum::<usize>());
        (reads.by_service.len(), reads.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::frame::{self, Event, Publisher};

    fn entry(register_id: &str) -> Arc<Publication> {
        let publisher = Publisher { register_id: register_id.into(), ..Publisher::default() };
        let frame = frame::encode_publish("s", "id", &publisher).unwrap();
        let event = frame::decode(&frame).unwrap().into_iter().next();
        let Some(Event::Publish { body, .. }) = event else { panic!("{event:?}") };
        Publication::new(&body)
    }

    fn key(id: &str) -> Key {
        (Box::from(*b"registry"), id.as_bytes().into())
    }

    /// The registerIds of a whole read, or whether there is none yet.
    fn add(
        pieces: &Pieces,
        id: &str,
        part: Part,
        read: i64,
        names: &[&str],
        now: Millis,
    ) -> Result<Option<Vec<String>>> {
        let entries = names.iter().map(|name| entry(name)).collect();
        let name = |entry: &Arc<Publication>| entry.body().register_id.as_str().to_owned();
        pieces.add(key(id), part, read, entries, now).map(|whole| whole.map(|all| all.iter().map(name).collect()))
    }

    #[test]
    fn a_read_is_whole_with_its_last_piece() {
        let pieces = Pieces::default();
        assert_eq!(add(&pieces, "a", Part::Begin, 1, &["x"], 0).unwrap(), None);
        assert_eq!(add(&pieces, "b", Part::Begin, 2, &["y"], 0).unwrap(), None);
        assert_eq!(add(&pieces, "a", Part::Append, 1, &["z", "w"], 0).unwrap(), None);
        assert_eq!(add(&pieces, "b", Part::Commit, 2, &[], 0).unwrap(), Some(vec!["y".to_owned()]));
        let whole = add(&pieces, "a", Part::Commit, 1, &["v"], 0).unwrap();
        assert_eq!(whole, Some(["x", "z", "w", "v"].map(str::to_owned).to_vec()));
        assert_eq!(pieces.unfinished(), (0, 0));
    }

    #[test]
    fn a_begin_takes_the_place_of_an_unfinished_read() {
        let pieces = Pieces::default();
        add(&pieces, "a", Part::Begin, 1, &["x"], 0).unwrap();
        add(&pieces, "a", Part::Begin, 2, &["y"], 0).unwrap();
        assert!(add(&pieces, "a", Part::Append, 1, &["z"], 0).is_err(), "the first read is forgotten");
        assert!(add(&pieces, "a", Part::Commit, 1, &[], 0).is_err());
        assert_eq!(add(&pieces, "a", Part::Commit, 2, &[], 0).unwrap(), Some(vec!["y".to_owned()]));
        assert!(add(&pieces, "a", Part::Commit, 2, &[], 0).is_err(), "it was applied");
        assert_eq!(pieces.unfinished(), (0, 0));
    }

    #[test]
    fn what_is_given_up_is_forgotten() {
        let pieces = Pieces::default();
        for (id, at) in [("a", 0), ("b", 10_000), ("c", 20_000)] {
            add(&pieces, id, Part::Begin, 1, &["x"], at).unwrap();
        }
        add(&pieces, "a", Part::Append, 1, &["y"], 15_000).unwrap();
        pieces.expire(69_999);
        assert_eq!(pieces.unfinished().0, 3);
        pieces.expire(70_000);
        assert!(add(&pieces, "b", Part::Append, 1, &["y"], 70_000).is_err());
        add(&pieces, "d", Part::Begin, 1, &["x"], 80_000).unwrap();
        assert_eq!(pieces.unfinished().0, 1, "a begin looks for others that are stale");
    }

    #[test]
    fn they_are_bounded_in_bytes() {
        let pieces = Pieces { most_bytes: 1_000, ..Pieces::default() };
        add(&pieces, "a", Part::Begin, 1, &["x", "y"], 0).unwrap();
        add(&pieces, "b", Part::Begin, 2, &["x", "y"], 0).unwrap();
        let bytes = pieces.unfinished().1;
        assert!((600..1_000).contains(&bytes), "{bytes}");
        let refused = add(&pieces, "a", Part::Append, 1, &["z", "v", "w"], 0);
        assert!(matches!(refused, Err(Error::TooLarge { field: "unfinished reads", limit: 1_000, .. })), "{refused:?}");
        assert_eq!(pieces.unfinished(), (1, bytes / 2), "nothing is left of the one that was too large");
        assert_eq!(add(&pieces, "b", Part::Commit, 2, &["z"], 0).unwrap().map(|all| all.len()), Some(3));
        assert_eq!(pieces.unfinished(), (0, 0));
    }
}
