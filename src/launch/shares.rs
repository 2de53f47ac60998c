//! Which cores, or which GPU, each rank owns.

use std::collections::BTreeMap;

use crate::record::{Share, SkippedWorld};
use crate::topology::{Core, PciAddress};

/// The shares of the largest world that fits, the worlds that fit and those that do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// One share per rank of the largest world.
    pub shares: Vec<Share>,
    /// Worlds that fit, ascending.
    pub worlds: Vec<usize>,
    /// Worlds that do not.
    pub skipped: Vec<SkippedWorld>,
}

/// Gives each rank of the largest world that fits an equal number of whole cores, at least one, of one NUMA node
/// where nodes are large enough.
#[must_use]
pub fn cpu_shares(cores: &[Core], worlds: &[usize]) -> Fit {
    let (mut fitting, missing): (Vec<usize>, Vec<usize>) = worlds.iter().partition(|world| **world <= cores.len());
    fitting.sort_unstable();
    fitting.dedup();
    let skipped = missing
        .into_iter()
        .map(|world| SkippedWorld {
            world,
            why: format!("{world} ranks need {world} cores of their own; this process may use {}", cores.len()),
        })
        .collect();
    let largest = fitting.last().copied().unwrap_or(0);
    Fit { shares: share_out(cores, largest), worlds: fitting, skipped }
}

/// A GPU that ranks may run on, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuPlace {
    /// Its PCI address.
    pub address: PciAddress,
    /// NUMA node of its slot, where the machine names one.
    pub numa_node: Option<u32>,
}

/// A GPU for each rank, and beside it an equal part of the cores of its NUMA node, or of all where it has none. With
/// `shared` all ranks are on the first GPU.
#[must_use]
pub fn gpu_shares(gpus: &[GpuPlace], cores: &[Core], worlds: &[usize], shared: bool) -> Fit {
    let room = if shared { usize::MAX } else { gpus.len() };
    let (mut fitting, missing): (Vec<usize>, Vec<usize>) = worlds.iter().partition(|world| **world <= room);
    fitting.sort_unstable();
    fitting.dedup();
    let why = |world| format!("{world} ranks need {world} GPUs; this process may use {}", gpus.len());
    let skipped = missing.into_iter().map(|world| SkippedWorld { world, why: why(world) }).collect();
    let largest = fitting.last().copied().unwrap_or(0);
    let places: Vec<GpuPlace> = if shared {
        gpus.iter().take(1).flat_map(|gpu| std::iter::repeat_n(*gpu, largest)).collect()
    } else {
        gpus.iter().take(largest).copied().collect()
    };
    let share = |index: usize| {
        let GpuPlace { address, numa_node } = places[index];
        let beside = |other: &GpuPlace| other.numa_node == numa_node;
        let place = places[..index].iter().filter(|other| beside(other)).count();
        let cpus = part_of_node(cores, numa_node, place, places.iter().filter(|other| beside(other)).count());
        Share { index, cpus, numa_node, gpu: Some(address.to_string()), threads: None }
    };
    Fit { shares: (0..places.len()).map(share).collect(), worlds: fitting, skipped }
}

/// Part number `place` of `parts` of a node's cores; all of them where there are fewer cores than parts.
fn part_of_node(cores: &[Core], node: Option<u32>, place: usize, parts: usize) -> Vec<usize> {
    let near: Vec<&Core> = cores.iter().filter(|core| node.is_none() || core.numa_node == node).collect();
    let near = if near.is_empty() { cores.iter().collect() } else { near };
    let size = near.len() / parts;
    let part = if size == 0 { &near[..] } else { &near[place * size..(place + 1) * size] };
    let mut cpus: Vec<usize> = part.iter().flat_map(|core| core.cpus.iter().copied()).collect();
    cpus.sort_unstable();
    cpus
}

/// `ranks` shares of equal size. Cores are taken node by node; a node's cores left over by whole shares are used
/// only if the nodes alone cannot hold all ranks.
fn share_out(cores: &[Core], ranks: usize) -> Vec<Share> {
    if ranks == 0 {
        return Vec::new();
    }
    let mut nodes: BTreeMap<Option<u32>, Vec<&Core>> = BTreeMap::new();
    for core in cores {
        nodes.entry(core.numa_node).or_default().push(core);
    }
    let largest = cores.len() / ranks;
    let within_nodes = |size: usize| nodes.values().map(|cores| cores.len() / size).sum::<usize>() >= ranks;
    match (1..=largest).rev().find(|size| within_nodes(*size)) {
        Some(size) => {
            // spread ranks over nodes in turn, so that two ranks on two sockets do not crowd one of them
            let mut chunks: Vec<_> = nodes.values().map(|cores| cores.chunks_exact(size)).collect();
            let mut picked: Vec<Vec<&Core>> = Vec::new();
            while picked.len() < ranks {
                let round: Vec<_> = chunks.iter_mut().filter_map(Iterator::next).collect();
                picked.extend(round.into_iter().take(ranks - picked.len()).map(<[&Core]>::to_vec));
            }
            picked.sort_by_key(|cores| (cores[0].numa_node, cores[0].cpus.first().copied()));
            picked.iter().enumerate().map(|(index, cores)| share(index, cores)).collect()
        }
        None => {
            let all: Vec<&Core> = cores.iter().collect();
            all.chunks_exact(largest).take(ranks).enumerate().map(|(index, cores)| share(index, cores)).collect()
        }
    }
}

fn share(index: usize, cores: &[&Core]) -> Share {
    let node = cores[0].numa_node;
    let mut cpus: Vec<usize> = cores.iter().flat_map(|core| core.cpus.iter().copied()).collect();
    cpus.sort_unstable();
    Share {
        index,
        cpus,
        numa_node: node.filter(|_| cores.iter().all(|core| core.numa_node == node)),
        gpu: None,
        threads: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cores(per_node: &[usize]) -> Vec<Core> {
        let mut next = 0;
        let mut all = Vec::new();
        for (node, count) in per_node.iter().enumerate() {
            for _ in 0..*count {
                all.push(Core { cpus: vec![next], numa_node: Some(node as u32) });
                next += 1;
            }
        }
        all
    }

    fn cpus(fit: &Fit) -> Vec<Vec<usize>> {
        fit.shares.iter().map(|share| share.cpus.clone()).collect()
    }

    #[test]
    fn worlds_that_do_not_fit_are_listed_not_failed() {
        let fit = cpu_shares(&cores(&[2]), &[4, 1, 2]);
        assert_eq!(fit.worlds, vec![1, 2]);
        assert_eq!(cpus(&fit), vec![vec![0], vec![1]]);
        assert_eq!(fit.skipped[0].world, 4);
        assert!(fit.skipped[0].why.contains("4 ranks need 4 cores"), "{}", fit.skipped[0].why);
    }

    #[test]
    fn two_ranks_on_two_sockets_get_one_each() {
        let fit = cpu_shares(&cores(&[4, 4]), &[2]);
        assert_eq!(cpus(&fit), vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(fit.shares[1].numa_node, Some(1));
    }

    #[test]
    fn uneven_nodes_still_give_equal_shares() {
        let fit = cpu_shares(&cores(&[5, 3]), &[4]);
        assert!(fit.shares.iter().all(|share| share.cpus.len() == 1 || share.cpus.len() == 2));
        assert_eq!(cpus(&cpu_shares(&cores(&[1, 1, 1]), &[2])).len(), 2);
    }

    #[test]
    fn a_smaller_world_spans_the_machine() {}

    fn gpus(nodes: &[Option<u32>]) -> Vec<GpuPlace> {
        let place = |(slot, node): (usize, &Option<u32>)| GpuPlace {
            address: format!("0000:{slot:02x}:00.0").parse().unwrap(),
            numa_node: *node,
        };
        nodes.iter().enumerate().map(place).collect()
    }

    #[test]
    fn a_gpu_for_each_rank_and_cores_of_its_node_beside_it() {
        let fit = gpu_shares(&gpus(&[Some(0), Some(1), Some(0), Some(1)]), &cores(&[4, 5]), &[8, 4, 1], false);
        assert_eq!(fit.worlds, [1, 4]);
        assert_eq!(cpus(&fit), [vec![0, 1], vec![4, 5], vec![2, 3], vec![6, 7]]);
        assert_eq!(fit.shares[3].gpu.as_deref(), Some("0000:03:00.0"));
        assert!(fit.skipped[0].why.contains("8 ranks need 8 GPUs; this process may use 4"), "{}", fit.skipped[0].why);
        let fit = gpu_shares(&gpus(&[None, None]), &cores(&[1]), &[2], false);
        assert_eq!(cpus(&fit), [[0], [0]], "fewer cores than GPUs");
    }

    #[test]
    fn ranks_that_share_a_gpu_are_all_on_the_first() {
        let fit = gpu_shares(&gpus(&[Some(0), Some(0)]), &cores(&[8]), &[1, 2, 4], true);
        assert_eq!((fit.shares.len(), &fit.worlds[..]), (4, &[1, 2, 4][..]));
        assert!(fit.shares.iter().all(|share| share.gpu.as_deref() == Some("0000:00:00.0") && share.cpus.len() == 2));
        assert!(gpu_shares(&[], &cores(&[8]), &[1], true).shares.is_empty());
    }

    proptest! {
        #[test]
        fn no_core_is_shared_and_all_shares_are_equal(
            nodes in prop::collection::vec(0_usize..9, 1..5),
            worlds in prop::collection::vec(1_usize..20, 1..4),
        ) {
            let all = cores(&nodes);
            let fit = cpu_shares(&all, &worlds);
            let mut used: Vec<usize> = fit.shares.iter().flat_map(|share| share.cpus.clone()).collect();
            let count = used.len();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), count);
            prop_assert_eq!(fit.shares.len(), fit.worlds.last().copied().unwrap_or(0));
            prop_assert!(fit.shares.windows(2).all(|pair| pair[0].cpus.len() == pair[1].cpus.len()));
        }
    }
}
