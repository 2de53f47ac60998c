//! What whoever watches a trial needs of its ranks, wherever they are.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::units::Seconds;

use super::message::Order;
use super::ranks::Heard;

/// How often limits, and the user's wish to end, are looked at while nothing is said.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// How often it is looked whether a process that was told to stop is gone.
pub(super) const STOP_POLL: Duration = Duration::from_millis(5);

/// A rank that has written its end line only has to free its memory and go.
pub(super) const TEARDOWN_LIMIT: Seconds = Seconds(10.0);

/// A killed process is gone within moments, unless it hangs in the kernel.
pub(super) const KILLED_LIMIT: Seconds = Seconds(5.0);

/// Who has not looked for so long was stopped or blocked itself.
const ABSENCE: Duration = Duration::from_secs(1);

/// Notices that whoever keeps limits was away itself: that time counts against nobody.
#[derive(Debug)]
pub(super) struct Attention(Instant);

impl Attention {
    /// Begins to look.
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    /// How long nobody has looked, if that was no ordinary pause.
    pub(super) fn absence(&mut self) -> Option<Duration> {
        let away = self.0.elapsed();
        self.0 = Instant::now();
        (away > ABSENCE).then_some(away)
    }
}

/// The ranks of one trial: processes of the launcher, or workers that another launcher started.
pub(super) trait Crew {
    /// Where to read on when a rank gave up with a reason of its own.
    const FAILED: &'static str;

    /// When a rank fails, others often fail of it within moments; for so long evidence is gathered before one is named.
    const GATHER: Duration;

    /// The next thing heard, or nothing within `wait`.
    fn hear(&mut self, wait: Duration) -> Option<(usize, Heard)>;

    /// Sends an order to all. A rank that is gone cannot hear it, which shows elsewhere.
    fn order(&mut self, order: &Order);

    /// Whether somebody has stopped a rank's process (SIGSTOP, a debugger).
    fn is_stopped(&self, rank: usize) -> bool;

    /// How a rank's process ended, if it has.
    fn status(&mut self, rank: usize) -> Option<ExitStatus>;

    /// What happened to a rank of which nothing but silence is left.
    fn cut_off(&self, rank: usize) -> &'static str;

    /// The last lines that a rank wrote to stderr, where they are kept.
    fn last_words(&self, rank: usize) -> String;

    /// Waits for all to end by themselves until `limit`, then ends the rest.
    fn finish(&mut self, limit: Seconds);
}

impl<C: Crew> Crew for &mut C {
    const FAILED: &'static str = C::FAILED;
    const GATHER: Duration = C::GATHER;

    fn hear(&mut self, wait: Duration) -> Option<(usize, Heard)> {
        (**self).hear(wait)
    }

    fn order(&mut self, order: &Order) {
        (**self).order(order);
    }

    fn is_stopped(&self, rank: usize) -> bool {
        (**self).is_stopped(rank)
    }

    fn status(&mut self, rank: usize) -> Option<ExitStatus> {
        (**self).status(rank)
    }

    fn cut_off(&self, rank: usize) -> &'static str {
        (**self).cut_off(rank)
    }

    fn last_words(&self, rank: usize) -> String {
        (**self).last_words(rank)
    }

    fn finish(&mut self, limit: Seconds) {
        (**self).finish(limit);
    }
}
