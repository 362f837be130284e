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
    let fill = "mount -o loop \"$0\" \"$1\" && tar -xf \"$2\" -C \"$1\" && install -m 777 \"$3\" \"$1/usr/bin/envd\" && cp -a \"$4/.\" \"$1\" && umount \"$1\"";
    let base = text(&Init::Systemd.base().unwrap());
    let units = text(&units(folder));
    run("unshare", &["-m", "sh", "-c", fill, &path, &text(&mounted), &base, &text(&envd()), &units]).unwrap();
    run("tune2fs", &["-r", "2000", &path]).unwrap();
    image
}

/// Two services of a template's author: one writes to a file of its own, and the other is for machines without a name.
fn units(folder: &Path) -> PathBuf {
    let root = folder.join("units");
    let system = root.join("etc/systemd/system");
    fs::create_dir_all(system.join("multi-user.target.wants")).unwrap();
    for (name, condition) in [("marked", "!/run/no-such-file"), ("nameless", "!/etc/hostname")] {
        let unit = format!(
            "[Unit]\nConditionPathExists={condition}\n[Service]\nExecStart=/bin/sh -c 'echo {name}; exec sleep infinity'\n\
             StandardOutput=append:/var/log/{name}.log\n[Install]\nWantedBy=multi-user.target\n"
        );
        let file = format!("{name}.service");
        fs::write(system.join(&file), unit).unwrap();
        symlink(format!("../{file}"), system.join("multi-user.target.wants").join(&file)).unwrap();
    }
    root
}

/// What such units ask for is asked when they are started.
fn units_are_served(vm: &Vm) {
    let written = || Ok(vm.sh(Via::Tcp, "cat /var/log/marked.log").ok().filter(|text| text == "marked"));
    wait::gently("the unit's own file", wait::BOUND, written).unwrap();
    let active = |name: &str| vm.sh(Via::Tcp, &format!("systemctl is-active {name} || true")).unwrap();
    assert_eq!((active("marked").as_str(), active("nameless").as_str()), ("active", "inactive"));
    assert_eq!(vm.sh(Via::Tcp, "ls /var/log/nameless.log 2>/dev/null || true").unwrap(), "");
}

#[test]
fn an_image_of_the_platforms_template_build_boots_native_and_takes_its_update_of_envd() {
    tests::require_root().unwrap();
    let folder = tempfile::tempdir_in(paths::output("tmp").unwrap()).unwrap();
    let vm = boot(&Image::native().base(&platform_image(folder.path())).envd(Envd::None), folder.path());
    assert_eq!(vm.sh(Via::Tcp, "readlink /proc/1/exe").unwrap(), "/usr/lib/envd-init/init");
    units_are_served(&vm);
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
