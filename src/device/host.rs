//! What the host has beside its devices.

use crate::units::Bytes;

/// Largest memory that this process may use: the host's RAM, or the limit of its control group (version 2) where
/// that is smaller.
#[must_use]
pub fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    let installed = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Bytes(installed.min(limit.unwrap_or(u64::MAX)))
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
    fn a_host_that_runs_this_has_some_memory() {
        assert!(Bytes(1 << 20) < host_memory());
    }
}
