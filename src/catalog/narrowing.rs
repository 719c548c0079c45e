//! The breaker of visibility: whether services may be hidden from namespaces that see them.
//!
//! Who subscribes is known by asking, and answers may be wrong for many services at once. A service that is hidden from who calls it is
//! as gone as one that is removed. So if by a new word on the consumers, or by a policy, more services are seen by fewer than may be
//! removed within a minute, they stay with who sees them, and only get more; until that is released, no longer wanted, or a while is over.

use std::{borrow::Cow, sync::Arc};

use serde::Serialize;

use crate::{
    config::Protect,
    model::Millis,
    policy::{Consumers, Mode, Policy, Rules, visibility::covers},
    visibility::{ServiceId, seen::Seen},
};

const WINDOW: Millis = 60_000;

/// `exportTo` of a service, by who is seen to consume it where the policy wants that.
pub fn exported<'r>(rules: &Rules<'r>, id: &str, seen: Option<&Seen>, namespace: &str) -> Cow<'r, [String]> {
    match seen {
        Some(seen) if rules.visibility == Mode::On => {
            rules.visible_to(seen.get(ServiceId::of(id)).map(|consumers| &**consumers), namespace)
        }
        _ => Cow::Borrowed(rules.export_to),
    }
}

/// Whether two say the same of a service; cheap where they are one.
pub fn is_same(one: Option<&Arc<Seen>>, other: Option<&Arc<Seen>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// A hold, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Services that would be seen by fewer.
    pub services: usize,
    /// Of so many.
    pub of: usize,
    /// When it ends by itself, in milliseconds since the epoch.
    pub until: Millis,
}

/// What happened to a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It began.
    Began(Held),
    /// It is over; the text says why.
    Over(&'static str),
}

/// The policy, and what counts of who is seen, at one moment.
#[derive(Debug, Clone)]
struct Base {
    policy: Arc<Policy>,
    seen: Option<Arc<Seen>>,
    at: Millis,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Narrowing {
    protect: Protect,
    namespace: Arc<str>,
    /// The policy and the documents' word of the last call.
    last: Option<(Arc<Policy>, Option<Arc<Seen>>)>,
    /// What counts of that word.
    seen: Option<Arc<Seen>>,
    /// The start of the window.
    base: Option<Base>,
    held: Option<Held>,
}

impl Narrowing {
    /// Nothing is seen.
    pub fn new(protect: Protect, namespace: &str) -> Self {
        Self { protect, namespace: namespace.into(), last: None, seen: None, base: None, held: None }
    }

    /// What counts.
    pub fn seen(&self) -> Option<&Arc<Seen>> {
        self.seen.as_ref()
    }

    /// The documents' word, whatever counts of it.
    pub fn word(&self) -> Option<&Arc<Seen>> {
        self.last.as_ref().and_then(|(_, word)| word.as_ref())
    }

    /// The hold, if there is one.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// When the hold ends by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.held.map(|held| held.until)
    }

    /// Begins a window with what is: nothing was served before that could be taken from anybody.
    pub fn begin(&mut self, now: Millis, policy: &Arc<Policy>, word: Option<&Arc<Seen>>) {
        self.last = Some((Arc::clone(policy), word.cloned()));
        self.seen = word.cloned();
        self.base = Some(Base { policy: Arc::clone(policy), seen: word.cloned(), at: now });
        self.held = None;
    }

    /// Judges another policy or another word on consumers, over the dataInfoIds that are served.
    pub fn judge<'a>(
        &mut self,
        now: Millis,
        policy: &Arc<Policy>,
        word: Option<&Arc<Seen>>,
        release: bool,
        served: impl Iterator<Item = &'a str>,
    ) -> Option<Change> {
        let Some((before, said)) = &self.last else {
            self.begin(now, policy, word);
            return None;
        };
        let is_new = !Arc::ptr_eq(before, policy) || !is_same(said.as_ref(), word);
        let over = self.held.and_then(|held| match release {
            true => Some("it was released"),
            false => (held.until <= now).then_some("mox.protect.mass-delete-hold is over"),
        });
        if let Some(why) = over {
            self.begin(now, policy, word);
            return Some(Change::Over(why));
        }
        if !is_new {
            return None;
        }
        let base = match self.base.take() {
            Some(base) if self.held.is_some() || now - base.at < WINDOW => base,
            _ => Base { policy: Arc::clone(before), seen: self.seen.clone(), at: now },
        };
        self.last = Some((Arc::clone(policy), word.cloned()));
        let (narrowed, of) = self.narrowed(&base, policy, word, served);
        let (was, services) = (self.held, narrowed.len());
        self.base = Some(base);
        let trips =
            services > self.protect.mass_delete_services && services * 100 > self.protect.mass_delete_share * of;
        let Some(word) = word.filter(|_| trips) else {
            self.seen = word.cloned();
            self.held = None;
            return was.map(|_| Change::Over("what would be hidden is little"));
        };
        let mut wide = Seen::clone(word);
        narrowed.iter().for_each(|(id, before)| wide.widen(*id, before));
        self.seen = Some(Arc::new(wide));
        let until = was.map_or(now + self.protect.mass_delete_hold.as_millis() as Millis, |was| was.until);
        let held = Held { services, of, until };
        self.held = Some(held);
        was.is_none().then_some(Change::Began(held))
    }

    /// The services that fewer would see, with who saw them before; and how many are served.
    fn narrowed<'a>(
        &self,
        base: &Base,
        policy: &Policy,
        word: Option<&Arc<Seen>>,
        served: impl Iterator<Item = &'a str>,
    ) -> (Vec<(ServiceId, Consumers)>, usize) {
        let (mut narrowed, mut of) = (Vec::new(), 0);
        let is_same_policy = std::ptr::eq(&*base.policy, policy);
        for text in served {
            of += 1;
            let id = ServiceId::of(text);
            let get = |seen: Option<&Arc<Seen>>| seen.map(|seen| seen.get(id).cloned());
            let (had, has) = (get(base.seen.as_ref()), get(word));
            if is_same_policy && had == has {
                continue;
            }
            let rules = policy.rules(text);
            let after = exported(&rules, text, word.map(|word| &**word), &self.namespace);
            // The list of an exception is there whoever consumes, and whoever has it is the operator's matter.
            let is_own = rules.export_to_glob.is_some() && rules.visibility == Mode::On;
            if !is_own && covers(&after, rules.export_to, &self.namespace) {
                continue;
            }
            let old = base.policy.rules(text);
            let before = exported(&old, text, base.seen.as_deref(), &self.namespace);
            // Where the consumers did not matter, whoever the policy lets see it saw it.
            let had = had.filter(|_| old.visibility == Mode::On).flatten();
            let is_kept = if is_own {
                let names = had.iter().flat_map(|had| &had.namespaces).map(|name| vec![name.to_string()]);
                let mut saw = names.filter(|name| covers(&before, name, &self.namespace));
                saw.all(|name| covers(&after, &name, &self.namespace))
            } else {
                covers(&after, &before, &self.namespace)
            };
            if is_kept {
                continue;
            }
            let everybody = || Consumers { unknown: true, ..Consumers::default() };
            narrowed.push((id, had.map_or_else(everybody, |had| (*had).clone())));
        }
        (narrowed, of)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Millis = 3_600_000;

    fn policy(document: serde_json::Value) -> Arc<Policy> {
        Arc::new(Policy::new(serde_json::from_value(document).unwrap(), &[], "ns").unwrap())
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("com.example.S{n}")).collect()
    }

    fn seen(ids: &[String], names: &[&str]) -> Option<Arc<Seen>> {
        let pairs: Vec<(&str, &[&str])> = ids.iter().map(|id| (&**id, names)).collect();
        Some(Arc::new(Seen::with(&pairs)))
    }

    struct Test {
        narrowing: Narrowing,
        ids: Vec<String>,
        now: Millis,
    }

    impl Test {
        fn new() -> Self {
            let protect = Protect { mass_delete_hold: Duration::from_secs(600), ..Protect::default() };
            Self { narrowing: Narrowing::new(protect, "ns"), ids: ids(100), now: HOUR }
        }

        fn judge(&mut self, policy: &Arc<Policy>, word: &Option<Arc<Seen>>, release: bool) -> Option<Change> {
            let ids = self.ids.clone();
            self.narrowing.judge(self.now, policy, word.as_ref(), release, ids.iter().map(String::as_str))
        }

        fn exported(&self, policy: &Arc<Policy>, id: &str) -> Vec<String> {
            exported(&policy.rules(id), id, self.narrowing.seen().map(|seen| &**seen), "ns").into_owned()
        }
    }

    #[test]
    fn a_switch_that_hides_much_waits_for_a_release() {
        let (off, on) = (policy(serde_json::json!({})), policy(serde_json::json!({ "visibility": { "mode": "on" } })));
        let mut test = Test::new();
        let word = seen(&test.ids, &["shop"]);
        assert_eq!(test.judge(&off, &word, false), None);
        let Some(Change::Began(held)) = test.judge(&on, &word, false) else { panic!("it is not held") };
        assert_eq!((held.services, held.of, held.until), (100, 100, HOUR + 600_000));
        assert_eq!(test.exported(&on, "com.example.S1"), ["*"]);
        assert_eq!(test.judge(&on, &word, true), Some(Change::Over("it was released")));
        assert_eq!(test.exported(&on, "com.example.S1"), ["shop"]);
    }

    #[test]
    fn what_is_held_gets_more_and_goes_by_itself_after_a_while() {
        let on = policy(serde_json::json!({ "visibility": { "mode": "on" } }));
        let mut test = Test::new();
        assert_eq!(test.judge(&on, &seen(&test.ids.clone(), &["shop", "pay"]), false), None);
        test.now += WINDOW;
        let fewer = seen(&test.ids, &["batch"]);
        assert!(matches!(test.judge(&on, &fewer, false), Some(Change::Began(_))));
        assert_eq!(test.exported(&on, "com.example.S1"), ["batch", "pay", "shop"]);
        test.now += 599_999;
        assert_eq!(test.judge(&on, &fewer, false), None);
        test.now += 1;
        assert!(matches!(test.judge(&on, &fewer, false), Some(Change::Over(_))));
        assert_eq!(test.exported(&on, "com.example.S1"), ["batch"]);
    }

    #[test]
    fn little_by_little_within_a_minute_is_much() {
        let on = policy(serde_json::json!({ "visibility": { "mode": "on" } }));
        let mut test = Test::new();
        let word = |fewer: usize, ids: &[String]| {
            let all: Vec<(&str, &[&str])> = ids
                .iter()
                .enumerate()
                .map(|(n, id)| (&**id, if n < fewer { &["shop"][..] } else { &["shop", "pay"][..] }))
                .collect();
            Some(Arc::new(Seen::with(&all)))
        };
        assert_eq!(test.judge(&on, &word(0, &test.ids.clone()), false), None);
        for (fewer, began) in [(10, false), (20, false), (30, false), (40, true)] {
            test.now += 10_000;
            let word = word(fewer, &test.ids);
            assert_eq!(test.judge(&on, &word, false).is_some(), began, "{fewer}");
        }
        // Who is seen again makes up for it.
        let back = word(5, &test.ids);
        assert!(matches!(test.judge(&on, &back, false), Some(Change::Over(_))));
        for fewer in [25, 50, 75, 100] {
            test.now += WINDOW;
            assert_eq!(test.judge(&on, &word(fewer, &test.ids.clone()), false), None, "{fewer} one after the other");
        }
    }

    #[test]
    fn a_list_that_the_operator_writes_is_his_own_matter() {
        let all = policy(serde_json::json!({ "visibility": { "mode": "on" } }));
        let few = policy(serde_json::json!({ "exportTo": ["shop"], "visibility": { "mode": "on" } }));
        let mut test = Test::new();
        assert_eq!(test.judge(&all, &None, false), None);
        assert_eq!(test.judge(&few, &None, false), None);
        assert_eq!(test.exported(&few, "com.example.S1"), ["shop"]);
    }

    #[test]
    fn services_with_a_list_of_their_own_count_by_their_consumers() {
        let own = |list: &[&str]| {
            let overrides = serde_json::json!({ "*": { "exportTo": list } });
            policy(serde_json::json!({ "visibility": { "mode": "on" }, "overrides": overrides }))
        };
        let (batch, other) = (own(&["batch"]), own(&["other"]));
        let mut test = Test::new();
        let (both, none) = (seen(&test.ids, &["shop", "pay"]), seen(&[], &[]));
        assert_eq!(test.judge(&batch, &both, false), None);
        test.now += WINDOW;
        assert_eq!(test.judge(&other, &both, false), None, "the list is the operator's");
        test.now += WINDOW;
        let Some(Change::Began(held)) = test.judge(&other, &none, false) else { panic!("it is not held") };
        assert_eq!(held.services, 100);
        assert_eq!(test.exported(&other, "com.example.S1"), ["other", "pay", "shop"]);
        assert_eq!(test.judge(&other, &none, true), Some(Change::Over("it was released")));
        assert_eq!(test.exported(&other, "com.example.S1"), ["other"]);
    }
}
