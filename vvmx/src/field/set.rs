//! Sets of fields.

use super::{COUNT, FLOWS, Field, Flow};
use core::fmt;

/// A set of fields.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct FieldSet([u64; 3]);

const _: () = assert!(COUNT <= 192);

impl FieldSet {
    /// No field.
    pub const NONE: Self = Self([0; 3]);
    /// Every field.
    pub const ALL: Self = {
        let mut set = Self::NONE;
        let mut at = 0;
        while at < COUNT as u8 {
            set = set.with(Field(at));
            at += 1;
        }
        set
    };

    /// These fields.
    pub const fn of(fields: &[Field]) -> Self {
        let mut set = Self::NONE;
        let mut at = 0;
        while at < fields.len() {
            set = set.with(fields[at]);
            at += 1;
        }
        set
    }
    /// The fields with this flow.
    pub const fn flowing(flow: Flow) -> Self {
        let mut set = Self::NONE;
        let mut at = 0;
        while at < COUNT {
            if FLOWS[at] as u8 == flow as u8 {
                set = set.with(Field(at as u8));
            }
            at += 1;
        }
        set
    }
    /// `self` and `field`.
    #[inline]
    pub const fn with(mut self, field: Field) -> Self {
        self.0[field.index() / 64] |= 1 << (field.index() % 64);
        self
    }
    /// Adds `field`.
    #[inline]
    pub fn insert(&mut self, field: Field) {
        *self = self.with(field);
    }
    /// Takes `field` out.
    #[inline]
    pub fn remove(&mut self, field: Field) {
        self.0[field.index() / 64] &= !(1 << (field.index() % 64));
    }
    /// Whether `field` is in it.
    #[inline]
    pub const fn contains(&self, field: Field) -> bool {
        self.0[field.index() / 64] >> (field.index() % 64) & 1 != 0
    }
    /// What is in both.
    #[inline]
    pub const fn and(&self, other: &Self) -> Self {
        Self([self.0[0] & other.0[0], self.0[1] & other.0[1], self.0[2] & other.0[2]])
    }
    /// What is in either.
    #[inline]
    pub const fn or(&self, other: &Self) -> Self {
        Self([self.0[0] | other.0[0], self.0[1] | other.0[1], self.0[2] | other.0[2]])
    }
    /// What is in `self` only.
    #[inline]
    pub const fn minus(&self, other: &Self) -> Self {
        Self([self.0[0] & !other.0[0], self.0[1] & !other.0[1], self.0[2] & !other.0[2]])
    }
    /// Whether nothing is in it.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0
    }
    /// Whether something is in both.
    #[inline]
    pub const fn meets(&self, other: &Self) -> bool {
        !self.and(other).is_empty()
    }
    /// How many there are.
    pub const fn len(&self) -> usize {
        (self.0[0].count_ones() + self.0[1].count_ones() + self.0[2].count_ones()) as usize
    }
    /// The fields, in the order of the table.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Field> + use<> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let word = left.iter().position(|w| *w != 0)?;
            let bit = left[word].trailing_zeros();
            left[word] &= left[word] - 1;
            Some(Field((word as u32 * 64 + bit) as u8))
        })
    }
}

impl fmt::Debug for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
