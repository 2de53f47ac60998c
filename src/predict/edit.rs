//! What-if: edits of a board, as typed behind `--set`.

use crate::topology::{Generation, Width};

use super::PredictError;
use super::board::{Board, NodeKind};
use super::quantity::rate;

/// Applies one edit: `slot.3.width=8`, `slot.3.gen=4`, `switch-a.rate=20 GB/s`. Nodes are named as in the platform;
/// `slot.3` is `slot-3`.
///
/// # Errors
/// No such node, no such key, or a value that cannot be: with what would be right.
pub fn edit(board: &mut Board, text: &str) -> Result<(), PredictError> {
    let wrong = |problem: String| PredictError::Edit { edit: text.to_owned(), problem };
    let (path, value) =
        text.split_once('=').ok_or_else(|| wrong("expected NODE.KEY=VALUE, such as slot.3.width=8".to_owned()))?;
    let (name, key) =
        path.rsplit_once('.').ok_or_else(|| wrong("expected NODE.KEY=VALUE, such as slot.3.width=8".to_owned()))?;
    let name = name.replacen("slot.", "slot-", 1);
    let node = board.nodes.iter().position(|node| node.name == name).ok_or_else(|| {
        let linked = board.nodes.iter().filter(|node| node.kind != NodeKind::Socket);
        let known: Vec<&str> = linked.map(|node| node.name.as_str()).collect();
        wrong(format!("no link leads to `{name}`; this platform has {}", known.join(", ")))
    })?;
    if !board.seats.iter().any(|seat| board.chain(seat.node).is_some_and(|chain| chain.contains(&node))) {
        return Err(wrong(format!("no GPU hangs on `{name}`: it would change nothing")));
    }
    let number = || value.trim().parse::<u64>().map_err(|_| wrong(format!("`{value}` is no number")));
    let done = match key {
        "width" => {
            let lanes = number()?;
            let width = Width::new(lanes)
                .ok_or_else(|| wrong(format!("{lanes} is no link width: expected 1, 2, 4, 8, 12, 16 or 32")))?;
            board.set_width(node, width)
        }
        "gen" => {
            let generation = number()?;
            let generation = Generation::new(generation)
                .ok_or_else(|| wrong(format!("{generation} is no PCIe generation: expected 1 to 7")))?;
            board.set_generation(node, generation)
        }
        "rate" => {
            let rate = rate(value).map_err(wrong)?;
            board.nodes[node].above.as_mut().map(|link| link.rate = Some(rate)).is_some()
        }
        _ => return Err(wrong(format!("`{key}` is no key: expected width, gen or rate"))),
    };
    if done { Ok(()) } else { Err(wrong(format!("`{name}` has no PCIe link above it"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::platform;

    #[test]
    fn edits_change_the_link_and_wrong_ones_say_what_would_be_right() {
        let mut board = platform("asrock-romed8-2t").unwrap();
        edit(&mut board, "slot.3.width=8").unwrap();
        edit(&mut board, "slot-3.gen=3").unwrap();
        let node = board.nodes.iter().position(|node| node.name == "slot-3").unwrap();
        assert_eq!(board.lanes(node).map(|lanes| lanes.to_string()).as_deref(), Some("Gen3 x8"));
        let rows = [
            ("slot.3.width=3", "no link width"),
            ("slot.3.width", "NODE.KEY=VALUE"),
            ("slot.99.width=8", "slot-1"),
            ("slot.3.colour=8", "expected width"),
            ("slot.3.gen=9", "1 to 7"),
            ("slot.3.rate=20", "unit"),
            ("slot.3.rate=-1 GB/s", "above 0"),
            ("socket-0.width=8", "no PCIe link"),
        ];
        for (text, word) in rows {
            let said = edit(&mut board, text).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains(text), "{said}");
        }
    }
}
