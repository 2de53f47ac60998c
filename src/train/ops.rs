//! The operations of a decoder, with named dimensions. The CPU defines them; every other device must match it.

use std::error::Error;
use std::fmt;
use std::ops::Range;

use crate::units::Seconds;

use super::reducer::Queue;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// From the summed gradient to its mean over ranks and micro-steps.
    pub mean: f64,
    /// Norm of the mean gradient above which it is scaled down to it; none: never.
    pub clip_norm: Option<f64>,
}

impl AdamWUpdate {
    /// What gradients are multiplied by first, from the sum of their squares; none where that is no finite number,
    /// and then nothing may be updated.
    #[must_use]
    pub fn gradient_scale(&self, squares: f64) -> Option<f32> {
        let norm = self.mean * squares.sqrt();
        let clipping = self.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        norm.is_finite().then_some((self.mean * clipping) as f32)
    }
}

/// How exactly a buffer keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Weights, activations and gradients: the device's working precision.
    Working,
    /// Statistics, losses and angles: `f32`.
    Exact,
}

/// A stretch of a step whose operations are the same, on the same buffers, each time that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stretch {
    /// From tokens to logits and the loss.
    Forward {
        /// Whether it is cut where it comes to another bucket of weights, to wait for that.
        cut: bool,
    },
    /// From the logits' gradient to those of all weights.
    Backward {
        /// What happens to earlier gradients.
        write: Write,
        /// Whether it is cut where buckets are full, for their exchange.
        cut: bool,
    },
}

/// What a step leaves beside weights: sums that the device keeps while the step runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Mean loss over micro-steps and tokens, in nats.
    pub loss: f64,
    /// Sum of the squares of the summed gradient.
    pub squares: f64,
    /// Sum of the parameters' checksums, modulo 2⁶⁴; 0 where none was taken.
    pub checksum: u64,
}

/// Elements that a rank has in the buffer of [`Ops::norms`]: a chunk of its own.
pub const NORM_ROOM: usize = 16;

/// Added to the mean square before its root is taken, as Llama does.
pub const NORM_EPSILON: f32 = 1e-5;

/// A device that can train a decoder.
///
/// Buffers are flat ranges in the device's working precision or in `f32` ([`Kind`]); the last axis of a shape is
/// contiguous. A parameter or gradient is a range of a bucket and passed as a view, everything else is a buffer of its
/// own. A destination comes first, then what is only read. A destination is written whole unless it says otherwise.
///
/// An operation may return before it has run, but operations run in the order of their calls; what reads results back
/// to the host waits for them.
pub trait Ops {
    /// An owned range of elements in the memory of the device.
    type Buf: fmt::Debug + Send + 'static;
    /// A batch of token ids and targets in the memory of the device.
    type Tokens: fmt::Debug;
    /// A part of a buffer, to read.
    type View<'a>: Copy;
    /// A part of a buffer, to write.
    type ViewMut<'a>;
    /// What AdamW keeps for a bucket of weights.
    type State: fmt::Debug;
    /// A point in the order of the device's work.
    type Mark: fmt::Debug + Clone;
    /// [`Totals`] that are on their way to the host.
    type Outcome: fmt::Debug;
    /// An exchange of gradients in the order of the device's work.
    type Queue: Queue<Self>;
    /// Why the device could not do it.
    type Error: Error + Send + Sync + 'static;

    /// Steps that may be under way on the device while the host prepares the next.
    const AHEAD: usize;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// The device has no memory left.
    fn zeros(&mut self, len: usize, kind: Kind) -> Result<Self::Buf, Self::Error>;

    /// Buffers of `lens` elements in working precision that are used only while nobody needs the content of `other`:
    /// the device may place them in its memory. Their content is arbitrary.
    ///
    /// # Errors
    /// The device has no memory left.
    fn sharing(&mut self, other: &Self::Buf, lens: &[usize]) -> Result<Vec<Self::Buf>, Self::Error>;

    /// Room for the tokens of a batch: `N` ids and `N` targets.
    ///
    /// # Errors
    /// The device has no memory left.
    fn tokens(&mut self, dims: Lookup) -> Result<Self::Tokens, Self::Error>;

    /// Copies ids and targets, below the vocabulary, to the device.
    ///
    /// # Errors
    /// The device failed.
    fn upload_tokens(&mut self, tokens: &mut Self::Tokens, inputs: &[u32], targets: &[u32]) -> Result<(), Self::Error>;

    /// Copies `host` into a buffer's part of the same length.
    ///
    /// # Errors
    /// The device failed.
    fn upload(&mut self, dst: Self::ViewMut<'_>, host: &[f32]) -> Result<(), Self::Error>;

    /// Fills a buffer's part with normal numbers of mean 0 that depend on `key` alone, up to rounding the same on every
    /// device.
    ///
    /// # Errors
    /// The device failed.
    fn initial(&mut self, dst: Self::ViewMut<'_>, key: u64, deviation: f64) -> Result<(), Self::Error>;

    /// Copies a buffer's part into `host`, of the same length; waits for what computes it.
    ///
    /// # Errors
    /// The device failed.
    fn download(&mut self, host: &mut [f32], src: Self::View<'_>) -> Result<(), Self::Error>;

    /// The index of the first element of a buffer's part that is NaN or infinite; waits for what computes it.
    ///
    /// # Errors
    /// The device failed.
    fn first_not_finite(&mut self, values: Self::View<'_>) -> Result<Option<usize>, Self::Error>;

    /// A part of a buffer, to read.
    fn view(buf: &Self::Buf, range: Range<usize>) -> Self::View<'_>;

    /// A part of a buffer, to write.
    fn view_mut(buf: &mut Self::Buf, range: Range<usize>) -> Self::ViewMut<'_>;

    /// Elements of a buffer.
    fn len(buf: &Self::Buf) -> usize;

    /// A point after all that was asked for so far.
    ///
    /// # Errors
    /// The device failed.
    fn mark(&mut self) -> Result<Self::Mark, Self::Error>;

    /// Waits until the device has passed `mark`.
    ///
    /// # Errors
    /// The device failed.
    fn wait(&mut self, mark: &Self::Mark) -> Result<(), Self::Error>;

    /// What the device is asked for from here on waits until it has passed `mark`, which may stand beside the order of this
    /// work.
    ///
    /// # Errors
    /// The device failed.
    fn follow(&mut self, mark: &Self::Mark) -> Result<(), Self::Error>;

    /// Time from one point to a later one; waits for it.
    ///
    /// # Errors
    /// The device failed.
    fn between(&mut self, earlier: &Self::Mark, later: &Self::Mark) -> Result<Seconds, Self::Error>;

    /// Whether `stretch` was recorded: then its pieces are replayed instead of asked for again.
    fn is_recorded(&self, stretch: Stretch) -> bool;

    /// Does piece number `piece` of a recorded stretch again.
    ///
    /// # Errors
    /// The device failed.
    fn replay(&mut self, stretch: Stretch, piece: usize) -> Result<(), Self::Error>;

    /// What follows, up to [`Ops::end_stretch`], are the operations of `stretch`: the same on the same buffers each time,
    /// so that a device may record them.
    ///
    /// # Errors
    /// The device failed.
    fn begin_stretch(&mut self, stretch: Stretch) -> Result<(), Self::Error>;

    /// Ends a piece of the stretch under way: what is asked for from here to [`Ops::resume`] belongs to none.
    ///
    /// # Errors
    /// The device failed.
    fn cut(&mut self) -> Result<(), Self::Error>;

    /// Begins the next piece of the stretch under way, after [`Ops::cut`].
    ///
    /// # Errors
    /// The device failed.
    fn resume(&mut self) -> Result<(), Self::Error>;

    /// Ends the stretch under way, whatever failed in it.
    ///
    /// # Errors
    /// The device failed.
    fn end_stretch(&mut self) -> Result<(), Self::Error>;

    /// Runs `work` as `stretch`, or its record.
    ///
    /// # Errors
    /// Those of `work`, or the device failed.
    fn stretch(
        &mut self,
        stretch: Stretch,
        work: impl FnOnce(&mut Self) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>
    where
        Self: Sized,
    {
        if self.is_recorded(stretch) {
            return self.replay(stretch, 0);
        }
        self.begin_stretch(stretch)?;
        let done = work(self);
        let ended = self.end_stretch();
        done?;
        ended
    }

    /// `x[N, W] = table[ids[N], W]`.
    ///
    /// # Errors
    /// The device failed.
    fn embed(
        &mut self,
        dims: Lookup,
        x: &mut Self::Buf,
        table: Self::View<'_>,
        tokens: &Self::Tokens,
    ) -> Result<(), Self::Error>;

    /// `dtable[ids[N], W] += dx[N, W]`, after zeroing all of `dtable[V, W]` if it is overwritten. Rows of one token
    /// are added in an order that depends on the batch alone.
    ///
    /// # Errors
    /// The device failed.
    fn embed_backward(
        &mut self,
        dims: Lookup,
        dtable: Self::ViewMut<'_>,
        write: Write,
        dx: &Self::Buf,
        tokens: &Self::Tokens,
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

    /// `y[N, O] = residual[N, O] + x[N, I] · weight[O, I]ᵀ`: the residual stream goes on, rounded once.
    ///
    /// # Errors
    /// The device failed.
    fn linear_add(
        &mut self,
        dims: Linear,
        y: &mut Self::Buf,
        residual: &Self::Buf,
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

    /// Rotary positions (Su et al., 2021; the halves of a head form the pairs), in place: turns queries and keys of
    /// the packed `qkv[B, T, (H + 2K), D]`: `(a, b) → (a·cos − b·sin, b·cos + a·sin)` with `turns[T, D]` holding
    /// `cos[D/2]`, then `sin[D/2]`. From here to [`Ops::rotary_backward`] the elements of a sequence lie in the order
    /// that suits the device's attention.
    ///
    /// # Errors
    /// The device failed.
    fn rotary(&mut self, dims: Heads, qkv: &mut Self::Buf, turns: &Self::Buf) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::rotary`], in place: turns back, and packs into `dqkv[B, T, (H + 2K), D]`.
    ///
    /// # Errors
    /// The device failed.
    fn rotary_backward(&mut self, dims: Heads, dqkv: &mut Self::Buf, turns: &Self::Buf) -> Result<(), Self::Error>;

    /// Causal attention with grouped queries on what [`Ops::rotary`] left: `s[B, H, T, T] = q · kᵀ / √D` where the key
    /// is not after the query, `lse = ln Σ exp(s)` for each query and head, `att[B, T, H, D] = exp(s − lse) · v`.
    /// Scores are never kept whole (FlashAttention, Dao et al., 2022).
    ///
    /// # Errors
    /// The device failed.
    fn attention(
        &mut self,
        dims: Heads,
        att: &mut Self::Buf,
        lse: &mut Self::Buf,
        qkv: &Self::Buf,
    ) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::attention`] from `datt[B, T, H, D]`: `dqkv` in the order of `qkv`; the probabilities are
    /// computed again from `lse`.
    ///
    /// # Errors
    /// The device failed.
    fn attention_backward(
        &mut self,
        dims: Heads,
        dqkv: &mut Self::Buf,
        datt: &Self::Buf,
        saved: Attended<'_, Self::Buf>,
    ) -> Result<(), Self::Error>;

    /// SwiGLU (Shazeer, 2020): `act[N, F] = gate · σ(gate) · up` with `gate_up[N, 2F]` holding `gate[F]`, then
    /// `up[F]`.
    ///
    /// # Errors
    /// The device failed.
    fn swiglu(&mut self, dims: Gated, act: &mut Self::Buf, gate_up: &Self::Buf) -> Result<(), Self::Error>;

    /// The gradient of [`Ops::swiglu`], in place: `gate_up[N, 2F]` becomes its gradient, and `dact[N, F]` becomes
    /// `act[N, F]`, computed again.
    ///
    /// # Errors
    /// The device failed.
    fn swiglu_backward(
        &mut self,
        dims: Gated,
        gate_up: &mut Self::Buf,
        dact: &mut Self::Buf,
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
        tokens: &Self::Tokens,
    ) -> Result<(), Self::Error>;

    /// Sets the totals of the step to zero.
    ///
    /// # Errors
    /// The device failed.
    fn begin_totals(&mut self) -> Result<(), Self::Error>;

    /// Adds `weight` times the mean of `losses` to the loss of the step, in double precision.
    ///
    /// # Errors
    /// The device failed.
    fn add_loss(&mut self, losses: &Self::Buf, weight: f64) -> Result<(), Self::Error>;

    /// Adds the sum of the squares of `gradients` to that of the step: the same bits for the same values, whatever the
    /// scheduling.
    ///
    /// # Errors
    /// The device failed.
    fn add_squares(&mut self, gradients: Self::View<'_>) -> Result<(), Self::Error>;

    /// Where ranks say what their squares sum to: [`NORM_ROOM`] elements for each of `world`, all zero.
    ///
    /// # Errors
    /// The device has no memory left.
    fn norms(&mut self, world: usize) -> Result<Self::Buf, Self::Error>;

    /// Writes the sum of the squares so far to the place of `rank` in `norms`.
    ///
    /// # Errors
    /// The device failed.
    fn put_squares(&mut self, norms: &mut Self::Buf, rank: usize) -> Result<(), Self::Error>;

    /// Replaces the sum of the squares by that of all places of `norms`, in one order.
    ///
    /// # Errors
    /// The device failed.
    fn take_squares(&mut self, norms: &Self::Buf) -> Result<(), Self::Error>;

    /// Adds `Σ bits · (2·place + 1)`, modulo 2⁶⁴, over weights, as [`Ops::master`] has them, to the checksum of the step;
    /// places count from `first`. It changes with any one weight, and is the same in whatever order it is taken.
    ///
    /// # Errors
    /// The device failed.
    fn add_checksum(
        &mut self,
        weights: Self::View<'_>,
        rest: Option<Self::View<'_>>,
        first: usize,
    ) -> Result<(), Self::Error>;

    /// Sends the totals to the host.
    ///
    /// # Errors
    /// The device failed.
    fn outcome(&mut self) -> Result<Self::Outcome, Self::Error>;

    /// The totals, once they have arrived.
    ///
    /// # Errors
    /// The device failed.
    fn totals(&mut self, outcome: Self::Outcome) -> Result<Totals, Self::Error>;

    /// What AdamW keeps for `len` weights of a bucket: moments of zero. `gains` are the ranges that no decay touches.
    ///
    /// # Errors
    /// The device has no memory left.
    fn state(&mut self, len: usize, gains: Vec<Range<usize>>) -> Result<Self::State, Self::Error>;

    /// `g = gradient · scale`, `m = β₁m + (1 − β₁)g`, `v = β₂v + (1 − β₂)g²`,
    /// `weight = weight·(1 − ηλ) − η · (m / bias₁) / (√(v / bias₂) + ε)` for the weights that `state` is of, with the scale
    /// of [`AdamWUpdate::gradient_scale`] from the totals of the step.
    ///
    /// # Errors
    /// The device failed.
    fn adamw(
        &mut self,
        update: &AdamWUpdate,
        weights: Self::ViewMut<'_>,
        state: &mut Self::State,
        gradients: Self::View<'_>,
    ) -> Result<(), Self::Error>;

    /// What AdamW keeps of the weights of `range` beyond the working precision, in as many elements of it; none where there
    /// is nothing beyond it.
    fn rest(state: &Self::State, range: Range<usize>) -> Option<Self::View<'_>>;

    /// Copies a part of a buffer to another of the same length, bit by bit.
    ///
    /// # Errors
    /// The device failed.
    fn copy(&mut self, dst: Self::ViewMut<'_>, src: Self::View<'_>) -> Result<(), Self::Error>;

    /// Copies weights as AdamW keeps them, in `f32`, into `host`, of the same length. Without `rest` they are what the
    /// working precision holds.
    ///
    /// # Errors
    /// The device failed.
    fn master(
        &mut self,
        host: &mut [f32],
        weights: Self::View<'_>,
        rest: Option<Self::View<'_>>,
    ) -> Result<(), Self::Error>;

    /// What stands for weights, as [`Ops::master`] has them, in a hash: all their bits, or a number of 64 bits that changes
    /// with each of them and with its place.
    ///
    /// # Errors
    /// The device failed.
    fn fingerprint(&mut self, weights: Self::View<'_>, rest: Option<Self::View<'_>>) -> Result<Vec<u8>, Self::Error>;
}

/// What attention keeps for its backward pass.
#[derive(Debug)]
pub struct Attended<'a, B> {
    /// `att[B, T, H, D]`
    pub att: &'a B,
    /// One number for each query and head.
    pub lse: &'a B,
    /// Queries, keys and values as [`Ops::rotary`] left them.
    pub qkv: &'a B,
}
