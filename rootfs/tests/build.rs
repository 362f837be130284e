//! Images made from archives and folders, judged by readers that are not ours.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use ext4_view::Ext4;
use support::*;

/// One of each: every kind of file, odd names, ids, attributes.
fn zoo() -> Vec<Entry> {
    let mut sparse = vec![0; 3 << 20];
    sparse[2 << 20] = 7;
    vec![
        dir("./"),
        dir("./d with space").owned(7, 8),
        file("./d with space/quote\"s", "q"),
        file(b"./not-utf8-\xff\xfe", "n"),
        file("./line\nbreak", "l"),
        Entry { mode: 0o4755, ..file("./setuid", "s") }.owned(0, 42),
        Entry { mode: 0o000, ..file("./no-mode", "secret") },
        file("./big-ids", "").owned(300_000, 4_000_000),
        hard_link("./hard", "./setuid"),
        link("./short", "setuid"),
        link("./long", "x".repeat(90)),
        file("./sparse", &sparse),
        Entry { device: (1, 3), ..entry(b'3', "./null", 0o666) },
        Entry { device: (259, 70_000), ..entry(b'4', "./disk", 0o660) }.owned(0, 6),
        Entry { device: (1, 3), ..hard_link("./null too", "./null") },
        entry(b'6', "./fifo", 0o600),
        file("./caps", "c")
            .xattr("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        file("./xattr", "x").xattr("user.a", b"any \0 byte\n").xattr("user.empty", b""),
        file("./acl", "x").xattr(
            "system.posix_acl_access",
            &[
                2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255,
                255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
            ],
        ),
        file(format!("./{}", "long".repeat(60)), "long name"),
    ]
}

#[test]
fn an_independent_reader_finds_every_byte_name_mode_and_owner() {
    let bench = Bench::new();
    let image = bench.image("zoo", &zoo());
    assert_clean(&image);
    let fs = Ext4::load_from_path(&image).expect("ext4-view reads it");
    for entry in zoo().iter().filter(|entry| entry.kind == b'0') {
        let path = [b"/", &entry.path[2..]].concat();
        assert_eq!(fs.read(path.as_slice()).expect("read"), entry.data, "{}", String::from_utf8_lossy(&path));
        let meta = fs.metadata(path.as_slice()).expect("there");
        assert_eq!(u32::from(meta.mode()), entry.mode, "{}", String::from_utf8_lossy(&path));
        assert_eq!((meta.uid(), meta.gid()), entry.ids);
    }
    assert_eq!(fs.read("/hard").expect("read"), b"s");
    let target = fs.read_link("/long").expect("a link");
    assert_eq!(target.as_ref().len(), 90);
}

#[test]
fn e2fsprogs_finds_devices_links_holes_and_attributes() {
    let bench = Bench::new();
    let image = bench.image("zoo", &zoo());
    let ask = |command: &str| {
        let output = tool("debugfs").args(["-R", command]).arg(&image).output().expect("debugfs runs");
        said(&output)
    };
    assert!(ask("stat /null").contains("Type: character special") && ask("stat /null").contains("01:03"));
    assert!(ask("stat /disk").contains("Type: block special"), "{}", ask("stat /disk"));
    assert!(ask("stat \"/null too\"").contains("Links: 2"), "{}", ask("stat \"/null too\""));
    assert!(ask("stat /fifo").contains("Type: FIFO"));
    assert!(ask("stat /hard").contains("Links: 2"));
    assert!(ask("stat /caps").contains("security.capability (20)"), "{}", ask("stat /caps"));
    assert!(ask("ea_get -V /xattr user.a").starts_with("any \0 byte\n"));
    let blocks = ask("stat /sparse");
    assert!(blocks.contains("Blockcount: 8"), "holes stay holes: {blocks}");
}

/// Clock, folder, umask, time zone, locale and user leave no trace.
#[test]
fn the_same_archive_gives_the_same_bytes_anywhere() {
    let bench = Bench::new();
    let tar = bench.tar("zoo.tar", &zoo());
    let digest = |folder: &str, change: &dyn Fn(&mut std::process::Command)| {
        let folder = bench.path(folder);
        fs::create_dir(&folder).expect("made");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("set");
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg("umask \"$UMASK\"; exec $RUN \"$0\" build \"$1\" --size 32 -o \"$2\"");
        shell
            .arg(env!("CARGO_BIN_EXE_rootfs"))
            .arg(&tar)
            .arg(folder.join("out.ext4"))
            .env("UMASK", "022")
            .env("RUN", "");
        change(&mut shell);
        let output = shell.output().expect("sh runs");
        assert!(output.status.success(), "{}", said(&output));
        rootfs::hash::sha256_file(&folder.join("out.ext4")).expect("read")
    };
    fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let first = digest("a", &|_| ());
    let other = digest("another folder, with a longer name", &|shell| {
        shell
            .env("UMASK", "077")
            .env("TZ", "Pacific/Auckland")
            .env("LC_ALL", "C.UTF-8")
            .env("MKE2FS_CONFIG", "/dev/null");
    });
    assert_eq!(first, other);
    if rustix_is_root() && Path::new("/usr/bin/setpriv").exists() {
        let nobody = digest("nobody", &|shell| {
            shell.env("RUN", "setpriv --reuid=65534 --regid=65534 --clear-groups");
        });
        assert_eq!(first, nobody, "a user without any rights builds the same image");
    } else {
        eprintln!("not run: building as another user needs root and setpriv");
    }
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

#[test]
fn a_source_date_epoch_bounds_all_times() {
    let bench = Bench::new();
    let tar =
        bench.tar("a.tar", &[dir("./"), file("./new", "n"), Entry { mtime: 1000, ..file("./old", "o") }]);
    let out = bench.path("a.ext4");
    let output = bench
        .rootfs()
        .env("SOURCE_DATE_EPOCH", "5000")
        .arg("build")
        .arg(&tar)
        .args(["--size", "16", "-o"])
        .arg(&out)
        .output();
    assert!(output.expect("runs").status.success());
    let image = rootfs::ext4::Image::open(&out).expect("opens");
    let time = |path: &[u8]| image.locate(path).expect("there").inode.mtime.seconds;
    assert_eq!((time(b"/new"), time(b"/old")), (5000, 1000));
    assert_eq!(image.locate(b"/new").expect("there").inode.ctime.seconds, 5000);
    assert_eq!(image.superblock.written, 5000);
}

/// `docker export … | make rootfs BASE=-`
#[test]
fn an_archive_comes_from_stdin_too() {
    let bench = Bench::new();
    let from_file = bench.image("file", &zoo());
    let out = bench.path("stdin.ext4");
    let mut child = bench.rootfs();
    child
        .args(["build", "-", "--size", "64", "-o"])
        .arg(&out)
        .stdin(Stdio::from(fs::File::open(bench.path("file.tar")).expect("opened")));
    assert!(child.output().expect("runs").status.success());
    assert_eq!(fs::read(from_file).expect("read"), fs::read(out).expect("read"));
}

#[test]
fn a_compressed_archive_is_unpacked_on_the_way() {
    let bench = Bench::new();
    let plain = bench.image("plain", &zoo());
    for (tool, name) in [("gzip", "z.tar.gz"), ("xz", "z.tar.xz"), ("zstd", "z.tar.zst")] {
        let Ok(output) = std::process::Command::new(tool).arg("-c").arg(bench.path("plain.tar")).output()
        else {
            eprintln!("not run: {tool} is not installed");
            continue;
        };
        fs::write(bench.path(name), output.stdout).expect("written");
        let out = bench.path("z.ext4");
        let built = bench
            .rootfs()
            .arg("build")
            .arg(bench.path(name))
            .args(["--size", "64", "-o"])
            .arg(&out)
            .output()
            .expect("runs");
        assert!(built.status.success(), "{}", said(&built));
        bench.same(&plain, &out);
    }
}

/// GNU tar writes sparse files in four forms.
#[test]
fn every_form_of_sparse_archive_is_understood() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir(&tree).expect("made");
    let file = fs::File::create(tree.join("holes")).expect("made");
    for at in [0_u64, 1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, format!("at {at}").as_bytes(), at).expect("written");
    }
    file.set_len(6 << 20).expect("set");
    let wanted = fs::read(tree.join("holes")).expect("read");
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = bench.path("s.tar");
        let made = std::process::Command::new("tar")
            .args(form)
            .args(["--sparse", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&tree)
            .arg(".")
            .status();
        assert!(made.expect("tar runs").success());
        assert!(fs::metadata(&tar).expect("there").len() < 1 << 20, "the archive is sparse");
        let out = bench.path("s.ext4");
        let built = bench
            .rootfs()
            .arg("build")
            .arg(&tar)
            .args(["--size", "32", "-o"])
            .arg(&out)
            .output()
            .expect("runs");
        assert!(built.status.success(), "{form:?}: {}", said(&built));
        let read = Ext4::load_from_path(&out).expect("opens").read("/holes").expect("read");
        assert!(read == wanted, "{form:?}");
    }
}

#[test]
fn a_folder_is_built_as_it_is() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir_all(tree.join("a b/c")).expect("made");
    fs::write(tree.join("a b/c/one"), "1").expect("written");
    fs::hard_link(tree.join("a b/c/one"), tree.join("two")).expect("linked");
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("sock")).expect("bound");
    let out = bench.path("f.ext4");
    let built =
        bench.rootfs().arg("build").arg(&tree).args(["--size", "16", "-o"]).arg(&out).output().expect("runs");
    assert!(built.status.success(), "{}", said(&built));
    assert_clean(&out);
    let image = rootfs::ext4::Image::open(&out).expect("opens");
    let ino = |path: &[u8]| image.locate(path).expect("there").inode.ino;
    assert_eq!(ino(b"/two"), ino(b"/a b/c/one"));
    assert_eq!(image.locate(b"/sock").expect("there").inode.kind, rootfs::ext4::Kind::Socket);
}

/// GNU tar's own archives with --acls: they were dropped without a word.
#[test]
fn acls_in_words_are_kept_and_whom_the_archive_does_not_know_is_said() {
    let bench = Bench::new();
    let acl = |entry: Entry, key: &str, text: &str| Entry {
        pax: vec![(format!("SCHILY.acl.{key}").into_bytes(), text.as_bytes().to_vec())],
        ..entry
    };
    let text = "user::rw-\nuser:web:r--\nuser:stranger:r--\ngroup::r--\nmask::r--\nother::---\n";
    let tar = bench.tar(
        "acl.tar",
        &[
            dir("./"),
            acl(file("./file", "f"), "access", text),
            acl(dir("./folder"), "default", "user::rwx\ngroup::r-x\nother::---\n"),
            acl(file("./plain", "p"), "access", "user::rw-\ngroup::r--\nother::r--\n"),
            dir("./etc"),
            file("./etc/passwd", "web:x:33:33::/:/bin/sh\n"),
        ],
    );
    let out = bench.path("acl.ext4");
    let built = bench.rootfs().args(["build", "--size=16", "-o"]).arg(&out).arg(&tar).output().expect("runs");
    assert!(built.status.success(), "{}", said(&built));
    assert!(said(&built).contains("the ACL of /file names `stranger`"), "{}", said(&built));
    assert_clean(&out);
    let image = rootfs::ext4::Image::open(&out).expect("opens");
    let xattrs = |path: &[u8]| image.xattrs(&image.locate(path).expect("there").inode).expect("read");
    let access = &xattrs(b"/file")[b"system.posix_acl_access".as_slice()];
    assert_eq!((access.len(), &access[12..20]), (4 + 5 * 8, &[2, 0, 4, 0, 33, 0, 0, 0][..]));
    assert!(xattrs(b"/folder").contains_key(b"system.posix_acl_default".as_slice()));
    assert!(xattrs(b"/plain").is_empty(), "its mode says it all");
}

/// Labels and lists of names ended the run as entries of an unknown type.
#[test]
fn a_whole_incremental_archive_of_gnu_tar_is_built_and_a_later_step_of_one_is_refused() {
    for format in ["gnu", "posix"] {
        let bench = Bench::new();
        let tree = bench.path("tree");
        fs::create_dir_all(tree.join("a/b")).expect("made");
        fs::write(tree.join("a/one"), "1").expect("written");
        let dump = |name: &str| {
            let mut command = std::process::Command::new("tar");
            command.args(["--format", format, "-V", "a label", "-g"]).arg(bench.path("state"));
            assert!(
                command
                    .arg("-cf")
                    .arg(bench.path(name))
                    .arg("-C")
                    .arg(&tree)
                    .arg(".")
                    .status()
                    .expect("tar")
                    .success()
            );
            let out = bench.path("i.ext4");
            bench
                .rootfs()
                .args(["build", "--size=16", "-o"])
                .arg(&out)
                .arg(bench.path(name))
                .output()
                .expect("runs")
        };
        let whole = dump("whole.tar");
        assert!(whole.status.success(), "{format}: {}", said(&whole));
        let image = rootfs::ext4::Image::open(&bench.path("i.ext4")).expect("opens");
        let mut names: Vec<_> = rootfs::tree::read(&image).expect("read").into_keys().collect();
        names.retain(|name| name != b"/lost+found");
        assert_eq!(names, [&b"/"[..], b"/a", b"/a/b", b"/a/one"]);
        fs::write(tree.join("a/two"), "2").expect("written");
        let step = dump("step.tar");
        assert_eq!(step.status.code(), Some(4), "{format}");
        assert!(said(&step).contains("incremental backup"), "{}", said(&step));
    }
}

/// A folder of a normal user's became a `/` that he can write, and one of mktemp's a `/` that only root can enter.
#[test]
fn the_root_of_an_image_is_roots_whoever_owns_the_folder_and_that_is_said() {
    for (mode, expected, is_said) in
        [(0o775, 0o755, !rustix_is_root()), (0o777, 0o755, true), (0o700, 0o755, true)]
    {
        let bench = Bench::new();
        let tree = bench.path("tree");
        fs::create_dir(&tree).expect("made");
        fs::write(tree.join("file"), "f").expect("written");
        fs::set_permissions(&tree, fs::Permissions::from_mode(mode)).expect("set");
        let out = bench.path("f.ext4");
        let built = bench
            .rootfs()
            .arg("build")
            .arg(&tree)
            .args(["--size", "16", "-o"])
            .arg(&out)
            .output()
            .expect("runs");
        assert!(built.status.success(), "{}", said(&built));
        assert_eq!(
            said(&built).contains("in the image / is root's, with mode 0755"),
            is_said,
            "{}",
            said(&built)
        );
        let root = rootfs::ext4::Image::open(&out).expect("opens").locate(b"/").expect("there").inode;
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(root.permissions(), if is_said { expected } else { mode as u16 });
    }
}

/// What an image keeps from others was open to all of this host while it was baked.
#[test]
fn nobody_else_sees_into_a_bake() {
    let bench = Bench::new();
    let out = bench.path("out.ext4");
    let left = bench.path(".out.ext4.baking");
    fs::create_dir(&left).expect("made");
    fs::set_permissions(&left, fs::Permissions::from_mode(0o755)).expect("set");
    let tar = bench.tar("a.tar", &[dir("./"), file("./secret", "s")]);
    let killed = bench
        .rootfs()
        .env("ROOTFS_TEST_KILL_AT", "flush")
        .args(["build", "--size=16", "--out"])
        .arg(&out)
        .arg(&tar)
        .output()
        .expect("runs");
    assert!(!killed.status.success());
    assert_eq!(fs::metadata(&left).expect("left").permissions().mode() & 0o777, 0o700);
}

#[test]
fn what_does_not_fit_names_the_size_that_would() {
    let bench = Bench::new();
    let tar = bench.tar("big.tar", &[dir("./"), file("./big", vec![1; 20 << 20])]);
    let out = bench.path("big.ext4");
    let built =
        bench.rootfs().arg("build").arg(&tar).args(["--size", "16", "-o"]).arg(&out).output().expect("runs");
    assert_eq!(built.status.code(), Some(8), "{}", said(&built));
    assert!(said(&built).contains("SIZE=16 MiB is too small"), "{}", said(&built));
    assert!(!out.exists() && !bench.names().iter().any(|name| name.contains("baking")));
}

#[test]
fn broken_archives_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let good = archive(&zoo());
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("cut", good[..good.len() / 2].to_vec(), "ends in the middle"),
        ("garbage", vec![7; 4096], "no tar archive"),
        ("escape", archive(&[file("../../etc/x", "")]), "leads out of it"),
        ("target", archive(&[hard_link("./a", "./nowhere")]), "which is not in it"),
    ];
    for (name, bytes, text) in cases {
        fs::write(bench.path(name), bytes).expect("written");
        let out = bench.path("out.ext4");
        let built =
            bench.rootfs().arg("build").arg(bench.path(name)).arg("-o").arg(&out).output().expect("runs");
        assert_eq!(built.status.code(), Some(4), "{name}: {}", said(&built));
        assert!(said(&built).contains(text), "{name}: {}", said(&built));
        assert!(!out.exists() && !bench.names().iter().any(|name| name.contains("baking")));
    }
}
