//! Reads what `nft -j list ruleset` prints.

use std::collections::HashMap;

use serde_json::Value;

use super::{ACK, Action, Chain, FIN, Field, Hook, Match, PSH, RST, Range, Rule, SYN, URG};

/// Every chain of the ruleset, but those of the tables named in `except` (`ip filter`): they were read otherwise.
pub fn parse(text: &str, except: &[String]) -> Option<Vec<Chain>> {
    let document: Value = serde_json::from_str(text).ok()?;
    let items = document.get("nftables")?.as_array()?;
    let sets = sets(items);
    let mut chains: Vec<Chain> = items.iter().filter_map(|item| chain(item.get("chain")?)).collect();
    for item in items {
        if let Some(rule) = item.get("rule") {
            add_rule(&mut chains, rule, &sets);
        }
    }
    chains.retain(|chain| !except.contains(&chain.table));
    Some(chains)
}

/// Elements of the named sets, by `family table name`.
type Sets = HashMap<String, Vec<Value>>;

fn sets(items: &[Value]) -> Sets {
    let named = items.iter().filter_map(|item| item.get("set").or_else(|| item.get("map")));
    named
        .filter_map(|set| {
            let key = format!("{} {}", table_of(set)?, set.get("name")?.as_str()?);
            Some((key, set.get("elem").and_then(Value::as_array).cloned().unwrap_or_default()))
        })
        .collect()
}

fn table_of(item: &Value) -> Option<String> {
    Some(format!("{} {}", item.get("family")?.as_str()?, item.get("table")?.as_str()?))
}

fn chain(item: &Value) -> Option<Chain> {
    let table = table_of(item)?;
    let hook = item.get("hook").and_then(Value::as_str).and_then(Hook::by_name);
    let priority = item.get("prio").and_then(Value::as_i64).unwrap_or(0) as i32;
    Some(Chain {
        arp: table.starts_with("arp "),
        name: item.get("name")?.as_str()?.to_owned(),
        hook: hook.map(|hook| (hook, priority)),
        device: item.get("dev").and_then(Value::as_str).map(str::to_owned),
        drops: item.get("policy").and_then(Value::as_str) == Some("drop"),
        policy_packets: None,
        rules: Vec::new(),
        table,
    })
}

fn add_rule(chains: &mut [Chain], item: &Value, sets: &Sets) {
    let Some(table) = table_of(item) else { return };
    let Some(name) = item.get("chain").and_then(Value::as_str) else { return };
    let Some(chain) = chains.iter_mut().find(|chain| chain.table == table && chain.name == name) else {
        return;
    };
    let handle = item.get("handle").and_then(Value::as_u64).unwrap_or(0);
    let no_statements = Vec::new();
    let statements = item.get("expr").and_then(Value::as_array).unwrap_or(&no_statements);
    let mut rule = Rule {
        text: statements.iter().map(say).collect::<Vec<_>>().join(" "),
        delete: format!("nft delete rule {table} {name} handle {handle}"),
        matches: Vec::new(),
        action: Action::Continue,
        packets: None,
    };
    for statement in statements {
        read_statement(&mut rule, statement, &table, sets);
    }
    chain.rules.push(rule);
}

fn read_statement(rule: &mut Rule, statement: &Value, table: &str, sets: &Sets) {
    let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else { return };
    match kind.as_str() {
        "match" => rule.matches.push(condition(body, table, sets)),
        "counter" => rule.packets = body.get("packets").and_then(Value::as_u64).or(rule.packets),
        "accept" => rule.action = Action::Accept,
        "drop" | "queue" => rule.action = Action::Drop,
        "reject" => rule.action = Action::Reject,
        "return" => rule.action = Action::Return,
        "jump" => rule.action = Action::Jump(target_of(body)),
        "goto" => rule.action = Action::Goto(target_of(body)),
        "dnat" | "redirect" | "tproxy" => rule.action = Action::Redirect { to: place_of(body) },
        // These only adorn a packet, or concern its source.
        "log" | "mangle" | "snat" | "masquerade" | "notrack" | "meter" | "set" | "flow" | "ct helper" => {}
        // A verdict map, a limit, an extension of iptables: not understood.
        other => rule.matches.push(Match { field: Field::Unknown(other.to_owned()), negated: false }),
    }
    if kind == "vmap" && say(body).contains("drop") {
        rule.action = Action::Drop;
    }
}

fn target_of(body: &Value) -> String {
    body.get("target").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// `10.0.0.1:80`, `:80`, `10.0.0.1`.
fn place_of(body: &Value) -> String {
    let address = body.get("addr").map(say).unwrap_or_default();
    let port = body.get("port").map(|port| format!(":{}", say(port))).unwrap_or_default();
    address + &port
}

/// One `match` statement.
fn condition(body: &Value, table: &str, sets: &Sets) -> Match {
    let operator = body.get("op").and_then(Value::as_str).unwrap_or("==");
    let field = body
        .get("left")
        .zip(body.get("right"))
        .and_then(|(left, right)| field(left, &values(right, table, sets)?, operator))
        .unwrap_or_else(|| Field::Unknown(say(body)));
    Match { field, negated: operator == "!=" }
}

/// The values on the right side: one, several, or those of a named set.
fn values(right: &Value, table: &str, sets: &Sets) -> Option<Vec<Value>> {
    match right {
        Value::String(name) if name.starts_with('@') => {
            Some(sets.get(&format!("{table} {}", &name[1..]))?.iter().map(element).collect())
        }
        Value::Object(object) if object.contains_key("set") => match &object["set"] {
            Value::Array(elements) => Some(elements.iter().map(element).collect()),
            one => Some(vec![element(one)]),
        },
        Value::Array(several) => Some(several.iter().map(element).collect()),
        one => Some(vec![one.clone()]),
    }
}

/// An element of a set may come with a counter or a timeout around it.
fn element(item: &Value) -> Value {
    item.get("elem").and_then(|elem| elem.get("val")).unwrap_or(item).clone()
}

fn field(left: &Value, right: &[Value], operator: &str) -> Option<Field> {
    if let Some(payload) = left.get("payload") {
        let part = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
        return match (part("protocol"), part("field")) {
            ("ip" | "ip6", "saddr") => ranges(right).map(Field::Source),
            ("ip" | "ip6", "daddr") => ranges(right).map(Field::Destination),
            ("ip", "protocol") | ("ip6", "nexthdr") => texts(right).map(Field::Protocol),
            ("tcp" | "th", "dport") => ports(right).map(Field::DestinationPort),
            ("tcp" | "th", "sport") => ports(right).map(Field::SourcePort),
            ("udp" | "icmp" | "icmpv6" | "sctp" | "dccp" | "udplite", _) => {
                Some(Field::Protocol(vec![part("protocol").to_owned()]))
            }
            ("tcp", "flags") if operator == "==" => flags(right).map(|set| Field::Flags { mask: 0x3f, set }),
            _ => None,
        };
    }
    if let Some(key) = left.get("meta").and_then(|meta| meta.get("key")).and_then(Value::as_str) {
        return match key {
            "iifname" | "iif" => texts(right).map(Field::In),
            "oifname" | "oif" => texts(right).map(Field::Out),
            "l4proto" => texts(right).map(Field::Protocol),
            _ => None,
        };
    }
    if left.get("ct").and_then(|ct| ct.get("key")).and_then(Value::as_str) == Some("state") {
        return texts(right).map(|states| Field::State(states.into_iter().collect()));
    }
    tcp_flags(left, right)
}

/// `tcp flags & (fin|syn|rst|ack) == syn`.
fn tcp_flags(left: &Value, right: &[Value]) -> Option<Field> {
    let both = left.get("&")?.as_array()?;
    let [payload, mask] = both.as_slice() else { return None };
    let is_flags = payload.get("payload")?.get("field")?.as_str()? == "flags";
    let mask = flags(std::slice::from_ref(mask))?;
    is_flags.then(|| flags(right).map(|set| Field::Flags { mask, set }))?
}

fn flags(values: &[Value]) -> Option<u8> {
    values.iter().try_fold(0, |all, value| Some(all | flag(value)?))
}

fn flag(value: &Value) -> Option<u8> {
    if let Some(several) = value.get("|").and_then(Value::as_array).or_else(|| value.as_array()) {
        return flags(several);
    }
    Some(match value.as_str()? {
        "fin" => FIN,
        "syn" => SYN,
        "rst" => RST,
        "psh" => PSH,
        "ack" => ACK,
        "urg" => URG,
        _ => return None,
    })
}

fn texts(values: &[Value]) -> Option<Vec<String>> {
    values
        .iter()
        .map(|value| match value {
            Value::String(text) => Some(text.to_ascii_lowercase()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect()
}

fn ranges(values: &[Value]) -> Option<Vec<Range>> {
    values.iter().map(range).collect()
}

fn range(value: &Value) -> Option<Range> {
    if let Some(prefix) = value.get("prefix") {
        return Range::parse(&format!("{}/{}", prefix.get("addr")?.as_str()?, prefix.get("len")?.as_u64()?));
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Range::between(first.as_str()?, last.as_str()?);
    }
    Range::parse(value.as_str()?)
}

fn ports(values: &[Value]) -> Option<Vec<(u16, u16)>> {
    values.iter().map(port).collect()
}

fn port(value: &Value) -> Option<(u16, u16)> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some((number(first)?, number(last)?));
    }
    number(value).map(|port| (port, port))
}

/// A statement or value in few words; nft prints rules as text only when asked without -j.
fn say(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("{{ {} }}", items.iter().map(say).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            object.iter().map(|(key, body)| say_entry(key, body)).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

fn say_entry(key: &str, body: &Value) -> String {
    let part = |name: &str| body.get(name).map(say).unwrap_or_default();
    match key {
        "match" => {
            let operator = part("op");
            let operator =
                if matches!(operator.as_str(), "==" | "in") { " ".into() } else { format!(" {operator} ") };
            format!("{}{operator}{}", part("left"), part("right"))
        }
        "payload" => format!("{} {}", part("protocol"), part("field")),
        "meta" => part("key"),
        "ct" => format!("ct {}", part("key")),
        "counter" => format!("counter packets {} bytes {}", part("packets"), part("bytes")),
        "prefix" => format!("{}/{}", part("addr"), part("len")),
        "set" => say(body),
        "range" => {
            body.as_array().map(|ends| ends.iter().map(say).collect::<Vec<_>>().join("-")).unwrap_or_default()
        }
        "jump" | "goto" => format!("{key} {}", part("target")),
        _ if body.is_null() => key.to_owned(),
        _ => format!("{key} {}", say(body)).trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{Packet, arp_blocks, blocks},
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

    fn ruleset(family: &str, statements: &Value) -> String {
        json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": family, "name": "t", "handle": 1}},
            {"set": {"family": family, "name": "guests", "table": "t", "elem": ["169.254.0.21", {"elem": {"val": "10.0.0.1"}}]}},
            {"chain": {"family": family, "table": "t", "name": "c", "handle": 1, "type": "filter", "hook": "output",
                       "prio": 0, "policy": "accept"}},
            {"rule": {"family": family, "table": "t", "chain": "c", "handle": 7, "expr": statements}},
        ]})
        .to_string()
    }

    fn stops(statements: &Value) -> Option<bool> {
        let chains = parse(&ruleset("inet", statements), &[]).unwrap();
        blocks(&chains, Hook::Output, &packet()).first().map(|block| block.certain)
    }

    fn dport(right: &Value) -> Value {
        json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}})
    }

    #[test]
    fn rules_that_meet_the_packet_stop_it() {
        let daddr = |right: Value| json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": right}});
        for statements in [
            json!([dport(&json!(49983)), {"counter": {"packets": 3, "bytes": 180}}, {"drop": null}]),
            json!([dport(&json!({"set": [22, 49983]})), {"reject": {"type": "tcp reset"}}]),
            json!([dport(&json!({"range": [49000, 50000]})), {"drop": null}]),
            json!([daddr(json!("@guests")), {"drop": null}]),
            json!([daddr(json!({"prefix": {"addr": "169.254.0.0", "len": 16}})), {"drop": null}]),
            json!([{"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": "tap*"}}, {"drop": null}]),
            json!([{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["new", "invalid"]}}, {"drop": null}]),
            json!([{"drop": null}]),
        ] {
            assert_eq!(stops(&statements), Some(true), "{statements}");
        }
    }

    #[test]
    fn rules_that_miss_the_packet_let_it_pass() {
        for statements in [
            json!([dport(&json!(22)), {"drop": null}]),
            json!([{"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "tap0"}}, {"drop": null}]),
            json!([{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 49983}}, {"drop": null}]),
            json!([{"accept": null}]),
        ] {
            assert_eq!(stops(&statements), None, "{statements}");
        }
    }

    #[test]
    fn extensions_make_the_verdict_uncertain() {
        assert_eq!(stops(&json!([{"xt": {"type": "match", "name": "owner"}}, {"drop": null}])), Some(false));
        assert_eq!(stops(&json!([{"limit": {"rate": 1, "per": "second"}}, {"drop": null}])), Some(false));
    }

    #[test]
    fn a_rule_is_said_in_words_and_named_by_its_handle() {
        let text = ruleset("inet", &json!([dport(&json!(49983)), {"drop": null}]));
        let found = blocks(&parse(&text, &[]).unwrap(), Hook::Output, &packet());
        assert_eq!(found[0].text, "tcp dport 49983 drop");
        assert_eq!(found[0].delete, "nft delete rule inet t c handle 7");
    }

    #[test]
    fn arp_that_is_dropped_is_found() {
        let chains = parse(&ruleset("arp", &json!([{"drop": null}])), &[]).unwrap();
        assert!(arp_blocks(&chains)[0].certain);
        assert!(blocks(&chains, Hook::Output, &packet()).is_empty());
    }

    #[test]
    fn tables_that_iptables_showed_are_not_read_twice() {
        let text = ruleset("ip", &json!([{"drop": null}]));
        assert!(parse(&text, &["ip t".into()]).unwrap().is_empty());
    }
}
