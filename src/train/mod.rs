//! The transformer and its training: operations, data, optimizer, one step.
//! Knows a Llama-class decoder and the order in which its gradients become ready; hides kernels behind `Ops`.
//! Never knows what a PCIe bus, a process or a run folder is.
