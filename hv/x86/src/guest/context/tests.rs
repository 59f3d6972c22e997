//! Each check of both modes, and what comes of good ones.

use super::*;

const ALLOWED: Allowed = Allowed { cr4: 0x3006ff, efer: 0x5d01, phys_bits: 40, linear_bits: 48 };

/// As a PVH kernel starts: flat, paging off.
fn flat() -> HvmX86_32 {
    HvmX86_32 {
        gprs: [0, 1, 2, 3, 0x8000, 5, 6, 7],
        eip: 0x10_0000,
        eflags: 0,
        cr0: 1,
        cr3: 0,
        cr4: 0,
        pad1: 0,
        efer: 0,
        bases: [0; 5],
        limits: [u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x67],
        attrs: [0xc9b, 0xc93, 0xc93, 0xc93, 0x8b],
        pad2: [0; 3],
    }
}

fn long() -> HvmX86_64 {
    HvmX86_64 {
        gprs: [10, 11, 12, 13, 0xffff_8000_0000_8000, 15, 16, 17],
        rip: 0xffff_ffff_8100_0000,
        rflags: 0,
        cr0: 0x8005_0033,
        cr3: 0x5000,
        cr4: 0x20,
        efer: 0xd01,
    }
}

fn start_32(change: impl FnOnce(&mut HvmX86_32)) -> Result<Start, Errno> {
    let mut regs = flat();
    change(&mut regs);
    Start::new(&HvmContext::of_32(&regs), &ALLOWED)
}

fn start_64(change: impl FnOnce(&mut HvmX86_64)) -> Result<Start, Errno> {
    let mut regs = long();
    change(&mut regs);
    Start::new(&HvmContext::of_64(&regs), &ALLOWED)
}

#[test]
fn a_flat_kernel_starts_as_it_asked() {
    let start = start_32(|_| ()).unwrap();
    assert_eq!(start.gprs, [0, 1, 2, 3, 0x8000, 5, 6, 7]);
    assert_eq!((start.rip, start.rflags, start.cpl()), (0x10_0000, 2, 0));
    assert_eq!((start.cr0, start.cr3, start.cr4, start.efer), (0x11, 0, 0, 0));
    assert_eq!((start.cs.attrib, start.cs.limit), (0xc9b, u32::MAX));
    assert_eq!(start.tr, Segment { selector: 0, attrib: 0x8b, limit: 0x67, base: 0 });
}

#[test]
fn a_64_bit_kernel_gets_flat_segments_and_lma() {
    let start = start_64(|r| r.rflags = u64::MAX).unwrap();
    assert_eq!(start.efer, 0xd01 | reg::EFER_LMA);
    assert_eq!(start.gprs[Gprs::RSP], 0xffff_8000_0000_8000);
    assert_eq!(
        (start.cs.attrib, start.ss.attrib, start.tr.attrib, start.tr.limit),
        (0xa9b, 0xc93, 0x8b, 0x67)
    );
    assert_eq!(start.rflags, reg::RFLAGS_WRITABLE & !reg::RFLAGS_VM | 2);
    assert_eq!(start_64(|r| r.efer &= !reg::EFER_LMA).unwrap().efer & reg::EFER_LMA, reg::EFER_LMA);
}

#[test]
fn modes_and_padding() {
    let mut context = HvmContext::of_32(&flat());
    for (mode, pad) in [(2, 0), (u32::MAX, 0), (HVM_MODE_32, 1)] {
        (context.mode, context.pad) = (mode, pad);
        assert_eq!(Start::new(&context, &ALLOWED), Err(Errno::EINVAL), "{mode} {pad}");
    }
    assert!(start_32(|r| r.pad1 = 1).is_err());
    for n in 0..3 {
        assert!(start_32(|r| r.pad2[n] = 1).is_err());
    }
}

#[test]
fn segments_are_what_their_registers_take() {
    const CS: usize = 0;
    const DS: usize = 1;
    const SS: usize = 2;
    const ES: usize = 3;
    const TR: usize = 4;
    let rows: &[(usize, u16, bool, &str)] = &[
        (CS, 0xc9a, true, "not accessed yet"),
        (CS, 0xc98, true, "execute only"),
        (CS, 0xc93, false, "data"),
        (CS, 0xc1b, false, "not present"),
        (CS, 0xc8b, false, "a system segment"),
        (CS, 0, false, "null"),
        (CS, 0x1c9b, false, "bit 12"),
        (DS, 0, true, "null"),
        (ES, 0, true, "null"),
        (DS, 0xc91, true, "read only"),
        (ES, 0xc9b, true, "readable code"),
        (DS, 0xc99, false, "code that cannot be read"),
        (ES, 0xc13, false, "not present"),
        (DS, 0xcf3, false, "less privileged than CS"),
        (ES, 0x8c93, false, "bit 15"),
        (SS, 0xc91, false, "not writable"),
        (SS, 0xc9b, false, "code"),
        (SS, 0, false, "null"),
        (SS, 0xcf3, false, "another privilege than CS"),
        (TR, 0x89, true, "not busy yet"),
        (TR, 0x83, false, "16-bit"),
        (TR, 0x9b, false, "code"),
        (TR, 0x0b, false, "not present"),
        (TR, 0, false, "null"),
    ];
    for &(register, ar, good, what) in rows {
        assert_eq!(start_32(|r| r.attrs[register] = ar).is_ok(), good, "{register} {ar:#x}: {what}");
    }
    assert_eq!(start_32(|r| r.attrs[CS] = 0xc9a).unwrap().cs.attrib, 0xc9b);
    assert_eq!(start_32(|r| r.attrs[TR] = 0x89).unwrap().tr.attrib, 0x8b);
    let user = start_32(|r| r.attrs = [0xcfb, 0xcf3, 0xcf3, 0xcf3, 0x8b]).unwrap();
    assert_eq!(user.cpl(), 3);
}

#[test]
fn eip_lies_within_cs() {
    let limited = |eip, limit, attributes| {
        start_32(|r| (r.eip, r.limits[0], r.attrs[0]) = (eip, limit, attributes)).is_ok()
    };
    assert!(limited(0xffff, 0xffff, 0x9b) && !limited(0x1_0000, 0xffff, 0x9b));
    assert!(limited(0xffff_ffff, 0xf_ffff, 0xc9b) && !limited(0x1000, 0, 0xc9b));
}

#[test]
fn what_the_processor_would_refuse() {
    assert!(start_32(|r| r.efer = reg::EFER_LMA).is_err(), "LMA without LME");
    assert!(start_32(|r| r.cr0 = 0x2000_0001).is_err(), "NW without CD");
    assert!(start_32(|r| r.cr0 = 0x8000_0000).is_err(), "paging without protection");
    assert!(start_32(|r| r.cr4 = 1 << 23).is_err(), "CR4.CET");
    assert!(start_32(|r| r.efer = 1 << 13).is_err(), "EFER.LMSLE");
    let compatibility = |r: &mut HvmX86_32| (r.cr0, r.cr4, r.efer) = (0x8000_0001, 0x20, reg::EFER_LME);
    assert_eq!(start_32(compatibility).unwrap().efer, reg::EFER_LME | reg::EFER_LMA);
    assert!(start_32(|r| (compatibility(r), r.cr4 = 0).1).is_err(), "long mode without PAE");
    assert!(start_32(|r| (compatibility(r), r.attrs[0] = 0xe9b).1).is_err(), "CS.L and CS.D");
    assert_eq!(start_32(|r| r.efer = reg::EFER_LME).unwrap().efer, reg::EFER_LME, "no LMA without paging");
    assert!(start_64(|r| r.cr0 &= !reg::CR0_PG).is_err());
    assert!(start_64(|r| r.cr4 = 0).is_err());
    assert!(start_64(|r| r.efer = reg::EFER_NXE).is_err());
    assert!(start_64(|r| r.rip = 0x8000_0000_0000).is_err(), "not canonical");
    assert!(start_64(|r| r.cr0 |= 1 << 32).is_err());
    assert!(start_64(|r| r.cr3 = 1 << 40).is_err(), "beyond the physical addresses");
    assert!(start_64(|r| r.efer |= 1 << 21).is_err(), "EFER.AIBRSE is not offered");
    assert!(start_64(|r| r.efer |= reg::EFER_SVME).is_ok(), "a nested domain");
}
