//! What a training rank keeps in memory, part by part.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Working memory of cuBLASLt (cuBLAS documentation, `cublasSetWorkspace`: 32 MiB on Hopper).
pub const PRODUCT_WORKSPACE: Bytes = Bytes(32 << 20);

use super::Shape;

/// The memory of one rank, as the sum of named parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryPlan {
    /// Parts, largest concern first: weights, gradients, moments, activations, logits.
    pub parts: Vec<MemoryPart>,
    /// Sum of the parts.
    pub total_bytes: Bytes,
}

/// One part of the memory plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryPart {
    /// What it holds.
    pub name: String,
    /// How much.
    pub bytes: Bytes,
}

/// What the memory of a rank depends on beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryDemand {
    /// Sequences of a micro-step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Whether blocks are computed again in the backward pass.
    pub recompute: bool,
    /// Whether gradients that are kept in bf16 are summed in f32.
    pub widens: bool,
    /// Ranks that share the optimizer's state (ZeRO-1); 1 where each keeps all of it.
    pub sharers: usize,
}

impl MemoryDemand {
    /// This rank's part of what all keep `bytes` of together.
    fn part(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.sharers.max(1) as u64)
    }
}

/// The most that lies widened at a time: so large a sum runs at the full rate of any link, and a larger one takes
/// memory for nothing.
const WIDENED_MAX: u64 = 64 << 20;

/// Blocks of a norm's backward pass: two for each multiprocessor, of which no GPU has more than 256.
const NORM_BLOCKS: u64 = 256;

impl MemoryPlan {
    /// The plan from its parts.
    #[must_use]
    pub fn of(parts: &[(&str, u64)]) -> Self {
        let parts: Vec<MemoryPart> =
            parts.iter().map(|(name, bytes)| MemoryPart { name: (*name).into(), bytes: Bytes(*bytes) }).collect();
        let total_bytes = parts.iter().map(|part| part.bytes).sum();
        Self { parts, total_bytes }
    }

    /// What the CPU device holds in f32: weights, gradients and two moments of every parameter, and the activations that
    /// the backward pass reads again.
    #[must_use]
    pub fn on_cpu(shape: &Shape, demand: MemoryDemand) -> Self {
        let MemoryDemand { batch, context, recompute, .. } = demand;
        let element = 4_u64;
        let weights = shape.parameter_count() * element;
        let rows = (batch * context) as u64;
        let (heads, qkv) = (shape.heads * shape.head_size(), shape.qkv_rows());
        // per token and block: both norms' results, the stream between them, queries, keys and values, attention's
        // result, gate and up, and a scalar for each norm and each head
        let block = 3 * shape.width + qkv + heads + 2 * shape.ffn + shape.heads + 2;
        let kept = if recompute { 1 } else { shape.layers };
        let streams = (shape.layers + 1) * shape.width + shape.width + 1;
        let activations = rows * (kept * block + streams) as u64 * element;
        // one block at a time: the gradients of a norm's result, of the stream and of all that is not its own place
        let work = rows * (2 * shape.width + qkv + heads + shape.ffn) as u64 * element;
        let logits = rows * (shape.vocabulary + 1) as u64 * element;
        Self::of(&[
            ("weights", weights),
            ("gradients", weights),
            ("moments", demand.part(2 * weights)),
            ("activations", activations),
            ("working space", work),
            ("logits", logits),
        ])
    }

    /// What a GPU holds in bf16: 14 bytes for each parameter (weight, the rest of its f32 master, gradient, two f32
    /// moments), the activations that the backward pass reads again, and logits, whose memory serves the backward pass as
    /// working space.
    #[must_use]
    pub fn on_cuda(shape: &Shape, demand: MemoryDemand) -> Self {
        let MemoryDemand { batch, context, recompute, widens, .. } = demand;
        let parameters = shape.parameter_count();
        let rows = (batch * context) as u64;
        let Shape { layers, width, heads, ffn, vocabulary, .. } = *shape;
        let (attended, qkv) = (heads * shape.head_size(), shape.qkv_rows());
        // per token and block in bf16: both norms' results, the stream between them, queries, keys and values,
        // attention's result, gate and up; in f32: a scalar for each norm and each head
        let block = 2 * (3 * width + qkv + attended + 2 * ffn) + 4 * (heads + 2);
        let kept = if recompute { 1 } else { layers };
        let streams = 2 * (layers + 2) * width + 4;
        let activations = rows * (kept * block + streams) as u64;
        let logits = rows * (2 * vocabulary + 4) as u64;
        // equal parts of buckets are whole chunks, and each rank says its part of the norm
        let chunks = if demand.sharers < 2 { 0 } else { demand.sharers * (64 * (6 * layers + 3) + 128) } as u64;
        // the gradient of a norm's result, and what does not find room in the memory of the logits
        let beside = Self::beside_logits(shape, rows);
        let work = rows * 2 * width as u64 + beside.taken + chunks;
        let angles = (context * shape.head_size() * 4) as u64;
        let tokens = 3 * 4 * rows + 4 * vocabulary as u64;
        // partial sums: two rows of f32 for each 32 tokens of the embedding, or for each block of a norm
        let sums = (8 * width as u64) * rows.div_ceil(32).max(NORM_BLOCKS) + NORM_BLOCKS * 64;
        Self::of(&[
            ("weights", 2 * parameters),
            ("rest of the f32 master weights", demand.part(2 * parameters)),
            ("gradients", 2 * parameters),
            ("moments", demand.part(8 * parameters)),
            ("gradients on their way, in f32", if widens { Self::widened_bytes(shape) } else { 0 }),
            ("activations", activations),
            ("logits, later the working space of the backward pass", logits),
            ("working space", work + angles + tokens + sums + rows * 4 * heads as u64 + rounding(layers)),
            ("attention", beside.attention),
            ("matrix products", PRODUCT_WORKSPACE.0),
        ])
    }

    /// Where gradients that are kept in bf16 lie in f32 while they are summed, a part of a bucket at a time.
    #[must_use]
    pub fn widened_bytes(shape: &Shape) -> u64 {
        WIDENED_MAX.min(4 * shape.parameter_count())
    }

    /// What attention's backward pass works in: the gradient of the queries in f32, two numbers for each query and head,
    /// and once more the gradient where heads share keys and values (cuDNN's backward graph).
    #[must_use]
    pub fn attention_workspace(shape: &Shape, rows: u64) -> u64 {
        let copies = if shape.kv_heads < shape.heads { 2 } else { 1 };
        rows * (4 * shape.heads * (copies * shape.head_size() + 2)) as u64 + (1 << 20)
    }

    /// What the memory of the logits of `rows` tokens holds after their gradient is spent, and what has to be taken beside.
    #[must_use]
    pub fn beside_logits(shape: &Shape, rows: u64) -> BesideLogits {
        let Shape { width, ffn, vocabulary, heads, .. } = *shape;
        let room = 2 * rows * vocabulary as u64;
        let buffers = [width, heads * shape.head_size(), shape.qkv_rows(), ffn].map(|width| 2 * rows * width as u64);
        let (places, used) = place_in(room, &buffers);
        let outside = buffers.iter().zip(&places).filter(|(_, place)| place.is_none());
        let taken = outside.map(|(bytes, _)| bytes).sum();
        let needed = Self::attention_workspace(shape, rows);
        BesideLogits { taken, attention: if used + needed <= room { 0 } else { needed } }
    }

    /// The most sequences that a GPU can train on in `memory`, all else as in `demand`; 0 where not even one fits.
    #[must_use]
    pub fn largest_batch(shape: &Shape, demand: MemoryDemand, memory: Bytes) -> usize {
        let fits = |batch| Self::on_cuda(shape, MemoryDemand { batch, ..demand }).total_bytes <= memory;
        let most = (ROWS_MAX / demand.context.max(1)).max(1);
        // nearly linear in the batch, but not quite: doubling, then halving the steps
        let (mut batch, mut step) = (0, 1);
        while batch + step <= most && fits(batch + step) {
            batch += step;
            step *= 2;
        }
        while 0 < step {
            if batch + step <= most && fits(batch + step) {
                batch += step;
            }
            step /= 2;
        }
        batch
    }
}

/// Tokens of one micro-step that a rank can be asked for.
const ROWS_MAX: usize = 1 << 24;

/// What the backward pass needs beside the memory of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BesideLogits {
    /// Bytes of buffers that do not fit in it.
    pub taken: u64,
    /// Bytes for attention, where what is left is too small; else 0.
    pub attention: u64,
}

/// Every buffer begins at a multiple of this.
const ALIGNMENT: u64 = 256;

/// Where buffers of so many bytes go in `room`, first come, first served: the offset of each, none where it does not fit;
/// and the bytes that they use of it.
#[must_use]
pub fn place_in(room: u64, buffers: &[u64]) -> (Vec<Option<u64>>, u64) {
    let mut used = 0;
    let mut place = |bytes: u64| {
        let end = used + bytes;
        (end <= room).then(|| std::mem::replace(&mut used, end.next_multiple_of(ALIGNMENT)))
    };
    let places = buffers.iter().map(|bytes| place(*bytes)).collect();
    (places, used.min(room))
}

/// What is lost where buffers end between multiples of the alignment: those of a block, of the whole model, and of the
/// optimizer if each parameter were a bucket.
fn rounding(layers: usize) -> u64 {
    ALIGNMENT * (12 * layers + 64 + 6 * (6 * layers + 3)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PRESETS;

    #[test]
    fn buffers_are_placed_in_order_and_whole() {
        assert_eq!(place_in(1000, &[300, 600, 100]), (vec![Some(0), None, Some(512)], 768));
        assert_eq!(place_in(0, &[1]), (vec![None], 0));
    }

    #[test]
    fn ranks_that_share_the_state_keep_a_part_of_it_each() {
        let shape = crate::model::preset("llama-1b").unwrap().shape;
        let demand = |sharers| MemoryDemand { batch: 1, context: 2048, recompute: false, widens: false, sharers };
        let saved = |plan: fn(&Shape, MemoryDemand) -> MemoryPlan| {
            let total = |sharers| plan(&shape, demand(sharers)).total_bytes.0;
            (total(1) - total(2), total(1) - total(4))
        };
        let parameters = shape.parameter_count();
        assert_eq!(saved(MemoryPlan::on_cpu), (4 * parameters, 6 * parameters));
        let (two, four) = saved(MemoryPlan::on_cuda);
        let nearly = |saved: u64, wanted: u64| saved <= wanted && wanted - saved < 1 << 20;
        assert!(nearly(two, 5 * parameters) && nearly(four, 15 * parameters / 2), "{two} {four}");
    }

    #[test]
    fn the_largest_batch_fits_and_the_next_does_not() {
        for preset in PRESETS {
            for context in [128, 1024, 2048, 8192] {
                for gibi in [1_u64, 8, 20, 24, 48, 80, 141] {
                    let memory = Bytes((gibi << 30) + 12_345);
                    let demand = |batch| MemoryDemand { batch, context, recompute: false, widens: false, sharers: 1 };
                    let total = |batch| MemoryPlan::on_cuda(&preset.shape, demand(batch)).total_bytes;
                    let batch = MemoryPlan::largest_batch(&preset.shape, demand(1), memory);
                    let name = preset.name;
                    assert!(batch == 0 || total(batch) <= memory, "{name} {batch} × {context} in {memory}");
                    assert!(memory < total(batch + 1), "{name} {batch} × {context} is not the most in {memory}");
                }
            }
        }
    }
}
