//! A process whose parent is killed ends too.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers fail their test; processes of the test speak to it"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rigscale::device::end_with_parent;

/// What a started process is: "parent", "child", or "stranger", who names a parent that is not its own.
const ROLE: &str = "RIGSCALE_TEST_FAMILY";

fn start(role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_ends_with_its_parent", "--nocapture"])
        .env(ROLE, format!("{role} {}", std::process::id()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The first line of what `child` says about itself.
fn said(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said =
        lines.map_while(Result::ok).filter_map(|line| line.split_once("I am ").map(|(_, who)| who.to_owned()));
    said.next().expect("the process says something")
}

fn play(role: &str) {
    let (role, parent) = role.split_once(' ').unwrap();
    let parent: u32 = parent.parse().unwrap();
    match role {
        "parent" => println!("I am {}", said(&mut start("child"))),
        "child" => {
            end_with_parent(parent).unwrap();
            println!("I am {}", std::process::id());
        }
        "stranger" => return println!("I am {}", end_with_parent(parent + 1).unwrap_err()),
        _ => panic!("no role {role}"),
    }
    std::thread::sleep(Duration::from_secs(100));
}

#[test]
fn a_child_ends_with_its_parent() {
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    let mut parent = start("parent");
    let child = format!("/proc/{}", said(&mut parent));
    assert!(Path::new(&child).exists());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let begin = Instant::now();
    while Path::new(&child).exists()
        && !std::fs::read_to_string(format!("{child}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    {
        assert!(begin.elapsed() < Duration::from_secs(20), "{child} is an orphan");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut stranger = start("stranger");
    assert_eq!(said(&mut stranger), format!("could not share the life of process {}", std::process::id() + 1));
    stranger.wait().unwrap();
}
