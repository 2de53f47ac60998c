//! One trial watched from start to end: who is ready, who steps, whose weights are not the others', who failed first.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::device::cuda::NcclId;
use crate::record::{Arm, Finding, Limits, Severity, Trial};
use crate::units::Seconds;

use super::LaunchError;
use super::crew::{Attention, Crew, LOOK, TEARDOWN_LIMIT};
use super::message::{Cause, Message, Order};
use super::ranks::Heard;

/// How a trial ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TrialEnd {
    /// All ranks did all steps.
    Completed,
    /// The user interrupted.
    Interrupted,
    /// A rank failed; the finding names the first one.
    Failed(Finding),
}

/// The state of one trial.
pub(super) struct Watch<'a, C> {
    trial: &'a Trial,
    limits: &'a Limits,
    remark: &'a dyn Fn(&str),
    ranks: C,
    seen: Vec<Seen>,
    /// The id under which ranks meet over NCCL, until they were told to.
    id: Option<NcclId>,
    /// By step that not all ranks have done yet, the checksum of the weights that was said first, and by whom.
    checksums: BTreeMap<usize, (usize, String)>,
    started: Instant,
    released: Option<Instant>,
    attention: Attention,
}

/// What is known of one rank.
#[derive(Debug, Clone)]
struct Seen {
    /// SHA-256 of its weights, once it has written its end line.
    weights: Option<String>,
    /// It has built its model and goes to meet the others.
    meets: bool,
    ready: bool,
    steps: usize,
    last: Instant,
}

/// Evidence against a rank.
#[derive(Debug)]
enum Trouble {
    Exited { rank: usize, status: Option<ExitStatus> },
    Failed { rank: usize, cause: Cause, text: String, blames: Option<usize> },
    Garbled { rank: usize, line: String },
    Stuck { rank: usize, code: &'static str, doing: &'static str, limit: Seconds },
    Apart { rank: usize, peer: usize, when: String },
}

impl Seen {
    fn done(&self) -> bool {
        self.weights.is_some()
    }
}

impl<'a, C: Crew> Watch<'a, C> {
    /// Begins to watch ranks that were just started; `remark` hears what they have to say about their start.
    pub(super) fn new(trial: &'a Trial, limits: &'a Limits, remark: &'a dyn Fn(&str), ranks: C) -> Self {
        let started = Instant::now();
        let fresh = Seen { weights: None, meets: false, ready: false, steps: 0, last: started };
        let (seen, checksums) = (vec![fresh; trial.shares.len()], BTreeMap::new());
        Self {
            trial,
            limits,
            remark,
            ranks,
            seen,
            id: None,
            checksums,
            started,
            released: None,
            attention: Attention::begin(),
        }
    }

    /// Watches until the trial is over and no process of it is left. `step` hears of the fewest steps any rank has done.
    pub(super) fn run(mut self, stop: &AtomicBool, step: &mut dyn FnMut(usize)) -> Result<TrialEnd, LaunchError> {
        let mut reported = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                self.ranks.order(&Order::Interrupt);
                self.ranks.finish(self.limits.stop_s);
                return Ok(TrialEnd::Interrupted);
            }
            let heard = self.hear_all();
            self.forgive_own_absence();
            if let Some(trouble) = heard.or_else(|| self.overdue()) {
                return self.fail(trouble);
            }
            self.release_when_ready();
            let fewest = self.seen.iter().map(|seen| seen.steps).min().unwrap_or(0);
            if fewest > reported {
                reported = fewest;
                self.checksums.retain(|step, _| fewest <= *step);
                step(fewest);
            }
            if self.seen.iter().all(Seen::done) {
                return Ok(self.end());
            }
        }
    }

    /// Waits for a message, then takes all that are there: no rank is called silent over what it has said.
    fn hear_all(&mut self) -> Option<Trouble> {
        let mut wait = LOOK;
        while let Some((rank, heard)) = self.ranks.hear(wait) {
            if let Some(trouble) = self.note(rank, heard) {
                return Some(trouble);
            }
            wait = Duration::ZERO;
        }
        None
    }

    /// A launcher that was stopped or blocked itself knows nothing of that time: it counts against no rank.
    fn forgive_own_absence(&mut self) {
        if let Some(away) = self.attention.absence() {
            self.started += away;
            self.seen.iter_mut().for_each(|seen| seen.last = Instant::now());
        }
    }

    /// Every rank has written its end line: what is left is that its process ends, and ends well.
    fn end(mut self) -> TrialEnd {
        self.ranks.finish(TEARDOWN_LIMIT);
        let bad = (0..self.seen.len()).find_map(|rank| {
            let status = self.ranks.status(rank);
            (!status.is_some_and(|status| status.success())).then_some(Trouble::Exited { rank, status })
        });
        bad.map_or(TrialEnd::Completed, |trouble| TrialEnd::Failed(self.describe(&trouble)))
    }

    fn note(&mut self, rank: usize, heard: Heard) -> Option<Trouble> {
        let seen = &mut self.seen[rank];
        seen.last = Instant::now();
        match heard {
            Heard::Said(Message::Remark { text }) => (self.remark)(&text),
            // `seen.last` says it; an invitation is for the worker that started the rank
            Heard::Said(Message::Busy | Message::Invited { .. }) => {}
            Heard::Said(Message::Meets { id }) => {
                seen.meets = true;
                self.id = self.id.take().or(id);
            }
            Heard::Said(Message::Ready) => seen.ready = true,
            Heard::Said(Message::Step { index, checksum, .. }) => {
                seen.steps = index.saturating_add(1);
                return self.other_checksum(rank, index, checksum?);
            }
            Heard::Said(Message::Done { weights }) => {
                seen.weights = Some(weights);
                return self.other_weights(rank);
            }
            Heard::Said(Message::Failed { cause, text, blames }) => {
                return Some(Trouble::Failed { rank, cause, text, blames });
            }
            Heard::Garbled(line) => return Some(Trouble::Garbled { rank, line }),
            Heard::Closed if seen.done() => {}
            Heard::Closed => return Some(Trouble::Exited { rank, status: self.ranks.status(rank) }),
        }
        None
    }

    /// Ranks that exchange gradients hold the same weights after every step, bit for bit.
    fn other_checksum(&mut self, rank: usize, step: usize, checksum: String) -> Option<Trouble> {
        if self.trial.arm != Arm::Ddp {
            return None;
        }
        let (peer, first) = self.checksums.entry(step).or_insert_with(|| (rank, checksum.clone()));
        (*first != checksum).then(|| Trouble::Apart { rank, peer: *peer, when: format!("after step {step}") })
    }

    /// And at the end: what one rank says then is held against what another has.
    fn other_weights(&self, rank: usize) -> Option<Trouble> {
        let own = self.seen[rank].weights.as_ref()?;
        let other = |seen: &Seen| seen.weights.as_ref().is_some_and(|weights| weights != own);
        let peer = self.seen.iter().position(other).filter(|_| self.trial.arm == Arm::Ddp)?;
        Some(Trouble::Apart { rank, peer, when: "at the end".into() })
    }

    fn release_when_ready(&mut self) {
        if self.seen.iter().all(|seen| seen.meets)
            && let Some(id) = self.id.take()
        {
            self.ranks.order(&Order::Meet(id));
        }
        if self.released.is_none() && self.seen.iter().all(|seen| seen.ready) {
            self.ranks.order(&Order::Go);
            let now = Instant::now();
            self.released = Some(now);
            self.seen.iter_mut().for_each(|seen| seen.last = now);
        }
    }

    /// A rank that has been silent beyond its limit: of several, the one that has done the fewest steps, and of those
    /// the one that fell silent first.
    fn overdue(&self) -> Option<Trouble> {
        let (code, doing, limit) = match self.released {
            None => ("hang-meet", "build its model and meet the others", self.limits.meet_s),
            Some(_) => ("hang-rank", "make a step", self.limits.step_s),
        };
        // at the start a rank that writes its weights says so, and has its time anew
        let silent = |seen: &Seen| {
            let over = if self.released.is_none() { seen.ready } else { seen.done() };
            !over && seen.last.elapsed().as_secs_f64() > limit.0
        };
        if let Some(rank) = self.furthest_behind(silent) {
            return Some(Trouble::Stuck { rank, code, doing, limit });
        }
        if self.started.elapsed().as_secs_f64() > self.limits.trial_s.0 {
            let rank = self.furthest_behind(|seen| !seen.done())?;
            let limit = self.limits.trial_s;
            return Some(Trouble::Stuck { rank, code: "hang-trial", doing: "end the trial", limit });
        }
        None
    }

    fn furthest_behind(&self, of: impl Fn(&Seen) -> bool) -> Option<usize> {
        let ranks = self.seen.iter().enumerate().filter(|(_, seen)| of(seen));
        // ranks wait for each other: one whose process was stopped, or that did not come to meet, keeps the others
        ranks
            .min_by_key(|(rank, seen)| (!self.ranks.is_stopped(*rank), seen.meets, seen.steps, seen.last))
            .map(|(rank, _)| rank)
    }

    /// Gathers what other ranks say of the same failure, ends them all and names the first.
    fn fail(mut self, first: Trouble) -> Result<TrialEnd, LaunchError> {
        let mut troubles = vec![first];
        let until = Instant::now() + C::GATHER;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if let Some((rank, heard)) = self.ranks.hear(left) {
                troubles.extend(self.note(rank, heard));
            }
        }
        for trouble in &mut troubles {
            if let Trouble::Exited { rank, status: status @ None } = trouble {
                *status = self.ranks.status(*rank);
            }
        }
        self.ranks.order(&Order::Stop);
        self.ranks.finish(self.limits.stop_s);
        self.finding(&troubles)
    }

    /// Names the first failing rank: one that died without a word before one that gave a reason of its own, before
    /// one that others point at.
    fn finding(&self, troubles: &[Trouble]) -> Result<TrialEnd, LaunchError> {
        let told: Vec<usize> = troubles
            .iter()
            .filter_map(|trouble| match trouble {
                Trouble::Failed { rank, .. } => Some(*rank),
                _ => None,
            })
            .collect();
        let weight = |trouble: &&Trouble| match trouble {
            Trouble::Exited { rank, .. } if told.contains(rank) => 9,
            // whoever ended with a code may have done so because of another
            Trouble::Exited { status: Some(status), .. } if status.code().is_some() => 1,
            Trouble::Exited { .. } => 0,
            Trouble::Garbled { .. } => 1,
            Trouble::Failed { cause: Cause::Unmet | Cause::PeerLost, .. } => 6,
            Trouble::Failed { cause: Cause::DivergedElsewhere, .. } => 8,
            Trouble::Failed { blames: None, .. } | Trouble::Apart { .. } => 2,
            Trouble::Failed { cause: Cause::PeerDied, .. } => 3,
            Trouble::Failed { .. } => 4,
            Trouble::Stuck { .. } => 5,
        };
        let worst = troubles.iter().min_by_key(weight);
        match worst {
            Some(Trouble::Failed { rank, cause: Cause::Record, text, .. }) => {
                Err(LaunchError::Unrecorded { trial: self.trial.name.clone(), rank: *rank, text: text.clone() })
            }
            Some(Trouble::Failed { rank, cause: Cause::Input, text, .. }) => {
                Err(LaunchError::Input { trial: self.trial.name.clone(), rank: *rank, text: text.clone() })
            }
            Some(trouble) => Ok(TrialEnd::Failed(self.describe(trouble))),
            None => Ok(TrialEnd::Interrupted),
        }
    }

    fn describe(&self, trouble: &Trouble) -> Finding {
        let steps = |rank: usize| self.seen.get(rank).map_or(0, |seen| seen.steps);
        let (code, rank, seen, remedy) = match trouble {
            Trouble::Exited { rank, status } => {
                let how = status.map_or_else(|| self.ranks.cut_off(*rank).to_owned(), exit_words);
                let words = self.ranks.last_words(*rank);
                let words = if words.is_empty() { String::new() } else { format!("; it wrote: {words}") };
                ("rank-died", *rank, format!("rank {rank} {how} after {} steps{words}", steps(*rank)), DIED)
            }
            Trouble::Garbled { rank, line } => {
                let line: String = line.chars().take(120).collect();
                ("rank-failed", *rank, format!("rank {rank} said {line:?}, which is no message"), GARBLED)
            }
            Trouble::Failed { rank, cause: Cause::PeerDied, text, blames } => {
                let blamed = blames.unwrap_or(*rank);
                ("rank-died", blamed, format!("rank {blamed} died after {} steps: {text}", steps(blamed)), DIED)
            }
            Trouble::Failed { rank, cause: Cause::PeerLate, text, blames } => {
                let blamed = blames.unwrap_or(*rank);
                ("hang-rank", blamed, format!("rank {blamed} is stuck after {} steps: {text}", steps(blamed)), STUCK)
            }
            Trouble::Failed { cause: Cause::Unmet, text, rank, .. } => {
                let code = if self.released.is_some() { "hang-rank" } else { "hang-meet" };
                let behind = self.furthest_behind(|seen| !seen.done()).unwrap_or(*rank);
                (code, behind, format!("rank {behind} is behind after {} steps: {text}", steps(behind)), STUCK)
            }
            Trouble::Failed { rank, text, .. } => {
                ("rank-failed", *rank, format!("rank {rank} gave up after {} steps: {text}", steps(*rank)), C::FAILED)
            }
            Trouble::Stuck { rank, code, doing, limit } => {
                let seen = format!("rank {rank} did not {doing} within {limit}; it had done {} steps", steps(*rank));
                (*code, *rank, seen, STUCK)
            }
            Trouble::Apart { rank, peer, when } => {
                let seen =
                    format!("rank {rank} does not hold the weights of rank {peer} {when}: not one model was trained");
                ("ranks-apart", *rank, seen, APART)
            }
        };
        Finding {
            code: code.into(),
            severity: Severity::Fault,
            addresses: vec![format!("{}/rank-{rank}", self.trial.name)],
            seen,
            expected: "every rank does every step of the plan".into(),
            remedy: remedy.into(),
        }
    }
}

const DIED: &str = "look into the kernel log for this time: the out-of-memory killer, a machine check, or somebody's kill; then run again";
const STUCK: &str = "see whether the process was stopped or the host is overloaded (load average, other jobs on the same cores); then run again";
const APART: &str = "run again with --checksum-every 1 to see after which step; if it stays with one rank, its GPU or its memory is suspect";
const GARBLED: &str = "something in the rank's process writes to its stdout; run again without preloaded libraries";

fn exit_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "was killed (signal 9: the out-of-memory killer, or somebody)".into(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Two ranks that have said all that they will.
    struct Said(VecDeque<(usize, Message)>);

    impl Crew for Said {
        const FAILED: &'static str = "";
        const GATHER: Duration = Duration::ZERO;

        fn hear(&mut self, _wait: Duration) -> Option<(usize, Heard)> {
            self.0.pop_front().map(|(rank, message)| (rank, Heard::Said(message)))
        }

        fn order(&mut self, _order: &Order) {}

        fn is_stopped(&self, _rank: usize) -> bool {
            false
        }

        fn status(&mut self, _rank: usize) -> Option<ExitStatus> {
            Some(ExitStatus::from_raw(0))
        }

        fn cut_off(&self, _rank: usize) -> &'static str {
            "is silent"
        }

        fn last_words(&self, _rank: usize) -> String {
            String::new()
        }

        fn finish(&mut self, _limit: Seconds) {}
    }

    fn watched(arm: Arm, said: Vec<(usize, Message)>) -> TrialEnd {
        let trial = Trial { name: "launch-1_ddp-2".into(), launch: 1, arm, shares: vec![0, 1] };
        let limits = Limits { meet_s: Seconds(5.0), step_s: Seconds(5.0), trial_s: Seconds(5.0), stop_s: Seconds(0.0) };
        let watch = Watch::new(&trial, &limits, &|_| {}, Said(said.into()));
        watch.run(&AtomicBool::new(false), &mut |_| {}).unwrap()
    }

    fn step(index: usize, checksum: Option<&str>) -> Message {
        Message::Step { index, step_s: Seconds(0.1), checksum: checksum.map(str::to_owned) }
    }

    fn done(weights: &str) -> Message {
        Message::Done { weights: weights.into() }
    }

    #[test]
    fn ranks_that_say_other_weights_are_a_fault_without_any_file() {
        let alike = || vec![(0, step(0, None)), (1, step(0, None)), (0, step(1, Some("a"))), (1, step(1, Some("a")))];
        let with = |more: [(usize, Message); 2]| [alike(), more.into()].concat();
        assert_eq!(watched(Arm::Ddp, with([(1, done("w")), (0, done("w"))])), TrialEnd::Completed);
        let seen = |said| match watched(Arm::Ddp, said) {
            TrialEnd::Failed(finding) => (finding.code, finding.seen),
            end => panic!("{end:?}"),
        };
        for (said, rank, peer, when) in [
            (with([(0, done("w")), (1, done("v"))]), 1, 0, "at the end"),
            (with([(0, step(2, Some("b"))), (1, step(2, Some("c")))]), 1, 0, "after step 2"),
            // the other rank is ahead
            (with([(1, step(3, Some("b"))), (0, step(3, Some("c")))]), 0, 1, "after step 3"),
        ] {
            let text =
                format!("rank {rank} does not hold the weights of rank {peer} {when}: not one model was trained");
            assert_eq!(seen(said), ("ranks-apart".to_owned(), text));
        }
        let own = with([(0, done("w")), (1, done("v"))]);
        assert_eq!(
            watched(Arm::Together, own),
            TrialEnd::Completed,
            "ranks that exchange nothing train models of their own"
        );
    }
}
