//! The operations of a decoder, with named dimensions. The CPU defines them; every other device must match it.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// Sequences and how long they are; `N = B·T` tokens, a row each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// Sequences, `B`.
    pub batch: usize,
    /// Tokens of a sequence, `T`.
    pub context: usize,
}

impl Sequences {
    /// Tokens of all sequences, `N = B·T`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batch * self.context
    }
}

/// An embedding table `[V, W]` looked up for `N` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Tokens, `N`.
    pub rows: usize,
    /// Entries of the table, `V`.
    pub vocabulary: usize,
    /// Elements of an entry, `W`.
    pub width: usize,
}

/// A norm over the last axis of `[N, W]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norm {
    /// Tokens, `N`.
    pub rows: usize,
    /// Elements of a row, `W`.
    pub width: usize,
}

/// A matrix product with weights `[O, I]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Tokens, `N`.
    pub rows: usize,
    /// Input features, `I`.
    pub inputs: usize,
    /// Output features, `O`.
    pub outputs: usize,
}

/// Attention heads; `H / K` query heads share a key and value head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Sequences and their length, `B` and `T`.
    pub tokens: Sequences,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key and value heads, `K`; divides `H`.
    pub kv_heads: usize,
    /// Elements of a head, `D`; even.
    pub head_size: usize,
}

impl Heads {
    /// Columns of the packed queries, keys and values, `(H + 2K)·D`.
    #[must_use]
    pub fn packed_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// Columns of attention's result, `H·D`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Query heads that share one key and value head, `H / K`.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// The gated inner layer of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gated {
    /// Tokens, `N`.
    pub rows: usize,
    /// Inner width, `F`.
    pub ffn: usize,
}

/// Logits `[N, V]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logits {
    /// Tokens, `N`.
    pub rows: usize,
    /// Token ids, `V`.
    pub vocabulary: usize,
}

/// What happens to the earlier content of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is lost, and never read: it may be garbage.
    Overwrite,
    /// The result is added to it.
    Accumulate,
}

/// One update of AdamW (Loshchilov and Hutter, 2019, algorithm 2), its scalars resolved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWUpdate {
    /// Learning rate `η` of this step.
    pub learning_rate: f32,
    /// Decoupled weight decay `λ`; 0 for the gains of norms.
    pub weight_decay: f32,
    /// Decay of the first moment, `β₁`.
    pub beta1: f32,
    /// Decay of the second moment, `β₂`.
    pub beta2: f32,
    /// Added to the root of the second moment, `ε`.
    pub epsilon: f32,
    /// `1 − β₁ᵗ` at step `t`, counted from 1.
    pub bias1: f32,
    /// `1 − β₂ᵗ`.
    pub bias2: f32,
    /// Gradients are multiplied by this first: mean over ranks and micro-steps, and clipping.
    pub gradient_scale: f32,
}

/// Added to the mean square before its root is taken, as Llama does.
pub const NORM_EPSILON: f32 = 1e-5;

/// A device that can train a decoder.
///
/// Buffers are flat ranges of `f32` (or the device's own precision); the last axis of a shape is contiguous. A
/// parameter or gradient is a range of a bucket and passed as a view, everything else is a buffer of its own. A
/// destination comes first, then what is only read. A destination is written whole unless it says otherwise.
pub trait Ops {
    /// An owned range of elements in the memory of the device.
    type Buf: fmt::Debug + Send + 'static;
    /// Token ids in the memory of the device.
    type Ids: fmt::Debug + Send;
    /// A part of a buffer, to read.
    type View<'a>: Copy;
    /// A part of a buffer, to write.
    type ViewMut<'a>;
    /// Why the device could not do it.
    type Error: Error + Send + Sync + 'static;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// The device has no memory left.
    fn zeros(&mut self, len: usize) -> Result<Self::Buf, Self::Error>;

    /// Room for `len` token ids.
    ///
    /// # Errors
    /// The device has no memory left.
    fn ids(&mut self, len: usize) -> Result<Self::Ids, Self::Error>;

    /// Copies `host` to the beginning of `ids`.
    ///
    /// # Errors
    /// The device failed.
    fn upload_ids(&mut self, ids: &mut Self::Ids, host: &[u32]) -> Result<(), Self::Error>;

    /// Copies `host` into a buffer's part of the same length.
    ///
    /// # Errors
    /// The device failed.
    fn upload(&mut self, dst: Self::ViewMut<'_>, host: &[f32]) -> Result<(), Self::Error>;

    /// Copies a buffer's part into `host`, of the same length; waits for what computes it.
    ///
    /// # Errors
    /// The device failed.
    fn download(&mut self, host: &mut [f32], src: Self::View<'_>) -> Result<(), Self::Error>;

    /// A part of a buffer, to read.
    fn view(buf: &Self::Buf, range: Range<usize>) -> Self::View<'_>;

    /// A part of a buffer, to write.
    fn view_mut(buf: &mut Self::Buf, range: Range<usize>) -> Self::ViewMut<'_>;

    /// `x[N, W] = table[ids[N], W]`.
    ///
    /// # Errors
    /// The device failed.
    fn embed(
        &mut self,
        dims: Lookup,
        x: &mut Self::Buf,
        table: Self::View<'_>,
        ids: &Self::Ids,
    ) -> Result<(), Self::Error>;

    /// `dtable[ids[N], W] += dx[N, W]`, after zeroing all of `dtable[V, W]` if it is overwritten. Rows of one token
    /// are added in the order of `N`.
    ///
    /// # Errors
    /// The device failed.
    fn embed_backward(
        &mut self,
        dims: Lookup,
        dtable: Self::ViewMut<'_>,
        write: Write,
        dx: &Self::Buf,
        ids: &Self::Ids,
    ) -> Result<(), Self::Error>;

    /// RMSNorm (Zhang and Sennrich, 2019): `rstd[N] = 1 / √(mean(x²) + ε)`, `h[N, W] = x · rstd · gain[W]`.
    ///
    /// # Errors
    /// The device failed.
    fn norm(
        &mut self,
        dims: Norm,
        h: &mut Self::Buf,
        rstd: &mut Self::Buf,
        x: &Self::Buf,
        gain: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// The residual stream and its norm in one pass: `y[N, W] = x[N, W] + branch[N, W]`, then [`Ops::norm`] of `y`.
    ///
    /// # Errors
    /// The device failed.
    #[expect(clippy::too_many_arguments, reason = "a fused operation names each of its tensors")]
    fn add_norm(
        &mut self,
        dims: Norm,
        y: &mut Self::Buf,
        h: &mut Self::Buf,
        rstd: &mut Self::Buf,
        x: &Self::Buf,
        branch: &Self::Buf,
        gain: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// The gradient of the residual stream below a norm, with `g = dh · gain`:
    /// `dx[N, W] (+)= rstd · (g − x · rstd² · mean(g · x))` and `dgain[W] (+)= Σ_N dh · x · rstd`.
    /// `stream` accumulates where `dx` already holds the gradient that passes beside the norm.
    ///
    /// # Errors
    /// The device failed.
    #[expect(clippy::too_many_arguments, reason = "a fused operation names each of its tensors")]
    fn norm_backward(
        &mut self,
        dims: Norm,
        dx: &mut Self::Buf,
        stream: Write,
        dgain: Self::ViewMut<'_>,
        write: Write,
        dh: &Self::Buf,
        x: &Self::Buf,
        rstd: &Self::Buf,
        gain: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// `y[N, O] = x[N, I] · weight[O, I]ᵀ`.
    ///
    /// # Errors
    /// The device failed.
    fn linear(
        &mut self,
        dims: Linear,
        y: &mut Self::Buf,
        x: &Self::Buf,
        weight: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// `dx[N, I] = dy[N, O] · weight[O, I]`.
    ///
    /// # Errors
    /// The device failed.
    fn linear_backward_input(
        &mut self,
        dims: Linear,
        dx: &mut Self::Buf,
        dy: &Self::Buf,
        weight: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// `dweight[O, I] (+)= dy[N, O]ᵀ · x[N, I]`.
    ///
    /// # Errors
    /// The device failed.
    fn linear_backward_weight(
        &mut self,
        dims: Linear,
        dweight: Self::ViewMut<'_>,
        write: Write,
        dy: &Self::Buf,
        x: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// Rotary positions (Su et al., 2021; the halves of a head form the pairs): splits the packed
    /// `qkv[B, T, (H + 2K), D]` by head into `q[B, H, T, D]`, `k[B, K, T, D]` and `v[B, K, T, D]`, and turns queries
    /// and keys: `(a, b) → (a·cos − b·sin, b·cos + a·sin)` with `turns[T, D]` holding `cos[D/2]`, then `sin[D/2]`.
    ///
    /// # Errors
    /// The device failed.
    fn rotary(
        &mut self,
        dims: Heads,
        q: &mut Self::Buf,
        k: &mut Self::Buf,
        v: &mut Self::Buf,
        qkv: &Self::Buf,
        turns: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::rotary`]: turns back and packs into `dqkv[B, T, (H + 2K), D]`.
    ///
    /// # Errors
    /// The device failed.
    fn rotary_backward(
        &mut self,
        dims: Heads,
        dqkv: &mut Self::Buf,
        dq: &Self::Buf,
        dk: &Self::Buf,
        dv: &Self::Buf,
        turns: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// Causal attention with grouped queries: `s[B, H, T, T] = q · kᵀ / √D` where the key is not after the query,
    /// `lse[B, T, H] = ln Σ exp(s)`, `att[B, T, H, D] = exp(s − lse) · v`. Scores are never kept whole
    /// (FlashAttention, Dao et al., 2022).
    ///
    /// # Errors
    /// The device failed.
    fn attention(
        &mut self,
        dims: Heads,
        att: &mut Self::Buf,
        lse: &mut Self::Buf,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::attention`] from `datt[B, T, H, D]`: `dq[B, H, T, D]`, `dk[B, K, T, D]`,
    /// `dv[B, K, T, D]`; the probabilities are computed again from `lse`.
    ///
    /// # Errors
    /// The device failed.
    #[expect(clippy::too_many_arguments, reason = "a fused operation names each of its tensors")]
    fn attention_backward(
        &mut self,
        dims: Heads,
        dq: &mut Self::Buf,
        dk: &mut Self::Buf,
        dv: &mut Self::Buf,
        datt: &Self::Buf,
        att: &Self::Buf,
        lse: &Self::Buf,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// SwiGLU (Shazeer, 2020): `act[N, F] = gate · σ(gate) · up` with `gate_up[N, 2F]` holding `gate[F]`, then
    /// `up[F]`.
    ///
    /// # Errors
    /// The device failed.
    fn swiglu(&mut self, dims: Gated, act: &mut Self::Buf, gate_up: &Self::Buf) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::swiglu`]: `dgate_up[N, 2F]` from `dact[N, F]`.
    ///
    /// # Errors
    /// The device failed.
    fn swiglu_backward(
        &mut self,
        dims: Gated,
        dgate_up: &mut Self::Buf,
        dact: &Self::Buf,
        gate_up: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// `losses[N] = −ln softmax(logits)[target]` in nats, and in place of `logits[N, V]` their gradient for the mean
    /// over the `N` tokens: `(softmax(logits) − one_hot(target)) / N`.
    ///
    /// # Errors
    /// The device failed.
    fn cross_entropy(
        &mut self,
        dims: Logits,
        losses: &mut Self::Buf,
        logits: &mut Self::Buf,
        targets: &Self::Ids,
    ) -> Result<(), Self::Error>;

    /// The mean of a buffer, summed in double precision; waits for what computes it.
    ///
    /// # Errors
    /// The device failed.
    fn mean(&mut self, values: &Self::Buf) -> Result<f64, Self::Error>;

    /// The sum of the squares of a buffer, the same bits for the same values whatever the scheduling; waits for what
    /// computes it.
    ///
    /// # Errors
    /// The device failed.
    fn sum_of_squares(&mut self, values: &Self::Buf) -> Result<f64, Self::Error>;

    /// `g = gradient · gradient_scale`, `m = β₁m + (1 − β₁)g`, `v = β₂v + (1 − β₂)g²`,
    /// `weight = weight·(1 − ηλ) − η · (m / bias₁) / (√(v / bias₂) + ε)`; all of one length.
    ///
    /// # Errors
    /// The device failed.
    fn adamw(
        &mut self,
        update: AdamWUpdate,
        weight: Self::ViewMut<'_>,
        m: Self::ViewMut<'_>,
        v: Self::ViewMut<'_>,
        gradient: Self::View<'_>,
    ) -> Result<(), Self::Error>;
}
