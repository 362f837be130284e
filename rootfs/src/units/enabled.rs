//! Which units would start at boot: all that `default.target` pulls in, and what generators would add.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{known, section::Section};
use crate::{
    ext4::Error,
    keep::{
        files::Files,
        unit::{self, UNIT_FOLDERS, Unit},
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Enabled {
    pub(super) name: String,
    pub(super) by: String,
}

#[derive(Debug, Default)]
pub(super) struct Units {
    pub(super) units: Vec<Enabled>,
    /// Things that are no units and would start: name, by whom, why they are lost.
    pub(super) others: Vec<(String, String, String)>,
}

impl Units {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.units.iter().any(|unit| unit.name == name)
    }
}

/// Folders of generators: programs that write units while systemd boots.
const GENERATORS: [&str; 3] = [
    "/etc/systemd/system-generators",
    "/usr/lib/systemd/system-generators",
    "/lib/systemd/system-generators",
];
const PULL_KEYS: [&str; 4] = ["Requires", "Wants", "BindsTo", "Upholds"];

pub(super) fn units(files: &impl Files) -> Result<Units, Error> {
    let mut found = Units::default();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut queue = VecDeque::from([("default.target".to_owned(), "the boot".to_owned())]);
    queue.extend(
        postgresql_clusters(files)?.into_iter().map(|name| (name, "postgresql-generator".to_owned())),
    );
    while let Some((asked, by)) = queue.pop_front() {
        let Some(name) = canonical(files, &asked)? else { continue };
        if !seen.insert(name.clone()) {
            continue;
        }
        for pulled in pulled_by(files, &asked, &name)? {
            queue.push_back((pulled, name.clone()));
        }
        found.units.push(Enabled { name, by });
    }
    found.others.extend(generators(files)?);
    found.others.extend(rc_local(files)?);
    found.others.extend(sysv_scripts(files, &found)?);
    found.others.extend(fstab(files)?);
    Ok(found)
}

/// The name of the file that a name leads to; `None` where there is no such unit or it is masked.
pub(super) fn canonical(files: &impl Files, name: &str) -> Result<Option<String>, Error> {
    let Some(mut path) = unit::find(files, name)? else { return Ok(None) };
    let mut name = name.to_owned();
    for _ in 0..8 {
        let Some(target) = files.link(&path)? else { return Ok(Some(name)) };
        if target == "/dev/null" {
            return Ok(None);
        }
        let file = target.rsplit('/').next().unwrap_or_default().to_owned();
        // An instance that is linked to its template keeps its name.
        if !file.contains("@.") {
            name.clone_from(&file);
        }
        path = match unit::find(files, &file)? {
            Some(next) if next != path => next,
            _ => return Ok(Some(name)),
        };
    }
    Ok(None)
}

fn pulled_by(files: &impl Files, asked: &str, name: &str) -> Result<Vec<String>, Error> {
    let mut pulled = Vec::new();
    if let Unit::Lines(lines) = unit::load(files, name, "")? {
        let section = Section::of(lines);
        for key in PULL_KEYS {
            pulled.extend(section.names(key).map(str::to_owned));
        }
    }
    for name in [asked, name] {
        for folder in UNIT_FOLDERS {
            for suffix in ["wants", "requires", "upholds"] {
                pulled.extend(files.names(&format!("{folder}/{name}.{suffix}"))?);
            }
        }
    }
    Ok(pulled)
}

/// What Debian's generator for PostgreSQL does: an instance for each cluster whose `start.conf` says `auto`.
fn postgresql_clusters(files: &impl Files) -> Result<Vec<String>, Error> {
    let mut instances = Vec::new();
    if !has_generator(files, "postgresql-generator")? {
        return Ok(instances);
    }
    for version in files.names("/etc/postgresql")? {
        for cluster in files.names(&format!("/etc/postgresql/{version}"))? {
            let folder = format!("/etc/postgresql/{version}/{cluster}");
            let start = files.text(&format!("{folder}/start.conf"))?.unwrap_or_else(|| "auto".into());
            let word = start
                .lines()
                .map(|line| line.split('#').next().unwrap_or_default().trim())
                .find(|word| !word.is_empty());
            if files.exists(&format!("{folder}/postgresql.conf"))? && word == Some("auto") {
                instances.push(format!("postgresql@{version}-{cluster}.service"));
            }
        }
    }
    Ok(instances)
}

fn has_generator(files: &impl Files, name: &str) -> Result<bool, Error> {
    for folder in GENERATORS {
        if files.exists(&format!("{folder}/{name}"))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Generators of others than systemd itself, whose units cannot be known before they run.
fn generators(files: &impl Files) -> Result<Vec<(String, String, String)>, Error> {
    let mut found = BTreeMap::new();
    for folder in GENERATORS {
        for name in files.names(folder)? {
            let is_known = name.starts_with("systemd-") || name == "postgresql-generator";
            if !is_known && !known::is_harmless_generator(files, &name)? {
                let why = "what a generator would write is known only when systemd runs it".to_owned();
                found.insert(name.clone(), (name, folder.to_owned(), why));
            }
        }
    }
    Ok(found.into_values().collect())
}

/// The script that systemd's own generator starts where it is executable: Debian's place, and Red Hat's.
fn rc_local(files: &impl Files) -> Result<Vec<(String, String, String)>, Error> {
    const SCRIPTS: [&str; 2] = ["/etc/rc.local", "/etc/rc.d/rc.local"];
    const GENERATOR: &str = "systemd-rc-local-generator";
    let mut found = BTreeMap::new();
    for folder in GENERATORS {
        for script in SCRIPTS {
            if files.exists(&format!("{folder}/{GENERATOR}"))? && files.is_executable(script)? {
                let why = format!("it is not run; let a oneshot of services.d run `{script} start`");
                found.insert(script, (script.to_owned(), GENERATOR.to_owned(), why));
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Scripts of /etc/rc?.d that no unit of the same name replaces.
fn sysv_scripts(files: &impl Files, found: &Units) -> Result<Vec<(String, String, String)>, Error> {
    let mut scripts = Vec::new();
    for entry in files.names("/etc/rc3.d")? {
        let Some(name) = entry.strip_prefix('S').and_then(|rest| rest.get(2..)) else { continue };
        let stem = name.strip_suffix(".sh").unwrap_or(name);
        let unit = format!("{stem}.service");
        let replaced = found.contains(&unit) || unit::find(files, &unit)?.is_some();
        if !replaced && files.exists(&format!("/etc/init.d/{name}"))? {
            let why = "scripts of /etc/init.d are not run; write a file of services.d".to_owned();
            scripts.push((format!("/etc/init.d/{name}"), "runlevel 3".to_owned(), why));
        }
    }
    Ok(scripts)
}

/// Mounts that PID 1 does not make.
pub(super) fn fstab(files: &impl Files) -> Result<Vec<(String, String, String)>, Error> {
    let text = files.text("/etc/fstab")?.unwrap_or_default();
    let mut lost = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, place, kind, options, ..] = fields.as_slice() else { continue };
        let api = ["/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run"].contains(place);
        let asked_for = options.split(',').any(|option| option == "noauto");
        if line.trim_start().starts_with('#') || api || asked_for {
            continue;
        }
        let what = if *kind == "swap" { "swap".to_owned() } else { format!("mount of {place}") };
        lost.push((
            what,
            "/etc/fstab".to_owned(),
            "fstab is not read; mount it in a oneshot of services.d".to_owned(),
        ));
    }
    Ok(lost)
}
