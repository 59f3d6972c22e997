//! Words of the kernel command line.

/// The words, split at white space; the last of several equal names counts, as with Linux's own options.
#[derive(Debug)]
pub struct Words(Vec<(String, String)>);

impl Words {
    /// Split `line`.
    pub fn from_cmdline(line: &str) -> Words {
        Words(
            line.split_ascii_whitespace()
                .map(|word| word.split_once('=').unwrap_or((word, "")))
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        )
    }

    /// The value of `name`; empty if the word has none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the word is there.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Takes a step `NAME+word=value+word=value` apart: its name, and these words with its own `testudo.word`s
    /// in force.
    pub fn step(&self, step: &str) -> (String, Words) {
        let mut parts = step.split('+');
        let name = parts.next().unwrap_or_default().to_string();
        let own = parts.map(|word| word.split_once('=').unwrap_or((word, "")));
        let own = own.map(|(name, value)| (format!("testudo.{name}"), value.to_string()));
        (name, Words(self.0.iter().cloned().chain(own).collect()))
    }

    /// The value of `name` as a number, or `default` if absent or malformed.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.get(name).and_then(|v| v.parse().ok()).unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_word_counts_and_values_keep_their_equals_signs() {
        let w = Words::from_cmdline("quiet testudo.kvm_amd=npt=1,nested=0 testudo.count=2 testudo.count=3\n");
        assert_eq!(w.get("testudo.kvm_amd"), Some("npt=1,nested=0"));
        assert_eq!((w.number("testudo.count", 1), w.number("testudo.repeat", 1)), (3, 1));
        assert!(w.has("quiet") && !w.has("qui"));
        assert_eq!(Words::from_cmdline("n=x").number("n", 5), 5);
    }

    #[test]
    fn a_steps_own_words_are_for_that_step() {
        let w = Words::from_cmdline("testudo.cpus=1 testudo.kernel=6.1");
        let (name, own) = w.step("l2+cpus=2+l2=load:5");
        assert_eq!(
            (name.as_str(), own.number("testudo.cpus", 0), own.get("testudo.l2")),
            ("l2", 2, Some("load:5"))
        );
        assert_eq!((own.get("testudo.kernel"), w.number("testudo.cpus", 0)), (Some("6.1"), 1));
        assert_eq!(w.step("info").0, "info");
    }
}
