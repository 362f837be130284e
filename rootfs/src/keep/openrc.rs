//! Sets our `rc.conf.d` file beside the image's own OpenRC script of envd. A script is code: it is read for the few
//! things that would keep the wrapper out, and not more is claimed of it.

use super::{files::Files, merge::Merge, merge::Remark, unit::Line};
use crate::ext4::Error;

const SCRIPT: &str = "/etc/init.d/envd";
/// From this version on OpenRC mounts cgroup2 at /sys/fs/cgroup unless it is told otherwise.
const UNIFIED_SINCE: (u32, u32) = (0, 51);
const APK_INSTALLED: [&str; 2] = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];
const SETTINGS: [&str; 2] = ["/etc/rc.conf", "/etc/conf.d/envd"];

/// What becomes of the script's lines; `None` when the image has no such script.
pub(super) fn judge(files: &impl Files) -> Result<Option<Merge>, Error> {
    let Some(script) = files.text(SCRIPT)? else { return Ok(None) };
    let mut merge = Merge::default();
    let sourced = files.text("/etc/conf.d/envd")?.unwrap_or_default();
    for (file, text) in [("/etc/conf.d/envd", sourced), (SCRIPT, script)] {
        let calls_default = text.contains("default_start") || text.contains("supervise_start");
        for (index, line) in text.lines().enumerate() {
            judge_line(&mut merge, file, index + 1, line, calls_default);
        }
    }
    Ok(Some(merge))
}

/// Whether OpenRC starts it at boot.
pub(super) fn is_in_a_runlevel(files: &impl Files) -> Result<bool, Error> {
    for level in files.names("/etc/runlevels")? {
        if files.link(&format!("/etc/runlevels/{level}/envd"))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn judge_line(merge: &mut Merge, file: &str, number: usize, text: &str, calls_default: bool) {
    let remark = |key: &str, value: &str, text: &str| Remark {
        line: Line {
            file: file.into(),
            number,
            section: String::new(),
            key: key.into(),
            value: value.into(),
        },
        text: text.into(),
    };
    if is_function(text, "start") && !calls_default {
        let why =
            "has a start() of its own that does not call default_start, which is where the wrapper comes in";
        merge.refused.push(remark("start()", "", why));
    }
    let Some((key, value)) = text.split_once('=') else { return };
    let value = value.trim_matches(['"', '\'', ' ']);
    match key {
        "command" if !value.is_empty() && !plain_envd(value) => merge.limited.push(remark(
            key,
            value,
            "is passed over together with its arguments: the wrapper looks for envd itself",
        )),
        "command_user" if !matches!(value, "" | "root" | "root:root" | "0" | "0:0") => {
            merge.refused.push(remark(key, value, "the wrapper must be root, as envd is on the platform"));
        }
        "chroot" if !value.is_empty() => {
            merge.refused.push(remark(key, value, "the wrapper in /usr/lib/envd-init is not there"));
        }
        "supervisor" if value != "supervise-daemon" => {
            merge.replaced.push(remark(key, value, "replaced by supervise-daemon"));
        }
        "respawn_max" if value != "0" => {
            merge.replaced.push(remark(key, value, "replaced by 0, which is for ever"));
        }
        "respawn_period" | "retry" | "pidfile" => merge.replaced.push(remark(key, value, "replaced")),
        _ => {}
    }
}

fn plain_envd(command: &str) -> bool {
    matches!(command.rsplit('/').next(), Some("envd" | "envd.real"))
}

fn is_function(line: &str, name: &str) -> bool {
    let line = line.trim_start().trim_start_matches("function ");
    line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with("()"))
}

/// Where cgroup2 is mounted, as `rc_cgroup_mode` says; envd takes it at /sys/fs/cgroup only. `None`: all is well.
pub(super) fn cgroup_warning(files: &impl Files) -> Result<Option<String>, Error> {
    let mut mode = None;
    let mut read = |path: &str| -> Result<(), Error> {
        for line in files.text(path)?.unwrap_or_default().lines() {
            if let Some(value) = line.trim_start().strip_prefix("rc_cgroup_mode=") {
                mode = Some(value.trim_matches(['"', '\'', ' ']).to_owned());
            }
        }
        Ok(())
    };
    read(SETTINGS[0])?;
    for name in files.names("/etc/rc.conf.d")? {
        if name.ends_with(".conf") {
            read(&format!("/etc/rc.conf.d/{name}"))?;
        }
    }
    read(SETTINGS[1])?;
    Ok(match mode.as_deref() {
        Some("unified") => None,
        Some(other) => Some(format!(
            "rc_cgroup_mode={other}: cgroup2 is not at /sys/fs/cgroup, so envd goes without cgroups and a pause cannot \
             freeze the guest; set rc_cgroup_mode=unified in /etc/rc.conf"
        )),
        None if version(files)?.is_some_and(|version| version >= UNIFIED_SINCE) => None,
        None => Some(
            "rc_cgroup_mode is not set, and OpenRC before 0.51 then puts cgroup2 where envd does not look; set \
             rc_cgroup_mode=unified in /etc/rc.conf"
                .to_owned(),
        ),
    })
}

/// Of the installed package, where apk keeps the books.
fn version(files: &impl Files) -> Result<Option<(u32, u32)>, Error> {
    for path in APK_INSTALLED {
        let text = files.text(path)?.unwrap_or_default();
        let package = text.split("\n\n").find(|package| package.lines().any(|line| line == "P:openrc"));
        let version = package.and_then(|package| package.lines().find_map(|line| line.strip_prefix("V:")));
        if let Some((major, rest)) = version.and_then(|version| version.split_once('.')) {
            let minor = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            return Ok(major.parse().ok().zip(minor.parse().ok()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keep::files::fake::FakeFiles;

    fn script(text: &str) -> Merge {
        judge(&FakeFiles::default().file(SCRIPT, text)).unwrap().unwrap()
    }

    #[test]
    fn the_platforms_kind_of_script_passes_without_a_remark() {
        let text = "#!/sbin/openrc-run\nsupervisor=supervise-daemon\ncommand=/usr/bin/envd\nrespawn_max=0\n\
                    start_pre() {\n\tcheckpath -d /run/e2b\n}\n";
        assert_eq!(script(text), Merge::default());
    }

    #[test]
    fn a_start_function_of_its_own_is_refused_unless_it_calls_the_default() {
        let own = script("start() {\n\t/usr/bin/envd &\n}\n");
        assert_eq!(own.refused.len(), 1);
        assert_eq!(own.refused[0].line.number, 1);
        assert!(script("start() {\n\tdefault_start\n}\n").refused.is_empty());
    }

    #[test]
    fn other_users_and_limits_are_said_line_by_line() {
        let merge = script("command_user=\"user\"\nrespawn_max=3\ncommand=/bin/bash\n");
        assert_eq!((merge.refused[0].line.number, merge.replaced[0].line.number), (1, 2));
        assert_eq!(merge.limited[0].line.number, 3);
    }

    #[test]
    fn the_place_of_cgroup2_is_checked() {
        let files = |text: &str| FakeFiles::default().file("/etc/rc.conf", text);
        assert_eq!(cgroup_warning(&files("rc_cgroup_mode=\"unified\"\n")).unwrap(), None);
        assert!(cgroup_warning(&files("rc_cgroup_mode=hybrid\n")).unwrap().unwrap().contains("hybrid"));
        assert!(cgroup_warning(&files("#rc_cgroup_mode=unified\n")).unwrap().unwrap().contains("not set"));
        let overridden =
            files("rc_cgroup_mode=hybrid\n").file("/etc/rc.conf.d/a.conf", "rc_cgroup_mode=unified\n");
        assert_eq!(cgroup_warning(&overridden).unwrap(), None);
        let installed = |version: &str| {
            let packages = format!("P:musl\nV:1.2.5-r9\n\nP:openrc\nV:{version}\nA:x86_64\n\n");
            cgroup_warning(&FakeFiles::default().file(APK_INSTALLED[0], &packages)).unwrap()
        };
        assert!(installed("0.63-r0").is_none());
        assert!(installed("0.48.1-r2").is_some());
    }
}
