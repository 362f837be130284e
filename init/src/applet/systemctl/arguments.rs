//! The command line of `systemctl`.

/// Options that change nothing here.
const WITHOUT_EFFECT: [&str; 14] = [
    "--no-pager",
    "--no-legend",
    "--plain",
    "--full",
    "-l",
    "--no-ask-password",
    "--system",
    "--no-wall",
    "--wait",
    "--all",
    "-a",
    "--no-reload",
    "--force",
    "-f",
];
/// The same, with a value.
const WITHOUT_EFFECT_VALUED: [&str; 6] = ["-n", "--lines", "-o", "--output", "-t", "--type"];

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) verb: String,
    pub(super) units: Vec<String>,
    pub(super) quiet: bool,
    pub(super) no_block: bool,
    pub(super) legend: bool,
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
                "-q" | "--quiet" => arguments.quiet = true,
                "--no-block" => arguments.no_block = true,
                "--no-legend" => arguments.legend = false,
                "--value" => arguments.value_only = true,
                "-p" | "--property" => arguments.add_properties(words.next().ok_or(NotOurs)?),
                known if WITHOUT_EFFECT.contains(&known) => {}
                known if WITHOUT_EFFECT_VALUED.contains(&known) => {
                    words.next().ok_or(NotOurs)?;
                }
                option if option.starts_with('-') => arguments.long(option)?,
                name => names.push(name.to_owned()),
            }
        }
        arguments.verb = if names.is_empty() { "list-units".to_owned() } else { names.remove(0) };
        arguments.units = names;
        Ok(arguments)
    }

    /// `--option=value`, and `-pValue`.
    fn long(&mut self, option: &str) -> Result<(), NotOurs> {
        match option.split_once('=') {
            Some(("--property", value)) => self.add_properties(value),
            Some((name, _)) if WITHOUT_EFFECT_VALUED.contains(&name) => {}
            None if option.starts_with("-p") => self.add_properties(&option[2..]),
            _ => return Err(NotOurs),
        }
        Ok(())
    }

    fn add_properties(&mut self, list: &str) {
        self.properties.extend(list.split(',').map(str::to_owned));
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
    }

    #[test]
    fn nothing_means_a_list_and_strange_options_are_not_ours() {
        assert_eq!(parse("").unwrap().verb, "list-units");
        for line in ["--root=/x enable a", "--user start a", "-H host status", "show -p"] {
            assert_eq!(parse(line), Err(NotOurs), "{line}");
        }
    }
}
