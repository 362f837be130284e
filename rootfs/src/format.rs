//! What a file that was taken for an image or an archive really is, as far as its first bytes tell.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

/// Bytes that are looked at: the magic number of btrfs lies farthest behind.
const HEAD: usize = 0x10048;

/// Offset, magic number, and what to do with such a file.
const KNOWN: [(usize, &[u8], &str); 10] = [
    (0, b"QFI\xfb", "a qcow2 image: convert it first (qemu-img convert -O raw)"),
    (512, b"EFI PART", "a disk with partitions: take the one with the root filesystem out first"),
    (0, b"hsqs", "a squashfs image: unpack it first (unsquashfs), BASE=that folder"),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs image: mount it, BASE=that folder"),
    (0, b"XFSB", "an xfs image: mount it, BASE=that folder"),
    (0x10040, b"_BHRfS_M", "a btrfs image: mount it, BASE=that folder"),
    (0, b"PK\x03\x04", "a zip archive: unpack it first, BASE=that folder"),
    (0, b"!<arch>\n", "a package of Debian's: unpack it first (dpkg-deb -x), BASE=that folder"),
    (0, b"070701", "a cpio archive: unpack it first, BASE=that folder"),
    (510, b"\x55\xaa", "a disk with partitions: take the one with the root filesystem out first"),
];

/// `, but a qcow2 image: …`, or nothing.
pub fn hint(path: &Path) -> String {
    let mut head = vec![0; HEAD];
    let Ok(len) = File::open(path).and_then(|file| file.read_at(&mut head, 0)) else { return String::new() };
    head.truncate(len);
    let found =
        KNOWN.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map(|(_, _, what)| format!("; it is {what}")).unwrap_or_default()
}
