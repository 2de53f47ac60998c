//! The telemetry of GPUs on disk: round trips, and what bad files are answered with.
#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rigscale::record::*;
use rigscale::topology::{Missing, ThrottleReasons, Why};
use rigscale::units::{Bytes, Celsius, Hertz, Joules, Seconds, Watts};

const GPUS: [&str; 2] = ["0000:41:00.0", "0000:61:00.0"];

fn head() -> GpuHead {
    GpuHead {
        schema: SCHEMA,
        rigscale: "0.1.0".into(),
        trial: "launch-1_ddp-2".into(),
        gpus: GPUS.map(str::to_owned).into(),
        interval_s: Seconds(0.1),
        epoch_s: Seconds(12.5),
    }
}

fn sample(index: usize) -> GpuSample {
    GpuSample {
        at_s: Seconds(0.05 * index as f64),
        gpu: GPUS[index % 2].into(),
        power_w: Some(Watts(412.0 + 1.0 / 3.0)),
        energy_j: index.is_multiple_of(2).then_some(Joules(1e6 + 41.2 * index as f64)),
        temperature_c: Some(Celsius(71.0)),
        sm_clock_hz: Some(Hertz(2.505e9)),
        memory_clock_hz: Some(Hertz(1.4001e10)),
        throttle_reasons: Some(ThrottleReasons::POWER_CAP | ThrottleReasons(1 << 63)),
        pcie_gen: Some(5),
        pcie_width: Some(16),
        pcie_replays: Some(u32::MAX),
        memory_used_bytes: Some(Bytes(61 << 30)),
        busy: Some(0.99),
    }
}

/// A card that offers nothing.
fn bare(index: usize) -> GpuSample {
    GpuSample {
        power_w: None,
        energy_j: None,
        temperature_c: None,
        sm_clock_hz: None,
        memory_clock_hz: None,
        throttle_reasons: None,
        pcie_gen: None,
        pcie_width: None,
        pcie_replays: None,
        memory_used_bytes: None,
        busy: None,
        ..sample(index)
    }
}

fn absence() -> GpuAbsence {
    GpuAbsence {
        at_s: Seconds(0.05),
        gpu: GPUS[1].into(),
        field: Some("energy_j".into()),
        reason: Missing::new(Why::Unsupported, "NVML: the device does not support it"),
    }
}

fn write(path: &Path) {
    let mut writer = GpuWriter::create(path, &head()).unwrap();
    writer.sample(&sample(0)).unwrap();
    writer.absent(&absence()).unwrap();
    writer.sample(&sample(1)).unwrap();
    writer.sample(&bare(2)).unwrap();
    writer.end().unwrap();
}

/// A good file in a folder of its own, and its lines.
fn good() -> (tempfile::TempDir, PathBuf, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(GPU_FILE);
    write(&path);
    let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    (folder, path, lines)
}

#[test]
fn telemetry_survives_a_round_trip_to_the_bit() {
    let (_folder, path, lines) = good();
    let file = read_gpu_file(&path).unwrap();
    assert_eq!(file, GpuFile { head: head(), samples: vec![sample(0), sample(1), bare(2)], absences: vec![absence()] });
    assert_eq!(lines[4], r#"{"line":"sample","at_s":0.1,"gpu":"0000:41:00.0"}"#, "no number where there is none");
}

#[test]
fn a_cut_file_keeps_its_complete_lines() {
    let (_folder, path, lines) = good();
    fs::write(&path, format!("{}\n{}\n{}", lines[0], lines[1], &lines[3][..lines[3].len() / 2])).unwrap();
    let file = read_gpu_file(&path).unwrap();
    assert_eq!((file.samples, file.absences), (vec![sample(0)], vec![]));
}

#[test]
fn a_file_of_an_older_schema_reads() {
    let (_folder, path, lines) = good();
    fs::write(&path, lines.join("\n").replace("\"schema\":1", "\"schema\":0") + "\n").unwrap();
    assert_eq!(read_gpu_file(&path).unwrap().samples.len(), 3);
}

#[test]
fn bad_lines_are_named_by_file_line_and_field() {
    let (_folder, path, lines) = good();
    let with = |number: usize, old: &str, new: &str| {
        let mut lines = lines.clone();
        assert!(lines[number - 1].contains(old), "{} holds no {old}", lines[number - 1]);
        lines[number - 1] = lines[number - 1].replace(old, new);
        lines.join("\n") + "\n"
    };
    let rows: &[(String, &str)] = &[
        (with(2, "{\"line\"", "{garbled"), ":2:"),
        (with(2, "\"pcie_gen\":5", "\"pcie_gen\":\"fast\""), "field `pcie_gen`: invalid type"),
        (with(2, "\"pcie_gen\":5", "\"pcie_gen\":0"), "field `pcie_gen` is 0"),
        (with(2, "\"pcie_gen\":5", "\"fan\":5"), "unknown field `fan`"),
        (with(2, "\"power_w\":412", "\"power_w\":-412"), "field `power_w` is -412.3"),
        (with(2, "\"temperature_c\":71.0", "\"temperature_c\":NaN"), ":2:"),
        (with(2, "\"temperature_c\":71.0", "\"temperature_c\":1e999"), ":2:"),
        (with(2, "\"temperature_c\":71.0", "\"temperature_c\":1e99"), "which is no temperature"),
        (with(2, "\"at_s\":0.0", "\"at_s\":-1e9"), "field `at_s` is -1000000000, which is no moment"),
        (with(2, "\"busy\":0.99", "\"busy\":99"), "field `busy` is 99, a share is at most 1"),
        (with(2, "\"at_s\":0.0,", ""), "missing field `at_s`"),
        (with(2, "0000:41", "0000:42"), "field `gpu` is \"0000:42:00.0\", which the first line does not name"),
        (with(4, "\"at_s\":0.05", "\"at_s\":0.01"), ":4:0: field `at_s` is 0.01, which goes back in time"),
        (with(3, "\"unsupported\"", "\"tired\""), "field `reason.missing`: unknown variant `tired`"),
        (with(3, "\"absent\"", "\"gone\""), "field `line` should be gpus, sample or absent"),
        (with(1, "\"line\":\"gpus\"", "\"line\":\"run\""), "field `line` should be"),
        (with(1, "\"schema\":1", "\"schema\":99"), "has schema 99; this rigscale reads up to 1"),
        (with(1, "0000:61", "0000:41"), "field `gpus` names 0000:41:00.0 twice"),
        (with(1, "\"interval_s\":0.1", "\"interval_s\":0"), "field `interval_s` is 0"),
        (lines[1..].join("\n") + "\n", "the first line should be a `gpus` line"),
        (lines.join("\n") + "\n" + &lines[0] + "\n", "a second `gpus` line"),
        (String::new(), "the file is empty"),
    ];
    for (text, expected) in rows {
        fs::write(&path, text).unwrap();
        let error = read_gpu_file(&path).expect_err("this file should not read").to_string();
        assert!(error.contains(expected) && error.contains("gpu.jsonl"), "{error}\n  should contain {expected}");
    }
}

#[test]
#[should_panic(expected = "goes back in time")]
fn the_writer_asserts_the_order_of_samples() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = GpuWriter::create(&folder.path().join(GPU_FILE), &head()).unwrap();
    writer.sample(&sample(2)).unwrap();
    let _ = writer.sample(&sample(1));
}

#[test]
#[should_panic(expected = "field `power_w` is NaN")]
fn the_writer_asserts_that_numbers_are_finite() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = GpuWriter::create(&folder.path().join(GPU_FILE), &head()).unwrap();
    let _ = writer.sample(&GpuSample { power_w: Some(Watts(f64::NAN)), ..sample(0) });
}

#[test]
fn a_file_is_never_written_over() {
    let (_folder, path, _) = good();
    assert!(matches!(GpuWriter::create(&path, &head()), Err(RecordError::File { attempt: "create", .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..1500) {
        let (_folder, path, lines) = good();
        let mut bytes = lines.join("\n").into_bytes();
        bytes.truncate(cut);
        bytes.extend(noise);
        fs::write(&path, bytes).unwrap();
        let _ = read_gpu_file(&path);
    }
}
