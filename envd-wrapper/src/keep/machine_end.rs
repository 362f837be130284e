//! Reboot, poweroff and halt in keep mode: the image's own programs do it, and the image's init ends its services.

use std::path::{Path, PathBuf};

use guest::control::server::error;
use guest::control::{Reply, ShutdownKind};
use guest::spawn::{self, Output, Program};
use tracing::{error as log_error, info};

const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Starts what ends the machine.
pub(super) fn ask(kind: ShutdownKind) -> Reply {
    let name = match kind {
        ShutdownKind::Reboot => "reboot",
        ShutdownKind::Poweroff => "poweroff",
        ShutdownKind::Halt => "halt",
    };
    let Some((path, arguments)) = program(name) else {
        return error("failed", format!("the image has no program {name} and no openrc-shutdown"));
    };
    info!("{name} asked for over the control socket: {}", path.display());
    let arguments = arguments.into_iter().map(Into::into).collect();
    let environment = std::env::vars_os().collect();
    match spawn::spawn(&Program { path, arguments, environment, output: Output::Null, ..Program::default() })
    {
        Ok(_) => Reply::Done,
        Err(why) => {
            log_error!("{why}");
            error("failed", why.to_string())
        }
    }
}

fn program(name: &str) -> Option<(PathBuf, Vec<String>)> {
    let find =
        |name: &str| FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    // openrc-init understands its own program only, even where another init's `reboot` lies beside it.
    let openrc_init = std::fs::read_link("/proc/1/exe").is_ok_and(|exe| exe.ends_with("openrc-init"));
    let openrc = || find("openrc-shutdown").map(|path| (path, vec![format!("--{name}"), "now".to_owned()]));
    if openrc_init {
        return openrc();
    }
    find(name).map(|path| (path, Vec::new())).or_else(openrc)
}
