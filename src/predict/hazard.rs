//! What cannot be interpolated: rules that name themselves.

use serde::Serialize;

use crate::record::{Finding, Severity};
use crate::units::{Bytes, BytesPerSecond};

use super::board::{Board, NodeKind};
use super::cpu::CpuGeneration;
use super::nccl::{NcclVersion, Transport};
use super::ring::{Exchange, P2p, Ring};

/// A hazard: its name, what it is about here, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hazard {
    /// Stable name.
    pub code: &'static str,
    /// What it means here, with its source.
    pub text: String,
    /// What a person can do.
    pub remedy: &'static str,
}

impl Hazard {
    /// The hazard as a run folder keeps it.
    #[must_use]
    pub fn finding(&self) -> Finding {
        Finding {
            code: self.code.to_owned(),
            severity: Severity::Warning,
            addresses: Vec::new(),
            seen: self.text.clone(),
            expected: "no hazard that the prediction cannot put into figures".to_owned(),
            remedy: self.remedy.to_owned(),
        }
    }
}

/// Every hazard of this machine and setting, for a rank that takes `need` of its GPU's memory.
#[must_use]
pub fn hazards(board: &Board, exchange: &Exchange, ring: &Ring, need: Option<Bytes>) -> Vec<Hazard> {
    let mut found = Vec::new();
    in_memory(board, need, &mut found);
    if ring.ranks < 2 {
        return found;
    }
    in_links(board, ring, &mut found);
    in_settings(board, exchange, ring, &mut found);
    found
}

/// What a driver and CUDA's context take of a GPU's memory: about half a GiB on the cards that were tried.
const CONTEXT: Bytes = Bytes(512 << 20);

/// A training that does not fit its card.
fn in_memory(board: &Board, need: Option<Bytes>, found: &mut Vec<Hazard>) {
    let Some(seat) = board.seats.iter().min_by_key(|seat| seat.card.memory.0) else { return };
    let (card, have) = (&seat.card.name, seat.card.memory);
    if let Some(need) = need.filter(|need| have.0 < need.0 + CONTEXT.0) {
        found.push(Hazard {
            code: "does-not-fit",
            text: format!(
                "a rank takes {need} and {CONTEXT} for CUDA, the {card} has {have}: this training cannot run"
            ),
            remedy: "take a smaller --batch, --context or --model; rows of this one only tell what links would do",
        });
    }
}

/// Those of chipset, search and switches.
fn in_links(board: &Board, ring: &Ring, found: &mut Vec<Hazard>) {
    let mut add = |holds: bool, code: &'static str, text: String, remedy: &'static str| {
        if holds {
            found.push(Hazard { code, text, remedy });
        }
    };
    let chain_has = |kind: NodeKind| {
        let below =
            |node: usize| board.chain(node).unwrap_or_default().into_iter().any(|at| board.nodes[at].kind == kind);
        board
            .seats
            .iter()
            .filter(|seat| below(seat.node))
            .map(|seat| board.nodes[seat.node].name.clone())
            .collect::<Vec<_>>()
    };
    let (chipset, switched) = (chain_has(NodeKind::Chipset), chain_has(NodeKind::Switch));
    add(
        !chipset.is_empty(),
        "chipset-slot",
        format!("{} hangs off the chipset and shares its uplink with disks and network", chipset.join(", ")),
        "move the card to a slot of the processor",
    );
    add(
        ring.graph.fallback,
        "simple-order-fallback",
        "NCCL finds no ring at its lowest speed and falls back to simple order with 2 channels (NCCL pull request 2127)".to_owned(),
        "set NCCL_MIN_CTAS=8, or give NCCL_GRAPH_FILE",
    );
    let ports =
        board.seats.iter().filter_map(|seat| board.root_port(seat.node)).collect::<std::collections::BTreeSet<_>>();
    add(
        2 <= switched.len() && 2 <= ports.len() && ring.has(Transport::Peer),
        "posted-write-collapse",
        "writes from one switch to several root ports collapsed to a tenth on some machines (rtx6kpro B13, B14)"
            .to_owned(),
        "measure concurrent pairs before relying on this figure",
    );
    add(
        !switched.is_empty() && ring.has(Transport::Peer),
        "acs-redirect",
        "ACS redirect on the switch would send its peers through the root and halve them (rtx6kpro B4)".to_owned(),
        "switch ACS off on bare metal; `rigscale probe` shows it",
    );
}

/// Memory of a node from which on a processor of Zen 2 or 3 has the eight channels of EPYC, all in one NUMA node.
const EPYC_MEMORY_MIN: BytesPerSecond = BytesPerSecond(150e9);

/// Those of NCCL's settings, drivers and firmware.
fn in_settings(board: &Board, exchange: &Exchange, ring: &Ring, found: &mut Vec<Hazard>) {
    let mut add = |holds: bool, code: &'static str, text: String, remedy: &'static str| {
        if holds {
            found.push(Hazard { code, text, remedy });
        }
    };
    let granted = board.seats.iter().all(|seat| seat.peer.unwrap_or(seat.card.peer));
    add(
        exchange.p2p == P2p::Auto
            && granted
            && ring.has(Transport::Staged)
            && !board.virtual_machine
            && NcclVersion::STAGES_ACROSS_BRIDGES <= exchange.nccl,
        "p2p-level",
        "the cards could reach each other, and NCCL from 2.23.4 on stages them by default".to_owned(),
        "try NCCL_P2P_LEVEL=SYS and measure both",
    );
    add(
        exchange.p2p == P2p::On && !granted,
        "p2p-unsupported",
        "the stock driver grants these cards no peer access".to_owned(),
        "this needs a patched driver; results must be checked for wrong data",
    );
    add(
        board.virtual_machine,
        "virtual-machine",
        "a guest hides its tree and pinning, and peers need ACS and ATS there: staged rates from 0.9 to 5 GB/s were \
         measured"
            .to_owned(),
        "measure on the machine itself",
    );
    add(
        matches!(board.cpu, CpuGeneration::Zen2 | CpuGeneration::Zen3)
            && EPYC_MEMORY_MIN.0 <= board.memory.0
            && ring.has(Transport::Staged)
            && 4 <= board.seats.len(),
        "nodes-per-socket",
        "host memory of processors of this generation with eight channels, EPYC 7002 and 7003, was slow for four and more \
         GPUs until NPS4 was set (NCCL issue 1285)"
            .to_owned(),
        "try NPS4 in the firmware",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::{Calibration, platform, ring};

    fn codes(name: &str, count: usize, exchange: &Exchange) -> Vec<&'static str> {
        let board = platform(name).unwrap().with_gpus(count).unwrap();
        let ring = ring(&board, exchange, &Calibration::default()).unwrap();
        hazards(&board, exchange, &ring, None).into_iter().map(|hazard| hazard.code).collect()
    }

    #[test]
    fn each_hazard_names_itself_where_it_stands_and_nowhere_else() {
        let (auto, peers) = (Exchange::default(), Exchange { p2p: P2p::On, ..Exchange::default() });
        assert_eq!(codes("am5-x8x8", 1, &auto), [""; 0]);
        assert_eq!(codes("am5-x8x8", 2, &auto), [""; 0]);
        assert_eq!(codes("am5-chipset", 2, &peers), ["chipset-slot", "simple-order-fallback", "p2p-unsupported"]);
        assert_eq!(codes("asus-wrx90e-sage-se", 4, &auto), ["p2p-level"]);
        assert_eq!(codes("wrx90-two-switches", 4, &auto), ["acs-redirect"]);
        assert!(codes("wrx90-two-switches", 8, &auto).contains(&"posted-write-collapse"));
        assert_eq!(codes("cloud-vm-2gpu", 4, &auto), ["virtual-machine"]);
        assert!(codes("cloud-vm-2gpu", 2, &peers).contains(&"virtual-machine"));
        assert_eq!(codes("tinybox-green", 6, &auto), ["nodes-per-socket"]);
    }

    #[test]
    fn what_does_not_fit_its_card_is_named_with_need_and_have() {
        let board = platform("am5-x8x8").unwrap();
        let alone = board.with_gpus(1).unwrap();
        let ring = ring(&alone, &Exchange::default(), &Calibration::default()).unwrap();
        let have = alone.seats[0].card.memory;
        let of = |need: u64| hazards(&alone, &Exchange::default(), &ring, Some(Bytes(need)));
        assert_eq!(of(have.0 - CONTEXT.0), []);
        let [hazard] = &of(have.0)[..] else { panic!("one hazard") };
        assert!(hazard.code == "does-not-fit" && hazard.text.contains(&have.to_string()), "{hazard:?}");
    }
}
