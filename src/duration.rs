//! Durations as texts: `250ms`, `10s`, `5m`, `1h`. For serde, as `with = "duration"`.

use std::{fmt, time::Duration};

use serde::{Deserializer, Serializer, de};

struct Text;

impl de::Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration, as 250ms, 10s, 5m or 1h")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text.trim()).map_err(E::custom)
    }
}

/// Reads one.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Text)
}

/// Writes one.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Durations that may be left out.
pub mod option {
    use serde::Deserialize;

    use super::{Deserializer, Duration, Serializer};

    struct Given(Duration);

    impl<'de> Deserialize<'de> for Given {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            super::deserialize(deserializer).map(Self)
        }
    }

    /// Reads one, or none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(duration)| duration))
    }

    /// Writes one, or none.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// In the largest unit of which it is a multiple, as `90s`; with a fraction of a second in several.
pub fn shown(duration: Duration) -> String {
    let (seconds, fraction) = (duration.as_secs(), duration.subsec_nanos());
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    match units.into_iter().find(|(unit, _)| seconds > 0 && seconds % unit == 0) {
        Some((unit, name)) if fraction == 0 => format!("{}{name}", seconds / unit),
        _ => humantime::format_duration(duration).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_duration_is_read_as_the_same() {
        for text in ["0s", "1ms", "250ms", "1s 500ms", "10s 1us", "20s", "90s", "10m", "1h", "365d"] {
            let duration = humantime::parse_duration(text).unwrap();
            assert_eq!(shown(duration), text);
        }
    }
}
