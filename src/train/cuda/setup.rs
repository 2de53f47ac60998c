//! Starting a training on a GPU: libraries, kernels, the memory plan, the choice of attention.

use std::collections::BTreeMap;

use crate::device::cuda::kernels::{
    EmbeddingKernels, KernelSet, KernelSizes, NormKernels, NvrtcOnDemand, OptimizerKernels,
};
use crate::device::cuda::{Arena, Cache, CudaError, Element, Events, Gpu, PciAddress, Pinned, Products, Stream};
use crate::model::{MemoryPlan, PRODUCT_WORKSPACE, Shape};
use crate::record::{Device, TrainConfig};
use crate::train::Places;
use crate::train::check::{check, fits_gpu};
use crate::train::data::DataShare;
use crate::train::error::TrainError;
use crate::train::ops::{Heads, Kind, Ops, Sequences};
use crate::train::reducer::Reducer;
use crate::train::trainer::{Trainer, device};
use crate::units::Bytes;

use super::attention::{Attention, delta_len, trial};
use super::staging::Staging;
use super::{Cuda, Workspace};

impl Trainer<Cuda> {
    /// A training on the GPU at `address` that is ready for its first step; gradients stay on it.
    ///
    /// # Errors
    /// The configuration cannot be trained or does not fit, a library is missing, the GPU cannot be used, or the data
    /// cannot be read.
    pub fn on_gpu(config: &TrainConfig, share: DataShare, address: PciAddress) -> Result<Self, TrainError> {
        check(config, Device::Cuda)?;
        let gpu = Gpu::open(address)?;
        let (free, _) = gpu.memory()?;
        fits_gpu(config, free)?;
        let plan = MemoryPlan::on_cuda(&config.shape, config.batch, config.context, config.recompute);
        let places = Places::of(config);
        let rounding = Bytes(256 * (12 * config.shape.layers + 6 * places.lengths().len() + 64) as u64);
        let mut ops = Cuda::open(gpu, config, plan.total_bytes + rounding)?;
        let buckets = places.lengths().into_iter().map(|len| ops.zeros(len, Kind::Working));
        let buckets = buckets.collect::<Result<_, _>>().map_err(device::<Cuda>("take the gradients' memory"))?;
        let mut trainer = Self::on(ops, config, share, Reducer::none(), buckets)?;
        trainer.ops.choose_attention(config).map_err(device::<Cuda>("choose an attention"))?;
        Ok(trainer)
    }

    /// The GPU and what is known of it.
    #[must_use]
    pub fn cuda(&self) -> &Cuda {
        &self.ops
    }
}

impl Cuda {
    /// Loads libraries and kernels, and takes `memory` of the GPU.
    pub(super) fn open(gpu: Gpu, config: &TrainConfig, memory: Bytes) -> Result<Self, CudaError> {
        let mut cache = Cache::of_user();
        let stream = Stream::new(&gpu)?;
        let nvrtc = NvrtcOnDemand::default();
        let mut kernels = KernelSet::load(&gpu, &nvrtc, &mut cache, &sizes(&config.shape))?;
        let mut arena = Arena::new(&gpu, memory)?;
        let products = Products::load(&gpu, arena.take(PRODUCT_WORKSPACE.0 as usize, Element::Byte)?, &mut cache)?;
        let rows = config.batch * config.context;
        let width = config.shape.width;
        let multiprocessors = gpu.multiprocessors();
        let sums = NormKernels::workspace(multiprocessors, width).max(EmbeddingKernels::workspace(rows, width));
        let workspace = Workspace {
            sums: arena.take(sums, Element::F32)?,
            squares: arena.take(OptimizerKernels::workspace(multiprocessors), Element::F64)?,
        };
        let heads = heads(config);
        let attention = Attention::own(kernels.attention.take(), arena.take(delta_len(heads), Element::F32)?);
        let mut software = BTreeMap::new();
        software.insert("gpu".to_owned(), gpu.name().to_owned());
        software.insert("cuda".to_owned(), gpu.cuda_version());
        software.insert("cublaslt".to_owned(), products.version());
        software.extend(nvrtc.version().map(|version| ("nvrtc".to_owned(), version)));
        Ok(Self {
            totals: arena.take(2, Element::F64)?,
            flag: arena.take(1, Element::U64)?,
            outcomes: (0..Self::AHEAD + 2).map(|_| Pinned::zeros(&gpu, 2)).collect::<Result<_, _>>()?,
            outcome: 0,
            attention,
            staging: Staging::default(),
            events: Events::default(),
            graphs: BTreeMap::new(),
            records: true,
            entered: None,
            remarks: cache.remarks(),
            attention_times: Vec::new(),
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
    /// Times every attention that serves on numbers like those of a training, and keeps the fastest.
    fn choose_attention(&mut self, config: &TrainConfig) -> Result<(), CudaError> {
        let dims = heads(config);
        let rows = dims.tokens.rows();
        if 0 < MemoryPlan::attention_beside_logits(&config.shape, rows as u64) {
            let bytes = MemoryPlan::attention_workspace(&config.shape, rows as u64);
            self.attention.lend(self.arena.take(bytes as usize, Element::Byte)?);
        }
        let bytes = rows * (4 * dims.packed_width() + 4 * dims.width() + 4 * dims.heads);
        // the model's buffers take all of the plan; this memory is given back before the first step
        let told = match Arena::new(&self.gpu, Bytes(bytes as u64 + 4096)) {
            Ok(mut arena) => {
                let mut trial = trial(dims, |len, element| arena.take(len, element))?;
                for (buffer, key) in [(&mut trial.qkv, 1), (&mut trial.datt, 2)] {
                    self.kernels.weights.initial(&self.stream, buffer.all_mut(), key, 1.0)?;
                }
                let told = self.attention.choose(&self.stream, dims, config.deterministic, &mut trial)?;
                self.stream.synchronize()?;
                told
            }
            Err(CudaError::Memory { .. }) => self.attention.prefer(&self.stream, dims, config.deterministic)?,
            Err(error) => return Err(error),
        };
        self.remarks.extend(self.attention.missing().cloned());
        self.remarks.push(format!("attention: {}", self.attention.chosen()));
        self.attention_times = told;
        self.software.insert("attention".into(), self.attention.chosen());
        Ok(())
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
