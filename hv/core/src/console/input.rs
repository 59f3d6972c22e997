//! Input: the focus, the switch character, and Testudo's key commands.

use super::{Console, Sink, Who};

/// What a key of Testudo's menu does. Gets the key.
pub type Handler = fn(key: u8);

#[derive(Clone, Copy)]
pub(super) struct Key {
    key: u8,
    description: &'static str,
    handler: Handler,
}

/// Xen's option `conswitch=`: a letter, and `x` if the focus is to stay with the hypervisor at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conswitch {
    /// The letter, `a` to `z`, of the control character; none: the focus can't be switched by key.
    pub letter: Option<u8>,
    /// Whether a domain gets the focus when the boot is done.
    pub auto: bool,
}

impl Default for Conswitch {
    fn default() -> Self {
        Self { letter: Some(b'a'), auto: true }
    }
}

impl Conswitch {
    /// The option's value. As in Xen, what isn't a small letter turns the switch off.
    pub fn parse(value: &str) -> Self {
        let letter = value.bytes().next().filter(u8::is_ascii_lowercase);
        Self { letter, auto: value.as_bytes().get(1) != Some(&b'x') }
    }
    /// The control character itself.
    fn byte(&self) -> Option<u8> {
        self.letter.map(|letter| letter - b'a' + 1)
    }
}

/// Up to three bytes: two switch characters that were held back, and the byte that showed they were not
/// meant for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputBytes {
    bytes: [u8; 3],
    len: u8,
}

impl InputBytes {
    fn new(switch: u8, count: u8, last: u8) -> Self {
        let count = count.min(2);
        let mut bytes = [switch; 3];
        bytes[usize::from(count)] = last;
        Self { bytes, len: count + 1 }
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What a byte from the serial line means.
#[derive(Clone, Copy, Debug)]
pub enum InputEvent {
    /// Nothing (yet), or dealt with here.
    Nothing,
    /// For a domain's console.
    Domain {
        /// Which.
        domid: u16,
        /// What.
        bytes: InputBytes,
    },
    /// A command of Testudo's: to be called with the console unlocked.
    Command {
        /// The key.
        key: u8,
        /// What it does.
        handler: Handler,
    },
}

impl<S: Sink> Console<S> {
    /// One byte from the serial line.
    pub fn input(&mut self, byte: u8) -> InputEvent {
        let switch = self.conswitch.byte();
        if switch == Some(byte) {
            self.switches += 1;
            if self.switches == 3 {
                self.switches = 0;
                self.set_focus(self.next_focus());
            }
            return InputEvent::Nothing;
        }
        let held = core::mem::take(&mut self.switches);
        match self.focus {
            Who::Domain(domid) => {
                InputEvent::Domain { domid, bytes: InputBytes::new(switch.unwrap_or(0), held, byte) }
            }
            Who::Testudo => self.command(byte),
        }
    }

    /// Adds a key command, replacing one of the same key. `h` is taken.
    pub fn register_key(&mut self, key: u8, description: &'static str, handler: Handler) {
        self.keys.retain(|k| k.key != key);
        let at = self.keys.partition_point(|k| k.key < key);
        self.keys.insert(at, Key { key, description, handler });
    }

    /// Sets the switch character and whether [`Console::boot_done`] moves the focus.
    pub fn set_conswitch(&mut self, conswitch: Conswitch) {
        self.conswitch = conswitch;
        self.switches = 0;
    }

    /// The domains are about to run: the first gets the focus, unless `conswitch=` forbids it.
    pub fn boot_done(&mut self) {
        if self.conswitch.auto && self.focus == Who::Testudo && !self.domains.is_empty() {
            self.set_focus(self.next_focus());
        }
    }

    /// Gives the input to `who` and says so. A domain that is not known leaves it with Testudo.
    pub fn set_focus(&mut self, who: Who) {
        let known = match who {
            Who::Testudo => true,
            Who::Domain(domid) => self.index(domid).is_ok(),
        };
        let who = if known { who } else { Who::Testudo };
        let old = core::mem::replace(&mut self.focus, who);
        self.reset_filter(old);
        self.reset_filter(who);
        let name = alloc::string::String::from(self.name(who));
        match self.conswitch.letter {
            Some(letter) => self.log(format_args!(
                "*** Serial input to {name} (type 'CTRL-{}' three times to switch input)",
                char::from(letter)
            )),
            None => self.log(format_args!("*** Serial input to {name}")),
        }
    }

    /// The domain after the one in focus by number, the first after Testudo, Testudo after the last.
    fn next_focus(&self) -> Who {
        let behind = |d: &&super::Speaker| Who::Domain(d.domid) > self.focus;
        self.domains.iter().find(behind).map_or(Who::Testudo, |d| Who::Domain(d.domid))
    }

    fn command(&mut self, key: u8) -> InputEvent {
        if let Some(found) = self.keys.iter().find(|k| k.key == key && key != b'h') {
            return InputEvent::Command { key, handler: found.handler };
        }
        match key {
            b'h' => self.help(),
            b'\r' | b'\n' => {}
            _ => self.log(format_args!("no command '{}'; 'h' lists them", key.escape_ascii())),
        }
        InputEvent::Nothing
    }

    fn help(&mut self) {
        self.log(format_args!("key 'h': show this list"));
        for at in 0..self.keys.len() {
            let Key { key, description, .. } = self.keys[at];
            self.log(format_args!("key '{}': {description}", key.escape_ascii()));
        }
    }
}
