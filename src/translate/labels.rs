//! Labels of endpoints. The endpoints of a service often have the same, so equal ones are kept once.

use std::{cmp::Ordering, sync::Arc};

use hashbrown::HashSet;
use once_cell::sync::Lazy;
use parking_lot::Mutex;

/// Legal Kubernetes labels as one text, `key=value,key=value` in the order of keys: neither has one of these characters in
/// it, and a map takes several times the memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<str>);

#[derive(Default)]
struct Known {
    sets: HashSet<Arc<str>>,
    /// At this many, those that nobody has any more are forgotten.
    sweep_at: usize,
}

static KNOWN: Lazy<Mutex<Known>> = Lazy::new(Mutex::default);

impl<K: AsRef<str> + Ord, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of two values for a key the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut labels: Vec<(K, V)> = labels.into_iter().collect();
        labels.sort_by(|(a, _), (b, _)| a.cmp(b)); // stable: of one key the last stays behind
        let mut text = String::with_capacity(128);
        for (at, (key, value)) in labels.iter().enumerate() {
            if labels.get(at + 1).is_some_and(|(next, _)| next == key) {
                continue;
            }
            let comma = if text.is_empty() { "" } else { "," };
            text.extend([comma, key.as_ref(), "=", value.as_ref()]);
        }
        Self(known(&text))
    }
}

/// The one copy of a text.
fn known(text: &str) -> Arc<str> {
    let mut known = KNOWN.lock();
    if let Some(found) = known.sets.get(text) {
        return Arc::clone(found);
    }
    if known.sets.len() >= known.sweep_at {
        known.sets.retain(|set| Arc::strong_count(set) > 1);
        known.sweep_at = (2 * known.sets.len()).max(1_024);
    }
    let text: Arc<str> = text.into();
    known.sets.insert(Arc::clone(&text));
    text
}

impl Labels {
    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split(',').filter_map(|label| label.split_once('='))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find_map(|(known, value)| (known == key).then_some(value))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        [("app", app)].into_iter().collect()
    }

    #[test]
    fn they_are_what_they_were_made_of() {
        let labels: Labels = [("zone", "z"), ("app", "a"), ("io.x/y_z", ""), ("zone", "last")].into_iter().collect();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("app", "a"), ("io.x/y_z", ""), ("zone", "last")]);
        assert_eq!((labels.get("zone"), labels.get("io.x/y_z"), labels.get("one")), (Some("last"), Some(""), None));
        assert_eq!((Labels::default().iter().count(), Labels::default().get("")), (0, None));
    }

    #[test]
    fn they_are_ordered_by_key_and_value() {
        let of = |pairs: &[(&'static str, &'static str)]| pairs.iter().copied().collect::<Labels>();
        assert!(of(&[("a", "2")]) < of(&[("a-b", "1")]), "as text it would be the other way round");
        assert!(of(&[]) < of(&[("a", "")]) && of(&[("a", "1")]) < of(&[("a", "1"), ("b", "0")]));
    }

    #[test]
    fn equal_labels_are_one() {
        assert!(Arc::ptr_eq(&labels("same").0, &labels("same").0));
        assert!(!Arc::ptr_eq(&labels("one").0, &labels("other").0));
    }

    #[test]
    fn labels_that_nobody_has_are_forgotten() {
        let kept = labels("kept");
        for n in 0..10_000 {
            labels(&format!("transient-{n}"));
        }
        assert!(KNOWN.lock().sets.len() < 5_000);
        assert!(Arc::ptr_eq(&kept.0, &labels("kept").0));
    }
}
