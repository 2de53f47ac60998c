//! What the host has beside its devices.

use std::fs;
use std::path::{Component, Path};

use crate::units::Bytes;

/// Where the kernel shows control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Largest memory that this process may use: the host's RAM, or the limit of its control group or of any above it
/// where that is smaller.
#[must_use]
pub fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    let installed = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Bytes(installed.min(smallest_limit(&groups, Path::new(CGROUPS)).unwrap_or(u64::MAX)))
}

/// The smallest memory limit of the groups that `groups` (`/proc/self/cgroup`, cgroups(7)) names and of all above them,
/// in bytes. A container shows its own group as the root of the mount, under which the path may not exist: each
/// level that is not there says nothing.
fn smallest_limit(groups: &str, mount: &Path) -> Option<u64> {
    let mut smallest = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (roots, file) = match controllers {
            "" => ([mount.join("unified"), mount.to_owned()], "memory.max"),
            v1 if v1.split(',').any(|one| one == "memory") => {
                ([mount.join("memory"), mount.join(v1)], "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let below = Path::new(group.trim_start_matches('/'));
        // a group outside of what this namespace shows begins with `..`
        let inside = below.components().all(|part| matches!(part, Component::Normal(_)));
        for level in if inside { below } else { Path::new("") }.ancestors() {
            let limits = roots.iter().filter_map(|root| fs::read_to_string(root.join(level).join(file)).ok());
            // `max` is no number and no limit
            smallest = limits.filter_map(|text| text.trim().parse().ok()).chain(smallest).min();
        }
    }
    smallest
}

/// Tells the allocator to keep what is freed. Matrix products allocate and free their packing space in each call;
/// giving it back to the kernel every time costs a tenth of a training step in page faults.
pub fn keep_freed_memory() {
    /// Largest value that glibc takes for its threshold on 64-bit machines (`HEAP_MAX_SIZE / 2`).
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const MAP_ABOVE_BYTES: libc::c_int = 32 << 20;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two integers, borrows nothing, and locks the allocator while it changes a setting that
    // only decides when memory goes back to the kernel; any value is allowed and a refused one changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_ABOVE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_still_given_out_after_the_allocator_was_told_to_keep_it() {
        keep_freed_memory();
        for len in [1, 1 << 16, 1 << 24] {
            assert_eq!(vec![1_u8; len].iter().filter(|&&byte| byte == 1).count(), len);
        }
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_counts() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups| smallest_limit(groups, mount.path());
        assert_eq!(limit("0::/user/job\n"), None);
        write("user/job/memory.max", "max\n");
        assert_eq!(limit("0::/user/job\n"), None);
        write("user/memory.max", "2000\n");
        assert_eq!(limit("0::/user/job\n"), Some(2000));
        write("user/job/memory.max", "3000\n");
        assert_eq!(limit("0::/user/job\n"), Some(2000));
        write("memory.max", "1000\n");
        assert_eq!(limit("0::/user/job\n"), Some(1000));
        assert_eq!(limit("0::/../../other\n"), Some(1000));
        write("memory/job/memory.limit_in_bytes", "500\n");
        assert_eq!(limit("4:memory:/job\n1:cpu:/\n0::/\n"), Some(500));
        assert_eq!(limit("4:cpu:/job\n"), None);
        assert_eq!(limit("nonsense\n:\n"), None);
    }

    #[test]
    fn a_host_that_runs_this_has_some_memory() {
        assert!(Bytes(1 << 20) < host_memory());
    }
}
