//! All sandboxes of the bridge, kept in line with the configuration.
//!
//! | in the configuration | what happens |
//! |---|---|
//! | new | its address is opened and it is served; where that fails it is said, and tried again now and then |
//! | the same | nothing: its connections do not notice |
//! | other routes, same address | the listener stays; connections over a route that stays live on, those over others are closed; who waits, waits for the new routes |
//! | other address | as if the old were gone and the new were new |
//! | gone | its address and its connections are closed |
//! | broken, or of a file that is | as it was; what is wrong is said |

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use vsock_relay::endpoint::Endpoint;

use super::{
    config::{Config, Entry},
    listener::{ListenError, Listener, bind},
    log::{Level, say},
    metrics::render,
    places::Places,
    sandbox::{Sandbox, World},
};

/// How often an address that could not be opened is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5);

struct Served {
    entry: Entry,
    sandbox: Arc<Sandbox>,
    listener: Listener,
}

/// The sandboxes as the page of metrics sees them.
pub(super) type Roster = Arc<Mutex<Vec<Arc<Sandbox>>>>;

pub(super) struct Fleet {
    world: World,
    places: Arc<Places>,
    served: BTreeMap<String, Served>,
    /// Entries whose address could not be opened, and what was said of it.
    missing: BTreeMap<String, (Entry, String)>,
    /// The file of each entry.
    files: BTreeMap<String, PathBuf>,
    /// What was said of broken entries.
    refused: BTreeMap<String, String>,
    roster: Roster,
}

impl Fleet {
    pub(super) fn new(world: World, places: Arc<Places>) -> Self {
        Self {
            world,
            places,
            served: BTreeMap::new(),
            missing: BTreeMap::new(),
            files: BTreeMap::new(),
            refused: BTreeMap::new(),
            roster: Roster::default(),
        }
    }

    /// Brings what is served in line with `config`.
    pub(super) async fn apply(&mut self, config: Config) {
        self.say_refused(&config);
        let unread = |file: &PathBuf| config.unread.values().any(|unread| unread == file);
        let kept: BTreeMap<String, PathBuf> = std::mem::take(&mut self.files)
            .into_iter()
            .filter(|(name, file)| config.refused.contains_key(name) || unread(file))
            .collect();
        let gone: Vec<String> = self
            .served
            .keys()
            .filter(|name| !config.entries.contains_key(*name) && !kept.contains_key(*name))
            .cloned()
            .collect();
        // Addresses are freed before others may take them.
        for name in gone {
            self.stop(&name).await;
        }
        self.missing.retain(|name, (entry, _)| {
            config.entries.get(name).map_or(kept.contains_key(name), |now| now == entry)
        });
        self.files = kept;
        self.files.extend(config.files);
        for (name, entry) in &config.entries {
            if self.served.get(name).is_some_and(|served| served.entry.listen != entry.listen) {
                self.stop(name).await;
            }
        }
        for (index, (name, entry)) in config.entries.into_iter().enumerate() {
            self.serve(name, entry).await;
            if index % 16 == 15 {
                // Hundreds of entries at once must not hold up those who are being served.
                tokio::task::yield_now().await;
            }
        }
        self.enrol();
    }

    /// Serves one entry; in a configuration its failure is said, and tried again.
    async fn serve(&mut self, name: String, entry: Entry) {
        match self.served.get_mut(&name) {
            Some(served) if served.entry == entry => return,
            Some(served) => return reroute(served, entry),
            None => {}
        }
        if let Err(error) = self.start(&name, entry.clone()).await {
            let text = format!("{error}; trying again every {} s", RETRY.as_secs());
            let told = self.missing.get(&name).is_some_and(|(_, told)| *told == text);
            if !told {
                say(Level::Error, Some(&name), "listen", &text, &[("listen", &entry.listen)]);
            }
            self.missing.insert(name, (entry, text));
        }
    }

    /// Serves the one entry that was given by flags; there a failure is final.
    pub(super) async fn serve_only(&mut self, name: &str, entry: Entry) -> Result<(), ListenError> {
        self.start(name, entry).await?;
        self.enrol();
        Ok(())
    }

    /// Opens an entry's address and serves it.
    async fn start(&mut self, name: &str, entry: Entry) -> Result<(), ListenError> {
        let socket = bind(&entry.listen, self.world.broker.as_ref()).await?;
        let sandbox = Sandbox::new(name.to_owned(), entry.routes.clone(), self.world.clone());
        let listen = entry.listen.clone();
        let failed = |source| ListenError::Io { listen: listen.clone(), source };
        let listener =
            Listener::start(listen.clone(), socket, Arc::clone(&sandbox), Arc::clone(&self.places))
                .map_err(failed)?;
        self.missing.remove(name);
        announce(name, &entry);
        self.served.insert(name.to_owned(), Served { entry, sandbox, listener });
        Ok(())
    }

    /// The address is free when this has ended.
    async fn stop(&mut self, name: &str) {
        if let Some(served) = self.served.remove(name) {
            served.listener.close().await;
            let clients = served.sandbox.close_all();
            let text = format!("no longer served on {}; closed {clients} connections", served.entry.listen);
            say(Level::Info, Some(name), "removed", &text, &[("listen", &served.entry.listen)]);
        }
    }

    fn say_refused(&mut self, config: &Config) {
        let told: BTreeMap<String, String> =
            config.refused.iter().map(|(name, error)| (name.clone(), error.to_string())).collect();
        for (name, text) in &told {
            if self.refused.get(name) != Some(text) {
                let has_some = |file| self.files.values().any(|known| known == file);
                let served = self.served.contains_key(name) || config.unread.get(name).is_some_and(has_some);
                let what = if served { "left as it was" } else { "not served" };
                say(Level::Error, Some(name), "refused", &format!("{text}; {what}"), &[]);
            }
        }
        self.refused = told;
    }

    /// Tries again what could not be opened.
    pub(super) async fn retry(&mut self) {
        for (name, (entry, _)) in self.missing.clone() {
            self.serve(name, entry).await;
        }
        self.enrol();
    }

    pub(super) fn is_incomplete(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.served.len()
    }

    /// Closes all addresses. Connections go on; their sandboxes are returned.
    pub(super) fn close_listeners(&mut self) -> Vec<Arc<Sandbox>> {
        self.missing.clear();
        let served = std::mem::take(&mut self.served);
        served.into_values().map(|served| served.sandbox).collect()
    }

    pub(super) fn roster(&self) -> Roster {
        Arc::clone(&self.roster)
    }

    /// Tells the page of metrics who is served, and how many files they take.
    fn enrol(&self) {
        self.places.leave_room_for(self.served.len());
        let sandboxes = self.served.values().map(|served| Arc::clone(&served.sandbox)).collect();
        *self.roster.lock().unwrap_or_else(PoisonError::into_inner) = sandboxes;
    }
}

/// The page of metrics.
pub(super) fn page_of(roster: &Roster) -> String {
    let roster = roster.lock().unwrap_or_else(PoisonError::into_inner);
    render(&roster.iter().map(|sandbox| sandbox.sample()).collect::<Vec<_>>())
}

/// The address stays open, and so do the connections over routes that stay.
fn reroute(served: &mut Served, entry: Entry) {
    let (sandbox, closed) = served.sandbox.succeeded_by(entry.routes.clone());
    served.listener.lead_to(Arc::clone(&sandbox));
    served.sandbox = sandbox;
    let routes = list(&entry.routes);
    let text = format!("routes are now {routes}; closed {closed} connections over routes that are gone");
    say(Level::Info, Some(&served.sandbox.name), "changed", &text, &[("routes", &routes)]);
    served.entry = entry;
}

fn list(routes: &[Endpoint]) -> String {
    routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ")
}

fn announce(name: &str, entry: &Entry) {
    let routes = list(&entry.routes);
    let text = format!("listening on {}, routes: {routes}", entry.listen);
    say(Level::Info, Some(name), "listening", &text, &[("listen", &entry.listen), ("routes", &routes)]);
    warn_if_exposed(Some(name), &entry.listen, "controls the sandbox");
}

/// Says who else reaches an address, and what that means for those who do.
pub(super) fn warn_if_exposed(sandbox: Option<&str>, listen: &Endpoint, means: &str) {
    if listen.is_local() {
        return;
    }
    let (others, safe) = match listen {
        Endpoint::Vsock { .. } => ("the VMs of this machine", "a unix socket"),
        _ => ("other machines", "loopback"),
    };
    let text = format!("{listen} can be reached from {others}: whoever reaches it {means}; {safe} is safe");
    say(Level::Warn, sandbox, "exposed", &text, &[("listen", listen)]);
}
