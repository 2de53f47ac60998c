//! What a machine is: sockets, NUMA nodes, cores, PCIe bridges, links, GPUs and pairs of them.
//! Knows how these hang together and how they are written as YAML; hides sysfs spelling.
//! Never asks a machine anything.

mod reading;

pub use reading::{Missing, Reading, Why};
