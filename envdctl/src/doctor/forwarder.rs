//! Programs that pass connections on, as far as their command lines tell where to.

use std::net::SocketAddr;

use crate::host::socket::Listener;

/// Where a forwarder leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As its command line says it.
    pub text: String,
    /// The same as an address, where it is one.
    pub address: Option<SocketAddr>,
}

/// The target of a listener whose process is a socat; `None` for other programs.
pub fn target_of(listener: &Listener) -> Option<Target> {
    let owner = listener.owner.as_ref()?;
    if !owner.name.starts_with("socat") {
        return None;
    }
    socat_target(&owner.arguments)
}

/// Of socat's two addresses the one that does not listen.
fn socat_target(arguments: &[String]) -> Option<Target> {
    let words: Vec<&str> =
        arguments.iter().skip(1).map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let is_address = |word: &&&str| word.contains(':') || word.contains('!');
    let text = words.iter().filter(is_address).find(|word| !listens(word))?;
    let (_, place) = text.split_once(':')?;
    let place = place.split(',').next().unwrap_or(place);
    Some(Target { text: place.to_owned(), address: place.replace("localhost", "127.0.0.1").parse().ok() })
}

fn listens(word: &str) -> bool {
    let kind = word.split(':').next().unwrap_or_default().to_ascii_uppercase();
    kind.ends_with("-L") || kind.contains("LISTEN")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(line: &str) -> Option<Target> {
        socat_target(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_side_that_does_not_listen_is_the_target() {
        for line in [
            "socat TCP4-LISTEN:49983,bind=10.12.0.3,reuseaddr,fork TCP4:169.254.0.21:49983",
            "socat -d -d tcp-l:49983,fork tcp:169.254.0.21:49983,connect-timeout=5",
            "/usr/bin/socat TCP:169.254.0.21:49983 TCP-LISTEN:49983",
        ] {
            assert_eq!(target(line).unwrap().address, Some("169.254.0.21:49983".parse().unwrap()), "{line}");
        }
    }

    #[test]
    fn a_target_that_is_no_address_is_kept_as_text() {
        assert_eq!(
            target("socat TCP-LISTEN:1 TCP:guest:5").unwrap(),
            Target { text: "guest:5".into(), address: None }
        );
        assert_eq!(target("socat TCP-LISTEN:1"), None);
    }
}
