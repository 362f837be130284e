//! The harness itself, on an image that holds nothing but busybox: what it promises must not hang on our own programs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use tests::http::hybrid_vsock;
use tests::net::run;
use tests::{Image, Kernel, Via, Vm, wait};

/// Prints what it was given, then serves a line on vsock-free TCP for as long as it lives.
const INIT: &str = r#"#!/bin/sh
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox mount -t proc proc /proc
read -r cmdline </proc/cmdline
echo "cmdline $cmdline"
/bin/busybox ip addr add 169.254.0.21/30 dev eth0 2>/dev/null
/bin/busybox ip link set eth0 up && echo "eth0 is up"
echo "uptime at start"
/bin/busybox nc -l -l -p 49983 -e /bin/busybox echo hello &
while read -r line; do
    case $line in
    reboot) /bin/busybox reboot -f ;;
    *) echo "heard $line" ;;
    esac
done
"#;

static IMAGE: LazyLock<PathBuf> =
    LazyLock::new(|| busybox_image().expect("busybox and mke2fs make an image"));

fn busybox_image() -> anyhow::Result<PathBuf> {
    let out = tests::paths::output("test-images")?.join(format!("busybox-{}.ext4", std::process::id()));
    let stage = std::env::temp_dir().join(format!("busybox-{}", std::process::id()));
    for dir in ["bin", "sbin", "dev", "proc"] {
        fs::create_dir_all(stage.join(dir))?;
    }
    fs::copy("/bin/busybox", stage.join("bin/busybox"))?;
    symlink("busybox", stage.join("bin/sh"))?;
    fs::write(stage.join("sbin/init"), INIT)?;
    fs::set_permissions(stage.join("sbin/init"), fs::Permissions::from_mode(0o755))?;
    let (from, to) = (stage.display().to_string(), out.display().to_string());
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &from, &to, "8M"])?;
    fs::remove_dir_all(stage)?;
    Ok(out)
}

/// A VM boots on each kernel with the platform's command line; the kernel with built-in drivers served `ip=` itself.
#[test]
fn each_kernel_boots_and_is_reached_over_the_tap() {
    for kernel in Kernel::each() {
        let vm = Vm::of_file(&IMAGE).kernel(kernel.clone()).boot().unwrap();
        let line = vm.console().wait("^cmdline ").unwrap();
        assert!(line.contains("ip=169.254.0.21::169.254.0.22") && !line.contains("console="), "{line}");
        vm.console().wait("^eth0 is up").unwrap();
        assert!(
            vm.netns().run("ping", &["-c", "1", "-w", "60", "169.254.0.21"]).is_ok(),
            "{}",
            kernel.name()
        );
    }
}

/// Two VMs with the same addresses live side by side, and nothing of them is left when they are dropped.
#[test]
fn vms_side_by_side_do_not_meet_and_leave_nothing() {
    let vms = [Vm::of_file(&IMAGE).boot().unwrap(), Vm::of_file(&IMAGE).boot().unwrap()];
    for (number, vm) in vms.iter().enumerate() {
        vm.console().wait("uptime at start").unwrap();
        vm.console().send(&format!("number {number}\n")).unwrap();
        vm.console().wait(&format!("heard number {number}")).unwrap();
    }
    assert!(!vms[0].console().has("number 1").unwrap());
    let left: Vec<(PathBuf, PathBuf)> =
        vms.iter().map(|vm| (vm.netns().path(), vm.dir().to_owned())).collect();
    let pids: Vec<u32> = vms.iter().map(|vm| vm.qemu().pid()).collect();
    drop(vms);
    for (netns, dir) in left {
        assert!(!netns.exists() && !dir.exists());
    }
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

/// A guest that stands still is told apart from one that ended; a reboot ends the VM, as it does under Firecracker.
#[test]
fn the_monitor_stops_and_continues_and_a_reboot_ends_the_vm() {
    let vm = Vm::of_file(&IMAGE).boot().unwrap();
    vm.console().wait("uptime at start").unwrap();
    vm.qmp().stop().unwrap();
    assert_eq!(vm.qmp().status().unwrap(), "paused");
    vm.qmp().cont().unwrap();
    let mark = vm.console().mark();
    vm.console().send("again\n").unwrap();
    vm.console().wait_after(mark, "heard again").unwrap();
    vm.console().send("reboot\n").unwrap();
    assert!(vm.wait_end().unwrap().success());
    let error = vm.console().wait("this never comes").unwrap_err().to_string();
    assert!(error.contains("the VM ended"), "{error}");
}

/// The device is as patient as Firecracker's: who asks before the guest's driver is there or while the VM stands still, and leaves
/// again, ends nothing, and who stays is answered.
#[test]
fn vsock_is_there_after_being_asked_too_early_and_during_a_pause() {
    let vm = Vm::of(&Image::native().bake().unwrap()).boot().unwrap();
    let port = u32::from(envd_api::PORT);
    let impatient = || drop(hybrid_vsock(&vm.vsock_socket(), port, Duration::from_millis(20)));
    wait::until("the guest to boot", wait::BOUND, || {
        impatient();
        Ok(vm.console().has("envd is healthy")?.then_some(()))
    })
    .unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    for _ in 0..3 {
        vm.qmp().stop().unwrap();
        (0..5).for_each(|_| impatient());
        let patient = std::thread::spawn({
            let socket = vm.vsock_socket();
            move || hybrid_vsock(&socket, port, wait::BOUND).is_ok()
        });
        std::thread::sleep(Duration::from_millis(100));
        vm.qmp().cont().unwrap();
        assert!(patient.join().unwrap());
        assert_eq!(vm.get(Via::Vsock, "/health").unwrap().status, 204);
    }
}

/// What a failed test needs is kept, and the rest is removed, when it panics.
#[test]
fn a_panicking_test_keeps_the_console_and_nothing_else() {
    let vm = Vm::of_file(&IMAGE).boot().unwrap();
    vm.console().wait("uptime at start").unwrap();
    let (netns, dir) = (vm.netns().path(), vm.dir().to_owned());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _vm = vm;
        panic!("on purpose");
    }));
    assert!(panicked.is_err() && !netns.exists() && !dir.exists());
    let kept = tests::paths::root().join("target/vm-logs").join(dir.file_name().unwrap());
    assert!(fs::read_to_string(kept.join("console.log")).unwrap().contains("uptime at start"));
    fs::remove_dir_all(kept).unwrap();
}
