//! `%` specifiers, as tmpfiles.d(5), sysusers.d(5) and systemd.unit(5) have them in common.

use std::{fs, path::Path};

/// Why a text cannot be expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("%{0} is not a specifier that is known here")]
    Unknown(char),
    #[error("a % stands at the end")]
    Unfinished,
    /// Known, but this machine has no such thing (yet).
    #[error("%{0} has no value on this machine")]
    Unset(char),
}

/// Replaces each specifier by what `lookup` says; `%%` is a percent sign.
pub fn expand(text: &str, lookup: &dyn Fn(char) -> Result<String, Error>) -> Result<String, Error> {
    let mut expanded = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '%' => match chars.next().ok_or(Error::Unfinished)? {
                '%' => expanded.push('%'),
                name => expanded.push_str(&lookup(name)?),
            },
            other => expanded.push(other),
        }
    }
    Ok(expanded)
}

/// Those that mean the same on every machine, for the system's own manager.
pub fn fixed(name: char) -> Result<String, Error> {
    let value = match name {
        't' => "/run",
        'S' => "/var/lib",
        'C' => "/var/cache",
        'L' => "/var/log",
        'E' => "/etc",
        'T' => "/tmp",
        'V' => "/var/tmp",
        'h' => "/root",
        'u' | 'g' => "root",
        'U' | 'G' => "0",
        's' => "/bin/sh",
        other => return Err(Error::Unknown(other)),
    };
    Ok(value.to_owned())
}

/// All that the running machine can answer, with the files of another root.
pub fn running(root: &Path, name: char) -> Result<String, Error> {
    let file = match name {
        'm' => "etc/machine-id",
        'b' => "/proc/sys/kernel/random/boot_id",
        'H' => "/proc/sys/kernel/hostname",
        'v' => "/proc/sys/kernel/osrelease",
        other => return fixed(other),
    };
    let value = fs::read_to_string(root.join(file)).unwrap_or_default().trim().to_owned();
    let value = if matches!(name, 'm' | 'b') { value.replace('-', "") } else { value };
    if value.is_empty() || value == "uninitialized" { Err(Error::Unset(name)) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ones_are_replaced_and_others_are_named() {
        assert_eq!(expand("%t/x-100%%", &fixed), Ok("/run/x-100%".into()));
        assert_eq!(expand("/run/%q", &fixed), Err(Error::Unknown('q')));
        assert_eq!(expand("/run/%", &fixed), Err(Error::Unfinished));
        assert_eq!(expand("%b", &|name| running(Path::new("/"), name)).unwrap().len(), 32);
    }
}
