//! Many globs, asked about one text at once.
//!
//! A glob on services that has no `#` is one on the dataId, and on the whole dataInfoId as well.
//!
//! A policy may have hundreds of exceptions for tens of thousands of services, of which one or two are about each. So a glob is
//! tried only where a piece of it that has no wildcard stands in the text; all such pieces are looked for in one pass.

use std::collections::HashMap;

use aho_corasick::AhoCorasick;
use wildmatch::WildMatch;

/// Below so many the pass costs more than it spares.
const FEW: usize = 8;

/// Globs in an order.
#[derive(Debug)]
pub struct Globs {
    globs: Vec<WildMatch>,
    /// For each whether it has no `#`.
    on_data_id: Vec<bool>,
    /// Places of the globs that are tried for every text.
    always: Vec<usize>,
    /// Finds which of [`Globs::by_piece`] stand in a text.
    pieces: Option<AhoCorasick>,
    /// For each piece the globs that it stands for.
    by_piece: Vec<Vec<usize>>,
}

impl Globs {
    /// `*` stands for any text, `?` for any character.
    pub fn new<'g>(globs: impl IntoIterator<Item = &'g str>) -> Self {
        let texts: Vec<&str> = globs.into_iter().collect();
        let globs = texts.iter().map(|text| WildMatch::new(text)).collect();
        let on_data_id: Vec<bool> = texts.iter().map(|text| !text.contains('#')).collect();
        let without = |globs, on_data_id| Self {
            globs,
            on_data_id,
            always: (0..texts.len()).collect(),
            pieces: None,
            by_piece: Vec::new(),
        };
        if texts.len() < FEW {
            return without(globs, on_data_id);
        }
        let pieces_of = |text: &'g str| text.split(['*', '?']).filter(|piece| !piece.is_empty());
        let mut counts: HashMap<&str, usize> = HashMap::new();
        texts.iter().flat_map(|text| pieces_of(text)).for_each(|piece| *counts.entry(piece).or_default() += 1);
        // The piece that tells a glob from the others: globs of one company begin alike.
        let rarest = |text| pieces_of(text).min_by_key(|piece| (counts[piece], std::cmp::Reverse(piece.len())));
        let (mut always, mut by_piece) = (Vec::new(), HashMap::<&str, Vec<usize>>::new());
        for (n, text) in texts.iter().enumerate() {
            match rarest(text) {
                Some(piece) => by_piece.entry(piece).or_default().push(n),
                None => always.push(n),
            }
        }
        let (pieces, by_piece): (Vec<&str>, Vec<Vec<usize>>) = by_piece.into_iter().unzip();
        match AhoCorasick::new(pieces) {
            Ok(pieces) => Self { globs, on_data_id, always, pieces: Some(pieces), by_piece },
            // Only where there are more pieces than it can number.
            Err(_) => without(globs, on_data_id),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.globs.len()
    }

    /// The places of the globs that match, in their order.
    pub fn matching(&self, text: &str) -> Vec<usize> {
        let mut matching = self.candidates(text);
        matching.retain(|n| self.matches(*n, text));
        matching
    }

    /// Whether a glob matches.
    pub fn any(&self, text: &str) -> bool {
        self.candidates(text).into_iter().any(|n| self.matches(n, text))
    }

    fn matches(&self, n: usize, text: &str) -> bool {
        let data_id = || text.split_once("#@#").map(|(data_id, _)| data_id);
        self.globs[n].matches(text) || (self.on_data_id[n] && data_id().is_some_and(|id| self.globs[n].matches(id)))
    }

    /// The globs to try, in their order.
    fn candidates(&self, text: &str) -> Vec<usize> {
        let mut candidates = self.always.clone();
        if let Some(pieces) = &self.pieces {
            let found = pieces.find_overlapping_iter(text).map(|found| found.pattern().as_usize());
            candidates.extend(found.flat_map(|piece| &self.by_piece[piece]));
            candidates.sort_unstable();
            candidates.dedup();
        }
        candidates
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_many_globs_a_service_tries_those_that_may_be_about_it() {
        let texts: Vec<String> =
            (0..500).map(|n| format!("com.alipay.*.facade.*Query*Facade{n}:*@DEFAULT#*")).chain(["*".into()]).collect();
        let globs = Globs::new(texts.iter().map(String::as_str));
        let (mut tried, mut matching) = (0, 0);
        for n in 0..50_000 {
            let id = format!("com.alipay.product{}.facade.service.OrderQueryFacade{n}:1.0@DEFAULT#@#a#@#SOFA", n % 40);
            tried += globs.candidates(&id).len();
            matching += globs.matching(&id).len();
        }
        assert_eq!((tried, matching), (50_500, 50_500));
    }

    #[test]
    fn a_glob_without_a_hash_sign_is_one_on_the_data_id() {
        let id = "com.example.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
        for (glob, matches) in [
            ("com.example.A:1.0@DEFAULT", true),
            ("com.example.*", true),
            ("*@DEFAULT", true),
            ("*SOFA", true),
            ("*example", false),
            ("com.example.A*#*SOFA", true),
            ("*#@#DEFAULT_INSTANCE_ID#@#*", true),
            ("com.example.A:1.0@DEFAULT#", false),
        ] {
            assert_eq!(Globs::new([glob]).any(id), matches, "{glob}");
        }
        assert!(Globs::new(["odd"]).any("odd"), "an id of another form is all dataId");
    }

    proptest! {
        /// The matches do not depend on the index.
        #[test]
        fn the_globs_that_match_are_those_that_match_by_themselves(
            globs in proptest::collection::vec("[ab*?é]{0,5}", 0..24),
            texts in proptest::collection::vec("[abé]{0,7}", 1..8),
        ) {
            let all = Globs::new(globs.iter().map(String::as_str));
            for text in texts {
                let alone: Vec<usize> =
                    (0..globs.len()).filter(|n| WildMatch::new(&globs[*n]).matches(&text)).collect();
                prop_assert_eq!(all.any(&text), !alone.is_empty());
                prop_assert_eq!(all.matching(&text), alone);
            }
        }
    }
}
