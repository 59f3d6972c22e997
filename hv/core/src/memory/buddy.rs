//! The free lists: blocks of 2^order frames, merged with their buddies as they come back.
//!
//! Blocks never cross a zone border (16 MiB and 4 GiB, both multiples of every block that could reach
//! them), so the zone of a block is that of its first frame. Everything here runs under the allocator's
//! lock; the entries of free frames are touched by nobody else.

use super::entry::{NIL, Word};
use super::{FrameEntry, MAX_ORDER, Zone};

pub(super) const ORDERS: usize = MAX_ORDER as usize + 1;
/// First frame number behind each zone, lowest zone first.
const ZONE_ENDS: [u64; 3] = [1 << 12, 1 << 20, u64::MAX];

fn zone_of(frame: u64) -> usize {
    ZONE_ENDS.iter().position(|&end| frame < end).unwrap_or(ZONE_ENDS.len() - 1)
}

/// The lists' heads and lengths by zone and order.
#[derive(Debug)]
pub(super) struct Buddy {
    heads: [[u32; ORDERS]; ZONE_ENDS.len()],
    blocks: [[u32; ORDERS]; ZONE_ENDS.len()],
}

impl Buddy {
    pub(super) const fn new() -> Self {
        Self { heads: [[NIL; ORDERS]; ZONE_ENDS.len()], blocks: [[0; ORDERS]; ZONE_ENDS.len()] }
    }

    /// Free blocks by order, all zones together.
    pub(super) fn blocks_by_order(&self) -> [u32; ORDERS] {
        core::array::from_fn(|order| self.blocks.iter().map(|zone| zone[order]).sum())
    }

    /// Free frames below 16 MiB, below 4 GiB (and not below 16 MiB), and above.
    pub(super) fn free_by_zone(&self) -> [u64; 3] {
        core::array::from_fn(|zone| {
            self.blocks[zone].iter().enumerate().map(|(order, &n)| u64::from(n) << order).sum()
        })
    }

    /// Takes a block of `order` off the lists; its entries are left as the body of a free block.
    pub(super) fn take(&mut self, table: &[FrameEntry], order: u8, zone: Zone) -> Option<u64> {
        let highest = match zone {
            Zone::Any => 2,
            Zone::Below4G => 1,
            Zone::Below16M => 0,
        };
        for zone in (0..=highest).rev() {
            let found = (order..=MAX_ORDER).find(|&o| self.heads[zone][usize::from(o)] != NIL);
            let Some(mut have) = found else { continue };
            let start = u64::from(self.heads[zone][usize::from(have)]);
            self.unlink(table, start, have);
            // Keep the lower half, give the upper back, until the size is right.
            while have > order {
                have -= 1;
                self.link(table, start + (1 << have), have);
            }
            return Some(start);
        }
        None
    }

    /// Puts the frames `from..to` on the lists, in the largest blocks that fit, merged with free
    /// neighbours. Their entries must be bodies of free blocks and on no list.
    pub(super) fn insert_span(&mut self, table: &[FrameEntry], mut from: u64, to: u64) {
        while from < to {
            let room = (to.min(ZONE_ENDS[zone_of(from)]) - from).ilog2();
            let order = from.trailing_zeros().min(room).min(MAX_ORDER.into()) as u8;
            self.insert(table, from, order);
            from += 1 << order;
        }
    }

    /// The block that holds `frame`, if it is free: first frame and order.
    pub(super) fn containing(&self, table: &[FrameEntry], frame: u64) -> Option<(u64, u8)> {
        (0..=MAX_ORDER).find_map(|order| {
            let head = frame >> order << order;
            let found = head_order(table, head)?;
            (found >= order).then_some((head, found))
        })
    }

    /// Takes one whole block off its list.
    pub(super) fn unlink(&mut self, table: &[FrameEntry], start: u64, order: u8) {
        let zone = zone_of(start);
        let (prev, next) = links(table, start, order);
        match prev {
            NIL => self.heads[zone][usize::from(order)] = next,
            prev => relink(table, prev.into(), order, |old| (old.0, next)),
        }
        if next != NIL {
            relink(table, next.into(), order, |old| (prev, old.1));
        }
        self.blocks[zone][usize::from(order)] -= 1;
        set_body(table, start, order);
    }

    fn insert(&mut self, table: &[FrameEntry], mut start: u64, mut order: u8) {
        while order < MAX_ORDER {
            let buddy = start ^ 1 << order;
            if zone_of(buddy) != zone_of(start) || head_order(table, buddy) != Some(order) {
                break;
            }
            self.unlink(table, buddy, order);
            start = start.min(buddy);
            order += 1;
        }
        self.link(table, start, order);
    }

    fn link(&mut self, table: &[FrameEntry], start: u64, order: u8) {
        let head = &mut self.heads[zone_of(start)][usize::from(order)];
        let next = core::mem::replace(head, start as u32);
        self.blocks[zone_of(start)][usize::from(order)] += 1;
        set_links(table, start, order, (NIL, next));
        if next != NIL {
            relink(table, next.into(), order, |old| (start as u32, old.1));
        }
    }
}

/// The order of the free block that begins at `frame`.
fn head_order(table: &[FrameEntry], frame: u64) -> Option<u8> {
    match table.get(frame as usize)?.get() {
        Word::FreeOne { .. } => Some(0),
        Word::FreeHead { order, .. } => Some(order),
        _ => None,
    }
}

/// (previous, next) of a listed block.
fn links(table: &[FrameEntry], start: u64, order: u8) -> (u32, u32) {
    let first = table[start as usize].get();
    match (first, order) {
        (Word::FreeOne { prev, next }, 0) => (prev, next),
        (Word::FreeHead { next, order: found }, _) if found == order => {
            match table[start as usize + 1].get() {
                Word::FreePrev { prev } => (prev, next),
                other => unreachable!("second entry of a free block is {other:?}"),
            }
        }
        (other, _) => unreachable!("first entry of a free block of order {order} is {other:?}"),
    }
}

fn set_links(table: &[FrameEntry], start: u64, order: u8, (prev, next): (u32, u32)) {
    let start = start as usize;
    if order == 0 {
        table[start].set(Word::FreeOne { prev, next });
    } else {
        table[start + 1].set(Word::FreePrev { prev });
        table[start].set(Word::FreeHead { order, next });
    }
}

fn relink(table: &[FrameEntry], start: u64, order: u8, f: impl Fn((u32, u32)) -> (u32, u32)) {
    set_links(table, start, order, f(links(table, start, order)));
}

fn set_body(table: &[FrameEntry], start: u64, order: u8) {
    table[start as usize].set(Word::FreeBody);
    if order > 0 {
        table[start as usize + 1].set(Word::FreeBody);
    }
}
