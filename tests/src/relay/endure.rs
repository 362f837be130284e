//! What is done to the guest, its relay and its envd while connections are open or come.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use envd_api::process::{ProcessConfig, StartRequest};

use super::{Bed, Door, ENVD, OUTWARDS, PEER};
use crate::envd::start_request;
use crate::{Via, Vm, wait};

/// Where the guest's driver takes its devices.
const DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";

/// envd is killed; what connects afterwards waits and is served.
pub fn envd_killed(bed: &Bed, door: &Door, count: usize) -> Result<()> {
    for round in 0..count {
        kill_envd(&bed.vm)?;
        ensure!(door.is_healthy(), "the first connection after kill {} of {count} was not served", round + 1);
    }
    Ok(())
}

/// The shell that kills envd loses its connection by it.
fn kill_envd(vm: &Vm) -> Result<()> {
    let mark = vm.console().mark();
    let _ = vm.exec_as(Via::Tcp, "kill -KILL $(pidof envd); sleep 60", Some("root"));
    vm.console().wait_after(mark, "SIGKILL").map(drop)
}

/// envd is killed under `count` open streams: each comes to its end, and the next call is served.
pub fn envd_killed_under_streams(bed: &Bed, door: &Door, count: usize) -> Result<()> {
    let streams = (0..count).map(|_| open_stream(door)).collect::<Result<Vec<_>>>()?;
    kill_envd(&bed.vm)?;
    ensure!(door.is_healthy(), "the first connection after the kill was not served");
    for (number, mut stream) in streams.into_iter().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let end = std::io::copy(&mut stream, &mut std::io::sink());
        let ended =
            end.as_ref().map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |_| true);
        ensure!(ended, "stream {number} of {count} hangs after envd was killed");
    }
    bed.await_no_connections()
}

/// A process that sleeps, and its stream, whose first event has come.
pub fn open_stream(door: &Door) -> Result<UnixStream> {
    let process =
        ProcessConfig { cmd: "/bin/sleep".into(), args: vec!["1000".into()], ..ProcessConfig::default() };
    let start = StartRequest { process, stdin: Some(false), ..StartRequest::default() };
    let request = start_request(&start, Some("root"))?;
    let mut stream = door.open(ENVD)?;
    let headers: String =
        request.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = request.body.len();
    write!(
        stream,
        "POST {} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n",
        request.target
    )?;
    stream.write_all(&request.body)?;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"pid\"") {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).context("waiting for a stream's first event")?;
        ensure!(count > 0, "a stream ended at once: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    Ok(stream)
}

/// Whether a stream has neither ended nor been reset.
pub fn is_alive(mut stream: &UnixStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let looked = stream.read(&mut [0; 4096]);
    ensure!(
        looked
            .as_ref()
            .map_or_else(|error| error.kind() == std::io::ErrorKind::WouldBlock, |count| *count > 0),
        "a stream has ended: {looked:?}"
    );
    Ok(())
}

/// The relays are killed; PID 1 brings them back, and connections are served again.
pub fn relay_killed(bed: &Bed, door: &Door, count: usize) -> Result<()> {
    for _ in 0..count {
        let before = bed.vm.sh(Via::Tcp, "pidof vsock-relay")?;
        bed.vm.sh(Via::Tcp, "kill -9 $(pidof vsock-relay)")?;
        wait::until("the relay to be back", wait::BOUND, || Ok(door.is_healthy().then_some(())))?;
        let after = bed.vm.sh(Via::Tcp, "pidof vsock-relay")?;
        ensure!(before != after, "the relays are {before} as before");
    }
    wait::until("the second relay", wait::BOUND, || Ok(super::echoes(door, 1, 100, 1).ok()))
}

/// Clients that come while envd is down and leave before it is back never reach it; one that stays is served.
pub fn clients_gone_during_the_hold(bed: &Bed, door: &Door, count: usize) -> Result<()> {
    bed.vm.sh(Via::Tcp, "/usr/lib/envd-init/init --version >/dev/null 2>&1; true")?;
    let control = |verb: &str| control(bed, verb);
    control("stop")?;
    for _ in 0..count {
        let mut stream = door.open(ENVD)?;
        stream.write_all(b"POST /never HTTP/1.1\r\nHost: x\r\n\r\n")?;
    }
    bed.await_no_connections()?;
    thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| door.is_healthy());
        let held = || Ok((bed.relay_status()?["connections"] != 0).then_some(()));
        wait::until("the relay to hold a client", wait::BOUND, held)?;
        control("start")?;
        ensure!(waiting.join().unwrap_or(false), "a client that waited for envd was not served");
        Ok(())
    })
}

fn control(bed: &Bed, verb: &str) -> Result<()> {
    let socket = bed.vm.vsock_socket().display().to_string();
    let envdctl = crate::paths::host_bin("envdctl")?.display().to_string();
    crate::net::run(&envdctl, &[verb, "envd", "--fc-socket", &socket]).map(drop)
}

/// Connections that are open outlive a VM that stands still; who comes meanwhile is served afterwards, and who comes and
/// leaves does no harm.
pub fn stopped(bed: &Bed, open: usize, pause: Duration) -> Result<()> {
    let door = bed.firecracker();
    let idlers = super::idlers(&door, open)?;
    bed.vm.qmp().stop()?;
    let patient = thread::spawn({
        let door = door.clone();
        move || door.is_healthy()
    });
    let mut impatient = UnixStream::connect(bed.firecracker.path())?;
    impatient.write_all(b"CONNECT 49983\n")?;
    drop(impatient);
    thread::sleep(pause);
    bed.vm.qmp().cont()?;
    ensure!(door.is_healthy(), "nobody is served after the VM had stood still");
    super::wake_idlers(&idlers).context("after the VM had stood still")?;
    ensure!(patient.join().unwrap_or(false), "who connected meanwhile was not served afterwards");
    Ok(())
}

/// The guest's end of a snapshot's transport reset: its driver is unbound and bound again. Open connections end, the relay
/// lives on and listens without binding anew.
pub fn transport_reset(bed: &Bed, door: &Door) -> Result<()> {
    let idlers = super::idlers(door, 8)?;
    let script = format!(
        "d=$(basename $(ls -d {DRIVER}/virtio*)); echo $d >{DRIVER}/unbind; echo $d >{DRIVER}/bind; pidof vsock-relay"
    );
    let before = bed.vm.sh(Via::Tcp, "pidof vsock-relay")?;
    let after = bed.vm.sh(Via::Tcp, &script)?;
    ensure!(before == after, "the relays were {before} and are {after}: they did not live on");
    drop(idlers);
    wait::until("vsock after the reset", wait::BOUND, || Ok(door.is_healthy().then_some(())))?;
    super::echoes(door, 4, 1 << 16, 7).context("after the transport was reset")?;
    // The kernel told the relay of each connection that the reset ended, and it has closed both sides.
    bed.await_no_connections()
}

/// The relay starts while there is no vsock device, and serves as soon as one appears.
pub fn late_device(bed: &Bed, door: &Door) -> Result<()> {
    let mark = bed.vm.console().mark();
    let script = format!(
        "d=$(basename $(ls -d {DRIVER}/virtio*)); echo $d >/run/late-device; echo $d >{DRIVER}/unbind; \
         kill -9 $(pidof vsock-relay)"
    );
    bed.vm.sh(Via::Tcp, &script)?;
    bed.vm.console().wait_after(mark, "no vsock device yet; connections come as soon as there is one")?;
    bed.vm.sh(Via::Tcp, &format!("cat /run/late-device >{DRIVER}/bind"))?;
    wait::until("vsock over the late device", wait::BOUND, || Ok(door.is_healthy().then_some(())))
}

/// KiB of private dirty memory of the relay that has a status file: envd's.
pub fn relay_memory(bed: &Bed) -> Result<u64> {
    let script = "for p in $(pidof vsock-relay); do \
                  grep -q peer.sock /proc/$p/cmdline && grep Private_Dirty /proc/$p/smaps_rollup; done; true";
    let lines = bed.vm.sh(Via::Tcp, script)?;
    Ok(lines.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum())
}

/// Bytes of private memory that an idle connection costs the relay.
pub fn idle_memory(bed: &Bed, door: &Door, count: usize) -> Result<u64> {
    let before = relay_memory(bed)?;
    let idlers = super::idlers(door, count)?;
    let after = relay_memory(bed)?;
    super::wake_idlers(&idlers)?;
    Ok(after.saturating_sub(before) * 1024 / count as u64)
}

/// From a unix socket in the guest to a vsock port of the host: the other way round.
pub fn outwards(bed: &Bed) -> Result<()> {
    let mut path = bed.vm.vsock_socket().into_os_string();
    path.push(format!("_{OUTWARDS}"));
    let listener = UnixListener::bind(path)?;
    let host = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut question = [0; 3];
        stream.read_exact(&mut question)?;
        Ok(stream.write_all(&question)?)
    });
    let ask = "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/outwards.sock'); \
               s.send(b'ask'); print(s.recv(3).decode())\"";
    let answer = bed.vm.sh(Via::Tcp, ask)?;
    ensure!(answer == "ask", "the host's answer arrived as {answer:?}");
    host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A port that nothing listens on in the guest is a bare close.
pub fn unserved_port(door: &Door) -> Result<()> {
    ensure!(door.open(PEER + 1).is_err(), "a port that nothing listens on was opened");
    Ok(())
}
