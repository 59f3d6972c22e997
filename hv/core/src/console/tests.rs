//! What stands on the wire, and where input goes.

use super::*;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;

impl Sink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

fn console() -> Console<Vec<u8>> {
    let mut c = Console::new(Vec::new());
    c.add_domain(1, "l1");
    c.add_domain(2, "web");
    c
}

/// What was written since the last call.
fn wire(c: &mut Console<Vec<u8>>) -> String {
    String::from_utf8(core::mem::take(c.sink())).unwrap()
}

#[test]
fn lines_are_whole_and_prefixed() {
    let mut c = console();
    c.domain_output(1, b"hello ", 0);
    c.domain_output(2, b"GET /\r\n", 0);
    assert_eq!(wire(&mut c), "(web) GET /\r\n");
    c.log(format_args!("domain {} has {}", 1, "started"));
    c.domain_output(1, b"world\n\n", 0);
    assert_eq!(wire(&mut c), "(testudo) domain 1 has started\r\n(l1) hello world\r\n(l1) \r\n");
    c.domain_output(9, b"who am I\n", 0);
    assert_eq!(wire(&mut c), "", "unknown domains are not shown");
}

#[test]
fn incomplete_lines_are_shown_after_a_while() {
    let mut c = console();
    c.domain_output(1, b"login: ", 1000);
    c.flush_idle(1000 + IDLE_NS - 1);
    assert_eq!(wire(&mut c), "");
    c.flush_idle(1000 + IDLE_NS);
    assert_eq!(wire(&mut c), "(l1) login: ");
    c.domain_output(2, b"x\n", 2000);
    assert_eq!(wire(&mut c), "\r\n(web) x\r\n");
    c.domain_output(1, b"root\n", 3000);
    assert_eq!(wire(&mut c), "(l1) root\r\n");
    c.domain_output(1, b"# ", 3000);
    c.flush();
    assert_eq!(wire(&mut c), "(l1) # \r\n");
    c.domain_output(1, b"\n", 3000);
    assert_eq!(wire(&mut c), "", "that line has been ended already");
}

#[test]
fn the_domain_in_focus_is_shown_at_once() {
    let mut c = console();
    c.set_focus(Who::Domain(1));
    wire(&mut c);
    for (byte, shown) in [(b'$', "(l1) $"), (b' ', " "), (b'l', "l"), (8, "\x08"), (0, ""), (b'x', "x")] {
        c.domain_output(1, &[byte], 0);
        assert_eq!(wire(&mut c), shown);
    }
    c.domain_output(1, b"\x1b[2K\rnew", 0);
    assert_eq!(wire(&mut c), "\x1b[2K\r(l1) new", "the prefix is written again");
    c.log(format_args!("meanwhile"));
    c.domain_output(1, b" line\r\n", 0);
    assert_eq!(wire(&mut c), "\r\n(testudo) meanwhile\r\n(l1)  line\r\n");
    c.domain_output(2, b"half", 0);
    c.set_focus(Who::Domain(2));
    assert!(wire(&mut c).starts_with("(web) half\r\n(testudo) *** Serial input to web"));
}

#[test]
fn nobody_can_fake_a_prefix() {
    let mut c = console();
    c.domain_output(2, b"ok\r(l1) I am l1\n", 0);
    assert_eq!(wire(&mut c), "(web) ok\r\n(web) (l1) I am l1\r\n");
    c.domain_output(2, b"ok\x1b[1G\x08\x08(l1) hi\x0bx\n", 0);
    assert_eq!(wire(&mut c), "(web) ok(l1) hix\r\n");
    c.add_domain(3, "testudo");
    c.add_domain(4, "a) \n(l1");
    c.domain_output(3, b"x\n", 0);
    c.domain_output(4, b"x\n", 0);
    assert_eq!(wire(&mut c), "(testudo_) x\r\n(a____l1) x\r\n");
    c.log(format_args!("guest says '{}'", "\x1b[2J\r(l1) hi\u{9b}1m\0"));
    assert_eq!(wire(&mut c), "(testudo) guest says '?[2J?(l1) hi?1m?'\r\n");
}

#[test]
fn long_lines_come_in_pieces() {
    let mut c = console();
    c.domain_output(1, &[b'x'; LINE_BYTES + 10], 0);
    assert_eq!(wire(&mut c).len(), LINE_BYTES + 5);
    c.domain_output(1, b"\n", 0);
    assert_eq!(wire(&mut c), "xxxxxxxxxx\r\n");
    c.log(format_args!("one\ntwo\n"));
    assert_eq!(wire(&mut c), "(testudo) one\r\n(testudo) two\r\n");
}

#[test]
fn the_log_ring_has_our_own_lines_only() {
    let mut c = console();
    c.domain_output(1, b"noise\n", 0);
    c.log(format_args!("one"));
    c.log(format_args!("two\nthree"));
    let (a, b) = c.log_ring().tail(LOG_BYTES);
    assert_eq!([a, b].concat(), b"one\ntwo\nthree\n");
}

#[test]
fn a_domain_that_goes_is_shown_to_the_end() {
    let mut c = console();
    c.set_focus(Who::Domain(2));
    c.domain_output(1, b"last words", 0);
    wire(&mut c);
    c.remove_domain(1);
    assert_eq!(wire(&mut c), "(l1) last words\r\n");
    c.remove_domain(2);
    assert_eq!(c.focus(), Who::Testudo);
    c.set_focus(Who::Domain(7));
    assert_eq!(c.focus(), Who::Testudo);
}

fn domain_bytes(event: InputEvent) -> Option<(u16, Vec<u8>)> {
    match event {
        InputEvent::Domain { domid, bytes } => Some((domid, bytes.as_bytes().to_vec())),
        _ => None,
    }
}

#[test]
fn three_switch_characters_move_the_focus_in_a_circle() {
    let mut c = console();
    let circle = [Who::Domain(1), Who::Domain(2), Who::Testudo, Who::Domain(1)];
    for expected in circle {
        (0..3).for_each(|_| assert!(matches!(c.input(1), InputEvent::Nothing)));
        assert_eq!(c.focus(), expected);
    }
    let shown = wire(&mut c);
    let first = "(testudo) *** Serial input to l1 (type 'CTRL-a' three times to switch input)\r\n";
    assert!(shown.starts_with(first), "{shown}");
    assert!(shown.contains("input to Testudo (type"), "{shown}");
}

#[test]
fn fewer_switch_characters_belong_to_the_domain() {
    let mut c = console();
    c.set_focus(Who::Domain(2));
    assert_eq!(domain_bytes(c.input(b'a')), Some((2, b"a".to_vec())));
    assert_eq!(domain_bytes(c.input(1)), None);
    assert_eq!(domain_bytes(c.input(1)), None);
    assert_eq!(domain_bytes(c.input(b'c')), Some((2, b"\x01\x01c".to_vec())));
    assert_eq!(domain_bytes(c.input(1)), None);
    assert_eq!(domain_bytes(c.input(0)), Some((2, b"\x01\0".to_vec())));
    assert_eq!(c.focus(), Who::Domain(2));
}

#[test]
fn conswitch_as_in_xen() {
    assert_eq!(Conswitch::parse("a"), Conswitch::default());
    assert_eq!(Conswitch::parse("bx"), Conswitch { letter: Some(b'b'), auto: false });
    assert_eq!(Conswitch::parse(""), Conswitch { letter: None, auto: true });
    assert_eq!(Conswitch::parse("\u{fc}x").letter, None);
    let mut c = console();
    c.set_conswitch(Conswitch::parse("bx"));
    c.boot_done();
    assert_eq!(c.focus(), Who::Testudo);
    (0..3).for_each(|_| assert!(matches!(c.input(2), InputEvent::Nothing)));
    assert_eq!(c.focus(), Who::Domain(1));
    c.set_conswitch(Conswitch { letter: None, auto: true });
    assert_eq!(domain_bytes(c.input(1)), Some((1, b"\x01".to_vec())));
    let mut c = console();
    c.boot_done();
    assert_eq!(c.focus(), Who::Domain(1));
}

#[test]
fn keys_are_commands_when_testudo_has_the_input() {
    fn quiet(_: u8) {}
    let mut c = console();
    c.register_key(b'R', "reboot", quiet);
    c.register_key(b'd', "dump registers", quiet);
    c.register_key(b'd', "dump all registers", quiet);
    assert!(matches!(c.input(b'd'), InputEvent::Command { key: b'd', .. }));
    assert!(matches!(c.input(b'h'), InputEvent::Nothing));
    let help = wire(&mut c);
    let keys: Vec<_> = help.lines().map(ToString::to_string).collect();
    assert_eq!(
        keys,
        [
            "(testudo) key 'h': show this list",
            "(testudo) key 'R': reboot",
            "(testudo) key 'd': dump all registers"
        ]
    );
    assert!(matches!(c.input(0x1b), InputEvent::Nothing));
    assert_eq!(wire(&mut c), "(testudo) no command '\\x1b'; 'h' lists them\r\n");
    c.set_focus(Who::Domain(1));
    assert_eq!(domain_bytes(c.input(b'd')), Some((1, b"d".to_vec())));
}

proptest! {
    /// Whatever the domains say: behind every line end stands a prefix, the domain's own.
    #[test]
    fn every_line_says_truly_whose_it_is(
        says in proptest::collection::vec((1..4u16, proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(0x1b), Just(b'['), Just(0), Just(b'('), any::<u8>()], 0..40)), 0..40),
        focus in 0..4u16,
    ) {
        let mut c = console();
        c.set_focus(Who::Domain(focus));
        let mut plain: Vec<Vec<u8>> = std::vec![Vec::new(); 4];
        for (now, (domid, bytes)) in says.iter().enumerate() {
            c.domain_output(*domid, bytes, now as u64);
            c.flush_idle(now as u64);
            plain[usize::from(*domid)].extend(bytes.iter().filter(|b| b.is_ascii_alphanumeric()));
        }
        c.flush();
        let out = core::mem::take(c.sink());
        for line in out.split(|b| *b == b'\r' || *b == b'\n').filter(|line| !line.is_empty()) {
            let known = [&b"(testudo) "[..], b"(l1) ", b"(web) "];
            prop_assert!(known.iter().any(|p| line.starts_with(p)), "{}", line.escape_ascii());
        }
        // Nothing said by a domain that nobody knows is shown, and what is in focus is shown whole.
        if (1..3).contains(&focus) {
            let prefix: &[u8] = if focus == 1 { b"(l1) " } else { b"(web) " };
            let shown: Vec<u8> = out.split(|b| *b == b'\r' || *b == b'\n')
                .filter_map(|line| line.strip_prefix(prefix)).flatten()
                .filter(|b| b.is_ascii_alphanumeric()).copied().collect();
            prop_assert_eq!(&shown, &plain[usize::from(focus)]);
        }
    }
}
