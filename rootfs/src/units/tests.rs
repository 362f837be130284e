//! Surveys of small trees.

use guest::service::Service;

use super::*;
use crate::keep::files::fake::FakeFiles;

const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

fn image() -> FakeFiles {
    let target = |requires: &str| format!("[Unit]\nRequires={requires}\n");
    FakeFiles::default()
        .to("/sbin/init", "/usr/lib/systemd/systemd")
        .file("/usr/lib/systemd/systemd", "")
        .to("/usr/lib/systemd/system/default.target", "graphical.target")
        .file("/usr/lib/systemd/system/graphical.target", &target("multi-user.target"))
        .file("/usr/lib/systemd/system/multi-user.target", &target("basic.target"))
        .file("/usr/lib/systemd/system/basic.target", "[Unit]\n")
        .file("/usr/bin/web", "")
        .file("/usr/bin/check", "")
}

fn with_sshd(files: FakeFiles) -> FakeFiles {
    files.file("/usr/sbin/sshd", "").file("/usr/bin/ssh-keygen", "")
}

fn with(files: FakeFiles, name: &str, text: &str) -> FakeFiles {
    let path = format!("/usr/lib/systemd/system/{name}");
    files.file(&path, text).to(&format!("{WANTS}/{name}"), &path)
}

fn verdict(survey: &Survey, unit: &str) -> Verdict {
    survey
        .reports
        .iter()
        .find(|report| report.unit == unit)
        .unwrap_or_else(|| panic!("{unit}"))
        .verdict
        .clone()
}

fn service(survey: &Survey, name: &str) -> Service {
    let (_, text) = survey.services.iter().find(|(found, _)| found == name).unwrap();
    let read = Service::parse(name, text);
    assert_eq!(read.problems, [""; 0], "{text}");
    read.value
}

fn lost(unit: &str) -> String {
    let survey = survey(&with(image(), "x.service", unit)).unwrap();
    match verdict(&survey, "x.service") {
        Verdict::Lost { why } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_simple_service_is_turned_with_all_that_is_in_the_subset() {
    let text = "[Unit]\nDescription=A web server\nAfter=network.target other.service\n[Service]\nType=exec\n\
        ExecStart=/usr/bin/web --dir \"/srv/a b\" -n %n\nEnvironment=A=1 \"B=two words\"\nUser=www\nGroup=www\n\
        WorkingDirectory=/srv\nRestart=on-failure\nRestartSec=3\nNice=5\nOOMScoreAdjust=-100\nLimitNOFILE=1024:64K\n\
        LimitCORE=infinity\nTimeoutStopSec=1min 30s\nProtectSystem=full\nCPUWeight=50\n[Install]\nWantedBy=multi-user.target\n";
    let files =
        with(with(image(), "web.service", text), "other.service", "[Service]\nExecStart=web\nRestart=no\n");
    let survey = survey(&files).unwrap();
    let Verdict::Convertible { dropped, .. } = verdict(&survey, "web.service") else { panic!() };
    assert_eq!(dropped, ["TimeoutStopSec=1min 30s: 5 s", "ProtectSystem=full: confinement"]);
    let web = service(&survey, "web");
    assert_eq!(web.command, ["/usr/bin/web", "--dir", "/srv/a b", "-n", "web.service"]);
    assert_eq!((web.user.as_deref(), web.nice, web.oom_score_adj), (Some("www"), 5, -100));
    assert_eq!(web.environment["B"], "two words");
    assert_eq!(web.after, ["other", "tmpfiles"]);
    assert_eq!(web.backoff.min_ms, 3_000);
    assert_eq!(web.limits.open_files.unwrap().hard, 65_536);
    assert_eq!(service(&survey, "other").restart, guest::service::Restart::Never);
}

#[test]
fn what_toml_has_no_keys_for_goes_through_launch() {
    let text = "[Service]\nType=forking\nPIDFile=/var/run/web.pid\nExecStartPre=-+/usr/bin/check -q 'a b'\n\
        ExecStart=@/usr/bin/web webd $OPTS\nEnvironmentFile=-/etc/default/web\nRuntimeDirectory=web web/x\nRuntimeDirectoryMode=2755\n\
        User=web\nUMask=007\n";
    let web = service(&survey(&with(image(), "web.service", text)).unwrap(), "web");
    let expected = [
        "/usr/lib/envd-init/init",
        "launch",
        "--user",
        "web",
        "--name",
        "webd",
        "--environment-file",
        "-/etc/default/web",
        "--runtime",
        "web:2755",
        "--runtime",
        "web/x:2755",
        "--umask",
        "007",
        "--before",
        "-+/usr/bin/check -q \"a b\"",
        "--pid-file",
        "/run/web.pid",
        "--",
        "/usr/bin/web",
        "$OPTS",
    ];
    assert_eq!(web.command, expected);
    assert_eq!(
        (web.readiness, web.user),
        (guest::service::Readiness::Notify, None),
        "launch becomes the user itself"
    );
    assert_eq!(web.restart, guest::service::Restart::OnFailure, "nobody else would start it again");
}

/// Negations, alternatives and empty assignments of conditions were judged wrongly or lost the unit.
#[test]
fn conditions_go_into_the_service_as_far_as_they_can() {
    let judged = |conditions: &str| {
        let unit = format!("[Unit]\n{conditions}\n[Service]\nExecStart=/usr/bin/web\nRestart=no\n");
        let found = survey(&with(image(), "web.service", &unit)).unwrap();
        let made = verdict(&found, "web.service");
        let service = matches!(made, Verdict::Convertible { .. }).then(|| service(&found, "web"));
        (made, service.unwrap_or_default())
    };
    let paths = |paths: &[std::path::PathBuf]| format!("{paths:?}");
    let (_, web) =
        judged("ConditionPathExists=!/run/x\nConditionDirectoryNotEmpty=/etc/d\nConditionPathExists=/y");
    assert_eq!(paths(&web.only_if_absent), "[\"/run/x\"]");
    assert_eq!((paths(&web.only_if_filled), paths(&web.only_if)), ("[\"/etc/d\"]".into(), "[\"/y\"]".into()));
    let (made, web) = judged("ConditionPathExists=|/usr/bin/gone\nConditionPathExists=|/usr/bin/check");
    assert!(
        matches!(made, Verdict::Convertible { dropped, .. } if dropped[0].contains("|/usr/bin/check: holds now"))
    );
    assert_eq!(paths(&web.only_if), "[]");
    let (_, web) = judged("ConditionVirtualization=|container\nConditionPathExists=|/etc/one");
    assert_eq!(paths(&web.only_if), "[\"/etc/one\"]", "the other alternative never holds");
    let (made, _) = judged("ConditionPathExists=|/a\nConditionPathExists=|/b");
    assert!(matches!(made, Verdict::Lost { why } if why.contains("alternatives")));
    let (made, _) =
        judged("ConditionVirtualization=|container\nConditionFirstBoot=|yes\nConditionPathExists=/y");
    assert!(matches!(made, Verdict::Covered { .. }));
    let (made, web) = judged("ConditionKernelCommandLine=word\nConditionPathExists=");
    assert!(matches!(made, Verdict::Convertible { .. }) && web.only_if.is_empty(), "all were taken back");
    let (made, _) = judged("ConditionFileNotEmpty=/etc/gone");
    assert!(
        matches!(made, Verdict::Convertible { dropped, .. } if dropped[0].contains("asked only whether"))
    );
}

#[test]
fn a_time_that_cannot_be_read_is_said_and_a_folder_of_upholds_pulls_in() {
    let unit = "[Service]\nExecStart=/usr/bin/web\nRestart=always\nRestartSec=soon\nTimeoutStartSec=later\n";
    let path = "/usr/lib/systemd/system/web.service";
    let files =
        image().file(path, unit).to("/etc/systemd/system/multi-user.target.upholds/web.service", path);
    let Verdict::Convertible { dropped, .. } = verdict(&survey(&files).unwrap(), "web.service") else {
        panic!()
    };
    assert_eq!(
        dropped,
        [
            "TimeoutStartSec=later: it is no time that is known; 30 s",
            "RestartSec=soon: it is no time that is known; pauses of 0.1 to 2 s"
        ]
    );
}

/// They were dropped without a word.
#[test]
fn a_file_for_the_output_is_served_and_other_places_are_said() {
    let launched = |lines: &str| {
        let unit = format!("[Service]\nExecStart=/usr/bin/web\n{lines}");
        let found = survey(&with(image(), "web.service", &unit)).unwrap();
        let Verdict::Convertible { dropped, .. } = verdict(&found, "web.service") else { panic!() };
        let words = service(&found, "web").command.join(" ");
        (words.replace("/usr/lib/envd-init/init launch ", ""), dropped[1..].to_vec())
    };
    let (words, dropped) = launched("StandardOutput=append:/var/log/%N.log\n");
    assert_eq!(words, "--stdout append:/var/log/web.log --stderr append:/var/log/web.log -- /usr/bin/web");
    assert_eq!(dropped, [""; 0]);
    let (words, _) = launched("StandardOutput=truncate:/o\nStandardError=journal\n");
    assert_eq!(words, "--stdout truncate:/o -- /usr/bin/web");
    let (words, dropped) = launched("StandardOutput=tty\nStandardError=file:/e\n");
    assert_eq!(words, "--stderr file:/e -- /usr/bin/web");
    assert_eq!(dropped, ["StandardOutput=tty: to the log ring (envdctl logs)"]);
    assert_eq!(launched("StandardOutput=null\nStandardError=inherit\n").0, "/usr/bin/web");
}

#[test]
fn a_drop_in_changes_what_is_turned_and_a_mask_ends_it() {
    let files = with(image(), "web.service", "[Service]\nExecStart=/usr/bin/web\n").file(
        "/etc/systemd/system/web.service.d/o.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/check now\n",
    );
    assert_eq!(service(&survey(&files).unwrap(), "web").command, ["/usr/bin/check", "now"]);
    let masked = files.to("/etc/systemd/system/web.service", "/dev/null");
    assert!(survey(&masked).unwrap().reports.is_empty());
}

#[test]
fn what_would_be_guessed_is_lost_and_says_why() {
    for (unit, why) in [
        ("Type=forking\nExecStart=/usr/bin/web", "Type=forking without PIDFile="),
        ("Type=dbus\nBusName=x\nExecStart=/usr/bin/web", "BusName=x: it has no counterpart"),
        ("ExecStart=/usr/bin/gone", "there is no program /usr/bin/gone in the image"),
        ("ExecStart=/usr/bin/web %H", "%H is not a specifier that is known here"),
        ("ExecStart=!/usr/bin/web", "the prefix `!` has no counterpart"),
        ("ExecStart=/usr/bin/web\nExecStart=/usr/bin/web", "it has 2 commands to start"),
        ("ExecStart=/usr/bin/web\nDynamicUser=yes", "DynamicUser=yes: it has no counterpart"),
        ("ExecStart=/usr/bin/web\nAmbientCapabilities=CAP_X", "it has no counterpart"),
        ("ExecStart=/usr/bin/web\nExecStartPost=/usr/bin/check", "it has no counterpart"),
        ("ExecStart=/usr/bin/web\nFutureKey=x", "FutureKey=x: it has no counterpart"),
        ("ExecStart=/usr/bin/web\nLimitNOFILE=many", "it is no limit"),
        ("ExecStart=/usr/bin/web\nSockets=a.socket", "it is handed its sockets by a.socket"),
        ("ExecStart=/usr/bin/web \"open", "a quote is not closed"),
        ("", "it has 0 commands to start"),
    ] {
        let said = lost(&format!("[Service]\n{unit}\n"));
        assert!(said.contains(why), "{unit}: {said}");
    }
    assert!(
        lost("[Unit]\nConditionKernelCommandLine=word\n[Service]\nExecStart=/usr/bin/web\n")
            .contains("cannot be judged")
    );
}

#[test]
fn what_needs_a_lost_unit_is_lost_with_it() {
    let files = with(image(), "a.service", "[Unit]\nRequires=b.service\n[Service]\nExecStart=/usr/bin/web\n");
    let files = with(files, "b.service", "[Service]\nExecStart=/usr/bin/web\nRootImage=x\n");
    let files = with(
        files,
        "c.service",
        "[Unit]\nWants=b.service\nBefore=d.service\n[Service]\nExecStart=/usr/bin/web\n",
    );
    let files = with(files, "d.service", "[Service]\nExecStart=/usr/bin/web\n");
    let survey = survey(&files).unwrap();
    assert_eq!(
        verdict(&survey, "a.service"),
        Verdict::Lost { why: "it requires b.service, which is lost".into() }
    );
    assert!(survey.services.iter().all(|(name, _)| name != "a" && name != "b"));
    assert_eq!(service(&survey, "d").after, ["c", "tmpfiles"]);
}

#[test]
fn timers_sockets_scripts_mounts_and_generators_are_named() {
    let files = with(image(), "x.timer", "[Timer]\n")
        .file("/etc/init.d/old", "")
        .to("/etc/rc3.d/S01old", "../init.d/old");
    let files = with(files, "y.socket", "[Socket]\n").file("/usr/lib/systemd/system-generators/strange", "");
    let files = with(files, "systemd-journald.service", "")
        .file("/etc/fstab", "/dev/vda / ext4\n/dev/vdb /data ext4 defaults 0 0\n#x y z w\n");
    let survey = survey(&files).unwrap();
    let lost: Vec<&str> = survey.lost().map(|report| report.unit.as_str()).collect();
    assert_eq!(lost, ["/etc/init.d/old", "mount of /data", "strange", "x.timer", "y.socket"]);
    assert!(matches!(verdict(&survey, "systemd-journald.service"), Verdict::Covered { .. }));
    assert!(text(&survey).contains("lost: 5\n") && json(&survey)["units"].as_array().unwrap().len() == 6);
}

/// systemd's own generator starts it, so no unit of the image tells of it.
#[test]
fn a_script_that_systemd_runs_at_the_end_of_its_boot_is_lost_and_said() {
    let files = |script: &str| {
        image()
            .file("/usr/lib/systemd/system-generators/systemd-rc-local-generator", "")
            .file("/etc/rc.local", script)
    };
    let found = survey(&files("#!/bin/sh\n/opt/app &\n")).unwrap();
    assert_eq!(found.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(), ["/etc/rc.local"]);
    assert_eq!(survey(&files("not executable")).unwrap().lost().count(), 0);
}

#[test]
fn a_clusters_instance_is_found_as_debians_generator_would() {
    let files = image()
        .file("/usr/lib/systemd/system-generators/postgresql-generator", "")
        .file("/usr/lib/systemd/system/postgresql@.service", "[Unit]\nAssertPathExists=/etc/postgresql/%I/postgresql.conf\n[Service]\nType=forking\nExecStart=-/usr/bin/web %i start\nPIDFile=/run/postgresql/%i.pid\n")
        .file("/etc/postgresql/15/main/start.conf", "# c\nauto\n")
        .file("/etc/postgresql/15/main/postgresql.conf", "")
        .file("/etc/postgresql/15/off/start.conf", "manual\n")
        .file("/etc/postgresql/15/off/postgresql.conf", "");
    let survey = survey(&files).unwrap();
    assert_eq!(survey.reports.len(), 1);
    let cluster = service(&survey, "postgresql@15-main");
    assert_eq!(cluster.only_if, [std::path::PathBuf::from("/etc/postgresql/15/main/postgresql.conf")]);
    assert!(cluster.command.ends_with(&[
        "--may-fail".into(),
        "--".into(),
        "/usr/bin/web".into(),
        "15-main".into(),
        "start".into()
    ]));
}

#[test]
fn shipped_definitions_parse_and_stay_off_where_the_owner_turned_the_unit_off() {
    let files = with(with_sshd(image()), "ssh.service", "").file("/usr/lib/systemd/system/cron.service", "");
    let survey = survey(&files).unwrap();
    assert_eq!(verdict(&survey, "ssh.service"), Verdict::Shipped { service: "sshd".into() });
    assert!(service(&survey, "sshd").enabled && !service(&survey, "cron").enabled);
    assert!(!service(&survey, "dbus").enabled && !service(&survey, "getty").enabled);
    assert_eq!(service(&survey, "rpcbind.service").group_path(), "system.slice/rpcbind.service");
    assert_eq!(survey.warnings, ["cron is installed, and its unit is not enabled: it stays off"]);
}

/// PID 1 reads no file of a service that it has compiled in: a definition by such a name, or its `enabled = false`, would be lost.
#[test]
fn no_shipped_definition_is_of_a_service_that_is_compiled_in() {
    let compiled_in = guest::service::builtin::services();
    for (name, ..) in known::SHIPPED {
        assert!(!compiled_in.contains_key(*name), "{name}");
    }
}

#[test]
fn an_image_without_an_init_loses_nothing() {
    let survey =
        survey(&FakeFiles::default().file("/etc/rc3.d/S01sudo", "").file("/etc/init.d/sudo", "")).unwrap();
    assert!(survey.reports.is_empty() && !survey.services.is_empty());
}

/// What the platform's provisioning installs (chrony, openssh-server, nfs-common) must not stop a bake.
#[test]
fn what_the_platforms_own_packages_enable_is_not_lost() {
    let gssd =
        "[Unit]\nConditionPathExists=/etc/krb5.keytab\n[Service]\nType=forking\nExecStart=/usr/bin/web\n";
    let mut files = with(image(), "rpc-gssd.service", gssd);
    for name in ["apt-daily.timer", "dpkg-db-backup.timer", "var-lib-nfs-rpc_pipefs.mount"] {
        files = with(files, name, "[Unit]\n");
    }
    for name in ["rpc-statd-notify.service", "auth-rpcgss-module.service", "e2b-chrony-source.service"] {
        files = with(files, name, "[Service]\nType=forking\nExecStart=/usr/bin/web\n");
    }
    files = files.file("/lib/systemd/system-generators/rpc-pipefs-generator", "");
    let survey = survey(&files).unwrap();
    assert_eq!(survey.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(), [""; 0]);
    let with_key = super::survey(&files.file("/etc/krb5.keytab", "")).unwrap();
    assert_eq!(with_key.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(), ["rpc-gssd.service"]);
}

/// A unit that the package itself pulls in.
fn of_systemd(files: FakeFiles, name: &str, text: &str) -> FakeFiles {
    let folder = "/usr/lib/systemd/system";
    files
        .file(&format!("{folder}/{name}"), text)
        .to(&format!("{folder}/basic.target.wants/{name}"), &format!("../{name}"))
}

/// Debian 13 and Ubuntu 24.04 pull these in whatever a template installs: no image of theirs could be baked without
/// accepting a loss.
#[test]
fn what_newer_systemds_enable_by_themselves_is_not_lost() {
    let mut files =
        image().to("/etc/resolv.conf", "/etc/servers").file("/etc/servers", "nameserver 8.8.8.8\n");
    for socket in ["creds", "hostnamed", "pcrextend", "pcrlock", "sysext", "not-yet-known"] {
        files = of_systemd(files, &format!("systemd-{socket}.socket"), "[Socket]\nListenStream=/run/x\n");
    }
    let measured =
        "[Unit]\nConditionSecurity=measured-uki\n[Service]\nType=oneshot\nExecStart=/usr/bin/web\n";
    for service in ["pcrmachine", "tpm2-setup", "tpm2-setup-early"] {
        files = of_systemd(files, &format!("systemd-{service}.service"), measured);
    }
    files =
        with(files, "systemd-hibernate-clear.service", "[Service]\nType=oneshot\nExecStart=/usr/bin/web\n");
    files = with(files, "systemd-resolved.service", "[Service]\nExecStart=/usr/bin/web\n");
    files = with(files, "tmp.mount", "[Mount]\nWhat=tmpfs\n");
    files = files.file("/usr/lib/systemd/system-generators/sshd-socket-generator", "");
    let survey = survey(&files).unwrap();
    assert_eq!(survey.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(), [""; 0]);
    assert!(survey.reports.iter().all(|report| matches!(report.verdict, Verdict::Covered { .. })));
}

#[test]
fn a_tmp_of_the_owners_and_a_resolver_that_is_needed_are_lost() {
    let files = with(image(), "systemd-resolved.service", "[Service]\nExecStart=/usr/bin/web\n");
    let files = with(files, "systemd-oomd.socket", "[Socket]\n")
        .to("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
        .file("/etc/systemd/system/tmp.mount", "[Mount]\n")
        .to(&format!("{WANTS}/tmp.mount"), "/etc/systemd/system/tmp.mount");
    let survey = survey(&files).unwrap();
    let lost: Vec<&str> = survey.lost().map(|report| report.unit.as_str()).collect();
    assert_eq!(lost, ["systemd-oomd.socket", "systemd-resolved.service", "tmp.mount"]);
}

#[test]
fn a_service_that_notifies_of_reloads_too_is_ready_when_it_says_so() {
    let unit =
        "[Unit]\nConditionVirtualization=!container\n[Service]\nType=notify-reload\nExecStart=/usr/bin/web\n";
    let survey = survey(&with(image(), "web.service", unit)).unwrap();
    assert_eq!(service(&survey, "web").readiness, guest::service::Readiness::Notify);
}

fn openrc_image() -> FakeFiles {
    let enabled = |files: FakeFiles, level: &str, name: &str| {
        files.to(&format!("/etc/runlevels/{level}/{name}"), &format!("/etc/init.d/{name}"))
    };
    let files =
        with_sshd(FakeFiles::default().to("/sbin/init", "/sbin/openrc-init").file("/sbin/openrc-init", ""));
    let levels = [
        ("sysinit", "devfs"),
        ("boot", "hostname"),
        ("boot", "syslog"),
        ("default", "sshd"),
        ("default", "local"),
        ("boot", "sshd"),
    ];
    levels.into_iter().fold(files, |files, (level, name)| enabled(files, level, name))
}

/// What is in `boot` or `local.d`, and a mount of fstab, must not go without a word.
#[test]
fn openrc_services_of_every_runlevel_of_the_boot_are_judged_once() {
    let found = survey(&openrc_image()).unwrap();
    assert!(matches!(verdict(&found, "devfs"), Verdict::Covered { .. }));
    assert!(matches!(verdict(&found, "hostname"), Verdict::Covered { .. }));
    assert!(matches!(verdict(&found, "sshd"), Verdict::Shipped { .. }));
    assert!(matches!(verdict(&found, "local"), Verdict::Covered { .. }));
    assert_eq!(found.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(), ["syslog"]);
    assert_eq!(found.reports.iter().filter(|report| report.unit == "sshd").count(), 1);

    let more = openrc_image()
        .file("/etc/local.d/mine.start", "#!/bin/sh\n")
        .file("/etc/fstab", "/dev/vdb /data ext4 defaults 0 0\n/dev/cdrom /media/cdrom iso9660 noauto 0 0\n");
    let found = survey(&more).unwrap();
    assert_eq!(
        found.lost().map(|report| report.unit.as_str()).collect::<Vec<_>>(),
        ["local", "mount of /data", "syslog"]
    );
    assert!(matches!(verdict(&found, "local"), Verdict::Lost { why } if why.contains("mine.start")));
}

/// Alpine's crond was called shipped, by Debian's cron, which is not there; its syslog made every bake of Alpine end.
#[test]
fn daemons_of_busybox_are_turned_and_those_of_other_packages_are_not() {
    let files = openrc_image().to("/etc/runlevels/default/crond", "/etc/init.d/crond");
    let found = survey(&files).unwrap();
    assert!(matches!(verdict(&found, "crond"), Verdict::Lost { .. }));
    let files = files
        .file("/bin/busybox", "")
        .to("/usr/sbin/crond", "/bin/busybox")
        .to("/sbin/syslogd", "/bin/busybox");
    let found = survey(&files).unwrap();
    assert_eq!(found.lost().count(), 0);
    assert_eq!(verdict(&found, "syslog"), Verdict::Convertible { service: "syslog".into(), dropped: vec![] });
    let crond = service(&found, "crond");
    assert!(crond.command.ends_with(&["/usr/sbin/crond".into(), "-f".into(), "$CRON_OPTS".into()]));
    assert!(crond.command.contains(&"-/etc/conf.d/crond".into()));
    assert_eq!(crond.after, ["syslog", "tmpfiles"]);
}

/// Fedora's chronyd, with its /etc/chrony.conf, was called shipped and never started.
#[test]
fn a_unit_whose_definition_has_nothing_to_start_here_is_turned_from_its_own_file() {
    let unit = "[Service]\nExecStart=/usr/sbin/chronyd -n\n";
    let fedora = with(image(), "chronyd.service", unit).file("/usr/sbin/chronyd", "");
    let found = survey(&fedora).unwrap();
    assert!(matches!(verdict(&found, "chronyd.service"), Verdict::Convertible { .. }));
    assert_eq!(found.services.iter().filter(|(name, _)| name == "chronyd").count(), 1);
    assert!(service(&found, "chronyd").command.contains(&"-n".into()));
    let debian = fedora.file("/etc/chrony/chrony.conf", "");
    assert!(matches!(verdict(&survey(&debian).unwrap(), "chronyd.service"), Verdict::Shipped { .. }));
}

/// The definition of Debian's cron runs `cron`; a `crond.service` is another program's.
#[test]
fn a_crond_of_systemd_is_turned() {
    let unit = "[Service]\nExecStart=/usr/bin/web -n $CRONDARGS\n";
    let found = survey(&with(image(), "crond.service", unit)).unwrap();
    assert!(matches!(verdict(&found, "crond.service"), Verdict::Convertible { .. }));
}

fn named(files: &FakeFiles) -> Vec<String> {
    survey(files).unwrap().lost().map(|report| report.unit.clone()).collect()
}

fn sysvinit_image() -> FakeFiles {
    let inittab = "id:2:initdefault:\nsi::sysinit:/etc/init.d/rcS\n~~:S:wait:/sbin/sulogin\nl2:2:wait:/etc/init.d/rc 2\n\
        l6:6:wait:/etc/init.d/rc 6\nca:12345:ctrlaltdel:/sbin/shutdown -r now\npf::powerwait:/etc/init.d/powerfail start\n\
        1:2345:respawn:/sbin/getty --noclear 38400 tty1\n";
    with_sshd(FakeFiles::default())
        .file("/sbin/init", "\x7fELF /etc/inittab")
        .file("/etc/inittab", inittab)
        .file("/etc/init.d/rcS", "#!/bin/sh\nexec /etc/init.d/rc S\n")
        .file("/etc/rcS.d/S01hostname.sh", "")
        .file("/etc/rcS.d/S02mountall.sh", "")
        .file("/etc/rc2.d/S01ssh", "")
        .file("/etc/rc2.d/S01rc.local", "")
        .file("/etc/rc2.d/K01apache2", "")
        .file("/etc/rc3.d/S01other-level", "")
}

/// An image under sysvinit lost its services without a word.
#[test]
fn scripts_and_commands_of_sysvinit_are_judged_and_none_is_lost_unsaid() {
    assert_eq!(named(&sysvinit_image()), [""; 0], "what a plain Debian starts is covered or shipped");
    let more = sysvinit_image()
        .file("/etc/rc2.d/S03nginx", "")
        .file("/etc/rcS.d/S20raid", "")
        .file("/etc/rc.local", "#!/bin/sh\n")
        .file("/etc/fstab", "/dev/vdb /data ext4 defaults 0 0\n");
    let found = survey(&more).unwrap();
    assert_eq!(verdict(&found, "/etc/init.d/ssh"), Verdict::Shipped { service: "sshd".into() });
    assert_eq!(
        named(&more),
        ["/etc/init.d/nginx", "/etc/init.d/raid", "/etc/init.d/rc.local", "mount of /data"]
    );
}

/// busybox's init and those that start OpenRC run the inittab's other lines too.
#[test]
fn a_command_of_the_inittab_itself_is_lost_and_said() {
    let alpine = "::sysinit:/sbin/openrc sysinit\n::sysinit:/sbin/openrc boot\n::wait:/sbin/openrc default\n\
        tty1::respawn:/sbin/getty 38400 tty1\n#ttyS0::respawn:/sbin/getty -L 115200 ttyS0\n::ctrlaltdel:/sbin/reboot\n\
        ::shutdown:/sbin/openrc shutdown\n";
    let image = |inittab: &str| {
        FakeFiles::default()
            .to("/sbin/init", "/bin/busybox")
            .file("/bin/busybox", "")
            .file("/etc/inittab", inittab)
    };
    assert_eq!(named(&image(alpine)), [""; 0], "as every container of Alpine has it, with or without OpenRC");
    assert_eq!(named(&image(&format!("{alpine}::respawn:/opt/app -x\n"))), ["/opt/app -x"]);
    let buildroot = "::sysinit:/bin/mount -t proc proc /proc\n::sysinit:/bin/mkdir -p /dev/pts\n\
        ::sysinit:/etc/init.d/rcS\n::once:/opt/app\n";
    let found = image(buildroot)
        .file("/etc/init.d/rcS", "#!/bin/sh\n")
        .file("/etc/init.d/S40network", "")
        .file("/etc/init.d/S99app", "");
    assert_eq!(named(&found), ["/etc/init.d/S99app", "/opt/app"]);
}

#[test]
fn busyboxs_init_without_an_inittab_runs_one_script() {
    let image = || FakeFiles::default().to("/sbin/init", "/bin/busybox").file("/bin/busybox", "");
    assert_eq!(named(&image()), [""; 0], "a container that has busybox and no init of its own");
    assert_eq!(named(&image().file("/etc/init.d/rcS", "#!/bin/sh\n")), ["/etc/init.d/rcS"]);
}

#[test]
fn services_of_runit_and_s6_are_named_and_other_inits_as_a_whole() {
    let runit = with_sshd(FakeFiles::default())
        .to("/sbin/init", "/usr/bin/runit-init")
        .file("/usr/bin/runit-init", "");
    assert_eq!(named(&runit), ["/usr/bin/runit-init"], "nothing says what it starts");
    let runit = ["agetty-tty1", "sshd", "web", "off"].into_iter().fold(runit, |files, name| {
        files.file(&format!("/etc/runit/runsvdir/default/{name}/run"), "#!/bin/sh\n")
    });
    let runit = runit.file("/etc/runit/runsvdir/default/off/down", "");
    assert_eq!(named(&runit), ["web"]);
    let s6 = FakeFiles::default()
        .to("/sbin/init", "/etc/s6-linux-init/current/bin/s6-linux-init")
        .file("/etc/s6-linux-init/current/bin/s6-linux-init", "")
        .file("/etc/s6-linux-init/current/run-image/service/s6-svscan-log/run", "")
        .file("/etc/s6-rc/compiled/servicedirs/web/run", "");
    assert_eq!(named(&s6), ["web"]);
    let script = FakeFiles::default().to("/sbin/init", "/opt/start").file("/opt/start", "#!/bin/sh\n");
    assert_eq!(named(&script), ["/opt/start"]);
}

/// `inspect --units` of an image that is baked already.
#[test]
fn an_init_that_ours_has_replaced_is_asked_for_its_services_too() {
    let native = sysvinit_image()
        .to("/sbin/init", "/usr/lib/envd-init/init")
        .file("/usr/lib/envd-init/init", "")
        .file("/usr/lib/envd-init/saved/sbin/init", "\x7fELF /etc/inittab")
        .file("/etc/rc2.d/S03nginx", "");
    assert_eq!(named(&native), ["/etc/init.d/nginx"]);
}
