//! Kernel settings: `sysctl.d` of three folders in the order of names, `/etc/sysctl.conf`, then the configuration's own.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use guest::{config::Boot, files};
use tracing::debug;

/// Of files of one name the later folder's counts.
const FOLDERS: [&str; 3] = ["usr/lib/sysctl.d", "run/sysctl.d", "etc/sysctl.d"];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// As it was written.
    name: String,
    /// With slashes, below /proc/sys; may hold `*`.
    path: String,
    value: String,
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
    for file in files {
        let settings = match files::read_text(&file) {
            Ok(text) => parse(&text),
            Err(error) => vec![Err(format!("it is passed over: {error}"))],
        };
        let wrong = settings
            .into_iter()
            .filter_map(|setting| setting.map_or_else(Some, |setting| set(root, &setting)));
        warnings.extend(wrong.map(|why| format!("{}: {why}", file.display())));
    }
    for (key, value) in own {
        warnings.extend(set(root, &Setting::new(key, value)).map(|why| format!("boot.settings: {why}")));
    }
    warnings
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

/// Each line's setting, or why it is none. A name alone with a `-` before it takes that name out of the `*` of other lines
/// under systemd; here it means nothing.
fn parse(text: &str) -> Vec<Result<Setting, String>> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']));
    lines
        .filter_map(|(number, line)| match line.split_once('=') {
            Some((key, value)) => Some(Ok(Setting::new(key.trim(), value.trim()))),
            None if line.starts_with('-') => None,
            None => Some(Err(format!("line {number} is no setting: it has no '='"))),
        })
        .collect()
}

impl Setting {
    fn new(key: &str, value: &str) -> Self {
        let name = key.trim_start_matches('-');
        Self {
            name: name.to_owned(),
            path: path_of(name),
            value: value.to_owned(),
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

fn set(root: &Path, setting: &Setting) -> Option<String> {
    let good = !setting.path.split('/').any(|part| part.is_empty() || part == "..");
    let base = root.join("proc/sys");
    let targets = if good { expand(&base, &setting.path) } else { Vec::new() };
    let wrong = if good {
        targets.iter().find_map(|target| write(target, &setting.value))
    } else {
        Some("this is no name of a setting".to_owned())
    };
    let wrong = wrong.map(|why| format!("cannot set {} to {}: {why}", setting.name, setting.value))?;
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

/// Replaces a part that is `*` by every name there is.
fn expand(base: &Path, key: &str) -> Vec<PathBuf> {
    let mut paths = vec![base.to_owned()];
    for part in key.split('/') {
        paths = if part.contains('*') {
            paths.iter().flat_map(|path| matching(path, part)).collect()
        } else {
            paths.into_iter().map(|path| path.join(part)).collect()
        };
    }
    paths
}

fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let (before, after) = pattern.split_once('*').unwrap_or((pattern, ""));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let fits = |name: &str| {
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    entries.filter(|entry| fits(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
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
                "net.conf.*.x = 2\n-no.such = 1\nno.such = 1\nnet/conf/lo/x=5\ngarbage\n../../etc/x = 1\n-net.conf.lo.x\n",
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

    #[test]
    fn the_first_separator_decides() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
    }
}
