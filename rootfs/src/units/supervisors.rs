//! Images whose init is neither systemd nor OpenRC nor one with an inittab: their services by name where a folder lists them,
//! else the init itself, since nobody knows what it starts.

use std::collections::BTreeSet;

use super::{Report, Verdict, known};
use crate::{ext4::Error, keep::files::Files};

/// Inits that start what lies in a folder, one folder or link for each service.
const LISTED: &[(&str, &[&str])] = &[
    ("runit", &["/etc/runit/runsvdir/default", "/etc/service", "/service", "/var/service"]),
    ("s6-linux-init", S6),
    ("s6-svscan", S6),
];
/// What s6-svscan starts, and the long-running services of s6-rc.
const S6: &[&str] = &[
    "/etc/s6-linux-init/current/run-image/service",
    "/etc/s6-rc/compiled/servicedirs",
    "/etc/s6/rc/compiled/servicedirs",
];
const OF_S6: &str = "means nothing without s6";
const COVERED: &[(&str, &str)] = &[
    ("agetty*", "a getty runs on request only (systemctl start getty)"),
    ("getty*", "a getty runs on request only (systemctl start getty)"),
    ("sulogin", "a getty runs on request only (systemctl start getty)"),
    ("udev*", "the kernel makes the device nodes; sandboxes have no hotplug"),
    ("envd", "envd runs under envd-wrapper"),
    ("s6-*", OF_S6),
    ("s6rc-*", OF_S6),
];

/// What `init` starts, which is at `path`.
pub(super) fn reports(files: &impl Files, init: &str, path: &str) -> Result<Vec<Report>, Error> {
    let folders = LISTED.iter().find(|(name, _)| *name == init).map_or(&[][..], |(_, folders)| folders);
    let mut reports = Vec::new();
    let (mut listed, mut seen) = (false, BTreeSet::new());
    for folder in folders {
        listed |= files.exists(folder)?;
        for name in files.names(folder)? {
            if starts(files, &format!("{folder}/{name}"))? && seen.insert(name.clone()) {
                let verdict = judge(files, init, &name)?;
                reports.push(Report { unit: name, by: (*folder).to_owned(), verdict });
            }
        }
    }
    if !listed {
        let why = format!("what {init} starts is not known here; write files of services.d");
        let verdict = Verdict::Lost { why };
        reports.push(Report { unit: path.to_owned(), by: "the boot".to_owned(), verdict });
    }
    Ok(reports)
}

fn starts(files: &impl Files, service: &str) -> Result<bool, Error> {
    Ok(files.exists(&format!("{service}/run"))? && !files.exists(&format!("{service}/down"))?)
}

fn judge(files: &impl Files, init: &str, name: &str) -> Result<Verdict, Error> {
    if let Some(service) = known::shipped_for(files, &format!("{name}.service"))? {
        return Ok(Verdict::Shipped { service: service.to_owned() });
    }
    let covered = COVERED.iter().find(|(pattern, _)| known::matches(pattern, name));
    Ok(match covered {
        Some((_, how)) => Verdict::Covered { how: (*how).to_owned() },
        None => Verdict::Lost {
            why: format!(
                "services of {init} are not run; write a file of services.d, whose command may be its `run`"
            ),
        },
    })
}
