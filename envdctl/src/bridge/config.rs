//! Which sandboxes there are: from the flags, from a file, or from a folder of files.
//!
//! ```toml
//! # a file of many                              # or, in a folder, one file each: its name is the sandbox's
//! [sandbox.ns-72]                                listen = "tcp:127.0.0.1:49983"
//! listen = "tcp:127.0.0.1:49983"                 routes = ["netns:ns-72/tcp:169.254.0.21:49983"]
//! routes = ["netns:ns-72/tcp:169.254.0.21:49983", "firecracker:/srv/72/v.sock:49983"]
//! ```
//!
//! An entry that is broken is refused by name, and the others are served.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use vsock_relay::endpoint::{Endpoint, EndpointError};

/// One sandbox, as it is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) listen: Endpoint,
    pub(super) routes: Vec<Endpoint>,
}

/// What was read: the good entries, and what is wrong with the others.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) refused: BTreeMap<String, ConfigError>,
    /// The file of each good entry.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Files of which nothing can be told, by the name under which they are refused: which sandboxes they have is unknown.
    pub(super) unread: BTreeMap<String, PathBuf>,
}

/// Why an entry, or a whole file, is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Toml { path: PathBuf, message: String },
    #[error("{}: has neither listen and routes nor a table [sandbox.NAME]", path.display())]
    Empty { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Endpoint { path: PathBuf, source: EndpointError },
    #[error("{}: sandbox {name}: {key} is missing", path.display())]
    Missing { path: PathBuf, name: String, key: &'static str },
    #[error("{}: needs at least one route", path.display())]
    NoRoute { path: PathBuf },
    #[error("{}: route {route} is there twice", path.display())]
    SameRoute { path: PathBuf, route: Endpoint },
    #[error("{}: listen address {listen} is that of sandbox {other}", path.display())]
    SameListen { path: PathBuf, listen: Endpoint, other: String },
    #[error("{}: there is a sandbox of this name in another file", path.display())]
    SameName { path: PathBuf },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    listen: Option<String>,
    routes: Option<Vec<String>>,
    #[serde(default)]
    sandbox: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    listen: Option<String>,
    routes: Option<Vec<String>>,
}

/// Reads a file, or all `*.toml` files of a folder. Only the folder or file itself being unreadable is an error.
pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.is_dir() {
        let mut files: Vec<PathBuf> = fs::read_dir(path)
            .map_err(failed)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_config(path))
            .collect();
        files.sort();
        files.iter().for_each(|file| config.add_file(file));
    } else {
        fs::File::open(path).map_err(failed)?;
        config.add_file(path);
    }
    config.refuse_shared_listeners(path);
    Ok(config)
}

/// Editors leave hidden and backup files beside the real ones.
pub(super) fn is_config(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

impl Config {
    /// A single file of which nothing can be served is a mistake to be told at once; a folder may fill later.
    pub(super) fn serving_something(mut self, path: &Path) -> Result<Self, ConfigError> {
        let useless = !path.is_dir() && self.entries.is_empty();
        match useless.then(|| self.refused.pop_first()).flatten() {
            Some((_, error)) => Err(error),
            None => Ok(self),
        }
    }

    fn add_file(&mut self, path: &Path) {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let raw = match read_file(path) {
            Ok(raw) => raw,
            Err(error) => {
                self.unread.insert(stem.clone(), path.to_owned());
                self.refused.insert(stem, error);
                return;
            }
        };
        if raw.listen.is_some() || raw.routes.is_some() {
            let entry = parse(path, &stem, RawEntry { listen: raw.listen, routes: raw.routes });
            self.add(stem, path, entry);
        }
        for (name, value) in raw.sandbox {
            let entry = value.try_into::<RawEntry>();
            let entry = entry
                .map_err(|error| ConfigError::Toml {
                    path: path.to_owned(),
                    message: one_line(error.message()),
                })
                .and_then(|entry| parse(path, &name, entry));
            self.add(name, path, entry);
        }
    }

    fn add(&mut self, name: String, path: &Path, entry: Result<Entry, ConfigError>) {
        if self.entries.contains_key(&name) {
            self.refused.insert(name, ConfigError::SameName { path: path.to_owned() });
            return;
        }
        match entry {
            Ok(entry) => {
                self.files.insert(name.clone(), path.to_owned());
                self.entries.insert(name, entry);
            }
            Err(error) => drop(self.refused.insert(name, error)),
        }
    }

    /// The first by name keeps the address.
    fn refuse_shared_listeners(&mut self, path: &Path) {
        let mut owners: HashMap<Endpoint, String> = HashMap::new();
        let mut shared = Vec::new();
        for (name, entry) in &self.entries {
            match owners.get(&entry.listen) {
                Some(other) => shared.push((name.clone(), entry.listen.clone(), other.clone())),
                None => drop(owners.insert(entry.listen.clone(), name.clone())),
            }
        }
        for (name, listen, other) in shared {
            self.entries.remove(&name);
            self.refused.insert(name, ConfigError::SameListen { path: path.to_owned(), listen, other });
        }
    }
}

fn read_file(path: &Path) -> Result<RawFile, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let raw: RawFile = toml::from_str(&text).map_err(|error| ConfigError::Toml {
        path: path.to_owned(),
        message: one_line(&error.to_string()),
    })?;
    if raw.listen.is_none() && raw.routes.is_none() && raw.sandbox.is_empty() {
        return Err(ConfigError::Empty { path: path.to_owned() });
    }
    Ok(raw)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn parse(path: &Path, name: &str, raw: RawEntry) -> Result<Entry, ConfigError> {
    let missing = |key| ConfigError::Missing { path: path.to_owned(), name: name.to_owned(), key };
    let listen = raw.listen.ok_or_else(|| missing("listen"))?;
    let routes = raw.routes.ok_or_else(|| missing("routes"))?;
    let wrong = |source| ConfigError::Endpoint { path: path.to_owned(), source };
    let listen = listen.parse::<Endpoint>().and_then(Endpoint::listenable).map_err(wrong)?;
    let routes: Result<Vec<Endpoint>, EndpointError> =
        routes.iter().map(|route| route.parse::<Endpoint>()?.connectable()).collect();
    check_routes(path, Entry { listen, routes: routes.map_err(wrong)? })
}

/// What holds for an entry wherever it comes from.
pub(super) fn check_routes(path: &Path, entry: Entry) -> Result<Entry, ConfigError> {
    if entry.routes.is_empty() {
        return Err(ConfigError::NoRoute { path: path.to_owned() });
    }
    for (index, route) in entry.routes.iter().enumerate() {
        if entry.routes[..index].contains(route) {
            return Err(ConfigError::SameRoute { path: path.to_owned(), route: route.clone() });
        }
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const GOOD: &str = "listen = 'tcp:127.0.0.1:1'\nroutes = ['unix:/a', 'firecracker:/b:2']\n";

    #[test]
    fn a_folder_gives_one_sandbox_a_file_or_many_in_one() {
        let many = "[sandbox.x]\nlisten='unix:/x'\nroutes=['unix:/y']\n[sandbox.y]\nlisten='unix:/z'\nroutes=['unix:/y']\n";
        let folder =
            folder(&[("ns-72.toml", GOOD), ("many.toml", many), (".hidden.toml", "?"), ("notes.txt", "?")]);
        let config = read(folder.path()).unwrap();
        assert_eq!(config.entries.keys().collect::<Vec<_>>(), ["ns-72", "x", "y"]);
        assert!(config.refused.is_empty());
    }

    #[test]
    fn a_single_file_of_which_nothing_can_be_served_is_a_mistake_and_an_empty_folder_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.toml");
        fs::write(&path, "listen = 3").unwrap();
        assert!(read(&path).unwrap().serving_something(&path).is_err());
        assert!(read(dir.path()).unwrap().serving_something(dir.path()).is_ok());
    }

    #[test]
    fn a_broken_entry_is_refused_by_name_and_the_rest_is_served() {
        let mixed = "[sandbox.good]\nlisten='unix:/x'\nroutes=['unix:/y']\n[sandbox.bad]\nlisten='nonsense'\nroutes=[]\n\
                     [sandbox.worse]\nlisten=7\n[sandbox.twice]\nlisten='unix:/t'\nroutes=['unix:/y','unix:/y']\n";
        let folder =
            folder(&[("mixed.toml", mixed), ("junk.toml", "]["), ("empty.toml", ""), ("ok.toml", GOOD)]);
        let config = read(folder.path()).unwrap();
        assert_eq!(config.entries.keys().collect::<Vec<_>>(), ["good", "ok"]);
        assert_eq!(config.refused.keys().collect::<Vec<_>>(), ["bad", "empty", "junk", "twice", "worse"]);
        assert!(config.refused.values().all(|error| !error.to_string().contains('\n')));
    }

    #[test]
    fn an_entry_without_an_address_or_a_route_is_told_what_is_missing() {
        let many = "[sandbox.a]\nroutes=['unix:/y']\n[sandbox.b]\nlisten='unix:/x'\n";
        let folder =
            folder(&[("many.toml", many), ("c.toml", "routes=['unix:/y']"), ("d.toml", "listen='unix:/z'")]);
        let config = read(folder.path()).unwrap();
        for (name, missing) in [("a", "listen"), ("b", "routes"), ("c", "listen"), ("d", "routes")] {
            let error = config.refused[name].to_string();
            assert!(error.ends_with(&format!("sandbox {name}: {missing} is missing")), "{error}");
        }
    }

    #[test]
    fn two_sandboxes_cannot_share_an_address_or_a_name() {
        let folder = folder(&[
            ("a.toml", GOOD),
            ("b.toml", GOOD),
            ("c.toml", "[sandbox.a]\nlisten='unix:/q'\nroutes=['unix:/y']"),
        ]);
        let config = read(folder.path()).unwrap();
        assert_eq!(config.entries.keys().collect::<Vec<_>>(), ["a"]);
        assert!(matches!(config.refused["b"], ConfigError::SameListen { .. }));
        assert!(matches!(config.refused["a"], ConfigError::SameName { .. }));
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(read(Path::new("/no/such/folder")).is_err());
    }
}
