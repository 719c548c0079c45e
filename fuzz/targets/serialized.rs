//! The serialized-String decoder never panics, and agrees with an encoder of its own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use registry_mox::testing::translate::serialized::decode;

const HEADER: [u8; 4] = [0xAC, 0xED, 0x00, 0x05];

/// `DataOutput.writeUTF`, as its documentation says it: NUL takes two bytes, each UTF-16 unit up to three.
fn modified_utf8(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for unit in text.encode_utf16() {
        match unit {
            0x0001..=0x007F => bytes.push(unit as u8),
            0x0000 | 0x0080..=0x07FF => bytes.extend([0xC0 | (unit >> 6) as u8, 0x80 | (unit & 0x3F) as u8]),
            0x0800.. => {
                bytes.extend([0xE0 | (unit >> 12) as u8, 0x80 | (unit >> 6 & 0x3F) as u8, 0x80 | (unit & 0x3F) as u8])
            }
        }
    }
    bytes
}

fn short(text: &[u8]) -> Vec<u8> {
    [&HEADER[..], &[0x74], &(text.len() as u16).to_be_bytes(), text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&HEADER[..], &[0x7C], &(text.len() as u64).to_be_bytes(), text].concat()
}

/// Whether the bytes are in the form that Java writes: a unit takes no more bytes than it needs, NUL excepted.
fn shortest(text: &[u8]) -> bool {
    let wasteful = |pair: &[u8]| match pair {
        [0xC0, next] => *next != 0x80,
        [0xC1, _] => true,
        [0xE0, next] => *next < 0xA0,
        _ => false,
    };
    !text.windows(2).any(wasteful)
}

fn check(text: &[u8]) {
    let decoded = decode(&long(text));
    if text.len() <= usize::from(u16::MAX) {
        assert_eq!(decode(&short(text)), decoded, "both forms hold the same");
    }
    let Ok(Some(decoded)) = decoded else { return };
    let encoded = modified_utf8(&decoded);
    assert_eq!(decode(&long(&encoded)), Ok(Some(decoded.clone())), "what was read can be written and read");
    if shortest(text) && !decoded.contains(char::REPLACEMENT_CHARACTER) {
        assert_eq!(encoded, text);
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    check(data);
    if let Ok(text) = std::str::from_utf8(data) {
        assert_eq!(decode(&long(&modified_utf8(text))), Ok(Some(text.to_owned())));
    }
});
