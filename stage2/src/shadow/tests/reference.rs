//! Both stages walked by plain code that shares nothing with what it judges.

use crate::Perms;
use crate::walk12::{Access, Paging12, Shape};
use addr::{Gpa, GuestMemory, GuestPage};

/// P and RSV of the fault.
type Fault = u64;

/// The L1 address of `ngpa`, or P and RSV of the fault.
pub fn walk(
    mem: &impl GuestMemory,
    paging: &Paging12,
    ncr3: u64,
    ngpa: u64,
    access: Access,
) -> Result<u64, Fault> {
    let (gpa, perms, user) = raw_walk(mem, paging, ncr3, ngpa)?;
    if user && perms.contains(access.needs()) { Ok(gpa) } else { Err(1) }
}

/// The L1 address and the rights of `ngpa`.
pub fn rights(mem: &impl GuestMemory, paging: &Paging12, ncr3: u64, ngpa: u64) -> Option<(u64, Perms)> {
    let (gpa, perms, user) = raw_walk(mem, paging, ncr3, ngpa).ok()?;
    user.then_some((gpa, perms))
}

/// Written for NXE on, PSE on, 40 address bits and 1 GiB pages: what the tests use.
fn raw_walk(
    mem: &impl GuestMemory,
    paging: &Paging12,
    ncr3: u64,
    n: u64,
) -> Result<(u64, Perms, bool), Fault> {
    let (mut w, mut x, mut user) = (true, true, true);
    let done = |gpa, w, x, user| {
        let perms =
            Perms::R | if w { Perms::W } else { Perms::NONE } | if x { Perms::X } else { Perms::NONE };
        Ok((gpa, perms, user))
    };
    if paging.shape() == Shape::TwoLevel {
        let read =
            |at: u64| mem.pin(Gpa::new(at).frame()).map(|p| u64::from(p.read_u32(at as usize & 0xfff)));
        let pde = read((ncr3 & 0xffff_f000) + (n >> 22) * 4).map_err(|_| 9u64)?;
        if pde & 1 == 0 {
            return Err(0);
        }
        (w, user) = (pde & 2 != 0, pde & 4 != 0);
        if pde & 0x80 != 0 {
            if pde & 0x20_0000 != 0 {
                return Err(9);
            }
            return done((pde & 0xffc0_0000) | ((pde >> 13) & 0xff) << 32 | n & 0x3f_ffff, w, true, user);
        }
        let pte = read((pde & 0xffff_f000) + ((n >> 12) & 1023) * 4).map_err(|_| 9u64)?;
        if pte & 1 == 0 {
            return Err(0);
        }
        return done((pte & 0xffff_f000) | n & 0xfff, w && pte & 2 != 0, true, user && pte & 4 != 0);
    }
    let read = |at: u64| mem.pin(Gpa::new(at).frame()).map(|p| p.read_u64(at as usize & 0xfff));
    if paging.shape() == Shape::Ept {
        let (mut table, mut left) = (ncr3 & 0xf_ffff_ffff_f000, 7);
        for level in (1..=4u32).rev() {
            let shift = 12 + 9 * (level - 1);
            let e = read(table + ((n >> shift) & 511) * 8).map_err(|_| 9u64)?;
            if e & 7 == 0 {
                return Err(0);
            }
            let leaf = level == 1 || e & 0x80 != 0 && level < 4;
            let zero = 0xf_ff00_0000_0000 | if !leaf { 0xf8 } else { (1 << shift) - 0x1000 };
            if e & zero != 0 || e & 1 == 0 || leaf && [2, 3, 7].contains(&(e >> 3 & 7)) {
                return Err(9);
            }
            left &= e & 7;
            let next = e & 0xf_ffff_ffff_f000;
            if leaf {
                let within = (1u64 << shift) - 1;
                return done(next & !within | n & within, left & 2 != 0, left & 4 != 0, true);
            }
            table = next;
        }
    }
    let pae = paging.shape() == Shape::Pae;
    let mut table = if pae { ncr3 & 0xffff_ffe0 } else { ncr3 & 0xf_ffff_ffff_f000 };
    for level in (1..=if pae { 3u32 } else { 4 }).rev() {
        let shift = 12 + 9 * (level - 1);
        let e =
            read(table + ((n >> shift) & if pae && level == 3 { 3 } else { 511 }) * 8).map_err(|_| 9u64)?;
        if e & 1 == 0 {
            return Err(0);
        }
        let mut mbz = 0xf_ff00_0000_0000;
        let big = e & 0x80 != 0 && (level == 2 || level == 3 && !pae);
        match (level, big) {
            (4, _) => mbz |= 0x180,
            (3, _) if pae => mbz |= 1 << 63 | 0x1e6,
            (_, true) => mbz |= (1 << shift) - 0x2000,
            _ => {}
        }
        if pae {
            mbz |= 0x7ff0_0000_0000_0000;
        }
        if e & mbz != 0 {
            return Err(9);
        }
        if !(pae && level == 3) {
            w &= e & 2 != 0;
            user &= e & 4 != 0;
            x &= e >> 63 == 0;
        }
        let next = e & 0xf_ffff_ffff_f000;
        if level == 1 || big {
            let within = (1u64 << shift) - 1;
            return done(next & !within | n & within, w, x, user);
        }
        table = next;
    }
    unreachable!()
}
