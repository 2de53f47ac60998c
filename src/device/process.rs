//! Processes: their life tied to their parent's, whether one still lives, memory, and CPU time that a hypervisor took.

use std::fs;
use std::io;

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};

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

/// Asks every process of the group led by `leader` to end (SIGTERM). A group that is gone already is no error.
///
/// # Errors
/// The kernel refuses.
pub fn ask_group_to_end(leader: u32) -> Result<(), DeviceError> {
    signal_group(leader, Signal::TERM)
}

/// Kills every process of the group led by `leader` (SIGKILL). A group that is gone already is no error.
///
/// # Errors
/// The kernel refuses.
pub fn kill_group(leader: u32) -> Result<(), DeviceError> {
    signal_group(leader, Signal::KILL)
}

fn signal_group(leader: u32, signal: Signal) -> Result<(), DeviceError> {
    let refused = |source| DeviceError::Process { attempt: "signal the group", pid: leader, source };
    // Group 1 is init's and group 0 our own: never meant.
    let group = i32::try_from(leader).ok().filter(|&raw| raw > 1).and_then(Pid::from_raw);
    let group = group.ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(source) => Err(refused(source.into())),
    }
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

/// CPU time of the whole host since it started, in the kernel's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    /// Of all CPUs, idle time included.
    pub total: u64,
    /// Taken by a hypervisor while a CPU of ours wanted to run.
    pub stolen: u64,
}

impl CpuTimes {
    /// The times now (`/proc/stat`, proc_stat(5)); none where the kernel does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Share of the host's CPU time since `earlier` that a hypervisor took, 0 to 1; none if no tick has passed.
    #[must_use]
    pub fn stolen_since(self, earlier: Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|&ticks| ticks > 0)?;
        let stolen = self.stolen.checked_sub(earlier.stolen)?;
        Some(stolen as f64 / total as f64)
    }

    /// Fields of the line `cpu`: user, nice, system, idle, iowait, irq, softirq, steal; guest time is inside user.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let stolen = *ticks.get(7)?;
        let total = ticks.iter().try_fold(0_u64, |sum, &field| sum.checked_add(field))?;
        Some(Self { total, stolen })
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
    fn stolen_time_is_a_share_of_all_time() {
        let at = |text| CpuTimes::parse(text).unwrap();
        let before = at("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        let after = at("cpu  20 0 20 140 0 0 0 20 9 0\n");
        assert_eq!(after.stolen_since(before), Some(0.1));
        assert_eq!(before.stolen_since(before), None);
        assert_eq!(before.stolen_since(after), None);
        assert_eq!(CpuTimes::parse("cpu  10 0 10 70 0 0 0\n"), None, "a kernel without the field");
        assert!(CpuTimes::now().is_some());
    }

    #[test]
    fn groups_end_when_asked() {
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        for (end, signal) in [(ask_group_to_end as fn(u32) -> _, libc::SIGTERM), (kill_group, libc::SIGKILL)] {
            let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
            end(child.id()).unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(signal));
            end(child.id()).unwrap();
        }
        for wrong in [0, 1, u32::MAX] {
            assert!(kill_group(wrong).is_err());
        }
    }
}
