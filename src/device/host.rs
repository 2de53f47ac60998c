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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_runs_this_has_some_memory() {
        assert!(Bytes(1 << 20) < host_memory());
    }
}
