//! Starting a training on a GPU: libraries, kernels, the memory plan, the choice of attention.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use crate::comm::Shard;
use crate::device::cuda::kernels::{EmbeddingKernels, KernelSet, KernelSizes, NormKernels, OptimizerKernels};
use crate::device::cuda::{Arena, Cache, CudaError, Element, Events, Gpu, Nvrtc, PciAddress, Pinned, Products, Stream};
use crate::model::{MemoryPlan, PRODUCT_WORKSPACE, Shape};
use crate::record::{Device, TrainConfig};
use crate::train::Places;
use crate::train::check::{check, fits_gpu};
use crate::train::data::DataShare;
use crate::train::error::TrainError;
use crate::train::ops::{Heads, Ops, Sequences};
use crate::train::reducer::Reducer;
use crate::train::trainer::{Exchanged, Trainer, device};
use crate::units::{Bytes, Seconds};

use super::attention::{Attention, Trial, delta_len};
use super::staging::Staging;
use super::{Cuda, Workspace};

impl Trainer<Cuda> {
    /// A training on the GPU at `address`, on which as many ranks as `sharers` train, that is ready for its first step. Of the
    /// optimizer's state it keeps `part`, or all where ranks do not share it.
    /// `exchange` makes what exchanges gradients, once everything ran once: what libraries do then can wait for all work
    /// of the GPU, and so for other ranks.
    ///
    /// # Errors
    /// The configuration cannot be trained or does not fit, a library is missing, the GPU cannot be used, the data
    /// cannot be read, or `exchange` failed.
    pub fn on_gpu(
        config: &TrainConfig,
        share: DataShare,
        (address, sharers, part): (PciAddress, usize, Option<Shard>),
        exchange: impl FnOnce(&Gpu) -> Result<Reducer<Cuda>, TrainError>,
    ) -> Result<Self, TrainError> {
        check(config, Device::Cuda)?;
        let mut start = Start::now();
        let shard = part.unwrap_or(Shard::WHOLE);
        let gpu = Gpu::open(address)?;
        start.lap("the GPU");
        let (free, total) = gpu.memory()?;
        // others may not have taken theirs yet
        fits_gpu(config, shard.world, Bytes(free.0.min(total.0 / sharers.max(1) as u64)))?;
        let plan = MemoryPlan::on_cuda(&config.shape, config.memory_demand(shard.world));
        let mut ops = Cuda::open(gpu, config, plan.total_bytes, &mut start)?;
        let failed = device::<Cuda>("take the memory of what is exchanged");
        let memory = ops.exchanged(&Places::of(config).lengths(), part).map_err(failed)?;
        let mut trainer = Self::on(ops, config, share, (Reducer::none(), shard), memory)?;
        let Self { ops, model, .. } = &mut trainer;
        start.lap("weights");
        ops.choose_attention(config, model.attention_buffers()).map_err(device::<Cuda>("choose an attention"))?;
        start.lap("attention");
        trainer.warm_up()?;
        trainer.ops.warm_widening().map_err(device::<Cuda>("run for the first time"))?;
        start.lap("the first pass");
        trainer.ops.remarks.extend(start.remark());
        trainer.exchange_by(exchange(trainer.ops.gpu())?);
        Ok(trainer)
    }

    /// What people should know about the start, once.
    pub fn remarks(&mut self) -> Vec<String> {
        self.ops.remarks()
    }

    /// The GPU and what is known of it.
    #[must_use]
    pub fn cuda(&self) -> &Cuda {
        &self.ops
    }
}

impl Cuda {
    /// Memory of buckets of `lengths` that ranks exchange; where they have parts, with room for equal ones.
    fn exchanged(&mut self, lengths: &[usize], part: Option<Shard>) -> Result<Exchanged<Self>, CudaError> {
        let world = part.map_or(1, |shard| shard.world);
        let mut buckets = || {
            let bucket = |len: &usize| {
                let room = world * Shard { rank: 0, world }.of(*len).len();
                let mut bucket = self.arena.take_with_room(*len, room, Element::Bf16)?;
                self.stream.fill(bucket.room_mut(room), 0)?;
                Ok(bucket)
            };
            lengths.iter().map(bucket).collect::<Result<Vec<_>, CudaError>>()
        };
        let gradients = buckets()?;
        if part.is_none() {
            return Ok(Exchanged { gradients, weights: None, norms: None });
        }
        let weights = Some(buckets()?);
        Ok(Exchanged { gradients, weights, norms: Some(self.norms(world)?) })
    }

    /// Loads libraries and kernels, and takes `memory` of the GPU.
    pub(super) fn open(gpu: Gpu, config: &TrainConfig, memory: Bytes, start: &mut Start) -> Result<Self, CudaError> {
        let mut cache = Cache::of_user();
        let stream = Stream::new(&gpu)?;
        let nvrtc = Nvrtc::for_gpu(&gpu)?;
        start.lap("NVRTC");
        let mut kernels = KernelSet::load(&gpu, &nvrtc, &mut cache, &sizes(&config.shape))?;
        start.lap("kernels");
        let mut arena = Arena::new(&gpu, memory)?;
        let products = Products::load(&gpu, arena.take(PRODUCT_WORKSPACE.0 as usize, Element::Byte)?, &mut cache)?;
        start.lap("memory and cuBLASLt");
        let rows = config.batch * config.context;
        let width = config.shape.width;
        let multiprocessors = gpu.multiprocessors();
        let sums = NormKernels::workspace(multiprocessors, width).max(EmbeddingKernels::workspace(rows, width));
        let workspace = Workspace {
            sums: arena.take(sums, Element::F32)?,
            squares: arena.take(OptimizerKernels::workspace(multiprocessors), Element::F64)?,
        };
        let widened = if config.widens() { MemoryPlan::widened_bytes(&config.shape) } else { 0 };
        let heads = heads(config);
        let attention = Attention::own(kernels.attention.take(), arena.take(delta_len(heads), Element::F32)?);
        let mut software = BTreeMap::new();
        software.insert("gpu".to_owned(), gpu.name().to_owned());
        software.insert("cuda".to_owned(), gpu.cuda_version());
        software.insert("cublaslt".to_owned(), products.version());
        software.insert("nvrtc".to_owned(), nvrtc.version());
        Ok(Self {
            totals: arena.take(3, Element::F64)?,
            flag: arena.take(1, Element::U64)?,
            widened: arena.take(widened as usize / 4, Element::F32)?,
            outcomes: (0..Self::AHEAD + 2).map(|_| Pinned::zeros(&gpu, 3)).collect::<Result<_, _>>()?,
            outcome: 0,
            attention,
            staging: Staging::default(),
            events: Events::default(),
            graphs: BTreeMap::new(),
            under_way: None,
            records: true,
            entered: None,
            remarks: cache.remarks(),
            cache,
            gpu,
            stream,
            arena,
            kernels,
            products,
            workspace,
            software,
        })
    }
}

impl Cuda {
    /// Times every attention that serves on numbers like those of a training, and keeps the fastest; or takes what an
    /// earlier start kept for the same sizes, card and libraries, so that two starts compute the same bits.
    fn choose_attention(&mut self, config: &TrainConfig, trial: Trial<'_>) -> Result<(), CudaError> {
        let dims = heads(config);
        let rows = dims.tokens.rows() as u64;
        if 0 < MemoryPlan::beside_logits(&config.shape, rows).attention {
            let bytes = MemoryPlan::attention_workspace(&config.shape, rows);
            self.attention.lend(self.arena.take(bytes as usize, Element::Byte)?);
        }
        for (buffer, key) in [(&mut *trial.qkv, 1), (&mut *trial.datt, 2)] {
            self.kernels.weights.initial(&self.stream, buffer.all_mut(), key, 1.0)?;
        }
        let parts =
            [self.gpu.name(), &self.gpu.cuda_version(), &format!("{dims:?}"), &format!("{}", config.deterministic)];
        self.attention.choose(&self.stream, dims, config.deterministic, trial, (&mut self.cache, &parts))?;
        self.stream.synchronize()?;
        self.remarks.extend(self.cache.remarks());
        self.remarks.extend(self.attention.missing().cloned());
        self.remarks.push(format!("attention: {}", self.attention.chosen()));
        self.software.insert("attention".into(), self.attention.chosen());
        Ok(())
    }
}

/// A start that takes longer than this says what it spent the time on.
const SLOW_START: Seconds = Seconds(4.0);

/// What a start spends its time on.
#[derive(Debug)]
pub(super) struct Start {
    began: Instant,
    laps: Vec<(&'static str, Seconds)>,
}

impl Start {
    pub(super) fn now() -> Self {
        Self { began: Instant::now(), laps: Vec::new() }
    }

    /// Ends a lap that began where the last one ended.
    fn lap(&mut self, name: &'static str) {
        let before: f64 = self.laps.iter().map(|(_, took)| took.0).sum();
        self.laps.push((name, Seconds(self.began.elapsed().as_secs_f64() - before)));
    }

    /// Words for people, where it was slow.
    fn remark(&self) -> Option<String> {
        (SLOW_START.0 < self.began.elapsed().as_secs_f64()).then(|| self.to_string())
    }
}

impl fmt::Display for Start {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let laps: Vec<String> = self.laps.iter().map(|(name, took)| format!("{name} {took}")).collect();
        write!(out, "the start took {}: {}", Seconds(self.began.elapsed().as_secs_f64()), laps.join(", "))
    }
}

/// Heads and sequences of a training.
fn heads(config: &TrainConfig) -> Heads {
    let Shape { heads, kv_heads, .. } = config.shape;
    let tokens = Sequences { batch: config.batch, context: config.context };
    Heads { tokens, heads, kv_heads, head_size: config.shape.head_size() }
}

/// The sizes of a model that kernels are compiled for.
pub(super) fn sizes(shape: &Shape) -> KernelSizes {
    KernelSizes {
        width: shape.width,
        ffn: shape.ffn,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_size: shape.head_size(),
        vocabulary: shape.vocabulary,
    }
}
