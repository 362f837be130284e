//! The system calls that no safe wrapper offers: the only module of the project in which `unsafe` is allowed.

#![allow(unsafe_code, reason = "the one place for it; each block says why it is sound")]

use std::ffi::CStr;
use std::io;

use nix::errno::Errno;

/// Result of a raw system call, as an errno.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// Sets the I/O scheduling class and level of the calling process.
pub fn set_io_priority(class: u8, level: u8) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = libc::c_int::from(class) << CLASS_SHIFT | libc::c_int::from(level);
    // SAFETY: ioprio_set takes three integers and touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// Sets the nice value of the calling process.
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: setpriority takes three integers and touches no memory of ours.
    check(libc::c_long::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })).map(drop)
}

/// Marks every descriptor from `first` up close-on-exec.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: close_range with CLOEXEC only sets flags on descriptors; it closes nothing and touches no memory.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Gives every signal its default disposition and unblocks all of them, as a program expects to be started.
pub fn reset_signals() {
    /// The kernel's own `struct sigaction`: handler, flags, restorer, mask. All zeroes is the default disposition.
    const DEFAULT: [usize; 4] = [0; 4];
    const LAST: libc::c_int = 64;
    for signal in 1..=LAST {
        // By the bare call: C libraries refuse the signals that they use themselves, and those may be inherited as ignored.
        // SAFETY: the pointer is to a live structure of the right size; the call fails harmlessly for KILL and STOP.
        unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, size_of::<u64>());
        }
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// A set of signals by their numbers: nix knows none for real-time signals. What is no signal is left out.
pub fn signal_set(numbers: &[i32]) -> nix::sys::signal::SigSet {
    let mut set = *nix::sys::signal::SigSet::empty().as_ref();
    for number in numbers {
        // SAFETY: the pointer is to a live set that was emptied; a number out of range is refused.
        unsafe { libc::sigaddset(&raw mut set, *number) };
    }
    // SAFETY: the set was made by the C library's own calls.
    unsafe { nix::sys::signal::SigSet::from_sigset_t_unchecked(set) }
}

/// Which side of a [`fork`] one is on.
#[derive(Debug)]
pub enum Fork {
    Parent(nix::unistd::Pid),
    Child,
}

/// Forks. The child must call nothing but what is async-signal-safe until it executes another program or ends.
pub fn fork() -> Result<Fork, Errno> {
    // SAFETY: the guest programs have one thread, so no lock can be held by another at the time of the fork.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
    }
}

/// Forks a child that is in the cgroup of that folder from its first instruction. Unlike entering it afterwards, that does not
/// wait for the kernel to have no process on its way from one group to another, which takes milliseconds. The child's
/// part is as after [`fork`].
pub fn fork_into(cgroup: &impl std::os::fd::AsRawFd) -> Result<Fork, Errno> {
    /// `struct clone_args`, as of Linux 5.7.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let arguments = Arguments {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..Arguments::default()
    };
    // SAFETY: the pointer is to a live structure of the size that is told; without CLONE_VM the child has memory of its own.
    // What the C library knows of its thread goes stale in the child, which calls nothing that looks at it.
    let child =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) })?;
    Ok(match child {
        0 => Fork::Child,
        pid => Fork::Parent(nix::unistd::Pid::from_raw(pid as i32)),
    })
}

/// Ends the calling process at once, without running destructors: for the child of a [`fork`].
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit ends the process and cannot return.
    unsafe { libc::_exit(status) }
}

/// Pointers to C strings with the null at the end, as `execve` takes them; made before a fork.
#[derive(Debug)]
pub struct CArray<'a> {
    pointers: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> CArray<'a> {
    pub fn new(strings: impl IntoIterator<Item = &'a CStr>) -> Self {
        let pointers = strings.into_iter().map(CStr::as_ptr).chain([std::ptr::null()]).collect();
        Self { pointers, strings: std::marker::PhantomData }
    }
}

/// Executes a program; returns only when that failed. Allocates nothing.
pub fn execute(program: &CStr, arguments: &CArray<'_>, environment: &CArray<'_>) -> Errno {
    // SAFETY: the arrays end with a null pointer and borrow C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    Errno::last()
}

/// Makes `descriptor` refer to `onto` as well, without close-on-exec: for the stdio of a forked child.
pub fn duplicate_onto(descriptor: i32, onto: i32) -> Result<(), Errno> {
    if descriptor == onto {
        // SAFETY: fcntl on an integer descriptor; clears the close-on-exec flag that dup2 would have cleared.
        return check(libc::c_long::from(unsafe { libc::fcntl(onto, libc::F_SETFD, 0) })).map(drop);
    }
    // SAFETY: dup2 on integer descriptors; the child owns its whole table.
    check(libc::c_long::from(unsafe { libc::dup2(descriptor, onto) })).map(drop)
}

/// Takes ownership of a descriptor that a system call has just made.
pub fn own(descriptor: i32) -> Result<std::os::fd::OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    if descriptor < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the caller got the number from the kernel a moment ago and nobody else knows it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(descriptor) })
}

/// Borrows a descriptor of a library's type that only tells its number; `owner` keeps it open meanwhile.
pub fn borrow<T>(descriptor: i32, owner: &T) -> std::os::fd::BorrowedFd<'_> {
    let _ = owner;
    // SAFETY: the owner holds the descriptor open for as long as the borrow lives.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }
}

/// Bytes that were sent on a TCP socket and that the other end's kernel has not acknowledged; 0 where that cannot be told.
pub fn unacknowledged(socket: &impl std::os::fd::AsFd) -> usize {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed and open, and SIOCOUTQ writes one int, to which the pointer leads.
    let outcome = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if outcome == 0 { bytes.max(0) as usize } else { 0 }
}

/// Writes to a descriptor by its number: for the child of a fork, which owns its whole table.
pub fn write_raw(descriptor: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the pointer and length are those of a live slice.
    check(unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) } as libc::c_long)
        .map(|n| n as usize)
}

/// Opens a file for writing, writes once, and closes it: for cgroup and proc files. Async-signal-safe.
pub fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the path is a valid C string.
    let file =
        check(libc::c_long::from(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) }))?;
    let written = write_raw(file as i32, bytes);
    // SAFETY: the descriptor was opened above and is used nowhere else.
    unsafe { libc::close(file as i32) };
    written.map(drop)
}

/// Sets a resource limit of the calling process, soft and hard.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a live structure of the right type, and null asks for nothing back.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null::<libc::rlimit>())
    })
    .map(drop)
}

/// Sets supplementary groups, group and user of the calling process for good.
pub fn become_user(user: u32, group: u32, groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the pointer and count are those of a live slice of gid_t.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: plain integers. The raw calls change this thread, and a forked child has one.
    check(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }).map(drop)
}

/// Asks the kernel to deliver orphaned descendants to this process.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: prctl with integers only.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The end of a child, as `waitid` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    pub pid: i32,
    /// Exit status, or number of the signal.
    pub status: i32,
    pub by_signal: bool,
    pub core: bool,
}

/// Takes in the end of `pid`, or of any child; never waits. (nix's `waitid` takes in a child that was ended by a real-time
/// signal, and then loses its number in an error.)
pub fn reap(pid: Option<i32>) -> Result<Option<Reaped>, Errno> {
    let (kind, id) = pid.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid as libc::id_t));
    // SAFETY: siginfo_t is plain data, for which all zeroes is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live siginfo_t.
    let outcome = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
    check(libc::c_long::from(outcome))?;
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves the zeroes of above.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let by_signal = matches!(info.si_code, libc::CLD_KILLED | libc::CLD_DUMPED);
    Ok((pid != 0).then_some(Reaped { pid, status, by_signal, core: info.si_code == libc::CLD_DUMPED }))
}

/// A process as itself, and not by its number, which is another's once it was reaped.
pub fn open_process(pid: i32) -> Result<std::os::fd::OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and makes a descriptor that is closed on exec.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    own(descriptor as i32)
}

/// Sends a signal to a process that was opened. One that has ended is an error.
pub fn signal_process(
    process: &impl std::os::fd::AsRawFd,
    signal: nix::sys::signal::Signal,
) -> Result<(), Errno> {
    let no_details = std::ptr::null::<libc::siginfo_t>();
    let descriptor = process.as_raw_fd();
    // SAFETY: integers, and a null pointer, which stands for the details that kill gives.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, descriptor, signal as libc::c_int, no_details, 0)
    })
    .map(drop)
}

/// Unmaps the running program's code and constants. What is needed again is mapped again as it is reached: from the page cache, as
/// long as nobody else needed that memory. What was used since the last time is marked as used, and is the last to go there.
pub fn release_program() {
    // SAFETY: the callback only reads what it is handed.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut()) };
}

/// Called with the program itself first; the libraries that may follow are left alone.
extern "C" fn release_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    const STOP: libc::c_int = 1;
    let Ok(Some(page)) = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) else { return STOP };
    // SAFETY: the C library hands over a live structure, whose headers are as many as it says.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    let only_read =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(only_read) {
        // Whole pages only: what shares one with data that was written must stay.
        let begin = (base + header.p_vaddr).next_multiple_of(page as u64);
        let end = (base + header.p_vaddr + header.p_memsz) / page as u64 * page as u64;
        // SAFETY: these pages are a private mapping of a file that was never writable, so all that they hold is in the file.
        unsafe {
            libc::madvise(begin as *mut libc::c_void, end.saturating_sub(begin) as usize, libc::MADV_DONTNEED)
        };
    }
    STOP
}

/// Adds bytes to the kernel's random numbers and lets them count in full.
pub fn credit_entropy(device: &std::fs::File, seed: &[u8; 64]) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    /// `struct rand_pool_info` with its bytes.
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 64],
    }
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    let pool = Pool { bits: 512, size: 64, bytes: *seed };
    // SAFETY: the descriptor is open, and the pointer is to a live structure laid out as the kernel has it.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    check(libc::c_long::from(outcome)).map(drop)
}

/// Runs before `main`, in PID 1 only. Without a console the kernel gives it no stdio; Rust's runtime then opens /dev/null, and
/// ends the process where there is none. So whatever can be held open is: /dev/null, or something that nobody reads.
extern "C" fn keep_stdio_open() {
    // SAFETY: plain system calls with constant, NUL-terminated strings; nothing here needs a runtime.
    unsafe {
        if libc::getpid() != 1 {
            return;
        }
        let null = c"/dev/null".as_ptr();
        for descriptor in 0..3 {
            if libc::fcntl(descriptor, libc::F_GETFD) >= 0 || libc::open(null, libc::O_RDWR) >= 0 {
                continue;
            }
            let device = c"devtmpfs".as_ptr();
            libc::mkdir(c"/dev".as_ptr(), 0o755);
            libc::mount(device, c"/dev".as_ptr(), device, libc::MS_NOSUID, std::ptr::null());
            if libc::open(null, libc::O_RDWR) < 0 {
                libc::eventfd(0, libc::EFD_NONBLOCK);
            }
        }
    }
}

#[used]
// SAFETY: the section holds pointers to functions of this type, which the C library calls before `main`.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = keep_stdio_open;

/// The argument of a PID 1 that has executed itself anew after a fault, followed by how often it has, and by the signal's
/// number.
pub const AFTER_FAULT: &CStr = c"--after-fault";

/// A run that was as long as this (seconds) before its fault is no reason for the next one's caution.
const LONG_RUN: u64 = 60;

static FAULTS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
static BEGUN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Seconds of guest-monotonic time; async-signal-safe.
fn seconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64
}

/// From now on a fault of this process (a memory fault, an abort) executes it anew instead of ending it: the kernel panics when
/// PID 1 ends. `faults` is how often that has happened of late.
pub fn execute_again_after_fault(faults: u8) {
    use std::sync::atomic::Ordering::Relaxed;
    FAULTS.store(faults, Relaxed);
    BEGUN.store(seconds(), Relaxed);
    for signal in
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS, libc::SIGTRAP]
    {
        // SAFETY: all zeroes is a valid sigaction, and the handler makes only async-signal-safe calls. It runs on the
        // alternate stack that Rust's runtime has set up for the main thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = fault as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn fault(signal: libc::c_int) {
    use std::sync::atomic::Ordering::Relaxed;
    let lately = seconds().saturating_sub(BEGUN.load(Relaxed)) < LONG_RUN;
    let before = if lately { FAULTS.load(Relaxed) } else { 0 };
    let count = before.saturating_add(1).min(9);
    let digit = [b'0' + count, 0];
    let number = [b'0' + (signal / 10 % 10) as u8, b'0' + (signal % 10) as u8, 0];
    let arguments = [
        c"init".as_ptr(),
        AFTER_FAULT.as_ptr(),
        digit.as_ptr().cast(),
        number.as_ptr().cast(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null()];
    // SAFETY: the arrays end with a null pointer and point to NUL-terminated strings. The descriptors of the old run are
    // marked close-on-exec. Where the program cannot be read any more, waiting is all that is left.
    unsafe {
        libc::execve(c"/proc/self/exe".as_ptr(), arguments.as_ptr(), environment.as_ptr());
        loop {
            libc::pause();
        }
    }
}
