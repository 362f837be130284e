//! The files of units: `cat`, and what is said to those who want to change them.

use std::path::{Path, PathBuf};

use guest::{
    control::Status,
    files,
    service::load::{self, OWN, SHIPPED},
};

use super::{
    arguments::Arguments,
    units::{self, Unit, full_name},
};
use crate::service_name;

fn own(name: &str) -> String {
    format!("{OWN}/{name}.toml")
}

fn shipped(name: &str) -> String {
    format!("{SHIPPED}/{name}.toml")
}

/// The file that says what a unit is; the image owner's comes first.
fn file_of(unit: &str) -> Option<PathBuf> {
    let names = service_name::candidates(&units::our_name(unit));
    let paths = names.iter().flat_map(|name| [own(name), shipped(name)]).map(PathBuf::from);
    paths.into_iter().find(|path| path.exists())
}

pub(super) fn is_there(unit: &str) -> bool {
    file_of(unit).is_some()
}

/// `systemctl cat UNIT…`
pub(super) fn cat(names: &[String]) -> u8 {
    let mut code = 0;
    for (at, name) in names.iter().enumerate() {
        let Some(path) = file_of(name) else {
            eprintln!("No files found for {}.", full_name(name));
            code = 1;
            continue;
        };
        match files::read_text(&path) {
            Ok(text) => {
                let blank = if at > 0 { "\n" } else { "" };
                print!("{blank}# {}\n{text}{}", path.display(), if text.ends_with('\n') { "" } else { "\n" });
            }
            Err(error) => {
                eprintln!("systemctl: cannot read {}: {error}", path.display());
                code = 1;
            }
        }
    }
    code
}

/// Files are their owner's: what is so already is well, anything else is refused with what to do.
pub(super) fn change(arguments: &Arguments, status: &Status) -> u8 {
    let verb = arguments.verb.as_str();
    let so_already = |unit: Unit<'_>| match verb {
        "enable" => unit.file_state() == "enabled",
        "disable" => unit.file_state() == "disabled",
        verb => verb == "unmask",
    };
    let refused: Vec<_> = arguments
        .units
        .iter()
        .filter(|name| Unit::find(status, name).is_none_or(|unit| !so_already(unit)))
        .collect();
    for unit in &refused {
        let found = Unit::find(status, unit).map(|unit| unit.service.name.clone());
        let name = found.unwrap_or_else(|| units::our_name(unit));
        let advice = advice(verb, &name, Path::new(&own(&name)).exists());
        eprintln!("Failed to {verb} {}: envd-init changes no files; {advice}", full_name(unit));
    }
    u8::from(!refused.is_empty())
}

/// A file of the owner's takes the place of a shipped one as a whole.
fn advice(verb: &str, name: &str, has_own: bool) -> String {
    let (own, shipped, flag) = (own(name), shipped(name), verb == "enable");
    match verb {
        "disable" | "mask" if load::is_indispensable(name) => {
            format!("and without {name} nobody reaches this machine, so that no file turns it off")
        }
        "mask" => format!("make {own} a link to /dev/null"),
        _ if has_own => format!("put `enabled = {flag}` into {own}"),
        _ => format!("copy {shipped} to {own} and put `enabled = {flag}` there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line in a file of one's own would have been all of the service: it has no command then, and the shipped one runs.
    #[test]
    fn who_has_no_file_of_his_own_is_told_to_copy_the_shipped_one() {
        let shipped = advice("disable", "cron", false);
        assert!(shipped.starts_with("copy /usr/lib/envd-init/services.d/cron.toml to "), "{shipped}");
        assert!(shipped.ends_with("put `enabled = false` there"), "{shipped}");
        let own = "put `enabled = true` into /etc/envd-init/services.d/web.toml";
        assert_eq!(advice("enable", "web", true), own);
        assert!(advice("mask", "web", true).ends_with("a link to /dev/null"));
        assert!(!advice("disable", "envd", true).contains("enabled"));
    }
}
