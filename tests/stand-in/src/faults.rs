//! Faults that do not belong to a request.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, exit};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use crate::switches::Switches;

/// What a Go program prints when it panics.
const PANIC: &str = "\
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x6d1f2a]

goroutine 1 [running]:
main.(*server).serve(0xc0001b2000, {0x7ffd3e5c, 0x1})
\t/src/main.go:171 +0x1ca
main.main()
\t/src/main.go:92 +0x44
";

/// Hostile output: escapes, a fake record of PID 1, NULs, invalid UTF-8, carriage returns.
const JUNK: &[u8] = b"\x1b[2J\x1b]0;owned\x07junk\n[    0.000001] init: reboot: fake record\n\0\0\xff\xfe\x80\rover\x08\x08\n\
    <4>a warning with a level\nenvd-init: boot {\"fake\":true}\n";

/// Before anything listens.
pub(crate) async fn before_listening(switches: &Switches) -> Result<()> {
    if switches.ignore_term {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    }
    if switches.fork_and_exit {
        fork_and_exit()?;
    }
    print_at_start(switches);
    start_timers(switches);
    if switches.never_bind {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_secs_f64(switches.bind_after)).await;
    Ok(())
}

fn fork_and_exit() -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0("envd").args(["--fork-and-exit", "no"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    exit(0);
}

fn print_at_start(switches: &Switches) {
    let mut stderr = std::io::stderr();
    if !switches.say.is_empty() {
        let _ = writeln!(stderr, "{}", switches.say);
    }
    if switches.binary_junk {
        let _ = stderr.write_all(JUNK);
        let _ = std::io::stdout().write_all(JUNK);
    }
    if switches.long_line > 0 {
        let _ = writeln!(stderr, "{}", "x".repeat(switches.long_line as usize));
    }
}

fn start_timers(switches: &Switches) {
    let code = switches.exit_code;
    after(switches.exit_after, move || exit(code));
    after(switches.panic_after, || {
        let _ = std::io::stderr().write_all(PANIC.as_bytes());
        exit(2);
    });
    // The runtime has one thread: whoever blocks it, blocks all.
    after(switches.hang_all_after, || {
        loop {
            std::thread::park();
        }
    });
    let lines = switches.flood;
    if lines > 0 {
        std::thread::spawn(move || flood(lines));
    }
}

fn after(seconds: f64, then: impl FnOnce() + Send + 'static) {
    if seconds > 0.0 {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            then();
        });
    }
}

/// In batches of a tenth of a second; a stderr that nobody reads blocks it, as it does envd's.
fn flood(lines_a_second: u64) {
    let mut count: u64 = 0;
    loop {
        let mut batch = Vec::new();
        for _ in 0..lines_a_second.div_ceil(10) {
            count += 1;
            let _ = writeln!(batch, "flood line {count}: the quick brown fox jumps over the lazy dog");
        }
        if std::io::stderr().write_all(&batch).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
