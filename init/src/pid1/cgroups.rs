//! The steps of the boot that lay out cgroup2.

use guest::cgroup::{INIT_SCOPE, SLICE, Tree};

/// What envd needs: controllers for everybody below the root. Its own group is made as its service starts.
pub(super) fn first(tree: &Tree) -> Vec<String> {
    tree.enable_controllers("").iter().map(ToString::to_string).collect()
}

/// The groups of all others.
pub(super) fn later(tree: &Tree) -> Vec<String> {
    let warnings = [INIT_SCOPE, SLICE].iter().filter_map(|group| tree.make(group).err());
    let warnings = warnings.map(|error| error.to_string()).collect();
    tree.enable_controllers(SLICE); // what the root lacks was told above
    warnings
}

/// PID 1 into its own.
pub(super) fn enter(tree: &Tree) -> Vec<String> {
    let outcome = tree.make(INIT_SCOPE).and_then(|()| tree.enter(INIT_SCOPE, 1));
    outcome.err().map(|error| error.to_string()).into_iter().collect()
}
