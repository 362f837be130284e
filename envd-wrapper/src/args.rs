//! The command line and the configuration, as one [`Settings`].

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::cmdline::Cmdline;
use guest::config::{self, Config};
use lexopt::prelude::*;

use crate::choose::Search;
use crate::{flags, shim};

/// envd's port, in every sandbox.
pub(crate) const PORT: u16 = 49983;

pub(crate) const USAGE: &str = "\
usage: envd-wrapper [run] [OPTION…] [-- ARGUMENT OF ENVD…]
  --envd PATH        this program (default: searched in /usr/bin, then /usr/local/bin)
  --config PATH      configuration (default: /etc/envd-init/config.toml)
  --port PORT        where envd listens (default: as its own -port says, else 49983)
  --cgroup FOLDER    cgroup for envd (default: the wrapper's own)
  --check            say what would run, and why
  --version, --help";

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Settings),
    /// envd itself answers, in our place, what the shim was asked.
    Ask(Settings, Vec<OsString>),
    Check(Settings),
    Print(String),
}

/// Everything that is settled before the start.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Named on the command line.
    pub(crate) program: Option<PathBuf>,
    /// Called under envd's name: the folder of that file.
    pub(crate) shim_folder: Option<PathBuf>,
    pub(crate) arguments: Vec<OsString>,
    /// Named on the command line.
    port: Option<u16>,
    pub(crate) cgroup: Option<PathBuf>,
    /// The cgroup that our own PID 1 has made for envd and us; where it is not told, ours is envd's.
    pub(crate) home: Option<PathBuf>,
    pub(crate) config: Config,
    /// The image's own init is PID 1: its service made envd's world, and the control protocol is ours to serve.
    pub(crate) kept: bool,
    /// Memory of the machine, from which envd's limit follows.
    pub(crate) memory_mib: Option<u64>,
    problems: Vec<String>,
}

impl Settings {
    /// What was wrong in the configuration and was passed over.
    pub(crate) fn tell_problems(&self) {
        for problem in &self.problems {
            tracing::warn!("{problem}");
        }
    }

    /// Where envd is put, if not where we are.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref().or(self.home.as_deref())
    }

    /// Where envd listens: as we were told, else as its own arguments tell envd.
    pub(crate) fn port(&self) -> u16 {
        self.port.or_else(|| flags::port(&self.arguments)).unwrap_or(PORT)
    }

    /// Where to look for envd.
    pub(crate) fn search(&self) -> Search {
        Search {
            named: self.program.clone(),
            shim_folder: self.shim_folder.clone(),
            configured: self.config.envd.program.clone().map(PathBuf::from),
            sha256: self.config.envd.sha256.clone(),
        }
    }

    /// From TERM to KILL, when envd is to end.
    pub(crate) fn stop_bound(&self) -> Duration {
        Duration::from_millis(self.config.envd.stop_timeout_ms)
    }

    /// Time between two liveness checks; `None`: off.
    pub(crate) fn liveness_interval(&self) -> Option<Duration> {
        let interval = self.config.envd.liveness_interval_ms;
        (interval > 0).then(|| Duration::from_millis(interval))
    }
}

/// Reads the command line; `argv[0]` decides whether this is the shim.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let called = arguments.first().map(PathBuf::from).unwrap_or_default();
    if called.file_name() == Some(OsStr::new("envd")) {
        return Ok(parse_as_envd(&called, &arguments[1..]));
    }
    parse_options(lexopt::Parser::from_iter(arguments))
}

fn parse_as_envd(called: &Path, arguments: &[OsString]) -> Command {
    let settings = shim_settings(called, arguments);
    match flags::is_question(arguments) {
        true => Command::Ask(settings, arguments.to_vec()),
        false => Command::Run(settings),
    }
}

fn parse_options(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut settings = Settings {
        program: None,
        shim_folder: None,
        arguments: Vec::new(),
        port: None,
        cgroup: None,
        home: None,
        config: Config::default(),
        kept: crate::keep::is_kept(),
        memory_mib: crate::world::memory_mib(),
        problems: Vec::new(),
    };
    let mut config = PathBuf::from(config::PATH);
    let mut check = false;
    while let Some(argument) = next(&mut parser, &mut settings)? {
        match argument {
            Given::Word(word) if word == "run" => {}
            Given::Word(word) => return Err(Value(word).unexpected()),
            Given::Config(path) => config = path,
            Given::Check => check = true,
            Given::Print(text) => return Ok(Command::Print(text)),
            Given::Settled => {}
        }
    }
    settings.load_config(&config);
    Ok(if check { Command::Check(settings) } else { Command::Run(settings) })
}

/// One thing on the command line.
enum Given {
    Word(OsString),
    Config(PathBuf),
    Check,
    Print(String),
    Settled,
}

fn next(parser: &mut lexopt::Parser, settings: &mut Settings) -> Result<Option<Given>, lexopt::Error> {
    // What follows `--` is envd's, whatever it looks like.
    if let Some(raw) = parser.try_raw_args()
        && raw.peek() == Some(OsStr::new("--"))
    {
        settings.arguments = without_handover(raw.skip(1));
        return Ok(None);
    }
    let Some(argument) = parser.next()? else { return Ok(None) };
    let given = match argument {
        Long("envd" | "program") => {
            settings.program = Some(parser.value()?.into());
            Given::Settled
        }
        Long("port") => {
            settings.port = Some(parser.value()?.parse()?);
            Given::Settled
        }
        Long("cgroup") => {
            settings.cgroup = Some(parser.value()?.into());
            Given::Settled
        }
        // How the shim calls itself again, under the wrapper's name.
        Long("shim") => {
            settings.shim_folder = Some(parser.value()?.into());
            Given::Settled
        }
        Long("config") => Given::Config(parser.value()?.into()),
        Long("check") => Given::Check,
        Long("version") => Given::Print(concat!("envd-wrapper ", env!("CARGO_PKG_VERSION")).to_owned()),
        Short('h') | Long("help") => Given::Print(USAGE.to_owned()),
        Value(word) => Given::Word(word),
        other => return Err(other.unexpected()),
    };
    Ok(Some(given))
}

fn shim_settings(called: &Path, arguments: &[OsString]) -> Settings {
    let itself = std::env::current_exe().unwrap_or_default();
    let mut settings = Settings {
        program: None,
        shim_folder: Some(shim::folder(called.as_os_str(), &itself)),
        arguments: without_handover(arguments.iter().cloned()),
        port: None,
        cgroup: None,
        home: None,
        config: Config::default(),
        kept: crate::keep::is_kept(),
        memory_mib: crate::world::memory_mib(),
        problems: Vec::new(),
    };
    settings.load_config(Path::new(config::PATH));
    settings
}

/// What a live upgrade passes to the new program; at a restart it would wait for a predecessor that is dead.
fn without_handover(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    arguments.filter(|argument| !flags::is_handover(argument)).collect()
}

impl Settings {
    fn load_config(&mut self, path: &Path) {
        let cmdline = Cmdline::of_this_machine();
        let read = config::load(path, &cmdline);
        self.config = read.value;
        self.problems = read.problems;
        if self.arguments.is_empty() {
            self.arguments = without_handover(self.config.envd.arguments.iter().map(OsString::from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Settings {
        match parse(words.iter().map(OsString::from)) {
            Ok(Command::Run(settings)) => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_behind_the_dashes_are_envds_own() {
        let settings = run(&["envd-wrapper", "run", "--envd", "/opt/envd", "--", "-verbose", "--check"]);
        assert_eq!(settings.program, Some("/opt/envd".into()));
        assert_eq!(settings.arguments, ["-verbose", "--check"]);
    }

    #[test]
    fn the_subcommand_may_be_left_out() {
        assert_eq!(run(&["envd-wrapper"]).port(), PORT);
    }

    #[test]
    fn under_envds_name_everything_is_passed_on_but_a_handover() {
        let settings =
            run(&["/usr/local/bin/envd", "-port", "1", "--resume-handover", "-resume-handover=true"]);
        assert_eq!(settings.shim_folder, Some("/usr/local/bin".into()));
        assert_eq!(settings.arguments, ["-port", "1"]);
    }

    /// It was asked at 49983, did not answer there, and was ended again and again.
    #[test]
    fn envds_own_port_is_where_it_is_asked() {
        let port = |words: &[&str]| run(words).port();
        assert_eq!(port(&["/usr/bin/envd"]), PORT);
        assert_eq!(port(&["/usr/bin/envd", "-verbose", "-port", "5"]), 5);
        assert_eq!(port(&["/usr/bin/envd", "--port=6", "-port=7"]), 7);
        assert_eq!(port(&["/usr/bin/envd", "-port", "none", "-portal=8", "--", "-port", "9"]), PORT);
        assert_eq!(port(&["envd-wrapper", "--", "-port", "5"]), 5);
        assert_eq!(port(&["envd-wrapper", "--port", "4", "--", "-port", "5"]), 4);
    }

    /// It was supervised like a server, and never returned.
    #[test]
    fn a_question_to_the_shim_is_envds_own_to_answer_word_for_word() {
        let asked = parse(["/usr/bin/envd", "-resume-handover", "--version"].iter().map(OsString::from));
        let Ok(Command::Ask(settings, arguments)) = asked else { panic!("{asked:?}") };
        assert_eq!(settings.shim_folder, Some("/usr/bin".into()));
        assert_eq!(arguments, ["-resume-handover", "--version"]);
    }

    #[test]
    fn what_nobody_knows_is_refused_by_name() {
        let error = parse(["envd-wrapper", "--frobnicate"].iter().map(OsString::from)).unwrap_err();
        assert!(error.to_string().contains("--frobnicate"));
    }
}
