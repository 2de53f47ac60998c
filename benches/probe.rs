//! How long `rigscale probe` takes, from its start to its end: of the recorded machine with most GPUs, and of this machine.
//! Prints one JSON line each: {"of", "seconds_median", "seconds_most", "limit_seconds"}, and fails where a median is above
//! its limit. Needs `cargo bench`: the limits are those of a release build.
#![expect(clippy::print_stdout, reason = "the output of a benchmark is its lines")]

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const RUNS: usize = 21;

/// What is probed, with what arguments, and what it may cost in seconds: nobody waits for a recording, and a second for
/// a machine is no wait either. Live, the driver's persistence mode is taken for on: without it the driver starts each GPU.
const ROWS: [(&str, &[&str], f64); 2] = [
    ("server-8gpu, recorded", &["--from", "tests/machines/server-8gpu/machine.jsonl"], 0.1),
    ("this machine", &[], 1.0),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut late = Vec::new();
    for (of, arguments, limit) in ROWS {
        let times = (0..RUNS).map(|_| seconds(arguments)).collect::<Result<Vec<f64>, _>>()?;
        let (median, most) = (rigscale::stats::median(&times), times.iter().copied().fold(0.0, f64::max));
        let line = serde_json::json!({
            "of": of, "seconds_median": median, "seconds_most": most, "limit_seconds": limit
        });
        println!("{line}");
        if limit < median {
            late.push(format!("{of}: {median} s instead of {limit} s"));
        }
    }
    if late.is_empty() { Ok(()) } else { Err(late.join("; ").into()) }
}

/// One run of the command, which may find faults.
fn seconds(arguments: &[&str]) -> Result<f64, Box<dyn Error>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.arg("probe").args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).stdout(Stdio::null());
    let begun = Instant::now();
    let output = command.output()?;
    let seconds = begun.elapsed().as_secs_f64();
    match output.status.code() {
        Some(0 | 4) => Ok(seconds),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}
