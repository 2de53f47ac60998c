//! How fast two rank processes, each on a core of its own, sum floats in shared memory, and how fast one core copies.
//!
//! Prints JSON lines: `{"peer": "shm", "world", "bytes", "samples", "seconds_min", "seconds_median", "bus_bandwidth"}` for each size,
//! with the bus bandwidth 2(N − 1)/N · bytes / seconds, and `{"peer": "copy", …}` for a copy of as many bytes by one
//! core, with bytes / seconds. Sizes in bytes may be given as arguments.
//!
//! The peer to compare with is `scripts/peers/mpi_allreduce.c`, which times in the same way. Before each call every
//! rank writes its buffer, as a backward pass does, so that the bytes have to move between the cores; then all meet,
//! and the call is timed. A sample is the time of the slowest rank. Every sum is verified, outside the timing.
#![expect(clippy::print_stdout, reason = "the output of a benchmark is its lines")]

use std::error::Error;
use std::process::{Child, Command};
use std::time::Instant;

use rigscale::comm::{CommError, Communicator, Shm};
use rigscale::device::{Floats, allowed_cpus, end_with_parent, pin_to};
use rigscale::units::Seconds;

/// What a rank process is told: `descriptor rank cpu parent size,size,…`.
const ROLE: &str = "RIGSCALE_BENCH_RANK";
const SIZE_S: f64 = 1.0;
const SAMPLES_MIN: usize = 20;
const SAMPLES_MAX: usize = 4000;
const WARM_UP: usize = 20;
const WORLD: usize = 2;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    if let Ok(role) = std::env::var(ROLE) {
        return be_rank(&role);
    }
    // Without `--bench` cargo only asks whether the benchmark runs.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match (measures, asked.is_empty()) {
        (_, false) => asked,
        (true, true) => (12..=26).step_by(2).map(|power| 1 << power).collect(),
        (false, true) => vec![4096],
    };
    let [first, second, ..] = allowed_cpus()?[..] else { return Err("two CPUs are needed".into()) };
    let memory = Shm::create(WORLD, &lengths(&sizes))?;
    let ranks = [(0, first), (1, second)].map(|(rank, cpu)| start(memory.raw_fd(), rank, cpu, &sizes));
    for rank in ranks {
        if !rank?.wait()?.success() {
            return Err("a rank failed".into());
        }
    }
    pin_to(&[first])?;
    sizes.iter().for_each(|&bytes| copy(bytes));
    Ok(())
}

/// Elements of the buckets: one for each size, and one to compare samples in.
fn lengths(sizes: &[usize]) -> Vec<usize> {
    sizes.iter().map(|bytes| bytes / size_of::<f32>()).chain([WORLD * SAMPLES_MAX]).collect()
}

fn start(fd: i32, rank: usize, cpu: usize, sizes: &[usize]) -> std::io::Result<Child> {
    let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let role = format!("{fd} {rank} {cpu} {} {sizes}", std::process::id());
    Command::new(std::env::current_exe()?).env(ROLE, role).spawn()
}

fn be_rank(role: &str) -> Outcome<()> {
    let [fd, rank, cpu, parent, sizes] = role.split(' ').collect::<Vec<_>>()[..] else { return Err("no role".into()) };
    let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    end_with_parent(parent.parse()?)?;
    pin_to(&[cpu.parse()?])?;
    let (mut comm, mut buckets) = Shm::join(fd.parse()?, rank.parse()?, WORLD, &lengths(&sizes), Seconds(60.0))?;
    let Some(mut shared) = buckets.pop() else { return Err("no bucket".into()) };
    for bucket in &mut buckets {
        let mut samples_s = measure(&mut comm, bucket, &mut shared)?;
        if comm.rank() == 0 {
            report("shm", WORLD, size_of_val(&bucket[..]), &mut samples_s);
        }
    }
    Ok(())
}

/// The time of the slowest rank for each call.
fn measure(comm: &mut Shm, bucket: &mut Floats, shared: &mut Floats) -> Result<Vec<f64>, CommError> {
    let mut fastest = f32::INFINITY;
    for turn in 0..WARM_UP {
        let begin = Instant::now();
        sample(comm, bucket, turn)?;
        fastest = fastest.min(begin.elapsed().as_secs_f32());
    }
    // Both decide from the same number, their mean.
    shared[0] = fastest;
    comm.all_reduce_sum(&mut [&mut *shared])?;
    let once = f64::from(shared[0]) / WORLD as f64;
    let samples = ((SIZE_S / once) as usize).clamp(SAMPLES_MIN, SAMPLES_MAX);
    let own = comm.rank() * SAMPLES_MAX;
    let samples_s = (0..samples).map(|turn| sample(comm, bucket, turn)).collect::<Result<Vec<_>, _>>()?;
    shared.fill(0.0);
    shared[own..own + samples].iter_mut().zip(samples_s).for_each(|(place, seconds)| *place = seconds as f32);
    comm.all_reduce_sum(&mut [&mut *shared])?;
    let slowest = |turn: usize| (0..WORLD).map(|rank| shared[rank * SAMPLES_MAX + turn]).fold(0.0, f32::max);
    Ok((0..samples).map(|turn| f64::from(slowest(turn))).collect())
}

fn sample(comm: &mut Shm, bucket: &mut Floats, turn: usize) -> Result<f64, CommError> {
    for (place, element) in bucket.iter_mut().enumerate() {
        *element = ((comm.rank() + 1) * ((place + turn) % 11)) as f32;
    }
    comm.barrier()?;
    let begin = Instant::now();
    comm.all_reduce_sum(&mut [&mut *bucket])?;
    comm.wait()?;
    let seconds = begin.elapsed().as_secs_f64();
    let total = WORLD * (WORLD + 1) / 2;
    let exact = bucket.iter().enumerate().all(|(place, &element)| element == (total * ((place + turn) % 11)) as f32);
    assert!(exact, "wrong sums of {} elements", bucket.len());
    Ok(seconds)
}

fn report(peer: &str, world: usize, bytes: usize, samples_s: &mut [f64]) {
    samples_s.sort_by(f64::total_cmp);
    let seconds_median = samples_s[samples_s.len() / 2];
    let moved = if world > 1 { 2.0 * (world - 1) as f64 / world as f64 } else { 1.0 } * bytes as f64;
    let line = serde_json::json!({
        "peer": peer, "world": world, "bytes": bytes, "samples": samples_s.len(),
        "seconds_min": samples_s[0], "seconds_median": seconds_median, "bus_bandwidth": moved / seconds_median,
    });
    println!("{line}");
}

/// A copy by one core, its source written just before, as the buckets are.
fn copy(bytes: usize) {
    let (mut source, mut target) = (Floats::zeros(bytes / 4), Floats::zeros(bytes / 4));
    let mut samples_s = Vec::new();
    let begin = Instant::now();
    while samples_s.len() < SAMPLES_MIN || (begin.elapsed().as_secs_f64() < SIZE_S && samples_s.len() < SAMPLES_MAX) {
        source.fill(samples_s.len() as f32);
        let begin = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        samples_s.push(begin.elapsed().as_secs_f64());
        std::hint::black_box(&target);
    }
    report("copy", 1, bytes, &mut samples_s);
}
