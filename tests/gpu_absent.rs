//! Machines whose GPU cannot be used: no driver, a damaged one, one without a GPU, one that is too old. The driver is a
//! stand-in that is compiled here and found before any other, so the tests say the same on every machine.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

#[path = "common/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use stand_in::{library, one_gpu};

/// The binary under test.
fn rigscale() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A `libcuda.so.1` in `folder` whose functions do nothing and return 0, but for those in `bodies`.
fn driver(folder: &Path, leave_out: &str, bodies: &[(&str, String)]) {
    library(folder, "libcuda.so.1", "driver.rs", leave_out, bodies);
}

/// A GPU of this compute capability and mode, whose context cannot be had.
fn taken_gpu(capability: u32, mode: u32) -> Vec<(&'static str, String)> {
    let mut bodies = one_gpu(capability, mode);
    bodies.push(("cuDevicePrimaryCtxRetain", "(void **context, int device) { return 46; }".into()));
    bodies
}

/// Exit code and words of a training on GPUs with that driver.
fn train(driver: &Path) -> (i32, String) {
    let mut command = rigscale();
    command
        .env("RIGSCALE_LIBRARY_PATH", driver)
        .args(["train", "--device", "cuda", "--world", "1", "--steps", "2", "-o"]);
    let output = command.arg(driver.join("run")).output().unwrap();
    (output.status.code().unwrap(), stderr(&output))
}

#[track_caller]
fn is_a_fault(driver: &Path, words: &[&str]) {
    let (code, said) = train(driver);
    assert_eq!(code, 4, "{said}");
    for word in words {
        assert!(said.contains(word), "{said} lacks {word}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_file_that_is_no_library_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libcuda.so.1"), "no library").unwrap();
    // where the machine has a driver of its own, the next place serves and nothing fails
    let (code, said) = train(folder.path());
    if code == 4 {
        assert!(said.contains("libcuda.so.1") && said.contains("install the NVIDIA driver"), "{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path(), "cuGraphInstantiateWithFlags", &[]);
    is_a_fault(folder.path(), &["has no function cuGraphInstantiateWithFlags", "too old or damaged"]);
}

#[test]
fn a_driver_without_a_gpu_says_where_to_look() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path(), "", &[("cuInit", "(unsigned flags) { return 100; }".into())]);
    is_a_fault(folder.path(), &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path(), "", &[("cuInit", "(unsigned flags) { return 999; }".into())]);
    is_a_fault(folder.path(), &["initialise the NVIDIA driver", "999"]);
}

#[test]
fn a_card_that_is_too_old_or_taken_is_refused_by_the_rank_that_would_use_it() {
    for (major, mode, words) in [
        (7, 0, ["Stand-in has compute capability 7.5", "needs 8.0"]),
        (9, 2, ["compute mode prohibited", "nvidia-smi -c DEFAULT"]),
        (9, 3, ["compute mode exclusive process", "end the process that does"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        driver(folder.path(), "", &taken_gpu(major, mode));
        is_a_fault(folder.path(), &words);
    }
}

#[test]
fn gpus_that_are_not_there_are_a_matter_of_usage() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path(), "", &one_gpu(9, 0));
    for (gpus, word) in [("2", "CUDA shows 1"), ("0000:61:00.0", "CUDA shows 0000:41:00.0"), ("x", "--gpus x")] {
        let mut command = rigscale();
        command.env("RIGSCALE_LIBRARY_PATH", folder.path());
        let output = command.args(["train", "--device", "cuda", "--gpus", gpus]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}
