//! What a run was made on.

use std::fs;
use std::process::Command;

use tests::vm::{Accel, qemu_version};
use tests::{Envd, Kernel};

/// A few lines of Markdown.
pub(super) fn describe(seconds: u64) -> String {
    let lines = [
        format!("- machine: {}", processor()),
        format!(
            "- host: Linux {}, {}",
            read("/proc/sys/kernel/osrelease"),
            first_line("socat", &["-V"], "socat version")
        ),
        format!(
            "- VM: {}, {}, {}",
            qemu_version().unwrap_or_default(),
            acceleration(),
            Kernel::preferred().name()
        ),
        format!("- envd: {}", if Envd::real().is_some() { "the real one (ENVD)" } else { "the stand-in" }),
        format!(
            "- load average at the end: {}",
            read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")
        ),
        format!("- took {} min {} s", seconds / 60, seconds % 60),
    ];
    lines.join("\n")
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU").to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores")
}

fn acceleration() -> &'static str {
    match Accel::choose() {
        Ok(Accel::Kvm) => "KVM",
        _ => "software emulation (TCG)",
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn first_line(program: &str, arguments: &[&str], with: &str) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(with)).unwrap_or(program);
    line.split(" on ").next().unwrap_or(line).to_owned()
}
