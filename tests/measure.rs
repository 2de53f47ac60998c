//! Measuring links of two GPUs that are memory of this process: right data, and each way in which they can be wrong.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

#[path = "common/stand_in.rs"]
mod stand_in;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rigscale::launch::judge_links;
use rigscale::record::{Findings, LinkLine, Pattern, SCHEMA, SumArm, read_json, read_links, write_json};
use rigscale::topology::from_yaml;
use stand_in::{library, one_gpu};

/// What the driver does wrong, by name of the case.
const CASE: &str = "RIGSCALE_TEST_CASE";

/// The driver: allocations are memory of the host, copies are done at once, and kernels of `links.cu` too.
fn driver(folder: &Path) {
    let mut rows = one_gpu(9, 0);
    rows.retain(|(name, _)| !["cuDeviceGetCount", "cuDeviceGetPCIBusId"].contains(name));
    let more: [(&str, &str); 23] = [
        ("cuInit", "(unsigned flags) { return 0; }
            static int current, blocks; static struct { char *at; size_t bytes; int gpu; } block[64];
            static int is(const char *name) { char *getenv(const char *); char *of = getenv(\"RIGSCALE_TEST_CASE\");
                return of && !strcmp(of, name); }
            static int owner(void *at) { for (int i = 0; i < blocks; ++i)
                if (block[i].at <= (char *)at && (char *)at < block[i].at + block[i].bytes) return block[i].gpu; return -1; }
            static unsigned pattern(unsigned long long i, unsigned key) {
                unsigned w = (unsigned)i * 0x9e3779b1u ^ (unsigned)(i >> 32) ^ key;
                w = (w ^ w >> 16) * 0x85ebca6bu; w = (w ^ w >> 13) * 0xc2b2ae35u; return w ^ w >> 16; }
            static long move(void *to, void *from, size_t bytes) {
                int a = owner(to), b = owner(from), peers = a >= 0 && b >= 0 && a != b;
                if (peers && is(\"false-grant\")) return 0;
                if (peers && is(\"hang\")) for (;;) { unsigned sleep(unsigned); sleep(1); }
                if (peers && is(\"dies\")) abort();
                if (peers && is(\"fails\")) return 719;
                if (peers && is(\"late-word\")) { memcpy(to, from, bytes - 4); return 0; }
                memcpy(to, from, bytes);
                if (peers && is(\"wrong\")) ((unsigned *)to)[7] ^= 64;
                if (a < 0 && is(\"host-wrong\")) ((unsigned *)to)[7] ^= 64;
                return 0; }"),
        ("cuDeviceGetCount", "(int *count) { *count = 2; return 0; }"),
        ("cuDeviceGet", "(int *to, int number) { *to = number; return 0; }"),
        ("cuDeviceGetPCIBusId", "(char *to, int len, int device) {
            strcpy(to, device ? \"0000:61:00.0\" : \"0000:41:00.0\"); return 0; }"),
        ("cuDeviceCanAccessPeer", "(int *to, int a, int b) { *to = !is(\"refused\"); return 0; }"),
        ("cuDevicePrimaryCtxRetain", "(void **context, int device) { *context = (void *)(long)(1 + device); return 0; }"),
        ("cuCtxSetCurrent", "(void *context) { current = (long)context - 1; return 0; }"),
        ("cuMemGetInfo_v2", "(size_t *free, size_t *total) { *free = *total = 8ull << 30; return 0; }"),
        ("cuMemAlloc_v2", "(void **to, size_t bytes) { *to = aligned_alloc(256, (bytes + 255) / 256 * 256);
            block[blocks].at = *to; block[blocks].bytes = bytes; block[blocks++].gpu = current; return 0; }"),
        ("cuMemFree_v2", "(void *at) { return 0; }"),
        ("cuMemHostAlloc", "(void **to, size_t bytes, unsigned flags) { *to = calloc(bytes, 1); return *to ? 0 : 2; }"),
        ("cuMemFreeHost", "(void *at) { free(at); return 0; }"),
        ("cuMemcpyHtoDAsync_v2", "(void *to, void *from, size_t bytes, void *stream) { return move(to, from, bytes); }"),
        ("cuMemcpyDtoHAsync_v2", "(void *to, void *from, size_t bytes, void *stream) { return move(to, from, bytes); }"),
        ("cuMemcpyDtoDAsync_v2", "(void *to, void *from, size_t bytes, void *stream) { return move(to, from, bytes); }"),
        ("cuMemcpyPeerAsync", "(void *to, void *there, void *from, void *here, size_t bytes, void *stream) {
            return is(\"refused\") && there != here ? move(to, from, bytes) : 1; }"),
        ("cuMemsetD8Async", "(void *to, unsigned char byte, size_t bytes, void *stream) { memset(to, byte, bytes); return 0; }"),
        ("cuStreamCreateWithPriority", "(void **to, unsigned flags, int priority) { *to = (void *)2; return 0; }"),
        ("cuEventCreate", "(void **to, unsigned flags) { *to = (void *)5; return 0; }"),
        ("cuEventElapsedTime", "(float *to, void *a, void *b) { *to = 1.0f; return 0; }"),
        ("cuModuleLoadData", "(void **to, void *image) { *to = (void *)6; return 0; }"),
        ("cuModuleGetFunction", "(void **to, void *module, char *name) {
            *to = (void *)(long)(!strcmp(name, \"paint\") ? 11 : !strcmp(name, \"compare\") ? 12 : !strcmp(name, \"carry\") ? 13 : 14);
            return 0; }"),
        ("cuLaunchKernel", "(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned h,
                void *stream, void **args, void **extra) {
            if (f == (void *)11) {
                unsigned *to = *(unsigned **)args[0], key = *(unsigned *)args[2]; long long n = 4 * *(long long *)args[1];
                for (long long i = 0; i < n; ++i) to[i] = pattern(i, key);
            } else if (f == (void *)12) {
                unsigned long long *report = *(unsigned long long **)args[0]; unsigned *at = *(unsigned **)args[1];
                unsigned key = *(unsigned *)args[3], before = *(unsigned *)args[4]; long long n = 4 * *(long long *)args[2];
                for (long long i = 0; i < n; ++i) if (at[i] != pattern(i, key)) {
                    report[0]++; report[1] += at[i] == pattern(i, before); }
            } else if (f == (void *)13)
                return move(*(void **)args[0], *(void **)args[1], 16 * *(long long *)args[2]);
            return 0; }"),
    ];
    rows.extend(more.map(|(name, body)| (name, body.to_owned())));
    library(folder, "libcuda.so.1", "driver.rs", "", &rows);
    let nvrtc = [
        ("nvrtcVersion", "(int *major, int *minor) { *major = 13; *minor = 0; return 0; }"),
        ("nvrtcGetErrorString", "(int code) { return (long)\"stand-in\"; }"),
        ("nvrtcGetCUBINSize", "(void *program, size_t *bytes) { *bytes = 64; return 0; }"),
    ];
    library(folder, "libnvrtc.so.13", "nvrtc.rs", "", &nvrtc.map(|(name, body)| (name, body.to_owned())));
}

/// NCCL: a sum is what the known patterns of all ranks give, unless the case says otherwise.
fn nccl(folder: &Path) {
    let rows = [
        (
            "ncclGetVersion",
            "(int *version) { *version = 23203; return 0; }
            char *getenv(const char *); static int world;
            static unsigned pattern(unsigned long long i, unsigned key) {
                unsigned w = (unsigned)i * 0x9e3779b1u ^ (unsigned)(i >> 32) ^ key;
                w = (w ^ w >> 16) * 0x85ebca6bu; w = (w ^ w >> 13) * 0xc2b2ae35u; return w ^ w >> 16; }",
        ),
        ("ncclGetUniqueId", "(char *id) { memset(id, 42, 128); return 0; }"),
        (
            "ncclCommInitRankConfig",
            "(void **to, int ranks, struct { char of[128]; } id, int rank, int *config) {
                void *log = fopen(getenv(\"NCCL_DEBUG_FILE\"), \"w\"); world = ranks;
                fprintf(log, \"box:1:2 [0] NCCL INFO Channel 00/0 : %d[%d] -> %d[%d] via %s\\n\", rank, 0, 1 - rank, 0,
                    getenv(\"NCCL_P2P_LEVEL\") ? \"P2P/CUMEM\" : \"SHM/direct/direct\"); fclose(log);
                *to = (void *)9; return 0; }",
        ),
        (
            "ncclAllReduce",
            "(unsigned *from, unsigned *to, size_t count, int type, int op, void *comm, void *stream) {
                char *of = getenv(\"RIGSCALE_TEST_CASE\"); int host = getenv(\"NCCL_P2P_DISABLE\") != 0;
                for (size_t i = 0; count > 1 && i < count; ++i) {
                    to[i] = 0; for (int rank = 0; rank < world; ++rank) to[i] += pattern(i, rank); }
                if (of && !strcmp(of, \"sum-wrong\") && !host && count > 1) to[count - 1]++;
                if (of && !strcmp(of, \"sum-fails\") && !host && count > 1) return 3;
                return 0; }",
        ),
        (
            "ncclCommGetAsyncError",
            "(void *comm, int *state) { char *of = getenv(\"RIGSCALE_TEST_CASE\");
                *state = of && !strcmp(of, \"never-meets\") && !getenv(\"NCCL_P2P_DISABLE\") ? 7 : 0; return 0; }",
        ),
        ("ncclGetErrorString", "(int code) { return (long)\"stand-in\"; }"),
        ("ncclGetLastError", "(void *comm) { return (long)\"nothing more\"; }"),
    ];
    library(folder, "libnccl.so.2", "nccl.rs", "", &rows.map(|(name, body)| (name, body.to_owned())));
}

fn measure(folder: &Path, case: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").env("RIGSCALE_LIBRARY_PATH", folder).env("RIGSCALE_CACHE", folder.join("cache"));
    command.env(CASE, case).stdin(Stdio::null());
    command.args(["measure", "--quick", "--copy-mib", "4", "-o"]).arg(folder.join(case)).args(more);
    command.output().unwrap()
}

fn findings(folder: &Path, case: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder.join(case).join("measure.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let finding = |finding: &serde_json::Value| (word(&finding["code"]), word(&finding["remedy"]));
    record["findings"].as_array().unwrap().iter().map(finding).collect()
}

fn lines(folder: &Path, case: &str) -> Vec<LinkLine> {
    read_links(&folder.join(case).join("links.jsonl")).unwrap().1
}

#[test]
fn every_finding_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/links.md")).unwrap();
    let source = ["judge.rs", "compare.rs"].map(|file| root.join("src/launch/measure").join(file));
    let source: String = source.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let kinds = ["peer-", "link-", "hang-", "sum-", "pattern-", "host-", "gpu-", "arm-"];
    let codes = source.split('"').filter(|word| kinds.iter().any(|kind| word.starts_with(kind)) && !word.contains(' '));
    let codes: BTreeSet<&str> = codes.collect();
    assert_eq!(codes.len(), 23, "{codes:?}");
    let shown: BTreeSet<String> = recorded().into_values().flatten().collect();
    for code in codes {
        assert!(page.contains(&format!("| `{code}` |")), "docs/links.md has no row for {code}");
        assert!(shown.contains(code), "no recorded measurement shows {code}");
    }
}

/// The codes of the findings of each recorded measurement, by its name, judged anew.
fn recorded() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured");
    let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let codes = |folder: &Path| {
        let (head, lines) = read_links(&folder.join("links.jsonl")).unwrap();
        let topology = fs::read_to_string(folder.join("topology.yaml")).unwrap();
        let findings = judge_links(&head, &lines, &from_yaml(&topology, "topology.yaml").unwrap());
        let codes = findings.iter().map(|finding| finding.code.clone()).collect();
        let (file, record) = (
            folder.join("findings.json"),
            Findings { schema: SCHEMA, rigscale: "0.1.0".into(), findings, unjudged: Vec::new() },
        );
        if std::env::var_os("RIGSCALE_BLESS").is_some() {
            write_json(&file, &record).unwrap();
        }
        let committed: Findings = read_json(&file).unwrap();
        assert_eq!(committed.findings, record.findings, "{}: RIGSCALE_BLESS=1 rewrites it", folder.display());
        codes
    };
    let name = |folder: &Path| folder.file_name().unwrap().to_string_lossy().into_owned();
    folders.map(|folder| (name(&folder), codes(&folder))).collect()
}

/// The table of sources says by hand what each shows, so that rewriting findings cannot hide a wrong judgement.
#[test]
fn recorded_measurements_are_judged_as_the_threads_want_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured/SOURCES.md");
    let page = fs::read_to_string(page).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let codes =
            cells.get(3)?.split(", ").filter(|code| *code != "none").map(|code| code.trim_matches('`').to_owned());
        Some((cells[0].to_owned(), codes.collect::<BTreeSet<String>>()))
    };
    let rows: BTreeMap<_, _> = page.lines().filter(|line| line.starts_with("| ")).skip(2).filter_map(row).collect();
    assert_eq!(recorded(), rows);
    assert!(rows["in-order"].is_empty() && rows["peers-refused"].is_empty() && rows["nvlink-bridge"].is_empty());
}

#[test]
fn what_was_measured_is_judged_again_anywhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured");
    for (name, exit, words) in [
        ("in-order", 0, "No findings"),
        ("nvlink-bridge", 0, "NVLink"),
        ("wrong-data", 4, "peer-wrong-data"),
        ("peer-hang", 5, "hang-peer"),
        ("slow-under-load", 4, "at rest Gen1 x16, while it copied Gen2 x16"),
        ("flapping-riser", 4, "between Gen1 x16 and Gen5 x16"),
        ("flapping-riser", 4, "not readable at e1:00: denied"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
        let output = command.args(["measure", "--from"]).arg(root.join(name)).env("NO_COLOR", "1").output().unwrap();
        let raw = String::from_utf8_lossy(&output.stdout).into_owned();
        let text = raw.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(exit), "{name}: {raw}");
        assert!(text.contains(words), "{name}: {raw}");
        assert!(raw.lines().all(|line| line.chars().count() <= 80), "{name}: {raw}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    let output = command.args(["measure", "--from", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn links_in_order_are_measured_checked_and_quiet() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    nccl(folder.path());
    let output = measure(folder.path(), "good", &["--sum-mib", "4"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(findings(folder.path(), "good"), []);
    let lines = lines(folder.path(), "good");
    let copies: Vec<_> =
        lines.iter().filter_map(|line| if let LinkLine::Copy(copy) = line { Some(copy) } else { None }).collect();
    let of = |pattern| copies.iter().filter(|copy| copy.pattern == pattern).count();
    // each GPU and the host; each ordered pair by copy engine, writing and reading
    assert_eq!((of(Pattern::HostToDevice), of(Pattern::Local), of(Pattern::HostToAll)), (2, 2, 1));
    assert_eq!(of(Pattern::HostAllBothWays), 1);
    assert_eq!((of(Pattern::Peer), of(Pattern::PeerBothWays)), (6, 1));
    assert!(copies.iter().all(|copy| copy.check.is_good() && copy.samples == 3), "{copies:?}");
    // 4 copies of 4 MiB a millisecond, and of what goes both ways twice that
    let both = copies.iter().find(|copy| copy.pattern == Pattern::HostBothWays).unwrap();
    assert!((both.rate.median.0 - 2.0 * 16.0 * 1_048_576.0 / 1e-3).abs() < 1e3, "{both:?}");
    let sums: Vec<_> =
        lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None }).collect();
    assert_eq!(sums.len(), 12, "four sizes, three arms: {sums:?}");
    assert_eq!(sums.iter().filter(|sum| sum.arm == SumArm::P2pSys && sum.bytes.0 == 4 << 20).count(), 1);
    assert!(sums.iter().all(|sum| sum.check.is_good() && sum.via.len() == 1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("P2P_DISABLE=1") && text.contains("41:00 → 61:00"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn each_wrong_is_a_finding_of_its_own_with_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    for (case, code, exit) in [
        ("false-grant", "peer-false-grant", 4),
        ("wrong", "peer-wrong-data", 4),
        ("host-wrong", "link-wrong-data", 4),
        ("fails", "peer-failed", 4),
        ("dies", "peer-failed", 4),
        ("late-word", "peer-wrong-data", 4),
    ] {
        let output = measure(folder.path(), case, &["--sum-mib", "0"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{case}: {said}");
        let found = findings(folder.path(), case);
        assert!(!found.is_empty() && found.iter().all(|(found, _)| found == code), "{case}: {found:?}");
        // what one pair does wrong by three engines and both ways has one cause
        assert!(!code.starts_with("peer-") || code == "peer-failed" || found.len() == 1, "{case}: {found:?}");
    }
}

#[test]
fn a_refused_access_is_no_fault_and_is_staged() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    let output = measure(folder.path(), "refused", &["--sum-mib", "0"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines(folder.path(), "refused");
    let peers = lines.iter().filter_map(|line| match line {
        LinkLine::Copy(copy) if copy.pattern == Pattern::Peer => Some(copy.direct),
        _ => None,
    });
    assert_eq!(peers.collect::<Vec<_>>(), [Some(false); 2], "by the copy engine only, and not direct");
}

#[test]
fn a_hang_ends_in_bounded_time_and_the_rest_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    let output = measure(folder.path(), "hang", &["--sum-mib", "0", "--limit", "2s"]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let found = findings(folder.path(), "hang");
    assert!(found.len() == 2 && found.iter().all(|(code, _)| code == "hang-peer"), "both ways: {found:?}");
    assert!(lines(folder.path(), "hang").iter().any(|line| matches!(line, LinkLine::Copy(_))));
}

#[test]
fn ranks_that_never_meet_are_a_hang() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    nccl(folder.path());
    let output = measure(folder.path(), "never-meets", &["--sum-mib", "4", "--limit", "2s"]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let found = findings(folder.path(), "never-meets");
    assert!(found.iter().any(|(code, remedy)| code == "hang-sum" && remedy.contains("go well with")), "{found:?}");
}

#[test]
fn sums_that_go_well_through_the_host_only_say_so() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    nccl(folder.path());
    for (case, code) in [("sum-wrong", "sum-wrong"), ("sum-fails", "sum-failed")] {
        let output = measure(folder.path(), case, &["--sum-mib", "4"]);
        assert_eq!(output.status.code(), Some(4), "{case}: {}", String::from_utf8_lossy(&output.stderr));
        let found = findings(folder.path(), case);
        let (_, remedy) = found.iter().find(|(found, _)| found == code).unwrap();
        assert!(remedy.contains("go well with NCCL_P2P_DISABLE=1"), "{case}: {found:?}");
    }
}

/// NVML that shows a sleeping link when it is first asked, and Gen2 of an awake GPU afterwards.
fn nvml(folder: &Path) {
    let code = "
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **to) { *to = (void *)1; return 0; }
        int nvmlDeviceGetCurrPcieLinkGeneration(void *gpu, unsigned *to) {
            static int asked; *to = asked++ < 2 ? 1 : 2; return 0; }
        int nvmlDeviceGetCurrPcieLinkWidth(void *gpu, unsigned *to) { *to = 16; return 0; }
        int nvmlDeviceGetPerformanceState(void *gpu, int *to) { static int asked; *to = asked++ < 2 ? 8 : 0; return 0; }
        int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *to) { *to = 0x20; return 0; }
        int nvmlDeviceGetPcieReplayCounter(void *gpu, unsigned *to) { static int asked; *to = asked++ / 2; return 0; }
        int nvmlDeviceGetTotalEccErrors(void *gpu, int kind, int since, unsigned long long *to) { *to = 3; return 0; }";
    let place = folder.join("nvml.c");
    fs::write(&place, code).unwrap();
    let library = folder.join("libnvidia-ml.so.1");
    let built = Command::new("cc").args(["-w", "-shared", "-fPIC", "-o"]).arg(library).arg(&place).status().unwrap();
    assert!(built.success());
}

#[test]
fn links_are_looked_at_while_gpus_copy_and_shown_beside_what_they_were_at_rest() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    nvml(folder.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").env("RIGSCALE_LIBRARY_PATH", folder.path()).env("LD_LIBRARY_PATH", folder.path());
    command.env("RIGSCALE_CACHE", folder.path().join("cache")).stdin(Stdio::null());
    command.args(["measure", "--quick", "--copy-mib", "4", "--sum-mib", "0", "-o"]).arg(folder.path().join("load"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = lines(folder.path(), "load");
    let loads: Vec<_> =
        lines.iter().filter_map(|line| if let LinkLine::Load(load) = line { Some(load) } else { None }).collect();
    assert_eq!(loads.len(), 2, "{text}");
    for load in loads {
        let shown = [load.at_rest, load.least, load.most].map(|lanes| lanes.map(|lanes| lanes.to_string()));
        assert_eq!(shown.map(Option::unwrap), ["Gen1 x16", "Gen2 x16", "Gen2 x16"]);
        assert!(3 < load.samples && load.p_state == Some(0) && load.replays.is_some_and(|replays| 0 < replays));
    }
    assert!(text.contains("at rest Gen1 x16, while it copied Gen2 x16"), "{text}");
    let codes: BTreeSet<String> = findings(folder.path(), "load").into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), ["gpu-throttled", "link-replays"]);
    let memory = lines.iter().filter(|line| matches!(line, LinkLine::Counter(line) if line.counted() == Some(0)));
    assert_eq!(memory.count(), 2, "memory errors of both");
}

#[test]
fn what_does_not_fit_is_refused_with_what_does() {
    let folder = tempfile::tempdir().unwrap();
    driver(folder.path());
    for (flags, word) in [(["--sum-mib", "16384"], "room for 7.00 GiB"), (["--copy-mib", "4096"], "needs 8.00 GiB")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
        command.env("RIGSCALE_LIBRARY_PATH", folder.path()).args(["measure", "--quick"]).args(flags);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(flags[0]) && said.contains(word), "{said}");
    }
}

#[test]
fn a_machine_without_a_gpu_has_no_links_to_measure() {
    let folder = tempfile::tempdir().unwrap();
    library(folder.path(), "libcuda.so.1", "driver.rs", "", &[("cuInit", "(unsigned flags) { return 100; }".into())]);
    let output = measure(folder.path(), "none", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // a card that stands in the machine and cannot be used is a fault
    let cards = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().filter_map(Result::ok).filter(|device| {
        let is = |file: &str, start: &str| {
            fs::read_to_string(device.path().join(file)).is_ok_and(|text| text.starts_with(start))
        };
        is("vendor", "0x10de") && is("class", "0x03")
    });
    let (exit, word) = if 0 < cards.count() { (4, "rigscale probe") } else { (2, "no NVIDIA GPU") };
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(word) && !said.contains("--device cpu"), "{said}");
}
