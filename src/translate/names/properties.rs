//! Properties of names that hold for every id and for every set of ids, hostile ones included.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{catalog::assignment::claims::Claims, translate::payload::Client};

const SUFFIX: &str = "sofa.mesh";

/// Pieces that mean something to ids or names, and some that only look so.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => select(vec![
            "#@#", "#@", ":", "@", ".", "..", "-", "--", "_", "v", "v1", "v1-0", "1.0", ":1.0", ":2.0", "0", "007", "a", "A",
            "b", "com.example", "Demo", "demo", "DEFAULT", "default", "DEFAULT_INSTANCE_ID", "SOFA", "sofa", "dubbo",
            "tri", "TRI", "@tri", "@dubbo", "@DEFAULT", "service", "-0123456789ab", "-0123456789abcdef0123456789abcdef", "ü",
            "İ", "K", "ſ", "\0", "\n", " ", "/", "*",
        ]).prop_map(str::to_owned),
        2 => "[a-zA-Z0-9.:@#_-]{1,8}",
        1 => any::<String>(),
        1 => (select(vec!["a", "é", "-", ".", "a.", "9", "#@#"]), 1..400usize).prop_map(|(text, n)| text.repeat(n)),
    ]
}

/// Ids up to the longest that a frame may carry.
fn any_id() -> impl Strategy<Value = String> {
    let of_the_form = ("[a-zA-Z.]{0,20}", "(:[0-9.v-]{0,4}){0,2}", "(@(DEFAULT|default|tri|dubbo|x))?", parts());
    prop_oneof![
        3 => vec(piece(), 0..10).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
        4 => of_the_form.prop_map(|(interface, versions, protocol, parts)| format!("{interface}{versions}{protocol}{parts}")),
        1 => (piece(), 3_000..6_000usize).prop_map(|(piece, to)| piece.repeat(to / piece.len().max(1) + 1)),
    ]
    .prop_map(|mut id| {
        let end = (0..=id.len().min(crate::registry::frame::MAX_DATA_INFO_ID)).rev().find(|at| id.is_char_boundary(*at));
        id.truncate(end.unwrap_or_default());
        id
    })
}

fn parts() -> impl Strategy<Value = String> {
    let instance = select(vec!["DEFAULT_INSTANCE_ID", "default_instance_id", "", "a", "b-c", "7"]);
    (instance, select(vec!["SOFA", "sofa", "", "a", "7", "dubbo"])).prop_map(|(i, g)| format!("#@#{i}#@#{g}"))
}

/// A protocol of a service that an id has beside its main one, or none.
fn other() -> impl Strategy<Value = Option<String>> {
    let known = select(vec!["tri", "rest", "bolt", "http"]).prop_map(str::to_owned);
    prop_oneof![2 => Just(None), 2 => known.prop_map(Some), 1 => "[a-ce-z][a-z0-9+.-]{0,70}".prop_map(Some)]
}

fn names_protocols(id: &str) -> bool {
    Client::of(id).names_protocols()
}

/// An id and others that try to get its host: by letter case, by what becomes the same label, by carrying its hash.
fn alike() -> impl Strategy<Value = Vec<String>> {
    any_id().prop_flat_map(|id| {
        let digest = hex(&prefix_of::<32>(&id));
        let rest = "#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let mut alike: Vec<String> = candidates(&id, None, SUFFIX)
            .flat_map(|name| {
                [format!("{name}:1.0@DEFAULT{rest}"), format!("{name}{rest}"), format!("{name}@dubbo{rest}"), name]
            })
            .collect();
        alike.extend([id.to_ascii_uppercase(), id.to_ascii_lowercase(), id.to_lowercase(), id.replace('.', "-")]);
        alike.extend([
            id.replace('-', "_"),
            id.replace('-', "."),
            format!("{id}-{}", &digest[..HASH_DIGITS[0]]),
            format!("{id} "),
        ]);
        // Upper case where the id is lower and the other way round, at one place each.
        for (at, c) in id.char_indices().filter(|(_, c)| c.is_ascii_alphabetic()).take(8) {
            let other = if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            alike.push(format!("{}{other}{}", &id[..at], &id[at + 1..]));
        }
        alike.push(id);
        let most = alike.len();
        proptest::sample::subsequence(alike, 1..=most)
    })
}

fn ids() -> impl Strategy<Value = Vec<String>> {
    // Several that all want one plain host.
    let twins = vec("[cC][oO]\\.[dD][eE]:1\\.0@(DEFAULT|Default)#@#DEFAULT_INSTANCE_ID#@#(SOFA|sofa)", 3..9);
    prop_oneof![twins, vec(any_id(), 1..12), alike(), (alike(), vec(any_id(), 0..6)).prop_map(|(a, b)| [a, b].concat())]
        .prop_map(|ids| ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

/// Istio's rules for hosts, and lower case.
fn legal(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    host.len() <= 255
        && host.contains('.')
        && host.split('.').all(label)
        && !host.rsplit('.').next().is_some_and(numeric)
}

/// A claimant that is not served yet comes after those that are.
type Hosts = Claims<bool, String, String>;

fn arrive(hosts: &mut Hosts, id: &str) -> Vec<String> {
    hosts.set(&id.to_owned(), candidates(id, None, SUFFIX).map(|host| (host, true)))
}

/// From now on the id is served under the host that it has.
fn serve(hosts: &mut Hosts, id: &str) -> Vec<String> {
    let id = id.to_owned();
    let has = hosts.get(&id).cloned();
    hosts.set(&id, candidates(&id, None, SUFFIX).map(|host| (host.clone(), Some(host) != has)))
}

fn assigned(hosts: &Hosts, ids: &[String]) -> BTreeMap<String, Option<String>> {
    ids.iter().map(|id| (id.clone(), hosts.get(id).cloned())).collect()
}

fn all(ids: &[String]) -> BTreeMap<String, Option<String>> {
    let mut hosts = Hosts::default();
    ids.iter().for_each(|id| drop(arrive(&mut hosts, id)));
    assigned(&hosts, ids)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn every_name_is_legal_and_read_back_or_hashed(
        id in any_id(), other in other(), suffix in "[a-z]{1,63}\\.[a-z]{1,36}",
    ) {
        let candidates: Vec<String> = candidates(&id, other.as_deref(), &suffix).collect();
        for name in &candidates {
            let host = format!("{name}.{suffix}");
            prop_assert!(legal(&host), "{}", host);
        }
        let (plain, hashed) = candidates.split_at(candidates.len() - 2);
        for name in plain {
            prop_assert_eq!(read(name), Some((id.to_ascii_lowercase(), other.as_deref())), "{}", name);
        }
        let whole = other.as_ref().map_or_else(|| id.clone(), |other| format!("{other}://{id}"));
        let digest = hex(&prefix_of::<32>(whole));
        for (name, digits) in hashed.iter().zip(HASH_DIGITS) {
            prop_assert_eq!(read(name), None, "{}", name);
            let first = name.split('.').next().unwrap();
            prop_assert!(first.ends_with(&format!("-{}", &digest[..digits])), "{}", name);
        }
    }

    #[test]
    fn every_set_of_ids_is_told_apart(ids in ids()) {
        let assigned = all(&ids);
        for (id, host) in &assigned {
            prop_assert!(host.is_some(), "{:?} has no host", id);
        }
        let hosts: BTreeSet<_> = assigned.values().collect();
        prop_assert_eq!(hosts.len(), ids.len(), "{:?}", assigned);
    }

    #[test]
    fn hosts_depend_on_who_is_there_not_on_who_was(
        ids in ids(), history in vec((any::<prop::sample::Index>(), any::<bool>()), 0..40),
    ) {
        let mut hosts = Hosts::default();
        for (index, there) in &history {
            let id = index.get(&ids);
            if *there { arrive(&mut hosts, id) } else { hosts.remove(id) };
        }
        let mut sorted = ids.clone();
        sorted.sort();
        let left: Vec<String> = sorted.iter().filter(|id| hosts.get(id).is_some()).cloned().collect();
        prop_assert_eq!(assigned(&hosts, &left), all(&left));
        prop_assert_eq!(all(&ids), all(&sorted));
    }

    #[test]
    fn a_newcomer_renames_nobody_who_is_served_and_of_those_who_come_at_once_its_larger_twin(
        ids in ids(), served in any::<bool>(),
    ) {
        let mut hosts = Hosts::default();
        for (at, newcomer) in ids.iter().enumerate() {
            let before = assigned(&hosts, &ids[..at]);
            let changed = arrive(&mut hosts, newcomer);
            for (id, was) in before {
                let twin = id.eq_ignore_ascii_case(newcomer);
                if hosts.get(&id) != was.as_ref() {
                    prop_assert!(!served && twin && *newcomer < id, "{:?} renamed {:?}", newcomer, id);
                    prop_assert!(changed.contains(&id));
                }
            }
            let mut twins = ids[..=at].iter().filter(|id| id.eq_ignore_ascii_case(newcomer));
            let first = if served { twins.next() } else { twins.min() }.unwrap();
            let best = candidates(first, None, SUFFIX).next();
            prop_assert_eq!(hosts.get(first), best.as_ref(), "the first, or the bytewise smallest, has the best host");
            if served {
                prop_assert_eq!(serve(&mut hosts, newcomer), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn reading_undoes_naming(
        name in "((tri|rest|dubbo|h2c)\\.){0,3}[a-z0-9-]{1,8}(\\.[a-z0-9-]{1,8}){0,5}",
    ) {
        // Whatever a name reads as, that id has this name or one with a hash.
        if let Some((id, other)) = read(&name)
            && let Some(again) = candidates(&id, other, SUFFIX).next()
            && read(&again).is_some()
        {
            prop_assert_eq!(&again, &name);
        }
    }

    #[test]
    fn names_tell_similar_ids_apart(
        a in "[a-c]{1,2}(\\.[a-cv2-]{1,3}){0,2}(:[0-9.v-]{1,3}){0,1}(:[a-c]){0,1}(@(DEFAULT|tri|dubbo|x))?#@#(DEFAULT_INSTANCE_ID|a|b-c)#@#(SOFA|a|dubbo)",
        b in "[a-c]{1,2}(\\.[a-cv2-]{1,3}){0,2}(:[0-9.v-]{1,3}){0,1}(:[a-c]){0,1}(@(DEFAULT|tri|dubbo|x))?#@#(DEFAULT_INSTANCE_ID|a|b-c)#@#(SOFA|a|dubbo)",
    ) {
        let names = |id: &str| {
            let others = [None, Some("tri"), Some("rest")].into_iter().filter(|other| other.is_none() || names_protocols(id));
            others.filter_map(|other| candidates(id, other, SUFFIX).next()).collect::<BTreeSet<_>>()
        };
        prop_assert!(a == b || names(&a).is_disjoint(&names(&b)), "{} and {} have one of {:?}", a, b, names(&a));
        prop_assert!(names(&a).len() == if names_protocols(&a) { 3 } else { 1 }, "{}: {:?}", a, names(&a));
    }
}
