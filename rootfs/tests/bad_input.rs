//! Bad input: one clear line, an exit code of its own, nothing changed and nothing left behind.

mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use support::*;

/// Injects into `base` and requires that exit code and that text; nothing may be left.
fn refused(bench: &Bench, base: &Path, more: &[&str], code: i32, text: &str) {
    let before = (bench.names(), fs::read(base).ok());
    let output = bench.try_inject(base, &bench.path("out.ext4"), more);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(text), "{said}");
    assert_eq!(said.trim().lines().filter(|line| !line.contains("warning:")).count(), 1, "one line: {said}");
    assert!((bench.names(), fs::read(base).ok()) == before, "something changed or was left behind");
}

fn base_with(bench: &Bench, more: &[Entry]) -> std::path::PathBuf {
    let mut entries = debian(true);
    entries.extend_from_slice(more);
    bench.image("base", &entries)
}

#[test]
fn what_is_no_ext4_or_is_cut_off() {
    let bench = Bench::new();
    let base = bench.path("base");
    refused(&bench, &base, &[], 4, "cannot open");
    fs::write(&base, "short").expect("written");
    refused(&bench, &base, &[], 5, "is no ext4 image");
    fs::write(&base, vec![0x5a; 1 << 20]).expect("written");
    refused(&bench, &base, &[], 5, "is no ext4 image");
    let image = base_with(&bench, &[]);
    fs::OpenOptions::new().write(true).open(&image).expect("opened").set_len(1 << 20).expect("cut");
    refused(&bench, &image, &[], 5, "is truncated");
}

#[test]
fn what_is_something_else_is_named() {
    let bench = Bench::new();
    let base = bench.path("base");
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (bytes, text) in [
        ([&b"QFI\xfb"[..], &[0; 4096]].concat(), "a qcow2 image: convert it first"),
        ([&b"hsqs"[..], &[0; 4096]].concat(), "a squashfs image"),
        (disk, "a disk with partitions"),
    ] {
        fs::write(&base, &bytes).expect("written");
        refused(&bench, &base, &[], 5, text);
        let mut bake = bench.rootfs();
        bake.args(["bake", "--base", "base", "-o", "out.ext4", "--guest", "guest"]);
        let output = bake.output().expect("runs");
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(said(&output).contains(text), "{}", said(&output));
    }
}

#[test]
fn layers_of_a_container_image_are_no_filesystem() {
    let bench = Bench::new();
    let entries =
        [file("manifest.json", "[]"), dir("blobs"), file("blobs/sha256", ""), file("oci-layout", "")];
    let tar = bench.tar("saved.tar", &entries);
    let output = bench.rootfs().arg("build").arg(&tar).args(["-o", "out.ext4"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("docker export"), "{}", said(&output));
}

/// They became files of that name, and what they take away was there.
#[test]
fn one_layer_of_a_container_image_is_no_filesystem_either() {
    let bench = Bench::new();
    for name in [".wh.gone", ".wh..wh..opq"] {
        let tar = bench.tar("layer.tar", &[dir("usr"), file(format!("usr/{name}"), "")]);
        let output = bench.rootfs().arg("build").arg(&tar).args(["-o", "out.ext4"]).output().expect("runs");
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        assert!(said(&output).contains(name) && said(&output).contains("docker export"), "{}", said(&output));
    }
}

/// A disk of the host that fills up, before and while e2fsprogs write.
#[test]
fn a_full_disk_of_the_host_is_said_and_nothing_is_left() {
    let bench = Bench::new();
    let image = bench.image("base", &[&debian(true)[..], &[file("./big", vec![1; 6 << 20])]].concat());
    let tar = bench.path("base.tar");
    let small = bench.path("small");
    fs::create_dir(&small).expect("made");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"]).arg(&small).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    }
    let out = small.join("out.ext4");
    let built = bench.rootfs().arg("build").arg(&tar).args(["--size=32", "-o"]).arg(&out).output();
    let injected = bench.try_inject(&image, &out, &[]);
    let left = fs::read_dir(&small).map(Iterator::count);
    assert!(Command::new("umount").arg(&small).status().expect("umount runs").success());
    for output in [built.expect("runs"), injected] {
        assert_eq!(output.status.code(), Some(16), "{}", said(&output));
        assert!(
            said(&output).contains("full") || said(&output).contains("No space left"),
            "{}",
            said(&output)
        );
    }
    assert_eq!(left.expect("read"), 0);
}

#[test]
fn features_that_cannot_be_handled_are_named_with_a_way_out() {
    for (features, text) in [
        ("quota,encrypt", "encrypt, quota; bake from what is in it"),
        ("quota,project", "quota, project; turn them off on a copy (tune2fs -O ^quota,^project)"),
        ("casefold", "casefold; bake from"),
        ("verity", "verity; bake from"),
        ("mmp", "mmp; turn them off"),
    ] {
        let bench = Bench::new();
        let image = bench.foreign_image("base", &debian(true), &["-t", "ext4", "-O", features]);
        refused(&bench, &image, &[], 6, text);
    }
}

#[test]
fn a_damaged_filesystem_is_not_built_on() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let broken = tool("debugfs").args(["-w", "-R", "clri /etc"]).arg(&image).output().expect("runs");
    assert!(broken.status.success());
    refused(&bench, &image, &[], 7, "needs the repair of e2fsck");
}

#[test]
fn no_space_says_how_much_is_needed() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let big = bench.path("big");
    let mut bytes = elf(X86_64, "envd");
    bytes.resize(60 << 20, 1);
    fs::write(&big, bytes).expect("written");
    refused(&bench, &image, &["--envd", &big.display().to_string()], 8, "no space in the image");
}

#[test]
fn links_that_loop_or_dangle_and_things_in_the_way() {
    let without = |drop: &str| {
        debian(true).into_iter().filter(|entry| entry.path != drop.as_bytes()).collect::<Vec<_>>()
    };
    let cases: [(&str, Vec<Entry>, i32, &str); 4] = [
        ("./sbin", vec![link("./sbin", "loop"), link("./loop", "sbin")], 9, "too many symbolic links"),
        ("./sbin", vec![link("./sbin", "usr/nowhere")], 10, "which does not exist in the image"),
        ("./usr/sbin/init", vec![dir("./usr/sbin/init")], 11, "is a directory in the image"),
        ("./usr/lib/systemd", vec![file("./usr/lib/envd-init", "a file")], 11, "is not a directory"),
    ];
    for (drop, more, code, text) in cases {
        let bench = Bench::new();
        let mut entries = without(drop);
        entries.retain(|entry| !entry.path.starts_with(format!("{drop}/").as_bytes()));
        entries.extend(more);
        let image = bench.image("base", &entries);
        refused(&bench, &image, &[], code, text);
    }
}

/// A link's target is read into memory, for each link of an image: of any length it must not be.
#[test]
fn a_link_longer_than_any_that_can_be_made() {
    let bench = Bench::new();
    let image = base_with(&bench, &[link("./long", "x".repeat(80))]);
    let grown =
        tool("debugfs").args(["-w", "-R", "set_inode_field /long size 200000000"]).arg(&image).output();
    assert!(grown.expect("debugfs runs").status.success());
    let output = bench.rootfs().arg("diff").args([&image, &image]).output().expect("runs");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("is a link of 200000000 bytes"), "{said}");
}

#[test]
fn programs_that_would_not_run_in_the_guest() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let foreign = bench.path("foreign");
    fs::write(&foreign, elf(AARCH64, "envd")).expect("written");
    refused(
        &bench,
        &image,
        &["--envd", &foreign.display().to_string()],
        13,
        "is built for aarch64, the image is x86_64",
    );
    refused(&bench, &image, &["--envd", "/bin/sh"], 12, "is dynamically linked");
    refused(&bench, &image, &["--envd", "/etc/passwd"], 12, "is no ELF program");
    refused(&bench, &image, &["--envd", "/nonexistent/envd"], 4, "cannot read /nonexistent/envd");
    refused(&bench, &image, &["--arch", "arm64"], 13, "is an image for x86_64, and aarch64 was asked for");
}

#[test]
fn configuration_and_services_with_mistakes() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let config = bench.path("config.toml");
    fs::write(&config, "[network]\nadress = \"1.2.3.4/30\"\n").expect("written");
    refused(&bench, &image, &["--config", &config.display().to_string()], 14, "adress");
    let services = bench.path("services");
    fs::create_dir(&services).expect("made");
    refused(&bench, &image, &["--services", &services.display().to_string()], 14, "holds no services");
    fs::write(services.join("web.toml"), "command = [\"/usr/bin/missing\"]\nrestart = \"sometimes\"\n")
        .expect("written");
    refused(&bench, &image, &["--services", &services.display().to_string()], 14, "restart");
}

#[test]
fn outputs_that_would_do_harm() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let before = fs::read(&image).expect("read");
    let same = bench.try_inject(&image, &image, &[]);
    assert_eq!(same.status.code(), Some(15), "{}", said(&same));
    let link = bench.path("alias.ext4");
    std::os::unix::fs::symlink(&image, &link).expect("linked");
    assert_eq!(bench.try_inject(&link, &image, &[]).status.code(), Some(15));
    let missing = bench.try_inject(&image, Path::new("/nonexistent/out.ext4"), &[]);
    assert_eq!(missing.status.code(), Some(16), "{}", said(&missing));
    let sealed = bench.try_inject(&image, Path::new("/proc/out.ext4"), &[]);
    assert_eq!(sealed.status.code(), Some(16), "{}", said(&sealed));
    assert!(fs::read(&image).expect("read") == before);
    let device = bench.try_inject(&image, Path::new("/dev/null"), &[]);
    assert_eq!(device.status.code(), Some(16), "{}", said(&device));
    assert!(said(&device).contains("is no regular file"), "{}", said(&device));
    let tree = bench.path("tree");
    fs::create_dir(&tree).expect("made");
    let inside = bench.rootfs().args(["build", "tree", "-o", "tree/out.ext4"]).output().expect("runs");
    assert_eq!(inside.status.code(), Some(15), "{}", said(&inside));
}

/// An OUT that is a link stays one: what it leads to is replaced.
#[test]
fn an_output_behind_a_link_is_written_there() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    fs::create_dir(bench.path("elsewhere")).expect("made");
    std::os::unix::fs::symlink("elsewhere/out.ext4", bench.path("link.ext4")).expect("linked");
    for _ in 0..2 {
        bench.inject(&image, "link.ext4", &[]);
        assert!(bench.path("link.ext4").is_symlink());
        assert_clean(&bench.path("elsewhere/out.ext4"));
    }
}

#[test]
fn a_folder_that_cannot_be_read_is_an_input_that_cannot_be_read() {
    let bench = Bench::new();
    if !fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
        eprintln!("not run: making a file of somebody else's needs root");
        return;
    }
    let tree = bench.path("tree");
    fs::create_dir(&tree).expect("made");
    fs::write(tree.join("secret"), "x").expect("written");
    for (path, mode) in [(bench.folder.path(), 0o777), (&tree, 0o755), (&tree.join("secret"), 0o600)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(env!("CARGO_BIN_EXE_rootfs"));
    let output =
        command.arg("build").arg(&tree).arg("-o").arg(bench.path("out.ext4")).output().expect("runs");
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("secret: Permission denied"), "{}", said(&output));
}

#[test]
fn a_disk_of_a_memory_snapshot_is_refused() {
    for name in ["memfile", "snapfile"] {
        let bench = Bench::new();
        let image = base_with(&bench, &[]);
        fs::write(bench.path(name), "").expect("written");
        refused(&bench, &image, &[], 17, "rebuild the template");
        let elsewhere = tempfile::tempdir().expect("a folder");
        fs::copy(&image, elsewhere.path().join("base.ext4")).expect("copied");
        let over = bench.try_inject(&elsewhere.path().join("base.ext4"), &bench.path("rootfs.ext4"), &[]);
        assert_eq!(over.status.code(), Some(17), "nor is one written there: {}", said(&over));
    }
}

#[test]
fn units_that_would_be_lost_must_be_accepted() {
    let bench = Bench::new();
    let unit = "[Service]\nType=dbus\nBusName=a.b\nExecStart=/usr/bin/socat\n[Install]\nWantedBy=multi-user.target\n";
    let image = base_with(
        &bench,
        &[
            dir("./etc/systemd"),
            dir("./etc/systemd/system"),
            dir("./etc/systemd/system/multi-user.target.wants"),
            file("./etc/systemd/system/odd.service", unit),
            link("./etc/systemd/system/multi-user.target.wants/odd.service", "../odd.service"),
            link("./etc/systemd/system/default.target", "/etc/systemd/system/multi-user.target"),
            file("./etc/systemd/system/multi-user.target", "[Unit]\nDescription=x\n"),
        ],
    );
    refused(&bench, &image, &[], 18, "odd.service");
    bench.inject(&image, "accepted.ext4", &["--accept-lost-units"]);
}

/// Only systemd's and OpenRC's were looked at: any other init's services went without a word.
#[test]
fn services_of_another_init_must_be_accepted_as_lost_and_keep_mode_is_not_offered() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.retain(|entry| entry.path != b"./usr/sbin/init");
    entries.extend([
        program("./usr/sbin/init", elf(X86_64, "sysvinit reads /etc/inittab")),
        file("./etc/inittab", "id:2:initdefault:\nl2:2:wait:/etc/init.d/rc 2\n7:2:respawn:/opt/app -x\n"),
        dir("./etc/rc2.d"),
        dir("./etc/init.d"),
        program("./etc/init.d/nginx", "#!/bin/sh\n"),
        link("./etc/rc2.d/S03nginx", "../init.d/nginx"),
    ]);
    let image = bench.image("base", &entries);
    refused(&bench, &image, &[], 18, "/etc/init.d/nginx, /opt/app -x");
    let out = bench.path("out.ext4");
    assert!(!said(&bench.try_inject(&image, &out, &[])).contains("INIT=keep"));
    let accepted = bench.try_inject(&image, &out, &["--accept-lost-units"]);
    assert!(accepted.status.success(), "{}", said(&accepted));
    assert!(said(&accepted).contains("warning: these units will no longer start: /etc/init.d/nginx"));
}

#[test]
fn an_image_without_our_payload_cannot_be_reverted_and_fails_its_verification() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let output = bench.rootfs().arg("revert").arg(&image).args(["-o", "out.ext4"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(22), "{}", said(&output));
    let output = bench.rootfs().arg("verify").arg(&image).arg("--json").output().expect("runs");
    assert_eq!(output.status.code(), Some(20));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["ok"], false);
}

#[test]
fn verify_sees_what_was_changed_after_the_bake() {
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let envd = bench.path("envd");
    fs::write(&envd, elf(X86_64, "envd")).expect("written");
    let out = bench.inject(&image, "out.ext4", &["--envd", &envd.display().to_string()]);
    for (change, name) in [
        ("sif /usr/lib/envd-init/init mode 0100644", "programs"),
        ("rm /usr/sbin/init", "init"),
        ("rm /usr/bin/envd", "envd"),
    ] {
        let copy = bench.path("changed.ext4");
        fs::copy(&out, &copy).expect("copied");
        assert!(
            tool("debugfs").args(["-w", "-R", change]).arg(&copy).output().expect("runs").status.success()
        );
        let output =
            bench.rootfs().arg("verify").arg(&copy).args(["--json", "--min-free=1"]).output().expect("runs");
        assert_eq!(output.status.code(), Some(20), "{change}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("a list");
        assert!(
            checks.iter().any(|check| check["name"] == name && check["verdict"] == "failed"),
            "{change}: {report}"
        );
    }
}

#[test]
fn a_read_only_output_folder_is_said() {
    if fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
        eprintln!("not run: root can write everywhere; /proc stands for it in another test");
        return;
    }
    let bench = Bench::new();
    let image = base_with(&bench, &[]);
    let sealed = bench.path("sealed");
    fs::create_dir(&sealed).expect("made");
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o555)).expect("set");
    let output = bench.try_inject(&image, &sealed.join("out.ext4"), &[]);
    assert_eq!(output.status.code(), Some(16), "{}", said(&output));
}
