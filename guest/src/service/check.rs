//! What is wrong with a set of services: errors when an image is baked, warnings when it boots.

use std::{collections::BTreeMap, path::Path};

use super::{Backoff, Service};
use crate::supervise::SHORTEST_PAUSE;

type Services = BTreeMap<String, Service>;

/// Everything that is wrong, each in one line that names the service. `exists` tells whether a path is in the image.
pub fn check(services: &Services, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut problems = Vec::new();
    for service in services.values() {
        let in_use = service.only_if.iter().all(|path| exists(path));
        problems
            .extend(alone(service).into_iter().map(|problem| format!("service {}: {problem}", service.name)));
        if let Some(program) = service.program()
            && in_use
            && !exists(program)
        {
            problems.push(format!("service {}: there is no program {}", service.name, program.display()));
        }
        let unknown = service.after.iter().filter(|name| !services.contains_key(*name));
        problems.extend(
            unknown.map(|name| format!("service {}: after names {name}, which is no service", service.name)),
        );
    }
    problems
        .extend(cycles(services).into_iter().map(|cycle| format!("services wait for each other: {cycle}")));
    problems
}

/// What can be seen from one service alone.
fn alone(service: &Service) -> Vec<String> {
    let mut problems = Vec::new();
    match service.program() {
        None => problems.push("no command is given".to_owned()),
        Some(program) if !program.is_absolute() => {
            problems.push(format!("the program {} must be given by its whole path", program.display()));
        }
        Some(_) => {}
    }
    if !service.directory.is_absolute() {
        problems.push(format!("the directory {} must be a whole path", service.directory.display()));
    }
    if !(-20..=19).contains(&service.nice) {
        problems.push(format!("nice = {} is not between -20 and 19", service.nice));
    }
    if !(-1000..=1000).contains(&service.oom_score_adj) {
        problems.push(format!("oom_score_adj = {} is not between -1000 and 1000", service.oom_score_adj));
    }
    let Backoff { min_ms, max_ms, .. } = service.backoff;
    let shortest = SHORTEST_PAUSE.as_millis();
    if u128::from(min_ms) < shortest || max_ms < min_ms {
        problems.push(format!(
            "backoff.min_ms = {min_ms} is less than {shortest}, or more than backoff.max_ms = {max_ms}"
        ));
    }
    let zero_byte = |text: &String| text.contains('\0');
    if service.command.iter().any(zero_byte) || service.environment.values().any(zero_byte) {
        problems.push("a zero byte cannot be in a command or its environment".to_owned());
    }
    if service.environment.keys().any(|key| key.is_empty() || key.contains(['=', '\0'])) {
        problems.push("a name in the environment is empty or holds '='".to_owned());
    }
    problems
}

/// Each cycle once, as `a after b after a`.
fn cycles(services: &Services) -> Vec<String> {
    let mut found = Vec::new();
    let mut done = Vec::new();
    for name in services.keys() {
        visit(services, name, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

fn visit<'a>(
    services: &'a Services,
    name: &'a str,
    path: &mut Vec<&'a str>,
    done: &mut Vec<&'a str>,
    found: &mut Vec<String>,
) {
    if let Some(start) = path.iter().position(|on_path| *on_path == name) {
        let mut ring = path[start..].to_vec();
        ring.push(name);
        found.push(ring.join(" after "));
        return;
    }
    if done.contains(&name) {
        return;
    }
    path.push(name);
    for next in services.get(name).into_iter().flat_map(|service| &service.after) {
        visit(services, next, path, done, found);
    }
    path.pop();
    done.push(name);
}

/// Takes away what would keep services from starting for ever: names of nobody, and the last step of each cycle.
/// The problems are those of [`check`]; this is what booting does about them.
pub fn untangle(services: &mut Services) {
    let names: Vec<String> = services.keys().cloned().collect();
    for service in services.values_mut() {
        service.after.retain(|name| names.contains(name) && *name != service.name);
    }
    // Kahn's algorithm; where nobody is free, one who is left loses what he waits for.
    let mut placed: Vec<String> = Vec::new();
    while placed.len() < services.len() {
        let waits = |service: &Service| service.after.iter().any(|name| !placed.contains(name));
        let next = services
            .values()
            .filter(|service| !placed.contains(&service.name))
            .min_by_key(|service| waits(service));
        let Some(name) = next.map(|service| service.name.clone()) else { break };
        if let Some(service) = services.get_mut(&name) {
            service.after.retain(|name| placed.contains(name));
        }
        placed.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(list: &[(&str, &[&str])]) -> Services {
        let service = |(name, after): &(&str, &[&str])| {
            let after = after.iter().map(|&name| name.to_owned()).collect();
            let command = vec!["/bin/true".to_owned()];
            let service = Service { name: (*name).to_owned(), command, after, ..Service::default() };
            ((*name).to_owned(), service)
        };
        list.iter().map(service).collect()
    }

    #[test]
    fn a_good_set_has_no_problems() {
        let set = services(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b"])]);
        assert!(check(&set, &|_| true).is_empty());
    }

    #[test]
    fn cycles_unknown_names_and_missing_programs_are_named() {
        let set = services(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"]), ("d", &["nobody"]), ("e", &["e"])]);
        let problems = check(&set, &|_| false).join("\n");
        assert!(problems.contains("wait for each other: a after b after c after a"), "{problems}");
        assert!(problems.contains("e after e"));
        assert!(problems.contains("after names nobody, which is no service"));
        assert!(problems.contains("service d: there is no program /bin/true"));
    }

    #[test]
    fn a_program_that_is_only_wanted_when_it_is_there_is_not_missed() {
        let mut set = services(&[("a", &[])]);
        set.get_mut("a").unwrap().only_if = vec!["/bin/true".into()];
        assert!(check(&set, &|_| false).is_empty());
    }

    #[test]
    fn when_booting_a_cycle_is_cut_and_everybody_else_keeps_the_order() {
        let mut set =
            services(&[("a", &["b"]), ("b", &["a"]), ("c", &["b"]), ("d", &["nobody"]), ("e", &["e"])]);
        untangle(&mut set);
        assert!(cycles(&set).is_empty());
        assert_eq!(set["c"].after, ["b"]);
        assert!(set["d"].after.is_empty() && set["e"].after.is_empty());
        assert_eq!(set["a"].after.len() + set["b"].after.len(), 1, "only one step of the cycle goes");
    }

    #[test]
    fn what_one_service_alone_can_have_wrong() {
        let mut set = services(&[("a", &[])]);
        let a = set.get_mut("a").unwrap();
        a.command = vec!["true".to_owned(), "\0".to_owned()];
        a.nice = 40;
        a.oom_score_adj = -2000;
        a.directory = "tmp".into();
        a.environment.insert("A=B".to_owned(), String::new());
        a.backoff.min_ms = 0;
        assert_eq!(check(&set, &|_| true).len(), 7);
    }
}
