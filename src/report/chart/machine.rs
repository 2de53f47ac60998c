//! A picture of a machine: sockets, root ports, switches and GPUs, each link with its rate.

use crate::report::sketch::{Sketch, SketchPart};
use crate::report::text::printable_text;
use crate::topology::Topology;
use crate::units::BytesPerSecond;

use super::NARROW_BELOW;
use super::machine_tree::{Kind, LinkText, Part, parts};
use super::scene::{Align, EDGE, Face, Ink, Scene};

/// Height of a line of text in a box, and what is left above and below all of them.
const LINE: f64 = 15.0;
const PAD: f64 = 6.0;

/// Space between neighbours: the two lines below a link fit there.
const GAP: f64 = 14.0;

/// Space between sockets, with a line of text.
const SOCKET_GAP: f64 = 30.0;

/// Readers without the chart's fonts see letters that are wider by up to this; bold ones by more.
const FALLBACK: f64 = 1.2;
const FALLBACK_BOLD: f64 = 1.3;

/// Least height of a row: a link's three lines of text.
const ROW: f64 = 48.0;

/// Where the columns stand on a wide page.
struct Columns {
    /// Left and right edge of each column; the last one is that of GPUs.
    edges: Vec<(f64, f64)>,
}

impl Columns {
    const HOST: f64 = 100.0;
    const PORT: f64 = 100.0;
    const STUB: f64 = 22.0;
    const GPU: (f64, f64) = (100.0, 250.0);
    const LINK: (f64, f64) = (70.0, 150.0);

    /// None where so many columns do not fit. With `ports` the second column is that of root ports, to which no link leads:
    /// they are part of the processor.
    fn of(levels: usize, width: f64, ports: bool) -> Option<Self> {
        let links = levels.saturating_sub(if ports { 2 } else { 1 }).max(1) as f64;
        let between = levels.saturating_sub(2) as f64;
        let stub = if ports { Self::STUB } else { 0.0 };
        let room = width - 2.0 * EDGE - Self::HOST - between * Self::PORT - stub;
        let link = ((room - Self::GPU.1) / links).clamp(Self::LINK.0, Self::LINK.1);
        let gpu = (room - link * links).min(Self::GPU.1);
        if gpu < Self::GPU.0 {
            return None;
        }
        let mut edges = vec![(EDGE, EDGE + Self::HOST)];
        for level in 1..levels {
            let last = level + 1 == levels;
            let before = edges[level - 1].1;
            let left = before + if ports && level == 1 && !last { Self::STUB } else { link };
            edges.push((left, left + if last { gpu } else { Self::PORT }));
        }
        Some(Self { edges })
    }
}

/// The picture; none for a machine without NVIDIA GPUs.
pub(super) fn scene(topology: &Topology, width: f64) -> Option<Scene> {
    let hosts = parts(topology);
    if !hosts.iter().any(|host| host.has_gpu()) {
        return None;
    }
    // boards sold alone leave the product's name to whoever builds the machine
    let product = topology.machine.product.as_ref().ok().filter(|product| !product.contains("Product Name"));
    let name = product.or(topology.machine.board.as_ref().ok());
    let name = printable_text(name.map_or("this machine", String::as_str));
    let note = "Links when awake, in one direction. Dashed and !: narrower or slower than the device.";
    Some(drawn(&hosts, &format!("Links of {name}"), note, (width, true)))
}

/// The picture of a described machine.
pub(super) fn sketched(sketch: &Sketch, width: f64) -> Scene {
    let of = |(socket, host): (usize, &SketchPart)| Part::sketched(host, u32::try_from(socket).unwrap_or(u32::MAX));
    let hosts: Vec<Part> = sketch.hosts.iter().enumerate().map(of).collect();
    let note = "Links in one direction. Dashed: from memory, not checked. !: limits the ring.";
    drawn(&hosts, &printable_text(&sketch.title), note, (width, false))
}

/// Hosts one below the other, on a page so wide; with or without a column of root ports.
fn drawn(hosts: &[Part], title: &str, note: &str, (width, ports): (f64, bool)) -> Scene {
    let title = Face::TITLE.shortened(title, width - 2.0 * EDGE);
    let (mut scene, top) = Scene::titled(width, &title, note);
    let levels = hosts.iter().map(Part::levels).max().unwrap_or(1).max(2);
    let columns = if width < NARROW_BELOW { None } else { Columns::of(levels, width, ports) };
    let mut y = top + 4.0;
    for (index, host) in hosts.iter().enumerate() {
        if 0 < index {
            y = between(&mut scene, y, &hosts[index - 1], host, columns.is_some());
        }
        y = match &columns {
            Some(columns) => wide(&mut scene, host, columns, (0, y)),
            None => narrow(&mut scene, host, (0, y)),
        };
    }
    scene.height = y + EDGE;
    scene
}

/// What joins two sockets; returns where the next one begins.
fn between(scene: &mut Scene, y: f64, upper: &Part, lower: &Part, wide: bool) -> f64 {
    let Some(words) = upper.across.as_ref().filter(|_| upper.socket != lower.socket) else { return y + GAP };
    let (x, below) = (EDGE + if wide { Columns::HOST / 2.0 } else { 24.0 }, y + SOCKET_GAP);
    scene.line((x, y), (x, below), 4.0, Ink::Axis);
    scene.text((x + 12.0, y + SOCKET_GAP / 2.0 + 4.0), Align::Start, Face::SMALL, Ink::Muted, words);
    below
}

fn own_height(part: &Part) -> f64 {
    (part.lines.len() as f64 * LINE + 2.0 * PAD).max(if part.link.is_some() { ROW } else { 0.0 })
}

/// Height of a part with all below it.
fn height(part: &Part) -> f64 {
    let below: f64 = part.below.iter().map(height).sum::<f64>() + GAP * part.below.len().saturating_sub(1) as f64;
    below.max(own_height(part))
}

/// Draws a part at its column and all below it to the right; returns the y below it.
fn wide(scene: &mut Scene, part: &Part, columns: &Columns, (level, y): (usize, f64)) -> f64 {
    let bottom = y + height(part);
    let (left, right) = columns.edges[if part.kind == Kind::Gpu { columns.edges.len() - 1 } else { level }];
    let middle = f64::midpoint(y, bottom);
    let mut below = y;
    for child in &part.below {
        let child_middle = below + height(child) / 2.0;
        let child_left = columns.edges[if child.kind == Kind::Gpu { columns.edges.len() - 1 } else { level + 1 }].0;
        let start = if part.kind == Kind::Host { right } else { elbow(scene, (right, middle), child_middle) };
        link(scene, child.link.as_ref(), (start, child_left), child_middle);
        below = wide(scene, child, columns, (level + 1, below)) + GAP;
    }
    let half = (part.lines.len() as f64 * LINE + 2.0 * PAD) / 2.0;
    // a host is as tall as all that hangs on it, so that what joins sockets is short
    let (from, to) = if part.kind == Kind::Host { (y, bottom) } else { (middle - half, middle + half) };
    block(scene, part, (left, from), (right, to));
    bottom
}

/// From the middle of a box to the height of a child; returns where its link begins.
fn elbow(scene: &mut Scene, from: (f64, f64), y: f64) -> f64 {
    const OUT: f64 = 7.0;
    if (y - from.1).abs() < 0.5 {
        return from.0;
    }
    scene.line(from, (from.0 + OUT, from.1), 1.5, Ink::Axis);
    scene.line((from.0 + OUT, from.1), (from.0 + OUT, y), 1.5, Ink::Axis);
    from.0 + OUT
}

/// A link from left to right, as thick as it is fast, with what it is above it and its rate below.
fn link(scene: &mut Scene, link: Option<&LinkText>, (left, right): (f64, f64), y: f64) {
    let Some(link) = link else {
        scene.line((left, y), (right, y), 1.5, Ink::Axis);
        return;
    };
    let ink = if link.short.is_some() { Ink::Danger } else { Ink::Blue };
    stroke(scene, link, (left, right), y);
    let middle = f64::midpoint(left, right);
    let face = if link.short.is_some() { Face { bold: true, ..Face::SMALL } } else { Face::SMALL };
    let mark = if link.short.is_some() { "! " } else { "" };
    scene.text(
        (middle, y - 7.0),
        Align::Middle,
        face,
        if ink == Ink::Danger { ink } else { Ink::Text },
        &format!("{mark}{}", link.name),
    );
    let below = [link.rate.map(|rate| rate.to_string()), link.short.clone()];
    for (line, text) in below.iter().flatten().enumerate() {
        let at = (middle, y + 15.0 + 12.0 * line as f64);
        scene.text(at, Align::Middle, Face::SMALL, Ink::Muted, &Face::SMALL.shortened(text, (right - left) / 1.06));
    }
}

/// The stroke of a link: dashed where it is short of its device or unknown.
fn stroke(scene: &mut Scene, link: &LinkText, (left, right): (f64, f64), y: f64) {
    const DASH: f64 = 6.0;
    let width = link.rate.map_or(1.5, thickness);
    let ink = if link.short.is_some() { Ink::Danger } else { Ink::Blue };
    if !link.dashed && link.rate.is_some() {
        scene.line((left, y), (right, y), width, ink);
        return;
    }
    let count = ((right - left) / (DASH * 1.7)).ceil() as usize;
    for dash in 0..count {
        let from = left + dash as f64 * DASH * 1.7;
        scene.line((from, y), ((from + DASH).min(right), y), width, if link.rate.is_some() { ink } else { Ink::Grey });
    }
}

/// 1.5 pixels for the slowest link, 6 for Gen5 x16.
fn thickness(rate: BytesPerSecond) -> f64 {
    (1.2 + 4.8 * (rate.0 / 63e9).sqrt()).min(8.0)
}

/// A box with its lines of text, the first of them bold, and a stripe that tells its kind.
fn block(scene: &mut Scene, part: &Part, from: (f64, f64), to: (f64, f64)) {
    let ink = match part.kind {
        Kind::Host => Ink::Blue,
        Kind::Port => Ink::Grey,
        Kind::Switch => Ink::Orange,
        Kind::Chipset => Ink::Vermilion,
        Kind::Gpu => Ink::Green,
    };
    scene.rect(from, to, Ink::Axis);
    scene.rect((from.0 + 1.0, from.1 + 1.0), (to.0 - 1.0, to.1 - 1.0), Ink::Paper);
    scene.rect(from, (from.0 + 4.0, to.1), ink);
    let room = to.0 - from.0 - 16.0;
    let tall = part.lines.len() as f64 * LINE;
    let first = f64::midpoint(from.1, to.1) - tall / 2.0 + LINE * 0.75;
    for (index, text) in part.lines.iter().enumerate() {
        let (face, ink) = if index == 0 { (Face::STRONG, Ink::Text) } else { (Face::SMALL, Ink::Muted) };
        let text = face.shortened(text, room / if face.bold { FALLBACK_BOLD } else { FALLBACK });
        scene.text((from.0 + 11.0, first + index as f64 * LINE), Align::Start, face, ink, &text);
    }
}

/// One box to a row, further in for each level, for a phone and for very deep machines; returns the y below the last.
fn narrow(scene: &mut Scene, part: &Part, (level, y): (usize, f64)) -> f64 {
    const STEP: f64 = 16.0;
    const IN: f64 = 8.0;
    let left = EDGE + level as f64 * STEP;
    let text = part.link.as_ref().map(LinkText::in_a_line);
    let boxed = part.lines.len() as f64 * LINE + 2.0 * PAD;
    let bottom = y + boxed + if text.is_some() { LINE } else { 0.0 };
    let right = scene.width - EDGE;
    block(scene, part, (left, y), (right, y + boxed));
    if let (Some(link), Some(text)) = (&part.link, text) {
        let ink = if link.short.is_some() { Ink::Danger } else { Ink::Muted };
        let face = Face { bold: link.short.is_some(), ..Face::SMALL };
        let text = face.shortened(&text, (right - left - 12.0) / 1.06);
        scene.text((left + 11.0, y + boxed + LINE - 3.0), Align::Start, face, ink, &text);
    }
    let (mut below, spine) = (bottom + GAP / 2.0, left + IN);
    let mut last = bottom;
    for child in &part.below {
        last = below + (child.lines.len() as f64 * LINE + 2.0 * PAD) / 2.0;
        match &child.link {
            Some(link) => stroke(scene, link, (spine, left + STEP), last),
            None => scene.line((spine, last), (left + STEP, last), 1.5, Ink::Axis),
        }
        below = narrow(scene, child, (level + 1, below)) + GAP / 2.0;
    }
    if !part.below.is_empty() {
        scene.line((spine, y + boxed), (spine, last), 1.5, Ink::Axis);
        return below - GAP / 2.0;
    }
    bottom
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::scene::{Mark, register_fonts};
    use crate::report::chart::{NARROW, WIDE};
    use crate::topology::from_yaml;

    fn recorded(name: &str) -> Topology {
        let path = format!("{}/tests/machines/{name}/topology.yaml", env!("CARGO_MANIFEST_DIR"));
        from_yaml(&std::fs::read_to_string(path).unwrap(), name).unwrap()
    }

    fn texts(scene: &Scene) -> Vec<&str> {
        let mut texts = Vec::new();
        for mark in &scene.marks {
            if let Mark::Text { text, .. } = mark {
                texts.push(text.as_str());
            }
        }
        texts
    }

    #[test]
    fn no_text_touches_another_on_any_recorded_machine() {
        assert!(register_fonts());
        let mut drawn = 0;
        let machines = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
        for entry in std::fs::read_dir(machines).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()) {
            let name = entry.unwrap().file_name().into_string().unwrap();
            for width in [WIDE, NARROW] {
                let Some(scene) = scene(&recorded(&name), width) else { continue };
                assert_eq!(scene.collisions(), [""; 0], "{name} at {width}");
                drawn += 1;
            }
        }
        assert!(40 < drawn, "{drawn}");
    }

    #[test]
    fn each_gpu_stands_there_with_its_link_and_short_ones_are_marked() {
        assert!(register_fonts());
        let narrow = recorded("narrow-link");
        for width in [WIDE, NARROW] {
            let scene = scene(&narrow, width).unwrap();
            let said = texts(&scene);
            assert!(narrow.gpus.iter().all(|gpu| said.contains(&gpu.address.to_string().as_str())), "{said:?}");
            assert_eq!(said.iter().filter(|text| text.starts_with('!')).count(), 1, "{said:?}");
            assert!(said.iter().any(|text| text.contains("! Gen4 x8")), "{said:?}");
            assert!(said.iter().any(|text| text.contains("of Gen4 x16")), "{said:?}");
            assert!(said.iter().any(|text| text.contains("31.5 GB/s")), "{said:?}");
            assert!(said.contains(&"0000:40:01.1"), "the address of a root port is whole: {said:?}");
        }
        let server = recorded("server-8gpu");
        let scene = scene(&server, WIDE).unwrap();
        assert_eq!(texts(&scene).iter().filter(|text| **text == "switch").count(), 4);
        assert!(texts(&scene).iter().any(|text| text.contains("between sockets")));
        assert!(super::scene(&recorded("no-driver"), WIDE).is_some());
    }

    #[test]
    fn a_deep_machine_and_hostile_names_are_drawn_all_the_same() {
        assert!(register_fonts());
        assert!([3, 5].iter().all(|levels| Columns::of(*levels, WIDE, true).is_some()));
        assert!(Columns::of(4, WIDE, false).is_some() && Columns::of(12, WIDE, true).is_none());
        let mut machine = recorded("threadripper-4gpu");
        machine.machine.product = Ok("<b>\u{202e}".to_owned() + &"long name ".repeat(40));
        machine.cpu.sockets.as_mut().unwrap()[0].cores.clear();
        for width in [WIDE, NARROW] {
            assert_eq!(scene(&machine, width).unwrap().collisions(), [""; 0]);
        }
        machine.gpus.clear();
        assert!(scene(&machine, WIDE).is_none());
    }
}
