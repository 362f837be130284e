//! The kernel's command line, as PID 1 reads it from `/proc/cmdline`.
//!
//! Words are separated by white space; double quotes keep a word together. A word is a flag (`rw`) or `name=value`.
//! Names may be written with `-` or `_`, as the kernel allows. What nobody knows is passed over: the line belongs to
//! the kernel, and every other reader of it has words of its own there.

pub mod ip;

/// Words for us start with this; what follows is a key of the [configuration](crate::config).
const OURS: &str = "envd_init.";

/// A command line, split into its words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    words: Vec<Word>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    name: String,
    value: Option<String>,
}

impl Cmdline {
    /// The running kernel's. It may hold any bytes: what is no UTF-8 spoils its own word and no other.
    pub fn of_this_machine() -> Self {
        Self::parse(&String::from_utf8_lossy(&std::fs::read("/proc/cmdline").unwrap_or_default()))
    }

    pub fn parse(line: &str) -> Self {
        Self { words: split(line).map(|text| word(&text)).collect() }
    }

    /// The value of the last `name=value`, as for most words of the kernel.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find(|word| same_name(&word.name, name) && word.value.is_some())?
            .value
            .as_deref()
    }

    /// Whether the word stands there alone.
    pub fn flag(&self, name: &str) -> bool {
        self.words.iter().any(|word| same_name(&word.name, name) && word.value.is_none())
    }

    /// Keys and values of `envd_init.KEY=VALUE`, in order; a word without a value means `true`.
    pub fn overrides(&self) -> impl Iterator<Item = (&str, &str)> {
        self.words.iter().filter_map(|word| {
            let prefix = word.name.get(..OURS.len())?;
            same_name(prefix, OURS)
                .then(|| (&word.name[OURS.len()..], word.value.as_deref().unwrap_or("true")))
        })
    }
}

/// Splits at white space that is outside of double quotes; the quotes go.
fn split(line: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            space if space.is_whitespace() && !quoted => words.push(String::new()),
            other => words.last_mut().expect("there is one from the start").push(other),
        }
    }
    words.into_iter().filter(|word| !word.is_empty())
}

fn word(text: &str) -> Word {
    match text.split_once('=') {
        Some((name, value)) => Word { name: name.to_owned(), value: Some(value.to_owned()) },
        None => Word { name: text.to_owned(), value: None },
    }
}

fn same_name(a: &str, b: &str) -> bool {
    let fold = |byte| if byte == b'-' { b'_' } else { byte };
    a.len() == b.len() && a.bytes().map(fold).eq(b.bytes().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLATFORM: &str = "clocksource=kvm-clock i8042.noaux i8042.nokbd init=/sbin/init \
        ip=169.254.0.21::169.254.0.22:255.255.255.252:instance:eth0:off:tap0 ipv6.autoconf=1 ipv6.disable=0 \
        loglevel=1 panic=1 pci=off quiet random.trust_cpu=on reboot=k rootflags=discard root=/dev/vda rw\n";

    #[test]
    fn the_platforms_line_is_read() {
        let line = Cmdline::parse(PLATFORM);
        assert_eq!(
            line.value("ip"),
            Some("169.254.0.21::169.254.0.22:255.255.255.252:instance:eth0:off:tap0")
        );
        assert!(line.flag("rw") && line.flag("quiet") && !line.flag("ro"));
        assert_eq!(line.value("console"), None);
        assert_eq!(line.overrides().count(), 0);
    }

    #[test]
    fn the_last_value_wins_and_a_flag_is_no_value() {
        let line = Cmdline::parse("a=1 a=2 a");
        assert_eq!(line.value("a"), Some("2"));
        assert!(line.flag("a"));
    }

    #[test]
    fn quotes_keep_a_word_together_and_a_missing_one_ends_with_the_line() {
        let line = Cmdline::parse(r#"dyndbg="file x +p" last="a b"#);
        assert_eq!(line.value("dyndbg"), Some("file x +p"));
        assert_eq!(line.value("last"), Some("a b"));
    }

    #[test]
    fn overrides_are_ours_in_both_spellings() {
        let line =
            Cmdline::parse("envd_init.network.mtu=1400 envd-init.control.vsock envd_initx=1 x.envd_init.y=1");
        let overrides: Vec<_> = line.overrides().collect();
        assert_eq!(overrides, [("network.mtu", "1400"), ("control.vsock", "true")]);
    }

    #[test]
    fn a_name_cut_inside_a_character_is_passed_over() {
        assert_eq!(Cmdline::parse("envd_iniü.x=1 ééééé=2").overrides().count(), 0);
    }
}
