//! An L1 writes anything into its VMCB, marks anything clean, and does it again: what is refused changes nothing,
//! what is accepted keeps everything L0 requires, and every exit has an owner.
#![no_main]
use addr::testing::HeapPage;
use addr::{Gpa, GuestPage, Hpa};
use std::mem::offset_of;
use vsvm::caps::{Caps, Features};
use vsvm::layout::{ExitCode, Intercepts, Vmcb};
use vsvm::merge::{L0Policy, REQUIRED, merge};
use vsvm::perm::Perm12;
use vsvm::route::{Exit, L0Wants, route};
use vsvm::vmcb12::Cached12;

/// Permission maps whose bytes are all the same.
struct Maps(u8);

impl Perm12 for Maps {
    fn msr_byte(&self, _: usize) -> u8 {
        self.0
    }
    fn io_byte(&self, _: usize) -> u8 {
        self.0
    }
}

/// Gives out the input piece by piece, then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let n = self.0.len().min(8);
        word[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        u64::from_le_bytes(word)
    }
}

/// A VMCB that passes the checks, so that the input need not find one by itself.
fn acceptable(page: &HeapPage) {
    let words = [
        (offset_of!(Vmcb, control.intercepts) + 16, 1), // VMRUN
        (offset_of!(Vmcb, control.asid), 1),
        (offset_of!(Vmcb, save.cr0), 0x8000_0001),
        (offset_of!(Vmcb, save.cr4), 0x20),
        (offset_of!(Vmcb, save.efer), 0x1500),
        (offset_of!(Vmcb, save.dr6), 0xffff_0ff0),
        (offset_of!(Vmcb, save.dr7), 0x400),
        (offset_of!(Vmcb, save.rflags), 2),
        (offset_of!(Vmcb, save.g_pat), 0x0007_0406_0007_0406),
    ];
    for (offset, value) in words {
        page.write_u64(offset, value);
    }
}

fn policy() -> L0Policy {
    L0Policy {
        hardware: Features::NPT | Features::VGIF,
        intercepts: Intercepts::NONE,
        n_cr3: Hpa::new(0xaaaa_a000),
        msrpm: Hpa::new(0xbbbb_b000),
        iopm: Hpa::new(0xcccc_c000),
        asid: 42,
        tlb_control: 0,
        cr0_read_trap: true,
        tsc_ratio12: vsvm::msr::RATIO_ONE,
        pause: (0, 0),
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let features = Features::from_bits_truncate(input.word() as u32);
    let caps = Caps {
        features: Features::offer(features, input.word() & 1 != 0),
        asids: 16,
        maxphyaddr: 40,
        cr4_allowed: 0x0030_0fff,
        efer_allowed: 0x5d01,
        invpcid: true,
        rdpru: false,
    };
    let (page, vmcb01, mut vmcb02) = (HeapPage::default(), Vmcb::new(), Vmcb::new());
    let mut c12 = Cached12::new(Gpa::new(0x5000));
    let l0 = policy();
    acceptable(&page);
    assert!(c12.load(&page, &caps, 0x8000_0001, false).is_ok(), "the VMCB that inputs start from is refused");
    for _ in 0..4 {
        for _ in 0..input.word() % 24 {
            let place = input.word();
            page.write_u64((place % 512 * 8) as usize, input.word());
        }
        let before = vmcb02.clone();
        let Ok(dirty) = c12.load(&page, &caps, 0x8000_0001, input.word() & 1 != 0) else {
            assert!(c12.checked().is_none());
            assert_eq!(before.control.n_cr3, vmcb02.control.n_cr3);
            continue;
        };
        let checked = c12.checked().expect("a load that succeeded is checked");
        merge(&vmcb01, checked, dirty, &l0, &mut vmcb02);
        let control = &vmcb02.control;
        assert!(control.intercepts.contains(&REQUIRED));
        assert_eq!((control.n_cr3, control.asid), (l0.n_cr3.raw(), l0.asid));
        assert_eq!((control.msrpm_base_pa, control.iopm_base_pa), (l0.msrpm.raw(), l0.iopm.raw()));
        assert!(control.misc_ctl & 1 != 0, "L2 runs without L0's nested paging");
        assert_eq!((control.avic_apic_bar, control.ghcb_pa, control.vmsa_pa), (0, 0, 0));
        let exit = Exit {
            code: ExitCode::from_hardware(input.word()),
            info1: input.word(),
            info2: input.word(),
            int_info: input.word(),
            nrip: input.word(),
            ecx: input.word() as u32,
        };
        let _ = route(&exit, checked, &L0Wants::default(), &Maps(input.word() as u8));
        vmcb02.control.mark_all_clean();
    }
});
