//! The machine of a prediction as a sketch: nodes, links with their rates, what limits.

use crate::predict::{Board, NodeKind, Ring, Verified};
use crate::report::{Sketch, SketchKind, SketchLink, SketchPart};

/// The machine, with empty slots, and with the link marked that limits `ring`.
pub(super) fn sketch(board: &Board, ring: &Ring) -> Sketch {
    let sockets = (0..board.nodes.len()).filter(|node| board.nodes[*node].kind == NodeKind::Socket);
    Sketch { schema: 1, title: board.title.clone(), hosts: sockets.map(|socket| part(board, ring, socket)).collect() }
}

fn part(board: &Board, ring: &Ring, at: usize) -> SketchPart {
    let node = &board.nodes[at];
    let below =
        (0..board.nodes.len()).filter(|node| board.nodes[*node].above.as_ref().is_some_and(|link| link.parent == at));
    let kind = match node.kind {
        NodeKind::Socket => SketchKind::Host,
        NodeKind::Root => SketchKind::Port,
        NodeKind::Switch => SketchKind::Switch,
        NodeKind::Chipset => SketchKind::Chipset,
        NodeKind::Slot => SketchKind::Slot,
    };
    // a root complex is part of its processor: no link leads to it
    let link = node.above.as_ref().filter(|link| link.lanes.is_some() || link.rate.is_some()).map(|link| {
        let lanes = board.lanes(at);
        let rates = lanes.map(|lanes| lanes.rate()).into_iter().chain(link.rate);
        SketchLink {
            name: lanes.map_or_else(|| "link".to_owned(), |lanes| lanes.to_string()),
            rate: rates.min_by(|one, other| one.0.total_cmp(&other.0)),
            checked: link.verified != Verified::Memory,
            limits: ring.limiting == Some(at),
        }
    });
    SketchPart {
        kind,
        lines: lines(board, ring, at),
        link,
        below: below.map(|node| part(board, ring, node)).collect(),
        across: across(board, at),
    }
}

/// What stands in a box: of a slot its card first.
fn lines(board: &Board, ring: &Ring, at: usize) -> Vec<String> {
    let node = &board.nodes[at];
    match node.kind {
        NodeKind::Socket => {
            let mut lines = vec![node.name.clone(), board.cpu.to_string(), board.memory.to_string()];
            lines.extend((ring.limiting == Some(at)).then(|| "memory limits".to_owned()));
            lines
        }
        NodeKind::Slot => {
            let Some(seat) = board.seats.iter().position(|seat| seat.node == at) else {
                return vec!["empty".to_owned(), node.name.clone()];
            };
            let mut lines = vec![board.seats[seat].card.title.clone(), node.name.clone()];
            let bridge = board.bridges.iter().find(|bridge| bridge.a == seat || bridge.b == seat);
            lines.extend(bridge.map(|bridge| {
                let other = if bridge.a == seat { bridge.b } else { bridge.a };
                format!("NVLink to {}", board.nodes[board.seats[other].node].name)
            }));
            lines
        }
        _ => vec![node.name.clone()],
    }
}

/// What joins a processor to the next.
fn across(board: &Board, at: usize) -> Option<String> {
    let link = board.across.iter().find(|link| link.a == at || link.b == at)?;
    let checked = if link.verified == Verified::Memory { ", not checked" } else { "" };
    Some(format!("{} between sockets{checked}", link.rate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::{Calibration, Exchange, platform, platform_names, ring};
    use crate::report::sketch_svg;

    #[test]
    fn every_platform_is_drawn_with_its_slots_and_its_limit() {
        for name in platform_names() {
            let board = platform(name).unwrap();
            let ring = ring(&board, &Exchange::default(), &Calibration::default()).unwrap();
            let sketch = sketch(&board, &ring);
            assert!(sketch.is_sound(), "{name}");
            let svg = sketch_svg(&sketch).unwrap();
            let slots = board.nodes.iter().filter(|node| node.kind == NodeKind::Slot);
            slots.for_each(|slot| assert!(svg.contains(&slot.name), "{name}: {}", slot.name));
            let link = ring.limiting.filter(|node| board.nodes[*node].kind != NodeKind::Socket);
            assert_eq!(svg.matches("the limit").count(), usize::from(link.is_some()), "{name}: {}", ring.limit);
        }
    }
}
