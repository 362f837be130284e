//! Collects the services of a machine from what is compiled in and from the two folders of files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Restart, Service, builtin};
use crate::files;

/// Files that come with envd-init: converted units, and copies of what is compiled in, for people to read.
pub const SHIPPED: &str = "/usr/lib/envd-init/services.d";
/// The image owner's files.
pub const OWN: &str = "/etc/envd-init/services.d";

/// The services by name, and what is wrong with their files.
#[derive(Debug, Default)]
pub struct Loaded {
    pub services: BTreeMap<String, Service>,
    pub problems: Vec<String>,
}

/// Without these nobody reaches the machine: a file of their name can change them, but not break them.
const INDISPENSABLE: [&str; 2] = ["envd", "relay"];

/// Whether nobody reaches the machine without this service.
pub fn is_indispensable(name: &str) -> bool {
    INDISPENSABLE.contains(&name)
}

/// All services: what is compiled in, what comes with envd-init, and over both of them the owner's.
pub fn load(shipped: &Path, own: &Path) -> Loaded {
    let mut loaded = Loaded { services: builtin::services(), problems: Vec::new() };
    for path in toml_files(shipped, &mut loaded.problems) {
        if !loaded.services.contains_key(&name_of(&path)) {
            loaded.add(&path);
        }
    }
    for path in toml_files(own, &mut loaded.problems) {
        loaded.add(&path);
    }
    loaded
}

/// One service and those that it waits for, directly or not: what a boot starts first, with no look at any other file.
pub fn chain(shipped: &Path, own: &Path, name: &str) -> Loaded {
    let mut loaded = Loaded::default();
    let mut names = vec![name.to_owned()];
    let mut at = 0;
    while let Some(name) = names.get(at).cloned() {
        at += 1;
        loaded.add_by_name(shipped, own, &name);
        let after = loaded.services.get(&name).map(|service| service.after.clone()).unwrap_or_default();
        names.extend(after.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    }
    loaded
}

/// One service alone, as its files are now.
pub fn one(shipped: &Path, own: &Path, name: &str) -> Loaded {
    let mut loaded = Loaded::default();
    if valid_name(name) {
        loaded.add_by_name(shipped, own, name);
    }
    loaded
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Paths of `*.toml` in a folder, in the order of their names. No folder is an empty one.
fn toml_files(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                problems.push(format!("cannot read {}: {error}", folder.display()));
            }
            return Vec::new();
        }
    };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

impl Loaded {
    fn add_by_name(&mut self, shipped: &Path, own: &Path, name: &str) {
        let compiled_in = builtin::service(name);
        let known = compiled_in.is_some();
        self.services.extend(compiled_in.map(|service| (name.to_owned(), service)));
        let file = format!("{name}.toml");
        let paths = [(!known).then(|| shipped.join(&file)), Some(own.join(&file))];
        for path in paths.into_iter().flatten().filter(|path| path.symlink_metadata().is_ok()) {
            self.add(&path);
        }
    }

    fn add(&mut self, path: &Path) {
        let name = name_of(path);
        if !valid_name(&name) {
            return self.problem(
                path,
                "a service's name is made of a-z, A-Z, 0-9, '-', '_', '.', '@'; at most 64 of them",
            );
        }
        match files::read_text(path) {
            Ok(text) => self.add_text(path, &name, &text),
            Err(error) => {
                let instead = self.instead_of(&name);
                self.problem(path, &format!("{error}{instead}"));
            }
        }
    }

    /// What runs in place of a file that is of no use.
    fn instead_of(&self, name: &str) -> &'static str {
        if self.services.contains_key(name) { "; the shipped one is used" } else { "" }
    }

    fn add_text(&mut self, path: &Path, name: &str, text: &str) {
        let off = text.trim().is_empty();
        if off && !is_indispensable(name) {
            self.services.remove(name);
            return;
        }
        let read = Service::parse(name, text);
        for problem in &read.problems {
            self.problem(path, problem);
        }
        if read.value.command.is_empty() {
            let instead = self.instead_of(name);
            return self.problem(path, &format!("no command is given{instead}"));
        }
        let service = if is_indispensable(name) { self.keep_reachable(path, read.value) } else { read.value };
        self.services.insert(name.to_owned(), service);
    }

    /// What an owner may not change of a service without which nobody reaches the machine: that it runs, always. Where its program
    /// is not there the compiled-in service does.
    fn keep_reachable(&mut self, path: &Path, own: Service) -> Service {
        let Some(shipped) = builtin::service(&own.name) else { return own };
        if let Some(program) = own.program().filter(|program| !program.exists()) {
            self.problem(
                path,
                &format!("there is no program {}; the shipped one is used", program.display()),
            );
            return shipped;
        }
        let kept = Service {
            enabled: true,
            kind: shipped.kind,
            restart: Restart::Always,
            only_if: Vec::new(),
            only_if_filled: Vec::new(),
            only_if_absent: Vec::new(),
            ..own.clone()
        };
        let asked = [
            ("enabled", own.enabled != kept.enabled),
            ("kind", own.kind != kept.kind),
            // What it says of restarts where it says nothing is no wish.
            ("restart", own.restart == Restart::Never),
            ("only_if", own.only_if != kept.only_if),
            ("only_if_filled", own.only_if_filled != kept.only_if_filled),
            ("only_if_absent", own.only_if_absent != kept.only_if_absent),
        ];
        for (key, _) in asked.iter().filter(|(_, asked)| *asked) {
            self.problem(
                path,
                &format!("{key} does not count: without {} nobody reaches the machine", own.name),
            );
        }
        kept
    }

    fn problem(&mut self, path: &Path, text: &str) {
        self.problems.push(format!("{}: {text}", path.display()));
    }
}

/// Whether `name` can be a service's: it becomes a folder's name in the cgroup tree and a word in every log line.
pub fn valid_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_files(files: &[(&str, &str)]) -> Loaded {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        load(Path::new("/nonexistent/services.d"), dir.path())
    }

    #[test]
    fn an_own_file_replaces_a_shipped_one_and_an_empty_one_turns_it_off() {
        let loaded =
            load_files(&[("tmpfiles.toml", ""), ("relay.toml", "command = ['/bin/sh']"), ("notes.txt", "x")]);
        assert!(!loaded.services.contains_key("tmpfiles"));
        assert_eq!(loaded.services["relay"].command, ["/bin/sh"]);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    }

    #[test]
    fn garbage_in_every_file_still_leaves_envd_and_the_relay() {
        let junk = "\u{1}\u{2}[[[";
        let loaded =
            load_files(&[("envd.toml", junk), ("relay.toml", ""), ("web.toml", junk), ("b ad.toml", "")]);
        assert_eq!(loaded.services["envd"].command[0], "/usr/lib/envd-init/envd-wrapper");
        assert_eq!(loaded.services["relay"].group_path(), "init.scope");
        assert!(!loaded.services.contains_key("web"));
        assert!(loaded.problems.iter().any(|problem| problem.contains("the shipped one is used")));
    }

    /// The documentation says that they cannot be turned off; only an empty file was kept from it.
    #[test]
    fn no_file_turns_envd_or_the_relay_off() {
        let off = "command = ['/bin/sh']\nenabled = false\nkind = 'oneshot'\nrestart = 'never'\nonly_if = ['/no/such']\n";
        let loaded = load_files(&[("envd.toml", "command = ['/no/such']"), ("relay.toml", off)]);
        let relay = &loaded.services["relay"];
        assert!(relay.enabled && !relay.is_oneshot() && relay.only_if.is_empty());
        assert_eq!((relay.restart, relay.command[0].as_str()), (Restart::Always, "/bin/sh"));
        assert_eq!(loaded.services["envd"].command[0], "/usr/lib/envd-init/envd-wrapper");
        assert_eq!(loaded.problems.len(), 5, "{:?}", loaded.problems);
    }

    #[test]
    fn a_pipe_or_a_folder_in_place_of_a_file_is_named_and_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.path().join("folder.toml")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("tmpfiles.toml")).unwrap();
        let loaded = load(Path::new("/nonexistent"), dir.path());
        assert_eq!(loaded.problems.len(), 2, "{:?}", loaded.problems);
        assert!(!loaded.services.contains_key("tmpfiles"));
    }

    #[test]
    fn what_is_compiled_in_is_not_read_from_its_shipped_copy() {
        let (shipped, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(shipped.path().join("envd.toml"), "command = ['/bin/other']").unwrap();
        fs::write(shipped.path().join("nginx.toml"), "command = ['/bin/nginx']").unwrap();
        let loaded = load(shipped.path(), own.path());
        assert_eq!(loaded.services["envd"].command[0], "/usr/lib/envd-init/envd-wrapper");
        assert_eq!(loaded.services["nginx"].command, ["/bin/nginx"]);
    }

    #[test]
    fn the_chain_of_envd_is_what_it_waits_for_and_nothing_else() {
        let (shipped, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let chain = |own: &Path| chain(shipped.path(), own, "envd").services.into_keys().collect::<Vec<_>>();
        assert_eq!(chain(own.path()), ["envd", "seed-certs", "tmp"]);
        fs::write(own.path().join("envd.toml"), "command = ['/bin/sh']\nafter = ['mine', 'nobody', 'envd']")
            .unwrap();
        fs::write(own.path().join("mine.toml"), "command = ['/m']\nafter = ['unit']").unwrap();
        fs::write(shipped.path().join("unit.toml"), "command = ['/u']").unwrap();
        fs::write(own.path().join("web.toml"), "command = ['/w']").unwrap();
        assert_eq!(chain(own.path()), ["envd", "mine", "unit"]);
    }

    #[test]
    fn one_service_is_read_as_its_files_are_now() {
        let (shipped, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read = |name: &str| one(shipped.path(), own.path(), name).services.remove(name);
        assert_eq!(read("web"), None);
        fs::write(shipped.path().join("web.toml"), "command = ['/shipped']").unwrap();
        assert_eq!(read("web").unwrap().command, ["/shipped"]);
        fs::write(own.path().join("web.toml"), "command = ['/own']").unwrap();
        assert_eq!(read("web").unwrap().command, ["/own"]);
        assert_eq!(read("envd").unwrap().command[0], "/usr/lib/envd-init/envd-wrapper");
        assert_eq!(read("../web"), None);
    }

    #[test]
    fn names_that_could_leave_the_cgroup_tree_are_refused() {
        for name in ["", "..", ".hidden", "a/b", "a b", "ü"] {
            assert!(!valid_name(name), "{name}");
        }
        assert!(valid_name("web-1.2@x_y"));
    }
}
