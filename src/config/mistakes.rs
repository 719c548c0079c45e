//! Mistakes that checks of settings find, and the words for bounds.

use std::{ops::RangeInclusive, time::Duration};

use crate::{duration, error::Mistake};

/// The remedy for a name that is no DNS label.
pub(super) const LABELS: &str =
    "allowed are 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends";

/// Mistakes, as checks find them; keys are in camelCase.
#[derive(Default)]
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, key: &str, text: String) {
        self.0.push(Mistake { key: key.to_owned(), text });
    }

    pub(super) fn number(&mut self, key: &str, value: usize, allowed: RangeInclusive<usize>) {
        self.bound(key, value, allowed, |number| number.to_string());
    }

    pub(super) fn time(&mut self, key: &str, value: Duration, allowed: RangeInclusive<Duration>) {
        self.bound(key, value, allowed, duration::shown);
    }

    fn bound<T: PartialOrd + Copy>(&mut self, key: &str, value: T, allowed: RangeInclusive<T>, shown: fn(T) -> String) {
        if !allowed.contains(&value) {
            let (value, low, high) = (shown(value), shown(*allowed.start()), shown(*allowed.end()));
            self.add(key, format!("{value} is out of bounds; allowed are {low} to {high}"));
        }
    }
}
