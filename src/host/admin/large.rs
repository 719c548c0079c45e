//! Pages that grow with what is served: read in chunks, one page at a time in the whole engine, and not for longer than a
//! reader needs that reads. So they cost a chunk and the snapshot that they are of, whoever asks and however often.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

use crate::{
    error::{Error, Result},
    snapshot::kubectl::Dump,
};

/// How long a reader may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a chunk, until it asks for the next.
    pub chunk: Duration,
    /// For the whole page, beside [`Patience::rate`].
    pub page: Duration,
    /// Bytes a second that it must take once that is over.
    pub rate: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { chunk: Duration::from_secs(10), page: Duration::from_secs(60), rate: 256 << 10 }
    }
}

/// Counts of large pages by their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PageCounts {
    /// Pages refused, since another large page was being read.
    pub refused: u64,
    /// Pages ended, since their reader was too slow.
    pub ended: u64,
}

/// The place of the one large page that is being read.
#[derive(Debug, Default)]
pub struct Large {
    patience: Patience,
    reading: Mutex<Option<Reading>>,
    opened: AtomicU64,
    refused: AtomicU64,
    ended: AtomicU64,
}

#[derive(Debug)]
struct Reading {
    id: u64,
    /// Away while the next chunk is being made.
    dump: Option<Dump>,
    began: Instant,
    /// When the last chunk was handed over.
    handed: Instant,
    bytes: u64,
}

/// A page that is being read. The reading ends when the cursor is dropped without being kept.
#[derive(Debug)]
pub struct Cursor {
    large: Arc<Large>,
    id: u64,
    kept: bool,
}

impl Large {
    /// A place for readers with this patience.
    #[cfg(test)]
    pub fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Begins to read a page; `None` while another one is being read.
    pub fn open(self: &Arc<Self>, dump: impl FnOnce() -> Dump) -> Option<Cursor> {
        let mut reading = self.reading.lock();
        if reading.is_some() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let (id, now) = (self.opened.fetch_add(1, Ordering::Relaxed) + 1, Instant::now());
        *reading = Some(Reading { id, dump: Some(dump()), began: now, handed: now, bytes: 0 });
        Some(Cursor { large: Arc::clone(self), id, kept: false })
    }

    /// The next chunk of a page; `None` at its end, which frees the place. Making the chunk takes milliseconds.
    pub fn next(&self, id: u64) -> Result<Option<Bytes>> {
        let dump = self.reading.lock().as_mut().filter(|reading| reading.id == id).and_then(|r| r.dump.take());
        let gone =
            || Error::InvalidArgument(format!("page {id} is not being read: its reader was too slow or ended it"));
        let mut dump = dump.ok_or_else(gone)?;
        let chunk = dump.next();
        let mut place = self.reading.lock();
        let reading = place.as_mut().filter(|reading| reading.id == id).ok_or_else(gone)?;
        match &chunk {
            Some(chunk) => {
                reading.dump = Some(dump);
                reading.handed = Instant::now();
                reading.bytes += chunk.len() as u64;
            }
            None => *place = None,
        }
        Ok(chunk)
    }

    /// Ends a page, wherever its reader is.
    pub fn close(&self, id: u64) {
        self.reading.lock().take_if(|reading| reading.id == id);
    }

    /// Ends whatever is being read.
    pub fn end(&self) {
        *self.reading.lock() = None;
    }

    /// Waits until a page is over; ends a page whose reader is too slow, which is answered with true.
    pub async fn over(&self, id: u64) -> bool {
        loop {
            let deadline = match &*self.reading.lock() {
                Some(reading) if reading.id == id => self.deadline(reading),
                _ => return false,
            };
            sleep_until(deadline).await;
            let late = |reading: &mut Reading| reading.id == id && self.deadline(reading) <= Instant::now();
            if self.reading.lock().take_if(late).is_some() {
                self.ended.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
    }

    fn deadline(&self, reading: &Reading) -> Instant {
        let Patience { chunk, page, rate } = self.patience;
        let whole = page + Duration::from_millis(reading.bytes * 1_000 / rate);
        (reading.handed + chunk).min(reading.began + whole)
    }

    /// Counts of large pages by their end.
    pub fn counts(&self) -> PageCounts {
        PageCounts { refused: self.refused.load(Ordering::Relaxed), ended: self.ended.load(Ordering::Relaxed) }
    }
}

impl Cursor {
    /// Names the page.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is read.
    pub fn large(&self) -> &Arc<Large> {
        &self.large
    }

    /// [`Large::next`] of this page.
    pub fn next(&self) -> Result<Option<Bytes>> {
        self.large.next(self.id)
    }

    /// Leaves the page to who knows its number; without a reader it ends by itself.
    pub fn keep(mut self, runtime: &Handle) {
        self.kept = true;
        let (large, id) = (Arc::clone(&self.large), self.id);
        runtime.spawn(async move { large.over(id).await });
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if !self.kept {
            self.large.close(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Snapshot, kubectl::Format};

    fn page() -> Dump {
        Dump::new("ServiceEntry", Format::Json, &Snapshot::none())
    }

    #[test]
    fn there_is_place_for_one() {
        let large = Arc::new(Large::default());
        let first = large.open(page).unwrap();
        assert!(large.open(page).is_none());
        assert!(first.next().unwrap().is_some());
        assert!(large.open(page).is_none(), "a chunk is not the page");
        assert!(first.next().unwrap().is_none());
        let second = large.open(page).expect("read to its end");
        assert!(first.next().is_err());
        drop(first);
        assert!(second.next().unwrap().is_some(), "another's end is nothing to it");
        drop(second);
        let third = large.open(page).expect("dropped");
        large.end();
        assert!(third.next().is_err() && large.open(page).is_some());
        assert_eq!(large.counts(), PageCounts { refused: 2, ended: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_no_chunk_loses_the_place() {
        let large = Arc::new(Large::default());
        let cursor = large.open(page).unwrap();
        let began = Instant::now();
        assert!(large.over(cursor.id()).await);
        assert_eq!(began.elapsed().as_secs(), 10);
        assert!(cursor.next().is_err() && large.open(page).is_some());
        assert_eq!(large.counts().ended, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_little_loses_the_place() {
        let large = Arc::new(Large::new(Patience { rate: 1 << 20, ..Patience::default() }));
        let cursor = large.open(page).unwrap();
        let began = Instant::now();
        let over = tokio::spawn({
            let (large, id) = (Arc::clone(&large), cursor.id());
            async move { large.over(id).await }
        });
        // A page without end, a chunk every 9 s.
        while large.reading.lock().is_some() {
            tokio::time::sleep(Duration::from_secs(9)).await;
            if let Some(reading) = &mut *large.reading.lock() {
                (reading.handed, reading.bytes) = (Instant::now(), reading.bytes + (1 << 20));
            }
        }
        assert!(over.await.unwrap());
        // 60 s and one for each MiB, of which there were seven.
        assert_eq!(began.elapsed().as_secs(), 72, "the first 9 s after 67");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_nobody_holds_ends_by_itself() {
        let large = Arc::new(Large::default());
        let cursor = large.open(page).unwrap();
        let id = cursor.id();
        cursor.keep(&Handle::current());
        assert!(large.open(page).is_none());
        assert!(large.next(id).unwrap().is_some(), "its number reads it");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(large.next(id).is_err() && large.open(page).is_some());
    }
}
