//! What a service may be called when something is asked of it: with `.service` behind its name as a unit of systemd, and without,
//! though the name that its file gives it may itself end so.

const SUFFIX: &str = ".service";

/// The names that `asked` may stand for, the likeliest first.
pub(crate) fn candidates(asked: &str) -> Vec<String> {
    let names = [Some(asked.to_owned()), asked.strip_suffix(SUFFIX).map(str::to_owned), {
        (!asked.ends_with(SUFFIX)).then(|| format!("{asked}{SUFFIX}"))
    }];
    names.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_name_comes_first() {
        assert_eq!(candidates("rpcbind"), ["rpcbind", "rpcbind.service"]);
        assert_eq!(candidates("rpcbind.service"), ["rpcbind.service", "rpcbind"]);
    }
}
