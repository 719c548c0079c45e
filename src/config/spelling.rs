//! The spellings of a key: `startupHold`, `startup-hold`, and `STARTUPHOLD` as in an environment variable.

use serde_json::{Map, Value};

/// Whether `key` is `name` in one of its spellings.
pub(super) fn is_spelling(key: &str, name: &str) -> bool {
    plain(key).eq(plain(name))
}

/// A key without what its spellings differ in.
fn plain(key: &str) -> impl Iterator<Item = char> + '_ {
    key.chars().filter(|c| !"-_".contains(*c)).map(|c| c.to_ascii_lowercase())
}

/// The known name that an unknown `key` means, if one is near, else all of them; in kebab-case where `key` or one beside
/// it is.
pub(super) fn suggest(known: &[&str], key: &str, beside: &Map<String, Value>) -> String {
    let is_kebab = beside.keys().any(|key| key.contains('-'));
    let spelled = |name: &&str| if is_kebab { kebab(name) } else { (*name).to_owned() };
    let given: String = plain(key).collect();
    let near = known.iter().filter_map(|name| {
        let name_plain: String = plain(name).collect();
        let distance = strsim::osa_distance(&given, &name_plain);
        (3 * distance <= given.len().max(name_plain.len())).then_some((distance, name))
    });
    match near.min() {
        Some((_, name)) => format!("did you mean {}?", spelled(name)),
        None => format!("known are {}", known.iter().map(spelled).collect::<Vec<_>>().join(", ")),
    }
}

/// `startupHold` as `startup-hold`.
fn kebab(name: &str) -> String {
    let mut spelled = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            spelled.push('-');
        }
        spelled.push(c.to_ascii_lowercase());
    }
    spelled
}

/// `given` with what it leaves out, however it spells its keys, taken from `defaults`.
#[cfg(any(test, feature = "testing"))]
pub(super) fn over(defaults: Value, given: Value) -> Value {
    match (defaults, given) {
        (Value::Object(defaults), Value::Object(mut given)) => {
            for (name, default) in defaults {
                match given.iter_mut().find(|(key, _)| is_spelling(key, &name)) {
                    Some((_, value)) => *value = over(default, value.take()),
                    None => drop(given.insert(name, default)),
                }
            }
            Value::Object(given)
        }
        (_, given) => given,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_meant_only_if_it_is_near() {
        let known = ["host", "port", "protocol", "startupHold"];
        for (key, says) in [
            ("prot", "did you mean port?"),
            ("hots", "did you mean host?"),
            ("PROTOCOLL", "did you mean protocol?"),
            ("startHold", "did you mean startupHold?"),
            ("start-hold", "did you mean startup-hold?"),
            ("start_hold", "did you mean startupHold?"),
            ("labels", "known are host, port, protocol, startupHold"),
            ("label-s", "known are host, port, protocol, startup-hold"),
            ("", "known are host, port, protocol, startupHold"),
        ] {
            let beside = Map::from_iter([(key.to_owned(), Value::Null)]);
            assert_eq!(suggest(&known, key, &beside), says, "{key}");
        }
    }

    #[test]
    fn what_is_given_goes_before_defaults_in_any_spelling() {
        let defaults = json!({ "adminListen": "a", "push": { "max": "1s", "prime": true }, "labels": ["x"] });
        let given = json!({ "admin-listen": "b", "PUSH": { "MAX": "2s" }, "labels": { "0": "y" } });
        let both = json!({ "admin-listen": "b", "PUSH": { "MAX": "2s", "prime": true }, "labels": { "0": "y" } });
        assert_eq!(over(defaults, given), both);
    }
}
