//! The physical cores that a launcher may hand out.

use super::{CpuSet, Topology};

/// One physical core with all its SMT siblings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its logical CPUs, ascending.
    pub cpus: Vec<usize>,
    /// Its NUMA node, where the machine names one.
    pub numa_node: Option<u32>,
}

impl Topology {
    /// The NUMA node of a logical CPU.
    #[must_use]
    pub fn node_of_cpu(&self, cpu: usize) -> Option<u32> {
        let holds = |cpus: &CpuSet| cpus.contains(cpu);
        self.nodes().iter().find(|node| node.cpus.as_ref().is_ok_and(holds)).map(|node| node.node)
    }

    /// The socket of a logical CPU.
    #[must_use]
    pub fn socket_of_cpu(&self, cpu: usize) -> Option<u32> {
        let sockets = self.cpu.sockets.as_ref().ok()?;
        sockets.iter().find(|socket| socket.cores.iter().any(|core| core.contains(cpu))).map(|socket| socket.socket)
    }

    /// The physical cores that this process may use whole, by NUMA node, then by number. A core of which only one SMT
    /// sibling is allowed is left out. Where the kernel hides which CPUs are siblings, each allowed CPU counts as a
    /// core; where it hides what is allowed, all online ones do.
    #[must_use]
    pub fn cores(&self) -> Vec<Core> {
        let Ok(allowed) = self.cpu.allowed.as_ref().or(self.cpu.online.as_ref()) else { return Vec::new() };
        let alone = |cpu: &usize| CpuSet::from_iter([*cpu]);
        let cores: Vec<CpuSet> = match &self.cpu.sockets {
            Ok(sockets) => sockets.iter().flat_map(|socket| socket.cores.iter().cloned()).collect(),
            Err(_) => allowed.cpus().iter().map(alone).collect(),
        };
        let whole = |core: &CpuSet| !core.is_empty() && core.cpus().iter().all(|cpu| allowed.contains(*cpu));
        let core = |cpus: CpuSet| Core {
            numa_node: cpus.cpus().first().and_then(|cpu| self.node_of_cpu(*cpu)),
            cpus: cpus.cpus().to_vec(),
        };
        let mut cores: Vec<Core> = cores.into_iter().filter(whole).map(core).collect();
        cores.sort_by(|a, b| (a.numa_node, &a.cpus).cmp(&(b.numa_node, &b.cpus)));
        cores
    }
}
