//! Settings as a tree, before they have their types: in the shape of the defaults, with an error for each mistake.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use crate::policy::{MtlsRule, Override};

/// `tree` with what it does not say taken from `defaults`.
pub(super) fn over(defaults: Value, tree: Value) -> Value {
    match (defaults, tree) {
        (Value::Object(mut defaults), Value::Object(tree)) => {
            for (key, value) in tree {
                let default = defaults.remove(&key).unwrap_or_default();
                defaults.insert(key, over(default, value));
            }
            defaults.into()
        }
        (_, tree) => tree,
    }
}

pub(super) fn tree_of(defaults: &impl Serialize) -> Value {
    serde_json::to_value(defaults).expect("defaults serialize")
}

/// Reads `tree` but for what cannot be read, of which each is an error. `None` where nothing is left.
pub(super) fn typed<T: for<'de> Deserialize<'de>>(root: &str, mut tree: Value, errors: &mut Vec<String>) -> Option<T> {
    // How many items were taken out of which list: those after them have another index now.
    let mut taken: HashMap<String, usize> = HashMap::new();
    loop {
        let error = match serde_path_to_error::deserialize(&tree) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let (mut path, mut list) = (root.to_owned(), None);
        for segment in error.path() {
            list = None;
            match segment {
                Segment::Map { key } => path += &format!(".{key}"),
                Segment::Seq { index } => {
                    list = Some(path.clone());
                    path += &format!("[{}]", index + taken.get(&path).copied().unwrap_or_default());
                }
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        let segments: Vec<&Segment> = error.path().iter().collect();
        let value = take(&mut tree, &segments);
        // What could not be brought to its shape is null here, and an error already.
        if !(value == Some(Value::Null) && errors.iter().any(|known| known.starts_with(&format!("{path}: ")))) {
            errors.push(format!("{path}: {}: {}", value.as_ref().unwrap_or(&tree), error.inner()));
        }
        value?;
        list.into_iter().for_each(|list| *taken.entry(list).or_default() += 1);
    }
}

/// Takes the value at a path out of a tree.
fn take(tree: &mut Value, path: &[&Segment]) -> Option<Value> {
    match (path, tree) {
        ([Segment::Map { key }], Value::Object(map)) => map.remove(key),
        ([Segment::Map { key }, rest @ ..], Value::Object(map)) => take(map.get_mut(key)?, rest),
        ([Segment::Seq { index }], Value::Array(items)) => (*index < items.len()).then(|| items.remove(*index)),
        ([Segment::Seq { index }, rest @ ..], Value::Array(items)) => take(items.get_mut(*index)?, rest),
        _ => None,
    }
}

/// Brings `given` to the shape of `known`: key spelling, and text where the default says number, boolean or list.
/// A value without a default (`null`) and the values of an empty object (a map with free keys) stay as they are.
pub(super) fn normalize(path: &str, known: &Value, given: Value, errors: &mut Vec<String>) -> Value {
    match (known, given) {
        (Value::Object(known), Value::Object(given)) if !known.is_empty() => {
            let mut tree = Map::new();
            for (key, value) in given {
                match known.iter().find(|(name, _)| plain(name) == plain(&key)) {
                    // Spring hands a key on in each spelling that some source of properties has for it.
                    Some((name, default)) => {
                        let value = normalize(&format!("{path}.{name}"), default, value, errors);
                        if tree.insert(name.clone(), value.clone()).is_some_and(|earlier| earlier != value) {
                            errors.push(format!("{path}.{name}: it has two values, in different spellings"));
                        }
                    }
                    None => errors.push(format!("{path}.{key}: unknown key; {}", suggest(known, &key))),
                }
            }
            Value::Object(tree)
        }
        (Value::Object(known), Value::String(text)) if known.is_empty() && text.trim().is_empty() => {
            Value::Object(Map::new())
        }
        // Globs as keys; Spring writes them in brackets.
        (Value::Object(_), Value::Object(given)) if path.ends_with("policy.overrides") => {
            let known = tree_of(&Override::full());
            let named = |(key, value): (String, Value), errors: &mut Vec<String>| {
                let glob = key.trim_start_matches('[').trim_end_matches(']').to_owned();
                let value = normalize(&format!("{path}.{glob}"), &known, value, errors);
                (glob, value)
            };
            given.into_iter().map(|entry| named(entry, errors)).collect()
        }
        (Value::Object(known), Value::Object(given)) if known.is_empty() => {
            let number = |value: Value| match value.as_str().map(str::trim).map(str::parse::<u64>) {
                Some(Ok(number)) if path.ends_with("policy.ports") => number.into(),
                _ => value,
            };
            given.into_iter().map(|(key, value)| (key.trim_matches(['[', ']']).to_owned(), number(value))).collect()
        }
        (Value::Object(_), given) => {
            errors.push(format!("{path}: {given} is not possible; it is a group of settings"));
            Value::Object(Map::new())
        }
        (Value::Array(_), Value::String(text)) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect();
            normalize_items(path, items, errors)
        }
        // Spring's list keys, `x[0]`, come as an object with numbers for keys.
        (Value::Array(_), Value::Object(given)) => {
            let mut items: Vec<(usize, Value)> = Vec::new();
            for (key, value) in given {
                match key.trim_matches(['[', ']']).parse() {
                    Ok(index) => items.push((index, value)),
                    Err(_) => errors.push(format!("{path}.{key}: unknown key; {path} is a list")),
                }
            }
            items.sort_by_key(|(index, _)| *index);
            let items = items.into_iter().map(|(_, value)| value).collect();
            normalize_items(path, items, errors)
        }
        (Value::Array(_), Value::Array(items)) => normalize_items(path, items, errors),
        (Value::Bool(_), Value::String(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "true" => true.into(),
            "false" => false.into(),
            _ => {
                errors.push(format!("{path}: \"{text}\" is not possible; allowed are true and false"));
                Value::Null
            }
        },
        (Value::Number(known), Value::String(text)) if known.is_f64() => match text.trim().parse::<f64>() {
            Ok(number) => number.into(),
            Err(_) => {
                errors.push(format!("{path}: \"{text}\" is no number"));
                Value::Null
            }
        },
        (Value::Number(_), Value::String(text)) => match text.trim().parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) => {
                errors.push(format!("{path}: \"{text}\" is no whole number"));
                Value::Null
            }
        },
        // An optional setting that is set to nothing, as `mox.vip-cidr=`.
        (known, Value::String(text)) if text.trim().is_empty() && path_takes_none(path, known) => Value::Null,
        (_, given) => given,
    }
}

/// The items of a list that have a shape of their own, or are numbers.
fn normalize_items(path: &str, items: Vec<Value>, errors: &mut Vec<String>) -> Value {
    let known = match path {
        "mox.partitions" => 0.into(),
        _ if path.ends_with("policy.mtls") => tree_of(&MtlsRule::default()),
        _ => return items.into(),
    };
    let items = items.into_iter().enumerate();
    items.map(|(index, item)| normalize(&format!("{path}[{index}]"), &known, item, errors)).collect()
}

/// Settings that can be switched off by an empty value.
fn path_takes_none(path: &str, known: &Value) -> bool {
    known.is_null() || path == "mox.vipCidr"
}

/// A key without what relaxed spelling may change.
fn plain(key: &str) -> String {
    key.chars().filter(|c| !"-_".contains(*c)).map(|c| c.to_ascii_lowercase()).collect()
}

fn suggest(known: &Map<String, Value>, key: &str) -> String {
    let near = known.keys().max_by(|a, b| {
        let closeness = |name: &str| strsim::jaro_winkler(&plain(name), &plain(key));
        closeness(a).total_cmp(&closeness(b))
    });
    near.map_or_else(String::new, |name| format!("did you mean {name}?"))
}
