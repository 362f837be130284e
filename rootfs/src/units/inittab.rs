//! What /etc/inittab starts, for busybox's init and for sysvinit: its own commands, and through `rc` the scripts of /etc/init.d.

use std::collections::BTreeSet;

use super::{Report, Verdict, known, openrc};
use crate::{ext4::Error, keep::files::Files};

const INITTAB: &str = "/etc/inittab";
/// What busybox's init runs where there is no inittab.
const RC_S: &str = "/etc/init.d/rcS";

/// Actions that run a command at boot; those of shutdown, power and keys have PID 1's own answers.
const AT_BOOT: [&str; 7] = ["sysinit", "boot", "bootwait", "wait", "once", "respawn", "askfirst"];
/// Of these actions the runlevels are not looked at.
const IN_ANY_LEVEL: [&str; 3] = ["sysinit", "boot", "bootwait"];
/// Runlevels of a machine that runs, where no line names the one to enter.
const RUNNING: &str = "2345";

const GETTY: &str = "a getty runs on request only (systemctl start getty)";
const LOGINS: [&str; 9] = ["getty", "agetty", "mingetty", "sulogin", "login", "sh", "ash", "bash", "fbgetty"];
const SETUP: &str = "PID 1 does this at its start; lines of fstab are named by themselves";
const STEPS: [&str; 3] = ["mount", "swapon", "hostname"];

/// Scripts of Debian's, Red Hat's and buildroot's sysvinit that have no namesake in OpenRC.
const COVERED: &[(&str, &str)] = &[
    ("mount*", SETUP),
    ("umountfs", SETUP),
    ("check*", "images are checked when they are baked"),
    ("bootlog*", "what services print goes to the log ring (envdctl logs)"),
    ("stop-bootlogd*", "what services print goes to the log ring (envdctl logs)"),
    ("motd", "nobody logs in"),
    ("rmnologin", "logins are never held back"),
    ("procps", "PID 1 applies sysctl.d"),
    ("eudev", "the kernel makes the device nodes; sandboxes have no hotplug"),
    ("kmod", "the platform's kernel has no modules"),
    ("module-init-tools", "the platform's kernel has no modules"),
    ("network", "PID 1 sets up lo and eth0"),
    ("ifupdown*", "PID 1 sets up lo and eth0"),
    ("console-*", "sandboxes have no screen"),
    ("keyboard-setup", "sandboxes have no screen"),
    ("hwclock*", "PID 1 sets the clock from /dev/ptp0"),
    ("sudo", "what it clears lies in /run, which is empty at boot"),
    ("lvm2*", "sandboxes have no LVM"),
];

struct Line {
    levels: String,
    action: String,
    command: String,
}

/// What the lines start besides OpenRC itself.
pub(super) fn own_commands(files: &impl Files) -> Result<Vec<Report>, Error> {
    let lines = at_boot(files)?;
    Ok(lines.iter().filter(|line| calls(&line.command).is_none()).map(command).collect())
}

/// All that they start, scripts and fitting runlevels included.
pub(super) fn reports(files: &impl Files) -> Result<Vec<Report>, Error> {
    let mut reports = Vec::new();
    let mut seen = BTreeSet::new();
    for line in at_boot(files)? {
        match calls(&line.command) {
            None => reports.push(command(&line)),
            Some(level) => scripts(files, &level, &mut seen, &mut reports)?,
        }
    }
    Ok(reports)
}

fn at_boot(files: &impl Files) -> Result<Vec<Line>, Error> {
    let default = format!("::sysinit:{RC_S}");
    let text = files.text(INITTAB)?.unwrap_or(default);
    let lines: Vec<Line> = text.lines().filter_map(parse).collect();
    let entered = lines
        .iter()
        .find(|line| line.action == "initdefault")
        .map_or(RUNNING, |line| line.levels.as_str())
        .to_owned();
    let starts = |line: &Line| {
        let in_level = line.levels.is_empty() || line.levels.contains(|level| entered.contains(level));
        AT_BOOT.contains(&line.action.as_str()) && (in_level || IN_ANY_LEVEL.contains(&line.action.as_str()))
    };
    Ok(lines.into_iter().filter(starts).collect())
}

/// `id:runlevels:action:command`, as both of them read it.
fn parse(line: &str) -> Option<Line> {
    let line = line.trim();
    let mut fields = line.splitn(4, ':');
    let (id, levels, action) = (fields.next()?, fields.next()?, fields.next()?);
    let command = fields.next().unwrap_or_default().trim().trim_start_matches('+');
    let line = Line { levels: levels.to_owned(), action: action.to_owned(), command: command.to_owned() };
    (!id.starts_with('#')).then_some(line)
}

/// The runlevel whose services a command starts: of `rc 2` it is `2`, of `rcS` it is `S`, of `openrc boot` it is `boot`.
fn calls(command: &str) -> Option<String> {
    let mut words = command.split_whitespace().skip_while(|word| ["/bin/sh", "sh"].contains(word));
    let (program, level) = (words.next()?, words.next().unwrap_or_default());
    match base(program) {
        "rcS" => Some("S".to_owned()),
        "rc" | "openrc" => Some(level.to_owned()),
        _ => None,
    }
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or_default()
}

fn command(line: &Line) -> Report {
    let program = base(line.command.split_whitespace().next().unwrap_or_default().trim_start_matches('-'));
    let makes_api = ["mkdir", "ln"].contains(&program)
        && line.command.split_whitespace().skip(1).any(|word| word.starts_with("/dev/"));
    let verdict = if LOGINS.contains(&program) {
        Verdict::Covered { how: GETTY.to_owned() }
    } else if STEPS.contains(&program) || makes_api {
        Verdict::Covered { how: SETUP.to_owned() }
    } else {
        Verdict::Lost { why: format!("{INITTAB} is not read; write a file of services.d") }
    };
    Report { unit: line.command.clone(), by: INITTAB.to_owned(), verdict }
}

fn scripts(
    files: &impl Files,
    level: &str,
    seen: &mut BTreeSet<String>,
    reports: &mut Vec<Report>,
) -> Result<(), Error> {
    let mut folders = vec![format!("/etc/rc{level}.d"), format!("/etc/rc.d/rc{level}.d")];
    if level == "S" && files.exists(RC_S)? {
        folders.push("/etc/init.d".to_owned()); // buildroot's rcS runs those that are numbered there
    }
    let mut found = false;
    for folder in folders {
        for entry in files.names(&folder)? {
            let Some(name) = numbered(&entry) else { continue };
            found = true;
            if files.exists(&format!("{folder}/{entry}"))? && seen.insert(name.to_owned()) {
                let by = format!("runlevel {level}");
                let unit = format!("/etc/init.d/{}", if folder == "/etc/init.d" { &entry } else { name });
                reports.push(Report { unit, by, verdict: script(files, name)? });
            }
        }
    }
    if level == "S" && !found && files.exists(RC_S)? && seen.insert(RC_S.to_owned()) {
        let why = "it is not run, and what it starts is not known here; write a file of services.d";
        let verdict = Verdict::Lost { why: why.to_owned() };
        reports.push(Report { unit: RC_S.to_owned(), by: INITTAB.to_owned(), verdict });
    }
    Ok(())
}

/// The name in `S20name`.
fn numbered(entry: &str) -> Option<&str> {
    let (digits, name) = entry.strip_prefix('S')?.split_at_checked(2)?;
    (digits.bytes().all(|digit| digit.is_ascii_digit()) && !name.is_empty()).then_some(name)
}

fn script(files: &impl Files, name: &str) -> Result<Verdict, Error> {
    let stem = name.strip_suffix(".sh").unwrap_or(name);
    if let Some(service) = known::shipped_for(files, &format!("{stem}.service"))? {
        return Ok(Verdict::Shipped { service: service.to_owned() });
    }
    if matches!(stem, "rc.local" | "local") {
        return rc_local(files);
    }
    let own = COVERED.iter().find(|(pattern, _)| known::matches(pattern, stem)).map(|(_, how)| *how);
    Ok(match own.or_else(|| openrc::covered(stem)) {
        Some(how) => Verdict::Covered { how: how.to_owned() },
        None => {
            Verdict::Lost { why: "scripts of /etc/init.d are not run; write a file of services.d".to_owned() }
        }
    })
}

fn rc_local(files: &impl Files) -> Result<Verdict, Error> {
    const SCRIPT: &str = "/etc/rc.local";
    Ok(if files.is_executable(SCRIPT)? {
        let why = format!("{SCRIPT} is not run; let a oneshot of services.d run `{SCRIPT} start`");
        Verdict::Lost { why }
    } else {
        Verdict::Covered { how: format!("there is no {SCRIPT} to run") }
    })
}
