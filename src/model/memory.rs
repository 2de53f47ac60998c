//! What a training rank keeps in memory, part by part.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

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

impl MemoryPlan {
    /// The plan from its parts.
    #[must_use]
    pub fn of(parts: &[(&str, u64)]) -> Self {
        let parts: Vec<MemoryPart> =
            parts.iter().map(|(name, bytes)| MemoryPart { name: (*name).into(), bytes: Bytes(*bytes) }).collect();
        let total_bytes = parts.iter().map(|part| part.bytes).sum();
        Self { parts, total_bytes }
    }

    /// What the CPU device holds in f32 for `batch` sequences of `context` tokens: weights, gradients and two
    /// moments of every parameter, and the activations that the backward pass reads again.
    #[must_use]
    pub fn on_cpu(shape: &Shape, batch: usize, context: usize, recompute: bool) -> Self {
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
        // one block at a time: what it adds, and the gradients of the stream and of all that is not its own place
        let work = rows * (2 * shape.width + qkv + heads + shape.ffn) as u64 * element;
        let logits = rows * (shape.vocabulary + 1) as u64 * element;
        Self::of(&[
            ("weights", weights),
            ("gradients", weights),
            ("moments", 2 * weights),
            ("activations", activations),
            ("working space", work),
            ("logits", logits),
        ])
    }
}
