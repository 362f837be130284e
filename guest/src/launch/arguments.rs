//! The command line of `init launch`.

use std::path::PathBuf;

use super::Error;

/// A folder that is made for the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder {
    /// `/run/redis`
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    /// The variable that names it.
    pub(super) variable: &'static str,
    /// /etc stays root's.
    pub(super) owned: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) supplementary: Vec<String>,
    pub(super) folders: Vec<Folder>,
    pub(super) environment_files: Vec<String>,
    pub(super) before: Vec<String>,
    pub(super) umask: Option<u32>,
    pub(super) stdout: Option<String>,
    pub(super) stderr: Option<String>,
    pub(super) name: Option<String>,
    pub(super) may_fail: bool,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
}

pub(super) fn parse(arguments: &[String]) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut words = arguments.iter().cloned();
    loop {
        let flag = words.next().ok_or_else(|| Error::Usage("no `-- PROGRAM` was given".into()))?;
        if flag == "--" {
            break;
        }
        if flag == "--may-fail" {
            options.may_fail = true;
            continue;
        }
        let value = words.next().ok_or_else(|| Error::Usage(format!("{flag} takes a value")))?;
        set(&mut options, &flag, value)?;
    }
    options.program = words.next().ok_or_else(|| Error::Usage("no program stands behind `--`".into()))?;
    options.arguments = words.collect();
    Ok(options)
}

fn set(options: &mut Options, flag: &str, value: String) -> Result<(), Error> {
    match flag {
        "--user" => options.user = Some(value),
        "--group" => options.group = Some(value),
        "--supplementary" => options.supplementary.extend(value.split(',').map(str::to_owned)),
        "--environment-file" => options.environment_files.push(value),
        "--before" => options.before.push(value),
        "--umask" => options.umask = Some(bits(&value)?),
        "--stdout" => options.stdout = Some(value),
        "--stderr" => options.stderr = Some(value),
        "--name" => options.name = Some(value),
        "--pid-file" => options.pid_file = Some(value.into()),
        _ => options.folders.push(folder(flag, &value)?),
    }
    Ok(())
}

fn folder(flag: &str, value: &str) -> Result<Folder, Error> {
    let (base, variable) = match flag {
        "--runtime" => ("/run", "RUNTIME_DIRECTORY"),
        "--state" => ("/var/lib", "STATE_DIRECTORY"),
        "--cache" => ("/var/cache", "CACHE_DIRECTORY"),
        "--logs" => ("/var/log", "LOGS_DIRECTORY"),
        "--configuration" => ("/etc", "CONFIGURATION_DIRECTORY"),
        _ => return Err(Error::Usage(format!("there is no option {flag}"))),
    };
    let (name, mode) =
        value.rsplit_once(':').ok_or_else(|| Error::Usage(format!("{flag} takes NAME:MODE")))?;
    let escapes = name.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if escapes {
        return Err(Error::Usage(format!("`{name}` is no name of a folder below {base}")));
    }
    Ok(Folder { path: format!("{base}/{name}").into(), mode: bits(mode)?, variable, owned: base != "/etc" })
}

fn bits(text: &str) -> Result<u32, Error> {
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
    bits.ok_or_else(|| Error::Usage(format!("`{text}` is no mode")))
}
