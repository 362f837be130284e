//! The step of the boot that lays out cgroup2.

use guest::cgroup::{ENVD, INIT_SCOPE, SLICE, Tree};

/// Controllers for everybody, PID 1 in its scope. The groups of services are made as they start.
pub(super) fn lay_out(tree: &Tree) -> Vec<String> {
    let mut warnings: Vec<_> = tree.enable_controllers("").iter().map(ToString::to_string).collect();
    for group in [INIT_SCOPE, ENVD, SLICE] {
        warnings.extend(tree.make(group).err().map(|error| error.to_string()));
    }
    tree.enable_controllers(SLICE); // what the root lacks was told above
    let own = i32::try_from(std::process::id()).unwrap_or(1);
    warnings.extend(tree.enter(INIT_SCOPE, own).err().map(|error| error.to_string()));
    warnings
}
