//! A network namespace with the platform's host side of a sandbox: `tap0` with 169.254.0.22/30 and the metadata address.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{Shutdown, shutdown};

/// The guest's address, the same in every sandbox.
pub const GUEST: &str = "169.254.0.21";
/// The host's end of the tap.
pub const HOST: &str = "169.254.0.22";
/// The metadata service.
pub const METADATA: &str = "169.254.169.254";
pub const GUEST_MAC: &str = "02:FC:00:00:00:05";
const TAP_MAC: &str = "02:FC:00:00:00:06";

/// Lives as long as its owner.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    metadata: Option<TcpListener>,
}

impl NetNs {
    /// An empty namespace in which loopback is up.
    pub fn new(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let ns = Self { name: name.to_owned(), metadata: None };
        ns.ip(&["link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// The host's side of a sandbox.
    pub fn with_tap(name: &str) -> Result<Self> {
        let ns = Self::new(name)?;
        ns.ip(&["tuntap", "add", "tap0", "mode", "tap"])?;
        ns.ip(&["link", "set", "tap0", "address", TAP_MAC])?;
        ns.ip(&["addr", "add", &format!("{HOST}/30"), "dev", "tap0"])?;
        ns.ip(&["addr", "add", &format!("{METADATA}/32"), "dev", "tap0"])?;
        ns.ip(&["link", "set", "tap0", "up"])?;
        Ok(ns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip ARGS` in the namespace; an error holds what it printed.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        run("ip", &all)
    }

    /// Any program in the namespace; an error holds what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(args);
        run("ip", &all)
    }

    /// Runs `work` on a thread that lives in the namespace. The sockets it makes belong to the namespace for good.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("opening {}", self.path().display()))?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A TCP connection from the namespace.
    pub fn connect(&self, address: &str, bound: Duration) -> Result<TcpStream> {
        let address = address.parse().with_context(|| format!("{address:?} is no address"))?;
        self.enter(|| {
            TcpStream::connect_timeout(&address, bound)
                .with_context(|| format!("connecting to {address} from {}", self.name))
        })
    }

    /// Serves the little of the metadata service that envd asks for, as long as the namespace lives.
    pub fn serve_metadata(&mut self) -> Result<()> {
        let listener =
            self.enter(|| Ok(TcpListener::bind((METADATA, 80))?)).context("binding the metadata service")?;
        self.metadata = Some(listener.try_clone()?);
        thread::Builder::new().name("metadata".into()).spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let _ = answer_metadata(&stream);
            }
        })?;
        Ok(())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        // Ends the thread that accepts; its socket would keep the namespace alive without its name.
        if let Some(listener) = &self.metadata {
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// A token for `PUT`, the sandbox's data for `GET`; one answer a connection.
fn answer_metadata(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let (kind, body) = if request.starts_with("PUT") {
        ("text/plain", "token")
    } else {
        (
            "application/json",
            r#"{"instanceID":"instance","envID":"template","address":"","accessTokenHash":""}"#,
        )
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// Runs a program and returns what it printed; an error names the command and holds its stderr.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let line = format!("{program} {}", args.join(" "));
    let Output { status, stdout, stderr } =
        Command::new(program).args(args).output().with_context(|| format!("starting `{line}`"))?;
    ensure!(status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
