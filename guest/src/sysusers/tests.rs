//! Against small roots, and beside systemd's own program.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nadm:x:4:syslog\n";

fn root(lines: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("etc/passwd", PASSWD);
    write("etc/group", GROUP);
    write("etc/shadow", "root:*:19000:0:99999:7:::\n");
    write("etc/gshadow", "root:*::\nadm:*::syslog\n");
    write("usr/lib/sysusers.d/a.conf", lines);
    fs::set_permissions(root.path().join("etc/shadow"), fs::Permissions::from_mode(0o640)).unwrap();
    root
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join("etc").join(name)).unwrap()
}

const LINES: &str = "\
g input 40
u web 404 \"Web Server\" /var/www /bin/sh
u cache - \"Cache\"
u games 5:60
u mail -:adm
m cache adm
m cache input
u daemon - \"already there\"
g same 0
";

#[test]
fn what_is_missing_is_made_and_what_exists_stays() {
    let root = root(LINES);
    let outcome = run(root.path()).unwrap();
    let passwd = read(root.path(), "passwd");
    assert!(
        passwd.starts_with(PASSWD) && passwd.contains("web:x:404:404:Web Server:/var/www:/bin/sh\n"),
        "{passwd}"
    );
    assert!(passwd.contains("mail:x:997:4::/:/usr/sbin/nologin\n"), "{passwd}");
    assert!(read(root.path(), "group").contains("adm:x:4:syslog,cache\n"));
    assert!(read(root.path(), "shadow").contains("web:!*:"));
    assert!(
        outcome.problems.iter().any(|text| text == "user games is not made: there is no group 60"),
        "{outcome:?}"
    );
    let mode = fs::metadata(root.path().join("etc/shadow")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(run(root.path()).unwrap().made, Vec::<String>::new(), "a second run has nothing to do");
}

#[test]
fn a_machine_that_has_everybody_is_not_written_to() {
    let root = root("u daemon - \"there\"\ng adm 4\nm daemon root\n");
    let group = root.path().join("etc/group");
    fs::write(&group, "root:x:0:daemon\ndaemon:x:1:\nadm:x:4:\n").unwrap();
    assert_eq!(run(root.path()).unwrap(), Outcome::default());
    assert!(!root.path().join("etc/.pwd.lock").exists());
}

/// Names, ids and memberships; how the two spell a locked password differs.
#[test]
fn systemd_sysusers_makes_the_same_accounts() {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || Command::new("systemd-sysusers").arg("--version").output().is_err() {
        return eprintln!("not run: needs root and systemd-sysusers");
    }
    let lines = LINES.replace("u games 5:60\n", "");
    let (ours, theirs) = (root(&lines), root(&lines));
    run(ours.path()).unwrap();
    let output = Command::new("systemd-sysusers").arg("--root").arg(theirs.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sorted = |root: &Path, name| {
        let text = read(root, name);
        let members_sorted = |line: &str| {
            let (begin, members) = line.rsplit_once(':').unwrap();
            let mut members: Vec<_> = members.split(',').collect();
            members.sort_unstable();
            format!("{begin}:{}", members.join(","))
        };
        let mut lines: Vec<String> = text.lines().map(members_sorted).collect();
        lines.sort();
        lines
    };
    for name in ["passwd", "group"] {
        assert_eq!(sorted(ours.path(), name), sorted(theirs.path(), name), "{name}");
    }
}
