//! The judge of the tests on a real registry is itself tested: it must see every wrong deletion, and no other.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use harness::judge::{Endpoints, Held, Millis, Read, judge, percentile};

fn endpoints(all: &str) -> Arc<Endpoints> {
    let set = all.split_whitespace().map(str::to_owned).collect();
    Arc::new([("id".to_owned(), set)].into())
}

/// Reads at these times, of 100 ms each; `-` failed.
fn reads(all: &[(Millis, &str)]) -> Vec<Read> {
    let read = |(begin, named): &(Millis, &str)| Read {
        begin: *begin,
        end: begin + 100,
        named: (*named != "-").then(|| endpoints(named)),
    };
    all.iter().map(read).collect()
}

fn held(all: &[(Millis, &str)]) -> Vec<Held> {
    all.iter().map(|(at, all)| Held { at: *at, endpoints: endpoints(all) }).collect()
}

fn wrong(named: &[(Millis, &str)], had: &[(Millis, &str)]) -> Vec<(String, Millis)> {
    judge(&reads(named), &held(had)).wrong.into_iter().map(|wrong| (wrong.endpoint, wrong.lost)).collect()
}

const ALWAYS: [(Millis, &str); 4] = [(1_000, "a b"), (5_000, "a b"), (9_000, "a b"), (20_000, "a b")];

#[test]
fn a_loss_of_what_the_registry_names_all_the_time_is_wrong() {
    assert_eq!(wrong(&ALWAYS, &[(900, "a b"), (8_000, "a"), (8_010, "a b")]), [("b".to_owned(), 8_000)]);
    assert_eq!(wrong(&ALWAYS, &[(900, "a b"), (8_000, ""), (9_000, "a b")]).len(), 2);
    assert_eq!(wrong(&ALWAYS, &[(900, "a b"), (8_000, "a")]).len(), 1, "it never comes back");
}

#[test]
fn what_stays_or_was_never_there_is_not() {
    assert_eq!(wrong(&ALWAYS, &[(900, "a b")]), []);
    assert_eq!(wrong(&ALWAYS, &[(900, "a"), (15_000, "a b")]), [], "late, which is no deletion");
    assert_eq!(wrong(&[(1_000, "a"), (9_000, "a")], &[(900, "a b"), (5_000, "a")]), [], "not named at all");
}

#[test]
fn the_margins_are_two_seconds_on_both_sides() {
    let named = [(1_000, ""), (2_000, "a"), (10_000, "a"), (11_000, "")];
    assert_eq!(wrong(&named, &[(1_900, "a"), (2_500, ""), (4_000, "a")]), [], "back within 2 s of the first read");
    assert_eq!(wrong(&named, &[(1_900, "a"), (2_500, ""), (4_200, "a")]).len(), 1);
    assert_eq!(wrong(&named, &[(1_900, "a"), (8_100, "")]), [], "less than 2 s before the last");
    assert_eq!(wrong(&named, &[(1_900, "a"), (7_900, "")]).len(), 1);
}

#[test]
fn a_deletion_that_the_registry_takes_back_is_wrong_only_if_it_is_made_after_that() {
    let named = [(1_000, "a"), (3_000, ""), (5_000, "a"), (20_000, "a")];
    assert_eq!(wrong(&named, &[(900, "a"), (4_000, ""), (15_000, "a")]), [], "late, which is no deletion");
    assert_eq!(wrong(&named, &[(900, "a"), (6_000, ""), (15_000, "a")]).len(), 1, "a stale deletion");
}

#[test]
fn failed_reads_say_nothing() {
    let named = [(1_000, "a"), (4_000, "a"), (5_000, "-"), (15_000, "-"), (20_000, "a"), (23_000, "a")];
    assert_eq!(wrong(&named, &[(900, "a"), (10_000, ""), (16_000, "a")]).len(), 1, "named before and after");
    let named = [(1_000, "a"), (4_000, "a"), (5_000, "-"), (15_000, "-"), (20_000, ""), (23_000, "a")];
    assert_eq!(wrong(&named, &[(900, "a"), (10_000, ""), (23_000, "a")]), []);
}

#[test]
fn lags_are_measured_from_the_last_read_that_said_otherwise() {
    let named = reads(&[(1_000, "a"), (2_000, "a"), (3_000, "a b"), (4_000, "b"), (9_000, "b")]);
    let lags = judge(&named, &held(&[(900, "a"), (3_500, "a b"), (4_200, "b")])).lags;
    assert_eq!(lags, [4_200 - 3_100, 3_500 - 2_100]);
    let early = judge(&named, &held(&[(900, "a"), (1_500, "a b"), (3_050, "b")])).lags;
    assert_eq!(early, [0, 0]);
    let failed = reads(&[(1_000, ""), (2_000, "-"), (3_000, "a")]);
    assert_eq!(judge(&failed, &held(&[(900, ""), (3_500, "a")])).lags, [] as [Millis; 0]);
}

#[test]
fn percentiles() {
    let mut all: Vec<Millis> = (1..=200).rev().collect();
    assert_eq!((percentile(&mut all, 50), percentile(&mut all, 99)), (Some(101), Some(199)));
    assert_eq!((percentile(&mut [7], 99), percentile(&mut [], 99)), (Some(7), None));
}
