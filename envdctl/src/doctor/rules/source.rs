//! Where rules come from: `iptables-save` and `nft`, run in the namespace of the calling thread.
//!
//! No library serves here: the kernel's interface for iptables' older tables and for its extensions is known to
//! these programs alone. They are asked for lists only.

use std::process::{Command, Stdio};

use super::{Chain, iptables, nft};

/// What is known of a namespace's rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub chains: Vec<Chain>,
    /// Why something may be missing.
    pub gaps: Vec<String>,
}

/// Reads all rules of the calling thread's namespace.
pub fn read() -> Rules {
    let mut rules = Rules::default();
    let mut covered = Vec::new();
    let mut seen = false;
    for (save, tool) in [("iptables-save", "iptables"), ("iptables-legacy-save", "iptables-legacy")] {
        if tool == "iptables-legacy" && !legacy_in_use() {
            continue;
        }
        if let Some(text) = run(save, &["-c"]) {
            covered.extend(iptables::tables(&text));
            let chains = iptables::parse(&text, tool);
            rules
                .chains
                .extend(chains.into_iter().filter(|chain| !rules.chains.contains(chain)).collect::<Vec<_>>());
            seen = true;
        }
    }
    match run("nft", &["-j", "list", "ruleset"]) {
        Some(text) => match nft::parse(&text, &covered) {
            Some(chains) => rules.chains.extend(chains),
            None => rules.gaps.push("nft -j list ruleset printed something that is not understood".into()),
        },
        None if seen => {}
        None => rules.gaps.push("neither iptables-save nor nft can be run here: rules are not seen".into()),
    }
    rules
}

/// Whether the kernel holds tables of the older kind in this namespace.
fn legacy_in_use() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| !names.trim().is_empty())
}

/// What a program prints, where it is there and succeeds. The usual folders of an administrator are looked in too.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/local/sbin"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
