//! The command line; how programs are started is seen in the tests of `init`, whose program this is part of.

use super::{arguments::parse, *};

fn options(words: &[&str]) -> Result<arguments::Options, Error> {
    parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
}

#[test]
fn options_come_before_the_program_and_its_own_after() {
    let options =
        options(&["--user", "redis", "--runtime", "redis:2755", "--may-fail", "--", "/bin/x", "--user", "y"])
            .unwrap();
    assert_eq!((options.user.as_deref(), options.program.as_str()), (Some("redis"), "/bin/x"));
    assert_eq!(options.arguments, ["--user", "y"]);
    assert_eq!((options.folders[0].path.to_str(), options.folders[0].mode), (Some("/run/redis"), 0o2755));
    assert!(options.may_fail);
}

#[test]
fn wrong_arguments_are_named() {
    for (words, expected) in [
        (&["--user"][..], "--user takes a value"),
        (&["--user", "x"], "no `-- PROGRAM` was given"),
        (&["--"], "no program stands behind `--`"),
        (&["--nonsense", "x", "--", "y"], "there is no option --nonsense"),
        (&["--runtime", "../etc:0755", "--", "y"], "`../etc` is no name of a folder below /run"),
        (&["--runtime", "x", "--", "y"], "--runtime takes NAME:MODE"),
        (&["--umask", "9", "--", "y"], "`9` is no mode"),
    ] {
        assert_eq!(options(words).unwrap_err().to_string(), format!("{expected}; see docs/services.md"));
    }
}
