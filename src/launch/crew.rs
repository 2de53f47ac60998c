//! What whoever watches a trial needs of its ranks, wherever they are.

use std::process::ExitStatus;
use std::time::Duration;

use crate::units::Seconds;

use super::message::Order;
use super::ranks::Heard;

/// The ranks of one trial: processes of the launcher, or workers that another launcher started.
pub(super) trait Crew {
    /// What happened to a rank of which nothing but silence is left.
    const CUT_OFF: &'static str;

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

    /// The last lines that a rank wrote to stderr, where they are kept.
    fn last_words(&self, rank: usize) -> String;

    /// Waits for all to end by themselves until `limit`, then ends the rest.
    fn finish(&mut self, limit: Seconds);
}

impl<C: Crew> Crew for &mut C {
    const CUT_OFF: &'static str = C::CUT_OFF;
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

    fn last_words(&self, rank: usize) -> String {
        (**self).last_words(rank)
    }

    fn finish(&mut self, limit: Seconds) {
        (**self).finish(limit);
    }
}
