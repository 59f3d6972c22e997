//! VPIDs against a TLB that forgets nothing it need not forget.

use super::*;
use crate::state::Invvpid;
use crate::vpid::{Flush, Selected, VpidMap};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn a_known_vpid_keeps_its_tag_and_owes_nothing() {
    let mut map = VpidMap::<2>::new(10);
    let first = map.select(Some(7));
    assert_eq!(first, Selected { vpid: first.vpid, flush: Flush::All, flush_01: false });
    assert_eq!(map.select(Some(7)), Selected { flush: Flush::None, ..first });
    let other = map.select(Some(8));
    assert!(other.vpid != first.vpid && other.vpid != map.l1() && first.vpid != map.l1());
    assert_eq!(map.select(Some(7)), Selected { flush: Flush::None, ..first });
    // A third one takes the tag unused for longest, and owes for what 8 left there.
    assert_eq!(map.select(Some(9)), Selected { flush: Flush::All, ..other });
}

#[test]
fn without_vpids_every_transition_flushes() {
    let mut map = VpidMap::<2>::new(10);
    for _ in 0..2 {
        assert_eq!(map.select(None), Selected { vpid: 11, flush: Flush::All, flush_01: true });
    }
}

#[test]
fn flushes_add_up() {
    let mut map = VpidMap::<2>::new(10);
    let tag = map.select(Some(7)).vpid;
    assert_eq!(map.invalidate(Invvpid::Address { vpid: 7, address: 0x5000 }), Some((tag, 0x5000)));
    assert_eq!(map.invalidate(Invvpid::Address { vpid: 9, address: 0x5000 }), None, "nothing can be cached");
    assert_eq!(map.invalidate(Invvpid::RetainingGlobals(7)), None);
    assert_eq!(map.select(Some(7)).flush, Flush::RetainingGlobals);
    let _ = map.invalidate(Invvpid::Single(7));
    let _ = map.invalidate(Invvpid::RetainingGlobals(7));
    assert_eq!(map.select(Some(7)).flush, Flush::All, "the lesser does not undo the greater");
    map.moved();
    assert_eq!(map.select(Some(7)).flush, Flush::All);
}

/// What the processors' TLBs hold: (processor, tag) to translations (L1's VPID, address, global).
type Tlb = BTreeMap<(usize, u16), Vec<(u16, u64, bool)>>;

#[derive(Clone, Debug)]
enum Step {
    Run { vpid: u16, address: u64, global: bool },
    Invalidate(u8, u16, u64),
    Move(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u16..5, 0u64..3, any::<bool>()).prop_map(|(vpid, address, global)| Step::Run { vpid, address, global }),
        3 => (0u8..4, 1u16..5, 0u64..3).prop_map(|(kind, vpid, address)| Step::Invalidate(kind, vpid, address)),
        1 => (0usize..3).prop_map(Step::Move),
    ]
}

proptest! {
    /// What L1 flushed, or what another VPID left, is never met again; on any processor.
    #[test]
    fn nothing_flushed_is_reachable(list in proptest::collection::vec(steps(), 1..60)) {
        let mut map = VpidMap::<2>::new(1);
        let (mut tlb, mut cpu) = (Tlb::new(), 0);
        // What L1 may rely on: cached since its last flush, by VPID.
        let mut allowed: BTreeMap<u16, Vec<(u64, bool)>> = BTreeMap::new();
        for step in list {
            match step {
                Step::Run { vpid, address, global } => {
                    let selected = map.select((vpid != 0).then_some(vpid));
                    prop_assert!((2..2 + VpidMap::<2>::TAGS).contains(&selected.vpid));
                    let cached = tlb.entry((cpu, selected.vpid)).or_default();
                    match selected.flush {
                        Flush::None => {}
                        Flush::RetainingGlobals => cached.retain(|c| c.2),
                        Flush::All => cached.clear(),
                    }
                    if vpid == 0 {
                        allowed.remove(&0);
                    }
                    let may = allowed.entry(vpid).or_default();
                    for (of, at, is_global) in cached.iter() {
                        prop_assert!(*of == vpid && may.contains(&(*at, *is_global)), "{} {:x}", of, at);
                    }
                    cached.push((vpid, address, global));
                    may.push((address, global));
                }
                Step::Invalidate(kind, vpid, address) => {
                    let what = match kind {
                        0 => Invvpid::Address { vpid, address },
                        1 => Invvpid::Single(vpid),
                        2 => Invvpid::All,
                        _ => Invvpid::RetainingGlobals(vpid),
                    };
                    if let Some((tag, address)) = map.invalidate(what) {
                        tlb.entry((cpu, tag)).or_default().retain(|c| c.1 != address);
                    }
                    match what {
                        Invvpid::Address { .. } => allowed.entry(vpid).or_default().retain(|c| c.0 != address),
                        Invvpid::Single(_) => _ = allowed.remove(&vpid),
                        Invvpid::All => allowed.clear(),
                        Invvpid::RetainingGlobals(_) => allowed.entry(vpid).or_default().retain(|c| c.1),
                    }
                }
                Step::Move(to) => {
                    if to != cpu {
                        cpu = to;
                        map.moved();
                    }
                }
            }
        }
    }
}
