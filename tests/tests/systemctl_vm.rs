//! Our `systemctl` beside systemd's own: the same units, the same verbs in the same order, each in a VM of its own; what is
//! printed and how it ends must be alike, and where it cannot be, the difference is written down here.

#![allow(clippy::unwrap_used, reason = "the parts of a test are functions here; each fails by panicking")]

use std::collections::BTreeMap;

use tests::{
    Envd, Image, Via, Vm,
    image::Bake,
    keep::{BOOT, Init},
    wait,
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alike {
    /// Output and exit code.
    Wholly,
    /// The exit code; our output is to hold these words.
    Code(&'static str),
    /// The columns UNIT, LOAD, ACTIVE and SUB of this unit's line, and the exit code.
    Line(&'static str),
    /// Output but for the words that explain its columns, and the exit code.
    Counted,
    /// Not at all: systemd does it (0), we refuse (1) with these words, since nobody is to believe that it was done.
    Refused(&'static str),
}
use Alike::{Code, Counted, Line, Refused, Wholly};

/// In this order, for they change what is there. `web` runs and starts with the machine, `off` does neither, `bad` fails when it
/// is started, `quick` ends well, `slow` says that it is ready after a while, `dies` ends before it does, and there is no `nope`.
const CASES: [(&str, Alike); 94] = [
    ("is-active web", Wholly),
    ("is-active web.service", Wholly),
    ("is-active off", Wholly),
    ("is-active nope", Wholly),
    ("is-active web nope", Wholly),
    ("is-active off nope", Wholly),
    ("--quiet is-active web", Wholly),
    ("-q is-active off", Wholly),
    ("is-failed web", Wholly),
    ("is-failed nope", Wholly),
    ("is-enabled web", Wholly),
    ("is-enabled off", Wholly),
    ("is-enabled web off", Wholly),
    ("is-enabled nope", Code("nope")),
    ("show -p ActiveState web", Wholly),
    ("show -p LoadState,ActiveState,SubState,UnitFileState,NRestarts web", Wholly),
    ("show --property=ActiveState --value web", Wholly),
    ("show -p LoadState -p ActiveState -p SubState -p UnitFileState -p MainPID off", Wholly),
    ("show -p LoadState,ActiveState,SubState,MainPID nope", Wholly),
    ("status web", Code("● web.service")),
    ("status off", Code("○ off.service")),
    ("status nope", Wholly),
    ("show -p Id,ActiveState --value web off", Wholly),
    ("show -P ActiveState web", Wholly),
    ("show -p NoSuchThing --value web", Wholly),
    ("is-active we?", Wholly),
    ("is-active zz*", Wholly),
    ("is-failed zz*", Wholly),
    ("restart zz*", Wholly),
    ("list-units --no-legend web.service", Wholly),
    ("list-units web.service", Counted),
    ("list-units web", Counted),
    ("list-units --all web.s* zz.service", Counted),
    ("list-units -q -a --state=inactive web.service", Wholly),
    ("list-units --plain --no-legend --type=service --state=active,failed web.service", Wholly),
    ("list-units --no-legend --type=socket web.service", Wholly),
    ("list-units --no-legend --state dead web.service", Wholly),
    ("list-units zz*", Counted),
    ("list-units --all", Line("web.service")),
    ("--no-pager", Line("web.service")),
    ("start web", Wholly),
    ("restart web", Wholly),
    ("try-restart web", Wholly),
    ("reload-or-restart web", Wholly),
    ("is-active web", Wholly),
    ("stop web", Wholly),
    ("stop web", Wholly),
    ("is-active web", Wholly),
    ("status web", Code("○ web.service")),
    ("try-restart web", Wholly),
    ("is-active web", Wholly),
    ("start web off", Wholly),
    ("is-active web off", Wholly),
    ("stop off web", Wholly),
    ("start nope", Wholly),
    ("restart nope", Wholly),
    ("try-restart nope", Wholly),
    ("stop nope", Wholly),
    ("start web nope", Code("Unit nope.service not found.")),
    ("start bad", Code("bad")),
    ("is-active bad", Wholly),
    ("is-failed bad", Wholly),
    ("is-failed web bad", Wholly),
    ("status bad", Code("× bad.service")),
    ("show -p ActiveState,SubState bad", Wholly),
    ("list-units web.service [a-c]ad.service", Counted),
    ("list-units --no-legend bad.service", Wholly),
    ("list-units --failed --plain --no-legend bad.service web.service", Wholly),
    ("list-units --no-legend -t service --state running,failed web.service bad.service", Wholly),
    ("try-restart bad", Wholly),
    ("is-active bad", Wholly),
    ("daemon-reload", Wholly),
    ("start quick", Wholly),
    ("start slow", Wholly),
    ("is-active slow", Wholly),
    ("restart slow", Wholly),
    ("is-active slow", Wholly),
    ("--no-block restart slow", Wholly),
    ("is-active slow", Wholly),
    ("status slow", Code("● slow.service")),
    ("start slow", Wholly),
    ("is-active slow", Wholly),
    ("is-system-running", Wholly),
    ("is-system-running --wait", Wholly),
    ("start dies", Code("dies")),
    ("cat nope", Code("No files found for nope.service.")),
    ("cat web", Code("/bin/sleep")),
    ("enable web", Wholly),
    ("stop web", Wholly),
    ("enable --now web", Wholly),
    ("is-active web", Wholly),
    ("unmask web", Wholly),
    ("enable off", Refused("put `enabled = true` into /etc/envd-init/services.d/off.toml")),
    ("frobnicate web", Code("frobnicate")),
];

/// Tells systemd that it is ready, after a while.
const SLOW: &str = "#!/usr/bin/python3
import os, socket, time
time.sleep(1)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])
time.sleep(100000)
";

/// Each case's output, both streams in one, and its exit code.
fn run_all(vm: &Vm) -> Vec<(String, i32)> {
    let script: String = CASES
        .iter()
        .map(|(line, _)| format!("systemctl {line} 2>&1 </dev/null; echo \"=== $?\"\n"))
        .collect();
    let said = vm.exec_as(Via::Tcp, &script, Some("root")).unwrap().stdout;
    let mut answers = Vec::new();
    let mut text = String::new();
    for line in said.lines() {
        match line.strip_prefix("=== ") {
            Some(code) => answers.push((std::mem::take(&mut text).trim().to_owned(), code.parse().unwrap())),
            None => text = text + line + "\n",
        }
    }
    assert_eq!(answers.len(), CASES.len(), "{said}");
    answers
}

fn systemd() -> Vm {
    let envd = std::fs::read(Envd::preferred().path().unwrap().unwrap()).unwrap();
    let unit = |name: &str, body: &str| (format!("/etc/systemd/system/{name}.service"), body.to_owned());
    let wanted = "[Install]\nWantedBy=multi-user.target\n";
    // The verbs are asked in a row, faster than systemd allows starts.
    let sleep = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sleep 100000\n{wanted}");
    let files = BTreeMap::from([
        unit("web", &sleep),
        unit("off", &sleep),
        unit("bad", "[Service]\nType=oneshot\nExecStart=/bin/false\n"),
        unit("quick", "[Service]\nType=oneshot\nExecStart=/bin/true\n"),
        unit("slow", "[Service]\nType=notify\nExecStart=/usr/bin/slow\n"),
        unit("dies", "[Service]\nType=notify\nExecStart=/bin/false\n"),
    ]);
    let mut bake: Bake = Image::untouched(&Init::Systemd.base().unwrap())
        .script("/usr/bin/envd", envd)
        .script("/usr/bin/slow", SLOW);
    for (path, text) in files {
        bake = bake.file(&path, text);
    }
    // At an image's first start systemd enables whatever may be enabled.
    bake = bake.file("/etc/systemd/system-preset/00-off.preset", "disable off.service\n");
    bake = bake.link("/etc/systemd/system/multi-user.target.wants/web.service", "../web.service");
    let vm = Vm::of(&bake.bake().unwrap()).memory_mib(768).boot().unwrap();
    vm.wait_healthy_within(Via::Tcp, BOOT).unwrap();
    vm
}

fn ours() -> Vm {
    let own = |name: &str| format!("/etc/envd-init/services.d/{name}.toml");
    let sleep = "command = ['/bin/sleep', '100000']\n";
    let bake = Image::native()
        .envd(Envd::preferred())
        .file(&own("web"), sleep)
        .file(&own("off"), format!("{sleep}enabled = false\n"))
        .script("/usr/bin/slow", SLOW)
        .file(&own("quick"), "command = ['/bin/true']\nkind = 'oneshot'\nenabled = false\n")
        .file(&own("slow"), "command = ['/usr/bin/slow']\nreadiness = 'notify'\nenabled = false\n")
        .file(
            &own("dies"),
            "command = ['/bin/false']\nreadiness = 'notify'\nrestart = 'never'\nenabled = false\n",
        )
        .file(&own("bad"), "command = ['/bin/false']\nkind = 'oneshot'\nenabled = false\n");
    let vm = Vm::of(&bake.bake().unwrap()).boot().unwrap();
    vm.wait_healthy(Via::Tcp).unwrap();
    vm
}

/// Boots, asks and ends one VM: two at once are slower than one after the other.
fn answers_of(boot: fn() -> Vm) -> Vec<(String, i32)> {
    let vm = boot();
    wait::until("web to run", BOOT, || {
        let state = vm.exec_as(Via::Tcp, "systemctl is-active web", Some("root"))?;
        Ok((state.stdout.trim() == "active").then_some(()))
    })
    .unwrap();
    run_all(&vm)
}

fn columns(text: &str, unit: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines = text.lines().map(words);
    let found = lines.into_iter().find(|words| words.first().is_some_and(|word| word == unit));
    found.unwrap_or_default().into_iter().take(4).collect()
}

/// What a list says besides what its columns mean.
fn counted(text: &str) -> Vec<&str> {
    let explains = ["LOAD ", "ACTIVE ", "SUB ", "To show all"];
    let lines = text.lines().filter(|line| !explains.iter().any(|begin| line.starts_with(begin)));
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn each_verb_prints_and_ends_as_systemds_own() {
    tests::require_root().unwrap();
    let (theirs, ours) = (answers_of(systemd), answers_of(ours));
    let mut wrong = Vec::new();
    for (((line, alike), theirs), ours) in CASES.iter().zip(theirs).zip(ours) {
        let good = match alike {
            Wholly => ours == theirs,
            Code(words) => ours.1 == theirs.1 && ours.0.contains(words),
            Line(unit) => ours.1 == theirs.1 && columns(&ours.0, unit) == columns(&theirs.0, unit),
            Counted => ours.1 == theirs.1 && counted(&ours.0) == counted(&theirs.0),
            Refused(words) => theirs.1 == 0 && ours.1 == 1 && ours.0.contains(words),
        };
        if !good {
            wrong.push(format!("systemctl {line}\n  systemd: {theirs:?}\n  ours:    {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
