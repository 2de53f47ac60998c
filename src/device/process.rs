//! Processes: their life tied to their parent's, whether one still lives, memory, and CPU time that a hypervisor took.

use std::fs;
use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::units::Bytes;

use super::DeviceError;

/// Asks the kernel to kill this process once the thread that started it ends. `parent` is the process that started
/// it; a parent that ended before the request is an error, as no signal would ever come.
///
/// The kernel watches the parent's *thread*: whoever starts processes does so from a thread that stays.
///
/// # Errors
/// The kernel refuses, or the parent is gone already.
pub fn end_with_parent(parent: u32) -> Result<(), DeviceError> {
    let refused = |source| DeviceError::Process { attempt: "share the life", pid: parent, source };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|source| refused(source.into()))?;
    if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) == Some(parent) {
        Ok(())
    } else {
        Err(refused(io::Error::new(io::ErrorKind::NotFound, "the parent has ended")))
    }
}

/// Takes back what [`end_with_parent`] has asked for: a program that this process becomes by exec inherits it otherwise.
///
/// # Errors
/// The kernel refuses.
pub fn outlive_parent() -> Result<(), DeviceError> {
    let pid = std::process::id();
    set_parent_process_death_signal(None).map_err(|source| DeviceError::Process {
        attempt: "end the shared life",
        pid,
        source: source.into(),
    })
}

/// Sets variables of this process's environment, for libraries that are loaded later.
///
/// # Errors
/// The process has more than one thread: another may be reading its environment.
pub fn set_environment<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), DeviceError> {
    let pid = std::process::id();
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        let source = io::Error::other("it has several threads already");
        return Err(DeviceError::Process { attempt: "set the environment", pid, source });
    }
    for (name, value) in variables {
        // SAFETY: this is the only thread
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Whether somebody has stopped the process (`T` or `t` in proc_pid_stat(5)).
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the name, in parentheses, may hold anything
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The largest resident memory of this process since its exec (`VmHWM`). `getrusage` would count its parent's too,
/// as that maximum survives exec.
///
/// # Errors
/// The kernel does not say.
pub fn peak_resident() -> Result<Bytes, DeviceError> {
    let pid = std::process::id();
    let refused = |source| DeviceError::Process { attempt: "read the peak resident memory", pid, source };
    let status = fs::read_to_string("/proc/self/status").map_err(refused)?;
    peak_in(&status).ok_or_else(|| refused(io::Error::new(io::ErrorKind::InvalidData, "no VmHWM in /proc/self/status")))
}

fn peak_in(status: &str) -> Option<Bytes> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibi: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibi.checked_mul(1024)?))
}

/// Time of some CPUs since the host started, in the kernel's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    /// In which something ran or wanted to run: idle time and waiting for a disk are not in it.
    pub wanted: u64,
    /// The part of it that a hypervisor took.
    pub stolen: u64,
}

impl CpuTimes {
    /// The times of `cpus` (numbers of the kernel) now (`/proc/stat`, proc_stat(5)); none where the kernel does not
    /// say, or not for each of them.
    #[must_use]
    pub fn now(cpus: &[usize]) -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, cpus)
    }

    /// Share of the time since `earlier` in which these CPUs wanted to run that a hypervisor took, 0 to 1; none if they
    /// did not want to. CPUs that rest dilute nothing.
    #[must_use]
    pub fn stolen_since(self, earlier: Self) -> Option<f64> {
        let wanted = self.wanted.checked_sub(earlier.wanted).filter(|&ticks| ticks > 0)?;
        let stolen = self.stolen.checked_sub(earlier.stolen)?;
        Some(stolen as f64 / wanted as f64)
    }

    /// Sums the lines `cpu<n>` of `cpus`, whose fields are user, nice, system, idle, iowait, irq, softirq, steal; guest
    /// time is inside user.
    fn parse(stat: &str, cpus: &[usize]) -> Option<Self> {
        let mut sum = Self { wanted: 0, stolen: 0 };
        for cpu in cpus {
            let prefix = format!("cpu{cpu} ");
            let line = stat.lines().find_map(|line| line.strip_prefix(&prefix))?;
            let ticks: Vec<u64> =
                line.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
            let &[user, nice, system, _idle, _iowait, irq, softirq, steal] = ticks.as_slice() else { return None };
            for field in [user, nice, system, irq, softirq, steal] {
                sum.wanted = sum.wanted.checked_add(field)?;
            }
            sum.stolen = sum.stolen.checked_add(steal)?;
        }
        (!cpus.is_empty()).then_some(sum)
    }
}

/// A process as the kernel tells it from a later one with the same number: `(number, start time in ticks)`. The low
/// 32 bits of the start time are enough, as they come round after more than a year of uptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pid: u32,
    pub(super) started: u32,
}

impl Identity {
    /// This process.
    pub(super) fn own() -> io::Result<Self> {
        let pid = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (_, started) = state_and_start(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/self/stat"))?;
        Ok(Self { pid, started })
    }

    /// False once the process has ended, even while nobody has reaped it: a killed rank stays a zombie until its
    /// launcher looks, and `kill(pid, 0)` still finds it then.
    pub(super) fn lives(self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => {
                // What cannot be parsed is no evidence of a death.
                state_and_start(&stat).is_none_or(|(state, started)| started == self.started && !"ZXx".contains(state))
            }
            Err(error) => error.kind() != io::ErrorKind::NotFound && error.raw_os_error() != Some(libc::ESRCH),
        }
    }
}

/// Fields 3 and 22 of `/proc/<pid>/stat` (proc_pid_stat(5)). The name, field 2, may hold spaces and parentheses.
fn state_and_start(stat: &str) -> Option<(char, u32)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started: u64 = fields.nth(18)?.parse().ok()?;
    Some((state, started as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_lives_until_it_ends_reaped_or_not() {
        assert!(Identity::own().unwrap().lives());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let identity = Identity { pid: child.id(), started: state_and_start(&stat).unwrap().1 };
        assert!(identity.lives());
        assert!(!Identity { started: identity.started.wrapping_add(1), ..identity }.lives(), "another start time");
        child.kill().unwrap();
        let begin = std::time::Instant::now();
        while identity.lives() {
            assert!(begin.elapsed().as_secs() < 10, "a zombie does not live");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!identity.lives());
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4294967300 1 1";
        assert_eq!(state_and_start(stat), Some(('S', 4)));
        for cut in ["", "7 (a", "7 (a)", "7 (a) S 1 2"] {
            assert_eq!(state_and_start(cut), None);
        }
    }

    #[test]
    fn peak_memory_covers_what_was_touched() {
        let before = peak_resident().unwrap();
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(peak_resident().unwrap() >= Bytes(64 << 20));
        assert!(before <= peak_resident().unwrap());
        drop(touched);
        assert_eq!(peak_in("VmPeak:\t 9 kB\nVmHWM:\t    12 kB\n"), Some(Bytes(12_288)));
        assert_eq!(peak_in("VmHWM:\t many kB\n"), None);
    }

    #[test]
    fn stolen_time_is_a_share_of_the_time_that_these_cpus_wanted_to_run() {
        let at = |text| CpuTimes::parse(text, &[1, 10]).unwrap();
        let before =
            at("cpu  9 9 9 9 9 9 9 9\ncpu0 9 9 9 9 9 9 9 9\ncpu1 1 1 1 5 5 1 1 5 5 0\ncpu10 0 0 0 0 0 0 0 0\n");
        let after =
            at("cpu  9 9 9 9 9 9 9 9\ncpu0 1 1 1 1 1 1 1 1\ncpu1 6 2 2 95 15 2 2 6 9 0\ncpu10 0 0 0 0 0 0 0 0\n");
        assert_eq!(after.stolen_since(before), Some(0.1));
        assert_eq!(before.stolen_since(before), None);
        assert_eq!(before.stolen_since(after), None);
        for wrong in
            ["cpu  1 2 3 4 5 6 7 8\n", "cpu1 1 2 3 4 5 6 7\n", "cpu10 1 2 3 4 5 6 7 8\n", "cpu1 1 2 3 4 5 6 7 x\n"]
        {
            assert_eq!(CpuTimes::parse(wrong, &[1]), None, "{wrong}");
        }
        assert_eq!(CpuTimes::parse("cpu0 1 2 3 4 5 6 7 8\n", &[]), None);
        assert!(CpuTimes::now(&crate::device::allowed_cpus().unwrap()).is_some());
    }
}
