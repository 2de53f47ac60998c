//! The CPU device: f32, one pool of threads, the definition that every other device must match.
//!
//! Work is cut into parts whose sizes follow from the shapes alone, and every sum has one fixed order, so results do
//! not depend on scheduling. Scratch memory grows during the first step and is kept.

mod adamw;
mod attention;
mod checksum;
mod embedding;
mod loss;
mod math;
mod norm;
mod rotary;
mod swiglu;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::comm::Shard;
use crate::device::{Clock, Floats, Matrix, MatrixMut, keep_freed_memory, multiply};
use crate::record::Collective;
use crate::units::Seconds;

use super::error::ExchangeError;
use super::ops::{
    AdamWUpdate, Attended, Gated, Heads, Kind, Linear, Logits, Lookup, NORM_ROOM, Norm, Ops, Stretch, Totals, Write,
};
use super::reducer::{Asked, Queue};
use super::seed::initial;

/// Elements that one task of an element-wise operation handles, about: 64 KiB, well inside a core's L2 cache.
const PART: usize = 16 * 1024;

/// Rows of `width` elements that one task handles.
fn part_rows(width: usize) -> usize {
    (PART / width.max(1)).max(1)
}

/// The cores of one rank.
#[derive(Debug)]
pub struct Cpu {
    threads: usize,
    pool: Arc<ThreadPool>,
    scratch: Scratch,
    totals: Totals,
}

/// The tokens of a batch.
#[derive(Debug)]
pub struct HostTokens {
    inputs: Box<[u32]>,
    targets: Box<[u32]>,
}

/// AdamW's moments of one bucket.
#[derive(Debug)]
pub struct HostState {
    pub(super) m: Floats,
    v: Floats,
    /// Ranges of the bucket, in order, with whether decay touches them.
    ranges: Vec<(Range<usize>, bool)>,
}

/// Memory that operations need while they run; none of it carries a value from one to the next.
#[derive(Debug)]
struct Scratch {
    /// For each thread of the pool: score tiles of attention.
    tiles: Vec<Mutex<Vec<f32>>>,
    /// One sequence of queries, keys and values while they change their order.
    sequence: Vec<f32>,
    /// Partial sums of one operation, a row for each part.
    partial: Vec<f32>,
    /// The same in double precision.
    partial64: Vec<f64>,
}

impl Cpu {
    /// A device of `threads` threads. They inherit the affinity of the caller.
    ///
    /// # Errors
    /// The system refused to start a thread.
    pub fn new(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        keep_freed_memory();
        let threads = threads.max(1);
        let pool =
            ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("compute-{index}")).build()?;
        let tiles = (0..threads).map(|_| Mutex::new(Vec::new())).collect();
        let scratch = Scratch { tiles, sequence: Vec::new(), partial: Vec::new(), partial64: Vec::new() };
        Ok(Self { threads, pool: Arc::new(pool), scratch, totals: Totals::default() })
    }

    /// The threads. Whoever runs a whole step inside [`ThreadPool::install`] saves a change of thread in each
    /// operation.
    #[must_use]
    pub fn pool(&self) -> Arc<ThreadPool> {
        Arc::clone(&self.pool)
    }
}

/// The first `len` elements of `buffer`, which grows if it must. Their content is arbitrary.
fn room<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Runs `work` with `len` elements of arbitrary content that belong to the running thread.
fn with_tile<R>(tiles: &[Mutex<Vec<f32>>], len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let thread = rayon::current_thread_index().unwrap_or(0);
    let mut tile = tiles[thread].lock().unwrap_or_else(PoisonError::into_inner);
    work(room(&mut tile, len))
}

impl Queue<Cpu> for Infallible {
    fn place(&self) -> Shard {
        match *self {}
    }

    fn exchange(&mut self, _: &mut Cpu, _: &mut Floats, _: Collective, _: bool) -> Result<Asked<Cpu>, ExchangeError> {
        match *self {}
    }

    fn follow(&mut self, _: &mut Cpu, _: &Seconds) -> Result<(), ExchangeError> {
        match *self {}
    }

    fn wait(&mut self, _: &Seconds) -> Result<(), ExchangeError> {
        match *self {}
    }
}

impl Ops for Cpu {
    type Buf = Floats;
    type Tokens = HostTokens;
    type View<'a> = &'a [f32];
    type ViewMut<'a> = &'a mut [f32];
    type State = HostState;
    type Mark = Seconds;
    type Outcome = Totals;
    /// Its sums are made by a thread of the host.
    type Queue = Infallible;
    type Error = Infallible;

    const AHEAD: usize = 0;

    fn zeros(&mut self, len: usize, _kind: Kind) -> Result<Floats, Infallible> {
        Ok(Floats::zeros(len))
    }

    fn sharing(&mut self, _other: &Floats, lens: &[usize]) -> Result<Vec<Floats>, Infallible> {
        Ok(lens.iter().map(|len| Floats::zeros(*len)).collect())
    }

    fn tokens(&mut self, dims: Lookup) -> Result<HostTokens, Infallible> {
        let zeros = || vec![0; dims.rows].into_boxed_slice();
        Ok(HostTokens { inputs: zeros(), targets: zeros() })
    }

    fn upload_tokens(&mut self, tokens: &mut HostTokens, inputs: &[u32], targets: &[u32]) -> Result<(), Infallible> {
        tokens.inputs.copy_from_slice(inputs);
        tokens.targets.copy_from_slice(targets);
        Ok(())
    }

    fn upload(&mut self, dst: &mut [f32], host: &[f32]) -> Result<(), Infallible> {
        dst.copy_from_slice(host);
        Ok(())
    }

    fn initial(&mut self, dst: &mut [f32], key: u64, deviation: f64) -> Result<(), Infallible> {
        let parts = dst.par_chunks_mut(PART).enumerate();
        self.pool.install(|| parts.for_each(|(part, dst)| initial(key, part * PART / 2, deviation, dst)));
        Ok(())
    }

    fn download(&mut self, host: &mut [f32], src: &[f32]) -> Result<(), Infallible> {
        host.copy_from_slice(src);
        Ok(())
    }

    fn first_not_finite(&mut self, values: &[f32]) -> Result<Option<usize>, Infallible> {
        Ok(values.iter().position(|value| !value.is_finite()))
    }

    fn view(buf: &Floats, range: Range<usize>) -> &[f32] {
        &buf[range]
    }

    fn view_mut(buf: &mut Floats, range: Range<usize>) -> &mut [f32] {
        &mut buf[range]
    }

    fn len(buf: &Floats) -> usize {
        buf.len()
    }

    fn mark(&mut self) -> Result<Seconds, Infallible> {
        Ok(Clock::monotonic())
    }

    fn wait(&mut self, _mark: &Seconds) -> Result<(), Infallible> {
        Ok(())
    }

    /// The host passes marks one after another.
    fn follow(&mut self, _mark: &Seconds) -> Result<(), Infallible> {
        Ok(())
    }

    fn between(&mut self, earlier: &Seconds, later: &Seconds) -> Result<Seconds, Infallible> {
        Ok(*later - *earlier)
    }

    fn is_recorded(&self, _stretch: Stretch) -> bool {
        false
    }

    /// Nothing is ever recorded here.
    fn replay(&mut self, _stretch: Stretch, _piece: usize) -> Result<(), Infallible> {
        Ok(())
    }

    fn begin_stretch(&mut self, _stretch: Stretch) -> Result<(), Infallible> {
        Ok(())
    }

    fn cut(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn end_stretch(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn embed(&mut self, dims: Lookup, x: &mut Floats, table: &[f32], tokens: &HostTokens) -> Result<(), Infallible> {
        self.pool.install(|| embedding::forward(dims, x, table, &tokens.inputs));
        Ok(())
    }

    fn embed_backward(
        &mut self,
        dims: Lookup,
        dtable: &mut [f32],
        write: Write,
        dx: &Floats,
        tokens: &HostTokens,
    ) -> Result<(), Infallible> {
        self.pool.install(|| embedding::backward(dims, dtable, write, dx, &tokens.inputs));
        Ok(())
    }

    fn norm(
        &mut self,
        dims: Norm,
        h: &mut Floats,
        rstd: &mut Floats,
        x: &Floats,
        gain: &[f32],
    ) -> Result<(), Infallible> {
        self.pool.install(|| norm::forward(dims, h, rstd, x, gain));
        Ok(())
    }

    fn norm_backward(
        &mut self,
        dims: Norm,
        dx: &mut Floats,
        stream: Write,
        dgain: &mut [f32],
        write: Write,
        dh: &Floats,
        x: &Floats,
        rstd: &Floats,
        gain: &[f32],
    ) -> Result<(), Infallible> {
        let saved = norm::Saved { dh, x, rstd, gain };
        let partial = &mut self.scratch.partial;
        self.pool.install(|| norm::backward(dims, (dx, stream), (dgain, write), saved, partial));
        Ok(())
    }

    fn linear(&mut self, dims: Linear, y: &mut Floats, x: &Floats, weight: &[f32]) -> Result<(), Infallible> {
        let Linear { rows, inputs, outputs } = dims;
        let x = Matrix::rows(x, rows, inputs, inputs);
        let weight = Matrix::rows(weight, outputs, inputs, inputs);
        let y = MatrixMut::rows(y, rows, outputs, outputs);
        self.pool.install(|| multiply(y, false, x, weight.transposed(), self.threads));
        Ok(())
    }

    fn linear_add(
        &mut self,
        dims: Linear,
        y: &mut Floats,
        residual: &Floats,
        x: &Floats,
        weight: &[f32],
    ) -> Result<(), Infallible> {
        let Linear { rows, inputs, outputs } = dims;
        let x = Matrix::rows(x, rows, inputs, inputs);
        let weight = Matrix::rows(weight, outputs, inputs, inputs);
        self.pool.install(|| {
            let copies = y.par_chunks_mut(PART).zip(residual.par_chunks(PART));
            copies.for_each(|(y, residual)| y.copy_from_slice(residual));
            let y = MatrixMut::rows(y, rows, outputs, outputs);
            multiply(y, true, x, weight.transposed(), self.threads);
        });
        Ok(())
    }

    fn linear_backward_input(
        &mut self,
        dims: Linear,
        dx: &mut Floats,
        dy: &Floats,
        weight: &[f32],
    ) -> Result<(), Infallible> {
        let Linear { rows, inputs, outputs } = dims;
        let dy = Matrix::rows(dy, rows, outputs, outputs);
        let weight = Matrix::rows(weight, outputs, inputs, inputs);
        let dx = MatrixMut::rows(dx, rows, inputs, inputs);
        self.pool.install(|| multiply(dx, false, dy, weight, self.threads));
        Ok(())
    }

    fn linear_backward_weight(
        &mut self,
        dims: Linear,
        dweight: &mut [f32],
        write: Write,
        dy: &Floats,
        x: &Floats,
    ) -> Result<(), Infallible> {
        let Linear { rows, inputs, outputs } = dims;
        let dy = Matrix::rows(dy, rows, outputs, outputs);
        let x = Matrix::rows(x, rows, inputs, inputs);
        let dweight = MatrixMut::rows(dweight, outputs, inputs, inputs);
        self.pool.install(|| multiply(dweight, write == Write::Accumulate, dy.transposed(), x, self.threads));
        Ok(())
    }

    fn rotary(&mut self, dims: Heads, qkv: &mut Floats, turns: &Floats) -> Result<(), Infallible> {
        let scratch = &mut self.scratch.sequence;
        self.pool.install(|| rotary::forward(dims, qkv, turns, scratch));
        Ok(())
    }

    fn rotary_backward(&mut self, dims: Heads, dqkv: &mut Floats, turns: &Floats) -> Result<(), Infallible> {
        let scratch = &mut self.scratch.sequence;
        self.pool.install(|| rotary::backward(dims, dqkv, turns, scratch));
        Ok(())
    }

    fn attention(&mut self, dims: Heads, att: &mut Floats, lse: &mut Floats, qkv: &Floats) -> Result<(), Infallible> {
        let tiles = &self.scratch.tiles;
        self.pool.install(|| attention::forward(dims, att, lse, qkv, tiles));
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dims: Heads,
        dqkv: &mut Floats,
        datt: &Floats,
        saved: Attended<'_, Floats>,
    ) -> Result<(), Infallible> {
        let saved = attention::Saved { datt, att: saved.att, lse: saved.lse, qkv: saved.qkv };
        let tiles = &self.scratch.tiles;
        self.pool.install(|| attention::backward(dims, dqkv, saved, tiles));
        Ok(())
    }

    fn swiglu(&mut self, dims: Gated, act: &mut Floats, gate_up: &Floats) -> Result<(), Infallible> {
        self.pool.install(|| swiglu::forward(dims, act, gate_up));
        Ok(())
    }

    fn swiglu_backward(&mut self, dims: Gated, gate_up: &mut Floats, dact: &mut Floats) -> Result<(), Infallible> {
        self.pool.install(|| swiglu::backward(dims, gate_up, dact));
        Ok(())
    }

    fn cross_entropy(
        &mut self,
        dims: Logits,
        losses: &mut Floats,
        logits: &mut Floats,
        tokens: &HostTokens,
    ) -> Result<(), Infallible> {
        self.pool.install(|| loss::cross_entropy(dims, losses, logits, &tokens.targets));
        Ok(())
    }

    fn begin_totals(&mut self) -> Result<(), Infallible> {
        self.totals = Totals::default();
        Ok(())
    }

    fn add_loss(&mut self, losses: &Floats, weight: f64) -> Result<(), Infallible> {
        let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        self.totals.loss += weight * sum / losses.len() as f64;
        Ok(())
    }

    fn add_squares(&mut self, gradients: &[f32]) -> Result<(), Infallible> {
        let partial = &mut self.scratch.partial64;
        self.totals.squares += self.pool.install(|| adamw::sum_of_squares(gradients, partial));
        Ok(())
    }

    fn norms(&mut self, world: usize) -> Result<Floats, Infallible> {
        Ok(Floats::zeros(world * NORM_ROOM))
    }

    /// Two elements hold the bits of the sum.
    fn put_squares(&mut self, norms: &mut Floats, rank: usize) -> Result<(), Infallible> {
        let bits = self.totals.squares.to_bits();
        let halves = [bits as u32, (bits >> 32) as u32].map(f32::from_bits);
        norms[rank * NORM_ROOM..][..2].copy_from_slice(&halves);
        Ok(())
    }

    fn take_squares(&mut self, norms: &Floats) -> Result<(), Infallible> {
        let of = |place: &[f32]| {
            let [low, high] = [place[0], place[1]].map(|half| u64::from(half.to_bits()));
            f64::from_bits(high << 32 | low)
        };
        self.totals.squares = norms.chunks_exact(NORM_ROOM).map(of).sum();
        Ok(())
    }

    fn add_checksum(&mut self, weights: &[f32], _rest: Option<&[f32]>, first: usize) -> Result<(), Infallible> {
        let sum = self.pool.install(|| checksum::of(weights, first));
        self.totals.checksum = self.totals.checksum.wrapping_add(sum);
        Ok(())
    }

    fn outcome(&mut self) -> Result<Totals, Infallible> {
        Ok(self.totals)
    }

    fn totals(&mut self, outcome: Totals) -> Result<Totals, Infallible> {
        Ok(outcome)
    }

    fn state(&mut self, len: usize, gains: Vec<Range<usize>>) -> Result<HostState, Infallible> {
        let mut ranges = Vec::with_capacity(2 * gains.len() + 1);
        let mut next = 0;
        for gain in gains {
            ranges.push((next..gain.start, true));
            next = gain.end;
            ranges.push((gain, false));
        }
        ranges.push((next..len, true));
        Ok(HostState { m: Floats::zeros(len), v: Floats::zeros(len), ranges })
    }

    fn adamw(
        &mut self,
        update: &AdamWUpdate,
        weights: &mut [f32],
        state: &mut HostState,
        gradients: &[f32],
    ) -> Result<(), Infallible> {
        let Some(scale) = update.gradient_scale(self.totals.squares) else { return Ok(()) };
        let HostState { m, v, ranges } = state;
        for (range, decays) in ranges.iter().filter(|(range, _)| !range.is_empty()) {
            let weight_decay = if *decays { update.weight_decay } else { 0.0 };
            let update = AdamWUpdate { weight_decay, ..*update };
            let range = range.clone();
            let parts = [&mut weights[range.clone()], &mut m[range.clone()], &mut v[range.clone()]];
            self.pool.install(|| adamw::update(&update, scale, parts, &gradients[range]));
        }
        Ok(())
    }

    fn rest(_state: &HostState, _range: Range<usize>) -> Option<&[f32]> {
        None
    }

    fn copy(&mut self, dst: &mut [f32], src: &[f32]) -> Result<(), Infallible> {
        dst.copy_from_slice(src);
        Ok(())
    }

    fn master(&mut self, host: &mut [f32], weights: &[f32], _rest: Option<&[f32]>) -> Result<(), Infallible> {
        host.copy_from_slice(weights);
        Ok(())
    }

    fn fingerprint(&mut self, weights: &[f32], _rest: Option<&[f32]>) -> Result<Vec<u8>, Infallible> {
        Ok(weights.iter().flat_map(|weight| weight.to_le_bytes()).collect())
    }
}
