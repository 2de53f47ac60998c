//! What the tests of the binary share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The binary with a smallest training: two ranks of llama-tiny.
pub fn train(out: &Path, steps: usize) -> Command {
    let mut command = rigscale();
    command.args(["train", "--device", "cpu", "--world", "2", "--model", "llama-tiny", "--batch", "1"]);
    command.args(["--context", "32", "--steps", &steps.to_string(), "-o"]).arg(out);
    command
}

/// The binary under test.
pub fn rigscale() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished command said on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a finished command said on stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition; panics with `what` if it does not come true in time.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
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
pub fn ranks(launcher: &Child) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", launcher.id());
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut ranks: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    ranks.retain(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("rank"));
    ranks.sort_unstable();
    ranks
}

/// True while the process exists and is no zombie.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill -s {name} {pid}");
}

/// Lines of a rank file, 0 where there is none.
pub fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// The rank file of the training's only trial.
pub fn rank_file(out: &Path, rank: usize) -> PathBuf {
    out.join(format!("runs/launch-1_ddp-2/rank-{rank}.jsonl"))
}
