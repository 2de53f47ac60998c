//! The Llama-class decoder: what it keeps between forward and backward, and the two passes.

use std::sync::Arc;

use crate::model::{Role, Shape};

use super::buckets::{Gradients, Weights};
use super::data::Batch;
use super::ops::{Attended, Gated, Heads, Kind, Linear, Logits, Lookup, Norm, Ops, Sequences, Stretch, Write};
use super::seed::weight_key;

/// Base of the rotary frequencies (Su et al., 2021).
const THETA: f64 = 10_000.0;

/// Standard deviation of initial matrices, as GPT-2 and Llama begin.
const DEVIATION: f64 = 0.02;

/// A decoder on a device: weights, and memory for one micro-step that is planned once.
#[derive(Debug)]
pub struct Decoder<O: Ops> {
    dims: Dims,
    /// The parameters.
    pub weights: Weights<O>,
    /// `turns[T, D]`: cosines and sines of the rotary angles.
    turns: O::Buf,
    tokens: O::Tokens,
    saved: Saved<O>,
    /// `logits[N, V]`; after the forward pass their gradient, after the head's backward pass what [`Work`] places there.
    logits: O::Buf,
    /// `losses[N]`
    losses: O::Buf,
    work: Work<O>,
}

/// What the forward pass keeps for the backward pass. Where blocks are recomputed, one entry and one block serve all.
#[derive(Debug)]
struct Saved<O: Ops> {
    /// `x[N, W]`: the residual stream into each block, and into the last norm.
    streams: Vec<O::Buf>,
    /// The norm before attention of each block.
    entries: Vec<NormState<O>>,
    blocks: Vec<Block<O>>,
    last: NormState<O>,
}

/// The sizes of every operation.
#[derive(Debug, Clone, Copy)]
struct Dims {
    shape: Shape,
    lookup: Lookup,
    norm: Norm,
    heads: Heads,
    qkv: Linear,
    out: Linear,
    gate_up: Linear,
    gated: Gated,
    down: Linear,
    head: Linear,
    logits: Logits,
}

impl Dims {
    fn of(shape: &Shape, tokens: Sequences) -> Self {
        let Shape { heads, kv_heads, width, ffn, vocabulary, .. } = *shape;
        let rows = tokens.rows();
        let linear = |inputs, outputs| Linear { rows, inputs, outputs };
        let heads = Heads { tokens, heads, kv_heads, head_size: shape.head_size() };
        Self {
            shape: *shape,
            lookup: Lookup { rows, vocabulary, width },
            norm: Norm { rows, width },
            heads,
            qkv: linear(width, heads.packed_width()),
            out: linear(heads.width(), width),
            gate_up: linear(width, 2 * ffn),
            gated: Gated { rows, ffn },
            down: linear(ffn, width),
            head: linear(width, vocabulary),
            logits: Logits { rows, vocabulary },
        }
    }
}

/// What a norm gives.
#[derive(Debug)]
struct NormState<O: Ops> {
    /// `h[N, W]`
    h: O::Buf,
    /// `rstd[N]`
    rstd: O::Buf,
}

impl<O: Ops> NormState<O> {
    fn zeros(ops: &mut O, dims: Norm) -> Result<Self, O::Error> {
        let h = ops.zeros(dims.rows * dims.width, Kind::Working)?;
        Ok(Self { h, rstd: ops.zeros(dims.rows, Kind::Exact)? })
    }
}

/// What one block keeps for its backward pass.
#[derive(Debug)]
struct Block<O: Ops> {
    /// `qkv[N, (H + 2K)·D]`, turned, in the order of the device's attention
    qkv: O::Buf,
    /// `att[N, H·D]`
    att: O::Buf,
    /// One number for each query and head.
    lse: O::Buf,
    /// `x[N, W]`: the residual stream between attention and the feed-forward network.
    middle: O::Buf,
    /// The norm before the feed-forward network.
    ffn_norm: NormState<O>,
    /// `gate_up[N, 2F]`; after its backward pass their gradient.
    gate_up: O::Buf,
}

impl<O: Ops> Block<O> {
    fn zeros(ops: &mut O, dims: &Dims) -> Result<Self, O::Error> {
        let Dims { heads, gated, norm, .. } = dims;
        let rows = heads.tokens.rows();
        Ok(Self {
            qkv: ops.zeros(rows * heads.packed_width(), Kind::Working)?,
            att: ops.zeros(rows * heads.width(), Kind::Working)?,
            lse: ops.zeros(rows * heads.heads, Kind::Exact)?,
            middle: ops.zeros(rows * norm.width, Kind::Working)?,
            ffn_norm: NormState::zeros(ops, *norm)?,
            gate_up: ops.zeros(rows * 2 * gated.ffn, Kind::Working)?,
        })
    }
}

impl<O: Ops> Saved<O> {
    fn zeros(ops: &mut O, dims: &Dims, recompute: bool) -> Result<Self, O::Error> {
        let layers = dims.shape.layers;
        let kept = if recompute { 1 } else { layers };
        let stream = dims.norm.rows * dims.norm.width;
        Ok(Self {
            streams: (0..=layers).map(|_| ops.zeros(stream, Kind::Working)).collect::<Result<_, _>>()?,
            entries: (0..kept).map(|_| NormState::zeros(ops, dims.norm)).collect::<Result<_, _>>()?,
            blocks: (0..kept).map(|_| Block::zeros(ops, dims)).collect::<Result<_, _>>()?,
            last: NormState::zeros(ops, dims.norm)?,
        })
    }

    /// Where block `layer` keeps what it saves.
    fn place(&self, layer: usize) -> usize {
        layer.min(self.blocks.len() - 1)
    }

    /// True where what a block saved is lost by the time of its backward pass.
    fn recomputes(&self, layer: usize) -> bool {
        self.blocks.len() == 1 && layer + 1 < self.streams.len() - 1
    }
}

/// What attention reads and writes in one block.
#[derive(Debug)]
pub(super) struct AttentionBuffers<'a, O: Ops> {
    /// `qkv[N, (H + 2K)·D]`
    pub(super) qkv: &'a mut O::Buf,
    /// `att[N, H·D]`
    pub(super) att: &'a mut O::Buf,
    /// One number for each query and head.
    pub(super) lse: &'a mut O::Buf,
    /// `datt[N, H·D]`
    pub(super) datt: &'a mut O::Buf,
    /// `dqkv[N, (H + 2K)·D]`
    pub(super) dqkv: &'a mut O::Buf,
}

/// Memory that all blocks share, one after another.
#[derive(Debug)]
struct Work<O: Ops> {
    /// `dh[N, W]`: gradient of a norm's result.
    dh: O::Buf,
    /// `dx[N, W]`: gradient of the residual stream.
    dx: O::Buf,
    /// `datt[N, H·D]`
    datt: O::Buf,
    /// `dqkv[N, (H + 2K)·D]`
    dqkv: O::Buf,
    /// `act[N, F]`; in the backward pass first its gradient.
    act: O::Buf,
}

impl<O: Ops> Work<O> {
    /// All but `dh` are used only before the logits are there or after their gradient was.
    fn zeros(ops: &mut O, dims: &Dims, logits: &O::Buf) -> Result<Self, O::Error> {
        let Dims { norm, heads, gated, .. } = dims;
        let lens = [norm.width, heads.width(), heads.packed_width(), gated.ffn].map(|width| norm.rows * width);
        let mut shared = ops.sharing(logits, &lens)?.into_iter();
        let mut next = || shared.next().expect("a buffer for each length");
        let (dx, datt, dqkv, act) = (next(), next(), next(), next());
        Ok(Self { dh: ops.zeros(norm.rows * norm.width, Kind::Working)?, dx, datt, dqkv, act })
    }
}

impl<O: Ops> Decoder<O> {
    /// A decoder with initial weights, in `weights`: norms 1, matrices normal with deviation 0.02, the same for the same seed on
    /// every rank and with every bucket size. With `recompute` the backward pass computes each block again instead of
    /// keeping what it saved.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(
        ops: &mut O,
        shape: &Shape,
        tokens: Sequences,
        mut weights: Weights<O>,
        seed: u64,
        recompute: bool,
    ) -> Result<Self, O::Error> {
        let dims = Dims::of(shape, tokens);
        let places = Arc::clone(weights.places());
        for (stream, parameter) in (0..).zip(&places.parameters) {
            let weight = weights.view_mut(parameter.role);
            if parameter.is_matrix() {
                ops.initial(weight, weight_key(seed, stream), DEVIATION)?;
            } else {
                ops.upload(weight, &vec![1.0; parameter.elements()])?;
            }
        }
        let angles = turns(tokens.context, dims.heads.head_size);
        let mut turns = ops.zeros(angles.len(), Kind::Exact)?;
        ops.upload(O::view_mut(&mut turns, 0..angles.len()), &angles)?;
        let logits = ops.zeros(tokens.rows() * shape.vocabulary, Kind::Working)?;
        Ok(Self {
            dims,
            weights,
            turns,
            tokens: ops.tokens(dims.lookup)?,
            saved: Saved::zeros(ops, &dims, recompute)?,
            losses: ops.zeros(tokens.rows(), Kind::Exact)?,
            work: Work::zeros(ops, &dims, &logits)?,
            logits,
        })
    }

    /// Buffers of the first block that hold nothing yet, to try attention on.
    pub(super) fn attention_buffers(&mut self) -> AttentionBuffers<'_, O> {
        let Block { qkv, att, lse, .. } = &mut self.saved.blocks[0];
        let Work { datt, dqkv, .. } = &mut self.work;
        AttentionBuffers { qkv, att, lse, datt, dqkv }
    }

    /// The forward pass on a batch: adds `weight` times its mean loss, in nats per token, to the totals of the step, and
    /// keeps what the backward pass needs.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&mut self, ops: &mut O, batch: &Batch, weight: f64) -> Result<(), O::Error> {
        ops.upload_tokens(&mut self.tokens, &batch.inputs, &batch.targets)?;
        let stretch = Stretch::Forward { cut: self.weights.cuts };
        if self.weights.cuts && ops.is_recorded(stretch) {
            return self.weights.replay(ops, stretch);
        }
        self.weights.begin(ops)?;
        ops.stretch(stretch, |ops| self.run_forward(ops, weight))
    }

    fn run_forward(&mut self, ops: &mut O, weight: f64) -> Result<(), O::Error> {
        let Self { dims, weights, work, saved, turns, tokens, .. } = self;
        let layers = dims.shape.layers;
        weights.reach(ops, Role::Embedding)?;
        ops.embed(dims.lookup, &mut saved.streams[0], weights.view(Role::Embedding), tokens)?;
        let first = &mut saved.entries[0];
        weights.reach(ops, Role::AttentionNorm(0))?;
        ops.norm(dims.norm, &mut first.h, &mut first.rstd, &saved.streams[0], weights.view(Role::AttentionNorm(0)))?;
        for layer in 0..layers {
            let (here, next) = (saved.place(layer), saved.place(layer + 1));
            let Saved { streams, entries, blocks, last } = saved;
            let block = &mut blocks[here];
            block.forward(ops, dims, weights, (&streams[layer], &entries[here].h), turns, layer)?;
            ops.swiglu(dims.gated, &mut work.act, &block.gate_up)?;
            weights.reach(ops, Role::Down(layer))?;
            let (x, down) = (&mut streams[layer + 1], weights.view(Role::Down(layer)));
            ops.linear_add(dims.down, x, &block.middle, &work.act, down)?;
            let (NormState { h, rstd }, gain) = if layer + 1 < layers {
                (&mut entries[next], Role::AttentionNorm(layer + 1))
            } else {
                (last, Role::FinalNorm)
            };
            weights.reach(ops, gain)?;
            ops.norm(dims.norm, h, rstd, x, weights.view(gain))?;
        }
        weights.reach(ops, Role::Head)?;
        ops.linear(dims.head, &mut self.logits, &saved.last.h, weights.view(Role::Head))?;
        ops.cross_entropy(dims.logits, &mut self.losses, &mut self.logits, tokens)?;
        ops.add_loss(&self.losses, weight)
    }

    /// The gradients of the mean loss, last layer first, after [`Decoder::forward`].
    ///
    /// # Errors
    /// The device failed.
    pub fn backward(&mut self, ops: &mut O, gradients: &mut Gradients<O>) -> Result<(), O::Error> {
        match gradients.stretch() {
            Some(stretch) if ops.is_recorded(stretch) => gradients.replay(ops, stretch),
            Some(stretch) => ops.stretch(stretch, |ops| self.run_backward(ops, gradients)),
            None => self.run_backward(ops, gradients),
        }
    }

    fn run_backward(&mut self, ops: &mut O, gradients: &mut Gradients<O>) -> Result<(), O::Error> {
        let Self { dims, weights, work, saved, turns, .. } = self;
        gradients.write(ops, Role::Head, |ops, dw, write| {
            ops.linear_backward_weight(dims.head, dw, write, &self.logits, &saved.last.h)
        })?;
        ops.linear_backward_input(dims.head, &mut work.dh, &self.logits, weights.view(Role::Head))?;
        let layers = dims.shape.layers;
        let last = (&saved.streams[layers], &saved.last.rstd);
        norm_backward(ops, dims, weights, gradients, Role::FinalNorm, work, Write::Overwrite, last)?;
        for layer in (0..layers).rev() {
            let (here, again) = (saved.place(layer), saved.recomputes(layer));
            let Saved { streams, entries, blocks, .. } = saved;
            let (block, entry, x) = (&mut blocks[here], &mut entries[here], &streams[layer]);
            if again {
                let gain = weights.view(Role::AttentionNorm(layer));
                ops.norm(dims.norm, &mut entry.h, &mut entry.rstd, x, gain)?;
                block.forward(ops, dims, weights, (x, &entry.h), turns, layer)?;
            }
            block.backward_ffn(ops, dims, weights, gradients, work, layer)?;
            block.backward_attention(ops, dims, weights, gradients, work, (turns, &entry.h), layer)?;
            let role = Role::AttentionNorm(layer);
            norm_backward(ops, dims, weights, gradients, role, work, Write::Accumulate, (x, &entry.rstd))?;
        }
        gradients.write(ops, Role::Embedding, |ops, dtable, write| {
            ops.embed_backward(dims.lookup, dtable, write, &work.dx, &self.tokens)
        })
    }

    /// Where a number that is NaN or infinite stands first, in the order of the computation of the last micro-step:
    /// weights, what the forward pass kept, losses, gradients. Waits for the device.
    ///
    /// # Errors
    /// The device failed.
    pub fn first_not_finite(&mut self, ops: &mut O, gradients: &Gradients<O>) -> Result<Option<String>, O::Error> {
        let places = Arc::clone(self.weights.places());
        for parameter in &places.parameters {
            if let Some(index) = ops.first_not_finite(self.weights.view(parameter.role))? {
                return Ok(Some(format!("element {index} of the weight {}", parameter.role)));
            }
        }
        let Saved { streams, blocks, .. } = &self.saved;
        let mut kept = vec![("the embedded tokens".to_owned(), &streams[0])];
        for layer in 0..self.dims.shape.layers {
            if blocks.len() > 1 {
                let Block { qkv, att, middle, .. } = &blocks[layer];
                kept.push((format!("queries, keys and values of block {layer}"), qkv));
                kept.push((format!("attention of block {layer}"), att));
                kept.push((format!("the residual stream inside block {layer}"), middle));
            }
            kept.push((format!("the residual stream after block {layer}"), &streams[layer + 1]));
        }
        kept.push(("the losses".to_owned(), &self.losses));
        for (name, buffer) in kept {
            if let Some(index) = ops.first_not_finite(O::view(buffer, 0..O::len(buffer)))? {
                return Ok(Some(format!("element {index} of {name}")));
            }
        }
        for parameter in places.parameters.iter().rev() {
            if let Some(index) = ops.first_not_finite(gradients.view(parameter.role))? {
                return Ok(Some(format!("element {index} of the gradient of {}", parameter.role)));
            }
        }
        Ok(None)
    }
}

impl<O: Ops> Block<O> {
    /// From the residual stream `x` and its norm `h` to the gates of the feed-forward network.
    fn forward(
        &mut self,
        ops: &mut O,
        dims: &Dims,
        weights: &mut Weights<O>,
        (x, h): (&O::Buf, &O::Buf),
        turns: &O::Buf,
        layer: usize,
    ) -> Result<(), O::Error> {
        let Self { qkv, att, lse, middle, ffn_norm, gate_up } = self;
        weights.reach(ops, Role::Qkv(layer))?;
        ops.linear(dims.qkv, qkv, h, weights.view(Role::Qkv(layer)))?;
        ops.rotary(dims.heads, qkv, turns)?;
        ops.attention(dims.heads, att, lse, qkv)?;
        weights.reach(ops, Role::Out(layer))?;
        ops.linear_add(dims.out, middle, x, att, weights.view(Role::Out(layer)))?;
        weights.reach(ops, Role::FfnNorm(layer))?;
        let gain = weights.view(Role::FfnNorm(layer));
        ops.norm(dims.norm, &mut ffn_norm.h, &mut ffn_norm.rstd, middle, gain)?;
        weights.reach(ops, Role::GateUp(layer))?;
        ops.linear(dims.gate_up, gate_up, &ffn_norm.h, weights.view(Role::GateUp(layer)))
    }

    /// The feed-forward half: `work.dx` is the gradient of the stream above it, then of the stream below it.
    fn backward_ffn(
        &mut self,
        ops: &mut O,
        dims: &Dims,
        weights: &Weights<O>,
        gradients: &mut Gradients<O>,
        work: &mut Work<O>,
        layer: usize,
    ) -> Result<(), O::Error> {
        let Self { gate_up, ffn_norm, middle, .. } = self;
        ops.linear_backward_input(dims.down, &mut work.act, &work.dx, weights.view(Role::Down(layer)))?;
        ops.swiglu_backward(dims.gated, gate_up, &mut work.act)?;
        gradients.write(ops, Role::Down(layer), |ops, dw, write| {
            ops.linear_backward_weight(dims.down, dw, write, &work.dx, &work.act)
        })?;
        gradients.write(ops, Role::GateUp(layer), |ops, dw, write| {
            ops.linear_backward_weight(dims.gate_up, dw, write, gate_up, &ffn_norm.h)
        })?;
        ops.linear_backward_input(dims.gate_up, &mut work.dh, gate_up, weights.view(Role::GateUp(layer)))?;
        let role = Role::FfnNorm(layer);
        norm_backward(ops, dims, weights, gradients, role, work, Write::Accumulate, (middle, &ffn_norm.rstd))
    }

    /// The attention half up to its norm: leaves the gradient of the norm's result in `work.dh`.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the decoder that is borrowed on its own")]
    fn backward_attention(
        &mut self,
        ops: &mut O,
        dims: &Dims,
        weights: &Weights<O>,
        gradients: &mut Gradients<O>,
        work: &mut Work<O>,
        (turns, h): (&O::Buf, &O::Buf),
        layer: usize,
    ) -> Result<(), O::Error> {
        let Self { qkv, att, lse, .. } = &*self;
        gradients.write(ops, Role::Out(layer), |ops, dw, write| {
            ops.linear_backward_weight(dims.out, dw, write, &work.dx, att)
        })?;
        ops.linear_backward_input(dims.out, &mut work.datt, &work.dx, weights.view(Role::Out(layer)))?;
        ops.attention_backward(dims.heads, &mut work.dqkv, &work.datt, Attended { att, lse, qkv })?;
        ops.rotary_backward(dims.heads, &mut work.dqkv, turns)?;
        gradients.write(ops, Role::Qkv(layer), |ops, dw, write| {
            ops.linear_backward_weight(dims.qkv, dw, write, &work.dqkv, h)
        })?;
        ops.linear_backward_input(dims.qkv, &mut work.dh, &work.dqkv, weights.view(Role::Qkv(layer)))
    }
}

/// From `work.dh`, the gradient of a norm's result, to `work.dx`, that of the stream `x` below the norm.
#[expect(clippy::too_many_arguments, reason = "each is a part of the decoder that is borrowed on its own")]
fn norm_backward<O: Ops>(
    ops: &mut O,
    dims: &Dims,
    weights: &Weights<O>,
    gradients: &mut Gradients<O>,
    role: Role,
    work: &mut Work<O>,
    stream: Write,
    (x, rstd): (&O::Buf, &O::Buf),
) -> Result<(), O::Error> {
    let Work { dx, dh, .. } = work;
    gradients.write(ops, role, |ops, dgain, write| {
        ops.norm_backward(dims.norm, dx, stream, dgain, write, dh, x, rstd, weights.view(role))
    })
}

/// `turns[T, D]`: for each position `cos[D/2]` and `sin[D/2]` of `position · θ^(−2i/D)`.
pub(super) fn turns(context: usize, head_size: usize) -> Vec<f32> {
    let half = head_size / 2;
    let angle = |position: usize, pair: usize| position as f64 * THETA.powf(-2.0 * pair as f64 / head_size as f64);
    let row = |position| {
        let cos = (0..half).map(move |pair| angle(position, pair).cos() as f32);
        cos.chain((0..half).map(move |pair| angle(position, pair).sin() as f32))
    };
    (0..context).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Shard;
    use crate::device::{Clock, Floats};
    use crate::model::{MemoryDemand, MemoryPlan};
    use crate::train::cpu::Cpu;
    use crate::train::data::{Data, DataShare};
    use crate::train::reducer::Reducer;
    use crate::train::reference::{self, differences};
    use crate::train::seed::{Purpose, generator, normal};
    use crate::train::testing::{close, tiny};
    use crate::train::{Pass, Places, exchanged_lengths};

    impl<O: Ops> Decoder<O> {
        /// Everything that one micro-step must write before it reads it.
        pub(in crate::train) fn transient(&mut self) -> Vec<&mut O::Buf> {
            let Self { saved: Saved { streams, entries, blocks, last }, logits, losses, work, .. } = self;
            let blocks = blocks.iter_mut().flat_map(|block| {
                let Block { qkv, att, lse, middle, ffn_norm: NormState { h, rstd }, gate_up } = block;
                [qkv, att, lse, middle, h, rstd, gate_up]
            });
            let entries = entries.iter_mut().chain([last]).flat_map(|NormState { h, rstd }| [h, rstd]);
            let Work { dh, dx, datt, dqkv, act } = work;
            let shared = [logits, losses, dh, dx, datt, dqkv, act];
            blocks.chain(entries).chain(streams).chain(shared).collect()
        }
    }

    #[test]
    fn the_memory_plan_is_what_is_allocated() {
        let shape = crate::model::preset("llama-tiny").unwrap().shape;
        let config = crate::record::TrainConfig { shape, batch: 3, context: 40, ..tiny() };
        let tokens = Sequences { batch: config.batch, context: config.context };
        let places = Arc::new(Places::of(&config));
        for recompute in [false, true] {
            let mut ops = Cpu::new(1).unwrap();
            let weights = Weights::zeros(&mut ops, &places).unwrap();
            let mut model = Decoder::new(&mut ops, &shape, tokens, weights, 1, recompute).unwrap();
            // weights, gradients and two moments
            let parameters = 4 * places.layout.elements();
            let elements = parameters + model.transient().iter().map(|buffer| buffer.len()).sum::<usize>();
            let planned = MemoryPlan::on_cpu(&shape, MemoryDemand { recompute, ..config.memory_demand(1) });
            close("planned bytes", planned.total_bytes.0 as f64, (4 * elements) as f64, 0.0, 0.01);
        }
    }

    /// Each parameter's gradient along a random direction equals the slope of the f64 reference along it, and two
    /// micro-steps of the same batch give twice that.
    #[test]
    fn gradients_of_the_whole_model_are_slopes_of_its_loss() {
        [false, true].into_iter().for_each(gradients_are_slopes);
    }

    fn gradients_are_slopes(recompute: bool) {
        let config = tiny();
        let tokens = Sequences { batch: config.batch, context: config.context };
        let mut ops = Cpu::new(2).unwrap();
        let places = Arc::new(Places::of(&config));
        let weights = Weights::zeros(&mut ops, &places).unwrap();
        let mut model = Decoder::new(&mut ops, &config.shape, tokens, weights, 1, recompute).unwrap();
        let mut weights = Vec::new();
        for (stream, parameter) in (0..).zip(&places.parameters) {
            let mut values = vec![0.0; parameter.elements()];
            normal(&mut generator(3, Purpose::Language, stream), 0.3, &mut values);
            ops.upload(model.weights.view_mut(parameter.role), &values).unwrap();
            weights.push(values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
        }
        let mut batch = Batch::new(tokens);
        Data::open(&config, DataShare { rank: 0, world: 1 }).unwrap().fill(0, 0, &mut batch).unwrap();
        let buckets = exchanged_lengths(&config, 1).unwrap().into_iter().map(Floats::zeros).collect();
        let mut gradients = Gradients::<Cpu>::new(&places, buckets, Reducer::none(), (Shard::WHOLE, None));
        let index = |role| places.parameters.iter().position(|parameter| parameter.role == role).unwrap();
        let loss = |weights: &[Vec<f64>]| {
            let weight = |role| weights[index(role)].as_slice();
            reference::decoder(&config.shape, tokens, weight, &batch.inputs, &batch.targets)
        };

        for micro in 0..2 {
            model.transient().into_iter().for_each(|buffer| buffer.fill(f32::NAN));
            ops.begin_totals().unwrap();
            model.forward(&mut ops, &batch, 1.0).unwrap();
            close("loss", ops.outcome().unwrap().loss, loss(&weights), 0.0, 1e-5);
            let write = [Write::Overwrite, Write::Accumulate][micro];
            gradients.begin(Pass { write, last: micro == 1, timed: false }, &Clock::starting_now());
            model.backward(&mut ops, &mut gradients).unwrap();
        }
        gradients.finish(&mut ops, &mut Vec::new()).unwrap();

        for (parameter, place) in places.parameters.iter().zip(&places.layout.places) {
            let gradient = &gradients.bucket(place.bucket)[place.offset..place.offset + place.elements];
            let mut direction = vec![0.0; place.elements];
            normal(&mut generator(4, Purpose::Language, place.offset as u64), 1.0, &mut direction);
            let slope = differences(&[0.0], |length| {
                let mut moved = weights.clone();
                let values = &mut moved[index(parameter.role)];
                values.iter_mut().zip(&direction).for_each(|(value, &d)| *value += length[0] * f64::from(d));
                loss(&moved)
            });
            let along: f64 = gradient.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            close(&format!("{:?}", parameter.role), along, 2.0 * slope[0], 1e-4, 1e-3);
        }
    }
}
