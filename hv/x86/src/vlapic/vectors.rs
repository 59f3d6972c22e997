//! A set of interrupt vectors: the shape of IRR, ISR and TMR.

/// A set of the 256 interrupt vectors.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);

    const fn place(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Adds `vector`.
    pub const fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] |= bit;
    }

    /// Takes `vector` out; says whether it was in.
    pub const fn remove(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let was = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was
    }

    /// Whether `vector` is in the set.
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word] & bit != 0
    }

    /// The highest vector in the set, which is also the one of highest priority.
    pub const fn highest(&self) -> Option<u8> {
        let mut word = 4;
        while word > 0 {
            word -= 1;
            if self.0[word] != 0 {
                return Some((word as u32 * 64 + 63 - self.0[word].leading_zeros()) as u8);
            }
        }
        None
    }

    /// Whether no vector is in the set.
    pub const fn is_empty(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// The 32 vectors from `32 * index`, as the register of that index shows them; 0 beyond the eighth.
    pub const fn register(&self, index: usize) -> u32 {
        if index < 8 { (self.0[index / 2] >> (32 * (index % 2))) as u32 } else { 0 }
    }

    /// Replaces, among the 64 vectors from `64 * word`, those selected by `mask` with `bits`.
    pub(super) const fn assign(&mut self, word: usize, mask: u64, bits: u64) {
        self.0[word] = (self.0[word] & !mask) | (bits & mask);
    }
}
