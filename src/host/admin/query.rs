//! Queries, as the part of an address behind its question mark is called.

use crate::error::quoted;

/// Value of a name, decoded; a name without `=` has none.
pub fn value(query: &str, name: &str) -> Option<String> {
    let found = pairs(query).find(|(key, _)| *key == name)?;
    found.1.map(decoded)
}

/// Whether a name is there, with or without a value; an error is for the client.
pub fn flag(query: &str, name: &str) -> Result<bool, String> {
    match pairs(query).find(|(key, _)| *key == name) {
        None | Some((_, Some("false" | "0"))) => Ok(false),
        Some((_, None | Some("" | "true" | "1"))) => Ok(true),
        Some((_, Some(other))) => Err(format!("{name}={} is not possible; {name} is true or false\n", quoted(other))),
    }
}

/// The names.
pub fn names(query: &str) -> impl Iterator<Item = &str> {
    pairs(query).map(|(key, _)| key)
}

/// A query of these names and values.
pub fn of<'a>(pairs: impl Iterator<Item = (&'a str, &'a String)>) -> String {
    pairs.map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| match part.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (part, None),
    })
}

/// The text of a part of a path, in which a `+` stands for itself.
pub fn decoded_path(text: &str) -> String {
    decoded(&text.replace('+', "%2B"))
}

/// A `+` is a space, as forms and `curl --data-urlencode` have it; what is no encoding stands for itself.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let digit = |n: usize| behind.get(n).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &behind[2..];
                continue;
            }
            (b'+', ..) => bytes.push(b' '),
            (other, ..) => bytes.push(*other),
        }
        rest = behind;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text as it may stand in a path or a query.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_found_with_and_without_values() {
        let query = "dryRun&by=ann+lee&why=%e4%b8%ad%20%&local=1&x";
        assert_eq!(flag(query, "dryRun"), Ok(true));
        assert_eq!(
            (flag(query, "dry"), flag("dryRun=false", "dryRun"), flag("a=", "a")),
            (Ok(false), Ok(false), Ok(true))
        );
        assert!(flag("dryRun=maybe", "dryRun").is_err());
        assert_eq!((value(query, "by").as_deref(), value(query, "why").as_deref()), (Some("ann lee"), Some("中 %")));
        assert_eq!((value(query, "x"), value(query, "y")), (None, None));
        assert_eq!(names(query).collect::<Vec<_>>(), ["dryRun", "by", "why", "local", "x"]);
    }

    #[test]
    fn a_value_is_read_as_it_was_meant() {
        for (text, meant) in
            [("", ""), ("a+b%20c", "a b c"), ("%C3%A4%4", "ä%4"), ("100%", "100%"), ("%zz", "%zz"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(decoded(text), meant);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in ".{0,40}") {
            let query = of([("a", &"b".to_owned()), ("why", &text)].into_iter());
            prop_assert!(query.is_ascii() && !query.contains([' ', '#', '+', '?']));
            prop_assert_eq!(value(&query, "why"), Some(text));
        }
    }
}
