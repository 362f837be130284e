//! What becomes of an image's systemd units when our PID 1 takes over.
//!
//! Every unit that would start at boot is one of four things: *shipped* (we have a definition for that program), *convertible*
//! (a simple service, turned into a file of services.d), *covered* (PID 1 does it, or it means nothing without systemd) or
//! *lost*, with the reason. Nothing is guessed: a key that changes what runs and has no counterpart makes a unit lost, a key
//! without consequence for what runs is dropped and said.

mod command;
mod condition;
mod convert;
mod enabled;
mod inittab;
mod known;
mod openrc;
mod report;
mod section;
mod service;
mod supervisors;

pub use self::report::{json, text};

use crate::{
    ext4::Error,
    keep::{Init, files::Files, recognise},
    manifest::SAVED,
    plan::{Content, Plan},
};
use service::Definition;

/// Where services of the payload lie in the image.
pub const SERVICES: &str = "/usr/lib/envd-init/services.d";

/// What becomes of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// By the definition of this name.
    Shipped { service: String },
    /// Into the service of this name; what was dropped on the way, line by line.
    Convertible { service: String, dropped: Vec<String> },
    /// How.
    Covered { how: String },
    /// Why.
    Lost { why: String },
}

impl Verdict {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Shipped { .. } => "shipped",
            Self::Convertible { .. } => "convertible",
            Self::Covered { .. } => "covered",
            Self::Lost { .. } => "lost",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub unit: String,
    /// Who pulls it in at boot, for example `multi-user.target`.
    pub by: String,
    pub verdict: Verdict,
}

/// All of an image's units that would start at boot.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// `systemd`, `OpenRC`, …
    pub init: String,
    pub reports: Vec<Report>,
    /// Services to put in, by name: their files' text.
    pub services: Vec<(String, String)>,
    /// What an owner has to know besides.
    pub warnings: Vec<String>,
}

impl Survey {
    pub fn lost(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(|report| matches!(report.verdict, Verdict::Lost { .. }))
    }

    /// Things that are no services and would start: name, by whom, why they are lost.
    fn add_lost(&mut self, others: Vec<(String, String, String)>) {
        let lost = |(unit, by, why)| Report { unit, by, verdict: Verdict::Lost { why } };
        self.reports.extend(others.into_iter().map(lost));
    }

    /// The files of services.d.
    pub fn add_to(&self, plan: &mut Plan) {
        for (name, text) in &self.services {
            plan.file(&format!("{SERVICES}/{name}.toml"), Content::Bytes(text.clone().into_bytes()), 0o644);
        }
    }
}

/// Looks at an image.
pub fn survey(files: &impl Files) -> Result<Survey, Error> {
    let init = recognise::recognise(files)?;
    let mut survey = Survey { init: init.to_string(), ..Survey::default() };
    let own = if init == Init::Native { replaced(files)? } else { init };
    let definitions = match own {
        Init::Systemd => systemd(files, &mut survey)?,
        Init::OpenRc { by } => open_rc(files, by, &mut survey)?,
        Init::Other { name, path } => {
            other(files, &name, &path, &mut survey)?;
            Vec::new()
        }
        Init::Native | Init::None => Vec::new(),
    };
    shipped(files, &mut survey, &definitions)?;
    survey.services.extend(definitions.iter().map(|definition| (definition.name.clone(), definition.toml())));
    survey.services.sort();
    host_keys(files, &mut survey)?;
    survey.reports.sort_by(|a, b| a.unit.cmp(&b.unit));
    Ok(survey)
}

/// The init of an image that boots ours by now.
fn replaced(files: &impl Files) -> Result<Init, Error> {
    if files.exists("/usr/lib/systemd/systemd")? || files.exists("/lib/systemd/systemd")? {
        return Ok(Init::Systemd);
    }
    for folder in ["/sbin", "/usr/sbin"] {
        let saved = format!("{SAVED}{folder}/init");
        // A link was moved as it is, and leads where it led from its old place.
        let path = match files.link(&saved)? {
            Some(target) if target.starts_with('/') => target,
            Some(target) => format!("{folder}/{target}"),
            None => saved,
        };
        match recognise::recognise_at(files, &path)? {
            Init::None | Init::Native => (),
            init => return Ok(init),
        }
    }
    Ok(if files.exists("/sbin/openrc")? { Init::OpenRc { by: "openrc-init" } } else { Init::None })
}

fn systemd(files: &impl Files, survey: &mut Survey) -> Result<Vec<Definition>, Error> {
    let enabled = enabled::units(files)?;
    let mut definitions = Vec::new();
    for unit in &enabled.units {
        let Some(verdict) = convert::judge(files, &enabled, &unit.name, &mut definitions)? else { continue };
        survey.reports.push(Report { unit: unit.name.clone(), by: unit.by.clone(), verdict });
    }
    survey.add_lost(enabled.others);
    convert::order(&mut definitions, &mut survey.reports);
    Ok(definitions)
}

fn open_rc(files: &impl Files, by: &str, survey: &mut Survey) -> Result<Vec<Definition>, Error> {
    let mut definitions = Vec::new();
    if by != "openrc-init" {
        survey.reports.extend(inittab::own_commands(files)?);
    }
    survey.reports.extend(openrc::reports(files, &mut definitions)?);
    survey.add_lost(enabled::fstab(files)?);
    convert::order(&mut definitions, &mut survey.reports);
    Ok(definitions)
}

/// Nothing of these is turned: their services are programs, or not to be known.
fn other(files: &impl Files, init: &str, path: &str, survey: &mut Survey) -> Result<(), Error> {
    survey.reports = match init {
        "sysvinit" | "busybox" => inittab::reports(files)?,
        _ => supervisors::reports(files, init, path)?,
    };
    survey.add_lost(enabled::fstab(files)?);
    Ok(())
}

/// The shipped definitions, each unless the image's owner has turned its unit off.
fn shipped(files: &impl Files, survey: &mut Survey, definitions: &[Definition]) -> Result<(), Error> {
    let has_systemd = survey.init == "systemd";
    for (name, text, units) in known::SHIPPED {
        // One that was turned from the image's own unit takes the place of ours, which has nothing to start here.
        if definitions.iter().any(|definition| definition.name == *name) {
            continue;
        }
        let wanted = survey.reports.iter().any(|report| units.contains(&report.unit.as_str()));
        let mut text = (*text).to_owned();
        let needed = definitions.iter().any(|definition| definition.needs.iter().any(|need| need == name));
        if *name == "dbus" && needed {
            text = text.replace("enabled = false", "enabled = true");
        }
        if has_systemd && !wanted && known::is_installed(files, units)? {
            let off = "# Its unit is installed and not enabled in this image.\n";
            survey.warnings.push(format!("{name} is installed, and its unit is not enabled: it stays off"));
            text = if text.contains("enabled = ") {
                off.to_owned() + &text
            } else {
                format!("{off}enabled = false\n{text}")
            };
        }
        survey.services.push(((*name).to_owned(), text));
    }
    Ok(())
}

fn host_keys(files: &impl Files, survey: &mut Survey) -> Result<(), Error> {
    let names = files.names("/etc/ssh")?;
    let keys = names.iter().filter(|name| name.starts_with("ssh_host_") && name.ends_with("_key")).count();
    if keys > 0 {
        survey.warnings.push(format!(
            "{keys} ssh host keys are in the image, the same for every sandbox; remove /etc/ssh/ssh_host_*_key: they are made at sshd's \
             first start"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
