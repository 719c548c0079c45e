//! Choices that a seed makes again.

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Any character, odd ones more often than usual ones.
    pub fn character(&mut self) -> char {
        match self.below(8) {
            0 => char::from(self.below(0x20) as u8),
            1 => char::from(self.below(0x80) as u8),
            2 => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{FFFD}'),
            3 => *['*', '.', '-', '_', '/', ':', '@', '#', '%', '~', '+', '&', '=', '?'].get(self.below(14)).unwrap(),
            4 => char::from(b'0' + self.below(10) as u8),
            5 => char::from(b'A' + self.below(26) as u8),
            _ => char::from(b'a' + self.below(26) as u8),
        }
    }

    /// Up to `most` characters.
    pub fn text(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.character()).collect()
    }
}
