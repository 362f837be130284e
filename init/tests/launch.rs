//! `init launch`, with the real program: what converted units rely on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Read as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than anything here takes.
const BOUND: Duration = Duration::from_secs(30);
const INIT: &str = env!("CARGO_BIN_EXE_init");

fn launch(arguments: &[&str]) -> Output {
    Command::new(INIT).arg("launch").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A folder with the script of a daemon that forks and writes its process id.
struct Daemon {
    folder: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >{}/pid",
            folder.path().display()
        );
        fs::write(folder.path().join("start"), script).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Started, and known to launch: it has said READY=1.
    fn launch(&self) -> Child {
        let socket = self.path("notify");
        let listener = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        listener.set_read_timeout(Some(BOUND)).unwrap();
        let mut command = Command::new(INIT);
        command
            .args(["launch", "--pid-file"])
            .arg(self.path("pid"))
            .args(["--", "/bin/sh"])
            .arg(self.path("start"));
        let child = command.env("NOTIFY_SOCKET", &socket).spawn().unwrap();
        let mut said = [0; 64];
        let len = listener.recv(&mut said).unwrap();
        assert_eq!(&said[..len], b"READY=1", "ready once the daemon is known");
        child
    }

    fn pid(&self) -> i32 {
        until("the daemon's process id", || fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok())
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < BOUND, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

fn end(child: &mut Child) -> ExitStatus {
    until("the end", || child.try_wait().unwrap())
}

fn signal(pid: i32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_plain_program_takes_launchs_place_with_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("env");
    fs::write(&file, "# options\nOPTS=\"-a 'b c'\"\nNAME=\"x y\"\n").unwrap();
    let file = file.display().to_string();
    let script = "echo \"$$$$ $PPID\"; printf '<%s>' \"$@\"; umask";
    let words = [
        "--environment-file",
        &file,
        "--umask",
        "027",
        "--",
        "/bin/sh",
        "-c",
        script,
        "sh",
        "$OPTS",
        "n=${NAME}",
        "$NONE",
    ];
    let child = Command::new(INIT).arg("launch").args(words).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let said = text(&child.wait_with_output().unwrap().stdout);
    assert_eq!(said, format!("{pid} {}\n<-a><b c><n=x y>0027", std::process::id()));
}

#[test]
fn what_comes_before_runs_each_time_and_may_fail_only_where_it_is_said() {
    let ok =
        launch(&["--before", "-/bin/false", "--before", "/bin/echo 'two  words'", "--", "/bin/echo", "main"]);
    assert_eq!(text(&ok.stdout), "two  words\nmain");
    let failed = launch(&["--before", "/bin/false", "--", "/bin/echo", "main"]);
    assert_eq!((failed.status.code(), text(&failed.stdout)), (Some(200), String::new()));
    assert!(text(&failed.stderr).contains("before the start: /bin/false: exit status: 1"));
}

/// A unit's file for its output was dropped without a word, and what it printed was looked for in vain.
#[test]
fn output_goes_to_the_files_that_are_named_and_one_file_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run = |how: &str| {
        let words = ["--stdout", how, "--stderr", how, "--before", "/bin/echo before", "--"];
        let output = launch(&[&words[..], &["/bin/sh", "-c", "echo out; echo err >&2"]].concat());
        assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    };
    for _ in 0..2 {
        run(&format!("append:{}", path("a")));
        run(&format!("truncate:{}", path("t")));
        run(&format!("file:{}", path("f")));
    }
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    assert_eq!(read("a"), "before\nout\nerr\n".repeat(2));
    assert_eq!(read("t"), "before\nout\nerr\n");
    assert_eq!(read("f"), "before\nout\nerr\n", "written over from the begin");
    let apart =
        launch(&["--stderr", &format!("append:{}", path("e")), "--", "/bin/sh", "-c", "echo o; echo e >&2"]);
    assert_eq!((text(&apart.stdout).as_str(), read("e").as_str()), ("o", "e\n"));
    let failed = launch(&["--stdout", "append:/no/such/file", "--", "/bin/true"]);
    assert_eq!(failed.status.code(), Some(200));
    assert!(text(&failed.stderr).contains("cannot open /no/such/file for the output"));
}

#[test]
fn a_command_before_may_be_told_another_name() {
    let output = launch(&["--before", "-@/bin/sh other -c 'echo $0; exit 1'", "--", "/bin/true"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "other"));
}

#[test]
fn what_cannot_be_started_is_named() {
    for (words, status, said) in [
        (&["--", "/no/such"][..], 200, "cannot execute /no/such: No such file or directory"),
        (&["--user", "nobody-known", "--", "/bin/true"], 200, "there is no user `nobody-known`"),
        (
            &["--environment-file", "/no/such", "--", "/bin/true"],
            200,
            "cannot read the environment file /no/such",
        ),
        (&["--oops", "x", "--", "/bin/true"], 2, "there is no option --oops"),
        (&["--may-fail", "--", "/bin/false"], 0, "which its unit allows"),
    ] {
        let output = launch(words);
        assert_eq!(output.status.code(), Some(status), "{words:?}");
        assert!(text(&output.stderr).contains(said), "{words:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_user_has_his_groups_and_home_and_not_roots() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("not run: needs root");
    }
    let output = launch(&[
        "--user",
        "nobody",
        "--before",
        "+/usr/bin/id -u",
        "--before",
        "/usr/bin/id -u",
        "--",
        "/bin/sh",
        "-c",
        "id -un; id -Gn; echo $HOME",
    ]);
    assert_eq!(text(&output.stdout), "0\n65534\nnobody\nnogroup\n/nonexistent", "{}", text(&output.stderr));
}

#[test]
fn a_daemons_end_is_launchs_end() {
    let daemon = Daemon::new();
    let mut child = daemon.launch();
    let pid = daemon.pid();
    signal(pid, "KILL");
    assert_eq!(end(&mut child).signal(), Some(9), "the supervisor must see how the daemon ended");
}

#[test]
fn a_stop_reaches_the_daemon() {
    let daemon = Daemon::new();
    let mut child = daemon.launch();
    let pid = daemon.pid();
    signal(child.id() as i32, "TERM");
    assert_eq!(end(&mut child).signal(), Some(15));
    until("the daemon's end", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

#[test]
fn a_start_that_fails_ends_with_its_status_and_a_foreign_process_is_not_taken_for_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid").display().to_string();
    assert_eq!(launch(&["--pid-file", &file, "--", "/bin/sh", "-c", "exit 7"]).status.code(), Some(7));
    let foreign = format!("echo 1 >{file}");
    let mut child = Command::new(INIT);
    let mut child = child
        .args(["launch", "--pid-file", &file, "--", "/bin/sh", "-c", &foreign])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(end(&mut child).code(), Some(200));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("does not name the process that went on"), "{said}");
}
