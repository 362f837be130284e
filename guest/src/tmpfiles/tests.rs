//! What lines do to a small root, and that systemd's own program does the same to its twin.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use super::*;

struct Root(tempfile::TempDir);

impl Root {
    fn new(configuration: &[(&str, &str)]) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        root.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/x\n");
        root.file("etc/group", "root:x:0:\nutmp:x:43:\ndaemon:x:1:\n");
        root.file("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        for (path, text) in configuration {
            root.file(path, text);
        }
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }

    fn run(&self, part: Part) -> Vec<String> {
        let problems = run(&Options { root: self.0.path().to_owned(), part, boot: true });
        problems.iter().map(|problem| problem.text.replace(&*self.0.path().to_string_lossy(), "")).collect()
    }

    /// Path to type, mode, owner and contents, of everything but the configuration.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        describe(self.0.path(), self.0.path(), &mut tree);
        tree.retain(|path, _| !path.contains("tmpfiles.d"));
        tree
    }
}

fn describe(root: &Path, folder: &Path, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
        let what = if meta.is_symlink() {
            fs::read_link(&path).unwrap().to_string_lossy().into_owned()
        } else if meta.is_file() {
            format!("{:?}", fs::read_to_string(&path).unwrap())
        } else {
            String::new()
        };
        let mode = if meta.is_symlink() { 0 } else { meta.mode() };
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        tree.insert(name, format!("{mode:o} {}:{} {what}", meta.uid(), meta.gid()));
        if meta.is_dir() {
            describe(root, &path, tree);
        }
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What Debian ships, and the corners: nested folders, patterns, links in the way, quotes, ages, types that adjust nothing.
const MIXED: &str = "\
D /tmp 1777 root root -
D! /tmp/.X11-unix 1777 root root 10d
r! /tmp/.X[0-9]*-lock
x /tmp/kept
R! /tmp/systemd-private-*
d /run/app/deep/er 0700 daemon daemon -
d /run/app 2775 root utmp -
f /run/app/note 0640 root utmp - two  words\\n
f+ /run/app/again 0600 - - - new
L /var/lock - - - - ../run/lock
L+ /var/mtab - - - - ../proc/self/mounts
L /var/taken - - - - elsewhere
p /run/pipe 0620
q /var/lib 0755
e /var/cache/old 0700 daemon - 0
w /run/app/again - - - - er
z /var/log/*.log 0640 root utmp
Z /var/spool ~2750 daemon utmp
z /var/none 0700 daemon
d \"/run/with space\" :0711 :daemon
d /var/kept :0700 :daemon
r /var/full
r /var/gone
R /var/tree
f /run/%m
d /run/link/x
f^ /run/credential - - - - none.such
d= /var/wrongtype
m /var/m 0711
F /run/old-style 0644 - - - text
";

fn mixed() -> Root {
    let root = Root::new(&[("usr/lib/tmpfiles.d/mixed.conf", MIXED)]);
    for file in [
        "tmp/a/b/c",
        "tmp/.X7-lock",
        "tmp/kept",
        "tmp/systemd-private-1/x",
        "var/mtab/inside",
        "run/app/again",
    ] {
        root.file(file, "old");
    }
    for file in [
        "var/log/a.log",
        "var/log/b.txt",
        "var/spool/x/run",
        "var/full/x",
        "var/gone",
        "var/tree/a/b",
        "var/wrongtype",
    ] {
        root.file(file, "old");
    }
    for file in ["var/cache/old/file", "var/kept/x", "var/m"] {
        root.file(file, "old");
    }
    fs::set_permissions(root.path("var/spool/x/run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.path("var/spool/x"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("nowhere", root.path("var/taken")).unwrap();
    symlink("app", root.path("run/link")).unwrap();
    symlink("/etc", root.path("tmp/out")).unwrap();
    root
}

#[test]
fn the_same_tree_comes_out_as_from_systemd_tmpfiles() {
    if !is_root() || Command::new("systemd-tmpfiles").arg("--version").output().is_err() {
        eprintln!("not run: needs root and systemd-tmpfiles");
        return;
    }
    let (ours, theirs) = (mixed(), mixed());
    assert_eq!(ours.tree(), theirs.tree());
    let problems = ours.run(Part::All);
    let mut command = Command::new("systemd-tmpfiles");
    command.args(["--create", "--remove", "--boot", "--root"]).arg(theirs.0.path());
    let output = command.output().unwrap();
    assert_eq!(ours.tree(), theirs.tree(), "{problems:#?} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn the_part_for_tmp_and_the_rest_make_the_whole() {
    if !is_root() {
        return eprintln!("not run: needs root");
    }
    let (whole, parts) = (mixed(), mixed());
    whole.run(Part::All);
    parts.run(Part::Tmp);
    assert!(!parts.path("tmp/a").exists() && !parts.path("tmp/.X11-unix").exists());
    assert!(!parts.path("run/app/deep").exists(), "the rest comes later");
    parts.run(Part::Rest);
    assert_eq!(whole.tree(), parts.tree());
}

#[test]
fn a_link_of_a_user_leads_nowhere() {
    if !is_root() {
        return eprintln!("not run: needs root");
    }
    let lines = "d /var/app/trap/x 0777 daemon\nZ /var/app 0777 daemon\nf+ /var/app/file 0666 - - - x\nd /var/app/dir 0777\nR /var/app/tree\n";
    let root = Root::new(&[("etc/tmpfiles.d/a.conf", lines)]);
    root.file("etc/secret", "secret");
    fs::create_dir_all(root.path("var/app")).unwrap();
    for (target, name) in [
        ("/etc", "trap"),
        ("/etc/secret", "file"),
        ("/etc", "dir"),
        ("/etc", "tree"),
        ("../../etc/secret", "up"),
    ] {
        symlink(target, root.path("var/app").join(name)).unwrap();
    }
    for name in ["", "trap", "file", "dir", "tree", "up"] {
        std::os::unix::fs::lchown(root.path("var/app").join(name), Some(1), Some(1)).unwrap();
    }
    fs::hard_link(root.path("etc/secret"), root.path("var/app/hard")).unwrap();
    let before = fs::metadata(root.path("etc/secret")).unwrap();
    let problems = root.run(Part::All);
    let after = fs::metadata(root.path("etc/secret")).unwrap();
    assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
    assert_eq!(fs::read_to_string(root.path("etc/secret")).unwrap(), "secret");
    assert!(!root.path("etc/x").exists() && root.path("etc/tmpfiles.d").exists());
    assert!(problems.iter().any(|text| text.contains("trap on the way belongs to a user")), "{problems:?}");
    assert!(problems.iter().any(|text| text.contains("has several names")), "{problems:?}");
}

#[test]
fn what_is_not_done_is_said_only_where_it_would_do_something() {
    let lines = "a+ /run/log/journal - - - - group:adm:r-x\na+ /var/none - - - - group:adm:r-x\nh /var - - - - +C\nc /dev/null 0666 - - - 1:3\nb /dev/blk - - - - 7:0\nC /run/copy - - - - /no/source\nd /run/x 0755 nobody-known\n";
    let root = Root::new(&[("usr/lib/tmpfiles.d/a.conf", lines)]);
    root.file("dev/null", "");
    root.file("var/x", "");
    let problems = root.run(Part::All);
    let expected = [
        "lines of type `b` are not done here (/dev/blk)",
        "there is no user `nobody-known` for /run/x",
        "lines of type `h` are not done here (/var)",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn the_owners_file_of_the_same_name_turns_a_packages_file_off() {
    let files = [
        ("usr/lib/tmpfiles.d/a.conf", "d /run/a"),
        ("usr/lib/tmpfiles.d/b.conf", "d /run/b"),
        ("etc/tmpfiles.d/b.conf", "d /run/c"),
    ];
    let root = Root::new(&files);
    symlink("/dev/null", root.path("etc/tmpfiles.d/a.conf")).unwrap();
    assert_eq!(root.run(Part::All), Vec::<String>::new());
    let made = ["a", "b", "c"].map(|name| root.path("run").join(name).exists());
    assert_eq!(made, [false, false, true]);
}

#[test]
fn users_are_not_locked_out_by_a_file_that_nobody_would_remove() {
    let root =
        Root::new(&[("usr/lib/tmpfiles.d/a.conf", "f+! /run/nologin 0644 - - - \"booting\"\nd /run/b")]);
    assert_eq!(root.run(Part::All), Vec::<String>::new());
    assert!(root.path("run/b").exists() && !root.path("run/nologin").exists());
}
