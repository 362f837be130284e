//! What a probe's failure proves.
//!
//! Only envd's own failure may end it. Its port is asked over loopback, and there a sandbox's user may filter packets, take
//! the interface down or use up all ports. So where no connection came about, the kernel's table of sockets is asked too:
//!
//! | the probe | envd's port in the table | proves |
//! |---|---|---|
//! | no connection | nobody listens | not listening |
//! | no connection | connections wait there to be accepted | hanging |
//! | no connection | none waits: packets do not arrive | nothing |
//! | no socket to be had | nobody listens | not listening |
//! | no socket to be had | somebody listens, or no table | nothing |
//! | connected, the request was never acknowledged | – | nothing: packets get lost |
//! | connected, no answer | – | hanging |
//! | another answer than 204 | – | failing |

use std::fs::File;
use std::io::{BufRead, BufReader};

use guest::supervise::{Event, ProbeFailure};
use nix::errno::Errno;

use crate::probe::Failure;

/// Both are asked: an IPv6 socket takes connections of IPv4 as well.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// State of a socket that listens.
const LISTEN: &str = "0A";
/// Addresses at which 127.0.0.1 is served: any and loopback of IPv4, any and mapped loopback of IPv6.
const SERVED: [&str; 4] =
    ["00000000", "0100007F", "00000000000000000000000000000000", "0000000000000000FFFF00000100007F"];

/// envd's port, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Closed,
    Open {
        /// Connections that are not accepted yet. One that serves takes them at once.
        waiting: u32,
    },
}

/// Looks a port up; `None` where there is no table to be read.
pub(crate) fn look_up(port: u16) -> Option<Port> {
    let found: Vec<Port> =
        TABLES.iter().filter_map(|path| read(&mut BufReader::new(File::open(path).ok()?), port)).collect();
    let waiting = found.iter().filter_map(|found| match found {
        Port::Open { waiting } => Some(*waiting),
        Port::Closed => None,
    });
    waiting.max().map(|waiting| Port::Open { waiting }).or(found.first().copied())
}

/// Sockets that listen come first, so a table of thousands of connections is not read to its end.
fn read(table: &mut impl BufRead, port: u16) -> Option<Port> {
    let local = format!(":{port:04X}");
    let mut lines = table.lines().map_while(Result::ok);
    lines.next()?;
    let listening = lines.map_while(|line| {
        let mut words = line.split_whitespace().skip(1).map(str::to_owned);
        let (address, _, state, queues) = (words.next()?, words.next()?, words.next()?, words.next()?);
        (state == LISTEN).then_some((address, queues))
    });
    let ours = listening
        .filter(|(address, _)| address.strip_suffix(&local).is_some_and(|host| SERVED.contains(&host)));
    let waiting = ours.map(|(_, queues)| {
        queues.split_once(':').and_then(|(_, rx)| u32::from_str_radix(rx, 16).ok()).unwrap_or(0)
    });
    Some(waiting.max().map_or(Port::Closed, |waiting| Port::Open { waiting }))
}

/// Weighs a failure; `look` is called only where the table matters.
pub(crate) fn weigh(failure: Failure, look: impl Fn() -> Option<Port>) -> Event {
    match failure {
        Failure::Answer(what) => Event::ProbeFailed(ProbeFailure::WrongAnswer(what)),
        Failure::Silence => Event::ProbeFailed(ProbeFailure::TimedOut),
        Failure::Lost => {
            Event::Inconclusive("packets on loopback get lost (a packet filter in the sandbox?)".to_owned())
        }
        Failure::NoSocket(_) if look() == Some(Port::Closed) => Event::ProbeFailed(ProbeFailure::Refused),
        Failure::NoSocket(errno) => {
            Event::Inconclusive(format!("no connection can be made: {}", errno.desc()))
        }
        Failure::NoWay(errno) => weigh_port(errno, look()),
    }
}

fn weigh_port(errno: Errno, port: Option<Port>) -> Event {
    match port {
        Some(Port::Closed) => Event::ProbeFailed(ProbeFailure::Refused),
        Some(Port::Open { waiting: 1.. }) => Event::ProbeFailed(ProbeFailure::TimedOut),
        Some(Port::Open { waiting: 0 }) => Event::Inconclusive(format!(
            "it listens, but connections on loopback do not arrive ({}; a packet filter in the sandbox?)",
            errno.desc().to_lowercase()
        )),
        None if errno == Errno::ECONNREFUSED => Event::ProbeFailed(ProbeFailure::Refused),
        None => Event::ProbeFailed(ProbeFailure::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 1500FEA9:C33F 00000000:0000 0A 00000000:00000009 00:00000000 00000000     0        0 5 1 0
   1: 00000000:C33F 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 6 1 0
   2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0
   3: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0
   4: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0
";

    fn judged(failure: Failure, port: Option<Port>) -> Event {
        weigh(failure, || port)
    }

    #[test]
    fn the_table_tells_who_listens_and_how_many_wait() {
        assert_eq!(
            read(&mut TABLE.as_bytes(), 49983),
            Some(Port::Open { waiting: 2 }),
            "not another address's nine"
        );
        assert_eq!(read(&mut TABLE.as_bytes(), 80), Some(Port::Open { waiting: 0 }));
        assert_eq!(read(&mut TABLE.as_bytes(), 22), Some(Port::Closed));
        assert_eq!(
            read(&mut TABLE.as_bytes(), 8080),
            Some(Port::Closed),
            "behind the first connection nothing is read"
        );
        assert_eq!(read(&mut "".as_bytes(), 80), None);
    }

    #[test]
    fn a_real_listener_and_its_waiting_connections_are_seen() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(look_up(port), Some(Port::Open { waiting: 0 }));
            let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            assert_eq!(look_up(port), Some(Port::Open { waiting: 1 }));
            drop(listener);
            assert_eq!(look_up(port), Some(Port::Closed));
        }
    }

    #[test]
    fn a_packet_filter_proves_nothing() {
        let open = Some(Port::Open { waiting: 0 });
        for errno in [Errno::ETIMEDOUT, Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH] {
            assert!(matches!(judged(Failure::NoWay(errno), open), Event::Inconclusive(_)), "{errno}");
        }
        assert!(matches!(judged(Failure::Lost, None), Event::Inconclusive(_)));
        assert!(matches!(judged(Failure::NoSocket(Errno::EMFILE), None), Event::Inconclusive(_)));
    }

    /// All ports may be used up: one that has not bound its own port does not serve all the same.
    #[test]
    fn a_closed_port_needs_no_connection_to_be_seen() {
        for errno in [Errno::EADDRNOTAVAIL, Errno::ENOBUFS, Errno::ENOMEM] {
            let event = judged(Failure::NoSocket(errno), Some(Port::Closed));
            assert_eq!(event, Event::ProbeFailed(ProbeFailure::Refused), "{errno}");
            let busy = Some(Port::Open { waiting: 9 });
            assert!(matches!(judged(Failure::NoSocket(errno), busy), Event::Inconclusive(_)), "{errno}");
        }
    }

    #[test]
    fn one_that_does_not_accept_hangs_whatever_filters_there_are() {
        let busy = Some(Port::Open { waiting: 3 });
        assert_eq!(
            judged(Failure::NoWay(Errno::ETIMEDOUT), busy),
            Event::ProbeFailed(ProbeFailure::TimedOut)
        );
        assert_eq!(judged(Failure::Silence, busy), Event::ProbeFailed(ProbeFailure::TimedOut));
    }

    #[test]
    fn a_closed_port_is_not_listening_whatever_the_error() {
        for errno in [Errno::ECONNREFUSED, Errno::ETIMEDOUT, Errno::EHOSTUNREACH] {
            let event = judged(Failure::NoWay(errno), Some(Port::Closed));
            assert_eq!(event, Event::ProbeFailed(ProbeFailure::Refused));
        }
    }

    #[test]
    fn without_a_table_the_error_is_believed() {
        assert_eq!(
            judged(Failure::NoWay(Errno::ECONNREFUSED), None),
            Event::ProbeFailed(ProbeFailure::Refused)
        );
        assert_eq!(
            judged(Failure::NoWay(Errno::ETIMEDOUT), None),
            Event::ProbeFailed(ProbeFailure::TimedOut)
        );
    }
}
