//! Forms in which a SHA-256 is used: leading bytes and hexadecimal text.

use sha2::{Digest, Sha256};

/// The first `N` bytes of the SHA-256 of `bytes`; `N` is at most 32.
pub fn prefix_of<const N: usize>(bytes: impl AsRef<[u8]>) -> [u8; N] {
    prefix(&Sha256::digest(bytes).into())
}

/// The first `N` bytes of a SHA-256; `N` is at most 32.
pub fn prefix<const N: usize>(digest: &[u8; 32]) -> [u8; N] {
    const { assert!(N <= 32, "a SHA-256 has 32 bytes") };
    std::array::from_fn(|index| digest[index])
}

/// Lower-case hexadecimal digits, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The bytes of a SHA-256, or of an HMAC with it, that stand there as 64 hexadecimal digits.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 64).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_what_the_text_begins_with() {
        let whole = hex(&Sha256::digest("abc"));
        assert_eq!(whole, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(&prefix_of::<4>("abc")), whole[..8]);
        assert_eq!(hex(&prefix_of::<32>("abc")), whole);
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn digits_give_back_what_they_are_of_and_anything_else_gives_nothing() {
        let bytes = prefix_of::<32>("abc");
        assert_eq!((from_hex(&hex(&bytes)), from_hex(&hex(&bytes).to_uppercase())), (Some(bytes), Some(bytes)));
        for other in ["", "00", &hex(&bytes)[1..], &format!("{}0", hex(&bytes)), &"é".repeat(32), &"g".repeat(64)] {
            assert_eq!(from_hex(other), None, "{other}");
        }
    }
}
