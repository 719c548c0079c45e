//! A `ServerDataBox` holds a `java.lang.String` in Java serialization: stream magic and version `AC ED 00 05`, then
//! `TC_STRING` (`74`, 16-bit length), `TC_LONGSTRING` (`7C`, 64-bit length) or `TC_NULL` (`70`), then *modified* UTF-8
//! (Java Object Serialization Specification, section 6; `DataInput` for the encoding).

/// Why bytes are not a serialized string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAString;

/// Decodes one serialized string; `Ok(None)` is a serialized `null`. A surrogate without its partner becomes U+FFFD.
pub fn decode(bytes: &[u8]) -> Result<Option<String>, NotAString> {
    let rest = bytes.strip_prefix(&[0xAC, 0xED, 0x00, 0x05]).ok_or(NotAString)?;
    let (tag, rest) = rest.split_first().ok_or(NotAString)?;
    match tag {
        0x70 if rest.is_empty() => Ok(None),
        0x74 => {
            let (length, text) = rest.split_first_chunk::<2>().ok_or(NotAString)?;
            text_of(u64::from(u16::from_be_bytes(*length)), text)
        }
        0x7C => {
            let (length, text) = rest.split_first_chunk::<8>().ok_or(NotAString)?;
            text_of(u64::from_be_bytes(*length), text)
        }
        _ => Err(NotAString),
    }
}

fn text_of(length: u64, text: &[u8]) -> Result<Option<String>, NotAString> {
    if length != text.len() as u64 {
        return Err(NotAString);
    }
    if text.is_ascii() && !text.contains(&0) {
        return Ok(Some(String::from_utf8(text.to_vec()).map_err(|_| NotAString)?));
    }
    let units = modified_utf8(text)?;
    Ok(Some(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()))
}

/// UTF-16 code units of one to three bytes each; NUL is `C0 80`, supplementary characters are surrogate pairs.
fn modified_utf8(text: &[u8]) -> Result<Vec<u16>, NotAString> {
    let continuation = |byte: Option<&u8>| match byte {
        Some(byte) if byte & 0xC0 == 0x80 => Ok(u16::from(byte & 0x3F)),
        _ => Err(NotAString),
    };
    let mut units = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&first) = bytes.next() {
        units.push(match first {
            0x01..=0x7F => u16::from(first),
            0xC0..=0xDF => u16::from(first & 0x1F) << 6 | continuation(bytes.next())?,
            0xE0..=0xEF => {
                let high = continuation(bytes.next())?;
                u16::from(first & 0x0F) << 12 | high << 6 | continuation(bytes.next())?
            }
            _ => return Err(NotAString),
        });
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(text: &[u8]) -> Vec<u8> {
        [&[0xAC, 0xED, 0, 5, 0x74], (text.len() as u16).to_be_bytes().as_slice(), text].concat()
    }

    #[test]
    fn short_long_and_null_strings() {
        assert_eq!(decode(&short(b"10.0.0.1:12200")), Ok(Some("10.0.0.1:12200".into())));
        assert_eq!(decode(&short(b"")), Ok(Some(String::new())));
        assert_eq!(decode(&[0xAC, 0xED, 0, 5, 0x70]), Ok(None));
        let long = vec![b'x'; 70_000];
        let bytes = [&[0xAC, 0xED, 0, 5, 0x7C], 70_000u64.to_be_bytes().as_slice(), &long].concat();
        assert_eq!(decode(&bytes).unwrap().unwrap().len(), 70_000);
    }

    #[test]
    fn modified_utf8_differs_from_utf8_in_nul_and_supplementary_characters() {
        assert_eq!(decode(&short(&[0xC0, 0x80])), Ok(Some("\0".into())));
        assert_eq!(decode(&short("é€".as_bytes())), Ok(Some("é€".into())));
        assert_eq!(decode(&short(&[0xED, 0xA0, 0xBD, 0xED, 0xB8, 0x80])), Ok(Some("😀".into())));
        assert_eq!(decode(&short(&[0xED, 0xA0, 0xBD])), Ok(Some("\u{FFFD}".into())));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = short(b"abc");
        for end in 0..good.len() {
            assert_eq!(decode(&good[..end]), Err(NotAString), "cut at {end}");
        }
        assert_eq!(decode(&[good.clone(), vec![0]].concat()), Err(NotAString));
        assert_eq!(decode(&short("😀".as_bytes())), Err(NotAString), "four-byte UTF-8 is not modified UTF-8");
        assert_eq!(decode(b"10.0.0.1:12200"), Err(NotAString));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode(&short(&bytes[..bytes.len().min(60_000)]));
        }
    }
}
