//! What follows from the tree: the chain of bridges above a GPU, its hops, the narrowest of them, and pairs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bridge, Gpu, Hop, Missing, Narrowest, Pair, PathClass, PciAddress, Reading, Topology, Why};

/// No real machine nests bridges deeper; a file that does is refused, so that every walk ends.
pub(super) const DEPTH_MAX: usize = 32;

impl Topology {
    /// The GPU at `address`.
    #[must_use]
    pub fn gpu(&self, address: PciAddress) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.address == address)
    }

    /// The bridge at `address`.
    #[must_use]
    pub fn bridge(&self, address: PciAddress) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.address == address)
    }

    /// The bridges above `gpu`, root port first.
    #[must_use]
    pub fn chain(&self, gpu: &Gpu) -> Vec<&Bridge> {
        let mut chain = Vec::new();
        let mut above = gpu.parent;
        while let Some(bridge) = above.and_then(|address| self.bridge(address)) {
            chain.push(bridge);
            above = if chain.len() < DEPTH_MAX { bridge.parent } else { None };
        }
        chain.reverse();
        chain
    }

    /// The links between the root complex and `gpu`, outermost first. Between the upstream and the downstream port of a
    /// switch there is no link, so every second step of the chain is one.
    #[must_use]
    pub fn hops<'a>(&'a self, gpu: &'a Gpu) -> Vec<Hop<'a>> {
        let bridges = self.chain(gpu).into_iter().map(|bridge| (bridge.address, &bridge.link));
        let ends: Vec<_> = bridges.chain([(gpu.address, &gpu.link)]).collect();
        let hop = |pair: &[_]| match *pair {
            [(upper, upper_end), (lower, lower_end)] => Some(Hop { upper, lower, upper_end, lower_end }),
            _ => None,
        };
        ends.chunks(2).filter_map(hop).collect()
    }

    /// The hop that limits the path of `gpu` once its links are awake; of equal ones the nearest to the GPU.
    ///
    /// # Errors
    /// No link is visible, or some end of a link does not say what it can do: then any hop may be the narrowest.
    pub fn narrowest(&self, gpu: &Gpu) -> Reading<Narrowest> {
        let mut narrowest: Option<Narrowest> = None;
        let hops = self.hops(gpu);
        for hop in hops.iter().rev() {
            let lanes = hop.awake()?;
            if narrowest.is_none_or(|so_far| lanes.rate() < so_far.lanes().rate()) {
                let (upper, lower) = (hop.upper, hop.lower);
                narrowest = Some(Narrowest { upper, lower, generation: lanes.generation, width: lanes.width });
            }
        }
        let hidden = || Missing::new(Why::Absent, "no link between the root complex and the GPU is visible");
        let whole = narrowest.filter(|_| hops.last().is_some_and(|hop| hop.lower == gpu.address));
        whole.ok_or_else(|| gpu.root.clone().err().unwrap_or_else(hidden))
    }

    /// Fills in what follows from the rest: the narrowest hop of each GPU, and the pairs. Where the tree does not tell
    /// how a pair is connected, what was told of the pair stays.
    #[must_use]
    pub fn derived(mut self) -> Self {
        let narrowest: Vec<_> = self.gpus.iter().map(|gpu| self.narrowest(gpu)).collect();
        for (gpu, narrowest) in self.gpus.iter_mut().zip(narrowest) {
            gpu.narrowest = narrowest;
        }
        self.pairs = self.all_pairs();
        self
    }

    /// Every pair of GPUs of one vendor that makes GPUs for computing.
    fn all_pairs(&self) -> Vec<Pair> {
        let told: BTreeMap<_, _> = self.pairs.iter().map(|pair| ((pair.a, pair.b), &pair.path)).collect();
        let chains: BTreeMap<_, _> = self.gpus.iter().map(|gpu| (gpu.address, self.chain(gpu))).collect();
        let mut pairs = Vec::new();
        for a in &self.gpus {
            for b in self.gpus.iter().filter(|b| a.address < b.address && computes_alike(a, b)) {
                let told = told.get(&(a.address, b.address)).copied();
                let path = self
                    .path_class((a, &chains[&a.address]), (b, &chains[&b.address]))
                    .or_else(|missing| told.cloned().unwrap_or(Err(missing)))
                    .or_else(|missing| if apart(a, b) { Ok(PathClass::Sys) } else { Err(missing) });
                pairs.push(Pair { a: a.address, b: b.address, path });
            }
        }
        pairs
    }

    /// What lies between two GPUs, given the bridges above each.
    fn path_class(&self, a: (&Gpu, &[&Bridge]), b: (&Gpu, &[&Bridge])) -> Reading<PathClass> {
        let shared = a.1.iter().zip(b.1).take_while(|(a, b)| a.address == b.address).count();
        if 0 < shared {
            let one_switch = a.1.len() <= shared + 1 && b.1.len() <= shared + 1;
            return Ok(if one_switch { PathClass::Pix } else { PathClass::Pxb });
        }
        if a.0.root.clone()? == b.0.root.clone()? {
            return Ok(PathClass::Phb);
        }
        let nodes = (&a.0.numa_node, &b.0.numa_node);
        match (&self.numa, nodes) {
            (Ok(nodes), _) if nodes.len() <= 1 => Ok(PathClass::Node),
            (_, (Ok(a), Ok(b))) => Ok(if a == b { PathClass::Node } else { PathClass::Sys }),
            (Err(missing), _) | (_, (Err(missing), _) | (_, Err(missing))) => Err(missing.clone()),
        }
    }

    /// True when the machine holds an NVIDIA GPU, usable or not.
    #[must_use]
    pub fn has_nvidia_gpu(&self) -> bool {
        self.gpus.iter().any(Gpu::is_nvidia)
    }

    /// The GPUs made by NVIDIA, by address.
    pub fn nvidia_gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.is_nvidia())
    }

    /// What keeps the tree from being one: what it is about, and the message for the file that says so.
    #[must_use]
    pub fn flaw(&self) -> Option<(String, String)> {
        let mut seen = BTreeSet::new();
        let addresses = self.bridges.iter().map(|bridge| bridge.address).chain(self.gpus.iter().map(|gpu| gpu.address));
        for address in addresses {
            if !seen.insert(address) {
                return Some((address.to_string(), format!("{address} stands here twice")));
            }
        }
        let parents: BTreeMap<_, _> = self.bridges.iter().map(|bridge| (bridge.address, bridge.parent)).collect();
        let devices = self.gpus.iter().map(|gpu| (gpu.address, gpu.parent)).chain(parents.clone());
        for (address, parent) in devices {
            let (mut above, mut depth) = (parent, 0);
            while let Some(bridge) = above {
                depth += 1;
                let Some(next) = parents.get(&bridge) else {
                    let message = format!("{bridge}, above {address}, is not among the bridges");
                    return Some((bridge.to_string(), message));
                };
                if DEPTH_MAX < depth {
                    let message = format!("the bridges above {address} form a ring or more than {DEPTH_MAX} levels");
                    return Some((address.to_string(), message));
                }
                above = *next;
            }
        }
        None
    }
}

/// True for GPUs of two NUMA nodes: two sockets or two dies, whatever their root complexes are.
fn apart(a: &Gpu, b: &Gpu) -> bool {
    matches!((&a.numa_node, &b.numa_node), (Ok(a), Ok(b)) if a != b)
}

/// NVIDIA, AMD or Intel, and the same for both.
fn computes_alike(a: &Gpu, b: &Gpu) -> bool {
    a.vendor() == b.vendor() && matches!(a.vendor(), Some(0x10de | 0x1002 | 0x8086))
}
