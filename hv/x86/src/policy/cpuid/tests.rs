//! Tables of two hosts: all bits set, and what QEMU's emulator has.

use super::super::mitigation::{CpuFacts, MitigationPlan, Options};
use super::*;
use proptest::prelude::*;

fn config() -> DomainCpuConfig {
    DomainCpuConfig {
        nested: true,
        svm: [1, 64, 0, 0x8000_0001],
        vcpus: 2,
        invariant_tsc: false,
        tsc_adjust: true,
        xcr0: 0x2e7,
        max_phys: 0,
        spec: GuestSpec::default(),
        xen: Some(XenLeaves {
            version: (4, 17),
            domid: 5,
            time: XenTime { mode: 2, guest_khz: 2_500_000, host_khz: 2_600_000, ..XenTime::default() },
            apic_in_hardware: false,
        }),
    }
}

/// A host with every bit of every leaf.
fn everything(leaf: u32, sub: u32) -> Leaf {
    match (leaf, sub) {
        (0, _) => [0x20, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0xd, 0) => [0xffff_ffff, 0x988, 0x988, 0],
        (0xd, 1) => [0x1f, 0x988, 0x1800, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 832, 0, 0],
        (0xd, 6) => [512, 896, 0, 0],
        (0xd, 7) => [1024, 1408, 0, 0],
        (0xd, 9) => [8, 2432, 0, 0],
        (0xd, _) => [0; 4],
        (0x8000_0000, _) => [0x8000_0028, 0, 0, 0],
        (0x8000_0008, _) => [0x0000_3930, !0, !0, !0],
        (0x8000_001d, 0..=3) => [[0x121, 0x122, 0x143, 0x163][sub as usize] | 0x1f << 14, !0, 63, 0],
        (0x8000_001d, _) => [0; 4],
        _ => [!0; 4],
    }
}

/// Roughly `-cpu max` of QEMU's emulator: few bits, no XSAVE beyond AVX.
fn small(leaf: u32, sub: u32) -> Leaf {
    match (leaf, sub) {
        (0, _) => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (1, _) => [0x663, 0x800, 0x7ed8_320b, 0x078b_fbfd],
        (7, 0) => [0, 0x219c_07ab, 0x1_0000, 0],
        (0xd, 0) => [7, 832, 832, 0],
        (0xd, 1) => [1, 0, 0, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0x8000_0000, _) => [0x8000_000a, 0, 0, 0],
        (0x8000_0001, _) => [0x663, 0, 0x7, 0x2c10_0800],
        (0x8000_0008, _) => [0x3028, 0, 0, 0],
        // QEMU repeats the last standard leaf beyond the end.
        _ if leaf > 0x8000_000a || leaf > 0xd && leaf < 0x8000_0000 => [!0; 4],
        _ => [0; 4],
    }
}

fn vcpu() -> VcpuCpuidState {
    VcpuCpuidState { xcr0: 1, apic_id: 2, vcpu_id: 1, apic_enabled: true, ..VcpuCpuidState::default() }
}

fn get(leaf: u32, sub: u32) -> Leaf {
    GuestCpuid::new(everything, &config()).lookup(leaf, sub, &vcpu())
}

#[test]
fn nothing_shows_that_is_not_allowed() {
    let [_, _, ecx, edx] = get(1, 0);
    for hidden in [2, 3, 4, 5, 6, 7, 8, 11, 15, 18, 27] {
        assert_eq!(ecx >> hidden & 1, 0, "leaf 1 ECX {hidden}");
    }
    for hidden in [18, 21, 22, 27, 29, 31] {
        assert_eq!(edx >> hidden & 1, 0, "leaf 1 EDX {hidden}");
    }
    let [max, ebx, ecx, edx] = get(7, 0);
    assert_eq!(max, 2);
    for (register, bits) in
        [(ebx, &[2, 4, 11, 12, 14, 15, 22, 25][..]), (ecx, &[4, 5, 7, 13, 23, 24, 29, 31])]
    {
        bits.iter().for_each(|bit| assert_eq!(register >> bit & 1, 0, "leaf 7 {bit}"));
    }
    assert_eq!(edx & 0xbd10_0000, 0, "CET, AMX and Intel's speculation bits");
    let [_, _, ecx, _] = get(0x8000_0001, 0);
    for hidden in [3, 9, 10, 12, 13, 15, 23, 24, 28, 29] {
        assert_eq!(ecx >> hidden & 1, 0, "leaf 8000_0001 ECX {hidden}");
    }
    for leaf in [
        2,
        3,
        4,
        5,
        9,
        0xa,
        0xc,
        0xe,
        0x10,
        0x14,
        0x4000_0006,
        0x4000_0100,
        0x8000_001b,
        0x8000_001c,
        0x8000_001f,
        0x8000_0020,
        0x8000_0022,
        0x8000_0026,
        0xc000_0000,
        u32::MAX,
    ] {
        assert_eq!(get(leaf, 0), [0; 4], "{leaf:#x}");
    }
}

#[test]
fn software_provides_what_the_host_lacks() {
    let table = GuestCpuid::new(small, &config());
    let [_, ebx, ecx, edx] = table.lookup(1, 0, &vcpu());
    assert_eq!(ecx & (1 << 21 | 1 << 24 | 1 << 31), 1 << 21 | 1 << 24 | 1 << 31);
    assert_eq!(edx & 0x1_5280, 0x1_5280, "MCE, APIC, MTRR, MCA, PAT");
    assert_eq!(ebx, 2 << 24 | 2 << 16 | 0x800);
    assert_eq!(table.lookup(6, 0, &vcpu()), [4, 0, 0, 0]);
    assert_eq!(table.lookup(0x8000_001a, 0, &vcpu()), [0; 4], "not the garbage beyond the host's last leaf");
    assert_eq!(table.lookup(0x8000_001d, 0, &vcpu()), [0; 4]);
    assert_eq!(table.lookup(0x8000_0021, 0, &vcpu()), [1 << 2 | 1 << 9, 0, 0, 0]);
    assert_eq!((table.max_phys(), table.linear_bits(), table.gigabyte_pages()), (40, 48, true));
    assert_eq!(table.xcr0(), 7);
}

#[test]
fn registers_of_the_vcpu_are_patched_in() {
    let table = GuestCpuid::new(everything, &config());
    let on = VcpuCpuidState { cr4: CR4_OSXSAVE | CR4_PKE, ..vcpu() };
    let off = VcpuCpuidState { apic_enabled: false, ..vcpu() };
    assert_eq!(table.lookup(1, 0, &on)[2] >> 27 & 1, 1);
    assert_eq!(table.lookup(1, 0, &off)[2] >> 27 & 1, 0);
    assert_eq!((table.lookup(1, 0, &on)[3] >> 9 & 1, table.lookup(1, 0, &off)[3] >> 9 & 1), (1, 0));
    assert_eq!(table.lookup(7, 0, &on)[2] >> 4 & 1, 1);
    assert_eq!(table.lookup(7, 0, &off)[2] >> 4 & 1, 0);
    assert_eq!(table.lookup(0x8000_001e, 0, &on), [2, 1, 0, 0]);
    let without = GuestCpuid::new(everything, &DomainCpuConfig { xcr0: 0, ..config() });
    assert_eq!(without.lookup(1, 0, &on)[2] >> 26 & 3, 0, "no XSAVE, no OSXSAVE");
    assert_eq!(without.lookup(7, 0, &on)[2] >> 3 & 3, 0, "no PKU, no OSPKE");
    assert_eq!(without.lookup(0, 0, &on)[0], 0xb);
    assert_eq!(without.lookup(0xd, 0, &on), [0; 4]);
    assert_eq!(without.lookup(1, 0, &on)[2] & (1 << 28 | 1 << 12), 0, "no AVX without its state");
}

#[test]
fn svm_is_there_only_if_nested() {
    assert_eq!(get(0x8000_000a, 0), config().svm);
    assert_eq!(get(0x8000_0001, 0)[2] >> 2 & 1, 1);
    let plain = GuestCpuid::new(everything, &DomainCpuConfig { nested: false, ..config() });
    assert_eq!(plain.lookup(0x8000_000a, 0, &vcpu()), [0; 4]);
    assert_eq!(plain.lookup(0x8000_0001, 0, &vcpu())[2] >> 2 & 1, 0);
    assert_eq!(plain.efer() & 1 << 12, 0);
    assert_eq!(GuestCpuid::new(everything, &config()).efer() & 1 << 12, 1 << 12);
}

#[test]
fn topology_says_one_thread_per_core() {
    for (vcpus, bits) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (128, 8)] {
        let table = GuestCpuid::new(everything, &DomainCpuConfig { vcpus, ..config() });
        let last = VcpuCpuidState { apic_id: 2 * (vcpus - 1), vcpu_id: vcpus - 1, ..vcpu() };
        let [threads, cores, end] = [0, 1, 2].map(|sub| table.lookup(0xb, sub, &last));
        assert_eq!(threads, [1, 1, 0x100, last.apic_id]);
        assert_eq!(cores, [bits, vcpus, 0x201, last.apic_id]);
        assert_eq!(end, [0, 0, 2, last.apic_id]);
        assert!(last.apic_id < 1 << bits, "{vcpus} vCPUs have their ids in {bits} bits");
        assert_eq!(table.lookup(0x8000_0008, 0, &last)[2], (vcpus - 1) | (bits << 12));
        let caches = [0, 1, 2, 3, 4].map(|sub| table.lookup(0x8000_001d, sub, &last)[0]);
        assert_eq!(caches, [0x121, 0x122, 0x143, 0x163 | ((1 << bits) - 1) << 14, 0]);
        assert_eq!(table.lookup(1, 0, &last)[3] >> 28 & 1, u32::from(vcpus > 1));
        assert_eq!(table.lookup(0x8000_0001, 0, &last)[2] >> 1 & 1, u32::from(vcpus > 1));
    }
}

#[test]
fn the_save_area_has_the_size_of_what_is_enabled() {
    let table = GuestCpuid::new(everything, &config());
    assert_eq!(table.xcr0(), 0x2e7);
    for (xcr0, standard, compact) in
        [(1, 576, 576), (7, 832, 832), (0xe7, 2432, 2432), (0x2e7, 2440, 2440), (0x203, 2440, 584)]
    {
        let state = VcpuCpuidState { xcr0, ..vcpu() };
        assert_eq!(table.lookup(0xd, 0, &state), [0x2e7, standard, 2440, 0], "{xcr0:#x}");
        assert_eq!(table.lookup(0xd, 1, &state), [0xf, compact, 0, 0], "{xcr0:#x}");
    }
    assert_eq!(get(0xd, 2), [256, 576, 0, 0]);
    for hidden in [3, 8, 11, 12, 62, 63, u32::MAX] {
        assert_eq!(get(0xd, hidden), [0; 4], "{hidden}");
    }
    let avx = GuestCpuid::new(everything, &DomainCpuConfig { xcr0: 0x27, ..config() });
    assert_eq!(avx.xcr0(), 7, "AVX-512 is whole or not at all");
    assert_eq!(avx.lookup(7, 0, &vcpu())[1] >> 16 & 1, 0);
}

#[test]
fn xcr0_values() {
    for (value, valid) in [
        (1, true),
        (3, true),
        (7, true),
        (0xe7, true),
        (0x2e7, true),
        (0x201, true),
        (0, false),
        (2, false),
        (5, false),
        (0x27, false),
        (0xe3, false),
        (0x0b, false),
        (0x2e7 | 1 << 17, false),
        (1 << 63 | 1, false),
    ] {
        assert_eq!(xcr0_is_valid(value, 0x2e7), valid, "{value:#x}");
    }
    assert!(!xcr0_is_valid(7, 3));
}

#[test]
fn the_xen_leaves() {
    assert_eq!(get(0x4000_0000, 0), [0x4000_0005, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]);
    assert_eq!(get(0x4000_0001, 0), [4 << 16 | 17, 0, 0, 0]);
    assert_eq!(get(0x4000_0002, 0), [1, 0x4000_0000, 0, 0]);
    assert_eq!(get(0x4000_0003, 0), [4, 2, 2_500_000, 0]);
    assert_eq!(get(0x4000_0003, 2), [2_600_000, 0, 0, 0]);
    assert_eq!(get(0x4000_0003, 3), [0; 4]);
    assert_eq!(get(0x4000_0004, 0), [0x58, 1, 5, 0]);
    assert_eq!(get(0x4000_0005, 0), [0; 4]);
    let hidden = GuestCpuid::new(everything, &DomainCpuConfig { xen: None, ..config() });
    (0x4000_0000..0x4000_0006).for_each(|leaf| assert_eq!(hidden.lookup(leaf, 0, &vcpu()), [0; 4]));
}

#[test]
fn speculation_bits_are_the_plan_s() {
    let facts = CpuFacts::from_cpuid(everything, false);
    let spec = MitigationPlan::new(&facts, &Options::default()).guest;
    let table = GuestCpuid::new(everything, &DomainCpuConfig { spec, ..config() });
    assert_eq!(table.lookup(0x8000_0008, 0, &vcpu())[1] >> 25 & 1, 0, "VIRT_SSBD");
    assert_eq!(get(0x8000_0008, 0)[1], 1 | 1 << 2 | 1 << 9 | 1 << 20, "without a plan none");
    assert_eq!(get(0x8000_0007, 0), [0; 4]);
    let stable = GuestCpuid::new(everything, &DomainCpuConfig { invariant_tsc: true, ..config() });
    assert_eq!(stable.lookup(0x8000_0007, 0, &vcpu()), [0, 0, 0, 1 << 8]);
}

#[test]
fn address_widths_are_sane_whatever_the_host_says() {
    for (host, configured, phys, linear) in [
        (0x3930, 0, 48, 57),
        (0x3028, 0, 40, 48),
        (0x3028, 36, 36, 48),
        (0x3028, 46, 40, 48),
        (0, 0, 36, 48),
        (0xffff, 99, 36, 48),
    ] {
        let c = DomainCpuConfig { max_phys: configured, ..config() };
        let table =
            GuestCpuid::new(|l, s| if l == 0x8000_0008 { [host, 0, 0, 0] } else { everything(l, s) }, &c);
        assert_eq!((table.max_phys(), table.linear_bits()), (phys, linear), "{host:#x} {configured}");
    }
}

proptest! {
    /// Whatever the host and the guest say, nothing panics, and allowed bits come from the host.
    #[test]
    fn lookup_is_total(leaf: u32, sub: u32, xcr0: u64, xss: u64, cr4: u64, apic_id: u32, vcpus: u32, fill: u32, allowed: u64) {
        let c = DomainCpuConfig { vcpus, xcr0: allowed, ..config() };
        let table = GuestCpuid::new(|l, _| [fill.rotate_left(l), fill, !fill, fill.rotate_right(l)], &c);
        let state = VcpuCpuidState { xcr0, xss, cr4, apic_id, ..vcpu() };
        for leaf in [leaf, leaf & 0x1f, 0x4000_0000 | leaf & 7, 0x8000_0000 | leaf & 0x3f] {
            table.lookup(leaf, sub, &state);
            table.lookup(leaf, sub & 0x3f, &state);
        }
        prop_assert_eq!(table.xcr0() & !allowed, 0);
    }
}
