//! A publication: the state of a live publisher that came last.

use std::{any::Any, sync::Arc};

use parking_lot::Mutex;

use crate::{model::RegisterVersion, registry::frame::Body};

/// Bytes that a publication takes beside its bytes and the key that it lies under.
const ENTRY_BYTES: usize = 128;

/// Memory and endpoints of a publisher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: usize,
    /// Its payloads, each counted as an endpoint, whatever it is.
    pub(super) endpoints: usize,
}

impl Size {
    fn new(body: usize, register_id: usize, boxes: u16) -> Self {
        Self { bytes: body + register_id + ENTRY_BYTES, endpoints: usize::from(boxes) }
    }

    /// Of the publication that a body becomes.
    pub(super) fn of(body: &Body<'_>) -> Self {
        Self::new(body.raw().len(), body.register_id.as_bytes().len(), body.boxes)
    }
}

/// A publisher in one of its versions.
#[derive(Debug)]
pub struct Publication {
    /// Which of the publisher's states this is.
    pub version: RegisterVersion,
    pub(super) body: Box<[u8]>,
    boxes: u16,
    /// The form that readers made of the publication.
    pub memo: Memo,
}

impl Publication {
    pub(super) fn new(body: &Body<'_>) -> Arc<Self> {
        let (raw, boxes) = (body.raw().into(), body.boxes);
        Arc::new(Self { version: body.version, body: raw, boxes, memo: Memo::default() })
    }

    /// How many payloads it has.
    pub fn boxes(&self) -> u16 {
        self.boxes
    }

    /// Memory and endpoints that the publication takes.
    pub(super) fn size(&self) -> Size {
        Size::new(self.body.len(), self.register_id().len(), self.boxes)
    }

    /// Takes a newer state in the place of this one, where nobody else looks at it.
    pub(super) fn renew(this: &mut Arc<Self>, body: &Body<'_>) -> bool {
        let Some(publication) = Arc::get_mut(this) else { return false };
        publication.version = body.version;
        publication.boxes = body.boxes;
        publication.memo = Memo::default();
        if publication.body.len() == body.raw().len() {
            publication.body.copy_from_slice(body.raw());
        } else {
            publication.body = body.raw().into();
        }
        true
    }

    pub(super) fn register_id(&self) -> &[u8] {
        Body::register_id_in(&self.body)
    }

    /// The publisher as it was handed in.
    pub fn body(&self) -> Body<'_> {
        Body::parse(&self.body).expect("a stored body was decoded before")
    }
}

/// Keeps what was made of a publication, off the caller's thread, until it is to be made otherwise. The store does not know
/// what that is.
#[derive(Debug, Default)]
pub struct Memo(Mutex<Option<(u64, Arc<dyn Any + Send + Sync>)>>);

impl Memo {
    /// The form that was made last, if it was made under the same `key`; else what `make` makes now.
    pub fn get<T: Any + Send + Sync>(&self, key: u64, make: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock();
        known(&kept, key).unwrap_or_else(|| {
            let made = Arc::new(make());
            *kept = Some((key, Arc::<T>::clone(&made)));
            made
        })
    }

    /// The form that was made last, under whatever key.
    pub fn last<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let kept = self.0.lock();
        kept.as_ref().and_then(|(_, made)| Arc::clone(made).downcast().ok())
    }

    /// Like [`Memo::get`], but what is made now is not kept, and what was made last is.
    pub fn peek<T: Any + Send + Sync>(&self, key: u64, make: impl FnOnce() -> T) -> Arc<T> {
        let kept = known(&self.0.lock(), key);
        kept.unwrap_or_else(|| Arc::new(make()))
    }
}

/// The form that was made under a key, if it was the last.
fn known<T: Any + Send + Sync>(kept: &Option<(u64, Arc<dyn Any + Send + Sync>)>, key: u64) -> Option<Arc<T>> {
    let (_, made) = kept.as_ref().filter(|(known, _)| *known == key)?;
    Arc::clone(made).downcast().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_is_made_again_only_under_another_key() {
        let memo = Memo::default();
        let first = memo.get(1, || "a".to_owned());
        assert!(Arc::ptr_eq(&first, &memo.get(1, || panic!("it is known"))));
        assert_eq!(*memo.get(2, || "b".to_owned()), "b");
        assert_eq!(*memo.get(2, || 7u8), 7, "of another type nothing is known");
        assert_eq!((memo.last::<u8>().as_deref(), memo.last::<String>()), (Some(&7), None));
        assert_eq!((*memo.peek(3, || 8u8), *memo.peek(2, || 9u8)), (8, 7), "a look changes nothing");
    }
}
