//! Keep mode: the image's systemd or OpenRC stays, and envd comes under the wrapper.
//!
//! | found in the image | what goes in |
//! |---|---|
//! | systemd | a drop-in of `envd.service`, a unit for the relay |
//! | OpenRC | a file in `/etc/rc.conf.d`, a script for the relay in the runlevel `default` |
//! | no service for envd | one with the platform's settings besides |
//! | another init, a masked or unfit service | nothing: refused by name, or line by line |
//!
//! Nothing of the image is replaced, so what provisioning writes afterwards (`/usr/bin/envd`, `envd.service`, the link
//! `/usr/sbin/init`) undoes nothing.

mod command;
pub mod files;
pub mod merge;
mod openrc;
pub mod recognise;
pub mod unit;

pub use recognise::Init;

use crate::{
    ext4,
    plan::{Content, Plan},
};
use files::Files;
use merge::{Merge, Remark};
use unit::Unit;

macro_rules! overlay {
    ($path:literal) => {
        ($path, include_str!(concat!("../../overlay/keep", $path)))
    };
}

/// Paths in the image, with their contents.
const DROP_IN: (&str, &str) = overlay!("/usr/lib/systemd/system/envd.service.d/zz-envd-init.conf");
const RELAY_UNIT: (&str, &str) = overlay!("/usr/lib/systemd/system/envd-init-relay.service");
const RELAY_WANTED: (&str, &str) =
    ("/usr/lib/systemd/system/sysinit.target.wants/envd-init-relay.service", "../envd-init-relay.service");
const RC_CONF: (&str, &str) = overlay!("/etc/rc.conf.d/envd-init.conf");
const RELAY_SCRIPT: (&str, &str) = overlay!("/etc/init.d/envd-init-relay");
const RELAY_RUNLEVEL: (&str, &str) =
    ("/etc/runlevels/default/envd-init-relay", "/etc/init.d/envd-init-relay");

/// For a machine that runs; in the payload alone.
const INSTALL: (&str, &str) =
    ("/usr/lib/envd-init/install.sh", include_str!("../../overlay/keep/install.sh"));

const ENVD_UNIT: (&str, &str) = (
    "/usr/lib/systemd/system/envd.service",
    include_str!("../../overlay/keep-envd/usr/lib/systemd/system/envd.service"),
);
const ENVD_WANTED: (&str, &str) =
    ("/usr/lib/systemd/system/multi-user.target.wants/envd.service", "../envd.service");
const ENVD_SCRIPT: (&str, &str) =
    ("/etc/init.d/envd", include_str!("../../overlay/keep-envd/etc/init.d/envd"));
const ENVD_RUNLEVEL: (&str, &str) = ("/etc/runlevels/default/envd", "/etc/init.d/envd");

/// The line of the drop-in that a customised command changes.
const EXEC_START: &str = "ExecStart=/usr/lib/envd-init/envd-wrapper";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] ext4::Error),
    #[error(
        "the image boots {0}; keep mode knows systemd and OpenRC. INIT=native would make our PID 1 its /sbin/init: envd, the \
         relay, the network and the services in /etc/envd-init/services.d run, and what {0} starts does not"
    )]
    OtherInit(Init),
    #[error(
        "the image has no /sbin/init, or one that leads nowhere; keep mode leaves the init to the image. INIT=native puts our PID 1 \
         there, which starts envd, the relay, the network and the services in /etc/envd-init/services.d"
    )]
    NoInit,
    #[error(
        "the image boots envd-init's own PID 1; revert it first, keep mode goes into the image as it was"
    )]
    Native,
    #[error(
        "envd.service is masked ({path} leads to /dev/null): envd would never start; unmask it, or bake another image"
    )]
    Masked { path: String },
    #[error("the image's service for envd and keep mode do not go together; change these lines:\n{}", listed(.0))]
    Service(Vec<Remark>),
}

fn listed(remarks: &[Remark]) -> String {
    remarks.iter().map(|remark| format!("  {remark}")).collect::<Vec<_>>().join("\n")
}

/// What keep mode puts into one image, and what its owner should know of it.
#[derive(Debug, Clone)]
pub struct Keep {
    pub init: Init,
    pub plan: Plan,
    /// Lines for people: what is replaced, limited or missing.
    pub notes: Vec<String>,
}

/// Plans keep mode for an image.
pub fn plan(files: &impl Files) -> Result<Keep, Error> {
    let init = recognise::recognise(files)?;
    let (plan, notes) = match &init {
        Init::Systemd => systemd(files)?,
        Init::OpenRc { .. } => openrc(files)?,
        Init::Native => return Err(Error::Native),
        Init::None => return Err(Error::NoInit),
        Init::Other { .. } => return Err(Error::OtherInit(init)),
    };
    Ok(Keep { init, plan, notes })
}

/// The pieces for both inits: what a payload carries that goes in before the image has an init at all. Each is inert under
/// the other one.
pub fn payload() -> Plan {
    let mut plan = Plan::default();
    add_systemd(&mut plan, DROP_IN.1.to_owned());
    add_openrc(&mut plan);
    plan.file(INSTALL.0, bytes(INSTALL.1), 0o755);
    plan
}

fn add_systemd(plan: &mut Plan, drop_in: String) {
    plan.file(DROP_IN.0, Content::Bytes(drop_in.into_bytes()), 0o644);
    plan.file(RELAY_UNIT.0, bytes(RELAY_UNIT.1), 0o644);
    plan.link(RELAY_WANTED.0, RELAY_WANTED.1);
}

fn add_openrc(plan: &mut Plan) {
    plan.file(RC_CONF.0, bytes(RC_CONF.1), 0o644);
    plan.file(RELAY_SCRIPT.0, bytes(RELAY_SCRIPT.1), 0o755);
    plan.link(RELAY_RUNLEVEL.0, RELAY_RUNLEVEL.1);
}

fn bytes(text: &str) -> Content {
    Content::Bytes(text.as_bytes().to_vec())
}

fn systemd(files: &impl Files) -> Result<(Plan, Vec<String>), Error> {
    let mut plan = Plan::default();
    let mut notes = Vec::new();
    let ours = DROP_IN.0.rsplit('/').next().unwrap_or_default();
    let drop_in = match unit::load(files, "envd.service", ours)? {
        Unit::Masked { path } => return Err(Error::Masked { path }),
        Unit::Absent => {
            plan.file(ENVD_UNIT.0, bytes(ENVD_UNIT.1), 0o644);
            plan.link(ENVD_WANTED.0, ENVD_WANTED.1);
            notes.push("the image has no envd.service: one with the platform's settings goes in".to_owned());
            DROP_IN.1.to_owned()
        }
        Unit::Lines(lines) => {
            if !unit::is_wanted(files, "envd.service")? {
                notes.push("envd.service is not enabled: envd will not start at boot".to_owned());
            }
            let merge = accept(merge::merge(&lines, ours), &mut notes)?;
            DROP_IN.1.replace(EXEC_START, &format!("ExecStart={}", merge.exec_start))
        }
    };
    add_systemd(&mut plan, drop_in);
    Ok((plan, notes))
}

fn openrc(files: &impl Files) -> Result<(Plan, Vec<String>), Error> {
    let mut plan = Plan::default();
    let mut notes = Vec::new();
    if let Some(merge) = openrc::judge(files)? {
        accept(merge, &mut notes)?;
        if !openrc::is_in_a_runlevel(files)? {
            notes.push("/etc/init.d/envd is in no runlevel: envd will not start at boot".to_owned());
        }
    } else {
        plan.file(ENVD_SCRIPT.0, bytes(ENVD_SCRIPT.1), 0o755);
        plan.link(ENVD_RUNLEVEL.0, ENVD_RUNLEVEL.1);
        notes.push("the image has no /etc/init.d/envd: one with the platform's settings goes in".to_owned());
    }
    notes.extend(openrc::cgroup_warning(files)?);
    add_openrc(&mut plan);
    Ok((plan, notes))
}

/// Fails on lines that do not go together with ours, and takes down the rest for the owner to read.
fn accept(merge: Merge, notes: &mut Vec<String>) -> Result<Merge, Error> {
    if !merge.refused.is_empty() {
        return Err(Error::Service(merge.refused));
    }
    notes.extend(merge.replaced.iter().chain(&merge.limited).map(ToString::to_string));
    Ok(merge)
}

#[cfg(test)]
mod tests {
    use super::{files::fake::FakeFiles, *};
    use crate::plan::What;

    const UNIT: &str = "/etc/systemd/system/envd.service";
    const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/envd.service";

    fn systemd_image() -> FakeFiles {
        FakeFiles::default().to("/sbin/init", "/lib/systemd/systemd").file("/lib/systemd/systemd", "\x7fELF")
    }

    fn contents(plan: &Plan, path: &str) -> String {
        let item = plan.items.iter().find(|item| item.path == path).unwrap_or_else(|| panic!("no {path}"));
        match &item.what {
            What::File { content, .. } => String::from_utf8(content.read().unwrap()).unwrap(),
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn the_platforms_unit_gets_the_drop_in_as_it_is() {
        let unit = include_str!("../../../tests/fixtures/keep/systemd/etc/systemd/system/envd.service");
        let keep = plan(&systemd_image().file(UNIT, unit).to(WANTED, UNIT)).unwrap();
        assert_eq!(contents(&keep.plan, DROP_IN.0), DROP_IN.1);
        assert_eq!(keep.notes, Vec::<String>::new());
        assert!(
            !keep.plan.items.iter().any(|item| item.path.ends_with("/envd.service")),
            "the unit itself stays"
        );
    }

    #[test]
    fn a_customised_command_is_merged_into_the_drop_in() {
        let keep =
            plan(&systemd_image().file(UNIT, "[Service]\nExecStart=/opt/envd -v\nRestart=no\n")).unwrap();
        let drop_in = contents(&keep.plan, DROP_IN.0);
        assert!(
            drop_in.contains(
                "ExecStart=\nExecStart=/usr/lib/envd-init/envd-wrapper --program /opt/envd -- -v\n"
            )
        );
        assert_eq!(keep.notes[0], "envd.service is not enabled: envd will not start at boot");
        assert!(keep.notes[1].contains("envd.service:3: Restart=no"));
    }

    #[test]
    fn a_service_that_does_not_fit_is_named_line_by_line() {
        let image = systemd_image().file(UNIT, "[Service]\nType=forking\nExecStart=/opt/start\n");
        let error = plan(&image).unwrap_err().to_string();
        assert!(
            error.contains("envd.service:2: Type=forking") && error.contains("envd.service:3: ExecStart="),
            "{error}"
        );
    }

    #[test]
    fn an_image_without_a_service_for_envd_gets_one() {
        let keep = plan(&systemd_image()).unwrap();
        assert!(contents(&keep.plan, ENVD_UNIT.0).contains("Delegate=yes"));
        let openrc = FakeFiles::default().to("/sbin/init", "/sbin/openrc-init").file("/sbin/openrc-init", "");
        assert!(contents(&plan(&openrc).unwrap().plan, ENVD_SCRIPT.0).contains("supervise-daemon"));
    }

    #[test]
    fn the_platforms_script_gets_the_rc_conf_as_it_is() {
        let script = include_str!("../../../tests/fixtures/keep/openrc/etc/init.d/envd");
        let image = FakeFiles::default()
            .to("/sbin/init", "/sbin/openrc-init")
            .file("/sbin/openrc-init", "")
            .file("/etc/rc.conf", "rc_cgroup_mode=unified\n")
            .file("/etc/init.d/envd", script)
            .to("/etc/runlevels/default/envd", "/etc/init.d/envd");
        let keep = plan(&image).unwrap();
        assert_eq!(contents(&keep.plan, RC_CONF.0), RC_CONF.1);
        assert_eq!(keep.notes, Vec::<String>::new());
    }

    #[test]
    fn another_init_is_refused_by_name_with_what_native_would_do() {
        let busybox = FakeFiles::default().to("/sbin/init", "/bin/busybox").file("/bin/busybox", "");
        let error = plan(&busybox).unwrap_err().to_string();
        assert!(error.contains("boots busybox (/bin/busybox)") && error.contains("INIT=native"), "{error}");
        assert!(matches!(plan(&FakeFiles::default()), Err(Error::NoInit)));
        let masked = systemd_image().to(UNIT, "/dev/null");
        assert!(matches!(plan(&masked), Err(Error::Masked { .. })));
    }

    #[test]
    fn the_payload_touches_neither_envd_nor_its_service_nor_the_init() {
        for item in payload().items {
            let taken = ["/usr/bin/envd", UNIT, "/etc/init.d/envd", "/usr/sbin/init", "/sbin/init"];
            assert!(!taken.contains(&item.path.as_str()), "provisioning writes {}", item.path);
        }
    }
}
