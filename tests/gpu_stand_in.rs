//! A training on a GPU that computes nothing: what the host does around kernels, on any machine. Memory is given out
//! as planned for every model, records are complete, and what does not fit is refused with what would.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

#[path = "common/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rigscale::comm::Shard;
use rigscale::record::TrainConfig;
use stand_in::{library, one_gpu};

/// Memory of the card that is not there, in bytes, unless a test says otherwise.
const MEMORY: u64 = 300 << 30;

/// Stand-ins of all libraries in `folder`; launch number `fails` of a kernel fails, and all that follows.
fn libraries(folder: &Path, memory: u64, fails: u64) {
    let mut driver = one_gpu(9, 0);
    let rows = [
        ("cuDevicePrimaryCtxRetain", "(void **context, int device) { *context = (void *)1; return 0; }".to_owned()),
        ("cuMemGetInfo_v2", format!("(size_t *free, size_t *total) {{ *free = *total = {memory}ull; return 0; }}")),
        (
            "cuMemAlloc_v2",
            "(unsigned long long *address, size_t bytes) {
                static unsigned long long next = 1ull << 40; *address = next; next += (bytes + 511) / 512 * 512; return 0; }"
                .to_owned(),
        ),
        ("cuMemHostAlloc", "(void **to, size_t bytes, unsigned flags) { *to = calloc(bytes, 1); return *to ? 0 : 2; }".into()),
        ("cuMemFreeHost", "(void *at) { free(at); return 0; }".into()),
        ("cuStreamCreateWithPriority", "(void **to, unsigned flags, int priority) { *to = (void *)2; return 0; }".into()),
        ("cuStreamEndCapture", "(void *stream, void **graph) { *graph = (void *)3; return 0; }".into()),
        ("cuGraphInstantiateWithFlags", "(void **to, void *graph, long long flags) { *to = (void *)4; return 0; }".into()),
        ("cuEventCreate", "(void **to, unsigned flags) { *to = (void *)5; return 0; }".into()),
        ("cuEventElapsedTime", "(float *to, void *a, void *b) { *to = 1.0f; return 0; }".into()),
        ("cuModuleLoadData", "(void **to, void *image) { *to = (void *)6; return 0; }".into()),
        ("cuModuleGetFunction", "(void **to, void *module, char *name) { *to = (void *)7; return 0; }".into()),
        ("cuLaunchKernel", format!("(void) {{ static unsigned long long count; return ++count < {fails}ull ? 0 : 700; }}")),
    ];
    driver.extend(rows);
    library(folder, "libcuda.so.1", "driver.rs", "", &driver);
    let products = [
        ("cublasLtGetVersion", "(void) { return 130100; }"),
        ("cublasLtGetCudartVersion", "(void) { return 13000; }"),
        ("cublasLtGetStatusString", "(int status) { return (long)\"stand-in\"; }"),
        (
            "cublasLtMatmulAlgoGetHeuristic",
            "(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int asked, char *found, int *count) {
                memset(found, 0, 96); *count = 1; return 0; }",
        ),
    ];
    library(folder, "libcublasLt.so.13", "products.rs", "", &products.map(|(name, body)| (name, body.to_owned())));
    let nvrtc = [
        ("nvrtcVersion", "(int *major, int *minor) { *major = 13; *minor = 0; return 0; }"),
        ("nvrtcGetErrorString", "(int code) { return (long)\"stand-in\"; }"),
        ("nvrtcGetCUBINSize", "(void *program, size_t *bytes) { *bytes = 64; return 0; }"),
    ];
    library(folder, "libnvrtc.so.13", "nvrtc.rs", "", &nvrtc.map(|(name, body)| (name, body.to_owned())));
    let old = [("cudnnGetVersion", "(void) { return 90100; }".to_owned())];
    library(folder, "libcudnn.so.9", "cudnn/mod.rs", "", &old);
}

fn rigscale(libraries: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").env("RIGSCALE_LIBRARY_PATH", libraries).stdin(Stdio::null());
    command.env("RIGSCALE_CACHE", libraries.join("cache"));
    command
}

fn train(libraries: &Path, out: &str, workload: &[&str]) -> Output {
    let mut command = rigscale(libraries);
    command.args(["train", "--device", "cuda", "--world", "1", "--steps", "3"]).args(workload);
    command.arg("-o").arg(libraries.join(out)).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of the one trial's rank file.
fn lines(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("runs/launch-1_ddp-1/rank-0.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The choices of matrix products that a start kept, behind a hash of 32 bytes: product and kind of addend, algorithm.
fn product_choices(cache: &Path) -> Vec<serde_json::Value> {
    let mut files = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("products-")).unwrap();
    serde_json::from_slice(&fs::read(file).unwrap()[32..]).unwrap()
}

#[test]
fn every_model_takes_the_memory_that_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    let models =
        ["llama-tiny", "llama-15m", "llama-125m", "llama-350m", "llama-1b", "llama-3b", "llama-8b", "llama-13b"];
    for (index, model) in models.iter().enumerate() {
        for recompute in [&[][..], &["--recompute"]] {
            let out = format!("{index}-{}", recompute.len());
            let workload = [&["--model", model, "--batch", "3", "--context", "1000"], recompute].concat();
            let output = train(folder.path(), &out, &workload);
            assert_eq!(output.status.code(), Some(0), "{model}: {}", said(&output));
            let lines = lines(&folder.path().join(&out));
            assert_eq!(lines.len(), 5, "{model}: a head, three steps and an end");
            assert_eq!(lines[4]["reason"], "completed");
            let memory = format!("{model},3,1000");
            let plan = rigscale(folder.path())
                .args(["models", "--json", "--memory", &memory])
                .args(recompute)
                .output()
                .unwrap();
            let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
            let (planned, taken) =
                (plan["total_bytes"].as_u64().unwrap(), lines[4]["peak_memory_bytes"].as_u64().unwrap());
            assert!(taken <= planned, "{model}: {taken} of {planned} bytes");
            if 1 < index {
                assert!(0.97 * planned as f64 <= taken as f64, "{model}: only {taken} of {planned} bytes are taken");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_does() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), 24 << 30, u64::MAX);
    let output = train(folder.path(), "large", &["--model", "llama-125m", "--batch", "64", "--context", "2048"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let largest = text.split("--batch ").last().unwrap().split(' ').next().unwrap().to_owned();
    let output = train(folder.path(), "largest", &["--model", "llama-125m", "--batch", &largest, "--context", "2048"]);
    assert_eq!(output.status.code(), Some(0), "--batch {largest}: {}", said(&output));
    let next = (largest.parse::<u32>().unwrap() + 1).to_string();
    let output = train(folder.path(), "next", &["--model", "llama-125m", "--batch", &next, "--context", "2048"]);
    assert_eq!(output.status.code(), Some(2), "--batch {next}: {}", said(&output));
}

#[test]
fn a_start_says_what_it_chose_and_a_damaged_cache_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    let workload = ["--model", "llama-tiny", "--batch", "2", "--context", "64", "--accumulate", "2", "--checkpoints"];
    let output = train(folder.path(), "first", &workload);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("attention: own forward, own backward"), "{text}");
    assert!(text.contains("cuDNN") && text.contains("is version 9.1.0; rigscale needs 9.10"), "{text}");
    let trial = folder.path().join("first/runs/launch-1_ddp-1");
    for step in [0, 3] {
        let bytes = fs::read(trial.join(format!("checkpoint-{step}.safetensors"))).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 4 * 6 + 3);
    }
    let head = &lines(&folder.path().join("first"))[0];
    assert_eq!((&head["communicator"], &head["config"]["precision"]), (&"none".into(), &"bf16".into()));
    assert_eq!(head["software"]["attention"], "own forward, own backward");

    let cache = folder.path().join("cache");
    let choices = product_choices(&cache);
    let chosen = |adds| choices.iter().filter(|choice| choice[0][1] == adds).count();
    // two products of a block add the stream; one that adds to a gradient is computed as the one that overwrites it
    assert_eq!((chosen("Other"), chosen("Nothing"), chosen("Destination")), (2, 13, 0), "{choices:?}");
    for entry in fs::read_dir(&cache).unwrap() {
        fs::write(entry.unwrap().path(), "garbage").unwrap();
    }
    let output = train(folder.path(), "second", &workload);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("is damaged and is made again"), "{}", said(&output));
    let output = train(folder.path(), "third", &workload);
    assert!(!said(&output).contains("damaged"), "{}", said(&output));
}

#[test]
fn a_gpu_that_is_lost_in_a_step_is_a_fault_in_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, 100);
    let output = train(folder.path(), "run", &["--model", "llama-tiny", "--batch", "2"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("700") && text.contains("launch ") && !text.contains("read the weights"), "{text}");
}

/// A short qualification on the GPU that is not there, into `run`.
fn qualify(folder: &Path, more: &[&str]) -> Output {
    let mut command = rigscale(folder);
    command.args(["qualify", "--quick", "--device", "cuda", "--model", "llama-tiny", "--batch", "2"]);
    command.args(["--context", "64", "--steps", "24"]).args(more).arg("-o").arg(folder.join("run")).output().unwrap()
}

#[test]
fn a_qualification_on_one_gpu_grades_nothing() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    let output = qualify(folder.path(), &["--no-measure"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    let sheet = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(sheet.contains("Links were not measured (--no-measure)"), "the sheet says so");
    assert!(text.contains("2 ranks need 2 GPUs; this process may use 1"), "{text}");
    assert!(folder.path().join("run/report.html").exists(), "{text}");
}

/// Copies of a GPU that is not there deliver nothing, which the measurement sees before anything trains.
#[test]
fn a_qualification_measures_the_links_and_what_they_show_is_evidence() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    let run = folder.path().join("run");
    let output = qualify(folder.path(), &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(run.join(name)).unwrap()).unwrap()
    };
    let analysis = json("analysis.json");
    let found = |finding: &serde_json::Value| finding["code"] == "link-wrong-data" && finding["severity"] == "fault";
    assert!(analysis["findings"].as_array().unwrap().iter().any(found), "{text}");
    let hashes = &json("manifest.json")["sha256"];
    assert!(hashes["links.jsonl"].is_string() && hashes["measure.json"].is_string(), "{hashes}");
    let sheet = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(sheet.contains("host → 0000:41:00.0") && sheet.contains("Links were measured before the training"));
    let (_, lines) = rigscale::record::read_links(&run.join("links.jsonl")).unwrap();
    assert!(lines.iter().any(|line| matches!(line, rigscale::record::LinkLine::Copy(_))), "{text}");
}

/// The body of a collective that writes a line for each call beside NCCL's log: its name, elements and type. `operation` is
/// the parameter before the communicator, if there is one.
fn calls(name: &str, operation: &str) -> String {
    format!(
        "(void *in, void *out, size_t n, int type, {operation}void *comm) {{
            char *getenv(const char *), path[4096];
            if (comm != (void *)(ranks > 1 ? 8l : 9l)) return 5;
            snprintf(path, sizeof path, \"%s.calls\", getenv(\"NCCL_DEBUG_FILE\"));
            void *file = fopen(path, \"a\");
            fprintf(file, \"{name} %zu %d\\n\", n, type);
            fclose(file);
            return 0; }}"
    )
}

/// An NCCL of that version in `folder`, which wants what lets ranks share a GPU, logs as NCCL does, and notices an error
/// when it is asked for the `fails`-th time how it is.
fn nccl(folder: &Path, version: u32, fails: u64) {
    let wanted = if version < 23_000 { "NCCL_HOSTID" } else { "NCCL_MULTI_RANK_GPU_ENABLE" };
    let init = format!(
        "(void **to, int world, struct {{ char of[128]; }} id, int rank, int *config) {{
            char *getenv(const char *);
            if (!getenv(\"{wanted}\") || !getenv(\"NCCL_PROTO\") || id.of[7] != 42 || config[7] != 4) return 5;
            void *log = fopen(getenv(\"NCCL_DEBUG_FILE\"), \"w\");
            fprintf(log, \"box:1:2 [0] NCCL INFO Channel 00/02 : 0 1\\n\");
            fprintf(log, \"box:1:2 [0] NCCL INFO Channel 00/0 : %d[%d] -> %d[%d] via SHM/direct/direct\\n\", rank, 0, 1 - rank, 0);
            fclose(log);
            *to = (void *)9; ranks = world; return 7; }}"
    );
    let state = format!(
        "(void *comm, int *state) {{ static unsigned long long n; *state = ++n < {fails}ull ? 0 : 6; return 0; }}"
    );
    let rows = [
        ("ncclGetVersion", format!("(int *version) {{ *version = {version}; return 0; }} static int ranks;")),
        ("ncclGetUniqueId", "(char *id) { memset(id, 42, 128); return 0; }".into()),
        ("ncclCommInitRankConfig", init),
        // two ranks exchange over the communicator that was split off, which blocks
        (
            "ncclCommSplit",
            "(void *met, int color, int key, void **to, int *config) {
                if (met != (void *)9 || config[4] != 1) return 5; *to = (void *)8; return 7; }"
                .into(),
        ),
        ("ncclAllReduce", calls("sum", "int op, ")),
        ("ncclReduceScatter", calls("scatter", "int op, ")),
        ("ncclAllGather", calls("gather", "")),
        ("ncclCommGetAsyncError", state),
        ("ncclGetErrorString", "(int code) { return (long)(code == 6 ? \"remote process\" : \"stand-in\"); }".into()),
    ];
    library(folder, "libnccl.so.2", "nccl.rs", "", &rows);
}

/// Two ranks that share the GPU that is not there.
fn train_two(folder: &Path) -> Output {
    train_two_with(folder, "llama-tiny", &[])
}

fn train_two_with(folder: &Path, model: &str, more: &[&str]) -> Output {
    let mut command = rigscale(folder);
    command.args(["train", "--device", "cuda", "--share-gpu", "--world", "1,2", "--steps", "6", "--model", model]);
    command.args(["--batch", "2", "--context", "64", "--bucket-mib", "0.5", "--nccl", "NCCL_PROTO=Simple", "-o"]);
    command.arg(folder.join("run")).args(more).output().unwrap()
}

/// The records of a rank of two, and what NCCL was asked for in them: collective, elements, `ncclDataType_t`.
fn rank_of_two(folder: &Path, rank: usize) -> (Vec<serde_json::Value>, Vec<(String, usize, u32)>) {
    let place = folder.join(format!("run/runs/launch-1_ddp-2/rank-{rank}.jsonl"));
    let text = fs::read_to_string(&place).unwrap();
    let calls = fs::read_to_string(place.with_extension("nccl.log.calls")).unwrap();
    let call = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].to_owned(), words[1].parse().unwrap(), words[2].parse().unwrap())
    };
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), calls.lines().map(call).collect())
}

#[test]
fn gradients_are_summed_in_the_type_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    nccl(folder.path(), 23_203, u64::MAX);
    // ncclDataType_t: 9 is bf16, 7 is f32
    for (dtype, kind, bytes) in [("bf16", 9, 2), ("f32", 7, 4)] {
        let _earlier = fs::remove_dir_all(folder.path().join("run"));
        let output = train_two_with(folder.path(), "llama-tiny", &["--reduce-dtype", dtype]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let (lines, calls) = rank_of_two(folder.path(), 1);
        assert_eq!(lines[0]["config"]["reduce_dtype"], dtype);
        let sums: Vec<_> = calls.iter().filter(|(_, elements, _)| 1 < *elements).collect();
        assert!(sums.iter().all(|(_, _, of)| *of == kind), "{calls:?}");
        let buckets = lines.iter().filter(|line| line["line"] == "bucket" && line["step"] == 0);
        let elements: Vec<u64> = buckets.map(|bucket| bucket["bytes"].as_u64().unwrap() / bytes).collect();
        assert_eq!(elements, sums[..3].iter().map(|sum| sum.1 as u64).collect::<Vec<_>>());
        assert_eq!(elements.iter().sum::<u64>(), 1_066_112, "all parameters of llama-tiny");
        let args = ["models", "--json", "--memory", "llama-tiny,2,64", "--reduce-dtype", dtype];
        let plan = rigscale(folder.path()).args(args).output().unwrap();
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        let taken = lines.last().unwrap()["peak_memory_bytes"].as_u64().unwrap();
        assert!(taken <= plan["total_bytes"].as_u64().unwrap());
    }
}

#[test]
fn ranks_that_share_the_state_scatter_sums_and_gather_weights_in_the_order_of_the_next_forward_pass() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    nccl(folder.path(), 23_203, u64::MAX);
    for (dtype, kind) in [("bf16", 9), ("f32", 7)] {
        let _earlier = fs::remove_dir_all(folder.path().join("run"));
        let zero = ["--zero", "1", "--reduce-dtype", dtype, "--checkpoints"];
        let output = train_two_with(folder.path(), "llama-tiny", &zero);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let (lines, calls) = rank_of_two(folder.path(), 1);
        // each rank's part of each of three buckets, of whole chunks
        let config: TrainConfig = serde_json::from_value(lines[0]["config"].clone()).unwrap();
        let buckets = config.bucket_layout().buckets;
        let parts = [0, 1, 2].map(|index| Shard { rank: 0, world: 2 }.of(buckets[index].elements).len());
        let call = |name: &str, elements: usize, kind: u32| (name.to_owned(), elements, kind);
        let mut wanted = vec![call("sum", 1, 7)];
        for _ in 0..6 {
            wanted.extend(parts.map(|part| call("scatter", part, kind)));
            wanted.push(call("gather", 16, 8));
            wanted.extend(parts.iter().rev().map(|part| call("gather", *part, 9)));
        }
        // the lower halves of the master weights, after the last step
        wanted.extend(parts.map(|part| call("gather", part, 9)));
        assert_eq!(calls, wanted);
        let of_step = |collective: &str| {
            let is = |line: &&serde_json::Value| line["line"] == "bucket" && line["step"] == 4;
            lines.iter().filter(is).filter(|line| line["collective"] == collective).count()
        };
        assert_eq!((of_step("reduce-scatter"), of_step("all-gather")), (3, 3));
    }
}

#[test]
fn ranks_that_share_the_state_take_the_memory_that_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    nccl(folder.path(), 23_203, u64::MAX);
    let output = train_two_with(folder.path(), "llama-1b", &["--zero", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let plan = |zero: &str| {
        let args = ["models", "--json", "--memory", "llama-1b,2,64", "--world", "2", "--zero", zero];
        let plan = rigscale(folder.path()).args(args).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&plan.stdout).unwrap()["total_bytes"].as_u64().unwrap() as f64
    };
    for rank in 0..2 {
        let taken = rank_of_two(folder.path(), rank).0.last().unwrap()["peak_memory_bytes"].as_u64().unwrap() as f64;
        assert!((0.97 * plan("1")..=plan("1")).contains(&taken), "{taken} of {} bytes", plan("1"));
        assert!(taken < 0.7 * plan("0"), "{taken} where {} bytes are needed without sharing", plan("0"));
    }
}

#[test]
fn ranks_meet_over_nccl_and_record_how() {
    for version in [22_809, 23_203] {
        let folder = tempfile::tempdir().unwrap();
        libraries(folder.path(), MEMORY, u64::MAX);
        nccl(folder.path(), version, u64::MAX);
        let output = train_two(folder.path());
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        for rank in 0..2 {
            let place = folder.path().join(format!("run/runs/launch-1_ddp-2/rank-{rank}.jsonl"));
            let text = fs::read_to_string(place).unwrap();
            let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let head = &lines[0];
            assert_eq!((&head["communicator"], &head["origin"]), (&"nccl".into(), &"shared-gpu".into()));
            let version = format!("2.{}.{}", version / 100 % 100, version % 100);
            assert_eq!(head["software"]["nccl"], version);
            assert_eq!(head["transport"]["via"][(1 - rank).to_string()], "SHM/direct/direct");
            assert_eq!(head["transport"]["ring"], serde_json::json!([0, 1]));
            assert_eq!(
                (&head["nccl"]["max_ctas"], &head["nccl"]["environment"]["NCCL_PROTO"]),
                (&4.into(), &"Simple".into())
            );
            let of_step =
                |step: u64| lines.iter().filter(|line| line["line"] == "bucket" && line["step"] == step).count();
            assert!(of_step(0) == 3 && of_step(4) == of_step(0) && of_step(1) == 0, "{text}");
        }
    }
}

#[test]
fn what_nccl_notices_ends_the_run_as_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    nccl(folder.path(), 23_203, 2);
    let output = train_two(folder.path());
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("NCCL says 6 (remote process)"), "{}", said(&output));
}

#[test]
fn an_nccl_that_is_too_old_is_refused_with_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    nccl(folder.path(), 21_805, u64::MAX);
    let output = train_two(folder.path());
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    let text = said(&output);
    assert!(
        text.contains("version 2.18.5; rigscale needs 2.19 or newer") && text.contains("nvidia-nccl-cu13"),
        "{text}"
    );
}

#[test]
fn a_floor_is_told_part_by_part() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path(), MEMORY, u64::MAX);
    let mut command = rigscale(folder.path());
    let output = command.args(["floor", "--json", "--model", "llama-125m", "--hold", "0.05s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let floor: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let parts: Vec<&str> =
        floor["parts"].as_array().unwrap().iter().map(|part| part["part"].as_str().unwrap()).collect();
    for part in ["products", "attention", "norms", "rotary", "gates", "loss", "embedding", "optimizer"] {
        assert!(parts.contains(&part), "{parts:?}");
    }
}
