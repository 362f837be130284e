//! What processes in a guest cost, asked over TCP so that the relay under measurement is left alone.

use ::tests::{Via, Vm};

use crate::scene;
use anyhow::{Context, Result, bail};

/// Pid, parent, name and memory of every process that has any, and the size of `/run` without what is envd's. Run by a static
/// shell in the shell's place: a dynamic one would share its libraries with the daemons that are measured, and make them look smaller.
const CENSUS: &str = r#"for p in /proc/[0-9]*; do
    ppid=$($bb awk '/^PPid:/{print $2}' "$p/status" 2>/dev/null)
    $bb awk -v id="${p#/proc/} $ppid $($bb cat "$p/comm" 2>/dev/null)" \
        '/^Pss:/{pss=$2} /^Private_Dirty:/{dirty=$2} END{if (pss) print "process", pss, dirty, id}' "$p/smaps_rollup" 2>/dev/null
done
run=$($bb du -sk /run | $bb cut -f1) own=$($bb du -sk /run/e2b 2>/dev/null | $bb cut -f1)
echo "run $((run - ${own:-0}))"
"#;
/// Parent of the kernel's own processes and of the helpers that it starts.
const KTHREADD: u32 = 2;

/// A process, with its memory in KiB.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    parent: u32,
    pub(crate) name: String,
    pub(crate) pss: f64,
    pub(crate) private_dirty: f64,
}

/// Memory of a guest in KiB.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) processes: Vec<Process>,
    /// tmpfs is memory too.
    pub(crate) run: f64,
}

impl Memory {
    /// Of a guest whose image has [`BUSYBOX`](scene::BUSYBOX).
    pub(crate) fn of(vm: &Vm) -> Result<Self> {
        let census = CENSUS.replace('\'', "'\\''");
        let busybox = scene::BUSYBOX;
        let text = vm.sh(Via::Tcp, &format!("bb={busybox} exec {busybox} sh -c '{census}'"))?;
        Self::parse(&text).with_context(|| format!("the guest said:\n{text}"))
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut processes, mut run) = (Vec::new(), None);
        for line in text.lines() {
            match line.splitn(6, ' ').collect::<Vec<_>>()[..] {
                ["process", pss, dirty, pid, parent, name] => processes.push(Process {
                    pid: pid.parse()?,
                    parent: parent.parse()?,
                    name: name.to_owned(),
                    pss: pss.parse()?,
                    private_dirty: dirty.parse()?,
                }),
                ["run", kib] => run = Some(kib.parse()?),
                _ => bail!("{line:?} is neither a process nor the size of /run"),
            }
        }
        Ok(Self { processes, run: run.context("the size of /run is missing")? })
    }

    /// Those with these names.
    pub(crate) fn named(&self, names: &[&str]) -> Vec<&Process> {
        self.processes.iter().filter(|process| names.contains(&process.name.as_str())).collect()
    }

    /// All but envd and what runs under it, and helpers of the kernel's (it starts one for iptables, which envd calls).
    pub(crate) fn of_the_init(&self) -> Vec<&Process> {
        self.processes.iter().filter(|process| !self.is_others(process)).collect()
    }

    fn is_others(&self, process: &Process) -> bool {
        let by_pid = |pid: u32| self.processes.iter().find(|other| other.pid == pid);
        let mut next = Some(process);
        while let Some(ancestor) = next {
            if ancestor.parent == KTHREADD || ancestor.name == "envd" {
                return true;
            }
            next = by_pid(ancestor.parent).filter(|parent| parent.pid != ancestor.pid);
        }
        false
    }
}

/// The one process of that name.
pub(crate) fn pid_of(vm: &Vm, name: &str) -> Result<u32> {
    let printed = vm.sh(Via::Tcp, &format!("pidof {name}"))?;
    printed.trim().parse().with_context(|| format!("pidof {name} printed {printed:?}"))
}

/// How often a process was put on a processor, and when that was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wakeups {
    pub(crate) count: f64,
    /// Seconds of the guest's monotonic clock.
    pub(crate) at: f64,
}

impl Wakeups {
    pub(crate) fn of(vm: &Vm, pid: u32) -> Result<Self> {
        let command = format!(
            "awk '/ctxt_switches/{{n += $2}} END{{print n}}' /proc/{pid}/task/*/status; cut -d' ' -f1 /proc/uptime"
        );
        let text = vm.sh(Via::Tcp, &command)?;
        let (count, at) = text.split_once('\n').context("two lines")?;
        Ok(Self { count: count.trim().parse()?, at: at.trim().parse()? })
    }

    /// Wake-ups a minute between two looks.
    pub(crate) fn per_minute_since(self, before: Self) -> f64 {
        (self.count - before.count) * 60.0 / (self.at - before.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_under_envd_or_the_kernel_is_not_counted_and_envds_supervisor_is() {
        let text = "process 200 100 1 0 init\nprocess 50 40 7 1 envd-wrapper\nprocess 9000 8000 8 7 envd\n\
                    process 300 200 9 8 bash\nprocess 70 60 10 9 awk\nprocess 60 50 11 1 vsock-relay\nprocess 690 690 12 2 bpfilter_umh\nrun 24";
        let memory = Memory::parse(text).unwrap();
        let names: Vec<_> = memory.of_the_init().iter().map(|process| process.name.as_str()).collect();
        assert_eq!(names, ["init", "envd-wrapper", "vsock-relay"]);
        assert!((memory.run - 24.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_process_with_a_blank_in_its_name_is_read() {
        let memory = Memory::parse("process 1 1 5 1 (sd pam)\nrun 0").unwrap();
        assert_eq!(memory.processes[0].name, "(sd pam)");
    }
}
