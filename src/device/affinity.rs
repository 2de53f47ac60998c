//! Which CPUs a thread may run on.

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::DeviceError;

/// Pins the calling thread to `cpus` (numbers of the kernel). Threads that it starts later inherit the pinning, those
/// that already run do not: a rank calls this first of all.
///
/// # Errors
/// `cpus` is empty, names a CPU above the kernel call's 1024, or none that this process may use.
pub fn pin_to(cpus: &[usize]) -> Result<(), DeviceError> {
    let refused =
        |source: Errno| DeviceError::Affinity { attempt: "pin the thread", cpus: cpus.to_vec(), source: source.into() };
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(refused(Errno::INVAL));
        }
        set.set(cpu);
    }
    // The kernel drops CPUs that are offline or outside the cpuset as long as one is left: read back, so that a
    // share that is smaller than planned is an error and not a slow rank.
    sched_setaffinity(None, &set).map_err(refused)?;
    let granted = sched_getaffinity(None).map_err(refused)?;
    if granted == set { Ok(()) } else { Err(refused(Errno::PERM)) }
}

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// The kernel does not say, as on a machine with more than 1024 CPUs.
pub fn allowed_cpus() -> Result<Vec<usize>, DeviceError> {
    let set = sched_getaffinity(None).map_err(|source| DeviceError::Affinity {
        attempt: "read the CPUs of the thread",
        cpus: Vec::new(),
        source: source.into(),
    })?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_where_it_was_pinned_and_its_children_too() {
        let before = allowed_cpus().unwrap();
        let last = *before.last().unwrap();
        let seen = std::thread::spawn(move || {
            pin_to(&[last]).unwrap();
            std::thread::spawn(allowed_cpus).join().unwrap()
        });
        assert_eq!(seen.join().unwrap().unwrap(), vec![last]);
        assert_eq!(allowed_cpus().unwrap(), before, "only the pinned thread moved");
    }

    #[test]
    fn cpus_that_do_not_exist_are_refused_by_number() {
        let good = allowed_cpus().unwrap()[0];
        for cpus in [vec![], vec![1023], vec![4096], vec![good, 1023]] {
            let text = std::thread::spawn(move || pin_to(&cpus).unwrap_err().to_string()).join().unwrap();
            assert!(text.starts_with("could not pin the thread"), "{text}");
        }
    }
}
