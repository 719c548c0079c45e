//! Settings as people write them, brought to the types that ask for them.
//!
//! A tree comes from Spring (keys in kebab-case or as in environment variables, every value a text, a list as a map by its
//! indexes) or from JSON (keys in camelCase, values with their types). [`read`] takes both, mixed as well, and names every
//! mistake by its key as the tree spells it. Serde's types end at their first mistake, so the tree is read again without
//! the value that had it, until nothing is wrong with what is left.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{HashMap, HashSet},
    fmt, vec,
};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use crate::{
    config::spelling::{is_spelling, suggest},
    error::Mistake,
};

/// Most mistakes that are told; each of them costs a reading of the whole tree.
const MOST_MISTAKES: usize = 100;
/// Most characters of a value that a message repeats.
const MOST_SHOWN: usize = 100;

/// A tree that was read.
pub(super) struct Reading<T> {
    /// The settings without those that could not be read; `None` where the tree as a whole could not be.
    pub(super) settings: Option<T>,
    /// Why each of those could not be.
    pub(super) mistakes: Vec<Mistake>,
    notes: Notes,
}

impl<T> Reading<T> {
    /// Adds mistakes in the settings; their keys are in camelCase and become those of the tree.
    pub(super) fn add(&mut self, mistakes: Vec<Mistake>) {
        let spelled = self.notes.spelled.borrow();
        let as_spelled = |Mistake { key, text }| Mistake { key: spelled.get(&key).cloned().unwrap_or(key), text };
        self.mistakes.extend(mistakes.into_iter().map(as_spelled));
    }
}

/// Reads `tree`, whose own key is `root`.
pub(super) fn read<T: DeserializeOwned>(root: &str, tree: &Value) -> Reading<T> {
    let (mut notes, mut mistakes) = (Notes::default(), Vec::new());
    let settings = loop {
        notes.spelled.get_mut().clear();
        let path = Path { given: root.to_owned(), name: root.to_owned(), shape: String::new(), map: None };
        let fault = match T::deserialize(Relaxed::of(Cow::Borrowed(tree), path, &notes)) {
            Ok(settings) => break Some(settings),
            Err(fault) => fault.at(root),
        };
        let is_new = match fault {
            Fault::Nothing(shape) => notes.nothing.insert(shape),
            Fault::Wrong(mistake) => {
                let is_new = mistake.key != root && notes.wrong.insert(mistake.key.clone());
                mistakes.push(mistake);
                is_new
            }
        };
        if mistakes.len() == MOST_MISTAKES {
            mistakes.push(Mistake { key: root.to_owned(), text: "there may be more mistakes than these".to_owned() });
            break None;
        }
        if !is_new {
            break None;
        }
    };
    Reading { settings, mistakes, notes }
}

/// Knowledge of a tree from the readings before.
#[derive(Default)]
struct Notes {
    /// Keys of values that are left out, each for a mistake.
    wrong: HashSet<String>,
    /// Shapes of optional settings, no lists, that an empty text sets to none, as `mox.vip-cidr=`.
    nothing: HashSet<String>,
    /// Keys as the tree spells them, by their camelCase, where that is another.
    spelled: RefCell<HashMap<String, String>>,
}

/// Why a reading ended.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Wrong(Mistake),
    /// An optional setting of this shape is set to an empty text.
    #[error("{0} is set to nothing")]
    Nothing(String),
}

impl Fault {
    fn wrong(key: &str, text: String) -> Self {
        Self::Wrong(Mistake { key: key.to_owned(), text })
    }

    /// Gives what a type found wrong the key that it cannot know.
    fn at(self, key: &str) -> Self {
        match self {
            Self::Wrong(mistake) if mistake.key.is_empty() => Self::wrong(key, mistake.text),
            known => known,
        }
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::wrong("", text.to_string())
    }
}

/// Where a value stands.
struct Path {
    /// The key as the tree spells it, from the root on.
    given: String,
    /// The key in camelCase; of lists, the places among the items that are not left out.
    name: String,
    /// The fields on the way, which all values of one setting have in common.
    shape: String,
    /// The map that has this as an entry, if its keys are the operator's own.
    map: Option<String>,
}

impl Path {
    fn field(&self, key: &str, name: &str) -> Self {
        Self {
            given: format!("{}.{key}", self.given),
            name: format!("{}.{name}", self.name),
            shape: format!("{}.{name}", self.shape),
            map: None,
        }
    }

    fn entry(&self, key: &str) -> Self {
        let (given, name) = (Mistake::entry(&self.given, key), Mistake::entry(&self.name, key));
        Self { given, name, shape: self.shape.clone(), map: Some(self.given.clone()) }
    }

    fn item(&self, index: usize, place: usize) -> Self {
        let (given, name) = (format!("{}[{index}]", self.given), format!("{}[{place}]", self.name));
        Self { given, name, shape: self.shape.clone(), map: None }
    }
}

/// A value of the tree, which becomes what it is asked for.
struct Relaxed<'a> {
    value: Cow<'a, Value>,
    path: Path,
    is_optional: bool,
    notes: &'a Notes,
}

impl<'a> Relaxed<'a> {
    fn of(value: Cow<'a, Value>, path: Path, notes: &'a Notes) -> Self {
        Self { value, path, is_optional: false, notes }
    }

    fn refused(&self, allowed: &str) -> Fault {
        self.refused_as(&shown(&self.value), allowed)
    }

    /// Like [`Relaxed::refused`], without the value, since it may be a secret.
    fn refused_unseen(&self, allowed: &str) -> Fault {
        let kind = match *self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a group of keys",
        };
        self.refused_as(kind, allowed)
    }

    fn refused_as(&self, given: &str, allowed: &str) -> Fault {
        let hint = self.hint(&self.value);
        Fault::wrong(&self.path.given, format!("{given} is not possible; allowed is {allowed}{hint}"))
    }

    /// The remedy for a key with dots, of which Spring made groups within groups, where `found` is one of these.
    fn hint(&self, found: &Value) -> String {
        match &self.path.map {
            Some(map) if found.is_object() => format!("; a key that has dots stands in brackets, as {map}[a.b]"),
            _ => String::new(),
        }
    }

    fn is_left_out(&self) -> bool {
        self.notes.wrong.contains(&self.path.given)
    }

    /// The value as a text without the space around it; `None` if it is none.
    fn text(&self) -> Result<Option<&str>, Fault> {
        match self.value.as_str().map(str::trim) {
            Some("") if self.is_optional => Err(Fault::Nothing(self.path.shape.clone())),
            text => Ok(text),
        }
    }

    fn whole(&self, most: u64) -> Result<u64, Fault> {
        let number = match self.text()? {
            Some(text) => text.parse().ok(),
            None => self.value.as_u64(),
        };
        number.filter(|number| *number <= most).ok_or_else(|| match most {
            u64::MAX => self.refused("a whole number from 0 on"),
            _ => self.refused(&format!("a whole number from 0 to {most}")),
        })
    }

    /// The fields of a struct, of which it has those of `known`.
    fn fields<'b>(&self, given: &'b Map<String, Value>, known: &[&'static str]) -> Result<Vec<Child<'b>>, Fault>
    where
        'a: 'b,
    {
        let mut found: Vec<Child<'b>> = Vec::new();
        for (key, value) in given {
            let name = known.iter().find(|name| is_spelling(key, name)).copied();
            let path = self.path.field(key, name.unwrap_or(key));
            let first = found.iter().find(|(first, _)| Some(*first) == name);
            let wrong = match (name, first) {
                (Some(name), None) => {
                    found.push((name, Relaxed::of(Cow::Borrowed(value), path, self.notes)));
                    continue;
                }
                // Spring hands a key on in each spelling that some source of properties has for it, with one value.
                (_, Some((_, first))) if says_the_same(&first.value, value) => continue,
                (_, Some((_, first))) => format!("it has another value as {}; keep one of them", first.path.given),
                (None, None) => format!("unknown key; {}{}", suggest(known, key, given), self.hint(value)),
            };
            if !self.notes.wrong.contains(&path.given) {
                return Err(Fault::wrong(&path.given, wrong));
            }
        }
        Ok(found)
    }

    /// The entries of a map whose keys are the operator's own.
    fn entries<'b>(&self, given: &'b Map<String, Value>) -> Vec<Child<'b>>
    where
        'a: 'b,
    {
        let entry = |(key, value): (&'b String, &'b Value)| {
            let key = without_brackets(key);
            (key, Relaxed::of(Cow::Borrowed(value), self.path.entry(key), self.notes))
        };
        given.iter().map(entry).collect()
    }

    /// The items of a list: of an array, a text with commas, or a map by indexes, as of Spring's `x[0]`.
    fn items(&self) -> Result<Vec<Child<'_>>, Fault> {
        if let Value::Object(given) = &*self.value {
            let unknown = given.keys().filter(|key| index(key).is_none()).map(|key| self.path.field(key, key));
            if let Some(path) = unknown.into_iter().find(|path| !self.notes.wrong.contains(&path.given)) {
                let text = format!("unknown key; {} is a list, so its keys are 0, 1 and so on", self.path.given);
                return Err(Fault::wrong(&path.given, text));
            }
        }
        let items = items(&self.value).ok_or_else(|| self.refused("a list, or its items as a text with commas"))?;
        let mut children: Vec<Child<'_>> = Vec::new();
        for (index, value) in items {
            let child = Relaxed::of(value, self.path.item(index, children.len()), self.notes);
            if !child.is_left_out() {
                children.push(("", child));
            }
        }
        Ok(children)
    }

    fn children<'b>(&self, mut children: Vec<Child<'b>>) -> Children<'b> {
        children.retain(|(_, child)| !child.is_left_out());
        for (_, Relaxed { path: Path { given, name, .. }, .. }) in &children {
            if given != name {
                self.notes.spelled.borrow_mut().insert(name.clone(), given.clone());
            }
        }
        Children { left: children.into_iter(), value: None }
    }
}

impl<'de> Deserializer<'de> for Relaxed<'_> {
    type Error = Fault;

    /// As it comes: no setting has a type that asks for this.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let read = self.value.into_owned().deserialize_any(visitor);
        read.map_err(|error| Fault::wrong(&self.path.given, error.to_string()))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u32 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.text()?.map(str::to_ascii_lowercase);
        match (&*self.value, text.as_deref()) {
            (Value::Bool(value), _) => visitor.visit_bool(*value),
            (_, Some("true")) => visitor.visit_bool(true),
            (_, Some("false")) => visitor.visit_bool(false),
            _ => Err(self.refused("true or false")),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u64(self.whole(u16::MAX.into())?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_u64(self.whole(u64::MAX)?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let number = match self.text()? {
            Some(text) => text.parse().ok(),
            None => self.value.as_f64(),
        };
        visitor.visit_f64(number.ok_or_else(|| self.refused("a number"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let expected = (&visitor as &dyn Expected).to_string();
        self.text()?;
        match &*self.value {
            Value::String(text) => visitor.visit_str(text).map_err(|_: Fault| self.refused(with_example(&expected))),
            _ if matches!(expected.as_str(), "a string" | "path string") => Err(self.refused_unseen("a text")),
            _ => Err(self.refused(with_example(&expected))),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    /// An empty text is an empty list, and none of any other type. The type within is known only when it asks in its turn:
    /// it then gives up with [`Fault::Nothing`], and the next reading finds that here.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let is_empty = self.value.as_str().is_some_and(|text| text.trim().is_empty());
        if self.value.is_null() || (is_empty && self.notes.nothing.contains(&self.path.shape)) {
            return visitor.visit_none();
        }
        visitor.visit_some(Self { is_optional: true, ..self })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_seq(self.children(self.items()?))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &*self.value {
            Value::Object(given) => visitor.visit_map(self.children(self.entries(given))),
            Value::String(text) if text.trim().is_empty() => visitor.visit_map(self.children(Vec::new())),
            _ => Err(self.refused_unseen("a group of keys of your own")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &*self.value {
            Value::Object(given) => visitor.visit_map(self.children(self.fields(given, fields)?)),
            _ => Err(self.refused_unseen(&format!("a group of the keys {}", fields.join(", ")))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let text = self.text()?.unwrap_or_default();
        match variants.iter().find(|variant| is_spelling(text, variant)) {
            Some(variant) => visitor.visit_enum((*variant).into_deserializer()),
            None => Err(self.refused(&variants.join(" or "))),
        }
    }
}

/// A value in another, with the name of its field or its key; of an item, with nothing.
type Child<'a> = (&'a str, Relaxed<'a>);

/// The values in a struct, map or list, one after the other.
struct Children<'a> {
    left: vec::IntoIter<Child<'a>>,
    /// The value of the key that was asked for last.
    value: Option<Relaxed<'a>>,
}

fn read_child<'de, S: DeserializeSeed<'de>>(child: Relaxed<'_>, seed: S) -> Result<S::Value, Fault> {
    let key = child.path.given.clone();
    seed.deserialize(child).map_err(|fault| fault.at(&key))
}

impl<'de> SeqAccess<'de> for Children<'_> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        self.left.next().map(|(_, child)| read_child(child, seed)).transpose()
    }
}

impl<'de> MapAccess<'de> for Children<'_> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((key, value)) = self.left.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let child = self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        read_child(child, seed)
    }
}

/// The items, with their indexes, of a value that may be a list.
fn items(value: &Value) -> Option<Vec<(usize, Cow<'_, Value>)>> {
    match value {
        Value::Array(items) => Some(items.iter().map(Cow::Borrowed).enumerate().collect()),
        Value::String(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(items.map(|item| Cow::Owned(item.into())).enumerate().collect())
        }
        Value::Object(given) => {
            let item = |(key, value): (&String, _)| Some((index(key)?, Cow::Borrowed(value)));
            let mut items: Vec<_> = given.iter().filter_map(item).collect();
            items.sort_by_key(|(index, _)| *index);
            Some(items)
        }
        _ => None,
    }
}

fn index(key: &str) -> Option<usize> {
    without_brackets(key).parse().ok()
}

fn without_brackets(key: &str) -> &str {
    key.strip_prefix('[').and_then(|key| key.strip_suffix(']')).unwrap_or(key)
}

/// Whether two values are the same, or the same list in two forms.
fn says_the_same(one: &Value, other: &Value) -> bool {
    one == other || items(one).is_some_and(|one| !one.is_empty() && Some(one) == items(other))
}

/// The words of other crates' types for what they expect, in ours and with an example.
fn with_example(expected: &str) -> &str {
    match expected {
        "socket address" => "an IP address with a port, as 0.0.0.0:9700",
        "IPv4 or IPv6 network address" => "a range of addresses, as 10.0.0.0/8, or 10.1.2.3/32 for a single one",
        other => other,
    }
}

/// As JSON, without its end where that is far.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
