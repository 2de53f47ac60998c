//! Asks a machine through a closed set of read-only questions, makes a topology of the answers and judges it.
//! Knows sysfs, procfs and NVML facts; hides where each comes from.
//! Never changes anything on the machine, and never takes a missing answer for "off" or "fine".
