//! The Llama-class decoder: what it keeps between forward and backward, and the two passes.

use std::sync::Arc;

use crate::model::{Role, Shape};

use super::buckets::{Gradients, Places, Weights};
use super::data::Batch;
use super::ops::{Gated, Heads, Linear, Logits, Lookup, Norm, Ops, Sequences, Write};
use super::seed::{Purpose, generator, normal};

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
    inputs: O::Ids,
    targets: O::Ids,
    blocks: Vec<Block<O>>,
    last: NormState<O>,
    /// `logits[N, V]`; after the forward pass their gradient.
    logits: O::Buf,
    /// `losses[N]`
    losses: O::Buf,
    work: Work<O>,
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

/// A norm and the residual stream that enters it.
#[derive(Debug)]
struct NormState<O: Ops> {
    /// `x[N, W]`
    x: O::Buf,
    /// `h[N, W]`
    h: O::Buf,
    /// `rstd[N]`
    rstd: O::Buf,
}

impl<O: Ops> NormState<O> {
    fn zeros(ops: &mut O, dims: Norm) -> Result<Self, O::Error> {
        let stream = dims.rows * dims.width;
        Ok(Self { x: ops.zeros(stream)?, h: ops.zeros(stream)?, rstd: ops.zeros(dims.rows)? })
    }
}

/// What one block keeps for its backward pass.
#[derive(Debug)]
struct Block<O: Ops> {
    attention_norm: NormState<O>,
    /// `q[B, H, T, D]`, turned
    q: O::Buf,
    /// `k[B, K, T, D]`, turned
    k: O::Buf,
    /// `v[B, K, T, D]`
    v: O::Buf,
    /// `att[N, H·D]`
    att: O::Buf,
    /// `lse[B, T, H]`
    lse: O::Buf,
    ffn_norm: NormState<O>,
    /// `gate_up[N, 2F]`
    gate_up: O::Buf,
    /// `act[N, F]`
    act: O::Buf,
}

impl<O: Ops> Block<O> {
    fn zeros(ops: &mut O, dims: &Dims) -> Result<Self, O::Error> {
        let Dims { heads, gated, .. } = dims;
        let rows = heads.tokens.rows();
        Ok(Self {
            attention_norm: NormState::zeros(ops, dims.norm)?,
            q: ops.zeros(rows * heads.width())?,
            k: ops.zeros(rows * heads.kv_heads * heads.head_size)?,
            v: ops.zeros(rows * heads.kv_heads * heads.head_size)?,
            att: ops.zeros(rows * heads.width())?,
            lse: ops.zeros(rows * heads.heads)?,
            ffn_norm: NormState::zeros(ops, dims.norm)?,
            gate_up: ops.zeros(rows * 2 * gated.ffn)?,
            act: ops.zeros(rows * gated.ffn)?,
        })
    }
}

/// Memory that all blocks share, one after another.
#[derive(Debug)]
struct Work<O: Ops> {
    /// `branch[N, W]`: what a block adds to the residual stream.
    branch: O::Buf,
    /// `qkv[N, (H + 2K)·D]`, and its gradient.
    qkv: O::Buf,
    /// `dx[N, W]`: gradient of the residual stream.
    dx: O::Buf,
    /// `dh[N, W]`: gradient of a norm's result.
    dh: O::Buf,
    /// `datt[N, H·D]`
    datt: O::Buf,
    /// `dq[B, H, T, D]`
    dq: O::Buf,
    /// `dk[B, K, T, D]`
    dk: O::Buf,
    /// `dv[B, K, T, D]`
    dv: O::Buf,
    /// `dgate_up[N, 2F]`
    dgate_up: O::Buf,
    /// `dact[N, F]`
    dact: O::Buf,
}

impl<O: Ops> Work<O> {
    fn zeros(ops: &mut O, dims: &Dims) -> Result<Self, O::Error> {
        let Dims { norm, heads, gated, .. } = dims;
        let rows = norm.rows;
        Ok(Self {
            branch: ops.zeros(rows * norm.width)?,
            qkv: ops.zeros(rows * heads.packed_width())?,
            dx: ops.zeros(rows * norm.width)?,
            dh: ops.zeros(rows * norm.width)?,
            datt: ops.zeros(rows * heads.width())?,
            dq: ops.zeros(rows * heads.width())?,
            dk: ops.zeros(rows * heads.kv_heads * heads.head_size)?,
            dv: ops.zeros(rows * heads.kv_heads * heads.head_size)?,
            dgate_up: ops.zeros(rows * 2 * gated.ffn)?,
            dact: ops.zeros(rows * gated.ffn)?,
        })
    }
}

impl<O: Ops> Decoder<O> {
    /// A decoder with initial weights: norms 1, matrices normal with deviation 0.02, the same for the same seed on
    /// every rank and with every bucket size.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(
        ops: &mut O,
        shape: &Shape,
        tokens: Sequences,
        places: &Arc<Places>,
        seed: u64,
    ) -> Result<Self, O::Error> {
        let dims = Dims::of(shape, tokens);
        let mut weights = Weights::zeros(ops, places)?;
        for (stream, parameter) in (0..).zip(&places.parameters) {
            let mut host = vec![1.0; parameter.elements()];
            if parameter.is_matrix() {
                normal(&mut generator(seed, Purpose::Weights, stream), DEVIATION, &mut host);
            }
            ops.upload(weights.view_mut(parameter.role), &host)?;
        }
        let angles = turns(tokens.context, dims.heads.head_size);
        let mut turns = ops.zeros(angles.len())?;
        ops.upload(O::view_mut(&mut turns, 0..angles.len()), &angles)?;
        Ok(Self {
            dims,
            weights,
            turns,
            inputs: ops.ids(tokens.rows())?,
            targets: ops.ids(tokens.rows())?,
            blocks: (0..shape.layers).map(|_| Block::zeros(ops, &dims)).collect::<Result<_, _>>()?,
            last: NormState::zeros(ops, dims.norm)?,
            logits: ops.zeros(tokens.rows() * shape.vocabulary)?,
            losses: ops.zeros(tokens.rows())?,
            work: Work::zeros(ops, &dims)?,
        })
    }

    /// The mean loss of the batch in nats per token; keeps what the backward pass needs.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&mut self, ops: &mut O, batch: &Batch) -> Result<f64, O::Error> {
        ops.upload_ids(&mut self.inputs, &batch.inputs)?;
        ops.upload_ids(&mut self.targets, &batch.targets)?;
        let Self { dims, weights, work, blocks, last, .. } = self;
        let first = &mut blocks[0].attention_norm;
        ops.embed(dims.lookup, &mut first.x, weights.view(Role::Embedding), &self.inputs)?;
        ops.norm(dims.norm, &mut first.h, &mut first.rstd, &first.x, weights.view(Role::AttentionNorm(0)))?;
        for layer in 0..dims.shape.layers {
            let (done, following) = blocks.split_at_mut(layer + 1);
            let block = &mut done[layer];
            block.forward(ops, dims, weights, work, &self.turns, layer)?;
            let (next, gain) = match following.first_mut() {
                Some(next) => (&mut next.attention_norm, Role::AttentionNorm(layer + 1)),
                None => (&mut *last, Role::FinalNorm),
            };
            let NormState { x, h, rstd } = next;
            ops.add_norm(dims.norm, x, h, rstd, &block.ffn_norm.x, &work.branch, weights.view(gain))?;
        }
        ops.linear(dims.head, &mut self.logits, &last.h, weights.view(Role::Head))?;
        ops.cross_entropy(dims.logits, &mut self.losses, &mut self.logits, &self.targets)?;
        ops.mean(&self.losses)
    }

    /// The gradients of the mean loss, last layer first, after [`Decoder::forward`].
    ///
    /// # Errors
    /// The device failed.
    pub fn backward(&mut self, ops: &mut O, gradients: &mut Gradients<O>) -> Result<(), O::Error> {
        let Self { dims, weights, work, blocks, last, .. } = self;
        gradients
            .write(Role::Head, |dw, write| ops.linear_backward_weight(dims.head, dw, write, &self.logits, &last.h))?;
        ops.linear_backward_input(dims.head, &mut work.dh, &self.logits, weights.view(Role::Head))?;
        norm_backward(ops, dims, weights, gradients, Role::FinalNorm, work, Write::Overwrite, last)?;
        for layer in (0..dims.shape.layers).rev() {
            blocks[layer].backward_ffn(ops, dims, weights, gradients, work, layer)?;
            blocks[layer].backward_attention(ops, dims, weights, gradients, work, &self.turns, layer)?;
        }
        gradients.write(Role::Embedding, |dtable, write| {
            ops.embed_backward(dims.lookup, dtable, write, &work.dx, &self.inputs)
        })
    }
}

impl<O: Ops> Block<O> {
    /// From the norm before attention, already computed, to what the feed-forward network adds, in `work.branch`.
    fn forward(
        &mut self,
        ops: &mut O,
        dims: &Dims,
        weights: &Weights<O>,
        work: &mut Work<O>,
        turns: &O::Buf,
        layer: usize,
    ) -> Result<(), O::Error> {
        let Self { attention_norm, q, k, v, att, lse, ffn_norm, gate_up, act } = self;
        ops.linear(dims.qkv, &mut work.qkv, &attention_norm.h, weights.view(Role::Qkv(layer)))?;
        ops.rotary(dims.heads, q, k, v, &work.qkv, turns)?;
        ops.attention(dims.heads, att, lse, q, k, v)?;
        ops.linear(dims.out, &mut work.branch, att, weights.view(Role::Out(layer)))?;

        let NormState { x, h, rstd } = ffn_norm;
        let gain = weights.view(Role::FfnNorm(layer));
        ops.add_norm(dims.norm, x, h, rstd, &attention_norm.x, &work.branch, gain)?;
        ops.linear(dims.gate_up, gate_up, h, weights.view(Role::GateUp(layer)))?;
        ops.swiglu(dims.gated, act, gate_up)?;
        ops.linear(dims.down, &mut work.branch, act, weights.view(Role::Down(layer)))
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
        gradients.write(Role::Down(layer), |dw, write| {
            ops.linear_backward_weight(dims.down, dw, write, &work.dx, &self.act)
        })?;
        ops.linear_backward_input(dims.down, &mut work.dact, &work.dx, weights.view(Role::Down(layer)))?;
        ops.swiglu_backward(dims.gated, &mut work.dgate_up, &work.dact, &self.gate_up)?;
        gradients.write(Role::GateUp(layer), |dw, write| {
            ops.linear_backward_weight(dims.gate_up, dw, write, &work.dgate_up, &self.ffn_norm.h)
        })?;
        ops.linear_backward_input(dims.gate_up, &mut work.dh, &work.dgate_up, weights.view(Role::GateUp(layer)))?;
        norm_backward(ops, dims, weights, gradients, Role::FfnNorm(layer), work, Write::Accumulate, &self.ffn_norm)
    }

    /// The attention half, as [`Block::backward_ffn`].
    #[expect(clippy::too_many_arguments, reason = "each is a part of the decoder that is borrowed on its own")]
    fn backward_attention(
        &mut self,
        ops: &mut O,
        dims: &Dims,
        weights: &Weights<O>,
        gradients: &mut Gradients<O>,
        work: &mut Work<O>,
        turns: &O::Buf,
        layer: usize,
    ) -> Result<(), O::Error> {
        gradients.write(Role::Out(layer), |dw, write| {
            ops.linear_backward_weight(dims.out, dw, write, &work.dx, &self.att)
        })?;
        ops.linear_backward_input(dims.out, &mut work.datt, &work.dx, weights.view(Role::Out(layer)))?;
        let Work { dq, dk, dv, datt, qkv, .. } = work;
        let Self { q, k, v, att, lse, .. } = self;
        ops.attention_backward(dims.heads, dq, dk, dv, datt, att, lse, q, k, v)?;
        ops.rotary_backward(dims.heads, qkv, dq, dk, dv, turns)?;
        gradients.write(Role::Qkv(layer), |dw, write| {
            ops.linear_backward_weight(dims.qkv, dw, write, &work.qkv, &self.attention_norm.h)
        })?;
        ops.linear_backward_input(dims.qkv, &mut work.dh, &work.qkv, weights.view(Role::Qkv(layer)))?;
        let role = Role::AttentionNorm(layer);
        norm_backward(ops, dims, weights, gradients, role, work, Write::Accumulate, &self.attention_norm)
    }
}

/// From `work.dh`, the gradient of a norm's result, to `work.dx`, that of the stream below the norm.
#[expect(clippy::too_many_arguments, reason = "each is a part of the decoder that is borrowed on its own")]
fn norm_backward<O: Ops>(
    ops: &mut O,
    dims: &Dims,
    weights: &Weights<O>,
    gradients: &mut Gradients<O>,
    role: Role,
    work: &mut Work<O>,
    stream: Write,
    state: &NormState<O>,
) -> Result<(), O::Error> {
    let Work { dx, dh, .. } = work;
    gradients.write(role, |dgain, write| {
        ops.norm_backward(dims.norm, dx, stream, dgain, write, dh, &state.x, &state.rstd, weights.view(role))
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
    use crate::device::{Clock, Floats};
    use crate::train::cpu::Cpu;
    use crate::train::data::{Data, DataShare};
    use crate::train::reducer::Reducer;
    use crate::train::reference::{self, differences};
    use crate::train::testing::{close, tiny};
    use crate::train::{Pass, gradient_bucket_lengths};

    impl Decoder<Cpu> {
        /// Everything that one micro-step must write before it reads it.
        fn transient(&mut self) -> Vec<&mut Floats> {
            let Self { blocks, last, logits, losses, work, .. } = self;
            let states = blocks.iter_mut().flat_map(|block| {
                let Block { attention_norm, q, k, v, att, lse, ffn_norm, gate_up, act } = block;
                let NormState { x: x1, h: h1, rstd: r1 } = attention_norm;
                let NormState { x: x2, h: h2, rstd: r2 } = ffn_norm;
                [x1, h1, r1, q, k, v, att, lse, x2, h2, r2, gate_up, act]
            });
            let NormState { x, h, rstd } = last;
            let Work { branch, qkv, dx, dh, datt, dq, dk, dv, dgate_up, dact } = work;
            let shared = [x, h, rstd, logits, losses, branch, qkv, dx, dh, datt, dq, dk, dv, dgate_up, dact];
            states.chain(shared).collect()
        }
    }

    #[test]
    fn the_memory_plan_is_what_is_allocated() {
        let shape = crate::model::preset("llama-tiny").unwrap().shape;
        let config = crate::record::TrainConfig { shape, batch: 3, context: 40, ..tiny() };
        let tokens = Sequences { batch: config.batch, context: config.context };
        let places = Arc::new(Places::of(&config));
        let mut model = Decoder::new(&mut Cpu::new(1).unwrap(), &shape, tokens, &places, 1).unwrap();
        // weights, gradients and two moments
        let parameters = 4 * places.layout.elements();
        let elements = parameters + model.transient().iter().map(|buffer| buffer.len()).sum::<usize>();
        let planned = crate::model::MemoryPlan::on_cpu(&shape, config.batch, config.context).total_bytes.0;
        close("planned bytes", planned as f64, (4 * elements) as f64, 0.0, 0.01);
    }

    /// Each parameter's gradient along a random direction equals the slope of the f64 reference along it, and two
    /// micro-steps of the same batch give twice that.
    #[test]
    fn gradients_of_the_whole_model_are_slopes_of_its_loss() {
        let config = tiny();
        let tokens = Sequences { batch: config.batch, context: config.context };
        let mut ops = Cpu::new(2).unwrap();
        let places = Arc::new(Places::of(&config));
        let mut model = Decoder::new(&mut ops, &config.shape, tokens, &places, 1).unwrap();
        let mut weights = Vec::new();
        for (stream, parameter) in (0..).zip(&places.parameters) {
            let mut values = vec![0.0; parameter.elements()];
            normal(&mut generator(3, Purpose::Weights, stream), 0.3, &mut values);
            ops.upload(model.weights.view_mut(parameter.role), &values).unwrap();
            weights.push(values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
        }
        let mut batch = Batch::new(tokens);
        Data::open(&config, DataShare { rank: 0, world: 1 }).unwrap().fill(0, 0, &mut batch).unwrap();
        let buckets = gradient_bucket_lengths(&config).unwrap().into_iter().map(Floats::zeros).collect();
        let mut gradients = Gradients::<Cpu>::new(&places, buckets, Reducer::none());
        let index = |role| places.parameters.iter().position(|parameter| parameter.role == role).unwrap();
        let loss = |weights: &[Vec<f64>]| {
            let weight = |role| weights[index(role)].as_slice();
            reference::decoder(&config.shape, tokens, weight, &batch.inputs, &batch.targets)
        };

        for micro in 0..2 {
            model.transient().into_iter().for_each(|buffer| buffer.fill(f32::NAN));
            close("loss", model.forward(&mut ops, &batch).unwrap(), loss(&weights), 0.0, 1e-5);
            let write = [Write::Overwrite, Write::Accumulate][micro];
            gradients.begin(Pass { write, last: micro == 1 }, &Clock::starting_now());
            model.backward(&mut ops, &mut gradients).unwrap();
        }
        gradients.finish(&mut Vec::new()).unwrap();

        for (parameter, place) in places.parameters.iter().zip(&places.layout.places) {
            let gradient = &gradients.bucket(place.bucket)[place.offset..place.offset + place.elements];
            let mut direction = vec![0.0; place.elements];
            normal(&mut generator(4, Purpose::Weights, place.offset as u64), 1.0, &mut direction);
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
