use proptest::prelude::*;
use serde_json::json;

use super::{content::Content, envelope::MOST_ROW, *};

const TOKEN: &[u8] = b"open sesame 1234";
const NAMESPACE: &str = "sofa-registry";
const NOW: Millis = 1_700_000_000_000;

fn documents() -> Documents {
    Documents::new(TOKEN, NAMESPACE).unwrap()
}

fn policy(n: usize) -> Value {
    json!({ "exclude": [format!("com.example.N{n}*")] })
}

fn stamp(by: &str) -> Stamp {
    Stamp { by: by.to_owned(), when: NOW, why: "a reason".to_owned() }
}

/// An older release took names of protocols that mean nothing.
#[test]
fn a_policy_that_is_stored_counts_though_it_would_not_be_taken_now() {
    let policy = json!({ "ports": { "DEFAULT": 12_200, "Bolt": 1, "bolt": 2 } });
    let refused = crate::config::policy_from_json(policy.clone(), NAMESPACE).unwrap_err().to_string();
    assert!(refused.contains("policy.ports.DEFAULT") && refused.lines().count() == 2, "{refused}");
    let content = PolicyContent { policy: Some(policy.clone()), history: Vec::new() };
    assert_eq!(content.check(NAMESPACE), Ok(()));
    let config = crate::config::stored_policy_from_json(&policy, NAMESPACE).unwrap();
    assert_eq!(config.protocol_mistakes("policy").len(), 2);
    crate::policy::Policy::new(config, &[], NAMESPACE).unwrap();
    let other = PolicyContent { policy: Some(json!({ "ports": { "bolt": 0 } })), history: Vec::new() };
    assert!(other.check(NAMESPACE).is_err(), "all else is a mistake still");
}

/// The registry's store: one table that compares and sets, and says no to whatever goes wrong.
#[derive(Debug, Default)]
struct Store {
    rows: BTreeMap<Name, Row>,
    away: bool,
}

impl Store {
    fn put(&mut self, write: &Write) -> bool {
        let there = self.rows.get(&write.name).map_or(0, |row| row.version);
        let takes = !self.away && there == write.expect && write.version > write.expect;
        if takes {
            self.rows.insert(write.name, Row { version: write.version, value: write.value.clone() });
        }
        takes
    }

    fn read(&self, name: Name) -> Option<Option<&Row>> {
        (!self.away).then(|| self.rows.get(&name))
    }

    /// A session server reads everything, and puts back what is missing.
    fn poll(&mut self, server: &mut Documents, now: Millis) -> Taken {
        let mut taken = Taken::default();
        if self.away {
            server.lose();
            return taken;
        }
        Name::all().for_each(|name| taken.add(server.take(name, self.rows.get(&name))));
        for write in server.put_back(now) {
            let stored = self.put(&write);
            taken.add(server.written(&write, stored, self.read(write.name)).1);
        }
        taken
    }

    fn post(&mut self, server: &mut Documents, policy: Value, saw: Option<u64>) -> Result<Outcome, NotWritten> {
        let write = server.set_policy(Some(policy), &stamp("ann"), saw)?;
        let stored = self.put(&write);
        Ok(server.written(&write, stored, self.read(Name::Policy)).0)
    }

    /// Somebody who reaches the database.
    fn vandal(&mut self, value: impl Into<String>) {
        let version = self.rows.get(&Name::Policy).map_or(NOW, |row| row.version + 1);
        self.rows.insert(Name::Policy, Row { version, value: value.into() });
    }
}

fn revision(server: &Documents) -> u64 {
    server.shown()[&Name::Policy].revision
}

fn refused(server: &Documents) -> Option<Reason> {
    server.shown()[&Name::Policy].refused.as_ref().map(|refusal| refusal.reason)
}

/// The revision that an operator sees at a server.
fn saw(server: &Documents) -> u64 {
    let shown = server.shown().remove(&Name::Policy).unwrap();
    let newer = shown.refused.filter(|refusal| refusal.reason.is_newer_release());
    newer.map_or(server.policy.highest(), |refusal| refusal.revision)
}

#[test]
fn a_short_token_signs_nothing() {
    assert!(Documents::new(b"open sesame 123", NAMESPACE).is_none());
    assert!(Documents::new(TOKEN, NAMESPACE).is_some());
}

#[test]
fn nothing_is_written_before_the_store_was_read() {
    let (mut store, mut server) = (Store::default(), documents());
    assert_eq!(store.post(&mut server, policy(1), None), Err(NotWritten::Unreachable));
    store.poll(&mut server, NOW);
    assert_eq!(store.post(&mut server, policy(1), None), Ok(Outcome::Done));
    assert_eq!((server.policy(), revision(&server)), (Some(&policy(1)), 1));
    store.away = true;
    store.poll(&mut server, NOW);
    assert_eq!(store.post(&mut server, policy(2), None), Err(NotWritten::Unreachable));
    assert_eq!(server.policy(), Some(&policy(1)), "an unreachable store changes nothing");
    store.away = false;
    assert_eq!(store.poll(&mut server, NOW), Taken::default());
}

#[test]
fn of_two_writers_at_once_one_is_told_of_the_other() {
    let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
    store.poll(&mut a, NOW);
    store.poll(&mut b, NOW);
    assert_eq!(store.post(&mut a, policy(1), None), Ok(Outcome::Done));
    assert_eq!(store.post(&mut b, policy(2), None), Ok(Outcome::Conflict));
    assert_eq!(b.policy(), Some(&policy(1)), "the loser knows the present document");
    assert_eq!(store.post(&mut b, policy(2), None), Ok(Outcome::Done));
    assert_eq!(store.post(&mut a, policy(3), Some(1)), Ok(Outcome::Conflict));
    assert_eq!(store.post(&mut a, policy(3), Some(1)), Err(NotWritten::Conflict));
    assert_eq!(store.post(&mut a, policy(3), Some(2)), Ok(Outcome::Done));
    assert_eq!((revision(&a), a.history().len()), (3, 2));
}

/// The store says no for a conflict and for a failure alike.
#[test]
fn what_came_of_a_write_is_what_is_there() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    let write = server.set_policy(Some(policy(1)), &stamp("ann"), None).unwrap();
    assert!(store.put(&write));
    assert_eq!(server.written(&write, false, store.read(Name::Policy)).0, Outcome::Done, "only the answer was lost");
    let write = server.set_policy(Some(policy(2)), &stamp("ann"), None).unwrap();
    assert_eq!(server.written(&write, false, None).0, Outcome::Unreachable);
    assert_eq!(server.policy(), Some(&policy(1)));
    store.poll(&mut server, NOW);
    let write = server.set_policy(Some(policy(2)), &stamp("ann"), None).unwrap();
    assert!(store.put(&write));
    assert_eq!(server.written(&write, true, None).0, Outcome::Done, "it cannot be read, but was taken");
    assert_eq!(server.policy(), Some(&policy(2)));
    assert_eq!(store.post(&mut server, policy(3), None), Ok(Outcome::Done));
}

#[test]
fn a_row_that_does_not_count_changes_nothing_and_is_named_once() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    store.post(&mut server, policy(1), None).unwrap();
    let good = store.rows[&Name::Policy].value.clone();
    let other = Documents::new(b"another token 12", NAMESPACE).unwrap();
    let unknown = |content: Value| envelope::seal(&server.rule.key, Name::Policy, 2, &stamp("x"), &content).unwrap();
    let cases = [
        (good.replace("N1", "N2"), Reason::Signature),
        (envelope::seal(&other.rule.key, Name::Policy, 9, &stamp("x"), &json!({})).unwrap(), Reason::Signature),
        ("garbage".to_owned(), Reason::Malformed),
        ("x".repeat(MOST_ROW + 1), Reason::TooLarge),
        (r#"{"schema":2}"#.to_owned(), Reason::Schema),
        (unknown(json!({ "policy": null, "history": [], "more": 1 })), Reason::Content),
        (unknown(json!({ "policy": { "fromNextYear": true }, "history": [] })), Reason::Content),
        (good.clone(), Reason::Older),
    ];
    for (row, reason) in cases {
        store.vandal(row);
        let version = store.rows[&Name::Policy].version;
        let taken = server.take(Name::Policy, store.rows.get(&Name::Policy));
        assert_eq!(taken.refused.iter().map(|(_, refusal)| refusal.reason).collect::<Vec<_>>(), [reason]);
        assert_eq!((server.policy(), revision(&server)), (Some(&policy(1)), 1));
        let before = server.shown()[&Name::Policy].refusals.clone();
        assert_eq!(server.take(Name::Policy, store.rows.get(&Name::Policy)), Taken::default());
        assert_eq!(server.shown()[&Name::Policy].refusals, before, "a row counts once");
        assert_eq!(store.rows[&Name::Policy].version, version);
        server.take(Name::Policy, None);
        assert!(matches!(refused(&server), None | Some(Reason::Gone)));
        if reason == Reason::Older {
            assert_eq!(server.shown()[&Name::Policy].refusals[&Reason::Older], 1);
        }
    }
    // The highest revision of any that verified is 2, the highest that one said is 9.
    store.vandal("garbage");
    server.take(Name::Policy, store.rows.get(&Name::Policy));
    assert_eq!(store.post(&mut server, policy(5), None), Ok(Outcome::Done), "whoever has the token writes over it");
    assert_eq!((revision(&server), refused(&server)), (10, None));
}

#[test]
fn an_older_release_writes_over_nothing_that_it_cannot_read() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    let content = json!({ "policy": { "fromNextYear": true }, "history": [] });
    store.vandal(envelope::seal(&server.rule.key, Name::Policy, 4, &stamp("x"), &content).unwrap());
    store.poll(&mut server, NOW);
    assert_eq!(refused(&server), Some(Reason::Content));
    assert_eq!(store.post(&mut server, policy(1), None), Err(NotWritten::Newer));
    assert_eq!(
        store.post(&mut server, policy(1), Some(4)),
        Ok(Outcome::Done),
        "unless the operator says that it is seen"
    );
    assert_eq!(revision(&server), 5);
    // Of a form of another release not even the signature is known: what is in force here, and its revision, are no answer to it.
    store.vandal(r#"{"schema":2,"name":"policy","revision":6}"#);
    store.poll(&mut server, NOW);
    let refusal = server.shown()[&Name::Policy].refused.clone().unwrap();
    assert_eq!((refusal.reason, refusal.revision), (Reason::Schema, 6));
    for saw in [5, 0, 7] {
        assert_eq!(store.post(&mut server, policy(2), Some(saw)), Err(NotWritten::Conflict));
    }
    assert_eq!(store.post(&mut server, policy(2), None), Err(NotWritten::Newer));
    assert_eq!(store.post(&mut server, policy(2), Some(6)), Ok(Outcome::Done));
    assert_eq!(revision(&server), 7);
}

#[test]
fn a_row_that_vanished_or_is_old_is_put_back() {
    let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
    store.poll(&mut a, NOW);
    store.post(&mut a, policy(1), None).unwrap();
    let old = store.rows[&Name::Policy].value.clone();
    store.post(&mut a, policy(2), None).unwrap();
    store.rows.clear();
    assert_eq!(store.poll(&mut a, NOW), Taken::default());
    store.poll(&mut b, NOW);
    assert_eq!((b.policy(), revision(&b)), (Some(&policy(2)), 2));
    store.vandal(old);
    let mut fresh = documents();
    store.poll(&mut fresh, NOW);
    assert_eq!(revision(&fresh), 1, "it cannot know better");
    let taken = store.poll(&mut a, NOW);
    assert_eq!(taken.refused.iter().map(|(_, refusal)| refusal.reason).collect::<Vec<_>>(), [Reason::Older]);
    store.poll(&mut fresh, NOW);
    assert_eq!((fresh.policy(), refused(&a)), (Some(&policy(2)), None));
    // A row that is right for servers with another token is nobody's to write over but the operator's.
    store.vandal("garbage");
    store.poll(&mut a, NOW);
    assert_eq!(store.rows[&Name::Policy].value, "garbage");
}

#[test]
fn a_signed_row_that_another_writer_was_faster_than_counts_nowhere() {
    let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
    store.poll(&mut a, NOW);
    store.poll(&mut b, NOW);
    let lost = b.set_policy(Some(policy(2)), &stamp("bob"), None).unwrap();
    store.post(&mut a, policy(1), None).unwrap();
    assert!(!store.put(&lost));
    store.vandal(lost.value.clone());
    store.poll(&mut a, NOW);
    assert_eq!((a.policy(), revision(&a), refused(&a)), (Some(&policy(1)), 1, Some(Reason::Older)));
    assert_eq!(store.rows[&Name::Policy].value, lost.value, "other servers may hold it, and would put theirs back");
    store.post(&mut a, policy(3), Some(1)).unwrap();
    store.poll(&mut b, NOW);
    assert_eq!((b.policy(), revision(&b), refused(&a)), (Some(&policy(3)), 2, None));
}

#[test]
fn numbers_that_nobody_signed_leave_room_for_the_next() {
    let (mut store, mut server) = (Store::default(), documents());
    server.restore(&Kept { highest: [(Name::Policy, u64::MAX)].into(), ..Kept::default() });
    store.poll(&mut server, NOW);
    assert_eq!(store.post(&mut server, policy(1), None), Ok(Outcome::Done));
    assert_eq!(revision(&server), 1);
    let good = store.rows[&Name::Policy].value.clone();
    for version in [i64::MIN, -1, 0, i64::MAX] {
        store.rows.insert(Name::Policy, Row { version, value: good.clone() });
        store.poll(&mut server, NOW);
        assert_eq!((server.policy(), refused(&server)), (Some(&policy(1)), Some(Reason::Version)));
        assert!(server.shown()[&Name::Policy].refused.as_ref().unwrap().detail.ends_with("remove the row"));
        assert_eq!(store.post(&mut server, policy(2), None), Err(NotWritten::Version));
        store.rows.clear();
        store.poll(&mut server, NOW);
        assert_eq!((&store.rows[&Name::Policy].value, refused(&server)), (&good, None), "it is put back");
    }
    store.rows.insert(Name::Policy, Row { version: i64::MAX - 1, value: good });
    store.poll(&mut server, NOW);
    assert_eq!(refused(&server), None);
    let highest = envelope::seal(&server.rule.key, Name::Policy, u64::MAX, &stamp("x"), &PolicyContent::default());
    server.take(Name::Policy, Some(&Row { version: NOW, value: highest.unwrap() }));
    assert!(server.set_policy(None, &stamp("ann"), None).is_ok());
}

#[test]
fn only_a_signed_null_goes_back_to_the_properties() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    store.post(&mut server, policy(1), None).unwrap();
    store.rows.clear();
    server.take(Name::Policy, None);
    assert!(server.policy().is_some());
    let write = server.set_policy(None, &stamp("ann"), Some(1)).unwrap();
    let stored = store.put(&write);
    assert_eq!(server.written(&write, stored, store.read(Name::Policy)).0, Outcome::Done);
    assert_eq!((server.policy(), revision(&server)), (None, 2));
    assert_eq!(server.history()[0].policy, Some(policy(1)));
}

#[test]
fn what_is_kept_over_a_restart_knows_the_document_and_what_is_older() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    store.post(&mut server, policy(1), None).unwrap();
    let old = store.rows[&Name::Policy].value.clone();
    store.post(&mut server, policy(2), None).unwrap();
    let kept: Kept = serde_json::from_str(&serde_json::to_string(&server.kept()).unwrap()).unwrap();
    let mut again = documents();
    assert_eq!(again.restore(&kept).changed, [Name::Policy]);
    assert_eq!((again.policy(), again.history().len()), (Some(&policy(2)), 1), "also while the store is away");
    store.vandal(old);
    again.take(Name::Policy, store.rows.get(&Name::Policy));
    assert_eq!((refused(&again), revision(&again)), (Some(Reason::Older), 2));
    // Whoever changed the token cannot verify what was kept, and knows what was there all the same.
    let mut other = Documents::new(b"another token 12", NAMESPACE).unwrap();
    let taken = other.restore(&kept);
    assert!(taken.changed.is_empty() && other.policy().is_none());
    other.take(Name::Policy, None);
    assert_eq!(store.rows.remove(&Name::Policy).map(|_| ()), Some(()));
    assert_eq!(revision(&other), 0);
    assert_eq!(store.post(&mut other, policy(3), Some(1)), Err(NotWritten::Conflict));
    assert_eq!(store.post(&mut other, policy(3), Some(0)), Ok(Outcome::Done), "as an operator sees it there");
    assert_eq!(revision(&other), 3);
}

#[test]
fn a_clock_that_is_an_hour_behind_writes_all_the_same() {
    let (mut store, mut ahead, mut behind) = (Store::default(), documents(), documents());
    store.poll(&mut ahead, NOW);
    store.post(&mut ahead, policy(1), None).unwrap();
    store.poll(&mut behind, NOW);
    let late = Stamp { when: NOW - 3_600_000, ..stamp("bob") };
    let write = behind.set_policy(Some(policy(2)), &late, None).unwrap();
    assert_eq!(write.version, write.expect + 1);
    assert!(store.put(&write));
    assert_eq!(behind.written(&write, true, store.read(Name::Policy)).0, Outcome::Done);
    assert_eq!(store.poll(&mut ahead, NOW).changed, [Name::Policy]);
}

#[test]
fn the_last_ten_policies_are_kept_as_far_as_a_row_has_room() {
    let (mut store, mut server) = (Store::default(), documents());
    store.poll(&mut server, NOW);
    for n in 0..13 {
        assert_eq!(store.post(&mut server, policy(n), None), Ok(Outcome::Done));
    }
    let history: Vec<u64> = server.history().iter().map(|past| past.revision).collect();
    assert_eq!(history, (3..13).rev().collect::<Vec<u64>>());
    assert_eq!(
        (server.history()[0].policy.as_ref(), server.history()[0].stamp.by.as_str()),
        (Some(&policy(11)), "ann")
    );
    // Digits of a hash do not pack to less than half: three of these fill a row.
    let noise = |n: usize| {
        let digits = |k: usize| crate::digest::hex(&crate::digest::prefix_of::<32>(format!("{n} {k}")));
        json!({ "exclude": (0..350).map(digits).collect::<Vec<_>>() })
    };
    for n in 0..5 {
        assert_eq!(store.post(&mut server, noise(n), None), Ok(Outcome::Done));
        assert!(store.rows[&Name::Policy].value.len() <= MOST_ROW);
    }
    assert!((1..5).contains(&server.history().len()), "{}", server.history().len());
    let too_large = json!({ "exclude": (0..8).map(noise).collect::<Vec<_>>().iter().flat_map(|it| it["exclude"].as_array().unwrap()).collect::<Vec<_>>() });
    assert_eq!(store.post(&mut server, too_large, None), Err(NotWritten::TooLarge));
    let invalid = store.post(&mut server, json!({ "exclude": 1, "x": 2 }), None);
    assert!(matches!(invalid, Err(NotWritten::Invalid(why)) if why.lines().count() == 2));
}

#[test]
fn a_freeze_and_pins_are_documents_as_well() {
    let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
    store.poll(&mut a, NOW);
    let orders = OrdersContent { freeze: Some(Freeze { until: Some(NOW + 60_000) }) };
    let write = a.set_orders(orders, &stamp("ann"), None).unwrap();
    assert!(store.put(&write));
    let pins = PinsContent { places: [("a.sofa.mesh".into(), "a".into())].into() };
    let write = a.repin(&pins.places, &BTreeSet::new(), &stamp("registry-mox")).unwrap().unwrap();
    assert!(store.put(&write));
    assert_eq!(store.poll(&mut b, NOW).changed, [Name::Orders, Name::Pins]);
    assert_eq!(b.freeze().map(|(freeze, stamp)| (freeze.until, stamp.by.as_str())), Some((Some(NOW + 60_000), "ann")));
    assert_eq!(b.pins(), Some(&pins));
}

#[test]
fn who_sees_a_contest_first_pins_it_and_a_pin_goes_with_its_service() {
    let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
    let places = |all: &[(&str, &str)]| -> BTreeMap<Arc<str>, Arc<str>> {
        all.iter().map(|(place, id)| ((*place).into(), (*id).into())).collect()
    };
    let at = stamp("registry-mox");
    let mut repin = |server: &mut Documents, contests: &[(&str, &str)], gone: &[&str]| {
        store.poll(server, NOW);
        let gone = gone.iter().map(|id| Arc::from(*id)).collect();
        let write = server.repin(&places(contests), &gone, &at)?.unwrap();
        let stored = store.put(&write);
        Some(server.written(&write, stored, store.read(Name::Pins)).0)
    };
    assert_eq!(repin(&mut a, &[], &[]), None);
    assert_eq!(repin(&mut a, &[("h", "x")], &[]), Some(Outcome::Done));
    assert_eq!(repin(&mut b, &[("h", "y")], &[]), None, "another has it there, until it hears of the pin");
    assert_eq!(repin(&mut b, &[("h", "y"), ("248.0.0.1", "z")], &[]), Some(Outcome::Done));
    assert_eq!(repin(&mut a, &[("h", "x")], &["other"]), None);
    assert_eq!(a.pins().unwrap().places, places(&[("h", "x"), ("248.0.0.1", "z")]));
    assert_eq!(repin(&mut a, &[], &["x"]), Some(Outcome::Done));
    assert_eq!(a.pins().unwrap().places, places(&[("248.0.0.1", "z")]));
    let many: Vec<String> = (0..2 * MOST_PINS).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|place| (&**place, "x")).collect();
    assert_eq!(repin(&mut a, &many, &[]), Some(Outcome::Done));
    assert_eq!(a.pins().unwrap().places.len(), MOST_PINS);
}

/// As where the database goes back to a copy that does not have the last row, and another server pins before that is put back.
#[test]
fn of_two_pins_of_one_revision_the_same_counts_everywhere() {
    let pins = |id: &str| -> BTreeMap<Arc<str>, Arc<str>> { [("h".into(), id.into())].into() };
    let pinned = |server: &Documents| server.pins().unwrap().places["h"].to_string();
    for (first, second) in [("x", "y"), ("y", "x")] {
        let (mut store, mut a, mut b) = (Store::default(), documents(), documents());
        for (server, id) in [(&mut a, first), (&mut b, second)] {
            store.rows.clear();
            server.take(Name::Pins, None);
            let write = server.repin(&pins(id), &BTreeSet::new(), &stamp("registry-mox")).unwrap().unwrap();
            let stored = store.put(&write);
            assert_eq!(server.written(&write, stored, store.read(Name::Pins)).0, Outcome::Done);
        }
        for _ in 0..2 {
            store.poll(&mut a, NOW);
            store.poll(&mut b, NOW);
        }
        assert_eq!((pinned(&a), pinned(&b)), ("x".to_owned(), "x".to_owned()), "whoever was first");
        let none_refused = [&a, &b].iter().all(|server| server.shown()[&Name::Pins].refused.is_none());
        assert!(none_refused && store.poll(&mut a, NOW) == Taken::default());
        assert!(a.repin(&pins("x"), &BTreeSet::new(), &stamp("registry-mox")).is_none());
    }
}

#[test]
fn what_no_operator_asks_for_writes_over_no_row_that_is_refused() {
    let (mut store, mut ours) = (Store::default(), documents());
    let mut other = Documents::new(b"another token 12", NAMESPACE).unwrap();
    let freeze = |until| OrdersContent { freeze: Some(Freeze { until: Some(until) }) };
    store.poll(&mut ours, NOW);
    let write = ours.set_orders(freeze(NOW + 1), &stamp("ann"), None).unwrap();
    assert!(store.put(&write));
    store.poll(&mut ours, NOW);
    assert!(ours.lapse(&stamp("registry-mox")).is_some());
    store.poll(&mut other, NOW);
    assert!(store.put(&other.set_orders(freeze(NOW + 2), &stamp("bob"), None).unwrap()));
    let pins: BTreeMap<Arc<str>, Arc<str>> = [("h".into(), "x".into())].into();
    assert!(store.put(&other.repin(&pins, &BTreeSet::new(), &stamp("registry-mox")).unwrap().unwrap()));
    store.poll(&mut ours, NOW);
    assert!(ours.freeze().is_some() && ours.lapse(&stamp("registry-mox")).is_none());
    assert!(ours.repin(&pins, &BTreeSet::new(), &stamp("registry-mox")).is_none());
    assert!(ours.set_orders(OrdersContent::default(), &stamp("ann"), None).is_ok(), "an operator does");
    // Nobody sets pins: after a change of the token their row is removed, and they begin anew above what was there.
    let mut changed = documents();
    changed.restore(&Kept { highest: [(Name::Pins, 3)].into(), ..Kept::default() });
    store.poll(&mut changed, NOW);
    assert!(changed.repin(&pins, &BTreeSet::new(), &stamp("registry-mox")).is_none());
    store.rows.remove(&Name::Pins);
    store.poll(&mut changed, NOW);
    assert_eq!(changed.shown()[&Name::Pins].refused.as_ref().map(|refusal| refusal.reason), Some(Reason::Gone));
    assert!(store.put(&changed.repin(&pins, &BTreeSet::new(), &stamp("registry-mox")).unwrap().unwrap()));
    store.poll(&mut changed, NOW);
    assert_eq!((changed.pins().unwrap().places.len(), changed.shown()[&Name::Pins].revision), (1, 4));
}

#[derive(Debug, Clone)]
enum Step {
    Post { server: usize, n: usize, answer_lost: bool, seen: bool },
    Poll { server: usize },
    Restart { server: usize, keeps: bool },
    Tamper,
    Remove,
    Replay { which: usize },
    NewerRelease { schema: u64 },
    Away(bool),
    Contest { server: usize, n: usize },
    Copy,
    GoBack,
}

fn step() -> impl Strategy<Value = Step> {
    let server = 0..3usize;
    prop_oneof![
        4 => (server.clone(), 0..1_000usize, any::<bool>(), any::<bool>())
            .prop_map(|(server, n, answer_lost, seen)| Step::Post { server, n, answer_lost, seen }),
        6 => server.clone().prop_map(|server| Step::Poll { server }),
        1 => (server.clone(), any::<bool>()).prop_map(|(server, keeps)| Step::Restart { server, keeps }),
        1 => Just(Step::Tamper),
        1 => Just(Step::Remove),
        1 => any::<usize>().prop_map(|which| Step::Replay { which }),
        1 => (1..3u64).prop_map(|schema| Step::NewerRelease { schema }),
        1 => any::<bool>().prop_map(Step::Away),
        2 => (server.clone(), 0..4usize).prop_map(|(server, n)| Step::Contest { server, n }),
        1 => Just(Step::Copy),
        1 => Just(Step::GoBack),
    ]
}

/// Three session servers whose clocks are an hour apart.
struct World {
    store: Store,
    /// The database's rows as they were once.
    copy: BTreeMap<Name, Row>,
    servers: Vec<Documents>,
    posted: Vec<Value>,
    rows: Vec<String>,
    highest: Vec<u64>,
    /// Revision and policy of each server before the last step.
    before: Vec<(u64, Option<Value>)>,
}

impl World {
    fn clock(server: usize) -> Millis {
        NOW + 3_600_000 * server as Millis
    }

    fn do_step(&mut self, step: Step) {
        match step {
            Step::Post { server, n, answer_lost, seen } => {
                let at = Stamp { when: Self::clock(server), ..stamp("ann") };
                let saw = seen.then(|| saw(&self.servers[server]));
                let document = &mut self.servers[server];
                let Ok(write) = document.set_policy(Some(policy(n)), &at, saw) else { return };
                self.posted.push(policy(n));
                // Also a row that is not stored has a signature, and can be put there later.
                self.rows.push(write.value.clone());
                let before = self.store.rows.get(&Name::Policy).cloned();
                let stored = self.store.put(&write);
                let (outcome, _) = document.written(&write, stored && !answer_lost, self.store.read(Name::Policy));
                match outcome {
                    Outcome::Done => assert_eq!(document.policy(), Some(&policy(n))),
                    _ => assert!(!stored && self.store.rows.get(&Name::Policy) == before.as_ref()),
                }
            }
            Step::Poll { server } => {
                self.store.poll(&mut self.servers[server], Self::clock(server));
            }
            Step::Restart { server, keeps } => {
                let kept = self.servers[server].kept();
                self.servers[server] = documents();
                match keeps {
                    true => drop(self.servers[server].restore(&kept)),
                    false => (self.highest[server], self.before[server]) = (0, (0, None)),
                }
            }
            Step::Tamper => {
                if let Some(row) = self.store.rows.get(&Name::Policy).cloned() {
                    self.store.vandal(row.value.replace("com.example", "org.example").replacen(':', " : ", 1));
                }
            }
            Step::Remove => drop(self.store.rows.remove(&Name::Policy)),
            Step::Replay { which } => {
                if !self.rows.is_empty() {
                    self.store.vandal(self.rows[which % self.rows.len()].clone());
                }
            }
            Step::NewerRelease { schema } => {
                let revision = self.servers.iter().map(|server| server.policy.highest()).max().unwrap_or_default() + 1;
                let content = json!({ "policy": { "fromNextYear": true }, "history": [] });
                let key = &self.servers[0].rule.key;
                let row = envelope::seal(key, Name::Policy, revision, &stamp("x"), &content).unwrap();
                self.store.vandal(row.replacen("\"schema\":1", &format!("\"schema\":{schema}"), 1));
            }
            Step::Away(away) => self.store.away = away,
            Step::Contest { server, n } => {
                let (place, holder) = (format!("h{}", n / 2).into(), format!("x{}", server + n).into());
                let document = &mut self.servers[server];
                let write = document.repin([(&place, &holder)], &BTreeSet::new(), &stamp("registry-mox"));
                let Some(Ok(write)) = write else { return };
                let stored = self.store.put(&write);
                document.written(&write, stored, self.store.read(Name::Pins));
            }
            Step::Copy => self.copy = self.store.rows.clone(),
            Step::GoBack => self.store.rows = self.copy.clone(),
        }
        if let Some(row) = self.store.rows.get(&Name::Policy) {
            self.rows.push(row.value.clone());
        }
        for (server, highest) in self.servers.iter().zip(&mut self.highest) {
            let held = server.policy();
            assert!(held.is_none_or(|held| self.posted.contains(held)), "nobody with the token wrote {held:?}");
            assert!(revision(server) >= *highest, "a revision never goes back");
            *highest = revision(server);
        }
        for (server, before) in self.servers.iter().zip(&mut self.before) {
            let now = (revision(server), server.policy().cloned());
            assert!(now.0 != before.0 || now == *before, "of one revision there is one document");
            *before = now;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    /// Whatever is done to the store: only signed documents count, revisions never go back, and when it is over all agree.
    #[test]
    fn whatever_happens_to_the_store_all_agree_in_the_end(steps in prop::collection::vec(step(), 1..60)) {
        let servers = (0..3).map(|_| documents()).collect();
        let mut world = World {
            store: Store::default(),
            copy: BTreeMap::new(),
            servers,
            posted: vec![],
            rows: vec![],
            highest: vec![0; 3],
            before: vec![(0, None); 3],
        };
        steps.into_iter().for_each(|step| world.do_step(step));
        world.do_step(Step::Away(false));
        (0..3).for_each(|server| world.do_step(Step::Poll { server }));
        if (0..3).any(|server| refused(&world.servers[server]).is_some()) {
            // The operator writes over what does not count, and after a conflict once more.
            let server = (0..3).max_by_key(|server| world.servers[*server].policy.highest()).unwrap();
            for _ in 0..2 {
                world.do_step(Step::Post { server, n: 7, answer_lost: false, seen: true });
            }
        }
        // Each reads once; who has put something back had the others read before it.
        for _ in 0..2 {
            (0..3).for_each(|server| world.do_step(Step::Poll { server }));
        }
        let all: Vec<_> = world.servers.iter().map(|server| (revision(server), server.policy())).collect();
        prop_assert!(all.windows(2).all(|two| two[0] == two[1]), "{all:?}");
        prop_assert!((0..3).all(|server| refused(&world.servers[server]).is_none()));
        let pins: Vec<_> = world.servers.iter().map(Documents::pins).collect();
        prop_assert!(pins.windows(2).all(|two| two[0] == two[1]), "{pins:?}");
        prop_assert!(world.servers.iter().all(|server| server.pins.refused().is_none()));
    }
}

/// What ten thousand services take whose consumers are in fifty namespaces, most of them in a few.
#[test]
fn ten_thousand_services_take_four_rows() {
    use crate::visibility::{
        keeper::{self, Keeper, PACE, Wanted, World},
        report::{Client, Report},
        servers::Read,
    };
    const SERVICES: usize = 10_000;
    let (mut store, mut server, mut keeper) = (Store::default(), documents(), Keeper::default());
    keeper.is("10.0.0.1/1");
    let clients = (0..50).map(|n| Client { application: Some(format!("n{n}").into()), address: None, cell: None });
    let of = |n: usize| -> Box<[u32]> { (0..1 + n % 4).map(|k| ((n * 7 + k * k * 13) % 50) as u32).collect() };
    let named = |n: usize| Arc::from(format!("com.example.team{}.Facade{n}:1.0@DEFAULT#@#x#@#SOFA", n % 40));
    let services: BTreeMap<Arc<str>, Box<[u32]>> = (0..SERVICES).map(|n| (named(n), of(n))).collect();
    let mut report = Some(Report { clients: clients.map(Some).collect(), services });
    let world = World { asks: true, hold: 1_000, knows: &|_| true, keeps: &|_, _| true, locates: true, patience: 0 };
    let (mut now, mut writes) = (NOW, 0);
    while server.seen().is_none_or(|seen| seen.len() != SERVICES) {
        now += PACE;
        assert!(now < NOW + 30 * PACE, "{:?} after {writes} writes", server.lease());
        store.poll(&mut server, now);
        let view = keeper::Documents {
            lease: server.lease(),
            pages: server.pages(),
            beat: server.beat(),
            content: server.content(),
            refused: server.refused_visibility(),
        };
        keeper.look(now, &view);
        if keeper.computes(now, &view) {
            match report.take() {
                Some(all) => {
                    keeper.report("10.0.0.1", Read::new(all, &|client| client.application.iter().cloned().collect()))
                }
                None => assert!(keeper.same("10.0.0.1")),
            }
            keeper.end_round(now, &["10.0.0.1".into()].into(), &view, &world);
        }
        let write = loop {
            match keeper.next(now, &view, &world) {
                None => break None,
                Some(Wanted::Lease(lease)) => break server.set_lease(lease, &stamp("registry-mox")),
                Some(Wanted::Page(n, page)) => {
                    let services = page.len();
                    match server.set_page(n, page, &stamp("registry-mox")) {
                        Err(NotWritten::TooLarge) => keeper.too_large(n, services),
                        write => break write.ok(),
                    }
                }
            }
        };
        if let Some(write) = write {
            writes += 1;
            assert!(store.put(&write));
        }
    }
    let sizes: Vec<usize> = store.rows.values().map(|row| row.value.len()).collect();
    println!("{SERVICES} services in {writes} writes: rows of {sizes:?} bytes");
    assert!(sizes.iter().all(|size| *size <= MOST_ROW) && sizes.iter().sum::<usize>() <= 256 << 10, "{sizes:?}");
    // Who starts reads the lease first, and by that all pages.
    let mut other = documents();
    other.take(Name::Visibility, store.rows.get(&Name::Visibility));
    assert!(other.seen().is_none(), "the pages are missing");
    let names = other.visibility_names(true);
    assert!(store.rows.keys().all(|name| names.contains(name)), "{names:?}");
    names.into_iter().for_each(|name| drop(other.take(name, store.rows.get(&name))));
    assert_eq!(other.seen().map(|seen| seen.len()), Some(SERVICES));
    assert_eq!(other.visibility_names(false), [Name::Visibility], "it is to be ended");
}

/// Nobody sets pages, so nobody but the session server that computes can write over one that is damaged.
#[test]
fn a_page_that_is_damaged_can_be_written_over() {
    use crate::visibility::{keeper::Refused, page::Page};
    let mut server = documents();
    let name = Name::VisibilityPage(0);
    server.take(name, None);
    let held = server.set_page(0, Page::default(), &stamp("registry-mox")).unwrap();
    server.take(name, Some(&Row { version: held.version, value: held.value }));
    assert_eq!(server.refused_visibility().pages, [None; 16]);
    let version = held.version + 1;
    server.take(name, Some(&Row { version, value: "damaged".to_owned() }));
    assert_eq!(server.refused_visibility().pages[0], Some(Refused { version, is_damaged: true }));
    assert_eq!(server.pages()[0], Some(&Page::default()), "the last one counts");
    let write = server.set_page(0, Page::default(), &stamp("registry-mox")).unwrap();
    assert_eq!(write.expect, version);
    let mut other = documents();
    let taken = other.take(name, Some(&Row { version: write.version, value: write.value }));
    assert_eq!((taken.changed, taken.refused), (vec![name], vec![]));
}
