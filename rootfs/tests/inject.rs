//! Injecting, upgrading, changing modes and reverting, on images of many geometries, and what a kill leaves behind.

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use ext4_view::Ext4;
use rootfs::ext4::Image;
use support::*;

fn leads_to(image: &Path, path: &str) -> String {
    let image = Image::open(image).expect("opens");
    String::from_utf8(image.locate(path.as_bytes()).expect("there").real).expect("text")
}

fn read(image: &Path, path: &str) -> Vec<u8> {
    let image = Image::open(image).expect("opens");
    image.contents(&image.locate(path.as_bytes()).expect("there").inode).expect("read")
}

fn envd(bench: &Bench, tag: &str) -> String {
    let path = bench.path(&format!("envd-{tag}"));
    fs::write(&path, elf(X86_64, &format!("envd {tag}"))).expect("written");
    path.display().to_string()
}

#[test]
fn an_injected_image_boots_our_init_and_a_reverted_one_is_the_base() {
    for merged in [true, false] {
        let bench = Bench::new();
        let base = bench.image("base", &debian(merged));
        let before = fs::read(&base).expect("read");
        let given = envd(&bench, "1");
        let out = bench.inject(&base, "out.ext4", &["--envd", &given]);
        assert_clean(&out);
        assert_eq!(leads_to(&out, "/sbin/init"), "/usr/lib/envd-init/init");
        assert_eq!(leads_to(&out, "/bin/systemctl"), "/usr/lib/envd-init/init");
        let independent = Ext4::load_from_path(&out).expect("ext4-view reads it");
        assert_eq!(independent.read("/usr/bin/envd").expect("read"), elf(X86_64, "envd 1"));
        assert_eq!(independent.read("/usr/lib/envd-init/init").expect("read"), elf(X86_64, "init 1"));
        let saved = "/usr/lib/envd-init/saved/usr/bin/systemctl";
        assert_eq!(independent.read(saved).expect("read"), elf(X86_64, "systemctl of the image"));
        let verified = bench.rootfs().arg("verify").arg(&out).arg("--min-free=8").output().expect("runs");
        assert!(verified.status.success(), "{}", said(&verified));
        let reverted = bench.revert(&out, "reverted.ext4");
        assert_clean(&reverted);
        bench.same(&base, &reverted);
        assert_eq!(fs::read(&base).expect("read"), before, "the base is as it was");
    }
}

/// Images that other tools made: each feature that a root filesystem may have.
#[test]
fn images_of_every_geometry_are_injected_and_reverted() {
    let geometries: [(&str, &[&str]); 12] = [
        ("default", &["-t", "ext4"]),
        (
            "platform",
            &[
                "-t",
                "ext4",
                "-b",
                "4096",
                "-i",
                "4096",
                "-m",
                "0",
                "-O",
                "^64bit,^dir_index,^dir_nlink,inline_data,sparse_super2",
            ],
        ),
        ("block-1k", &["-t", "ext4", "-b", "1024"]),
        ("ext2", &["-t", "ext2"]),
        ("ext3-128", &["-t", "ext3", "-I", "128"]),
        ("no-journal", &["-t", "ext4", "-O", "^has_journal,^metadata_csum"]),
        ("64bit", &["-t", "ext4", "-O", "64bit,metadata_csum_seed"]),
        ("meta-bg", &["-t", "ext4", "-O", "meta_bg,^resize_inode"]),
        ("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
        ("ea-inode", &["-t", "ext4", "-O", "ea_inode,large_dir"]),
        ("newer-defaults", &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"]),
        ("no-flex", &["-t", "ext4", "-O", "^flex_bg,sparse_super2,fast_commit,stable_inodes"]),
    ];
    for (name, options) in geometries {
        let bench = Bench::new();
        let mut entries = debian(true);
        // Directories of several blocks, hash-indexed where the filesystem does that.
        entries.push(dir("./many"));
        entries
            .extend((0..300).map(|index| file(format!("./many/a name that takes some room {index}"), "x")));
        let base = bench.foreign_image(name, &entries, options);
        let given = envd(&bench, "1");
        let out = bench.inject(&base, "out.ext4", &["--envd", &given]);
        assert_clean(&out);
        assert_eq!(leads_to(&out, "/sbin/init"), "/usr/lib/envd-init/init", "{name}");
        bench.same(&base, &bench.revert(&out, "reverted.ext4"));
    }
}

#[test]
fn a_newer_version_replaces_an_older_one_and_revert_still_leads_to_the_original() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let given = envd(&bench, "1");
    let first = bench.inject(&base, "first.ext4", &["--envd", &given]);
    fs::write(bench.path("guest/init"), elf(X86_64, "init 2")).expect("written");
    let second = bench.inject(&first, "second.ext4", &[]);
    assert_eq!(read(&second, "/usr/lib/envd-init/init"), elf(X86_64, "init 2"));
    assert_eq!(read(&second, "/usr/bin/envd"), elf(X86_64, "envd 1"), "the envd that was baked in is kept");
    let fresh = bench.inject(&base, "fresh.ext4", &["--envd", &given]);
    bench.same(&fresh, &second);
    bench.same(&base, &bench.revert(&second, "reverted.ext4"));
}

#[test]
fn native_and_keep_follow_each_other_without_a_trace() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let native = bench.inject(&base, "native.ext4", &[]);
    let keep = bench.inject(&native, "keep.ext4", &["--init", "keep"]);
    assert_eq!(leads_to(&keep, "/sbin/init"), "/usr/lib/systemd/systemd");
    let again = bench.inject(&keep, "again.ext4", &[]);
    bench.same(&native, &again);
    bench.same(&base, &bench.revert(&keep, "reverted.ext4"));
}

#[test]
fn what_came_after_the_bake_stays_and_is_said() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let out = bench.inject(&base, "out.ext4", &[]);
    let script = bench.path("script");
    let own = bench.path("own");
    fs::write(&own, "mine").expect("written");
    let diversions = bench.path("diversions");
    let now = [read(&out, "/var/lib/dpkg/diversions"), b"/a\n/a.theirs\ntheirs\n".to_vec()].concat();
    fs::write(&diversions, now).expect("written");
    let text = format!(
        "write {} /usr/lib/envd-init/mine\nrm /var/lib/dpkg/diversions\nwrite {} /var/lib/dpkg/diversions\n",
        own.display(),
        diversions.display()
    );
    fs::write(&script, text).expect("written");
    assert!(
        tool("debugfs").arg("-w").arg("-f").arg(&script).arg(&out).output().expect("runs").status.success()
    );
    let reverted = bench.path("reverted.ext4");
    let output = bench.rootfs().arg("revert").arg(&out).arg("-o").arg(&reverted).output().expect("runs");
    assert!(said(&output).contains("/usr/lib/envd-init stays: /usr/lib/envd-init/mine"), "{}", said(&output));
    assert_eq!(read(&reverted, "/usr/lib/envd-init/mine"), b"mine");
    let left = String::from_utf8(read(&reverted, "/var/lib/dpkg/diversions")).expect("text");
    assert_eq!(
        left, "/bin/sh\n/bin/sh.distrib\ndash\n/a\n/a.theirs\ntheirs\n",
        "a later package's diversion stays"
    );
}

#[test]
fn the_forks_layout_is_recognised_and_its_envd_pinned() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.extend([
        dir("./usr/local"),
        Entry { mode: 0o777, ..dir("./usr/local/bin") },
        program("./usr/local/bin/envd", "#!/bin/sh\nexec envd.real\n"),
        program("./usr/local/bin/envd.real", elf(X86_64, "envd of the fork")),
    ]);
    let base = bench.image("base", &entries);
    let out = bench.inject(&base, "out.ext4", &[]);
    let config = String::from_utf8(read(&out, "/etc/envd-init/config.toml")).expect("text");
    let digest = rootfs::hash::sha256(&elf(X86_64, "envd of the fork"));
    assert!(
        config.contains("program = \"/usr/local/bin/envd.real\"") && config.contains(&digest),
        "{config}"
    );
    let given = envd(&bench, "2");
    let newer = bench.inject(&out, "newer.ext4", &["--envd", &given]);
    assert_eq!(read(&newer, "/usr/local/bin/envd.real"), elf(X86_64, "envd 2"));
    bench.same(&base, &bench.revert(&newer, "reverted.ext4"));
}

/// The platform makes envd mode 0777 and swaps it offline: a pin would only be in the way.
#[test]
fn an_envd_of_the_platform_is_not_pinned_and_may_be_swapped() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.push(Entry { mode: 0o777, ..program("./usr/bin/envd", elf(X86_64, "envd of the platform")) });
    let base = bench.image("base", &entries);
    let out = bench.inject(&base, "out.ext4", &[]);
    assert!(
        Image::open(&out).expect("opens").find(b"/etc/envd-init/config.toml").expect("looked up").is_none()
    );
    let newer = envd(&bench, "newer");
    let script = bench.path("swap");
    let text = format!("rm /usr/bin/envd\nwrite {newer} /usr/bin/envd\nsif /usr/bin/envd mode 0100755\n");
    fs::write(&script, text).expect("written");
    let swapped = tool("debugfs").arg("-w").arg("-f").arg(&script).arg(&out).output().expect("runs");
    assert!(swapped.status.success());
    let verified = bench.rootfs().arg("verify").arg(&out).arg("--min-free=8").output().expect("runs");
    assert!(verified.status.success(), "{}", said(&verified));
}

/// Saved was the link, which led back to ours: what ours does not know it handed to itself for ever.
#[test]
fn of_two_systemctls_the_program_is_kept_for_the_shim_and_not_a_link_to_it() {
    for target in ["/bin/systemctl", "../../bin/systemctl", "/gone", "/usr/lib/envd-init/init"] {
        let bench = Bench::new();
        let mut entries = debian(false);
        entries.push(link("./usr/bin/systemctl", target));
        let base = bench.image("base", &entries);
        let out = bench.inject(&base, "out.ext4", &[]);
        let saved = "/usr/lib/envd-init/saved/usr/bin/systemctl";
        assert_eq!(read(&out, saved), elf(X86_64, "systemctl of the image"), "{target}");
        for path in ["/bin/systemctl", "/usr/bin/systemctl"] {
            assert_eq!(leads_to(&out, path), "/usr/lib/envd-init/init");
        }
        bench.same(&base, &bench.revert(&out, "reverted.ext4"));
    }
}

/// A file that an earlier revert left there was joined by one of the same name.
#[test]
fn what_lies_among_the_saved_files_already_stays_beside_what_is_saved_now() {
    let bench = Bench::new();
    let mut entries = debian(true);
    let folders = ["", "/saved", "/saved/usr", "/saved/usr/sbin"];
    entries.extend(folders.map(|folder| dir(format!("./usr/lib/envd-init{folder}"))));
    entries.push(file("./usr/lib/envd-init/saved/usr/sbin/init", "left"));
    let base = bench.image("base", &entries);
    let out = bench.inject(&base, "out.ext4", &[]);
    assert_clean(&out);
    assert_eq!(read(&out, "/usr/lib/envd-init/saved/usr/sbin/init"), b"left");
    bench.same(&base, &bench.revert(&out, "reverted.ext4"));
}

/// The smallest that a file can take there is a cluster: what did not fit failed half-way, with another code.
#[test]
fn space_is_counted_in_clusters_where_the_filesystem_has_them() {
    let bench = Bench::new();
    let mut entries = debian(true);
    entries.push(file("./filler", vec![1; 5 << 20]));
    let options = ["-t", "ext4", "-b", "4096", "-m", "0", "-N", "2048", "-O", "bigalloc", "-C", "262144"];
    let base = bench.foreign_image("clusters", &entries, &options);
    let full = bench.path("full.ext4");
    fs::copy(&base, &full).expect("copied");
    let free = Image::open(&full).expect("opens").superblock.available_blocks() * 4096;
    let filler = bench.path("filler");
    fs::write(&filler, vec![1; free.saturating_sub(4 << 20) as usize]).expect("written");
    let script = bench.path("fill");
    fs::write(&script, format!("write {} /more\n", filler.display())).expect("written");
    let filled = tool("debugfs").arg("-w").arg("-f").arg(&script).arg(&full).output().expect("runs");
    assert!(filled.status.success());
    let refused = bench.try_inject(&full, &bench.path("out.ext4"), &[]);
    assert_eq!(refused.status.code(), Some(8), "{}", said(&refused));
}

/// The tool pinned what the wrapper runs unpinned, and the platform's swap of it was then refused.
#[test]
fn what_the_wrapper_runs_by_itself_is_not_pinned_and_a_link_to_what_others_can_write_is() {
    let pinned = |more: Vec<Entry>| {
        let bench = Bench::new();
        let mut entries = debian(true);
        entries.extend(more);
        let out = bench.inject(&bench.image("base", &entries), "out.ext4", &[]);
        Image::open(&out).expect("opens").find(b"/etc/envd-init/config.toml").expect("looked up").is_some()
    };
    let folder = |path: &str, mode: u32| Entry { mode, ..dir(path) };
    let program = |path: &str| program(path, elf(X86_64, "envd of the platform"));
    assert!(!pinned(vec![folder("./usr/bin", 0o775), program("./usr/bin/envd")]), "root's own group");
    assert!(!pinned(vec![folder("./", 0o777), program("./usr/bin/envd")]), "the machine is theirs anyway");
    let elsewhere =
        |mode| vec![folder("./opt", mode), program("./opt/envd"), link("./usr/bin/envd", "/opt/envd")];
    assert!(!pinned(elsewhere(0o755)));
    assert!(pinned(elsewhere(0o777)));
}

const STEPS: [&str; 6] = ["copy", "check-base", "write", "check", "flush", "publish"];

#[test]
fn a_kill_at_any_step_leaves_base_and_old_output_and_the_next_run_clears_up() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let out = bench.inject(&base, "out.ext4", &[]);
    let (base_before, out_before) = (fs::read(&base).expect("read"), fs::read(&out).expect("read"));
    let names = bench.names();
    fs::write(bench.path("guest/init"), elf(X86_64, "init 2")).expect("written");
    for step in STEPS {
        let mut command = bench.rootfs();
        command.env("ROOTFS_TEST_KILL_AT", step).arg("inject").arg(&base).arg("-o").arg(&out);
        let killed = command.arg("--guest").arg(bench.path("guest")).output().expect("runs");
        assert_eq!(killed.status.code(), None, "{step}: it was not killed: {}", said(&killed));
        assert!(fs::read(&base).expect("read") == base_before, "{step}: the base changed");
        assert!(fs::read(&out).expect("read") == out_before, "{step}: the old output changed");
    }
    // Between the two renames: the new image is there as a whole.
    let mut command = bench.rootfs();
    command.env("ROOTFS_TEST_KILL_AT", "publish:2").arg("inject").arg(&base).arg("-o").arg(&out);
    let killed = command.arg("--guest").arg(bench.path("guest")).output().expect("runs");
    assert_eq!(killed.status.code(), None, "{}", said(&killed));
    assert_eq!(read(&out, "/usr/lib/envd-init/init"), elf(X86_64, "init 2"));
    bench.inject(&base, "out.ext4", &[]);
    assert_eq!(bench.names(), names, "nothing temporary stays behind");
    assert_eq!(read(&out, "/usr/lib/envd-init/init"), elf(X86_64, "init 2"));
}

#[test]
fn a_revert_that_is_killed_leaves_the_image_and_an_old_output() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let image = bench.inject(&base, "image.ext4", &[]);
    let out = bench.revert(&image, "out.ext4");
    let (names, before) = (bench.names(), (fs::read(&image).expect("read"), fs::read(&out).expect("read")));
    for step in ["copy", "check-base", "revert", "flush", "publish"] {
        let mut command = bench.rootfs();
        command.env("ROOTFS_TEST_KILL_AT", step).arg("revert").arg(&image).arg("-o").arg(&out);
        let killed = command.output().expect("runs");
        assert_eq!(killed.status.code(), None, "{step}: it was not killed: {}", said(&killed));
        let after = (fs::read(&image).expect("read"), fs::read(&out).expect("read"));
        assert!(after == before, "{step}: a file changed");
    }
    bench.revert(&image, "out.ext4");
    assert_eq!(bench.names(), names, "nothing temporary stays behind");
}

#[test]
fn a_build_that_is_killed_leaves_nothing_after_the_next_one() {
    let bench = Bench::new();
    let tar = bench.tar("base.tar", &debian(true));
    let out = bench.path("out.ext4");
    let build = |kill: &str| {
        let mut command = bench.rootfs();
        command
            .env("ROOTFS_TEST_KILL_AT", kill)
            .arg("build")
            .arg(&tar)
            .args(["--size", "32", "-o"])
            .arg(&out);
        command.output().expect("runs").status
    };
    for step in ["read", "build", "flush", "publish"] {
        assert_eq!(build(step).code(), None, "{step}");
        assert!(!out.exists(), "{step}");
    }
    assert!(build("").success());
    assert_eq!(bench.names(), ["base.tar", "guest", "out.ext4", "out.ext4.manifest.json"]);
}

/// Ctrl-C and TERM leave nothing, not even until the next run.
#[test]
fn a_run_that_is_interrupted_clears_up_by_itself() {
    use std::io::Write;
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let bench = Bench::new();
        let names = bench.names();
        // Whoever runs the tests behind nohup has signals ignored, and what is ignored stays so.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(env!("CARGO_BIN_EXE_rootfs")).current_dir(bench.path(""));
        command.args(["build", "-", "-o", "out.ext4"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("runs");
        let mut tar = archive(&debian(true));
        tar.truncate(tar.len() - 1024);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(&tar).expect("written");
        let unpacked = bench.path(".out.ext4.baking/tree");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !unpacked.exists() {
            assert!(std::time::Instant::now() < deadline, "it never began to unpack");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("sent");
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(128 + signal as i32), "{}", said(&output));
        assert!(said(&output).contains("what was not finished is removed"), "{}", said(&output));
        assert_eq!(bench.names(), names);
    }
}

#[test]
fn two_bakes_on_one_output_take_turns() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let out = bench.path("out.ext4");
    let start = || {
        let mut command = bench.rootfs();
        command.arg("inject").arg(&base).arg("-o").arg(&out).arg("--guest").arg(bench.path("guest"));
        command.stderr(Stdio::piped()).spawn().expect("runs")
    };
    let running: Vec<_> = (0..4).map(|_| start()).collect();
    for child in running {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_clean(&out);
    assert!(!bench.names().iter().any(|name| name.contains("baking")));
}

#[test]
fn the_same_base_and_payload_give_the_same_bytes() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let elsewhere = bench.path("else where");
    fs::create_dir(&elsewhere).expect("made");
    fs::copy(&base, elsewhere.join("renamed.ext4")).expect("copied");
    let one = bench.inject(&base, "one.ext4", &[]);
    let two = elsewhere.join("two.ext4");
    let output = bench.try_inject(&elsewhere.join("renamed.ext4"), &two, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read(one).expect("read") == fs::read(two).expect("read"));
    let manifest = |name: &Path| fs::read_to_string(name).expect("read");
    assert_eq!(
        manifest(&bench.path("one.ext4.manifest.json")),
        manifest(&elsewhere.join("two.ext4.manifest.json"))
    );
}

/// A base that is younger than the time asked for is as good as any other.
#[test]
fn a_source_date_epoch_before_the_bases_own_time_is_respected() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let out = bench.path("out.ext4");
    let mut command = bench.rootfs();
    command.env("SOURCE_DATE_EPOCH", "1000000000").arg("inject").arg(&base).arg("-o").arg(&out);
    let output = command.arg("--guest").arg(bench.path("guest")).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    let image = Image::open(&out).expect("opens");
    assert_eq!(image.locate(b"/usr/lib/envd-init/init").expect("there").inode.mtime.seconds, 1_000_000_000);
    let verified = bench.rootfs().arg("verify").arg(&out).arg("--min-free=8").output().expect("runs");
    assert!(said(&verified).contains("e2fsck finds nothing"), "{}", said(&verified));
}

/// Under a SIZE the image grows and keeps what is in it, whatever its geometry; it never shrinks.
#[test]
fn an_image_is_enlarged_to_the_size_that_is_asked_for() {
    let platform = "^64bit,^dir_index,^dir_nlink,inline_data,sparse_super2";
    for options in [&["-t", "ext4"][..], &["-t", "ext4", "-b", "4096", "-i", "4096", "-O", platform]] {
        let bench = Bench::new();
        let base = bench.foreign_image("base", &debian(true), options);
        let out = bench.inject(&base, "out.ext4", &["--size=300"]);
        assert_clean(&out);
        assert_eq!(Image::open(&out).expect("opens").superblock.size(), 300 << 20);
        bench.same(&base, &bench.revert(&out, "reverted.ext4"));
        let smaller = bench.try_inject(&base, &bench.path("small.ext4"), &["--size=40"]);
        assert_eq!(smaller.status.code(), Some(8), "{}", said(&smaller));
        assert!(said(&smaller).contains("smaller than the image (48 MiB)"), "{}", said(&smaller));
    }
}

#[test]
fn holes_of_the_base_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let out = bench.inject(&base, "out.ext4", &[]);
    let blocks = |path: &Path| fs::metadata(path).expect("there").blocks() * 512;
    assert!(blocks(&out) < blocks(&base) + (1 << 20), "{} of {}", blocks(&out), blocks(&base));
}

/// dpkg itself, on a tree taken from an injected image: an upgrade of systemd-sysv does not put its init back.
#[test]
fn a_package_upgrade_in_the_guest_does_not_put_systemd_back() {
    let bench = Bench::new();
    let (Ok(_), Ok(_)) =
        (Command::new("dpkg-deb").arg("--version").output(), Command::new("dpkg").arg("--version").output())
    else {
        eprintln!("not run: dpkg is not installed");
        return;
    };
    let mut entries = debian(true);
    entries.extend([dir("./var/lib/dpkg/updates"), dir("./var/lib/dpkg/triggers")]);
    let base = bench.image("base", &entries);
    let out = bench.inject(&base, "out.ext4", &[]);
    let root = bench.path("root");
    fs::create_dir(&root).expect("made");
    let dump = format!("rdump / {}", root.display());
    assert!(tool("debugfs").args(["-R", &dump]).arg(&out).output().expect("runs").status.success());
    let package = bench.path("package");
    fs::create_dir_all(package.join("DEBIAN")).expect("made");
    fs::create_dir_all(package.join("sbin")).expect("made");
    let control =
        "Package: systemd-sysv\nVersion: 999\nArchitecture: all\nMaintainer: a <a@b>\nDescription: a test\n";
    fs::write(package.join("DEBIAN/control"), control).expect("written");
    fs::write(package.join("sbin/init"), "the upgraded init").expect("written");
    let deb = bench.path("p.deb");
    let made = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-b"])
        .arg(&package)
        .arg(&deb)
        .output()
        .expect("runs");
    assert!(made.status.success(), "{}", said(&made));
    let mut dpkg = tool("dpkg");
    dpkg.arg(format!("--root={}", root.display())).args(["--force-all", "-i"]).arg(&deb);
    let installed = dpkg.output().expect("runs");
    assert!(installed.status.success(), "{}", said(&installed));
    let init = fs::read_link(root.join("usr/sbin/init")).expect("still a link");
    assert_eq!(init, Path::new("/usr/lib/envd-init/init"));
    let saved = root.join("usr/lib/envd-init/saved/usr/sbin/init");
    assert_eq!(fs::read_to_string(saved).expect("the upgrade landed there"), "the upgraded init");
}

/// What the platform's provisioning does after a Dockerfile's steps: envd, its unit and the link to the init are written anew.
fn provision(bench: &Bench, image: &Path) {
    let (envd, unit) = (bench.path("platform-envd"), bench.path("envd.service"));
    fs::write(&envd, elf(X86_64, "envd of the platform")).expect("written");
    fs::write(&unit, "[Service]\nExecStart=/usr/bin/envd\n").expect("written");
    let present = |path: &str| {
        Image::open(image).expect("opens").find_link(path.as_bytes()).expect("looked up").is_some()
    };
    let mut script = String::new();
    for directory in ["/etc/systemd", "/etc/systemd/system"] {
        if !present(directory) {
            script += &format!("mkdir {directory}\n");
        }
    }
    for path in ["/usr/bin/envd", "/etc/systemd/system/envd.service", "/usr/sbin/init"] {
        if present(path) {
            script += &format!("rm {path}\n");
        }
    }
    script += &format!("write {} /usr/bin/envd\nsif /usr/bin/envd mode 0100755\n", envd.display());
    script += &format!("write {} /etc/systemd/system/envd.service\n", unit.display());
    script += "symlink /usr/sbin/init /lib/systemd/systemd\n";
    let path = bench.path("provision");
    fs::write(&path, script).expect("written");
    let output = tool("debugfs").arg("-w").arg("-f").arg(&path).arg(image).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{}", said(&output));
}

#[test]
fn what_came_by_dockerfile_survives_provisioning() {
    let bench = Bench::new();
    let tar = bench.path("payload.tar");
    let made = bench
        .rootfs()
        .arg("payload")
        .arg("--guest")
        .arg(bench.path("guest"))
        .arg("-o")
        .arg(&tar)
        .output()
        .expect("runs");
    assert!(made.status.success(), "{}", said(&made));
    let again = bench.path("again.tar");
    bench
        .rootfs()
        .arg("payload")
        .arg("--guest")
        .arg(bench.path("guest"))
        .arg("-o")
        .arg(&again)
        .output()
        .expect("runs");
    assert!(
        fs::read(&tar).expect("read") == fs::read(&again).expect("read"),
        "the same payload is the same tar"
    );
    // `ADD payload.tar /`: the image's archive and the payload's, one after the other.
    let mut both = archive(&debian(true));
    both.truncate(both.len() - 1024);
    both.extend(fs::read(&tar).expect("read"));
    fs::write(bench.path("both.tar"), both).expect("written");
    let image = bench.path("added.ext4");
    let built = bench
        .rootfs()
        .arg("build")
        .arg(bench.path("both.tar"))
        .args(["--size", "64", "-o"])
        .arg(&image)
        .output();
    assert!(built.expect("runs").status.success());
    let drop_in = "/usr/lib/systemd/system/envd.service.d/zz-envd-init.conf";
    let before = read(&image, drop_in);
    provision(&bench, &image);
    assert_clean(&image);
    assert_eq!(read(&image, drop_in), before);
    assert_eq!(read(&image, "/usr/lib/envd-init/envd-wrapper"), elf(X86_64, "envd-wrapper 1"));
    assert_eq!(read(&image, "/usr/bin/envd"), elf(X86_64, "envd of the platform"));
    assert_eq!(leads_to(&image, "/sbin/init"), "/usr/lib/systemd/systemd", "keep mode leaves the init alone");
    // And such an image can be injected, and comes back with the payload that it had.
    let native = bench.inject(&image, "native.ext4", &[]);
    assert_eq!(leads_to(&native, "/sbin/init"), "/usr/lib/envd-init/init");
    bench.same(&image, &bench.revert(&native, "reverted.ext4"));
}

#[test]
fn provisioning_after_native_is_seen_by_verify_and_healed_by_injecting_again() {
    let bench = Bench::new();
    let base = bench.image("base", &debian(true));
    let native = bench.inject(&base, "native.ext4", &[]);
    provision(&bench, &native);
    let verified = bench.rootfs().arg("verify").arg(&native).arg("--json").output().expect("runs");
    assert_eq!(verified.status.code(), Some(20));
    assert!(said(&verified).contains("/sbin/init leads to /usr/lib/systemd/systemd"), "{}", said(&verified));
    let healed = bench.inject(&native, "healed.ext4", &[]);
    assert_eq!(leads_to(&healed, "/sbin/init"), "/usr/lib/envd-init/init");
    assert_eq!(
        read(&healed, "/usr/bin/envd"),
        elf(X86_64, "envd of the platform"),
        "the platform's newer envd is kept"
    );
}

#[test]
fn every_exit_code_is_documented() {
    let documented = include_str!("../../docs/images.md");
    let source = include_str!("../src/exit.rs");
    let codes: Vec<&str> =
        source.lines().filter_map(|line| line.trim().strip_suffix(',')?.split(" = ").nth(1)).collect();
    assert!(codes.len() > 20);
    for code in codes {
        assert!(documented.contains(&format!("\n| {code} | ")), "code {code} is missing in docs/images.md");
    }
}
