//! Reads what `iptables-save -c` prints.

use super::{ACK, Action, Chain, FIN, Field, Hook, Match, PSH, RST, Range, Rule, SYN, URG};

/// Every table and chain of the text. `tool` is the program that takes a rule out again (`iptables`).
pub fn parse(text: &str, tool: &str) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.trim().clone_into(&mut table);
        } else if let Some(declared) = line.strip_prefix(':') {
            chains.extend(chain(&table, declared));
        } else if line.starts_with('[') || line.starts_with("-A") {
            add_rule(&mut chains, &table, line, tool);
        }
    }
    chains
}

/// The tables that the text holds, as nft names them.
pub fn tables(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix('*')).map(|name| format!("ip {}", name.trim())).collect()
}

/// `INPUT DROP [3:180]`.
fn chain(table: &str, declared: &str) -> Option<Chain> {
    let mut words = declared.split_whitespace();
    let (name, policy) = (words.next()?, words.next()?);
    let packets = words.next().and_then(counter);
    let built_in = policy != "-";
    Some(Chain {
        table: format!("ip {table}"),
        name: name.to_owned(),
        hook: built_in.then(|| Hook::by_name(name)).flatten().map(|hook| (hook, priority(table, hook))),
        device: None,
        drops: policy == "DROP",
        policy_packets: packets,
        rules: Vec::new(),
        arp: false,
    })
}

/// The kernel's own order of the tables at a hook.
fn priority(table: &str, hook: Hook) -> i32 {
    match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" if matches!(hook, Hook::Input | Hook::Postrouting) => 100,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    }
}

/// `[packets:bytes]`.
fn counter(text: &str) -> Option<u64> {
    text.strip_prefix('[')?.split(':').next()?.parse().ok()
}

fn add_rule(chains: &mut [Chain], table: &str, line: &str, tool: &str) {
    let (packets, rest) = match line.strip_prefix('[') {
        Some(_) => line.split_once(' ').map_or((None, line), |(count, rest)| (counter(count), rest)),
        None => (None, line),
    };
    let words = tokens(rest);
    let Some(name) = words.get(1) else { return };
    let table_name = format!("ip {table}");
    let Some(chain) = chains.iter_mut().find(|chain| chain.table == table_name && chain.name == *name) else {
        return;
    };
    let (matches, action) = conditions(&words[2..]);
    chain.rules.push(Rule {
        text: rest.to_owned(),
        delete: format!("{tool} -t {table} {}", rest.replacen("-A", "-D", 1)),
        matches,
        action,
        packets,
    });
}

/// Words, with those in double quotes kept together.
fn tokens(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut escaped = false;
    for c in text.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Options with their values, from left to right.
fn conditions(words: &[String]) -> (Vec<Match>, Action) {
    let mut matches = Vec::new();
    let mut action = Action::Continue;
    let mut to = None;
    let mut at = 0;
    let mut negated = false;
    while let Some(option) = words.get(at) {
        if option == "!" {
            negated = true;
            at += 1;
            continue;
        }
        let values = values(&words[at + 1..], option);
        match option.as_str() {
            "-j" => action = target(values.first().map_or("", String::as_str)),
            "-g" => action = Action::Goto(values.first().cloned().unwrap_or_default()),
            "--to-destination" | "--to-ports" | "--on-port" => to = values.first().cloned(),
            _ => matches.extend(field(option, values).map(|field| Match { field, negated })),
        }
        at += 1 + values.len();
        negated = false;
    }
    if let (Action::Redirect { to: place }, Some(to)) = (&mut action, to) {
        *place = to;
    }
    (matches, action)
}

/// What belongs to an option: everything up to the next one.
fn values<'a>(rest: &'a [String], option: &str) -> &'a [String] {
    if option == "--comment" {
        return &rest[..rest.len().min(1)];
    }
    let end = rest.iter().position(|word| word == "!" || is_option(word)).unwrap_or(rest.len());
    &rest[..end]
}

fn is_option(word: &str) -> bool {
    word.starts_with('-') && word.len() > 1 && !word[1..].starts_with(|c: char| c.is_ascii_digit())
}

fn target(name: &str) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "REJECT" => Action::Reject,
        "RETURN" => Action::Return,
        "DNAT" | "REDIRECT" | "TPROXY" | "NETMAP" => Action::Redirect { to: String::new() },
        // A queue's reader decides: it may hold packets for ever.
        "DROP" | "QUEUE" | "NFQUEUE" | "STEAL" => Action::Drop,
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "SNAT" | "MASQUERADE" | "TCPMSS" | "NOTRACK"
        | "CT" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "CHECKSUM" | "TRACE" | "SET" | "SECMARK"
        | "CONNSECMARK" | "AUDIT" | "RATEEST" | "IDLETIMER" | "LED" | "TEE" | "SYNPROXY" | "" => {
            Action::Continue
        }
        chain => Action::Jump(chain.to_owned()),
    }
}

/// The condition that an option sets; none for those that only load or adorn.
fn field(option: &str, values: &[String]) -> Option<Field> {
    let value = values.first().map_or("", String::as_str);
    let unknown = || Field::Unknown(format!("{option} {}", values.join(" ")));
    Some(match option {
        "-p" | "--protocol" => Field::Protocol(vec![value.to_ascii_lowercase()]),
        "-s" | "--source" => Range::parse(value).map_or_else(unknown, |range| Field::Source(vec![range])),
        "-d" | "--destination" => {
            Range::parse(value).map_or_else(unknown, |range| Field::Destination(vec![range]))
        }
        "--src-range" => between(value).map_or_else(unknown, |range| Field::Source(vec![range])),
        "--dst-range" => between(value).map_or_else(unknown, |range| Field::Destination(vec![range])),
        "-i" | "--in-interface" => Field::In(vec![value.to_owned()]),
        "-o" | "--out-interface" => Field::Out(vec![value.to_owned()]),
        "--dport" | "--dports" => ports(value).map_or_else(unknown, Field::DestinationPort),
        "--sport" | "--sports" => ports(value).map_or_else(unknown, Field::SourcePort),
        "--ports" => ports(value).map_or_else(unknown, Field::AnyPort),
        "--state" | "--ctstate" => Field::State(value.split(',').map(str::to_ascii_lowercase).collect()),
        "--syn" => Field::Flags { mask: FIN | SYN | RST | ACK, set: SYN },
        "--tcp-flags" => {
            match (values.first().and_then(|v| flags(v)), values.get(1).and_then(|v| flags(v))) {
                (Some(mask), Some(set)) => Field::Flags { mask, set },
                _ => unknown(),
            }
        }
        "--comment" => Field::Always,
        // What loads an extension, and what a target does: no conditions.
        "-m"
        | "--match"
        | "--reject-with"
        | "--to-source"
        | "--random"
        | "--random-fully"
        | "--persistent"
        | "--log-prefix"
        | "--log-level"
        | "--set-mark"
        | "--set-xmark"
        | "--clamp-mss-to-pmtu"
        | "--set-mss"
        | "--tproxy-mark"
        | "--on-ip"
        | "--queue-num"
        | "--queue-bypass"
        | "--nflog-group"
        | "--nflog-prefix"
        | "--save-mark"
        | "--restore-mark"
        | "--notrack"
        | "--zone"
        | "--checksum-fill" => return None,
        _ => unknown(),
    })
}

fn between(value: &str) -> Option<Range> {
    let (first, last) = value.split_once('-')?;
    Range::between(first, last)
}

/// `80`, `80:90`, `80,90:95`.
fn ports(value: &str) -> Option<Vec<(u16, u16)>> {
    value.split(',').map(port_range).collect()
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let Some((first, last)) = text.split_once(':') else {
        let port = text.parse().ok()?;
        return Some((port, port));
    };
    let first = if first.is_empty() { 0 } else { first.parse().ok()? };
    let last = if last.is_empty() { u16::MAX } else { last.parse().ok()? };
    Some((first, last))
}

fn flags(value: &str) -> Option<u8> {
    value.split(',').try_fold(0, |all, name| {
        Some(
            all | match name {
                "FIN" => FIN,
                "SYN" => SYN,
                "RST" => RST,
                "PSH" => PSH,
                "ACK" => ACK,
                "URG" => URG,
                "ALL" => FIN | SYN | RST | PSH | ACK | URG,
                "NONE" => 0,
                _ => return None,
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Packet, blocks},
        *,
    };

    fn packet() -> Packet {
        Packet {
            source: "169.254.0.22".parse().unwrap(),
            destination: "169.254.0.21".parse().unwrap(),
            source_port: None,
            destination_port: Some(49983),
            input: None,
            output: Some("tap0".into()),
            established: false,
            flags: SYN,
        }
    }

    /// Whether the rules (of the filter table's OUTPUT) stop the packet: for sure, perhaps, not at all.
    fn stops(rules: &str) -> Option<bool> {
        let text =
            format!("*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n{rules}\nCOMMIT\n");
        blocks(&parse(&text, "iptables"), Hook::Output, &packet()).first().map(|block| block.certain)
    }

    #[test]
    fn rules_that_meet_the_packet_stop_it() {
        for rule in [
            "[7:420] -A OUTPUT -p tcp -m tcp --dport 49983 -j DROP",
            "-A OUTPUT -d 169.254.0.21/32 -j REJECT --reject-with icmp-port-unreachable",
            "-A OUTPUT -d 169.254.0.0/16 -o tap+ -p tcp -j DROP",
            "-A OUTPUT ! -d 10.0.0.0/8 -j DROP",
            "-A OUTPUT -p tcp -m multiport --dports 80,49980:49990 -m comment --comment \"no -j here\" -j DROP",
            "-A OUTPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
            "-A OUTPUT -m conntrack --ctstate NEW -j DROP",
            "-A OUTPUT -o tap0 -j mine\n-A mine -p tcp -j DROP",
            "-A OUTPUT -m iprange --dst-range 169.254.0.20-169.254.0.30 -j DROP",
        ] {
            assert_eq!(stops(rule), Some(true), "{rule}");
        }
    }

    #[test]
    fn chains_with_more_ways_than_anybody_can_walk_are_not_followed_and_not_held_to_be_open() {
        assert_eq!(stops("-A OUTPUT -j mine\n-A mine -j mine\n-A mine -p tcp -j mine"), Some(false));
    }

    #[test]
    fn rules_that_miss_the_packet_let_it_pass() {
        for rule in [
            "-A OUTPUT -p udp -j DROP",
            "-A OUTPUT -p tcp --dport 22 -j DROP",
            "-A OUTPUT -d 169.254.0.20/32 -j DROP",
            "-A OUTPUT -o eth0 -j DROP",
            "-A OUTPUT ! -o tap0 -j DROP",
            "-A INPUT -j DROP",
            "-A OUTPUT -p tcp -j ACCEPT\n-A OUTPUT -j DROP",
            "-A OUTPUT -j mine\n-A mine -j RETURN\n-A mine -j DROP",
            "-A OUTPUT -m state --state RELATED,ESTABLISHED -j DROP",
            "-A OUTPUT -p tcp --sport 22 -j DROP",
            "-A OUTPUT -j LOG --log-prefix \"-j DROP\"",
        ] {
            assert_eq!(stops(rule), None, "{rule}");
        }
    }

    #[test]
    fn what_is_not_understood_makes_the_verdict_uncertain() {
        for rule in [
            "-A OUTPUT -m owner --uid-owner 1000 -j DROP",
            "-A OUTPUT -m statistic --mode random --probability 0.5 -j DROP",
            "-A OUTPUT -m owner --uid-owner 0 -j ACCEPT\n-A OUTPUT -j DROP",
            "-A OUTPUT -m set --match-set x dst -j mine\n-A mine -j DROP",
        ] {
            assert_eq!(stops(rule), Some(false), "{rule}");
        }
    }

    #[test]
    fn a_policy_drops_what_no_rule_accepts() {
        let text = "*filter\n:OUTPUT DROP [4:240]\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n";
        let found = blocks(&parse(text, "iptables"), Hook::Output, &packet());
        assert_eq!(
            (found[0].packets, found[0].delete.as_str()),
            (Some(4), "iptables -t filter -P OUTPUT ACCEPT")
        );
    }

    #[test]
    fn the_command_that_takes_a_rule_out_is_given() {
        let text = "*raw\n:OUTPUT ACCEPT [0:0]\n[1:60] -A OUTPUT -p tcp --dport 49983 -j DROP\nCOMMIT\n";
        let found = blocks(&parse(text, "iptables"), Hook::Output, &packet());
        assert_eq!(found[0].delete, "iptables -t raw -D OUTPUT -p tcp --dport 49983 -j DROP");
        assert_eq!(found[0].packets, Some(1));
    }

    #[test]
    fn a_rewrite_names_its_target() {
        let text = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp --dport 49983 -j REDIRECT --to-ports 7892\nCOMMIT\n";
        let found = blocks(&parse(text, "iptables"), Hook::Output, &packet());
        assert_eq!(found[0].action, Action::Redirect { to: "7892".into() });
    }
}
