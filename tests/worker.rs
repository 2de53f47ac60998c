//! Workers that another launcher starts: their places from the launchers' variables, how they meet, and how a job ends.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

mod common;
#[cfg(feature = "mpi")]
#[path = "common/stand_in.rs"]
mod stand_in;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::{rigscale, stderr};
use rigscale::record::{RankFile, read_rank_file};

/// Bound on everything that should take moments.
const SOON: Duration = Duration::from_secs(30);

/// A worker of a smallest training, told its place by `variables` alone.
fn worker(out: &Path, steps: usize, variables: &[(&str, String)]) -> Command {
    let mut command = rigscale();
    for (name, _) in std::env::vars() {
        if ["SLURM_", "OMPI_", "PMI", "TORCHELASTIC_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.args(workload(steps)).arg("-o").arg(out).envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

fn workload(steps: usize) -> Vec<String> {
    let text = format!("worker --device cpu --model llama-tiny --batch 1 --context 32 --steps {steps}");
    text.split(' ').map(str::to_owned).collect()
}

/// What torchrun sets for two ranks of one host.
fn torchrun(rank: usize, port: u16) -> Vec<(&'static str, String)> {
    let pairs = [("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", 2)];
    let mut all: Vec<(&str, String)> = pairs.map(|(name, value)| (name, value.to_string())).to_vec();
    all.push(("MASTER_ADDR", "127.0.0.1".into()));
    all.push(("MASTER_PORT", port.to_string()));
    all.push(("TORCHELASTIC_RUN_ID", "none".into()));
    all.push(("TORCHELASTIC_USE_AGENT_STORE", "True".into()));
    all
}

/// What srun sets for two tasks of one node.
fn slurm(rank: usize) -> Vec<(&'static str, String)> {
    let names = ["SLURM_PROCID", "SLURM_LOCALID"].map(|name| (name, rank.to_string()));
    let mut all = names.to_vec();
    all.extend([("SLURM_NTASKS", "2".into()), ("SLURM_NNODES", "1".into()), ("SLURM_JOB_ID", "4711".into())]);
    all.push(("SLURM_STEP_NODELIST", "node[07]".into()));
    all
}

/// Two workers at work for minutes, once both have done some steps.
fn running(out: &Path) -> [Child; 2] {
    let children = [0, 1].map(|rank| worker(out, 1_000_000, &torchrun(rank, 29_500)).spawn().unwrap());
    wait_for("some steps", || (0..2).all(|rank| lines(&rank_path(out, 2, rank)) > 10).then_some(()));
    children
}

fn rank_path(out: &Path, world: usize, rank: usize) -> PathBuf {
    out.join(format!("runs/launch-1_ddp-{world}/rank-{rank}.jsonl"))
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {SOON:?} in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The rank's process of a worker.
fn rank_of(worker: &Child) -> u32 {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", worker.id())).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}

fn nobody_left(pids: &[u32]) {
    let lives = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
    };
    wait_for("the end of every rank", || (!pids.iter().any(lives)).then_some(()));
}

fn losses(files: &[RankFile]) -> Vec<Vec<f64>> {
    files.iter().map(|file| file.steps.iter().map(|step| step.loss).collect()).collect()
}

fn rank_files(out: &Path, world: usize) -> Vec<RankFile> {
    (0..world).map(|rank| read_rank_file(&rank_path(out, world, rank)).unwrap()).collect()
}

/// Both workers' outcomes; both must have come to their end.
fn outcomes(children: [Child; 2]) -> [Output; 2] {
    children.map(|child| child.wait_with_output().unwrap())
}

#[test]
fn torchrun_starts_workers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let children = [1, 0].map(|rank| worker(&out, 30, &torchrun(rank, 29_500)).spawn().unwrap());
    let [other, first] = outcomes(children);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert_eq!(other.status.code(), Some(0), "{}", stderr(&other));
    assert!(String::from_utf8_lossy(&first.stdout).contains("weights agree"));
    assert!(other.stdout.is_empty() && other.stderr.is_empty(), "rank 0 speaks for all");
    assert!(!out.join("meeting.json").exists());
    let files = rank_files(&out, 2);
    assert!(files.iter().all(|file| file.head.communicator == "shm" && file.steps.len() == 30));
    assert_eq!(files[0].head.epoch_s, files[1].head.epoch_s, "one host has one clock");
    // the same training as our own launcher's
    let own = folder.path().join("own");
    let trained = common::train(&own, 30).output().unwrap();
    assert_eq!(trained.status.code(), Some(0), "{}", stderr(&trained));
    assert_eq!(losses(&files), losses(&rank_files(&own, 2)));
}

#[test]
fn workers_of_one_host_meet_on_its_loopback_interface_whatever_was_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    // somebody who knows the name of the job, and could be taken for rank 0
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let meet = other.local_addr().unwrap().to_string();
    let start = |rank| worker(&out, 30, &torchrun(rank, 29_500)).args(["--meet", &meet]).spawn().unwrap();
    let [first, second] = outcomes([0, 1].map(start));
    assert_eq!((first.status.code(), second.status.code()), (Some(0), Some(0)), "{}", stderr(&first));
    assert!(stderr(&first).contains("--meet is not needed: all ranks are on this host"), "{}", stderr(&first));
    assert!(other.accept().is_err(), "nobody spoke to whoever listens there");
}

#[test]
#[ignore = "needs mount namespaces"]
fn a_worker_that_cannot_keep_its_rank_s_file_tells_rank_0_why() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let first = worker(&out, 30, &slurm(0)).spawn().unwrap();
    wait_for("the notice", || out.join("meeting.json").exists().then_some(()));
    fs::create_dir_all(out.join("runs")).unwrap();
    let mut second = Command::new("unshare");
    second.args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o ro none \"$RUNS\" && exec \"$@\"", "sh"]);
    second.arg(env!("CARGO_BIN_EXE_rigscale")).args(workload(30)).arg("-o").arg(&out);
    second.env("RUNS", out.join("runs")).envs(slurm(1)).env("NO_COLOR", "1");
    let second = second.output().unwrap();
    let first = first.wait_with_output().unwrap();
    let said = stderr(&first);
    assert_eq!((first.status.code(), second.status.code()), (Some(1), Some(1)), "{said}\n{}", stderr(&second));
    assert!(said.contains("rank 1 of launch-1_ddp-2 could not write its record"), "{said}");
    assert!(said.contains("could not create the folder"), "{said}");
    assert!(stderr(&second).contains("could not create the folder"), "{}", stderr(&second));
    let kept = fs::read_to_string(out.join("launch.json")).unwrap();
    assert!(kept.contains("not-launched") && kept.contains("rank 1 of launch-1_ddp-2"), "{kept}");
}

#[test]
fn srun_starts_workers_and_a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let children = [0, 1].map(|rank| worker(&out, 30, &slurm(rank)).arg("--json").spawn().unwrap());
    let [first, other] = outcomes(children);
    assert_eq!((first.status.code(), other.status.code()), (Some(0), Some(0)), "{}", stderr(&first));
    let record: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!((&record["trainings"][0]["world"], &record["trainings"][0]["ranks_agree"]), (&2.into(), &true.into()));
    let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(6), "{}", stderr(&analyzed));
    fs::remove_file(rank_path(&out, 2, 1)).unwrap();
    let analyzed = rigscale().arg("analyze").arg(&out).output().unwrap();
    let said = String::from_utf8_lossy(&analyzed.stdout).into_owned();
    assert!(said.contains("no file of rank 1"), "{said}");
}

#[test]
fn a_place_that_cannot_be_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let refused = |variables: &[(&str, String)], more: &[&str]| {
        let output = worker(&out, 30, variables).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(!out.exists(), "nothing was begun");
        stderr(&output)
    };
    assert!(refused(&[], &[]).contains("no launcher has started this process"));
    let mut two = slurm(0);
    two.extend(torchrun(1, 29_500).into_iter().filter(|(name, _)| !name.starts_with("TORCHELASTIC")));
    assert!(refused(&two, &[]).contains("torchrun says that this is rank 1 of 2, Slurm says rank 0 of 2"));
    assert!(refused(&torchrun(1, 29_500), &["--world", "2"]).contains("--world: torchrun has started 2 ranks"));
    assert!(refused(&torchrun(1, 29_500), &["--meet", "a b:1"]).contains("--meet=\"a b:1\" should be HOST:PORT"));
    let mut spread = torchrun(0, 29_500);
    spread.push(("LOCAL_WORLD_SIZE", "1".into()));
    assert!(refused(&spread, &[]).contains("build rigscale with `--features mpi`"));
}

#[test]
fn workers_with_other_flags_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let first = worker(&out, 30, &torchrun(0, 29_500)).spawn().unwrap();
    let other = worker(&out, 31, &torchrun(1, 29_500)).output().unwrap();
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("rank 1 was started with other flags than rank 0"), "{}", stderr(&other));
    // a launcher ends the rest of a job of which one process has failed
    signal(first.id(), "TERM");
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(130));
    assert!(!out.join("meeting.json").exists());
}

#[test]
fn a_killed_worker_ends_the_job_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut children = running(&out);
    let ranks = [rank_of(&children[0]), rank_of(&children[1])];
    children[1].kill().unwrap();
    let killed = Instant::now();
    let [first, _] = outcomes(children);
    assert!(killed.elapsed() < Duration::from_secs(5), "took {:?}", killed.elapsed());
    assert_eq!(first.status.code(), Some(4));
    let said = stderr(&first);
    assert!(
        said.contains("rank-died") && said.contains("rank 1 is gone: the connection to its worker ended"),
        "{said}"
    );
    nobody_left(&ranks);
    let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(4), "{}", stderr(&analyzed));
}

#[test]
fn a_killed_rank_ends_both_workers_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let children = running(&folder.path().join("run"));
    let ranks = [rank_of(&children[0]), rank_of(&children[1])];
    signal(ranks[0], "KILL");
    let [first, other] = outcomes(children);
    assert_eq!((first.status.code(), other.status.code()), (Some(4), Some(4)));
    assert!(stderr(&first).contains("rank 0 was killed (signal 9"), "{}", stderr(&first));
    nobody_left(&ranks);
}

#[test]
fn workers_outlive_rank_0_only_to_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut children = running(&folder.path().join("run"));
    let ranks = [rank_of(&children[0]), rank_of(&children[1])];
    children[0].kill().unwrap();
    let [_, other] = outcomes(children);
    assert_eq!(other.status.code(), Some(4));
    let said = stderr(&other);
    assert!(said.contains("rank 1: the connection to rank 0 ended"), "{said}");
    nobody_left(&ranks);
}

#[test]
fn a_stopped_rank_is_a_hang_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let children = running(&folder.path().join("run"));
    let ranks = [rank_of(&children[0]), rank_of(&children[1])];
    signal(ranks[1], "STOP");
    let [first, other] = outcomes(children);
    assert_eq!((first.status.code(), other.status.code()), (Some(5), Some(5)), "{}", stderr(&first));
    assert!(stderr(&first).contains("hang-rank") && stderr(&first).contains("rank 1"), "{}", stderr(&first));
    nobody_left(&ranks);
}

#[test]
fn a_job_that_its_launcher_ends_leaves_a_readable_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let children = running(&out);
    let ranks = [rank_of(&children[0]), rank_of(&children[1])];
    children.iter().for_each(|child| signal(child.id(), "TERM"));
    // launchers repeat themselves
    children.iter().for_each(|child| signal(child.id(), "TERM"));
    let begun = Instant::now();
    let [first, other] = outcomes(children);
    assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    assert_eq!((first.status.code(), other.status.code()), (Some(130), Some(130)), "{}", stderr(&first));
    nobody_left(&ranks);
    assert!(rank_files(&out, 2).iter().all(|file| file.steps.len() > 3));
    let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(6), "{}", stderr(&analyzed));
}

/// `mpirun`, which refuses root unless told twice.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    command.args(["--oversubscribe"]);
    command
}

#[test]
#[ignore = "needs Open MPI"]
fn mpirun_starts_workers_beside_each_other_without_the_feature() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = mpirun()
        .args(["-np", "2", env!("CARGO_BIN_EXE_rigscale")])
        .args(workload(30))
        .arg("-o")
        .arg(&out)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(rank_files(&out, 2).iter().all(|file| file.head.communicator == "shm"));
}

/// Two hosts, as far as Open MPI can see: network namespaces with names of their own, joined by a cable.
#[cfg(feature = "mpi")]
mod hosts {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Gone with its namespaces, and everyone in them, when dropped.
    pub(super) struct Hosts {
        names: [String; 2],
        folder: tempfile::TempDir,
    }

    pub(super) const ADDRESSES: [&str; 2] = ["10.231.7.1", "10.231.7.2"];

    fn ip(arguments: &str) -> Output {
        Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed")
    }

    impl Hosts {
        pub(super) fn new() -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let names = ["a", "b"].map(|host| format!("rig-{tag}-{host}"));
            let hosts = Self { names, folder: tempfile::tempdir().unwrap() };
            let [a, b] = &hosts.names;
            let cable = format!("link add cable netns {a} type veth peer name cable netns {b}");
            for command in [format!("netns add {a}"), format!("netns add {b}"), cable] {
                let done = ip(&command);
                assert!(done.status.success(), "ip {command}: {}: this test needs root", stderr(&done));
            }
            for (host, address) in [(a, ADDRESSES[0]), (b, ADDRESSES[1])] {
                for command in [
                    format!("-n {host} addr add {address}/24 dev cable"),
                    format!("-n {host} link set lo up"),
                    format!("-n {host} link set cable up"),
                ] {
                    assert!(ip(&command).status.success(), "ip {command}");
                }
            }
            // what mpirun uses in place of ssh: its first argument is the host
            let enter = format!("#!/bin/sh\nshift\nexec ip netns exec {b} unshare --uts sh -c \"hostname {b}; $*\"\n");
            fs::write(hosts.remote_shell(), enter).unwrap();
            let done = Command::new("chmod").arg("+x").arg(hosts.remote_shell()).status().unwrap();
            assert!(done.success());
            hosts
        }

        fn remote_shell(&self) -> PathBuf {
            self.folder.path().join("enter")
        }

        pub(super) fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// What a host calls itself.
        pub(super) fn name(&self, host: usize) -> &str {
            &self.names[host]
        }

        /// A program on the first host.
        pub(super) fn on_first(&self, program: &str) -> Command {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.names[0], program]);
            command
        }

        /// Takes the cable out.
        pub(super) fn unplug(&self) {
            assert!(ip(&format!("-n {} link set cable down", self.names[0])).status.success());
        }

        /// Four workers, two on each host, in one folder, or with `apart` in one on each host, named after it. Each leaves
        /// its exit code beside it.
        pub(super) fn workers(&self, out: &Path, steps: usize, apart: bool) -> Command {
            let mut command = Command::new("ip");
            let host = &self.names[0];
            command.args(["netns", "exec", host, "unshare", "--uts", "sh", "-c"]);
            command.args([&format!("hostname {host}; exec \"$@\""), "sh", "mpirun"]);
            command.args(["--allow-run-as-root", "--oversubscribe", "-np", "4", "-H"]);
            command.arg(format!("{}:2,{}:2", ADDRESSES[0], ADDRESSES[1]));
            command.args(["--mca", "plm_rsh_agent"]).arg(self.remote_shell());
            for part in ["btl_tcp_if_include", "oob_tcp_if_include"] {
                command.args(["--mca", part, "10.231.7.0/24"]);
            }
            let keep_code = "trap : TERM; [ -z \"$APART\" ] || set -- \"$@\" -o \"$APART/$(hostname)\"; \"$@\"; code=$?; \
                             echo $code > \"$FOLDER/code-$OMPI_COMM_WORLD_RANK\"; exit $code";
            command.args(["-x", "FOLDER", "-x", "APART", "sh", "-c", keep_code, "sh", env!("CARGO_BIN_EXE_rigscale")]);
            command.args(workload(steps)).args(["--meet", ADDRESSES[0]]);
            if apart {
                command.env("APART", out);
            } else {
                command.env("APART", "").arg("-o").arg(out);
            }
            command.env("FOLDER", self.folder.path()).env("NO_COLOR", "1");
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command
        }

        /// The exit code of a rank's worker.
        pub(super) fn code(&self, rank: usize) -> Option<i32> {
            fs::read_to_string(self.path(&format!("code-{rank}"))).ok()?.trim().parse().ok()
        }

        /// Everyone on a host.
        pub(super) fn processes(&self, host: usize) -> Vec<u32> {
            let listed = String::from_utf8(ip(&format!("netns pids {}", self.names[host])).stdout).unwrap();
            listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
        }
    }

    impl Drop for Hosts {
        fn drop(&mut self) {
            for host in 0..2 {
                for pid in self.processes(host) {
                    let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
                }
                let _ = ip(&format!("netns del {}", self.names[host]));
            }
        }
    }
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn two_hosts_train_as_one_does() {
    let hosts = hosts::Hosts::new();
    let out = hosts.path("hosts");
    let output = hosts.workers(&out, 30, false).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("yes"), "weights agree: {}", stderr(&output));
    let over_mpi = rank_files(&out, 4);
    assert!(over_mpi.iter().all(|file| file.head.communicator == "mpi"));
    let one = hosts.path("one");
    let output = mpirun()
        .args(["-np", "4", env!("CARGO_BIN_EXE_rigscale")])
        .args(workload(30))
        .arg("-o")
        .arg(&one)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let over_shm = rank_files(&one, 4);
    assert!(over_shm.iter().all(|file| file.head.communicator == "shm"));
    // the optimizer's state shared among the ranks of both hosts
    let shared = hosts.path("shared");
    let output = hosts.workers(&shared, 30, false).args(["--zero", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for other in [over_shm, rank_files(&shared, 4)] {
        for (ours, theirs) in losses(&over_mpi).iter().flatten().zip(losses(&other).iter().flatten()) {
            // f32 sums in another order
            assert!((ours - theirs).abs() <= 1e-5 * theirs, "{ours} and {theirs}");
        }
    }
}

/// Ends the ranks of the second host in the middle, by `kill`, and looks at what is left.
#[cfg(feature = "mpi")]
fn a_host_is_lost(kill: impl Fn(&hosts::Hosts)) {
    let hosts = hosts::Hosts::new();
    let out = hosts.path("hosts");
    let job = hosts.workers(&out, 1_000_000, false).spawn().unwrap();
    wait_for("some steps", || (lines(&rank_path(&out, 4, 3)) > 60).then_some(()));
    kill(&hosts);
    let killed = Instant::now();
    let output = job.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(15), "took {:?}", killed.elapsed());
    let said = stderr(&output);
    assert!(!output.status.success(), "{said}");
    assert_eq!(hosts.code(0), Some(4), "{said}");
    assert!(said.contains("fault rank-died: rank 2 ") || said.contains("fault rank-died: rank 3 "), "{said}");
    let left: Vec<u32> = (0..2).flat_map(|host| hosts.processes(host)).collect();
    assert!(left.is_empty(), "{left:?}");
    for rank in 0..4 {
        assert!(!read_rank_file(&rank_path(&out, 4, rank)).unwrap().steps.is_empty(), "complete lines are kept");
    }
    let analyzed = rigscale().args(["analyze", "--quiet"]).arg(&out).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(4), "{}", stderr(&analyzed));
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn a_host_killed_in_the_middle_ends_the_job() {
    a_host_is_lost(|hosts| hosts.processes(1).iter().for_each(|pid| signal(*pid, "KILL")));
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn workers_of_one_host_killed_in_the_middle_end_the_job() {
    a_host_is_lost(|hosts| {
        let is_worker = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
                words[0].ends_with(b"rigscale") && words[1] == b"worker"
            })
        };
        hosts.processes(1).iter().filter(|pid| is_worker(pid)).for_each(|pid| signal(*pid, "KILL"));
    });
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn a_host_that_answers_nothing_is_lost_and_not_waited_for() {
    let hosts = hosts::Hosts::new();
    let out = hosts.path("hosts");
    let mut job = hosts.workers(&out, 1_000_000, false).spawn().unwrap();
    wait_for("some steps", || (lines(&rank_path(&out, 4, 3)) > 60).then_some(()));
    hosts.unplug();
    // the limit on a step is 15 s, after which it would be a hang
    let codes =
        wait_for("the end of every worker", || (0..4).map(|rank| hosts.code(rank)).collect::<Option<Vec<i32>>>());
    assert_eq!(codes, [4; 4]);
    signal(job.id(), "KILL");
    job.wait().unwrap();
    let launched = fs::read_to_string(out.join("launch.json")).unwrap();
    assert!(launched.contains("rank-died") && launched.contains("the connection to its worker ended"), "{launched}");
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn hosts_that_share_no_files_compare_what_their_ranks_hold() {
    let hosts = hosts::Hosts::new();
    let out = hosts.path("apart");
    let output = hosts.workers(&out, 30, true).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("yes"), "{shown}");
    assert!(stderr(&output).contains("the files of rank 2, 3 are not in"), "{}", stderr(&output));
    let weights = |host: usize, rank: usize| {
        let file = read_rank_file(&rank_path(&out.join(hosts.name(host)), 4, rank)).unwrap();
        file.end.unwrap().parameters_sha256.unwrap()
    };
    assert_eq!(weights(0, 0), weights(1, 3));
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs network namespaces"]
fn torchrun_s_workers_of_two_hosts_meet_at_its_address_without_mpi() {
    let hosts = hosts::Hosts::new();
    // a GPU each, as far as a driver can say that computes nothing: what ranks say of it must reach rank 0's host
    let libraries = hosts.path("libraries");
    fs::create_dir(&libraries).unwrap();
    stand_in::library(&libraries, "libcuda.so.1", "driver.rs", "", &stand_in::one_gpu(9, 0));
    let start = |rank: usize| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", hosts.name(rank), env!("CARGO_BIN_EXE_rigscale"), "worker", "--device", "cuda"]);
        command.args(["--model", "llama-tiny", "--steps", "30", "-o"]).arg(hosts.path(&format!("run-{rank}")));
        command.envs(torchrun(rank, 29_500)).env("LOCAL_RANK", "0").env("LOCAL_WORLD_SIZE", "1");
        command.env("MASTER_ADDR", hosts::ADDRESSES[0]).env("RIGSCALE_LIBRARY_PATH", &libraries);
        command.env("RIGSCALE_CACHE", hosts.path("cache")).env("NO_COLOR", "1");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let [first, second] = outcomes([0, 1].map(start));
    let said = stderr(&first);
    assert_eq!((first.status.code(), second.status.code()), (Some(4), Some(4)), "{said}\n{}", stderr(&second));
    assert!(said.contains("rank-failed: rank "), "{said}");
    let plan = fs::read_to_string(hosts.path("run-0").join("plan.yaml")).unwrap();
    assert!(plan.contains("torchrun started 2 workers on several hosts"), "{plan}");
    assert!(hosts.path("run-1").join("runs/launch-1_ddp-2").exists(), "the other host was told what to do");
}

/// What mpirun of Open MPI sets for the first of two ranks on two hosts.
#[cfg(feature = "mpi")]
fn first_of_two_hosts() -> Vec<(&'static str, String)> {
    let all = [("RANK", 0), ("SIZE", 2), ("LOCAL_RANK", 0), ("LOCAL_SIZE", 1)];
    let names =
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    names.into_iter().zip(all).map(|(name, (_, value))| (name, value.to_string())).collect()
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn an_mpi_that_counts_other_ranks_than_the_launcher_of_two_hosts_is_refused() {
    let hosts = hosts::Hosts::new();
    let out = hosts.path("run");
    let mut command = hosts.on_first(env!("CARGO_BIN_EXE_rigscale"));
    command.args(workload(30)).args(["--meet", hosts::ADDRESSES[0], "-o"]).arg(&out).envs(first_of_two_hosts());
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("MPI counts 1 rank, Open MPI started 2: use the mpirun of the MPI"), "{said}");
    assert!(fs::read_to_string(out.join("launch.json")).unwrap().contains("MPI counts 1 rank"));
}

/// A worker whose rank waits for MPI to bring it together with another, which never comes: what it did after `end`.
#[cfg(feature = "mpi")]
fn while_mpi_joins(end: impl Fn(u32, u32)) -> (Option<i32>, String) {
    let hosts = hosts::Hosts::new();
    let (out, code, pid) = (hosts.path("run"), hosts.path("code"), hosts.path("pid"));
    // a shell that is signalled stops waiting, though what it waits for lives on
    let script = "[ $OMPI_COMM_WORLD_RANK = 0 ] || exec sleep 100; trap : TERM; export OMPI_COMM_WORLD_LOCAL_SIZE=1; \
                  \"$@\" 2> \"$SAID\" & echo $! > \"$PID.new\"; mv \"$PID.new\" \"$PID\"; wait $!; code=$?; \
                  while kill -0 $! 2> /dev/null; do wait $!; code=$?; done; \
                  echo $code > \"$CODE.new\"; mv \"$CODE.new\" \"$CODE\"";
    let mut job = hosts.on_first("mpirun");
    job.args(["--allow-run-as-root", "--oversubscribe", "-np", "2", "sh", "-c", script, "sh"]);
    job.arg(env!("CARGO_BIN_EXE_rigscale")).args(workload(30));
    job.args(["--meet", hosts::ADDRESSES[0], "-o"]).arg(&out);
    job.env("CODE", &code).env("PID", &pid).env("SAID", hosts.path("said")).env("NO_COLOR", "1");
    let mut job = job.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let worker = wait_for("the worker", || number(&pid));
    let rank = wait_for("its rank", || {
        let children = fs::read_to_string(format!("/proc/{worker}/task/{worker}/children")).ok()?;
        let rank = children.split_whitespace().next()?.parse::<u32>().ok()?;
        // it has joined MPI as far as it can: the library is loaded and has threads
        (fs::read_dir(format!("/proc/{rank}/task")).ok()?.count() > 2).then_some(rank)
    });
    end(worker, rank);
    let code = wait_for("the worker's end", || number(&code));
    nobody_left(&[rank]);
    job.kill().unwrap();
    job.wait().unwrap();
    (i32::try_from(code).ok(), fs::read_to_string(hosts.path("said")).unwrap())
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn a_worker_that_is_ended_while_mpi_joins_hosts_was_interrupted() {
    let (code, said) = while_mpi_joins(|worker, _| signal(worker, "TERM"));
    assert_eq!(code, Some(130), "{said}");
}

#[cfg(feature = "mpi")]
#[test]
#[ignore = "needs Open MPI and network namespaces"]
fn a_rank_that_dies_while_mpi_joins_hosts_is_named() {
    let (code, said) = while_mpi_joins(|_, rank| signal(rank, "KILL"));
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("rank-died: rank 0: its process ended while ranks met"), "{said}");
}
