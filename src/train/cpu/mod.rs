//! The CPU device: f32, one pool of threads, the definition that every other device must match.
//!
//! Work is cut into parts whose sizes follow from the shapes alone, and every sum has one fixed order, so results do
//! not depend on scheduling. Scratch memory grows during the first step and is kept.

mod adamw;
mod attention;
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

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::device::{Floats, Matrix, MatrixMut, keep_freed_memory, multiply};

use super::ops::{AdamWUpdate, Gated, Heads, Linear, Logits, Lookup, Norm, Ops, Write};

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
}

/// Memory that operations need while they run; none of it carries a value from one to the next.
#[derive(Debug)]
struct Scratch {
    /// For each thread of the pool: score tiles of attention.
    tiles: Vec<Mutex<Vec<f32>>>,
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
        let scratch = Scratch { tiles, partial: Vec::new(), partial64: Vec::new() };
        Ok(Self { threads, pool: Arc::new(pool), scratch })
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

impl Ops for Cpu {
    type Buf = Floats;
    type Ids = Box<[u32]>;
    type View<'a> = &'a [f32];
    type ViewMut<'a> = &'a mut [f32];
    type Error = Infallible;

    fn zeros(&mut self, len: usize) -> Result<Floats, Infallible> {
        Ok(Floats::zeros(len))
    }

    fn ids(&mut self, len: usize) -> Result<Box<[u32]>, Infallible> {
        Ok(vec![0; len].into_boxed_slice())
    }

    fn upload_ids(&mut self, ids: &mut Box<[u32]>, host: &[u32]) -> Result<(), Infallible> {
        ids[..host.len()].copy_from_slice(host);
        Ok(())
    }

    fn upload(&mut self, dst: &mut [f32], host: &[f32]) -> Result<(), Infallible> {
        dst.copy_from_slice(host);
        Ok(())
    }

    fn download(&mut self, host: &mut [f32], src: &[f32]) -> Result<(), Infallible> {
        host.copy_from_slice(src);
        Ok(())
    }

    fn view(buf: &Floats, range: Range<usize>) -> &[f32] {
        &buf[range]
    }

    fn view_mut(buf: &mut Floats, range: Range<usize>) -> &mut [f32] {
        &mut buf[range]
    }

    fn embed(&mut self, dims: Lookup, x: &mut Floats, table: &[f32], ids: &Box<[u32]>) -> Result<(), Infallible> {
        self.pool.install(|| embedding::forward(dims, x, table, ids));
        Ok(())
    }

    fn embed_backward(
        &mut self,
        dims: Lookup,
        dtable: &mut [f32],
        write: Write,
        dx: &Floats,
        ids: &Box<[u32]>,
    ) -> Result<(), Infallible> {
        self.pool.install(|| embedding::backward(dims, dtable, write, dx, ids));
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

    fn add_norm(
        &mut self,
        dims: Norm,
        y: &mut Floats,
        h: &mut Floats,
        rstd: &mut Floats,
        x: &Floats,
        branch: &Floats,
        gain: &[f32],
    ) -> Result<(), Infallible> {
        self.pool.install(|| norm::add_forward(dims, y, h, rstd, [x, branch], gain));
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

    fn rotary(
        &mut self,
        dims: Heads,
        q: &mut Floats,
        k: &mut Floats,
        v: &mut Floats,
        qkv: &Floats,
        turns: &Floats,
    ) -> Result<(), Infallible> {
        self.pool.install(|| rotary::forward(dims, [q, k, v], qkv, turns));
        Ok(())
    }

    fn rotary_backward(
        &mut self,
        dims: Heads,
        dqkv: &mut Floats,
        dq: &Floats,
        dk: &Floats,
        dv: &Floats,
        turns: &Floats,
    ) -> Result<(), Infallible> {
        self.pool.install(|| rotary::backward(dims, dqkv, [dq, dk, dv], turns));
        Ok(())
    }

    fn attention(
        &mut self,
        dims: Heads,
        att: &mut Floats,
        lse: &mut Floats,
        q: &Floats,
        k: &Floats,
        v: &Floats,
    ) -> Result<(), Infallible> {
        let tiles = &self.scratch.tiles;
        self.pool.install(|| attention::forward(dims, att, lse, [q, k, v], tiles));
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dims: Heads,
        dq: &mut Floats,
        dk: &mut Floats,
        dv: &mut Floats,
        datt: &Floats,
        att: &Floats,
        lse: &Floats,
        q: &Floats,
        k: &Floats,
        v: &Floats,
    ) -> Result<(), Infallible> {
        let saved = attention::Saved { datt, att, lse, q, k, v };
        let tiles = &self.scratch.tiles;
        self.pool.install(|| attention::backward(dims, [dq, dk, dv], saved, tiles));
        Ok(())
    }

    fn swiglu(&mut self, dims: Gated, act: &mut Floats, gate_up: &Floats) -> Result<(), Infallible> {
        self.pool.install(|| swiglu::forward(dims, act, gate_up));
        Ok(())
    }

    fn swiglu_backward(
        &mut self,
        dims: Gated,
        dgate_up: &mut Floats,
        dact: &Floats,
        gate_up: &Floats,
    ) -> Result<(), Infallible> {
        self.pool.install(|| swiglu::backward(dims, dgate_up, dact, gate_up));
        Ok(())
    }

    fn cross_entropy(
        &mut self,
        dims: Logits,
        losses: &mut Floats,
        logits: &mut Floats,
        targets: &Box<[u32]>,
    ) -> Result<(), Infallible> {
        self.pool.install(|| loss::cross_entropy(dims, losses, logits, targets));
        Ok(())
    }

    fn mean(&mut self, values: &Floats) -> Result<f64, Infallible> {
        let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        Ok(sum / values.len() as f64)
    }

    fn sum_of_squares(&mut self, values: &Floats) -> Result<f64, Infallible> {
        let partial = &mut self.scratch.partial64;
        Ok(self.pool.install(|| adamw::sum_of_squares(values, partial)))
    }

    fn adamw(
        &mut self,
        update: AdamWUpdate,
        weight: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        gradient: &[f32],
    ) -> Result<(), Infallible> {
        self.pool.install(|| adamw::update(update, weight, m, v, gradient));
        Ok(())
    }
}
