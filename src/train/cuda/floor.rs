//! The least time that a step can take on this GPU, part by part, and the time that each part takes.
//!
//! Matrix products and attention are held at their best rate for a while, as a step does: a GPU that is cool for a
//! moment computes faster than one at work. Everything else moves bytes, and is set beside a large copy.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::device::cuda::{Addend, Arena, CudaError, DeviceBuffer, Element, Product};
use crate::model::Shape;
use crate::record::TrainConfig;
use crate::stats;
use crate::train::error::TrainError;
use crate::train::ops::{Attended, Heads, Ops, Sequences};
use crate::train::trainer::{Trainer, device};
use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::{Cuda, plain};

/// Bytes of the copy whose rate is the yardstick of memory: far beyond any cache.
const COPY_BYTES: u64 = 1 << 30;
/// A product that takes less than a microsecond is held no longer than this.
const RUNS_MAX: u32 = 100_000;
/// Steps that are timed part by part; the median counts.
const STEPS: usize = 7;

/// What a step spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Matrix products, two of each block with the residual stream.
    Products,
    /// Attention, forward and backward.
    Attention,
    /// RMSNorm; backward with the residual stream.
    Norms,
    /// Rotary positions.
    Rotary,
    /// SwiGLU.
    Gates,
    /// Cross-entropy.
    Loss,
    /// Token embedding.
    Embedding,
    /// AdamW and the norm of the gradient.
    Optimizer,
    /// Copies of tokens and totals.
    Other,
}

/// One part of a step.
#[derive(Debug, Clone, Serialize)]
pub struct PartTime {
    /// Which.
    pub part: Part,
    /// The least time that it can take.
    pub floor_s: Seconds,
    /// What it takes.
    pub measured_s: Seconds,
}

/// The least time of a step, and what it takes.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// Part by part.
    pub parts: Vec<PartTime>,
    /// Sum of the floors.
    pub floor_s: Seconds,
    /// Time of a step with every part timed, without graphs.
    pub measured_s: Seconds,
    /// Rate of a large copy, counting bytes read and written.
    pub copy_rate: BytesPerSecond,
    /// For how long each product and attention were held.
    pub hold_s: Seconds,
    /// Floating-point operations of the products of a step, a second, at the floor.
    pub product_flops: f64,
}

impl Trainer<Cuda> {
    /// Measures the floor of this training, and the parts of its steps. Trains a few steps for it.
    ///
    /// # Errors
    /// The GPU failed, or has no memory left for the operands.
    pub fn floor(&mut self, hold: Seconds) -> Result<Floor, TrainError> {
        let failed = device::<Cuda>("measure the floor of a step");
        let measured = self.parts_of_steps()?;
        let config = self.config.clone();
        let copy_rate = self.ops.copy_rate().map_err(failed)?;
        let products = self.ops.products_floor(&config, hold).map_err(failed)?;
        let attention = self.ops.attention_floor(&config, hold).map_err(failed)?;
        let moved = bytes_moved(&config);
        let mut parts = Vec::new();
        for (part, measured_s) in measured {
            let floor_s = match part {
                Part::Products => products,
                Part::Attention => attention,
                other => Seconds(moved.get(&other).copied().unwrap_or(0) as f64 / copy_rate.0),
            };
            parts.push(PartTime { part, floor_s, measured_s });
        }
        let floor_s = parts.iter().map(|part| part.floor_s).sum();
        let measured_s = parts.iter().map(|part| part.measured_s).sum();
        let flops: f64 = step_products(&config).iter().map(|each| each.product.flops() * each.count as f64).sum();
        Ok(Floor { parts, floor_s, measured_s, copy_rate, hold_s: hold, product_flops: flops / products.0 })
    }

    /// Median time of each part over a few steps, without graphs.
    fn parts_of_steps(&mut self) -> Result<BTreeMap<Part, Seconds>, TrainError> {
        let failed = device::<Cuda>("time the parts of a step");
        let clock = crate::device::Clock::starting_now();
        let recorded = std::mem::replace(&mut self.ops.records, false);
        let graphs = std::mem::take(&mut self.ops.graphs);
        let mut samples: BTreeMap<Part, Vec<f64>> = BTreeMap::new();
        for step in 0..STEPS + 2 {
            self.ops.entered = Some(Vec::new());
            self.advance(&clock)?;
            while self.finish()?.is_some() {}
            self.ops.enter(Part::Other).map_err(failed)?;
            let entered = self.ops.entered.take().unwrap_or_default();
            if step < 2 {
                continue;
            }
            let mut step: BTreeMap<Part, f64> = BTreeMap::new();
            for pair in entered.windows(2) {
                *step.entry(pair[0].0).or_default() += pair[1].1.since(&pair[0].1).map_err(failed)?.0;
            }
            step.into_iter().for_each(|(part, seconds)| samples.entry(part).or_default().push(seconds));
        }
        self.ops.records = recorded;
        self.ops.graphs = graphs;
        Ok(samples.into_iter().map(|(part, seconds)| (part, Seconds(stats::median(&seconds)))).collect())
    }
}

/// A matrix product of a step.
#[derive(Debug, Clone, Copy)]
struct StepProduct {
    product: Product,
    /// The residual stream is added to it.
    adds_stream: bool,
    /// How often a step runs it.
    count: usize,
}

/// The matrix products of one step.
fn step_products(config: &TrainConfig) -> Vec<StepProduct> {
    let Shape { layers, width, ffn, vocabulary, heads, .. } = config.shape;
    let rows = config.batch * config.context;
    let attended = heads * config.shape.head_size();
    let linears = [
        (width, config.shape.qkv_rows(), layers, false),
        (attended, width, layers, true),
        (width, 2 * ffn, layers, false),
        (ffn, width, layers, true),
        (width, vocabulary, 1, false),
    ];
    linears
        .into_iter()
        .flat_map(|(inputs, outputs, times, adds_stream)| {
            let count = times * config.accumulate;
            [
                (Product { b_transposed: true, ..plain(rows, outputs, inputs) }, adds_stream),
                (plain(rows, inputs, outputs), false),
                (Product { a_transposed: true, ..plain(outputs, inputs, rows) }, false),
            ]
            .map(|(product, adds_stream)| StepProduct { product, adds_stream, count })
        })
        .collect()
}

/// The fewest bytes that each other part moves in a step: every tensor read once and written once. AdamW: 28 bytes a
/// parameter, and 2 more where the norm is clipped; norms 12 D and SwiGLU 8 F for each block, rotary positions 4 Q, the
/// loss 4 bytes a logit and the embedding 6 D, with D, F and Q the bytes of the residual stream, of the inner layer and
/// of queries and keys.
fn bytes_moved(config: &TrainConfig) -> BTreeMap<Part, u64> {
    let Shape { layers, width, ffn, vocabulary, heads, kv_heads } = config.shape;
    let tokens = (config.batch * config.context * config.accumulate) as u64;
    let stream = 2 * tokens * width as u64;
    let turned = 2 * tokens * ((heads + kv_heads) * config.shape.head_size()) as u64;
    let inner = 2 * tokens * ffn as u64;
    let layers = layers as u64;
    let each = if config.clip_norm.is_some() { 30 } else { 28 };
    BTreeMap::from([
        (Part::Norms, 12 * layers * stream),
        (Part::Rotary, 4 * layers * turned),
        (Part::Gates, 8 * layers * inner),
        (Part::Loss, 4 * tokens * vocabulary as u64),
        (Part::Embedding, 6 * stream),
        (Part::Optimizer, each * config.shape.parameter_count()),
    ])
}

impl Cuda {
    /// Notes that `part` begins, where parts are timed.
    pub(super) fn enter(&mut self, part: Part) -> Result<(), CudaError> {
        if let Some(entered) = &mut self.entered {
            entered.push((part, self.events.record(&self.stream)?));
        }
        Ok(())
    }

    /// Bytes a second of a large copy, read and written.
    fn copy_rate(&mut self) -> Result<BytesPerSecond, CudaError> {
        let mut arena = Arena::new(&self.gpu, Bytes(2 * COPY_BYTES))?;
        let source = self.filled(&mut arena, COPY_BYTES as usize / 2)?;
        let mut copy = arena.take(COPY_BYTES as usize / 2, Element::Bf16)?;
        let each = self.held(Seconds(0.2), |cuda| cuda.stream.copy(copy.all_mut(), source.all()))?;
        Ok(Bytes(2 * COPY_BYTES).over(each))
    }

    /// Time of the products of one step, each at its best.
    fn products_floor(&mut self, config: &TrainConfig, hold: Seconds) -> Result<Seconds, CudaError> {
        let mut sum = Seconds(0.0);
        for StepProduct { product, adds_stream, count } in step_products(config) {
            let Product { rows, columns, inner, .. } = product;
            let added = if adds_stream { rows * columns } else { 0 };
            let elements = [rows * inner, inner * columns, rows * columns, added];
            let bytes = elements.iter().map(|len| 2 * *len as u64 + 256).sum();
            let mut arena = Arena::new(&self.gpu, Bytes(bytes))?;
            let (a, b) = (self.filled(&mut arena, elements[0])?, self.filled(&mut arena, elements[1])?);
            let mut out = arena.take(elements[2], Element::Bf16)?;
            let stream = if adds_stream { Some(self.filled(&mut arena, added)?) } else { None };
            let multiply = |cuda: &mut Self| {
                let addend = stream.as_ref().map_or(Addend::Nothing, |stream| Addend::Other(stream.all()));
                cuda.products.multiply(&cuda.stream, product, out.all_mut(), addend, a.all(), b.all())
            };
            sum += Seconds(self.held(hold, multiply)?.0 * count as f64);
        }
        Ok(sum)
    }

    /// Time of attention in one step, forward and backward.
    fn attention_floor(&mut self, config: &TrainConfig, hold: Seconds) -> Result<Seconds, CudaError> {
        let Shape { layers, heads, kv_heads, .. } = config.shape;
        let tokens = Sequences { batch: config.batch, context: config.context };
        let dims = Heads { tokens, heads, kv_heads, head_size: config.shape.head_size() };
        let (rows, packed, width) = (tokens.rows(), dims.packed_width(), dims.width());
        let bytes = rows as u64 * (4 * packed + 4 * width + 4 * heads) as u64 + 2048;
        let mut arena = Arena::new(&self.gpu, Bytes(bytes))?;
        let (qkv, datt) = (self.filled(&mut arena, rows * packed)?, self.filled(&mut arena, rows * width)?);
        let mut att = arena.take(rows * width, Element::Bf16)?;
        let mut lse = arena.take(rows * heads, Element::F32)?;
        let mut dqkv = arena.take(rows * packed, Element::Bf16)?;
        let forward = self.held(hold, |cuda| cuda.attention(dims, &mut att, &mut lse, &qkv))?;
        let backward = self.held(hold, |cuda| {
            let saved = Attended { att: &att, lse: &lse, qkv: &qkv };
            cuda.attention_backward(dims, &mut dqkv, &datt, saved)
        })?;
        Ok(Seconds((forward.0 + backward.0) * (layers * config.accumulate) as f64))
    }

    /// A buffer of normal numbers: products of zeros run faster than any training.
    fn filled(&mut self, arena: &mut Arena, len: usize) -> Result<DeviceBuffer, CudaError> {
        let mut buffer = arena.take(len, Element::Bf16)?;
        self.initial(buffer.all_mut(), len as u64, 1.0)?;
        Ok(buffer)
    }

    /// Time of one `work`, repeated for about `hold`.
    fn held(
        &mut self,
        hold: Seconds,
        mut work: impl FnMut(&mut Self) -> Result<(), CudaError>,
    ) -> Result<Seconds, CudaError> {
        work(self)?;
        let mut runs = 4;
        loop {
            let begin = self.mark()?;
            for _ in 0..runs {
                work(self)?;
            }
            let end = self.mark()?;
            let took = self.between(&begin, &end)?;
            if hold.0 * 0.9 <= took.0 || RUNS_MAX <= runs {
                return Ok(Seconds(took.0 / f64::from(runs)));
            }
            // not more than tenfold at a time: the first runs are slow
            let wanted = f64::from(runs) * hold.0 / took.0.max(1e-6);
            runs = (wanted.ceil().min(10.0 * f64::from(runs)) as u32 + 1).min(RUNS_MAX);
        }
    }
}
