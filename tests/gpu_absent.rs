//! Machines whose GPU cannot be used: no driver, a damaged one, one without a GPU, one that is too old. The driver is a
//! stand-in that is compiled here and found before any other, so the tests say the same on every machine.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
fn driver(folder: &Path, leave_out: &str, bodies: &[(&str, &str)]) {
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/driver.rs")).unwrap();
    let names = table.lines().filter_map(|line| line.trim().strip_prefix("fn cu")?.split('(').next());
    let mut source = "#include <string.h>\n".to_owned();
    for name in names.map(|name| format!("cu{name}")).filter(|name| name != leave_out) {
        let given = bodies.iter().find(|(of, _)| *of == name);
        source.push_str(
            &given.map_or_else(|| format!("int {name}(void) {{ return 0; }}\n"), |(_, body)| body.to_string()),
        );
    }
    let file = folder.join("driver.c");
    fs::write(&file, source).unwrap();
    let library = folder.join("libcuda.so.1");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).status().unwrap();
    assert!(built.success());
}

/// A GPU of this compute capability, count and mode.
fn one_gpu(major: u32, mode: u32) -> Vec<(&'static str, String)> {
    let attribute = format!(
        "int cuDeviceGetAttribute(int *value, int attribute, int device) {{
            *value = attribute == 75 ? {major} : attribute == 76 ? 5 : attribute == 20 ? {mode} : 1; return 0; }}\n"
    );
    vec![
        ("cuDeviceGetCount", "int cuDeviceGetCount(int *count) { *count = 1; return 0; }\n".into()),
        (
            "cuDeviceGetPCIBusId",
            "int cuDeviceGetPCIBusId(char *to, int len, int device) { strcpy(to, \"0000:41:00.0\"); return 0; }\n"
                .into(),
        ),
        (
            "cuDeviceGetName",
            "int cuDeviceGetName(char *to, int len, int device) { strcpy(to, \"Old Card\"); return 0; }\n".into(),
        ),
        ("cuDeviceGetAttribute", attribute),
        (
            "cuDevicePrimaryCtxRetain",
            "int cuDevicePrimaryCtxRetain(void **context, int device) { return 46; }\n".into(),
        ),
    ]
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
    driver(folder.path(), "", &[("cuInit", "int cuInit(unsigned flags) { return 100; }\n")]);
    is_a_fault(folder.path(), &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path(), "", &[("cuInit", "int cuInit(unsigned flags) { return 999; }\n")]);
    is_a_fault(folder.path(), &["initialise the NVIDIA driver", "999"]);
}

#[test]
fn a_card_that_is_too_old_or_taken_is_refused_by_the_rank_that_would_use_it() {
    for (major, mode, words) in [
        (7, 0, ["Old Card has compute capability 7.5", "needs 8.0"]),
        (9, 2, ["compute mode prohibited", "nvidia-smi -c DEFAULT"]),
        (9, 3, ["compute mode exclusive process", "end the process that does"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bodies = one_gpu(major, mode);
        let bodies: Vec<(&str, &str)> = bodies.iter().map(|(name, body)| (*name, body.as_str())).collect();
        driver(folder.path(), "", &bodies);
        is_a_fault(folder.path(), &words);
    }
}

#[test]
fn gpus_that_are_not_there_are_a_matter_of_usage() {
    let folder = tempfile::tempdir().unwrap();
    let bodies = one_gpu(9, 0);
    let bodies: Vec<(&str, &str)> = bodies.iter().map(|(name, body)| (*name, body.as_str())).collect();
    driver(folder.path(), "", &bodies);
    for (gpus, word) in [("2", "CUDA shows 1"), ("0000:61:00.0", "CUDA shows 0000:41:00.0"), ("x", "--gpus x")] {
        let mut command = rigscale();
        command.env("RIGSCALE_LIBRARY_PATH", folder.path());
        let output = command.args(["train", "--device", "cuda", "--gpus", gpus]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}
