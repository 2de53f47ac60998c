//! Plans, and starting, watching and stopping the processes that carry them out.
//! Knows trials, ranks and limits; hides pipes, signals and pinning.
//! Never chooses anything while a plan runs, and never leaves a process behind.
