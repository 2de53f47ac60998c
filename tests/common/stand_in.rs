//! Stand-ins for CUDA's libraries, compiled here and found before any other: every function that rigscale calls exists,
//! hands out handles and does nothing, but for those whose bodies a test gives. What the host does can then be tested on
//! any machine; nothing is computed.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A library of all functions that a table in the source declares, in `folder`.
pub(crate) fn library(folder: &Path, file: &str, table: &str, leave_out: &str, bodies: &[(&str, String)]) {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda").join(table)).unwrap();
    let declared = source.split("functions! {").nth(1).unwrap().split("\n}\n").next().unwrap().to_owned();
    let names = declared.lines().filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next());
    let mut code = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n".to_owned();
    for name in names.filter(|name| *name != leave_out) {
        let given = bodies.iter().find(|(of, _)| *of == name);
        let body = given.map_or_else(|| "(void) { return 0; }".to_owned(), |(_, body)| body.clone());
        code.push_str(&format!("long {name}{body}\n"));
    }
    let place = folder.join(format!("{file}.c"));
    fs::write(&place, code).unwrap();
    let built =
        Command::new("cc").args(["-w", "-shared", "-fPIC", "-o"]).arg(folder.join(file)).arg(&place).status().unwrap();
    assert!(built.success(), "{file}");
}

/// The bodies of a driver with one GPU.
pub(crate) fn one_gpu(capability: u32, mode: u32) -> Vec<(&'static str, String)> {
    let attribute = format!(
        "(int *value, int attribute, int device) {{
            *value = attribute == 75 ? {capability} : attribute == 76 ? 5 : attribute == 20 ? {mode} : 132; return 0; }}"
    );
    let rows = [
        ("cuDeviceGetCount", "(int *count) { *count = 1; return 0; }"),
        ("cuDeviceGetPCIBusId", "(char *to, int len, int device) { strcpy(to, \"0000:41:00.0\"); return 0; }"),
        ("cuDeviceGetName", "(char *to, int len, int device) { strcpy(to, \"Stand-in\"); return 0; }"),
        ("cuDeviceGetAttribute", attribute.as_str()),
        ("cuDriverGetVersion", "(int *version) { *version = 13000; return 0; }"),
    ];
    rows.map(|(name, body)| (name, body.to_owned())).to_vec()
}
