//! Images that were written by a mounted kernel and cut off: the journal is replayed on the copy, the base stays as it is.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use support::*;

/// Mounts an image, writes to it and takes a copy while it is mounted. `None` where mounting is not allowed.
fn cut_off(bench: &Bench, image: &Path) -> Option<PathBuf> {
    let folder = bench.path("mounted");
    fs::create_dir(&folder).expect("made");
    let mounted =
        Command::new("mount").args(["-o", "loop"]).arg(image).arg(&folder).output().expect("mount runs");
    if !mounted.status.success() {
        eprintln!("not run: mounting needs root and a loop device: {}", said(&mounted).trim());
        return None;
    }
    for index in 0..50 {
        fs::write(folder.join(format!("written-{index}")), format!("by the kernel {index}"))
            .expect("written");
    }
    fs::remove_file(folder.join("etc/os-release")).expect("removed");
    // A file that is deleted while in use, as every running machine has some.
    let in_use = fs::File::create(folder.join("in-use")).expect("made");
    in_use.set_len(1 << 20).expect("set");
    std::os::unix::fs::FileExt::write_all_at(&in_use, &vec![7; 70_000], 0).expect("written");
    in_use.sync_all().expect("flushed");
    fs::remove_file(folder.join("in-use")).expect("removed");
    let synced = Command::new("sync").arg("-f").arg(&folder).status().expect("sync runs");
    let copy = bench.path("cut.ext4");
    fs::copy(image, &copy).expect("copied");
    drop(in_use);
    // Lazily: a program that another test starts holds copies of all descriptors for a moment.
    let unmounted = Command::new("umount").arg("-l").arg(&folder).status().expect("umount runs");
    assert!(synced.success() && unmounted.success());
    Some(copy)
}

#[test]
fn a_journal_is_replayed_before_anything_is_written() {
    let bench = Bench::new();
    let image = bench.foreign_image("base", &debian(true), &["-t", "ext4"]);
    let Some(dirty) = cut_off(&bench, &image) else { return };
    let before = fs::read(&dirty).expect("read");
    assert!(rootfs::ext4::Image::open(&dirty).expect("opens").superblock.needs_recovery());
    let verified = bench.rootfs().arg("verify").arg(&dirty).output().expect("runs");
    assert!(said(&verified).contains("its journal has to be replayed"), "{}", said(&verified));
    let out = bench.inject(&dirty, "out.ext4", &[]);
    assert_clean(&out);
    assert!(fs::read(&dirty).expect("read") == before, "the base is as it was");
    let opened = rootfs::ext4::Image::open(&out).expect("opens");
    for index in 0..50 {
        let found =
            opened.locate(format!("/written-{index}").as_bytes()).expect("the kernel's file is there");
        assert_eq!(
            opened.contents(&found.inode).expect("read"),
            format!("by the kernel {index}").into_bytes()
        );
    }
    assert!(opened.find(b"/etc/os-release").expect("looked up").is_none());
    assert!(!opened.superblock.needs_recovery());
}

/// The counts of free blocks and inodes in the superblock are out of date after a crash, and files that were deleted while in use are
/// still there: `e2fsck -n` ends with 0 for the former, and the space check would believe them.
#[test]
fn an_image_of_a_running_machine_is_brought_in_order_with_the_right_counts() {
    for options in [&["-t", "ext4"][..], &["-t", "ext4", "-O", "orphan_file"]] {
        let bench = Bench::new();
        let image = bench.foreign_image("base", &debian(true), options);
        let Some(dirty) = cut_off(&bench, &image) else { return };
        let wrong = tool("debugfs").args(["-w", "-R", "ssv free_blocks_count 11000"]).arg(&dirty).output();
        assert!(wrong.expect("debugfs runs").status.success());
        let out = bench.inject(&dirty, "out.ext4", &[]);
        let check = tool("e2fsck").arg("-fn").arg(&out).output().expect("e2fsck runs");
        assert!(check.status.success() && !said(&check).contains("Fix?"), "{}", said(&check));
        assert!(!rootfs::ext4::Image::open(&out).expect("opens").superblock.needs_recovery());
    }
}

#[test]
fn stale_counts_of_an_unmounted_image_are_no_damage() {
    let bench = Bench::new();
    let image = bench.image("base", &debian(true));
    let wrong = tool("debugfs").args(["-w", "-R", "ssv free_inodes_count 900"]).arg(&image).output();
    assert!(wrong.expect("debugfs runs").status.success());
    let out = bench.inject(&image, "out.ext4", &[]);
    let check = tool("e2fsck").arg("-fn").arg(&out).output().expect("e2fsck runs");
    assert!(!said(&check).contains("Fix?"), "{}", said(&check));
}

/// What the kernel reads from an image of ours is what went in: the last judge.
#[test]
fn the_kernel_mounts_a_built_image_and_finds_owners_devices_and_attributes() {
    let bench = Bench::new();
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
        16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];
    let caps = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let entries = [
        dir("./"),
        file("./caps", "c").xattr("security.capability", &caps),
        Entry { mode: 0o664, ..file("./acl", "x") }.xattr("system.posix_acl_access", &acl),
        Entry { device: (259, 70_000), ..entry(b'4', "./disk", 0o660) }.owned(70_000, 6),
    ];
    let image = bench.image("kernel", &entries);
    let folder = bench.path("mounted");
    fs::create_dir(&folder).expect("made");
    let mounted =
        Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&folder).output().expect("mount runs");
    if !mounted.status.success() {
        eprintln!("not run: mounting needs root and a loop device: {}", said(&mounted).trim());
        return;
    }
    let source = rootfs::source::scan(&folder, None);
    assert!(Command::new("umount").arg(&folder).status().expect("umount runs").success());
    let contents = source.expect("scanned").contents;
    let value = |path: &[u8], name: &[u8]| contents[path].xattrs.get(name).cloned().unwrap_or_default();
    assert_eq!(value(b"/caps", b"security.capability"), caps);
    assert_eq!(value(b"/acl", b"system.posix_acl_access"), acl);
    assert_eq!(
        (contents[b"/disk".as_slice()].uid, contents[b"/disk".as_slice()].device),
        (70_000, Some((259, 70_000)))
    );
}
