//! Images as they really come, injected native and booted.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tests::image::{Bake, Envd, Image};
use tests::keep::Init;
use tests::net::run;
use tests::{Via, Vm, paths, wait};

/// The options of the platform's template build.
const PLATFORM: [&str; 8] = [
    "-O",
    "^64bit,^dir_index,^dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,inline_data,large_file,sparse_super2",
    "-b",
    "4096",
    "-m",
    "0",
    "-i",
    "4096",
];

fn envd() -> PathBuf {
    match Envd::preferred() {
        Envd::File(path) => path,
        _ => paths::stand_in().unwrap(),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A template's image as the platform leaves it after provisioning: written by the kernel, so that small files and folders lie in
/// their inodes, envd mode 0777, some blocks reserved.
fn platform_image(folder: &Path) -> PathBuf {
    let (image, mounted) = (folder.join("rootfs.filesystem.build"), folder.join("mounted"));
    let mut options = vec!["-q", "-F"];
    options.extend(PLATFORM);
    let path = text(&image);
    options.extend([path.as_str(), "640M"]);
    run("mkfs.ext4", &options).unwrap();
    fs::create_dir(&mounted).unwrap();
    // In a mount namespace of its own, so that no other one keeps the filesystem mounted, and unflushed, after the umount.
    let fill = "mount -o loop \"$0\" \"$1\" && tar -xf \"$2\" -C \"$1\" && install -m 777 \"$3\" \"$1/usr/bin/envd\" && umount \"$1\"";
    let base = text(&Init::Systemd.base().unwrap());
    run("unshare", &["-m", "sh", "-c", fill, &path, &text(&mounted), &base, &text(&envd())]).unwrap();
    run("tune2fs", &["-r", "2000", &path]).unwrap();
    image
}

#[test]
fn an_image_of_the_platforms_template_build_boots_native_and_takes_its_update_of_envd() {
    tests::require_root().unwrap();
    let folder = tempfile::tempdir_in(paths::output("tmp").unwrap()).unwrap();
    let vm = boot(&Image::native().base(&platform_image(folder.path())).envd(Envd::None), folder.path());
    assert_eq!(vm.sh(Via::Tcp, "readlink /proc/1/exe").unwrap(), "/usr/lib/envd-init/init");
    tests::life::updates(&vm, "systemctl restart envd").unwrap();
}

/// Nothing but busybox, as in Alpine: no /bin/bash, /sbin a folder of its own, no package manager.
#[test]
fn an_image_of_busybox_boots_native() {
    tests::require_root().unwrap();
    let folder = tempfile::tempdir_in(paths::output("tmp").unwrap()).unwrap();
    let root = folder.path().join("root");
    for name in
        ["bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "root", "usr/bin", "usr/sbin", "lib"]
    {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["bin/sh", "bin/mount", "bin/umount", "sbin/init"] {
        symlink("/bin/busybox", root.join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/hosts"), "127.0.0.1\tlocalhost\n").unwrap();
    let vm = boot(&Image::native().base(&root).envd(Envd::StandIn), folder.path());
    assert_eq!(vm.get(Via::Vsock, "/health").unwrap().status, 204);
}

fn boot(bake: &Bake, folder: &Path) -> Vm {
    let vm = Vm::of(&bake.bake_to(&folder.join("out.ext4")).unwrap()).boot().unwrap();
    vm.wait_healthy_within(Via::Tcp, wait::BOUND).unwrap();
    vm
}
