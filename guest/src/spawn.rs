//! Starting a process in a clean world of its own.
//!
//! What a child inherits is decided here and nowhere else: environment, limits, priorities, session, signals, cgroup,
//! descriptors. Everything is prepared before the fork; between fork and exec the child only makes system calls.
//!
//! Each step that fails is told, by name and errno, through a close-on-exec pipe ([`Spawned::steps`]), and passed over; only a
//! failed exec ends the child. The pipe's end of file means that the program runs. The parent reads it when its loop says
//! so and never waits for it: a child in a frozen cgroup does not get to exec until the thaw.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, pipe2};

use crate::elf;
use crate::sys::{self, CArray, Fork};

/// What a child that could not be executed exits with.
pub const EXEC_FAILED: i32 = 127;

/// A resource limit, soft and hard; `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub resource: Resource,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Which resource; the numbers are the kernel's, the same on x86_64 and aarch64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Resource {
    Cpu = 0,
    FileSize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    Processes = 6,
    OpenFiles = 7,
    LockedMemory = 8,
    AddressSpace = 9,
    Signals = 11,
    MessageQueues = 12,
    Nice = 13,
    RealtimePriority = 14,
}

/// Whom it runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
}

/// Where its output goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// Two pipes, to be drained by the parent.
    #[default]
    Pipes,
    Null,
    Inherit,
}

/// A program and the world it is to live in.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub path: PathBuf,
    /// `argv[0]`, where it is not the path.
    pub name: Option<OsString>,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: Option<PathBuf>,
    pub identity: Option<Identity>,
    pub limits: Vec<Limit>,
    pub nice: Option<i32>,
    /// Class (1 realtime, 2 best effort, 3 idle) and level (0 to 7).
    pub io_priority: Option<(u8, u8)>,
    pub oom_score_adj: Option<i32>,
    /// The cgroup's folder; the child moves itself there before it is executed.
    pub cgroup: Option<PathBuf>,
    /// It has just been made, so the child can be born in it, which is faster. Not in any other: Linux (seen on 6.18) kills at once
    /// who is born in a cgroup that was ever killed as a whole by `cgroup.kill`, for it looks at the parent's cgroup for that.
    pub cgroup_is_new: bool,
    /// What it gets when its parent dies.
    pub death_signal: Option<Signal>,
    /// The program that is bound over `path`, a file that is there, in a mount namespace of the child's own: the process then
    /// bears `path`'s name wherever processes are looked for by name.
    pub alias_of: Option<PathBuf>,
    pub output: Output,
    /// Its standard input is a pipe from [`Spawned::gate`]: for a program that waits there until its world is complete.
    pub held: bool,
}

/// What the child does between fork and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Session = 1,
    Stdio,
    Cgroup,
    OomScore,
    Nice,
    IoPriority,
    Limit,
    Alias,
    Directory,
    Identity,
    DeathSignal,
    Descriptors,
    Exec,
}

impl Resource {
    const ALL: [Self; 13] = [
        Self::Cpu,
        Self::FileSize,
        Self::Data,
        Self::Stack,
        Self::Core,
        Self::Processes,
        Self::OpenFiles,
        Self::LockedMemory,
        Self::AddressSpace,
        Self::Signals,
        Self::MessageQueues,
        Self::Nice,
        Self::RealtimePriority,
    ];

    /// What is limited, for "its limit of …".
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "CPU time",
            Self::FileSize => "file size",
            Self::Data => "data",
            Self::Stack => "stack",
            Self::Core => "core dumps",
            Self::Processes => "processes",
            Self::OpenFiles => "open files",
            Self::LockedMemory => "locked memory",
            Self::AddressSpace => "address space",
            Self::Signals => "pending signals",
            Self::MessageQueues => "message queues",
            Self::Nice => "nice values",
            Self::RealtimePriority => "realtime priority",
        }
    }
}

impl Step {
    const ALL: [Self; 13] = [
        Self::Session,
        Self::Stdio,
        Self::Cgroup,
        Self::OomScore,
        Self::Nice,
        Self::IoPriority,
        Self::Limit,
        Self::Alias,
        Self::Directory,
        Self::Identity,
        Self::DeathSignal,
        Self::Descriptors,
        Self::Exec,
    ];

    /// What could not be done, for "cannot …".
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "make a session",
            Self::Stdio => "connect its output",
            Self::Cgroup => "enter its cgroup",
            Self::OomScore => "set oom_score_adj",
            Self::Nice => "set its nice value",
            Self::IoPriority => "set its I/O priority",
            Self::Limit => "set a resource limit",
            Self::Alias => "take another name",
            Self::Directory => "change to its directory",
            Self::Identity => "become its user",
            Self::DeathSignal => "set its parent-death signal",
            Self::Descriptors => "close inherited descriptors",
            Self::Exec => "execute it",
        }
    }

    /// One that must not be passed over: what runs would run as somebody else or somewhere else.
    const fn is_vital(self) -> bool {
        matches!(self, Self::Identity | Self::Directory | Self::Alias | Self::Exec)
    }
}

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub step: Step,
    /// Which limit, where the step is one.
    pub resource: Option<Resource>,
    pub errno: Errno,
}

impl Failure {
    /// One line for the log.
    pub fn describe(&self, program: &Path) -> String {
        match self.step {
            Step::Exec => format!("cannot execute: {}", elf::explain(program, self.errno)),
            step if step.is_vital() => {
                format!("not started: cannot {}: {}", step.as_str(), self.errno.desc())
            }
            Step::Limit => {
                let which = self.resource.map_or("a resource", Resource::as_str);
                format!("cannot set its limit of {which}: {}; started without", self.errno.desc())
            }
            step => format!("cannot {}: {}; started without", step.as_str(), self.errno.desc()),
        }
    }

    /// Whether the program does not run because of it.
    pub const fn is_final(&self) -> bool {
        self.step.is_vital()
    }
}

/// A child on its way to its program.
#[derive(Debug)]
pub struct Spawned {
    pub pid: Pid,
    /// Non-blocking read ends, with [`Output::Pipes`].
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Told by [`read_steps`] what failed; at its end of file the program runs, or the child is gone.
    pub steps: OwnedFd,
    /// Write end of the standard input of a [held](Program::held) program.
    pub gate: Option<OwnedFd>,
}

/// Why no child could be made.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot start {}: a NUL byte in its arguments or environment", program.display())]
    Nul { program: PathBuf },
    #[error("cannot start {}: {operation}: {source}", program.display())]
    System { program: PathBuf, operation: &'static str, source: Errno },
}

/// Starts a child. It is registered by the caller before the caller reaps anything, since both are in one thread.
pub fn spawn(program: &Program) -> Result<Spawned, SpawnError> {
    let failed =
        |operation| move |source| SpawnError::System { program: program.path.clone(), operation, source };
    let prepared = Prepared::new(program).map_err(|_| SpawnError::Nul { program: program.path.clone() })?;
    let channel = || pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"));
    let (steps, steps_in) = channel()?;
    let (stdout, stdout_in) = pipe_if(program.output == Output::Pipes).map_err(failed("make a pipe"))?;
    let (stderr, stderr_in) = pipe_if(program.output == Output::Pipes).map_err(failed("make a pipe"))?;
    let (input, gate) = pipe_if(program.held).map_err(failed("make a pipe"))?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).ok();
    let wiring = Wiring {
        steps: clear_of_stdio(steps_in).map_err(failed("make a pipe"))?,
        input: input.map(clear_of_stdio).transpose().map_err(failed("make a pipe"))?,
        null: null.map(clear_of_stdio).transpose().map_err(failed("open /dev/null"))?,
        stdout: stdout_in.map(clear_of_stdio).transpose().map_err(failed("make a pipe"))?,
        stderr: stderr_in.map(clear_of_stdio).transpose().map_err(failed("make a pipe"))?,
    };
    let parent = nix::unistd::getpid();
    let cgroup = program.cgroup.as_deref().filter(|_| program.cgroup_is_new).and_then(open_folder);
    // The arrays borrow the prepared strings, and must be there before the fork: the child may not allocate.
    let arguments = CArray::new(prepared.arguments.iter().map(CString::as_c_str));
    let environment = CArray::new(prepared.environment.iter().map(CString::as_c_str));
    let (fork, in_cgroup) = fork(cgroup.as_ref()).map_err(failed("fork"))?;
    match fork {
        Fork::Parent(pid) => {
            for end in [&steps].into_iter().chain(&stdout).chain(&stderr) {
                let _ = crate::reactor::set_nonblocking(end);
            }
            Ok(Spawned { pid, stdout, stderr, steps, gate })
        }
        Fork::Child => {
            let child = Child { program, prepared: &prepared, wiring: &wiring, parent, in_cgroup };
            child.run(&arguments, &environment)
        }
    }
}

/// Forks into the cgroup where the kernel can; else, false, the child enters it by itself and tells why that fails.
fn fork(cgroup: Option<&OwnedFd>) -> Result<(Fork, bool), Errno> {
    if let Some(Ok(fork)) = cgroup.map(sys::fork_into) {
        return Ok((fork, true));
    }
    Ok((sys::fork()?, false))
}

fn open_folder(path: &Path) -> Option<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// Read end and write end, where there is to be a pipe.
fn pipe_if(wanted: bool) -> Result<(Option<OwnedFd>, Option<OwnedFd>), Errno> {
    if !wanted {
        return Ok((None, None));
    }
    pipe2(OFlag::O_CLOEXEC).map(|(read, write)| (Some(read), Some(write)))
}

/// Moves a descriptor above stdio: PID 1 may have none of its own, and then pipes would get those numbers.
fn clear_of_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    sys::own(raised)
}

/// Strings as the kernel wants them.
struct Prepared {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
    cgroup: Option<CString>,
    alias_of: Option<CString>,
    oom_score: Option<String>,
}

impl Prepared {
    fn new(program: &Program) -> Result<Self, std::ffi::NulError> {
        let name = program.name.as_deref().unwrap_or(program.path.as_os_str());
        let c_string = |text: &OsStr| CString::new(text.as_bytes());
        let variable = |(key, value): &(OsString, OsString)| {
            CString::new([key.as_bytes(), b"=", value.as_bytes()].concat())
        };
        Ok(Self {
            path: c_string(program.path.as_os_str())?,
            arguments: std::iter::once(name)
                .chain(program.arguments.iter().map(OsString::as_os_str))
                .map(c_string)
                .collect::<Result<_, _>>()?,
            environment: program.environment.iter().map(variable).collect::<Result<_, _>>()?,
            directory: program.directory.as_deref().map(|path| c_string(path.as_os_str())).transpose()?,
            cgroup: program
                .cgroup
                .as_deref()
                .map(|folder| c_string(folder.join("cgroup.procs").as_os_str()))
                .transpose()?,
            alias_of: program.alias_of.as_deref().map(|path| c_string(path.as_os_str())).transpose()?,
            oom_score: program.oom_score_adj.map(|score| score.to_string()),
        })
    }
}

/// The child's ends of its pipes.
struct Wiring {
    steps: OwnedFd,
    input: Option<OwnedFd>,
    null: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// The forked child: nothing here may allocate, lock or panic.
struct Child<'a> {
    program: &'a Program,
    prepared: &'a Prepared,
    wiring: &'a Wiring,
    parent: Pid,
    /// It was born in its cgroup.
    in_cgroup: bool,
}

impl Child<'_> {
    fn run(&self, arguments: &CArray<'_>, environment: &CArray<'_>) -> ! {
        sys::reset_signals();
        self.step(Step::Session, nix::unistd::setsid().map(drop));
        self.step(Step::Stdio, self.connect_stdio());
        self.step(Step::Cgroup, self.enter_cgroup());
        self.step(Step::OomScore, self.set_oom_score());
        self.step(Step::Nice, self.program.nice.map_or(Ok(()), sys::set_nice));
        self.step(Step::IoPriority, self.set_io_priority());
        for limit in &self.program.limits {
            self.step_of(Step::Limit, limit.resource as u8, set_limit(limit));
        }
        self.step(Step::Alias, self.take_alias());
        self.step(Step::Directory, self.change_directory());
        self.step(Step::Identity, self.become_user());
        self.step(Step::DeathSignal, self.set_death_signal());
        self.step(Step::Descriptors, sys::close_on_exec_from(3));
        self.step(Step::Exec, Err(sys::execute(&self.prepared.path, arguments, environment)));
        sys::exit_now(EXEC_FAILED)
    }

    fn step(&self, step: Step, outcome: Result<(), Errno>) {
        self.step_of(step, u8::MAX, outcome);
    }

    /// Tells a failure; a vital one ends the child.
    fn step_of(&self, step: Step, detail: u8, outcome: Result<(), Errno>) {
        let Err(errno) = outcome else { return };
        let [b0, b1, b2, b3] = (errno as i32).to_le_bytes();
        let _ = sys::write_raw(self.wiring.steps.as_raw_fd(), &[step as u8, detail, b0, b1, b2, b3]);
        if step.is_vital() {
            sys::exit_now(EXEC_FAILED);
        }
    }

    fn connect_stdio(&self) -> Result<(), Errno> {
        let wiring = self.wiring;
        if let Some(input) = wiring.input.as_ref().or(wiring.null.as_ref()) {
            sys::duplicate_onto(input.as_raw_fd(), 0)?;
        }
        if self.program.output == Output::Inherit {
            return Ok(());
        }
        for (end, onto) in [(&wiring.stdout, 1), (&wiring.stderr, 2)] {
            if let Some(end) = end.as_ref().or(wiring.null.as_ref()) {
                sys::duplicate_onto(end.as_raw_fd(), onto)?;
            }
        }
        Ok(())
    }

    fn enter_cgroup(&self) -> Result<(), Errno> {
        match &self.prepared.cgroup {
            Some(path) if !self.in_cgroup => sys::write_file(path, b"0"),
            _ => Ok(()),
        }
    }

    fn set_oom_score(&self) -> Result<(), Errno> {
        let score = self.prepared.oom_score.as_ref();
        score.map_or(Ok(()), |score| sys::write_file(c"/proc/self/oom_score_adj", score.as_bytes()))
    }

    fn set_io_priority(&self) -> Result<(), Errno> {
        self.program.io_priority.map_or(Ok(()), |(class, level)| sys::set_io_priority(class, level))
    }

    fn take_alias(&self) -> Result<(), Errno> {
        let Some(program) = self.prepared.alias_of.as_deref() else { return Ok(()) };
        let none = None::<&CStr>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Not told to the namespace that it was copied from.
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some(program), self.prepared.path.as_c_str(), none, MsFlags::MS_BIND, none)
    }

    fn change_directory(&self) -> Result<(), Errno> {
        nix::unistd::chdir(self.prepared.directory.as_deref().unwrap_or(c"/"))
    }

    fn become_user(&self) -> Result<(), Errno> {
        let Some(identity) = &self.program.identity else { return Ok(()) };
        sys::become_user(identity.user, identity.group, &identity.groups)
    }

    /// After the change of user, which clears it. A parent that died before this leaves no signal: then the child ends itself.
    fn set_death_signal(&self) -> Result<(), Errno> {
        let Some(signal) = self.program.death_signal else { return Ok(()) };
        nix::sys::prctl::set_pdeathsig(signal)?;
        if nix::unistd::getppid() != self.parent {
            sys::exit_now(EXEC_FAILED);
        }
        Ok(())
    }
}

fn set_limit(limit: &Limit) -> Result<(), Errno> {
    const UNLIMITED: u64 = u64::MAX;
    sys::set_limit(limit.resource as u32, limit.soft.unwrap_or(UNLIMITED), limit.hard.unwrap_or(UNLIMITED))
}

/// What the child has told so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    pub failures: Vec<Failure>,
    /// The pipe has ended: the program runs, unless a failure was final.
    pub ended: bool,
}

/// Reads what is there, without waiting.
pub fn read_steps(pipe: &impl AsFd) -> Steps {
    const RECORD: usize = 6;
    let mut steps = Steps::default();
    let mut buffer = [0; RECORD * 16];
    loop {
        match crate::reactor::read_ready(pipe, &mut buffer) {
            Ok(Some(0)) | Err(_) => steps.ended = true,
            Ok(Some(count)) => {
                steps.failures.extend(buffer[..count].chunks_exact(RECORD).filter_map(parse_failure));
                continue;
            }
            Ok(None) => {}
        }
        return steps;
    }
}

fn parse_failure(record: &[u8]) -> Option<Failure> {
    let ([step, detail], errno) = record.split_first_chunk()?;
    let step = *Step::ALL.get(usize::from(*step).checked_sub(1)?)?;
    let resource = Resource::ALL.into_iter().find(|resource| *resource as u8 == *detail);
    Some(Failure { step, resource, errno: Errno::from_raw(i32::from_le_bytes(*errno.first_chunk()?)) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout};
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    /// envd's supervisor is executed while what envd needs is still being made.
    #[test]
    fn one_that_is_held_reads_what_it_is_told_and_then_the_end() {
        let script = "read -r told; read -r more || exit $((7 + told))";
        let spawned = spawn(&Program { held: true, ..shell(script) }).unwrap();
        let mut gate = File::from(spawned.gate.unwrap());
        gate.write_all(b"1\n").unwrap();
        drop(gate);
        assert_eq!(waitpid(spawned.pid, None).unwrap(), WaitStatus::Exited(spawned.pid, 8));
        let free = spawn(&shell("read -r none || exit 9")).unwrap();
        assert!(free.gate.is_none());
        assert_eq!(waitpid(free.pid, None).unwrap(), WaitStatus::Exited(free.pid, 9));
    }

    fn shell(script: &str) -> Program {
        Program {
            path: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            ..Program::default()
        }
    }

    /// Runs it to its end: its exit, its standard output, its failed steps.
    fn run(program: &Program) -> (WaitStatus, String, Vec<Failure>) {
        let spawned = spawn(program).unwrap();
        let status = waitpid(spawned.pid, None).unwrap();
        let mut text = Vec::new();
        if let Some(stdout) = spawned.stdout {
            let _ = File::from(stdout).read_to_end(&mut text);
        }
        let mut steps = read_steps(&spawned.steps);
        while !steps.ended {
            // A child that another test is just starting holds our pipe until it is executed.
            let _ = nix::poll::poll(
                &mut [PollFd::new(spawned.steps.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            );
            let more = read_steps(&spawned.steps);
            steps.failures.extend(more.failures);
            steps.ended = more.ended;
        }
        (status, String::from_utf8_lossy(&text).into_owned(), steps.failures)
    }

    #[test]
    fn the_child_sees_its_own_world_and_nothing_else() {
        let leaked = File::open("/dev/zero").unwrap();
        fcntl(&leaked, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut program = shell("env; ls /proc/self/fd | wc -l; ulimit -n; pwd");
        program.limits = vec![Limit { resource: Resource::OpenFiles, soft: Some(64), hard: Some(64) }];
        program.directory = Some("/usr".into());
        let (status, text, failures) = run(&program);
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        assert_eq!(failures, []);
        assert!(!text.contains("CARGO"), "our environment leaked: {text}");
        assert!(text.contains("\n4\n64\n/usr\n"), "stdio and ls's own descriptor only: {text}");
    }

    #[test]
    fn signals_that_we_ignore_or_block_reach_the_child() {
        use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
        let mut old = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGTERM)), Some(&mut old)).unwrap();
        let (status, ..) = run(&shell("kill -TERM $$; sleep 5"));
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None).unwrap();
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGTERM, _)), "{status:?}");
    }

    #[test]
    fn a_missing_program_is_told_by_step_and_errno() {
        let program = Program { path: "/no/such/envd".into(), ..Program::default() };
        let (status, _, failures) = run(&program);
        assert!(matches!(status, WaitStatus::Exited(_, EXEC_FAILED)));
        assert_eq!(failures, [Failure { step: Step::Exec, resource: None, errno: Errno::ENOENT }]);
        assert_eq!(failures[0].describe(&program.path), "cannot execute: /no/such/envd is missing");
    }

    #[test]
    fn an_optional_step_that_fails_is_told_and_passed_over() {
        let program = Program { cgroup: Some("/no/such/cgroup".into()), ..shell("echo ran") };
        let (_, text, failures) = run(&program);
        assert_eq!(text, "ran\n");
        assert_eq!(failures, [Failure { step: Step::Cgroup, resource: None, errno: Errno::ENOENT }]);
    }

    #[test]
    fn a_missing_directory_keeps_the_program_from_running_elsewhere() {
        let (_, text, failures) = run(&Program { directory: Some("/no/such".into()), ..shell("echo ran") });
        assert_eq!(text, "");
        assert!(failures[0].is_final());
    }

    #[test]
    fn a_name_can_differ_from_the_path() {
        let (_, text, _) =
            run(&Program { name: Some("envd".into()), ..shell("cat /proc/$$/cmdline | tr '\\0' ' '") });
        assert!(text.starts_with("envd -c"), "{text}");
    }

    /// As envd's version is asked for: who looks for envd by name, in whichever way, must not find this one.
    #[test]
    fn an_alias_is_all_that_is_seen_of_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let alias = folder.path().join("other-name");
        File::create(&alias).unwrap();
        let script = "read -r comm </proc/$$/comm; echo $comm; ls -l /proc/$$/exe | sed 's/.* //'";
        let program = |path: &Path, of: &str| Program {
            path: path.to_path_buf(),
            alias_of: Some(of.into()),
            name: Some("other-name".into()),
            ..shell(script)
        };
        let (_, text, failures) = run(&program(&alias, "/bin/sh"));
        assert_eq!(
            (text.as_str(), failures),
            (format!("other-name\n{}\n", alias.display()).as_str(), vec![])
        );
        assert_eq!(std::fs::metadata(&alias).unwrap().len(), 0, "nothing of it is seen from here");
        let (_, text, failures) = run(&program(&alias, "/no/such"));
        assert_eq!(
            (text.as_str(), failures[0].step),
            ("", Step::Alias),
            "it does not run under its own name"
        );
    }

    #[test]
    fn a_nul_byte_is_refused_before_anything_happens() {
        assert!(matches!(spawn(&shell("a\0b")), Err(SpawnError::Nul { .. })));
    }
}
