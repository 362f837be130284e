//! Which envd runs, in each layout that images have, and what an updater, a builder or a bad file makes of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::cell::Builder;
use tests::image::Envd;
use tests::{Cell, paths, wait};

/// Where programs are put that only root can change.
fn builder() -> Builder {
    Cell::builder().unwrap()
}

/// The layout of the self-hosted fork: the wrapper under envd's name, the real one beside it.
fn shim(arguments: &[&str]) -> Cell {
    let builder = builder().stand_in("bin/envd.real", "").unwrap();
    let builder = builder.program(&paths::guest_bin("envd-wrapper").unwrap(), "bin/envd").unwrap();
    let program = builder.folder().join("bin/envd");
    builder.run(program, arguments).unwrap()
}

fn supervised() -> Cell {
    builder().stand_in("bin/envd", "").unwrap().supervise("bin/envd", "").unwrap()
}

/// The words that the running envd was called with.
fn words(cell: &Cell) -> Vec<String> {
    let printed = cell.sh("tr '\\0' '\\n' </proc/$(pidof envd)/cmdline").unwrap();
    printed.lines().map(str::to_owned).collect()
}

/// Which file the running envd was executed from.
fn file(cell: &Cell) -> String {
    cell.sh("readlink /proc/$(pidof envd)/exe").unwrap()
}

/// Writes a program as an updater does: beside its place, and then moved there.
fn swap(cell: &Cell, name: &str, content: &[u8]) {
    let part = cell.folder().join("part");
    fs::write(&part, content).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(part, cell.folder().join(name)).unwrap();
}

fn stand_in() -> Vec<u8> {
    fs::read(paths::stand_in().unwrap()).unwrap()
}

#[test]
fn a_plain_program_passes_arguments_on_and_names_its_child_envd() {
    let builder = builder().stand_in("bin/envd.real", "").unwrap();
    let wrapper = paths::guest_bin("envd-wrapper").unwrap();
    let builder = builder.program(&wrapper, "bin/envd-wrapper").unwrap();
    let (wrapper, real) = (builder.folder().join("bin/envd-wrapper"), builder.folder().join("bin/envd.real"));
    let arguments =
        ["run", "--envd", real.to_str().unwrap(), "--", "--say", "hello --check", "-port", "49983"];
    let mut cell = builder.run(wrapper, &arguments).unwrap();
    cell.wait("envd is healthy").unwrap();
    assert_eq!(words(&cell), ["envd", "--say", "hello --check", "-port", "49983"]);
    cell.envd().unwrap();
    cell.stop().unwrap();
    let printed = cell.stderr().unwrap();
    for line in ["envd: hello --check", "wrapper: envd is healthy", "envd-init: exit {", "stopped on request"]
    {
        assert!(printed.contains(line), "{line} is missing on standard error:\n{printed}");
    }
}

#[test]
fn the_shim_runs_the_real_one_beside_it_and_there_is_one_envd() {
    let cell = shim(&["-port", "49983", "--resume-handover"]);
    cell.wait("envd is healthy").unwrap();
    assert_eq!(words(&cell), ["envd", "-port", "49983"]);
    assert!(file(&cell).ends_with("/bin/envd.real"));
    // The builder's own words: quoted, so that two pids would fail.
    let old = cell.envd().unwrap();
    cell.sh("kill -TERM \"$(pidof envd)\"").unwrap();
    cell.other_envd(old).unwrap();
    assert_eq!(cell.sh("cat /proc/$(pidof envd-wrapper)/comm").unwrap(), "envd-wrapper");
}

/// A cell in which nothing is supervised, with the shim before this envd.
fn unsupervised(real: &Path, switches: &str) -> Cell {
    let builder = builder().file("run/envd-stand-in.conf", switches).program(real, "bin/envd.real").unwrap();
    let builder = builder.program(&paths::guest_bin("envd-wrapper").unwrap(), "bin/envd").unwrap();
    builder.run("sleep", &["1000"]).unwrap()
}

fn in_bin(cell: &Cell, name: &str) -> String {
    cell.folder().join("bin").join(name).display().to_string()
}

/// Exit code and both streams, in which the program's own name may stand.
fn said(cell: &Cell, name: &str, flags: &str) -> (Option<i32>, String, String) {
    let output = cell.try_sh(&format!("timeout 30 {} {flags}", in_bin(cell, name))).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("envd.real", "envd");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Each was supervised like a server: it never returned, and the running envd's port forwards were ended for it.
#[test]
fn what_the_shim_is_asked_is_answered_by_envd_itself() {
    let cell = shim(&[]);
    cell.wait("envd is healthy").unwrap();
    let pid = cell.envd().unwrap();
    for flags in ["-version", "--version", "-port 5 -version", "-help", "-h", "-no-such -version"] {
        assert_eq!(said(&cell, "envd", flags), said(&cell, "envd.real", flags), "{flags}");
    }
    assert_eq!((cell.envd().unwrap(), cell.deaths().len()), (pid, 0), "{}", cell.console());
}

/// Go's own reading of them, where `ENVD` names a real envd.
#[test]
fn the_real_envd_answers_through_the_shim_word_for_word() {
    let Some(real) = Envd::real().and_then(|envd| envd.path().unwrap()) else { return };
    let cell = unsupervised(&real, "");
    let all = "-version,--version,-version=true,-commit,--commit,-h,-help,--help,-h=false,-port 5 -version,-port=5 --commit,\
        -cgroup-root /x -commit=1,-version=false -version,-verbose -version,-no-such -version,-version=maybe,-port x -version";
    for flags in all.split(',') {
        assert_eq!(said(&cell, "envd", flags), said(&cell, "envd.real", flags), "{flags}");
    }
}

#[test]
fn an_answer_of_the_shims_is_ended_by_a_signal_as_envd_is() {
    let cell = unsupervised(&paths::stand_in().unwrap(), "slow-version = 1000\n");
    let shim = in_bin(&cell, "envd");
    let script = format!(
        "{shim} -version & until [ \"$(readlink /proc/$!/exe)\" = {shim}.real ]; do sleep 0.01; done; kill $!; wait $!; echo $?"
    );
    assert_eq!(cell.sh(&format!("timeout 30 sh -c '{script}'")).unwrap(), "143");
}

#[test]
fn without_an_envd_the_shim_has_no_answer_and_says_so() {
    let cell = unsupervised(&paths::root().join("LICENSE"), "");
    let (code, _, said) = said(&cell, "envd", "-version");
    assert_eq!(code, Some(3));
    assert!(said.starts_with("envd-wrapper: no envd that could answer:\n"), "{said}");
    assert!(said.contains("(in the shim's folder): neither an ELF program nor a script\n"), "{said}");
}

#[test]
fn a_shim_that_an_updater_overwrote_is_served() {
    let cell = shim(&[]);
    cell.wait("envd is healthy").unwrap();
    let old = cell.envd().unwrap();
    swap(&cell, "bin/envd", &stand_in());
    cell.sh("kill -TERM \"$(pidof envd)\"").unwrap();
    cell.other_envd(old).unwrap();
    cell.wait_nth("envd is healthy", 2).unwrap();
    assert!(file(&cell).ends_with("/bin/envd"), "{}", file(&cell));
}

#[test]
fn a_new_file_at_the_old_path_is_used_from_the_next_start_on() {
    let cell = supervised();
    cell.wait("envd is healthy").unwrap();
    let old = cell.envd().unwrap();
    swap(&cell, "bin/envd", &stand_in());
    assert_eq!(cell.envd().unwrap(), old, "the running one is left alone");
    cell.sh("kill -TERM \"$(pidof envd)\"").unwrap();
    cell.other_envd(old).unwrap();
    cell.wait_nth("envd is healthy", 2).unwrap();
    assert!(!file(&cell).contains("deleted"), "{}", file(&cell));
}

/// Each ends served or clearly said, and the good one is back as soon as it is there.
#[test]
fn a_file_that_cannot_run_is_named_with_its_reason_and_a_good_one_is_back_at_once() {
    let mut arm = stand_in();
    arm[18] = 40;
    let truncated = stand_in()[..200].to_vec();
    let bad: [(&[u8], &str); 5] = [
        (&arm, "is built for 32-bit arm, this machine is"),
        (&truncated, "is a damaged ELF file|ended by SIG"),
        (b"#!/no/such/shell\n", "is a script for /no/such/shell, which is missing"),
        (b"no program\n", "is neither an ELF program nor a script|neither an ELF program nor a script"),
        (b"", "neither an ELF program nor a script"),
    ];
    let cell = supervised();
    cell.wait("envd is healthy").unwrap();
    for (turn, (content, reason)) in bad.into_iter().enumerate() {
        swap(&cell, "bin/envd", content);
        cell.sh("kill -KILL \"$(pidof envd)\"").unwrap();
        cell.wait(reason).unwrap();
        swap(&cell, "bin/envd", &stand_in());
        cell.wait_nth("envd is healthy", turn + 2).unwrap();
    }
}

#[test]
fn one_that_is_missing_or_not_executable_is_named_and_awaited() {
    let cell = supervised();
    cell.wait("envd is healthy").unwrap();
    let path = cell.folder().join("bin/envd");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    cell.sh("kill -KILL \"$(pidof envd)\"").unwrap();
    cell.wait(r"cannot execute: \S+/bin/envd is not executable").unwrap();
    fs::remove_file(&path).unwrap();
    cell.wait(r"no envd to run; looked at \S+/bin/envd").unwrap();
    let lines = cell.console().lines().count();
    cell.sh("sleep 3").unwrap();
    assert!(cell.console().lines().count() - lines < 20, "it goes on quietly: {}", cell.console());
    swap(&cell, "bin/envd", &stand_in());
    cell.wait_nth("envd is healthy", 2).unwrap();
}

#[test]
fn in_an_upgrade_in_place_the_process_stays_and_a_crash_afterwards_runs_the_old_path() {
    let cell = supervised();
    cell.wait("envd is healthy").unwrap();
    let (pid, wrapper) = (cell.envd().unwrap(), cell.sh("pidof envd-wrapper").unwrap());
    let post = |path: &str| {
        let url = format!("http://127.0.0.1:49983{path}");
        cell.sh(&format!("curl -s -m 20 -o /dev/null -w '%{{http_code}}' -X POST {url} || true")).unwrap()
    };
    assert_eq!(post("/upgrade"), "409", "before the first /init");
    assert_eq!(post("/init"), "204");
    post("/upgrade");
    let resumed = || Ok(words(&cell).contains(&"--resume-handover".to_owned()).then_some(()));
    wait::until("the new program", wait::BOUND, resumed).unwrap();
    wait::until("its health", wait::BOUND, || Ok((cell.health()? == 204).then_some(()))).unwrap();
    assert_eq!((cell.envd().unwrap(), cell.sh("pidof envd-wrapper").unwrap()), (pid, wrapper));
    assert_eq!(cell.deaths().len(), 0, "{}", cell.console());
    cell.sh(&format!("kill -KILL {pid}")).unwrap();
    cell.other_envd(pid).unwrap();
    assert_eq!(words(&cell), ["envd"], "no handover is awaited from the dead");
}

#[test]
fn under_a_bare_shell_script_both_come_back_and_the_line_goes_on() {
    let cell = shim(&[]);
    for turn in 1..=3 {
        cell.wait_nth("envd is healthy", turn).unwrap();
        let old = cell.envd().unwrap();
        cell.sh("kill -KILL $(pidof envd-wrapper)").unwrap();
        cell.other_envd(old).unwrap();
    }
}

fn check(arguments: &[&str]) -> (i32, String) {
    let wrapper = paths::guest_bin("envd-wrapper").unwrap();
    let output = Command::new(wrapper).arg("--check").args(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn check_says_what_it_would_run_and_why_and_runs_nothing() {
    let stand_in = paths::stand_in().unwrap().display().to_string();
    let (code, said) = check(&["--envd", &stand_in]);
    assert_eq!((code, said.as_str()), (0, &*format!("{stand_in} (named on the command line): runs\n")));
    let (code, said) = check(&["--envd", "/no/such/envd"]);
    assert_eq!((code, said.as_str()), (3, "/no/such/envd (named on the command line): not there\n"));
    let wrapper = paths::guest_bin("envd-wrapper").unwrap().display().to_string();
    let (code, said) = check(&["--envd", &wrapper]);
    assert_eq!(code, 3);
    assert!(said.contains("is this supervisor, not envd"), "{said}");
}

/// Provisioning makes /usr/local writable to everybody: what lies there is run only when the configuration pins it.
#[test]
fn a_program_that_others_can_change_is_run_only_when_it_is_pinned() {
    let folder = tempfile::tempdir_in("/var/lib").unwrap();
    let program = folder.path().join("envd.real");
    fs::copy(paths::stand_in().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    let config = folder.path().join("config.toml");
    let settle = |more: &str| fs::write(&config, format!("[envd]\nprogram = {program:?}\n{more}")).unwrap();
    let check_config = || check(&["--config", config.to_str().unwrap()]);
    settle("");
    let (_, said) = check_config();
    assert!(said.contains("others than root can change"), "{said}");
    settle(&format!("sha256 = {:?}\n", sha256(&program)));
    let (code, said) = check_config();
    assert_eq!((code, said.lines().next().unwrap().ends_with("(configured): runs")), (0, true), "{said}");
    settle(&format!("sha256 = {:?}\n", "0".repeat(64)));
    assert!(check_config().1.contains("the configuration pins 0000"));
}

/// What `--check` says where `folder` is the machine's `/usr/bin`.
fn check_with_usr_bin(folder: &Path, config: &str) -> (i32, String) {
    let settings = tempfile::NamedTempFile::new().unwrap();
    fs::write(&settings, config).unwrap();
    let wrapper = paths::guest_bin("envd-wrapper").unwrap();
    let enter = "mount --bind \"$0\" /usr/bin && exec \"$1\" --check --config \"$2\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", enter])
        .args([folder, &wrapper, settings.path()])
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// A folder with an envd in it, for `/usr/bin`.
fn usr_bin(mode: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/var/lib").unwrap();
    fs::copy(paths::stand_in().unwrap(), folder.path().join("envd")).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    folder
}

/// Images that are made for arbitrary users (`chmod -R g=u`), and careless ones: a sandbox without an envd is dead.
#[test]
fn envd_runs_from_usr_bin_whoever_can_write_there_and_that_is_told() {
    let (code, said) = check_with_usr_bin(usr_bin(0o775).path(), "");
    assert_eq!((code, said.as_str()), (0, "/usr/bin/envd (found): runs\n"), "root's own group");
    let (code, said) = check_with_usr_bin(usr_bin(0o777).path(), "");
    let doubtful = "/usr/bin/envd (found): runs, although others than root can change /usr/bin\n";
    assert_eq!((code, said.as_str()), (0, doubtful));
}

/// An updater moves its upload there, with whatever owner that has.
#[test]
fn a_users_file_in_usr_bin_runs() {
    let folder = usr_bin(0o755);
    std::os::unix::fs::chown(folder.path().join("envd"), Some(1000), Some(1000)).unwrap();
    assert_eq!(check_with_usr_bin(folder.path(), ""), (0, "/usr/bin/envd (found): runs\n".to_owned()));
}

/// Provisioning makes /usr/local/bin writable to everybody: a link that leads there makes nothing there root's.
#[test]
fn a_link_out_of_usr_bin_runs_nothing_that_others_can_change() {
    let (folder, elsewhere) = (usr_bin(0o755), usr_bin(0o777));
    fs::remove_file(folder.path().join("envd")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("envd"), folder.path().join("envd")).unwrap();
    let (code, said) = check_with_usr_bin(folder.path(), "");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("/usr/bin/envd (found): others than root can change"), "{said}");
}

#[test]
fn a_file_that_its_pin_refuses_is_not_found_again_under_another_name() {
    let folder = usr_bin(0o755);
    std::os::unix::fs::symlink("envd", folder.path().join("pinned")).unwrap();
    for name in ["envd", "pinned"] {
        let pin = format!("[envd]\nprogram = \"/usr/bin/{name}\"\nsha256 = {:?}\n", "0".repeat(64));
        let (code, said) = check_with_usr_bin(folder.path(), &pin);
        assert_eq!(code, 3, "{said}");
        assert!(said.contains("of which the configuration pins another content"), "{said}");
    }
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}
