//! Walks of tables built entry by entry, against what the flags alone say.

use super::*;
use addr::Frame;
use addr::testing::HeapMemory;
use proptest::prelude::*;
use std::vec::Vec;

const R: u64 = P | RW | US;
const MAX_PHYS: u8 = 40;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Legacy,
    Pae,
    Four,
    Five,
}

const MODES: [Mode; 4] = [Mode::Legacy, Mode::Pae, Mode::Four, Mode::Five];

fn state(mode: Mode) -> PagingState {
    let long = matches!(mode, Mode::Four | Mode::Five);
    PagingState {
        cr0: CR0_PG | CR0_WP,
        cr3: 0x1000,
        cr4: match mode {
            Mode::Legacy => CR4_PSE,
            Mode::Pae | Mode::Four => CR4_PAE,
            Mode::Five => CR4_PAE | CR4_LA57,
        },
        efer: EFER_NXE | if long { EFER_LMA } else { 0 },
        max_phys: MAX_PHYS,
        gigabyte_pages: true,
        ..PagingState::default()
    }
}

fn levels(mode: Mode) -> u32 {
    match mode {
        Mode::Legacy => 2,
        Mode::Pae => 3,
        Mode::Four => 4,
        Mode::Five => 5,
    }
}

/// Where the entry for `gva` at `level` is, with the table of level n in page (top - n + 1).
fn entry_at(mode: Mode, gva: u64, level: u32) -> Gpa {
    let (bits, bytes) = if mode == Mode::Legacy { (10, 4) } else { (9, 8) };
    let index = gva >> (12 + (level - 1) * bits) & ((1 << bits) - 1);
    Gpa::new(0x1000 * u64::from(levels(mode) - level + 1) + index * bytes)
}

fn put(memory: &HeapMemory, mode: Mode, gva: u64, level: u32, entry: u64) {
    let at = entry_at(mode, gva, level);
    match mode {
        Mode::Legacy => memory.write(at, &(entry as u32).to_le_bytes()).unwrap(),
        _ => memory.put_u64(at, entry),
    }
}

fn entry(memory: &HeapMemory, mode: Mode, gva: u64, level: u32) -> u64 {
    let at = entry_at(mode, gva, level);
    match mode {
        Mode::Legacy => memory.read_u32(at).unwrap().into(),
        _ => memory.read_u64(at).unwrap(),
    }
}

/// The tables' chain for `gva` with these flags, from the top; the last is the page at `target`.
fn build(mode: Mode, gva: u64, flags: &[u64], target: u64) -> HeapMemory {
    let memory = HeapMemory::with_pages(16);
    for (i, flag) in flags.iter().enumerate() {
        let level = levels(mode) - i as u32;
        let last = i + 1 == flags.len();
        let address = if last { target } else { 0x1000 * (i as u64 + 2) };
        let bare = mode == Mode::Pae && level == 3;
        let size = if last && level > 1 { PS } else { 0 };
        put(&memory, mode, gva, level, address | size | if bare { flag & P } else { *flag });
    }
    memory
}

fn fault(error_code: u32, gva: u64) -> Result<Gpa, WalkError> {
    Err(WalkError::PageFault(PageFault { gva: Gva::new(gva), error_code }))
}

const GVA: u64 = 0x0060_1234;

fn read(state: &PagingState, memory: &HeapMemory, gva: u64) -> Result<Gpa, WalkError> {
    translate(state, memory, Gva::new(gva), Access::Read, Privilege::Supervisor)
}

#[test]
fn every_format_and_page_size() {
    for mode in MODES {
        let small = std::vec![R; levels(mode) as usize];
        let memory = build(mode, GVA, &small, 0x8000);
        assert_eq!(read(&state(mode), &memory, GVA), Ok(Gpa::new(0x8234)), "{mode:?}");
    }
    let large = [(Mode::Legacy, 1, 22), (Mode::Pae, 2, 21), (Mode::Four, 3, 21), (Mode::Five, 3, 30)];
    for (mode, entries, shift) in large {
        let memory = build(mode, GVA, &std::vec![R; entries], 1 << shift);
        let walked =
            walk(&state(mode), &memory, Gva::new(GVA), Access::Read, Privilege::User, AccessBits::Keep);
        let gpa = Gpa::new(1 << shift | GVA & ((1 << shift) - 1));
        assert_eq!(walked, Ok(Walked { gpa, page_shift: shift }), "{mode:?}");
    }
}

#[test]
fn without_paging_addresses_are_physical_and_wrap() {
    let none = PagingState { cr0: 0, efer: EFER_LMA, ..state(Mode::Four) };
    assert_eq!(read(&none, &HeapMemory::default(), 0x1_0000_1234), Ok(Gpa::new(0x1234)));
}

#[test]
fn pse_36_and_pse_off() {
    let mode = Mode::Legacy;
    let memory = build(mode, GVA, &[R | 0x7f << 13], 0x80_0000);
    assert_eq!(read(&state(mode), &memory, GVA), Ok(Gpa::new(0x7f_0080_0000 | GVA & 0x3f_ffff)));
    let narrow = PagingState { max_phys: 36, ..state(mode) };
    assert_eq!(read(&narrow, &memory, GVA), fault(error::P | error::RSV, GVA), "beyond 36 bits");
    let memory = build(mode, GVA, &[R | 1 << 21], 0x80_0000);
    assert_eq!(read(&state(mode), &memory, GVA), fault(error::P | error::RSV, GVA));
    // Without CR4.PSE the bit means nothing, and a table stands there.
    let off = PagingState { cr4: 0, ..state(mode) };
    let memory = build(mode, GVA, &[R | PS, R], 0x8000);
    assert_eq!(read(&off, &memory, GVA), Ok(Gpa::new(0x8234)));
}

#[test]
fn canonical_addresses_depend_on_the_levels() {
    let high = 0x0000_8000_0000_0000;
    let memory = HeapMemory::with_pages(8);
    assert_eq!(read(&state(Mode::Four), &memory, high), Err(WalkError::NotCanonical(Gva::new(high))));
    assert_eq!(read(&state(Mode::Five), &memory, high), fault(0, high));
    let wrapped = 0x0100_0000_0000_0000;
    assert_eq!(read(&state(Mode::Five), &memory, wrapped), Err(WalkError::NotCanonical(Gva::new(wrapped))));
    assert_eq!(
        read(&state(Mode::Pae), &memory, wrapped | 0x1000),
        fault(0, wrapped | 0x1000),
        "32 bits count"
    );
    assert_eq!(read(&state(Mode::Four), &memory, !0), fault(0, !0));
}

#[test]
fn reserved_bits_by_level() {
    let rsv = |bit: bool| if bit { error::P | error::RSV } else { 0 };
    for (mode, level, bits, reserved) in [
        (Mode::Four, 4, PS, true),
        (Mode::Four, 4, 1 << 40, true),
        (Mode::Four, 4, 1 << 39, false),
        (Mode::Four, 4, 1 << 52 | 1 << 62, false),
        (Mode::Five, 5, PS, true),
        (Mode::Five, 4, PS, true),
        (Mode::Four, 1, 1 << 51, true),
        (Mode::Four, 1, PS, false), // PAT
        (Mode::Pae, 3, RW, true),
        (Mode::Pae, 3, NX, true),
        (Mode::Pae, 3, 1 << 7, true),
        (Mode::Pae, 3, 1 << 3, false),
        // Set by QEMU's own walk: a fetch must not fail for it.
        (Mode::Pae, 3, ACCESSED, false),
        (Mode::Pae, 2, 1 << 52, true),
        (Mode::Pae, 1, 1 << 62, true),
        (Mode::Legacy, 1, PS, false),
    ] {
        let memory = build(mode, GVA, &std::vec![R; levels(mode) as usize], 0x8000);
        let old = entry(&memory, mode, GVA, level);
        put(&memory, mode, GVA, level, old | bits);
        let got = match read(&state(mode), &memory, GVA) {
            Err(WalkError::PageFault(fault)) => fault.error_code,
            // A cleared reserved bit may lead anywhere, only not to a reserved-bit fault.
            _ => 0,
        };
        assert_eq!(got, rsv(reserved), "{mode:?} level {level} {bits:#x}");
    }
    for (shift, entries, bits) in [(21, 3, 1 << 13), (30, 2, 1 << 21), (30, 2, 1 << 13)] {
        let mut flags = std::vec![R; entries];
        flags[entries - 1] |= bits;
        let memory = build(Mode::Four, GVA, &flags, 1 << shift);
        assert_eq!(read(&state(Mode::Four), &memory, GVA), fault(error::P | error::RSV, GVA));
    }
    let memory = build(Mode::Four, GVA, &[R, R], 1 << 30);
    let none = PagingState { gigabyte_pages: false, ..state(Mode::Four) };
    assert_eq!(read(&none, &memory, GVA), fault(error::P | error::RSV, GVA), "1 GiB pages not offered");
    let memory = build(Mode::Four, GVA, &[R, R, R, R | NX], 0x8000);
    let off = PagingState { efer: EFER_LMA, ..state(Mode::Four) };
    assert_eq!(read(&off, &memory, GVA), fault(error::P | error::RSV, GVA), "NX without NXE");
}

#[test]
fn tables_outside_ram_and_tables_that_point_to_themselves() {
    let away = PagingState { cr3: 0xff_0000_0000, ..state(Mode::Four) };
    let memory = HeapMemory::with_pages(4);
    assert!(matches!(read(&away, &memory, GVA), Err(WalkError::Memory(_))));
    // Every entry of the one page names the page itself: the levels bound the walk.
    (0..512).for_each(|i| memory.put_u64(Gpa::new(0x1000 + 8 * i), 0x1000 | R));
    for mode in [Mode::Four, Mode::Five] {
        assert_eq!(read(&state(mode), &memory, 0x7654_3210), Ok(Gpa::new(0x1210)));
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_as_the_cpu_would() {
    for mode in MODES {
        let n = levels(mode);
        let memory = build(mode, GVA, &std::vec![R; n as usize], 0x8000);
        let go = |access, bits| {
            walk(&state(mode), &memory, Gva::new(GVA), access, Privilege::User, bits).unwrap();
            (1..=n).map(|l| entry(&memory, mode, GVA, l) & (ACCESSED | DIRTY)).collect::<Vec<_>>()
        };
        let mut expected = std::vec![0; n as usize];
        assert_eq!(go(Access::Write, AccessBits::Keep), expected, "{mode:?}");
        expected = std::vec![ACCESSED; n as usize];
        if mode == Mode::Pae {
            expected[2] = 0;
        }
        assert_eq!(go(Access::Read, AccessBits::Set), expected, "{mode:?}");
        expected[0] |= DIRTY;
        assert_eq!(go(Access::Write, AccessBits::Set), expected, "{mode:?}");
    }
    let memory = build(Mode::Four, GVA, &[R, R, R, P], 0x8000);
    let state = state(Mode::Four);
    walk(&state, &memory, Gva::new(GVA), Access::Write, Privilege::User, AccessBits::Set).unwrap_err();
    assert_eq!(entry(&memory, Mode::Four, GVA, 1), 0x8000 | P, "a refused access leaves no trace");
}

#[test]
fn smap_heeds_ac_only_for_explicit_accesses() {
    let memory = build(Mode::Four, GVA, &[R; 4], 0x8000);
    let smap = PagingState { cr4: CR4_PAE | CR4_SMAP, ..state(Mode::Four) };
    let ac = PagingState { rflags: RFLAGS_AC, ..smap };
    let go = |s: &PagingState, privilege| translate(s, &memory, Gva::new(GVA), Access::Read, privilege);
    assert_eq!(go(&smap, Privilege::Supervisor), fault(error::P, GVA));
    assert!(go(&ac, Privilege::Supervisor).is_ok());
    assert_eq!(go(&ac, Privilege::Implicit), fault(error::P, GVA));
    assert!(go(&smap, Privilege::User).is_ok());
    let fetch = translate(&smap, &memory, Gva::new(GVA), Access::Execute, Privilege::Supervisor);
    assert!(fetch.is_ok(), "fetches are SMEP's");
}

#[test]
fn protection_keys() {
    let key = 3u64;
    let memory = build(Mode::Four, GVA, &[R, R, R, R | key << 59], 0x8000);
    let with = |pkru: u32, cr0: u64| PagingState {
        cr4: CR4_PAE | CR4_PKE,
        pkru,
        cr0: CR0_PG | cr0,
        ..state(Mode::Four)
    };
    let (ad, wd) = (1 << 6, 1 << 7);
    let p = Privilege::Supervisor;
    let pk = error::P | error::PK;
    for (s, access, privilege, expected) in [
        (with(ad, CR0_WP), Access::Read, p, pk),
        (with(ad, CR0_WP), Access::Execute, p, 0),
        (with(wd, CR0_WP), Access::Read, Privilege::User, 0),
        (with(wd, CR0_WP), Access::Write, p, pk | error::W),
        (with(wd, 0), Access::Write, p, 0),
        (with(wd, 0), Access::Write, Privilege::User, pk | error::W | error::U),
        (with(!(ad | wd), CR0_WP), Access::Write, Privilege::User, 0),
    ] {
        let code = match translate(&s, &memory, Gva::new(GVA), access, privilege) {
            Ok(_) => 0,
            Err(WalkError::PageFault(fault)) => fault.error_code,
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(code, expected, "{s:?} {access:?} {privilege:?}");
    }
}

#[test]
fn copies_cross_pages_and_stop_at_the_fault() {
    let mode = Mode::Four;
    let memory = build(mode, GVA, &[R; 4], 0x8000);
    let next = (GVA & !0xfff) + 0x1000;
    put(&memory, mode, next, 1, 0x7000 | R);
    put(&memory, mode, next + 0x1000, 1, 0x6000 | P | US);
    let data: Vec<u8> = (0..100).collect();
    let at = Gva::new(next - 40);
    let s = state(mode);
    copy_out(&s, &memory, at, &data, Privilege::User).unwrap();
    let mut back = [0; 100];
    copy_in(&s, &memory, at, &mut back, Access::Read, Privilege::User).unwrap();
    assert_eq!(back[..], data);
    let mut first = [0; 40];
    memory.read(Gpa::new(0x8fd8), &mut first).unwrap();
    assert_eq!(first[..], data[..40]);
    let at = Gva::new(next + 0xff0);
    let read_only = copy_out(&s, &memory, at, &data, Privilege::Supervisor);
    let expected = fault(error::P | error::W, next + 0x1000).map(|_| ());
    assert_eq!(read_only, expected, "write protection holds, and the fault names its page");
    memory.remove(Frame::new(7));
    assert!(matches!(
        copy_in(&s, &memory, at, &mut back, Access::Read, Privilege::User),
        Err(WalkError::Memory(_))
    ));
    // Outside long mode the copy wraps at 4 GiB rather than leave it.
    let flat = PagingState { cr0: 0, ..PagingState::default() };
    let memory = HeapMemory::with_pages(1);
    memory.add(Frame::new(0xf_ffff));
    copy_out(&flat, &memory, Gva::new(0xffff_fffe), &[1, 2, 3, 4], Privilege::Supervisor).unwrap();
    assert_eq!(memory.read_u32(Gpa::new(0)).unwrap() & 0xffff, 0x0403);
}

/// A memory in which another CPU changes an entry right after each read of it.
#[test]
fn a_guest_that_keeps_changing_its_entries_does_not_hold_us() {
    use addr::testing::HeapPage;
    #[derive(Clone)]
    struct Restless(HeapPage);
    impl GuestPage for Restless {
        fn read_u8(&self, o: usize) -> u8 {
            self.0.read_u8(o)
        }
        fn read_u32(&self, o: usize) -> u32 {
            self.0.read_u32(o)
        }
        fn read_u64(&self, o: usize) -> u64 {
            let value = self.0.read_u64(o);
            // Bit 9 is the guest's own.
            self.0.write_u64(o, value ^ 1 << 9);
            value
        }
        fn write_u8(&self, o: usize, v: u8) {
            self.0.write_u8(o, v);
        }
        fn write_u32(&self, o: usize, v: u32) {
            self.0.write_u32(o, v);
        }
        fn write_u64(&self, o: usize, v: u64) {
            self.0.write_u64(o, v);
        }
        fn swap_u8(&self, o: usize, v: u8) -> u8 {
            self.0.swap_u8(o, v)
        }
        fn fetch_or_u64(&self, o: usize, b: u64) -> u64 {
            self.0.fetch_or_u64(o, b)
        }
        fn fetch_and_u64(&self, o: usize, b: u64) -> u64 {
            self.0.fetch_and_u64(o, b)
        }
        fn fetch_or_u32(&self, o: usize, b: u32) -> u32 {
            self.0.fetch_or_u32(o, b)
        }
        fn fetch_and_u32(&self, o: usize, b: u32) -> u32 {
            self.0.fetch_and_u32(o, b)
        }
        fn compare_exchange_u32(&self, o: usize, a: u32, b: u32) -> Result<u32, u32> {
            self.0.compare_exchange_u32(o, a, b)
        }
        fn compare_exchange_u64(&self, o: usize, a: u64, b: u64) -> Result<u64, u64> {
            self.0.compare_exchange_u64(o, a, b)
        }
    }
    struct RestlessMemory(HeapMemory);
    impl GuestMemory for RestlessMemory {
        type Page = Restless;
        fn pin(&self, frame: Frame<addr::GuestPhys>) -> Result<Restless, GuestFault> {
            self.0.pin(frame).map(Restless)
        }
        fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
            self.0.read(gpa, out)
        }
        fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
            self.0.write(gpa, data)
        }
    }
    let memory = RestlessMemory(build(Mode::Four, GVA, &[R; 4], 0x8000));
    let go = |bits| walk(&state(Mode::Four), &memory, Gva::new(GVA), Access::Read, Privilege::User, bits);
    assert_eq!(go(AccessBits::Set), Err(WalkError::Unstable));
    assert!(go(AccessBits::Keep).is_ok());
}

/// The reference: what the flags of all levels say, without walking anything.
fn expected(
    s: &PagingState,
    mode: Mode,
    flags: &[u64],
    pkru_key: u64,
    access: Access,
    privilege: Privilege,
) -> Option<u32> {
    let long = matches!(mode, Mode::Four | Mode::Five);
    let counting: Vec<u64> = if mode == Mode::Pae { flags[1..].to_vec() } else { flags.to_vec() };
    let all = |bit: u64| counting.iter().all(|f| f & bit != 0);
    let (user_page, writable) = (all(US), all(RW));
    let no_execute = mode != Mode::Legacy && counting.iter().any(|f| f & NX != 0);
    let user = privilege == Privilege::User;
    let (write, fetch) = (access == Access::Write, access == Access::Execute);
    let nxe = s.efer & EFER_NXE != 0;
    let smep = s.cr4 & CR4_SMEP != 0;

    let mut code = if user { error::U } else { 0 } | if write { error::W } else { 0 };
    if fetch && (smep || nxe && mode != Mode::Legacy) {
        code |= error::ID;
    }
    // From the top: the first entry that is absent or has a reserved bit ends it.
    for (i, flag) in flags.iter().enumerate() {
        if flag & P == 0 {
            return Some(code);
        }
        let bare = mode == Mode::Pae && i == 0;
        if !bare && mode != Mode::Legacy && flag & NX != 0 && !nxe {
            return Some(code | error::P | error::RSV);
        }
    }
    let guarded = user || s.cr0 & CR0_WP != 0;
    let wrong = [
        user && !user_page,
        write && !writable && guarded,
        fetch && no_execute,
        fetch && smep && user_page && !user,
        !fetch
            && s.cr4 & CR4_SMAP != 0
            && user_page
            && !user
            && !(privilege == Privilege::Supervisor && s.rflags & RFLAGS_AC != 0),
    ];
    let ad = s.pkru >> (2 * pkru_key) & 1 != 0;
    let wd = s.pkru >> (2 * pkru_key + 1) & 1 != 0;
    let keyed = long && s.cr4 & CR4_PKE != 0 && user_page && !fetch && (ad || wd && write && guarded);
    match (wrong.contains(&true), keyed) {
        (false, false) => None,
        (_, true) => Some(code | error::P | error::PK),
        (true, false) => Some(code | error::P),
    }
}

proptest! {
    #[test]
    fn agrees_with_the_flags(
        mode in proptest::sample::select(&MODES[..]),
        picks in proptest::collection::vec((0u8..16, any::<bool>()), 5),
        large in 0..3usize,
        controls: u8,
        pkru: u32,
        key in 0..16u64,
        gva in 0..1u64 << 32,
        access in proptest::sample::select(&[Access::Read, Access::Write, Access::Execute][..]),
        privilege in proptest::sample::select(&[Privilege::User, Privilege::Supervisor, Privilege::Implicit][..]),
    ) {
        // Mostly present, writable and user: else nearly all walks end at the top.
        let flag = |(pick, nx): &(u8, bool)| {
            let mut flag = R;
            if pick % 16 == 0 { flag &= !P }
            if pick % 4 == 1 { flag &= !RW }
            if pick % 4 == 2 { flag &= !US }
            if *nx && pick % 4 == 3 && mode != Mode::Legacy { flag |= NX }
            flag
        };
        let n = levels(mode) as usize;
        let page_level = match mode {
            Mode::Legacy => 1 + large.min(1),
            Mode::Pae => 1 + large.min(1),
            _ => 1 + large,
        };
        let mut flags: Vec<u64> = picks.iter().map(flag).take(n + 1 - page_level).collect();
        if matches!(mode, Mode::Four | Mode::Five) {
            *flags.last_mut().unwrap() |= key << 59;
        }
        let base = state(mode);
        let on = |bit: u8, value: u64| if controls >> bit & 1 != 0 { value } else { 0 };
        let s = PagingState {
            cr0: CR0_PG | on(0, CR0_WP),
            cr4: base.cr4 | on(1, CR4_SMEP) | on(2, CR4_SMAP) | on(3, CR4_PKE),
            efer: base.efer & !EFER_NXE | on(4, EFER_NXE),
            rflags: on(5, RFLAGS_AC),
            pkru,
            ..base
        };
        let shift = if mode == Mode::Legacy { [12, 22] } else { [12, 21] }.get(page_level - 1).copied().unwrap_or(30);
        let target = if shift == 12 { 0x9000 } else { 1u64 << shift };
        let memory = build(mode, gva, &flags, target);
        let got = walk(&s, &memory, Gva::new(gva), access, privilege, AccessBits::Set);
        match expected(&s, mode, &flags, key, access, privilege) {
            None => {
                let gpa = Gpa::new(target | gva & ((1 << shift) - 1));
                prop_assert_eq!(got, Ok(Walked { gpa, page_shift: shift }));
            }
            Some(error_code) => {
                let fault = PageFault { gva: Gva::new(gva), error_code };
                prop_assert_eq!(got, Err(WalkError::PageFault(fault)));
            }
        }
    }

    /// Tables of noise: nothing panics, and what is found lies within the physical addresses.
    #[test]
    fn noise_is_walked_safely(
        words in proptest::collection::vec(any::<u64>(), 64),
        mode in proptest::sample::select(&MODES[..]),
        gva: u64,
        max_phys: u8,
        cr4: u64,
    ) {
        let memory = HeapMemory::with_pages(4);
        for page in 0..4u64 {
            for i in 0..512u64 {
                let word = words[(i % 64) as usize] & !0x000f_ffff_ffff_c000 | P;
                memory.put_u64(Gpa::new(page << 12 | i << 3), word);
            }
        }
        let s = PagingState { max_phys, cr4: cr4 | state(mode).cr4, ..state(mode) };
        for privilege in [Privilege::User, Privilege::Implicit] {
            if let Ok(walked) = walk(&s, &memory, Gva::new(gva), Access::Write, privilege, AccessBits::Set) {
                prop_assert!(walked.gpa.raw() < 1 << 52);
            }
        }
    }
}
