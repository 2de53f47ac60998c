//! What is trained, without arithmetic: presets, shapes, parameters, floating-point operations, memory, buckets.
//! Knows the names and sizes of a Llama-class decoder; hides how they are laid out in gradient buckets.
//! Never touches a buffer, a device or a clock.

mod bucket;
mod memory;
mod preset;

pub use bucket::{BucketLayout, BucketPlan, Place};
pub use memory::{BesideLogits, MemoryDemand, MemoryPart, MemoryPlan, PRODUCT_WORKSPACE, place_in};
pub use preset::{PRESETS, Preset, UnknownModel, preset};

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The sizes of a Llama-class decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, untied head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Decoder blocks.
    pub layers: usize,
    /// Width of the residual stream, `W`.
    pub width: usize,
    /// Query heads, `H`; `W / H` is the size of a head.
    pub heads: usize,
    /// Key and value heads, `K`; divides `H`.
    pub kv_heads: usize,
    /// Inner width of the feed-forward network, `F`.
    pub ffn: usize,
    /// Token ids run from 0 to `vocabulary - 1`, `V`.
    pub vocabulary: usize,
}

/// One weight tensor, in the order of the forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Which weight of the decoder this is.
    pub role: Role,
    /// Rows (output features); 1 for a norm's gain.
    pub rows: usize,
    /// Columns (input features).
    pub columns: usize,
}

/// The place of a weight in the decoder; blocks count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding `[V, W]`.
    Embedding,
    /// Gain of the norm before attention `[W]`.
    AttentionNorm(usize),
    /// Query, key and value projections, packed `[(H + 2K)·D, W]`.
    Qkv(usize),
    /// Attention's output projection `[W, H·D]`.
    Out(usize),
    /// Gain of the norm before the feed-forward network `[W]`.
    FfnNorm(usize),
    /// Gate and up projections, packed `[2F, W]`.
    GateUp(usize),
    /// Down projection `[W, F]`.
    Down(usize),
    /// Gain of the last norm `[W]`.
    FinalNorm,
    /// Output head `[V, W]`, not tied to the embedding.
    Head,
}

/// The name of a weight in a checkpoint: `blocks.3.qkv.weight`.
impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => out.write_str("embed.weight"),
            Self::AttentionNorm(block) => write!(out, "blocks.{block}.norm1"),
            Self::Qkv(block) => write!(out, "blocks.{block}.qkv.weight"),
            Self::Out(block) => write!(out, "blocks.{block}.out.weight"),
            Self::FfnNorm(block) => write!(out, "blocks.{block}.norm2"),
            Self::GateUp(block) => write!(out, "blocks.{block}.gate_up.weight"),
            Self::Down(block) => write!(out, "blocks.{block}.down.weight"),
            Self::FinalNorm => out.write_str("norm"),
            Self::Head => out.write_str("head.weight"),
        }
    }
}

impl Parameter {
    /// Elements of the tensor.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// True for matrices, which AdamW decays; false for the gains of norms.
    #[must_use]
    pub fn is_matrix(&self) -> bool {
        self.rows > 1
    }
}

impl Shape {
    /// Size of one head, `D = W / H`.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.width / self.heads
    }

    /// Rows of the packed query, key and value projection, `(H + 2K)·D`.
    #[must_use]
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size()
    }

    /// Every weight, in the order of the forward pass.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let of = |role, rows, columns| Parameter { role, rows, columns };
        let mut all = vec![of(Role::Embedding, self.vocabulary, self.width)];
        for layer in 0..self.layers {
            all.push(of(Role::AttentionNorm(layer), 1, self.width));
            all.push(of(Role::Qkv(layer), self.qkv_rows(), self.width));
            all.push(of(Role::Out(layer), self.width, self.heads * self.head_size()));
            all.push(of(Role::FfnNorm(layer), 1, self.width));
            all.push(of(Role::GateUp(layer), 2 * self.ffn, self.width));
            all.push(of(Role::Down(layer), self.width, self.ffn));
        }
        all.push(of(Role::FinalNorm, 1, self.width));
        all.push(of(Role::Head, self.vocabulary, self.width));
        all
    }

    /// Number of weights.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|parameter| parameter.elements() as u64).sum()
    }

    /// Floating-point operations of a forward and backward pass for one token at this context:
    /// `6·(P − V·W) + 6·L·T·H·D`, matrix products only, causal attention counted at half the square
    /// (PaLM, appendix B, with the causal halving of llm.c).
    #[must_use]
    pub fn flops_per_token(&self, context: usize) -> f64 {
        let products = self.parameter_count() - (self.vocabulary * self.width) as u64;
        let attention = self.layers * context * self.heads * self.head_size();
        6.0 * products as f64 + 6.0 * attention as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_sums_of_their_tensors() {
        let count = |name: &str| preset(name).unwrap().shape.parameter_count();
        assert_eq!(count("llama-tiny"), 2 * 1024 * 128 + 4 * (4 * 128 * 128 + 3 * 352 * 128 + 2 * 128) + 128);
        assert_eq!(count("llama-15m"), 15_340_416);
    }

    #[test]
    fn an_unknown_model_names_the_presets() {
        let error = preset("llama-900t").unwrap_err().to_string();
        assert!(error.contains("llama-900t") && error.contains("llama-15m"), "{error}");
    }
}
