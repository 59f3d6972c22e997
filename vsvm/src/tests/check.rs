//! Each consistency check refuses what the manual forbids, and nothing beside it.

use super::*;
use crate::check::Refusal;
use crate::layout::Event;

/// Loads the valid page after `change`.
fn load(change: impl Fn(&HeapPage), caps: Caps, l1_cr0: u64) -> Result<Dirty, Refusal> {
    let page = valid_page();
    change(&page);
    Cached12::new(Gpa::new(0x5000)).load(&page, &caps, l1_cr0, false)
}

fn set(offset: usize, value: u64) -> Result<Dirty, Refusal> {
    load(|page| page.write_u64(offset, value), test_caps(), L1_CR0)
}

fn np_set(offset: usize, value: u64) -> Result<Dirty, Refusal> {
    let change = |page: &HeapPage| {
        with_np(page);
        page.write_u64(offset, value);
    };
    load(change, test_caps(), L1_CR0)
}

const EFER: u64 = EFER_SVME | EFER_LME | EFER_LMA;
const CR0: u64 = CR0_PE | CR0_PG;

macro_rules! refused {
    ($($name:ident: $load:expr => $why:ident;)*) => {$(
        #[test]
        fn $name() { assert_eq!($load, Err(Refusal::$why)); }
    )*};
}

macro_rules! accepted {
    ($($name:ident: $load:expr;)*) => {$(
        #[test]
        fn $name() { assert_eq!($load.map(|_| ()), Ok(())); }
    )*};
}

refused! {
    efer_svme_clear: set(at::EFER, EFER & !EFER_SVME) => EferSvmeClear;
    efer_reserved_bit: set(at::EFER, EFER | 1 << 20) => EferReserved;
    cr0_nw_without_cd: set(at::CR0, CR0 | CR0_NW) => Cr0NwWithoutCd;
    cr0_upper_half: set(at::CR0, CR0 | 1 << 32) => Cr0High;
    cr3_beyond_maxphyaddr: set(at::CR3, 1 << 40) => Cr3Reserved;
    cr3_bit_63: set(at::CR3, 1 << 63) => Cr3Reserved;
    cr4_unsupported_bit: set(at::CR4, CR4_PAE | CR4_LA57) => Cr4Reserved;
    cr4_upper_half: set(at::CR4, CR4_PAE | 1 << 40) => Cr4Reserved;
    dr6_upper_half: set(at::DR6, 1 << 32) => Dr6High;
    dr7_upper_half: set(at::DR7, 1 << 63) => Dr7High;
    long_mode_without_pae: set(at::CR4, 0) => LongModeWithoutPae;
    long_mode_without_pe: set(at::CR0, CR0_PG) => LongModeWithoutPe;
    code_segment_long_and_default:
        set(at::CS, u64::from(attrib::L | attrib::D) << 16) => CodeSegmentLongAndDefault;
    vmrun_not_intercepted: set(at::INTERCEPTS + 16, 0) => VmrunNotIntercepted;
    asid_zero: set(at::ASID, 0xffff_ffff_0000_0000) => AsidZero;
    msrpm_ends_beyond: set(at::MSRPM, (1 << 40) - 0x1000) => MsrpmTooHigh;
    msrpm_wraps: set(at::MSRPM, u64::MAX) => MsrpmTooHigh;
    iopm_ends_beyond: set(at::IOPM, (1 << 40) - 0x2000) => IopmTooHigh;
    iopm_wraps: set(at::IOPM, u64::MAX) => IopmTooHigh;
    event_type_1: set(at::EVENT_INJ, Event::VALID | 1 << 8) => EventTypeReserved;
    event_type_7: set(at::EVENT_INJ, Event::VALID | 7 << 8) => EventTypeReserved;
    nmi_as_an_exception: set(at::EVENT_INJ, Event::exception(2, None).0) => EventNotAnException;
    vector_32_as_an_exception: set(at::EVENT_INJ, Event::exception(32, None).0) => EventNotAnException;
    vector_255_as_an_exception: set(at::EVENT_INJ, Event::exception(255, None).0) => EventNotAnException;
    undefined_exception: set(at::EVENT_INJ, Event::exception(15, None).0) => EventNotAnException;
    control_protection_without_cet: set(at::EVENT_INJ, Event::exception(21, None).0) => EventNotAnException;
    nested_cr3_beyond_maxphyaddr: np_set(at::N_CR3, 1 << 40) => NestedCr3Reserved;
    guest_pat_type_2: np_set(at::G_PAT, 0x0007_0406_0007_0402) => GuestPatIllegal;
    guest_pat_reserved_bit: np_set(at::G_PAT, 0x8007_0406_0007_0406) => GuestPatIllegal;
    nested_paging_under_an_unpaged_host: load(with_np, test_caps(), CR0_PE) => HostPagingOff;
}

accepted! {
    the_valid_page: load(|_| (), test_caps(), L1_CR0);
    cd_with_nw: set(at::CR0, CR0 | CR0_NW | CR0_CD);
    cr3_low_bits: set(at::CR3, 0xfff);
    cr3_last_page: set(at::CR3, (1 << 40) - 1);
    paged_real_mode: load(|page| {
        page.write_u64(at::CR0, CR0_PG);
        page.write_u64(at::EFER, EFER_SVME);
    }, test_caps(), L1_CR0);
    long_and_default_outside_long_mode: load(|page| {
        page.write_u64(at::EFER, EFER_SVME);
        page.write_u64(at::CS, u64::from(attrib::L | attrib::D) << 16);
    }, test_caps(), L1_CR0);
    any_asid_but_zero: set(at::ASID, 0xffff_ffff);
    last_msrpm_with_ignored_low_bits: set(at::MSRPM, (1 << 40) - 0x2000 + 0xfff);
    last_iopm: set(at::IOPM, (1 << 40) - 0x3000);
    an_invalid_event_may_hold_anything: set(at::EVENT_INJ, !Event::VALID);
    breakpoint_and_overflow_as_exceptions: set(at::EVENT_INJ, Event::exception(3, None).0);
    software_interrupt_2: set(at::EVENT_INJ, Event::soft(2).0);
    nested_paging: np_set(at::N_CR3, 0x7fff);
    pat_unused_without_nested_paging: set(at::G_PAT, 2);
    nested_cr3_unused_without_nested_paging: set(at::N_CR3, u64::MAX);
    unpaged_host_without_nested_paging: load(|_| (), test_caps(), CR0_PE);
    // Reserved encodings that hardware ignores stay ignored (nothing to refuse in the manual's list).
    reserved_tlb_control: set(at::ASID, 0xff_0000_0001);
    reserved_int_ctl_bits: set(at::INT_CTL, !0);
    reserved_intercepts: set(at::INTERCEPTS + 16, !0);
    encryption_bits_that_do_not_exist: set(at::MISC_CTL, !misc_ctl::NP_ENABLE);
}

#[test]
fn cet_checks_exist_only_with_cet() {
    let cet = Caps { cr4_allowed: test_caps().cr4_allowed | CR4_CET, ..test_caps() };
    let try_with = |caps, cr0, cr4, offset, value| {
        load(
            |page| {
                page.write_u64(at::CR0, cr0);
                page.write_u64(at::CR4, cr4);
                page.write_u64(offset, value);
            },
            caps,
            L1_CR0,
        )
        .map(|_| ())
    };
    let wp = CR0 | CR0_WP;
    assert_eq!(try_with(cet, CR0, CR4_PAE | CR4_CET, at::SSP, 8), Err(Refusal::CetWithoutWp));
    assert_eq!(try_with(cet, wp, CR4_PAE | CR4_CET, at::SSP, 8), Ok(()));
    assert_eq!(try_with(cet, wp, CR4_PAE, at::SSP, 6), Err(Refusal::SspMisaligned));
    assert_eq!(try_with(cet, wp, CR4_PAE, at::S_CET, 4), Err(Refusal::SCetReserved));
    assert_eq!(try_with(test_caps(), wp, CR4_PAE, at::S_CET, 4), Ok(()));
    let cp = Event::exception(21, Some(0)).0;
    assert_eq!(try_with(cet, wp, CR4_PAE, at::EVENT_INJ, cp), Ok(()));
}

#[test]
fn long_mode_is_reserved_where_it_does_not_exist() {
    let caps = Caps { efer_allowed: EFER_SVME, ..test_caps() };
    assert_eq!(load(|_| (), caps, L1_CR0), Err(Refusal::EferReserved));
}

#[test]
fn nested_paging_that_is_not_offered_is_ignored() {
    let mut caps = test_caps();
    caps.features.remove(Features::NPT);
    let page = valid_page();
    with_np(&page);
    let mut c12 = Cached12::new(Gpa::ZERO);
    c12.load(&page, &caps, CR0_PE, false).unwrap();
    assert!(!c12.checked().unwrap().np());
}

#[test]
fn every_exception_vector_is_judged_by_the_table() {
    let defined = [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 30];
    for vector in 0..=255 {
        let ok = set(at::EVENT_INJ, Event::exception(vector, None).0).is_ok();
        assert_eq!(ok, defined.contains(&vector), "vector {vector}");
        assert!(set(at::EVENT_INJ, Event::intr(vector).0).is_ok());
    }
}

#[test]
fn a_refused_copy_is_not_usable_and_the_next_load_trusts_nothing() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    rig.page.write_u64(at::ASID, 0);
    assert_eq!(rig.c12.load(&rig.page, &rig.caps, L1_CR0, true), Err(Refusal::AsidZero));
    assert!(rig.c12.checked().is_none());
    rig.page.write_u64(at::ASID, 1);
    rig.page.write_u64(at::CR3, 0x9000);
    rig.page.write_u32(at::CLEAN, !0);
    assert_eq!(rig.c12.load(&rig.page, &rig.caps, L1_CR0, true), Ok(Dirty::all()));
    assert_eq!(rig.c12.checked().unwrap().save().cr3, 0x9000);
}

#[test]
fn canonical_bases_and_computed_lma() {
    let page = valid_page();
    page.write_u64(at::DS + 8, 0xdead_8000_0000_0000);
    page.write_u64(at::GDTR + 8, 0xbeef_0000_0000_1000);
    page.write_u64(at::EFER, EFER_SVME | EFER_LME);
    let mut c12 = Cached12::new(Gpa::ZERO);
    c12.load(&page, &test_caps(), L1_CR0, false).unwrap();
    let save = c12.checked().unwrap().save();
    assert_eq!((save.ds.base, save.gdtr.base), (0xffff_8000_0000_0000, 0x1000));
    assert_eq!(save.efer, EFER);
}
