//! The behaviour of a plan, one thing at a time.

use super::{model::*, simulation::*, *};
use crate::kubernetes::objects::Fingerprint;

const SOON: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// A world whose plan knows the API, which is empty, with services of two endpoints by name.
fn world(names: &[&str]) -> Simulation {
    let mut world = Simulation::new();
    world.want_named(names, &[1, 2]);
    world.run(10 * SECOND);
    assert!(world.plan.in_sync());
    world.begun.clear();
    world
}

fn named(name: &str) -> ObjectKey {
    key(ObjectKind::ServiceEntry, name)
}

fn names(world: &Simulation) -> Vec<String> {
    world.begun.iter().map(|(_, key)| key.to_string()).collect()
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("real{n:02}")).collect()
}

// Order.

#[test]
fn workload_entries_come_first_and_go_last() {
    for shape in [ServiceShape::Selecting { mask: 7, revision: 0 }, ServiceShape::Split { mask: 7, revision: 0 }] {
        let mut world = world(&[]);
        world.want(&[(1, shape)]);
        world.run(SECOND);
        let begun = names(&world);
        assert!(begun.len() == 4 && begun[..3].iter().all(|name| name.starts_with("WorkloadEntry")), "{begun:?}");
        world.begun.clear();
        world.want(&[(1, ServiceShape::Absent)]);
        world.run(SECOND);
        let begun = names(&world);
        assert!(begun.len() == 4 && begun[0] == "ServiceEntry s1", "{begun:?}");
        assert!(world.server.objects.is_empty());
    }
}

#[test]
fn a_service_moves_out_and_back_without_a_gap() {
    let mut world = world(&[]);
    world.want(&[(1, ServiceShape::Inline { mask: 3, revision: 0 })]);
    world.run(SECOND);
    world.begun.clear();
    world.want(&[(1, ServiceShape::Split { mask: 15, revision: 0 })]);
    world.run(SECOND);
    assert_eq!(names(&world).last().unwrap(), "ServiceEntry s1", "when all WorkloadEntries are there");
    world.begun.clear();
    world.want(&[(1, ServiceShape::Inline { mask: 1, revision: 0 })]);
    world.run(SECOND);
    assert_eq!((names(&world).len(), names(&world).remove(0)), (5, "ServiceEntry s1".to_owned()));
}

#[test]
fn an_endpoint_of_a_service_that_selects_waits_for_nothing() {
    let mut world = world(&[]);
    world.want(&[(1, ServiceShape::Selecting { mask: 3, revision: 0 })]);
    world.run(SECOND);
    world.want(&[(1, ServiceShape::Selecting { mask: 6, revision: 0 })]);
    let in_flight: BTreeSet<String> = world.in_flight().iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(
        Vec::from_iter(in_flight),
        ["WorkloadEntry w1-0", "WorkloadEntry w1-2"],
        "and the service is not written"
    );
}

#[test]
fn a_workload_entry_that_others_relabelled_is_not_there() {
    let mut world = world(&[]);
    world.want(&[(1, ServiceShape::Selecting { mask: 1, revision: 0 })]);
    world.answer(0, Fault::None);
    world.order(|orders| orders.frozen = true);
    world.meddle(&key(ObjectKind::WorkloadEntry, "w1-0"), Meddling::Relabel);
    world.answer(0, Fault::Lost);
    world.run(SECOND);
    world.order(|orders| orders.frozen = false);
    let in_flight: Vec<ObjectKey> = world.in_flight().into_iter().map(|(key, _)| key).collect();
    assert_eq!(in_flight, [key(ObjectKind::WorkloadEntry, "w1-0")], "the selector would not find it");
    world.run(SECOND);
    assert!(world.plan.in_sync());
}

#[test]
fn a_refused_workload_entry_holds_up_no_service() {
    for (fault, within) in [(Fault::Invalid, SOON), (Fault::Denied, SOON), (Fault::Hangs, 4 * SECOND)] {
        let mut world = world(&[]);
        world.refuses.insert(key(ObjectKind::WorkloadEntry, "w1-0"), fault);
        world.want(&[(1, ServiceShape::Selecting { mask: 3, revision: 0 })]);
        world.run(within);
        assert!(world.shown("s1").is_some(), "{fault:?}");
    }
}

#[test]
fn missing_rights_for_workload_entries_make_no_service_that_selects_none() {
    let mut world = world(&[]);
    world.refuses_kind.insert(ObjectKind::WorkloadEntry);
    world.want(&[
        (1, ServiceShape::Selecting { mask: 3, revision: 0 }),
        (2, ServiceShape::Inline { mask: 3, revision: 0 }),
    ]);
    world.run(3_000 * SECOND);
    assert!(world.shown("s1").is_none() && world.shown("s2").is_some());
    world.refuses_kind.clear();
    world.run(301 * SECOND);
    assert!(world.shown("s1").is_some() && world.plan.in_sync());
}

#[test]
fn workload_entries_outlive_a_service_whose_fate_is_unknown() {
    for fault in [Fault::LostAnswer, Fault::Delayed] {
        let mut world = world(&[]);
        world.want(&[(1, ServiceShape::Selecting { mask: 1, revision: 0 })]);
        world.answer(0, Fault::None);
        assert_eq!(world.in_flight()[0].0, service(1));
        world.answer(0, fault);
        world.want(&[(1, ServiceShape::Absent)]);
        assert!(world.in_flight().is_empty(), "the ServiceEntry may be there, and select");
        world.run(61 * SECOND);
        assert!(world.server.objects.is_empty() && world.plan.in_sync());
    }
}

#[test]
fn removals_of_endpoints_go_first() {
    let real = many(12);
    let mut world = world(&real.iter().map(String::as_str).collect::<Vec<_>>());
    world.order(|orders| orders.frozen = true);
    world.want_named((0..12).map(|n| format!("aaa{n}")), &[1]);
    world.want_named(&real, &[1]);
    world.order(|orders| orders.frozen = false);
    world.run(SECOND);
    let removals = names(&world)[..12].iter().filter(|name| name.starts_with("ServiceEntry real")).count();
    assert_eq!((removals, world.begun.len()), (9, 24), "and every fourth is of the least urgent");
}

// Writes over known states.

#[test]
fn writes_are_over_what_was_seen() {
    let mut world = world(&["a"]);
    world.want_named(["a", "new"], &[1]);
    let in_flight = world.in_flight();
    let over = |state: &ObjectState| (state.uid.to_string(), state.version.to_string());
    match &in_flight[..] {
        [(a, WriteRequest::Update(state)), (new, WriteRequest::Create)] => {
            assert_eq!((a, new, over(state)), (&named("a"), &named("new"), ("u1".into(), "1".into())));
        }
        other => panic!("{other:?}"),
    }
    world.run(SECOND);
    world.want_no_more("a");
    assert!(matches!(&world.in_flight()[..], [(_, WriteRequest::Delete(state))] if &*state.version != "1"));
}

#[test]
fn a_foreign_object_is_left_alone_and_reported() {
    let mut world = world(&["mine"]);
    world.meddle(&named("taken"), Meddling::Create);
    world.want_named(["taken", "both"], &[1]);
    // The first is not known yet, and the second comes in the same moment.
    world.meddle(&named("both"), Meddling::Create);
    world.run(SECOND);
    assert_eq!(world.plan.problems().keys().collect::<Vec<_>>(), [&named("both"), &named("taken")]);
    assert_eq!(world.plan.problems()[&named("both")].code, None);
    assert!(!world.plan.in_sync() && world.plan.pending() == 0);
    world.meddle(&named("mine"), Meddling::TakeOver);
    world.want_no_more("mine");
    world.run(SECOND);
    assert!(world.shown("mine").is_some(), "what was ours is not deleted");
    world.meddle(&named("both"), Meddling::Delete);
    world.want_no_more("taken");
    world.run(SECOND);
    assert!(world.plan.in_sync() && world.shown("both") == Some(&[1]));
}

#[test]
fn a_conflict_is_over_with_the_next_event() {
    let mut world = world(&["a"]);
    world.meddle(&named("a"), Meddling::EditOthers);
    world.want_named(["a"], &[1]);
    world.answer(0, Fault::None);
    assert_eq!((world.plan.counts().conflicts, world.in_flight().len()), (1, 0));
    world.deliver(ObjectKind::ServiceEntry, 0);
    assert_eq!(world.in_flight().len(), 1, "at once");
    world.run(SECOND);
    assert!(world.plan.in_sync() && world.shown("a") == Some(&[1]));
}

#[test]
fn who_undoes_what_is_written_is_fought_slowly() {
    let mut world = world(&["a"]);
    let begin = world.now;
    while world.now < begin + 60 * SECOND {
        world.meddle(&named("a"), Meddling::Edit);
        world.run(Duration::from_millis(20));
    }
    let tries = world.tries(&named("a")).len();
    assert!((3..=10).contains(&tries), "{tries} writes in a minute");
    assert_eq!(&*world.plan.problems()[&named("a")].message, "another writer changes it again and again");
    world.run(600 * SECOND);
    assert!(world.plan.in_sync());
    // In peace the first is undone at once.
    world.run(700 * SECOND);
    world.begun.clear();
    world.meddle(&named("a"), Meddling::Edit);
    world.run(SOON);
    assert_eq!(world.begun.len(), 1);
}

#[test]
fn another_form_that_the_api_server_likes_is_taken_as_it_is() {
    let mut world = world(&[]);
    world.adjust(&named("a"));
    world.want_named(["a"], &[1]);
    world.run(60 * SECOND);
    assert_eq!((world.begun.len(), world.plan.in_sync()), (1, true));
    assert!(world.notices.iter().any(|notice| matches!(notice, Notice::Adjusted { .. })));
    world.meddle(&named("a"), Meddling::Edit);
    world.run(SECOND);
    assert_eq!((world.begun.len(), world.plan.in_sync()), (2, true), "but no other one");
}

#[test]
fn an_object_that_is_being_deleted_is_waited_for() {
    let mut world = world(&["a"]);
    world.meddle(&named("a"), Meddling::AddFinalizer);
    world.meddle(&named("a"), Meddling::Delete);
    world.run(60 * SECOND);
    assert_eq!((world.begun.len(), world.plan.pending()), (0, 1));
    world.meddle(&named("a"), Meddling::DropFinalizer);
    world.run(SECOND);
    assert_eq!((world.begun.len(), world.plan.in_sync()), (1, true));
}

// Lists, events and answers in any order.

#[test]
fn a_list_that_is_older_than_a_write_undoes_nothing() {
    let mut world = world(&["changed", "gone"]);
    world.lose_watch(ObjectKind::ServiceEntry);
    world.pass(SECOND);
    world.want_named(["new", "changed"], &[1]);
    world.want_no_more("gone");
    while !world.in_flight().is_empty() {
        world.answer(0, Fault::None);
    }
    let writes = world.begun.len();
    // The list is as of its begin.
    world.deliver(ObjectKind::ServiceEntry, 255);
    world.run(SECOND);
    assert_eq!((world.begun.len(), world.plan.in_sync()), (writes, true));
    assert_eq!((world.shown("changed"), world.shown("gone")), (Some(&[1][..]), None));
}

#[test]
fn a_list_that_is_newer_than_a_write_is_believed() {
    let mut world = world(&[]);
    world.lose_watch(ObjectKind::ServiceEntry);
    world.pass(SECOND);
    world.want_named(["a"], &[1]);
    world.answer(0, Fault::None);
    world.meddle(&named("a"), Meddling::Delete);
    world.deliver(ObjectKind::ServiceEntry, 0);
    assert_eq!(world.in_flight().len(), 1, "what another deleted is made again");
}

#[test]
fn an_answer_that_is_older_than_the_watch_is_not_believed() {
    for how in [Meddling::Delete, Meddling::TakeOver] {
        let mut world = world(&[]);
        world.want_named(["a"], &[1]);
        // The answer is on its way while somebody changes what was written.
        world.serve(0);
        world.meddle(&named("a"), how);
        while world.deliver(ObjectKind::ServiceEntry, 0) {}
        world.answer(0, Fault::None);
        world.run(SECOND);
        match how {
            Meddling::Delete => assert_eq!(world.shown("a"), Some(&[1][..]), "it is made again"),
            _ => assert!(world.plan.problems().contains_key(&named("a")), "it is another's"),
        }
    }
}

#[test]
fn an_api_server_that_lost_its_data_is_filled_again() {
    let mut world = world(&["a", "b"]);
    world.want(&[(1, ServiceShape::Split { mask: 5, revision: 0 })]);
    world.run(SECOND);
    world.lose_data();
    world.run(SECOND);
    assert!(world.plan.in_sync());
    assert_eq!(world.server.objects.len(), 5);
}

#[test]
fn what_is_in_the_api_already_is_not_written() {
    let mut world = world(&["a", "b"]);
    world.want(&[
        (1, ServiceShape::Split { mask: 3, revision: 0 }),
        (2, ServiceShape::Selecting { mask: 3, revision: 2 }),
    ]);
    world.run(SECOND);
    world.begun.clear();
    world.new_term(false);
    world.run(SECOND);
    assert_eq!((names(&world).len(), world.plan.in_sync(), world.plan.kept), (0, true, 0));
    assert_eq!(world.plan.first_sync().map(|first| (first.objects, first.writes)), Some((8, 0)));
}

#[test]
fn nothing_is_remembered_of_objects_that_are_gone() {
    let mut world = world(&[]);
    for n in 0..50 {
        let name = format!("s{n}");
        world.refuses.insert(named(&name), if n % 2 == 0 { Fault::Denied } else { Fault::Hangs });
        world.want_named([&name], &[1]);
        world.run(SECOND);
        world.refuses.clear();
        world.run(5 * SECOND);
        // Ours or not, refused or not: somebody deletes it, and nobody wants it.
        world.meddle(&named(&name), Meddling::Delete);
        world.want_no_more(&name);
        world.run(SECOND);
    }
    world.run(60 * SECOND);
    assert!(world.plan.objects.is_empty() && world.plan.problems().is_empty() && world.plan.doubts.is_empty());
    world.check_plan();
}

// The breaker.

#[test]
fn a_mass_deletion_is_withheld() {
    let mut world = world(&["a", "b", "c", "d"]);
    ["a", "b", "c"].into_iter().for_each(|name| world.want_no_more(name));
    world.want_named(["d", "new"], &[2, 3]);
    world.new_term(false);
    world.begun.clear();
    world.run(SECOND);
    assert_eq!(world.plan.withheld(), Some(Lost { services: 3, endpoints: 6 }));
    assert_eq!(names(&world), ["ServiceEntry d", "ServiceEntry new"], "a replacement and what is new are written");
    assert!(["a", "b", "c"].iter().all(|name| world.shown(name).is_some()));
    // An endpoint less, and a new one: the new one comes, the others stay.
    world.want_named(["d"], &[9]);
    world.run(SECOND);
    assert_eq!(world.shown("d"), Some(&[2, 3, 9][..]));
    world.order(|orders| orders.releases += 1);
    world.run(SECOND);
    assert!(world.plan.in_sync() && world.plan.withheld().is_none());
    assert_eq!((world.server.objects.len(), world.shown("d")), (2, Some(&[9][..])));
    assert!(world.notices.iter().any(|notice| matches!(notice, Notice::RemovalsGoOn { objects: 4, .. })));
}

#[test]
fn what_is_withheld_stays_with_its_service_however_that_is_served() {
    for (before, after) in [
        (ServiceShape::Split { mask: 15, revision: 0 }, ServiceShape::Inline { mask: 1, revision: 0 }),
        (ServiceShape::Inline { mask: 15, revision: 0 }, ServiceShape::Selecting { mask: 1, revision: 0 }),
        (ServiceShape::Selecting { mask: 15, revision: 0 }, ServiceShape::Selecting { mask: 1, revision: 0 }),
    ] {
        let mut world = world(&["a", "b"]);
        world.want(&[(1, before)]);
        world.run(SECOND);
        ["a", "b"].into_iter().for_each(|name| world.want_no_more(name));
        world.want(&[(1, after)]);
        world.new_term(false);
        world.run(SECOND);
        assert!(world.plan.withheld().is_some());
        // The world checks that the service has no fewer endpoints.
        world.run(599 * SECOND);
        assert!(world.plan.withheld().is_some() && world.shown("a").is_some(), "{before:?}");
        world.run(2 * SECOND);
        assert!(world.plan.in_sync() && world.shown("a").is_none(), "mox.protect.mass-delete-hold is over");
    }
}

#[test]
fn a_purge_deletes_what_is_ours_whatever_is_withheld() {
    let mut world = world(&["a", "b", "c"]);
    world.want(&[(1, ServiceShape::Split { mask: 3, revision: 0 })]);
    world.meddle(&named("theirs"), Meddling::Create);
    world.run(SECOND);
    ["a", "b"].into_iter().for_each(|name| world.want_no_more(name));
    world.new_term(false);
    world.run(SECOND);
    assert!(world.plan.withheld().is_some());
    world.order(|orders| orders.purging = true);
    world.run(SECOND);
    assert!(world.plan.in_sync() && world.plan.objects() == 0);
    assert_eq!(world.server.objects.keys().collect::<Vec<_>>(), [&named("theirs")]);
    world.order(|orders| orders.purging = false);
    world.run(SECOND);
    assert_eq!(world.server.objects.len(), 1 + 1 + 3);
}

// When writes begin.

#[test]
fn nothing_is_written_while_frozen_or_without_the_lease() {
    let mut world = world(&["a"]);
    world.order(|orders| orders.frozen = true);
    world.want_named(["a"], &[1]);
    world.run(60 * SECOND);
    assert_eq!((world.begun.len(), world.plan.pending()), (0, 1));
    world.renew(SECOND);
    world.run(SECOND);
    world.order(|orders| orders.frozen = false);
    assert_eq!(world.begun.len(), 0, "the lease is over");
    world.renew(SECOND);
    assert_eq!(world.begun.len(), 1);
}

#[test]
fn so_many_at_once_and_so_many_a_second() {
    let mut world = world(&[]);
    let begin = world.now;
    world.want_named(many(170), &[1]);
    assert_eq!(world.in_flight().len(), 3);
    world.run(SECOND);
    let first = world.begun.iter().filter(|(at, _)| *at <= begin + SECOND).count();
    assert!((90..=101).contains(&first), "{first}: 50 at once, and 50 in a second");
    world.run(2 * SECOND);
    assert!(world.plan.in_sync());
}

#[test]
fn a_service_that_is_never_done_holds_up_no_other() {
    let mut world = world(&["aaa"]);
    world.want_named(["real"], &[1, 2]);
    world.run(SECOND);
    // Its endpoints go and go, which is the most urgent, and its name is the first.
    let begin = world.now;
    let mut written = None;
    for n in 0..3_000 {
        world.want_named(["aaa"], &[1_000 - n % 2, 2_000 + n]);
        match n {
            1_000 => world.want_named(["new"], &[1]),
            1_001 => world.want_named(["real"], &[1, 2, 3]),
            _ => world.run(Duration::from_millis(1)),
        }
        if written.is_none()
            && world.shown("new").is_some()
            && world.shown("real").is_some_and(|shown| shown.len() == 3)
        {
            written = Some(n);
        }
    }
    let writes = world.tries(&named("aaa")).len() as u128;
    assert!(writes * 1_000 / (world.now - begin).as_millis() >= 40, "it takes what there is: {writes}");
    assert!(written.is_some_and(|n| n < 1_200), "{written:?}");
}

// Refusals. A denial has " cannot " in its words, as RBAC has.

#[test]
fn a_denied_object_holds_up_no_other() {
    let real = many(50);
    let mut world = world(&real.iter().map(String::as_str).collect::<Vec<_>>());
    world.refuses.insert(named("aaa.evil"), Fault::Denied);
    world.want_named(["aaa.evil"], &[1]);
    for (wait, name) in [0, 5, 20, 70, 300, 900].into_iter().zip(&real) {
        world.run(wait * SECOND);
        world.want_named([name], &[1]);
        world.run(SOON);
        assert_eq!(world.shown(name), Some(&[1][..]), "{wait} s later");
    }
    let (tries, problem) = (world.tries(&named("aaa.evil")).len(), &world.plan.problems()[&named("aaa.evil")]);
    assert!(
        tries <= 12 && problem.code == Some(403) && problem.message.contains("cannot be used"),
        "{tries} {problem:?}"
    );
    assert_eq!(world.plan.counts().pauses, 0);
}

#[test]
fn a_denied_update_is_not_the_only_one_that_is_tried() {
    let real = many(5);
    let mut world = world(&["aaa.evil", "real00", "real01", "real02", "real03", "real04"]);
    world.refuses.insert(named("aaa.evil"), Fault::Denied);
    // The update takes an endpoint away, so it comes first, and its name does as well.
    world.want_named(["aaa.evil"], &[2]);
    world.run(6 * SECOND);
    world.want_named(&real, &[1, 3]);
    world.want_named(["real.new"], &[1]);
    world.run(SOON);
    assert!(real.iter().all(|name| world.shown(name) == Some(&[1, 3])));
    assert!(world.shown("real.new").is_some());
}

#[test]
fn a_kind_is_barred_when_two_objects_are_refused_as_all_are() {
    let mut world = world(&[]);
    world.refuses_kind.insert(ObjectKind::ServiceEntry);
    world.want_named(many(50), &[1]);
    world.run(300 * SECOND);
    assert_eq!(world.plan.problems().len(), 50, "each is reported");
    assert!(world.plan.problems().values().all(|problem| problem.message.contains("cannot patch resource")));
    let tries = world.begun.len();
    assert!(tries <= 20, "{tries} tries for 50 services");
    let tried: BTreeSet<&ObjectKey> = world.begun.iter().map(|(_, key)| key).collect();
    assert_eq!(tried.len(), tries, "another object each time");
    let told = world.notices.iter().filter(|notice| matches!(notice, Notice::Barred { .. })).count();
    assert_eq!(told, 1);
    world.refuses_kind.clear();
    world.run(600 * SECOND);
    assert!(world.plan.in_sync());
}

#[test]
fn a_probe_of_a_barred_kind_takes_another_object_each_time() {
    let mut world = world(&["aaa"]);
    world.refuses_kind.insert(ObjectKind::ServiceEntry);
    // The most urgent one is alone in that.
    world.want_named(["aaa"], &[1]);
    world.want_named(many(5), &[1]);
    world.run(3_600 * SECOND);
    let tries = &world.begun;
    assert!(tries.len() >= 10 && tries.windows(2).all(|pair| pair[0].1 != pair[1].1), "{tries:?}");
    let urgent = world.tries(&named("aaa")).len();
    assert!(urgent <= tries.len() / 4, "{urgent} of {} tries", tries.len());
}

#[test]
fn objects_that_are_refused_as_all_are_hold_up_no_others() {
    // As by a role with `resourceNames`.
    let real = many(20);
    let mut world = world(&real.iter().map(String::as_str).collect::<Vec<_>>());
    for name in ["aaa", "bbb", "ccc"] {
        world.refuses.insert(named(name), Fault::NoRight);
        world.want_named([name], &[1]);
    }
    let mut longest = Duration::ZERO;
    for (n, name) in real.iter().cycle().take(400).enumerate() {
        let begin = world.now;
        world.want_named([name], &[n as u64]);
        while world.shown(name) != Some(&[n as u64]) {
            world.run(SOON);
        }
        longest = longest.max(world.now - begin);
        world.run(3 * SECOND);
    }
    assert!(longest <= 8 * SECOND, "{longest:?}: a kind is barred for a moment when two of them are tried in a row");
    let tries: usize = ["aaa", "bbb", "ccc"].iter().map(|name| world.tries(&named(name)).len()).sum();
    assert!(tries <= 3 * 16, "{tries} tries in vain in 20 minutes");
}

#[test]
fn an_object_without_an_answer_holds_up_no_other() {
    for fault in [Fault::Hangs, Fault::Lost] {
        let real = many(20);
        let mut world = world(&real.iter().map(String::as_str).collect::<Vec<_>>());
        world.refuses.insert(named("aaa.slow"), fault);
        world.want_named(["aaa.slow"], &[1]);
        for (n, name) in real.iter().enumerate() {
            world.run(n as u32 * SECOND);
            world.want_named([name], &[1]);
            world.run(SOON);
            assert_eq!(world.shown(name), Some(&[1][..]));
        }
        assert_eq!(world.plan.counts().pauses, 0);
        assert!(world.plan.problems().contains_key(&named("aaa.slow")));
        let tries = world.tries(&named("aaa.slow")).len();
        assert!(tries <= 14, "{tries}");
    }
}

#[test]
fn an_api_server_that_is_gone_is_left_alone() {
    let real = many(50);
    let mut world = world(&[]);
    world.refuses.extend(real.iter().map(|name| (named(name), Fault::Lost)));
    world.want_named(&real, &[1]);
    world.run(60 * SECOND);
    let tries = world.begun.len();
    assert!(tries <= 40 && world.plan.counts().pauses >= 5, "{tries} tries in a minute");
    let paused = world.notices.iter().filter(|notice| matches!(notice, Notice::Paused { .. })).count();
    assert!(paused <= 2, "{paused} lines in a minute");
    world.refuses.clear();
    world.run(61 * SECOND);
    assert!(world.plan.in_sync());
}

#[test]
fn a_busy_api_server_is_left_alone_for_as_long_as_it_says() {
    let mut world = world(&[]);
    world.want_named(["a", "b"], &[1]);
    world.answer(0, Fault::TooMany);
    let begin = world.now;
    world.want_named(["c", "d"], &[1]);
    world.run(2 * SECOND);
    let times: Vec<Duration> = world.begun[2..].iter().map(|(at, _)| *at - begin).collect();
    assert!(times.iter().all(|at| *at >= SECOND), "{times:?}");
    assert_eq!((world.plan.counts().pauses, world.plan.in_sync()), (1, true));
}

#[test]
fn a_refused_content_rests_and_another_one_does_not() {
    let mut world = world(&[]);
    world.refuses.insert(named("bad"), Fault::Invalid);
    world.want_named(["bad"], &[1]);
    world.run(3_600 * SECOND);
    let tries = world.tries(&named("bad"));
    assert!((5..=16).contains(&tries.len()), "{} tries in an hour", tries.len());
    let waits = tries.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(
        waits.clone().all(|wait| (5 * SECOND..=600 * SECOND + SOON).contains(&wait)),
        "{:?}",
        waits.collect::<Vec<_>>()
    );
    world.refuses.clear();
    world.want_named(["bad"], &[2]);
    world.run(SOON);
    assert!(world.plan.in_sync());
}

#[test]
fn problems_are_logged_a_few_a_minute() {
    let mut world = world(&[]);
    for n in 0..200 {
        let name = format!("evil{n}");
        world.refuses.insert(named(&name), Fault::Denied);
        world.want_named([name], &[1]);
    }
    world.run(50 * SECOND);
    assert_eq!(world.plan.problems().len(), 200);
    let told = world.notices.iter().filter(|notice| matches!(notice, Notice::Problem { .. })).count();
    assert!(told <= 10, "{told}");
}

#[test]
fn a_change_costs_what_it_changes() {
    let mut world = world(&[]);
    world.want_named((0..1_000).map(|n| format!("real{n}")), &[1]);
    world.want(&[(1, ServiceShape::Selecting { mask: 3, revision: 0 })]);
    world.run(60 * SECOND);
    assert!(world.plan.in_sync());
    let mut cost = |change: &dyn Fn(&mut Simulation)| {
        let before = world.plan.decisions;
        change(&mut world);
        world.run(SECOND);
        assert!(world.plan.in_sync());
        world.plan.decisions - before
    };
    assert!(cost(&|world| world.want_named(["real7"], &[2])) <= 6);
    assert!(cost(&|world| world.want_no_more("real7")) <= 6);
    assert!(cost(&|world| world.want(&[(1, ServiceShape::Selecting { mask: 7, revision: 0 })])) <= 6);
    assert!(cost(&|world| world.meddle(&named("real8"), Meddling::Edit)) <= 6);
    assert_eq!(cost(&|world| world.want_named(["real9"], &[1])), 0);
}

// Manifests that are kept until they are written.

#[test]
fn manifests_are_kept_until_they_are_written_and_within_bounds() {
    let mut world = world(&[]);
    let large = |name: &str| {
        let fingerprint = Fingerprint { digest: 1, ..Fingerprint::default() };
        vec![Converted { key: named(name), fingerprint, manifest: Arc::new(Manifest::of("x".repeat(ROOM / 2))) }]
    };
    for name in ["a", "b", "c"] {
        world.plan.desire(&named(name), &format!("ns/{name}").into(), large(name));
    }
    assert_eq!(world.plan.kept, ROOM);
    world.plan.view_taken(world.now);
    let writes: Vec<PlannedWrite> = std::iter::from_fn(|| world.plan.next(world.now)).collect();
    let is_kept = |write: &PlannedWrite| matches!(write.source, Some(ManifestSource::Kept(_)));
    assert_eq!(writes.iter().map(is_kept).collect::<Vec<_>>(), [true, true, false]);
    assert!(matches!(&writes[2].source, Some(ManifestSource::View { name, .. }) if &**name == "ns/c"));
    let denied = denied();
    world.plan.answered(world.now, &named("a"), Err(denied));
    assert_eq!(world.plan.kept, ROOM / 2, "what is refused makes room");
    world.plan.desire(&named("b"), &"ns/b".into(), Vec::new());
    assert_eq!(world.plan.kept, 0);
}

#[test]
fn a_state_that_the_watch_shows_says_nothing_of_a_later_write_without_an_answer() {
    let mut world = Simulation::new();
    world.deliver(ObjectKind::WorkloadEntry, 0);
    world.deliver(ObjectKind::ServiceEntry, 0);
    world.want(&[(0, ServiceShape::Inline { mask: 1, revision: 0 })]);
    world.answer(0, Fault::LostAnswer);
    // The same service, whose endpoints are objects of their own now: its entry selects them.
    world.want(&[(0, ServiceShape::Selecting { mask: 1, revision: 0 })]);
    while world.in_flight().iter().all(|(key, _)| key.kind != ObjectKind::ServiceEntry) {
        world.answer(0, Fault::None);
        world.pass_to_wake();
    }
    let at = world.in_flight().iter().position(|(key, _)| key.kind == ObjectKind::ServiceEntry).unwrap();
    world.answer(at, Fault::LostAnswer);
    world.want(&[(0, ServiceShape::Absent)]);
    // The watch shows the entry that selects nothing, and what is selected stays until the other shows or cannot be any more.
    world.deliver(ObjectKind::ServiceEntry, 0);
    world.calm_down();
    assert!(world.server.objects.is_empty());
}
