//! What NCCL says of itself: its debug log, read into a record.
//!
//! Lines as NCCL 2.19 to 2.32 write them (`NCCL_DEBUG=INFO`); what a version words differently is left out.

use std::collections::BTreeMap;

use crate::record::Transport;

/// Variables by which rigscale makes NCCL write the log, and which say nothing of the machine.
const OURS: [&str; 3] = ["NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"];

/// The debug settings under which the log holds what [`transport`] reads.
#[must_use]
pub(super) fn debug_settings(file: &str) -> BTreeMap<String, String> {
    let pairs =
        [("NCCL_DEBUG", "INFO"), ("NCCL_DEBUG_SUBSYS", "INIT,ENV,GRAPH,P2P,SHM,NET"), ("NCCL_DEBUG_FILE", file)];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// The way between ranks, as the log of rank `rank` tells it.
#[must_use]
pub(super) fn transport(log: &str, rank: usize) -> Transport {
    let mut told = Transport::default();
    for line in log.lines().filter_map(|line| Some(line.split_once("NCCL INFO ")?.1.trim())) {
        if let Some(channels) = line.split_once(" coll channels").and_then(|(count, _)| count.parse().ok()) {
            told.channels = Some(channels);
        } else if let Some((name, value)) = setting(line) {
            if !OURS.contains(&name) {
                told.environment.insert(name.into(), value.into());
            }
        } else if let Some((peer, via)) = sends(line, rank) {
            told.via.insert(peer, via.into());
        } else if told.ring.is_empty()
            && let Some(ring) = ring(line)
        {
            told.ring = ring;
        } else if told.search.is_none() {
            told.search = search(line);
        }
    }
    told
}

/// `NCCL_PROTO set by environment to Simple.`
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(" set by environment to ")?;
    name.starts_with("NCCL_").then(|| (name, value.trim_end_matches('.')))
}

/// `Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM`, also with `[send]` before `via`: the peer and the way, where `rank` sends.
fn sends(line: &str, rank: usize) -> Option<(usize, &str)> {
    let (way, via) = line.strip_prefix("Channel ")?.split_once(" via ")?;
    let (_, pair) = way.split_once(" : ")?;
    let (from, to) = pair.split_once(" -> ")?;
    let number = |text: &str| text.split('[').next()?.trim().parse::<usize>().ok();
    (number(from)? == rank && !to.contains("[receive]")).then_some(())?;
    Some((number(to)?, via.split_whitespace().next()?))
}

/// `Channel 00/04 : 0 1 2 3`
fn ring(line: &str) -> Option<Vec<usize>> {
    let (channel, ranks) = line.strip_prefix("Channel 00/")?.split_once(':')?;
    channel.trim().parse::<usize>().ok()?;
    let ranks: Vec<usize> = ranks.split_whitespace().map(|rank| rank.parse().ok()).collect::<Option<_>>()?;
    (!ranks.is_empty()).then_some(ranks)
}

/// `Pattern 4, crossNic 0, nChannels 2, bw 12.000000/12.000000, type PHB/PIX, sameChannels 1`: pattern 4 is a ring.
fn search(line: &str) -> Option<String> {
    let rest = line.strip_prefix("Pattern 4,")?;
    let field = |name: &str| {
        let (_, value) = rest.split_once(name)?;
        value.split([',', '/']).next().map(str::trim)
    };
    let channels: u32 = field("nChannels ")?.parse().ok()?;
    let rate: f64 = field("bw ")?.parse().ok()?;
    Some(format!("{channels} channels of {rate} GB/s, type {}", field("type ")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines in the form of NCCL 2.28 to 2.30, with names of nobody.
    const LOG: &str = "\
box:11:22 [0] NCCL INFO NCCL_DEBUG set by environment to INFO.
box:11:22 [0] NCCL INFO NCCL_P2P_LEVEL set by environment to SYS.
box:11:22 [0] NCCL INFO Pattern 4, crossNic 0, nChannels 2, bw 12.000000/12.000000, type PHB/PIX, sameChannels 1
box:11:22 [0] NCCL INFO Pattern 1, crossNic 0, nChannels 2, bw 12.000000/12.000000, type PHB/PIX, sameChannels 0
box:11:22 [0] NCCL INFO comm 0x55 rank 0 nRanks 4 nNodes 1 localRanks 4 localRank 0 MNNVL 0
box:11:22 [0] NCCL INFO Channel 00/04 : 0 1 2 3
box:11:22 [0] NCCL INFO Channel 01/04 : 0 1 2 3
box:11:22 [0] NCCL INFO 4 coll channels, 4 collnet channels, 0 nvls channels, 4 p2p channels, 2 p2p channels per peer
box:11:23 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
box:11:23 [0] NCCL INFO Channel 00 : 3[3] -> 0[0] [receive] via NET/Socket/0
box:11:23 [0] NCCL INFO Channel 00/0 : 0[0] -> 3[3] [send] via NET/Socket/0
box:11:23 [0] NCCL INFO Channel 01 : 0[0] -> 2[2] via SHM/direct/direct
box:11:23 [0] NCCL INFO Connected all rings, use ring PXN 0 GDR 1
";

    #[test]
    fn the_way_between_ranks_is_read() {
        let told = transport(LOG, 0);
        assert_eq!(told.channels, Some(4));
        assert_eq!(told.ring, [0, 1, 2, 3]);
        assert_eq!(told.search.as_deref(), Some("2 channels of 12 GB/s, type PHB"));
        let via = [(1, "P2P/CUMEM"), (2, "SHM/direct/direct"), (3, "NET/Socket/0")];
        assert_eq!(told.via, via.map(|(peer, via)| (peer, via.to_owned())).into());
        assert_eq!(told.environment, [("NCCL_P2P_LEVEL".to_owned(), "SYS".to_owned())].into());
    }

    #[test]
    fn what_others_send_and_garbage_say_nothing() {
        assert_eq!(transport(LOG, 7).via, BTreeMap::new());
        assert_eq!(
            transport("NCCL INFO Channel 00/\nNCCL INFO Channel 0 : x -> y via \nPattern 4, nothing\n", 0),
            Transport::default()
        );
    }
}
