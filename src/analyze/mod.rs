//! Reads run folders and judges them.
//! Knows records and topologies; knows nothing of GPUs, processes or clocks.
//! Never drops a sample without listing it in `Analysis::dropped`.
