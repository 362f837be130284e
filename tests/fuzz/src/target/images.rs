//! The reader of ext4 images, on images of every layout that it understands, with their metadata damaged.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use fastrand::Rng;
use rootfs::ext4::{Image, ROOT};
use rootfs::{inspect, tree};

use super::{Seeds, Target};
use crate::run;

pub(super) const EXT4: Target = Target {
    name: "ext4",
    run: read_all,
    seeds: Seeds::Images,
    sources: &[
        "rootfs/src/ext4/acl.rs",
        "rootfs/src/ext4/dir.rs",
        "rootfs/src/ext4/inode.rs",
        "rootfs/src/ext4/mod.rs",
        "rootfs/src/ext4/path.rs",
        "rootfs/src/ext4/superblock.rs",
        "rootfs/src/ext4/xattr.rs",
    ],
};

/// Layouts: what `mke2fs` is given, and the size.
const LAYOUTS: &[(&[&str], &str)] = &[
    (&["-t", "ext4", "-b", "4096", "-J", "size=4"], "16M"),
    (&["-t", "ext4", "-b", "1024", "-I", "256", "-O", "inline_data,ea_inode,^has_journal,^dir_index"], "4M"),
    (&["-t", "ext2", "-b", "1024", "-I", "128"], "4M"),
    (&["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^has_journal,64bit", "-g", "256"], "8M"),
    (&["-t", "ext4", "-b", "4096", "-O", "bigalloc,sparse_super2,^has_journal", "-C", "16384"], "8M"),
];
/// What is in each, besides the files: attributes, and a file whose blocks lie apart.
const DEBUGFS: &str = "ea_set /usr/bin/envd user.note hello\nea_set /big system.posix_acl_access -f ACL\n\
    ea_set /usr/bin security.capability -f ACL\nea_set /etc user.long -f LONG\nmknod /console c 5 1\nmknod /vda b 254 0\n\
    mknod /fifo p\nmknod /far c 300 1000\n";
/// An ACL as `getxattr` gives it: version 2, then tag, permissions and id each.
const ACL: [(u16, u16, u32); 5] =
    [(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];

/// Images without end: those of the corpus and the layouts as they are, then damaged ones.
pub(super) fn inputs(corpus: Vec<Vec<u8>>, seed: u64) -> Result<impl Iterator<Item = Vec<u8>> + use<>> {
    let mut images = corpus;
    for (args, size) in LAYOUTS {
        images.push(make(args, size)?);
    }
    let mut rng = Rng::with_seed(seed);
    let whole = images.clone().into_iter();
    Ok(whole.chain(std::iter::repeat_with(move || damaged(&images, &mut rng))))
}

fn make(args: &[&str], size: &str) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let (stage, image) = (dir.path().join("stage"), dir.path().join("image"));
    lay_out(&stage)?;
    run(Command::new("mke2fs")
        .args(["-q", "-F"])
        .args(args)
        .args(["-E", "lazy_itable_init=0", "-d"])
        .args([&stage, &image])
        .arg(size))?;
    let entries = ACL.iter().flat_map(|(tag, permissions, id)| {
        let half = [tag.to_le_bytes(), permissions.to_le_bytes()].concat();
        [half, id.to_le_bytes().to_vec()].concat()
    });
    fs::write(dir.path().join("acl"), 2_u32.to_le_bytes().into_iter().chain(entries).collect::<Vec<u8>>())?;
    fs::write(dir.path().join("long"), "x".repeat(3000))?;
    let script = DEBUGFS
        .replace("ACL", &dir.path().join("acl").display().to_string())
        .replace("LONG", &dir.path().join("long").display().to_string());
    fs::write(dir.path().join("script"), script)?;
    run(Command::new("debugfs").args(["-w", "-f"]).args([&dir.path().join("script"), &image]))?;
    Ok(fs::read(image)?)
}

fn lay_out(stage: &Path) -> Result<()> {
    for folder in ["usr/bin", "usr/lib/systemd", "etc/deep/er", "many", "usr/sbin"] {
        fs::create_dir_all(stage.join(folder))?;
    }
    fs::write(stage.join("usr/bin/envd"), b"\x7fELF\x02\x01\x01 an envd")?;
    fs::write(stage.join("usr/lib/os-release"), "ID=debian\nPRETTY_NAME=\"Debian\"\n")?;
    fs::write(stage.join("usr/lib/systemd/systemd"), "x")?;
    fs::write(stage.join("etc/hostname"), "a\n")?;
    fs::write(stage.join("etc/inline"), "i".repeat(100))?;
    std::os::unix::net::UnixListener::bind(stage.join("etc/socket"))?;
    // Enough for each level of a block map with small blocks, and holes between.
    let big = fs::File::create(stage.join("big"))?;
    for block in [0_u64, 5, 13, 300, 900] {
        std::os::unix::fs::FileExt::write_all_at(&big, &[7; 1024], block * 1024)?;
    }
    fs::write(stage.join("whole"), vec![9; 400 * 1024])?;
    for number in 0..60 {
        fs::write(stage.join(format!("many/file-with-a-rather-long-name-{number}")), [])?;
    }
    fs::hard_link(stage.join("etc/hostname"), stage.join("etc/deep/er/hostname"))?;
    symlink("usr/sbin", stage.join("sbin"))?;
    symlink("../lib/systemd/systemd", stage.join("usr/sbin/init"))?;
    symlink("loop", stage.join("loop"))?;
    symlink("/nowhere", stage.join("dangling"))?;
    Ok(symlink(format!("/{}/hostname", "etc/../".repeat(30)), stage.join("long-link"))?)
}

/// One of the images with a few of its metadata changed: mostly where numbers are that others depend on.
fn damaged(images: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut image = images[rng.usize(..images.len())].clone();
    for _ in 0..rng.usize(1..6) {
        let at = place(&image, rng);
        change(&mut image, at, rng);
    }
    if rng.u8(..50) == 0 {
        image.truncate(rng.usize(..image.len()));
    }
    image
}

/// A field of the superblock, or any place in a block that is not empty.
fn place(image: &[u8], rng: &mut Rng) -> usize {
    if rng.u8(..6) == 0 {
        return 1024 + rng.usize(..0x260);
    }
    for _ in 0..64 {
        let at = rng.usize(..image.len() / 16) * 16;
        // The lower blocks hold most of the metadata.
        let at = if rng.bool() { at } else { at % (512 * 1024) };
        let piece = &image[at..at + 16];
        if piece.iter().any(|byte| *byte != 0 && *byte != 7 && *byte != 9) {
            return at + rng.usize(..16);
        }
    }
    1024
}

fn change(image: &mut [u8], at: usize, rng: &mut Rng) {
    const INTERESTING: [u32; 9] = [0, 1, 2, 7, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    let at = at.min(image.len() - 4);
    match rng.u8(..5) {
        0 => image[at] ^= 1 << rng.u8(..8),
        1 => image[at] = rng.u8(..),
        2 => image[at..at + 4].copy_from_slice(&INTERESTING[rng.usize(..INTERESTING.len())].to_le_bytes()),
        // A number from elsewhere: blocks and inodes that are used twice, trees that lead back to themselves.
        3 => {
            let other = rng.usize(..image.len() / 4) * 4;
            image.copy_within(other..other + 4, at & !3);
        }
        _ => image[at..at + 2].copy_from_slice(&rng.u16(..4096).to_le_bytes()),
    }
}

const PATHS: [&str; 11] = [
    "/sbin/init",
    "/loop",
    "/dangling",
    "/long-link/x",
    "/etc/../etc/hostname",
    "/etc/hostname/below",
    "/etc/inline",
    "/big",
    "/whole",
    "/many/none",
    "/usr/bin",
];

/// Everything that the tools look at.
fn read_all(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), bytes).expect("room for an image");
    let Ok(image) = Image::open(file.path()) else { return };
    let _ = image.superblock.uuid_text();
    let _ = inspect::facts(&image).map(|facts| inspect::text(&facts));
    if let Ok(tree) = tree::read(&image) {
        assert!(
            tree.values().all(|node| node.mode & node.kind.mode_bits() == 0 && !node.kind.name().is_empty())
        );
        let _ = tree::hard_links(&tree);
    }
    assert!(image.path() == file.path());
    let _ = image.child(ROOT, b"etc");
    for path in PATHS {
        let _ = image.find_link(path.as_bytes()).map_err(|error| error.to_string());
        let _ = image.resolve_dir(path.as_bytes()).map_err(|error| error.to_string());
        if let Ok(Some(found)) = image.find(path.as_bytes()) {
            let read = image.contents(&found.inode);
            let _ = image.read_dir(&found.inode);
            // Holes of any length can be digested, in their time; here only what is no longer than the image itself.
            if read.is_ok_and(|bytes| bytes.len() as u64 <= image.superblock.size()) {
                let _ = tree::sha256(&image, &found.inode);
            }
        }
    }
}
