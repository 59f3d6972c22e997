//! Records with stable small numbers, in memory that is taken once.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

/// No record.
pub(super) const NIL: u32 = u32::MAX;

/// A pool of records. Numbers come from [`Slab::insert`] and are kept only where a removal finds and
/// clears them, so a number that leads nowhere is this crate's bug: indexing then panics.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn with_capacity(n: usize) -> Self {
        Self { items: Vec::with_capacity(n), free: Vec::with_capacity(n) }
    }
    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }
    pub fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.items[id as usize] = Some(item);
            return id;
        }
        self.items.push(Some(item));
        self.items.len() as u32 - 1
    }
    pub fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        self.items[id as usize].take().expect("a live record")
    }
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items.iter().enumerate().filter_map(|(i, item)| Some((i as u32, item.as_ref()?)))
    }
    /// One past the highest number ever given out.
    pub fn bound(&self) -> u32 {
        self.items.len() as u32
    }
    pub fn get(&self, id: u32) -> Option<&T> {
        self.items.get(id as usize)?.as_ref()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, id: u32) -> &T {
        self.items[id as usize].as_ref().expect("a live record")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        self.items[id as usize].as_mut().expect("a live record")
    }
}
