//! Who this machine is: hostname, machine-id, /etc/hosts, /etc/resolv.conf.

use std::{fs, io, net::Ipv4Addr, os::unix::fs::symlink, path::Path};

use guest::{config::is_hostname, files};
use nix::{
    mount::{MsFlags, mount},
    unistd::sethostname,
};

/// Covers an /etc/machine-id that cannot be written; systemd's own place for it.
const MACHINE_ID: &str = "/run/machine-id";
/// Another one at each look.
const UUID: &str = "/proc/sys/kernel/random/uuid";
/// The file that a missing /etc/resolv.conf is made to point at.
const RESOLV: &str = "/run/envd-init/resolv.conf";

/// From the configuration, else `/etc/hostname`, else `ip=`, else the platform's.
pub(in crate::pid1) fn hostname(configured: Option<&str>, from_ip: Option<&str>) -> Vec<String> {
    let (file, mut warnings) = match files::read_text(Path::new("/etc/hostname")) {
        Ok(text) => (text, Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), Vec::new()),
        Err(error) => (String::new(), vec![format!("/etc/hostname is passed over: {error}")]),
    };
    let (name, refused) = choose_hostname(configured, &file, from_ip);
    warnings.extend(refused);
    let outcome = sethostname(&name);
    warnings.extend(outcome.err().map(|error| format!("cannot set the host name {name}: {}", error.desc())));
    warnings
}

/// The name, and what was passed over on the way to it.
fn choose_hostname(configured: Option<&str>, file: &str, from_ip: Option<&str>) -> (String, Vec<String>) {
    let in_file = file.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let mut refused = Vec::new();
    for (name, place) in [(configured, "boot.hostname"), (in_file, "/etc/hostname"), (from_ip, "ip=")] {
        match name {
            Some(name) if is_hostname(name) => return (name.to_owned(), refused),
            Some(_) => refused.push(format!("{place} is passed over: it holds no host name")),
            None => {}
        }
    }
    ("e2b.local".to_owned(), refused)
}

/// The one thing that is ever written to the root file system, and once: provisioning has deleted it. Where that cannot be
/// written, a file that is there gets one for this boot.
pub(in crate::pid1) fn machine_id(root: &Path) -> Vec<String> {
    let path = root.join("etc/machine-id");
    if files::read_text(&path).is_ok_and(|text| is_machine_id(text.trim())) {
        return Vec::new();
    }
    // The kernel's own generator: it differs for each boot, and asking never waits.
    let id = match fs::read_to_string(UUID) {
        Ok(uuid) => uuid.replace('-', ""),
        Err(error) => return vec![format!("there is no machine-id: cannot read {UUID}: {error}")],
    };
    let outcome = files::write_text(&path, &id).or_else(|why| cover(&path, &id).map_err(|_| why));
    outcome.err().map(|error| format!("cannot write {}: {error}", path.display())).into_iter().collect()
}

/// Mounts a file of /run over one that cannot be written.
fn cover(path: &Path, text: &str) -> io::Result<()> {
    files::write_text(Path::new(MACHINE_ID), text)?;
    mount(Some(MACHINE_ID), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// envd forwards ports to `localhost`: without the name its forwarding is broken.
pub(in crate::pid1) fn hosts(root: &Path) -> Vec<String> {
    let text = files::read_text(&root.join("etc/hosts")).unwrap_or_default();
    if knows_localhost(&text) {
        return Vec::new();
    }
    vec![
        "/etc/hosts does not name localhost: envd cannot forward ports; add the line 127.0.0.1 localhost"
            .to_owned(),
    ]
}

fn knows_localhost(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.next().is_some_and(|address| address == "127.0.0.1" || address == "::1")
            && words.any(|name| name == "localhost")
    })
}

/// Name servers of `ip=` or the configuration, only where the image has none: what is written lies under /run, and
/// `/etc/resolv.conf` becomes a link to it where it is absent.
pub(in crate::pid1) fn resolver(root: &Path, servers: &[Ipv4Addr]) -> Vec<String> {
    let path = root.join("etc/resolv.conf");
    let has_one =
        files::read_text(&path).is_ok_and(|text| text.lines().any(|line| line.starts_with("nameserver")));
    if servers.is_empty() || has_one {
        return Vec::new();
    }
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let write = || -> io::Result<()> {
        let resolv = root.join(RESOLV.trim_start_matches('/'));
        fs::create_dir_all(resolv.parent().unwrap_or(root))?;
        fs::write(resolv, &text)?;
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => symlink(RESOLV, &path),
            // A link into /run that leads nowhere yet is filled there; the image's own empty file stays as it is.
            Ok(about) if about.is_symlink() => write_target(&path, &text),
            _ => Ok(()),
        }
    };
    write()
        .err()
        .map(|error| format!("cannot name the servers of /etc/resolv.conf: {error}"))
        .into_iter()
        .collect()
}

fn write_target(link: &Path, text: &str) -> io::Result<()> {
    let target = link.parent().unwrap_or(Path::new("/")).join(fs::read_link(link)?);
    let lexical: std::path::PathBuf =
        target.components().fold(std::path::PathBuf::new(), |mut path, part| {
            if part == std::path::Component::ParentDir {
                path.pop();
            } else {
                path.push(part);
            }
            path
        });
    if !lexical.starts_with("/run") || lexical == Path::new(RESOLV) {
        return Ok(());
    }
    fs::create_dir_all(lexical.parent().unwrap_or(Path::new("/run")))?;
    fs::write(lexical, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        dir
    }

    #[test]
    fn the_first_usable_hostname_counts() {
        let chosen = |configured, file: &str, from_ip| choose_hostname(configured, file, from_ip).0;
        assert_eq!(chosen(None, "# c\n\n e2b.local \n", Some("instance")), "e2b.local");
        assert_eq!(chosen(None, "", Some("instance")), "instance");
        assert_eq!(chosen(Some("mine"), "x", None), "mine");
        assert_eq!(chosen(None, &"x".repeat(65), None), "e2b.local");
        let (name, refused) = choose_hostname(Some("a b"), "\u{1}\u{2}", None);
        assert_eq!((name.as_str(), refused.len()), ("e2b.local", 2));
    }

    #[test]
    fn a_machine_id_is_made_once_and_one_that_is_there_stays() {
        let root = root();
        assert!(machine_id(root.path()).is_empty());
        let first = fs::read_to_string(root.path().join("etc/machine-id")).unwrap();
        assert!(is_machine_id(first.trim()));
        machine_id(root.path());
        assert_eq!(fs::read_to_string(root.path().join("etc/machine-id")).unwrap(), first);
        fs::write(root.path().join("etc/machine-id"), "uninitialized\n").unwrap();
        machine_id(root.path());
        assert!(is_machine_id(fs::read_to_string(root.path().join("etc/machine-id")).unwrap().trim()));
    }

    #[test]
    fn localhost_must_be_a_name_of_the_loopback() {
        assert!(knows_localhost("127.0.0.1 localhost\n"));
        assert!(knows_localhost("# x\n::1 ip6-localhost localhost # y\n"));
        for text in ["", "# 127.0.0.1 localhost", "10.0.0.1 localhost", "127.0.0.1 localhost.local"] {
            assert!(!knows_localhost(text), "{text}");
        }
    }

    #[test]
    fn an_images_own_resolver_is_left_alone() {
        let root = root();
        let path = root.path().join("etc/resolv.conf");
        let servers = [Ipv4Addr::new(1, 1, 1, 1)];
        resolver(root.path(), &[]);
        assert!(fs::symlink_metadata(&path).is_err());
        resolver(root.path(), &servers);
        assert_eq!(fs::read_link(&path).unwrap(), Path::new(RESOLV));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "nameserver 9.9.9.9\n").unwrap();
        resolver(root.path(), &servers);
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 9.9.9.9\n");
    }
}
