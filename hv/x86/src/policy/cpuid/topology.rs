//! How the vCPUs form a machine: one package, each vCPU a core of one thread. The APIC id is twice the vCPU
//! number (as Xen has it), so one bit of it is a thread number that is always 0.

use super::Leaf;

/// Sub-leaves of 8000_001D: L1 data, L1 code, L2, L3, and the end.
pub(super) const CACHES: usize = 5;

/// Bits that hold every APIC id of `vcpus` vCPUs.
fn id_bits(vcpus: u32) -> u32 {
    let highest = vcpus.max(1).saturating_sub(1).saturating_mul(2);
    // At least the thread bit.
    (u32::BITS - highest.leading_zeros()).max(1)
}

/// Leaf 0Bh: the thread level (type 1) and the core level (type 2). EAX: how far to shift an id to get that of
/// the level above; EBX: logical processors at this level.
pub(super) fn extended(vcpus: u32) -> [Leaf; 2] {
    [[1, 1, 1 << 8, 0], [id_bits(vcpus), vcpus.clamp(1, 0xffff), 1 | 2 << 8, 0]]
}

/// Leaf 8000_0008 ECX: cores less one 7:0, bits of the APIC id that are the core's 15:12.
pub(super) fn core_count(vcpus: u32) -> u32 {
    (vcpus.clamp(1, 256) - 1) | (id_bits(vcpus).min(15) << 12)
}

/// Leaf 8000_001D: the host's caches, L1 and L2 each of one vCPU, L3 shared by all.
pub(super) fn caches(host: &impl Fn(u32, u32) -> Leaf, vcpus: u32) -> [Leaf; CACHES] {
    const SHARING: u32 = 0xfff << 14;
    let mut ended = false;
    core::array::from_fn(|i| {
        let [eax, ebx, ecx, edx] = host(0x8000_001d, i as u32);
        ended |= eax & 0x1f == 0 || i == CACHES - 1;
        if ended {
            return [0; 4];
        }
        // Software takes the number that share for a span of APIC ids, so it counts the unused ones too.
        let ids = if eax >> 5 & 7 >= 3 { 1 << id_bits(vcpus).min(12) } else { 1u32 };
        [eax & !SHARING & 0x3ff | (ids - 1) << 14 & SHARING, ebx, ecx, edx]
    })
}
