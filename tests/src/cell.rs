//! A world without a VM in which the guest's programs run as they are: namespaces of their own for processes, mounts, network
//! and cgroups, an empty `/run`, a serial line that the test reads (or does not), and cgroup2 with the group `envd`.
//!
//! A shell is its first process and starts a program again whenever it fails, as a bare shell script would: what tests of
//! keep mode and of PID 1 do in a VM is done here for the wrapper alone, in a fraction of a second.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use regex_lite::Regex;

use crate::net::run;
use crate::{paths, wait};

/// Anything here takes milliseconds; the bound is for a machine that does other things as well.
const BOUND: Duration = Duration::from_secs(60);

/// Lays the world out; `$1` is the test's folder, `$2` its name, then the program. Two stages, since the group of a cgroup
/// namespace is the one that one is in when it is made.
const OUTER: &str = r#"
set -eu
dir=$1 name=$2; shift 2
ip link set lo up
mkdir "$dir/cgroup"
mount -t cgroup2 none "$dir/cgroup"
mkdir "$dir/cgroup/$name"
echo 0 >"$dir/cgroup/$name/cgroup.procs"
exec unshare --cgroup sh -c "$INNER" cell "$dir" "$@"
"#;
const INNER: &str = r#"
set -eu
dir=$1; shift
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "/dev/${node%:*}" c 1 "${node#*:}"; done
ln -s /proc/self/fd /dev/fd
touch /dev/ttyS0
mount --bind "$dir/console" /dev/ttyS0
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/init /sys/fs/cgroup/envd /sys/fs/cgroup/user /sys/fs/cgroup/socats
echo 0 >/sys/fs/cgroup/init/cgroup.procs
cp -r "$dir/run/." /run
touch "$dir/ready"
status=1
while [ "$status" != 0 ] && [ "$status" != 2 ] && [ ! -e /run/enough ]; do
    status=0
    sh -c 'echo 0 >/sys/fs/cgroup/envd/cgroup.procs; exec "$0" "$@"' "$@" 2>>"$dir/stderr" || status=$?
done
exit "$status"
"#;

/// What a cell is made of.
#[derive(Debug)]
pub struct Builder {
    folder: PathBuf,
    name: String,
    files: Vec<(PathBuf, String)>,
    executables: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    reads_console: bool,
}

/// A running cell; dropped, everything in it ends.
#[derive(Debug)]
pub struct Cell {
    shell: Child,
    folder: PathBuf,
    name: String,
    console: Arc<Mutex<Vec<u8>>>,
    line: Option<File>,
}

impl Cell {
    /// The folder is the test's to put programs into before it starts.
    pub fn builder() -> Result<Builder> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        crate::require_root()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cell-{}-{number}", std::process::id());
        // Not below /tmp: a program in a folder that others can write is not trusted.
        let folder = Path::new("/var/lib").join(&name);
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join("run"))?;
        mkfifo(&folder.join("console"), Mode::S_IRWXU)?;
        Ok(Builder {
            folder,
            name,
            files: Vec::new(),
            executables: Vec::new(),
            environment: Vec::new(),
            reads_console: true,
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the serial line got so far.
    pub fn console(&self) -> String {
        let bytes = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes themselves.
    pub fn console_bytes(&self) -> Vec<u8> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the serial line shows `pattern`, and returns the first line that does.
    pub fn wait(&self, pattern: &str) -> Result<String> {
        self.wait_nth(pattern, 1)
    }

    /// Waits for the `nth` line with `pattern`.
    pub fn wait_nth(&self, pattern: &str, nth: usize) -> Result<String> {
        let expression = Regex::new(pattern)?;
        let found = wait::until(&format!("{pattern:?}"), BOUND, || {
            let text = self.console();
            Ok(text.lines().filter(|line| expression.is_match(line)).nth(nth - 1).map(str::to_owned))
        });
        found.with_context(|| format!("the serial line has:\n{}", self.console()))
    }

    /// How many lines of the serial line have `pattern`.
    pub fn count(&self, pattern: &str) -> usize {
        let Ok(expression) = Regex::new(pattern) else { return 0 };
        self.console().lines().filter(|line| expression.is_match(line)).count()
    }

    /// The reports of deaths so far.
    pub fn deaths(&self) -> Vec<serde_json::Value> {
        let text = self.console();
        let reports = text.lines().filter_map(|line| line.split_once("envd-init: exit ")?.1.parse().ok());
        reports.collect()
    }

    /// Waits for the `nth` report of a death.
    pub fn death(&self, nth: usize) -> Result<serde_json::Value> {
        wait::until("a death's report", BOUND, || Ok(self.deaths().into_iter().nth(nth - 1)))
            .with_context(|| format!("the serial line has:\n{}", self.console()))
    }

    /// What the program printed on standard error.
    pub fn stderr(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("stderr"))?)
    }

    /// The log ring of the wrapper, oldest first.
    pub fn ring(&self) -> Result<String> {
        self.sh("cat /run/envd-init/log/wrapper.log.1 /run/envd-init/log/wrapper.log 2>/dev/null; true")
    }

    /// A shell command in the cell that must succeed: its output without the last newline.
    pub fn sh(&self, command: &str) -> Result<String> {
        let output = self.try_sh(command)?;
        ensure!(
            output.status.success(),
            "`{command}` failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    }

    pub fn try_sh(&self, command: &str) -> Result<Output> {
        let target = self.first_process()?.to_string();
        let enter = ["-t", &target, "-m", "-p", "-n", "-C", "-r", "--", "sh", "-c", command];
        Ok(Command::new("nsenter").args(enter).stdin(Stdio::null()).output()?)
    }

    /// The one envd, as an updater finds it.
    pub fn envd(&self) -> Result<u32> {
        let printed = self.sh("pidof envd")?;
        printed.parse().with_context(|| format!("pidof envd printed {printed:?}"))
    }

    /// Waits for an envd other than `old`.
    pub fn other_envd(&self, old: u32) -> Result<u32> {
        let found = wait::until("another envd", BOUND, || Ok(self.envd().ok().filter(|pid| *pid != old)));
        found.with_context(|| format!("the serial line has:\n{}", self.console()))
    }

    /// What `envdctl status --json` prints in the cell.
    pub fn status(&self) -> Result<serde_json::Value> {
        let envdctl = paths::host_bin("envdctl")?.display().to_string();
        Ok(serde_json::from_str(&self.sh(&format!("{envdctl} status --json"))?)?)
    }

    /// Waits until the status tells envd's version.
    pub fn version(&self) -> Result<String> {
        let told = || Ok(self.status()?["envd"]["version"].as_str().map(str::to_owned));
        wait::until("envd's version in the status", BOUND, told)
    }

    /// The status code of `GET /health`, 0 when there is no answer.
    pub fn health(&self) -> Result<u32> {
        let answer =
            self.sh("curl -s -o /dev/null -m 5 -w '%{http_code}' http://127.0.0.1:49983/health || true")?;
        Ok(answer.trim().parse()?)
    }

    /// Reads the serial line from now on, of a cell that began without a reader.
    pub fn read_console(&mut self) -> Result<()> {
        let line = self.line.take().context("the serial line is read already")?;
        read(line, Arc::clone(&self.console))
    }

    /// Ends the wrapper as an init does and waits for the cell's end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.sh("touch /run/enough; kill -TERM $(pidof envd-wrapper)")?;
        self.wait_end()
    }

    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        wait::until("the end of the cell", BOUND, || Ok(self.shell.try_wait()?))
    }

    /// Process 1 of the cell, as it is called out here.
    fn first_process(&self) -> Result<u32> {
        let unshare = self.shell.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        children.trim().parse().with_context(|| format!("the cell has ended; {}", self.console()))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        clean_up(&self.folder, &self.name);
    }
}

/// The cgroup can go once its last process is gone, which the kernel does in its own time.
fn clean_up(folder: &Path, name: &str) {
    let remove = format!(
        "mount -t cgroup2 none /mnt && for n in 1 2 3 4 5 6 7 8 9; do \
         rmdir /mnt/{name}/* /mnt/{name} 2>/dev/null; [ -d /mnt/{name} ] || break; sleep 0.1; done"
    );
    let _ = run("unshare", &["--mount", "sh", "-c", &remove]);
    let _ = fs::remove_dir_all(folder);
}

impl Builder {
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program of the guest or any other file, copied to `name` in the folder and executable.
    pub fn program(self, from: &Path, name: &str) -> Result<Self> {
        let to = self.folder.join(name);
        fs::create_dir_all(to.parent().unwrap_or(&self.folder))?;
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        Ok(self)
    }

    /// The stand-in at `name`, with faults as in its `--help`.
    pub fn stand_in(self, name: &str, switches: &str) -> Result<Self> {
        let switches = self.file("run/envd-stand-in.conf", switches);
        switches.program(&paths::stand_in()?, name)
    }

    /// A file in the folder; below `run/` it is in the cell's /run.
    #[must_use]
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((self.folder.join(name), content.to_owned()));
        self
    }

    #[must_use]
    /// Makes one of the files executable: a script.
    pub fn executable(mut self, name: &str) -> Self {
        self.executables.push(self.folder.join(name));
        self
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Nobody reads the serial line until [`Cell::read_console`].
    #[must_use]
    pub fn blocked_console(mut self) -> Self {
        self.reads_console = false;
        self
    }

    /// Starts the cell with a program in it.
    pub fn run(self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<Cell> {
        for (path, content) in &self.files {
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::write(path, content)?;
        }
        for path in &self.executables {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        // Open for both, so that it never ends and never has nobody at its other end.
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open(self.folder.join("console"))?;
        let console = Arc::default();
        let line = if self.reads_console {
            read(line, Arc::clone(&console))?;
            None
        } else {
            // As little as a serial port holds.
            fcntl(&line, FcntlArg::F_SETPIPE_SZ(4096)).context("shrinking the serial line")?;
            Some(line)
        };
        let shell = self.shell(program.as_ref(), arguments).spawn().context("running unshare")?;
        let mut cell = Cell { shell, folder: self.folder, name: self.name, console, line };
        cell.await_layout()?;
        Ok(cell)
    }

    /// `envd-wrapper` supervising the program `name` of the folder, with `settings` under `[envd]`.
    pub fn supervise(self, name: &str, settings: &str) -> Result<Cell> {
        let config = self.folder.join("config.toml").display().to_string();
        let envd = self.folder.join(name).display().to_string();
        let wrapper = paths::guest_bin("envd-wrapper")?;
        let settled =
            self.file("config.toml", &format!("[envd]\n{settings}")).program(&wrapper, "lib/envd-wrapper")?;
        let installed = settled.folder.join("lib/envd-wrapper");
        settled.run(installed, &["run", "--config", &config, "--envd", &envd])
    }

    fn shell(&self, program: &OsStr, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                OUTER,
                "cell",
            ])
            .arg(&self.folder)
            .arg(&self.name)
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("INNER", INNER)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        command
    }
}

impl Cell {
    fn await_layout(&mut self) -> Result<()> {
        let ready = self.folder.join("ready");
        wait::until("the cell", BOUND, || {
            if let Some(status) = self.shell.try_wait()?
                && !ready.exists()
            {
                bail!("the cell could not be laid out ({status}); what failed is above");
            }
            Ok(ready.exists().then_some(()))
        })
    }
}

fn read(mut line: File, into: Arc<Mutex<Vec<u8>>>) -> Result<()> {
    thread::Builder::new().name("serial line".into()).spawn(move || {
        let mut chunk = vec![0; 65_536];
        // Ends with the test: nobody else holds the lock's other end then.
        while Arc::strong_count(&into) > 1 {
            match line.read(&mut chunk) {
                Ok(count @ 1..) => {
                    into.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..count]);
                }
                _ => thread::sleep(Duration::from_millis(2)),
            }
        }
    })?;
    Ok(())
}
