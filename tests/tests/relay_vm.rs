//! The relay in a VM, on the real vsock device. One boot serves all parts; each takes a count, so that the campaign runs
//! the same code at scale.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::{Image, Via, Vm, wait};

const ENVD: u32 = 49983;
/// A second relay leads here to a server that sends back what it gets.
const ECHO: u32 = 7777;

/// As many as two minutes of tests allow; the campaign does ten times as many.
const COUNT: usize = 1000;
const ECHOES: usize = 64;

const ECHO_SERVER: &str = r"
import asyncio
async def echo(reader, writer):
    try:
        while data := await reader.read(262144):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_unix_server(echo, '/run/echo.sock', backlog=1024)
    await server.serve_forever()
asyncio.run(main())
";

fn boot() -> Vm {
    tests::require_root().unwrap();
    let relay = "command = ['/usr/lib/envd-init/vsock-relay', '--map', 'vsock:any:7777=unix:/run/echo.sock']\n\
                 restart = 'always'\nplacement = 'init.scope'\n";
    let server = "command = ['/usr/bin/python3', '/opt/echo.py']\nrestart = 'always'\n";
    let image = Image::native()
        .file("/opt/echo.py", ECHO_SERVER)
        .file("/etc/envd-init/services.d/echo-relay.toml", relay)
        .file("/etc/envd-init/services.d/echo.toml", server)
        .bake()
        .unwrap();
    let vm = Vm::of(&image).boot().unwrap();
    // Not before the guest's driver is there: vhost-device-vsock may never answer what was asked too early.
    vm.console().wait("envd is healthy").unwrap();
    vm.wait_healthy(Via::Vsock).unwrap();
    vm
}

/// `count` connections by eight clients at once, each a request of its own; returns how many were lost.
fn bursts(vm: &Vm, count: usize) -> usize {
    let (next, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    if !vm.get(Via::Vsock, "/health").is_ok_and(|answer| answer.status == 204) {
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    lost.load(Ordering::Relaxed)
}

/// `count` echoes of `size` bytes at once; returns how many came back other than they went.
fn echoes(vm: &Vm, count: usize, size: usize) -> usize {
    let wrong = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..count {
            let wrong = &wrong;
            scope.spawn(move || {
                if !echo(vm.vsock(ECHO).unwrap(), seed as u64, size).unwrap_or(false) {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    wrong.load(Ordering::Relaxed)
}

fn echo(stream: UnixStream, seed: u64, size: usize) -> std::io::Result<bool> {
    let bytes = noise(seed, size);
    let mut back = vec![0; size];
    let mut sender = stream.try_clone()?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| sender.write_all(&bytes));
        (&stream).read_exact(&mut back)?;
        sending.join().unwrap()
    })?;
    Ok(back == bytes)
}

/// Bytes that no two seeds share (xorshift).
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(size).collect()
}

/// envd is killed; connections that open afterwards wait and are served. Returns how many were not.
fn killed_envd(vm: &Vm, count: usize) -> usize {
    let mut failed = 0;
    for _ in 0..count {
        vm.sh(Via::Vsock, "kill -9 $(pidof envd) & sleep 0.2").ok();
        failed += usize::from(!vm.get(Via::Vsock, "/health").is_ok_and(|answer| answer.status == 204));
    }
    failed
}

/// The relays are killed; init brings them back.
fn killed_relay(vm: &Vm, count: usize) {
    for _ in 0..count {
        vm.sh(Via::Tcp, "kill -9 $(pidof vsock-relay)").ok();
        wait::until("the relay to be back", wait::BOUND, || {
            Ok(vm.get(Via::Vsock, "/health").ok().filter(|answer| answer.status == 204))
        })
        .unwrap();
    }
}

/// Open connections outlive a VM that stands still.
fn stopped(vm: &Vm, pause: Duration) {
    let mut stream = vm.vsock(ECHO).unwrap();
    stream.write_all(b"before").unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
    vm.qmp().stop().unwrap();
    thread::sleep(pause);
    vm.qmp().cont().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"after!").unwrap();
    let mut back = [0; 6];
    let result = stream.read_exact(&mut back);
    println!("the open connection: {result:?}");
    assert_eq!(vm.get(Via::Vsock, "/health").unwrap().status, 204);
    result.unwrap();
    assert_eq!(&back, b"after!");
}

/// Idle connections hold no buffers: what each costs the relay, in bytes of private memory.
fn idle(vm: &Vm, count: usize) -> u64 {
    let before = relay_memory(vm);
    let open: Vec<UnixStream> = (0..count).map(|_| vm.vsock(ECHO).unwrap()).collect();
    for mut stream in &open {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
    }
    relay_memory(vm).saturating_sub(before) * 1024 / count as u64
}

/// KiB of private dirty memory of both relays.
fn relay_memory(vm: &Vm) -> u64 {
    let script = "for p in $(pidof vsock-relay); do grep Private_Dirty /proc/$p/smaps_rollup; done";
    let lines = vm.sh(Via::Tcp, script).unwrap();
    lines.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// The guest's end of a snapshot's transport reset: the driver is unbound and bound again. Returns whether the device
/// came back at all, which depends on the VMM.
fn transport_reset(vm: &Vm) {
    let open = vm.vsock(ECHO).unwrap();
    let driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let script = format!(
        "d=$(basename $(ls -d {driver}/virtio*)); echo $d >{driver}/unbind; echo $d >{driver}/bind; pidof vsock-relay"
    );
    let before = vm.sh(Via::Tcp, "pidof vsock-relay").unwrap();
    let after = vm.sh(Via::Tcp, &script).unwrap();
    assert_eq!(before, after, "the relays live on");
    drop(open);
    let listening = "wc -l </proc/net/vsock 2>/dev/null || ss -l --vsock 2>/dev/null | grep -c 49983 || true";
    let _ = vm.sh(Via::Tcp, listening);
    wait::until("vsock after the reset", wait::BOUND, || {
        Ok(vm.get(Via::Vsock, "/health").ok().filter(|answer| answer.status == 204))
    })
    .unwrap();
}

#[test]
fn the_relay_serves_bursts_echoes_idlers_kills_stops_and_resets() {
    let vm = boot();
    let part = |name: &str, run: &dyn Fn()| {
        let begun = Instant::now();
        run();
        println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
    };
    part("connections in bursts", &|| assert_eq!(bursts(&vm, COUNT), 0, "connections lost"));
    part("echoes", &|| assert_eq!(echoes(&vm, ECHOES, 1 << 18), 0, "echoes that came back wrong"));
    part("idle connections", &|| {
        let bytes = idle(&vm, 200);
        println!("{bytes} bytes of private memory an idle connection");
        assert!(bytes < 8192, "{bytes} bytes an idle connection: a buffer is held");
    });
    part("half-close", &|| {
        let mut stream = vm.vsock(ENVD).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        drop(stream.shutdown(Shutdown::Both));
    });
    part("envd killed", &|| assert_eq!(killed_envd(&vm, 3), 0, "connections not served after a kill"));
    part("relay killed", &|| killed_relay(&vm, 2));
    part("VM stopped", &|| stopped(&vm, Duration::from_secs(3)));
    part("transport reset", &|| transport_reset(&vm));
}
