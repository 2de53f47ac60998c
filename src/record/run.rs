//! The lines of a rank file, `runs/<trial>/rank-<n>.jsonl`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{BucketLayout, MemoryDemand, Shape};
use crate::units::{Bytes, Seconds, Tokens};

/// One line: first the head, then steps and bucket events in order, last the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    /// First line: what ran.
    Run(Box<RunHead>),
    /// One optimizer step.
    Step(Step),
    /// One bucket of a sampled step.
    Bucket(Bucket),
    /// Last line: how it ended.
    End(RunEnd),
}

/// What ran: written before the first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunHead {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// The trial of the plan that this rank belongs to; also the name of its folder.
    pub trial: String,
    /// Where the numbers come from.
    pub origin: Origin,
    /// CPU or CUDA.
    pub device: Device,
    /// Which arm of the method.
    pub arm: Arm,
    /// Which launch, from 1.
    pub launch: u32,
    /// Ranks in this trial.
    pub world: usize,
    /// This rank, from 0.
    pub rank: usize,
    /// The hardware that this rank owns.
    pub share: Share,
    /// How gradients are exchanged: `shm`, `nccl`, `solo`.
    pub communicator: String,
    /// UTC time at which the rank began.
    #[schemars(with = "String")]
    pub started: jiff::Timestamp,
    /// Zero of every `_s` moment in this trial, on the host's monotonic clock; equal on all its ranks.
    pub epoch_s: Seconds,
    /// Everything that shapes the training.
    pub config: TrainConfig,
    /// Versions of what took part: `kernel`, `rustc`, `driver`, `cuda`, `nccl`, …
    pub software: BTreeMap<String, String>,
    /// What NCCL was told.
    #[serde(default, skip_serializing_if = "NcclSettings::is_empty")]
    pub nccl: NcclSettings,
    /// What NCCL said of its way between the ranks; none where it took no part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
}

/// What NCCL is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NcclSettings {
    /// Variables of its environment, as `NCCL_PROTO`, that rigscale sets for each rank.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Fewest thread blocks of a collective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ctas: Option<u32>,
    /// Most thread blocks of a collective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ctas: Option<u32>,
    /// Thread blocks that form a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cga_cluster_size: Option<u32>,
    /// 0: default, 1: efficient, 2: none where possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cta_policy: Option<u32>,
}

impl NcclSettings {
    /// True if everything is left to NCCL.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What NCCL said of its way between the ranks, read from its debug log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transport {
    /// Channels for collectives.
    pub channels: Option<u32>,
    /// The ring of the first channel, from rank 0 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ring: Vec<usize>,
    /// How this rank sends to others: the words of NCCL's log, as `SHM/direct/direct`, by rank.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub via: BTreeMap<usize, String>,
    /// What NCCL's search found for a ring: `2 channels of 12 GB/s, type PHB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// Variables of its environment that NCCL says it took from elsewhere: the user's environment or a file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// Where numbers come from. Only `measured` is graded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// One rank per GPU or per set of cores.
    Measured,
    /// Predicted, no hardware took part.
    Simulated,
    /// Several ranks on one GPU: a laboratory.
    SharedGpu,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// Cores of the host, f32.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// The arms of the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// One share alone on the machine.
    Solo,
    /// All shares at once, no exchange.
    Together,
    /// All shares at once, gradients reduced.
    Ddp,
}

/// The hardware of one rank: the same in every arm and at every world size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Number of the share, from 0; rank `r` of a trial owns the `r`-th of its trial's shares.
    pub index: usize,
    /// CPUs (numbers of the kernel) that the rank is pinned to.
    pub cpus: Vec<usize>,
    /// NUMA node of those CPUs, where the machine names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// PCI address of its GPU; none on the CPU device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Threads of the rank's arithmetic on the CPU device; none: one for each of its CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

/// Everything that shapes a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the preset.
    pub model: String,
    /// Its sizes.
    pub shape: Shape,
    /// Sequences per rank and micro-step.
    pub batch: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Micro-steps per optimizer step.
    pub accumulate: usize,
    /// Whether the backward pass computes each block again instead of keeping what it saved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Whether only operations are taken that give the same bits for the same input.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// Optimizer steps of each rank, warm-up included.
    pub steps: usize,
    /// Arithmetic of weights, activations and gradients.
    pub precision: Precision,
    /// Where tokens come from.
    pub data: DataSource,
    /// Seed of weights and data.
    pub seed: u64,
    /// AdamW's learning rate.
    pub learning_rate: f64,
    /// AdamW's weight decay, on matrices only.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Size at which a gradient bucket is closed.
    pub bucket_bytes: Bytes,
    /// The same for the first bucket to be filled.
    pub first_bucket_bytes: Bytes,
    /// What gradients are summed in over ranks; none: what they are kept in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_dtype: Option<Precision>,
    /// Stage of ZeRO (Rajbhandari et al., 2020): at 1 each rank of a ddp trial keeps the optimizer's state of its part of
    /// every bucket only; at 0 of all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zero: usize,
    /// Bucket events are recorded every so many steps; 0: never.
    pub bucket_events_every: usize,
    /// The parameters' checksum is recorded every so many steps; 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checksum_every: usize,
}

/// What is not written where it is 0.
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl TrainConfig {
    /// Where each gradient lies.
    #[must_use]
    pub fn bucket_layout(&self) -> BucketLayout {
        let element = self.precision.element_bytes();
        BucketLayout::new(&self.shape.parameters(), self.first_bucket_bytes, self.bucket_bytes, element)
    }

    /// Bytes of one gradient on its way between ranks.
    #[must_use]
    pub fn reduced_bytes(&self) -> Bytes {
        self.reduce_dtype.unwrap_or(self.precision).element_bytes()
    }

    /// True where gradients that are kept in bf16 are summed in f32.
    #[must_use]
    pub fn widens(&self) -> bool {
        self.reduced_bytes() > self.precision.element_bytes()
    }

    /// Whether `world` ranks that exchange gradients share the optimizer's state.
    #[must_use]
    pub fn shares_state(&self, world: usize) -> bool {
        self.zero == 1 && 1 < world
    }

    /// What the memory of one of `world` ranks that exchange gradients depends on beside the model.
    #[must_use]
    pub fn memory_demand(&self, world: usize) -> MemoryDemand {
        let Self { batch, context, recompute, .. } = *self;
        let sharers = if self.shares_state(world) { world } else { 1 };
        MemoryDemand { batch, context, recompute, widens: self.widens(), sharers }
    }
}

/// The precision policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights, activations, gradients and moments in f32.
    F32,
    /// bf16 weights, activations and gradients; f32 master weights and moments.
    Bf16,
}

impl Precision {
    /// Size of a weight, an activation or a gradient.
    #[must_use]
    pub fn element_bytes(self) -> Bytes {
        match self {
            Self::F32 => Bytes(4),
            Self::Bf16 => Bytes(2),
        }
    }
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DataSource {
    /// The seeded synthetic language.
    Synthetic,
    /// A file of token ids, little-endian, memory-mapped.
    File {
        /// As given on the command line.
        path: String,
        /// Bytes per id: 2 or 4.
        token_bytes: u8,
    },
}

/// One optimizer step of one rank. Moments are seconds since the trial's epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// From 0, without gaps.
    pub index: usize,
    /// Tokens that this rank trained on in this step.
    pub tokens: Tokens,
    /// When it began.
    pub start_s: Seconds,
    /// How long it took, as wall time: begin to begin of the next.
    pub step_s: Seconds,
    /// Time in forward passes.
    pub forward_s: Seconds,
    /// Time in backward passes.
    pub backward_s: Seconds,
    /// Time that the rank waited for gradients after its own backward pass: communication that overlap did not hide.
    pub exposed_s: Seconds,
    /// Time in the optimizer, gradient norm included.
    pub optimizer_s: Seconds,
    /// Mean loss of this rank's tokens, in nats per token.
    pub loss: f64,
    /// Norm of the mean gradient over all ranks, before clipping.
    pub grad_norm: f64,
    /// Checksum over the bits of all parameters after this step, in 16 hexadecimal digits: equal on every rank of a ddp
    /// trial. None in a step in which it was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

/// One bucket in one sampled step. Moments are seconds since the trial's epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// The step.
    pub step: usize,
    /// The bucket, in the order in which they are filled.
    pub index: usize,
    /// Size, as it travels.
    pub bytes: Bytes,
    /// When its last gradient, or weight, was written.
    pub ready_s: Seconds,
    /// When its collective began.
    pub start_s: Seconds,
    /// When its collective ended.
    pub end_s: Seconds,
    /// What was done with it.
    #[serde(default, skip_serializing_if = "Collective::is_all_reduce")]
    pub collective: Collective,
}

/// How ranks exchange a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Collective {
    /// All get the sum of all gradients.
    #[default]
    AllReduce,
    /// Each gets the sum of its part of the gradients.
    ReduceScatter,
    /// All get all weights, of which each has updated its part.
    AllGather,
}

impl Collective {
    fn is_all_reduce(&self) -> bool {
        *self == Self::AllReduce
    }
}

/// How a rank ended. A file without this line did not finish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunEnd {
    /// Why it ended.
    pub reason: EndReason,
    /// Steps written.
    pub steps: usize,
    /// SHA-256 over all parameters after the last step, in hexadecimal: equal on every rank of a ddp trial. None where
    /// not every step was done: what was cut off may have left anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters_sha256: Option<String>,
    /// Largest resident memory of the process.
    pub peak_memory_bytes: Bytes,
    /// Of the time in which the rank's own CPUs ran or wanted to run, the share that a hypervisor took, 0 to 1; none
    /// where the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stolen: Option<f64>,
}

/// Why a rank ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// All steps were done.
    Completed,
    /// The user interrupted.
    Interrupted,
    /// Another rank failed, and the launcher ended this one.
    Stopped,
    /// This rank failed; its error went to the launcher.
    Failed,
}
