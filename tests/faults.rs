//! What a killed, stopped or interrupted run leaves behind: a named rank, an exit code, complete records, no orphan.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{rigscale, stderr, train};
use rigscale::record::{EndReason, read_rank_file};

const SOON: Duration = Duration::from_secs(30);

/// A training that would last for minutes, started, with its two ranks.
fn running(out: &Path) -> (Child, Vec<u32>) {
    let child = train(out, 1_000_000).spawn().unwrap();
    // before its trial, the training times a step with ranks of its own
    wait_for("the trial", SOON, || out.join("runs/launch-1_ddp-2").exists().then_some(()));
    let ranks = wait_for("two ranks", SOON, || Some(ranks(&child)).filter(|ranks| ranks.len() == 2));
    (child, ranks)
}

fn nobody_left(ranks: &[u32]) {
    wait_for("the end of every rank", Duration::from_secs(2), || ranks.iter().all(|pid| !lives(*pid)).then_some(()));
}

/// Waits for a condition; panics with `what` if it does not come true in time.
fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The rank processes of a launcher, by rank: its children, in the order in which they were started.
fn ranks(launcher: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", launcher.id());
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut ranks: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    ranks.retain(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("rank"));
    ranks.sort_unstable();
    ranks
}

/// True while the process exists and is no zombie.
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

/// Sends a signal by name.
fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill -s {name} {pid}");
}

/// Lines of a rank file, 0 where there is none.
fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// The rank file of the training's only trial.
fn rank_file(out: &Path, rank: usize) -> PathBuf {
    out.join(format!("runs/launch-1_ddp-2/rank-{rank}.jsonl"))
}

#[test]
fn a_killed_rank_ends_the_run_and_is_named_at_any_moment() {
    for (victim, after_lines) in [(1, 0), (0, 1), (1, 2), (0, 40)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let (child, pids) = running(&out);
        wait_for("some records", SOON, || (lines(&rank_file(&out, victim)) >= after_lines).then_some(()));
        signal(pids[victim], "KILL");
        let killed = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert!(killed.elapsed() < Duration::from_secs(5), "took {:?}", killed.elapsed());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains("rank-died") && said.contains(&format!("rank {victim} was killed (signal 9")), "{said}");
        nobody_left(&pids);
        for rank in 0..2 {
            let path = rank_file(&out, rank);
            if path.exists() {
                let file = read_rank_file(&path).unwrap();
                assert!(rank != victim || file.end.is_none(), "a killed rank has no end line");
            }
        }
        let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
        assert_eq!(analyzed.status.code(), Some(4), "{}", stderr(&analyzed));
    }
}

#[test]
fn a_stopped_rank_is_a_hang_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (child, pids) = running(&out);
    wait_for("some records", SOON, || (lines(&rank_file(&out, 0)) > 10).then_some(()));
    signal(pids[1], "STOP");
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("hang-rank") && said.contains("rank 1"), "{said}");
    nobody_left(&pids);
}

#[test]
fn an_interrupt_ends_everything_within_two_seconds_and_leaves_a_readable_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (child, pids) = running(&out);
    wait_for("some records", SOON, || (lines(&rank_file(&out, 1)) > 10).then_some(()));
    let begun = Instant::now();
    signal(child.id(), "INT");
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "took {:?}", begun.elapsed());
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    nobody_left(&pids);
    for rank in 0..2 {
        let file = read_rank_file(&rank_file(&out, rank)).unwrap();
        assert_eq!(file.end.map(|end| end.reason), Some(EndReason::Interrupted));
    }
    let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(6), "{}", stderr(&analyzed));
}

#[test]
fn a_launcher_that_was_stopped_itself_accuses_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (mut child, pids) = running(&out);
    wait_for("some records", SOON, || (lines(&rank_file(&out, 0)) > 10).then_some(()));
    signal(child.id(), "STOP");
    // longer than any rank may take for a step
    thread::sleep(Duration::from_secs(17));
    let before = lines(&rank_file(&out, 0));
    signal(child.id(), "CONT");
    wait_for("more records", SOON, || (lines(&rank_file(&out, 0)) > before + 50).then_some(()));
    assert!(child.try_wait().unwrap().is_none(), "the training goes on");
    signal(child.id(), "INT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    nobody_left(&pids);
}

#[test]
fn a_dead_rank_is_named_in_silence_and_in_json_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let child = train(&out, 1_000_000).args(["--quiet", "--json"]).spawn().unwrap();
    wait_for("the trial", SOON, || out.join("runs/launch-1_ddp-2").exists().then_some(()));
    let pids = wait_for("two ranks", SOON, || Some(ranks(&child)).filter(|ranks| ranks.len() == 2));
    signal(pids[0], "KILL");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("rank-died"), "{}", stderr(&output));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["finding"]["code"], "rank-died");
}

#[test]
fn a_slow_step_is_no_hang() {
    let folder = tempfile::tempdir().unwrap();
    let mut training = train(&folder.path().join("run"), 2);
    // 500 micro-steps make a step of seconds where a single one takes milliseconds
    let output = training.args(["--accumulate", "500"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn ranks_die_with_their_launcher() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, pids) = running(&folder.path().join("run"));
    child.kill().unwrap();
    child.wait().unwrap();
    nobody_left(&pids);
}

#[test]
#[ignore = "needs mount namespaces"]
fn a_disk_that_fills_up_is_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let out = disk.join("run");
    let training = train(&out, 1_000_000);
    let words: Vec<_> = std::iter::once(training.get_program()).chain(training.get_args()).collect();
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=256k none \"$1\" && shift && \"$@\"; code=$?; ls -R \"$(dirname \"$PWD\")\" >/dev/null; exit $code", "sh"])
        .arg(&disk)
        .args(&words)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("could not write") && said.contains("No space left"), "{said}");
}
