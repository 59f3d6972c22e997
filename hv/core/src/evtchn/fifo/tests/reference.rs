//! Random operations against a model that has queues of ports and nothing else.

use super::*;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use proptest::prelude::*;

const VCPUS: u32 = 2;
const PORTS: u32 = 12;

#[derive(Clone, Debug)]
enum Op {
    Open(u32),
    Close(u32),
    Send(u32),
    Mask(u32),
    Unmask(u32),
    UnmaskByCall(u32),
    Priority(u32, u32),
    Move(u32, u32),
    /// Takes one port off, handling it or leaving it pending.
    Take(u32, bool),
    Drain(u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let port = || 1..=PORTS;
    let vcpu = || 0..VCPUS;
    let one = prop_oneof![
        2 => vcpu().prop_map(Op::Open),
        1 => port().prop_map(Op::Close),
        8 => port().prop_map(Op::Send),
        2 => port().prop_map(Op::Mask),
        2 => port().prop_map(Op::Unmask),
        1 => port().prop_map(Op::UnmaskByCall),
        2 => (port(), prop_oneof![0u32..3, Just(15)]).prop_map(|(port, priority)| Op::Priority(port, priority)),
        2 => (port(), vcpu()).prop_map(|(port, vcpu)| Op::Move(port, vcpu)),
        4 => (vcpu(), any::<bool>()).prop_map(|(vcpu, handle)| Op::Take(vcpu, handle)),
        1 => vcpu().prop_map(Op::Drain),
    ];
    proptest::collection::vec(one, 1..120)
}

#[derive(Clone, Copy, Default)]
struct Port {
    open: bool,
    vcpu: u32,
    priority: u32,
    pending: bool,
    masked: bool,
    linked: bool,
}

#[derive(Default)]
struct Model {
    ports: BTreeMap<u32, Port>,
    queues: BTreeMap<(u32, u32), VecDeque<u32>>,
}

impl Model {
    fn port(&mut self, port: u32) -> &mut Port {
        self.ports.entry(port).or_default()
    }
    fn raise(&mut self, number: u32) {
        let port = self.port(number);
        port.pending = true;
        if !port.masked && !port.linked {
            port.linked = true;
            let queue = (port.vcpu, port.priority);
            self.queues.entry(queue).or_default().push_back(number);
        }
    }
    fn take(&mut self, vcpu: u32) -> Option<(u32, u32, bool)> {
        let found = self.queues.range_mut((vcpu, 0)..(vcpu + 1, 0)).find(|(_, queue)| !queue.is_empty());
        let (&(_, priority), queue) = found?;
        let number = queue.pop_front()?;
        let port = self.port(number);
        port.linked = false;
        Some((number, priority, port.pending && !port.masked))
    }
}

/// Opens the lowest port that is neither open nor linked: an interdomain port of the domain with itself would take
/// two, so the peer is a second domain's.
fn open(guest: &FifoGuest, peer: &Dom, vcpu: u32) -> (u32, u32) {
    let theirs = unbound(peer, guest.d.id()).unwrap();
    let port = interdomain(&guest.d, peer.id(), theirs).unwrap();
    assert_eq!(bind_vcpu(&guest.d, port, vcpu), 0);
    (port, theirs)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn queues_behave_as_queues(ops in ops()) {
        let mut guest = guest(VCPUS);
        let peer = domain(guest.d.machine(), 1);
        let d = guest.d.clone();
        let mut peers = BTreeMap::new();
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Open(vcpu) => {
                    let free = (1..).find(|n| !model.port(*n).open && !model.port(*n).linked).unwrap();
                    if free <= PORTS {
                        let (port, theirs) = open(&guest, &peer, vcpu);
                        prop_assert_eq!(port, free);
                        peers.insert(port, theirs);
                        // It is pending once at bind, on vCPU 0, before it moves.
                        let masked = model.port(port).masked;
                        *model.port(port) = Port { open: true, priority: 7, masked, ..Port::default() };
                        model.raise(port);
                        model.port(port).vcpu = vcpu;
                    }
                }
                Op::Close(port) => {
                    let open = core::mem::take(&mut model.port(port).open);
                    let expected = if open { 0 } else { Errno::EINVAL.result() };
                    prop_assert_eq!(port_op(&d, EvtchnOp::CLOSE, port), expected);
                    if open {
                        model.port(port).pending = false;
                        port_op(&peer, EvtchnOp::CLOSE, peers[&port]);
                    }
                }
                Op::Send(port) if model.port(port).open => {
                    send(&peer, peers[&port]);
                    model.raise(port);
                }
                Op::Mask(port) => {
                    guest.mask(port);
                    model.port(port).masked = true;
                }
                Op::Unmask(port) | Op::UnmaskByCall(port) if model.port(port).open => {
                    match op {
                        Op::Unmask(_) => guest.unmask(port),
                        _ => prop_assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), 0),
                    }
                    model.port(port).masked = false;
                    if model.port(port).pending {
                        model.raise(port);
                    }
                }
                Op::Priority(port, priority) if model.port(port).open => {
                    prop_assert_eq!(set_priority(&d, port, priority), 0);
                    model.port(port).priority = priority;
                }
                Op::Move(port, vcpu) if model.port(port).open => {
                    prop_assert_eq!(bind_vcpu(&d, port, vcpu), 0);
                    model.port(port).vcpu = vcpu;
                }
                Op::Take(vcpu, handle) => {
                    let expected = model.take(vcpu);
                    prop_assert_eq!(guest.take(vcpu), expected);
                    if let Some((port, _, true)) = expected && handle {
                        guest.clear(port, PENDING);
                        model.port(port).pending = false;
                    }
                }
                Op::Drain(vcpu) => {
                    let mut expected = Vec::new();
                    while let Some((port, _, due)) = model.take(vcpu) {
                        if due {
                            model.port(port).pending = false;
                            expected.push(port);
                        }
                    }
                    prop_assert_eq!(guest.drain(vcpu), expected);
                }
                _ => {}
            }
            for (number, port) in &model.ports {
                let word = guest.word(*number);
                prop_assert_eq!(
                    (word & PENDING != 0, word & MASKED != 0, word & LINKED != 0, word & BUSY != 0),
                    (port.pending, port.masked, port.linked, false),
                    "port {}", number
                );
            }
        }
    }
}
