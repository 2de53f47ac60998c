//! How far a plan is: a bar with the time left on a terminal, plain lines in a log, nothing with `--quiet`.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::launch::Progress;
use crate::units::Seconds;

use super::Output;

/// Shows the progress of one phase.
pub(super) struct Meter {
    out: Output,
    bar: Option<ProgressBar>,
    started: Instant,
    trial: Option<usize>,
}

impl Meter {
    /// A meter for a plan, on stderr.
    #[must_use]
    pub(super) fn new(out: Output) -> Self {
        let bar = (!out.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
            // a template that does not parse would be a bug of ours, and only costs the bar its looks
            if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/black.dim} {percent:>3} %  {msg}") {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar
        });
        Self { out, bar, started: Instant::now(), trial: None }
    }

    /// Shows where the plan is.
    pub(super) fn show(&mut self, progress: &Progress) {
        let whole = (progress.trials * progress.of) as u64;
        let done = (progress.index * progress.of + progress.steps) as u64;
        let left = self.left(done, whole);
        let name = progress.trial.name.replace('_', " ");
        if let Some(bar) = &self.bar {
            bar.set_length(whole);
            bar.set_position(done);
            bar.set_message(format!("{name}{left}"));
        } else if self.trial != Some(progress.index) {
            self.out.remark(format!("trial {} of {}: {name}{left}", progress.index + 1, progress.trials));
        }
        self.trial = Some(progress.index);
    }

    /// Time left at the pace so far; nothing until a twentieth is done.
    fn left(&self, done: u64, whole: u64) -> String {
        if done * 20 < whole || done == 0 {
            return String::new();
        }
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = Seconds(elapsed * (whole - done) as f64 / done as f64);
        format!(", {} left", Seconds(left.0.max(1.0).round()))
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
