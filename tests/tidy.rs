//! The rules of the house, as tests: who may use whom, how long a function may be, what must not stand in the code.
#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms that it may use; all may use `units` and `stats`. ARCHITECTURE.md shows the same table.
const ROOMS: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("stats", &[]),
    ("topology", &[]),
    ("model", &[]),
    ("record", &["topology", "model"]),
    ("predict", &["topology", "model", "record"]),
    ("tune", &["topology", "model", "record", "predict"]),
    ("device", &["topology"]),
    ("probe", &["topology", "record", "device"]),
    ("comm", &["device"]),
    ("train", &["model", "record", "device", "comm"]),
    ("launch", &["topology", "model", "record", "device", "comm", "train"]),
    ("analyze", &["topology", "model", "record"]),
    ("report", &["topology", "model", "record", "analyze"]),
    (
        "cli",
        &[
            "topology", "model", "record", "predict", "tune", "device", "probe", "comm", "train", "launch", "analyze",
            "report",
        ],
    ),
];

/// A function fits a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// A file is one thought.
const FILE_LINES_MAX: usize = 700;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    sources(&root.join("src")).iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// The room that a file belongs to; none for `lib.rs` and `main.rs`.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let name = inside.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&name)).then_some(name)
}

/// Code without comments and strings would need a parser; without comment lines is enough for these rules.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Rooms that a file names as `crate::room`, also inside `use crate::{room, …}`.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in code(text) {
        for part in line.split("crate::").skip(1) {
            let names = part
                .strip_prefix('{')
                .map_or_else(|| vec![part], |list| list.split([',', '}']).map(str::trim).collect());
            for name in names {
                let name: String =
                    name.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                if !name.is_empty() {
                    found.push((number, name));
                }
            }
        }
    }
    found
}

#[test]
fn rooms_use_only_their_allowed_neighbours() {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in all_sources() {
        let Some(room) = room(&path) else { continue };
        let Some(allowed) = rooms.get(room) else {
            wrong.push(format!("{path}: no room is called {room}; add it to the table or move the file"));
            continue;
        };
        for (line, used) in uses(&text) {
            let neighbour = rooms.contains_key(used.as_str());
            if neighbour
                && used != room
                && !["units", "stats"].contains(&used.as_str())
                && !allowed.contains(&used.as_str())
            {
                wrong.push(format!("{path}:{line}: {room} may not use {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_of_rooms_has_no_ring() {
    for (index, (room, allowed)) in ROOMS.iter().enumerate() {
        for used in *allowed {
            let place = ROOMS.iter().position(|(name, _)| name == used);
            assert!(place.is_some_and(|place| place < index), "{room} uses {used}, which must stand above it");
        }
    }
}

#[test]
fn the_architecture_page_shows_the_same_table() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (room, allowed) in ROOMS.iter().filter(|(room, _)| !["units", "stats", "cli"].contains(room)) {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{room}` "))).unwrap_or_else(|| {
            panic!("ARCHITECTURE.md has no row for `{room}`");
        });
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let shown = if allowed.is_empty() { "–".to_owned() } else { allowed.join(", ") };
        assert_eq!(last, shown, "ARCHITECTURE.md, row `{room}`");
    }
}

#[test]
fn every_room_opens_with_what_it_knows_hides_and_never_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, _) in ROOMS {
        let file = root.join(room).join("mod.rs");
        let file = if file.exists() { file } else { root.join(format!("{room}.rs")) };
        let text = fs::read_to_string(&file).unwrap();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ");
        for word in ["nows ", "hides ", "Never "] {
            assert!(head.contains(word), "the head of {room} does not say what it {}", word.trim());
        }
    }
}

#[test]
fn unsafe_code_lives_in_device_and_argues() {
    for (path, text) in all_sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(&text) {
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn");
            if !is_unsafe {
                continue;
            }
            assert!(path.starts_with("src/device/"), "{path}:{number}: unsafe code outside `device`");
            let before = &lines[number.saturating_sub(12)..number];
            let argued = before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            assert!(argued, "{path}:{number}: unsafe code without its argument");
        }
    }
}

#[test]
fn functions_fit_a_screen_and_files_hold_one_thought() {
    let mut wrong = Vec::new();
    for (path, text) in all_sources() {
        let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines = body.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{path}: {lines} lines; which two thoughts does it hold?"));
        }
        wrong.extend(long_functions(&path, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions begin at a line whose first words hold `fn` and end at the first `}` of the same indentation.
fn long_functions(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut open: Option<(usize, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        let opens = words.contains(&"fn") && !line.trim_start().starts_with("//") && !line.trim_end().ends_with(';');
        if opens && open.is_none() {
            open = Some((index, indent));
        }
        if let Some((_, depth)) = open
            && indent == depth
            && line.trim_start().starts_with(')')
            && line.ends_with(';')
        {
            // a declaration over several lines has no body
            open = None;
        }
        if let Some((start, depth)) = open
            && indent == depth
            && line.trim_start().starts_with('}')
        {
            let lines = index - start + 1;
            if lines > FUNCTION_LINES_MAX {
                wrong.push(format!("{path}:{}: a function of {lines} lines", start + 1));
            }
            open = None;
        }
    }
    wrong
}

/// True for a file that another one declares as a module of tests.
fn only_for_tests(path: &str, all: &[(String, String)]) -> bool {
    let name = Path::new(path).file_stem().unwrap().to_string_lossy();
    all.iter().any(|(_, text)| {
        ["mod", "pub(crate) mod"].iter().any(|word| text.contains(&format!("#[cfg(test)]\n{word} {name};")))
    })
}

#[test]
fn nothing_prints_below_the_command_line() {
    let all = all_sources();
    for (path, text) in &all {
        if room(path).is_none_or(|room| room == "cli") || only_for_tests(path, &all) {
            continue;
        }
        let body = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code(body) {
            for word in ["println!", "print!(", "dbg!"] {
                assert!(!line.contains(word), "{path}:{number}: {word} below `cli`");
            }
        }
    }
}

#[test]
fn every_dependency_says_why() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        } else if inside && line.contains('=') {
            assert!(line.contains(" # "), "Cargo.toml: no reason on the line `{line}`");
        }
    }
}

#[test]
fn no_reminder_is_left_behind() {
    let reminders = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "todo".to_owned() + "!("];
    for (path, text) in all_sources() {
        for reminder in &reminders {
            assert!(!text.contains(reminder.as_str()), "{path}: {reminder}");
        }
    }
}
