//! Kernel settings: `sysctl.d` of three folders in the order of names, `/etc/sysctl.conf`, then the configuration's own.
//!
//! As systemd-sysctl has it: of several settings of one name the last counts, and a name that is set by itself, or taken out
//! by a line `-name`, is none that a pattern sets, whichever comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use guest::{config::Boot, files, glob};
use tracing::debug;

/// Of files of one name the later folder's counts.
const FOLDERS: [&str; 3] = ["usr/lib/sysctl.d", "run/sysctl.d", "etc/sysctl.d"];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// As it was written.
    name: String,
    /// With slashes, below /proc/sys; may be a pattern.
    path: String,
    /// `None`: a name that is taken out of patterns.
    value: Option<String>,
    /// Written with a `-` before it: failures are nobody's business.
    optional: bool,
}

/// Applies all settings; the answer is what could not be.
pub(in crate::pid1) fn apply(root: &Path, config: &Boot) -> Vec<String> {
    let files = if config.sysctl { files(root) } else { Vec::new() };
    apply_all(root, files, &config.settings)
}

fn apply_all(root: &Path, files: Vec<PathBuf>, own: &BTreeMap<String, String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut settings = Vec::new();
    for file in files {
        let lines = files::read_text(&file)
            .map_or_else(|error| vec![Err(format!("it is passed over: {error}"))], |text| parse(&text));
        for line in lines {
            match line {
                Ok(setting) => settings.push((file.display().to_string(), setting)),
                Err(why) => warnings.push(format!("{}: {why}", file.display())),
            }
        }
    }
    let own = own.iter().map(|(key, value)| ("boot.settings".to_owned(), Setting::new(key, Some(value))));
    settings.extend(own);
    let named: BTreeSet<_> = settings.iter().map(|(_, setting)| setting.path.clone()).collect();
    for (origin, setting) in last_of_each(settings) {
        warnings.extend(set(root, &setting, &named).map(|why| format!("{origin}: {why}")));
    }
    warnings
}

/// In the order of those that are left.
fn last_of_each(mut settings: Vec<(String, Setting)>) -> Vec<(String, Setting)> {
    let mut seen = BTreeSet::new();
    settings.reverse();
    settings.retain(|(_, setting)| seen.insert(setting.path.clone()));
    settings.reverse();
    settings
}

/// `core_pattern` comes before all files, which may change it.
pub(in crate::pid1) fn core_pattern(pattern: &str) -> Vec<String> {
    if pattern.is_empty() {
        return Vec::new();
    }
    let outcome = fs::write("/proc/sys/kernel/core_pattern", pattern);
    outcome.err().map(|error| format!("cannot set kernel.core_pattern: {error}")).into_iter().collect()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut by_name = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "conf") {
                by_name.insert(entry.file_name(), path);
            }
        }
    }
    let main = root.join("etc/sysctl.conf");
    by_name.into_values().chain([main].into_iter().filter(|path| path.symlink_metadata().is_ok())).collect()
}

/// Each line's setting, or why it is none.
fn parse(text: &str) -> Vec<Result<Setting, String>> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']));
    lines
        .map(|(number, line)| match line.split_once('=') {
            Some((key, value)) => Ok(Setting::new(key, Some(value))),
            None if line.starts_with('-') => Ok(Setting::new(line, None)),
            None => Err(format!("line {number} is no setting: it has no '='")),
        })
        .collect()
}

impl Setting {
    fn new(key: &str, value: Option<&str>) -> Self {
        let key = key.trim();
        let name = key.strip_prefix('-').unwrap_or(key).trim();
        Self {
            name: name.to_owned(),
            path: path_of(name),
            value: value.map(|value| value.trim().to_owned()),
            optional: key.starts_with('-'),
        }
    }
}

/// `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/x`: the first separator says which is which.
fn path_of(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Why it could not be set. What is in `named` is not a pattern's to set.
fn set(root: &Path, setting: &Setting, named: &BTreeSet<String>) -> Option<String> {
    let value = setting.value.as_ref()?;
    let base = root.join("proc/sys");
    let wrong = if setting.path.split('/').any(|part| part.is_empty() || part == "..") {
        Some("this is no name of a setting".to_owned())
    } else if glob::is_pattern(&setting.path) {
        let found = glob::matches(&base, &setting.path).into_iter();
        let paths = found.map(|path| path.trim_start_matches('/').to_owned());
        paths.filter(|path| !named.contains(path)).find_map(|path| write(&base.join(path), value))
    } else {
        write(&base.join(&setting.path), value)
    };
    let wrong = wrong.map(|why| format!("cannot set {} to {value}: {why}", setting.name))?;
    if setting.optional {
        debug!("{wrong}");
        return None;
    }
    Some(wrong)
}

fn write(path: &Path, value: &str) -> Option<String> {
    match fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
    {
        Ok(()) => None,
        // A kernel built without it has nothing to set.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            debug!("this kernel has no {}", path.display());
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn files_apply_in_the_order_of_names_and_the_main_file_last() {
        let root = root(&[
            ("proc/sys/fs/a", ""),
            ("proc/sys/fs/b", ""),
            ("usr/lib/sysctl.d/50-x.conf", "fs.a = 1\nfs.b = 1\n"),
            ("etc/sysctl.d/50-x.conf", "fs.a=2\n# fs.b = 9\n; c\n"),
            ("etc/sysctl.conf", "fs.b = 3\n"),
        ]);
        let own = BTreeMap::from([("fs.a".to_owned(), "7".to_owned())]);
        assert!(apply_all(root.path(), files(root.path()), &own).is_empty());
        let value = |name: &str| fs::read_to_string(root.path().join("proc/sys/fs").join(name)).unwrap();
        assert_eq!((value("a").as_str(), value("b").as_str()), ("7", "3"));
    }

    #[test]
    fn stars_dashes_slashes_and_what_the_kernel_lacks() {
        let root = root(&[
            ("proc/sys/net/conf/eth0/x", ""),
            ("proc/sys/net/conf/lo/x", ""),
            (
                "etc/sysctl.conf",
                "net.conf.*.x = 2\n-no.such = 1\nno.such = 1\nnet/conf/lo/x=5\ngarbage\n../../etc/x = 1\n",
            ),
        ]);
        let warnings = apply_all(root.path(), files(root.path()), &BTreeMap::new());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].ends_with("line 5 is no setting: it has no '='"), "{warnings:?}");
        assert!(warnings[1].contains("cannot set ../../etc/x to 1: this is no name"), "{warnings:?}");
        let value =
            |name: &str| fs::read_to_string(root.path().join("proc/sys/net/conf").join(name)).unwrap();
        assert_eq!((value("eth0/x").as_str(), value("lo/x").as_str()), ("2", "5"));
    }

    /// A pattern that came after a name of its own overrode it, and a name that was taken out of patterns was not.
    #[test]
    fn a_name_counts_before_a_pattern_wherever_it_stands() {
        let folders = ["a0/x", "a1/x", "b/x", "lo/x"].map(|name| format!("proc/sys/net/{name}"));
        let mut files: Vec<_> = folders.iter().map(|path| (path.as_str(), "")).collect();
        files
            .push(("etc/sysctl.d/1.conf", "net.lo.x = 5\n-net.a0.x\nnet.b.x=0\nnet.b.x=1\n- net.no.x = 1\n"));
        files.push(("etc/sysctl.d/2.conf", "net.*.x = 2\nnet.a?.x = 3\nnet.[b]*.x = 4\n"));
        let root = root(&files);
        let paths = super::files(root.path());
        assert_eq!(apply_all(root.path(), paths, &BTreeMap::new()), [""; 0]);
        let value = |name: &str| fs::read_to_string(root.path().join("proc/sys/net").join(name)).unwrap();
        assert_eq!(["lo/x", "a0/x", "b/x"].map(value), ["5", "", "1"]);
        assert_eq!(value("a1/x"), "3", "of two patterns the later one counts");
    }

    #[test]
    fn the_first_separator_decides() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
    }
}
