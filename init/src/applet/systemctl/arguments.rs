//! The command line of `systemctl`.

/// Options that change nothing here.
const WITHOUT_EFFECT: [&str; 8] = [
    "--no-pager",
    "--full",
    "--no-ask-password",
    "--system",
    "--no-wall",
    "--no-reload",
    "--no-warn",
    "--show-types",
];
/// The same, with a value.
const WITHOUT_EFFECT_VALUED: [&str; 3] = ["--lines", "--output", "--job-mode"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) verb: String,
    pub(super) units: Vec<String>,
    pub(super) quiet: bool,
    pub(super) no_block: bool,
    pub(super) wait: bool,
    pub(super) legend: bool,
    /// Without the column of marks.
    pub(super) plain: bool,
    /// Units that do not run as well.
    pub(super) all: bool,
    /// Only these kinds of unit, and only units of which a state is one of these; empty: each.
    pub(super) types: Vec<String>,
    pub(super) states: Vec<String>,
    /// Enabled or disabled, it is started or stopped too.
    pub(super) now: bool,
    pub(super) force: u8,
    pub(super) value_only: bool,
    pub(super) properties: Vec<String>,
}

/// An option that is none of ours: the image's own systemctl may know it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotOurs;

impl Arguments {
    pub(super) fn parse(words: &[String]) -> Result<Self, NotOurs> {
        let mut arguments = Self { legend: true, ..Self::default() };
        let mut words = words.iter().map(String::as_str);
        let mut names = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "--" => names.extend(words.by_ref().map(str::to_owned)),
                long if long.starts_with("--") => arguments.long(long, &mut words)?,
                short if short.len() > 1 && short.starts_with('-') => {
                    arguments.short(&short[1..], &mut words)?;
                }
                name => names.push(name.to_owned()),
            }
        }
        arguments.verb = if names.is_empty() { "list-units".to_owned() } else { names.remove(0) };
        arguments.units = names;
        // Until a unit has ended is waited for by nobody here.
        let waits_in_vain = arguments.wait && arguments.verb != "is-system-running";
        if waits_in_vain { Err(NotOurs) } else { Ok(arguments) }
    }

    fn long<'a>(&mut self, word: &'a str, rest: &mut impl Iterator<Item = &'a str>) -> Result<(), NotOurs> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("--quiet", None) => self.hush(),
            ("--no-block", None) => self.no_block = true,
            ("--wait", None) => self.wait = true,
            ("--no-legend", None) => self.legend = false,
            ("--plain", None) => self.plain = true,
            ("--all", None) => self.all = true,
            ("--now", None) => self.now = true,
            ("--value", None) => self.value_only = true,
            ("--force", None) => self.force += 1,
            ("--failed", None) => self.states.push("failed".to_owned()),
            (known, None) if WITHOUT_EFFECT.contains(&known) => {}
            ("--property" | "--type" | "--state", _) => {
                let value = value.or_else(|| rest.next()).ok_or(NotOurs)?;
                self.list(name).extend(value.split(',').map(str::to_owned));
            }
            (known, _) if WITHOUT_EFFECT_VALUED.contains(&known) => {
                value.or_else(|| rest.next()).ok_or(NotOurs)?;
            }
            _ => return Err(NotOurs),
        }
        Ok(())
    }

    fn list(&mut self, option: &str) -> &mut Vec<String> {
        match option {
            "--property" => &mut self.properties,
            "--type" => &mut self.types,
            _ => &mut self.states,
        }
    }

    /// `-qa`, `-p NAME` and `-pNAME`.
    fn short<'a>(&mut self, word: &'a str, rest: &mut impl Iterator<Item = &'a str>) -> Result<(), NotOurs> {
        for (at, letter) in word.char_indices() {
            let long = match letter {
                'q' => "--quiet",
                'a' => "--all",
                'l' => "--full",
                'f' => "--force",
                'p' | 'P' => "--property",
                't' => "--type",
                'n' => "--lines",
                'o' => "--output",
                _ => return Err(NotOurs),
            };
            if "qalf".contains(letter) {
                self.long(long, rest)?;
                continue;
            }
            self.value_only |= letter == 'P';
            let attached = &word[at + letter.len_utf8()..];
            let mut value = Some(attached).filter(|value| !value.is_empty()).into_iter().chain(rest);
            return self.long(long, &mut value);
        }
        Ok(())
    }

    fn hush(&mut self) {
        self.quiet = true;
        self.legend = false;
    }

    /// Prints unless told to be quiet.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, NotOurs> {
        Arguments::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn verbs_units_and_options_in_any_order() {
        let arguments = parse("--quiet is-active -n 5 envd.service --no-pager --output=cat").unwrap();
        assert_eq!((arguments.verb.as_str(), arguments.quiet), ("is-active", true));
        assert_eq!(arguments.units, ["envd.service"]);
        let arguments = parse("show -p MainPID,Id --property=NRestarts --value envd -pSubState").unwrap();
        assert_eq!(arguments.properties, ["MainPID", "Id", "NRestarts", "SubState"]);
        assert!(arguments.value_only);
        let arguments = parse("show -P MainPID -- -odd").unwrap();
        assert_eq!(
            (arguments.value_only, arguments.units.as_slice()),
            (true, ["-odd".to_owned()].as_slice())
        );
    }

    #[test]
    fn filters_of_a_list_in_each_spelling() {
        let arguments = parse("-at service --state failed,active --type=timer --failed -qff web*").unwrap();
        assert_eq!(arguments.verb, "web*");
        assert_eq!(arguments.types, ["service", "timer"]);
        assert_eq!(arguments.states, ["failed", "active", "failed"]);
        assert!(arguments.all && arguments.quiet && !arguments.legend);
        assert_eq!(arguments.force, 2);
    }

    #[test]
    fn nothing_means_a_list_and_strange_options_are_not_ours() {
        assert_eq!(parse("").unwrap().verb, "list-units");
        for line in ["--root=/x enable a", "--user start a", "-H host status", "show -p", "start --wait a"] {
            assert_eq!(parse(line), Err(NotOurs), "{line}");
        }
    }
}
