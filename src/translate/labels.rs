//! Labels of endpoints. The endpoints of a service nearly always have the same, so equal ones are kept once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use once_cell::sync::Lazy;
use parking_lot::Mutex;

/// Legal Kubernetes labels, by key.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

#[derive(Default)]
struct Known {
    sets: HashSet<Arc<Labels>>,
    /// At this many, those that nobody has any more are forgotten.
    sweep_at: usize,
}

static KNOWN: Lazy<Mutex<Known>> = Lazy::new(Mutex::default);

/// The one copy of these labels.
pub fn shared(labels: Labels) -> Arc<Labels> {
    let mut known = KNOWN.lock();
    if let Some(found) = known.sets.get(&labels) {
        return Arc::clone(found);
    }
    if known.sets.len() >= known.sweep_at {
        known.sets.retain(|set| Arc::strong_count(set) > 1);
        known.sweep_at = (2 * known.sets.len()).max(1_024);
    }
    let labels = Arc::new(labels);
    known.sets.insert(Arc::clone(&labels));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        [("app".into(), app.into())].into()
    }

    #[test]
    fn equal_labels_are_one() {
        assert!(Arc::ptr_eq(&shared(labels("same")), &shared(labels("same"))));
        assert!(!Arc::ptr_eq(&shared(labels("one")), &shared(labels("other"))));
    }

    #[test]
    fn labels_that_nobody_has_are_forgotten() {
        let kept = shared(labels("kept"));
        for n in 0..10_000 {
            shared(labels(&format!("transient-{n}")));
        }
        assert!(KNOWN.lock().sets.len() < 5_000);
        assert!(Arc::ptr_eq(&kept, &shared(labels("kept"))));
    }
}
