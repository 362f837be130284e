//! From a service's description to a program that can be spawned, and to the policy it is supervised by.

use std::{ffi::OsString, path::Path, time::Duration};

use guest::{
    accounts::Accounts,
    cgroup::Tree,
    notify,
    service::{Kind, Limits, Readiness, Restart, Service},
    spawn::{Identity, Limit, Output, Program, Resource},
    supervise::{self, Policy},
};

/// What every service finds in its environment, unless its file says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Nothing of PID 1's own environment is passed on: unknown words of the kernel's command line end up there.
pub(super) fn program(service: &Service, tree: &Tree) -> Result<Program, String> {
    let (path, arguments) = service.command.split_first().ok_or("no command is given")?;
    Ok(Program {
        path: path.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        environment: environment(service),
        directory: Some(service.directory.clone()),
        identity: identity(service)?,
        limits: limits(&service.limits),
        nice: (service.nice != 0).then_some(service.nice),
        oom_score_adj: Some(service.oom_score_adj),
        cgroup: Some(tree.path(&service.group_path())),
        output: Output::Pipes,
        ..Program::default()
    })
}

fn environment(service: &Service) -> Vec<(OsString, OsString)> {
    let mut variables = vec![("PATH".into(), PATH.into())];
    if service.readiness == Readiness::Notify {
        variables.push((notify::VARIABLE.into(), notify::SOCKET.into()));
    }
    variables
        .retain(|(key, _): &(OsString, OsString)| !service.environment.keys().any(|own| key == own.as_str()));
    variables.extend(service.environment.iter().map(|(key, value)| (key.into(), value.into())));
    variables
}

/// Nobody is looked up for root, so that a machine without /etc/passwd still runs its services.
fn identity(service: &Service) -> Result<Option<Identity>, String> {
    if service.user.is_none() && service.group.is_none() {
        return Ok(None);
    }
    let accounts = Accounts::read(Path::new("/"));
    let name = service.user.as_deref().unwrap_or("root");
    let (user, own_group) = match (accounts.user(name), name.parse::<u32>()) {
        (Some(user), _) => (user.uid, user.gid),
        (None, Ok(number)) => (number, number),
        (None, Err(_)) => return Err(format!("there is no user {name}")),
    };
    let group = match service.group.as_deref() {
        None => own_group,
        Some(name) => accounts.gid(name).ok_or_else(|| format!("there is no group {name}"))?,
    };
    let member = accounts.groups.iter().filter(|group| group.members.iter().any(|member| member == name));
    let groups = member.map(|group| group.gid).chain([group]).collect();
    Ok(Some(Identity { user, group, groups }))
}

fn limits(limits: &Limits) -> Vec<Limit> {
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    let resource = |number| match number {
        0 => Resource::Cpu,
        1 => Resource::FileSize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
        6 => Resource::Processes,
        7 => Resource::OpenFiles,
        8 => Resource::LockedMemory,
        _ => Resource::AddressSpace,
    };
    limits
        .set()
        .map(|(number, limit)| Limit {
            resource: resource(number),
            soft: finite(limit.soft),
            hard: finite(limit.hard),
        })
        .collect()
}

pub(super) fn policy(service: &Service) -> Policy {
    let bound = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
    Policy {
        kind: match service.kind {
            Kind::LongRunning => supervise::Kind::LongRunning,
            Kind::Oneshot => supervise::Kind::Oneshot,
        },
        restart: match (service.kind, service.restart) {
            // A oneshot that fails is not tried again unless its file asks for it.
            (Kind::Oneshot, Restart::OnFailure) | (_, Restart::Never) => supervise::Restart::Never,
            (_, Restart::Always) => supervise::Restart::Always,
            (_, Restart::OnFailure) => supervise::Restart::OnFailure,
        },
        readiness: match service.readiness {
            Readiness::None => supervise::Readiness::None,
            Readiness::Notify => supervise::Readiness::Notify,
            _ => supervise::Readiness::Probe,
        },
        start_bound: bound(service.start_timeout_ms),
        stop_bound: Duration::from_millis(service.stop_timeout_ms),
        backoff: supervise::Backoff {
            first: Duration::from_millis(service.backoff.min_ms),
            longest: Duration::from_millis(service.backoff.max_ms),
            reset_after: Duration::from_millis(service.backoff.reset_ms),
        },
        ..Policy::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_the_environment_of_its_file_and_no_other() {
        let text = "command=['/bin/x','a']\nreadiness='notify'\nenvironment={PATH='/opt',B='1'}\n";
        let service = Service::parse("x", text).value;
        let program = program(&service, &Tree::new("/cg")).unwrap();
        let names: Vec<_> = program.environment.iter().map(|(key, _)| key.to_str().unwrap()).collect();
        assert_eq!(names, ["NOTIFY_SOCKET", "B", "PATH"]);
        assert_eq!(program.cgroup.as_deref(), Some(Path::new("/cg/system.slice/x")));
        assert_eq!(program.arguments, ["a"]);
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        let service = Service::parse("x", "command=['/bin/x']\nuser='nobody-at-all'\n").value;
        assert_eq!(program(&service, &Tree::default()).unwrap_err(), "there is no user nobody-at-all");
    }

    #[test]
    fn a_oneshot_that_fails_is_left_alone_and_a_bound_of_zero_is_none() {
        let service = Service::parse("x", "command=['/bin/x']\nkind='oneshot'\nstart_timeout_ms=0\n").value;
        let policy = policy(&service);
        assert_eq!((policy.restart, policy.start_bound), (supervise::Restart::Never, None));
    }
}
