//! From a service's description to a program that can be spawned, and to the policy it is supervised by.

use std::{ffi::OsString, path::Path, time::Duration};

use guest::{
    accounts::Accounts,
    cgroup::Tree,
    notify,
    service::{Kind, Limits, Readiness, Restart, Service, load},
    spawn::{Identity, Limit, Output, Program, Resource},
    supervise::{self, Policy},
};

/// What every service finds in its environment, unless its file says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What has served this long and reaches the machine is started again without a pause.
const AT_ONCE_AFTER: Duration = Duration::from_secs(1);

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
    identity_among(&accounts, service.user.as_deref().unwrap_or("root"), service.group.as_deref()).map(Some)
}

/// A number that is somebody's has that account's group and memberships; one that is nobody's is its own group.
fn identity_among(accounts: &Accounts, user: &str, group: Option<&str>) -> Result<Identity, String> {
    let number = user.parse::<u32>().ok();
    let by_number = || accounts.users.iter().find(|account| Some(account.uid) == number);
    let account = accounts.user(user).or_else(by_number);
    let (uid, own_group) = match (account, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(number)) => (number, number),
        (None, None) => return Err(format!("there is no user {user}")),
    };
    let gid = match group {
        None => own_group,
        Some(name) => accounts.gid(name).ok_or_else(|| format!("there is no group {name}"))?,
    };
    let name = account.map(|account| &account.name);
    let member = accounts.groups.iter().filter(|group| name.is_some_and(|name| group.members.contains(name)));
    let groups = member.map(|group| group.gid).chain([gid]).collect();
    Ok(Identity { user: uid, group: gid, groups })
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
            // Of all others an owner may want pauses that are kept.
            none_after: load::is_indispensable(&service.name).then_some(AT_ONCE_AFTER),
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
    fn a_user_by_number_is_the_account_that_has_it() {
        let accounts =
            Accounts::parse("root:x:0:0::/:/x\nweb:x:1000:50::/:/x\n", "staff:x:50:\nlog:x:4:web\n");
        let by_name = identity_among(&accounts, "web", None);
        assert_eq!(by_name, Ok(Identity { user: 1000, group: 50, groups: vec![4, 50] }));
        assert_eq!(identity_among(&accounts, "1000", None), by_name);
        let nobodys = Identity { user: 77, group: 77, groups: vec![77] };
        assert_eq!(identity_among(&accounts, "77", None), Ok(nobodys));
        let with_group = Identity { user: 1000, group: 4, groups: vec![4, 4] };
        assert_eq!(identity_among(&accounts, "web", Some("log")), Ok(with_group));
    }

    #[test]
    fn a_oneshot_that_fails_is_left_alone_and_a_bound_of_zero_is_none() {
        let service = Service::parse("x", "command=['/bin/x']\nkind='oneshot'\nstart_timeout_ms=0\n").value;
        let policy = policy(&service);
        assert_eq!((policy.restart, policy.start_bound), (supervise::Restart::Never, None));
    }
}
