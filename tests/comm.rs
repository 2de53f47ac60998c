//! Communicators: the conformance suite with threads and with real processes, and what happens when a rank is killed,
//! stopped, or brings something else.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod conformance;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use conformance::{LENGTHS, conforms};
use proptest::prelude::*;
use rigscale::comm::{CommError, Communicator, Shm, Solo};
use rigscale::device::{Floats, SharedMemory, end_with_parent};
use rigscale::units::Seconds;

/// Longer than any test may take: a fault that is noticed only by its limit fails its test.
const LONG: Seconds = Seconds(120.0);
/// A rank that is told to meet nobody for so long is late.
const SHORT: Seconds = Seconds(0.5);
/// Bound on everything a test waits for that should take milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// What a rank process is told: `descriptor rank world parent role`.
const ROLE: &str = "RIGSCALE_TEST_RANK";

#[test]
fn solo_conforms() {
    conforms(&mut Solo, &mut LENGTHS.map(Floats::zeros)).unwrap();
}

/// Runs `role` as each rank of `world`, in threads of this process; gives what each returned.
fn in_threads<T: Send>(
    world: usize,
    lengths: &[usize],
    limit: Seconds,
    role: impl Fn(Shm, Vec<Floats>) -> T + Sync,
) -> Vec<T> {
    let memory = Shm::create(world, lengths).unwrap();
    std::thread::scope(|scope| {
        let start = |rank| {
            let (memory, role) = (&memory, &role);
            scope.spawn(move || {
                let (comm, buckets) = Shm::join(memory.raw_fd(), rank, world, lengths, limit).unwrap();
                role(comm, buckets)
            })
        };
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn shm_conforms_with_threads() {
    for world in 1..=4 {
        for outcome in in_threads(world, &LENGTHS, LONG, |mut comm, mut buckets| conforms(&mut comm, &mut buckets)) {
            outcome.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn shm_sums_any_lengths_in_any_world(world in 1..5_usize, lengths in prop::collection::vec(0..9000_usize, 1..6)) {
        let sums = in_threads(world, &lengths, LONG, |mut comm, mut buckets| {
            for (number, bucket) in buckets.iter_mut().enumerate() {
                bucket.iter_mut().enumerate().for_each(|(place, element)| {
                    *element = ((comm.rank() + 1) * (place % 97 + number)) as f32;
                });
            }
            comm.all_reduce_sum(&mut buckets.iter_mut().collect::<Vec<_>>()).unwrap();
            buckets.iter().map(|bucket| bucket.to_vec()).collect::<Vec<_>>()
        });
        let ranks = world * (world + 1) / 2;
        for buckets in sums {
            for (number, bucket) in buckets.iter().enumerate() {
                prop_assert_eq!(bucket.len(), lengths[number]);
                for (place, &element) in bucket.iter().enumerate() {
                    prop_assert_eq!(element, (ranks * (place % 97 + number)) as f32);
                }
            }
        }
    }
}

#[test]
fn a_barrier_holds_until_the_last_rank_has_come() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let come = AtomicUsize::new(0);
    let (world, turns) = (4, 50);
    in_threads(world, &[1], LONG, |mut comm, _buckets| {
        for turn in 1..=turns {
            come.fetch_add(1, Ordering::SeqCst);
            comm.barrier().unwrap();
            assert!(come.load(Ordering::SeqCst) >= turn * world, "turn {turn}");
        }
    });
}

#[test]
fn other_lengths_are_named_on_every_rank() {
    // Rank 1 brings the bucket of 7, the others that of 5.
    let outcomes = in_threads(3, &[5, 7], LONG, |mut comm, mut buckets| {
        let bucket = &mut buckets[usize::from(comm.rank() == 1)];
        bucket.fill(1.0);
        let first = comm.all_reduce_sum(&mut [bucket]).unwrap_err();
        let again = comm.barrier().unwrap_err();
        (first, again, bucket.to_vec())
    });
    for (rank, (first, again, bucket)) in outcomes.into_iter().enumerate() {
        let (own, other) = if rank == 1 { (7, 5) } else { (5, 7) };
        let blamed = usize::from(rank != 1);
        for error in [first, again] {
            let CommError::Mismatch { rank: noticed, elements, peer, theirs } = error else { panic!("{error}") };
            assert_eq!((noticed, elements, peer, theirs), (rank, own, blamed, other));
        }
        assert_eq!(bucket, vec![0.0; own], "the buffer is usable, and says nothing");
    }
}

#[test]
fn fewer_buffers_are_a_mismatch() {
    let outcomes = in_threads(2, &[5, 7], LONG, |mut comm, mut buckets| {
        let count = comm.rank() + 1;
        comm.all_reduce_sum(&mut buckets.iter_mut().take(count).collect::<Vec<_>>())
    });
    for outcome in outcomes {
        assert!(matches!(outcome, Err(CommError::Mismatch { .. })), "{outcome:?}");
    }
}

#[test]
fn a_buffer_from_elsewhere_is_refused_and_ends_the_group() {
    let outcomes = in_threads(2, &[5], LONG, |mut comm, mut buckets| {
        let mut heap = Floats::zeros(5);
        let buffer = if comm.rank() == 1 { &mut heap } else { &mut buckets[0] };
        comm.all_reduce_sum(&mut [buffer]).unwrap_err()
    });
    assert!(matches!(outcomes[0], CommError::PeerLeft { rank: 0, peer: 1 }), "{}", outcomes[0]);
    assert!(matches!(outcomes[1], CommError::ForeignBuffer { rank: 1, buffer: 0 }), "{}", outcomes[1]);
}

#[test]
fn a_rank_that_leaves_is_named_at_once() {
    let outcomes = in_threads(3, &[5], LONG, |mut comm, mut buckets| {
        if comm.rank() == 2 {
            return Ok(());
        }
        comm.all_reduce_sum(&mut [&mut buckets[0]])
    });
    for outcome in &outcomes[..2] {
        assert!(matches!(outcome, Err(CommError::PeerLeft { peer: 2, .. })), "{outcome:?}");
    }
}

#[test]
fn a_rank_that_never_joins_is_late() {
    let memory = Shm::create(2, &[5]).unwrap();
    let (mut comm, mut buckets) = Shm::join(memory.raw_fd(), 0, 2, &[5], SHORT).unwrap();
    let error = comm.all_reduce_sum(&mut [&mut buckets[0]]).unwrap_err();
    assert!(matches!(error, CommError::PeerLate { rank: 0, peer: 1, limit: SHORT }), "{error}");
    let begin = Instant::now();
    comm.barrier().unwrap_err();
    assert!(begin.elapsed().as_secs_f64() < SHORT.0, "a failed group refuses at once");
}

#[test]
fn joining_something_else_says_what_is_wrong() {
    let memory = Shm::create(2, &[5, 6]).unwrap();
    let fd = memory.raw_fd();
    let refused = |fd, rank, world, lengths: &[usize]| {
        let error = Shm::join(fd, rank, world, lengths, SHORT).err().expect("must be refused");
        format!("{error}: {}", std::error::Error::source(&error).expect("a cause"))
    };
    assert!(refused(fd, 0, 2, &[5, 7]).contains("bucket 1 has 6 elements, not 7"));
    assert!(refused(fd, 0, 2, &[5]).contains("for 2 ranks of 2 buckets, not 2 of 1"));
    assert!(refused(fd, 0, 3, &[5, 6]).contains("bytes where"));
    assert!(refused(fd, 2, 2, &[5, 6]).contains("rank 2 in a world of 2"));
    assert!(refused(-1, 0, 2, &[5, 6]).contains("could not open"));
    assert!(refused(0, 0, 2, &[5, 6]).contains("could not"), "standard input is no such memory");
    assert!(refused(fd, 0, 0, &[5, 6]).contains("could not size"));
    let joined = Shm::join(fd, 0, 2, &[5, 6], SHORT).unwrap();
    drop(joined);
    assert!(refused(fd, 0, 2, &[5, 6]).contains("the place of rank 0 is taken"));
    for (world, lengths) in [(0, vec![1]), (10_000, vec![1]), (2, vec![usize::MAX / 4])] {
        assert!(Shm::create(world, &lengths).is_err());
    }
}

/// A rank process, killed and reaped if a test ends before it does.
struct Rank {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Rank {
    fn start(memory: &SharedMemory, rank: usize, world: usize, role: &str) -> Self {
        let parent = std::process::id();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_rank_process_plays_its_role", "--nocapture"])
            .env(ROLE, format!("{} {rank} {world} {parent} {role}", memory.raw_fd()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// What the rank says next.
    fn says(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the rank ended without a word");
            if let Some((_, text)) = line.split_once("rank says ") {
                return text.trim_end().to_owned();
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn start_all(memory: &SharedMemory, world: usize, role: &str) -> Vec<Rank> {
    (0..world).map(|rank| Rank::start(memory, rank, world, role)).collect()
}

/// The entry of rank processes. Started by hand it is a world of one.
#[test]
fn a_rank_process_plays_its_role() {
    let say = |text: String| println!("rank says {text}");
    let told = std::env::var(ROLE);
    let Ok(told) = told.as_deref() else {
        let memory = Shm::create(1, &LENGTHS).unwrap();
        let (mut comm, mut buckets) = Shm::join(memory.raw_fd(), 0, 1, &LENGTHS, SHORT).unwrap();
        return conforms(&mut comm, &mut buckets).unwrap();
    };
    let words: Vec<&str> = told.split(' ').collect();
    let [fd, rank, world, parent] = [0, 1, 2, 3].map(|word: usize| words[word].parse::<usize>().unwrap());
    end_with_parent(parent as u32).unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let limit = if words[4] == "loop-short" { SHORT } else { LONG };
    let (mut comm, mut buckets) = Shm::join(fd as i32, rank, world, &LENGTHS, limit).unwrap();
    let outcome = match words[4] {
        "conform" => conforms(&mut comm, &mut buckets),
        // Rank 1, or in the other role rank 0 too, stays away from the second meeting.
        "wait" | "wait-for-two" if rank == 1 || (rank == 0 && words[4] == "wait-for-two") => comm.barrier().map(|()| {
            say("ready".to_owned());
            std::thread::sleep(Duration::from_secs(100));
        }),
        "wait" | "wait-for-two" => comm.barrier().and_then(|()| comm.all_reduce_sum(&mut [&mut buckets[7]])),
        "loop" | "loop-short" => comm.barrier().and_then(|()| {
            say("ready".to_owned());
            loop {
                comm.all_reduce_sum(&mut [&mut buckets[7]])?;
            }
        }),
        role => panic!("no role {role}"),
    };
    say(outcome.map_or_else(|error| error.to_string(), |()| "done".to_owned()));
    drop((comm, buckets));
    assert_eq!(descriptors(), before, "descriptors are left open");
}

#[test]
fn shm_conforms_with_processes() {
    for world in 1..=4 {
        let memory = Shm::create(world, &LENGTHS).unwrap();
        for mut rank in start_all(&memory, world, "conform") {
            assert_eq!(rank.says(), "done");
            assert!(rank.child.wait().unwrap().success());
        }
    }
    let left: Vec<_> = std::fs::read_dir("/dev/shm").into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("rigscale")), "{left:?}");
}

/// Kills rank 1 of 3 and leaves it unreaped, as a launcher that is busy would; the others must name it soon.
fn survivors_name_the_dead(role: &str, survivors: &[usize], delay: Duration) {
    let memory = Shm::create(3, &LENGTHS).unwrap();
    let mut ranks = start_all(&memory, 3, role);
    assert_eq!(ranks[1].says(), "ready");
    std::thread::sleep(delay);
    ranks[1].signal(rustix::process::Signal::KILL);
    let begin = Instant::now();
    for &survivor in survivors {
        let mut words = ranks[survivor].says();
        if words == "ready" {
            words = ranks[survivor].says();
        }
        assert_eq!(words, format!("rank 1 died while rank {survivor} waited for it"));
    }
    assert!(begin.elapsed() < SOON, "noticed after {:?}", begin.elapsed());
}

#[test]
fn a_rank_killed_before_it_comes_is_named_soon() {
    survivors_name_the_dead("wait", &[0, 2], Duration::from_millis(1));
    survivors_name_the_dead("wait", &[0, 2], Duration::from_millis(300));
    // Rank 2 waits for rank 0, which lives, and must still see that rank 1 is dead.
    survivors_name_the_dead("wait-for-two", &[2], Duration::from_millis(300));
}

#[test]
fn a_rank_killed_in_the_middle_is_named_soon() {
    for delay_ms in [0, 7, 40, 133] {
        survivors_name_the_dead("loop", &[0, 2], Duration::from_millis(delay_ms));
    }
}

#[test]
fn a_stopped_rank_is_late_and_learns_that_it_was_given_up() {
    let memory = Shm::create(3, &LENGTHS).unwrap();
    let mut ranks = start_all(&memory, 3, "loop-short");
    for rank in &mut ranks {
        assert_eq!(rank.says(), "ready");
    }
    ranks[2].signal(rustix::process::Signal::STOP);
    let begin = Instant::now();
    for survivor in [0, 1] {
        let words = ranks[survivor].says();
        assert_eq!(words, format!("rank 2 did not arrive within {SHORT} while rank {survivor} waited for it"));
    }
    assert!(begin.elapsed() < SOON, "noticed after {:?}", begin.elapsed());
    ranks[2].signal(rustix::process::Signal::CONT);
    let words = ranks[2].says();
    assert!(words.starts_with("rank ") && words.ends_with(" left while rank 2 waited for it"), "{words}");
}

/// MPI: each test starts this very program again under `mpirun`, as ranks that play a role.
#[cfg(feature = "mpi")]
mod over_mpi {
    use super::*;
    use rigscale::comm::Mpi;
    use rigscale::device::MpiSession;
    use std::process::Output;

    /// What a rank shall do.
    const ROLE: &str = "RIGSCALE_TEST_MPI";

    fn ranks(world: usize, role: &str) -> (Output, Duration) {
        let begin = Instant::now();
        let mut command = Command::new("mpirun");
        command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
        command.args(["--oversubscribe", "-np", &world.to_string()]).arg(std::env::current_exe().unwrap());
        (rank(&mut command, role), begin.elapsed())
    }

    fn rank(command: &mut Command, role: &str) -> Output {
        command.env(ROLE, role).args(["--exact", "over_mpi::mpi_rank", "--ignored", "--nocapture"]);
        command.output().expect("Open MPI is installed")
    }

    fn text(output: &Output) -> String {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    #[test]
    #[ignore = "needs Open MPI, and is a rank of the tests below"]
    fn mpi_rank() {
        let Ok(role) = std::env::var(ROLE) else {
            // started by hand, without mpirun, MPI is a world of one
            let alone = rank(&mut Command::new(std::env::current_exe().unwrap()), "conform");
            return assert!(alone.status.success() && text(&alone).contains("done"), "{}", text(&alone));
        };
        let (session, group) = MpiSession::begin().unwrap();
        assert!(MpiSession::begin().is_err(), "once in a process");
        let limit = if ["conform", "broken"].contains(&role.as_str()) { LONG } else { SHORT };
        let mut comm = Mpi::over(group, limit);
        let mut buckets = LENGTHS.map(Floats::zeros);
        let absent = comm.rank() == 1;
        match role.as_str() {
            "conform" => conforms(&mut comm, &mut buckets).unwrap(),
            "panic" => {
                comm.barrier().unwrap();
                assert!(!absent, "rank 1 panics");
                std::thread::sleep(Duration::from_secs(100));
            }
            "late" if absent => {
                comm.barrier().unwrap();
                // makes no progress for the others, and comes to the end with them
                std::thread::sleep(Duration::from_secs_f64(4.0 * SHORT.0));
                std::process::exit(0);
            }
            "late" => {
                comm.barrier().unwrap();
                buckets[7].fill(1.0);
                let error = comm.all_reduce_sum(&mut [&mut buckets[7]]).unwrap_err();
                assert!(matches!(error, CommError::Late { rank: 0, limit: SHORT }), "{error}");
                assert!(buckets[7].iter().all(|element| *element == 0.0) && buckets[7].len() == LENGTHS[7]);
                let begin = Instant::now();
                assert!(comm.barrier().is_err() && begin.elapsed().as_secs_f64() < SHORT.0, "it stays failed");
                println!("was late");
                std::process::exit(0);
            }
            "broken" if absent => {
                comm.barrier().unwrap();
                std::thread::sleep(Duration::from_secs_f64(8.0 * SHORT.0));
                std::process::exit(0);
            }
            "broken" => {
                comm.barrier().unwrap();
                let breaker = comm.breaker();
                let begin = Instant::now();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs_f64(SHORT.0));
                    breaker();
                });
                for _now_and_later in 0..2 {
                    let error = comm.barrier().unwrap_err();
                    assert_eq!(error.to_string(), "the exchange over MPI was broken off");
                }
                assert!(begin.elapsed().as_secs_f64() >= SHORT.0 && begin.elapsed() < SOON, "{:?}", begin.elapsed());
                println!("was broken off");
                std::process::exit(0);
            }
            "left" => {
                println!("{}", session.end().unwrap_err());
                std::process::exit(0);
            }
            role => panic!("no role {role}"),
        }
        drop(comm);
        session.end().unwrap();
        println!("done");
    }

    #[test]
    #[ignore = "needs Open MPI"]
    fn mpi_conforms_with_processes() {
        for world in 1..=4 {
            let (output, _) = ranks(world, "conform");
            assert!(output.status.success(), "{}", text(&output));
            assert_eq!(text(&output).matches("done").count(), world, "{}", text(&output));
        }
    }

    #[test]
    #[ignore = "needs Open MPI"]
    fn a_rank_that_panics_ends_the_job() {
        let (output, took) = ranks(2, "panic");
        assert_eq!(output.status.code(), Some(101), "{}", text(&output));
        assert!(took < SOON, "took {took:?}");
    }

    #[test]
    #[ignore = "needs Open MPI"]
    fn a_rank_that_stays_away_from_a_sum_is_noticed_within_the_limit() {
        let (output, took) = ranks(2, "late");
        assert!(text(&output).contains("was late") && took < SOON, "{took:?}: {}", text(&output));
    }

    #[test]
    #[ignore = "needs Open MPI"]
    fn a_rank_that_waits_is_broken_off_from_another_thread_and_stays_so() {
        let (output, took) = ranks(2, "broken");
        assert!(text(&output).contains("was broken off") && took < SOON, "{took:?}: {}", text(&output));
    }

    #[test]
    #[ignore = "needs Open MPI"]
    fn mpi_is_not_left_while_its_group_is_in_use() {
        let (output, _) = ranks(1, "left");
        assert!(text(&output).contains("could not leave MPI: its group is still in use"), "{}", text(&output));
    }
}
