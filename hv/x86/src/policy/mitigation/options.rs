//! `spec-ctrl=`: Xen's option, its names and meanings (Xen documentation, "Xen Hypervisor Command Line
//! Options", `spec-ctrl (x86)`).

/// What the operator asked for; `None` is the default of the CPU at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Guests have SPEC_CTRL.
    pub msr_sc: Option<bool>,
    /// Fill the return stack at exits.
    pub rsb: Option<bool>,
    /// VERW at entries.
    pub verw: Option<bool>,
    /// IBPB at exits.
    pub ibpb_entry: Option<bool>,
    /// IBRS (or automatic IBRS) for ourselves.
    pub ibrs: Option<bool>,
    /// STIBP for ourselves.
    pub stibp: Option<bool>,
    /// IBPB at vCPU switches and from L2 to L1.
    pub ibpb: Option<bool>,
    /// SSBD for ourselves.
    pub ssbd: Option<bool>,
    /// PSFD for ourselves.
    pub psfd: Option<bool>,
    /// Scrub the divider at entries.
    pub div_scrub: Option<bool>,
    /// BP_SPEC_REDUCE for guests.
    pub bp_spec_reduce: Option<bool>,
    /// Whether return stack overflow counts in choosing `ibpb-entry` (Testudo's own name).
    pub srso: Option<bool>,
}

/// Something to tell the operator about a word of the option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning<'a> {
    /// Known, but it has no effect here: for PV guests, for another vendor's CPU, or not applicable.
    NoEffect(&'a str),
    /// Not known, or a value that it can't have.
    Unknown(&'a str),
}

impl core::fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Warning::NoEffect(word) => write!(f, "spec-ctrl={word} has no effect here"),
            Warning::Unknown(word) => write!(f, "spec-ctrl={word} is not understood"),
        }
    }
}

/// Words of Xen's that take a boolean and mean nothing on this hardware or without PV guests.
const NO_EFFECT: [&str; 13] = [
    "bhb-entry",
    "eager-fpu",
    "l1d-flush",
    "branch-harden",
    "srb-lock",
    "unpriv-mmio",
    "gds-mit",
    "lock-harden",
    "bhi-dis-s",
    "its-mit",
    "ibpb-alt",
    "asi",
    "pv",
];
/// Words of Xen's that take a name.
const NO_EFFECT_VALUES: [(&str, &[&str]); 2] =
    [("bti-thunk", &["retpoline", "lfence", "jmp"]), ("bhb-seq", &["short", "tsx", "long"])];

/// Xen's booleans.
fn boolean(value: &str) -> Option<bool> {
    match value {
        "yes" | "on" | "true" | "enable" | "1" => Some(true),
        "no" | "off" | "false" | "disable" | "0" => Some(false),
        _ => None,
    }
}

impl Options {
    /// Reads the option's value. Words are applied in order, so a later one wins; `warn` hears of each that
    /// does nothing.
    pub fn parse<'a>(value: &'a str, mut warn: impl FnMut(Warning<'a>)) -> Self {
        let mut options = Self::default();
        for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            if let Err(warning) = options.apply(word) {
                warn(warning);
            }
        }
        options
    }

    fn apply<'a>(&mut self, word: &'a str) -> Result<(), Warning<'a>> {
        // "no-name" is "name=no", and a bare name is "name=yes".
        let (name, value) = match (word.split_once('='), word.strip_prefix("no-")) {
            (Some(pair), _) => pair,
            (None, Some(name)) => (name, "no"),
            (None, None) => (word, "yes"),
        };
        if let Some(on) = boolean(word) {
            // "yes" is the default; "no" turns everything off, for ourselves and for guests.
            *self = if on { Self::default() } else { Self::all(false) };
            return Ok(());
        }
        if let Some((_, values)) = NO_EFFECT_VALUES.iter().find(|(known, _)| *known == name) {
            let known = values.contains(&value);
            return Err(if known { Warning::NoEffect(word) } else { Warning::Unknown(word) });
        }
        // {msr-sc,rsb,verw,ibpb-entry} may be limited to a kind of guest: ours are all HVM.
        match value {
            "pv" | "no-pv" if self.scoped(name).is_some() => return Err(Warning::NoEffect(word)),
            "hvm" | "no-hvm" => {
                let field = self.scoped(name).ok_or(Warning::Unknown(word))?;
                *field = Some(value == "hvm");
                return Ok(());
            }
            _ => {}
        }
        let on = boolean(value).ok_or(Warning::Unknown(word))?;
        if NO_EFFECT.contains(&name) {
            return Err(Warning::NoEffect(word));
        }
        match name {
            // Only "no" has a meaning (Xen refuses "yes"): nothing for ourselves, or nothing for guests.
            "xen" if !on => *self = Self { msr_sc: self.msr_sc, ..Self::all(false) },
            "hvm" => {
                for name in ["msr-sc", "rsb", "verw", "ibpb-entry"] {
                    *self.scoped(name).ok_or(Warning::Unknown(word))? = Some(on);
                }
            }
            _ => *self.field(name).ok_or(Warning::Unknown(word))? = Some(on),
        }
        Ok(())
    }

    fn all(on: bool) -> Self {
        let on = Some(on);
        Self {
            msr_sc: on,
            rsb: on,
            verw: on,
            ibpb_entry: on,
            ibrs: on,
            stibp: on,
            ibpb: on,
            ssbd: on,
            psfd: on,
            div_scrub: on,
            bp_spec_reduce: on,
            srso: on,
        }
    }

    fn scoped(&mut self, name: &str) -> Option<&mut Option<bool>> {
        match name {
            "msr-sc" | "rsb" | "verw" | "md-clear" | "ibpb-entry" => self.field(name),
            _ => None,
        }
    }

    fn field(&mut self, name: &str) -> Option<&mut Option<bool>> {
        Some(match name {
            "msr-sc" => &mut self.msr_sc,
            "rsb" => &mut self.rsb,
            // The older name of the same.
            "verw" | "md-clear" => &mut self.verw,
            "ibpb-entry" => &mut self.ibpb_entry,
            "ibrs" => &mut self.ibrs,
            "stibp" => &mut self.stibp,
            "ibpb" => &mut self.ibpb,
            "ssbd" => &mut self.ssbd,
            "psfd" => &mut self.psfd,
            "div-scrub" => &mut self.div_scrub,
            "bp-spec-reduce" => &mut self.bp_spec_reduce,
            "srso" => &mut self.srso,
            _ => return None,
        })
    }
}
