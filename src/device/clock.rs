//! The host's monotonic clock: the same for every process of a host.

use rustix::time::{ClockId, clock_gettime};

use crate::units::Seconds;

/// Moments as seconds since an epoch that all ranks of a host share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clock {
    epoch: Seconds,
}

impl Clock {
    /// A clock whose zero is `epoch`, a moment of [`Clock::monotonic`].
    #[must_use]
    pub fn since(epoch: Seconds) -> Self {
        Self { epoch }
    }

    /// A clock whose zero is now.
    #[must_use]
    pub fn starting_now() -> Self {
        Self::since(Self::monotonic())
    }

    /// The host's monotonic clock (`CLOCK_MONOTONIC`): an arbitrary zero, but one for all processes. As `f64` it
    /// resolves better than 1 µs for a host that has been up for a century.
    #[must_use]
    pub fn monotonic() -> Seconds {
        let now = clock_gettime(ClockId::Monotonic);
        Seconds(now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9)
    }

    /// Seconds from the epoch to now; negative before it.
    #[must_use]
    pub fn now(&self) -> Seconds {
        Self::monotonic() - self.epoch
    }

    /// The epoch, as a moment of [`Clock::monotonic`].
    #[must_use]
    pub fn epoch(&self) -> Seconds {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_forward_from_the_epoch() {
        let clock = Clock::starting_now();
        let first = clock.now();
        let second = clock.now();
        assert!(Seconds(0.0) <= first && first <= second, "{first:?} {second:?}");
        let later = Clock::since(clock.epoch() + Seconds(100.0));
        assert!(later.now() < Seconds(0.0));
    }
}
